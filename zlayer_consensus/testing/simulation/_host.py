"""A machine of the simulation: its disk, and the process that runs the shipped node on it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ...node import ConsensusNode, InitialMember
from ...storage import FileLogStore, FileStateMachine, IExecutor, InlineExecutor
from .._simfs import Interrupted, Keep, SimulatedFileSystem
from ._chain import ChainTypes, chained
from ._executor import SimulatedExecutor
from ._faults_repair import LOG, STATE, repair
from ._fuse import Fuse
from ._time import ProcessClock
from ._watch import WatchedLogStore
from ._with_files import Disk

if TYPE_CHECKING:
    from ._world import World

__all__ = ["LATENESS", "OPERATIONS", "Fuse", "Host", "Process"]

START_OF_TIME = 1_700_000_000.0
LATENESS = 0.02
"""How long after a pause what arrived during it may meet its process, in shortest election timeouts."""
_CHANGES = frozenset(("mkdir", "create", "write", "sync", "rename", "link", "remove", "sync_dir"))


OPERATIONS = ("create", "write", "sync", "rename", "remove", "sync_dir", "mkdir", "read", "list")
"""What a file system can be killed in."""


class Host:
    """One machine.

    :param node_id: the id of the node that it runs.
    :param founder: whether it bootstraps the cluster; else it joins.
    """

    def __init__(self, world: World, node_id: int, *, founder: bool) -> None:
        self.world = world
        self.node_id = node_id
        self.founder = founder
        self.addresses = [f"node{node_id}:1"]
        """Where it was; the last one is where it is."""
        self.files = SimulatedFileSystem()
        self.process: Process | None = None
        self.starts = 0
        self.random = Random(f"{world.plan.seed} host {node_id}")
        self.rate = world.plan.knobs.clock_rate(self.random)
        self.wall_offset = 0.0
        self.gone = ""
        """Why it will never run again; empty: it may."""
        self.expects: set[str] = set()
        """Codes of the errors that may stop its node, because of what was done to it."""
        self.attic: SimulatedFileSystem | None = None
        """Its disk, while it runs with another, empty one; what runs then is an impostor."""
        self.at_start: list[Callable[[], object]] = []
        """What is done to its disk before the next starts, one at each."""
        self.when_down: Callable[[bool], object] | None = None
        """Takes over when the node has stopped; called with whether it did so in order."""
        self.stalled_until = 0.0
        self.sluggish = 1.0
        """How many times slower than usual its disk is."""
        self.slow_until = 0.0
        """When the disk will have done what it began while it was slow."""
        world.owners[self.address] = node_id

    @property
    def address(self) -> str:
        """Where it is reached."""
        return self.addresses[-1]

    @property
    def node(self) -> ConsensusNode | None:
        """The node, while its process lives."""
        return self.process.node if self.process is not None else None

    @property
    def awake(self) -> bool:
        """Whether its process lives, and does not stand still."""
        return self.process is not None and self.process.clock.paused_until <= self.world.timeline.now

    def start(self) -> None:
        """Start the process, unless it lives or never will again."""
        if self.process is None and not self.gone:
            self.starts += 1
            self.expects.discard("storage_failed")
            if self.at_start:
                self.at_start.pop(0)()
            self.process = Process(self)
            self.process.begin()

    def kill(self, keep: Keep | None = None) -> None:
        """Let the process die at once, even in the middle of what it does.

        :param keep: what the disk keeps of that which was not synced, when the machine loses its power; None: the
            process alone dies, and the machine still has everything in its cache.
        """
        if self.process is not None and not self.files.dead:
            self._break_off(self.process)
        process, self.process = self.process, None
        when_down, self.when_down = self.when_down, None
        files = self.files
        files.dead = True
        if keep == "prefix":
            keep = self._prefix(files)
        self.files = files.crash(process_only=True) if keep is None else files.crash(keep)
        if keep is not None:
            world = self.world
            world.harm("power loss")
            world.count("lost write", self.files.lost_files)
            world.count("torn write", self.files.torn_files)
            world.count("lost rename", self.files.lost_renames)
        if process is not None:
            process.die(silent=keep is not None)
        if when_down is not None:
            when_down(False)

    def _prefix(self, files: SimulatedFileSystem) -> Keep:
        """Return what a disk keeps that wrote in order, of all files together, and got so far."""
        unsynced = files.unsynced()
        return frozenset(unsynced[: self.random.randint(0, len(unsynced))])

    def _break_off(self, process: Process) -> None:
        """Let what the disk is doing get as far as chance has it."""
        left = self.random.choice((0, 1, 2, 3, 5, 10, 1000))

        def step(operation: str, path: str) -> None:
            nonlocal left
            if operation in _CHANGES:
                if not left:
                    raise Interrupted(operation, path, "the process dies")
                left -= 1

        files = self.files
        before, files.before = files.before, step
        for executor in process.executors:
            executor.break_off()
        files.before = before

    def pause(self, seconds: float, *, timers_late: bool = False) -> None:
        """Let the process stand still for a while.

        :param timers_late: whether it looks at its sockets before it looks at the clock, when it goes on.
        """
        if self.process is not None:
            world = self.world
            late = LATENESS * world.plan.knobs.config.election_timeout_min if timers_late else 0.0
            self.process.clock.pause(world.timeline.now + seconds, late)

    def change_rate(self, rate: float) -> None:
        """Let its clock go faster or slower from now on."""
        self.rate = rate
        if self.process is not None:
            self.process.clock.change_rate(rate)

    def move(self, address: str) -> None:
        """Be reached elsewhere from the next start on."""
        assert self.process is None
        self.addresses.append(address)
        self.world.owners[address] = self.node_id

    def arm(self, operations: tuple[str, ...], nth: int, burn: Callable[[str, str], object]) -> None:
        """Let ``burn`` happen just before the n-th of these operations on its disk, if its process lives that long."""
        self.files.before = Fuse(operations, nth, burn)

    def latency(self) -> float:
        """Draw how long the disk's next work takes."""
        timeline = self.world.timeline
        mean = self.world.plan.knobs.disk_latency * self.sluggish
        delay = self.random.expovariate(1 / mean) if mean else 0.0
        if self.sluggish > 1.0:
            self.slow_until = max(self.slow_until, timeline.now + delay)
        return max(delay, self.stalled_until - timeline.now)

    def wall_clock(self) -> float:
        """Return the time of day, as far as this machine knows it."""
        jumps = self.world.plan.knobs.wall_clock_jumps
        return START_OF_TIME + self.world.timeline.now + self.wall_offset + self.random.choice(jumps)

    # What its node says

    def refused(self, error: BaseException | None) -> None:
        """Its node was told that it does not belong to the cluster.

        :raises Violation: if it does.
        """
        world, code = self.world, getattr(error, "code", "")
        if self.attic is not None and code in ("incarnation_mismatch", "bootstrap_mismatch", "node_removed"):
            world.count("wiped node refused")
        elif code == "node_stopped" or code in self.expects:
            pass  # why it stopped, it tells itself
        elif code != "node_removed" or not world.quorums.removed(self.node_id):
            raise world.checker.violated("membership", f"node {self.node_id} was refused: {error}")

    def belongs(self) -> None:
        """Its node was told that it belongs to the cluster.

        :raises Violation: if what it knew is lost (H-29).
        """
        if self.attic is not None:
            raise self.world.checker.violated("amnesia", f"node {self.node_id} was let in with an empty disk")

    def stopped(self, process: Process) -> None:
        """Its node stopped by itself, or because it was asked to.

        :raises Violation: if there is no reason for it.
        """
        if self.process is not process:
            return
        world, cause = self.world, process.cause
        code = getattr(cause, "code", "")
        world.trace("stopped", f"node {self.node_id}: {cause}")
        reason = world.quorums.removed(self.node_id) if code == "node_removed" else code in self.expects
        if cause is not None and not reason:
            text = f"node {self.node_id} stopped: {type(cause).__name__}: {cause}"
            raise world.checker.violated("stop", text)
        world.count(f"stop {code}" if code else "orderly stop")
        when_down = None
        if cause is None:
            when_down, self.when_down = self.when_down, None
        power = code == "storage_failed" and self.random.random() < 0.3
        self.kill(self.random.choice(("none", "all", "prefix", self.random)) if power else None)
        if code == "node_removed":
            self.gone = "removed"
        elif code == "storage_corrupt":
            world.count("bit rot refused")
            if self.random.random() < 0.7 and repair(self):
                self.restart(world.span(self.random))
            else:
                self.gone = "damaged"
        elif when_down is not None:
            when_down(True)
        else:
            self.restart(world.span(self.random))

    def restart(self, delay: float) -> None:
        """Start again after a while, also when all is calm, unless it is to be down for ever then."""

        def again() -> None:
            if not self.world.calm or self.node_id in self.world.core:
                self.start()

        self.world.timeline.later(delay, again)


