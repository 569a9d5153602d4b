"""The locks of a data directory, for who works on it while its node is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ._files import IFileSystem
from ._recovery import Layout

__all__ = ["locked"]


@contextmanager
def locked(files: IFileSystem, directory: str, snapshots: str) -> Iterator[None]:
    """Hold the locks that a node holds while it runs, of the log and, if there are any, of the snapshots.

    :param snapshots: the state machine's directory; it can be the same.
    :raises StorageLocked: if somebody has one of them: the node is running.
    """
    with ExitStack() as stack:
        stack.callback(files.lock(Layout(directory).lock).release)
        if files.exists(f"{snapshots}/snap"):
            stack.callback(files.lock(f"{snapshots}/snap/LOCK").release)
        yield
