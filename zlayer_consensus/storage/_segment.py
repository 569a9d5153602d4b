"""The format of a segment file's header and seal, and what is kept in memory of a segment.

docs/storage-format.rst describes both. A segment is a file of fixed size: header, records, zeros.
"""

from __future__ import annotations

import re
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple
from zlib import crc32

from ..raft import HardState, LogId
from ._record import record_size, stored_length

__all__ = [
    "FORMAT_VERSION",
    "POINT_SPACING",
    "SEGMENT_HEADER",
    "BadSegment",
    "NewerFormat",
    "Seal",
    "Segment",
    "SegmentHeader",
    "decode_header",
    "decode_seal",
    "encode_header",
    "encode_seal",
    "parse_name",
    "seal_bound",
    "segment_name",
]

FORMAT_VERSION = 1
SEGMENT_HEADER = 4096
"""Records start here."""
POINT_SPACING = 64 << 10
"""Bytes of records between two points of a segment's sparse index."""

_MAGIC = b"ZLRAFTL1"
_CRC32 = 1
_NAME = re.compile(r"([0-9a-f]{16})-([0-9]{20})\.seg")
_PREAMBLE = struct.Struct("<8sHBBI")
_FIELDS = struct.Struct("<16sQ16sQQIIQ" + "Q" * 10)

_SEAL = struct.Struct("<QQQQQQQIII4x")


class BadSegment(ValueError):
    """A segment's header or seal is not valid; the text says why."""


class NewerFormat(BadSegment):
    """The file was written by a later version of this software (S-25)."""

    def __init__(self, version: int) -> None:
        super().__init__(f"format version {version} is newer than {FORMAT_VERSION}")
        self.version = version


class SegmentHeader(NamedTuple):
    """The first 4096 bytes of a segment: whose it is, and the log's whole state as of its start.

    :param seq: 1, 2, 3, … without gaps.
    :param size: the file's size in bytes.
    :param salt: random; mixed into the checks of its records, so that another segment's never match.
    :param previous_end: where the seal of segment ``seq - 1`` stands (0 for the first).
    :param chain: chain value of the last record before that seal.
    :param last: the log's last position.
    :param purged: up to where the log was purged.
    :param state: term, vote, commit. This copy is why older segments can go (J-02).
    :param committed: entries up to this index may never be truncated.
    :param time_ms: the log's time.
    """

    cluster_id: bytes
    node_id: int
    incarnation: bytes
    seq: int
    size: int
    salt: int
    chain: int
    previous_end: int
    last: LogId
    purged: LogId
    state: HardState
    committed: int
    time_ms: int


class Seal(NamedTuple):
    """The last record of a full segment: what a later opening needs to know of it without reading it.

    :param next_seq: the segment that follows; one must (S-07).
    :param floor: entries of earlier segments beyond this index were removed by this one.
    :param first: first index of the entries in it that are in the log; ``last + 1`` if there is none.
    :param last: the last of them.
    :param last_term: the term of the log's last entry.
    :param time_ms: the log's time.
    :param points: ``(first index, offset)`` of some records, ascending.
    :param terms: ``(first index, term)`` of each run of its entries with one term.
    :param configs: indexes of its CONFIG entries.
    """

    next_seq: int
    floor: int
    first: int
    last: int
    last_term: int
    time_ms: int
    points: tuple[tuple[int, int], ...]
    terms: tuple[tuple[int, int], ...]
    configs: tuple[int, ...]


def segment_name(seq: int, base: int) -> str:
    """Return the file name of segment ``seq``, which starts with index ``base``."""
    return f"{seq:016x}-{base:020d}.seg"


def parse_name(name: str) -> tuple[int, int] | None:
    """Return sequence and base index from a segment's file name, or None if it is no segment."""
    found = _NAME.fullmatch(name)
    return (int(found[1], 16), int(found[2])) if found else None


