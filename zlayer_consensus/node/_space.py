"""Space on the disk: seeing in time that it runs out, and what can be done about it (S-10, S-11)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from ._failures import error_in

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["Space"]

_EVERY = 1.0
"""Seconds between two looks."""
_SNAPSHOT_FROM, _SNAPSHOT_TO = 2.0, 30.0
"""Seconds between two attempts to take a snapshot on a full disk; each that fails doubles them."""
_OTHERS_TO = 300.0
"""The same for snapshots that a leader takes because others are full, which may be of no use to them."""
_HYSTERESIS = 1.25
_SHARE = 8
"""The part of ``low_space_bytes`` whose coming into the log is reason to look."""
_KEPT_SHARE = 2
"""The part of ``low_space_bytes`` that the newest entries take which are kept in the log, snapshot or not."""
_LOG_SHARE = 2
"""The part of ``low_space_bytes`` that a snapshot leaves to the log: what is under way still has to be written there.
Of less than twice as much, it leaves the half: without any snapshot nothing in the log could ever be purged."""


class Space:
    """Looks at the disk once a second.

    Space is short when the log has none for its next segment, or the application's files lack some; or, earlier, when
    less is free than ``low_space_bytes`` and another snapshot would take; or when a leader's snapshot waits for room,
    without which no later entry can be taken. Then the snapshots but the newest go, and the log is purged up to that
    one, but for its newest entries: a member whose disk was full a moment earlier lacks them, and has no room for a
    snapshot instead. If that does not help, the disk is *full*: the core is told, and a new snapshot is taken whenever
    it could be smaller than the last. That is how what was deleted leads to space. When there is enough, all goes on by
    itself.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime
        self.full = False
        self.free: int | None = None
        """Bytes that were free at the last look."""
        self.looks = 0
        """How often somebody has looked."""
        self._call: IDelayedCall | None = None
        self._looking = False
        self._reclaimed = False
        """Whether what could be freed without more ado is."""
        self._looked_at = 0
        self._marks: deque[tuple[int, int]] = deque()
        """Index and bytes of what was applied since the start; the first is where the newest entries begin."""
        self._others_at, self._others_pause = 0.0, _SNAPSHOT_FROM
        self._stopped = False
        self._snapshot_at = 0.0
        self._pause = _SNAPSHOT_FROM

    def look(self) -> None:
        """Look now."""
        if self._looking or self._stopped:
            return
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._looking = True
        self._looked_at = self._rt.applier.bytes_applied
        _ = self._rt.log_store.space(self._wanted()).addCallbacks(self._seen, self._failed)

    def applied(self) -> None:
        """Something was applied. If that was much, do not wait for the next second."""
        applier, low = self._rt.applier, self._rt.config.low_space_bytes
        marks, size = self._marks, applier.bytes_applied
        if not marks or size - marks[-1][1] > low // (_SHARE * _KEPT_SHARE):
            marks.append((applier.applied, size))
        while len(marks) > 1 and size - marks[1][1] >= low // _KEPT_SHARE:
            marks.popleft()
        if size - self._looked_at >= low // _SHARE:
            self.look()

    def store_changed(self) -> None:
        """The log store may have become full."""
        if self._rt.log_store.full and not self.full:
            self.look()

    def for_log(self) -> int:
        """Return how many bytes a snapshot that is begun now has to leave to the log."""
        least = self._rt.config.low_space_bytes // _LOG_SHARE
        return least if self.free is None else min(least, self.free // 2)

    def room(self, kept: int) -> int:
        """Return how many bytes may be written, besides the log, before somebody measures again.

        :param kept: bytes that are to stay free.
        """
        return 1 << 60 if self.free is None else self.free - kept

    async def measure(self) -> None:
        """See how much is free. What follows from it waits for the next look."""
        self.free = await self._rt.log_store.space(self._wanted())
        self.looks += 1

    def _wanted(self) -> int:
        """Return how many bytes should be free: another snapshot has to fit, and what comes until the next look."""
        rt = self._rt
        size = 0
        if self.full or not rt.builder.busy:  # else it is being written already
            newest = rt.store.newest()
            size = newest.stream_size if newest is not None else 0
            size += rt.applier.bytes_applied - rt.applier.bytes_covered
        return int((rt.config.low_space_bytes + size) * (_HYSTERESIS if self.full else 1.0))

    def _failed(self, failure: Failure) -> None:
        self._looking = False
        self._rt.fail(error_in(failure))

    def _seen(self, free: int) -> None:
        self._looking = False
        if self._stopped:
            return
        self.free = free
        self.looks += 1
        rt = self._rt
        short = rt.log_store.full or rt.applier.files_full or rt.receiver.lacks_room
        if short and not self._reclaimed:
            self._reclaim()
            return
        self._reclaimed = short
        self._call = rt.clock.callLater(_EVERY, self._again)  # first: what follows may lead to another look
        if short != self.full:
            self._turn(short)
        if short:
            self._snapshot()
        else:
            self._snapshot_for_others()

    def _again(self) -> None:
        self._call = None
        self._reclaimed = self._reclaimed and not self.full
        self.look()

    def _reclaim(self) -> None:
        """Free what can be freed without losing anything, and look again."""
        rt = self._rt
        self._reclaimed = self._looking = True
        newest = rt.store.newest()
        if newest is not None:
            upto = newest.point.last.index
            rt.driver.input(rt.core.purge, min(upto, self._marks[0][0]) if self._marks else upto)

        def reclaimed(_: None) -> None:
            self._looking = False
            self.look()

        _ = rt.store.reclaim().addCallbacks(reclaimed, self._failed)

    def _turn(self, full: bool) -> None:
        self.full = full
        self._snapshot_at, self._pause = 0.0, _SNAPSHOT_FROM
        if full:
            self._rt.log.critical(
                "the disk of node {node} is full ({free} bytes are free): it gives leadership away if it can, takes "
                "nothing but what frees space, and goes on by itself when there is space again",
                node=self._rt.node_id,
                free=self.free,
            )
        else:
            self._rt.log.info(
                "the disk of node {node} has space again ({free} bytes are free)", node=self._rt.node_id, free=self.free
            )
        self._rt.driver.input(self._rt.core.space, full)

    def _snapshot(self) -> None:
        """Take a snapshot if it could be smaller than the last: then older ones, and more of the log, can go."""
        now = self._rt.clock.seconds()
        if now >= self._snapshot_at and self._may_be_smaller():
            self._snapshot_at = now + self._pause
            self._pause = min(2 * self._pause, _SNAPSHOT_TO)
            self._rt.builder.begin()

    def _may_be_smaller(self) -> bool:
        """Return whether a snapshot can be taken that could be smaller than the newest."""
        rt = self._rt
        if not rt.applier.applied or rt.builder.busy or rt.config.snapshot_policy == "never":
            return False
        newest = rt.store.newest()
        # If nothing was applied since, the newest can still hold files that the machine has got rid of.
        return newest is None or bool(newest.files) or rt.applier.applied > newest.point.last.index

    def _snapshot_for_others(self) -> None:
        """Take one while members whose disks are full lack entries: they get none, deletions neither, and for the next
        snapshot they may have room that they did not have for the last.
        """
        rt = self._rt
        now = rt.clock.seconds()
        full = [peer.match for peer in rt.core.progress().values() if peer.full]
        if not full:
            self._others_at, self._others_pause = 0.0, _SNAPSHOT_FROM
        elif min(full) < rt.applier.applied and now >= self._others_at and self._may_be_smaller():
            self._others_at = now + self._others_pause
            self._others_pause = min(2 * self._others_pause, _OTHERS_TO)
            rt.builder.begin()

    def snapshot_taken(self) -> None:
        """A snapshot was published: another one may follow soon."""
        self._pause = _SNAPSHOT_FROM
        if self.full:
            self._reclaimed = False
            self.look()

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        if self._call is not None:
            self._call.cancel()
            self._call = None
