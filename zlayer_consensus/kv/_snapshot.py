"""A consistent copy of the store in pieces, while it changes; and the way back.

The copy is of the revision at which it was asked for. Nothing is copied then: the iterator walks the keys in order, and
whatever is about to change in front of it is set aside first. What is set aside comes at the end.

The stream is made of blocks: a letter and a body. ``H`` (CBOR: format, revision, ...) comes first; ``K`` holds keys
with their records; ``V`` holds events of the history, newest first; ``E`` ends the stream with counts and digest. A
block longer than a piece is cut: its last piece starts with ``-``, the others with ``+``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final

from zope.interface import implementer

from ..storage.interfaces import IStateSink
from . import _plain
from ._history import Event
from ._store import Store

__all__ = ["Snapshot", "StateSink"]

_FORMAT: Final = 1
_BLOCK_BYTES: Final = 64 << 10
_BLOCK_ITEMS: Final = 512
"""Most keys in a block, so that loading it takes 2 or 3 ms at most, also when they are small."""
_PIECE_BYTES: Final = 256 << 10

_KEY: Final = struct.Struct("<II")  # length of the key, length of the record
_EVENT: Final = struct.Struct("<QII")  # revision, length of the key, length of the record before plus 1, or 0
_HEADER_KEYS: Final = {"format", "revision", "compacted", "index"}
_END_KEYS: Final = {"keys", "events", "digest"}


class Snapshot(Iterator[bytes]):
    """Yields the store as of the moment it is made.

    :param index: the log index of the last command that the store has seen.
    """

    def __init__(self, store: Store, index: int) -> None:
        self._store = store
        self._header = {
            "format": _FORMAT,
            "revision": store.revision,
            "compacted": store.compacted,
            "index": index,
        }
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

    def _walk(self) -> bytes:
        parts = [b"K"]
        size = 0
        walked = 0
        cursor = self._cursor
        for key, record in self._store.items(b"" if cursor is None else cursor, after=cursor is not None):
            self._cursor = key
            walked += 1
            if key not in self._aside:
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
                parts += (_KEY.pack(len(key), len(record)), key, record)
                size += len(key) + len(record)
        return b"".join(parts)

    def _past(self) -> bytes:
        parts = [b"V"]
        size = 0
        while self._events and size < _BLOCK_BYTES and len(parts) < 3 * _BLOCK_ITEMS:
            revision, key, before, _ = self._events.pop()
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
    :param replace: called once with the store and the log index that it belongs to.
    :param debris: what is to be cleared away meanwhile, step by step; one makes room for more than a block has.
    """

    def __init__(
        self, store: Store, replace: Callable[[Store, int], None], debris: Iterator[None] | None = None
    ) -> None:
        self._store = store
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
            self._header = _table(block, _HEADER_KEYS)
            if self._header["format"] != _FORMAT:
                raise ValueError(f"the snapshot has format {self._header['format']!r}, known is {_FORMAT}")
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
            self._store.load(block[key_at : key_at + key_size], block[key_at + key_size : at])

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
            before = block[key_at + key_size : at] if before_size else None
            self._store.load_event(revision, block[key_at : key_at + key_size], before)
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


def _table(block: bytes, keys: set[str]) -> dict[str, Any]:
    table = _plain.loads(block[1:])
    if type(table) is not dict or set(table) != keys:
        raise ValueError("a table of the snapshot has not the keys " + ", ".join(sorted(keys)))
    return table


def _check_end(at: int, block: bytes) -> None:
    if at > len(block):
        raise ValueError("a block of the snapshot is cut off")
