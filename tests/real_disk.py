"""A directory of the real file system in the place of a simulated disk, so that the same tests run on both."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from typing import Any

from zope.interface import implementer

from zlayer_consensus.storage import IFile, IFileLock, IFileSystem, RealFileSystem
from zlayer_consensus.testing import SimulatedFileSystem

__all__ = ["RealDisk"]


@implementer(IFileSystem)
class RealDisk(SimulatedFileSystem):
    """Everything is done by :class:`RealFileSystem`, below a directory that is the root.

    Operations are noted, and can be made to fail, as on a simulated disk. What a power failure would take cannot be
    told here: a crash is the death of the process, and leaves a copy of all that is there.

    :param place: where the directories of this disk and its copies are; an empty one.
    """

    def __init__(self, place: str, numbers: itertools.count[int] | None = None) -> None:
        super().__init__()
        self.place = place
        self._numbers = itertools.count() if numbers is None else numbers
        self.root = os.path.join(place, str(next(self._numbers)))
        self._real = RealFileSystem()
        self._held: list[Callable[[], None]] = []

    def die(self) -> None:
        """Close every file, and give every lock back, as the end of a process does."""
        held, self._held = self._held, []
        for close in held:
            close()

    @classmethod
    def make(cls, place: str) -> RealDisk:
        """Return an empty one."""
        disk = cls(place)
        os.mkdir(disk.root)
        return disk

    def crash(self, keep: Any = "none", process_only: bool = False) -> RealDisk:
        """Return a copy."""
        other = RealDisk(self.place, self._numbers)
        other._held = self._held
        shutil.copytree(self.root, other.root, copy_function=shutil.copyfile)
        return other

    def files(self) -> list[tuple[str, int]]:
        """See :meth:`SimulatedFileSystem.files`."""
        found = []
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                found.append((path.removeprefix(self.root), os.path.getsize(path)))
        return sorted(found)

    def corrupt(self, path: str, offset: int, data: bytes) -> None:
        """See :meth:`SimulatedFileSystem.corrupt`."""
        with open(self.root + path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def truncate(self, path: str, size: int) -> None:
        """See :meth:`SimulatedFileSystem.truncate`."""
        os.truncate(self.root + path, size)

    # IFileSystem

    def mkdir(self, path: str) -> None:
        """See IFileSystem."""
        self._begin("mkdir", path)
        self._real.mkdir(self.root + path)

    def create(self, path: str) -> IFile:
        """See IFileSystem."""
        self._begin("create", path)
        return self._opened(path, self._real.create(self.root + path))

    def open(self, path: str) -> IFile:
        """See IFileSystem."""
        self._begin("open", path)
        return self._opened(path, self._real.open(self.root + path))

    def _opened(self, path: str, file: IFile) -> IFile:
        self._held.append(file.close)
        return _RealDiskFile(self, path, file)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """See IFileSystem."""
        self._begin("read", path)
        return self._real.read(self.root + path, offset, size)

    def size(self, path: str) -> int:
        """See IFileSystem."""
        return self._real.size(self.root + path)

    def exists(self, path: str) -> bool:
        """See IFileSystem."""
        return self._real.exists(self.root + path)

    def list(self, path: str) -> list[str]:
        """See IFileSystem."""
        self._begin("list", path)
        return self._real.list(self.root + path)

    def rename(self, old: str, new: str) -> None:
        """See IFileSystem."""
        self._begin("rename", old)
        self._real.rename(self.root + old, self.root + new)

    def link(self, old: str, new: str) -> None:
        """See IFileSystem."""
        self._begin("link", new)
        self._real.link(self.root + old, self.root + new)

    def free(self, path: str) -> int:
        """See IFileSystem."""
        return self._real.free(self.root + path)

    def remove(self, path: str) -> None:
        """See IFileSystem."""
        self._begin("remove", path)
        self._real.remove(self.root + path)

    def sync_dir(self, path: str) -> None:
        """See IFileSystem."""
        self._begin("sync_dir", path)
        self._real.sync_dir(self.root + path)

    def lock(self, path: str) -> IFileLock:
        """See IFileSystem."""
        self._begin("lock", path)
        lock = self._real.lock(self.root + path)
        self._held.append(lock.release)
        return lock


@implementer(IFile)
class _RealDiskFile:
    def __init__(self, disk: RealDisk, path: str, file: IFile) -> None:
        self.path = path
        self._disk = disk
        self._file = file

    def write(self, offset: int, data: bytes) -> None:
        self._disk._begin("write", self.path)
        self._file.write(offset, data)

    def zero(self, offset: int, size: int) -> None:
        self._disk._begin("write", self.path)
        self._file.zero(offset, size)

    def sync(self) -> None:
        self._disk._begin("sync", self.path)
        self._file.sync()

    def close(self) -> None:
        self._file.close()
