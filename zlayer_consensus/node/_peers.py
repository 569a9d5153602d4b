"""The node's side of the network: who may speak to it, and what goes out to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from ..errors import (
    ClusterMismatch,
    ConsensusError,
    IncarnationMismatch,
    InvalidMessage,
    NodeRemoved,
    NodeStopped,
    Overloaded,
    PeerUnreachable,
    TargetMismatch,
)
from ..network import (
    DigestRequest,
    Envelope,
    IdentifyReply,
    IdentifyRequest,
    OperateRequest,
    ProposeRequest,
    RpcReply,
    RpcRequest,
    SnapshotChunk,
)
from ..raft import (
    Answer,
    AppendReply,
    AppendRequest,
    Effects,
    HeartbeatReply,
    HeartbeatRequest,
    Member,
    Membership,
    ReadIndexReply,
    ReadIndexRequest,
    Reply,
    Request,
    Send,
    TimeoutNowReply,
    TimeoutNowRequest,
    VoteReply,
    VoteRequest,
)

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["Peers"]

_REPLIES: dict[type, type] = {
    VoteRequest: VoteReply,
    HeartbeatRequest: HeartbeatReply,
    AppendRequest: AppendReply,
    TimeoutNowRequest: TimeoutNowReply,
    ReadIndexRequest: ReadIndexReply,
}
_FROM_LEADER = (AppendRequest, HeartbeatRequest, SnapshotChunk)
_MAX_INBOUND = 4096
_CLUSTER_ID_BYTES = 16


class _Silence:
    """A peer that left messages unanswered, and none answered since."""

    __slots__ = ("last", "since", "told")

    def __init__(self, now: float) -> None:
        self.since = self.last = now
        self.told = False


class Peers:
    """Checks envelopes (A-08), takes in RPCs, and sends those of the core."""

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime
        self._members: dict[int, Member] = {}
        """Every member that this node has seen; one that has just left must still hear of it."""
        self._envelopes: dict[int, Envelope] = {}
        self._inbound: set[Deferred[Reply]] = set()
        self._adopting: list[Deferred[None]] | None = None
        self._trouble: dict[int, str] = {}
        self._silent: dict[int, _Silence] = {}

    # Outbound.

    def members_changed(self, membership: Membership) -> None:
        """Use these addresses and incarnations from now on."""
        self._members.update(membership.members)
        self._envelopes.clear()

    def member(self, node_id: int) -> Member | None:
        """Return what is known of a node that is, or was, a member."""
        return self._members.get(node_id)

    def envelope(self, member: Member) -> Envelope:
        """Return the envelope for what is sent to ``member``."""
        envelope = self._envelopes.get(member.node_id)
        if envelope is None:
            mine = self._rt.identity
            envelope = Envelope(mine.cluster_id, mine.node_id, mine.incarnation, member.node_id, member.incarnation)
            self._envelopes[member.node_id] = envelope
        return envelope

    def call(self, node_id: int, request: RpcRequest, timeout: float) -> Deferred[RpcReply]:
        """Send one RPC to a member.

        :raises PeerUnreachable: also if nobody knows where it is.
        """
        member = self._members.get(node_id)
        if member is None:
            return fail(PeerUnreachable(f"node {node_id}", "its address is not known", sent=False))
        try:
            result = self._rt.network.call(member.peer_address, self.envelope(member), request, timeout)
        except Exception as error:
            self._rt.log.failure("The network raised")
            return fail(PeerUnreachable(member.peer_address, f"{type(error).__name__}: {error}", sent=True))
        _ = result.addErrback(self._look_at_failure, node_id)
        return result

    def _look_at_failure(self, failure: Failure, node_id: int) -> Failure:
        """Draw the conclusions that do not depend on the request."""
        error = failure.value
        mine = self._rt.node_id
        if isinstance(error, NodeRemoved) and error.node_id == mine:
            self._rt.fail(error)
        elif not isinstance(error, PeerUnreachable | NodeStopped | Overloaded):
            text = str(error)
            if self._trouble.get(node_id) != text:  # once, not at every heartbeat
                self._trouble[node_id] = text
                self._rt.log.error("Node {peer} refuses what we send: {text!r}", peer=node_id, text=text)
        return failure

    def send(self, send: Send) -> None:
        """Carry out a ``Send``; the reply, or the lack of one, becomes an input of the core."""
        config = self._rt.config
        timeout = config.bulk_timeout if type(send.message) is AppendRequest else config.control_timeout
        _ = self.call(send.peer, send.message, timeout).addCallbacks(
            self._replied, self._unanswered, callbackArgs=(send,), errbackArgs=(send,)
        )

    def _replied(self, reply: RpcReply, send: Send) -> None:
        driver, core = self._rt.driver, self._rt.core
        if type(reply) is _REPLIES[type(send.message)]:
            self._trouble.pop(send.peer, None)
            if self._silent:
                self._heard_of(send.peer)
            driver.input(core.response, send.peer, send.message, reply)
        else:
            self._rt.log.error("Node {peer} answered with the wrong message", peer=send.peer)
            driver.input(core.send_failed, send.peer, send.message)

    def _unanswered(self, failure: Failure, send: Send) -> None:
        if isinstance(failure.value, PeerUnreachable):
            self._not_heard_of(send.peer, failure.value)
        self._rt.driver.input(self._rt.core.send_failed, send.peer, send.message)

    def _not_heard_of(self, node_id: int, error: PeerUnreachable) -> None:
        """Say once that a peer is away, when it has been for as long as would make others campaign."""
        now = self._rt.clock.seconds()
        patience = self._rt.config.election_timeout_max
        silence = self._silent.get(node_id)
        if silence is None or (now - silence.last > patience and not silence.told):
            silence = self._silent[node_id] = _Silence(now)
        silence.last = now
        if not silence.told and now - silence.since >= patience:
            silence.told = True
            self._rt.log.warn(
                "node {peer} at {address} does not answer: {reason}",
                peer=node_id,
                address=error.address,
                reason=error.reason,
            )

    def _heard_of(self, node_id: int) -> None:
        silence = self._silent.pop(node_id, None)
        if silence is not None and silence.told:
            seconds = self._rt.clock.seconds() - silence.since
            self._rt.log.info("node {peer} answers again, after {seconds:.0f} s", peer=node_id, seconds=seconds)

    # Inbound.

    def answer(self, answer: Answer) -> None:
        """Reply to an RPC that the core had taken in."""
        token: Any = answer.token
        self._inbound.discard(token)
        token.callback(answer.message)

    def handle(self, envelope: Envelope, request: RpcRequest) -> Deferred[RpcReply]:
        """Take one inbound RPC; see :class:`~zlayer_consensus.network.interfaces.IRaftService`."""
        rt = self._rt
        if not rt.serving:
            return fail(NodeStopped(rt.cause))
        try:
            if isinstance(request, IdentifyRequest):
                self._check_identify(envelope)
                return succeed(self._who_am_i())
            self._check_parties(envelope)
            if not rt.identity.cluster_id:
                return self._first_contact(envelope, request)
            self._check_membership(envelope)
            return self._dispatch(envelope.sender_id, request)
        except ConsensusError as error:
            return fail(error)

    def _dispatch(self, sender: int, request: RpcRequest) -> Deferred[Any]:
        rt = self._rt
        if isinstance(request, SnapshotChunk):
            return rt.receiver.chunk(sender, request)
        if isinstance(request, DigestRequest):
            return rt.digests.answer(request)
        if isinstance(request, ProposeRequest):
            return rt.forwarder.propose(sender, request)
        if isinstance(request, OperateRequest):
            return Deferred.fromCoroutine(rt.forwarder.operate(sender, request))
        if len(self._inbound) >= _MAX_INBOUND:
            raise Overloaded("inbound RPCs", _MAX_INBOUND)
        return self._to_core(sender, request)  # type: ignore[arg-type]  # identify was dealt with before

    def _to_core(self, sender: int, request: Request) -> Deferred[Reply]:
        token: Deferred[Reply] = Deferred()
        self._inbound.add(token)
        self._rt.driver.input(self._request, token, sender, request)
        return token

    def _request(self, token: Deferred[Reply], sender: int, request: Request, now: float) -> Effects | None:
        try:
            return self._rt.core.request(token, sender, request, now)
        except InvalidMessage as error:  # nothing has changed
            self._inbound.discard(token)
            token.errback(error)
            return None

    def _check_parties(self, envelope: Envelope) -> None:
        """Refuse what is not for this very node, or not from another one (H-31, J-12, A-08)."""
        mine = self._rt.identity
        if envelope.target_id != mine.node_id:
            raise TargetMismatch(mine.node_id, envelope.target_id)
        if mine.cluster_id and envelope.cluster_id != mine.cluster_id:
            raise ClusterMismatch(mine.cluster_id.hex(), envelope.cluster_id.hex())
        if envelope.sender_id == mine.node_id:
            raise InvalidMessage(f"the sender calls itself node {mine.node_id}, as this node does")
        if envelope.target_incarnation != mine.incarnation:
            raise IncarnationMismatch(mine.node_id, envelope.target_incarnation.hex(), mine.incarnation.hex())

    def _check_membership(self, envelope: Envelope) -> None:
        """Refuse a sender that was removed, or whose data directory is not the one that we know (H-29, H-47).

        An unknown sender of the right cluster is listened to: our configuration may be the one that is behind.
        """
        core = self._rt.core
        sender = envelope.sender_id
        if sender in core.committed_membership.tombstones:
            raise NodeRemoved(sender)
        known = core.membership.members.get(sender)
        if known is not None and known.incarnation != envelope.sender_incarnation:
            raise IncarnationMismatch(sender, known.incarnation.hex(), envelope.sender_incarnation.hex())

    def _check_identify(self, envelope: Envelope) -> None:
        mine = self._rt.identity
        if envelope.target_id and envelope.target_id != mine.node_id:
            raise TargetMismatch(mine.node_id, envelope.target_id)
        if envelope.target_incarnation and envelope.target_incarnation != mine.incarnation:
            raise IncarnationMismatch(mine.node_id, envelope.target_incarnation.hex(), mine.incarnation.hex())
        if envelope.cluster_id and mine.cluster_id and envelope.cluster_id != mine.cluster_id:
            raise ClusterMismatch(mine.cluster_id.hex(), envelope.cluster_id.hex())

    def _who_am_i(self) -> IdentifyReply:
        core, mine = self._rt.core, self._rt.identity
        membership = core.committed_membership
        if not membership.members:  # bootstrapped, but nothing is committed yet
            membership = core.membership
        return IdentifyReply(
            node_id=mine.node_id,
            incarnation=mine.incarnation,
            cluster_id=mine.cluster_id,
            members=mine.origin or self._rt.initial_members,
            membership=membership.encode() if membership.members else b"",
            leader_id=core.leader_id or 0,
        )

    def _first_contact(self, envelope: Envelope, request: RpcRequest) -> Deferred[RpcReply]:
        """A node that belongs to no cluster is called by one.

        Only a leader that was told of this node, by an administrator, knows its incarnation. A node that waits for its
        own bootstrap joins nothing else meanwhile.
        """
        if self._rt.initial_members or not isinstance(request, _FROM_LEADER):
            raise ClusterMismatch("none yet", envelope.cluster_id.hex())
        if len(envelope.cluster_id) != _CLUSTER_ID_BYTES:
            raise InvalidMessage(f"a cluster id has {_CLUSTER_ID_BYTES} bytes")
        turn: Deferred[None] = Deferred()
        _ = turn.addCallback(lambda _: self.handle(envelope, request))
        if self._adopting is not None:
            self._adopting.append(turn)
            return turn  # type: ignore[return-value]  # the callback changes what it fires with
        self._adopting = [turn]

        def adopted(_: object) -> None:
            waiting, self._adopting = self._adopting or [], None
            for each in waiting:
                each.callback(None)

        # A failure stops the node, whose `handle` then says so to each of those who wait.
        _ = self._rt.adopt(envelope.cluster_id, b"").addBoth(adopted)
        return turn  # type: ignore[return-value]

    def stop(self, cause: BaseException | None) -> None:
        """Answer what the core left unanswered."""
        inbound, self._inbound = self._inbound, set()
        for token in inbound:
            if not token.called:
                token.errback(NodeStopped(cause))