class Process:
    """One life of a node."""

    def __init__(self, host: Host) -> None:
        self.host = host
        world = host.world
        self.world = world
        self.executors: list[SimulatedExecutor] = []
        self.alive = True
        self.ready = False
        """Whether it has started, and belongs to the cluster as far as it can tell."""
        self.cause: BaseException | None = None
        self.stopped = False
        self.random = Random(f"{world.plan.seed} node {host.node_id} {host.starts}")
        draw, unit = Random(self.random.getrandbits(64)).random, world.plan.knobs.config.election_timeout_min
        self.clock = ProcessClock(
            world.timeline,
            rate=host.rate,
            start=self.random.uniform(0.0, 1e6),
            jitter=lambda: draw() * unit * LATENESS,
        )
        world.processes[self.clock] = self
        self.impostor = host.attic is not None
        """Whether it runs on a disk that was wiped. The checker does not look at it then."""
        log_store = self._log_store()
        self.log_store = log_store if self.impostor else WatchedLogStore(log_store, world.checker, host.node_id)
        application = world.application
        machine = application.make(self._disk)
        watched = world.workload.watched(machine, host.node_id)
        self.machine = chained(watched, application.types, self._applied)
        self.node = self._make()
        application.attach(machine, self.node)

    def _executor(self) -> IExecutor:
        if self.world.plan.knobs.inline_disk:
            return InlineExecutor()
        draw = Random(self.random.getrandbits(64)).random
        executor = SimulatedExecutor(self.clock, self.host.latency, lambda: draw() < 0.5)
        self.executors.append(executor)
        return executor

    def _disk(self) -> Disk:
        """Return where the state machine has its files."""
        return Disk(
            file_system=self.host.files,
            directory="/state/files",
            executor=self._executor(),
            read_executor=self._executor(),
            clock=self.clock,
            random=Random(self.random.getrandbits(64)),
        )

    def _log_store(self) -> FileLogStore:
        knobs = self.world.plan.knobs
        return FileLogStore(
            LOG,
            self.host.node_id,
            reactor=self.clock,
            executor=self._executor(),
            file_system=self.host.files,
            random_bytes=self.random.randbytes,
            segment_bytes=knobs.segment_bytes,
            reserve_bytes=knobs.reserve_bytes,
            tail_bytes=knobs.tail_bytes,
            idle_seconds=knobs.idle_seconds,
        )

    def _make(self) -> ConsensusNode:
        host, world = self.host, self.world
        knobs = world.plan.knobs
        store = FileStateMachine(
            STATE,
            self.machine,
            executor=self._executor(),
            file_system=host.files,
            keep=knobs.snapshots_kept,
            part_bytes=knobs.part_bytes,
            buffer_bytes=knobs.buffer_bytes,
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
            wall_clock=host.wall_clock,
            random=self.random,
        )

    def _applied(self, index: int, count: int, digest: int, restored: bool) -> None:
        if self.alive and not self.impostor:
            self.world.checker.applied(self.host.node_id, index, count, digest, restored)

    def begin(self) -> None:
        """Start the node, and let it found or join the cluster."""
        self.world.network.attach(self.host.address, self.node, self.clock.enter)
        if not self.impostor:
            self.world.checker.started(self.host.node_id)
        self._do(self.node.when_stopped(), self._stopped)
        if self.world.calm:
            self.listen_everywhere()
        self.clock.enter(lambda: self._do(self.node.start(), self._started))

    def listen_everywhere(self) -> None:
        """Be reached where the host was before, too, unless somebody else is there now."""
        world = self.world
        for address in self.host.addresses[:-1]:
            if world.owners[address] == self.host.node_id and not world.network.serves(address):
                world.network.attach(address, self.node, self.clock.enter)

    def _do(self, waiting: Deferred[Any], then: Any) -> None:
        _ = waiting.addBoth(lambda result: then(result) if self.alive else None)
        _ = waiting.addErrback(self.world.broken)

    def _started(self, result: Any) -> None:
        if isinstance(result, Failure):
            self._stopped(result.value)
            return
        host = self.host
        members = [InitialMember(i, f"node{i}:1") for i in self.world.founders]
        # A founder that has moved is not where the list says that it is. One that began alone and has lost its disk
        # would begin another cluster, since the list names nobody whom it could ask.
        if host.founder and len(host.addresses) == 1 and not (self.impostor and len(members) == 1):
            self._do(self.node.bootstrap(members), self._belongs)
        else:
            others = [other.address for other in self.world.hosts.values() if other is not host and not other.gone]
            self._do(self.node.join(others), self._belongs)

    def _belongs(self, result: Any) -> None:
        if isinstance(result, Failure):
            self.host.refused(result.value)
        else:
            self.host.belongs()
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
        for address in self.host.addresses:
            if self.world.owners[address] == self.host.node_id:
                self.world.network.kill(address, silent=silent)
        if not self.impostor:
            self.world.checker.died(self.host.node_id)
