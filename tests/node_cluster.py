"""Whole nodes on one clock: for the tests of the node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any, ClassVar, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.config import ConsensusConfig
from zlayer_consensus.errors import ConsensusError, DomainError
from zlayer_consensus.node import ConsensusNode, InitialMember
from zlayer_consensus.storage import ApplyContext, MemLogStore, MemStateMachine
from zlayer_consensus.testing import MemoryNetwork

T = TypeVar("T")
START_OF_TIME = 1_700_000_000.0


def apply(state: dict[str, Any], command: Any, context: ApplyContext) -> Any:
    """``["set", key, value]`` returns the old value; ``["add", key, n]`` the sum; ``["fail", reason]`` is a domain
    error; ``["raise", text]`` is a bug in the application; ``["time"]`` returns index and time.
    """
    match command:
        case ["set", key, value]:
            old = state.get(key)
            state[key] = value
            return old
        case ["add", key, amount]:
            state[key] = state.get(key, 0) + amount
            return state[key]
        case ["time"]:
            return [context.index, context.time_ms]
        case ["fail", reason]:
            raise DomainError(reason, "as asked for", {"key": 1})
        case ["raise", text]:
            raise RuntimeError(text)
    raise DomainError("unknown", f"{command!r}")


class NodeCluster:
    """Some nodes with a network, a clock, and everything that they keep."""

    def __init__(self, test: SynchronousTestCase, seed: int = 1, **settings: Any) -> None:
        self.test = test
        self.clock = Clock()
        self.random = Random(seed)
        self.network = MemoryNetwork(self.clock, self.random, through_codec=True)
        self.network.default.delay = (0.001, 0.003)
        # Nothing to be learnt where time is made by hand, and many calls.
        self.settings = {"loop_probe_interval_ms": 0, **settings}
        self.nodes: dict[int, ConsensusNode] = {}
        self.dead: list[ConsensusNode] = []
        self.logs: dict[int, Any] = {}
        self.make_machine: Callable[[], Any] = lambda: MemStateMachine({}, apply)
        test.addCleanup(self.close)

    @staticmethod
    def address(node_id: int) -> str:
        return f"node{node_id}:7000"

    def member(self, node_id: int) -> InitialMember:
        return InitialMember(node_id, self.address(node_id), f"client{node_id}:8000")

    def make(self, node_id: int, log: Any = None, machine: Any = None, **settings: Any) -> ConsensusNode:
        """Make a node and start it."""
        log = self.logs[node_id] = log or MemLogStore(node_id, random_bytes=self.random.randbytes)
        node = ConsensusNode(
            node_id=node_id,
            address=self.address(node_id),
            client_address=f"client{node_id}:8000",
            config=ConsensusConfig(**{**self.settings, **settings}),
            log_store=log,
            state_machine=machine or self.make_machine(),
            network=self.network.endpoint(self.address(node_id)),
            clock=self.clock,
            wall_clock=lambda: START_OF_TIME + self.clock.seconds(),
            random=self.random,
        )
        self.nodes[node_id] = node
        self.network.attach(self.address(node_id), node)
        self.result(node.start())
        return node

    def begin(self, *ids: int) -> ConsensusNode:
        """Start and bootstrap nodes with these ids; return their leader."""
        members = [self.member(node_id) for node_id in ids]
        for node_id in ids:
            self.make(node_id)
        starts = [self.nodes[node_id].bootstrap(members) for node_id in ids]
        for start in starts:
            self.result(start)
        return self.leader()

    def crash(self, node_id: int) -> None:
        """Cut a node off for ever: it sends and hears nothing, so as far as the others can tell its process died."""
        self.network.detach(self.address(node_id))
        _ = self.network.endpoint(self.address(node_id)).stop()
        self.dead.append(self.nodes.pop(node_id))

    def run(self, seconds: float, step: float = 0.01) -> None:
        """Let time pass."""
        self.clock.pump([step] * round(seconds / step))

    def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Let time pass until ``condition`` holds."""
        for _ in range(round(seconds / 0.005)):
            if condition():
                return
            self.clock.advance(0.005)
        self.test.fail(f"not within {seconds} s: {condition}")

    def outcome(self, waiting: Deferred[T], seconds: float = 30.0) -> T | Failure:
        """Let time pass until a Deferred fires; return its result or failure."""
        results: list[Any] = []
        _ = waiting.addBoth(results.append)
        self.until(lambda: bool(results), seconds)
        found: T | Failure = results[0]
        return found

    def result(self, waiting: Deferred[T], seconds: float = 30.0) -> T:
        """Let time pass until a Deferred fires; return its result."""
        found = self.outcome(waiting, seconds)
        if isinstance(found, Failure):
            found.raiseException()
        return found

    def error(self, waiting: Deferred[Any], kind: type[Exception] = ConsensusError, seconds: float = 30.0) -> Any:
        """Let time pass until a Deferred fails; return the error, which must be of this kind."""
        found = self.outcome(waiting, seconds)
        if not isinstance(found, Failure):
            self.test.fail(f"{found!r} instead of {kind.__name__}")
        self.test.assertIsInstance(found.value, kind, found.getTraceback())
        return found.value

    def leader(self, among: Iterable[int] | None = None) -> ConsensusNode:
        """Let time pass until one node leads and its term's first entry is committed."""
        ids = list(self.nodes if among is None else among)

        def leaders() -> list[ConsensusNode]:
            nodes = [self.nodes[node_id] for node_id in ids if node_id in self.nodes]
            ready = [node for node in nodes if node.metrics().ready and not node.metrics().stopped]
            newest = max((node.metrics().term for node in nodes), default=0)
            return [node for node in ready if node.metrics().term == newest]

        self.until(lambda: bool(leaders()))
        return leaders()[0]

    def followers(self) -> list[ConsensusNode]:
        return [node for node in self.nodes.values() if not node.is_leader]

    def settle(self) -> None:
        """Let time pass until every node has applied the same log."""

        def settled() -> bool:
            seen = [node.metrics() for node in self.nodes.values()]
            return len({(m.applied, m.last) for m in seen}) == 1 and all(m.applied == m.last.index for m in seen)

        self.until(settled)

    def states(self) -> list[Any]:
        return [node.machine.state for node in self.nodes.values()]

    def close(self) -> None:
        for node in [*self.nodes.values(), *self.dead]:
            self.outcome(node.shutdown())
        self.run(10.0, step=0.1)  # what is on its way on the network
        self.test.assertEqual(self.clock.getDelayedCalls(), [], "a stopped node left a timer behind")


class NodeTestCase(SynchronousTestCase):
    """A test with a cluster of three."""

    ids: tuple[int, ...] = (1, 2, 3)
    settings: ClassVar[dict[str, Any]] = {}

    def setUp(self) -> None:
        self.cluster = NodeCluster(self, **self.settings)
        self.lead = self.cluster.begin(*self.ids)

    @property
    def follower(self) -> ConsensusNode:
        return self.cluster.followers()[0]
