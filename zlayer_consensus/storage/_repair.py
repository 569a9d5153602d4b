"""Carrying out a repair, in steps of which each may be interrupted and the whole be done again.

The order is what makes that so: the mark is durable before anything else is changed; what is cut has a second name in
the quarantine before it loses its first; and the new segments stand complete in a directory of their own before they
take the place of the old ones.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import InvariantBroken, StorageFailed, StorageFull
from ..raft import NO_LOG
from ._files import IFile, IFileSystem
from ._identity import IDENTITY_NAME, write_identity
from ._inspect_snapshots import SnapshotFile
from ._log_index import Summary
from ._record import BATCH, Purge, SetState, encode_operation, encode_record
from ._recovery import Layout, encode_seal_record
from ._repair_plan import RepairPlan
from ._segment import SEGMENT_HEADER, Segment, SegmentHeader, encode_header, segment_name
from ._snapshot_files import SnapshotDirectory
from .interfaces import Identity

__all__ = ["RepairOutcome", "carry_out", "finish_interrupted", "interrupted"]

_PIECE = 1 << 20
_NEW_SEGMENT = 64 << 10
"""Size of the segment with which the log goes on; the node's next one has the configured size."""
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class RepairOutcome:
    """What a repair did.

    :param identity: the identity as it is now.
    :param quarantine: the directory with all that was cut.
    """

    identity: Identity
    quarantine: str


def interrupted(files: IFileSystem, directory: str) -> bool:
    """Say whether a repair was interrupted when there was nothing left to decide."""
    layout = Layout(directory)
    return files.exists(layout.replaced) or (files.exists(layout.repaired) and not files.exists(layout.wal))


def finish_interrupted(files: IFileSystem, directory: str) -> None:
    """Bring what an interrupted repair left to an end, if it had nothing more to decide. The caller has the lock."""
    layout = Layout(directory)
    if files.exists(layout.repaired) and not files.exists(layout.wal):
        _put_in_place(files, layout)
    if files.exists(layout.replaced):
        _discard(files, layout.replaced)
        files.sync_dir(directory)


def carry_out(
    files: IFileSystem, directory: str, snapshots: str, plan: RepairPlan, random_bytes: Callable[[int], bytes]
) -> RepairOutcome:
    """Do what a plan says. The caller has the lock of the log, and that of the snapshots.

    :param random_bytes: makes the repair id, and the salt of a segment.
    :raises StorageFailed: if the disk refuses. The repair can be done again.
    """
    return _Repair(files, directory, snapshots, plan, random_bytes).run()


