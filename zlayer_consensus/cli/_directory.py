"""A node's data directory, seen from outside: nothing is locked, nothing is written."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from ..errors import StorageCorrupt, StorageError, StorageFailed
from ..storage import Identity, IFileSystem, RealFileSystem
from ..storage.inspection import Findings, Layout, NoLog, ReadOnlyFileSystem, examine_log

__all__ = ["DataDirectory", "RegularFiles", "is_held"]

_T = TypeVar("_T")
_PAUSE = 0.05
_PATIENCE = 20
"""How often what does not check is read again while a node is running. No write is half done for a second."""


def is_held(path: str, locks: str = "/proc/locks") -> bool | None:
    """Say whether somebody holds the lock of a file, without touching it; None if that cannot be seen.

    Locks of processes in other containers are not shown by the system.

    :param locks: where the system lists its locks.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    try:
        with open(locks, encoding="ascii") as listing:
            lines = listing.readlines()
    except OSError:
        return None
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    for line in lines:
        fields = line.split()
        if len(fields) < 6 or fields[1:4:2] != ["FLOCK", "WRITE"]:
            continue
        where, _, inode = fields[5].rpartition(":")
        # Some file systems show another device than stat does; the holder's id in the file tells then.
        if inode == str(found.st_ino) and (where == device or fields[4] == _holder(path)):
            return True
    return False


def _holder(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(32).decode("ascii", "replace").strip()
    except OSError:
        return ""


class RegularFiles(RealFileSystem):
    """Reads from regular files alone: to open a pipe would wait for whoever writes to it."""

    def read(self, path: str, offset: int, size: int) -> bytes:
        """See :meth:`IFileSystem.read`."""
        with suppress(OSError):
            # What is not there, a directory or a link the system refuses by itself, in better words.
            mode = os.stat(path, follow_symlinks=False).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
                raise StorageFailed("read", path, "it is not a regular file")
        return super().read(path, offset, size)


class DataDirectory:
    """A directory with a log, and one with snapshots, usually the same.

    :param path: the log store's directory.
    :param snapshots: the state machine's, if it is another.
    :param sleep: waits some seconds.
    """

    def __init__(
        self,
        path: str,
        snapshots: str | None = None,
        *,
        files: IFileSystem | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = path.rstrip("/") or "/"
        self.snapshots = (snapshots or path).rstrip("/") or "/"
        self.files: IFileSystem = ReadOnlyFileSystem(RegularFiles() if files is None else files)
        self.layout = Layout(self.path)
        self.running = is_held(self.layout.lock)
        self._sleep = sleep
        self._spot = (-1, 0)

    def name(self, path: str) -> str:
        """Return a path as the user thinks of it: relative to the directory."""
        prefix = f"{self.path}/"
        return path[len(prefix) :] if path.startswith(prefix) else path

    def require(self) -> None:
        """See that there is something to look at.

        :raises NoLog: if there is no log, nor anything left of one.
        """
        files = self.files
        if not files.exists(self.path):
            raise NoLog(f"{self.path} does not exist")
        if not os.path.isdir(self.path):
            raise NoLog(f"{self.path} is not a directory")
        if not files.exists(f"{self.path}/identity") and not files.exists(self.layout.wal):
            raise NoLog(f"{self.path} holds no log: it has neither identity nor wal")
        if self.snapshots != self.path and not os.path.isdir(self.snapshots):
            raise NoLog(f"{self.snapshots}, where the snapshots are to be, is no directory")

    def examine(self) -> tuple[Identity, Findings]:
        """Return what an opening would find.

        A running node changes what is read while it is read. So what does not check is read again, until it does or
        time is up.

        :raises NoLog: if an opening would begin a new log.
        :raises StorageError: if an opening would refuse.
        """
        self.require()
        for last_try in self._tries():
            try:
                identity, found = examine_log(self.files, self.path)
            except StorageError:
                if last_try:
                    raise
            else:
                if last_try or not found.tail.torn_end:
                    return identity, found
            self._sleep(_PAUSE)
        raise AssertionError("the last try returns or raises")

    def _tries(self) -> Iterator[bool]:
        # The lock may be hidden, as it is in another container: so there is always a second look.
        count = _PATIENCE if self.running else 1
        for _ in range(count):
            yield False
        yield True

    def look_again(self, offset: int) -> bool:
        """Say whether bytes at an offset that do not check may be in the middle of being written; waits a moment."""
        spot, count = self._spot
        count = count + 1 if spot == offset else 1
        self._spot = offset, count
        if count > (_PATIENCE if self.running else 1):
            return False
        self._sleep(_PAUSE)
        return True

    def is_gone(self, path: str) -> bool:
        """Say whether a file that was listed is gone: a running node has purged it."""
        return not self.files.exists(path)

    @contextmanager
    def purging(self, note: Callable[[str], None]) -> Iterator[None]:
        """Go on behind the block, with a note, if a file in it is purged by a running node before it is read."""
        try:
            yield
        except StorageFailed as error:
            if not self.is_gone(error.path):
                raise
            note(f"{self.name(error.path)} was purged meanwhile")

    def again(self, attempt: Callable[[], _T], *, contradicts: bool = False) -> _T:
        """Return what a call returns; call it again if a running node has purged a file that it was about to read.

        :param contradicts: also if it finds damage, as it compares what may change between one look and the next.
        :raises StorageError: if it fails each time.
        """
        for last_try in self._tries():
            try:
                return attempt()
            except StorageError as error:
                gone = isinstance(error, StorageFailed) and self.is_gone(error.path)
                if last_try or not (gone or (contradicts and isinstance(error, StorageCorrupt))):
                    raise
            self._sleep(_PAUSE)
        raise AssertionError("the last try returns or raises")
