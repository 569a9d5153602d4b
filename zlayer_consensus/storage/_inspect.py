"""Looking at a log directory without opening it: nothing is locked, nothing is written.

What an opening would decide is decided by its own code (``_recovery.examine``, ``_scan.replay``). What is here shows
more than an opening needs to know: records behind a damaged one, and sealed segments in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from zope.interface import implementer

from ..errors import StorageCorrupt, StorageFailed
from ..raft import Start
from ._files import IFile, IFileLock, IFileSystem
from ._identity import read_identity
from ._log_index import LogIndex, Summary
from ._record import (
    MARK,
    SEAL,
    SECTOR,
    BadRecord,
    RecordHeader,
    check_record,
    decode_operations,
    mark_position,
    parse_header,
)
from ._recovery import Findings, Layout, beginnings, examine, summary_of
from ._scan import Tail, Window, replay
from ._segment import (
    SEGMENT_HEADER,
    BadSegment,
    Seal,
    Segment,
    SegmentHeader,
    decode_header,
    decode_seal,
    parse_name,
)
from .interfaces import Identity

__all__ = [
    "NoLog",
    "ReadOnlyFileSystem",
    "ScannedRecord",
    "SegmentFile",
    "check_end",
    "check_link",
    "examine_log",
    "full_replay",
    "list_segments",
    "scan_records",
    "start_of",
]

_PIECE = 1 << 20
_ZERO_SECTOR = bytes(SECTOR)


class NoLog(LookupError):
    """There is no log in the directory, and there never was one."""


@implementer(IFileSystem)
class ReadOnlyFileSystem:
    """A file system of which only the reading half works: whatever uses it changes nothing.

    :param files: where it reads.
    """

    def __init__(self, files: IFileSystem) -> None:
        self._files = files

    def read(self, path: str, offset: int, size: int) -> bytes:
        """See :meth:`IFileSystem.read`."""
        return self._files.read(path, offset, size)

    def size(self, path: str) -> int:
        """See :meth:`IFileSystem.size`."""
        return self._files.size(path)

    def exists(self, path: str) -> bool:
        """See :meth:`IFileSystem.exists`."""
        return self._files.exists(path)

    def list(self, path: str) -> list[str]:
        """See :meth:`IFileSystem.list`."""
        return self._files.list(path)

    def free(self, path: str) -> int:
        """See :meth:`IFileSystem.free`."""
        return self._files.free(path)

    def mkdir(self, path: str) -> None:
        """Refuse."""
        raise _read_only("mkdir", path)

    def create(self, path: str) -> IFile:
        """Refuse."""
        raise _read_only("create", path)

    def open(self, path: str) -> IFile:
        """Refuse."""
        raise _read_only("open", path)

    def rename(self, old: str, new: str) -> None:
        """Refuse."""
        raise _read_only("rename", old)

    def link(self, old: str, new: str) -> None:
        """Refuse."""
        raise _read_only("link", new)

    def remove(self, path: str) -> None:
        """Refuse."""
        raise _read_only("remove", path)

    def sync_dir(self, path: str) -> None:
        """Refuse."""
        raise _read_only("sync", path)

    def lock(self, path: str) -> IFileLock:
        """Refuse."""
        raise _read_only("lock", path)


def _read_only(operation: str, path: str) -> StorageFailed:
    return StorageFailed(operation, path, "the directory is only looked at")


def examine_log(files: IFileSystem, directory: str) -> tuple[Identity, Findings]:
    """Return whose log it is, and what an opening would find; decided by the code that opens.

    :raises NoLog: if an opening would begin a new log.
    :raises StorageCorrupt, WrongIdentity: if an opening would refuse.
    """
    layout = Layout(directory)
    if not files.exists(directory):
        raise NoLog(f"{directory} does not exist")
    identity = read_identity(files, directory, None)
    if identity is None:
        if files.exists(layout.wal):
            beginnings(files, layout)
        raise NoLog(f"{directory} holds no log")
    return identity, examine(files, layout, identity)


def start_of(index: LogIndex) -> Start:
    """Return what an opening reports of the log, its entries left out."""
    return Start(index.state, index.purged, index.last, index.terms(), last_time_ms=index.time_ms)


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A segment's file, looked at by itself.

    :param path: the file.
    :param seq, base: sequence and first index, as its name has them.
    :param size: bytes of it that are there.
    :param header: its header, None if that is damaged.
    :param seal: its seal, None if it has none or it cannot be found.
    :param problem: what is wrong with header or size; empty if nothing is.
    """

    path: str
    seq: int
    base: int
    size: int
    header: SegmentHeader | None
    seal: Seal | None = None
    problem: str = ""


