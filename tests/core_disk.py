"""The disk of a scripted node: writes that were started, and what of them a crash would leave."""

from __future__ import annotations

from copy import deepcopy
from itertools import groupby

from zlayer_consensus.raft import (
    NO_LOG,
    Entry,
    EntryKind,
    HardState,
    LogId,
    LogRead,
    LogWrite,
    Persist,
    SnapshotPoint,
    Start,
)

__all__ = ["Disk", "Image"]

_FRESH = HardState()


class Image:
    """A log with its hard state, as it stands on a disk at some moment."""

    def __init__(self, hard_state: HardState = _FRESH, entries: list[Entry] | None = None) -> None:
        self.hard_state = hard_state
        self.purged = NO_LOG
        self.entries = entries or []

    @property
    def last(self) -> LogId:
        """Position of the last entry."""
        return self.entries[-1].id if self.entries else self.purged

    def term_at(self, index: int) -> int | None:
        """Return an entry's term, None if it is not there."""
        if index == self.purged.index:
            return self.purged.term
        at = index - self.purged.index - 1
        return self.entries[at].term if 0 <= at < len(self.entries) else None

    def read(self, first: int, last: int) -> list[Entry]:
        """Return entries, all of which must be there."""
        found = self.entries[first - self.purged.index - 1 : last - self.purged.index]
        assert first > self.purged.index and len(found) == last - first + 1, f"entries {first} to {last} are not there"
        return found

    def apply(self, write: LogWrite) -> None:
        """Carry out a write, and see that it is one that a store accepts."""
        if write.reset is not None:
            self.purged, self.entries = write.reset, []
        if write.truncate_after is not None:
            assert write.truncate_after >= max(self.purged.index, self.hard_state.commit), "a committed entry would go"
            del self.entries[write.truncate_after - self.purged.index :]
        for entry in write.entries:
            assert entry.index == self.last.index + 1, f"entry {entry.index} after {self.last}"
            self.entries.append(entry)
        if write.hard_state is not None:
            old, new = self.hard_state, write.hard_state
            assert new.term >= old.term and new.commit >= old.commit, f"{new} after {old}"
            assert new.term > old.term or old.voted_for in (0, new.voted_for), f"a second vote: {new} after {old}"
            self.hard_state = new

    def purge(self, upto: LogId) -> None:
        """Remove the entries up to a position."""
        if upto.index > self.purged.index:
            assert self.term_at(upto.index) == upto.term, f"purged up to {upto}, which is not there"
            del self.entries[: upto.index - self.purged.index]
            self.purged = upto


class Disk:
    """Writes of one node: ``written`` is what the node sees, ``durable`` what a crash leaves."""

    def __init__(self, image: Image | None = None) -> None:
        self.durable = image or Image()
        self.written = deepcopy(self.durable)
        self.pending: list[Persist] = []
        self.snapshot: SnapshotPoint | None = None
        self.data: list[Entry] = []
        self._installed = False
        self.repair = b""

    def begin(self, persist: Persist) -> None:
        """Start a write."""
        state = persist.write.hard_state
        assert state is None or state.commit <= self.durable.last.index, "the commit on disk is ahead of the log there"
        self.pending.append(persist)
        self.written.apply(persist.write)
        assert self.written.last == persist.last, f"write {persist.seq} ends at {self.written.last}, not {persist.last}"

    def flush(self, count: int | None = None) -> Persist | None:
        """Make the oldest writes durable; return the last of them."""
        done = self.pending[:count]
        del self.pending[: len(done)]
        for persist in done:
            self.durable.apply(persist.write)
            state = self.durable.hard_state
            assert state.commit <= max(self.durable.last.index, self.durable.purged.index), "commit beyond the log"
        return done[-1] if done else None

    def safe(self) -> int:
        """Return the index up to which the log as it is now survives any crash."""
        index = self.durable.last.index
        for persist in self.pending:
            for limit in (persist.write.truncate_after, persist.write.reset and persist.write.reset.index):
                index = index if limit is None else min(index, limit)
        return index

    def purge(self, upto: LogId) -> None:
        """Remove entries up to a position."""
        assert self.snapshot is not None and self.snapshot.last.index >= upto.index, "purged beyond the snapshot"
        self.written.purge(upto)
        self.durable.purge(upto)

    def publish(self, point: SnapshotPoint, data: list[Entry], *, installed: bool) -> None:
        """Keep a snapshot, durable at once."""
        self.snapshot, self.data, self._installed = point, list(data), installed

    def serve(self, request: LogRead) -> list[Entry] | None:
        """Read for a lagging peer; None if it was purged."""
        if request.first <= self.written.purged.index:
            return None
        chosen: list[Entry] = []
        size = 0
        for entry in self.written.read(request.first, request.last):
            size += len(entry.raw)
            if chosen and size > request.max_bytes:
                break
            chosen.append(entry)
        return chosen

    def crash(self) -> None:
        """Forget what is not durable, and let the log yield to a snapshot that was received, as recovery does."""
        self.pending.clear()
        if self.snapshot is not None:
            last = self.snapshot.last
            if self.durable.purged.index <= last.index and self.durable.term_at(last.index) != last.term:
                assert self._installed, "the log ends before the node's own snapshot"
                self.durable.purged, self.durable.entries = last, []
                state = self.durable.hard_state
                self.durable.hard_state = state._replace(commit=max(state.commit, last.index))
        self.written = deepcopy(self.durable)

    def start(self, tail: int = 2) -> Start:
        """Return what a node finds that starts now, with the last ``tail`` entries in memory."""
        log = self.durable
        after = self.snapshot.last.index if self.snapshot else 0
        return Start(
            hard_state=log.hard_state,
            purged=log.purged,
            last=log.last,
            terms=tuple((next(run).index, term) for term, run in groupby(log.entries, lambda entry: entry.term)),
            configs=tuple(e for e in log.entries if e.kind == EntryKind.CONFIG),
            tail=tuple(log.entries[-tail:]) if tail else (),
            snapshot=self.snapshot,
            applied=after,
            repair=self.repair,
        )

    def cut(self, last: int, term: int, repair: bytes) -> None:
        """Repair a damaged log as the tool does: what follows ``last`` is gone, later votes too."""
        log = self.durable
        assert not self.pending and log.purged.index <= last <= log.last.index
        del log.entries[last - log.purged.index :]
        state = log.hard_state
        log.hard_state = HardState(term, 0 if term < state.term else state.voted_for, min(state.commit, last))
        self.written = deepcopy(log)
        self.repair = repair
