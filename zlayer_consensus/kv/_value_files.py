"""Files of values: their bytes, and everything about them that blocks.

A file begins with its magic number. Then come records, one behind the other, up to the end: CRC-32 of all that follows
(u32), length of the key (u32), length of the value (u32), the revision that set it (u64), all little-endian, the key,
and the value. A revision changes a key once at most, so key and revision tell a value from all others: what stands in
the wrong place is not taken for what belongs there (S-05).
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import struct
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from ..errors import ConfigError, StorageCorrupt, StorageError, StorageFailed, StorageFull
from ..storage import IFile, IFileSystem, StateFile

__all__ = [
    "MAGIC",
    "Append",
    "Done",
    "FileWriter",
    "Job",
    "Place",
    "Remove",
    "Scanned",
    "Seal",
    "begin_directory",
    "link_files",
    "path_of",
    "read_value",
    "record_bytes",
    "scan",
]

MAGIC: Final = b"zvalues\x01"
_HEADER: Final = struct.Struct("<IIIQ")
_CHECKED: Final = struct.Struct("<IIQ")
_NAME: Final = re.compile(r"[0-9]+\.values")
_WRITE_BYTES: Final = 1 << 20
"""Most bytes that are put together for one write."""


def record_bytes(key: bytes, value_size: int) -> int:
    """Return how many bytes of a file a value takes."""
    return _HEADER.size + len(key) + value_size


def path_of(directory: str, number: int) -> str:
    """Return a file's path."""
    return posixpath.join(directory, f"{number}.values")


def _checksum(checked: bytes, key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key, zlib.crc32(checked)))


class Append(NamedTuple):
    """A value is to be written.

    :param number, path: the file.
    :param offset: where in it; where the one before ended.
    :param locator: the record's, by which it is known until then.
    """

    number: int
    path: str
    offset: int
    key: bytes
    revision: int
    value: bytes
    locator: bytes


class Seal(NamedTuple):
    """A file is complete: it is to be synced and closed."""

    number: int


class Remove(NamedTuple):
    """A file is not needed any more."""

    number: int
    path: str


Job = Append | Seal | Remove


class Done(NamedTuple):
    """What was done of some jobs.

    :param sealed: the files that were sealed, in order.
    :param left: why some could not be removed.
    :param full: why some of the jobs have to wait for space; None: all were done.
    """

    sealed: list[StateFile]
    left: list[StorageError]
    full: StorageFull | None


class FileWriter:
    """Appends to files, seals and removes them. Files that are being written to stay open."""

    def __init__(self, files: IFileSystem) -> None:
        self._files = files
        self._open: dict[int, _Open] = {}
        self._todo: deque[Job] = deque()

    def run(self, jobs: Iterable[Job]) -> Done:
        """Do what an earlier call had to leave for want of space, and these jobs.

        :raises StorageFailed: if the disk failed.
        """
        self._todo.extend(jobs)
        done = Done([], [], None)
        try:
            while self._todo:
                self._do(self._todo[0], done)
            for each in self._open.values():
                each.flush()
        except StorageFull as error:
            # Nothing was synced: what is there in part is written again, at the same place (S-10).
            return done._replace(full=error)
        return done

    def _do(self, job: Job, done: Done) -> None:
        """Do one job. If there is no space, it stays the first, or what it appends waits in the open file."""
        if isinstance(job, Append):
            file = self._append(job)
            self._todo.popleft()
            file.flush(_WRITE_BYTES)
            return
        if isinstance(job, Seal):
            done.sealed.append(self._open[job.number].seal())
            del self._open[job.number]
        else:
            try:
                self._remove(job)
            except StorageError as error:
                done.left.append(error)
        self._todo.popleft()

    def _append(self, job: Append) -> _Open:
        found = self._open.get(job.number)
        if found is None:
            found = self._open[job.number] = _Open(self._files.create(job.path))
        assert found.end == job.offset, f"{job.path} ends at {found.end}, not at {job.offset}"
        checked = _CHECKED.pack(len(job.key), len(job.value), job.revision)
        crc = _checksum(checked, job.key, job.value)
        found.add(_HEADER.pack(crc, len(job.key), len(job.value), job.revision), job.key, job.value)
        return found

    def _remove(self, job: Remove) -> None:
        found = self._open.pop(job.number, None)
        if found is not None:
            found.file.close()
        self._files.remove(job.path)

    def close(self) -> None:
        """Close what is open, as it is."""
        for each in self._open.values():
            each.file.close()
        self._open.clear()


