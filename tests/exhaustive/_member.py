"""One member: a core, its disk, and what it once promised. One input makes a new member of it; the old one stays."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from zlayer_consensus.config import ConsensusConfig
from zlayer_consensus.raft import (
    NO_LOG,
    AppendRequest,
    Draft,
    Effects,
    Entry,
    EntryKind,
    HardState,
    HeartbeatRequest,
    LogWrite,
    Membership,
    MembershipChange,
    Persist,
    RaftCore,
    Reply,
    Request,
    Role,
    Start,
    TimeoutNowRequest,
    VoteReply,
    VoteRequest,
)

from ._fork import NOW, core_key, fork

__all__ = ["NOBODY", "Committed", "Disk", "Envelope", "Member", "Violation", "latest_config"]

NOBODY = -1
"""The epoch of who does not wait for a reply any more."""
_LONG_AGO = float("-inf")


class Violation(AssertionError):
    """An invariant does not hold."""


class Envelope(NamedTuple):
    """A message under way; a reply (``reply`` is set) goes to the source of its request.

    :param epoch: how often the requester had crashed when it asked; NOBODY if nobody waits for the reply.
    """

    source: int
    target: int
    epoch: int
    request: Request
    reply: Reply | None = None

    def __str__(self) -> str:
        if self.reply is not None:
            return f"{self.target} -> {self.source}: {_brief(self.reply)}"
        return f"{self.source} -> {self.target}: {_brief(self.request)}"


def _brief(message: object) -> str:
    if isinstance(message, AppendRequest):
        entries = ", ".join(f"{entry.id} {_content(entry)}" for entry in message.entries)
        return f"append of term {message.term} after {message.prev}: [{entries}], commit {message.commit}"
    return str(message)


def _content(entry: Entry) -> str:
    if entry.kind != EntryKind.CONFIG:
        return EntryKind(entry.kind).name.lower()
    config = Membership.decode(entry.payload)
    before = f" from {sorted(config.outgoing)}" if config.outgoing else ""
    return f"voters {sorted(config.voters)}{before}"


class Disk(NamedTuple):
    """What a crash leaves.

    :param repair: the mark of a repair, which it carries until its leader has found the log complete again.
    """

    hard: HardState
    log: tuple[Entry, ...]
    repair: bytes = b""

    def after(self, write: LogWrite) -> Disk:
        """Return the disk after a write."""
        hard, log, repair = self
        if write.reset is not None:
            raise Violation("a log was reset, although nobody has a snapshot")
        if write.truncate_after is not None:
            log = log[: write.truncate_after]
        for entry in write.entries:
            if entry.index != len(log) + 1:
                raise Violation(f"entry {entry.id} was written where {len(log) + 1} belongs")
            log = (*log, entry)
        return Disk(write.hard_state or hard, log, repair)

    def start(self) -> Start:
        """Return what a core finds that starts from here."""
        return Start(
            hard_state=self.hard,
            last=self.log[-1].id if self.log else NO_LOG,
            terms=tuple((next(run).index, term) for term, run in groupby(self.log, lambda entry: entry.term)),
            configs=tuple(entry for entry in self.log if entry.kind == EntryKind.CONFIG),
            tail=self.log,
            repair=self.repair,
        )


_decode = lru_cache(maxsize=4096)(Membership.decode)
_EMPTY = Membership()


def latest_config(log: tuple[Entry, ...]) -> Membership:
    """Return the newest configuration in a log, by reading it."""
    for entry in reversed(log):
        if entry.kind == EntryKind.CONFIG:
            return _decode(entry.payload)
    return _EMPTY


class Committed(NamedTuple):
    """A commit index moved: ``log`` is what is committed now.

    :param config: the configuration that was in effect; None if the member did not lead.
    """

    log: tuple[Entry, ...]
    term: int
    config: Membership | None


@dataclass
class Member:
    """See the module. Made by :meth:`start`; each input is a method of :meth:`forked`.

    :ivar votes: whom it voted for in public, by term; survives crashes, unlike the member's own memory.
    :ivar led: the terms in which it led.
    :ivar sent: messages that left with this input.
    :ivar commits: moves of the commit index with this input.
    :ivar seen: what else happened with this input, by name, for the statistics.
    """

    node_id: int
    config: ConsensusConfig
    sync: bool
    direct: bool
    core: RaftCore
    disk: Disk
    epoch: int = 0
    pending: tuple[Persist, ...] = ()
    votes: dict[int, int] = field(default_factory=dict)
    led: frozenset[int] = frozenset()
    sent: list[Envelope] = field(default_factory=list)
    commits: list[Committed] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    @classmethod
    def start(cls, node_id: int, config: ConsensusConfig, disk: Disk, *, sync: bool, direct: bool) -> Member:
        """Return a member that starts from a disk.

        :param sync: whether its writes are durable before anything else happens.
        :param direct: whether to see that what it sends is backed by its disk.
        """
        return cls(node_id, config, sync, direct, _core(node_id, config, disk), disk)

    def forked(self) -> Member:
        """Return a copy, to give one input to."""
        return Member(
            self.node_id,
            self.config,
            self.sync,
            self.direct,
            fork(self.core),
            self.disk,
            self.epoch,
            self.pending,
            dict(self.votes),
            self.led,
        )

    def key(self) -> Any:
        """Return a value that members share only if they behave alike."""
        last = self.core._s._next_seq
        pending = tuple((write.seq - last, write.last, write.write) for write in self.pending)
        return (core_key(self.core), self.disk, self.epoch, pending, tuple(sorted(self.votes.items())), self.led)

    @property
    def log(self) -> tuple[Entry, ...]:
        """The log as the member sees it: with the writes under way."""
        disk = self.disk
        for persist in self.pending:
            disk = disk.after(persist.write)
        return disk.log

    # -- inputs

    def time_out(self) -> None:
        """The election timer of a follower or candidate rings; a leader finds that nobody has answered for long."""
        s = self.core._s
        if s.leader is not None:
            s.leader.heartbeat_due = NOW
            for progress in s.leader.peers.values():
                progress.last_ack = _LONG_AGO
        else:
            s.election_deadline = NOW
        self._call("tick", NOW)

    def beat(self) -> None:
        """The leader's heartbeat timer rings."""
        leader = self.core._s.leader
        if leader is not None:
            leader.heartbeat_due = NOW
            self._call("tick", NOW)

    def release(self) -> None:
        """Appends that came too early have waited long enough."""
        self.core._s.inbox.deadline = NOW
        self._call("tick", NOW)

    def take_request(self, envelope: Envelope, *, answered: bool, late: bool) -> None:
        """Take a request.

        :param answered: whether the requester still waits for the reply.
        :param late: whether an election timeout has passed here since the leader was last heard.
        """
        if late:
            self.core._s.leader_contact = _LONG_AGO
        token = envelope if answered else envelope._replace(epoch=NOBODY)
        self._call("request", token, envelope.source, envelope.request, NOW)

    def take_reply(self, envelope: Envelope) -> None:
        """Take the reply to a request of this member."""
        self._call("response", envelope.target, envelope.request, envelope.reply, NOW)

    def give_up(self, envelope: Envelope) -> None:
        """A request was not answered in time."""
        self._call("send_failed", envelope.target, envelope.request, NOW)

    def complete(self) -> None:
        """The oldest write becomes durable."""
        persist, self.pending = self.pending[0], self.pending[1:]
        self.disk = self.disk.after(persist.write)
        self._call("persisted", persist.seq, persist.last, NOW)

    def crash(self, *, torn: bool) -> None:
        """Lose what is not durable, and start again.

        :param torn: whether of the next write all but the hard state was durable.
        """
        if torn:
            write = self.pending[0].write
            self.disk = self.disk.after(LogWrite(write.reset, write.truncate_after, write.entries))
        self.pending, self.epoch = (), self.epoch + 1
        self.core = _core(self.node_id, self.config, self.disk)

    def damage(self, keep: int) -> None:
        """The log is damaged behind ``keep`` and repaired: what it acknowledged and whom it voted for is forgotten."""
        log = self.disk.log[:keep]
        self.disk = Disk(HardState(log[-1].term, 0, 0), log, b"%d" % (self.epoch + 1) * 16)
        # What it votes from now on is compared with nothing: that it may vote twice in a term is the point.
        self.votes = {}
        self.pending, self.epoch = (), self.epoch + 1
        self.core = _core(self.node_id, self.config, self.disk)
        self.seen.append("log repaired")

    def propose(self) -> None:
        """Propose a command, another in each term."""
        self._call("propose", [Draft(b"%d" % self.core.term)], 0, NOW)

    def change(self, change: MembershipChange) -> None:
        """Ask for a membership change."""
        self._call("change_membership", "change", change, 0, NOW)

    # -- effects

    def _call(self, name: str, *args: Any) -> None:
        was_leader, before, config = self.core.role is Role.LEADER, self.core.commit, latest_config(self.log)
        effects: Effects = getattr(self.core, name)(*args)
        if effects.fatal is not None:
            raise Violation(f"node {self.node_id} stopped: {effects.fatal}")
        self.pending += tuple(effects.persist)
        for persist in effects.persist:
            self._note_write(persist)
        for send in effects.send:
            self._check_send(send.message)
            self.sent.append(Envelope(self.node_id, send.peer, self.epoch, send.message))
        for answer in effects.answers:
            asked = answer.token
            assert isinstance(asked, Envelope)
            if isinstance(answer.message, VoteReply) and answer.message.granted and not answer.message.pre_vote:
                self._vote(answer.message.term, asked.source)
            self.sent.append(asked._replace(reply=answer.message))
        if self.core.commit < before:
            raise Violation(f"node {self.node_id} took its commit index back from {before} to {self.core.commit}")
        if self.core.commit > before:
            log = self.log[: self.core.commit]
            # A request can only commit what another leader has committed, even if this member led before.
            led = was_leader and name != "request"
            self.commits.append(Committed(log, self.core.term, config if led else None))
        self._note_role(was_leader, config)
        if effects.repaired:
            self.disk = self.disk._replace(repair=b"")
            self.seen.append("repair cleared")
            self._call("repair_cleared", NOW)
        while self.sync and self.pending:
            self.complete()

    def _note_write(self, persist: Persist) -> None:
        before, write = self.log_before(persist), persist.write
        if write.truncate_after is not None:
            gone = before[write.truncate_after :]
            self.seen.append("entry overwritten")
            if any(entry.kind == EntryKind.CONFIG for entry in gone):
                self.seen.append("configuration overwritten")
            if latest_config(before).joint and not latest_config(before[: write.truncate_after]).joint:
                self.seen.append("joint configuration rolled back")
        for entry in write.entries:
            joint = latest_config((entry,)).joint if entry.kind == EntryKind.CONFIG else False
            if joint:
                self.seen.append("joint configuration appended")

    def log_before(self, persist: Persist) -> tuple[Entry, ...]:
        """Return the log as it was before a write under way."""
        disk = self.disk
        for earlier in self.pending:
            if earlier.seq == persist.seq:
                break
            disk = disk.after(earlier.write)
        return disk.log

    def _note_role(self, was_leader: bool, config: Membership) -> None:
        role, term = self.core.role, self.core.term
        if role is Role.LEADER and not was_leader:
            if term in self.led:
                raise Violation(f"election safety: node {self.node_id} was elected twice in term {term}")
            self.led |= {term}
            self.seen.append("leader elected")
            if config.joint:
                self.seen.append("leader elected in a joint configuration")
        elif was_leader and role is not Role.LEADER:
            self.seen.append("leader stepped down")

    def _check_send(self, message: Request) -> None:
        """Nothing leaves in a term that a crash would forget (H-01)."""
        if isinstance(message, VoteRequest) and message.pre_vote:
            return
        if isinstance(message, VoteRequest):
            self._vote(message.term, self.node_id)
        if self.direct and isinstance(message, VoteRequest | AppendRequest | HeartbeatRequest | TimeoutNowRequest):
            hard = self.disk.hard
            if hard.term < message.term or (hard.term == message.term and hard.voted_for != self.node_id):
                raise Violation(f"node {self.node_id} sends {_brief(message)}, and its disk has {hard}")

    def _vote(self, term: int, candidate: int) -> None:
        known = self.votes.setdefault(term, candidate)
        if known != candidate:
            raise Violation(f"node {self.node_id} voted for {known} and for {candidate} in term {term}")


def _core(node_id: int, config: ConsensusConfig, disk: Disk) -> RaftCore:
    return RaftCore(node_id=node_id, config=config, start=disk.start(), random=_no_chance, now=NOW)


def _no_chance() -> float:
    return 0.0
