"""A state that is replaced by a leader's snapshot without two of them in memory: nobody sees what is in between."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from zope.interface import implementer

from zlayer_consensus.errors import NodeStopped, StorageCorrupt
from zlayer_consensus.network import DigestRequest
from zlayer_consensus.storage import (
    IReplaceableState,
    ISnapshotReader,
    IStateDigest,
    IStateSink,
    MemStateMachine,
)

from .node_cluster import NodeCluster, NodeTestCase
from .test_node_snapshots import Pieces, _Sink


@implementer(IReplaceableState, IStateDigest)
class Replaceable(Pieces):
    """Its old state is gone as soon as it begins to be replaced."""

    digest_kind = "pieces"

    def state_digest(self) -> bytes:
        return b"%d" % len(self.state)

    def replace(self) -> IStateSink:
        self.state = {}
        sink: Any = _Sink(self)
        return sink  # type: ignore[no-any-return]

    def restore(self) -> IStateSink:
        raise AssertionError("there is a better way")


class ReplacingTests(NodeTestCase):
    settings: ClassVar[dict[str, Any]] = {"snapshot_logs_since_last": 100, "max_in_snapshot_log_to_keep": 10}

    def setUp(self) -> None:
        self.cluster = NodeCluster(self, **self.settings)
        self.cluster.make_machine = lambda: MemStateMachine(Replaceable())
        self.lead = self.cluster.begin(*self.ids)
        self.node = self.follower
        self.cluster.result(self.lead.propose(["set", "old", 1]))
        self.cluster.settle()
        others = [self.cluster.address(i) for i in self.ids if i != self.node.node_id]
        self.cluster.network.partition([self.node.address], others)
        self.cluster.result(self.lead.propose_many([["set", str(number), "x" * 50] for number in range(300)]))
        self.held: list[tuple[Any, Deferred[bytes | None]]] = []
        store = self.node._runtime.store
        self.plain = store.reader
        self.patch(store, "reader", self.slow)

    def slow(self) -> ISnapshotReader:
        """Open the snapshot; what is read of it comes when the test lets it."""
        reader = self.plain()
        read = reader.next_chunk

        def held() -> Deferred[bytes | None]:
            waiting: Deferred[bytes | None] = Deferred()
            self.held.append((read, waiting))
            return waiting

        self.patch(reader, "next_chunk", held)
        return reader

    def begin(self) -> None:
        """Let the node get a snapshot, and begin to load it."""
        self.cluster.network.heal()
        self.cluster.until(lambda: bool(self.held))

    def let_through(self, count: int) -> None:
        for _ in range(count):
            self.cluster.until(lambda: bool(self.held))
            read, waiting = self.held.pop()
            _ = read().chainDeferred(waiting)

    def finish(self) -> None:
        """Let all of it through."""
        while self.node.metrics().replacing:
            self.let_through(1)
            self.cluster.run(0.01)

    def test_nobody_reads_what_is_in_between(self) -> None:
        """Old reads and linearizable ones wait for the new state, also those that the old one would have had."""
        known = self.node.metrics().applied
        self.begin()
        self.let_through(5)
        self.assertTrue(self.node.metrics().replacing)
        stale = self.node.read_state(lambda machine: dict(machine.state), linearizable=False)
        linearizable = self.node.read_state(lambda machine: dict(machine.state), 600.0)
        index = self.node._runtime.applier.when_applied(known)
        self.cluster.run(1.0)
        for waiting in (stale, linearizable, index):
            self.assertNoResult(waiting)
        self.finish()
        self.assertGreaterEqual(len(self.successResultOf(stale)), 300)
        self.assertGreaterEqual(len(self.successResultOf(linearizable)), 300)
        self.assertEqual(self.successResultOf(index), known)
        self.cluster.settle()
        self.assertEqual(self.node.machine.state, self.lead.machine.state)

    def test_reads_that_are_being_answered(self) -> None:
        """A batch of reads that is not through when the state goes: the rest sees the new one."""
        seen: list[int] = []
        reads = self.node._runtime.reads

        def read(machine: Any) -> int:
            seen.append(len(machine.state))
            if len(seen) == 1:
                self.cluster.clock.rightNow += 1.0  # it takes long, and the rest waits for the next turn
                self.node._runtime.applier.replacing = True
            return len(machine.state)

        waiting = [reads.submit(read, 60.0, False) for _ in range(3)]
        token: Deferred[int] = Deferred()
        reads._gathered = []
        reads._waiting[token] = waiting
        reads._ready(1, token)
        self.cluster.run(1.0)
        self.assertEqual(len(seen), 1)
        self.node._runtime.applier.replacing = False
        self.node._runtime.applier._progress()
        self.cluster.run(1.0)
        self.assertEqual(len(seen), 3)
        for each in waiting:
            self.successResultOf(each)

    def test_digests_of_it_are_not_told(self) -> None:
        """J-92: half a state would be taken for a diverged one."""
        self.begin()
        self.let_through(5)
        envelope = self.lead._runtime.peers.envelope(self.lead.metrics().membership.members[self.node.node_id])
        reply: Any = self.cluster.result(self.node.handle(envelope, DigestRequest("", 0, b"")))
        self.assertEqual(reply.digests, ())
        self.cluster.run(25.0)
        self.assertEqual([node.metrics().stopped for node in self.cluster.nodes.values()], [False] * 3)
        self.finish()
        self.cluster.run(25.0)
        self.cluster.settle()
        self.assertEqual([node.metrics().stopped for node in self.cluster.nodes.values()], [False] * 3)

    def test_what_cannot_be_loaded(self) -> None:
        """J-89: the node stops with what it has lost, and whoever waits is told; it answers nobody out of nothing."""
        self.begin()
        self.let_through(5)
        stale = self.node.read_state(lambda machine: machine.state, linearizable=False)
        told = self.node.when_stopped()
        _, waiting = self.held.pop()
        waiting.errback(StorageCorrupt("/data/snap/7-2/0", 5, "as the test wants"))
        self.assertIsInstance(self.cluster.result(told), StorageCorrupt)
        self.cluster.error(stale, NodeStopped)
        self.cluster.error(self.node.read_state(lambda machine: machine.state, linearizable=False), NodeStopped)
        self.flushLoggedErrors(StorageCorrupt)

    def test_stopped_meanwhile(self) -> None:
        self.begin()
        self.let_through(5)
        stale = self.node.read_state(lambda machine: machine.state, linearizable=False)
        self.cluster.result(self.node.shutdown())
        self.cluster.error(stale, NodeStopped)
