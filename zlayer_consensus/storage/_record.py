"""The format of one record: the unit of writing, syncing and checking. docs/storage-format.rst describes it.

Pure functions over bytes; files, segments and the rules of the log are elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple
from zlib import crc32

from ..raft import ENTRY_OVERHEAD, Entry, EntryKind, HardState, LogId

__all__ = [
    "BATCH",
    "MARK",
    "PAGE",
    "RECORD_HEADER",
    "SEAL",
    "SECTOR",
    "BadRecord",
    "Batch",
    "Operation",
    "Purge",
    "RecordHeader",
    "Reset",
    "SetState",
    "Truncate",
    "check_record",
    "decode_entries",
    "decode_operations",
    "encode_batch",
    "encode_operation",
    "encode_record",
    "mark_position",
    "parse_header",
    "record_size",
    "stored_length",
    "walk_payload",
]

SECTOR = 512
"""A record starts on a sector, so that writing it never touches one that is durable."""

PAGE = 4096
"""A MARK starts on a page, so that no single lost page takes it and the record that it vouches for."""

BATCH, MARK, SEAL = 1, 2, 3
_TYPES = frozenset((BATCH, MARK, SEAL))
_MAGIC = b"ZLrc"
_STRIPED = 1
_STRIPE = SECTOR - 1
# Any byte but zero: it makes the last sector of a record, and each sector of a striped one, differ from unwritten.
_END = b"\xa5"
_MANY_ZEROS = bytes(SECTOR // 2)
"""A sector without so many zeros in a row has two other bytes at least, and one flipped bit does not make it zeros."""

# magic, type, flags, reserved, stored length, entries, first index, last index, position, payload crc
_HEADER = struct.Struct("<4sBBHIIQQQI")
_CHECKS = struct.Struct("<II")
RECORD_HEADER = 64
_CHAIN_END = _HEADER.size
_CHECKED_END = _CHAIN_END + 4

_TAG = struct.Struct("<B3xI")
_PAIR = struct.Struct("<QQ")
_STATE = struct.Struct("<QQQ")
_INDEX = struct.Struct("<Q")
_TRUNCATE, _ENTRIES, _SET_STATE, _RESET, _PURGE = 1, 2, 3, 4, 5

# The start of an encoded entry (raft.Entry): index, term, time; the kind is its header's last byte.
_ENTRY = struct.Struct("<QQQ")
_KIND_AT = ENTRY_OVERHEAD - 1
_MAX_KIND = max(EntryKind)
_CONFIG = int(EntryKind.CONFIG)
_kind_of = itemgetter(2)


class BadRecord(ValueError):
    """The bytes are no valid record; the text says why."""


class Reset(NamedTuple):
    """The log is empty and starts after this position."""

    position: LogId


class Truncate(NamedTuple):
    """Entries with a greater index are gone."""

    last: int


class Batch(NamedTuple):
    """Entries ``first`` to ``last`` were appended.

    :param terms: ``(first index, term)`` of each run of entries with one term.
    :param configs: indexes of the CONFIG entries.
    :param time_ms: the log's time as of the last one.
    """

    first: int
    last: int
    terms: tuple[tuple[int, int], ...]
    configs: tuple[int, ...]
    time_ms: int


class SetState(NamedTuple):
    """Term, vote and commit are these."""

    state: HardState


class Purge(NamedTuple):
    """Entries up to this position may be removed."""

    upto: LogId


Operation = Reset | Truncate | Batch | SetState | Purge


class RecordHeader(NamedTuple):
    """A record's header, its own checks verified.

    :param length: bytes of its payload as it is stored.
    :param entries: how many entries it holds.
    :param first: index of the first of them; without any, the one after ``last``.
    :param last: last index of the log once the record has taken effect.
    :param position: where it starts in the file.
    :param chain: a checksum over this header and, through their chain values, all records before it.
    :param size: bytes that the record takes in the file, a multiple of :data:`SECTOR`.
    """

    type: int
    flags: int
    length: int
    entries: int
    first: int
    last: int
    position: int
    payload_crc: int
    chain: int
    size: int


def mark_position(end: int) -> int:
    """Return where a MARK goes behind a record that ends at ``end``."""
    return -(-end // PAGE) * PAGE


def record_size(length: int) -> int:
    """Return the bytes that a record with ``length`` stored payload bytes takes in the file."""
    return -(-(RECORD_HEADER + length + 1) // SECTOR) * SECTOR


def stored_length(length: int) -> int:
    """Return the most bytes that a payload of ``length`` bytes can take once it is stored."""
    return length + length // _STRIPE


def encode_record(
    kind: int, payload: bytes, entries: int, first: int, last: int, position: int, salt: int, chain: int
) -> tuple[bytes, int]:
    """Encode a record that goes to ``position``; return its bytes and its chain value.

    ``entries``, ``first`` and ``last`` are as in :class:`RecordHeader`.

    :param salt: the segment's salt.
    :param chain: chain value of the record before.
    """
    flags = 0
    if _MANY_ZEROS in payload:
        flags = _STRIPED
        payload = _END.join([payload[at : at + _STRIPE] for at in range(0, len(payload), _STRIPE)])
    length = len(payload)
    head = _HEADER.pack(_MAGIC, kind, flags, 0, length, entries, first, last, position, crc32(payload))
    chain = crc32(head, chain ^ salt)
    checked = head + chain.to_bytes(4, "little")
    check = crc32(checked, salt).to_bytes(4, "little")
    padding = bytes(record_size(length) - RECORD_HEADER - length - 1)
    return b"".join((checked, check, bytes(RECORD_HEADER - _CHECKED_END - 4), payload, _END, padding)), chain


def parse_header(sector: bytes, position: int, salt: int) -> RecordHeader:
    """Decode the header at the start of a record's first sector.

    :raises BadRecord: if its checks fail, or it belongs elsewhere.
    """
    if len(sector) < RECORD_HEADER:
        raise BadRecord("the file ends where a record belongs")
    chain, check = _CHECKS.unpack_from(sector, _CHAIN_END)
    if crc32(sector[:_CHECKED_END], salt) != check:
        raise BadRecord("the record header's checksum does not match")
    magic, kind, flags, reserved, length, entries, first, last, own, payload_crc = _HEADER.unpack_from(sector)
    if magic != _MAGIC or kind not in _TYPES or flags > _STRIPED or reserved:
        raise BadRecord(f"the record has the unknown type {kind} or flags {flags}")
    if own != position:
        raise BadRecord(f"the record was written for offset {own}")
    if any(sector[_CHECKED_END + 4 : RECORD_HEADER]):
        raise BadRecord("the record header's padding is not zero")
    return RecordHeader(kind, flags, length, entries, first, last, own, payload_crc, chain, record_size(length))


def check_record(header: RecordHeader, record: bytes, salt: int, chain: int | None) -> bytes:
    """Verify a whole record and return its payload.

    :param record: its ``header.size`` bytes.
    :param chain: chain value of the record before, or None if it is not known.
    :raises BadRecord: if payload, padding or chain do not match.
    """
    end = RECORD_HEADER + header.length
    stored = record[RECORD_HEADER:end]
    if len(record) != header.size or crc32(stored) != header.payload_crc:
        raise BadRecord("the record's checksum does not match")
    if record[end : end + 1] != _END or record.count(0, end + 1) != header.size - end - 1:
        raise BadRecord("the record's padding is not zero")
    if chain is not None and crc32(record[:_CHAIN_END], chain ^ salt) != header.chain:
        raise BadRecord("the record does not continue the one before it")
    if header.flags & _STRIPED:
        return b"".join([stored[at : at + _STRIPE] for at in range(0, len(stored), SECTOR)])
    return stored


def encode_batch(entries: Sequence[Entry]) -> tuple[Batch, list[bytes]]:
    """Describe entries that are to be appended, and encode them; the pieces are to be joined.

    :raises ValueError: if their indexes have a gap, their terms fall, or an entry's bytes are another entry's.
    """
    indexes, entry_terms, kinds, raws = zip(*entries, strict=True)
    first, count = indexes[0], len(indexes)
    last, term = first + count - 1, entry_terms[0]
    if indexes != tuple(range(first, last + 1)):
        raise ValueError(f"the entries from {first} on are not contiguous")
    terms = [(first, term)]
    if entry_terms[-1] != term:
        for index, entry_term in zip(indexes, entry_terms, strict=True):
            if entry_term != term:
                if entry_term < term:
                    raise ValueError(f"entry {index} of term {entry_term} follows one of term {term}")
                term = entry_term
                terms.append((index, term))
    for entry in (entries[0], entries[-1]):
        if _ENTRY.unpack_from(entry.raw)[:2] != entry[:2]:
            raise ValueError(f"the bytes of entry {entry.index} are another entry's")
    configs = tuple([entry.index for entry in entries if entry.kind == _CONFIG]) if _CONFIG in kinds else ()
    pieces = [_TAG.pack(_ENTRIES, count), struct.pack(f"<{count}I", *map(len, raws)), *raws]
    return Batch(first, last, tuple(terms), configs, entries[-1].time_ms), pieces


def encode_operation(operation: Reset | Truncate | SetState | Purge) -> bytes:
    """Encode any operation but a batch."""
    match operation:
        case Reset(position):
            return _TAG.pack(_RESET, 0) + _PAIR.pack(*position)
        case Truncate(last):
            return _TAG.pack(_TRUNCATE, 0) + _INDEX.pack(last)
        case SetState(state):
            return _TAG.pack(_SET_STATE, 0) + _STATE.pack(*state)
        case Purge(upto):
            return _TAG.pack(_PURGE, 0) + _PAIR.pack(*upto)


def decode_operations(payload: bytes) -> list[Operation]:
    """Decode a BATCH record's payload.

    :raises BadRecord: if it breaks the grammar, or entries in it have a gap or a falling term.
    """
    operations: list[Operation] = []
    at = 0
    try:
        while at < len(payload):
            tag, count = _TAG.unpack_from(payload, at)
            at += _TAG.size
            if tag == _ENTRIES:
                batch, at = _decode_batch(payload, at, count)
                operations.append(batch)
            else:
                operation, at = _decode_small(tag, payload, at)
                operations.append(operation)
    except struct.error:
        raise BadRecord("the record ends inside an operation") from None
    return operations


def _decode_small(tag: int, payload: bytes, at: int) -> tuple[Operation, int]:
    if tag == _SET_STATE:
        return SetState(HardState(*_STATE.unpack_from(payload, at))), at + _STATE.size
    if tag == _TRUNCATE:
        return Truncate(_INDEX.unpack_from(payload, at)[0]), at + _INDEX.size
    if tag == _RESET:
        return Reset(LogId(*_PAIR.unpack_from(payload, at))), at + _PAIR.size
    if tag == _PURGE:
        return Purge(LogId(*_PAIR.unpack_from(payload, at))), at + _PAIR.size
    raise BadRecord(f"the record holds the unknown operation {tag}")


def _decode_batch(payload: bytes, at: int, count: int) -> tuple[Batch, int]:
    lengths = struct.unpack_from(f"<{count}I", payload, at)
    at += 4 * count
    if not count or min(lengths) < ENTRY_OVERHEAD or at + sum(lengths) > len(payload):
        raise BadRecord("the entries' lengths do not fit the record")
    unpack, expected = _ENTRY.unpack_from, _INDEX.unpack_from(payload, at)[0]
    first, term, time_ms = expected, -1, 0
    terms: list[tuple[int, int]] = []
    configs: list[int] = []
    for length in lengths:
        index, entry_term, time_ms = unpack(payload, at)
        if index != expected:
            raise BadRecord(f"entry {index} stands where entry {expected} belongs")
        if entry_term != term:
            if entry_term < term:
                raise BadRecord(f"entry {index} of term {entry_term} follows one of term {term}")
            term = entry_term
            terms.append((index, term))
        kind = payload[at + _KIND_AT]
        if kind >= _CONFIG:
            if kind == _CONFIG:
                configs.append(index)
            elif kind > _MAX_KIND:
                raise BadRecord(f"entry {index} has the unknown kind {kind}")
        expected += 1
        at += length
    return Batch(first, expected - 1, tuple(terms), tuple(configs), time_ms), at


def walk_payload(payload: bytes) -> Iterator[Entry | Operation]:
    """Yield all that a BATCH record does, in order, with each entry by itself; the payload is known to be good."""
    at = 0
    while at < len(payload):
        tag, count = _TAG.unpack_from(payload, at)
        at += _TAG.size
        if tag != _ENTRIES:
            operation, at = _decode_small(tag, payload, at)
            yield operation
            continue
        lengths = struct.unpack_from(f"<{count}I", payload, at)
        at += 4 * count
        for length in lengths:
            yield Entry.decode(payload[at : at + length])
            at += length


def decode_entries(payload: bytes) -> list[Entry]:
    """Return those entries of a verified BATCH record that its own later operations leave."""
    entries: list[Entry] = []
    at = 0
    while at < len(payload):
        tag, count = _TAG.unpack_from(payload, at)
        at += _TAG.size
        if tag == _ENTRIES:
            lengths = struct.unpack_from(f"<{count}I", payload, at)
            at += 4 * count
            for length in lengths:
                index, term, _ = _ENTRY.unpack_from(payload, at)
                entries.append(Entry(index, term, payload[at + _KIND_AT], payload[at : at + length]))
                at += length
            continue
        operation, at = _decode_small(tag, payload, at)
        if isinstance(operation, Truncate):
            while entries and entries[-1].index > operation.last:
                entries.pop()
        elif isinstance(operation, Reset):
            entries.clear()
    return entries