class _Repair:
    def __init__(
        self,
        files: IFileSystem,
        directory: str,
        snapshots: str,
        plan: RepairPlan,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._files = files
        self._layout = Layout(directory)
        self._snapshots = SnapshotDirectory(files, snapshots)
        self._plan = plan
        self._random_bytes = random_bytes
        self._id = random_bytes(_ID_BYTES)
        self._aside = f"{self._layout.quarantine}/repair-{self._id.hex()[:12]}"

    def run(self) -> RepairOutcome:
        plan, layout, files = self._plan, self._layout, self._files
        identity = plan.identity
        self._make_aside()
        if plan.identity_damaged and files.exists(f"{layout.directory}/{IDENTITY_NAME}"):
            self._set_aside(f"{layout.directory}/{IDENTITY_NAME}", IDENTITY_NAME)
            files.sync_dir(self._aside)
        if plan.marks:
            identity = replace(identity, repair=self._id)
            write_identity(files, layout.directory, identity)
        self._quarantine()
        if plan.rewrites_log:
            self._rewrite(identity)
        for each in plan.snapshots:
            self._remove_snapshot(each)
        finish_interrupted(files, layout.directory)
        return RepairOutcome(identity, self._aside)

    # What is cut

    def _make_aside(self) -> None:
        files, layout = self._files, self._layout
        files.mkdir(layout.quarantine)
        files.sync_dir(layout.directory)
        files.mkdir(self._aside)
        files.sync_dir(layout.quarantine)

    def _quarantine(self) -> None:
        """Give all that is going to be changed or removed a second name, durably."""
        for path in (*self._plan.dropped, self._plan.cut):
            if path:
                self._set_aside(path, posixpath.basename(path))
        for each in self._plan.snapshots:
            self._set_aside_tree(each.path, f"snap-{posixpath.basename(each.path)}")
        self._files.sync_dir(self._aside)

    def _set_aside_tree(self, path: str, name: str) -> None:
        inside = _names_in(self._files, path)
        if inside is None:
            self._set_aside(path, name)
            return
        target = f"{self._aside}/{name}"
        self._files.mkdir(target)
        for child in inside:
            self._set_aside_tree(posixpath.join(path, child), f"{name}/{child}")
        self._files.sync_dir(target)

    def _set_aside(self, path: str, name: str) -> None:
        _duplicate(self._files, path, f"{self._aside}/{name}")

    # The segments

    def _rewrite(self, identity: Identity) -> None:
        """Build the new segments beside the old ones, and put them in their place."""
        files, layout, run = self._files, self._layout, self._plan.run
        _discard(files, layout.repaired)
        files.mkdir(layout.repaired)
        if files.exists(layout.reserve):
            _duplicate(files, layout.reserve, f"{layout.repaired}/{posixpath.basename(layout.reserve)}")
        if run is None:
            self._begin_anew(identity)
        else:
            kept = run.index.segments[:-1] if self._plan.cut else run.index.segments
            for segment in kept:
                _duplicate(files, segment.path, f"{layout.repaired}/{posixpath.basename(segment.path)}")
            if self._plan.cut:
                self._write_cut(run.index.active, run.index.summary)
                self._go_on(identity, run.index.active, run.index.summary)
        files.sync_dir(layout.repaired)
        files.sync_dir(layout.directory)
        if files.exists(layout.wal):
            _discard(files, layout.replaced)
            files.sync_dir(layout.directory)
            files.rename(layout.wal, layout.replaced)
            # Before the next rename: else a crash could keep that one alone.
            files.sync_dir(layout.directory)
        _put_in_place(files, layout)

    def _write_cut(self, segment: Segment, summary: Summary) -> None:
        """Copy the good part of a segment, and end it with a seal."""
        header = segment.header
        seal = encode_seal_record(segment, summary)
        if segment.end + len(seal) > header.size:
            raise InvariantBroken(f"{segment.path} has no room for its seal behind offset {segment.end}")
        with_file = self._create(segment_name(header.seq, header.last.index + 1), header.size)
        try:
            for at in range(0, segment.end, _PIECE):
                with_file.write(at, self._files.read(segment.path, at, min(_PIECE, segment.end - at)))
            with_file.write(segment.end, seal)
            with_file.sync()
        finally:
            with_file.close()

    def _go_on(self, identity: Identity, last: Segment, summary: Summary) -> None:
        """Make the segment that follows; its first record has the new term, vote and commit."""
        plan = self._plan
        operations: list[Purge | SetState] = [Purge(plan.purge)] if plan.purge is not None else []
        operations.append(SetState(plan.state))
        payload = b"".join(map(encode_operation, operations))
        header = self._header(identity, last.header.seq + 1, summary, last.end, last.chain)
        index = summary.last.index
        record, _ = encode_record(BATCH, payload, 0, index + 1, index, SEGMENT_HEADER, header.salt, header.chain)
        self._write_new(header, record)

    def _begin_anew(self, identity: Identity) -> None:
        """Make the only segment of an empty log, which starts where the snapshot ends."""
        plan = self._plan
        taken = [_sequence(path) for path in plan.dropped]
        point = plan.point
        last, time_ms = (NO_LOG, 0) if point is None else (point.last, point.time_ms)
        summary = Summary(last, last, plan.state, last.index, time_ms)
        self._write_new(self._header(identity, max(taken, default=0) + 1, summary, 0, 0), b"")

    def _header(self, identity: Identity, seq: int, summary: Summary, previous_end: int, chain: int) -> SegmentHeader:
        salt = int.from_bytes(self._random_bytes(4), "little")
        return SegmentHeader(
            identity.cluster_id, identity.node_id, identity.incarnation, seq, _NEW_SEGMENT, salt, chain, previous_end,
            summary.last, summary.purged, summary.state, summary.committed, summary.time_ms,
        )  # fmt: skip

    def _write_new(self, header: SegmentHeader, record: bytes) -> None:
        file = self._create(segment_name(header.seq, header.last.index + 1), header.size)
        try:
            file.write(0, encode_header(header))
            if record:
                file.write(SEGMENT_HEADER, record)
            file.sync()
        finally:
            file.close()

    def _create(self, name: str, size: int) -> IFile:
        file = self._files.create(f"{self._layout.repaired}/{name}")
        try:
            file.zero(0, size)
        except BaseException:
            file.close()
            raise
        return file

    # The snapshots

    def _remove_snapshot(self, each: SnapshotFile) -> None:
        if each.position is not None:
            self._snapshots.remove_path(each.path)
            return
        _discard(self._files, each.path)
        self._files.sync_dir(self._snapshots.root)


def _put_in_place(files: IFileSystem, layout: Layout) -> None:
    files.rename(layout.repaired, layout.wal)
    files.sync_dir(layout.directory)


def _sequence(path: str) -> int:
    return int(posixpath.basename(path)[:16], 16)


def _names_in(files: IFileSystem, path: str) -> list[str] | None:
    """Return what is in a directory; None if it is a file."""
    try:
        return files.list(path)
    except StorageFailed:
        if not files.exists(path):
            raise
        return None


def _discard(files: IFileSystem, path: str) -> None:
    """Remove a file, or a directory with all that is in it, if it is there."""
    if not files.exists(path):
        return
    for name in _names_in(files, path) or ():
        _discard(files, posixpath.join(path, name))
    files.remove(path)


def _duplicate(files: IFileSystem, path: str, target: str) -> None:
    """Give a file a second name, or, where the file system has no such thing, make a copy that is durable."""
    if files.exists(target):
        files.remove(target)
    try:
        files.link(path, target)
        return
    except StorageFull:
        raise
    except StorageFailed:
        file = files.create(target)
    try:
        for at in range(0, files.size(path), _PIECE):
            file.write(at, files.read(path, at, _PIECE))
        file.sync()
    finally:
        file.close()
