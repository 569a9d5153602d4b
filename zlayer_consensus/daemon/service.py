"""What the plugin names: the options of ``twistd zconsensus`` and the service that it runs.

This module is light. ``twistd`` imports it as soon as the subcommand is named, before it knows whether anything will
run; what is heavy, and Klein, which installs a reactor, is imported where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from twisted.application.service import IService
from twisted.python import usage

if TYPE_CHECKING:
    from ._config import NodeConfig

__all__ = ["Options", "makeService"]

_DESCRIPTION = """\
Runs one node of a Raft cluster: a replicated key-value store over HTTP, or an application of your own.

A first node, which bootstraps alone:

    twistd zconsensus --sample > node.toml
    twistd -n --pidfile= zconsensus --config node.toml
    curl -X PUT --data-binary hello http://127.0.0.1:8001/v1/kv/greeting
    curl http://127.0.0.1:8001/v1/kv/greeting

With -n it stays in the foreground and logs to standard output, which is what a supervisor wants. SIGTERM stops it:
it hands its leadership over first.

Exit codes:
    0   stopped in order (after a signal, the signal ends the process)
    2   the configuration is wrong
    3   an address to listen on is in use, or not ours
    4   the data directory is locked, or belongs to another node or cluster
    5   durable data is damaged; nothing was changed
    6   the disk failed or is full
    7   a broken invariant, or an exception in the application
    8   this node was removed from the cluster
Each of them comes with one line that says what happened. A supervisor should restart after 3 and 6 at most.
"""


class Options(usage.Options):
    """The options of ``twistd zconsensus``.

    A configuration that is wrong ends the process in here, before twistd forks or opens anything: with one line and
    exit code 2, where twistd by itself would print its whole help and end with 1.

    After parsing, ``settings`` is the checked configuration.
    """

    synopsis = "[--config FILE] [--check] [--sample]"
    longdesc = ""
    optParameters: ClassVar[list[list[Any]]] = [["config", "c", None, "The node's configuration file (TOML)."]]
    optFlags: ClassVar[list[list[Any]]] = [["check", None, "Check the configuration, say so, and exit."]]

    settings: NodeConfig

    def opt_sample(self) -> NoReturn:
        """Print a configuration file to start from, with every key and its default, and exit."""
        from ._sample import sample

        print(sample(), end="")
        raise SystemExit(0)

    def opt_version(self) -> NoReturn:
        """Print the version of zlayer-consensus, and exit."""
        from importlib.metadata import version

        print(f"zlayer-consensus {version('zlayer-consensus')}")
        raise SystemExit(0)

    def getUsage(self, width: int | None = None) -> str:
        """Return the help. Twisted would wrap the description into one paragraph."""
        usage_text: str = super().getUsage(width)
        return f"{usage_text.rstrip()}\n\n{_DESCRIPTION}"

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse the command line.

        :raises SystemExit: with 2, after one line, if it or the configuration file is wrong.
        """
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            _refuse(f"{error}; see twistd zconsensus --help")

    def parseArgs(self, *rest: str) -> None:
        """Refuse what is left over.

        :raises twisted.python.usage.UsageError: if there is something.
        """
        if rest:
            raise usage.UsageError(f"unexpected argument {rest[0]}")

    def postOptions(self) -> None:
        """Read the configuration file, while the working directory is still the caller's."""
        if self["config"] is None:
            raise usage.UsageError("no configuration file given: --config FILE")
        from ..errors import ConfigError
        from ._config import load_config

        path = os.fspath(self["config"])
        try:
            self.settings = load_config(path)
            if self["check"]:
                from ._application import load_application

                load_application(self.settings)
        except ConfigError as error:
            _refuse(str(error))
        if self["check"]:
            print(f"{path}: node {self.settings.node_id}, data in {self.settings.data_dir}: the configuration is valid")
            raise SystemExit(0)


def makeService(options: Options) -> IService:
    """Return the service that runs the node. It opens and binds nothing yet: twistd may fork first.

    :raises SystemExit: with 2, after one line, if the application that the configuration names cannot be loaded.
    """
    from twisted.internet import reactor

    from ..errors import ConfigError
    from ._application import load_application
    from ._clock import install_monotonic_clock
    from ._exit import ProcessExit
    from ._service import NodeService

    process = ProcessExit()
    process.install()
    install_monotonic_clock(reactor)
    try:
        application = load_application(options.settings, reactor)
    except ConfigError as error:
        _refuse(str(error))
    return NodeService(options.settings, application, reactor, process, twistd=options.parent)


def _refuse(line: str) -> NoReturn:
    """Write one line to standard error and end with the exit code for a wrong configuration."""
    from ._exit import ExitCode, say

    say(line)
    raise SystemExit(int(ExitCode.CONFIGURATION))