def list_segments(files: IFileSystem, directory: str) -> list[SegmentFile]:
    """Return every segment file, by sequence, with header and seal read and nothing judged.

    A seal is looked for where the next segment says that it stands.
    """
    wal = Layout(directory).wal
    found: list[SegmentFile] = []
    for name in files.list(wal) if files.exists(wal) else ():
        parsed = parse_name(name)
        if parsed is None:
            continue
        path = f"{wal}/{name}"
        try:
            size, head = files.size(path), files.read(path, 0, SEGMENT_HEADER)
        except StorageFailed:
            # A running node may have purged it since the listing.
            if files.exists(path):
                raise
            continue
        found.append(_segment_file(path, parsed, size, head))
    found.sort(key=lambda each: (each.seq, each.base))
    sealed = []
    for at, each in enumerate(found):
        following = found[at + 1] if at + 1 < len(found) else None
        sealed.append(_with_seal(files, each, following))
    return sealed


def _segment_file(path: str, parsed: tuple[int, int], size: int, head: bytes) -> SegmentFile:
    try:
        header = decode_header(head)
    except BadSegment as error:
        return SegmentFile(path, *parsed, size, None, None, str(error))
    problem = "" if size == header.size else f"it has {size} bytes instead of {header.size}"
    if (header.seq, header.last.index + 1) != parsed:
        problem = f"the file is segment {header.seq} from entry {header.last.index + 1} on"
    return SegmentFile(path, *parsed, size, header, None, problem)


def _with_seal(files: IFileSystem, segment: SegmentFile, following: SegmentFile | None) -> SegmentFile:
    if segment.header is None or following is None or following.header is None or following.seq != segment.seq + 1:
        return segment
    at, salt = following.header.previous_end, segment.header.salt
    try:
        header = parse_header(files.read(segment.path, at, SECTOR).ljust(SECTOR, b"\0"), at, salt)
        if header.type != SEAL:
            return segment
        record = files.read(segment.path, at, header.size)
        seal = decode_seal(check_record(header, record, salt, following.header.chain))
    except (BadRecord, BadSegment):
        return segment
    except StorageFailed:
        if files.exists(segment.path):
            raise
        return segment
    return SegmentFile(segment.path, segment.seq, segment.base, segment.size, segment.header, seal, segment.problem)


class ScannedRecord(NamedTuple):
    """A stretch of a segment: a record, or bytes that are none.

    :param offset, size: where it is.
    :param header: the record's header; None if there is none.
    :param payload: the verified payload; None if it does not check.
    :param problem: what is wrong; empty if nothing is.
    """

    offset: int
    size: int
    header: RecordHeader | None
    payload: bytes | None
    problem: str


def scan_records(
    files: IFileSystem,
    path: str,
    segment: SegmentHeader,
    start: int = SEGMENT_HEADER,
    again: Callable[[int], bool] = lambda _offset: False,
) -> Iterator[ScannedRecord]:
    """Yield all that is written in a segment, from ``start`` on, and go on behind damage.

    Holds one piece of the file at a time, or one record if that is larger.

    :param start: where a record begins. Anywhere but at the front, the first one's chain is not checked.
    :param again: called with the offset of what does not check; if it returns true, the file is read once more. For a
        segment that is being written to.
    """
    size, salt = segment.size, segment.salt
    window = Window(files, path, size, _PIECE)
    chain = segment.chain if start == SEGMENT_HEADER else None
    at = start
    while at + SECTOR <= size:
        try:
            found = _scan_one(window, at, size, salt, chain)
        except BadRecord as error:
            found = ScannedRecord(at, 0, None, None, str(error))
        if found is None:
            following = _next_written(files, path, at, size)
            if following is None:
                return
            if _is_mark(window, following, salt, chain) and following == mark_position(at):
                at = following
                continue
            found = ScannedRecord(at, following - at, None, None, "sectors are unwritten, and others follow")
        if found.problem and again(at):
            window = Window(files, path, size, _PIECE)
            continue
        if not found.size:
            following = _next_header(window, at + SECTOR, size, salt)
            end = window.written_end(at) if following is None else following
            found = found._replace(size=end - at)
        yield found
        chain = found.header.chain if found.header is not None else None
        at += found.size


def _scan_one(window: Window, at: int, size: int, salt: int, chain: int | None) -> ScannedRecord | None:
    """Return the record at an offset, good or not; None if its first sector is zeros.

    :raises BadRecord: if there is no header.
    """
    sector = window.get(at, SECTOR)
    if len(sector) < SECTOR:
        return ScannedRecord(at, size - at, None, None, "the file ends here")
    if sector == _ZERO_SECTOR:
        return None
    header = parse_header(sector, at, salt)
    if at + header.size > size:
        raise BadRecord("the record goes beyond the end of its segment")
    try:
        payload = check_record(header, window.get(at, header.size), salt, chain)
        if header.type == SEAL:
            decode_seal(payload)
        elif header.type == MARK and payload:
            raise BadRecord("an empty record has a payload")
        elif header.type != MARK:
            decode_operations(payload)
    except (BadRecord, BadSegment) as error:
        return ScannedRecord(at, header.size, header, None, str(error))
    return ScannedRecord(at, header.size, header, payload, "")


