"""What every store of snapshots does alike, wherever it keeps them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..errors import ConfigError, StorageCorrupt, StorageError
from ..raft import LogId, SnapshotPoint
from ._executor import IExecutor
from ._snapshot_format import check_point
from ._snapshot_received import Received
from ._snapshot_scrub import Piece
from ._snapshot_streams import (
    BUFFER_BYTES,
    Reader,
    ReaderParts,
    Receiver,
    ReceiverParts,
    Writer,
    WriterParts,
    uncancelled,
)
from .interfaces import (
    ISnapshotReader,
    ISnapshotReceiver,
    ISnapshotWriter,
    IStateMachine,
    IStateMachineFiles,
    Manifest,
    ScrubStep,
)

__all__ = ["SnapshotStore"]


class SnapshotStore:
    """Base of the stores; the subclasses know where bytes are kept.

    :param machine: the application.
    :param executor: runs what blocks.
    :param stop_executor: whether it ends with the store.
    :param keep: snapshots kept.
    """

    _log = Logger()

    def __init__(
        self,
        machine: IStateMachine,
        executor: IExecutor,
        stop_executor: bool,
        keep: int,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        if keep < 1:
            raise ConfigError("keep", keep, "must be a positive integer")
        if buffer_bytes < 1:
            raise ConfigError("buffer_bytes", buffer_bytes, "must be a positive integer")
        self.machine = machine
        self._machine_files = bool(IStateMachineFiles.providedBy(machine))
        self._executor = executor
        self._stop_executor = stop_executor
        self._keep = keep
        self._buffer_bytes = buffer_bytes
        self._state = "new"
        self._newest: Manifest | None = None
        self._positions: list[LogId] = []
        self._readers: Counter[LogId] = Counter()
        self._writer: Writer | None = None
        self._receiver: Receiver | None = None
        self._received: Received | None = None
        """What an earlier process has received of a snapshot; nobody has asked for it yet."""
        self._to_scrub: list[LogId] = []
        """The snapshots that the scrub under way has still to look at, oldest first."""
        self._former: list[tuple[LogId, str]] = []
        """Former takes of snapshots, and where they are: to be removed when nobody reads them."""

    # Where bytes are kept. All but `_..._parts`, `_switch` and `_scrub_piece` block.

    def _recover(self) -> tuple[Manifest | None, tuple[LogId, ...], Received | None]:
        """Return the newest snapshot, every position, oldest first, and what there is of a transfer."""
        raise NotImplementedError

    def _writer_parts(self, point: SnapshotPoint, again: bool) -> WriterParts:
        """``again``: it takes the place of the one of the same position."""
        raise NotImplementedError

    def _reader_parts(self, manifest: Manifest) -> ReaderParts:
        raise NotImplementedError

    def _receiver_parts(self, manifest: Manifest, received: Received | None) -> ReceiverParts:
        raise NotImplementedError

    def _forget_received(self, received: Received) -> None:
        """Remove what there is of a transfer."""
        raise NotImplementedError

    def _remove(self, position: LogId) -> None:
        raise NotImplementedError

    def _switch(self, position: LogId) -> str:
        """Let a snapshot that was taken again be that of its position; return where the one before is."""
        raise NotImplementedError

    def _remove_former(self, path: str) -> None:
        raise NotImplementedError

    def _scrub_piece(self, position: LogId, known: Manifest | None) -> Callable[[int], Piece]:
        """Return what verifies the next piece, of so many bytes, of a snapshot, whose manifest is perhaps known."""
        raise NotImplementedError

    def _release(self) -> None:
        raise NotImplementedError

    def _try_links(self, directory: str) -> None:
        """See that files of a machine's directory can be linked."""
        raise NotImplementedError

    # The contract.

    def open(self) -> Deferred[Manifest | None]:
        """See :meth:`IStateMachineStore.open`."""
        return uncancelled(self._open())

    async def _open(self) -> Manifest | None:
        if self._state != "new":
            raise RuntimeError(f"the state machine store is {self._state} already")
        self._state = "opening"
        try:
            self._newest, positions, self._received = await self._executor.run(self._recover)
            await self._open_machine()
        except Exception:
            if self._state == "opening":
                self._state = "new"
            raise
        self._positions = list(positions)
        if self._state == "opening":
            self._state = "open"
        return self._newest

    async def _open_machine(self) -> None:
        machine: Any = self.machine
        if not self._machine_files:
            return
        try:
            await machine.open()
            await self._executor.run(self._try_links, machine.directory)
        except Exception:
            await self._executor.run(self._release)
            raise

    def newest(self) -> Manifest | None:
        """See :meth:`IStateMachineStore.newest`."""
        return self._newest

    def reader(self) -> ISnapshotReader:
        """See :meth:`IStateMachineStore.reader`."""
        self._check_open()
        if self._newest is None:
            raise LookupError("there is no snapshot")
        manifest = self._newest
        position = manifest.point.last
        self._readers[position] += 1

        def closed() -> None:
            self._readers[position] -= 1
            if self._state == "open" and not self._readers[position]:
                self._in_background(uncancelled(self._prune()))

        return Reader(self._executor, self._reader_parts(manifest), manifest, closed)

    def writer(self, point: SnapshotPoint) -> ISnapshotWriter:
        """See :meth:`IStateMachineStore.writer`.

        If the newest snapshot is of this position, it is taken again, provided that the machine has files.

        :raises ValueError: if there is a newer snapshot.
        :raises RuntimeError: if another writer is neither published nor aborted.
        """
        self._check_open()
        self._check_newer(point)
        if self._writer is not None:
            raise RuntimeError("another snapshot is being written")

        def ended() -> None:
            self._writer = None

        parts = self._writer_parts(point, self._machine_files and self._is_newest(point.last))
        self._writer = Writer(self._executor, parts, point, self._publish, ended, self._buffer_bytes)
        return self._writer

    def receiver(self, manifest: Manifest) -> ISnapshotReceiver:
        """See :meth:`IStateMachineStore.receiver`. A transfer of another snapshot is given up (H-64).

        :raises ValueError: if there is a newer snapshot, or one of the same index and another term (J-86).
        """
        self._check_open()
        self._check_newer(manifest.point)
        former = self._receiver
        if former is not None:
            if former.manifest == manifest and not former.failed:
                return former
            self._in_background(former.abort())

        def ended() -> None:
            if self._receiver is receiver:
                self._receiver = None

        parts = self._receiver_parts(manifest, self._take_received(manifest))
        receiver = Receiver(self._executor, parts, manifest, self._publish, ended)
        self._receiver = receiver
        return receiver

    def _take_received(self, manifest: Manifest) -> Received | None:
        """Return what there is of this snapshot; what there is of any other is given up."""
        received, self._received = self._received, None
        if received is None or received.manifest == manifest:
            return received
        self._in_background(self._executor.run(self._forget_received, received))
        return None

    def scrub(self, max_bytes: int) -> Deferred[ScrubStep]:
        """See :meth:`IStateMachineStore.scrub`."""
        return uncancelled(self._scrub(max_bytes))

    async def _scrub(self, max_bytes: int) -> ScrubStep:
        self._check_open()
        if not self._to_scrub:
            self._to_scrub = list(self._positions)
        # What was removed meanwhile is not missed.
        self._to_scrub = [position for position in self._to_scrub if position in self._positions]
        if not self._to_scrub:
            return ScrubStep(done=True)
        piece, damage = await self._scrub_one(self._to_scrub[0], max_bytes)
        if piece.last:
            del self._to_scrub[0]
        return ScrubStep(piece.size, piece.path, done=not self._to_scrub, damage=damage)

    async def _scrub_one(self, position: LogId, max_bytes: int) -> tuple[Piece, StorageCorrupt | None]:
        newest = self._newest
        known = newest if newest is not None and newest.point.last == position else None
        try:
            piece = await self._executor.run(self._scrub_piece(position, known), max_bytes)
        except StorageCorrupt as damage:
            if self._is_newest(position):
                raise
            return Piece(path=damage.path, last=True), damage
        if piece.missing and self._is_newest(position):
            reason = f"the newest snapshot, of {position}, is missing"
            raise StorageCorrupt(piece.path, 0, reason, 1, position.index)
        return piece, None

    def _is_newest(self, position: LogId) -> bool:
        return self._newest is not None and self._newest.point.last == position

    def close(self) -> Deferred[None]:
        """See :meth:`IStateMachineStore.close`. What was not published is removed, but for parts that were received."""
        if self._state == "closed":
            return succeed(None)
        opened, self._state = self._state != "new", "closed"
        return uncancelled(self._close(opened))

    async def _close(self, opened: bool) -> None:
        failure: Exception | None = None
        for step in self._closing_steps(opened):
            try:
                await step()
            except Exception as error:  # whatever it is, the rest must be released, too
                failure = failure or error
        if failure is not None:
            raise failure

    def _closing_steps(self, opened: bool) -> list[Callable[[], Deferred[None]]]:
        steps: list[Callable[[], Deferred[None]]] = []
        if self._writer is not None:
            steps.append(self._writer.abort)
        if self._receiver is not None:
            steps.append(self._receiver.suspend)
        machine: Any = self.machine
        if self._machine_files:
            steps.append(machine.close)
        if opened:
            steps.append(lambda: self._executor.run(self._release))
        if self._stop_executor:
            steps.append(self._executor.stop)
        return steps

    def _check_open(self) -> None:
        if self._state != "open":
            raise RuntimeError(f"the state machine store is not open: it is {self._state}")

    def _check_newer(self, point: SnapshotPoint) -> None:
        check_point(point)
        if self._newest is None:
            return
        newest = self._newest.point.last
        if point.last.index < newest.index or (point.last.index == newest.index and point.last != newest):
            raise ValueError(f"a snapshot of {point.last} cannot follow the one of {newest}")

    async def _publish(self, point: SnapshotPoint, durable: Callable[[], Deferred[Manifest]]) -> Manifest:
        self._check_newer(point)
        manifest = await durable()
        if manifest.point.last not in self._positions:
            self._positions.append(manifest.point.last)
            self._positions.sort(key=lambda position: position.index)
        elif self._is_newest(manifest.point.last) and manifest != self._newest:
            self._former.append((manifest.point.last, self._switch(manifest.point.last)))
        if self._newest is None or manifest.point.last.index >= self._newest.point.last.index:
            self._newest = manifest
        received = self._received
        if received is not None and received.manifest.point.last.index <= self._newest.point.last.index:
            self._received = None
            self._in_background(self._executor.run(self._forget_received, received))
        await self._prune()
        return manifest

    def reclaim(self) -> Deferred[None]:
        """See :meth:`IStateMachineStore.reclaim`."""
        self._check_open()
        return uncancelled(self._prune(1))

    async def _prune(self, keep: int = 0) -> None:
        """Remove what is beyond the number kept. That it fails is no reason to stop: it is tried again later."""
        try:
            for former in [each for each in self._former if not self._readers[each[0]]]:
                await self._executor.run(self._remove_former, former[1])
                if former in self._former:
                    self._former.remove(former)
            for position in self._positions[: -(keep or self._keep)]:
                if self._readers[position]:
                    continue
                await self._executor.run(self._remove, position)
                if position in self._positions:
                    self._positions.remove(position)
        except StorageError as error:
            self._log.warn("An old snapshot was not removed, and stays for now: {error}", error=error)

    def _in_background(self, work: Deferred[None]) -> None:
        def report(failure: Failure) -> None:
            self._log.failure("Leftovers of snapshots were not removed", failure)

        work.addErrback(report)  # type: ignore[unused-awaitable]
