"""Proposals between the caller and the applied entry. Each one ends: result, definite refusal, or unknown outcome."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from ..errors import (
    ConsensusError,
    DeadlineExceeded,
    InvariantBroken,
    NodeStopped,
    OutcomeUnknown,
    OutOfSpace,
    Overloaded,
    ProposalTooLarge,
)
from ..raft import Draft, Effects, EntryKind, Role
from ._applier import KeptReply

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["Applied", "Proposal", "Proposals"]

_BATCH_ENTRIES = 2048
_BATCH_BYTES = 4 << 20


class Applied(NamedTuple):
    """The result of a command, and where it stands in the log."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    result: Any


class Proposal(Deferred[Any]):
    """A proposal that somebody waits for. It has no canceller: cancelling it gives up waiting, nothing else.

    What most of them have in common stands in the class: setting it in each of them would cost as much as the rest.
    """

    draft: Draft
    forward = True
    """Whether it may be sent to the leader."""
    indexed = False
    """Whether its index is wanted with the result."""
    deadline = 0.0
    """Its own; 0 if that of its batch holds."""
    timeout = 0.0
    appended = False
    sent = False
    """Whether it is on its way to the leader."""

    def done(self, index: int, value: Any) -> None:
        """Hand over the result, in the form that was asked for."""
        self.callback(Applied(index, value) if self.indexed else value)

    def expire(self) -> None:
        """Its own deadline has passed."""
        self.late(self.timeout, self.appended)

    def late(self, timeout: float, appended: bool) -> None:
        """A deadline has passed."""
        if appended or self.sent:
            self.errback(OutcomeUnknown(f"no result within {timeout:g} s"))
        else:
            self.errback(DeadlineExceeded("propose", timeout))


class _Batch:
    """The proposals of one reactor turn, from there to the last one that is applied."""

    __slots__ = ("bytes", "deadline", "first", "position", "proposals", "term", "timeout")

    def __init__(self, deadline: float, timeout: float) -> None:
        self.proposals: list[Proposal] = []
        self.bytes = 0
        self.deadline = deadline
        self.timeout = timeout
        self.first = 0
        """Index of the first entry, once they are appended."""
        self.term = 0
        self.position = 0
        """How many were applied."""

    @property
    def called(self) -> bool:
        """Whether nothing in it waits any more; for :class:`Deadlines`."""
        return self.position >= len(self.proposals)

    def expire(self) -> None:
        """The common deadline has passed."""
        for proposal in self.proposals[self.position :]:
            if not proposal.called and not proposal.deadline:
                proposal.late(self.timeout, self.first > 0)


class _Stray:
    """A proposal whose entry is gone from our log. It may still be committed elsewhere: apply will tell, if in time."""

    __slots__ = ("_owner", "called", "deadline", "index", "proposal", "term")

    def __init__(self, owner: Proposals, index: int, term: int, proposal: Proposal) -> None:
        self._owner = owner
        self.index = index
        self.term = term
        self.proposal = proposal
        self.deadline = proposal.deadline
        self.called = False
        """Whether it is over; for :class:`Deadlines`."""

    def expire(self) -> None:
        """Nobody waits any more, and nothing has to be kept for it: the log may never again reach its index."""
        self._owner.give_up(self)


