"""Snapshots in directories. Everything here blocks, and runs on an executor, one call at a time.

``snap/<index>-<term>/`` holds the parts ``0``, ``1``, … and ``manifest``. It is made under a name that ends in
``.tmp``, and gets its own by a rename when every file and its names are durable: so what has that name is whole, and
anything wrong with it is damage, not an unfinished write.

Parts that are files of the state machine are second names of files that it has elsewhere: no byte of them is copied. So
what has become of such a file has become of it in every snapshot that names it.
"""

from __future__ import annotations

import hashlib
import itertools
import posixpath
import re
from collections.abc import Iterator, Sequence

from ..errors import ConfigError, StorageCorrupt, StorageFailed, StorageFull
from ..raft import MAX_INDEX, MAX_TERM, LogId, SnapshotPoint
from ._files import IFile, IFileLock, IFileSystem
from ._snapshot_format import (
    MAX_FILE_BYTES,
    MAX_MANIFEST_FILE,
    MAX_PARTS,
    FrameReader,
    ManifestDamage,
    seal_manifest,
    unseal_manifest,
)
from ._snapshot_received import ANNOUNCED, UNDER_WAY, Received, announce, find_received, tidy
from .interfaces import Manifest, StateFile

__all__ = ["PartsReader", "PartsReceiver", "PartsWriter", "SnapshotDirectory", "verify_part", "verify_steps"]

_MANIFEST = "manifest"
_LOCK = "LOCK"
_TMP = ".tmp"
_NAME = re.compile(r"(0|[1-9][0-9]{0,18})-(0|[1-9][0-9]{0,18})")
_BLOCK = 1 << 20


