"""The file-system seam: everything that the file backends ask of an operating system, and the real one.

All calls block, and run on an executor. Nothing here retries a failed write or sync: after one, what the page cache
says and what the disk holds may differ for ever (hazards §3.1).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zope.interface import Attribute, Interface, implementer

from ..errors import StorageError, StorageFailed, StorageFull, StorageLocked

__all__ = ["IFile", "IFileLock", "IFileSystem", "RealFileSystem"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_ZEROS = bytes(1 << 20)


class IFile(Interface):
    """A file that is open for writing at offsets. Not for use by two threads at once."""

    path: str = Attribute("Its path when it was opened; a rename does not change it.")

    def write(offset: int, data: bytes) -> None:
        """Write all of ``data`` at ``offset``; the file grows as needed. Durable only after ``sync``.

        :raises StorageFull: if there is no space; how much was written is unknown.
        :raises StorageFailed: if the disk failed.
        """

    def zero(offset: int, size: int) -> None:
        """Write ``size`` zero bytes at ``offset``, so that later writes there need no new space."""

    def sync() -> None:
        """Make what was written durable, the file's size included (fdatasync). Its name is ``sync_dir``'s matter."""

    def close() -> None:
        """Release the file. Idempotent. Makes nothing durable."""


class IFileLock(Interface):
    """A lock that is held."""

    def release() -> None:
        """Give the lock back. Idempotent. The end of the process does it too."""


class IFileSystem(Interface):
    """What the file backends ask of a file system. Paths are absolute or relative strings, parts joined by ``/``.

    Every method may raise :class:`~zlayer_consensus.errors.StorageFailed`, with the operation and the path;
    :class:`~zlayer_consensus.errors.StorageFull` is the kind for a full disk or quota.
    """

    def mkdir(path: str) -> None:
        """Make a directory for the owner alone; nothing happens if it exists. ``sync_dir`` of the parent keeps it.

        :raises StorageFailed: if what exists is no directory, is another user's, or others may write to it (S-20).
        """

    def create(path: str) -> IFile:
        """Make a new, empty file for the owner alone, and open it for writing. It must not exist."""

    def open(path: str) -> IFile:
        """Open an existing file for writing. Symbolic links are not followed."""

    def read(path: str, offset: int, size: int) -> bytes:
        """Read ``size`` bytes from ``offset``; fewer only where the file ends."""

    def size(path: str) -> int:
        """Return a file's size in bytes."""

    def exists(path: str) -> bool:
        """Say whether there is a file or directory."""

    def list(path: str) -> list[str]:
        """Return the names in a directory, sorted."""

    def rename(old: str, new: str) -> None:
        """Give a file or directory another name in the same directory, in place of what had it. Atomic."""

    def link(old: str, new: str) -> None:
        """Give a file a second name, perhaps in another directory; it takes no space. Both names are the same file.

        ``sync_dir`` of the new name's directory keeps it. The new name must not exist.
        """

    def remove(path: str) -> None:
        """Remove a file or an empty directory. A file is gone with the last of its names."""

    def free(path: str) -> int:
        """Return how many bytes could still be written, roughly, to new files in a directory."""

    def sync_dir(path: str) -> None:
        """Make the names in a directory durable: creations, renames and removals up to now (J-96)."""

    def lock(path: str) -> IFileLock:
        """Take the exclusive lock that the file stands for, made if needed, and write this process's id into it.

        :raises StorageLocked: with the holder, if another process or another caller has it.
        """


@contextmanager
def _translated(operation: str, path: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        kind = StorageFull if error.errno in _FULL else StorageFailed
        raise kind(operation, path, error.strerror or str(error)) from error


def _full_sync(fd: int) -> None:
    # Only fcntl reaches the platter on macOS, which has no fdatasync either.
    fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined, unused-ignore]


_sync_fd: Callable[[int], None] = _full_sync if hasattr(fcntl, "F_FULLFSYNC") else os.fdatasync


def _write_all(fd: int, data: bytes, offset: int) -> None:
    # Python itself goes on after EINTR; a short write is ours to continue (S-14).
    written = os.pwrite(fd, data, offset)
    if written == len(data):
        return
    rest = memoryview(data)
    while True:
        if written == 0:
            raise OSError(errno.EIO, "a write took no bytes")
        rest, offset = rest[written:], offset + written
        if not rest:
            return
        written = os.pwrite(fd, rest, offset)


