"""Reading published snapshots again, piece by piece: the half that blocks."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import StorageCorrupt, StorageError
from ..raft import LogId
from ._snapshot_files import SnapshotDirectory
from ._snapshot_parts import verify_steps
from .interfaces import Manifest

__all__ = ["Piece", "SnapshotScrub"]


class Piece(NamedTuple):
    """What one step has looked at.

    :param size: bytes that were read.
    :param path: the file.
    :param last: whether it was the snapshot's last.
    :param missing: whether the snapshot is not there any more.
    """

    size: int = 0
    path: str = ""
    last: bool = False
    missing: bool = False


class SnapshotScrub:
    """Verifies one snapshot after the other. Runs where snapshots are removed, so that none goes away within a step."""

    def __init__(self, directory: SnapshotDirectory) -> None:
        self._directory = directory
        self._path = ""
        self._steps: Iterator[tuple[str, int]] = iter(())

    def step(self, position: LogId, directory: str, known: Manifest | None, max_bytes: int) -> Piece:
        """Verify the next piece of a snapshot.

        :param directory: where it was when the step was asked for; it stays until the step has ended.
        :param known: what its manifest was, if that is known.
        :raises StorageCorrupt: if it is damaged.
        """
        if directory != self._path:
            self._path, self._steps = directory, self._verified(position, directory, known, max_bytes)
        size, path = 0, ""
        try:
            while size < max_bytes:
                path, read = next(self._steps)
                size += read
        except StopIteration:
            self._path = ""
            return Piece(size, path, last=True)
        except StorageError:
            self._path = ""
            if self._directory.files.exists(directory):
                raise
            return Piece(size, directory, last=True, missing=True)
        return Piece(size, path)

    def _verified(self, position: LogId, path: str, known: Manifest | None, piece: int) -> Iterator[tuple[str, int]]:
        directory = self._directory
        manifest = directory.load(position, path)
        if known is not None and manifest != known:
            reason = "it is another manifest than it was"
            raise StorageCorrupt(posixpath.join(path, "manifest"), 0, reason, 1, position.index)
        yield posixpath.join(path, "manifest"), 0
        for part in range(len(manifest.parts)):
            part_path = posixpath.join(path, str(part))
            for read in verify_steps(directory.files, part_path, manifest, part, piece):
                yield part_path, read
