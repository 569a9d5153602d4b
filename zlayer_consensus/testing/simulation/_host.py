"""A machine of the simulation: its disk, and the process that runs the shipped node on it."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ...node import ConsensusNode, InitialMember
from ...storage import FileLogStore, FileStateMachine, IExecutor, InlineExecutor
from .._simfs import Keep, SimulatedFileSystem
from ._chain import ChainMachine, ChainTypes
from ._executor import SimulatedExecutor
from ._time import ProcessClock
from ._watch import WatchedLogStore

if TYPE_CHECKING:
    from ._world import World

__all__ = ["Host", "Process"]

START_OF_TIME = 1_700_000_000.0


class Host:
    """One machine.

    :param node_id: the id of the node that it runs.
    :param founder: whether it bootstraps the cluster; else it joins.
    """

    def __init__(self, world: World, node_id: int, *, founder: bool) -> None:
        self.world = world
        self.node_id = node_id
        self.founder = founder
        self.address = f"node{node_id}:1"
        self.files = SimulatedFileSystem()
        self.process: Process | None = None
        self.starts = 0
        self.random = Random(f"{world.plan.seed} host {node_id}")
        self.rate = world.plan.knobs.clock_rate(self.random)
        self.gone = ""
        """Why it will never run again; empty: it may."""
        self.expects: set[str] = set()
        """Codes of the errors that may stop its node, because of what was done to it."""
        self.stalled_until = 0.0
        self.sluggish = 1.0
        """How many times slower than usual its disk is."""

    @property
    def node(self) -> ConsensusNode | None:
        """The node, while its process lives."""
        return self.process.node if self.process is not None else None

    def start(self) -> None:
        """Start the process, unless it lives or never will again."""
        if self.process is None and not self.gone:
            self.starts += 1
            self.process = Process(self)
            self.process.begin()

    def kill(self, keep: Keep | None = None) -> None:
        """Let the process die at once.

        :param keep: what the disk keeps of that which was not synced, when the machine loses its power; None: the
            process alone dies, and the machine still has everything in its cache.
        """
        process, self.process = self.process, None
        files = self.files
        files.dead = True
        self.files = files.crash(process_only=True) if keep is None else files.crash(keep)
        if process is not None:
            process.die(silent=keep is not None)

    def pause(self, seconds: float) -> None:
        """Let the process stand still for a while."""
        if self.process is not None:
            clock = self.process.clock
            clock.paused_until = max(clock.paused_until, self.world.timeline.now + seconds)

    def latency(self) -> float:
        """Draw how long the disk's next work takes."""
        timeline = self.world.timeline
        mean = self.world.plan.knobs.disk_latency * self.sluggish
        delay = self.random.expovariate(1 / mean) if mean else 0.0
        return max(delay, self.stalled_until - timeline.now)


class Process:
    """One life of a node."""

    def __init__(self, host: Host) -> None:
        self.host = host
        world = host.world
        self.world = world
        self.alive = True
        self.ready = False
        """Whether it has started, and belongs to the cluster as far as it can tell."""
        self.cause: BaseException | None = None
        self.stopped = False
        self.random = Random(f"{world.plan.seed} node {host.node_id} {host.starts}")
        self.clock = ProcessClock(world.timeline, rate=host.rate, start=self.random.uniform(0.0, 1e6))
        world.processes[self.clock] = self
        self.log_store = WatchedLogStore(self._log_store(), world.checker, host.node_id)
        self.machine = ChainMachine(world.application.machine(), world.application.types, self._applied)
        self.node = self._make()

    def _executor(self) -> IExecutor:
        if self.world.plan.knobs.inline_disk:
            return InlineExecutor()
        draw = Random(self.random.getrandbits(64)).random
        return SimulatedExecutor(self.clock, self.host.latency, lambda: draw() < 0.5)

    def _log_store(self) -> FileLogStore:
        knobs = self.world.plan.knobs
        return FileLogStore(
            "/log",
            self.host.node_id,
            reactor=self.clock,
            executor=self._executor(),
            file_system=self.host.files,
            random_bytes=self.random.randbytes,
            segment_bytes=knobs.segment_bytes,
            tail_bytes=knobs.tail_bytes,
            idle_seconds=knobs.idle_seconds,
        )

    def _make(self) -> ConsensusNode:
        host, world = self.host, self.world
        knobs = world.plan.knobs
        store = FileStateMachine(
            "/state",
            self.machine,
            executor=self._executor(),
            file_system=host.files,
            keep=knobs.snapshots_kept,
            part_bytes=knobs.part_bytes,
        )
        return ConsensusNode(
            node_id=host.node_id,
            address=host.address,
            config=knobs.config,
            log_store=self.log_store,
            state_machine=store,
            network=world.network.endpoint(host.address, self.clock, self.clock.enter),
            clock=self.clock,
            types=ChainTypes(world.application.types),
            wall_clock=lambda: START_OF_TIME + world.timeline.now + host.random.choice(knobs.wall_clock_jumps),
            random=self.random,
        )

    def _applied(self, index: int, count: int, digest: int, restored: bool) -> None:
        if self.alive:
            self.world.checker.applied(self.host.node_id, index, count, digest, restored)

    def begin(self) -> None:
        """Start the node, and let it found or join the cluster."""
        self.world.network.attach(self.host.address, self.node, self.clock.enter)
        self.world.checker.started(self.host.node_id)
        self._do(self.node.when_stopped(), self._stopped)
        self.clock.enter(lambda: self._do(self.node.start(), self._started))

    def _do(self, waiting: Deferred[Any], then: Any) -> None:
        _ = waiting.addBoth(lambda result: then(result) if self.alive else None)
        _ = waiting.addErrback(self.world.broken)

    def _started(self, result: Any) -> None:
        if isinstance(result, Failure):
            self._stopped(result.value)
            return
        self.world.checker.recovered(self.host.node_id, self.node)
        members = [InitialMember(i, f"node{i}:1") for i in self.world.founders]
        if self.host.founder:
            self._do(self.node.bootstrap(members), self._belongs)
        else:
            self._do(self.node.join([m.peer_address for m in members]), self._belongs)

    def _belongs(self, result: Any) -> None:
        if isinstance(result, Failure):
            self.world.refused(self.host, result.value)
        else:
            self.ready = True

    def _stopped(self, cause: Any) -> None:
        if not self.stopped:
            self.stopped = True
            self.cause = cause.value if isinstance(cause, Failure) else cause
            # In a turn of its own: the node is still about to end what it did.
            self.clock.callLater(0, self.world.node_stopped, self)

    def die(self, *, silent: bool) -> None:
        """End, without a last word."""
        self.alive = False
        self.clock.dead = True
        self.world.processes.pop(self.clock, None)
        self.world.network.kill(self.host.address, silent=silent)
        self.world.checker.died(self.host.node_id)
