"""Opening a log directory: what is there, whether it is whole, and the few repairs that lose nothing.

Everything is looked at before anything is changed. A refusal leaves the directory as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ..errors import StorageCorrupt, StorageFull, WrongIdentity
from ._files import IFileSystem
from ._identity import IDENTITY_NAME
from ._log_index import LogIndex, Summary
from ._record import SEAL, SECTOR, BadRecord, check_record, encode_record, parse_header
from ._scan import Tail, is_blank, replay
from ._segment import (
    SEGMENT_HEADER,
    BadSegment,
    NewerFormat,
    Segment,
    SegmentHeader,
    decode_header,
    decode_seal,
    encode_seal,
    parse_name,
    segment_name,
)
from .interfaces import Identity

__all__ = ["Findings", "Layout", "beginnings", "encode_seal_record", "examine", "recover", "summary_of"]


class Layout:
    """Where the parts of a log directory are."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.wal = f"{directory}/wal"
        self.quarantine = f"{directory}/quarantine"
        self.reserve = f"{self.wal}/reserve"
        self.lock = f"{directory}/LOCK"
        self.repaired = f"{directory}/wal.repaired"
        self.replaced = f"{directory}/wal.replaced"


def encode_seal_record(segment: Segment, summary: Summary) -> bytes:
    """Encode the SEAL record for a segment, as of its end."""
    payload = encode_seal(segment.seal(summary.last, summary.time_ms))
    last = summary.last.index
    return encode_record(SEAL, payload, 0, last + 1, last, segment.end, segment.header.salt, segment.chain)[0]


def recover(file_system: IFileSystem, layout: Layout, identity: Identity) -> tuple[LogIndex, bool, list[str]]:
    """Open an existing log.

    :return: its index, whether its last record proves that all entries before it are durable, and what to warn of.
    :raises StorageCorrupt: if it is damaged; nothing was changed then.
    :raises WrongIdentity: if a segment is another directory's.
    """
    return _Recovery(file_system, layout, identity).run()


@dataclass(frozen=True, slots=True)
class Findings:
    """What an opening finds in a log directory before it changes anything.

    :param index: the log's state, as the opening would go on with it.
    :param tail: how the newest segment ends.
    :param unsealed: the newest segment but one and how it ends, if it still has to get its seal.
    :param leftovers: files that the opening would remove.
    """

    index: LogIndex
    tail: Tail
    unsealed: tuple[Segment, Tail] | None
    leftovers: tuple[str, ...]


def examine(file_system: IFileSystem, layout: Layout, identity: Identity) -> Findings:
    """Decide as :func:`recover` does, by the same code, and change nothing.

    :raises StorageCorrupt: if it is damaged.
    :raises WrongIdentity: if a segment is another directory's.
    """
    return _Recovery(file_system, layout, identity).look()


def beginnings(file_system: IFileSystem, layout: Layout) -> list[str]:
    """Return the segment files of a directory without identity: what a crash left of the making of a log.

    :raises StorageCorrupt: if one of them holds records; then it was no beginning.
    """
    wal = layout.wal
    found = [f"{wal}/{name}" for name in file_system.list(wal) if parse_name(name) or name.endswith(".tmp")]
    for path in found:
        if not is_blank(file_system, path, file_system.size(path)):
            missing = f"{layout.directory}/{IDENTITY_NAME}"
            raise StorageCorrupt(missing, 0, f"the identity is missing, though {path} holds records", 1)
    return found