class SnapshotDirectory:
    """The directory of all snapshots of a node.

    :param path: the directory of the store; its parent exists.
    """

    def __init__(self, files: IFileSystem, path: str) -> None:
        self.files = files
        self._path = path
        self.root = posixpath.join(path, "snap")
        self._lock: IFileLock | None = None
        self._numbers = itertools.count()

    def open(self, keep: int) -> tuple[Manifest | None, tuple[LogId, ...], Received | None]:
        """Lock it, remove leftovers, and snapshots beyond ``keep``.

        What it reports is durable: a name that a rename gave shortly before a crash is synced first (S-15).

        :return: the newest, every position in order, and what there is of a transfer that can go on.

        :raises StorageCorrupt: if the newest snapshot is damaged; nothing was changed (J-89, J-90).
        """
        files = self.files
        files.mkdir(self._path)
        # Always: the directory may be there, and yet be lost with the power (J-96).
        files.sync_dir(posixpath.dirname(self._path) or ".")
        files.mkdir(self.root)
        files.sync_dir(self._path)
        self._lock = files.lock(posixpath.join(self.root, _LOCK))
        try:
            names = files.list(self.root)
            positions = self.positions(names)
            newest = self.load(positions[-1]) if positions else None
            unfinished = [posixpath.join(self.root, name) for name in names if name.endswith(_TMP)]
            received = find_received(files, unfinished, positions[-1].index if positions else 0)
            for path in unfinished:
                if received is None or path != received.path:
                    self._remove_tree(path)
            if received is not None:
                tidy(files, received)
                # So that no unfinished snapshot of this life gets its name.
                self._numbers = itertools.count(_number(received.path) + 1)
            files.sync_dir(self.root)
            for position in positions[:-keep]:
                self.remove(position)
        except BaseException:
            self.release()
            raise
        return newest, tuple(positions[-keep:]), received

    def try_links(self, directory: str) -> None:
        """See that files of another directory can be linked into a snapshot.

        :raises ConfigError: if they cannot.
        """
        files, trial = self.files, posixpath.join(self.root, f"trial{_TMP}")
        source = posixpath.join(directory, f"trial{_TMP}")
        self.begin(trial)
        files.create(source).close()
        try:
            files.link(source, posixpath.join(trial, "0"))
        except StorageFull:
            raise
        except StorageFailed as error:
            rule = f"its files must be in the file system of {self.root}, which must have hard links ({error.cause})"
            raise ConfigError("directory", directory, rule) from None
        finally:
            files.remove(source)
            self.discard(trial)

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def positions(self, names: list[str]) -> list[LogId]:
        """Return the positions of the published snapshots among the names in the directory, in order.

        :raises StorageCorrupt: if a name is none that belongs there.
        """
        positions = []
        for name in names:
            if name == _LOCK or name.endswith(_TMP):
                continue
            match = _NAME.fullmatch(name)
            index, term = (int(number) for number in match.groups()) if match else (0, 0)
            if not (0 < index <= MAX_INDEX and term <= MAX_TERM):
                # It may be a snapshot whose name was damaged: to go on without it would be a guess.
                raise StorageCorrupt(posixpath.join(self.root, name), 0, "this is not a snapshot; move it elsewhere", 1)
            positions.append(LogId(term, index))
        return sorted(positions, key=lambda position: (position.index, position.term))

    def path_of(self, position: LogId) -> str:
        """Return a published snapshot's directory."""
        return posixpath.join(self.root, f"{position.index}-{position.term}")

    def tmp_path(self, position: LogId) -> str:
        """Return a directory for an unfinished snapshot; no other has the same, so that none removes another's."""
        return f"{self.path_of(position)}.{next(self._numbers)}{_TMP}"

    def load(self, position: LogId) -> Manifest:
        """Read the manifest of a published snapshot, and see that its parts are there in their sizes.

        :raises StorageCorrupt: if anything is wrong.
        """
        directory, last = self.path_of(position), position.index
        path = posixpath.join(directory, _MANIFEST)
        if not self.files.exists(path):
            raise _corrupt(path, 0, "the manifest is missing", last)
        try:
            manifest = unseal_manifest(self.files.read(path, 0, MAX_MANIFEST_FILE))
        except ManifestDamage as damage:
            raise _corrupt(path, damage.offset, str(damage), last) from damage
        if manifest.point.last != position:
            raise _corrupt(path, 0, f"it is the manifest of {manifest.point.last}", last)
        for part, (size, _) in enumerate(manifest.parts):
            _check_size(self.files, posixpath.join(directory, str(part)), size, last)
        return manifest

    def begin(self, tmp: str) -> None:
        """Make the directory of an unfinished snapshot, empty."""
        self.discard(tmp)
        self.files.mkdir(tmp)

    def publish(self, tmp: str, manifest: Manifest) -> Manifest:
        """Make an unfinished snapshot, whose parts are synced, the one of its position. Durable on return.

        If there is one of that position, it stays, and is what is returned: both hold the same state (J-87).
        """
        target = self.path_of(manifest.point.last)
        if self.files.exists(target):
            self.discard(tmp)
            return self.load(manifest.point.last)
        file = self.files.create(posixpath.join(tmp, _MANIFEST))
        try:
            file.write(0, seal_manifest(manifest))
            file.sync()
        finally:
            file.close()
        self.files.sync_dir(tmp)
        self.files.rename(tmp, target)
        self.files.sync_dir(self.root)
        return manifest

    def discard(self, tmp: str) -> None:
        """Remove an unfinished snapshot, if there is one."""
        if self.files.exists(tmp):
            self._remove_tree(tmp)

    def remove(self, position: LogId) -> None:
        """Remove a published snapshot; in a crash it is there as a whole, or a leftover. If it fails, do it again."""
        directory = self.path_of(position)
        gone = f"{directory}.old{_TMP}"
        if self.files.exists(directory):
            self.discard(gone)
            self.files.rename(directory, gone)
        # Before the first file goes: else a crash could keep the name and lose the file.
        self.files.sync_dir(self.root)
        self.discard(gone)

    def _remove_tree(self, directory: str) -> None:
        for name in self.files.list(directory):
            self.files.remove(posixpath.join(directory, name))
        self.files.remove(directory)


def _number(tmp: str) -> int:
    """Return what tells the name of an unfinished snapshot from others of the same position."""
    number = tmp.removesuffix(_TMP).rpartition(".")[2]
    return int(number) if number.isdigit() else 0


def _corrupt(path: str, offset: int, reason: str, last: int) -> StorageCorrupt:
    """A snapshot stands for all entries up to its position."""
    return StorageCorrupt(path, offset, reason, 1, last)


