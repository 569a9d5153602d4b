"""A linearizability checker: was there one order that explains what all clients saw?

Record operations with :class:`History`, and hand them to :func:`check` with a :class:`Model`::

    history = History()
    handle = history.invoke("client 1", "write", "x", 1, clock.seconds())
    ...
    history.ok(handle, None, clock.seconds())
    verdict = check(history, CasRegister())
    if not verdict.linearizable:
        raise AssertionError(verdict.text())

:func:`timeline` makes a page of a counterexample.
"""

from __future__ import annotations

from ._check import Outcome, Verdict, check
from ._counterexample import Counterexample
from ._history import History, HistoryError
from ._model import Conflict, Model
from ._operation import Operation
from ._registers import CasRegister, StringRegister
from ._timeline import timeline
from ._versioned import VersionedRegister

__all__ = [
    "CasRegister",
    "Conflict",
    "Counterexample",
    "History",
    "HistoryError",
    "Model",
    "Operation",
    "Outcome",
    "StringRegister",
    "Verdict",
    "VersionedRegister",
    "check",
    "timeline",
]
