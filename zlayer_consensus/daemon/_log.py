"""What is logged where: one line of text per event.

twistd's own observer knows no levels, and its ``-n`` shows what Twisted says about every factory. Ours is installed
as the application's observer, the way that Twisted documents for services; ``--logger`` and ``--syslog`` win over it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    textFileLogObserver,
)
from twisted.python.logfile import LogFile

__all__ = ["level_filter", "observer_for", "shows_on_stderr"]

# What Twisted tells at "info" is about sockets and factories, and interests only those who debug.
_CHATTY = ("twisted", "log_legacy")


def level_filter(level: str) -> LogLevelFilterPredicate:
    """Return a predicate that lets events of ``level`` and above pass, and Twisted's own from "warn" on."""
    least = LogLevel.levelWithName(level)
    predicate = LogLevelFilterPredicate(defaultLogLevel=least)
    if least is LogLevel.info:
        for namespace in _CHATTY:
            predicate.setLogLevelForNamespace(namespace, LogLevel.warn)
    return predicate


def observer_for(twistd: Mapping[str, Any] | None, level: str) -> ILogObserver | None:
    """Return the observer for twistd's options, or None if they name one of their own.

    :param twistd: the options of ``twistd`` itself; None if the service is not run by it.
    """
    if twistd is None or twistd.get("logger") or twistd.get("syslog"):
        return None
    name = twistd.get("logfile")
    file: Any
    if _to_stdout(twistd):
        file = sys.stdout
    elif name == "-":
        # twistd refuses that in words of its own.
        return None
    else:
        file = LogFile.fromFullPath(name or "twistd.log")
    observer: ILogObserver = FilteringLogObserver(textFileLogObserver(file), [level_filter(level)])
    return observer


def shows_on_stderr(twistd: Mapping[str, Any] | None) -> bool:
    """Return whether what is logged appears where standard error goes: then a line need not be said twice."""
    if twistd is None or not _to_stdout(twistd):
        return False
    try:
        return os.path.sameopenfile(1, 2)
    except OSError:
        # One of the two is closed.
        return False


def _to_stdout(twistd: Mapping[str, Any]) -> bool:
    return bool(twistd.get("nodaemon")) and twistd.get("logfile") in (None, "", "-")
