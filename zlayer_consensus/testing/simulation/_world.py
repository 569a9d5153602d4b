"""The course of one seed: a cluster under faults, then a quorum that must converge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ...errors import ConsensusError
from .._memory_network import MemoryNetwork
from ._application import Application
from ._checker import Checker, Violation
from ._faults import happen
from ._host import Host, Process
from ._plan import Plan
from ._time import ProcessClock, Timeline
from ._trace import Line, Recorder
from ._workload import Workload

__all__ = ["World"]


class World:
    """Everything of one run.

    :param plan: what is to happen.
    :param application: what is replicated.
    :param trace: takes each line of a readable trace.
    :param trace_disk: whether that has the operations of the disks, too.
    """

    def __init__(
        self,
        plan: Plan,
        application: Application,
        trace: Callable[[Line], object] | None = None,
        *,
        trace_disk: bool = False,
    ) -> None:
        self.plan = plan
        self.application = application
        self.timeline = Timeline()
        self.timeline.after = self._after
        self.random = Random(f"{plan.seed} network")
        self.network = MemoryNetwork(self.timeline_clock(), self.random, through_codec=True)
        self.network.watch = self._watch
        self.checker = Checker()
        self.counts: Counter[str] = Counter()
        """How often what happened."""
        self.recorder = Recorder(self, trace, disk=trace_disk)
        self.hosts: dict[int, Host] = {}
        self.processes: dict[ProcessClock, Process] = {}
        self.founders = tuple(range(1, plan.knobs.voters + 1))
        self.calm = False
        self._broken: BaseException | None = None
        self.workload = Workload(self)

    def timeline_clock(self) -> Any:
        """Return the clock of what belongs to no process."""
        return ProcessClock(self.timeline)

    # What happens, told

    def trace(self, what: str, *fields: object) -> None:
        """Note that something happened that people want to see: a fault, what a client does."""
        self.recorder.event(what, fields)

    def count(self, what: str, amount: int = 1) -> None:
        """Count that something happened."""
        self.counts[what] += amount

    def broken(self, failure: Failure) -> None:
        """An exception where there should be none."""
        if self._broken is None:
            self._broken = failure.value

    def _after(self, clock: ProcessClock) -> None:
        process = self.processes.get(clock)
        if process is not None:
            self.recorder.step(process)
            self.checker.observe(process)
        self._raise()

    def _raise(self) -> None:
        if self.checker.violation is not None:
            raise self.checker.violation
        if self._broken is not None:
            broken, self._broken = self._broken, None
            raise broken

    def _watch(self, kind: str, source: str, target: str, message: Any) -> None:
        sender, receiver = int(source[4:-2]), int(target[4:-2])
        self.recorder.message(kind, sender, receiver, message)
        self.checker.message(kind, sender, receiver, message)

    # What faults and clients use

    def later(self, delay: float, call: Callable[..., object], *args: Any) -> None:
        """Let something happen later, unless all is calm by then."""
        self.timeline.later(delay, lambda: None if self.calm else call(*args))

    def span(self, random: Random) -> float:
        """Draw how long something bad lasts: from a moment to several election timeouts."""
        return self.plan.knobs.config.election_timeout_max * random.choice((0.01, 0.3, 1.0, 3.0)) * random.random()

    def any_host(self, random: Random, *, alive: bool) -> Host | None:
        """Choose a host that lives, or one that does not."""
        hosts = [host for host in self.hosts.values() if (host.process is not None) is alive and not host.gone]
        return random.choice(hosts) if hosts else None

    def ask(self, host: Host, what: str, waiting: Deferred[Any]) -> None:
        """Wait for an administrative operation; how it ends is only counted."""

        def ended(result: Any) -> None:
            if isinstance(result, Failure):
                if not result.check(ConsensusError):
                    self.broken(result)
                self.count(f"{what} refused")
            else:
                self.count(what)

        _ = waiting.addBoth(ended)

    def refused(self, host: Host, error: BaseException) -> None:
        """A node was told that it does not belong to the cluster."""
        raise Violation("membership", f"node {host.node_id} was refused: {error}")

    def node_stopped(self, process: Process) -> None:
        """A node stopped by itself."""
        host, cause = process.host, process.cause
        if cause is not None and getattr(cause, "code", "") not in host.expects:
            raise Violation("stop", f"node {host.node_id} stopped: {type(cause).__name__}: {cause}")
        host.kill()
        self.later(self.span(self.random), host.start)

    # The course

    def add_host(self, *, founder: bool) -> Host:
        """Add a machine, and start it."""
        node_id = len(self.hosts) + 1
        host = self.hosts[node_id] = Host(self, node_id, founder=founder)
        host.start()
        return host

    def run(self) -> None:
        """Run the whole plan.

        :raises Violation: if an invariant breaks.
        """
        knobs = self.plan.knobs
        link = self.network.default
        link.delay, link.loss, link.duplicate, link.reply_loss = (
            knobs.delay,
            knobs.loss,
            knobs.duplicate,
            knobs.reply_loss,
        )
        link.straggle, link.straggle_delay = knobs.straggle, knobs.straggle_delay
        for _ in self.founders:
            self.add_host(founder=True)
        self.workload.start()
        for fault in self.plan.faults:
            self.later(fault.at, happen, self, fault)
        self.timeline.run(knobs.duration)
        self._converge()
        self._raise()

    def _converge(self) -> None:
        self.calm = True
        link = self.network.default
        link.loss = link.duplicate = link.reply_loss = link.straggle = 0.0
        self.network.heal()
        for host in self.hosts.values():
            host.start()
        limit = 60 * self.plan.knobs.config.election_timeout_max
        self.workload.stop()
        if not self.timeline.run(self.timeline.now + limit, self._settled):
            raise Violation("liveness", "no rest after the faults")

    def _settled(self) -> bool:
        if self.workload.busy:
            return False
        nodes = [host.node for host in self.hosts.values() if host.node is not None]
        seen = [node.metrics() for node in nodes]
        return len({(m.applied, m.last) for m in seen}) == 1 and any(m.ready for m in seen)
