"""The core's view of the log: every term, every configuration, and the recent entries.

Terms are kept as runs, so that any position can be checked without the entries; the entries themselves are kept only as
far as they are not durable yet, plus a bounded number of bytes. What is older is the store's to read.

Invariants: purged <= durable <= last (by index); the tail holds every entry after ``durable``; the configurations
are ascending and the first of them is at or before ``purged`` or is the empty one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from ..errors import InvariantBroken
from ._effects import Start
from ._membership import Membership
from ._types import Entry, EntryKind, LogId

__all__ = ["LogView"]

_MARK_BYTES = 1 << 20
_ENTRY_COST = 200
"""Bytes that an entry in memory takes beside its encoded form; the garbage collector visits each, too."""
_EMPTY = Membership()


class LogView:
    """Positions, terms, configurations and recent entries of one member's log."""

    def __init__(self, start: Start, cache_bytes: int) -> None:
        self.purged = start.purged
        self.last = start.last
        self.durable = start.last.index
        self.last_time_ms = start.last_time_ms
        self._run_firsts = [first for first, _ in start.terms]
        self._run_terms = [term for _, term in start.terms]
        self._tail = list(start.tail)
        self._tail_first = self._tail[0].index if self._tail else self.last.index + 1
        self._tail_bytes = sum(map(_cost, self._tail))
        self._cache_bytes = cache_bytes
        self._appended_bytes = sum(len(entry.raw) for entry in self._tail)
        self._marks: list[tuple[int, int]] = []
        base = start.snapshot
        self._configs: list[tuple[int, Membership]] = [(base.last.index, base.membership)] if base else [(0, _EMPTY)]
        for entry in start.configs:
            if entry.index > self._configs[0][0]:
                self._configs.append((entry.index, Membership.decode(entry.payload)))

    # -- looking

    def term_at(self, index: int) -> int | None:
        """Return the term of the entry at ``index``, None if it is purged or not there yet."""
        if index == self.purged.index:
            return self.purged.term
        if index < self.purged.index or index > self.last.index:
            return None
        return self._run_terms[bisect_right(self._run_firsts, index) - 1]

    def id_at(self, index: int) -> LogId | None:
        """Return the position at ``index``, None if its term is not known."""
        term = self.term_at(index)
        return None if term is None else LogId(term, index)

    def agreement(self, index: int, term: int) -> LogId:
        """Return the last position at or before ``index`` whose term is at most ``term`` (a conflict hint)."""
        index = min(index, self.last.index)
        while index > self.purged.index:
            run = bisect_right(self._run_firsts, index) - 1
            if self._run_terms[run] <= term:
                return LogId(self._run_terms[run], index)
            index = self._run_firsts[run] - 1
        return self.purged

    def entries(self, first: int, last: int, max_entries: int, max_bytes: int) -> list[Entry] | None:
        """Return entries from memory, at least one; None if ``first`` is not in memory."""
        if first < self._tail_first or first > self.last.index:
            return None
        start = first - self._tail_first
        chosen = self._tail[start : min(start + max_entries, last - self._tail_first + 1)]
        size = 0
        for count, entry in enumerate(chosen):
            size += len(entry.raw)
            if size > max_bytes and count:
                return chosen[:count]
        return chosen

    def bytes_after(self, index: int) -> int:
        """Return roughly how many bytes of entries were appended behind ``index`` since this member started."""
        at = bisect_right(self._marks, (index, self._appended_bytes))
        return self._appended_bytes - (self._marks[at - 1][1] if at else 0)

    # -- configurations

    @property
    def membership(self) -> Membership:
        """The configuration in effect: the newest in the log (§6: used as soon as it is appended)."""
        return self._configs[-1][1]

    @property
    def membership_index(self) -> int:
        """Where :attr:`membership` stands."""
        return self._configs[-1][0]

    def membership_at(self, index: int) -> Membership:
        """Return the configuration in force at ``index``."""
        for at, membership in reversed(self._configs):
            if at <= index:
                return membership
        return self._configs[0][1]

    def forget_memberships_before(self, index: int) -> None:
        """Drop the configurations that a snapshot at ``index`` supersedes."""
        while len(self._configs) > 1 and self._configs[1][0] <= index:
            del self._configs[0]

    # -- changing

    def append(self, entries: Sequence[Entry]) -> None:
        """Append contiguous entries after ``last``."""
        index, term = self.last.index, self.last.term
        if not self._run_firsts:
            term = -1
        size = 0
        for entry in entries:
            index += 1
            if entry.index != index:
                raise InvariantBroken(f"entry {entry.index} appended at {index}")
            if entry.term != term:
                if entry.term < term:
                    raise InvariantBroken(f"entry {index} has term {entry.term} after term {term}")
                term = entry.term
                self._run_firsts.append(index)
                self._run_terms.append(term)
            if entry.kind == EntryKind.CONFIG:
                self._configs.append((index, Membership.decode(entry.payload)))
            size += len(entry.raw)
        self._tail.extend(entries)
        self.last = LogId(term, index)
        self.last_time_ms = max(self.last_time_ms, entries[-1].time_ms)
        self._tail_bytes += size + _ENTRY_COST * len(entries)
        self._appended_bytes += size
        if not self._marks or self._appended_bytes - self._marks[-1][1] > _MARK_BYTES:
            self._marks.append((index, self._appended_bytes))
        if self._tail_bytes > self._cache_bytes + (self._cache_bytes >> 2):
            self._trim()

    def set_durable(self, upto: LogId, limit: int) -> None:
        """Record that the log was durable up to a position, of which ``limit`` is sure to stay (J-24).

        What is behind ``purged`` is in the snapshot, whose reset of the log may still be under way.
        """
        index = min(upto.index, limit)
        known = index < max(upto.index, self.purged.index) or self.term_at(index) == upto.term
        if index > self.durable and known:
            self.durable = index

    def truncate(self, after: int) -> None:
        """Remove the entries after ``after``, from the back, configurations included (H-41, J-63)."""
        if after >= self.last.index:
            return
        while self._run_firsts and self._run_firsts[-1] > after:
            self._run_firsts.pop()
            self._run_terms.pop()
        while len(self._configs) > 1 and self._configs[-1][0] > after:
            self._configs.pop()
        keep = max(0, after + 1 - self._tail_first)
        self._tail_bytes -= sum(map(_cost, self._tail[keep:]))
        del self._tail[keep:]
        self._tail_first = min(self._tail_first, after + 1)
        while self._marks and self._marks[-1][0] > after:
            self._marks.pop()
        self.last = LogId(self._run_terms[-1] if self._run_terms else self.purged.term, after)
        self.durable = min(self.durable, after)

    def purge(self, upto: LogId) -> None:
        """Forget the entries up to a position that a snapshot covers."""
        if upto.index <= self.purged.index:
            return
        run = bisect_right(self._run_firsts, upto.index) - 1
        del self._run_firsts[:run], self._run_terms[:run]
        if self._run_firsts:
            self._run_firsts[0] = upto.index + 1
            if (len(self._run_firsts) > 1 and self._run_firsts[1] == upto.index + 1) or upto.index == self.last.index:
                del self._run_firsts[0], self._run_terms[0]
        drop = min(len(self._tail), max(0, upto.index + 1 - self._tail_first))
        self._tail_bytes -= sum(map(_cost, self._tail[:drop]))
        del self._tail[:drop]
        self._tail_first = max(self._tail_first, upto.index + 1)
        del self._marks[: bisect_right(self._marks, (upto.index, 0))]
        self.purged = upto

    def reset(self, to: LogId, membership: Membership, time_ms: int) -> None:
        """Forget everything: the log starts after ``to``, where an installed snapshot ends."""
        self.purged = self.last = to
        self.durable = min(self.durable, to.index)
        self._run_firsts, self._run_terms, self._tail, self._marks = [], [], [], []
        self._tail_first, self._tail_bytes = to.index + 1, 0
        self._configs = [(to.index, membership)]
        self.last_time_ms = max(self.last_time_ms, time_ms)

    def _trim(self) -> None:
        drop = 0
        excess = self._tail_bytes - self._cache_bytes
        limit = self.durable - self._tail_first + 1
        while excess > 0 and drop < limit:
            excess -= _cost(self._tail[drop])
            drop += 1
        del self._tail[:drop]
        self._tail_first += drop
        self._tail_bytes = excess + self._cache_bytes


def _cost(entry: Entry) -> int:
    return len(entry.raw) + _ENTRY_COST
