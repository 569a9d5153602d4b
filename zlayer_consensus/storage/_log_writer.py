"""The blocking half of the file log store: it owns the files, and every call of it runs on the store's executor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Concatenate, ParamSpec, TypeVar

from ..errors import InvariantBroken, LogCompacted, WrongIdentity
from ..raft import NO_LOG, Entry, HardState, LogWrite, Start
from ._drafts import RecordDraft, drafts
from ._files import IFile, IFileLock, IFileSystem
from ._identity import IDENTITY_NAME, read_identity, write_identity
from ._log_index import LogIndex, Summary
from ._log_scrub import LogScrub
from ._record import BATCH, MARK, PAGE, SECTOR, Purge, encode_record, mark_position, record_size, stored_length
from ._recovery import Layout, beginnings, encode_seal_record, recover
from ._scan import read_entries
from ._segment import SEGMENT_HEADER, SegmentHeader, seal_bound
from ._segment_files import SegmentFiles
from .interfaces import Identity, ScrubStep

__all__ = ["LogWriter"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _final(method: Callable[Concatenate[LogWriter, _P], _R]) -> Callable[Concatenate[LogWriter, _P], _R]:
    """Let nothing follow a failure (S-12): what is to follow may be queued already when it becomes known."""

    @functools.wraps(method)
    def call(self: LogWriter, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        if self._failure is not None:
            raise self._failure
        try:
            return method(self, *args, **kwargs)
        except BaseException as error:
            self._failure = error
            raise

    return call


_FRESH = Summary(NO_LOG, NO_LOG, HardState(), 0, 0)


class LogWriter:
    """Segments, records and the files around them.

    After an exception from any of its methods but ``read``, all but ``close`` raise that exception again: what the
    disk holds is unknown then, and nothing is truncated or tried again.

    :param segment_bytes: size of a segment; one that must hold a larger record is larger.
    :param reserve_bytes: size of the file that becomes a segment when the disk is full.
    :param record_bytes: most payload bytes of a record that holds more than one entry.
    :param tail_bytes: about how many bytes of the newest entries ``open`` returns.
    """

    def __init__(
        self,
        file_system: IFileSystem,
        directory: str,
        node_id: int,
        random_bytes: Callable[[int], bytes],
        segment_bytes: int,
        reserve_bytes: int,
        record_bytes: int,
        tail_bytes: int,
    ) -> None:
        self.warnings: list[str] = []
        self._file_system = file_system
        self._layout = Layout(directory)
        self._files = SegmentFiles(file_system, self._layout.wal, self._layout.reserve, segment_bytes, reserve_bytes)
        self._scrub = LogScrub(file_system)
        self._node_id = node_id
        self._random_bytes = random_bytes
        self._segment_bytes = segment_bytes
        self._record_bytes = record_bytes
        self._tail_bytes = tail_bytes
        self._identity: Identity
        self._index: LogIndex
        self._lock: IFileLock | None = None
        self._file: IFile | None = None
        self._closed = True
        """Whether the last record is such that no damage before it can be taken for an unfinished write."""
        self._failure: BaseException | None = None

    # Opening and closing

    def open(self) -> tuple[Identity, Start]:
        """Recover the log, or begin one in an empty directory; see ``ILogStore.open``."""
        try:
            return self._open()
        except BaseException:
            self.close(False)
            raise

    def _open(self) -> tuple[Identity, Start]:
        fs, layout = self._file_system, self._layout
        fs.mkdir(layout.directory)
        self._lock = fs.lock(layout.lock)
        identity = read_identity(fs, layout.directory, self._node_id)
        if identity is None:
            self._begin()
        else:
            self._identity = identity
            self._index, self._closed, self.warnings = recover(fs, layout, identity)
        self._file = fs.open(self._index.active.path)
        self.mark()
        self.drop_purged()
        self._files.make_room(0)
        if self._files.full:
            self.warnings.append(f"{layout.wal}: there is little or no space left")
        return self._identity, self._start()

    def _start(self) -> Start:
        index = self._index
        first = max(index.active.tail_start(self._tail_bytes), index.purged.index + 1)
        tail = read_entries(self._file_system, index, first, index.last.index, self._record_bytes + self._tail_bytes)
        if tail and tail[-1].index != index.last.index:
            tail = []
        configs = [read_entries(self._file_system, index, at, at, 1)[0] for at in index.configs()]
        return Start(
            hard_state=index.state,
            purged=index.purged,
            last=index.last,
            terms=index.terms(),
            configs=tuple(configs),
            tail=tuple(tail),
            last_time_ms=index.time_ms,
        )

    def _begin(self) -> None:
        """Make a new log. The identity comes last: with it, a log without segments is a damaged one."""
        fs, layout = self._file_system, self._layout
        fs.sync_dir(layout.directory.rpartition("/")[0] or ("/" if layout.directory.startswith("/") else "."))
        fs.mkdir(layout.wal)
        fs.sync_dir(layout.directory)
        for path in beginnings(fs, layout):
            fs.remove(path)
        self._identity = Identity(self._node_id, self._random_bytes(16))
        self._index = LogIndex(_FRESH)
        size = self._segment_bytes
        segment, file = self._files.create(self._header(1, 0, 0, _FRESH, size), size)
        file.close()
        self._index.segments.append(segment)
        write_identity(fs, layout.directory, self._identity)

    @_final
    def adopt(self, identity: Identity) -> Identity:
        """Set cluster and origin; see ``ILogStore.adopt``."""
        mine = self._identity
        path = f"{self._layout.directory}/{IDENTITY_NAME}"
        adopted = replace(mine, cluster_id=identity.cluster_id, origin=identity.origin)
        if adopted == mine:
            return mine
        if mine.cluster_id:
            raise WrongIdentity(path, "cluster", identity.cluster_id.hex(), mine.cluster_id.hex())
        if len(identity.cluster_id) != 16:
            raise InvariantBroken(f"a cluster id has 16 bytes, not {len(identity.cluster_id)}")
        if self._index.summary != _FRESH or len(self._index.segments) > 1:
            raise InvariantBroken("a log that was written to cannot join a cluster")
        write_identity(self._file_system, self._layout.directory, adopted)
        self._identity = adopted
        return adopted

    @_final
    def clear_repair(self) -> Identity:
        """Remove the mark of a repair; see ``ILogStore.clear_repair``."""
        if self._identity.repair:
            unmarked = replace(self._identity, repair=b"")
            write_identity(self._file_system, self._layout.directory, unmarked)
            self._identity = unmarked
        return self._identity

    @_final
    def move(self, identity: Identity) -> None:
        """Belong to another cluster, durably: what a recovery from the loss of a majority does. Node and incarnation
        stay, and the clusters that segments are of stand in ``former``.

        The log goes on in a segment that names the new cluster, so that the identity can be read from there, too.
        """
        if identity != self._identity:
            write_identity(self._file_system, self._layout.directory, identity)
            self._identity = identity
        if self._index.active.header.cluster_id != identity.cluster_id:
            self._rotate(PAGE)

    def close(self, clean: bool) -> None:
        """Release the files and the lock. With ``clean``, write an empty record first, if one is missing."""
        try:
            if self._file is not None:
                if clean and self._failure is None:
                    self.mark()
                self._file.close()
            self._files.close()
        finally:
            self._file = None
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    # Writing

    @_final
    def commit(self, items: Sequence[LogWrite | Purge]) -> None:
        """Write a group, durably: each record is synced before the next is written.

        :raises InvariantBroken: if a write breaks a rule of the log.
        """
        try:
            for draft in drafts(items, self._index, self._record_bytes):
                self._append(draft)
        except ValueError as error:
            raise InvariantBroken(str(error)) from error

    def _append(self, draft: RecordDraft) -> None:
        payload = b"".join(draft.pieces)
        active = self._index.active
        # Behind it there must be room for an empty record and for the seal.
        room = record_size(stored_length(len(payload))) + PAGE
        growth = draft.points, draft.terms, draft.configs
        if active.end + room + active.seal_size(*growth) > active.header.size:
            self._rotate(room + seal_bound(*growth))
            active = self._index.active
        self._index.apply(draft.operations, active.end)
        last = self._index.last.index
        self._write(BATCH, payload, draft.entries, draft.first if draft.entries else last + 1)
        self._closed = False

    def _write(self, kind: int, payload: bytes, entries: int, first: int) -> None:
        active, last = self._index.active, self._index.last.index
        record, chain = encode_record(
            kind, payload, entries, first, last, active.end, active.header.salt, active.chain
        )  # fmt: skip
        assert self._file is not None
        self._file.write(active.end, record)
        self._file.sync()
        active.end += len(record)
        active.chain = chain

    @_final
    def mark(self) -> None:
        """Write an empty record, unless the last one is: from now on, damage before it cannot be a torn write."""
        if self._closed:
            return
        active = self._index.active
        position = mark_position(active.end)
        if position + SECTOR + active.seal_size(0, 0, 0) <= active.header.size:
            active.end = position
            self._write(MARK, b"", 0, self._index.last.index + 1)
            self._closed = True

    def _rotate(self, room: int) -> None:
        """Go on in a new segment with at least ``room`` bytes.

        The order is what recovery relies on: the new file is durable under its name before the old one is sealed, and
        the seal is durable before anything is written to the new one.
        """
        old, index = self._index.active, self._index
        wanted = SEGMENT_HEADER + room
        header = self._header(
            old.header.seq + 1, old.end, old.chain, index.summary, max(self._segment_bytes, wanted)
        )  # fmt: skip
        segment, file = self._files.create(header, wanted)
        assert self._file is not None
        seal = encode_seal_record(old, index.summary)
        self._file.write(old.end, seal)
        self._file.sync()
        self._file.close()
        old.sealed, old.seal_bytes = True, len(seal)
        index.segments.append(segment)
        self._file, self._closed = file, True

    def _header(self, seq: int, previous_end: int, chain: int, summary: Summary, size: int) -> SegmentHeader:
        salt = int.from_bytes(self._random_bytes(4), "little")
        mine = self._identity
        size = -(-size // SECTOR) * SECTOR
        return SegmentHeader(
            mine.cluster_id, mine.node_id, mine.incarnation, seq, size, salt, chain, previous_end,
            summary.last, summary.purged, summary.state, summary.committed, summary.time_ms,
        )  # fmt: skip

    @property
    def full(self) -> bool:
        """Whether there was no space when some was needed, and still is none."""
        return self._files.full

    @_final
    def space(self, keep: int) -> int:
        """See whether there is space again; see ``ILogStore.space``."""
        return self._files.make_room(keep)

    @property
    def has_work(self) -> bool:
        """Whether ``do_work`` has anything to do."""
        return self._files.wants_spare(self._index.active) or self._index.has_purged

    @_final
    def do_work(self) -> bool:
        """Remove what is purged and prepare a part of the next segment; return whether there is more."""
        self.drop_purged()
        active = self._index.active
        if self._files.wants_spare(active):
            self._files.extend_spare(active.header.seq + 1)
        return self._files.wants_spare(active)

    # Reading and purging

    def read(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        """Read entries; see ``ILogStore.read``.

        :raises ValueError: if ``first`` lies behind the last durable entry.
        """
        if first <= self._index.purged.index:
            raise LogCompacted(self._index.purged.index + 1)
        end = self._index.last.index
        if not first <= end or last < first:
            raise ValueError(f"entries {first} to {last} are not in the log, which ends with {end}")
        return read_entries(self._file_system, self._index, first, min(last, end), max_bytes)

    def scrub(self, max_bytes: int) -> ScrubStep:
        """Verify the next piece of the sealed segments; see ``ILogStore.scrub``."""
        return self._scrub.step(self._index.segments, max_bytes)

    def drop_purged(self) -> None:
        """Remove the files of segments whose entries are all purged, oldest first (S-26)."""
        taken = self._index.take_purged()
        for segment in taken:
            self._file_system.remove(segment.path)
        if taken:
            self._file_system.sync_dir(self._layout.wal)
