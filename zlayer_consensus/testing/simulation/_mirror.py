"""What a node's disk must hold, according to what its log store acknowledged."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...raft import NO_LOG, Entry, EntryKind, HardState, LogId, LogWrite, Start

__all__ = ["Copy", "Mark", "Mirror", "mark", "positions"]

Mark = tuple[int, int]
"""An entry for comparisons: its term and the check sum of all its bytes."""


def mark(entry: Entry) -> Mark:
    """Return what an entry is compared by."""
    return entry.term, zlib.crc32(entry.raw)


@dataclass
class Copy:
    """A log: what stands after ``base``."""

    base: LogId = NO_LOG
    marks: list[Mark] = field(default_factory=list)
    state: HardState = field(default_factory=HardState)
    configs: list[LogId] = field(default_factory=list)
    """Positions of configurations, ascending; without those that came in a snapshot."""

    @property
    def last(self) -> int:
        """Index of the last entry."""
        return self.base.index + len(self.marks)

    def mark_at(self, index: int) -> Mark | None:
        """Return an entry's mark, None if it is not there."""
        at = index - self.base.index - 1
        return self.marks[at] if 0 <= at < len(self.marks) else None

    def term_at(self, index: int) -> int | None:
        """Return an entry's term, the base's included."""
        if index == self.base.index:
            return self.base.term
        found = self.mark_at(index)
        return found[0] if found else None

    def covers(self, index: int, wanted: Mark) -> bool:
        """Say whether an entry is here, or is behind the base, where only what is committed can be."""
        return index <= self.base.index or self.mark_at(index) == wanted

    def change(self, write: LogWrite, entries: int | None = None) -> None:
        """Make a write; or its beginning, with so many of its entries."""
        if write.reset is not None:
            self.base, self.marks, self.configs = write.reset, [], []
        if write.truncate_after is not None:
            del self.marks[max(0, write.truncate_after - self.base.index) :]
            while self.configs and self.configs[-1].index > write.truncate_after:
                self.configs.pop()
        self.marks += [mark(entry) for entry in write.entries[:entries]]
        self.configs += [entry.id for entry in write.entries[:entries] if entry.kind == EntryKind.CONFIG]
        if write.hard_state is not None and (entries is None or entries >= len(write.entries)):
            self.state = write.hard_state

    def purge(self, upto: LogId) -> None:
        """Forget the entries up to a position."""
        if upto.index > self.base.index:
            del self.marks[: upto.index - self.base.index]
            self.base = upto

    def copy(self) -> Copy:
        """Return a copy."""
        return Copy(self.base, self.marks[:], self.state, self.configs[:])


class Mirror:
    """One disk: what is certainly on it, and what may be."""

    def __init__(self) -> None:
        self.durable = Copy()
        self.latest = Copy()
        """With everything that was asked for."""
        self.pending: list[LogWrite] = []

    def written(self, write: LogWrite) -> None:
        """A write was asked for."""
        self.pending.append(write)
        self.latest.change(write)

    def completed(self, write: LogWrite) -> str:
        """It is said to be durable. Return what is wrong with that, or nothing."""
        if not self.pending or self.pending[0] is not write:
            return "a write was acknowledged out of order"
        self.durable.change(self.pending.pop(0))
        if self.durable.state.commit > self.durable.last:
            return f"{self.durable.state} is durable, and the log ends at {self.durable.last}"
        return ""

    def purged(self, upto: LogId) -> None:
        """Entries may go from now on. That is not undone by a crash as far as anybody may rely on it."""
        self.latest.purge(upto)
        if upto.index <= self.durable.last:
            self.durable.purge(upto)

    @classmethod
    def repaired(cls, start: Start, marks: list[Mark], configs: list[LogId]) -> Mirror:
        """Return that of a log which was repaired, with what is left in it."""
        other = cls()
        other.durable = Copy(start.purged, marks, start.hard_state, configs)
        other.latest = other.durable.copy()
        return other

    def opened(self, start: Start) -> str:
        """Compare what a recovery found, and go on from there. Return what is wrong with it, or nothing."""
        wrong = self._compare_state(start.hard_state)
        if wrong:
            return wrong
        found = self._find(start)
        if found is None:
            return (
                f"recovered {start.purged}..{start.last} {start.terms}, but acknowledged were "
                f"{self.durable.base}..{self.durable.last}, and {len(self.pending)} writes were under way"
            )
        for entry in start.tail:
            if found.mark_at(entry.index) not in (None, mark(entry)):
                return f"entry {entry.index} came back with other bytes"
        found.state = start.hard_state
        if start.purged.index > found.base.index:
            found.purge(start.purged)
        self.durable, self.latest, self.pending = found, found.copy(), []
        return ""

    def _compare_state(self, state: HardState) -> str:
        known = self.durable.state
        if state.term < known.term or (state.term == known.term and known.voted_for not in (0, state.voted_for)):
            return f"term {known.term} and the vote for {known.voted_for} were durable, and came back as {state}"
        if state.commit < known.commit:
            return f"commit {known.commit} was durable, and came back as {state.commit}"
        candidates = [known, *(write.hard_state for write in self.pending if write.hard_state is not None)]
        if (state.term, state.voted_for) not in [(each.term, each.voted_for) for each in candidates]:
            return f"{state} was never written"
        return ""

    def _find(self, start: Start) -> Copy | None:
        """Return the copy that is like what was found: that of a prefix of the writes under way."""
        copy = self.durable.copy()
        if _alike(copy, start):
            return copy
        for write in self.pending:
            for entries in range(len(write.entries) + 1):
                tried = copy.copy()
                tried.change(write, entries)
                if _alike(tried, start):
                    return tried
            copy.change(write)
        return None


def positions(start: Start) -> Iterator[LogId]:
    """Return those of all entries that a recovery found."""
    for (first, term), (end, _) in itertools.pairwise((*start.terms, (start.last.index + 1, 0))):
        for index in range(max(first, start.purged.index + 1), end):
            yield LogId(term, index)


def _alike(copy: Copy, start: Start) -> bool:
    if copy.last != start.last.index:
        return False
    found = list(positions(start))
    if len(found) != start.last.index - start.purged.index:
        return False
    if any(copy.term_at(each.index) != each.term for each in found if each.index > copy.base.index):
        return False
    return copy.last != copy.base.index or start.last.term == copy.base.term
