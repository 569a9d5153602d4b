"""Makes room: what is still needed of files that are mostly garbage is written anew, and the files go."""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from ..errors import InvariantBroken
from ._commands import RECORD_HEAD
from ._store import Store
from ._value_files import MAGIC, Scanned
from ._value_log import ValueFile, ValueLog

__all__ = ["Compactor"]

_LOOK_SECONDS: Final = 1.0
"""How long garbage gathers before it is looked for."""
_SLICE_BYTES: Final = 256 << 10
_SLICE_RECORDS: Final = 256
"""Most records that are moved without a pause, which takes a millisecond or two."""
_BACKLOG_SECONDS: Final = 30.0
"""The rate rises so far that what there is to do would take so long, so that garbage cannot outgrow it."""
_MANY_SMALL: Final = 16
_FEW_SMALL: Final = 8
"""When there are more small files than the former, they are merged until there are as few as the latter."""


class Compactor:
    """Rewrites files of which less than half is needed, and merges small ones; one at a time, in the background.

    Which file a value is in is no part of the state: it differs between members, and nothing that a client can see
    depends on it.

    :param clock: an ``IReactorTime``.
    :param bytes_per_second: how much is read, unless there is much to do.
    :param buffer_bytes: while half of this waits to be written, it pauses.
    """

    def __init__(self, store: Store, log: ValueLog, clock: Any, bytes_per_second: int, buffer_bytes: int) -> None:
        self._store = store
        self._log = log
        self._clock = clock
        self._least = bytes_per_second
        self._rate: float = bytes_per_second
        self._buffer = buffer_bytes
        self._timer: IDelayedCall | None = None
        self._task: Deferred[None] | None = None
        self._busy = False
        self._merging = False
        self._stopped = False
        log.on_garbage = self.consider

    def consider(self) -> None:
        """Look for work after a while."""
        if self._timer is None and not self._busy and not self._stopped:
            self._timer = self._clock.callLater(_LOOK_SECONDS, self._begin)

    def stop(self) -> None:
        """End, for good."""
        self._stopped = True
        self._log.on_garbage = lambda: None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        self._timer = None
        if self._choose() is not None:
            self._busy = True
            self._task = Deferred.fromCoroutine(self._run())
            _ = self._task.addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.storage.fail(failure)

    async def _run(self) -> None:
        while (file := self._choose()) is not None:
            file.pins += 1
            try:
                if await self._log.storage.free() < self._room(file):
                    break
                await self._rewrite(file)
            finally:
                self._log.unpin(file)
        self._busy = False
        self._rate = self._least
        if file is not None:
            self.consider()

    def _room(self, file: ValueFile) -> int:
        """Return how much must be free to rewrite a file: its space may come back with a snapshot only.

        It is so little that a node whose disk is full, with not much left, still finds its way back.
        """
        return min(2 * file.size, file.live + self._log.file_bytes // 2)

    # What to do

    def _complete_files(self) -> list[ValueFile]:
        return [file for file in self._log.files.values() if file.sealed is not None and file.count]

    def _choose(self) -> ValueFile | None:
        """Return the next file to rewrite."""
        files = self._complete_files()
        sparse = [file for file in files if _is_sparse(file)]
        # It does not fall while there is something to do: the rest is not to take as long again.
        self._rate = max(self._rate, sum(file.size for file in sparse) / _BACKLOG_SECONDS)
        if sparse:
            return min(sparse, key=lambda file: (file.live / file.size, file.number))
        small = [file for file in files if file.size < self._log.file_bytes // 4]
        self._merging = len(small) > (_FEW_SMALL if self._merging else _MANY_SMALL)
        return min(small, key=lambda file: (file.size, file.number)) if self._merging else None

    # Doing it

    async def _rewrite(self, file: ValueFile) -> None:
        at = len(MAGIC)
        while at < file.size and file.count:
            records, end = await self._log.storage.scan(file.path, at, file.size, _SLICE_BYTES)
            for first in range(0, len(records), _SLICE_RECORDS):
                self._move(file, records[first : first + _SLICE_RECORDS])
                await self._sleep(0)
            await self._sleep((end - at) / self._rate)
            while (room := self._log.storage.writes.below(self._buffer // 2)) is not None:
                await room
            at = end
        if file.count:
            raise InvariantBroken(f"{file.path} has {file.count} values that are needed, and are not in it")

    def _move(self, file: ValueFile, records: list[Scanned]) -> None:
        store, log = self._store, self._log
        for offset, key, _, value in records:
            old = log.find(store.holding(key), file, offset)
            if old is not None:
                store.move(key, old, log.keep(key, old[: RECORD_HEAD.size], value))

    def _sleep(self, seconds: float) -> Deferred[None]:
        return deferLater(self._clock, seconds, lambda: None)


def _is_sparse(file: ValueFile) -> bool:
    return 2 * file.live < file.size
