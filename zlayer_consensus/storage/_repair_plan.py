"""What a damaged data directory still has, and what a repair makes of it. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import StorageCorrupt, StorageError, WrongIdentity
from ..raft import NO_LOG, HardState, LogId, Membership, SnapshotPoint
from ._files import IFileSystem
from ._fit import log_must_yield
from ._identity import IDENTITY_NAME, read_identity
from ._inspect import NoLog, SegmentFile, list_segments, start_of
from ._inspect_snapshots import SnapshotFile, list_snapshots, verify_parts
from ._log_index import LogIndex
from ._recovery import Layout
from ._repair_runs import Run, Traces, find_runs
from ._scan import walk_entries
from ._segment import SEGMENT_HEADER, NewerFormat, decode_header
from .interfaces import Identity

__all__ = ["CannotRepair", "RepairPlan", "plan_repair"]

_Counter = Callable[[int], None]


class CannotRepair(StorageError):
    """What is wrong with the directory is nothing that a repair can mend. Nothing was changed."""

    code = "cannot_repair"


@dataclass(frozen=True)
class RepairPlan:
    """What a repair keeps, and what it puts aside.

    :param identity: whose directory it is.
    :param identity_damaged: whether that was read from the segments, as the identity file is damaged.
    :param snapshot: the newest good snapshot.
    :param run: the segments of which the log goes on to consist; None if it begins anew behind the snapshot.
    :param last: where the log then ends.
    :param state: what its term, vote and commit become, if it has to be rewritten.
    :param purge: position up to which the log is purged, because what is before it is damaged; or None.
    :param traces: the greatest that was seen anywhere.
    :param damage: why the log ends at ``last``, and what else is damaged.
    :param dropped: segment files of which nothing is kept.
    :param cut: the one of which the first part is kept; empty if there is none.
    :param snapshots: damaged snapshots, and what else is in their directory and does not belong there.
    :param marks: whether something may be lost that the node has acknowledged, so that it has to be marked.
    :param membership: the configuration in effect, as far as it is there.
    """

    identity: Identity
    identity_damaged: bool
    snapshot: SnapshotFile | None
    run: Run | None
    last: LogId
    state: HardState
    purge: LogId | None
    traces: Traces
    damage: tuple[StorageError, ...]
    dropped: tuple[str, ...]
    cut: str
    snapshots: tuple[SnapshotFile, ...]
    marks: bool
    membership: Membership | None

    @property
    def rewrites_log(self) -> bool:
        """Whether the segments have to be changed."""
        return bool(self.cut or self.dropped or self.run is None)

    @property
    def sole_voter(self) -> bool:
        """Whether the node is the only one that votes, as far as its log says."""
        return self.membership is not None and self.membership.all_voters == {self.identity.node_id}

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.damage)

    @property
    def point(self) -> SnapshotPoint | None:
        """The newest good snapshot's position, with configuration and time."""
        manifest = None if self.snapshot is None else self.snapshot.manifest
        return None if manifest is None else manifest.point


def plan_repair(
    files: IFileSystem,
    directory: str,
    snapshots: str,
    cluster_id: bytes = b"",
    advance: _Counter = lambda _size: None,
) -> RepairPlan:
    """Read everything, and decide.

    The log keeps the newest run of segments that continues the newest good snapshot, up to the first thing in it that
    does not check. If there is none, it begins anew behind that snapshot.

    :param snapshots: the state machine's directory.
    :param cluster_id: the cluster, if the identity is damaged and no segment says it.
    :param advance: called with the sizes of the segments and snapshot parts that were read.
    :raises NoLog: if there is no log.
    :raises CannotRepair: if this would not help, or not enough is known.
    :raises WrongIdentity: if a file is of a later format.
    """
    return _Planner(files, directory, snapshots, cluster_id, advance).plan()


