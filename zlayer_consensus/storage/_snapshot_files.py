"""Snapshots in directories. Everything here blocks, and runs on an executor, one call at a time.

``snap/<index>-<term>/`` holds the parts ``0``, ``1``, … and ``manifest``. It is made under a name that ends in
``.tmp``, and gets its own by a rename when every file and its names are durable: so what has that name is whole, and
anything wrong with it is damage, not an unfinished write.

A snapshot can be taken again: the state is the same, but the machine has got rid of files since, which this snapshot
alone still holds. The second take is ``<index>-<term>+1``, the next ``+2``, and so on. The highest counts.

Parts that are files of the state machine are second names of files that it has elsewhere: no byte of them is copied. So
what has become of such a file has become of it in every snapshot that names it.
"""

from __future__ import annotations

import hashlib
import itertools
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..errors import ConfigError, StorageCorrupt, StorageFailed, StorageFull
from ..raft import MAX_INDEX, MAX_TERM, LogId, SnapshotPoint
from ._files import IFile, IFileLock, IFileSystem
from ._snapshot_format import (
    MAX_FILE_BYTES,
    MAX_MANIFEST_FILE,
    MAX_PARTS,
    ManifestDamage,
    seal_manifest,
    unseal_manifest,
)
from ._snapshot_parts import check_size, corrupt, verify_part
from ._snapshot_received import ANNOUNCED, UNDER_WAY, Received, announce, find_received, tidy
from .interfaces import Manifest, StateFile

__all__ = ["PartsReceiver", "PartsWriter", "SnapshotDirectory"]

_MANIFEST = "manifest"
_LOCK = "LOCK"
_TMP = ".tmp"
_BLOCK = 1 << 20
_NAME = re.compile(r"(0|[1-9][0-9]{0,18})-(0|[1-9][0-9]{0,18})(?:\+([1-9][0-9]{0,8}))?")


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
        self._takes: dict[LogId, int] = {}
        """Of each published snapshot, which take counts."""

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
            for path in self.superseded(names):
                self.remove_path(path)
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
        takes: dict[LogId, int] = {}
        for _, position, take in self._published(names):
            takes[position] = max(take, takes.get(position, 0))
        self._takes = takes
        return sorted(takes, key=lambda position: (position.index, position.term))

    def superseded(self, names: list[str]) -> list[str]:
        """Return the directories, among these names, of snapshots that were taken again, after :meth:`positions`."""
        return [
            posixpath.join(self.root, name)
            for name, position, take in self._published(names)
            if take != self._takes.get(position, 0)
        ]

    def _published(self, names: list[str]) -> Iterator[tuple[str, LogId, int]]:
        """Yield the names of published snapshots, with position and take."""
        for name in names:
            if name == _LOCK or name.endswith(_TMP):
                continue
            match = _NAME.fullmatch(name)
            index, term, take = (int(number or 0) for number in match.groups()) if match else (0, 0, 0)
            if not (0 < index <= MAX_INDEX and term <= MAX_TERM):
                # It may be a snapshot whose name was damaged: to go on without it would be a guess.
                raise StorageCorrupt(posixpath.join(self.root, name), 0, "this is not a snapshot; move it elsewhere", 1)
            yield name, LogId(term, index), take

    def path_of(self, position: LogId) -> str:
        """Return a published snapshot's directory: that of the take that counts."""
        return self._take_path(position, self._takes.get(position, 0))

    def _take_path(self, position: LogId, take: int) -> str:
        name = f"{position.index}-{position.term}"
        return posixpath.join(self.root, f"{name}+{take}" if take else name)

    def switch(self, position: LogId) -> str:
        """Let the take that was published last count from now on; return the directory of the one before.

        It is still there: who reads it may go on. This does not block.
        """
        former = self.path_of(position)
        self._takes[position] = self._takes.get(position, 0) + 1
        return former

    def tmp_path(self, position: LogId) -> str:
        """Return a directory for an unfinished snapshot; no other has the same, so that none removes another's."""
        return f"{self.path_of(position)}.{next(self._numbers)}{_TMP}"

    def load(self, position: LogId, path: str = "") -> Manifest:
        """Read the manifest of a published snapshot, and see that its parts are there in their sizes.

        :param path: its directory, if it need not be that of the take that counts.
        :raises StorageCorrupt: if anything is wrong.
        """
        directory, last = path or self.path_of(position), position.index
        path = posixpath.join(directory, _MANIFEST)
        if not self.files.exists(path):
            raise corrupt(path, 0, "the manifest is missing", last)
        try:
            manifest = unseal_manifest(self.files.read(path, 0, MAX_MANIFEST_FILE))
        except ManifestDamage as damage:
            raise corrupt(path, damage.offset, str(damage), last) from damage
        if manifest.point.last != position:
            raise corrupt(path, 0, f"it is the manifest of {manifest.point.last}", last)
        for part, (size, _) in enumerate(manifest.parts):
            check_size(self.files, posixpath.join(directory, str(part)), size, last)
        return manifest

    def begin(self, tmp: str) -> None:
        """Make the directory of an unfinished snapshot, empty."""
        self.discard(tmp)
        self.files.mkdir(tmp)

    def publish(self, tmp: str, manifest: Manifest, again: bool = False) -> Manifest:
        """Make an unfinished snapshot, whose parts are synced, the one of its position. Durable on return.

        If there is one of that position, it stays, and is what is returned: both hold the same state (J-87).

        :param again: then it does not: this is the next take, unless they are alike. :meth:`switch` is to follow.
        """
        position = manifest.point.last
        target = self.path_of(position)
        if self.files.exists(target):
            former = self.load(position)
            # The log may still end before it, if it came from a leader.
            manifest = replace(manifest, installed=former.installed) if again else former
            if manifest == former:
                self.discard(tmp)
                return former
            target = self._take_path(position, self._takes.get(position, 0) + 1)
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
        self.remove_path(self.path_of(position))
        self._takes.pop(position, None)

    def remove_path(self, directory: str) -> None:
        """Do so with a directory of a snapshot."""
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


