"""A scripted network of cores: tests say what is delivered, lost, doubled, written and when time passes.

Nothing happens by itself. An input's effects put messages on ``wire``, writes on a node's ``disk`` and transfers on
``transfers``; ``settle`` lets everything through until it is quiet, ``advance`` lets time pass as well. After every
step the cluster checks what must always hold (``core_checks``).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.core_checks import Checks
from tests.core_disk import Disk, Image
from zlayer_consensus import raft
from zlayer_consensus.config import ConsensusConfig
from zlayer_consensus.raft import (
    AppendRequest,
    Draft,
    Effects,
    Entry,
    EntryKind,
    HardState,
    LogId,
    Member,
    Membership,
    RaftCore,
    Role,
    SendSnapshot,
    SnapshotPoint,
)

__all__ = ["Cluster", "Envelope", "Node", "member"]

_BULK = (AppendRequest, raft.ReadIndexRequest)


def member(node_id: int) -> Member:
    """Return the member that a cluster makes for an id."""
    return Member(node_id, bytes([node_id]) * 16, f"n{node_id}:7000", f"n{node_id}:8000")


@dataclass(eq=False)
class Envelope:
    """A message under way. A reply has the envelope of its request as ``answers``."""

    source: int
    target: int
    message: Any
    epoch: int
    answers: Envelope | None = None


@dataclass(eq=False)
class Transfer:
    """A snapshot under way."""

    source: int
    request: SendSnapshot
    point: SnapshotPoint
    data: list[Entry]
    epoch: int


class Node:
    """One member: a core, a disk and a state machine that keeps every entry it applied."""

    def __init__(self, cluster: Cluster, node_id: int) -> None:
        self.cluster = cluster
        self.id = node_id
        self.disk = Disk()
        self.hold_disk = False
        self.hold_apply = False
        self.hold_clearing = False
        self.machine: list[Entry] = []
        self.epoch = 0
        self.random: Callable[[], float] | None = None
        self.up = False
        self.commit = 0
        self.waiting: dict[int, Envelope | None] = {}
        self._forget()

    def _forget(self) -> None:
        self.done: dict[object, Any] = {}
        self.refused: dict[object, Exception] = {}
        self.reads: dict[object, int] = {}
        self.alarms: list[raft.PeerAlarm] = []
        self.changes: list[raft.StateChange] = []
        self.removed = False
        self.log_reads: list[raft.LogRead] = []

    # -- life

    def start(self) -> None:
        """Start from what is durable."""
        self._forget()
        self.epoch += 1
        self.disk.crash()
        self.machine = list(self.disk.data)
        self.core = RaftCore(
            node_id=self.id,
            config=self.cluster.config,
            start=self.disk.start(),
            random=self.random or self.cluster.fractions(self.id),
            now=self.cluster.now,
        )
        self.up = True
        self.commit = self.core.commit
        self._apply()

    def crash(self) -> None:
        """Lose everything that is not durable; who waits for a reply is told."""
        self.up = False
        for envelope in self.waiting.values():
            if envelope is not None:
                self.cluster.lose(envelope, after=0.0)
        self.waiting.clear()

    # -- inputs

    def input(self, name: str, *args: Any) -> Any:
        """Call a method of the core with ``now``, and carry out its effects, which are returned."""
        effects = getattr(self.core, name)(*args, self.cluster.now)
        self._carry_out(effects)
        return effects

    def propose(self, *payloads: bytes, time_ms: int = 0) -> raft.Proposed | None:
        """Propose a batch of commands."""
        effects = self.input("propose", [Draft(payload) for payload in payloads], time_ms)
        for refused in effects.refused:
            self.refused["propose"] = refused.error
        proposed: raft.Proposed | None = effects.proposed
        return proposed

    def change(self, token: object, change: raft.MembershipChange) -> None:
        """Ask for a membership change."""
        self.input("change_membership", token, change, 0)

    def snapshot(self, index: int | None = None) -> SnapshotPoint:
        """Take a snapshot at ``index`` (what is applied, if not given)."""
        index = len(self.machine) if index is None else index
        point = SnapshotPoint(LogId(self.machine[index - 1].term, index), self.core.membership_at(index))
        self.disk.publish(point, self.machine[:index], installed=False)
        self.input("snapshot_taken", point)
        return point

    def sync(self, count: int | None = None) -> None:
        """Make the oldest ``count`` writes durable (all, if not given), and tell the core."""
        done = self.disk.flush(count)
        if done:
            self.input("persisted", done.seq, done.last)

    def read(self) -> None:
        """Read the oldest entries that the core asked for."""
        request = self.log_reads.pop(0)
        self.input("log_read", request, self.disk.serve(request))

    def clear_repair(self) -> None:
        """Remove the mark of a repair."""
        self.hold_clearing = False
        self.disk.repair = b""
        self.input("repair_cleared")

    # -- looking

    @property
    def role(self) -> Role:
        """The core's role."""
        return self.core.role

    @property
    def log(self) -> list[tuple[int, bytes]]:
        """``(term, payload)`` of the commands in the log."""
        return [(e.term, e.payload) for e in self.disk.written.entries if e.kind == EntryKind.COMMAND]

    @property
    def commands(self) -> list[bytes]:
        """The payloads of the commands that were applied."""
        return [entry.payload for entry in self.machine if entry.kind == EntryKind.COMMAND]

    # -- effects

    def _carry_out(self, effects: Effects) -> None:
        if effects.fatal is not None:
            raise effects.fatal
        cluster = self.cluster
        for persist in effects.persist:
            self.disk.begin(persist)
        for send in effects.send:
            cluster.check_send(self, send.message)
            cluster.wire.append(Envelope(self.id, send.peer, send.message, self.epoch))
        for answer in effects.answers:
            request = self.waiting.pop(answer.token)  # type: ignore[call-overload]  # KeyError: answered twice
            cluster.check_backed(self, request, answer.message)
            if request is not None:
                cluster.wire.append(Envelope(self.id, request.source, answer.message, request.epoch, request))
        self.log_reads += effects.log_reads
        for snapshot in effects.snapshots:
            assert self.disk.snapshot is not None
            cluster.transfers.append(Transfer(self.id, snapshot, self.disk.snapshot, list(self.disk.data), self.epoch))
        if effects.commit is not None:
            assert effects.commit > self.commit, "the commit index fell"
            self.commit = effects.commit
        if effects.purge is not None:
            self.disk.purge(effects.purge)
        self.reads.update({read.token: read.index for read in effects.reads})
        self.done.update({done.token: done.value for done in effects.done})
        self.refused.update({refused.token: refused.error for refused in effects.refused})
        self.alarms += effects.alarms
        if effects.change is not None:
            self.changes.append(effects.change)
        self.removed = self.removed or effects.removed
        if effects.repaired and not self.hold_clearing:
            self.clear_repair()
        cluster.check(self)
        self._apply()

    def _apply(self) -> None:
        if self.hold_apply or self.commit <= len(self.machine):
            return
        for entry in self.disk.written.read(len(self.machine) + 1, self.commit):
            self.machine.append(entry)
            self.cluster.check_committed(self, entry)
        self.input("applied", len(self.machine))

    def take_snapshot(self, source: int, transfer: Transfer, term: int) -> str:
        """Take a leader's snapshot in, whole."""
        verdict, effects = self.core.snapshot_offered(source, term, transfer.point.last, self.cluster.now)
        self._carry_out(effects)
        if verdict == "accept":
            self.disk.publish(transfer.point, transfer.data, installed=True)
            news = self.core.needs_install(transfer.point)
            effects = self.core.install(transfer.point, self.cluster.now)
            if news:
                self.machine = list(transfer.data)
                self.commit = max(self.commit, len(self.machine))
            self._carry_out(effects)
            if news:
                self.input("applied", len(self.machine))
        return str(verdict)