def encode_header(header: SegmentHeader) -> bytes:
    """Encode a segment's header, :data:`SEGMENT_HEADER` bytes."""
    h = header
    fields = _FIELDS.pack(
        h.cluster_id.ljust(16, b"\0"), h.node_id, h.incarnation, h.seq, h.size, h.salt, h.chain, h.previous_end,
        *h.last, *h.purged, *h.state, h.committed, h.time_ms, 0,
    )  # fmt: skip
    body = fields.ljust(SEGMENT_HEADER - _PREAMBLE.size, b"\0")
    check = crc32(body, crc32(_PREAMBLE.pack(_MAGIC, FORMAT_VERSION, _CRC32, 0, 0)))
    return _PREAMBLE.pack(_MAGIC, FORMAT_VERSION, _CRC32, 0, check) + body


def decode_header(data: bytes) -> SegmentHeader:
    """Decode and verify a segment's header.

    :raises NewerFormat: if it is of a later version, and otherwise intact.
    :raises BadSegment: if it is damaged.
    """
    if len(data) != SEGMENT_HEADER:
        raise BadSegment("the file ends inside the segment header")
    magic, version, algorithm, flags, check = _PREAMBLE.unpack_from(data)
    if crc32(data[_PREAMBLE.size :], crc32(_PREAMBLE.pack(magic, version, algorithm, flags, 0))) != check:
        raise BadSegment("the segment header's checksum does not match")
    if magic == _MAGIC and version > FORMAT_VERSION:
        raise NewerFormat(version)
    if (magic, version, algorithm, flags) != (_MAGIC, FORMAT_VERSION, _CRC32, 0):
        raise BadSegment("it is not a segment of this format")
    values = _FIELDS.unpack_from(data, _PREAMBLE.size)
    cluster_id, node_id, incarnation, seq, size, salt, chain, previous_end = values[:8]
    last, purged = LogId(*values[8:10]), LogId(*values[10:12])
    return SegmentHeader(
        cluster_id if any(cluster_id) else b"", node_id, incarnation, seq, size, salt, chain, previous_end,
        last, purged, HardState(*values[12:15]), values[15], values[16],
    )  # fmt: skip


def encode_seal(seal: Seal) -> bytes:
    """Encode a SEAL record's payload."""
    head = _SEAL.pack(
        seal.next_seq, seal.last - seal.first + 1, seal.floor, seal.first, seal.last, seal.last_term, seal.time_ms,
        len(seal.points), len(seal.terms), len(seal.configs),
    )  # fmt: skip
    numbers = [n for pair in (*seal.points, *seal.terms) for n in pair]
    numbers.extend(seal.configs)
    return head + struct.pack(f"<{len(numbers)}Q", *numbers)


def decode_seal(payload: bytes) -> Seal:
    """Decode a SEAL record's verified payload.

    :raises BadSegment: if it contradicts itself (J-100).
    """
    if len(payload) < _SEAL.size:
        raise BadSegment("the seal is too short")
    next_seq, count, floor, first, last, last_term, time_ms, points, terms, configs = _SEAL.unpack_from(payload)
    pairs = points + terms
    total = 2 * pairs + configs
    if len(payload) != _SEAL.size + 8 * total:
        raise BadSegment("the seal has the wrong length")
    if count != last - first + 1:
        raise BadSegment(f"the seal counts {count} entries from {first} to {last}")
    numbers = struct.unpack_from(f"<{total}Q", payload, _SEAL.size)
    paired = tuple(zip(numbers[0 : 2 * pairs : 2], numbers[1 : 2 * pairs : 2], strict=True))
    return Seal(
        next_seq, floor, first, last, last_term, time_ms, paired[:points], paired[points:], numbers[2 * pairs :]
    )


def seal_bound(points: int, terms: int, configs: int) -> int:
    """Return the most bytes that a seal's record takes."""
    return record_size(stored_length(_SEAL.size + 8 * (2 * (points + terms) + configs)))


