"""Files that the commands write: whole and durable, or not there."""

from __future__ import annotations

import os

from ._exit import CannotOpen

__all__ = ["sync_directory_of", "write_new_file"]


def write_new_file(path: str, data: bytes) -> None:
    """Write a file for the owner alone, durably. It must not exist.

    :raises CannotOpen: if it does.
    """
    if os.path.exists(path):
        raise CannotOpen(f"{path} exists already")
    temporary = f"{path}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    sync_directory_of(path)


def sync_directory_of(path: str) -> None:
    """Make a file's name durable."""
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