class PartsWriter:
    """Writes the parts of a new snapshot.

    :param again: whether it is to take the place of the one of this position.
    """

    def __init__(self, directory: SnapshotDirectory, position: LogId, part_bytes: int, again: bool = False) -> None:
        self._directory = directory
        self._again = again
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
        return self._directory.publish(self._tmp, manifest, self._again)

    def _link(self, file: StateFile, last: int) -> None:
        if not 0 < file.size <= MAX_FILE_BYTES:
            raise ValueError(f"{file.path} has {file.size} bytes; a file of a snapshot has up to {MAX_FILE_BYTES}")
        check_size(self._directory.files, file.path, file.size, last)
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
        self.start = (0, 0) if received is None else (received.parts, received.more)
        """Part and offset of the first byte that is not there from an earlier process."""

    def write(self, part: int, offset: int, data: bytes) -> None:
        """Write bytes of a part; the caller has seen that they belong there.

        :raises ValueError: if they finish a part that is not what the manifest says. It has to be sent again.
        """
        files = self._directory.files
        self._begin()
        name = posixpath.join(self._tmp, str(part))
        path = name + UNDER_WAY
        if self._file is None:
            self._file = files.open(path) if offset else files.create(path)
            self._write_again(path, offset)
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

    def _write_again(self, path: str, size: int) -> None:
        """Write what an earlier process has written of a part: a sync that failed then may have left it in the cache
        alone, and the next one would say nothing of it.
        """
        assert self._file is not None
        for offset in range(0, size, _BLOCK):
            self._file.write(offset, self._directory.files.read(path, offset, min(_BLOCK, size - offset)))

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
        """Release what is open. What was received stays, for a later process to go on."""
        self._close()

    def publish(self, manifest: Manifest) -> Manifest:
        """Make the snapshot durable under its name.

        :raises ValueError: if a part that an earlier process received has rotted since.
        """
        self._begin()
        files = self._directory.files
        for part in range(self.start[0]):
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