class Segment:
    """What is kept in memory of one segment: a few KiB, however many entries it holds.

    Entries ``first`` to ``last`` of the log are in it. An entry lies at or behind the last point whose index is not
    greater, and before the next point's record: between two points the entries follow each other without a gap.
    """

    def __init__(self, path: str, header: SegmentHeader) -> None:
        self.path = path
        self.header = header
        self.sealed = False
        self.first = header.last.index + 1
        self.last = header.last.index
        self.floor = header.last.index
        self.end = SEGMENT_HEADER
        """Where the next record goes; of a sealed segment, where its seal is."""
        self.seal_bytes = 0
        self.chain = header.chain
        self.terms: list[tuple[int, int]] = []
        self.configs: list[int] = []
        self._point_indexes = array("Q")
        self._point_offsets = array("Q")
        self._point_due = SEGMENT_HEADER

    def cut(self, last: int) -> None:
        """Forget entries beyond ``last``, from the back (J-63)."""
        if self.last > last:
            self.last = max(last, self.first - 1)
        while self.terms and self.terms[-1][0] > last:
            self.terms.pop()
        while self.configs and self.configs[-1] > last:
            self.configs.pop()
        while self._point_indexes and self._point_indexes[-1] > last:
            self._point_indexes.pop()
            self._point_offsets.pop()
        # What comes next does not follow the entries before it in the file, so it needs a point of its own.
        self._point_due = 0

    def restart(self, last: int) -> None:
        """The log's end fell below this segment's first entry: what comes next starts after ``last``."""
        self.floor = min(self.floor, last)
        self.first, self.last = last + 1, last

    def add_terms(self, terms: Iterable[tuple[int, int]]) -> None:
        """Note runs of terms of new entries; a run that continues the last one adds nothing."""
        for run in terms:
            if not self.terms or self.terms[-1][1] != run[1]:
                self.terms.append(run)

    def add_point(self, first: int, offset: int) -> None:
        """Note that the record at ``offset`` holds entries from ``first`` on, if a point is due there."""
        if offset >= self._point_due:
            self._point_indexes.append(first)
            self._point_offsets.append(offset)
            self._point_due = offset + POINT_SPACING

    def locate(self, index: int) -> tuple[int, int]:
        """Return where to start reading for an entry: an offset, and the last index that can be found from there."""
        at = bisect_right(self._point_indexes, index) - 1
        following = at + 1
        limit = self._point_indexes[following] - 1 if following < len(self._point_indexes) else self.last
        return self._point_offsets[at], limit

    def tail_start(self, size: int) -> int:
        """Return the first point's index from which on at most about ``size`` bytes of records follow."""
        for index, offset in zip(self._point_indexes, self._point_offsets, strict=True):
            if self.end - offset <= size:
                return index
        return self.last + 1

    def seal_size(self, points: int, terms: int, configs: int) -> int:
        """Return the most bytes that the seal can take once so many more points, runs and CONFIG entries are in."""
        return seal_bound(len(self._point_indexes) + points, len(self.terms) + terms, len(self.configs) + configs)

    def seal(self, last: LogId, time_ms: int) -> Seal:
        """Describe this segment as it is now."""
        points = tuple(zip(self._point_indexes, self._point_offsets, strict=True))
        return Seal(
            self.header.seq + 1, self.floor, self.first, self.last, last.term, time_ms, points,
            tuple(self.terms), tuple(self.configs),
        )  # fmt: skip

    def apply_seal(self, seal: Seal) -> None:
        """Take over what a seal says of this segment."""
        self.sealed = True
        self.floor, self.first, self.last = seal.floor, seal.first, seal.last
        self.terms, self.configs = list(seal.terms), list(seal.configs)
        self._point_indexes = array("Q", [index for index, _ in seal.points])
        self._point_offsets = array("Q", [offset for _, offset in seal.points])
