"""What a simulated file system consists of: files and directories, each as programs see it and as it is on the disk."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

__all__ = ["SECTOR", "Content", "Copier", "Directory", "Keep", "Node", "Unsynced"]

_T = TypeVar("_T")

SECTOR = 512
"""Bytes that a disk writes atomically."""


@dataclass(frozen=True)
class Unsynced:
    """One thing that is not on the disk yet, and that a power failure takes or leaves.

    :param kind: ``sector``, ``size`` (of a file that grew) or ``name`` (a change of names in a directory).
    :param number: which sector of the file, or which change of the directory.
    :param path: the file or directory, by a name that it has or had.
    :param stamp: orders them by age: what was changed last is greatest.
    """

    node: object = field(repr=False)
    kind: Literal["sector", "size", "name"]
    number: int
    path: str = field(compare=False)
    stamp: int = field(compare=False, repr=False)

    def __str__(self) -> str:
        """Say which it is."""
        return f"{self.kind} of {self.path}" if self.kind == "size" else f"{self.kind} {self.number} of {self.path}"


Keep = Literal["none", "all", "prefix"] | random.Random | frozenset[Unsynced]
"""What survives of that which was not synced: nothing, all, the older half of it, a random subset, or just these."""


class Content:
    """One file's bytes: what programs see, what is on the disk, and which sectors differ, oldest change first.

    Each of those sectors has the number of the change that was its last.
    """

    def __init__(self) -> None:
        self.cached = bytearray()
        self.durable = bytearray()
        self.dirty: dict[int, int] = {}
        self._shared = False

    def write(self, offset: int, data: bytes, stamp: int) -> None:
        self.own()
        end = offset + len(data)
        if end > len(self.cached):
            self.cached.extend(bytes(end - len(self.cached)))
        self.cached[offset:end] = data
        dirty, sectors = self.dirty, range(offset // SECTOR, -(-end // SECTOR))
        if dirty:
            for sector in sectors:
                dirty.pop(sector, None)
        dirty.update(dict.fromkeys(sectors, stamp))

    def sync(self) -> None:
        self.own()
        self._persist(self.dirty, len(self.cached))
        self.dirty.clear()

    def own(self) -> None:
        """Before a change: part with the bytes that a copy has too."""
        if self._shared:
            self.cached, self.durable, self._shared = self.cached[:], self.durable[:], False

    def _persist(self, sectors: Iterable[int], size: int) -> None:
        # A size that is durable while a sector in it is not leaves zeros there.
        self.durable.extend(bytes(max(0, size - len(self.durable))))
        first = last = -1
        for sector in sorted(sectors):
            if sector != last:
                self._copy(first, last, size)
                first = sector
            last = sector + 1
        self._copy(first, last, size)

    def _copy(self, first: int, last: int, size: int) -> None:
        """Bring a row of sectors to the disk."""
        start, end = first * SECTOR, min(last * SECTOR, size)
        if start >= 0:
            self.durable[start:end] = self.cached[start:end]

    def copy(self) -> Content:
        other = Content()
        other.cached, other.durable, other.dirty = self.cached, self.durable, dict(self.dirty)
        other._shared = self._shared = True
        return other

    def unsynced(self, path: str) -> Iterator[Unsynced]:
        """What a crash decides over; a sector of zeros where the file was shorter is a matter of its size alone."""
        grown = len(self.cached) > len(self.durable)
        for sector, stamp in self.dirty.items():
            start, end = sector * SECTOR, (sector + 1) * SECTOR
            was, now = self.durable[start:end], self.cached[start:end]
            if was != now and (len(was) == len(now) or was.rstrip(b"\0") != now.rstrip(b"\0")):
                yield Unsynced(self, "sector", sector, path, stamp)
        if grown:
            yield Unsynced(self, "size", 0, path, max(self.dirty.values(), default=0))

    def after_crash(self, keep: Keep) -> Content:
        if isinstance(keep, frozenset):
            kept = [sector for sector in self.dirty if Unsynced(self, "sector", sector, "", 0) in keep]
            whole = Unsynced(self, "size", 0, "", 0) in keep
        else:
            kept = _choose(list(self.dirty), keep)
            whole = keep == "all" or (isinstance(keep, random.Random) and keep.random() < 0.5)
        size = len(self.durable)
        if kept:
            size = max(size, min(len(self.cached), (max(kept) + 1) * SECTOR))
        if whole:
            size = max(size, len(self.cached))
        other = self.copy()
        if kept or size > len(self.durable):
            other.own()
            other._persist(kept, size)
        other.cached, other.dirty = other.durable, {}
        other._shared = True
        return other


class Directory:
    """Names: what programs see, what is on the disk, and the changes between, oldest first.

    A change sets some names to nodes (or to None: gone), all at once.
    """

    def __init__(self) -> None:
        self.names: dict[str, Node] = {}
        self.durable: dict[str, Node] = {}
        self.changes: list[dict[str, Node | None]] = []
        self.stamps: list[int] = []

    def change(self, change: dict[str, Node | None], stamp: int) -> None:
        self.changes.append(change)
        self.stamps.append(stamp)
        _apply_change(self.names, change)

    def sync(self) -> None:
        self.durable = dict(self.names)
        self.changes.clear()
        self.stamps.clear()

    def unsynced(self, path: str) -> Iterator[Unsynced]:
        for number, stamp in enumerate(self.stamps):
            yield Unsynced(self, "name", number, path, stamp)

    def surviving(self, keep: Keep) -> list[dict[str, Node | None]]:
        """The changes that are on the disk after a crash."""
        if isinstance(keep, frozenset):
            changes = enumerate(self.changes)
            return [change for number, change in changes if Unsynced(self, "name", number, "", 0) in keep]
        return _choose(self.changes, keep)

    def children(self) -> Iterator[tuple[str, Node]]:
        """Every node that has a name here, had one, or may have one after a crash."""
        yield from self.names.items()
        yield from self.durable.items()
        for change in self.changes:
            yield from ((name, node) for name, node in change.items() if node is not None)


Node = Content | Directory


def _apply_change(names: dict[str, Node], change: dict[str, Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _renames(changes: list[dict[str, Node | None]]) -> int:
    return sum(len(change) > 1 for change in changes)


def _choose(items: list[_T], keep: Literal["none", "all", "prefix"] | random.Random) -> list[_T]:
    if keep == "none":
        return []
    if keep == "all":
        return items
    if keep == "prefix":
        return items[: len(items) // 2]
    return [item for item in items if keep.random() < 0.5]


class Copier:
    """Copies a tree of nodes; a node that has two names, or one that is not durable, stays one node."""

    def __init__(self, keep: Keep | None) -> None:
        self.lost = self.torn = self.renames = 0
        self._keep = keep
        self._copies: dict[int, Node] = {}

    def copy(self, node: Node) -> Node:
        known = self._copies.get(id(node))
        if known is not None:
            return known
        if isinstance(node, Content):
            content = node.copy() if self._keep is None else self._after_crash(node, self._keep)
            self._copies[id(node)] = content
            return content
        directory = Directory()
        self._copies[id(node)] = directory
        if self._keep is None:
            directory.names = self._names(node.names)
            directory.durable = self._names(node.durable)
            directory.changes = [
                {name: None if child is None else self.copy(child) for name, child in change.items()}
                for change in node.changes
            ]
            directory.stamps = node.stamps[:]
            return directory
        names = dict(node.durable)
        surviving = node.surviving(self._keep)
        self.renames += _renames(node.changes) - _renames(surviving)
        for change in surviving:
            _apply_change(names, change)
        directory.names = self._names(names)
        directory.durable = dict(directory.names)
        return directory

    def _after_crash(self, node: Content, keep: Keep) -> Content:
        content = node.after_crash(keep)
        if node.dirty and keep != "all":
            lost = content.durable != node.cached
            self.lost += lost
            self.torn += lost and content.durable != node.durable
        return content

    def _names(self, names: dict[str, Node]) -> dict[str, Node]:
        return {name: self.copy(node) for name, node in names.items()}
