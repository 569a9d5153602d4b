"""What a node shows of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..raft import NO_LOG, LogId, Membership

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["DigestMetrics", "LoopMetrics", "Metrics", "PeerMetrics", "ScrubMetrics", "measure"]


@dataclass(frozen=True, slots=True)
class LoopMetrics:
    """How late the event loop came to what was due. Times are in seconds.

    Something that holds up the loop is seen as at most as long as it is, and as at least that less ``interval``.

    :param interval: how often it is looked at.
    :param longest: the longest delay since the start.
    :param longest_recent: the longest delay of the last minute.
    :param stalls: how many delays were longer than 50 ms.
    :param longest_work: the most processor time that the loop's own thread took from one look to the next. What a
        delay is longer than that, others in the machine, or in the process, have done. 0 if it is not measured.
    """

    interval: float
    longest: float
    longest_recent: float
    stalls: int
    longest_work: float = 0.0


@dataclass(frozen=True, slots=True)
class PeerMetrics:
    """A peer as its leader sees it.

    :param match: index up to which its log is known to equal the leader's, durably.
    :param next: index of the next entry to be sent to it.
    :param state: ``probe``, ``replicate`` or ``snapshot``.
    :param lag: entries that it lacks.
    :param last_contact: seconds since it last answered; infinite if it never did.
    :param alarmed: whether its log fell back, so that it counts for nothing.
    :param repair: the repair of its log after which it counts for nothing until it is complete; else empty.
    :param full: whether its disk is full.
    """

    match: int
    next: int
    state: str
    lag: int
    last_contact: float
    alarmed: bool = False
    repair: bytes = b""
    full: bool = False


@dataclass(frozen=True, slots=True)
class DigestMetrics:
    """How the state compares with the other members' (J-92).

    :param kind: what the digest is of; see :class:`~zlayer_consensus.storage.IStateDigest`.
    :param index: the last entry after which a digest was kept for comparison.
    :param agreed: the last entry after which this node is known to have had the same state as a majority.
    :param alarm: at the leader: where members differ and no majority agrees; else empty.
    :param alarms: how often there was such an alarm here; each was logged.
    :param contradicted: at the leader: the members that a majority contradicted in the last comparison.
    """

    kind: str
    index: int
    agreed: int
    alarm: str
    alarms: int
    contradicted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScrubMetrics:
    """How far the scrub of log and snapshots is, and what it found.

    :param passes: whole passes since the start.
    :param bytes: bytes that were read since the start.
    :param path: the file that was looked at last; empty between two passes.
    :param finished_ms: when the last whole pass ended, in milliseconds since 1970; 0 before the first.
    :param damaged: the damage in older snapshots that the last pass found, one line each. Damage elsewhere stops the
        node.
    """

    passes: int
    bytes: int
    path: str
    finished_ms: int
    damaged: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metrics:
    """A node at one moment. Positions are indexes, and 0 is before the first entry.

    :param cluster_id: 16 bytes, empty while the node belongs to no cluster.
    :param role: ``learner``, ``follower``, ``pre-candidate``, ``candidate`` or ``leader``.
    :param voted_for: who has this node's vote in ``term``, or None.
    :param commit: the commit index as far as it is known here.
    :param durable: last entry that is durable here.
    :param snapshot: position of the newest snapshot.
    :param membership: the effective configuration (as appended).
    :param replication: the peers, at the leader only.
    :param ready: whether a leader has committed an entry of its own term.
    :param recovered: whether everything was applied that was known to be committed at the start.
    :param transferring: to whom leadership is being transferred.
    :param stopped: whether the node has stopped, or is about to.
    :param applied_id: position of the last applied entry.
    :param repair: the repair after which this node's log may lack what it acknowledged, so that it does not vote; else
        empty.
    :param full: whether this node's disk is full.
    :param free_bytes: space on the disk at the last look, None before the first.
    :param term_jumps: how often the term rose by more than elections explain (H-15); each was logged.
    :param replacing: whether a leader's snapshot is being installed, and the application has no state meanwhile.
    :param loop: the event loop's delays; None if they are not measured.
    :param digest: how the state compares; None if the application has no digest.
    :param scrub: the scrub of log and snapshots; None if it is off.
    """

    node_id: int
    cluster_id: bytes = b""
    incarnation: bytes = b""
    role: str = "learner"
    term: int = 0
    voted_for: int | None = None
    leader_id: int | None = None
    commit: int = 0
    applied: int = 0
    last: LogId = NO_LOG
    durable: int = 0
    purged: int = 0
    snapshot: LogId | None = None
    membership: Membership = field(default_factory=Membership)
    replication: dict[int, PeerMetrics] = field(default_factory=dict)
    ready: bool = False
    recovered: bool = False
    transferring: int | None = None
    pending_proposals: int = 0
    pending_reads: int = 0
    stopped: bool = False
    applied_id: LogId = NO_LOG
    term_jumps: int = 0
    repair: bytes = b""
    full: bool = False
    free_bytes: int | None = None
    replacing: bool = False
    loop: LoopMetrics | None = None
    digest: DigestMetrics | None = None
    scrub: ScrubMetrics | None = None


def measure(runtime: Runtime) -> Metrics:
    """Look at a node."""
    identity = runtime.identity
    stopped = runtime.state in ("stopping", "stopped")
    if not runtime.has_core:
        return Metrics(runtime.node_id, stopped=stopped, loop=runtime.probe.metrics())
    core = runtime.core
    now = runtime.clock.seconds()
    replication = {
        peer: PeerMetrics(p.match, p.next, p.state, p.lag, now - p.last_contact, p.alarmed, p.repair, p.full)
        for peer, p in core.progress().items()
    }
    return Metrics(
        node_id=runtime.node_id,
        cluster_id=identity.cluster_id,
        incarnation=identity.incarnation,
        role=core.role.value,
        term=core.term,
        voted_for=core.voted_for or None,
        leader_id=core.leader_id,
        commit=core.commit,
        applied=runtime.applier.applied,
        last=core.last,
        durable=core.durable,
        purged=core.purged.index,
        snapshot=core.snapshot.last if core.snapshot else None,
        membership=core.membership,
        replication=replication,
        ready=core.ready,
        recovered=runtime.applier.applied >= runtime.commit_at_start,
        transferring=core.transferring,
        pending_proposals=runtime.proposals.count,
        pending_reads=runtime.reads.count,
        stopped=stopped,
        applied_id=runtime.applier.last,
        term_jumps=runtime.observers.term_jumps,
        repair=core.repair,
        full=runtime.space.full,
        free_bytes=runtime.space.free,
        replacing=runtime.applier.replacing,
        loop=runtime.probe.metrics(),
        digest=runtime.digests.metrics(),
        scrub=runtime.scrubber.metrics(),
    )
