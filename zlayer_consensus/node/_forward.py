"""Forwarding to the leader: in order, one hop at most, and never twice (J-42, H-88).

What was certainly not sent is refused with :class:`~zlayer_consensus.errors.NotLeader`; what was sent and got no reply
has an unknown outcome.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from .. import _cbor, errors
from ..errors import (
    ConsensusError,
    DomainError,
    InvalidMessage,
    NodeStopped,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    PeerRefused,
    PeerUnreachable,
)
from ..network import (
    MAX_FORWARDED,
    MAX_OUTCOME_BYTES,
    MAX_TIMEOUT_MS,
    ForwardedOutcome,
    ForwardedProposal,
    OperateReply,
    OperateRequest,
    ProposeReply,
    ProposeRequest,
    RpcReply,
    RpcRequest,
)
from ..raft import EntryKind, Role
from ._failures import error_in
from ._once import Once
from ._proposals import Applied, Proposal, check_session, is_proposable
from ._sessions import SessionSettings

if TYPE_CHECKING:
    from ..types import RaftTypes
    from ._runtime import Runtime

__all__ = ["Forwarder", "decode_error", "encode_error"]

_MAX_OPERATIONS = 64
"""Forwarded administrative operations that are under way at a leader."""
_RESERVED = 1024
"""Bytes that each outcome of a batch may have, whatever the others have."""
_MOST_SAID = 200
"""Characters of an error that nobody foresaw: few enough for what is reserved."""
_TRAVELLING: Mapping[str, type[ConsensusError]] = {
    kind.code: kind
    for kind in (
        errors.NotLeader,
        errors.OutcomeUnknown,
        errors.DeadlineExceeded,
        errors.Overloaded,
        errors.OutOfSpace,
        errors.ProposalTooLarge,
        errors.MembershipRefused,
        errors.TransferInProgress,
        errors.TransferFailed,
        errors.SessionExpired,
        errors.SessionSequenceStale,
        errors.SessionSequenceReused,
        errors.DomainError,
        errors.IncarnationMismatch,
        errors.ClusterMismatch,
        errors.TargetMismatch,
        errors.PeerUnreachable,
        errors.ConversionError,
        errors.NodeRemoved,
        errors.InvalidMessage,
    )
}
"""The errors that come back as what they were."""
_PARAMETERS = {code: tuple(inspect.signature(kind).parameters) for code, kind in _TRAVELLING.items()}
"""The parameters of their constructors, which are their attributes."""


def encode_error(error: BaseException) -> tuple[str, bytes]:
    """Return an error's code, and its attributes encoded."""
    if isinstance(error, DomainError):
        return DomainError.code, _cbor.dumps(
            {"reason": error.reason, "message": error.message, "details": error.details}
        )
    if isinstance(error, ConsensusError) and error.code in _TRAVELLING:
        attributes = error.attributes()
        return error.code, _cbor.dumps({name: attributes[name] for name in _PARAMETERS[error.code]})
    if isinstance(error, NodeStopped):
        # Whether it had begun when the node stopped is not known here.
        return OutcomeUnknown.code, _cbor.dumps({"reason": str(error)})
    return OutcomeUnknown.code, _cbor.dumps({"reason": f"the leader failed: {type(error).__name__}: {error}"})


def decode_error(code: str, payload: bytes) -> ConsensusError:
    """Return the error that :func:`encode_error` was given; one that is not understood is an unknown outcome."""
    kind = _TRAVELLING.get(code)
    try:
        attributes = _cbor.loads(payload)
        if kind is not None:
            return kind(**attributes)
        return OutcomeUnknown(f"the leader answered with the error {code!r}")
    except (ValueError, TypeError) as error:
        return OutcomeUnknown(f"the leader answered with an error that cannot be read ({error})")


class _Sent:
    """Proposals that are on their way to a leader."""

    __slots__ = ("leader_id", "proposals", "term")

    def __init__(self, leader_id: int, term: int, proposals: list[Proposal]) -> None:
        self.leader_id = leader_id
        self.term = term
        self.proposals = proposals


