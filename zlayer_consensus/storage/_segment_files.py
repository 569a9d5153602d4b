"""Making segment files: zeros first, then header and name; a spare prepared ahead of its time, and a reserve."""

from __future__ import annotations

from ..errors import StorageFull
from ._files import IFile, IFileSystem
from ._segment import Segment, SegmentHeader, encode_header, segment_name

__all__ = ["SegmentFiles"]

_SPARE_STEP = 512 << 10
"""Bytes that are zeroed and synced at a time, while writes may be waiting."""


class SegmentFiles:
    """Makes the files of new segments.

    The reserve is a file of zeros that becomes a segment when there is no space for another (S-10): it takes none, and
    nobody else can have it.

    :param wal: the directory that they are in.
    :param reserve: the reserve's path, in the same directory.
    :param segment_bytes: size of a usual one.
    :param reserve_bytes: size of the reserve.
    """

    def __init__(
        self, file_system: IFileSystem, wal: str, reserve: str, segment_bytes: int, reserve_bytes: int
    ) -> None:
        self.full = False
        """Whether there is too little space; :meth:`make_room` sees whether there is again."""
        self._file_system = file_system
        self._wal = wal
        self._reserve = reserve
        self._segment_bytes = segment_bytes
        self._reserve_bytes = reserve_bytes
        self._spare: tuple[IFile, int] | None = None

    def create(self, header: SegmentHeader, least: int) -> tuple[Segment, IFile]:
        """Make a segment's file durable under its name, all zeros behind its header; if need be from the reserve.

        :param header: with the size that is wanted.
        :param least: the smallest size that will do.
        :raises StorageFull: if there is no space, and no reserve that is large enough.
        """
        # What little space there is may be needed for a snapshot, and nothing else may use the reserve.
        if not (self.full and self._holds(least)):
            try:
                file, header = self._prepare(header)
                return self._name(self._spare_path(header.seq), header), file
            except StorageFull:
                self.full = True
                if not self._holds(least):
                    raise
        self._drop_spare()
        fs = self._file_system
        size = fs.size(self._reserve)
        header = header._replace(size=size)
        file = fs.open(self._reserve)
        # It may have lain there for years, and what is not zeros behind the records would count as damage.
        for at in range(0, size, _SPARE_STEP):
            piece = fs.read(self._reserve, at, _SPARE_STEP)
            if piece.count(0) != len(piece):
                file.zero(at, len(piece))
        file.write(0, encode_header(header))
        file.sync()
        return self._name(self._reserve, header), file

    def _holds(self, size: int) -> bool:
        """Return whether there is a reserve of at least this size."""
        fs = self._file_system
        return fs.exists(self._reserve) and fs.size(self._reserve) >= size

    def _prepare(self, header: SegmentHeader) -> tuple[IFile, SegmentHeader]:
        file, filled = self._spare if self._spare is not None else (self._begin(header.seq), 0)
        self._spare = None
        try:
            if filled < header.size:
                file.zero(filled, header.size - filled)
            elif filled > header.size:
                header = header._replace(size=filled)
            file.write(0, encode_header(header))
            file.sync()
        except StorageFull:
            file.close()
            self._file_system.remove(self._spare_path(header.seq))
            raise
        return file, header

    def _name(self, temporary: str, header: SegmentHeader) -> Segment:
        path = f"{self._wal}/{segment_name(header.seq, header.last.index + 1)}"
        self._file_system.rename(temporary, path)
        self._file_system.sync_dir(self._wal)
        return Segment(path, header)

    def wants_spare(self, active: Segment) -> bool:
        """Say whether the next segment's file, begun when this one is half full, is behind: both get ready together."""
        past_half = active.end * 2 - active.header.size
        filled = self._spare[1] if self._spare is not None else 0
        return past_half > 0 and filled < min(past_half + _SPARE_STEP, self._segment_bytes) and not self.full

    def extend_spare(self, seq: int) -> None:
        """Do a part of the preparation of segment ``seq``, so that no write waits for all of it."""
        file, filled = self._spare if self._spare is not None else (self._begin(seq), 0)
        step = min(_SPARE_STEP, self._segment_bytes - filled)
        try:
            file.zero(filled, step)
            file.sync()
        except StorageFull:
            # Not yet the time to fail: when the segment is needed there may be space again, and there is the reserve.
            self._spare, self.full = (file, filled), True
            self._drop_spare()
            return
        self._spare = file, filled + step

    def make_room(self, keep: int) -> int:
        """Make the reserve if it is missing, and see whether there is space, or space again.

        :param keep: bytes that are to stay free. To stop being full takes a segment more.
        :return: how many are free.
        """
        fs = self._file_system
        whole = fs.exists(self._reserve) and fs.size(self._reserve) == self._reserve_bytes
        free = fs.free(self._wal)
        if not whole and free >= keep + self._reserve_bytes:
            whole = self._fill_reserve()
            free = fs.free(self._wal)
        self.full = not whole or free < keep + (self._segment_bytes if self.full else 0)
        if self.full:
            self._drop_spare()
        return free

    def _drop_spare(self) -> None:
        """On a full disk the reserve comes first."""
        if self._spare is not None:
            file, self._spare = self._spare[0], None
            file.close()
            self._file_system.remove(file.path)

    def _fill_reserve(self) -> bool:
        """Make the reserve; return whether there was space."""
        fs, temporary = self._file_system, f"{self._reserve}.tmp"
        for path in (self._reserve, temporary):
            if fs.exists(path):
                fs.remove(path)
        file = fs.create(temporary)
        try:
            file.zero(0, self._reserve_bytes)
            file.sync()
        except StorageFull:
            fs.remove(temporary)
            return False
        finally:
            file.close()
        fs.rename(temporary, self._reserve)
        fs.sync_dir(self._wal)
        return True

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
