"""Which entry the newest ones begin with."""

from __future__ import annotations

from ..errors import StorageError
from ..storage.inspection import list_segments, scan_records
from ._directory import DataDirectory

__all__ = ["first_of_newest"]


def first_of_newest(directory: DataDirectory, count: int) -> int:
    """Return the index with which the ``count`` newest entries begin.

    Of a damaged log the newest entries are those up to the end that the last good record names.

    :raises NoLog: if there is no log.
    """
    try:
        _, found = directory.examine()
    except StorageError:
        last = 0
        for each in reversed(list_segments(directory.files, directory.path)):
            if each.header is None:
                continue
            last = each.header.last.index
            for record in scan_records(directory.files, each.path, each.header, again=directory.look_again):
                if record.header is not None and record.payload is not None:
                    last = record.header.last
            break
    else:
        last = found.index.last.index
    return max(1, last - count + 1)
