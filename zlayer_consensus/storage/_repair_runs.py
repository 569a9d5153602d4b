"""The whole stretches of a damaged log: segment files in a row whose records all check. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..errors import StorageCorrupt
from ..raft import HardState, LogId
from ._files import IFileSystem
from ._inspect import SegmentFile, check_end, check_link, scan_records
from ._log_index import LogIndex
from ._record import BATCH, Batch, SetState, decode_operations
from ._recovery import summary_of
from ._scan import Tail, replay
from ._segment import SEGMENT_HEADER, Seal, Segment, SegmentHeader

__all__ = ["Run", "Traces", "find_runs"]

_Counter = Callable[[int], None]


@dataclass
class Traces:
    """The greatest of what was seen in anything that checks, behind damage too.

    :param term, vote: the greatest term in a state, and a vote in it; 0 is none.
    :param entry_term: the greatest term of an entry.
    :param commit: the greatest commit, reset or purge position.
    :param last: the greatest index at which the log was seen to end.
    """

    term: int = 0
    vote: int = 0
    entry_term: int = 0
    commit: int = 0
    last: int = 0

    def state(self, state: HardState) -> None:
        """Take in a term with its vote, and a commit."""
        if state.term > self.term:
            self.term, self.vote = state.term, state.voted_for
        elif state.term == self.term:
            self.vote = self.vote or state.voted_for
        self.commit = max(self.commit, state.commit)

    def header(self, header: SegmentHeader) -> None:
        """Take in what a segment's header says."""
        self.state(header.state)
        self.end(header.last, header.committed)

    def end(self, last: LogId, commit: int = 0) -> None:
        """Take in an end of the log."""
        self.entry_term = max(self.entry_term, last.term)
        self.last = max(self.last, last.index)
        self.commit = max(self.commit, commit)


@dataclass
class Run:
    """Segments that follow each other, of which every record up to the end checks.

    :param index: the log's state at its end, and the segments; the newest of them is the last one's good part.
    :param damage: why it ends; None if it ends as the log of a node may end.
    :param contradicted: whether the segment before it is whole, and says something else than its first one.
    """

    index: LogIndex
    damage: StorageCorrupt | None = None
    contradicted: bool = False
    _done: list[tuple[Segment, Seal]] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """The files that it is made of."""
        return [segment.path for segment in self.index.segments]


def find_runs(
    files: IFileSystem, segments: Iterable[SegmentFile], newest: int, traces: Traces, advance: _Counter
) -> list[Run]:
    """Read every record of every segment, and return the runs, the one with the oldest segments first.

    :param segments: those with a good header, by sequence; no two have the same.
    :param newest: the greatest sequence that any file has.
    :param traces: takes in what is seen.
    :param advance: called with the sizes of the files that were read.
    """
    finder = _Finder(files, traces)
    row = list(segments)
    for at, each in enumerate(row):
        following = row[at + 1] if at + 1 < len(row) and row[at + 1].seq == each.seq + 1 else None
        finder.add(each, following, is_newest=each.seq == newest)
        advance(each.size)
    return finder.runs


class _Finder:
    def __init__(self, files: IFileSystem, traces: Traces) -> None:
        self.runs: list[Run] = []
        self._files = files
        self._traces = traces
        self._open = False
        self._contradicted = False

    def add(self, each: SegmentFile, following: SegmentFile | None, is_newest: bool) -> None:
        """Go on with a segment, or begin a run with it."""
        assert each.header is not None
        self._traces.header(each.header)
        if self._open:
            run = self.runs[-1]
            run.index.load(summary_of(each.header))
        else:
            run = Run(LogIndex(summary_of(each.header)), contradicted=self._contradicted)
            run.index.needed = each.header.last.index
            self.runs.append(run)
        self._open, self._contradicted = True, False
        segment = Segment(each.path, each.header)
        run.index.segments.append(segment)
        try:
            tail = replay(self._files, segment, run.index)
        except StorageCorrupt as damage:
            self._end(run, damage)
            self._cut(run, segment)
            self._look_behind(segment)
        else:
            self._check(run, segment, tail, following, is_newest)
        self._traces.state(run.index.state)
        self._traces.end(run.index.last, run.index.committed)

    def _end(self, run: Run, damage: StorageCorrupt) -> None:
        run.damage = damage
        self._open = False

    def _check(self, run: Run, segment: Segment, tail: Tail, following: SegmentFile | None, is_newest: bool) -> None:
        if following is None or following.header is None:
            self._open = False
            if segment.sealed:
                missing = f"segment {segment.header.seq + 1}, which must follow, is missing or damaged"
                run.damage = StorageCorrupt(segment.path, segment.end, missing, run.index.last.index + 1)
            elif not is_newest:
                run.damage = StorageCorrupt(segment.path, segment.end, "the seal is missing", run.index.last.index + 1)
            return
        if not segment.sealed and self._is_empty(following):
            # A crash came between the new segment and the seal of this one: the opening writes it.
            try:
                check_link(segment, run.index, following.header)
            except StorageCorrupt as damage:
                self._end(run, damage)
            return
        try:
            check_end(self._files, segment, run.index, tail, following.header)
        except StorageCorrupt as damage:
            self._end(run, damage)
            self._contradicted = segment.sealed
        run._done.append((segment, segment.seal(run.index.last, run.index.time_ms)))

    def _is_empty(self, each: SegmentFile) -> bool:
        return not self._files.read(each.path, SEGMENT_HEADER, each.size).strip(b"\0")

    def _cut(self, run: Run, broken: Segment) -> None:
        """Make the run's index anew, without the bad record, of which a part may have been applied."""
        segments = [*(segment for segment, _ in run._done), broken]
        index = LogIndex(summary_of(segments[0].header))
        index.needed = segments[0].header.last.index
        for (segment, seal), following in zip(run._done, segments[1:], strict=True):
            again = Segment(segment.path, segment.header)
            again.apply_seal(seal)
            again.end, again.chain = segment.end, segment.chain
            index.add_sealed(again)
            index.load(summary_of(following.header))
        # As if the file ended there: then everything in it is good.
        part = Segment(broken.path, broken.header._replace(size=broken.end))
        index.segments.append(part)
        replay(self._files, part, index)
        part.header = broken.header
        run.index = index

    def _look_behind(self, broken: Segment) -> None:
        """Take in what stands behind a bad record."""
        for record in scan_records(self._files, broken.path, broken.header, broken.end):
            if record.header is None or record.payload is None or record.header.type != BATCH:
                continue
            self._traces.end(LogId(0, record.header.last))
            for operation in decode_operations(record.payload):
                if isinstance(operation, SetState):
                    self._traces.state(operation.state)
                elif isinstance(operation, Batch):
                    self._traces.end(LogId(operation.terms[-1][1], operation.last))