class _Open:
    """A file that is being written."""

    def __init__(self, file: IFile) -> None:
        self.file = file
        self.end = 0
        self._written = 0
        self._pieces: list[bytes] = []
        self._sha = hashlib.sha256()
        self.add(MAGIC)

    def add(self, *pieces: bytes) -> None:
        self._pieces += pieces
        self.end += sum(map(len, pieces))

    def flush(self, least: int = 1) -> None:
        """Write what waits, if it is at least so much; if there is no space, it waits on."""
        if self.end - self._written >= least:
            data = b"".join(self._pieces)
            self.file.write(self._written, data)
            self._sha.update(data)
            self._written += len(data)
            self._pieces.clear()

    def seal(self) -> StateFile:
        self.flush()
        try:
            self.file.sync()
        except StorageFull as error:
            # Not as a full disk: after a sync that failed, nobody knows what is there (S-12).
            raise StorageFailed(error.operation, error.path, error.cause) from error
        self.file.close()
        return StateFile(self.file.path, self._written, self._sha.digest())


class Place(NamedTuple):
    """Where a value is, and whose it is.

    :param offset: where its record begins.
    :param size: the value's.
    :param keep: how many of its first bytes are wanted.
    """

    path: str
    offset: int
    key: bytes
    revision: int
    size: int
    keep: int


def read_value(files: IFileSystem, place: Place) -> bytes:
    """Read a value.

    :raises StorageCorrupt: if it is not there, or damaged (S-02).
    :raises StorageFailed: if the disk failed.
    """
    path, offset, key = place.path, place.offset, place.key
    which = f"value of {key!r} at revision {place.revision}"
    length = record_bytes(key, place.size)
    data = files.read(path, offset, length)
    if len(data) < length:
        raise StorageCorrupt(path, offset, f"the {which} is cut off after {len(data)} of {length} bytes")
    crc, key_size, size, revision = _HEADER.unpack_from(data)
    value = data[_HEADER.size + len(key) :]
    if (key_size, size, revision) != (len(key), place.size, place.revision) or not data.startswith(key, _HEADER.size):
        raise StorageCorrupt(path, offset, f"it is not the {which}")
    if _checksum(data[4 : _HEADER.size], key, value) != crc:
        raise StorageCorrupt(path, offset, f"the checksum of the {which} does not match")
    return value[: place.keep]


class Scanned(NamedTuple):
    """A value as it stands in a file."""

    offset: int
    key: bytes
    revision: int
    value: bytes


def scan(files: IFileSystem, path: str, offset: int, end: int, limit: int) -> tuple[list[Scanned], int]:
    """Read the records from ``offset`` on, at least one; return them, and where the next one begins.

    :param end: where the file ends.
    :param limit: how many bytes to read, unless a record has more.
    :raises StorageCorrupt: if one is damaged.
    """
    data = files.read(path, offset, min(limit, end - offset))
    found: list[Scanned] = []
    at = 0
    while offset + at < end:
        length = _length(path, data, at, offset, end)
        if len(data) - at < length:
            if found:
                break
            data = files.read(path, offset, length)
            if len(data) < length:
                raise StorageCorrupt(path, offset, f"the file ends before its {end} bytes")
            continue
        crc, key_size, _, revision = _HEADER.unpack_from(data, at)
        key_at = at + _HEADER.size
        key, value = data[key_at : key_at + key_size], data[key_at + key_size : at + length]
        if _checksum(data[at + 4 : key_at], key, value) != crc:
            raise StorageCorrupt(path, offset + at, "the checksum of a value does not match")
        found.append(Scanned(offset + at, key, revision, value))
        at += length
    return found, offset + at


def _length(path: str, data: bytes, at: int, offset: int, end: int) -> int:
    """Return how long the record at a place is, as far as can be seen: its header, or all of it."""
    length = _HEADER.size
    if len(data) - at >= length:
        _, key_size, size, _ = _HEADER.unpack_from(data, at)
        length += key_size + size
    if offset + at + length > end:
        raise StorageCorrupt(path, offset + at, "a value reaches beyond the end of the file")
    return length


def begin_directory(files: IFileSystem, directory: str) -> None:
    """Make the directory, and empty it of what an earlier process has left.

    :raises ConfigError: if something else is in it.
    """
    files.mkdir(directory)
    names = files.list(directory)
    for name in names:
        if not _NAME.fullmatch(name) and not name.endswith(".tmp"):
            raise ConfigError("directory", directory, f"is for files of values alone; move {name!r} elsewhere")
    for name in names:
        files.remove(posixpath.join(directory, name))


def link_files(files: IFileSystem, links: Sequence[tuple[str, str]]) -> None:
    """Give files further names: pairs of the old and the new one."""
    for old, new in links:
        files.link(old, new)
