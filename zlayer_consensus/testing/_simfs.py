"""A file system in memory that knows what would be left of it after a power failure.

It keeps two versions of everything: what programs see, and what is on the disk. Between the two lie writes per
512-byte sector, file sizes, and the names in each directory, each of which may or may not survive a crash.
"""

from __future__ import annotations

from collections.abc import Callable

from zope.interface import implementer

from ..errors import StorageFailed, StorageFull, StorageLocked
from ..storage import IFile, IFileLock, IFileSystem
from ._simnodes import SECTOR, Content, Copier, Directory, Keep, Node, Unsynced

__all__ = ["SECTOR", "Interrupted", "Keep", "SimulatedFileSystem", "Unsynced"]

_ENDLESS = 1 << 60


class Interrupted(StorageFailed):
    """The process dies, or the machine loses its power, before an operation: what was written waits to be synced."""


@implementer(IFile)
class _SimulatedFile:
    def __init__(self, system: SimulatedFileSystem, path: str, content: Content) -> None:
        self.path = path
        self._system = system
        self._content = content
        self._closed = False

    def write(self, offset: int, data: bytes) -> None:
        self._check("write")
        self._system._grow("write", self.path, offset + len(data) - len(self._content.cached))
        self._content.write(offset, data, self._system._changed())

    def zero(self, offset: int, size: int) -> None:
        self.write(offset, bytes(size))

    def sync(self) -> None:
        try:
            self._check("sync")
        except Interrupted:
            raise
        except StorageFailed:
            # As ext4, XFS and Btrfs do: the pages count as clean, though the disk never got them.
            self._content.dirty.clear()
            self._system._changed()
            raise
        if self._content.dirty:
            self._system._changed()
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
        self.changes = 0
        """Grows with every change of what programs see, or of what is on the disk."""
        self.dead = False
        """Whether its process has died: nothing that is asked for happens any more, and raises ``StorageFailed``."""
        self.lost_files = self.torn_files = 0
        """In how many files the crash that it comes from has lost something; and only a part of what was not synced."""
        self.lost_renames = 0
        """How many renames it has lost."""
        self._faults: dict[str, tuple[int, str]] = {}
        self._root = Directory()
        self._locks: set[str] = set()

    # Faults and crashes

    def fail(self, operation: str, nth: int = 1, cause: str = "Input/output error") -> None:
        """Let the ``nth`` ``operation`` from now on raise ``StorageFailed``, once.

        :param operation: a method's name: ``write``, ``sync``, ``sync_dir``, ``rename``, ``read`` and so on. What a
            failed ``sync`` had to make durable never will be, though later ones succeed (hazards §3.1).
        """
        self._faults[operation] = (nth, cause)

    @property
    def failing(self) -> bool:
        """Whether there are operations yet to fail."""
        return bool(self._faults)

    def crash(self, keep: Keep = "none", process_only: bool = False) -> SimulatedFileSystem:
        """Return the file system as it looks after a power failure, or after the death of its process alone.

        This one stays as it is, so that one state can crash in many ways. Locks are free, faults forgotten.

        :param keep: what survives of the sectors that were not synced, and of the names in directories that were
            not: ``none``, ``all``, ``prefix`` (the older half), a ``random.Random`` that chooses each, or a set of
            those that :meth:`unsynced` returns. A lost sector holds what it held before: zeros, if it was new.
        :param process_only: nothing is lost; what was not synced still is not.
        """
        other = SimulatedFileSystem(self.capacity)
        copier = Copier(None if process_only else keep)
        root = copier.copy(self._root)
        assert isinstance(root, Directory)
        other._root = root
        other.lost_files, other.torn_files, other.lost_renames = copier.lost, copier.torn, copier.renames
        return other

    def unsynced(self) -> list[Unsynced]:
        """Return all that a power failure would take or leave, oldest first."""
        found: dict[Unsynced, None] = {}
        seen: set[int] = set()
        pending: list[tuple[str, Node]] = [("", self._root)]
        while pending:
            path, node = pending.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            found.update(dict.fromkeys(node.unsynced(path or "/")))
            if isinstance(node, Directory):
                pending.extend((f"{path}/{name}", child) for name, child in node.children())
        return sorted(found, key=lambda each: each.stamp)

    def files(self) -> list[tuple[str, int]]:
        """Return the path and the size of every file."""
        found: list[tuple[str, int]] = []
        pending: list[tuple[str, Directory]] = [("", self._root)]
        while pending:
            path, directory = pending.pop()
            for name, node in sorted(directory.names.items()):
                if isinstance(node, Directory):
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
                if isinstance(node, Directory):
                    pending.append(node)
                else:
                    sizes[id(node)] = len(node.cached)
        return sum(sizes.values())

    def peek(self, path: str, offset: int, size: int) -> bytes:
        """Read what no program asks for: it is no operation, and nothing can happen at it."""
        return bytes(self._file("read", path).cached[offset : offset + size])

    def corrupt(self, path: str, offset: int, data: bytes) -> None:
        """Overwrite bytes behind everybody's back, durably: what a failing disk does."""
        content = self._file("corrupt", path)
        content.own()
        for version in (content.cached, content.durable):
            version[offset : offset + len(data)] = data
        self._changed()

    def truncate(self, path: str, size: int) -> None:
        """Cut a file short, durably: what a bad copy does."""
        content = self._file("truncate", path)
        content.own()
        del content.cached[size:]
        del content.durable[size:]
        self._changed()

    def _begin(self, operation: str, path: str) -> None:
        self.operations.append((operation, path))
        if self.before is not None:
            self.before(operation, path)
        if self.dead:
            raise Interrupted(operation, path, "the process is dead")
        left, cause = self._faults.pop(operation, (0, ""))
        if left == 1:
            raise StorageFailed(operation, path, cause)
        if left > 1:
            self._faults[operation] = (left - 1, cause)

    def _changed(self) -> int:
        """Count a change, and return its number."""
        self.changes += 1
        return self.changes

    def _grow(self, operation: str, path: str, size: int) -> None:
        if self.capacity is not None and size > 0 and self.used() + size > self.capacity:
            raise StorageFull(operation, path, "No space left on device")

    # Looking up

    def _directory(self, operation: str, path: str) -> Directory:
        node: Node | None = self._root
        for part in path.split("/"):
            if part:
                node = node.names.get(part) if isinstance(node, Directory) else None
        if not isinstance(node, Directory):
            raise StorageFailed(operation, path, "No such directory")
        return node

    def _place(self, operation: str, path: str) -> tuple[Directory, str]:
        parent, _, name = path.rstrip("/").rpartition("/")
        return self._directory(operation, parent), name

    def _file(self, operation: str, path: str) -> Content:
        directory, name = self._place(operation, path)
        node = directory.names.get(name)
        if not isinstance(node, Content):
            raise StorageFailed(operation, path, "No such file")
        return node

    # IFileSystem

    def mkdir(self, path: str) -> None:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.mkdir`."""
        self._begin("mkdir", path)
        directory, name = self._place("mkdir", path)
        if isinstance(directory.names.get(name), Content):
            raise StorageFailed("mkdir", path, "it is not a directory")
        if name not in directory.names:
            directory.change({name: Directory()}, self._changed())

    def create(self, path: str) -> IFile:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.create`."""
        self._begin("create", path)
        directory, name = self._place("create", path)
        if name in directory.names:
            raise StorageFailed("create", path, "File exists")
        content = Content()
        directory.change({name: content}, self._changed())
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
        directory.change({new_name: directory.names[name], name: None}, self._changed())

    def link(self, old: str, new: str) -> None:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.link`."""
        self._begin("link", new)
        content = self._file("link", old)
        directory, name = self._place("link", new)
        if name in directory.names:
            raise StorageFailed("link", new, "File exists")
        directory.change({name: content}, self._changed())

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
        if isinstance(node, Directory) and node.names:
            raise StorageFailed("remove", path, "Directory not empty")
        directory.change({name: None}, self._changed())

    def sync_dir(self, path: str) -> None:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.sync_dir`."""
        self._begin("sync_dir", path)
        directory = self._directory("sync_dir", path)
        if directory.changes:
            self._changed()
        directory.sync()

    def lock(self, path: str) -> IFileLock:
        """See :meth:`~zlayer_consensus.storage.IFileSystem.lock`."""
        self._begin("lock", path)
        directory, name = self._place("lock", path)
        if path in self._locks:
            raise StorageLocked(path, "another store in this simulation")
        if name not in directory.names:
            directory.change({name: Content()}, self._changed())
        self._locks.add(path)
        return _SimulatedLock(self._locks, path)
