"""The second phase: a quorum is healed, all else stays broken for ever, and the quorum must come to rest in time.

The quorum is one of the newest committed configuration, and of every other one that may still take effect: those that
were appended after it, and those that a change under way would lead to. All its disks are intact.

Time is counted from when the last pause and the last stalled disk in the quorum end. It must suffice for

- 20 of the longest election timeouts: those of before must run out, votes may split, a term may be lost to a
  slow disk;
- whatever was sent before, and is waited for: 2 ``rpc_timeout``, 2 ``snapshot_timeout``;
- catching up: two round trips, with their writes, for every message that the log or the snapshot takes;
- 5 seconds, in which a node that knows no cluster asks for it;

all by the slowest clock.

The quorum is not at rest while something may still arrive that was sent before: a leader may have asked a node to take
over, and have given that up long ago.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ...errors import ConsensusError, Overloaded
from ...node import Metrics
from ...raft import NO_LOG
from ._checker import quorum
from ._host import LATENESS, Host, Process

if TYPE_CHECKING:
    from ._world import World

__all__ = ["converge"]

_ELECTIONS = 20
_ENTRY_BYTES = 100


def converge(world: World) -> None:
    """Carry out the second phase.

    :raises Violation: ``liveness``, with what is missing.
    """
    calm = _Calm(world)
    if calm.choose():
        calm.begin()
        calm.check()


class _Calm:
    def __init__(self, world: World) -> None:
        self._world = world
        self._random = Random(f"{world.plan.seed} calm")
        self._config = world.plan.knobs.config
        self._slow = 1.0 / (1.0 - max(0.05, world.plan.knobs.drift))
        self._latest = 0.0
        """By then what was sent before has arrived."""
        self._rest_since: float | None = None

    # Whom

    def choose(self) -> bool:
        """Choose the quorum; return whether there is one."""
        world, random = self._world, self._random
        lost = world.quorums.lost
        intact = [h for h in world.hosts.values() if not h.gone and h.attic is None and h.node_id not in lost]
        committed = world.quorums.committed()
        if not committed.members:
            core = {host.node_id for host in intact if host.founder}
        else:
            # Who is no member yet may become one by a change that is under way.
            core = {host.node_id for host in intact if host.node_id not in committed.tombstones}
            if not self._suffices(core):
                world.count("unrecoverable")
                return False
            if random.random() < 0.7:
                core = self._bare(core)
                core |= {i for i in sorted(committed.learners) if world.hosts[i] in intact and random.random() < 0.5}
        world.core = core
        world.trace("calm", f"for nodes {sorted(core)}")
        return True

    def _suffices(self, core: set[int]) -> bool:
        everybody = {*self._world.hosts, *(i for config in self._world.quorums.possible() for i in config.members)}
        return self._world.quorums.stand(everybody - core)

    def _bare(self, core: set[int]) -> set[int]:
        """Leave nodes out, in a random order, as long as the rest suffices."""
        order = sorted(core)
        self._random.shuffle(order)
        for node_id in order[: self._random.randint(1, len(order))]:
            if self._suffices(core - {node_id}):
                core = core - {node_id}
        return core

    # What

    def begin(self) -> None:
        """Heal the quorum, and break the rest for ever."""
        world = self._world
        world.calm = True
        world.fuses.clear()
        world.workload.stop()
        link = world.network.default
        link.loss = link.duplicate = link.reply_loss = link.straggle = 0.0
        world.network.restore()
        self._latest = world.network.latest
        for host in world.hosts.values():
            host.files.before = host.when_down = None  # what they wait for may befall others, too
            if host.node_id in world.core:
                self._heal(host)
            else:
                self._break(host)

    def _heal(self, host: Host) -> None:
        host.files.capacity = None
        host.at_start.clear()
        host.sluggish = 1.0
        host.start()
        if host.process is not None:
            host.process.listen_everywhere()

    def _break(self, host: Host) -> None:
        """Dead, cut off, deaf, mute, or still: it stays so."""
        world = self._world
        ways = ["dead", "dead", "cut off", "mute", "still"]
        if self._config.enable_prevote:
            # Without, whoever hears nobody campaigns again and again, and nothing keeps the others from listening.
            ways.append("deaf")
        way = self._random.choice(ways) if host.process is not None else "dead"
        world.count(f"calm: {way}")
        world.trace("stays", f"node {host.node_id} {way}")
        if way == "dead":
            host.kill()
        elif way == "still":
            host.pause(1e9)
        for node_id in sorted(world.core):
            for there in world.hosts[node_id].addresses:
                for here in host.addresses:
                    if way != "deaf":
                        world.network.cut(here, there)
                    if way != "mute":
                        world.network.cut(there, here)

    def limit(self) -> float:
        """Return how many seconds the quorum has."""
        config, knobs = self._config, self._world.plan.knobs
        seconds = _ELECTIONS * config.election_timeout_max + 2 * config.bulk_timeout + 2 * config.snapshot_timeout + 5.0
        step = 2 * (2 * knobs.delay[1] + 4 * (0.0 if knobs.inline_disk else knobs.disk_latency))
        logs, snapshots = [0], 0
        for process in self._processes():
            runtime = process.node._runtime
            if runtime.has_core:
                logs.append(runtime.core.last.index)
                manifest = runtime.store.newest()
                size = sum(size for size, _ in manifest.parts) if manifest is not None else 0
                parts = len(manifest.parts) if manifest is not None else 0
                snapshots = max(snapshots, -(-size // config.snapshot_chunk_bytes) + parts + 1)
        batch = min(config.max_payload_entries, max(1, config.max_payload_bytes // _ENTRY_BYTES))
        return self._slow * (seconds + step * (max(logs) / batch + snapshots))

    def _processes(self) -> list[Process]:
        hosts = self._world.hosts
        return [process for i in sorted(self._world.core) if (process := hosts[i].process) is not None]

    def check(self) -> None:
        """Wait for rest; then let something happen, and see that the leader stays.

        :raises Violation: ``liveness``.
        """
        world, timeline = self._world, self._world.timeline
        waits = [timeline.now]
        for i in world.core:
            host = world.hosts[i]
            waits += [
                host.stalled_until,
                host.slow_until,
                host.process.clock.paused_until if host.process is not None else 0.0,
            ]
        begun = max(waits)
        timeline.run(begun)
        end = begun + self.limit()
        every = self._config.election_timeout_max / 4
        timeline.run(max(begun, self._latest) + self._slow * LATENESS * self._config.election_timeout_min)
        if not timeline.run(end, self._at_rest, every):
            # Who was still starting has shown only then how much there is to catch up with.
            end = begun + self.limit()
            if not timeline.run(end, self._at_rest, every):
                self._failed(begun)
                return
        world.trace("at rest", f"after {timeline.now - begun:.3f} of {end - begun:.3f} s")
        world.count("calm permille", round(1000 * (timeline.now - begun) / (end - begun)))
        leader = self._leader()
        timeline.run(timeline.now + 3 * self._slow * self._config.election_timeout_max)
        self._proposal(end)
        if not timeline.run(max(end, timeline.now + every), lambda: not self.missing(), every):
            self._failed(begun)
        elif self._leader() != leader:
            text = f"node {leader[0]} led term {leader[1]}, and without need {self._leader()} does"
            raise world.checker.violated("liveness", text)

    def _at_rest(self) -> bool:
        """Say whether nothing has been missing for as long as a message is on its way."""
        now = self._world.timeline.now
        if self.missing():
            self._rest_since = None
        elif self._rest_since is None:
            self._rest_since = now
        return self._rest_since is not None and now - self._rest_since >= self._world.network.default.delay[1]

    def _failed(self, begun: float) -> None:
        world = self._world
        # A change that was under way has made a configuration of nodes that are broken.
        broken = bool(world.quorums.committed().members) and not self._suffices(world.core)
        if broken or self._learner_in_the_way():
            world.count("unrecoverable")
            return
        text = f"nodes {sorted(world.core)} have had {world.timeline.now - begun:.3f} s: {self.missing()}"
        raise world.checker.violated("liveness", text)

    def _learner_in_the_way(self) -> bool:
        """Say whether nobody can be elected since a learner has the newest log: a gap of Raft (docs/core.rst).

        It refuses its vote to one that counts it as a voter, in a change that is not committed, and does not campaign.
        """
        runtimes = [process.node._runtime for process in self._processes() if not process.stopped]
        cores = {runtime.node_id: runtime.core for runtime in runtimes if runtime.has_core}
        voters = {i for i, core in cores.items() if i in core.membership.voters | core.membership.outgoing}
        newest = max((core.last for core in cores.values()), default=NO_LOG)
        if any(cores[i].last == newest for i in voters):
            return False
        return not any(
            quorum(cores[i].membership, {j for j, other in cores.items() if other.last <= cores[i].last})
            for i in voters
        )

    def _leader(self) -> tuple[int, int]:
        return next((m.node_id, m.term) for m in self._metrics() if m.role == "leader")

    def _metrics(self) -> list[Metrics]:
        """Look at the nodes of the quorum that are still members."""
        members = self._world.quorums.committed().members
        found = [process.node.metrics() for process in self._processes() if not process.stopped]
        return [m for m in found if m.node_id in members]

    def missing(self) -> str:
        """Say why the quorum is not at rest; empty if it is."""
        world = self._world
        if world.workload.busy:
            return f"{world.workload.busy} client operations have not ended"
        seen = self._metrics()
        leaders = [m for m in seen if m.role == "leader"]
        if len(leaders) != 1:
            return f"{len(leaders)} leaders; " + ", ".join(f"node {m.node_id}: {m.role} in {m.term}" for m in seen)
        leader = leaders[0]
        wanted = (leader.node_id, leader.term, leader.last, *(leader.last.index,) * 3)
        wrong = [
            f"node {m.node_id}: {found}, not {wanted}"
            for m in seen
            if (found := (m.leader_id, m.term, m.last, m.durable, m.commit, m.applied)) != wanted
        ]
        if wrong:
            return "leader, term, last, durable, commit, applied: " + "; ".join(wrong)
        here = {m.node_id for m in seen}
        down = (world.core & set(world.quorums.committed().members)) - here
        if down or not leader.ready or leader.membership.joint or leader.transferring:
            state = f"joint: {leader.membership.joint}, transferring: {leader.transferring}"
            return f"down: {sorted(down)}, ready: {leader.ready}, {state}"
        full = {m.node_id for m in seen if m.full}
        full |= {peer for peer, p in leader.replication.items() if p.full and peer in here}
        if full:
            return f"full: {sorted(full)}"
        alarmed = [peer for peer, p in leader.replication.items() if p.alarmed and peer in world.core]
        machines = {
            (p.machine.index, p.machine.count, p.machine.digest) for p in self._processes() if p.host.node_id in here
        }
        if alarmed or len(machines) != 1:
            return f"alarms: {alarmed}, states: {sorted(machines)}"
        waiting = [what for what, process in world.asked.values() if process.alive and process in self._processes()]
        return f"operations of administrators have not ended: {', '.join(waiting)}" if waiting else ""

    def _proposal(self, end: float) -> None:
        """Something new must be possible, and read everywhere."""
        members = self._world.quorums.committed().members
        processes = [p for p in self._processes() if p.host.node_id in members]
        writer = self._random.choice(processes)
        # The last entry may have to come to a follower in a snapshot.
        patience = self.limit()
        if not self._config.forward_proposals:
            writer = next(p for p in processes if p.host.node_id == self._leader()[0])
        self._do(writer, end, "a proposal", lambda: writer.node.register_session(timeout=patience))
        for process in processes:
            self._do(process, end, "a read", functools.partial(process.node.ensure_linearizable, patience))

    def _do(self, process: Process, end: float, what: str, call: Callable[[], Deferred[Any]]) -> None:
        """Do it; while a queue is full of what nobody waits for any more, try again."""
        world, timeline = self._world, self._world.timeline
        done: list[Any] = []

        def answered(result: Any) -> None:
            full = isinstance(result, Failure) and result.check(Overloaded)
            if full and timeline.now < end:
                process.clock.callLater(self._config.election_timeout_max / 4, enter)
            else:
                done.append(result)

        def enter() -> None:
            _ = call().addBoth(answered)

        process.clock.enter(enter)
        late = max(end, timeline.now) + 2 * self.limit()
        timeline.run(late, lambda: bool(done), 0.01)
        error = done[0].value if done and isinstance(done[0], Failure) else None
        if error is not None and not isinstance(error, ConsensusError):
            raise error
        if not done or (error is not None and error.code != "proposal_too_large"):
            text = f"{what} at node {process.host.node_id} of the quorum {sorted(world.core)} failed: {error}"
            raise world.checker.violated("liveness", text)