class _Recovery:
    def __init__(self, file_system: IFileSystem, layout: Layout, identity: Identity) -> None:
        self._file_system = file_system
        self._layout = layout
        self._identity = identity
        self._warnings: list[str] = []
        self._obsolete: list[str] = []
        self._unsealed: tuple[Segment, Summary, Tail] | None = None

    def run(self) -> tuple[LogIndex, bool, list[str]]:
        found = self.look()
        self._repair(found.index, found.index.active, found.tail)
        return found.index, found.tail.closed, self._warnings

    # Looking

    def look(self) -> Findings:
        segments = self._segments()
        index = LogIndex(summary_of(segments[0].header))
        index.needed = segments[0].header.last.index
        for segment, following in pairwise(segments):
            self._load_sealed(index, segment, following, following is segments[-1])
            index.load(summary_of(following.header))
        active = segments[-1]
        index.segments.append(active)
        tail = replay(self._file_system, active, index)
        self._check(index, active, tail)
        unsealed = None if self._unsealed is None else (self._unsealed[0], self._unsealed[2])
        return Findings(index, tail, unsealed, tuple(self._obsolete))

    def _segments(self) -> list[Segment]:
        """Return the segments of the log, oldest first: the unbroken row that ends with the newest."""
        found: dict[int, str] = {}
        there = self._file_system.exists(self._layout.wal)
        for name in self._file_system.list(self._layout.wal) if there else ():
            path = f"{self._layout.wal}/{name}"
            parsed = parse_name(name)
            if parsed is None:
                # Preallocated and never named; or not ours, then it stays.
                if name.endswith(".tmp"):
                    self._obsolete.append(path)
                continue
            if parsed[0] in found:
                raise StorageCorrupt(path, 0, f"there is another segment {parsed[0]}", parsed[1])
            found[parsed[0]] = path
        if not found:
            raise StorageCorrupt(self._layout.wal, 0, "all segments of the log are missing, though it was begun", 1)
        segments: list[Segment] = []
        seq = max(found)
        while seq in found:
            segments.insert(0, self._open(seq, found.pop(seq)))
            seq -= 1
        # Older ones, beyond a gap, are what an interrupted purge left: `_check` refuses if the gap was not purged.
        self._obsolete.extend(path for _, path in sorted(found.items()))
        return segments

    def _open(self, seq: int, path: str) -> Segment:
        try:
            header = decode_header(self._file_system.read(path, 0, SEGMENT_HEADER))
        except NewerFormat as error:
            raise WrongIdentity(path, "format version", "1", str(error.version)) from None
        except BadSegment as error:
            raise StorageCorrupt(path, 0, str(error), (parse_name(path.rpartition("/")[2]) or (0, 0))[1]) from None
        first = header.last.index + 1
        for field, expected, got in (
            ("node", self._identity.node_id, header.node_id),
            ("incarnation", self._identity.incarnation.hex(), header.incarnation.hex()),
        ):
            if expected != got:
                raise WrongIdentity(path, field, str(expected), str(got))
        # The first one is made before the node belongs to a cluster.
        known = (self._identity.cluster_id, *self._identity.former)
        if header.cluster_id not in known and not (seq == 1 and not header.cluster_id):
            raise WrongIdentity(path, "cluster", self._identity.cluster_id.hex(), header.cluster_id.hex())
        if path.rpartition("/")[2] != segment_name(header.seq, first):
            raise StorageCorrupt(path, 0, f"the file is segment {header.seq} from entry {first} on", first)
        size = self._file_system.size(path)
        if size != header.size:
            raise StorageCorrupt(path, min(size, header.size), f"it has {size} bytes instead of {header.size}", first)
        return Segment(path, header)

    def _load_sealed(self, index: LogIndex, segment: Segment, following: Segment, newest: bool) -> None:
        """Take in a segment that has a successor, by its seal alone if it has one."""
        base, last = segment.header.last.index + 1, following.header.last.index
        end, chain = following.header.previous_end, following.header.chain
        try:
            sector = self._file_system.read(segment.path, end, SECTOR)
            header = parse_header(sector, end, segment.header.salt)
            record = self._file_system.read(segment.path, end, header.size)
            payload = check_record(header, record, segment.header.salt, chain)
            if header.type != SEAL:
                raise BadRecord("the segment's seal is missing")
            seal = decode_seal(payload)
        except (BadRecord, BadSegment) as error:
            if newest and self._never_sealed(index, segment, following):
                return
            raise StorageCorrupt(segment.path, end, str(error), base, last) from None
        ends = last if seal.first <= seal.last else seal.last
        if (seal.next_seq, seal.last, seal.last_term) != (following.header.seq, ends, following.header.last.term):
            raise StorageCorrupt(segment.path, end, "the seal and the next segment do not agree", base, last)
        segment.apply_seal(seal)
        segment.end, segment.chain, segment.seal_bytes = end, chain, header.size
        index.add_sealed(segment)

    def _never_sealed(self, index: LogIndex, segment: Segment, following: Segment) -> bool:
        """Replay a segment whose seal is not there, if a crash came before it: then its successor is still empty."""
        if not is_blank(self._file_system, following.path, following.header.size):
            return False
        index.segments.append(segment)
        tail = replay(self._file_system, segment, index)
        if (segment.end, segment.chain) != (following.header.previous_end, following.header.chain) or segment.sealed:
            reason = f"its records end at {segment.end}, the next segment says {following.header.previous_end}"
            first = index.last.index + 1
            raise StorageCorrupt(segment.path, segment.end, reason, first, following.header.last.index)
        if index.summary != summary_of(following.header):
            raise StorageCorrupt(following.path, 0, "the header and the segment before do not agree", index.last.index)
        self._unsealed = segment, index.summary, tail
        return True

    def _check(self, index: LogIndex, active: Segment, tail: Tail) -> None:
        """Look for what is missing as a whole."""
        if active.sealed:
            reason = f"the segment is sealed, but segment {active.header.seq + 1}, which must follow, is missing"
            raise StorageCorrupt(active.path, active.end, reason, index.last.index + 1)
        if index.purged.index < index.needed:
            oldest = index.segments[0]
            reason = f"segment {oldest.header.seq - 1}, which must come before, is missing"
            raise StorageCorrupt(oldest.path, 0, reason, index.purged.index + 1, index.needed)

    # Repairing

    def _repair(self, index: LogIndex, active: Segment, tail: Tail) -> None:
        """Make durable what was found, and clear away what a crash left. Each step may be interrupted."""
        self._file_system.sync_dir(self._layout.directory)
        self._file_system.sync_dir(self._layout.wal)
        if self._unsealed is not None:
            self._finish_seal(*self._unsealed)
        elif len(index.segments) > 1 and tail.last_record is None:
            before = index.segments[-2]
            self._rewrite(before.path, before.end, before.seal_bytes)
        if tail.torn_end:
            copied = self._set_aside(active, tail.torn_end)
            self._warnings.append(
                f"{active.path}: dropped an unfinished record at offset {active.end}, {tail.torn_end - active.end} "
                f"bytes, after entry {index.last.index}; it was never acknowledged, "
                + ("a copy is in quarantine" if copied else "and there is no space for a copy")
            )
        if tail.last_record is not None:
            self._rewrite(active.path, *tail.last_record)
        for path in self._obsolete:
            self._file_system.remove(path)
        if self._obsolete:
            self._file_system.sync_dir(self._layout.wal)

    def _rewrite(self, path: str, offset: int, size: int) -> None:
        """Write a record again, as it is, and sync it.

        It may be in the page cache alone: its writer was killed before the sync, or the sync failed. A sync by itself
        would not help then, as a failed one leaves pages that count as clean.
        """
        self._write(path, offset, self._file_system.read(path, offset, size))

    def _write(self, path: str, offset: int, data: bytes) -> None:
        file = self._file_system.open(path)
        try:
            file.write(offset, data)
            file.sync()
        finally:
            file.close()

    def _finish_seal(self, segment: Segment, summary: Summary, tail: Tail) -> None:
        if tail.last_record is not None:
            self._rewrite(segment.path, *tail.last_record)
        if tail.torn_end:
            self._write(segment.path, segment.end, bytes(tail.torn_end - segment.end))
        self._write(segment.path, segment.end, encode_seal_record(segment, summary))
        segment.sealed = True

    def _set_aside(self, segment: Segment, end: int) -> bool:
        """Copy what is unfinished to the quarantine, if there is space, and replace it by zeros; say if it was copied.

        The copy is for people who want to look at it. The reserve, and a start, are worth more (S-10).
        """
        data = self._file_system.read(segment.path, segment.end, end - segment.end)
        copied = True
        try:
            self._copy(segment, data)
        except StorageFull:
            copied = False
        self._write(segment.path, segment.end, bytes(len(data)))
        return copied

    def _copy(self, segment: Segment, data: bytes) -> None:
        self._file_system.mkdir(self._layout.quarantine)
        self._file_system.sync_dir(self._layout.directory)
        prefix = f"{segment.path.rpartition('/')[2]}-at-{segment.end}-"
        taken = set(self._file_system.list(self._layout.quarantine))
        number = 1
        while prefix + str(number) in taken:
            number += 1
        file = self._file_system.create(f"{self._layout.quarantine}/{prefix}{number}")
        try:
            file.write(0, data)
            file.sync()
        except StorageFull:
            self._file_system.remove(file.path)
            raise
        finally:
            file.close()
        self._file_system.sync_dir(self._layout.quarantine)


def summary_of(header: SegmentHeader) -> Summary:
    """Return the log's state as of a segment's start."""
    return Summary(header.last, header.purged, header.state, header.committed, header.time_ms)
