"""A node that leads, or does not, as a test says: the public interface of ``ConsensusNode`` without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed

from zlayer_consensus.errors import (
    DomainError,
    MembershipRefused,
    NodeStopped,
    NotLeader,
    ProposalTooLarge,
    SessionExpired,
    SessionSequenceReused,
    TransferFailed,
)
from zlayer_consensus.kv import KeyValueMachine
from zlayer_consensus.node import Applied, DigestMetrics, LoopMetrics, Metrics, PeerMetrics, ScrubMetrics
from zlayer_consensus.raft import AddLearner, ChangeAddress, ChangeVoters, LogId, Member, Membership, RemoveLearner
from zlayer_consensus.storage import ApplyContext

MAX_PROPOSAL = 1 << 20


def member(node_id: int) -> Member:
    return Member(node_id, bytes([node_id]) * 16, f"10.0.0.{node_id}:7000", f"10.0.0.{node_id}:8000")


class FakeNode:
    """Node 1 of three; ``leader_id`` says who leads, and a follower forwards unless it is told not to.

    Everything is applied at once, unless ``hold`` is set: then it waits for :meth:`release`.
    """

    def __init__(self, machine: Any = None) -> None:
        self.machine = KeyValueMachine() if machine is None else machine
        self.node_id = 1
        self.leader_id: int | None = 1
        self.membership = Membership.initial(member(each) for each in (1, 2, 3))
        self.hold = False
        self.recovered = True
        self.stopped_by: BaseException | None = None
        self.failure: BaseException | None = None
        self.applied = 0
        self.snapshot: LogId | None = None
        self.loop: LoopMetrics | None = None
        self.digest: DigestMetrics | None = None
        self.scrub: ScrubMetrics | None = None
        self.sessions: dict[int, dict[int, tuple[bytes, Any]]] = {}
        self.calls: list[tuple[Any, ...]] = []
        self._held: list[tuple[Deferred[Any], Callable[[], Any]]] = []
        self.cluster_name = "fake"
        self.readers: list[Any] = []
        """What ``backup`` hands out, one after the other."""

    # --- for tests

    def release(self) -> None:
        """Let everything happen that was held back."""
        held, self._held = self._held, []
        for waiting, act in held:
            _fire(waiting, act)

    def _do(self, act: Callable[[], Any], forward: bool | None) -> Deferred[Any]:
        if self.failure is not None:
            return fail(self.failure)
        if self.leader_id is None or (forward is False and not self.is_leader):
            leader = self.leader_member()
            return fail(NotLeader(self.leader_id, leader.peer_address, "evil:1") if leader else NotLeader())
        waiting: Deferred[Any] = Deferred()
        if self.hold:
            self._held.append((waiting, act))
        else:
            _fire(waiting, act)
        return waiting

    # --- the public interface

    @property
    def is_leader(self) -> bool:
        return self.leader_id == self.node_id

    @property
    def voter_ids(self) -> frozenset[int]:
        return self.membership.all_voters

    @property
    def learner_ids(self) -> frozenset[int]:
        return self.membership.learners

    def member(self, node_id: int) -> Member | None:
        return self.membership.members.get(node_id)

    def leader_member(self) -> Member | None:
        return None if self.leader_id is None else self.member(self.leader_id)

    def metrics(self) -> Metrics:
        return Metrics(
            node_id=self.node_id,
            cluster_id=b"c" * 16,
            incarnation=b"\1" * 16,
            role="leader" if self.is_leader else "follower",
            term=3,
            leader_id=self.leader_id,
            commit=self.applied,
            applied=self.applied,
            last=LogId(3, self.applied),
            durable=self.applied,
            snapshot=self.snapshot,
            membership=self.membership,
            replication={
                2: PeerMetrics(self.applied, self.applied + 1, "replicate", 0, 0.25),
                3: PeerMetrics(0, 1, "probe", self.applied, float("inf")),
            }
            if self.is_leader
            else {},
            recovered=self.recovered,
            stopped=self.stopped_by is not None,
            loop=self.loop,
            digest=self.digest,
            scrub=self.scrub,
        )

    def propose_with_index(
        self,
        request: Any,
        *,
        session: int = 0,
        sequence: int = 0,
        timeout: float | None = None,
        forward: bool | None = None,
        frees_space: bool = False,
    ) -> Deferred[Applied]:
        self.calls.append(("propose", session, sequence, timeout, forward))
        if len(request) > MAX_PROPOSAL:
            return fail(ProposalTooLarge(len(request), MAX_PROPOSAL))

        def act() -> Applied:
            self.applied += 1
            if not session:
                return Applied(self.applied, self.machine.apply(request, ApplyContext(self.applied, 0)))
            if session not in self.sessions:
                raise SessionExpired(session)
            replies = self.sessions[session]
            if sequence not in replies:
                replies[sequence] = (request, self._outcome(request))
            payload, outcome = replies[sequence]
            if payload != request:
                raise SessionSequenceReused(session, sequence)
            if isinstance(outcome, DomainError):
                raise outcome
            return Applied(self.applied, outcome)

        return self._do(act, forward)

    def _outcome(self, request: Any) -> Any:
        try:
            return self.machine.apply(request, ApplyContext(self.applied, 0))
        except DomainError as error:
            return error

    def register_session(self, *, timeout: float | None = None, forward: bool | None = None) -> Deferred[int]:
        def act() -> int:
            self.applied += 1
            self.sessions[self.applied] = {}
            return self.applied

        return self._do(act, forward)

    def read_state(
        self,
        read: Callable[[Any], Any],
        deadline: float | None = None,
        *,
        linearizable: bool = True,
        forward: bool | None = None,
    ) -> Deferred[Any]:
        if self.stopped_by is not None:
            return fail(NodeStopped(self.stopped_by))
        if not linearizable:
            return maybeDeferred(read, self.machine)
        self.calls.append(("read", deadline, forward))
        return self._do(lambda: read(self.machine), forward)

    def _change(self, forward: bool | None, *changes: Any) -> Deferred[Membership]:
        def act() -> Membership:
            membership = self.membership
            for change in changes:
                membership = membership.after(change)
                membership = membership.left_joint() if membership.joint else membership
            self.membership = membership
            return membership

        return self._do(act, forward)

    def add_learner(
        self,
        node_id: int,
        address: str,
        client_address: str = "",
        *,
        blocking: bool = True,
        auto_promote: bool = False,
        timeout: float | None = None,
        forward: bool | None = None,
    ) -> Deferred[Membership]:
        self.calls.append(("add_learner", node_id, blocking, auto_promote, timeout))
        return self._change(
            forward, AddLearner(Member(node_id, bytes([node_id]) * 16, address, client_address), auto_promote)
        )

    def add_voter(
        self,
        node_id: int,
        address: str | None = None,
        client_address: str = "",
        *,
        timeout: float | None = None,
        forward: bool | None = None,
    ) -> Deferred[Membership]:
        changes: list[Any] = []
        if address is None:
            known = self.member(node_id)
            if known is None:
                # What is no member cannot become a voter.
                return self._change(forward, ChangeVoters(self.voter_ids | {node_id}))
            address, client_address = known.peer_address, known.client_address
        if self.member(node_id) != Member(node_id, bytes([node_id]) * 16, address, client_address):
            changes.append(AddLearner(Member(node_id, bytes([node_id]) * 16, address, client_address)))
        if node_id not in self.voter_ids:
            changes.append(ChangeVoters(self.voter_ids | {node_id}))
        return self._change(forward, *changes)

    def remove_voter(
        self,
        node_id: int,
        *,
        retain: bool = False,
        force: bool = False,
        timeout: float | None = None,
        forward: bool | None = None,
    ) -> Deferred[Membership]:
        self.calls.append(("remove_voter", node_id, retain, force))
        if node_id not in self.voter_ids:
            return fail(MembershipRefused("unknown_member", f"node {node_id} is not a voter"))
        return self._change(forward, ChangeVoters(self.voter_ids - {node_id}, retain, force))

    def remove_learner(
        self, node_id: int, *, timeout: float | None = None, forward: bool | None = None
    ) -> Deferred[Membership]:
        return self._change(forward, RemoveLearner(node_id))

    def change_address(
        self,
        node_id: int,
        peer_address: str,
        client_address: str | None = None,
        *,
        timeout: float | None = None,
        forward: bool | None = None,
    ) -> Deferred[Membership]:
        if client_address is None:
            known = self.member(node_id)
            client_address = known.client_address if known else ""
        return self._change(forward, ChangeAddress(node_id, peer_address, client_address))

    def transfer_leadership(
        self, target: int | None = None, *, timeout: float | None = None, forward: bool | None = None
    ) -> Deferred[int]:
        def act() -> int:
            wanted = target or min(self.voter_ids - {self.leader_id or 0})
            if wanted == 3:
                raise TransferFailed(3, "it lags behind")
            if wanted not in self.voter_ids:
                raise MembershipRefused("unknown_member", f"node {wanted} is no voter")
            self.leader_id = wanted
            return wanted

        return self._do(act, forward)

    def backup(self, deadline: float | None = None, *, forward: bool | None = None) -> Deferred[Any]:
        self.calls.append(("backup", deadline, forward))
        return self._do(lambda: self.readers.pop(0), forward)

    def trigger(self, what: str) -> Deferred[None]:
        self.calls.append(("trigger", what))
        self.snapshot = LogId(3, self.applied)
        return succeed(None)


def _fire(waiting: Deferred[Any], act: Callable[[], Any]) -> None:
    try:
        result = act()
    except Exception as error:
        waiting.errback(error)
    else:
        waiting.callback(result)
