"""The directory of value files: who writes to it, who reads from it, and what happens when that fails."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from ..errors import ConsensusError, InvariantBroken, NodeStopped
from ..storage import IExecutor, IFileSystem, StateFile
from ._value_files import (
    FileWriter,
    Place,
    Scanned,
    begin_directory,
    link_files,
    path_of,
    read_value,
    scan,
)
from ._write_behind import WriteBehind

__all__ = ["ValueStorage"]

_READS_TOGETHER: Final = 64
"""Most requests that are read in one go: the first of them has its answer when the last has."""


class ValueStorage:
    """All value files of a machine.

    What fails here, a removal apart, is final: nothing more is written, and whoever asked :meth:`failed` is told.

    :param executor: runs what writes, and what reads at leisure.
    :param read_executor: runs reads that somebody waits for.
    :param clock: provides ``IReactorTime``.
    """

    def __init__(
        self, files: IFileSystem, directory: str, executor: IExecutor, read_executor: IExecutor, clock: Any
    ) -> None:
        self.directory = directory
        self.failure: ConsensusError | None = None
        self._files = files
        self._executor = executor
        self._read_executor = read_executor
        self._writer = FileWriter(files)
        self.writes = WriteBehind(executor, self._writer, clock, self.fail)
        self._numbers = itertools.count(1)
        self._waiters: list[Deferred[ConsensusError]] = []
        self._closed = False
        self._queue: list[tuple[Sequence[Place], Deferred[list[bytes]]]] = []
        self._reading = False

    # Life

    def open(self) -> Deferred[None]:
        """Make the directory, empty."""
        return self._executor.run(begin_directory, self._files, self.directory)

    def fail(self, failure: Failure) -> None:
        """Take note of a failure; the first one counts."""
        if self.failure is not None or self._closed:
            return
        error = failure.value
        if not isinstance(error, ConsensusError):
            error = InvariantBroken(f"the value files: {type(error).__name__}: {error}")
        self.failure = error
        self.writes.stop()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(error)

    @property
    def problem(self) -> ConsensusError | None:
        """Why nothing is written any more; None: it is."""
        return NodeStopped() if self.failure is None and self._closed else self.failure

    def failed(self) -> Deferred[ConsensusError]:
        """Return a new Deferred that fires with the failure."""
        if self.failure is not None:
            return succeed(self.failure)
        waiter: Deferred[ConsensusError] = Deferred()
        self._waiters.append(waiter)
        return waiter

    def close(self) -> Deferred[None]:
        """Begin nothing any more; fires when what was under way has ended, reads included."""
        self._closed = True
        self.writes.stop()
        closing = self._executor.run(self._writer.close)
        reading = self._read_executor.run(_nothing)
        return reading.addCallback(lambda _: closing)

    # Files

    def new_path(self) -> tuple[int, str]:
        """Return the number and the path of a file that there never was."""
        number = next(self._numbers)
        return number, path_of(self.directory, number)

    def link(self, files: Sequence[StateFile], paths: Sequence[str]) -> Deferred[None]:
        """Give the files of a snapshot further names."""
        links = [(file.path, path) for file, path in zip(files, paths, strict=True)]
        return self._executor.run(link_files, self._files, links)

    def scan(self, path: str, offset: int, end: int, limit: int) -> Deferred[tuple[list[Scanned], int]]:
        """Read records at leisure; see :func:`scan`."""
        return self._executor.run(scan, self._files, path, offset, end, limit)

    def free(self) -> Deferred[int]:
        """Return how many bytes could still be written, roughly."""
        return self._executor.run(self._files.free, self.directory)

    # Values

    def read(self, places: Sequence[Place]) -> Deferred[list[bytes]]:
        """Read values that somebody waits for. Some that are asked for meanwhile are read together, next.

        It is not cancellable, and fails with what is wrong with the first that cannot be read, or with
        :class:`~zlayer_consensus.errors.NodeStopped` after :meth:`close`.
        """
        done: Deferred[list[bytes]] = Deferred()
        self._queue.append((places, done))
        if not self._reading:
            self._read_next()
        return done

    def _read_next(self) -> None:
        batch = self._queue if self._closed else self._queue[:_READS_TOGETHER]
        self._queue = self._queue[len(batch) :]
        if self._closed:
            for _, done in batch:
                done.errback(NodeStopped())
            return
        self._reading = True
        requests = [places for places, _ in batch]
        _ = self._read_executor.run(self._read_all, requests).addBoth(self._were_read, [done for _, done in batch])

    def _read_all(self, requests: Sequence[Sequence[Place]]) -> list[list[bytes] | Failure]:
        results: list[list[bytes] | Failure] = []
        for places in requests:
            try:
                results.append([self.read_now(place) for place in places])
            except Exception:
                results.append(Failure())
        return results

    def read_now(self, place: Place) -> bytes:
        """Read a value here and now, which blocks."""
        return read_value(self._files, place)

    def _were_read(self, results: Any, waiting: list[Deferred[list[bytes]]]) -> None:
        self._reading = False
        if isinstance(results, Failure):
            results = [results] * len(waiting)
        if self._queue:
            self._read_next()
        for result, done in zip(results, waiting, strict=True):
            if isinstance(result, Failure):
                # What was written is not there as it was: nobody knows what else is not.
                self.fail(result)
                done.errback(result)
            else:
                done.callback(result)


def _nothing() -> None:
    """What runs behind all else has come to its turn."""
