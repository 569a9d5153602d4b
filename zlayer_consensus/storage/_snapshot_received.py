"""What is left of a transfer that the end of the receiving process cut off, so that it can go on. It blocks.

The directory of a transfer has, beside its parts, the manifest that was announced. A part gets its own name when it is
whole, verified and synced; until then it has another one. So what has its own name is as good as a published part. The
bytes of the part under way are taken over, and written once more: a sync may have failed, and after that the cache says
nothing of the disk (S-12). Whether they are the right ones is seen when the part is whole.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from typing import NamedTuple

from ._files import IFileSystem
from ._snapshot_format import MAX_MANIFEST_FILE, ManifestDamage, seal_manifest, unseal_manifest
from .interfaces import Manifest

__all__ = ["ANNOUNCED", "UNDER_WAY", "Received", "announce", "find_received", "tidy"]

ANNOUNCED = "announced"
UNDER_WAY = ".part"
"""How the name of a part ends that is not whole."""


class Received(NamedTuple):
    """A transfer that was cut off.

    :param path: its directory.
    :param manifest: what was announced.
    :param parts: how many of its parts, the first ones, are whole.
    :param more: how many bytes there are of the part behind them; never all of it.
    """

    path: str
    manifest: Manifest
    parts: int
    more: int


def announce(files: IFileSystem, directory: str, manifest: Manifest) -> None:
    """Note durably what a transfer will bring; its directory is empty."""
    file = files.create(posixpath.join(directory, ANNOUNCED))
    try:
        file.write(0, seal_manifest(manifest))
        file.sync()
    finally:
        file.close()
    files.sync_dir(directory)
    files.sync_dir(posixpath.dirname(directory))


def find_received(files: IFileSystem, paths: Iterable[str], newest: int) -> Received | None:
    """Return, of the transfers in these directories, that of the latest snapshot, if it is later than index ``newest``.

    What cannot be read, or has no byte of a part, is none. Nothing is changed.
    """
    found: Received | None = None
    for path in paths:
        received = _look(files, path)
        if received is not None and received.manifest.point.last.index > newest:
            newest, found = received.manifest.point.last.index, received
    return found


def _look(files: IFileSystem, path: str) -> Received | None:
    announced = posixpath.join(path, ANNOUNCED)
    if not files.exists(announced):
        return None
    try:
        manifest = unseal_manifest(files.read(announced, 0, MAX_MANIFEST_FILE))
    except ManifestDamage:
        return None
    whole = more = 0
    for part, (size, _) in enumerate(manifest.parts):
        part_path = posixpath.join(path, str(part))
        if not files.exists(part_path) or files.size(part_path) != size:
            if files.exists(part_path + UNDER_WAY):
                more = min(files.size(part_path + UNDER_WAY), size - 1)  # what ends a part is what has it verified
            break
        whole = part + 1
    return Received(path, manifest, whole, more) if whole or more else None


def tidy(files: IFileSystem, received: Received) -> None:
    """Remove from a transfer's directory what is of no use."""
    kept = {ANNOUNCED, *map(str, range(received.parts))}
    if received.more:
        kept.add(f"{received.parts}{UNDER_WAY}")
    for name in files.list(received.path):
        if name not in kept:
            files.remove(posixpath.join(received.path, name))