class Proposals:
    """Gathers the proposals of one reactor turn, appends them as one batch, and settles them when they are applied."""

    def __init__(self, runtime: Runtime, elsewhere: Callable[[Proposal], None]) -> None:
        self._rt = runtime
        self._elsewhere = elsewhere
        self._gathered: deque[_Batch] = deque()
        self._filling: _Batch | None = None
        self._flush_call: IDelayedCall | None = None
        self._pending: deque[_Batch] = deque()
        self._strays: dict[int, list[_Stray]] = {}
        self._max_bytes = runtime.config.max_proposal_bytes
        self._max_count = runtime.config.max_pending_proposals
        self._max_pending_bytes = runtime.config.max_pending_bytes
        self.count = 0
        """Proposals that wait here."""
        self.bytes = 0
        self.waits = False
        """Whether an applied entry could settle anything."""

    def submit(
        self,
        payload: bytes,
        kind: int = EntryKind.COMMAND,
        session: int = 0,
        sequence: int = 0,
        timeout: float | None = None,
        frees: bool = False,
    ) -> Proposal:
        """Take in a proposal; its caller may still set how it is to be treated, and has checked the time-out.

        :param frees: whether it frees space.

        :raises ConsensusError: if it is refused at once.
        """
        size = len(payload)
        if size > self._max_bytes:
            raise ProposalTooLarge(size, self._max_bytes)
        if self.count >= self._max_count:
            raise Overloaded("proposals", self._max_count)
        if self.bytes + size > self._max_pending_bytes:
            raise Overloaded("proposal bytes", self._max_pending_bytes)
        if self._rt.applier.applying:
            raise InvariantBroken("apply proposed a command")
        self.count += 1
        self.bytes += size
        batch = self._filling
        if batch is None or len(batch.proposals) >= _BATCH_ENTRIES or batch.bytes >= _BATCH_BYTES:
            batch = self._begin_batch()
        proposal = Proposal()
        proposal.draft = Draft(payload, kind, session, sequence, frees)
        batch.proposals.append(proposal)
        batch.bytes += size
        if timeout is not None:
            self._give_deadline(proposal, timeout, self._rt.clock.seconds() + timeout)
        return proposal

    def _begin_batch(self) -> _Batch:
        clock, timeout = self._rt.clock, self._rt.config.proposal_timeout
        batch = self._filling = _Batch(clock.seconds() + timeout, timeout)
        self._gathered.append(batch)
        if self._flush_call is None:
            self._flush_call = clock.callLater(0, self.flush)
        return batch

    def _give_deadline(self, proposal: Proposal, timeout: float, deadline: float) -> None:
        proposal.timeout, proposal.deadline = timeout, deadline
        self._rt.deadlines.add(proposal, False)

    def flush(self) -> None:
        """Hand the oldest batch to the core; the others follow in later turns."""
        if self._flush_call is not None and self._flush_call.active():
            self._flush_call.cancel()
        self._flush_call = None
        if self._gathered:
            self._rt.driver.input(self._append)

    def _append(self, now: float) -> Effects | None:
        """Deal with the oldest batch; until that is done it stays where :meth:`stop` finds it."""
        if not self._gathered:
            return None
        batch = self._gathered[0]
        if batch is self._filling:
            self._filling = None
        if len(self._gathered) > 1 and self._flush_call is None:
            self._flush_call = self._rt.clock.callLater(0, self.flush)
        for proposal in [each for each in batch.proposals if each.called]:  # given up before it went anywhere
            batch.proposals.remove(proposal)
            self.release(proposal)
        core = self._rt.core
        effects: Effects | None = None
        if core.full_members:
            self._keep_what_frees(batch, OutOfSpace(core.full_members))
        if core.role is not Role.LEADER:
            self._pass_on(batch)
        elif batch.proposals:
            effects = core.propose([each.draft for each in batch.proposals], int(self._rt.wall_clock() * 1000), now)
            if effects.proposed is not None:
                self._appended(batch, effects.proposed.first, effects.proposed.term)
            else:
                error = next((r.error for r in effects.refused if r.token is None), None)
                self._refuse_all(batch, error or InvariantBroken("the core neither took nor refused a proposal"))
        if self._gathered and self._gathered[0] is batch:
            self._gathered.popleft()
        return effects

    def _keep_what_frees(self, batch: _Batch, error: OutOfSpace) -> None:
        """Refuse what does not free space."""
        for proposal in [each for each in batch.proposals if not each.draft.frees]:
            batch.proposals.remove(proposal)
            self.refuse(proposal, error)

    def _refuse_all(self, batch: _Batch, error: ConsensusError) -> None:
        for proposal in _rest(batch):
            self.refuse(proposal, error)

    def _pass_on(self, batch: _Batch) -> None:
        """Let somebody else deal with proposals that cannot be appended here; each has a deadline of its own then."""
        for proposal in _rest(batch):
            try:
                if not proposal.deadline:
                    self._give_deadline(proposal, batch.timeout, batch.deadline)
                self._elsewhere(proposal)
            except Exception as error:
                self.refuse(proposal, OutcomeUnknown("the node failed") if proposal.sent else NodeStopped(error))
                raise

    def _appended(self, batch: _Batch, first: int, term: int) -> None:
        batch.first, batch.term = first, term
        for proposal in batch.proposals:
            if proposal.deadline:
                proposal.appended = True
        self._pending.append(batch)
        self.waits = True
        self._rt.deadlines.add(batch, True)

    def truncated(self, after: int) -> None:
        """The entries behind ``after`` are gone from our log."""
        pending = self._pending
        while pending and pending[-1].first + len(pending[-1].proposals) > after + 1:
            batch = pending.pop()
            keep = max(after + 1 - batch.first, batch.position)
            for index, proposal in enumerate(batch.proposals[keep:], batch.first + keep):
                self._stray(index, batch, proposal)
            del batch.proposals[keep:]
            if not batch.called:
                pending.append(batch)
                break
        self.waits = bool(pending or self._strays)

    def _stray(self, index: int, batch: _Batch, proposal: Proposal) -> None:
        if proposal.called:
            self.release(proposal)
            return
        if not proposal.deadline:
            proposal.timeout, proposal.deadline = batch.timeout, batch.deadline
        proposal.appended = True
        stray = _Stray(self, index, batch.term, proposal)
        self._strays.setdefault(index, []).append(stray)
        self._rt.deadlines.add(stray, False)

    def give_up(self, stray: _Stray) -> None:
        """Its deadline has passed."""
        stray.called = True
        left = self._strays[stray.index]
        left.remove(stray)
        if not left:
            del self._strays[stray.index]
        self.waits = bool(self._pending or self._strays)
        self.release(stray.proposal)
        if not stray.proposal.called:
            stray.proposal.expire()

    def settle(self, index: int, term: int, value: Any, failed: bool) -> None:
        """The entry at ``index`` was applied, with this result. For every index, in order, while ``waits`` is set.

        :param failed: whether it is an error, or a :class:`KeptReply`.
        """
        pending = self._pending
        if pending:
            batch = pending[0]
            position = index - batch.first
            if position == batch.position:
                proposal = batch.proposals[position]
                batch.position = position + 1
                if batch.position == len(batch.proposals):
                    pending.popleft()
                    self.waits = bool(pending or self._strays)
                self._settle(proposal, index, term == batch.term, value, failed)
        if self._strays:
            for stray in self._strays.pop(index, ()):
                stray.called = True
                self._settle(stray.proposal, index, term == stray.term, value, failed)
            self.waits = bool(pending or self._strays)

    def _settle(self, proposal: Proposal, index: int, ours: bool, value: Any, failed: bool) -> None:
        self.count -= 1
        self.bytes -= len(proposal.draft[0])
        if proposal.called:
            return  # expired or cancelled
        if not ours:
            proposal.errback(self._rt.not_leader())  # another entry stands in its place: it did not happen
        elif failed:
            self._hand_over(proposal, index, value)
        elif proposal.indexed:
            proposal.callback(Applied(index, value))
        else:
            proposal.callback(value)

    def _hand_over(self, proposal: Proposal, index: int, value: Any) -> None:
        """Tell an error, or what was kept of a command that was carried out before."""
        if not isinstance(value, KeptReply):
            proposal.errback(value)
            return
        try:
            result, failed = self._rt.applier.decode_reply(value)
        except Exception as error:  # whatever the conversion raises
            self._rt.log.failure("The kept reply to entry {index} cannot be decoded", index=index)
            problem = f"{type(error).__name__}: {error}"
            proposal.errback(OutcomeUnknown(f"it was applied, but its reply cannot be decoded ({problem})"))
            return
        if failed:
            proposal.errback(result)
        else:
            proposal.done(index, result)

    def superseded(self, index: int) -> None:
        """A snapshot replaced the log up to ``index``: what was applied there will never be known (J-45)."""
        strays = [stray for i in [i for i in self._strays if i <= index] for stray in self._strays.pop(i)]
        for stray in strays:
            stray.called = True
        lost = [stray.proposal for stray in strays]
        while self._pending and self._pending[0].first + self._pending[0].position <= index:
            batch = self._pending[0]
            end = min(len(batch.proposals), index - batch.first + 1)
            lost += batch.proposals[batch.position : end]
            batch.position = end
            if batch.called:
                self._pending.popleft()
        self.waits = bool(self._pending or self._strays)
        for proposal in lost:
            self.refuse(proposal, OutcomeUnknown("a snapshot replaced the entry"))

    def refuse(self, proposal: Proposal, error: ConsensusError) -> None:
        """End a proposal with an error, unless it is over already."""
        self.release(proposal)
        if not proposal.called:
            proposal.errback(error)

    def release(self, proposal: Proposal) -> None:
        """Make room: a proposal has left."""
        self.count -= 1
        self.bytes -= len(proposal.draft[0])

    def stop(self, cause: BaseException | None) -> None:
        """End everything: what was not appended did not happen, the outcome of the rest is unknown."""
        gathered = [p for batch in self._gathered for p in _rest(batch)]
        appended = [p for batch in self._pending for p in batch.proposals[batch.position :]]
        appended += [stray.proposal for strays in self._strays.values() for stray in strays]
        self._gathered.clear()
        self._pending.clear()
        self._strays.clear()
        self._filling, self.waits = None, False
        if self._flush_call is not None:
            self._flush_call.cancel()
            self._flush_call = None
        for proposal in gathered:
            self.refuse(proposal, NodeStopped(cause))
        for proposal in appended:
            self.refuse(proposal, OutcomeUnknown("the node stopped"))


def _rest(batch: _Batch) -> Iterator[Proposal]:
    """Take the proposals that are left out of a batch, one by one: who breaks off leaves the others in it."""
    while batch.position < len(batch.proposals):
        batch.position += 1
        yield batch.proposals[batch.position - 1]


def check_session(session: object, sequence: object) -> None:
    """Refuse a session and sequence that cannot be.

    :raises ValueError: if one is given without the other, or is out of range.
    """
    for name, value in (("session", session), ("sequence", sequence)):
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise ValueError(f"{name} must be a number from 0 to 2**63 - 1, not {value!r}")
    if bool(session) is not bool(sequence):
        raise ValueError("a command of a session has a sequence from 1 on, and a sequence needs a session")


def is_proposable(kind: int) -> bool:
    """Whether clients may propose entries of this kind."""
    return kind in (EntryKind.COMMAND, EntryKind.SESSION)
