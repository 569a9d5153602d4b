"""The entries of an append message as one byte string.

``u32 count``, ``count`` times ``u32 length``, then the encoded entries one after the other; little-endian. One byte
string costs the CBOR decoder nothing per entry, and no entry's bytes are walked: decoding takes about 0.4 µs per entry.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ..raft import ENTRY_OVERHEAD, MAX_INDEX, Entry, EntryKind, LogId

__all__ = ["MAX_ENTRIES", "pack_entries", "unpack_entries"]

MAX_ENTRIES = 100_000
"""Most entries in one message: the largest value that ``max_payload_entries`` may have."""

_COUNT = struct.Struct("<I")
# Index, term and kind of the entry header; time, session and sequence are not looked at here.
_HEAD = struct.Struct("<QQ24xB")
_MAX_KIND = max(EntryKind)
assert _HEAD.size == ENTRY_OVERHEAD


def pack_entries(entries: Sequence[Entry]) -> bytes:
    """Return the packed form."""
    raws = [entry.raw for entry in entries]
    return struct.pack(f"<I{len(raws)}I", len(raws), *map(len, raws)) + b"".join(raws)


def unpack_entries(blob: bytes, prev: LogId, term: int) -> tuple[Entry, ...]:
    """Read the packed form of the entries that follow ``prev`` in a message of ``term``.

    :raises ValueError: if the form is broken, or the entries do not follow ``prev`` without a gap, their terms fall or
        exceed ``term``, or a kind is unknown (A-22).
    """
    lengths, at = _lengths(blob)
    entries: list[Entry] = []
    append, unpack, new = entries.append, _HEAD.unpack_from, tuple.__new__
    # Term 0 is the initial configuration's alone: no leader wrote it.
    expected, lowest = prev.index + 1, prev.term if prev.index == 0 else max(prev.term, 1)
    for length in lengths:
        index, entry_term, kind = unpack(blob, at)
        if index != expected or entry_term < lowest or kind > _MAX_KIND:
            raise ValueError(_what_is_wrong(index, entry_term, kind, expected, lowest))
        end = at + length
        # Not Entry(...): its Python-level constructor would be half of the cost.
        append(new(Entry, (index, entry_term, kind, blob[at:end])))
        expected, lowest, at = expected + 1, entry_term or 1, end
    if entries and entries[0].term == 0 and entries[0].kind != EntryKind.CONFIG:
        raise ValueError("entry 1 has term 0 and is not a configuration")
    if entries and lowest > term:
        raise ValueError(f"an entry's term {lowest} exceeds the message's term {term}")
    if expected - 1 > MAX_INDEX:
        raise ValueError(f"index {expected - 1} is too large")
    return tuple(entries)


def _lengths(blob: bytes) -> tuple[tuple[int, ...], int]:
    """Read the lengths; they fit the blob exactly. Returns where the first entry starts too."""
    if len(blob) < _COUNT.size:
        raise ValueError("the count is missing")
    (count,) = _COUNT.unpack_from(blob)
    if count > MAX_ENTRIES:
        raise ValueError(f"{count} entries are too many, the limit is {MAX_ENTRIES}")
    start = _COUNT.size * (count + 1)
    if len(blob) < start:
        raise ValueError("the lengths are cut off")
    lengths: tuple[int, ...] = struct.unpack_from(f"<{count}I", blob, _COUNT.size)
    if start + sum(lengths) != len(blob):
        raise ValueError("the lengths do not add up")
    if count and min(lengths) < ENTRY_OVERHEAD:
        raise ValueError(f"an entry of {min(lengths)} bytes has no complete header")
    return lengths, start


def _what_is_wrong(index: int, term: int, kind: int, expected: int, lowest: int) -> str:
    if index != expected:
        return f"index {index} where {expected} must come"
    if term < lowest:
        return f"entry {index} has term {term} after {lowest}"
    return f"entry {index} has the unknown kind {kind}"
