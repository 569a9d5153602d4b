"""An ordered map of bytes to bytes that the garbage collector does not look into, and that never stalls.

sortedcontainers keeps keys in lists, which the collector traverses: with a million keys that is 30 ms and more in each
full pass; and one dict of a million keys takes 30 ms when it grows. Here the leaves are small dicts. The collector does
not track a dict that holds nothing but bytes. Within a leaf there is no order: it is sorted when it is read.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final

__all__ = ["OrderedMap"]

_LEAF: Final = 340
"""Most keys in a leaf: what a dict holds in 512 slots; half of it fits in 256."""


class OrderedMap:
    """A map in the order of its keys. It must not change while :meth:`items` is under way.

    Invariant: a leaf's keys are greater than the bound before it, and not greater than its own. No leaf is empty.
    """

    def __init__(self) -> None:
        self._leaves: list[dict[bytes, bytes]] = []
        self._bounds: list[bytes] = []
        self._count = 0
        self._found: bytes | None = None  # the key that was looked for last; a change of it comes right after
        self._found_at = 0

    def __len__(self) -> int:
        return self._count

    def _locate(self, key: bytes) -> int:
        """Return the number of the leaf in which the key is, or should be."""
        if key is self._found:
            return self._found_at
        self._found_at = bisect_left(self._bounds, key)
        self._found = key
        return self._found_at

    def get(self, key: bytes) -> bytes | None:
        """Return what the key maps to, or None."""
        at = self._locate(key)
        return self._leaves[at].get(key) if at < len(self._leaves) else None

    def set(self, key: bytes, value: bytes) -> None:
        """Add a key, or change what it maps to."""
        at = self._locate(key)
        if at == len(self._leaves):
            self._append(key, value)
            return
        leaf = self._leaves[at]
        before = len(leaf)
        leaf[key] = value
        if len(leaf) != before:
            self._count += 1
            if len(leaf) > _LEAF:
                self._split(at)

    def _append(self, key: bytes, value: bytes) -> None:
        self._found = None
        self._count += 1
        if self._leaves and len(self._leaves[-1]) < _LEAF:
            self._leaves[-1][key] = value
            self._bounds[-1] = key
        else:
            self._leaves.append({key: value})
            self._bounds.append(key)

    def _split(self, at: int) -> None:
        self._found = None
        leaf = self._leaves[at]
        keys = sorted(leaf)
        half = len(keys) // 2
        self._leaves[at : at + 1] = [{key: leaf[key] for key in keys[:half]}, {key: leaf[key] for key in keys[half:]}]
        self._bounds.insert(at, keys[half - 1])

    def remove(self, key: bytes) -> None:
        """Remove a key, which must be there."""
        at = self._locate(key)
        leaf = self._leaves[at]
        del leaf[key]
        self._count -= 1
        if len(leaf) >= _LEAF // 4:
            return
        if at + 1 < len(self._leaves) and len(leaf) + len(self._leaves[at + 1]) <= _LEAF // 2:
            self._leaves[at + 1] = {**leaf, **self._leaves[at + 1]}
        elif leaf:
            return
        self._found = None
        del self._leaves[at], self._bounds[at]

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, after: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over keys and values from ``start`` on (``after``: behind it), up to but without ``end``."""
        first = self._locate(start)
        for at in range(first, len(self._leaves)):
            leaf = self._leaves[at]
            keys = sorted(leaf)
            low = 0
            if at == first:
                low = bisect_right(keys, start) if after else bisect_left(keys, start)
            last = end is not None and self._bounds[at] >= end
            for number in range(low, bisect_left(keys, end) if last and end is not None else len(keys)):
                key = keys[number]
                yield key, leaf[key]
            if last:
                return

    def dismantle(self) -> Iterator[None]:
        """Release the content in small steps: to free a million keys at once takes 0.1 s."""
        self._found = None
        while self._leaves:
            del self._leaves[-4:], self._bounds[-4:]
            yield
