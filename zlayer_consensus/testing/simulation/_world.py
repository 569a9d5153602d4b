"""The course of one seed: a cluster under faults, then a quorum that must converge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ...errors import ConsensusError
from ...network import DigestRequest
from ...raft import Role
from .._memory_network import MemoryNetwork
from ._application import Application
from ._calm import converge
from ._checker import Checker
from ._faults import happen
from ._host import Host, Process
from ._plan import Plan
from ._quorums import Quorums
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
        self.network = MemoryNetwork(ProcessClock(self.timeline), self.random, through_codec=True)
        self.network.watch = self._watch
        self.checker = Checker()
        self.counts: Counter[str] = Counter()
        """How often what happened."""
        self.harmed = 0
        """How often a process, a disk, a clock or links were harmed."""
        self.recorder = Recorder(self, trace, disk=trace_disk)
        self.hosts: dict[int, Host] = {}
        self.processes: dict[ProcessClock, Process] = {}
        self.owners: dict[str, int] = {}
        """Whose address it is."""
        self.fuses: dict[int, tuple[int, Callable[[], object]]] = {}
        """What happens to a node before its n-th message from now leaves."""
        self.quorums = Quorums(self)
        self.checker.on_whole = self._whole
        self.asked: dict[int, tuple[str, Process]] = {}
        """The operations of administrators that have not ended."""
        self.asked_before = 0
        self.core: set[int] = set()
        """The nodes that must go on when all is calm."""
        self.founders = tuple(range(1, plan.knobs.voters + 1))
        self.calm = False
        self._broken: BaseException | None = None
        self.workload = Workload(self)

    # What happens, told

    def trace(self, what: str, *fields: object) -> None:
        """Note that something happened that people want to see: a fault, what a client does."""
        self.recorder.event(what, fields)

    def count(self, what: str, amount: int = 1) -> None:
        """Count that something happened."""
        self.counts[what] += amount

    def harm(self, what: str) -> None:
        """Count that something went wrong, as it was to."""
        self.counts[what] += 1
        self.harmed += 1

    def broken(self, failure: Failure) -> None:
        """An exception where there should be none."""
        if self._broken is None:
            self._broken = failure.value

    def _after(self, clock: ProcessClock) -> None:
        process = self.processes.get(clock)
        if process is not None:
            self.recorder.step(process)
            if not process.impostor:
                self.checker.observe(process)
        self.check()

    def check(self) -> None:
        """Raise what went wrong, if something did."""
        if self.checker.violation is not None:
            raise self.checker.violation
        if self._broken is not None:
            broken, self._broken = self._broken, None
            raise broken

    def _watch(self, kind: str, source: str, target: str, message: Any) -> None:
        sender, receiver = self.owners[source], self.owners[target]
        self.recorder.message(kind, sender, receiver, message)
        if kind == "request" and isinstance(message, DigestRequest):
            self.count("digest verdict" if message.index else "digest request")
        if self.hosts[sender].attic is None and self.hosts[receiver].attic is None:
            self.checker.message(kind, sender, receiver, message, self.network.request)
        elif kind == "reply" and self.hosts[receiver].attic is not None:
            self._amnesia(receiver, message)
        if self.fuses:
            self._burn(sender if kind == "request" else receiver if kind in ("reply", "error") else 0)

    def _amnesia(self, node_id: int, message: Any) -> None:
        """A node whose disk was wiped answers: neither with a vote nor with anything that would count (H-29)."""
        if getattr(message, "granted", False) or getattr(message, "success", False):
            raise self.checker.violated("amnesia", f"node {node_id} answers with an empty disk: {message}")

    def _burn(self, node_id: int) -> None:
        """A message is about to leave a node that may have to die before its n-th."""
        left, burn = self.fuses.get(node_id, (0, None))
        if burn is not None:
            if left > 1:
                self.fuses[node_id] = (left - 1, burn)
            else:
                del self.fuses[node_id]
                burn()

    # What faults and clients use

    def _whole(self, node_id: int) -> None:
        """A repaired log is complete again."""
        self.count("repair cleared")
        self.quorums.found(node_id)

    def later(self, delay: float, call: Callable[..., object], *args: Any) -> None:
        """Let something happen later, unless all is calm by then."""
        self.timeline.later(delay, lambda: None if self.calm else call(*args))

    def span(self, random: Random) -> float:
        """Draw how long something bad lasts: from a moment to several election timeouts."""
        return self.plan.knobs.config.election_timeout_max * random.choice((0.01, 0.3, 1.0, 3.0)) * random.random()

    def long_span(self, random: Random) -> float:
        """Draw how long the network is bad: long enough for an election, most often."""
        return self.plan.knobs.config.election_timeout_max * random.choice((0.3, 1.5, 3.0)) * (0.3 + random.random())

    def leaders(self) -> list[Host]:
        """Return the hosts whose nodes lead, the newest term first."""
        found = [
            (-node._runtime.core.term, host.node_id, host)
            for host in self.hosts.values()
            if (node := host.node) is not None and node._runtime.has_core and node._runtime.core.role is Role.LEADER
        ]
        return [host for _, _, host in sorted(found)]

    def any_host(self, random: Random, *, alive: bool) -> Host | None:
        """Choose a host that lives, or one that does not."""
        hosts = [host for host in self.hosts.values() if (host.process is not None) is alive and not host.gone]
        return random.choice(hosts) if hosts else None

    def ask(self, process: Process, what: str, waiting: Deferred[Any]) -> None:
        """Wait for an administrative operation; that it ends is checked in the end, how is only counted."""
        number = len(self.asked) + self.asked_before
        self.asked[number] = (what, process)

        def ended(result: Any) -> None:
            del self.asked[number]
            self.asked_before += 1
            if isinstance(result, Failure):
                if not result.check(ConsensusError):
                    self.broken(result)
                self.count(f"{what} refused")
            else:
                self.count(what)

        _ = waiting.addBoth(ended)

    def node_stopped(self, process: Process) -> None:
        """A node stopped by itself."""
        self.workload.stopped(process)
        process.host.stopped(process)

    # The course

    def add_host(self, *, founder: bool) -> Host:
        """Add a machine. It is not started yet."""
        node_id = len(self.hosts) + 1
        host = self.hosts[node_id] = Host(self, node_id, founder=founder)
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
        for host in self.hosts.values():
            host.start()
        self.workload.start()
        if not knobs.early_faults:
            # A cluster that starts in peace; how long that takes does not depend on the time-outs alone.
            self.timeline.run(60.0, lambda: bool(self.checker.committed))
        for fault in self.plan.faults:
            self.later(fault.at, happen, self, fault)
        self.timeline.run(self.timeline.now + knobs.duration)
        converge(self)
        self.workload.check()
