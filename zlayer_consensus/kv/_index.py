"""The keys in order, in a form that the garbage collector does not look into.

sortedcontainers keeps keys in lists, which the collector traverses: with a million keys that is 30 ms and more in each
full pass. Here the leaves are tuples of bytes, which the collector stops tracking the first time that it sees them.
An insertion copies one leaf, about a microsecond.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final

__all__ = ["KeyIndex"]

_LEAF: Final = 128
"""Most keys in a leaf: a trade of copying leaves against the length of the list of leaves."""


class KeyIndex:
    """A sorted set of keys. It must not change while :meth:`keys` is under way."""

    def __init__(self) -> None:
        self._leaves: list[tuple[bytes, ...]] = []
        self._last: list[bytes] = []  # the last key of each leaf
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, key: bytes) -> None:
        """Add a key, which must not be there."""
        self._count += 1
        at = bisect_left(self._last, key)
        if at == len(self._last):
            self._append(key)
            return
        leaf = self._leaves[at]
        place = bisect_left(leaf, key)
        leaf = (*leaf[:place], key, *leaf[place:])
        if len(leaf) > _LEAF:
            half = len(leaf) // 2
            self._leaves.insert(at, leaf[:half])
            self._last.insert(at, leaf[half - 1])
            leaf = leaf[half:]
            at += 1
        self._leaves[at] = leaf

    def _append(self, key: bytes) -> None:
        if self._leaves and len(self._leaves[-1]) < _LEAF:
            self._leaves[-1] = (*self._leaves[-1], key)
            self._last[-1] = key
        else:
            self._leaves.append((key,))
            self._last.append(key)

    def remove(self, key: bytes) -> None:
        """Remove a key, which must be there."""
        at = bisect_left(self._last, key)
        leaf = self._leaves[at]
        place = bisect_left(leaf, key)
        if leaf[place] != key:
            raise KeyError(key)
        self._count -= 1
        leaf = leaf[:place] + leaf[place + 1 :]
        if at + 1 < len(self._leaves) and len(leaf) + len(self._leaves[at + 1]) <= _LEAF // 2:
            leaf += self._leaves[at + 1]
            del self._leaves[at + 1], self._last[at]
        if leaf:
            self._leaves[at] = leaf
            self._last[at] = leaf[-1]
        else:
            del self._leaves[at], self._last[at]

    def keys(self, start: bytes = b"", end: bytes | None = None, *, after: bool = False) -> Iterator[bytes]:
        """Iterate from ``start`` on (``after``: behind it), up to but without ``end``."""
        find = bisect_right if after else bisect_left
        at = find(self._last, start)
        if at == len(self._leaves):
            return
        place = find(self._leaves[at], start)
        for number in range(at, len(self._leaves)):
            leaf = self._leaves[number]
            if end is not None and self._last[number] >= end:
                yield from leaf[place : bisect_left(leaf, end)]
                return
            yield from leaf[place:] if place else leaf
            place = 0

    def dismantle(self) -> Iterator[None]:
        """Release the keys in small steps: to free a million at once takes 0.1 s."""
        while self._leaves:
            del self._leaves[-16:], self._last[-16:]
            yield
