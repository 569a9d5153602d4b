"""Reading sealed segments again, piece by piece, while the log is written to (hazards §3.4).

An opening reads header and seal of a sealed segment and no more, so what rots in it would be found when somebody needs
it, or never. Here every record is checked, by the code that opens an unsealed segment.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise

from ..errors import StorageCorrupt, StorageError
from ._files import IFileSystem
from ._inspect import check_end
from ._log_index import LogIndex
from ._recovery import summary_of
from ._scan import replay_steps
from ._segment import SEGMENT_HEADER, BadSegment, Segment, SegmentHeader, decode_header
from .interfaces import ScrubStep

__all__ = ["LogScrub"]


class LogScrub:
    """Where a scrub is. It blocks, and runs where the log's writer does, so that no file goes away within a step."""

    def __init__(self, file_system: IFileSystem) -> None:
        self._file_system = file_system
        self._segment: Segment | None = None
        self._steps: Generator[int, None, None] = _nothing()
        self._seq = 0
        """The last segment that this pass is done with."""
        self._last = 0
        """The last segment of this pass; what is sealed meanwhile is the next one's, or it might never end."""

    def step(self, segments: Sequence[Segment], max_bytes: int) -> ScrubStep:
        """Verify the next piece of the sealed ones among a log's segments, which are all but the newest.

        :raises StorageCorrupt: if it is damaged.
        """
        if self._segment not in segments[:-1]:  # done with, or purged
            self._begin(segments, max_bytes)
        segment, size = self._segment, 0
        if segment is None:
            return ScrubStep(done=self._end(segments))
        try:
            while size < max_bytes:
                size += next(self._steps)
        except StopIteration:
            self._segment, self._seq = None, segment.header.seq
        except StorageError as error:
            self._segment = None
            raise self._missing(segment) or error from None
        return ScrubStep(size, segment.path, done=self._end(segments))

    def _begin(self, segments: Sequence[Segment], piece: int) -> None:
        """Go on with the next segment of the pass, if there is one."""
        self._segment = None
        if not self._last and len(segments) > 1:
            self._last = segments[-2].header.seq
        for segment, following in pairwise(segments):
            if self._seq < segment.header.seq <= self._last:
                self._segment = segment
                self._steps = _verified(self._file_system, segment, following.header, piece)
                return

    def _end(self, segments: Sequence[Segment]) -> bool:
        """Say whether the pass is over; then the next step begins another."""
        if self._segment is not None or any(self._seq < each.header.seq <= self._last for each in segments):
            return False
        self._seq = self._last = 0
        return True

    def _missing(self, segment: Segment) -> StorageCorrupt | None:
        """Return the error for a file that is gone, though nobody has purged it."""
        if self._file_system.exists(segment.path):
            return None
        first = segment.header.last.index + 1
        return StorageCorrupt(segment.path, 0, "the segment is missing", first, segment.last)


def _nothing() -> Generator[int, None, None]:
    yield from ()


def _verified(files: IFileSystem, segment: Segment, following: SegmentHeader, piece: int) -> Generator[int, None, None]:
    """Verify a sealed segment by itself, and that it is what is known of it; yield the bytes of each step."""
    first, last = segment.header.last.index + 1, following.last.index
    found = files.size(segment.path)
    if found != segment.header.size:
        reason = f"it has {found} bytes instead of {segment.header.size}"
        raise StorageCorrupt(segment.path, min(found, segment.header.size), reason, first, last)
    try:
        header = decode_header(files.read(segment.path, 0, SEGMENT_HEADER))
    except BadSegment as error:
        raise StorageCorrupt(segment.path, 0, str(error), first, last) from None
    if header != segment.header:
        raise StorageCorrupt(segment.path, 0, "its header is another one than it was", first, last)
    yield SEGMENT_HEADER
    index = LogIndex(summary_of(header))
    again = Segment(segment.path, header)
    index.segments.append(again)
    tail = yield from replay_steps(files, again, index, piece)
    check_end(files, again, index, tail, following)
    yield segment.seal_bytes
