"""Reading segments: from the front with a verdict on the tail, and by index."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from ..errors import StorageCorrupt
from ..raft import Entry
from ._files import IFileSystem
from ._log_index import BrokenRule, LogIndex
from ._record import (
    BATCH,
    MARK,
    SEAL,
    SECTOR,
    BadRecord,
    Batch,
    RecordHeader,
    check_record,
    decode_entries,
    decode_operations,
    mark_position,
    parse_header,
)
from ._segment import SEGMENT_HEADER, Segment

__all__ = ["Tail", "Window", "is_blank", "read_entries", "replay", "replay_steps", "walk_entries"]

_WINDOW = 1 << 20
_READ_WINDOW = 256 << 10
_ZERO_SECTOR = bytes(SECTOR)


@dataclass(frozen=True, slots=True)
class Tail:
    """How a segment ends.

    :param last_record: ``(offset, size)`` of its last valid record, or None if it has none.
    :param closed: whether that record proves that all entries before it were durable.
    :param torn_end: where the remains of an unfinished record end; 0 if there are none.
    """

    last_record: tuple[int, int] | None
    closed: bool
    torn_end: int


class Window:
    """A file, read in large pieces from front to back.

    :param size: bytes of it that are looked at.
    :param piece: bytes that are read at a time.
    """

    def __init__(self, file_system: IFileSystem, path: str, size: int, piece: int) -> None:
        self._file_system = file_system
        self._path = path
        self._size = size
        self._piece = piece
        self._start = 0
        self._data = b""

    def get(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes, or fewer at the file's end."""
        at = offset - self._start
        if at < 0 or at + size > len(self._data):
            wanted = min(max(size, self._piece), self._size - offset)
            self._start, self._data, at = offset, self._file_system.read(self._path, offset, wanted), 0
        return self._data[at : at + size]

    def written_end(self, offset: int) -> int:
        """Return the end of the last sector from ``offset`` on that is not all zeros, or ``offset``."""
        end = offset
        zeros = bytes(self._piece)
        for at in range(offset, self._size, self._piece):
            piece = self._file_system.read(self._path, at, min(self._piece, self._size - at))
            # Comparing is much faster than stripping, and most pieces are zeros.
            if piece != (zeros if len(piece) == self._piece else zeros[: len(piece)]):
                end = at + -(-len(piece.rstrip(b"\0")) // SECTOR) * SECTOR
        return end


def is_blank(file_system: IFileSystem, path: str, size: int) -> bool:
    """Say whether a segment's file of so many bytes has nothing but zeros behind its header."""
    return Window(file_system, path, size, _WINDOW).written_end(SEGMENT_HEADER) == SEGMENT_HEADER


def replay(file_system: IFileSystem, segment: Segment, index: LogIndex) -> Tail:
    """Take in every record of the index's active segment, and say how it ends.

    A record that does not check is *torn* if it is the last one and one of its sectors was never written; such a
    record was never acknowledged. All else is damage (docs/storage-format.rst has the table).

    :raises StorageCorrupt: if the segment is damaged.
    """
    steps = replay_steps(file_system, segment, index, _WINDOW)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            tail: Tail = end.value
            return tail


def replay_steps(file_system: IFileSystem, segment: Segment, index: LogIndex, piece: int) -> Generator[int, None, Tail]:
    """Do what :func:`replay` does record by record; yield the size of each.

    :param piece: bytes that are read at a time.
    """
    size = segment.header.size
    window = Window(file_system, segment.path, size, piece)
    last_record: tuple[int, int] | None = None
    closed = True
    while segment.end < size:
        at = segment.end
        found = _next_record(window, segment, index)
        if found is None:
            if _skip_to_mark(window, segment):
                continue
            torn_end = window.written_end(at)
            if torn_end == at:
                torn_end = 0
            else:
                _refuse_if_proven(window, segment, index, torn_end)
            return Tail(last_record, closed, torn_end)
        header, payload = found
        _take(segment, index, header, payload)
        last_record = (at, header.size)
        closed = header.type != BATCH
        if header.type == SEAL:
            segment.sealed = True
            break
        segment.end, segment.chain = at + header.size, header.chain
        yield header.size
    return Tail(last_record, closed, 0)


def _corrupt(segment: Segment, reason: str, first: int, last: int | None = None, offset: int = -1) -> StorageCorrupt:
    return StorageCorrupt(segment.path, segment.end if offset < 0 else offset, reason, first, last)


def _at_risk(index: LogIndex) -> int:
    """Return the first entry of which a lost record may have been: it may have replaced all that was not committed."""
    return min(index.committed, index.last.index) + 1


def _next_record(window: Window, segment: Segment, index: LogIndex) -> tuple[RecordHeader, bytes] | None:
    """Return the record at the segment's end, or None if what is there was not completely written."""
    at, salt = segment.end, segment.header.salt
    sector = window.get(at, SECTOR)
    if sector == _ZERO_SECTOR:
        return None
    try:
        header = parse_header(sector, at, salt)
    except BadRecord as error:
        raise _corrupt(segment, str(error), _at_risk(index)) from None
    if at + header.size > segment.header.size:
        raise _corrupt(segment, "the record goes beyond the end of its segment", header.first, header.last)
    record = window.get(at, header.size)
    try:
        return header, check_record(header, record, salt, segment.chain)
    except BadRecord as error:
        for start in range(SECTOR, header.size, SECTOR):
            if record[start : start + SECTOR] == _ZERO_SECTOR:
                return None
        raise _corrupt(segment, str(error), header.first, header.last) from None


def _skip_to_mark(window: Window, segment: Segment) -> bool:
    """Move the segment's end to the next page, if a MARK is there and nothing before it."""
    end, position, salt = segment.end, mark_position(segment.end), segment.header.salt
    if position == end or position >= segment.header.size or any(window.get(end, position - end)):
        return False
    sector = window.get(position, SECTOR)
    try:
        header = parse_header(sector, position, salt)
        check_record(header, sector, salt, segment.chain)
    except BadRecord:
        return False
    if header.type != MARK:
        return False
    segment.end = position
    return True


def _refuse_if_proven(window: Window, segment: Segment, index: LogIndex, end: int) -> None:
    """A record is written only once the one before it is durable: a later one proves that this is no torn write."""
    for position in range(segment.end + SECTOR, end, SECTOR):
        sector = window.get(position, SECTOR)
        if sector[:1] == _ZERO_SECTOR[:1]:
            continue
        try:
            later = parse_header(sector, position, segment.header.salt)
        except BadRecord:
            continue
        reason = f"a record is damaged that was durable, since a later one at offset {position} is intact"
        first = _at_risk(index)
        try:
            damaged = parse_header(window.get(segment.end, SECTOR), segment.end, segment.header.salt)
        except BadRecord:
            raise _corrupt(segment, reason, first, later.first - 1 if later.first > first else None) from None
        raise _corrupt(segment, reason, damaged.first, damaged.last)


def _take(segment: Segment, index: LogIndex, header: RecordHeader, payload: bytes) -> None:
    if header.type != BATCH:
        # A MARK is empty; the successor that a SEAL names is checked by who knows the other segments.
        if header.type != SEAL and payload:
            raise _corrupt(segment, "an empty record has a payload", header.first, header.last)
        return
    try:
        operations = decode_operations(payload)
        count = sum(op.last - op.first + 1 for op in operations if isinstance(op, Batch))
        if count != header.entries:
            raise BadRecord(f"the record counts {header.entries} entries and holds {count}")
        index.apply(operations, segment.end)
    except (BadRecord, BrokenRule) as error:
        raise _corrupt(segment, str(error), header.first, header.last) from None
    if header.last != index.last.index:
        reason = f"the record ends the log at {header.last}, its content at {index.last.index}"
        raise _corrupt(segment, reason, header.first, header.last)


def read_entries(file_system: IFileSystem, index: LogIndex, first: int, last: int, max_bytes: int) -> list[Entry]:
    """Read entries ``first`` to at most ``last``, which are in the log: at least one, and as many as fit.

    :raises StorageCorrupt: if what is read does not check.
    """
    entries: list[Entry] = []
    left = max_bytes
    for entry in walk_entries(file_system, index, first, last):
        left -= len(entry.raw)
        if left < 0 and entries:
            return entries
        entries.append(entry)
    return entries


def walk_entries(file_system: IFileSystem, index: LogIndex, first: int, last: int) -> Iterator[Entry]:
    """Yield entries ``first`` to ``last``, which are in the log, in order. Holds one piece of a file at a time.

    :raises StorageCorrupt: if what is read does not check.
    """
    window: Window | None = None
    read = None
    while first <= last:
        segment = index.find(first)
        if segment is None:
            raise LookupError(f"entry {first} is not in the log")
        offset, limit = segment.locate(first)
        limit = min(limit, last)
        if window is None or read is not segment:
            read, window = segment, Window(file_system, segment.path, segment.header.size, _READ_WINDOW)
        yield from _walk(window, segment, offset, first, limit)
        first = limit + 1


def _walk(window: Window, segment: Segment, offset: int, first: int, last: int) -> Iterator[Entry]:
    """Yield entries ``first`` to ``last`` of a segment, reading records from ``offset`` on."""
    size, salt = segment.header.size, segment.header.salt
    expected = first
    while expected <= last:
        if offset < SEGMENT_HEADER or offset + SECTOR > size:
            raise _corrupt(segment, f"entry {expected} is not where it belongs", expected, last, offset)
        sector = window.get(offset, SECTOR)
        if sector == _ZERO_SECTOR and offset != mark_position(offset):
            offset = mark_position(offset)
            continue
        try:
            header = parse_header(sector.ljust(SECTOR, b"\0"), offset, salt)
            if header.type == BATCH and header.entries and header.last >= expected:
                payload = check_record(header, window.get(offset, header.size), salt, None)
                for entry in decode_entries(payload):
                    if entry.index == expected <= last:
                        expected += 1
                        yield entry
        except BadRecord as error:
            raise _corrupt(segment, str(error), expected, last, offset) from None
        offset += header.size
