"""The log's state without its entries, and the rules that every change of it must keep.

Writing and recovery both go through here, so that what could not be recovered is never written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..raft import NO_LOG, HardState, LogId
from ._record import Batch, Operation, Purge, Reset, SetState, Truncate
from ._segment import Segment

__all__ = ["BrokenRule", "LogIndex", "Summary"]

_UNKNOWN = -1
"""The term of an entry whose segment is gone."""


class BrokenRule(ValueError):
    """A change that a correct log never sees; nothing was changed. The text says which."""


class Summary(NamedTuple):
    """The log's state, as it stands in a segment's header."""

    last: LogId = NO_LOG
    purged: LogId = NO_LOG
    state: HardState = HardState()
    committed: int = 0
    time_ms: int = 0


class LogIndex:
    """Where which entries are, and term, vote, commit, purge point. Grows with segments, not with entries."""

    def __init__(self, summary: Summary) -> None:
        self.segments: list[Segment] = []
        self.last = summary.last
        self.purged = summary.purged
        self.state = summary.state
        self.committed = summary.committed
        """No entry up to here may be truncated: the greatest commit, reset or purge position seen."""
        self.time_ms = summary.time_ms
        self.needed = 0
        """Entries up to here stood before the oldest segment: they must have been purged."""

    @property
    def summary(self) -> Summary:
        """The state for a new segment's header."""
        return Summary(self.last, self.purged, self.state, self.committed, self.time_ms)

    @property
    def active(self) -> Segment:
        """The segment that is written to."""
        return self.segments[-1]

    def apply(self, operations: Iterable[Operation], offset: int) -> None:
        """Take in the operations of a record at ``offset`` of the active segment.

        :raises BrokenRule: at the first one that no correct log has.
        """
        for operation in operations:
            if isinstance(operation, Batch):
                self._append(operation, offset)
            elif isinstance(operation, SetState):
                self._set_state(operation.state)
            elif isinstance(operation, Truncate):
                self._truncate(operation.last)
            elif isinstance(operation, Purge):
                self._purge(operation.upto)
            else:
                self._reset(operation)

    def _append(self, batch: Batch, offset: int) -> None:
        if batch.first != self.last.index + 1:
            raise BrokenRule(f"entry {batch.first} does not follow the log's last entry {self.last}")
        first_term, last_term = batch.terms[0][1], batch.terms[-1][1]
        if first_term < self.last.term:
            raise BrokenRule(f"entry {batch.first} of term {first_term} follows {self.last}")
        active = self.active
        active.add_terms(batch.terms)
        active.configs.extend(batch.configs)
        active.add_point(batch.first, offset)
        active.last = batch.last
        self.last = LogId(last_term, batch.last)
        self.time_ms = max(self.time_ms, batch.time_ms)

    def _truncate(self, last: int) -> None:
        if last < self.committed:
            raise BrokenRule(f"truncation after {last} would remove committed entries up to {self.committed} (H-25)")
        if last >= self.last.index:
            return
        term = self.term_at(last)
        if term is None:
            if last > self.segments[0].header.last.index:
                raise BrokenRule(f"truncation after {last}, which is not in the log")
            # Only in recovery: the segment that held it is gone, and a purge record that covers it follows.
            term = _UNKNOWN
        self._cut(last)
        self.last = LogId(term, last)

    def _cut(self, last: int) -> None:
        for segment in self.segments:
            segment.cut(last)
        if last < self.active.first - 1:
            self.active.restart(last)
        self.needed = min(self.needed, last)

    def _reset(self, reset: Reset) -> None:
        position = reset.position
        if position.index < self.committed:
            raise BrokenRule(f"a reset to {position} would forget committed entries up to {self.committed}")
        for segment in self.segments:
            segment.cut(0)
        self.active.restart(0)
        self.active.first, self.active.last = position.index + 1, position.index
        self.needed = 0
        self.last = self.purged = position
        self.committed = position.index

    def _set_state(self, state: HardState) -> None:
        if state.term < self.state.term:
            raise BrokenRule(f"the term falls from {self.state.term} to {state.term}")
        if state.term == self.state.term and state.voted_for != self.state.voted_for and self.state.voted_for:
            raise BrokenRule(f"a second vote in term {state.term}: {self.state.voted_for}, then {state.voted_for}")
        if state.commit > self.last.index:
            raise BrokenRule(f"commit {state.commit} lies behind the last entry {self.last}")
        self.state = state
        self.committed = max(self.committed, state.commit)

    def _purge(self, upto: LogId) -> None:
        if upto.index <= self.purged.index:
            return
        if upto.index > self.last.index:
            raise BrokenRule(f"a purge up to {upto} goes beyond the last entry {self.last}")
        term = self.term_at(upto.index)
        # None: an older segment that held it is gone already, which recovery meets.
        if term is not None and term != upto.term:
            raise BrokenRule(f"a purge up to {upto}, where the log has term {term}")
        self.purged = upto
        if upto.index == self.last.index:
            self.last = upto
        self.committed = max(self.committed, upto.index)

    def add_sealed(self, segment: Segment) -> None:
        """Take in a sealed segment by its seal; what its operations did beside is in the next segment's header.

        :raises BrokenRule: if it does not continue the log.
        """
        if segment.floor < self.last.index:
            for earlier in self.segments:
                earlier.cut(segment.floor)
            self.needed = min(self.needed, segment.floor)
        self.segments.append(segment)

    def load(self, summary: Summary) -> None:
        """Set the state that a segment's header gives."""
        self.last, self.purged, self.state, self.committed, self.time_ms = summary

    def term_at(self, index: int) -> int | None:
        """Return an entry's term, also that of the purge position; None if it is not known."""
        if index == self.last.index:
            return None if self.last.term == _UNKNOWN else self.last.term
        if index == self.purged.index:
            return self.purged.term
        segment = self.find(index)
        if segment is None:
            return None
        for first, term in reversed(segment.terms):
            if first <= index:
                return term
        return None

    def find(self, index: int) -> Segment | None:
        """Return the segment that holds an entry."""
        for segment in reversed(self.segments):
            if segment.first <= index <= segment.last:
                return segment
        return None

    def terms(self) -> tuple[tuple[int, int], ...]:
        """Return ``(first index, term)`` of each run of entries after the purge position."""
        runs: list[tuple[int, int]] = []
        start = self.purged.index + 1
        for segment in self.segments:
            for first, term in segment.terms:
                if runs and runs[-1][1] == term:
                    continue
                if first <= start:
                    runs = [(start, term)]
                else:
                    runs.append((first, term))
        # A run that ended before the purge position was replaced by the next one, unless no entry is left.
        return tuple(runs) if self.last.index >= start else ()

    def configs(self) -> list[int]:
        """Return the indexes of the CONFIG entries after the purge position."""
        return [i for segment in self.segments for i in segment.configs if i > self.purged.index]

    @property
    def has_purged(self) -> bool:
        """Whether ``take_purged`` would return anything."""
        oldest = self.segments[0]
        return len(self.segments) > 1 and max(oldest.first, self.purged.index + 1) > oldest.last

    def take_purged(self) -> list[Segment]:
        """Forget the oldest segments that hold no entry behind the purge position; return them, oldest first."""
        taken: list[Segment] = []
        while self.has_purged:
            taken.append(self.segments.pop(0))
        if taken:
            self.needed = min(self.segments[0].header.last.index, self.purged.index)
        return taken