def _check_size(files: IFileSystem, path: str, size: int, last: int) -> None:
    if not files.exists(path):
        raise _corrupt(path, 0, "the part is missing", last)
    found = files.size(path)
    if found != size:
        raise _corrupt(path, min(found, size), f"the part has {found} bytes, and the manifest says {size}", last)


def verify_part(files: IFileSystem, path: str, manifest: Manifest, part: int) -> None:
    """Read a whole part and compare it with its manifest.

    :raises StorageCorrupt: if it is not what the manifest says.
    """
    for _ in verify_steps(files, path, manifest, part, _BLOCK):
        pass


def verify_steps(files: IFileSystem, path: str, manifest: Manifest, part: int, piece: int) -> Iterator[int]:
    """Do what :func:`verify_part` does in pieces of so many bytes; yield the size of each."""
    (size, digest), last = manifest.parts[part], manifest.point.last.index
    _check_size(files, path, size, last)
    sha = hashlib.sha256()
    frames = FrameReader(size) if part < manifest.streams else None
    try:
        for offset in range(0, size, piece):
            block = files.read(path, offset, min(piece, size - offset))
            sha.update(block)
            if frames is not None:
                frames.feed(block)
            yield len(block)
        if frames is not None:
            frames.finish()
    except ValueError as error:
        assert frames is not None
        raise _corrupt(path, frames.offset, str(error), last) from error
    if sha.digest() != digest:
        raise _corrupt(path, 0, "the part's SHA-256 digest is not the manifest's", last)


class PartsReader:
    """Reads a published snapshot. A part is verified as a whole before its first byte is given out."""

    def __init__(self, files: IFileSystem, directory: str, manifest: Manifest) -> None:
        self._files = files
        self._directory = directory
        self._manifest = manifest
        self._verified: set[int] = set()
        self._part = 0
        self._offset = 0
        self._frames: FrameReader | None = None

    def read(self, part: int, offset: int, size: int) -> bytes:
        """Read raw bytes of a part."""
        length, _ = self._manifest.parts[part]
        path = self._verify(part)
        wanted = min(size, length - offset)
        data = self._files.read(path, offset, wanted) if wanted else b""
        if len(data) != wanted:
            raise _corrupt(path, offset + len(data), "the part ends before its size", self._manifest.point.last.index)
        return data

    def _verify(self, part: int) -> str:
        path = posixpath.join(self._directory, str(part))
        if part not in self._verified:
            verify_part(self._files, path, self._manifest, part)
            self._verified.add(part)
        return path

    @property
    def files(self) -> tuple[StateFile, ...]:
        """The parts that are files of the state machine."""
        manifest = self._manifest
        return tuple(
            StateFile(posixpath.join(self._directory, str(part)), *manifest.parts[part])
            for part in range(manifest.streams, len(manifest.parts))
        )

    def chunks(self) -> list[bytes]:
        """Return the next chunks, about a MiB of them; none at the end."""
        while self._part < self._manifest.streams:
            size, _ = self._manifest.parts[self._part]
            if self._frames is None:
                self._frames, self._offset = FrameReader(size), 0
            block = self.read(self._part, self._offset, _BLOCK)
            self._offset += len(block)
            try:
                chunks = self._frames.feed(block)
            except ValueError as error:
                path = posixpath.join(self._directory, str(self._part))
                last = self._manifest.point.last.index
                raise _corrupt(path, self._frames.offset, str(error), last) from error
            if self._offset == size:
                self._part, self._frames = self._part + 1, None
            if chunks:
                return chunks
        return []


