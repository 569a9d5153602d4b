"""Looking at the snapshots of a data directory without opening it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import StorageCorrupt, StorageError
from ..raft import LogId
from ._files import IFileSystem
from ._snapshot_files import SnapshotDirectory
from ._snapshot_parts import verify_part
from .interfaces import Manifest

__all__ = ["SnapshotFile", "list_snapshots", "verify_parts"]


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A published snapshot, or what stands in its place.

    :param path: its directory.
    :param position: where it was taken; None if the name says nothing.
    :param manifest: None if it is damaged, or a part is missing or of the wrong size.
    :param damage: why there is no manifest.
    """

    path: str
    position: LogId | None
    manifest: Manifest | None
    damage: StorageCorrupt | None = None

    def in_file(self, damage: StorageCorrupt) -> bool:
        """Say whether damage of a part is in a file of the state machine, which no start of the node reads."""
        files = range(self.manifest.streams, len(self.manifest.parts)) if self.manifest is not None else ()
        return damage.path in {posixpath.join(self.path, str(part)) for part in files}


def list_snapshots(files: IFileSystem, directory: str) -> tuple[list[SnapshotFile], list[str]]:
    """Return the snapshots, oldest first, their manifests verified, and the unfinished ones that an opening removes.

    What does not look like a snapshot comes first.
    """
    store = SnapshotDirectory(files, directory)
    names = files.list(store.root) if files.exists(store.root) else []
    found: list[SnapshotFile] = []
    known: list[str] = []
    for name in names:
        try:
            store.positions([name])
        except StorageCorrupt as damage:
            found.append(SnapshotFile(posixpath.join(store.root, name), None, None, damage))
        else:
            known.append(name)
    for position in store.positions(known):
        path = store.path_of(position)
        try:
            found.append(SnapshotFile(path, position, store.load(position)))
        except StorageCorrupt as damage:
            # A running node may have removed it since the listing.
            if files.exists(path):
                found.append(SnapshotFile(path, position, None, damage))
        except StorageError:
            if files.exists(path):
                raise
    leftovers = [posixpath.join(store.root, name) for name in names if name.endswith(".tmp")]
    leftovers += store.superseded(known)
    return found, leftovers


def verify_parts(files: IFileSystem, snapshot: SnapshotFile) -> Iterator[int]:
    """Verify each part of a snapshot whose manifest is good, and yield its size.

    :raises StorageCorrupt: at the first part that is not what the manifest says.
    """
    manifest = snapshot.manifest
    assert manifest is not None
    for part, (size, _) in enumerate(manifest.parts):
        verify_part(files, posixpath.join(snapshot.path, str(part)), manifest, part)
        yield size
