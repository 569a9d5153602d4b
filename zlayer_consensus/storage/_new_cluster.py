"""A new cluster of the survivors of one that lost its majority: what it will be, and making a directory part of it.

Why nothing that a survivor knows as committed is lost, and why nobody but the base can lead the new cluster first, is
argued in docs/disaster.rst.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import _cbor
from ..errors import StorageError
from ..raft import MAX_TERM, Entry, EntryKind, HardState, LogId, LogWrite, Membership, Start, has_quorum
from ._files import IFileSystem
from ._fit import log_must_yield
from ._inspect import examine_log, start_of
from ._inspect_snapshots import list_snapshots
from ._log_writer import LogWriter
from ._recovery import Layout
from ._survivors import Holdings, digest_of
from .interfaces import Identity, Manifest

__all__ = ["CannotRecover", "RecoveryPlan", "join_new_cluster", "plan_recovery"]

_FORMAT = 1
_SEGMENT_BYTES = 256 << 10
_RECORD_BYTES = 64 << 10


class CannotRecover(StorageError):
    """These directories are not to be made a new cluster, for the reason that the text gives. Nothing was changed."""

    code = "cannot_recover"


@dataclass(frozen=True)
class RecoveryPlan:
    """The new cluster.

    :param new_cluster: its id.
    :param survivors: what its members have.
    :param base: the one whose log becomes the new cluster's.
    :param lost: members of the old cluster that can never come back.
    :param term: greater than every term that a survivor has.
    :param entries: what is appended to the base's log: the audit entry and the configuration.
    """

    new_cluster: bytes
    survivors: tuple[Holdings, ...]
    base: int
    lost: tuple[int, ...]
    term: int
    entries: tuple[Entry, Entry]

    @property
    def old_cluster(self) -> bytes:
        """The cluster that lost its majority."""
        return self.survivors[0].identity.cluster_id

    @property
    def membership(self) -> Membership:
        """The new configuration."""
        return Membership.decode(self.entries[1].payload)

    @property
    def of_base(self) -> Holdings:
        """What the base has."""
        return self.of(self.base)

    def of(self, node_id: int) -> Holdings:
        """Return what a survivor has."""
        return next(each for each in self.survivors if each.node_id == node_id)

    def replaced(self, node_id: int) -> tuple[int, int] | None:
        """Return the first and last of a survivor's entries that the base has not; None if there is none.

        Entries of one index and term are equal (§5.3), so terms are enough to tell.
        """
        one, base = self.of(node_id), self.of_base
        at = min(one.last.index, base.last.index)
        while at > max(one.purged.index, base.purged.index) and one.term_at(at) != base.term_at(at):
            at -= 1
        return (at + 1, one.last.index) if at < one.last.index else None

    def identity_of(self, node_id: int) -> Identity:
        """Return a survivor's identity in the new cluster."""
        old = self.of(node_id).identity
        return replace(old, cluster_id=self.new_cluster, repair=b"", former=(*old.former, old.cluster_id))

    def to_json(self) -> str:
        """Return the plan as a file."""
        body = {
            "format": _FORMAT,
            "new_cluster": self.new_cluster.hex(),
            "survivors": [each.to_plain() for each in self.survivors],
            "base": self.base,
            "lost": list(self.lost),
            "term": self.term,
            "entries": [entry.raw.hex() for entry in self.entries],
        }
        return json.dumps({"recovery_plan": body, "sha256": digest_of(body)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RecoveryPlan:
        """Read what :meth:`to_json` made.

        :raises ValueError: if it is something else, or was changed.
        """
        try:
            document = json.loads(text)
            body = document["recovery_plan"]
            if document["sha256"] != digest_of(body) or body["format"] != _FORMAT:
                raise ValueError("it was changed, or is of another version")
            audit, config = (Entry.decode(bytes.fromhex(raw)) for raw in body["entries"])
            survivors = tuple(Holdings.from_plain(each) for each in body["survivors"])
            new_cluster = bytes.fromhex(body["new_cluster"])
            return cls(new_cluster, survivors, body["base"], tuple(body["lost"]), body["term"], (audit, config))
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"it is not the plan of a recovery: {error!r}") from error


def plan_recovery(
    survivors: Sequence[Holdings],
    lost: frozenset[int],
    *,
    new_cluster: bytes,
    time_ms: int,
    tool: str,
    repaired: bool = False,
) -> RecoveryPlan:
    """Decide what the new cluster will be.

    The base has everything that any survivor knows as committed; of those that have, it is the one whose log ends with
    the greatest term and then index, as an election would have it (§5.4.1). That order alone is not enough: a later
    term may be that of a leader without a majority, and older than the term in which the entry before was committed
    (§5.4.2, figure 8).

    :param lost: the members that are lost; all that are no survivors have to be named.
    :param new_cluster: 16 random bytes.
    :param time_ms: wall-clock time.
    :param tool: who does this, for the audit entry.
    :param repaired: allow survivors whose log was repaired, and may lack what they had acknowledged.
    :raises CannotRecover: if it must not be done.
    """
    if not survivors:
        raise CannotRecover("there is no survivor")
    _check_same_cluster(survivors)
    base = _base_of(survivors)
    old = base.membership
    ids = {each.node_id for each in survivors}
    _check_members(survivors, old)
    _check_lost(survivors, old, lost)
    _check_marks(survivors, repaired)
    _check_quorums(survivors, base)
    term = max(each.state.term for each in survivors) + 1
    term = max(term, base.last.term + 1)
    if term > MAX_TERM:
        raise CannotRecover("there is no greater term")
    tombstones = old.tombstones.union(lost, *(each.membership.tombstones for each in survivors))
    membership = Membership(
        voters=frozenset(ids), members={each: old.members[each] for each in sorted(ids)}, tombstones=tombstones - ids
    )
    time_ms = max(time_ms, base.time_ms)
    first = base.last.index + 1
    audit = _audit(survivors, base, lost, new_cluster, time_ms, tool)
    entries = (
        Entry.make(first, term, EntryKind.NOOP, audit, time_ms),
        Entry.make(first + 1, term, EntryKind.CONFIG, membership.encode(), time_ms),
    )
    ordered = tuple(sorted(survivors, key=lambda each: each.node_id))
    return RecoveryPlan(new_cluster, ordered, base.node_id, tuple(sorted(lost)), term, entries)


def _base_of(survivors: Sequence[Holdings]) -> Holdings:
    knows = max(survivors, key=lambda each: each.committed)
    position = knows.committed, knows.term_at(knows.committed)
    able = [each for each in survivors if (position[0], each.term_at(position[0])) == position]
    return max(able, key=lambda each: (each.last, each.committed, -each.node_id))


def _check_same_cluster(survivors: Sequence[Holdings]) -> None:
    ids = [each.node_id for each in survivors]
    twice = {each for each in ids if ids.count(each) > 1}
    if twice:
        raise CannotRecover(f"more than one of the directories is of node {_listed(twice)}")
    clusters = {each.identity.cluster_id for each in survivors}
    if clusters == {b""}:
        raise CannotRecover("they belong to no cluster")
    for each in survivors:
        if clusters & set(each.identity.former):
            raise CannotRecover(
                f"node {each.node_id} belongs to a new cluster already, to which others were to come: an earlier "
                "recovery was not finished; apply its plan to the rest"
            )
    if len(clusters) != 1:
        raise CannotRecover("they are of different clusters: " + ", ".join(sorted(each.hex() for each in clusters)))


def _check_members(survivors: Sequence[Holdings], old: Membership) -> None:
    if not old.members:
        raise CannotRecover("no configuration is known: nothing was ever committed here, or nothing of it is left")
    for each in survivors:
        member = old.members.get(each.node_id)
        if member is None:
            raise CannotRecover(f"node {each.node_id} is no member of the cluster; leave it out")
        if member.incarnation != each.identity.incarnation:
            raise CannotRecover(
                f"node {each.node_id} is not the member of that id: its data was replaced; leave it out"
            )


def _check_lost(survivors: Sequence[Holdings], old: Membership, lost: frozenset[int]) -> None:
    ids = {each.node_id for each in survivors}
    known = set(old.members).union(*(each.membership.members for each in survivors))
    missing = known - ids - old.tombstones
    if lost & ids:
        raise CannotRecover(f"node {_listed(lost & ids)} cannot be both a survivor and lost")
    if lost & old.tombstones:
        raise CannotRecover(
            f"the ids {_listed(lost & old.tombstones)} are spent already in cluster "
            f"{survivors[0].identity.cluster_id.hex()}, by a removal, or by a recovery that was done before. If that "
            "was interrupted, apply its plan again"
        )
    if lost != missing:
        raise CannotRecover(
            f"besides the survivors, the members of the cluster are: {_listed(missing) or 'none'}; named as lost: "
            f"{_listed(lost) or 'none'}"
        )


def _check_marks(survivors: Sequence[Holdings], repaired: bool) -> None:
    marked = [each.node_id for each in survivors if each.identity.repair]
    if marked and not repaired:
        raise CannotRecover(
            f"the log of node {_listed(marked)} was repaired, and may lack what it had acknowledged; leave it out and "
            "name it as lost, unless what it has is needed: then allow it explicitly"
        )


def _check_quorums(survivors: Sequence[Holdings], base: Holdings) -> None:
    able = {each.node_id for each in survivors if not each.identity.repair}
    if has_quorum(base.membership, able):
        raise CannotRecover(
            f"the survivors that are well ({_listed(able)}) are a majority of the voters "
            f"({_listed(base.membership.all_voters)}): nothing is lost. Start them, and remove the lost members from "
            "the running cluster (DELETE /v1/members/ID)"
        )
    others = {each.node_id for each in survivors} - {base.node_id}
    for each in survivors:
        # It knows the old configuration until the base has told it the new one.
        if each is not base and has_quorum(each.membership, others):
            raise CannotRecover(
                f"without node {base.node_id}, whose log is the base, the others would still be a majority by the "
                f"configuration that node {each.node_id} knows; leave one of them out, and name it as lost"
            )


def _audit(
    survivors: Sequence[Holdings], base: Holdings, lost: frozenset[int], new_cluster: bytes, time_ms: int, tool: str
) -> bytes:
    return _cbor.dumps(
        {
            "recovery": _FORMAT,
            "time_ms": time_ms,
            "tool": tool,
            "old_cluster": base.identity.cluster_id,
            "new_cluster": new_cluster,
            "base": base.node_id,
            "survivors": [
                {
                    "id": each.node_id,
                    "term": each.last.term,
                    "index": each.last.index,
                    "committed": each.committed,
                    "repair": each.identity.repair,
                }
                for each in sorted(survivors, key=lambda each: each.node_id)
            ],
            "lost": sorted(lost),
        }
    )


def _listed(ids: Any) -> str:
    return ", ".join(map(str, sorted(ids)))


def join_new_cluster(
    files: IFileSystem, directory: str, snapshots: str, plan: RecoveryPlan, random_bytes: Callable[[int], bytes]
) -> bool:
    """Make a survivor's directory part of the new cluster; return whether that was still to be done.

    The identity comes first: from then on nobody of the old cluster can talk to this member. Then the log goes on in
    a segment of the new cluster, and the base's gets its two entries in one record. It can be interrupted anywhere
    and done again.

    :param random_bytes: makes the salt of a segment.
    :raises CannotRecover: if the directory is not what the plan says.
    :raises StorageLocked: if the node is running.
    :raises NoLog: if there is no log.
    """
    manifest = _newest(files, snapshots)
    identity, found = examine_log(files, directory)
    # Before anything is changed, and again once nobody else can change it.
    _is_done(identity, start_of(found.index), manifest, plan)
    reserve = Layout(directory).reserve
    writer = LogWriter(
        files, directory, identity.node_id, random_bytes, _SEGMENT_BYTES,
        # As the node has made it: it knows the configured size.
        files.size(reserve) if files.exists(reserve) else _SEGMENT_BYTES, _RECORD_BYTES, 0,
    )  # fmt: skip
    try:
        identity, start = writer.open()
        done = _is_done(identity, start, manifest, plan)
        writer.move(plan.identity_of(identity.node_id))
        if not done and identity.node_id == plan.base:
            _append(writer, start, manifest, plan)
    except BaseException:
        writer.close(False)
        raise
    writer.close(True)
    return not done


def _newest(files: IFileSystem, snapshots: str) -> Manifest | None:
    found, _ = list_snapshots(files, snapshots)
    return found[-1].manifest if found else None


def _is_done(identity: Identity, start: Start, manifest: Manifest | None, plan: RecoveryPlan) -> bool:
    """Say whether a directory is part of the new cluster already; see that it is what the plan says if not."""
    known = [each.node_id for each in plan.survivors]
    if identity.node_id not in known:
        raise CannotRecover(f"node {identity.node_id} is none of the survivors {_listed(known)}")
    mine, there = plan.of(identity.node_id), plan.identity_of(identity.node_id)
    if identity not in (mine.identity, there):
        raise CannotRecover(f"the directory is not that of node {mine.node_id} as the plan knows it")
    if identity == there and (mine.node_id != plan.base or start.last.index >= plan.entries[-1].index):
        return True  # and it may have run since
    reset = _reset_of(start, manifest)
    found = (start.last, start.purged) if reset is None else (reset, reset)
    if (*found, start.hard_state) != (mine.last, mine.purged, mine.state):
        raise CannotRecover(
            f"node {mine.node_id} has run since the plan was made: make another one, or, if the base (node "
            f"{plan.base}) is part of the new cluster already, go on without this node as one that is lost"
        )
    return False


def _reset_of(start: Start, manifest: Manifest | None) -> LogId | None:
    """Return where the log has to be reset to, because a crash came after a snapshot was received (S-17)."""
    return manifest.point.last if manifest is not None and log_must_yield(start, manifest) else None


def _append(writer: LogWriter, start: Start, manifest: Manifest | None, plan: RecoveryPlan) -> None:
    state = HardState(plan.term, plan.base, plan.entries[-1].index)
    writer.commit([LogWrite(reset=_reset_of(start, manifest), entries=plan.entries, hard_state=state)])
