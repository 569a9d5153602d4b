"""How the process ends: one line, and an exit code that a supervisor can act on.

``twistd`` ends with 0 when a service fails after the reactor has started, and with 1 and a traceback before that
(``app.run``); neither tells a supervisor whether a restart is worth while. So the code is handed to the
interpreter's own exit, after twistd has tidied up.
"""

from __future__ import annotations

import atexit
import os
import sys
from enum import IntEnum

from twisted.internet.error import CannotListenError

from ..errors import (
    BootstrapMismatch,
    ClusterMismatch,
    ConfigError,
    ConsensusError,
    IncarnationMismatch,
    InvariantBroken,
    NodeRemoved,
    NodeStopped,
    StateDiverged,
    StorageCorrupt,
    StorageFailed,
    StorageFull,
    StorageLocked,
    WrongIdentity,
)

__all__ = ["AddressInUse", "ExitCode", "ProcessExit", "explain", "say"]


class ExitCode(IntEnum):
    """Why the daemon ended. 0 is an orderly stop; after a signal, the signal itself ends the process."""

    CONFIGURATION = 2
    ADDRESS_IN_USE = 3
    DATA_DIRECTORY = 4
    DATA_DAMAGED = 5
    DISK_FAILED = 6
    BROKEN_INVARIANT = 7
    REMOVED = 8


class AddressInUse(ConsensusError):
    """A listener could not be bound."""

    code = "address_in_use"

    def __init__(self, field: str, endpoint: str, cause: str) -> None:
        super().__init__(f"cannot listen on {endpoint} ({field}): {cause}")
        self.field = field
        self.endpoint = endpoint
        self.cause = cause


# The first that fits counts, so subclasses stand before their bases.
_CODES: tuple[tuple[type[BaseException], ExitCode], ...] = (
    (ConfigError, ExitCode.CONFIGURATION),
    (AddressInUse, ExitCode.ADDRESS_IN_USE),
    (CannotListenError, ExitCode.ADDRESS_IN_USE),
    (StorageLocked, ExitCode.DATA_DIRECTORY),
    (WrongIdentity, ExitCode.DATA_DIRECTORY),
    (IncarnationMismatch, ExitCode.DATA_DIRECTORY),
    (BootstrapMismatch, ExitCode.DATA_DIRECTORY),
    (ClusterMismatch, ExitCode.DATA_DIRECTORY),
    (StorageCorrupt, ExitCode.DATA_DAMAGED),
    (StorageFailed, ExitCode.DISK_FAILED),
    (OSError, ExitCode.DISK_FAILED),
    (InvariantBroken, ExitCode.BROKEN_INVARIANT),
    (NodeRemoved, ExitCode.REMOVED),
)

_ADVICE: dict[type[BaseException], str] = {
    StorageCorrupt: "nothing was changed; while a majority of the other nodes is well, zconsensus log repair lets this "
    "one get back what it lost from them, or replace it by a new one under a new id",
    StorageFull: "make room and start the node again",
    StateDiverged: "keep its data directory and its log, replace it by a new node under a new id, and report it",
    StorageLocked: "only one process may use a data directory",
}


def explain(error: BaseException) -> tuple[ExitCode, str]:
    """Return the exit code for an error, and the one line that says what happened and what to do.

    What nobody foresaw (an exception of the application's ``apply`` among it) counts as a broken invariant: the node
    cannot know whether it is right.
    """
    while isinstance(error, NodeStopped) and error.cause is not None:
        error = error.cause
    code = next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.BROKEN_INVARIANT)
    text = str(error) if isinstance(error, ConsensusError) else f"{type(error).__name__}: {error}"
    advice = next((advice for kind, advice in _ADVICE.items() if isinstance(error, kind)), "")
    return code, " ".join(f"{text}; {advice}".split()) if advice else " ".join(text.split())


def say(line: str) -> None:
    """Write one line to the real standard error, which twistd's logging has replaced by then."""
    if sys.__stderr__ is not None:
        print(f"zconsensus: {line}", file=sys.__stderr__, flush=True)


class ProcessExit:
    """The exit code of a process whose exit belongs to twistd.

    Make it before anything else registers with :mod:`atexit`: handlers run in reverse order, so this one comes last.
    A forked child inherits it, which is what daemonising needs.
    """

    def __init__(self) -> None:
        self.code: ExitCode | None = None

    def install(self) -> None:
        """Make the interpreter end with ``code``, if there is one by then."""
        atexit.register(self._leave)

    def _leave(self) -> None:
        if self.code is None:
            return
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            if stream is not None:
                stream.flush()
        # The exit code of sys.exit() in here would be ignored.
        os._exit(self.code)
