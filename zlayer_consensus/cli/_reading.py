"""Reading whole segments: what is in them, whether it checks, and how far the reading has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..errors import StorageCorrupt, StorageFailed
from ..storage.inspection import BATCH, Reset, ScannedRecord, SegmentHeader, Truncate, scan_records, walk_payload
from ._directory import DataDirectory
from ._output import Output

__all__ = ["Reading", "Stretch", "counted", "read_segments"]

_STEP = 1 << 20
"""Bytes after which a bar moves: more often would cost more than it shows."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A segment that is to be read.

    :param path, header: which.
    :param end: where its records end; None if all that is written counts.
    :param is_torn: whether it ends with a record that was never finished.
    """

    path: str
    header: SegmentHeader
    end: int | None = None
    is_torn: bool = False


@dataclass(slots=True)
class Reading:
    """What reading a segment in full came to.

    :param crc: ``ok``, ``bad``, or ``torn``: all records check but the last, which was never finished.
    :param damage: the first of what does not check.
    :param truncations, resets: operations that removed entries otherwise than by purging.
    """

    crc: str = "ok"
    damage: StorageCorrupt | None = None
    truncations: int = 0
    resets: int = 0


def counted(
    records: Iterator[ScannedRecord], start: int, size: int, advance: Callable[[int], None]
) -> Iterator[ScannedRecord]:
    """Pass the records of a segment on, from ``start``, and count up how many bytes lie behind; all in the end."""
    behind = start
    for record in records:
        if record.offset - behind >= _STEP:
            advance(record.offset - behind)
            behind = record.offset
        yield record
    advance(size - behind)


def read_segments(directory: DataDirectory, out: Output, stretches: list[Stretch]) -> dict[str, Reading]:
    """Read segments in full; return what that came to, by path. One that is purged meanwhile is left out."""
    found: dict[str, Reading] = {}
    with out.progress(sum(each.header.size for each in stretches), "reading segments") as advance:
        for each in stretches:
            try:
                found[each.path] = _read(directory, each, advance)
            except StorageFailed:
                if not directory.is_gone(each.path):
                    raise
                out.note(f"{directory.name(each.path)} was purged meanwhile")
    return found


def _read(directory: DataDirectory, stretch: Stretch, advance: Callable[[int], None]) -> Reading:
    header, found = stretch.header, Reading()
    last = header.last.index
    records = scan_records(directory.files, stretch.path, header, again=directory.look_again)
    for record in counted(records, 0, header.size, advance):
        if stretch.end is not None and record.offset >= stretch.end:
            # What a running node has appended since the log was looked at does not count.
            break
        if record.payload is None or record.header is None:
            found.damage = found.damage or StorageCorrupt(stretch.path, record.offset, record.problem, last + 1)
            continue
        last = record.header.last
        for each in walk_payload(record.payload) if record.header.type == BATCH else ():
            found.truncations += isinstance(each, Truncate)
            found.resets += isinstance(each, Reset)
    found.crc = "bad" if found.damage is not None else "torn" if stretch.is_torn else "ok"
    return found
