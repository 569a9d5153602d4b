"""What the store keeps for a key: one bytes object, which the garbage collector does not look into.

It begins with a head, ``create_revision, mod_revision, version, lease`` and the key's share in the digest. The value
follows, or whatever stands for it where values are kept elsewhere.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Final, Protocol

from ._commands import RECORD_HEAD

__all__ = ["InlineValues", "Values", "check_record", "make_head", "share_of", "value_is"]

_NUMBERS: Final = struct.Struct("<QQQQ")
_SHARE: Final = slice(_NUMBERS.size, RECORD_HEAD.size)


def make_head(key: bytes, create: int, mod: int, version: int, value: bytes) -> bytes:
    """Return a record's head. The share in the digest is 16 bytes of the SHA-256 of all the rest and the key."""
    numbers = _NUMBERS.pack(create, mod, version, 0)
    return numbers + _share(key, numbers, value)


def _share(key: bytes, numbers: bytes, value: bytes) -> bytes:
    return sha256(len(key).to_bytes(4, "little") + key + numbers + value).digest()[:16]


def share_of(record: bytes) -> int:
    """Return a record's share in the digest."""
    return int.from_bytes(record[_SHARE], "little")


def value_is(key: bytes, record: bytes, value: bytes) -> bool:
    """Say whether a record is that of a value, by its share: nothing but the head is looked at."""
    return record[_SHARE] == _share(key, record[: _NUMBERS.size], value)


def check_record(key: bytes, record: bytes) -> None:
    """See that a record with its value in it is whole.

    :raises ValueError: if not.
    """
    if len(record) < RECORD_HEAD.size or not value_is(key, record, record[RECORD_HEAD.size :]):
        raise ValueError(f"the record of the key {key!r} in the snapshot is damaged")


class Values(Protocol):
    """Where a store's values are."""

    def keep(self, key: bytes, head: bytes, value: bytes) -> bytes:
        """Keep a value, and return the record, which begins with its head."""

    def size(self, record: bytes) -> int:
        """Return how long a record would be with the value in it: what counts for limits, wherever the value is."""

    def drop(self, key: bytes, record: bytes) -> None:
        """Neither the map nor the history has this record any more."""


class InlineValues:
    """Values in the records themselves."""

    @staticmethod
    def keep(key: bytes, head: bytes, value: bytes) -> bytes:
        """Return the record."""
        return head + value

    size = staticmethod(len)

    @staticmethod
    def drop(key: bytes, record: bytes) -> None:
        """Nothing is kept elsewhere."""
