"""The top of the command line. A group of commands is a module of its own and is added here."""

from __future__ import annotations

from typing import Any

import click

from ._backup_commands import backup_command, restore_command
from ._exit import ExitCode, exit_codes
from ._log import log
from ._recover_commands import recover_group

__all__ = ["ExitCode", "program"]


class _Program(click.Group):
    """Ends with the codes of :class:`ExitCode`."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the program's own options."""
        with exit_codes():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse and run a command."""
        with exit_codes():
            return super().invoke(ctx)


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="zlayer-consensus", prog_name="zconsensus")
def program() -> None:
    """Look after nodes of a zlayer-consensus cluster.

    Exit codes: 0 clean, 1 torn tail, 2 rot, 3 cannot open, 64 wrong usage; docs/log-tool.rst and docs/disaster.rst
    say more.
    """


program.add_command(log)
program.add_command(recover_group)
program.add_command(backup_command)
program.add_command(restore_command)
