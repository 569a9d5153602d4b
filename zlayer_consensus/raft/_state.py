"""The state of one member, and the two ways in which it leaves the core: writes and effects.

Law of this file: whatever depends on durable state goes through :meth:`State.when_persisted` or
:meth:`State.when_vote_persisted`; nothing else may hold it back or let it out (H-01).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..config import ConsensusConfig
from ..errors import InvariantBroken, NotLeader, OutcomeUnknown, TransferFailed
from ._effects import Answer, Done, Effects, LogWrite, Persist, Refused, Send, SnapshotPoint, Start, StateChange, Token
from ._log import LogView
from ._membership import Member, Membership
from ._messages import AppendReply, AppendRequest, ReadIndexReply, Request
from ._progress import LeaderState, PendingRead
from ._types import MAX_INDEX, NO_LOG, Entry, HardState, LogId, Role

__all__ = ["Inbox", "Issued", "State"]


@dataclass(frozen=True, slots=True)
class Issued:
    """A write that was handed out and is not known to be durable yet."""

    seq: int
    last: LogId
    at: float
    hard_state: bool
    keeps: int
    """Up to here this write leaves the log before it as it was."""


class Inbox:
    """Appends of one stream that arrived before their turn (they cross each other on parallel connections)."""

    def __init__(self) -> None:
        self.stream = (0, 0)
        """``(term, stream)``"""
        self.next_seq = 0
        self.held: dict[int, tuple[Token, int, AppendRequest]] = {}
        self.deadline: float | None = None


class State:
    """Everything that one member knows. Only the modules of this package touch it."""

    def __init__(
        self, node_id: int, config: ConsensusConfig, start: Start, random: Callable[[], float], now: float
    ) -> None:
        self.node_id = node_id
        self.config = config
        self.random = random
        self.now = now
        self.log = LogView(start, config.log_cache_bytes)
        self.term = start.hard_state.term
        self.voted_for = start.hard_state.voted_for
        self.snapshot: SnapshotPoint | None = start.snapshot
        # What was applied is committed, although the hint on disk may be older (H-68).
        floor = max(start.applied, start.snapshot.last.index if start.snapshot else 0)
        self.commit = max(floor, min(start.hard_state.commit, self.log.last.index))
        self.applied = start.applied
        self.verified = self.commit
        """Up to here the log is known to equal the current leader's."""
        self.role = Role.FOLLOWER if node_id in self.membership.all_voters else Role.LEARNER
        self.leader_id: int | None = None
        self.leader_contact = float("-inf")
        self.election_deadline = now
        self.campaign = 0
        self.granted: set[int] = set()
        self.refused: set[int] = set()
        self.unasked: set[int] = set()
        """Voters whose vote request got lost; they are asked again at ``ask_again_at``."""
        self.ask_again_at: float | None = None
        self.transferred = False
        """Whether the running campaign was asked for by the leader."""
        self.leader: LeaderState | None = None
        self.inbox = Inbox()
        self.follower_reads: list[Token] = []
        self.asked_reads: tuple[int, list[Token]] | None = None
        self.read_context = 0
        self.leaving: tuple[list[Token], int, float] | None = None
        """A transfer's ``(tokens, target, deadline)`` that waits for the new leader to show up."""
        self.repair = start.repair
        """The repair after which the log may lack what this member acknowledged: until it is cleared, no vote."""
        self.clearing = b""
        """The repair whose mark is being removed."""
        self.full = False
        """Whether this member's disk is full."""
        self.stalled = False
        """Whether this member gave up leading because of its disk; it does not campaign until a write completes."""
        self.removed = False
        self.stopped = False
        self.out = Effects()
        self._next_seq = 1
        self._write: dict[str, object] = {}
        self._written = HardState(self.term, self.voted_for, start.hard_state.commit)
        self._issued: deque[Issued] = deque()
        self._gated: deque[tuple[int, Callable[[], None]]] = deque()
        self._reported = StateChange(self.role, self.term, None, self.membership)

    # -- reading

    @property
    def membership(self) -> Membership:
        """The configuration in effect."""
        return self.log.membership

    @property
    def is_voter(self) -> bool:
        """Whether this member votes, or did before a change that is not committed yet.

        Until then its log may be the only one that can win an election (dissertation §4.2.2).
        """
        log = self.log
        if self.node_id in log.membership.all_voters:
            return True
        return log.membership_index > self.commit and self.node_id in log.membership_at(self.commit).all_voters

    def member(self, node_id: int) -> Member | None:
        """Return a member, departing ones included: they still have to hear of their removal."""
        found = self.membership.members.get(node_id)
        if found is None and self.leader is not None and node_id in self.leader.departing:
            found = self.log.membership_at(self.leader.departing[node_id].index - 1).members.get(node_id)
        return found

    def not_leader(self) -> NotLeader:
        """Return the error that tells where the leader is."""
        if self.leader_id is None or self.leader_id == self.node_id:
            return NotLeader()
        member = self.member(self.leader_id)
        return NotLeader(self.leader_id, *((member.peer_address, member.client_address) if member else ()))

    def random_timeout(self) -> float:
        """Draw an election timeout."""
        low, high = self.config.election_timeout_min, self.config.election_timeout_max
        return low + (high - low) * self.random()

    def oldest_write_age(self) -> float:
        """Return for how many seconds the oldest write has not completed."""
        return self.now - self._issued[0].at if self._issued else 0.0

    # -- effects

    def broken(self, what: str) -> InvariantBroken:
        """Return the error for a broken invariant; raised, it stops the node."""
        return InvariantBroken(f"node {self.node_id}, term {self.term}: {what}")

    def send(self, peer: int, message: Request) -> None:
        """Send now; only for what depends on nothing that is not durable."""
        self.out.send.append(Send(peer, message))

    def take(self) -> Effects:
        """End a step: issue the write that it collected, and hand out its effects."""
        if self.role in (Role.FOLLOWER, Role.LEARNER):
            self.role = Role.FOLLOWER if self.is_voter else Role.LEARNER
        self._issue()
        change = StateChange(self.role, self.term, self.leader_id, self.membership)
        if change != self._reported:
            self.out.change = self._reported = change
        out, self.out = self.out, Effects()
        return out

    # -- durable state

    def append(self, entries: list[Entry] | tuple[Entry, ...]) -> None:
        """Append to the log, as part of this step's write."""
        self.log.append(entries)
        before = self._write.get("entries", ())
        self._write["entries"] = (*before, *entries)  # type: ignore[misc]

    def truncate(self, after: int) -> None:
        """Remove the entries after ``after`` (never committed ones, H-25)."""
        if after < self.commit:
            raise self.broken(f"asked to remove entry {after + 1}, which is committed (commit index {self.commit})")
        if "entries" in self._write:
            self._issue()
        self.log.truncate(after)
        self._write["truncate_after"] = after
        self.verified = min(self.verified, after)

    def reset_log(self, point: SnapshotPoint) -> None:
        """Replace the log by a snapshot's position."""
        if self._write:
            self._issue()
        self.log.reset(point.last, point.membership, point.time_ms)
        self._write["reset"] = point.last
        self.verified = point.last.index

    def set_term(self, term: int, voted_for: int = 0) -> None:
        """Change term or vote, durably. ``voted_for`` is cleared only with a new term (J-08)."""
        if term < self.term or (term == self.term and self.voted_for not in (0, voted_for)):
            raise self.broken(
                f"term or vote would go back to ({term}, {voted_for}) from ({self.term}, {self.voted_for})"
            )
        if (term, voted_for) == (self.term, self.voted_for):
            return
        newer = term > self.term
        self.term, self.voted_for = term, voted_for
        self._write["hard_state"] = True
        if newer:
            # What the last leader's appends said does not count any more, nor may those that are held be taken.
            self.verified = self.commit
            self._drop_inbox()

    def when_persisted(self, action: Callable[[], None]) -> None:
        """Do it once everything that was written so far, in this step too, is durable."""
        self._gate(action, bool(self._write or self._issued))

    def when_vote_persisted(self, action: Callable[[], None]) -> None:
        """Do it once term and vote as they are now are durable; entries do not hold it up (S-21)."""
        pending = "hard_state" in self._write or any(issued.hard_state for issued in self._issued)
        self._gate(action, pending)

    def answer(self, token: Token, message: object) -> None:
        """Reply now."""
        self.out.answers.append(Answer(token, message))  # type: ignore[arg-type]

    def _gate(self, action: Callable[[], None], pending: bool) -> None:
        if not pending:
            action()
        else:
            seq = self._next_seq if self._write else self._issued[-1].seq
            self._gated.append((seq, action))

    def _issue(self) -> None:
        if not self._write:
            return
        state = HardState(self.term, self.voted_for, min(self.commit, self.log.durable))
        explicit = self._write.pop("hard_state", False)
        if explicit or state.commit > self._written.commit:
            self._write["hard_state"] = self._written = state
        write = LogWrite(**self._write)  # type: ignore[arg-type]
        self._write = {}
        self.out.persist.append(Persist(self._next_seq, self.log.last, write))
        keeps = MAX_INDEX if write.truncate_after is None else write.truncate_after
        keeps = keeps if write.reset is None else write.reset.index
        self._issued.append(Issued(self._next_seq, self.log.last, self.now, bool(explicit), keeps))
        self._next_seq += 1

    def complete(self, seq: int, last: LogId) -> None:
        """A write is durable, and with it all earlier ones; release what waited for them."""
        if not self._issued or seq < self._issued[0].seq:
            return
        if seq > self._issued[-1].seq:
            raise self.broken(f"write {seq} completed before it was issued")
        while self._issued and self._issued[0].seq <= seq:
            self._issued.popleft()
        # Entries that a write under way will remove are not safe, even if a later one brings them back (J-24).
        self.log.set_durable(last, min((issued.keeps for issued in self._issued), default=MAX_INDEX))
        self.stalled = False
        while self._gated and self._gated[0][0] <= seq:
            self._gated.popleft()[1]()

    # -- leaving a role

    def become_follower(self, term: int, leader_id: int | None) -> None:
        """Follow in ``term``; from any role, also from following somebody else."""
        if term > self.term:
            self.set_term(term)
        if self.role is Role.LEADER:
            self._stop_leading()
        if leader_id != self.leader_id:
            self.fail_follower_reads()
        self.role = Role.FOLLOWER if self.is_voter else Role.LEARNER
        self.leader_id = leader_id
        self.election_deadline = self.now + self.random_timeout()
        self.granted.clear()
        self.refused.clear()
        self.unasked.clear()
        self.ask_again_at = None
        self.settle_transfer()

    def settle_transfer(self) -> None:
        """Answer who asked for a transfer, once the next leader is known or it took too long."""
        if self.leaving is None:
            return
        tokens, target, deadline = self.leaving
        if self.leader_id == target:
            self.out.done.extend(Done(token, target) for token in tokens)
            self.leaving = None
            return
        if self.leader_id is not None:
            failed = TransferFailed(target, f"node {self.leader_id} leads")
        elif self.now >= deadline:
            failed = TransferFailed(target, "no new leader showed up in time")
        else:
            return
        self.out.refused.extend(Refused(token, failed) for token in tokens)
        self.leaving = None

    def _stop_leading(self) -> None:
        leader, self.leader = self.leader, None
        if leader is None:
            return
        self.leader_id = None
        pending = leader.waiting_reads + [read for _, _, reads in leader.open_reads for read in reads]
        for read in pending:
            self.refuse_read(read)
        if leader.change is not None:
            self.out.refused.append(Refused(leader.change.token, OutcomeUnknown("the leader stepped down")))
        if leader.transfer is not None:
            deadline = self.now + self.config.election_timeout_max
            self.leaving = (leader.transfer.tokens, leader.transfer.target, deadline)

    def refuse_read(self, read: PendingRead) -> None:
        """Tell a reader that this member cannot answer (J-53)."""
        if read.remote_context is None:
            self.out.refused.append(Refused(read.token, self.not_leader()))
        else:
            self.answer(read.token, ReadIndexReply(self.term, read.remote_context, 0))

    def fail_follower_reads(self) -> None:
        """Refuse the reads that were to be asked of a leader that is no more."""
        asked = self.asked_reads[1] if self.asked_reads else []
        tokens, self.follower_reads, self.asked_reads = asked + self.follower_reads, [], None
        for token in tokens:
            self.out.refused.append(Refused(token, self.not_leader()))

    def _drop_inbox(self) -> None:
        held, self.inbox = self.inbox.held, Inbox()
        for token, _sender, message in held.values():
            reply = self.append_reply(message, success=False)
            self.when_vote_persisted(partial(self.answer, token, reply))

    def append_reply(
        self, message: AppendRequest, *, success: bool, match: int = 0, conflict: LogId = NO_LOG, full: bool = False
    ) -> AppendReply:
        """Build the reply to an append."""
        last = self.log.last.index
        return AppendReply(self.term, message.stream, message.seq, success, match, conflict, last, self.repair, full)
