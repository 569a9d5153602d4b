"""Snapshots of the local state: when they are due, and how they are built while applying goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from ..errors import ConsensusError, InvariantBroken, NodeStopped, StorageFull
from ..raft import SnapshotPoint
from ..storage.interfaces import ISnapshotWriter, IStateMachineFiles, Manifest, StateFile
from ._applier import REST_SECONDS, SLICE_SECONDS

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["SnapshotBuilder"]


class SnapshotBuilder:
    """Builds one snapshot at a time, by policy or when asked.

    The session table goes first, the application's own pieces follow (H-82). A snapshot is published only when the
    log is durable as far as it reaches: else a crash could leave a log that ends before its snapshot (S-17). The files
    that it names, if the machine has any, are sealed by then. If the disk is full it is given up, and the node goes on
    without it.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime
        self._task: Deferred[None] | None = None
        self._waiters: list[Deferred[None]] = []
        self._aborting: Deferred[None] | None = None
        self._stopped = False
        self._publishing = False
        """Then it cannot be given up any more; the store finishes it even if it is closed."""

    def consider(self) -> None:
        """Begin a snapshot if the policy says so."""
        config, applier = self._rt.config, self._rt.applier
        if config.snapshot_policy == "never" or self._task is not None or self._stopped:
            return
        if (
            applier.entries_since_snapshot >= config.snapshot_logs_since_last
            or applier.bytes_since_snapshot >= config.snapshot_bytes_since_last
        ):
            self._begin()

    @property
    def busy(self) -> bool:
        """Whether a snapshot is under way."""
        return self._task is not None

    def begin(self) -> None:
        """Begin a snapshot, unless one is under way.

        If nothing was applied since the newest one, and the machine has files, the newest is taken again: it may hold
        files that the machine has no use for any more. It stays as it is if that would not make it smaller.
        """
        if self._task is None and not self._stopped:
            self._begin(again=IStateMachineFiles.providedBy(self._rt.store.machine))

    async def request(self) -> None:
        """Take a snapshot now; ends once one is published that has at least what is applied now."""
        wanted = self._rt.applier.applied
        while self._published() < wanted:
            if self._stopped or not self._rt.serving:
                raise NodeStopped(self._rt.cause)
            waiter: Deferred[None] = Deferred()
            self._waiters.append(waiter)  # first, since what follows may end at once
            if self._task is None:
                self._begin()
            if self._task is None and not waiter.called:
                self._waiters.remove(waiter)
            else:  # the one under way may have less; then another one follows
                await waiter

    def _published(self) -> int:
        newest = self._rt.store.newest()
        return newest.point.last.index if newest is not None else 0

    def _begin(self, again: bool = False) -> None:
        applier, core = self._rt.applier, self._rt.core
        if applier.applied < self._published() + (0 if again else 1):
            return
        newest = self._rt.store.newest()
        former = newest if newest is not None and newest.point.last.index == applier.applied else None
        point = SnapshotPoint(applier.last, core.membership_at(applier.applied), applier.time_ms)
        applier.count_anew()
        covered = applier.bytes_applied
        # All is fixed here, in one step; it is read later, in slices.
        try:
            machine = self._rt.store.machine
            pieces = _Joined(applier.sessions.snapshot(), machine.snapshot())
            files = _sealed(machine)
        except Exception:
            self._ended(Failure())
            return
        task = self._task = Deferred.fromCoroutine(self._build(point, pieces, files, former, covered))
        _ = task.addBoth(self._ended)

    async def _build(
        self,
        point: SnapshotPoint,
        pieces: _Joined,
        files: Deferred[Sequence[StateFile]],
        former: Manifest | None,
        covered: int,
    ) -> None:
        """Write and publish one.

        :param former: the newest snapshot, if it is of this point, and this one is to take its place.
        :param covered: of the bytes that were applied, how many it has.
        """
        rt = self._rt
        writer: ISnapshotWriter | None = None
        try:
            sealed: Sequence[StateFile] | None = None
            if former is not None:
                sealed = await files
                if not _is_smaller(sealed, former):
                    return
            if self._aborting is not None:  # there is one writer at a time
                await _end_of(self._aborting)
                self._aborting = None
            writer = rt.store.writer(point)
            await self._drain(writer, pieces)
            if sealed is None:
                sealed = await files
            await rt.durability.until(point.last.index)
            if point.last.index <= self._published() and rt.store.newest() is not former:
                await writer.abort()  # one that was received from a leader is newer
                return
            self._publishing = True
            await writer.publish(sealed)
            writer = None
            rt.applier.bytes_covered = covered
            # Only now may the log be purged, and the files go that the snapshot has its own names for.
            if former is None:
                rt.driver.input(rt.core.snapshot_taken, point)
            rt.space.snapshot_taken()
        finally:
            _ = files.addErrback(lambda _: None)  # it may not have been waited for
            pieces.close()
            if writer is not None:
                self._aborting = writer.abort()
                _ = self._aborting.addErrback(lambda failure: rt.log.failure("A snapshot was not removed", failure))

    async def _drain(self, writer: ISnapshotWriter, pieces: Iterator[bytes]) -> None:
        """Write it, as long as enough is left for the log: a log without space would be the end of the node (S-10)."""
        clock, space = self._rt.clock, self._rt.space
        end = clock.seconds() + SLICE_SECONDS
        kept, looks = space.for_log(), space.looks
        room = space.room(kept)
        for piece in pieces:
            if looks != space.looks:  # the log has grown, too
                looks, room = space.looks, space.room(kept)
            room -= len(piece)
            if room < 0:
                await space.measure()
                looks, room = space.looks, space.room(kept) - len(piece)
                if room < 0:
                    raise StorageFull("writing", "the snapshot", f"{kept} of {space.free} free bytes are for the log")
            await writer.write(piece)
            if clock.seconds() >= end:
                await self._rt.sleep(REST_SECONDS)
                end = clock.seconds() + SLICE_SECONDS

    def _ended(self, result: Any) -> None:
        self._task = None
        self._publishing = False
        waiters, self._waiters = self._waiters, []
        error = getattr(result, "value", None)
        if isinstance(error, CancelledError):
            # Given up for a leader's snapshot, which has more; or for good.
            error = NodeStopped(self._rt.cause) if self._stopped else None
        elif isinstance(error, StorageFull):
            # The older snapshots and the log are as they were; the policy will try again (S-11).
            self._rt.log.critical("A snapshot could not be taken: {error}", error=error)
        elif error is not None:
            if self._rt.serving:
                self._rt.log.failure("A snapshot could not be taken", result)
            if not isinstance(error, ConsensusError):
                error = InvariantBroken(f"the application's snapshot failed: {type(error).__name__}: {error}")
            self._rt.fail(error)
        for waiter in waiters:
            if waiter.called:
                continue
            if error is None:
                waiter.callback(None)
            else:
                waiter.errback(error)

    def abandon(self) -> None:
        """Give up the one under way: the state is about to be replaced."""
        if self._task is not None and not self._publishing:
            self._task.cancel()

    def stop(self) -> None:
        """Give up, for good."""
        self._stopped = True
        self.abandon()


def _end_of(removal: Deferred[None]) -> Deferred[None]:
    """Return a Deferred that fires when the removal has ended; cancelling it is not passed on to that."""
    end: Deferred[None] = Deferred()

    def ended(_: object) -> None:
        if not end.called:
            end.callback(None)

    _ = removal.addBoth(ended)
    return end


def _sealed(machine: Any) -> Deferred[Sequence[StateFile]]:
    """Return the files that the snapshot which the machine has just begun will name."""
    if not IStateMachineFiles.providedBy(machine):
        return succeed(())
    files: Deferred[Sequence[StateFile]] = machine.sealed()
    return files


def _is_smaller(files: Sequence[StateFile], former: Manifest) -> bool:
    """Say whether files take less than those of a snapshot."""
    return sum(file.size for file in files) < former.size - former.stream_size


class _Joined(Iterator[bytes]):
    """Two iterators, one behind the other. Not a generator: the end of one that was not begun closes nothing."""

    def __init__(self, first: Iterator[bytes], second: Iterator[bytes]) -> None:
        self._pieces = chain(first, second)
        self._second = second

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        close = getattr(self._second, "close", None)
        if close is not None:
            close()
