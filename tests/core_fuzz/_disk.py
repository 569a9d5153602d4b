"""A simulated log store and snapshot store: writes become durable in order, and a crash loses the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from zlayer_consensus.raft import (
    NO_LOG,
    Entry,
    EntryKind,
    HardState,
    LogId,
    LogWrite,
    Persist,
    SnapshotPoint,
    Start,
)

__all__ = ["Disk", "Log", "Snapshot"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A published snapshot: its position, and the digest that stands for the state."""

    point: SnapshotPoint
    digest: int


class Log:
    """What a sequence of writes makes of an empty log store."""

    def __init__(self) -> None:
        self.hard = HardState()
        self.purged = NO_LOG
        self.entries: list[Entry] = []

    def copy(self) -> Log:
        """Return a copy that later writes do not change."""
        other = Log()
        other.hard, other.purged, other.entries = self.hard, self.purged, list(self.entries)
        return other

    @property
    def last(self) -> LogId:
        """Position of the last entry."""
        return self.entries[-1].id if self.entries else self.purged

    def term_at(self, index: int) -> int | None:
        """Return the term at an index, None if it is not known."""
        at = index - self.purged.index - 1
        if at < 0:
            return self.purged.term if at == -1 else None
        return self.entries[at].term if at < len(self.entries) else None

    def read(self, first: int, last: int) -> list[Entry]:
        """Return the entries from ``first`` to ``last``, as far as they are there."""
        start = first - self.purged.index - 1
        return self.entries[max(0, start) : max(0, last - self.purged.index)]

    def write(self, write: LogWrite) -> None:
        """Carry out a whole write."""
        self.write_some(write, len(write.entries))
        if write.hard_state is not None:
            self.hard = write.hard_state

    def write_some(self, write: LogWrite, count: int) -> None:
        """Carry out a write up to its ``count``-th entry."""
        if write.reset is not None:
            self.purged, self.entries = write.reset, []
        if write.truncate_after is not None:
            del self.entries[max(0, write.truncate_after - self.purged.index) :]
        for entry in write.entries[:count]:
            if entry.index != self.last.index + 1:
                raise AssertionError(f"entry {entry.index} is written after {self.last}")
            self.entries.append(entry)

    def purge(self, upto: LogId) -> None:
        """Forget entries up to a position, if it is (still) there."""
        if upto.index > self.purged.index and self.term_at(upto.index) == upto.term:
            del self.entries[: upto.index - self.purged.index]
            self.purged = upto


class Disk:
    """``image`` is what survives a crash for certain; ``mirror`` is what the log will be once all is written."""

    def __init__(self) -> None:
        self.image = Log()
        self.mirror = Log()
        self.pending: deque[Persist] = deque()
        self.snapshot: Snapshot | None = None
        self.applied = 0
        """What a state machine that keeps itself has applied; 0 if the seed has none."""
        self.digest = 0
        self.synced: set[LogId] = set()
        """Every entry that was ever durable; a later write may have removed it since."""
        self._purge: LogId = NO_LOG

    def issue(self, persist: Persist) -> None:
        """Start a write."""
        self.mirror.write(persist.write)
        if self.mirror.last != persist.last:
            raise AssertionError(f"write {persist.seq} leaves {self.mirror.last}, not {persist.last}")
        self.pending.append(persist)

    def sync(self, count: int) -> list[Persist]:
        """Make the oldest ``count`` writes durable."""
        done = [self.pending.popleft() for _ in range(count)]
        for persist in done:
            self.image.write(persist.write)
            self.synced.update(entry.id for entry in persist.write.entries)
        return done

    def purge(self, upto: LogId) -> None:
        """Allow the entries up to ``upto`` to go; the disk does it when it likes."""
        self.mirror.purge(upto)
        self._purge = max(self._purge, upto)

    def settle_purge(self) -> None:
        """Carry the purge out."""
        self.image.purge(self._purge)

    def publish(self, snapshot: Snapshot) -> None:
        """Make a snapshot durable, if it is newer."""
        if self.snapshot is None or snapshot.point.last.index > self.snapshot.point.last.index:
            self.snapshot = snapshot

    def holds(self, index: int, term: int) -> bool:
        """Return whether the entry, or a snapshot that covers it, survives a crash for certain."""
        covered = self.snapshot is not None and self.snapshot.point.last.index >= index
        return covered or self.image.purged.index >= index or self.image.term_at(index) == term

    def holds_log(self, position: LogId) -> bool:
        """Return whether the log on disk goes through a position."""
        return position.index < self.image.purged.index or self.image.term_at(position.index) == position.term

    def crash(self, random: Random) -> None:
        """Lose writes: any number of the newest ones, and of the next one any part of its end."""
        self.sync(random.randint(0, len(self.pending)))
        if self.pending and random.random() < 0.5:
            write = self.pending[0].write
            count = random.randint(0, len(write.entries))
            self.image.write_some(write, count)
            self.synced.update(entry.id for entry in write.entries[:count])
        self.pending.clear()
        self._purge = NO_LOG

    def recover(self, random: Random) -> Start:
        """Return what a member finds when it starts again."""
        image, snapshot = self.image, self.snapshot
        point = snapshot.point if snapshot else None
        if point is not None and not self.holds_log(point.last):
            # The crash came between the snapshot's publication and the reset of the log (H-66, S-17).
            image.write(LogWrite(reset=point.last))
        self.mirror = image.copy()
        base = point.last.index if point else 0
        whole = image.entries
        configs = tuple(e for e in whole if e.kind == EntryKind.CONFIG and (e.index > base or random.random() < 0.5))
        tail = whole[len(whole) - random.choice((0, 1, len(whole) // 2, len(whole))) :] if whole else []
        return Start(
            hard_state=image.hard,
            purged=image.purged,
            last=image.last,
            terms=_runs(whole),
            configs=configs,
            tail=tuple(tail),
            snapshot=point,
            applied=max(base, self.applied),
            last_time_ms=max([point.time_ms if point else 0, *(entry.time_ms for entry in whole)]),
        )


def _runs(entries: Sequence[Entry]) -> tuple[tuple[int, int], ...]:
    runs: list[tuple[int, int]] = []
    for entry in entries:
        if not runs or runs[-1][1] != entry.term:
            runs.append((entry.index, entry.term))
    return tuple(runs)