class Cluster(Checks):
    """Members 1 … ``size``, bootstrapped and started, without a leader.

    :param logs: instead of the bootstrapped log: by node id, the terms of the commands after the configuration.
    :param terms: the hard state's terms, by node id (else that of the log's last entry).
    :param settings: fields of :class:`ConsensusConfig`.
    """

    def __init__(
        self,
        size: int,
        *,
        logs: Mapping[int, Sequence[int]] | None = None,
        terms: dict[int, int] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.config = ConsensusConfig(**settings)
        self.now = 100.0
        self.wire: list[Envelope] = []
        self.delivered: Counter[type] = Counter()
        self.transfers: list[Transfer] = []
        self.hold_transfers = False
        self.cut_links: set[tuple[int, int]] = set()
        self._lost: list[tuple[float, Envelope]] = []
        self._tokens = 0
        ids = range(1, size + 1)
        self.membership = Membership.initial(member(node_id) for node_id in ids)
        for node_id in ids:
            node = self.nodes[node_id] = Node(self, node_id)
            if logs is not None:
                of_terms = logs.get(node_id, ())
                entries = [Entry.make(1, 0, EntryKind.CONFIG, self.membership.encode())]
                entries += [
                    Entry.make(index, term, EntryKind.COMMAND, f"{term}-{index}".encode())
                    for index, term in enumerate(of_terms, 2)
                ]
                term = (terms or {}).get(node_id, max(of_terms, default=0))
                node.disk = Disk(Image(HardState(term), entries=entries))
            node.start()
            if logs is None:
                node.input("bootstrap", self.membership)
                node.sync()

    def __getitem__(self, node_id: int) -> Node:
        return self.nodes[node_id]

    def add_blank(self, node_id: int) -> Node:
        """Start a node with an empty disk."""
        node = self.nodes[node_id] = Node(self, node_id)
        node.start()
        return node

    def fractions(self, node_id: int) -> Callable[[], float]:
        """Return the randomness of a node: its timeouts are near a value of its own, lower ids first."""
        source = random.Random(node_id * 7919 + self.nodes[node_id].epoch if node_id in self.nodes else node_id)
        return lambda: ((node_id - 1) % 10 + source.random() / 2) / 10

    # -- letting things happen

    def sent(self, kind: type, source: int | None = None, target: int | None = None) -> list[Envelope]:
        """Return the messages of a kind that are under way, oldest first."""
        return [
            e
            for e in self.wire
            if isinstance(e.message, kind) and source in (None, e.source) and target in (None, e.target)
        ]

    def deliver(self, *envelopes: Envelope) -> None:
        """Deliver these, in this order; over a cut link, or to a node that is down, they get lost."""
        for envelope in envelopes:
            self.wire.remove(envelope)
            target = self.nodes.get(envelope.target)
            if (envelope.source, envelope.target) in self.cut_links:
                self.lose(envelope)
            elif target is None or not target.up:
                self.lose(envelope, after=0.0)
            elif envelope.answers is None:
                self._tokens += 1
                self.delivered[type(envelope.message)] += 1
                target.waiting[self._tokens] = envelope
                target.input("request", self._tokens, envelope.source, envelope.message)
            elif envelope.epoch == target.epoch:
                target.input("response", envelope.source, envelope.answers.message, envelope.message)

    def ask(self, target: int, sender: int, message: raft.Request, *, sync: bool = True) -> Any:
        """Hand over a request that nobody sent; return the reply, once it may leave, or None."""
        self._tokens += 1
        envelope = Envelope(sender, target, message, -1)
        self[target].waiting[self._tokens] = envelope
        self[target].input("request", self._tokens, sender, message)
        if sync:
            self[target].sync()
        return self.reply_to(envelope)

    def reply_to(self, request: Envelope) -> Any:
        """Take the reply to a request off the wire; None if it has not left."""
        for envelope in self.wire:
            if envelope.answers is request:
                self.wire.remove(envelope)
                return envelope.message
        return None

    def duplicate(self, envelope: Envelope) -> None:
        """Deliver a copy of a request; nobody waits for the reply to the copy."""
        self._tokens += 1
        self[envelope.target].waiting[self._tokens] = None
        self[envelope.target].input("request", self._tokens, envelope.source, envelope.message)

    def drop(self, *envelopes: Envelope) -> None:
        """Lose messages; who waits for a reply is told when the request times out."""
        for envelope in envelopes:
            self.wire.remove(envelope)
            self.lose(envelope)

    def lose(self, envelope: Envelope, after: float | None = None) -> None:
        """Tell the requester of a lost message, after its timeout if not said otherwise."""
        request = envelope.answers or envelope
        if after is None:
            bulk = isinstance(request.message, _BULK)
            after = self.config.bulk_timeout if bulk else self.config.control_timeout
        self._lost.append((self.now + after, request))

    def time_out(self, kind: type, source: int, target: int) -> None:
        """Tell a requester now that its lost requests of a kind got no reply."""
        for item in [item for item in self._lost if isinstance(item[1].message, kind)]:
            if (item[1].source, item[1].target) == (source, target):
                self._lost.remove(item)
                self[source].input("send_failed", target, item[1].message)

    def sync(self) -> None:
        """Make all writes of nodes whose disk is not held durable, read what is to be read, and deliver nothing."""
        for node in self.nodes.values():
            while node.up and node.log_reads:
                node.read()
            if node.up and not node.hold_disk:
                node.sync()

    def settle(self) -> None:
        """Deliver, write, read and transfer until nothing is left to do; no time passes."""
        for _ in range(100_000):
            if not self._do_one():
                return
        raise AssertionError("the cluster does not come to rest")

    def _do_one(self) -> bool:
        expired = [item for item in self._lost if item[0] <= self.now]
        for item in expired:
            self._lost.remove(item)
            requester = self[item[1].source]
            if requester.up and requester.epoch == item[1].epoch:
                requester.input("send_failed", item[1].target, item[1].message)
        for node in self.nodes.values():
            if node.up and node.disk.pending and not node.hold_disk:
                node.sync()
                return True
            if node.up and node.log_reads:
                node.read()
                return True
        if self.wire:
            self.deliver(self.wire[0])
            return True
        ended = [] if self.hold_transfers else [self.transfer(transfer) for transfer in list(self.transfers)]
        return bool(expired) or any(ended)

    def transfer(self, transfer: Transfer) -> bool:
        """Carry a snapshot over; return whether it ended. Until the target has it durable, it goes on."""
        source, target = self[transfer.source], self[transfer.request.peer]
        self.transfers.remove(transfer)
        if not source.up or source.epoch != transfer.epoch:
            return True
        links = {(source.id, target.id), (target.id, source.id)}
        last = None
        if target.up and not links & self.cut_links:
            verdict = target.take_snapshot(source.id, transfer, source.core.term)
            if not target.hold_disk:
                target.sync()
            if verdict in ("busy", "accept") and target.core.durable < transfer.point.last.index:
                self.transfers.append(transfer)
                return False
            last = None if verdict == "stale" else transfer.point.last
        source.input("snapshot_sent", transfer.request, last)
        return True

    def advance(self, seconds: float) -> None:
        """Let time pass, with everything that falls due in it."""
        end = self.now + seconds
        for _ in range(100_000):
            self.settle()
            due = [node.core.next_wake for node in self.nodes.values() if node.up]
            times = [at for at in due if at is not None] + [at for at, _ in self._lost]
            at = max(self.now, min(times, default=end))
            if at > end or not times:
                self.now = end
                return
            self.now = at
            for node in self.nodes.values():
                wake = node.core.next_wake if node.up else None
                if wake is not None and wake <= self.now:
                    node.input("tick")
        raise AssertionError("a node wants to be woken all the time")

    def sleep(self, seconds: float) -> None:
        """Let time pass without anybody being woken."""
        self.now += seconds

    def cut(self, *groups: Iterable[int]) -> None:
        """Leave only the links within each group; without groups, none."""
        sides = [set(group) for group in groups]
        self.cut_links = {
            (a, b) for a in self.nodes for b in self.nodes if a != b and not any({a, b} <= side for side in sides)
        }

    def isolate(self, node_id: int) -> None:
        """Cut all links of one node."""
        self.cut({node_id}, set(self.nodes) - {node_id})

    def cut_link(self, source: int, target: int, *, both: bool = True) -> None:
        """Cut one link, in both directions if not said otherwise."""
        self.cut_links |= {(source, target), (target, source)} if both else {(source, target)}

    def heal(self) -> None:
        """Restore all links."""
        self.cut_links = set()

    def elect(self, node_id: int) -> Node:
        """Let a node win an election, everybody having forgotten the last leader."""
        self.sleep(self.config.election_timeout_min)
        node = self[node_id]
        node.input("campaign")
        self.settle()
        assert node.role is Role.LEADER, f"node {node_id} is {node.role}"
        return node

    def leader(self) -> Node:
        """Return the leader of the highest term."""
        leading = [node for node in self.nodes.values() if node.up and node.role is Role.LEADER]
        assert leading, "nobody leads"
        return max(leading, key=lambda node: node.core.term)