class _Planner:
    def __init__(
        self, files: IFileSystem, directory: str, snapshots: str, cluster_id: bytes, advance: _Counter
    ) -> None:
        self._files = files
        self._layout = Layout(directory)
        self._snapshots_at = snapshots
        self._cluster_id = cluster_id
        self._advance = advance
        self._damage: list[StorageError] = []
        self._bad: list[tuple[int, StorageError]] = []
        self._traces = Traces()

    def plan(self) -> RepairPlan:
        listed = list_segments(self._files, self._layout.directory)
        self._refuse_newer(listed)
        identity, identity_damaged = self._identity(listed)
        good = self._belonging(listed, identity)
        newest = max((each.seq for each in listed), default=0)
        runs = find_runs(self._files, good, newest, self._traces, self._advance)
        snapshot, bad_snapshots = self._snapshots()
        self._require_snapshots(runs, snapshot)
        run = self._choose(runs, snapshot)
        purge = self._purge(run, snapshot)
        in_log = self._log_damage(listed, runs, run, purge, snapshot)
        whole = run is not None and run.damage is None
        marks = identity_damaged or not whole or (run is not None and self._is_contradicted(run, purge))
        kept = set(run.paths) if run is not None else set()
        dropped = tuple(each.path for each in listed if each.path not in kept) if in_log else ()
        cut = run.paths[-1] if run is not None and (run.damage is not None or purge is not None) else ""
        last, state = self._end(run, snapshot, identity, marks)
        return RepairPlan(
            identity, identity_damaged, snapshot, run, last, state, purge, self._traces, (*self._damage, *in_log),
            dropped, cut, tuple(bad_snapshots), marks, self._membership(run, snapshot, bad_snapshots),
        )  # fmt: skip

    # Whose it is

    def _refuse_newer(self, listed: list[SegmentFile]) -> None:
        for each in listed:
            if each.header is None and each.size >= SEGMENT_HEADER:
                try:
                    decode_header(self._files.read(each.path, 0, SEGMENT_HEADER))
                except NewerFormat as error:
                    raise WrongIdentity(each.path, "format version", "1", str(error.version)) from None
                except ValueError:
                    continue

    def _identity(self, listed: list[SegmentFile]) -> tuple[Identity, bool]:
        files, directory = self._files, self._layout.directory
        try:
            identity = read_identity(files, directory, None)
        except StorageCorrupt as damage:
            self._damage.append(damage)
        else:
            if identity is not None:
                return identity, False
            missing = f"{directory}/{IDENTITY_NAME}"
            self._damage.append(StorageCorrupt(missing, 0, "the identity is missing"))
            if not any(each.header and self._holds_records(each) for each in listed):
                raise NoLog(f"{directory} holds no log")
        return self._from_segments(listed), True

    def _holds_records(self, each: SegmentFile) -> bool:
        return bool(self._files.read(each.path, SEGMENT_HEADER, each.size).strip(b"\0"))

    def _from_segments(self, listed: list[SegmentFile]) -> Identity:
        """Return what the segments say of whose they are."""
        headers = [each.header for each in listed if each.header is not None]
        owners = {(header.node_id, header.incarnation) for header in headers}
        if len(owners) != 1:
            said = "no segment says whose it is" if not owners else "the segments are of several nodes"
            raise CannotRepair(f"the identity is damaged, and {said}")
        clusters = list(dict.fromkeys(header.cluster_id for header in headers if header.cluster_id))
        if self._cluster_id and clusters and self._cluster_id != clusters[-1]:
            raise CannotRepair(f"the segments are of cluster {clusters[-1].hex()}, not {self._cluster_id.hex()}")
        mine = self._cluster_id or (clusters.pop() if clusters else b"")
        if not mine:
            raise CannotRepair(
                "the identity is damaged, and no segment names the cluster, as the first one is older; "
                "name it yourself: GET /v1/status of any other member shows it"
            )
        [(node_id, incarnation)] = owners
        return Identity(node_id, incarnation, mine, former=tuple(each for each in clusters if each != mine))

    def _belonging(self, listed: list[SegmentFile], identity: Identity) -> list[SegmentFile]:
        """Return the segments that can be read and are this node's; the others are damage."""
        known = (identity.cluster_id, *identity.former)
        good: dict[int, SegmentFile | None] = {}
        foreign = 0
        for each in listed:
            header = each.header
            if header is None or each.problem:
                self._bad.append((each.seq, StorageCorrupt(each.path, 0, each.problem, each.base)))
                continue
            mine = (header.node_id, header.incarnation) == (identity.node_id, identity.incarnation)
            if not mine or not (header.cluster_id in known or (each.seq == 1 and not header.cluster_id)):
                foreign += 1
                foreigner = StorageCorrupt(each.path, 0, "it is of another node or cluster", each.base)
                self._bad.append((each.seq, foreigner))
                continue
            if each.seq in good:
                twin = StorageCorrupt(each.path, 0, f"there is another segment {each.seq}", each.base)
                self._bad.append((each.seq, twin))
            good[each.seq] = None if each.seq in good else each
        found = [each for each in good.values() if each is not None]
        if foreign and not found:
            raise CannotRepair(
                f"no segment is node {identity.node_id}'s, to which the identity belongs: the identity is of another "
                "directory; put this directory's own back"
            )
        return found

    # The snapshots

    def _snapshots(self) -> tuple[SnapshotFile | None, list[SnapshotFile]]:
        """Return the newest good snapshot, and all that are not good."""
        found, _ = list_snapshots(self._files, self._snapshots_at)
        newest: SnapshotFile | None = None
        bad: list[SnapshotFile] = []
        for each in found:
            damage = each.damage
            if damage is None:
                try:
                    for size in verify_parts(self._files, each):
                        self._advance(size)
                except StorageCorrupt as error:
                    damage = error
            if damage is None:
                newest = each
            else:
                self._damage.append(damage)
                bad.append(each)
        return newest, bad

    def _require_snapshots(self, runs: list[Run], snapshot: SnapshotFile | None) -> None:
        """A purged log whose snapshots are elsewhere must not be taken for one that has lost them."""
        root = f"{self._snapshots_at}/snap"
        if snapshot is None and any(run.index.purged.index for run in runs) and not self._files.exists(root):
            raise CannotRepair(
                f"the log was purged, and {root} does not exist: say where the snapshots are; if they are lost, "
                "make an empty directory of that name"
            )

    # The log

    def _choose(self, runs: list[Run], snapshot: SnapshotFile | None) -> Run | None:
        """Return the newest run that continues the snapshot."""
        for run in reversed(runs):
            if _continues(run.index, _position(snapshot)):
                return run
            if run.damage is None and self._yields(run, snapshot):
                return run
        return None

    def _log_damage(
        self,
        listed: list[SegmentFile],
        runs: list[Run],
        chosen: Run | None,
        purge: LogId | None,
        snapshot: SnapshotFile | None,
    ) -> list[StorageError]:
        """Return why the log cannot stay as it is.

        What stands before a gap in the sequence does not count if everything in it was purged: an interrupted purge
        left it, and the next opening removes it without a look. At all that follows the gap it does look.
        """
        since = 0
        if chosen is not None and purge is None:
            present = {each.seq for each in listed}
            since = chosen.index.segments[0].header.seq
            while since - 1 in present:
                since -= 1
        found: list[StorageError] = [damage for seq, damage in self._bad if seq >= since]
        for run in runs:
            if run.damage is not None and run.index.active.header.seq >= since:
                found.append(run.damage)
        if not found and (chosen is None or purge is not None):
            found.append(self._misfit(runs, snapshot))
        return found

    def _yields(self, run: Run, snapshot: SnapshotFile | None) -> bool:
        """Say whether the log is as a crash leaves it after a snapshot was received: the opening resets it (S-17)."""
        index = run.index
        if snapshot is None or index.purged.index < index.needed:
            return False
        try:
            return log_must_yield(start_of(index), snapshot.manifest, self._layout.wal)
        except StorageCorrupt:
            return False

    def _misfit(self, runs: list[Run], snapshot: SnapshotFile | None) -> StorageCorrupt:
        if not runs:
            return StorageCorrupt(self._layout.wal, 0, "all segments of the log are missing, though it was begun")
        index, path = runs[-1].index, runs[-1].paths[0]
        if index.purged.index < index.needed:
            return StorageCorrupt(path, 0, "the segment before is missing", index.purged.index + 1, index.needed)
        try:
            log_must_yield(start_of(index), None if snapshot is None else snapshot.manifest, self._layout.wal)
        except StorageCorrupt as damage:
            return damage
        return StorageCorrupt(path, 0, "the log does not continue the newest snapshot")

    def _purge(self, run: Run | None, snapshot: SnapshotFile | None) -> LogId | None:
        """Return up to where a run has to be purged, because what stood before it is damaged."""
        if run is None or run.index.purged.index >= run.index.needed:
            return None
        return _position(snapshot)

    def _is_contradicted(self, run: Run, purge: LogId | None) -> bool:
        """Say whether a run that begins behind damage may not know the last term and vote."""
        state = run.index.state
        known = (state.term, state.voted_for) == (self._traces.term, self._traces.vote)
        return purge is not None and (run.contradicted or not known)

    def _membership(
        self, run: Run | None, snapshot: SnapshotFile | None, bad_snapshots: list[SnapshotFile]
    ) -> Membership | None:
        """Return the configuration in effect, as far as it is there: a damaged snapshot's manifest can be good."""
        if run is not None and (configs := run.index.configs()):
            [entry] = walk_entries(self._files, run.index, configs[-1], configs[-1])
            try:
                return Membership.decode(entry.payload)
            except ValueError as error:
                raise CannotRepair(f"the configuration in entry {entry.index} is none: {error}") from None
        known = [each.manifest for each in (*bad_snapshots, snapshot) if each is not None and each.manifest is not None]
        return known[-1].point.membership if known else None

    def _end(
        self, run: Run | None, snapshot: SnapshotFile | None, identity: Identity, marks: bool
    ) -> tuple[LogId, HardState]:
        """Return where the log ends, and term, vote and commit.

        The term is the greatest that was seen anywhere. If the vote in it may be lost, it counts as spent, on the node
        itself: so it is given to nobody. The commit is what the kept part says; entries of its end may have been
        replaced later, so a commit from behind the damage may be about others.
        """
        traces, last = self._traces, _position(snapshot)
        commit = last.index
        if run is not None:
            if not marks:
                return run.index.last, run.index.state
            last, commit = run.index.last, run.index.state.commit
        term, vote = traces.term, traces.vote
        if max(traces.entry_term, last.term) > term:
            term, vote = max(traces.entry_term, last.term), 0
        return last, HardState(term, vote or (identity.node_id if term else 0), commit)


def _position(snapshot: SnapshotFile | None) -> LogId:
    return NO_LOG if snapshot is None or snapshot.position is None else snapshot.position


def _continues(index: LogIndex, snapshot: LogId) -> bool:
    """Say whether a log has every entry behind a snapshot, and agrees with it at its end."""
    reaches_back = max(index.needed, index.purged.index) <= snapshot.index
    return reaches_back and snapshot.index <= index.last.index and index.term_at(snapshot.index) == snapshot.term