def _is_mark(window: Window, at: int, salt: int, chain: int | None) -> bool:
    try:
        sector = window.get(at, SECTOR)
        header = parse_header(sector.ljust(SECTOR, b"\0"), at, salt)
        check_record(header, sector, salt, chain)
    except BadRecord:
        return False
    return header.type == MARK


def _next_written(files: IFileSystem, path: str, start: int, size: int) -> int | None:
    """Return the first sector from ``start`` on that is not all zeros."""
    for at in range(start, size, _PIECE):
        piece = files.read(path, at, min(_PIECE, size - at))
        unused = len(piece) - len(piece.lstrip(b"\0"))
        if unused < len(piece):
            return at + unused // SECTOR * SECTOR
    return None


def _next_header(window: Window, start: int, size: int, salt: int) -> int | None:
    """Return where the next record begins."""
    for at in range(start, size, SECTOR):
        sector = window.get(at, SECTOR)
        if len(sector) < SECTOR:
            break
        if not sector[0]:
            continue
        try:
            parse_header(sector, at, salt)
        except BadRecord:
            continue
        return at
    return None


def full_replay(
    files: IFileSystem, path: str, segment: SegmentHeader, following: SegmentHeader | None, before: LogIndex | None
) -> tuple[LogIndex, Tail]:
    """Verify every record of a segment, with the rules of an opening, and against its successor.

    :param following: the next segment's header; None for the newest segment.
    :param before: what this function returned for the segment before; None if it is not known. It is used up.
    :return: the log's state at the end of the segment, and how it ends.
    :raises StorageCorrupt: at the first thing that is wrong.
    """
    index = LogIndex(summary_of(segment)) if before is None else before
    index.load(summary_of(segment))
    active = Segment(path, segment)
    index.segments.append(active)
    tail = replay(files, active, index)
    if following is not None:
        check_end(files, active, index, tail, following)
    return index, tail


def check_end(files: IFileSystem, segment: Segment, index: LogIndex, tail: Tail, following: SegmentHeader) -> None:
    """See that a segment, which was replayed as the index's newest, has its seal, and that its successor continues it.

    :raises StorageCorrupt: if not.
    """
    path = segment.path
    if not segment.sealed:
        reason = "a record was never finished, and a later segment exists" if tail.torn_end else "the seal is missing"
        raise StorageCorrupt(path, segment.end, reason, index.last.index + 1)
    check_link(segment, index, following)
    _check_seal(files, segment, index)


def check_link(segment: Segment, index: LogIndex, following: SegmentHeader) -> None:
    """See that a segment's successor continues it.

    :raises StorageCorrupt: if not.
    """
    entries = segment.header.last.index + 1
    if (segment.end, segment.chain) != (following.previous_end, following.chain):
        reason = f"its records end at {segment.end}, the next segment says {following.previous_end}"
        raise StorageCorrupt(segment.path, segment.end, reason, entries, following.last.index)
    if not _same(index.summary, summary_of(following)):
        reason = "its records and the next segment's header do not agree on the log's state"
        raise StorageCorrupt(segment.path, segment.end, reason, entries, following.last.index)


def _same(ended: Summary, header: Summary) -> bool:
    # A position whose entry was purged with its segment has no term; the header then has the one that was known.
    return ended == header or (ended.last.term < 0 and ended._replace(last=header.last) == header)


def _check_seal(files: IFileSystem, segment: Segment, index: LogIndex) -> None:
    """Compare what the seal says of a segment with what the records say."""
    at, salt = segment.end, segment.header.salt
    try:
        header = parse_header(files.read(segment.path, at, SECTOR), at, salt)
        seal = decode_seal(check_record(header, files.read(segment.path, at, header.size), salt, segment.chain))
    except (BadRecord, BadSegment) as error:
        raise StorageCorrupt(segment.path, at, str(error), segment.header.last.index + 1) from None
    found = segment.seal(index.last, index.time_ms)
    wrong = [name for name, said, is_so in zip(Seal._fields, seal, found, strict=True) if said != is_so]
    if wrong and not (wrong == ["last_term"] and index.last.term < 0):
        reason = f"the seal and the records do not agree on {', '.join(wrong)}"
        raise StorageCorrupt(segment.path, at, reason, seal.first, seal.last)
    behind = _next_written(files, segment.path, at + header.size, segment.header.size)
    if behind is not None:
        # It costs no entry, but nothing of ours wrote it.
        raise StorageCorrupt(segment.path, behind, "there are bytes behind the seal", seal.last + 1, seal.last)
