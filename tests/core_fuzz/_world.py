"""Time, the network between the members, and the course of one seed: faults first, then calm."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from zlayer_consensus.raft import Draft, HeartbeatRequest, Membership, Reply, Request, Role, VoteRequest
from zlayer_consensus.raft import Member as Seat

from ._actions import Actions
from ._checks import Checker, Violation, require
from ._disk import Disk
from ._knobs import Knobs
from ._member import Member
from ._transfer import Chunk

__all__ = ["Rpc", "World", "seat"]


def seat(node_id: int, address: str = "") -> Seat:
    """Return a member for a configuration."""
    return Seat(node_id, node_id.to_bytes(16, "big"), address or f"node{node_id}:1")


@dataclass(slots=True)
class Rpc:
    """A request under way. The sender gets its reply, or that there is none, but not both."""

    sender: Member
    epoch: int
    target: int
    message: Request | Chunk
    answered: Callable[[str | None], None] | None = None
    over: bool = False


class World:
    """The simulation of one seed."""

    def __init__(self, seed: int, *, verbose: bool = False) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.knobs = Knobs.draw(self.random)
        self.verbose = verbose
        self.first = Membership.initial(seat(node_id) for node_id in range(1, self.knobs.voters + 1))
        """The initial configuration."""
        self.now = 1000.0
        self.steps = 0
        self.faults = True
        self.checker = Checker()
        self.members: dict[int, Member] = {}
        self.disks: dict[int, Disk] = {}
        self.blocked: set[tuple[int, int]] = set()
        self.acknowledged: list[object] = []
        self._heap: list[tuple[float, int, Member | None, int, Callable[[], None]]] = []
        self._number = 0
        self.actions = Actions(self)

    def trace(self, *what: object) -> None:
        """Print what happens, if somebody wants to see it."""
        if self.verbose:
            print(f"{self.now - 1000:9.4f}", *what)

    def next_number(self) -> int:
        """Return a number that was not used before."""
        self._number += 1
        return self._number

    # -- time

    def at(self, delay: float, run: Callable[[], None]) -> None:
        """Do something later, whoever is alive then."""
        heapq.heappush(self._heap, (self.now + delay, self.next_number(), None, 0, run))

    def later(self, member: Member, delay: float, run: Callable[[], None]) -> None:
        """Do something later in the life of a process: not if it died, and not while it is paused."""
        heapq.heappush(self._heap, (self.now + delay, self.next_number(), member, member.epoch, run))

    def run_until(self, end: float, done: Callable[[], bool] | None = None) -> bool:
        """Let time pass; return whether ``done`` was seen."""
        heap = self._heap
        look_at = self.now
        while heap and heap[0][0] <= end:
            at, _, member, epoch, run = heapq.heappop(heap)
            self.now = at
            if member is not None:
                if member.epoch != epoch:
                    continue
                if member.paused_until > at:
                    # Whatever waits for a paused process meets it in any order.
                    self.later(member, member.paused_until - at + self.random.random() * 1e-3, run)
                    continue
            self.steps += 1
            run()
            if done is not None and self.now >= look_at:
                look_at = self.now + self.knobs.config.heartbeat_interval
                if done():
                    return True
        self.now = max(self.now, end)
        return done is not None and done()

    def delay(self) -> float:
        """Draw the time that a message takes."""
        knobs = self.knobs
        short = knobs.config.election_timeout_min
        if not self.faults:
            return self.random.expovariate(1 / min(knobs.delay_mean, short / 100))
        if self.random.random() < knobs.stragglers:
            return short * self.random.choice((1, 5, 20)) * self.random.random()
        return knobs.delay_min + self.random.expovariate(1 / knobs.delay_mean)

    def disk_delay(self, member: Member) -> float:
        """Draw the time that a disk takes."""
        mean = self.knobs.disk_delay
        if not self.faults:
            mean = min(mean, self.knobs.config.election_timeout_min / 100)
        delay = self.random.expovariate(1 / mean) if mean else 0.0
        return max(delay, member.stalled_until - self.now) if self.faults else delay

    def apply_delay(self) -> float:
        """Draw the time that the state machine takes."""
        return self.knobs.apply_delay * self.random.random() * self.faults

    def wall_clock_ms(self) -> int:
        """Return what a member takes for the time of day; they do not agree, and step back."""
        return int((self.now + self.random.choice((0, -5, 5))) * 1000)

    # -- network

    def _lost(self, source: int, target: int) -> bool:
        return (source, target) in self.blocked or (self.faults and self.random.random() < self.knobs.loss)

    def send(self, sender: Member, target: int, message: Request) -> None:
        """Send a request of the core."""
        control = isinstance(message, HeartbeatRequest | VoteRequest)
        timeout = self.knobs.config.control_timeout if control else self.knobs.bulk_timeout
        self._send(Rpc(sender, sender.epoch, target, message), timeout)

    def send_chunk(self, sender: Member, target: int, chunk: Chunk, answered: Callable[[str | None], None]) -> None:
        """Send a piece of a snapshot."""
        self._send(Rpc(sender, sender.epoch, target, chunk, answered), self.knobs.bulk_timeout)

    def _send(self, rpc: Rpc, timeout: float) -> None:
        self.later(rpc.sender, timeout, lambda: self._failed(rpc))
        if not self._lost(rpc.sender.node_id, rpc.target):
            self.at(self.delay(), lambda: self._deliver(rpc))
        if self.faults and self.random.random() < self.knobs.duplication:
            self.at(self.delay() * self.random.choice((1, 1, 10)), lambda: self._deliver(rpc))

    def _deliver(self, rpc: Rpc) -> None:
        target = self.members.get(rpc.target)
        source = rpc.sender.node_id
        if target is None or target.core is None or (source, rpc.target) in self.blocked:
            if self.random.random() < 0.5:
                self.later(rpc.sender, self.delay(), lambda: self._failed(rpc))
            return
        if target.paused_until > self.now:
            self.at(target.paused_until - self.now + self.random.random() * 1e-3, lambda: self._deliver(rpc))
            return
        if source in target.core.committed_membership.tombstones:
            self.later(rpc.sender, self.delay(), lambda: self._gone(rpc))
            return
        if isinstance(rpc.message, Chunk):
            target.incoming.take(rpc, rpc.message)
            return
        token = (target.epoch, self.next_number())
        target.tokens[token] = (rpc, self.now)
        target.step(target.core.request(token, source, rpc.message, self.now))

    def reply(self, rpc: Rpc, source: Member, message: Reply) -> None:
        """Carry a reply of the core back."""
        if rpc.sender.epoch != rpc.epoch or self._lost(source.node_id, rpc.sender.node_id):
            return
        if self.faults and self.random.random() < self.knobs.held_back:
            rpc.sender.held_back.append((rpc, message))
        else:
            self.later(rpc.sender, self.delay(), lambda: self._replied(rpc, message))

    def let_go(self, member: Member) -> None:
        """Deliver the replies that were held back until this moment, when the member leads again."""
        held, member.held_back = member.held_back, []
        for rpc, message in held:
            self.later(member, self.random.random() * self.knobs.delay_mean, partial(self._replied, rpc, message))

    def chunk_reply(self, rpc: Rpc, source: Member, verdict: str) -> None:
        """Carry the verdict on a piece of a snapshot back."""
        if rpc.sender.epoch == rpc.epoch and not self._lost(source.node_id, rpc.sender.node_id):
            self.later(rpc.sender, self.delay(), lambda: self._chunk_replied(rpc, verdict))

    def _replied(self, rpc: Rpc, reply: Reply) -> None:
        core = rpc.sender.core
        if rpc.over or core is None or rpc.sender.epoch != rpc.epoch:
            return
        rpc.over = True
        assert not isinstance(rpc.message, Chunk)
        rpc.sender.step(core.response(rpc.target, rpc.message, reply, self.now))

    def _chunk_replied(self, rpc: Rpc, verdict: str | None) -> None:
        if rpc.over or rpc.sender.core is None or rpc.sender.epoch != rpc.epoch:
            return
        rpc.over = True
        assert rpc.answered is not None
        rpc.answered(verdict)

    def _failed(self, rpc: Rpc) -> None:
        if isinstance(rpc.message, Chunk):
            self._chunk_replied(rpc, None)
            return
        core = rpc.sender.core
        if rpc.over or core is None or rpc.sender.epoch != rpc.epoch:
            return
        rpc.over = True
        rpc.sender.step(core.send_failed(rpc.target, rpc.message, self.now))

    def _gone(self, rpc: Rpc) -> None:
        """The peer says that the sender was removed."""
        self._failed(rpc)
        if rpc.sender.epoch == rpc.epoch:
            self.remove(rpc.sender)

    def remove(self, member: Member) -> None:
        """A removed member stops for good."""
        if not member.removed and member.core is not None:
            member.removed = True
            member.shut_down()

    # -- the course of a seed

    def add(self, node_id: int) -> Member:
        """Start a new member."""
        member = self.members[node_id] = Member(self, node_id)
        self.disks[node_id] = member.disk
        member.start()
        return member

    def alive(self) -> list[Member]:
        """Return the members that run."""
        return [member for member in self.members.values() if member.core is not None]

    def restart(self, member: Member) -> None:
        """Start a member again, if it is down and still belongs here."""
        if member.core is None and not member.removed:
            member.start()

    def run(self) -> None:
        """Run the seed.

        :raises Violation: with the seed and the time, if an invariant breaks.
        """
        try:
            for node_id in self.first.members:
                self.add(node_id)
            self.actions.begin()
            self.run_until(self.now + self.knobs.duration)
            self._calm()
        except (AssertionError, LookupError, TypeError, ValueError) as error:
            raise Violation(f"seed {self.seed}, at {self.now - 1000:.4f}: {type(error).__name__}: {error}") from error

    def _calm(self) -> None:
        self.trace("calm")
        self.faults = False
        self.blocked.clear()
        for member in list(self.members.values()):
            member.paused_until = min(member.paused_until, self.now)
            member.stalled_until = self.now
            self.restart(member)
        config = self.knobs.config
        # A member that has nothing may get the whole log, entry by entry.
        catch_up = len(self.checker.entries) * config.election_timeout_min / 2
        limit = 60 * config.election_timeout_max + 2 * self.knobs.bulk_timeout + catch_up
        require(self.run_until(self.now + limit, self._settled), "no rest after the faults:", self._unrest())
        leader = self.leader()
        assert leader is not None
        term = leader.term
        self.run_until(self.now + 10 * config.election_timeout_max)
        require(leader.role is Role.LEADER and leader.term == term, "the leader of term", term, "did not last")
        before = len(self.acknowledged)
        leader.propose([Draft(b"last")])
        quiet = self.run_until(self.now + limit, lambda: len(self.acknowledged) > before and self._settled())
        require(quiet, "no progress after the faults:", self._unrest())
        self._final()

    def leader(self) -> Member | None:
        """Return the only leader."""
        leaders = [member for member in self.alive() if member.role is Role.LEADER]
        return leaders[0] if len(leaders) == 1 else None

    def _settled(self) -> bool:
        return not self._unrest()

    def _unrest(self) -> str:
        """Say what is not as it should be once all is calm."""
        leader = self.leader()
        if leader is None or leader.core is None:
            return f"roles {[(m.node_id, m.role.value, m.term) for m in self.alive()]}"
        membership = leader.core.membership
        if membership.joint or membership.auto_promote:
            return f"configuration {membership}"
        want = (leader.core.last, leader.core.last.index, leader.core.last.index)
        for node_id in membership.members:
            member = self.members[node_id]
            if member.core is None:
                return f"node {node_id} is down, removed: {member.removed}"
            have = (member.core.last, member.core.commit, member.applied)
            if have != want or member.core.durable != want[1] or member.core.leader_id != leader.node_id:
                return f"node {node_id} of {leader.node_id} is at {have}, not {want}: {leader.core.progress()}"
        for member in self.alive():
            if member.waiting:
                return f"node {member.node_id} owes {member.waiting}"
            old = self.now - 2 * self.knobs.config.election_timeout_max - self.knobs.bulk_timeout
            if any(since < old for _, since in member.tokens.values()):
                return f"node {member.node_id} has not answered {member.tokens}"
        return ""

    def _final(self) -> None:
        checker = self.checker
        for position in self.acknowledged:
            index = position.index  # type: ignore[attr-defined]
            require(checker.committed[index].id == position, "the acknowledged entry", position, "is lost")
