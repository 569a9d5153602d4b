"""Forwarding to the leader: one hop at most, and never twice (J-42).

What was certainly not sent is refused with :class:`~zlayer_consensus.errors.NotLeader`; what was sent and got no reply
has an unknown outcome.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, fail
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
    PeerUnreachable,
)
from ..network import ForwardReply, ForwardRequest, RpcReply
from ..raft import EntryKind, Role
from ._failures import error_in
from ._proposals import Applied, Proposal, check_session, is_proposable
from ._sessions import SessionSettings

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["Forwarder", "decode_error", "encode_error"]

_PROPOSE = "propose"
_TRAVELLING: Mapping[str, type[ConsensusError]] = {
    kind.code: kind
    for kind in (
        errors.NotLeader,
        errors.OutcomeUnknown,
        errors.DeadlineExceeded,
        errors.Overloaded,
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


class Forwarder:
    """Sends what only the leader can do to it, and does here what others forward."""

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime
        self._sent: set[Proposal] = set()

    # At the follower.

    def proposal(self, proposal: Proposal, deadline: float) -> None:
        """Send a proposal to the leader, or refuse it."""
        rt = self._rt
        if not proposal.forward or rt.leader_member() is None:
            rt.proposals.refuse(proposal, rt.not_leader())
            return
        draft = proposal.draft
        remaining = max(0.001, deadline - rt.clock.seconds())
        self._sent.add(proposal)
        proposal.sent = True
        request = ForwardRequest(
            _PROPOSE, draft.payload, draft.kind, draft.session, draft.sequence, _milliseconds(remaining)
        )
        _ = self._call(request, remaining).addCallbacks(
            self._replied, self._failed, callbackArgs=(proposal,), errbackArgs=(proposal,)
        )

    def _replied(self, reply: ForwardReply, proposal: Proposal) -> None:
        if proposal not in self._sent:
            return
        self._sent.discard(proposal)
        if reply.error:
            self._rt.proposals.refuse(proposal, self.trusted(decode_error(reply.error, reply.payload)))
            return
        try:
            value = self._decode_result(proposal.draft.kind, reply)
        except ConsensusError as error:
            self._rt.proposals.refuse(proposal, OutcomeUnknown(f"it was applied, but {error}"))
            return
        self._rt.proposals.release(proposal)
        if not proposal.called:
            proposal.done(reply.index, value)

    def _decode_result(self, kind: int, reply: ForwardReply) -> Any:
        return reply.index if kind == EntryKind.SESSION else self._rt.types.decode_response(reply.payload)

    def _failed(self, failure: Failure, proposal: Proposal) -> None:
        if proposal in self._sent:
            self._sent.discard(proposal)
            self._rt.proposals.refuse(proposal, self._meaning(failure))

    async def operation(self, name: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        """Have the leader carry out an administrative operation; return its plain result."""
        request = ForwardRequest(name, _cbor.dumps(dict(arguments)), 0, 0, 0, _milliseconds(timeout))
        try:
            reply = await self._call(request, timeout)
        except CancelledError:
            if self._rt.serving:
                raise
            raise OutcomeUnknown("the node stopped after it was forwarded") from None
        except Exception as error:
            raise self._meaning(Failure()) from error
        if reply.error:
            raise self.trusted(decode_error(reply.error, reply.payload))
        try:
            return _cbor.loads(reply.payload)
        except _cbor.CborError as error:
            raise OutcomeUnknown(f"it was done, but the leader's reply cannot be read ({error})") from error

    def _call(self, request: ForwardRequest, timeout: float) -> Deferred[ForwardReply]:
        leader = self._rt.leader_member()
        if leader is None:
            return fail(self._rt.not_leader())

        def check(reply: RpcReply) -> ForwardReply:
            if not isinstance(reply, ForwardReply):
                raise OutcomeUnknown("the leader answered with the wrong message")
            return reply

        # A little longer than the leader itself waits, so that its answer can still arrive.
        limit = timeout + self._rt.config.control_timeout
        return self._rt.peers.call(leader.node_id, request, limit).addCallback(check)

    def _meaning(self, failure: Failure) -> ConsensusError:
        """Say what it means that a forwarded request got no reply."""
        error = failure.value
        if isinstance(error, PeerUnreachable) and not error.sent:
            return self._rt.not_leader()
        if isinstance(error, Overloaded | NotLeader | OutcomeUnknown):
            return error
        if isinstance(error, errors.PeerRefused | NodeStopped | errors.NodeRemoved):
            return self._rt.not_leader()  # it was refused before anything happened
        return OutcomeUnknown(f"it was forwarded to the leader, and then: {error}")

    def trusted(self, error: ConsensusError) -> ConsensusError:
        """Take the leader's id from a message, but its addresses from our configuration only (A-30)."""
        return self._rt.not_leader(error.leader_id) if isinstance(error, NotLeader) else error

    # At the leader.

    def execute(self, request: ForwardRequest) -> Deferred[ForwardReply]:
        """Do here what another node's client wants."""
        if not 0 < request.timeout_ms < 1 << 40:
            raise InvalidMessage(f"timeout_ms is {request.timeout_ms}")
        if request.operation != _PROPOSE:
            return Deferred.fromCoroutine(self._administer(request))
        if not is_proposable(request.kind):
            raise InvalidMessage(f"an entry of kind {request.kind} cannot be proposed")
        try:
            check_session(request.session, request.sequence)
            payload = self._checked_payload(request)
        except ValueError as error:
            raise InvalidMessage(str(error)) from error
        if self._rt.core.role is not Role.LEADER:
            return _reply_with(self._rt.not_leader())
        try:
            proposal = self._rt.proposals.submit(
                payload, request.kind, request.session, request.sequence, request.timeout_ms / 1000
            )
            proposal.forward, proposal.indexed = False, True
        except ConsensusError as error:
            return _reply_with(error)
        return proposal.addCallbacks(self._applied, _refused, callbackArgs=(request.kind,))

    def _checked_payload(self, request: ForwardRequest) -> bytes:
        if request.kind == EntryKind.SESSION:
            return SessionSettings.of(self._rt.config).encode()
        if len(request.payload) <= self._rt.config.max_proposal_bytes:
            # What cannot be decoded must never get into the log: it would stop every node.
            self._rt.types.decode_request(request.payload)
        return request.payload

    def _applied(self, applied: Applied, kind: int) -> ForwardReply:
        try:
            payload = b"" if kind == EntryKind.SESSION else self._rt.types.encode_response(applied.result)
        except ConsensusError as error:
            return ForwardReply(*encode_error(OutcomeUnknown(f"it was applied, but {error}")), applied.index)
        return ForwardReply("", payload, applied.index)

    async def _administer(self, request: ForwardRequest) -> ForwardReply:
        try:
            arguments = _cbor.loads(request.payload)
        except _cbor.CborError as error:
            raise InvalidMessage(str(error)) from error
        try:
            result = await self._rt.admin.forwarded(request.operation, arguments, request.timeout_ms / 1000)
        except InvalidMessage:
            raise
        except Exception as error:
            return ForwardReply(*encode_error(error), 0)
        return ForwardReply("", _cbor.dumps(result), 0)

    def stop(self) -> None:
        """End what is on its way."""
        sent, self._sent = self._sent, set()
        for proposal in sent:
            self._rt.proposals.refuse(proposal, OutcomeUnknown("the node stopped after it was forwarded"))


def _refused(failure: Failure) -> ForwardReply:
    return ForwardReply(*encode_error(error_in(failure)), 0)


def _reply_with(error: ConsensusError) -> Deferred[ForwardReply]:
    result: Deferred[ForwardReply] = Deferred()
    result.callback(ForwardReply(*encode_error(error), 0))
    return result


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
