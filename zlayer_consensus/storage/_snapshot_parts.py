"""Reading published snapshots in directories, and verifying them. Everything here blocks."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator

from ..errors import StorageCorrupt
from ._files import IFileSystem
from ._snapshot_format import FrameReader
from .interfaces import Manifest, StateFile

__all__ = ["PartsReader", "check_size", "corrupt", "verify_part", "verify_steps"]

_BLOCK = 1 << 20


def corrupt(path: str, offset: int, reason: str, last: int) -> StorageCorrupt:
    """Return what is wrong with a snapshot, which stands for all entries up to its position."""
    return StorageCorrupt(path, offset, reason, 1, last)


def check_size(files: IFileSystem, path: str, size: int, last: int) -> None:
    """See that a part is there in its size.

    :param last: the position's index.
    :raises StorageCorrupt: if it is not.
    """
    if not files.exists(path):
        raise corrupt(path, 0, "the part is missing", last)
    found = files.size(path)
    if found != size:
        raise corrupt(path, min(found, size), f"the part has {found} bytes, and the manifest says {size}", last)


def verify_part(files: IFileSystem, path: str, manifest: Manifest, part: int) -> None:
    """Read a whole part and compare it with its manifest.

    :raises StorageCorrupt: if it is not what the manifest says.
    """
    for _ in verify_steps(files, path, manifest, part, _BLOCK):
        pass


def verify_steps(files: IFileSystem, path: str, manifest: Manifest, part: int, piece: int) -> Iterator[int]:
    """Do what :func:`verify_part` does in pieces of so many bytes; yield the size of each."""
    (size, digest), last = manifest.parts[part], manifest.point.last.index
    check_size(files, path, size, last)
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
        raise corrupt(path, frames.offset, str(error), last) from error
    if sha.digest() != digest:
        raise corrupt(path, 0, "the part's SHA-256 digest is not the manifest's", last)


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
            raise corrupt(path, offset + len(data), "the part ends before its size", self._manifest.point.last.index)
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
                raise corrupt(path, self._frames.offset, str(error), last) from error
            if self._offset == size:
                self._part, self._frames = self._part + 1, None
            if chunks:
                return chunks
        return []