class PartsWriter:
    """Writes the parts of a new snapshot."""

    def __init__(self, directory: SnapshotDirectory, position: LogId, part_bytes: int) -> None:
        self._directory = directory
        self._tmp = directory.tmp_path(position)
        self._part_bytes = part_bytes
        self._parts: list[tuple[int, bytes]] = []
        self._file: IFile | None = None
        self._size = 0
        self._sha = hashlib.sha256()
        self._begun = False

    def append(self, frames: list[bytes]) -> None:
        """Append frames, to as many parts as they need."""
        self._begin()
        pending: list[bytes] = []
        size = self._size
        for each in frames:
            if size and size + len(each) > self._part_bytes:
                self._write(b"".join(pending))
                self._end_part()
                pending, size = [], 0
            pending.append(each)
            size += len(each)
        self._write(b"".join(pending))

    def _begin(self) -> None:
        if not self._begun:
            self._directory.begin(self._tmp)
            self._begun = True

    def _write(self, data: bytes) -> None:
        if not data:
            return
        if self._file is None:
            self._file = self._directory.files.create(posixpath.join(self._tmp, str(len(self._parts))))
        self._file.write(self._size, data)
        self._sha.update(data)
        self._size += len(data)

    def _end_part(self) -> None:
        if self._file is None:
            return
        self._file.sync()
        self._file.close()
        self._parts.append((self._size, self._sha.digest()))
        self._file, self._size, self._sha = None, 0, hashlib.sha256()

    def publish(self, frames: list[bytes], files: Sequence[StateFile], point: SnapshotPoint) -> Manifest:
        """Append the last frames, link the files, and make the snapshot durable under its name."""
        self.append(frames)
        self._end_part()
        for file in files:
            self._link(file, point.last.index)
        if len(self._parts) > MAX_PARTS:
            raise ValueError(f"a snapshot of {len(self._parts)} parts is more than {MAX_PARTS}")
        manifest = Manifest(point, tuple(self._parts), files=len(files))
        return self._directory.publish(self._tmp, manifest)

    def _link(self, file: StateFile, last: int) -> None:
        if not 0 < file.size <= MAX_FILE_BYTES:
            raise ValueError(f"{file.path} has {file.size} bytes; a file of a snapshot has up to {MAX_FILE_BYTES}")
        _check_size(self._directory.files, file.path, file.size, last)
        self._directory.files.link(file.path, posixpath.join(self._tmp, str(len(self._parts))))
        self._parts.append((file.size, file.digest))

    def discard(self) -> None:
        """Remove what was written."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._directory.discard(self._tmp)


class PartsReceiver:
    """Writes the parts of a snapshot that comes from elsewhere.

    :param received: what an earlier process has received of it.
    """

    def __init__(self, directory: SnapshotDirectory, manifest: Manifest, received: Received | None = None) -> None:
        self._directory = directory
        self._manifest = manifest
        self._tmp = directory.tmp_path(manifest.point.last) if received is None else received.path
        self._file: IFile | None = None
        self._begun = received is not None
        self.parts = 0 if received is None else received.parts
        """How many parts are there from an earlier process."""

    def write(self, part: int, offset: int, data: bytes) -> None:
        """Write bytes of a part; the caller has seen that they belong there.

        :raises ValueError: if they finish a part that is not what the manifest says. It has to be sent again.
        """
        files = self._directory.files
        self._begin()
        name = posixpath.join(self._tmp, str(part))
        path = name + UNDER_WAY
        if self._file is None:
            self._file = files.create(path)
        self._file.write(offset, data)
        if offset + len(data) < self._manifest.parts[part][0]:
            return
        self._file.sync()
        self._close()
        try:
            # Read back: what will be published is what lies on the disk.
            verify_part(files, path, self._manifest, part)
        except StorageCorrupt as damage:
            files.remove(path)
            raise ValueError(f"part {part} did not arrive as it was announced: {damage.reason}") from damage
        files.rename(path, name)
        files.sync_dir(self._tmp)

    def _begin(self) -> None:
        if not self._begun:
            self._directory.begin(self._tmp)
            announce(self._directory.files, self._tmp, self._manifest)
            self._begun = True

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def suspend(self) -> None:
        """Release what is open. The parts that are whole stay, for a later process to go on."""
        self._close()

    def publish(self, manifest: Manifest) -> Manifest:
        """Make the snapshot durable under its name.

        :raises ValueError: if a part that an earlier process received has rotted since.
        """
        self._begin()
        files = self._directory.files
        for part in range(self.parts):
            try:
                verify_part(files, posixpath.join(self._tmp, str(part)), self._manifest, part)
            except StorageCorrupt as damage:
                raise ValueError(f"part {part} is not as it was received: {damage.reason}") from damage
        files.remove(posixpath.join(self._tmp, ANNOUNCED))
        return self._directory.publish(self._tmp, manifest)

    def discard(self) -> None:
        """Remove what was received."""
        self._close()
        self._directory.discard(self._tmp)
