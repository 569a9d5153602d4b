"""Proposals between the caller and the applied entry. Each one ends: result, definite refusal, or unknown outcome."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from ..errors import (
    ConsensusError,
    DeadlineExceeded,
    InvariantBroken,
    NodeStopped,
    OutcomeUnknown,
    Overloaded,
    ProposalTooLarge,
)
from ..raft import Draft, Effects, EntryKind, Role

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
    """A proposal that somebody waits for. It has no canceller: cancelling it gives up waiting, nothing else."""

    # Set by whoever makes one, right away; a constructor with this many arguments costs as much as the rest.
    draft: Draft
    size: int
    deadline: float
    timeout: float
    forward: bool
    indexed: bool
    index: int = 0
    term: int = 0
    sent: bool = False
    """Whether it is on its way to the leader."""

    def done(self, index: int, value: Any) -> None:
        """Hand over the result, in the form that was asked for."""
        self.callback(Applied(index, value) if self.indexed else value)

    def expire(self) -> None:
        """The deadline has passed."""
        if self.index or self.sent:
            self.errback(OutcomeUnknown(f"no result within {self.timeout:g} s"))
        else:
            self.errback(DeadlineExceeded("propose", self.timeout))


class Proposals:
    """Gathers the proposals of one reactor turn, appends them as one batch, and settles them when they are applied."""

    def __init__(self, runtime: Runtime, elsewhere: Callable[[Proposal], None]) -> None:
        self._rt = runtime
        self._elsewhere = elsewhere
        self._gathered: deque[Proposal] = deque()
        self._flush_call: IDelayedCall | None = None
        self._pending: deque[Proposal] = deque()
        self._strays: dict[int, list[Proposal]] = {}
        self.count = 0
        """Proposals that wait here."""
        self.bytes = 0
        self.next_index = 0
        """Index of the first appended proposal that waits, 0 if there is none."""

    def submit(
        self,
        payload: bytes,
        kind: int,
        session: int,
        sequence: int,
        timeout: float | None,
        forward: bool,
        indexed: bool,
    ) -> Proposal:
        """Take in a proposal.

        :raises ConsensusError: if it is refused at once.
        """
        config = self._rt.config
        size = len(payload)
        if size > config.max_proposal_bytes:
            raise ProposalTooLarge(size, config.max_proposal_bytes)
        if self.count >= config.max_pending_proposals:
            raise Overloaded("proposals", config.max_pending_proposals)
        if self.bytes + size > config.max_pending_bytes:
            raise Overloaded("proposal bytes", config.max_pending_bytes)
        if self._rt.applier.applying:
            raise InvariantBroken("apply proposed a command")
        self.count += 1
        self.bytes += size
        proposal = Proposal()
        proposal.draft = Draft(payload, kind, session, sequence)
        proposal.size = size
        proposal.forward = forward
        proposal.indexed = indexed
        proposal.timeout = config.proposal_timeout if timeout is None else timeout
        proposal.deadline = self._rt.clock.seconds() + proposal.timeout
        self._rt.deadlines.add(proposal, timeout is None)
        self._gathered.append(proposal)
        if self._flush_call is None:
            self._flush_call = self._rt.clock.callLater(0, self.flush)
        return proposal

    def flush(self) -> None:
        """Hand what was gathered to the core, or as much of it as one step takes."""
        if self._flush_call is not None and self._flush_call.active():
            self._flush_call.cancel()
        self._flush_call = None
        if not self._gathered:
            return
        batch: list[Proposal] = []
        size = 0
        while self._gathered and len(batch) < _BATCH_ENTRIES and size < _BATCH_BYTES:
            proposal = self._gathered.popleft()
            if proposal.called:  # given up before it went anywhere
                self.release(proposal)
                continue
            size += proposal.size
            batch.append(proposal)
        if self._gathered:
            self._flush_call = self._rt.clock.callLater(0, self.flush)
        self._rt.driver.input(self._append, batch)

    def _append(self, batch: list[Proposal], now: float) -> Effects | None:
        core = self._rt.core
        if core.role is not Role.LEADER:
            for proposal in batch:
                self._elsewhere(proposal)
            return None
        effects = core.propose([proposal.draft for proposal in batch], int(self._rt.wall_clock() * 1000), now)
        if effects.proposed is not None:
            self._appended(batch, effects.proposed.first, effects.proposed.term)
        else:
            error = next((r.error for r in effects.refused if r.token is None), None)
            for proposal in batch:
                self.refuse(proposal, error or InvariantBroken("the core neither took nor refused a proposal"))
        return effects

    def _appended(self, batch: list[Proposal], first: int, term: int) -> None:
        pending = self._pending
        while pending and pending[-1].index >= first:
            # Overwritten in our log, but they may still be committed elsewhere: what gets applied there will tell.
            stray = pending.pop()
            self._strays.setdefault(stray.index, []).append(stray)
        for index, proposal in enumerate(batch, first):
            proposal.index = index
            proposal.term = term
        pending.extend(batch)
        self.next_index = pending[0].index if pending else 0

    def settle(self, index: int, term: int, value: Any, failed: bool) -> None:
        """The entry at ``index`` was applied, with this result. For every index from ``next_index`` on, in order."""
        pending = self._pending
        if pending and pending[0].index == index:
            self._settle(pending.popleft(), term, value, failed)
            self.next_index = pending[0].index if pending else 0
        if self._strays:
            for stray in self._strays.pop(index, ()):
                self._settle(stray, term, value, failed)

    def _settle(self, proposal: Proposal, term: int, value: Any, failed: bool) -> None:
        self.count -= 1
        self.bytes -= proposal.size
        if proposal.called:
            return  # expired or cancelled
        if proposal.term != term:
            proposal.errback(self._rt.not_leader())  # another entry stands in its place: it did not happen
        elif failed:
            proposal.errback(value)
        else:
            proposal.done(proposal.index, value)

    @property
    def waits_for(self) -> bool:
        """Whether an applied entry could settle anything."""
        return bool(self._pending or self._strays)

    def superseded(self, index: int) -> None:
        """A snapshot replaced the log up to ``index``: what was applied there will never be known (J-45)."""
        lost = [p for i in [i for i in self._strays if i <= index] for p in self._strays.pop(i)]
        while self._pending and self._pending[0].index <= index:
            lost.append(self._pending.popleft())
        self.next_index = self._pending[0].index if self._pending else 0
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
        self.bytes -= proposal.size

    def stop(self, cause: BaseException | None) -> None:
        """End everything: what was not appended did not happen, the outcome of the rest is unknown."""
        gathered, self._gathered = list(self._gathered), deque()
        appended = [*self._pending, *(p for strays in self._strays.values() for p in strays)]
        self._pending.clear()
        self._strays.clear()
        self.next_index = 0
        for proposal in gathered:
            self.refuse(proposal, NodeStopped(cause))
        for proposal in appended:
            self.refuse(proposal, OutcomeUnknown("the node stopped"))


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
