"""Values on their way to the disk. Until they are there, they are read from here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..errors import StorageFull
from ..storage import IExecutor, StateFile
from ._value_files import Append, Done, FileWriter, Job, Remove, Seal, record_bytes

__all__ = ["WriteBehind"]

_OVERHEAD: Final = 300
"""Bytes of memory that a waiting value takes beside key and value, roughly."""
_AGAIN_SECONDS: Final = 1.0
"""How long after the disk was found full it is tried again."""


class WriteBehind:
    """A queue in front of a :class:`FileWriter`: while it works on some jobs, the next ones gather.

    The queue itself takes whatever comes. Who fills it asks :meth:`below` before. While the disk is full, what there is
    no space for waits, and is tried again every second (S-10).

    :param clock: provides ``IReactorTime``.
    :param failed: called once, with the first failure. After it, nothing is written any more.
    """

    _log = Logger()

    def __init__(
        self, executor: IExecutor, writer: FileWriter, clock: Any, failed: Callable[[Failure], object]
    ) -> None:
        self.waiting: dict[bytes, bytes] = {}
        """By locator: the values that are not yet on the disk, or not known to be."""
        self.bytes = 0
        """Memory that waiting values take."""
        self.full = False
        """Whether some wait because the disk is full."""
        self._executor = executor
        self._writer = writer
        self._failed = failed
        self._clock = clock
        self._again: IDelayedCall | None = None
        self._queue: list[Job] = []
        self._begun: list[Job] = []
        """What the writer was given, and has not done all of."""
        self._seals: list[Deferred[StateFile]] = []
        self._thresholds: list[tuple[int, Deferred[None]]] = []
        self._busy = False
        self._dead = False

    def append(self, job: Append) -> None:
        """Write a value."""
        self.waiting[job.locator] = job.value
        self.bytes += _cost(job)
        self._put(job)

    def seal(self, number: int) -> Deferred[StateFile]:
        """Sync and close a file that was written to."""
        sealed: Deferred[StateFile] = Deferred()
        self._seals.append(sealed)
        self._put(Seal(number))
        return sealed

    def remove(self, number: int, path: str) -> None:
        """Remove a file. That it fails is no reason to stop; the next start does it."""
        self._put(Remove(number, path))

    def below(self, limit: int) -> Deferred[None] | None:
        """Say whether at most ``limit`` bytes wait: None if so, else a Deferred that fires when half of it is free."""
        if self.bytes <= limit:
            return None
        waiter: Deferred[None] = Deferred()
        self._thresholds.append((limit // 2, waiter))
        return waiter

    def stop(self) -> None:
        """Begin nothing any more; what is under way ends."""
        self._dead = True
        self._queue.clear()
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def _put(self, job: Job) -> None:
        if self._dead:
            return
        self._queue.append(job)
        if not self._busy:
            self._next()

    def _next(self) -> None:
        if self._dead or self._again is not None or not (self._queue or self.full):
            return
        jobs, self._queue = self._queue, []
        self._begun += jobs
        self._busy = True
        _ = self._executor.run(self._writer.run, jobs).addCallbacks(self._done, self._broke)

    def _done(self, done: Done) -> None:
        self._busy = False
        if done.full is not None:
            self._wait_for_space(done.full)
        else:
            self.full = False
            jobs, self._begun = self._begun, []
            for job in jobs:
                if isinstance(job, Append):
                    self.waiting.pop(job.locator, None)
                    self.bytes -= _cost(job)
            self._next()
        for error in done.left:
            self._log.warn("A file of values was not removed, and stays until the next start: {error}", error=error)
        for file in done.sealed:
            self._seals.pop(0).callback(file)
        reached = [each for each in self._thresholds if self.bytes <= each[0]]
        if reached:
            self._thresholds = [each for each in self._thresholds if self.bytes > each[0]]
            for _, waiter in reached:
                if not waiter.called:
                    waiter.callback(None)

    def _wait_for_space(self, error: StorageFull) -> None:
        if not self.full:
            self.full = True
            self._log.critical("{error}; values wait in memory until there is space", error=error)
        if not self._dead:
            self._again = self._clock.callLater(_AGAIN_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._again = None
        self._next()

    def _broke(self, failure: Failure) -> None:
        self.stop()
        waiting: list[Deferred[Any]] = [*self._seals, *(waiter for _, waiter in self._thresholds)]
        self._seals, self._thresholds = [], []
        self._failed(failure)
        for waiter in waiting:
            if not waiter.called:
                waiter.errback(failure)


def _cost(job: Append) -> int:
    return record_bytes(job.key, len(job.value)) + _OVERHEAD