@implementer(IFile)
class _RealFile:
    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def write(self, offset: int, data: bytes) -> None:
        with _translated("write", self.path):
            _write_all(self._fd, data, offset)

    def zero(self, offset: int, size: int) -> None:
        with _translated("write", self.path):
            end = offset + size
            while offset < end:
                piece = _ZEROS[: end - offset]
                _write_all(self._fd, piece, offset)
                offset += len(piece)

    def sync(self) -> None:
        with _translated("sync", self.path):
            _sync_fd(self._fd)

    def close(self) -> None:
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        with _translated("close", self.path):
            os.close(fd)


@implementer(IFileLock)
class _RealLock:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


@implementer(IFileSystem)
class RealFileSystem:
    """The operating system's file system. Files get mode 0600, directories 0700."""

    def mkdir(self, path: str) -> None:
        """See :meth:`IFileSystem.mkdir`."""
        with _translated("mkdir", path):
            try:
                os.mkdir(path, 0o700)
                return
            except FileExistsError:
                found = os.stat(path)
            if not stat.S_ISDIR(found.st_mode):
                raise StorageFailed("mkdir", path, "it is not a directory")
            if found.st_uid != os.geteuid():
                raise StorageFailed("mkdir", path, f"it belongs to user {found.st_uid}, not to {os.geteuid()}")
            if found.st_mode & stat.S_IWOTH:
                raise StorageFailed("mkdir", path, "every user may write to it")

    def create(self, path: str) -> IFile:
        """See :meth:`IFileSystem.create`."""
        with _translated("create", path):
            return _RealFile(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))

    def open(self, path: str) -> IFile:
        """See :meth:`IFileSystem.open`."""
        with _translated("open", path):
            return _RealFile(path, os.open(path, os.O_WRONLY | os.O_NOFOLLOW))

    def read(self, path: str, offset: int, size: int) -> bytes:
        """See :meth:`IFileSystem.read`."""
        with _translated("read", path):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                data = os.pread(fd, size, offset)
                if len(data) == size or not data:
                    return data
                pieces = [data]
                got = len(data)
                while got < size and (data := os.pread(fd, size - got, offset + got)):
                    pieces.append(data)
                    got += len(data)
                return b"".join(pieces)
            finally:
                os.close(fd)

    def size(self, path: str) -> int:
        """See :meth:`IFileSystem.size`."""
        with _translated("size", path):
            return os.stat(path, follow_symlinks=False).st_size

    def exists(self, path: str) -> bool:
        """See :meth:`IFileSystem.exists`."""
        with _translated("exists", path):
            try:
                os.stat(path, follow_symlinks=False)
            except FileNotFoundError:
                return False
            return True

    def list(self, path: str) -> list[str]:
        """See :meth:`IFileSystem.list`."""
        with _translated("list", path):
            return sorted(os.listdir(path))

    def rename(self, old: str, new: str) -> None:
        """See :meth:`IFileSystem.rename`."""
        with _translated("rename", old):
            os.replace(old, new)

    def link(self, old: str, new: str) -> None:
        """See :meth:`IFileSystem.link`. Not every file system can, and none across its border."""
        with _translated("link", new):
            os.link(old, new, follow_symlinks=False)

    def free(self, path: str) -> int:
        """See :meth:`IFileSystem.free`."""
        with _translated("free", path):
            found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def remove(self, path: str) -> None:
        """See :meth:`IFileSystem.remove`."""
        with _translated("remove", path):
            if stat.S_ISDIR(os.stat(path, follow_symlinks=False).st_mode):
                os.rmdir(path)
            else:
                os.unlink(path)

    def sync_dir(self, path: str) -> None:
        """See :meth:`IFileSystem.sync_dir`."""
        with _translated("sync", path):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def lock(self, path: str) -> IFileLock:
        """See :meth:`IFileSystem.lock`."""
        with _translated("lock", path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
                os.close(fd)
                raise StorageLocked(path, f"process {holder}" if holder else "another process") from None
            except OSError:
                os.close(fd)
                raise
            os.ftruncate(fd, 0)
            _write_all(fd, f"{os.getpid()}\n".encode("ascii"), 0)
            return _RealLock(fd)
