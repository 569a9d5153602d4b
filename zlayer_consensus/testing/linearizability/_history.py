"""Records what clients do, by the rules without which a verdict means nothing."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Any

from ._operation import Operation

__all__ = ["History", "HistoryError"]


class HistoryError(ValueError):
    """Something was recorded that cannot have happened so; the history would be worthless."""


class History:
    """A recorder of operations.

    Call :meth:`invoke` *before* a request is sent, and :meth:`ok`, :meth:`fail` or :meth:`unknown` *after* its reply
    came. All times come from one clock that does not go back. Events at one instant keep the order in which they were
    recorded: a later one gets the next larger float as its time.

    Which of the three ends it is, decides everything. :meth:`ok` is for every reply, a refused compare-and-swap
    included, because the refusal tells what the value was not. :meth:`fail` is for operations that have not been
    carried out and never will be. All others, time-outs first of all, are :meth:`unknown`. An operation that has not
    ended when the history is read counts as unknown.

    :param reads: functions that change nothing. Such an operation says nothing if its outcome is unknown, and is
        left out of the history.
    """

    def __init__(self, reads: Iterable[str] = ("read", "get")) -> None:
        self._reads = frozenset(reads)
        self._operations: dict[int, Operation] = {}
        self._open: dict[Hashable, int] = {}
        self._retired: set[Hashable] = set()
        self._next = 0
        self._clock = -math.inf
        self._last = -math.inf

    def __len__(self) -> int:
        """Return how many operations :meth:`operations` would give."""
        return len(self.operations())

    def invoke(self, process: Hashable, function: str, key: Hashable, argument: Any, time: float) -> int:
        """Begin an operation, and return the handle with which to end it.

        :raises HistoryError: if the process is doing something else, or has an operation of unknown outcome behind
            it: what such a process did last may still happen, so it goes on under another name.
        """
        if process in self._retired:
            raise HistoryError(
                f"process {process!r} had an operation of unknown outcome; what it does next needs another process"
            )
        if process in self._open:
            raise HistoryError(f"process {process!r} calls {function!r} while another operation of it is under way")
        handle = self._next
        self._operations[handle] = Operation(process, self._tick(time), math.inf, function, key, argument)
        self._open[process] = handle
        self._next += 1
        return handle

    def ok(self, handle: int, result: Any, time: float, index: int | None = None) -> None:
        """End an operation with its result.

        :param index: see :class:`Operation`.
        :raises HistoryError: if it has ended before, or the time goes back.
        """
        operation = self._pending(handle)
        operation.return_time = self._tick(time)
        operation.result = result
        operation.index = index
        del self._open[operation.process]

    def fail(self, handle: int) -> None:
        """End an operation that has not been carried out and never will be: it is taken out of the history.

        :raises HistoryError: if it has ended before.
        """
        operation = self._pending(handle)
        del self._open[operation.process]
        del self._operations[handle]

    def unknown(self, handle: int, index: int | None = None) -> None:
        """End an operation of which nobody knows whether it happened, or will. Its process must not be used again.

        :param index: the index of its log entry, if something else tells: it helps the witness.
        :raises HistoryError: if it has ended before.
        """
        operation = self._pending(handle)
        operation.index = index
        del self._open[operation.process]
        self._retired.add(operation.process)
        if operation.function in self._reads:
            del self._operations[handle]

    def retired(self, process: Hashable) -> bool:
        """Whether a process must not be used again."""
        return process in self._retired

    def operations(self) -> list[Operation]:
        """Return all operations so far, in the order of their calls."""
        return [each for each in self._operations.values() if not (each.unknown and each.function in self._reads)]

    def _pending(self, handle: int) -> Operation:
        operation = self._operations.get(handle)
        if operation is None or self._open.get(operation.process) != handle:
            raise HistoryError(f"operation {handle} is not under way")
        return operation

    def _tick(self, time: float) -> float:
        if not self._clock <= time < math.inf:
            raise HistoryError(f"the time goes from {self._clock} to {time}")
        self._clock = time
        self._last = max(time, math.nextafter(self._last, math.inf))
        return self._last
