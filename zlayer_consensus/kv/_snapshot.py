"""A consistent copy of the store in pieces, while it changes; and the way back.

The copy is of the revision at which it was asked for. Nothing is copied then: the iterator walks the keys in order, and
whatever is about to change in front of it is set aside first. What is set aside comes at the end.

The stream is made of blocks: a letter and a body. ``H`` (CBOR: format, revision, ...) comes first; ``K`` holds keys
with their records; ``V`` holds events of the history, newest first; ``E`` ends the stream with counts and digest. A
block longer than a piece is cut: its last piece starts with ``-``, the others with ``+``.

In format 1 the records have their values in them. In format 2 they say where the values are in the files that the
snapshot names; the header has the number of these.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final, Protocol

from zope.interface import implementer

from ..storage.interfaces import IStateSink
from . import _plain
from ._history import Event
from ._store import Store

__all__ = ["INLINE", "IN_FILES", "FileTable", "Reading", "Snapshot", "StateSink"]

INLINE: Final = 1
IN_FILES: Final = 2
"""The two formats."""
_BLOCK_BYTES: Final = 64 << 10
_BLOCK_ITEMS: Final = 512
"""Most keys in a block, so that loading it takes 2 or 3 ms at most, also when they are small."""
_PIECE_BYTES: Final = 256 << 10

_KEY: Final = struct.Struct("<II")  # length of the key, length of the record
_EVENT: Final = struct.Struct("<QII")  # revision, length of the key, length of the record before plus 1, or 0
_HEADER_KEYS: Final = {"format", "revision", "compacted", "index"}
_HEADERS: Final = {INLINE: _HEADER_KEYS, IN_FILES: _HEADER_KEYS | {"files"}}
_END_KEYS: Final = {"keys", "events", "digest"}


class FileTable(Protocol):
    """The files that a snapshot names."""

    count: int

    def written(self, record: bytes) -> bytes:
        """Return a record as it stands in the snapshot."""

    def release(self) -> None:
        """The snapshot needs them no longer. Idempotent."""


class Reading(Protocol):
    """What a sink makes of the records in a stream."""

    def begin(self, header: dict[str, Any]) -> None:
        """Take the header.

        :raises ValueError: if the stream cannot be right.
        :raises ConfigError: if it is for a machine that is set up differently.
        """

    def record(self, key: bytes, written: bytes) -> bytes:
        """Return the record to keep.

        :raises ValueError: if it is damaged.
        """


class Snapshot(Iterator[bytes]):
    """Yields the store as of the moment it is made.

    :param index: the log index of the last command that the store has seen.
    :param files: where the values are, unless they are in the records.
    """

    def __init__(self, store: Store, index: int, files: FileTable | None = None) -> None:
        self._store = store
        self._files = files
        self._header = {
            "format": INLINE if files is None else IN_FILES,
            "revision": store.revision,
            "compacted": store.compacted,
            "index": index,
        }
        if files is not None:
            self._header["files"] = files.count
        self._end = {"keys": len(store), "digest": store.digest()}
        self._events: list[Event] = store.history.all()  # bounded by the window
        self._cursor: bytes | None = None  # keys up to here were yielded
        self._aside: dict[bytes, bytes | None] = {}
        store.observe(self._set_aside)
        self._pieces = self._generate()

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        """Give up: the store keeps nothing for it any more. Idempotent."""
        self._store.unobserve(self._set_aside)
        self._pieces.close()
        self._aside.clear()
        self._events.clear()
        if self._files is not None:
            self._files.release()

    def _set_aside(self, key: bytes, record: bytes | None) -> None:
        if (self._cursor is None or key > self._cursor) and key not in self._aside:
            self._aside[key] = record

    def _generate(self) -> Generator[bytes, None, None]:
        yield b"H" + _plain.dumps(self._header)
        while block := self._walk():
            yield from _cut(block)
        self._store.unobserve(self._set_aside)
        while self._aside:
            yield from _cut(self._rest())
        self._end["events"] = len(self._events)
        while self._events:
            yield from _cut(self._past())
        yield b"E" + _plain.dumps(self._end)

    def _written(self, record: bytes) -> bytes:
        return record if self._files is None else self._files.written(record)

    def _walk(self) -> bytes:
        parts = [b"K"]
        size = 0
        walked = 0
        cursor = self._cursor
        for key, kept in self._store.items(b"" if cursor is None else cursor, after=cursor is not None):
            self._cursor = key
            walked += 1
            if key not in self._aside:
                record = self._written(kept)
                parts += (_KEY.pack(len(key), len(record)), key, record)
                size += len(key) + len(record)
            if size >= _BLOCK_BYTES or walked >= _BLOCK_ITEMS:
                break
        # A block without keys says that there may be more; no block, that the walk is over.
        return b"".join(parts) if walked else b""

    def _rest(self) -> bytes:
        parts = [b"K"]
        size = 0
        while self._aside and size < _BLOCK_BYTES and len(parts) < 3 * _BLOCK_ITEMS:
            key, record = self._aside.popitem()
            if record is not None:
                record = self._written(record)
                parts += (_KEY.pack(len(key), len(record)), key, record)
                size += len(key) + len(record)
        return b"".join(parts)

    def _past(self) -> bytes:
        parts = [b"V"]
        size = 0
        while self._events and size < _BLOCK_BYTES and len(parts) < 3 * _BLOCK_ITEMS:
            revision, key, before, _ = self._events.pop()
            before = None if before is None else self._written(before)
            parts += (_EVENT.pack(revision, len(key), 0 if before is None else len(before) + 1), key, before or b"")
            size += len(key) + len(before or b"")
        return b"".join(parts)


def _cut(block: bytes) -> Iterator[bytes]:
    if len(block) <= _PIECE_BYTES:
        yield block
        return
    last = (len(block) - 1) // _PIECE_BYTES * _PIECE_BYTES
    for at in range(0, last, _PIECE_BYTES):
        yield b"+" + block[at : at + _PIECE_BYTES]
    yield b"-" + block[last:]


@implementer(IStateSink)
class StateSink:
    """Loads a snapshot into a new store, and hands it over when it is complete and right.

    :param store: an empty store.
    :param reading: makes the records to keep of those in the stream.
    :param replace: called once with the store and the log index that it belongs to.
    :param debris: what is to be cleared away meanwhile, step by step; one makes room for more than a block has.
    """

    def __init__(
        self,
        store: Store,
        reading: Reading,
        replace: Callable[[Store, int], None],
        debris: Iterator[None] | None = None,
    ) -> None:
        self._store = store
        self._reading = reading
        self._replace = replace
        self._debris = iter(()) if debris is None else debris
        self._partial: list[bytes] = []
        self._header: dict[str, Any] | None = None
        self._end: dict[str, Any] | None = None
        self._events = 0

    def write(self, chunk: bytes) -> None:
        """Take the next piece.

        :raises ValueError: if it is not what a snapshot has there.
        """
        if self._end is not None:
            raise ValueError("a piece of the snapshot follows its end")
        next(self._debris, None)
        mark = chunk[:1]
        if mark == b"+":
            self._partial.append(chunk[1:])
            return
        if mark == b"-":
            chunk = b"".join([*self._partial, chunk[1:]])
            self._partial.clear()
        elif self._partial:
            raise ValueError("a block of the snapshot is not complete")
        self._block(chunk[:1], chunk)

    def _block(self, kind: bytes, block: bytes) -> None:
        if self._header is None:
            if kind != b"H":
                raise ValueError("the snapshot does not start with its header")
            self._header = _header(block)
            self._reading.begin(self._header)
        elif kind == b"K" and not self._events:
            self._keys(block)
        elif kind == b"V":
            self._past(block)
        elif kind == b"E":
            self._end = _table(block, _END_KEYS)
        else:
            raise ValueError(f"the snapshot has the block {kind!r} in the wrong place")

    def _keys(self, block: bytes) -> None:
        at = 1
        while at < len(block):
            try:
                key_size, record_size = _KEY.unpack_from(block, at)
            except struct.error as error:
                raise ValueError(f"a key of the snapshot is cut off: {error}") from None
            key_at = at + _KEY.size
            at = key_at + key_size + record_size
            _check_end(at, block)
            key = block[key_at : key_at + key_size]
            self._store.load(key, self._reading.record(key, block[key_at + key_size : at]))

    def _past(self, block: bytes) -> None:
        at = 1
        while at < len(block):
            try:
                revision, key_size, before_size = _EVENT.unpack_from(block, at)
            except struct.error as error:
                raise ValueError(f"an event of the snapshot is cut off: {error}") from None
            key_at = at + _EVENT.size
            at = key_at + key_size + max(before_size - 1, 0)
            _check_end(at, block)
            key = block[key_at : key_at + key_size]
            before = self._reading.record(key, block[key_at + key_size : at]) if before_size else None
            self._store.load_event(revision, key, before)
            self._events += 1

    def finish(self) -> None:
        """Replace the state.

        :raises ValueError: if the snapshot is not complete, or its content is not what its end says.
        """
        if self._header is None or self._end is None:
            raise ValueError("the snapshot is not complete")
        found = {"keys": len(self._store), "events": self._events, "digest": self._store.digest()}
        if found != self._end:
            wrong = ", ".join(sorted(name for name in found if found[name] != self._end[name]))
            raise ValueError(f"the snapshot's content does not fit its end: {wrong}")
        self._store.loaded(self._header["revision"], self._header["compacted"])
        self._replace(self._store, self._header["index"])


def _header(block: bytes) -> dict[str, Any]:
    found = _plain.loads(block[1:])
    version = found.get("format") if type(found) is dict else None
    if type(version) is not int or version not in _HEADERS:
        raise ValueError(f"the snapshot has format {version!r}, known are {INLINE} and {IN_FILES}")
    return _table(block, _HEADERS[version])


def _table(block: bytes, keys: set[str]) -> dict[str, Any]:
    table = _plain.loads(block[1:])
    if type(table) is not dict or set(table) != keys:
        raise ValueError("a table of the snapshot has not the keys " + ", ".join(sorted(keys)))
    return table


def _check_end(at: int, block: bytes) -> None:
    if at > len(block):
        raise ValueError("a block of the snapshot is cut off")