class Forwarder:
    """Sends what only the leader can do to it, and does here what others forward.

    Proposals go in batches, one at a time to a leader of a term: what comes meanwhile gathers for the next. So they
    stay in order, and there is never more than one request of them per leader, whatever the load.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime
        self._waiting: deque[Proposal] = deque()
        self._under_way: set[_Sent] = set()
        self._latest: _Sent | None = None
        """The batch after whose end the next one may go, if it goes to the same leader."""
        self._stepping = False
        self._operations = 0
        self._stream = int(runtime.random() * (1 << 53))
        self._number = 0
        self.once: Once
        """Set when the node starts."""

    # At the follower.

    def proposal(self, proposal: Proposal) -> None:
        """Send a proposal, which has a deadline of its own, to the leader, after those before it; or refuse it."""
        waiting = self._waiting
        while waiting and waiting[0].called:  # those must not keep others out while a batch is under way
            self._rt.proposals.release(waiting.popleft())
        if not proposal.forward or self._rt.leader_member() is None:
            self._rt.proposals.refuse(proposal, self._rt.not_leader())
            return
        waiting.append(proposal)
        self._go_on()

    def leader_changed(self) -> None:
        """Another leader, or none: what waits goes to the next, whatever became of what was sent to the last.

        It was never sent, so that is safe. While there is none it goes on waiting, until its deadlines.
        """
        self._go_on()

    def _go_on(self) -> None:
        # After the present step of the driver: the whole turn's proposals are there then.
        if self._waiting and not self._stepping:
            self._stepping = True
            self._rt.driver.input(self._step)

    def _step(self, _now: float) -> None:
        self._stepping = False
        rt, core = self._rt, self._rt.core
        leader = rt.leader_member()
        if leader is None:
            return
        if leader.node_id == rt.node_id:
            while self._waiting:
                rt.proposals.refuse(self._waiting.popleft(), rt.not_leader())
            return
        latest = self._latest
        if latest is not None and (latest.leader_id, latest.term) == (leader.node_id, core.term):
            return
        proposals = self._next_batch()
        if proposals:
            self._send(_Sent(leader.node_id, core.term, proposals))

    def _next_batch(self) -> list[Proposal]:
        """Take what fits into one request from the front of the queue."""
        batch: list[Proposal] = []
        size, limit = 0, self._rt.config.max_payload_bytes
        while self._waiting and len(batch) < MAX_FORWARDED:
            proposal = self._waiting[0]
            if proposal.called:  # expired or given up, and never sent
                self._rt.proposals.release(self._waiting.popleft())
                continue
            size += len(proposal.draft.payload)
            if batch and size > limit:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _send(self, sent: _Sent) -> None:
        self._under_way.add(sent)
        self._latest = sent
        now = self._rt.clock.seconds()
        forwarded = []
        longest = 0.001
        for proposal in sent.proposals:
            payload, kind, session, sequence, frees = proposal.draft
            remaining = proposal.deadline - now
            longest = max(longest, remaining)
            proposal.sent = True
            forwarded.append(ForwardedProposal(payload, int(kind), session, sequence, _milliseconds(remaining), frees))
        self._number += 1
        request = ProposeRequest(sent.term, self._stream, self._number, tuple(forwarded))
        _ = self._call(sent.leader_id, request, longest).addCallbacks(
            self._replied, self._failed, callbackArgs=(sent,), errbackArgs=(sent,)
        )

    def _take_back(self, sent: _Sent) -> bool:
        """End a batch's journey; return whether somebody still waits for what became of it."""
        if sent not in self._under_way:
            return False
        self._under_way.discard(sent)
        if self._latest is sent:
            self._latest = None
        self._go_on()
        return True

    def _replied(self, reply: RpcReply, sent: _Sent) -> None:
        if not isinstance(reply, ProposeReply) or len(reply.outcomes) != len(sent.proposals):
            self._failed(Failure(OutcomeUnknown("the leader answered with the wrong message")), sent)
        elif self._take_back(sent):
            for proposal, outcome in zip(sent.proposals, reply.outcomes, strict=True):
                self._settle(proposal, outcome)

    def _settle(self, proposal: Proposal, outcome: ForwardedOutcome) -> None:
        proposals = self._rt.proposals
        if outcome.error:
            proposals.refuse(proposal, self.trusted(decode_error(outcome.error, outcome.payload)))
            return
        value: Any = outcome.index
        try:
            if proposal.draft.kind != EntryKind.SESSION:
                value = self._rt.types.decode_response(outcome.payload)
        except Exception as error:  # whatever an application's conversion raises concerns this one only
            proposals.refuse(proposal, OutcomeUnknown(f"it was applied, but {_say(error)}"))
            return
        proposals.release(proposal)
        if not proposal.called:
            proposal.done(outcome.index, value)

    def _failed(self, failure: Failure, sent: _Sent) -> None:
        if self._take_back(sent):
            error = self._meaning(failure)
            for proposal in sent.proposals:
                self._rt.proposals.refuse(proposal, error)

    async def operation(self, name: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        """Have the leader carry out an administrative operation; return its plain result."""
        leader = self._rt.leader_member()
        if leader is None:
            raise self._rt.not_leader()
        self._number += 1
        request = OperateRequest(
            self._rt.core.term, self._stream, self._number, name, _cbor.dumps(dict(arguments)), _milliseconds(timeout)
        )
        try:
            reply = await self._call(leader.node_id, request, timeout)
        except CancelledError:
            if self._rt.serving:
                raise
            raise OutcomeUnknown("the node stopped after it was forwarded") from None
        except Exception as error:
            raise self._meaning(Failure()) from error
        if not isinstance(reply, OperateReply):
            raise OutcomeUnknown("the leader answered with the wrong message")
        if reply.error:
            raise self.trusted(decode_error(reply.error, reply.payload))
        try:
            return _cbor.loads(reply.payload)
        except _cbor.CborError as error:
            raise OutcomeUnknown(f"it was done, but the leader's reply cannot be read ({error})") from error

    def _call(self, leader_id: int, request: RpcRequest, timeout: float) -> Deferred[RpcReply]:
        # A little longer than the leader itself waits, so that its answer can still arrive.
        limit = min(timeout, MAX_TIMEOUT_MS / 1000) + self._rt.config.control_timeout
        return self._rt.peers.call(leader_id, request, limit)

    def _meaning(self, failure: Failure) -> ConsensusError:
        """Say what it means that a forwarded request got no reply."""
        error = failure.value
        if isinstance(error, PeerUnreachable) and not error.sent:
            return self._rt.not_leader()
        if isinstance(error, Overloaded | NotLeader | OutcomeUnknown | PeerRefused):
            return error  # it was refused before anything happened, or is what it is
        # Also if it says that it does not run, or that this node was removed: that may not have been so yet when
        # another copy of the request came.
        return OutcomeUnknown(f"it was forwarded to the leader, and then: {error}")

    def trusted(self, error: ConsensusError) -> ConsensusError:
        """Take the leader's id from a message, but its addresses from our configuration only (A-30)."""
        return self._rt.not_leader(error.leader_id) if isinstance(error, NotLeader) else error

    # At the leader.

    def _refusal(self, sender: int, request: ProposeRequest | OperateRequest) -> ConsensusError | None:
        """Return why a request is not carried out, or None if it is to be.

        In a newer term of ours, what the same node sent later may be in the log already (H-88).
        """
        core = self._rt.core
        if self.once.known(request.term, sender, request.stream, request.number):
            return OutcomeUnknown("the request arrived a second time, or too late to tell")
        if core.role is not Role.LEADER or core.term != request.term:
            return self._rt.not_leader()
        self.once.take(sender, request.stream, request.number)
        return None

    def propose(self, sender: int, request: ProposeRequest) -> Deferred[ProposeReply]:
        """Propose here, in order, what the clients of another node want."""
        results = _Results(len(request.proposals), self._rt.types)
        refusal = self._refusal(sender, request)
        for position, forwarded in enumerate(request.proposals):
            if refusal is not None:
                results.failed(position, refusal)
                continue
            try:
                proposal = self._submit(forwarded)
            except Exception as error:  # one that is wrong, or one too many, is refused; the others are not
                results.failed(position, error if isinstance(error, ConsensusError) else InvalidMessage(_say(error)))
                continue
            _ = proposal.addCallbacks(
                results.applied, results.refused, callbackArgs=(position, forwarded.kind), errbackArgs=(position,)
            )
        return results.ended

    def _submit(self, forwarded: ForwardedProposal) -> Proposal:
        """Take one in.

        :raises Exception: whatever the application's conversion raises for a command that it cannot read. It must never
            get into the log, where it would stop every node.
        """
        payload, kind, session, sequence, timeout_ms, frees = forwarded
        if not is_proposable(kind):
            raise InvalidMessage(f"an entry of kind {kind} cannot be proposed")
        check_session(session, sequence)
        if not 0 < timeout_ms <= MAX_TIMEOUT_MS:
            raise InvalidMessage(f"timeout_ms is {timeout_ms}")
        if kind == EntryKind.SESSION:
            payload = SessionSettings.of(self._rt.config).encode()
        elif len(payload) <= self._rt.config.max_proposal_bytes:
            self._rt.types.decode_request(payload)
        proposal = self._rt.proposals.submit(payload, kind, session, sequence, timeout_ms / 1000, frees)
        proposal.forward, proposal.indexed = False, True
        return proposal

    async def operate(self, sender: int, request: OperateRequest) -> OperateReply:
        """Do here what an administrator wants who asked another node."""
        if not 0 < request.timeout_ms <= MAX_TIMEOUT_MS:
            raise InvalidMessage(f"timeout_ms is {request.timeout_ms}")
        try:
            arguments = _cbor.loads(request.arguments)
        except _cbor.CborError as error:
            raise InvalidMessage(str(error)) from error
        refusal = self._refusal(sender, request)
        if refusal is not None:
            return OperateReply(*encode_error(refusal))
        if self._operations >= _MAX_OPERATIONS:
            raise Overloaded("forwarded operations", _MAX_OPERATIONS)
        self._operations += 1
        try:
            result = await self._rt.admin.forwarded(request.operation, arguments, request.timeout_ms / 1000)
        except InvalidMessage:
            raise
        except Exception as error:
            return OperateReply(*encode_error(error))
        finally:
            self._operations -= 1
        return OperateReply("", _cbor.dumps(result))

    def stop(self, cause: BaseException | None) -> None:
        """End everything: what waits did not happen, what was sent may have."""
        waiting, self._waiting = self._waiting, deque()
        under_way, self._under_way, self._latest = self._under_way, set(), None
        for proposal in waiting:
            self._rt.proposals.refuse(proposal, NodeStopped(cause))
        for proposal in [each for sent in under_way for each in sent.proposals]:
            self._rt.proposals.refuse(proposal, OutcomeUnknown("the node stopped after it was forwarded"))


class _Results:
    """The outcomes of a batch of forwarded proposals, until there is one for each."""

    def __init__(self, count: int, types: RaftTypes) -> None:
        self.ended: Deferred[ProposeReply] = Deferred()
        self._types = types
        self._outcomes: list[ForwardedOutcome | None] = [None] * count
        self._missing = count
        self._room = MAX_OUTCOME_BYTES - count * _RESERVED

    def applied(self, applied: Applied, position: int, kind: int) -> None:
        """It has a result."""
        try:
            payload = b"" if kind == EntryKind.SESSION else self._types.encode_response(applied.result)
        except Exception as error:
            self._add(position, *_unknown(f"it was applied, but {_say(error)}"), applied.index)
        else:
            self._add(position, "", payload, applied.index)

    def refused(self, failure: Failure, position: int) -> None:
        """It was refused, or nobody knows."""
        self.failed(position, error_in(failure))

    def failed(self, position: int, error: BaseException) -> None:
        """The same."""
        try:
            encoded = encode_error(error)
        except Exception as problem:  # details that are no plain values
            encoded = _unknown(f"it failed with an error that cannot be sent: {_say(problem)}")
        self._add(position, *encoded, 0)

    def _add(self, position: int, error: str, payload: bytes, index: int) -> None:
        if len(payload) > _RESERVED:
            if len(payload) > self._room:
                error, payload = _unknown("it has an outcome, but there is no room for it in the leader's reply")
            else:
                self._room -= len(payload)
        self._outcomes[position] = ForwardedOutcome(error, payload, index)
        self._missing -= 1
        if not self._missing:
            self.ended.callback(ProposeReply(tuple(outcome for outcome in self._outcomes if outcome is not None)))


def _unknown(reason: str) -> tuple[str, bytes]:
    return encode_error(OutcomeUnknown(reason[:_MOST_SAID]))


def _say(error: BaseException) -> str:
    text = str(error) if isinstance(error, ConsensusError) else f"{type(error).__name__}: {error}"
    return text[:_MOST_SAID]


def _milliseconds(seconds: float) -> int:
    return int(min(max(1.0, seconds * 1000), MAX_TIMEOUT_MS))
