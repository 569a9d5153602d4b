"""Making segment files: zeros first, then header and name, and a spare prepared ahead of its time."""

from __future__ import annotations

from ..errors import StorageFull
from ._files import IFile, IFileSystem
from ._segment import Segment, SegmentHeader, encode_header, segment_name

__all__ = ["SegmentFiles"]

_SPARE_STEP = 512 << 10
"""Bytes that are zeroed and synced at a time, while writes may be waiting."""


class SegmentFiles:
    """Makes the files of new segments.

    :param wal: the directory that they are in.
    :param segment_bytes: size of a usual one.
    """

    def __init__(self, file_system: IFileSystem, wal: str, segment_bytes: int) -> None:
        self._file_system = file_system
        self._wal = wal
        self._segment_bytes = segment_bytes
        self._spare: tuple[IFile, int] | None = None
        self._spare_refused = False

    def create(self, header: SegmentHeader) -> tuple[Segment, IFile]:
        """Make a segment's file durable under its name, all zeros behind its header.

        :raises StorageFull: if there is no space; the file is gone then.
        """
        fs = self._file_system
        file, filled = self._spare if self._spare is not None else (self._begin(header.seq), 0)
        self._spare, self._spare_refused = None, False
        try:
            if filled < header.size:
                file.zero(filled, header.size - filled)
            elif filled > header.size:
                header = header._replace(size=filled)
            file.write(0, encode_header(header))
            file.sync()
        except StorageFull:
            file.close()
            fs.remove(self._spare_path(header.seq))
            raise
        path = f"{self._wal}/{segment_name(header.seq, header.last.index + 1)}"
        fs.rename(self._spare_path(header.seq), path)
        fs.sync_dir(self._wal)
        return Segment(path, header), file

    def wants_spare(self, active: Segment) -> bool:
        """Say whether the next segment's file, begun when this one is half full, is behind: both get ready together."""
        past_half = active.end * 2 - active.header.size
        filled = self._spare[1] if self._spare is not None else 0
        return past_half > 0 and filled < min(past_half + _SPARE_STEP, self._segment_bytes) and not self._spare_refused

    def extend_spare(self, seq: int) -> None:
        """Do a part of the preparation of segment ``seq``, so that no write waits for all of it."""
        file, filled = self._spare if self._spare is not None else (self._begin(seq), 0)
        step = min(_SPARE_STEP, self._segment_bytes - filled)
        try:
            file.zero(filled, step)
            file.sync()
        except StorageFull:
            # Not yet the time to fail: when the segment is needed there may be space again.
            file.close()
            self._spare, self._spare_refused = None, True
            self._file_system.remove(self._spare_path(seq))
            return
        self._spare = file, filled + step

    def close(self) -> None:
        """Release the spare; the next opening removes its file."""
        if self._spare is not None:
            file, self._spare = self._spare[0], None
            file.close()

    def _spare_path(self, seq: int) -> str:
        return f"{self._wal}/{seq:016x}.tmp"

    def _begin(self, seq: int) -> IFile:
        path = self._spare_path(seq)
        if self._file_system.exists(path):
            self._file_system.remove(path)
        return self._file_system.create(path)
