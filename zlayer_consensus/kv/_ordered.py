"""An ordered map of bytes to bytes that the garbage collector does not look into, and that never stalls.

A ``SortedDict`` of a million keys keeps them in lists, which the collector traverses: 30 ms and more in each full pass.
Here it orders leaves of some hundred keys. A leaf is a plain dict, since the collector does not track a dict that holds
nothing but bytes; it is sorted when it is read.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final

from sortedcontainers import SortedDict

__all__ = ["OrderedMap"]

_LEAF: Final = 340
"""Most keys in a leaf: what a dict holds in 512 slots; half of it fits in 256."""
_LEAVES_A_STEP: Final = 4
"""Leaves that :meth:`OrderedMap.dismantle` releases at once, a fraction of a millisecond."""

Leaf = dict[bytes, bytes]


class OrderedMap:
    """A map in the order of its keys. It must not change while :meth:`items` is under way.

    Invariant: a leaf's keys are not less than its bound, and less than the next one's. The first bound is empty.
    """

    def __init__(self) -> None:
        self._leaves: SortedDict[bytes, Leaf] = SortedDict({b"": {}})
        self._count = 0
        self._found: tuple[bytes, bytes, Leaf] | None = None
        """The key that was looked for last, and its leaf: a change of it comes right after."""

    def __len__(self) -> int:
        return self._count

    def _locate(self, key: bytes) -> tuple[bytes, Leaf]:
        """Return bound and leaf where the key is, or should be."""
        found = self._found
        if found is None or found[0] is not key:
            bound, leaf = self._leaves.peekitem(self._leaves.bisect_right(key) - 1)
            self._found = found = (key, bound, leaf)
        return found[1], found[2]

    def get(self, key: bytes) -> bytes | None:
        """Return what the key maps to, or None."""
        return self._locate(key)[1].get(key)

    def set(self, key: bytes, value: bytes) -> None:
        """Add a key, or change what it maps to."""
        bound, leaf = self._locate(key)
        before = len(leaf)
        leaf[key] = value
        if len(leaf) != before:
            self._count += 1
            if len(leaf) > _LEAF:
                self._split(bound, leaf, key)

    def _split(self, bound: bytes, leaf: Leaf, added: bytes) -> None:
        self._found = None
        keys = sorted(leaf)
        # Keys that come in ascending order leave full leaves behind.
        middle = len(keys) - 1 if keys[-1] == added else len(keys) // 2
        self._leaves[bound] = {key: leaf[key] for key in keys[:middle]}
        self._leaves[keys[middle]] = {key: leaf[key] for key in keys[middle:]}

    def remove(self, key: bytes) -> None:
        """Remove a key, which must be there."""
        bound, leaf = self._locate(key)
        del leaf[key]
        self._count -= 1
        if bound and len(leaf) < _LEAF // 4:
            self._merge(bound, leaf)

    def _merge(self, bound: bytes, leaf: Leaf) -> None:
        """Put a leaf's rest into the one before it, if there is room."""
        lower, before = self._leaves.peekitem(self._leaves.bisect_left(bound) - 1)
        if leaf and len(before) + len(leaf) > _LEAF // 2:
            return
        self._found = None
        del self._leaves[bound]
        if leaf:
            self._leaves[lower] = {**before, **leaf}

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, after: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over keys and values from ``start`` on (``after``: behind it), up to but without ``end``."""
        first, _ = self._locate(start)
        for bound in self._leaves.irange(first):
            if end is not None and bound >= end:
                return
            leaf = self._leaves[bound]
            keys = sorted(leaf)
            low = 0
            if bound == first:
                low = bisect_right(keys, start) if after else bisect_left(keys, start)
            for number in range(low, len(keys) if end is None else bisect_left(keys, end)):
                key = keys[number]
                yield key, leaf[key]

    def dismantle(self) -> Iterator[None]:
        """Release the content in small steps: to free a million keys at once takes 0.1 s."""
        self._found = None
        self._count = 0
        while len(self._leaves) > 1:
            for _ in range(min(_LEAVES_A_STEP, len(self._leaves) - 1)):
                self._leaves.popitem(-1)
            yield
        self._leaves[b""] = {}
