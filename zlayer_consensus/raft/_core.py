"""One Raft member, sans I/O: inputs are method calls, the output of each is one :class:`Effects`.

The core never calls out, never waits and never looks at a clock: ``now`` (monotonic seconds) comes with every input,
and :attr:`RaftCore.next_wake` says when the next ``tick`` is due.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..config import ConsensusConfig
from ..errors import InvalidMessage, InvariantBroken, NodeStopped, OutOfSpace, TransferInProgress
from . import _changes, _election, _follower, _leader, _reads, _replication
from ._effects import Effects, LogRead, Proposed, Refused, SendSnapshot, SnapshotPoint, Start, Token
from ._membership import Member, Membership, MembershipChange
from ._messages import (
    AppendReply,
    AppendRequest,
    HeartbeatReply,
    HeartbeatRequest,
    ReadIndexReply,
    ReadIndexRequest,
    Reply,
    Request,
    TimeoutNowReply,
    TimeoutNowRequest,
    VoteReply,
    VoteRequest,
)
from ._progress import PeerProgress
from ._space import full_members
from ._state import State
from ._types import MAX_TERM, NO_LOG, Draft, Entry, EntryKind, LogId, Role

__all__ = ["RaftCore"]

_REPLIES: dict[type, type] = {
    VoteRequest: VoteReply,
    HeartbeatRequest: HeartbeatReply,
    AppendRequest: AppendReply,
    TimeoutNowRequest: TimeoutNowReply,
    ReadIndexRequest: ReadIndexReply,
}


class RaftCore:
    """The state of one member and the rules by which it changes.

    A member that is in no configuration yet is passive: it answers, and waits for a leader or for :meth:`bootstrap`.

    :param node_id: this member's id.
    :param config: the settings; times are taken from here.
    :param start: what was found on disk.
    :param random: uniform in [0, 1); the only source of randomness.
    :param now: monotonic seconds.
    """

    def __init__(
        self, *, node_id: int, config: ConsensusConfig, start: Start, random: Callable[[], float], now: float
    ) -> None:
        self._s = s = State(node_id, config, start, random, now)
        s.read_context = int(random() * (1 << 40))
        # A sole voter has nobody to wait for.
        wait = 0.0 if s.membership.all_voters == {node_id} else s.random_timeout()
        s.election_deadline = now + wait

    # -- state to look at

    @property
    def next_wake(self) -> float | None:
        """When :meth:`tick` wants to be called; None: not before another input."""
        s = self._s
        if s.stopped:
            return None
        due = [s.inbox.deadline, s.ask_again_at, s.leaving[2] if s.leaving else None]
        if s.leader is not None:
            due += [s.leader.heartbeat_due, s.leader.commit_notice_due, s.leader.flush_due]
            due.append(s.leader.transfer.deadline if s.leader.transfer else None)
        elif _election.may_campaign(s):
            due.append(s.election_deadline)
        return min((at for at in due if at is not None), default=None)

    @property
    def role(self) -> Role:
        """The current role."""
        return self._s.role

    @property
    def term(self) -> int:
        """The current term; durable before anything that depends on it leaves."""
        return self._s.term

    @property
    def voted_for(self) -> int:
        """Whom this member voted for in :attr:`term`; 0 is nobody."""
        return self._s.voted_for

    @property
    def leader_id(self) -> int | None:
        """The leader of :attr:`term`, as far as it is known."""
        return self._s.leader_id

    @property
    def commit(self) -> int:
        """The commit index."""
        return self._s.commit

    @property
    def last(self) -> LogId:
        """Position of the last entry, durable or not."""
        return self._s.log.last

    @property
    def durable(self) -> int:
        """Up to here the log is on this member's disk."""
        return self._s.log.durable

    @property
    def purged(self) -> LogId:
        """Position of the last entry that is no longer in the log."""
        return self._s.log.purged

    @property
    def snapshot(self) -> SnapshotPoint | None:
        """The newest snapshot that the core was told of."""
        return self._s.snapshot

    @property
    def membership(self) -> Membership:
        """The configuration in effect: the newest in the log."""
        return self._s.membership

    @property
    def committed_membership(self) -> Membership:
        """The configuration as of the commit index; tombstones count from here only."""
        return self._s.log.membership_at(self._s.commit)

    @property
    def repair(self) -> bytes:
        """The repair after which this member's log may lack what it acknowledged: until it is over, no vote."""
        return self._s.repair

    @property
    def full_members(self) -> tuple[int, ...]:
        """The voters whose full disks keep this leader from taking what does not free space; empty at others."""
        return full_members(self._s, self._s.leader) if self._s.leader is not None else ()

    @property
    def transferring(self) -> int | None:
        """The target of the running leadership transfer."""
        leader = self._s.leader
        return leader.transfer.target if leader and leader.transfer else None

    @property
    def ready(self) -> bool:
        """Whether this member leads and has committed an entry of its own term."""
        return self._s.leader is not None and self._s.leader.ready

    def member(self, node_id: int) -> Member | None:
        """Return a member of the configuration in effect, or one whose removal is under way."""
        return self._s.member(node_id)

    def membership_at(self, index: int) -> Membership:
        """Return the configuration in force at an index that is not before the newest snapshot."""
        return self._s.log.membership_at(index)

    def term_at(self, index: int) -> int | None:
        """Return the term of an entry, None if it is purged or not there."""
        return self._s.log.term_at(index)

    def entries(self, first: int, last: int, max_bytes: int) -> list[Entry] | None:
        """Return entries from memory, at least one; None means that the store has to be asked."""
        return self._s.log.entries(first, last, last - first + 1, max_bytes)

    def progress(self) -> dict[int, PeerProgress]:
        """Return what this leader knows of its peers; empty at others."""
        s = self._s
        peers = s.leader.peers if s.leader else {}
        last = s.log.last.index
        return {
            peer: PeerProgress(p.match, p.next, p.state.value, last - p.match, p.last_ack, p.alarmed, p.repair, p.full)
            for peer, p in peers.items()
        }

    # -- inputs

    def bootstrap(self, membership: Membership, now: float) -> Effects:
        """Write the initial configuration, on an empty log; every member must write the same one.

        :raises ValueError: if the log is not empty.
        """
        s = self._s
        if s.log.last != NO_LOG or s.snapshot is not None:
            raise ValueError("the log is not empty")

        def run() -> None:
            s.append([Entry.make(1, 0, EntryKind.CONFIG, membership.encode())])
            sole = membership.all_voters == {s.node_id}
            s.election_deadline = s.now + (0.0 if sole else s.random_timeout())

        return self._step(now, run)

    def tick(self, now: float) -> Effects:
        """Time has passed. Being late is harmless; being early does nothing."""
        wake = self.next_wake
        late = 0.0 if wake is None else now - wake
        return self._step(now, lambda: self._tick(late))

    def _tick(self, late: float) -> None:
        s = self._s
        s.settle_transfer()
        if s.inbox.deadline is not None and s.now >= s.inbox.deadline:
            _follower.release_held(s)
        if s.leader is not None:
            _leader.tick_leader(s, s.leader)
            return
        if s.ask_again_at is not None and s.now >= s.ask_again_at:
            _election.ask_again(s)
        if s.now < s.election_deadline or not _election.may_campaign(s):
            return
        if late > s.config.election_timeout_min and s.membership.all_voters != {s.node_id}:
            # This process was paused: what the leader sent meanwhile may still wait to be read (H-14).
            s.election_deadline = s.now + s.random_timeout()
        elif s.oldest_write_age() <= s.config.election_timeout_max:
            _election.campaign(s)
        else:
            s.election_deadline = s.now + s.random_timeout()

    def request(self, token: Token, sender: int, message: Request, now: float) -> Effects:
        """Take a peer's request. Exactly one :class:`Answer` with ``token`` follows, now or later.

        :raises InvalidMessage: if no correct member sends this; nothing has changed, and no answer follows.
        """
        s = self._s
        if sender == s.node_id:
            raise InvalidMessage("the message comes from this node itself")
        if not 0 <= message.term <= MAX_TERM:
            raise InvalidMessage(f"term {message.term} is out of range")
        if isinstance(message, AppendRequest):
            _follower.check_append(message)
        return self._step(now, lambda: self._request(token, sender, message))

    def _request(self, token: Token, sender: int, message: Request) -> None:
        s = self._s
        if isinstance(message, AppendRequest):
            _follower.on_append(s, token, sender, message)
        elif isinstance(message, HeartbeatRequest):
            _follower.on_heartbeat(s, token, sender, message)
        elif isinstance(message, VoteRequest):
            _election.on_vote_request(s, token, sender, message)
        elif isinstance(message, ReadIndexRequest):
            _reads.on_read_index(s, token, message)
        else:
            _election.on_timeout_now(s, token, sender, message)

    def response(self, peer: int, request: Request, reply: Reply, now: float) -> Effects:
        """Take the reply to a :class:`Send`. One of the wrong type counts as none."""
        if not isinstance(reply, _REPLIES[type(request)]) or not 0 <= reply.term <= MAX_TERM:
            return self.send_failed(peer, request, now)
        return self._step(now, lambda: self._response(peer, request, reply))

    def _response(self, peer: int, request: Request, reply: Reply) -> None:
        s = self._s
        if reply.term > s.term:
            s.become_follower(reply.term, None)  # H-07: also a refused pre-vote teaches the term
        if isinstance(request, AppendRequest) and isinstance(reply, AppendReply):
            _leader.on_append_reply(s, peer, request, reply)
        elif isinstance(request, HeartbeatRequest) and isinstance(reply, HeartbeatReply):
            _leader.on_heartbeat_reply(s, peer, request, reply)
        elif isinstance(request, VoteRequest) and isinstance(reply, VoteReply):
            _election.on_vote_reply(s, peer, request, reply)
        elif isinstance(request, ReadIndexRequest) and isinstance(reply, ReadIndexReply):
            _reads.on_read_index_reply(s, request, reply)

    def send_failed(self, peer: int, request: Request, now: float) -> Effects:
        """A :class:`Send` got no reply; the peer may have executed it all the same."""
        return self._step(now, lambda: self._send_failed(peer, request))

    def _send_failed(self, peer: int, request: Request) -> None:
        s = self._s
        if isinstance(request, AppendRequest):
            _leader.on_append_lost(s, peer, request)
        elif isinstance(request, HeartbeatRequest):
            _leader.on_heartbeat_lost(s, peer, request)
        elif isinstance(request, VoteRequest):
            _election.on_vote_lost(s, peer, request)
        elif isinstance(request, ReadIndexRequest):
            _reads.on_read_index_lost(s, request)
        else:
            _changes.on_timeout_now_lost(s, peer, request)

    def propose(self, drafts: Sequence[Draft], time_ms: int, now: float) -> Effects:
        """Append a batch at the leader: ``proposed`` tells where; or one ``Refused(None, …)``, and nothing is appended.

        :param time_ms: wall-clock time in ms; the log's time never falls, whatever comes in here.
        """
        s = self._s

        def run() -> None:
            leader = s.leader
            if leader is None:
                s.out.refused.append(Refused(None, s.not_leader()))
            elif leader.transfer is not None:
                s.out.refused.append(Refused(None, TransferInProgress(leader.transfer.target)))
            elif (full := full_members(s, leader)) and not all(draft.frees for draft in drafts):
                s.out.refused.append(Refused(None, OutOfSpace(full)))
            elif drafts:
                s.out.proposed = Proposed(_replication.append_local(s, drafts, time_ms), s.term)

        return self._step(now, run)

    def change_membership(self, token: Token, change: MembershipChange, time_ms: int, now: float) -> Effects:
        """Change the membership; ``Done(token, position of the final configuration)`` follows once it is committed."""
        return self._step(now, lambda: _changes.change_membership(self._s, token, change, time_ms))

    def read(self, token: Token, now: float) -> Effects:
        """Begin a linearizable read: ``ReadReady`` or ``Refused`` follows. May be asked for at any member."""
        return self._step(now, lambda: _reads.read(self._s, token))

    def cancel_read(self, token: Token) -> None:
        """Forget a read; nothing follows for it any more."""
        _reads.cancel(self._s, token)

    def transfer(self, token: Token, target: int | None, now: float) -> Effects:
        """Hand leadership to a voter (None: the one that lacks least); ``Done`` or ``Refused`` follows."""
        return self._step(now, lambda: _changes.transfer(self._s, token, target))

    def campaign(self, now: float) -> Effects:
        """Start an election now, pre-vote included. Does nothing at a leader or at a member without a vote."""
        return self._step(now, lambda: _election.campaign(self._s))

    def heartbeat(self, now: float) -> Effects:
        """Send heartbeats now, if this member leads."""
        s = self._s

        def run() -> None:
            if s.leader is not None:
                _replication.send_round(s, s.leader)
                _reads.assign(s, s.leader)

        return self._step(now, run)

    def persisted(self, seq: int, last: LogId, now: float) -> Effects:
        """The write ``seq`` is durable, and all before it; ``last`` is the ``Persist``'s own."""
        s = self._s

        def run() -> None:
            s.complete(seq, last)
            _leader.advance_commit(s)
            if s.leader is not None:
                _changes.tick_transfer(s, s.leader)

        return self._step(now, run)

    def log_read(self, request: LogRead, entries: Sequence[Entry] | None, now: float) -> Effects:
        """Entries for a lagging peer; None if they were purged. A failed read must stop the node instead (J-27)."""
        return self._step(now, lambda: _leader.on_log_read(self._s, request, entries))

    def snapshot_sent(self, request: SendSnapshot, last: LogId | None, now: float) -> Effects:
        """A snapshot transfer ended: the peer has everything up to ``last``, or (None) it failed."""
        return self._step(now, lambda: _leader.on_snapshot_sent(self._s, request, last))

    def snapshot_offered(self, sender: int, term: int, last: LogId, now: float) -> tuple[str, Effects]:
        """Judge a chunk of a leader's snapshot that ends at ``last``, before its data is looked at.

        ``accept``: take the data. ``covered``: this member has everything up to ``last``, durable. ``busy``: it will
        have, ask again. ``stale``: the term is old; answer with :attr:`term`.
        """
        s = self._s
        if sender == s.node_id or not 0 <= term <= MAX_TERM:
            raise InvalidMessage("the snapshot's sender or term is impossible")
        verdict = ["busy"]

        def run() -> None:
            verdict[0] = _follower.snapshot_offered(s, sender, term, last.index, last.term)

        effects = self._step(now, run)
        return verdict[0], effects

    def needs_install(self, point: SnapshotPoint) -> bool:
        """Return whether :meth:`install` would replace the log."""
        return _follower.will_install(self._s, point)

    def install(self, point: SnapshotPoint, now: float) -> Effects:
        """A received snapshot is durable: replace the log by it. Without :meth:`needs_install` the log stays."""
        return self._step(now, lambda: _follower.install(self._s, point))

    def snapshot_taken(self, point: SnapshotPoint, now: float) -> Effects:
        """A snapshot of the local state machine is durable; ``purge`` follows, by policy."""
        s = self._s

        def run() -> None:
            if point.last.index > s.log.durable or point.last.index > s.commit:
                raise s.broken(f"a snapshot at {point.last} reaches beyond what is durable and committed")
            if s.snapshot is None or point.last.index > s.snapshot.last.index:
                s.snapshot = point
                self._purge(point.last.index - s.config.max_in_snapshot_log_to_keep)

        return self._step(now, run)

    def purge(self, upto: int, now: float) -> Effects:
        """Purge the log up to an index, as far as the snapshot and running transfers allow."""
        return self._step(now, lambda: self._purge(upto))

    def _purge(self, upto: int) -> None:
        s = self._s
        if s.snapshot is None:
            return
        upto = min(upto, s.snapshot.last.index)
        if s.leader is not None:
            pins = [p.pinned for p in s.leader.peers.values() if p.pinned]
            if pins and s.log.bytes_after(min(pins)) <= s.config.max_pinned_log_bytes:
                upto = min(upto, *pins)
        position = s.log.id_at(upto)
        if position is None or upto <= s.log.purged.index:
            return
        s.log.purge(position)
        s.log.forget_memberships_before(s.snapshot.last.index)
        s.out.purge = position

    def applied(self, index: int, now: float) -> Effects:
        """The state machine has applied everything up to ``index``."""
        s = self._s

        def run() -> None:
            if not s.applied <= index <= s.commit:
                raise s.broken(f"applied index {index} after {s.applied}, commit index {s.commit}")
            s.applied = index

        return self._step(now, run)

    def space(self, full: bool, now: float) -> Effects:
        """The disk is full from now on, or has room again (S-10).

        While it is full this member takes new entries only if there is no majority of others; as the leader it lets
        somebody else lead, if anybody has room, and takes nothing but what frees space.
        """
        s = self._s

        def run() -> None:
            s.full = full
            if s.leader is not None:
                _changes.hand_over_if_full(s, s.leader)
                _replication.replicate_all(s)

        return self._step(now, run)

    def repair_cleared(self, now: float) -> Effects:
        """The mark of a repair, which ``Effects.repaired`` asked to remove, is gone from the disk."""
        s = self._s

        def run() -> None:
            s.repair = s.clearing = b""

        return self._step(now, run)

    def stop(self, now: float) -> Effects:
        """Refuse everything that waits here, and do nothing from now on.

        Requests whose answer waits for the disk get none any more: the driver fails what it still has tokens of.
        """
        s = self._s

        def run() -> None:
            _follower.release_held(s)
            s.become_follower(s.term, None)
            if s.leaving is not None:
                s.out.refused.extend(Refused(token, NodeStopped()) for token in s.leaving[0])
                s.leaving = None

        effects = self._step(now, run)
        s.stopped = True
        return effects

    def _step(self, now: float, run: Callable[[], None]) -> Effects:
        """Run one input to its end; a broken invariant stops this member for good."""
        s = self._s
        if s.stopped:
            return Effects()
        s.now = max(s.now, now)
        try:
            run()
        except InvariantBroken as error:
            s.stopped = True
            return Effects(fatal=error)
        return s.take()
