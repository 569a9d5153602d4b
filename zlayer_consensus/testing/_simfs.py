"""A file system in memory that knows what would be left of it after a power failure.

It keeps two versions of everything: what programs see, and what is on the disk. Between the two lie writes per
512-byte sector, file sizes, and the names in each directory, each of which may or may not survive a crash.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

from zope.interface import implementer

from ..errors import StorageFailed, StorageFull, StorageLocked
from ..storage import IFile, IFileLock, IFileSystem

__all__ = ["SECTOR", "SimulatedFileSystem"]

_T = TypeVar("_T")

SECTOR = 512
"""Bytes that a disk writes atomically."""
_ENDLESS = 1 << 60

Keep = Literal["none", "all", "prefix"] | random.Random
"""What survives of that which was not synced: nothing, all, the older half of it, or a random subset."""


class _Content:
    """One file's bytes: what programs see, what is on the disk, and which sectors differ, oldest change first."""

    def __init__(self) -> None:
        self.cached = bytearray()
        self.durable = bytearray()
        self.dirty: dict[int, None] = {}
        self._shared = False

    def write(self, offset: int, data: bytes) -> None:
        self.own()
        end = offset + len(data)
        if end > len(self.cached):
            self.cached.extend(bytes(end - len(self.cached)))
        self.cached[offset:end] = data
        dirty, sectors = self.dirty, range(offset // SECTOR, -(-end // SECTOR))
        if dirty:
            for sector in sectors:
                dirty.pop(sector, None)
        dirty.update(dict.fromkeys(sectors))

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

    def copy(self) -> _Content:
        other = _Content()
        other.cached, other.durable, other.dirty = self.cached, self.durable, dict(self.dirty)
        other._shared = self._shared = True
        return other

    def after_crash(self, keep: Keep) -> _Content:
        kept = _choose(list(self.dirty), keep)
        size = len(self.durable)
        if kept:
            size = max(size, min(len(self.cached), (max(kept) + 1) * SECTOR))
        if keep == "all" or (isinstance(keep, random.Random) and keep.random() < 0.5):
            size = max(size, len(self.cached))
        other = self.copy()
        if kept or size > len(self.durable):
            other.own()
            other._persist(kept, size)
        other.cached, other.dirty = other.durable, {}
        other._shared = True
        return other


class _Directory:
    """Names: what programs see, what is on the disk, and the changes between, oldest first.

    A change sets some names to nodes (or to None: gone), all at once.
    """

    def __init__(self) -> None:
        self.names: dict[str, _Node] = {}
        self.durable: dict[str, _Node] = {}
        self.changes: list[dict[str, _Node | None]] = []

    def change(self, change: dict[str, _Node | None]) -> None:
        self.changes.append(change)
        _apply_change(self.names, change)

    def sync(self) -> None:
        self.durable = dict(self.names)
        self.changes.clear()


_Node = _Content | _Directory


def _apply_change(names: dict[str, _Node], change: dict[str, _Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _choose(items: list[_T], keep: Keep) -> list[_T]:
    if keep == "none":
        return []
    if keep == "all":
        return items
    if keep == "prefix":
        return items[: len(items) // 2]
    return [item for item in items if keep.random() < 0.5]


class _Copier:
    """Copies a tree of nodes; a node that has two names, or one that is not durable, stays one node."""

    def __init__(self, keep: Keep | None) -> None:
        self.lost = self.torn = 0
        self._keep = keep
        self._copies: dict[int, _Node] = {}

    def copy(self, node: _Node) -> _Node:
        known = self._copies.get(id(node))
        if known is not None:
            return known
        if isinstance(node, _Content):
            content = node.copy() if self._keep is None else self._after_crash(node, self._keep)
            self._copies[id(node)] = content
            return content
        directory = _Directory()
        self._copies[id(node)] = directory
        if self._keep is None:
            directory.names = self._names(node.names)
            directory.durable = self._names(node.durable)
            directory.changes = [
                {name: None if child is None else self.copy(child) for name, child in change.items()}
                for change in node.changes
            ]
            return directory
        names = dict(node.durable)
        for change in _choose(node.changes, self._keep):
            _apply_change(names, change)
        directory.names = self._names(names)
        directory.durable = dict(directory.names)
        return directory

    def _after_crash(self, node: _Content, keep: Keep) -> _Content:
        content = node.after_crash(keep)
        if node.dirty and keep != "all":
            lost = content.durable != node.cached
            self.lost += lost
            self.torn += lost and content.durable != node.durable
        return content

    def _names(self, names: dict[str, _Node]) -> dict[str, _Node]:
        return {name: self.copy(node) for name, node in names.items()}


@implementer(IFile)
class _SimulatedFile:
    def __init__(self, system: SimulatedFileSystem, path: str, content: _Content) -> None:
        self.path = path
        self._system = system
        self._content = content
        self._closed = False

    def write(self, offset: int, data: bytes) -> None:
        self._check("write")
        self._system._grow("write", self.path, offset + len(data) - len(self._content.cached))
        self._content.write(offset, data)

    def zero(self, offset: int, size: int) -> None:
        self.write(offset, bytes(size))

    def sync(self) -> None:
        try:
            self._check("sync")
        except StorageFailed:
            # As ext4, XFS and Btrfs do: the pages count as clean, though the disk never got them.
            self._content.dirty.clear()
            raise
        self._content.sync()

    def close(self) -> None:
        self._closed = True

    def _check(self, operation: str) -> None:
        if self._closed:
            raise StorageFailed(operation, self.path, "the file was closed")
        self._system._begin(operation, self.path)


@implementer(IFileLock)
class _SimulatedLock:
    def __init__(self, held: set[str], path: str) -> None:
        self._held: set[str] | None = held
        self._path = path

    def release(self) -> None:
        if self._held is not None:
            self._held.discard(self._path)
            self._held = None


@implementer(IFileSystem)
class SimulatedFileSystem:
    """A file system in memory, with crashes and faults. Absolute paths; only ``/`` exists at first.

    :param capacity: bytes that all files may have together; beyond it, writes raise ``StorageFull``.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.operations: list[tuple[str, str]] = []
        """Every operation that was begun, with its path; callers may clear it."""
        self.before: Callable[[str, str], None] | None = None
        """Called before each operation with its name and path. It may raise, record, or block."""
        self.dead = False
        """Whether its process has died: nothing that is asked for happens any more, and raises ``StorageFailed``."""
        self.lost_files = self.torn_files = 0
        """In how many files the crash that it comes from has lost something; and only a part of what was not synced."""
        self._faults: dict[str, tuple[int, str]] = {}
        self._root = _Directory()
        self._locks: set[str] = set()

    # Faults and crashes

    def fail(self, operation: str, nth: int = 1, cause: str = "Input/output error") -> None:
        """Let the ``nth`` ``operation`` from now on raise ``StorageFailed``, once.

        :param operation: a method's name: ``write``, ``sync``, ``sync_dir``, ``rename``, ``read`` and so on. What a
            failed ``sync`` had to make durable never will be, though later ones succeed (hazards §3.1).
        """
        self._faults[operation] = (nth, cause)

    def crash(self, keep: Keep = "none", process_only: bool = False) -> SimulatedFileSystem:
        """Return the file system as it looks after a power failure, or after the death of its process alone.

        This one stays as it is, so that one state can crash in many ways. Locks are free, faults forgotten.

        :param keep: what survives of the sectors that were not synced, and of the names in directories that were
            not: ``none``, ``all``, ``prefix`` (the older half), or a ``random.Random`` that chooses each. A lost
            sector holds what it held before: zeros, if it was new.
        :param process_only: nothing is lost; what was not synced still is not.
        """
        other = SimulatedFileSystem(self.capacity)
        copier = _Copier(None if process_only else keep)
        root = copier.copy(self._root)
        assert isinstance(root, _Directory)
        other._root = root
        other.lost_files, other.torn_files = copier.lost, copier.torn
        return other

    def files(self) -> list[tuple[str, int]]:
        """Return the path and the size of every file."""
        found: list[tuple[str, int]] = []
        pending: list[tuple[str, _Directory]] = [("", self._root)]
        while pending:
            path, directory = pending.pop()
            for name, node in sorted(directory.names.items()):
                if isinstance(node, _Directory):
                    pending.append((f"{path}/{name}", node))
                else:
                    found.append((f"{path}/{name}", len(node.cached)))
        return sorted(found)

    def used(self) -> int:
        """Return the bytes of all files; one with several names counts once."""
        sizes: dict[int, int] = {}
        pending = [self._root]
        while pending:
            for node in pending.pop().names.values():
                if isinstance(node, _Directory):
                    pending.append(node)
                else:
                    sizes[id(node)] = len(node.cached)
        return sum(sizes.values())

    def corrupt(self, path: str, offset: int, data: bytes) -> None:
        """Overwrite bytes behind everybody's back, durably: what a failing disk does."""
        content = self._file("corrupt", path)
        content.own()
        for version in (content.cached, content.durable):
            version[offset : offset + len(data)] = data

    def truncate(self, path: str, size: int) -> None:
        """Cut a file short, durably: what a bad copy does."""
        content = self._file("truncate", path)
        content.own()
        del content.cached[size:]
        del content.durable[size:]

    def _begin(self, operation: str, path: str) -> None:
        self.operations.append((operation, path))
        if self.before is not None:
            self.before(operation, path)
        if self.dead:
            raise StorageFailed(operation, path, "the process is dead")
        left, cause = self._faults.pop(operation, (0, ""))
        if left == 1:
            raise StorageFailed(operation, path, cause)
        if left > 1:
            self._faults[operation] = (left - 1, cause)

    def _grow(self, operation: str, path: str, size: int) -> None:
        if self.capacity is not None and size > 0 and self.used() + size > self.capacity:
            raise StorageFull(operation, path, "No space left on device")

    # Looking up

    def _directory(self, operation: str, path: str) -> _Directory:
        node: _Node | None = self._root
        for part in path.split("/"):
            if part:
                node = node.names.get(part) if isinstance(node, _Directory) else None
        if not isinstance(node, _Directory):
            raise StorageFailed(operation, path, "No such directory")
        return node

    def _place(self, operation: str, path: str) -> tuple[_Directory, str]:
        parent, _, name = path.rstrip("/").rpartition("/")
        return self._directory(operation, parent), name

    def _file(self, operation: str, path: str) -> _Content:
        directory, name = self._place(operation, path)
        node = directory.names.get(name)
        if not isinstance(node, _Content):
            raise StorageFailed(operation, path, "No such file")
        return node

    # IFileSystem

    def mkdir(self, path: str) -> None:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.mkdir`."""
        self._begin("mkdir", path)
        directory, name = self._place("mkdir", path)
        if isinstance(directory.names.get(name), _Content):
            raise StorageFailed("mkdir", path, "it is not a directory")
        if name not in directory.names:
            directory.change({name: _Directory()})

    def create(self, path: str) -> IFile:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.create`."""
        self._begin("create", path)
        directory, name = self._place("create", path)
        if name in directory.names:
            raise StorageFailed("create", path, "File exists")
        content = _Content()
        directory.change({name: content})
        return _SimulatedFile(self, path, content)

    def open(self, path: str) -> IFile:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.open`."""
        self._begin("open", path)
        return _SimulatedFile(self, path, self._file("open", path))

    def read(self, path: str, offset: int, size: int) -> bytes:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.read`."""
        self._begin("read", path)
        return bytes(self._file("read", path).cached[offset : offset + size])

    def size(self, path: str) -> int:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.size`."""
        return len(self._file("size", path).cached)

    def exists(self, path: str) -> bool:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.exists`."""
        try:
            directory, name = self._place("exists", path)
        except StorageFailed:
            return False
        return not name or name in directory.names

    def list(self, path: str) -> list[str]:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.list`."""
        self._begin("list", path)
        return sorted(self._directory("list", path).names)

    def rename(self, old: str, new: str) -> None:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.rename`."""
        self._begin("rename", old)
        directory, name = self._place("rename", old)
        target, new_name = self._place("rename", new)
        if target is not directory:
            raise StorageFailed("rename", old, "the new name is in another directory")
        if name not in directory.names:
            raise StorageFailed("rename", old, "No such file or directory")
        directory.change({new_name: directory.names[name], name: None})

    def link(self, old: str, new: str) -> None:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.link`."""
        self._begin("link", new)
        content = self._file("link", old)
        directory, name = self._place("link", new)
        if name in directory.names:
            raise StorageFailed("link", new, "File exists")
        directory.change({name: content})

    def free(self, path: str) -> int:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.free`. Without a capacity it is a great number."""
        self._directory("free", path)
        return _ENDLESS if self.capacity is None else max(0, self.capacity - self.used())

    def remove(self, path: str) -> None:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.remove`."""
        self._begin("remove", path)
        directory, name = self._place("remove", path)
        node = directory.names.get(name)
        if node is None:
            raise StorageFailed("remove", path, "No such file or directory")
        if isinstance(node, _Directory) and node.names:
            raise StorageFailed("remove", path, "Directory not empty")
        directory.change({name: None})

    def sync_dir(self, path: str) -> None:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.sync_dir`."""
        self._begin("sync_dir", path)
        self._directory("sync_dir", path).sync()

    def lock(self, path: str) -> IFileLock:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.lock`."""
        self._begin("lock", path)
        directory, name = self._place("lock", path)
        if path in self._locks:
            raise StorageLocked(path, "another store in this simulation")
        if name not in directory.names:
            directory.change({name: _Content()})
        self._locks.add(path)
        return _SimulatedLock(self._locks, path)
