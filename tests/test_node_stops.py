"""However and whenever a node stops, nobody waits for it in vain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.errors import ConsensusError, InvariantBroken, StorageFailed
from zlayer_consensus.network import Envelope, SnapshotChunk
from zlayer_consensus.node import ConsensusNode
from zlayer_consensus.raft import LogId
from zlayer_consensus.storage import MemLogStore

from .node_cluster import NodeCluster
from .test_node_outcomes import HeldLogStore

BROKEN = StorageFailed("write", "the log", "input/output error")

OPERATIONS: dict[str, Callable[[ConsensusNode], Deferred[Any]]] = {
    "propose": lambda node: node.propose(["set", "key", 1]),
    "propose with a deadline": lambda node: node.propose(["set", "key", 1], timeout=100.0),
    "propose_many": lambda node: node.propose_many([["set", "key", n] for n in range(3000)]),
    "register_session": lambda node: node.register_session(),
    "read_state": lambda node: node.read_state(lambda machine: machine.state),
    "ensure_linearizable": lambda node: node.ensure_linearizable(),
    "add_learner": lambda node: node.add_learner(9, "node9:7000"),
    "add_voter": lambda node: node.add_voter(9, "node9:7000"),
    "remove_voter": lambda node: node.remove_voter(3, force=True),
    "change_membership": lambda node: node.change_membership([1, 2], force=True),
    "change_address": lambda node: node.change_address(3, "elsewhere:7000"),
    "transfer_leadership": lambda node: node.transfer_leadership(),
    "trigger elect": lambda node: node.trigger("elect"),
    "trigger heartbeat": lambda node: node.trigger("heartbeat"),
    "trigger purge": lambda node: node.trigger("purge"),
    "trigger snapshot": lambda node: node.trigger("snapshot"),
    "wait": lambda node: node.wait(lambda metrics: False),
    "wait with a deadline": lambda node: node.wait.term(1000, timeout=100.0),
    "bootstrap": lambda node: node.bootstrap(),
    "join": lambda node: node.join(["node9:7000"]),
}


def fail(node: ConsensusNode) -> None:
    node._runtime.fail(BROKEN)


def break_a_step(node: ConsensusNode) -> None:
    def step(now: float) -> None:
        raise RuntimeError("a broken step")

    node._runtime.driver.input(step)


def shut_down(node: ConsensusNode) -> None:
    _ = node.shutdown()


def break_the_disk(node: ConsensusNode) -> None:
    log = node._runtime.log_store
    assert isinstance(log, HeldLogStore)
    held, log.held = log.held, None
    log.broken = BROKEN
    for waiting in held or []:
        waiting.errback(BROKEN)


STOPS = {"error": fail, "broken step": break_a_step, "shutdown": shut_down, "broken disk": break_the_disk}


class EveryOperationEndsTests(SynchronousTestCase):
    """Each public operation, at a leader, a follower and a node on its own, against each way to stop."""

    def cluster_of(self, *ids: int) -> NodeCluster:
        cluster = NodeCluster(self)
        members = [cluster.member(node_id) for node_id in ids]
        for node_id in ids:
            cluster.make(node_id, log=HeldLogStore(node_id, random_bytes=cluster.random.randbytes))
        for start in [cluster.nodes[node_id].bootstrap(members) for node_id in ids]:
            cluster.result(start)
        cluster.leader()
        return cluster

    def expect_end(self, cluster: NodeCluster, node: ConsensusNode, name: str, stop: str, later: float) -> None:
        seen: list[Any] = []
        log = cluster.logs[node.node_id]
        if stop == "broken disk":
            log.held = []
        _ = OPERATIONS[name](node).addBoth(seen.append)
        if later:
            cluster.run(later, step=later)
        STOPS[stop](node)
        if stop == "broken disk":
            _ = node.propose(["set", "other", 1], forward=False).addErrback(lambda _: None)
            _ = node.trigger("elect").addErrback(lambda _: None)
        cluster.run(8.0, step=0.2)
        if stop != "broken disk":
            self.assertTrue(node.metrics().stopped)
        elif not node.metrics().stopped:  # what failed was never needed
            fail(node)
            cluster.run(1.0)
        self.assertEqual(len(seen), 1, "nobody was told")
        if isinstance(seen[0], Failure):
            self.assertIsInstance(seen[0].value, ConsensusError, seen[0].getTraceback())
        self.assertEqual((node.metrics().pending_proposals, node.metrics().pending_reads), (0, 0))
        self.flushLoggedErrors()

    def expect_ends(self, ids: tuple[int, ...], leads: bool, stop: str) -> None:
        for name in OPERATIONS:
            for later in (0.0, 0.001):
                with self.subTest(f"{name}, {later}"):
                    cluster = self.cluster_of(*ids)
                    node = cluster.leader() if leads else cluster.followers()[0]
                    self.expect_end(cluster, node, name, stop, later)

    def test_error(self) -> None:
        """H-87: proposals and reads of the very turn in which the node stops are told."""
        self.expect_ends((1, 2, 3), True, "error")

    def test_error_at_a_follower(self) -> None:
        """H-87."""
        self.expect_ends((1, 2, 3), False, "error")

    def test_error_alone(self) -> None:
        """H-87."""
        self.expect_ends((1,), True, "error")

    def test_broken_step(self) -> None:
        """H-87."""
        self.expect_ends((1, 2, 3), True, "broken step")

    def test_shutdown(self) -> None:
        """H-87."""
        self.expect_ends((1, 2, 3), True, "shutdown")

    def test_shutdown_at_a_follower(self) -> None:
        """H-87."""
        self.expect_ends((1, 2, 3), False, "shutdown")

    def test_broken_disk(self) -> None:
        """H-87."""
        self.expect_ends((1, 2, 3), True, "broken disk")

    def test_broken_disk_alone(self) -> None:
        """H-87."""
        self.expect_ends((1,), True, "broken disk")


class HalfwayTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.cluster = NodeCluster(self)
        self.node = self.cluster.begin(1, 2, 3)

    def expect_all_told(self, waiting: list[Deferred[Any]]) -> list[Any]:
        seen: list[Any] = []
        for each in waiting:
            _ = each.addBoth(seen.append)
        self.cluster.run(2.0)
        self.assertEqual(len(seen), len(waiting))
        self.assertIsInstance(self.cluster.result(self.node.stopped), InvariantBroken)
        self.flushLoggedErrors()
        return seen

    def test_core_that_raises(self) -> None:
        """H-87: the batch that was just being handed over, and those behind it, are told."""

        def propose(*_: Any) -> Any:
            raise RuntimeError("a bug")

        self.patch(self.node._runtime.core, "propose", propose)
        self.expect_all_told([self.node.propose(["set", "key", n]) for n in range(5000)])

    def test_read_that_raises(self) -> None:
        """H-87."""

        def read(*_: Any) -> Any:
            raise RuntimeError("a bug")

        self.patch(self.node._runtime.core, "read", read)
        self.expect_all_told([self.node.read_state(lambda machine: 1) for _ in range(3)])

    def test_forwarding_that_raises(self) -> None:
        """H-87: the proposals behind the one at which it happened are told, and so is that one."""
        self.node = self.cluster.followers()[0]

        def raises(*_: Any) -> Any:
            raise RuntimeError("a bug")

        self.node._runtime.proposals._elsewhere = raises
        self.expect_all_told([self.node.propose(["set", "key", n]) for n in range(3)])

    def test_operation_whose_step_raises(self) -> None:
        """H-87."""

        def raises(*_: Any) -> Any:
            raise RuntimeError("a bug")

        self.patch(self.node._runtime.core, "transfer", raises)
        self.expect_all_told([self.node.transfer_leadership(), self.node.transfer_leadership(2)])

    def test_snapshot_chunk_in_the_turn_of_the_stop(self) -> None:
        """H-87: a peer that sends a chunk is answered, too."""
        node = self.cluster.followers()[0]
        mine, other = node._runtime.identity, self.node._runtime.identity
        envelope = Envelope(mine.cluster_id, other.node_id, other.incarnation, mine.node_id, mine.incarnation)
        chunk = SnapshotChunk(self.node.metrics().term, LogId(1, 1000), bytes(32), b"", 0, 0, b"", False)
        seen: list[Any] = []

        def step(now: float) -> None:
            _ = node.handle(envelope, chunk).addBoth(seen.append)
            fail(node)

        node._runtime.driver.input(step)
        self.cluster.run(1.0)
        self.assertEqual(len(seen), 1)
        self.flushLoggedErrors()

    def test_stop_from_a_callback(self) -> None:
        """H-87: a caller who shuts the node down when it hears of a refusal does not hide the others'."""
        follower = self.cluster.followers()[0]
        seen: list[Any] = []

        def hear(failure: Failure) -> Failure:
            shut_down(follower)
            return failure

        for number in range(3):
            waiting = follower.propose(["set", "key", number], forward=False)
            _ = waiting.addErrback(hear).addBoth(seen.append)
        self.cluster.run(2.0)
        self.assertEqual(len(seen), 3)
        self.assertEqual(follower.metrics().pending_proposals, 0)


class HangingLogStore(MemLogStore):
    """A log store whose disk does not answer any more from a certain moment."""

    hangs = False

    def write(self, write: Any) -> Deferred[None]:
        return Deferred() if self.hangs else super().write(write)

    def close(self) -> Deferred[None]:
        return Deferred() if self.hangs else super().close()


class HangingDiskTests(SynchronousTestCase):
    def test_shutdown_does_not_wait_for_ever(self) -> None:
        """A disk that hangs does not keep a process from ending, and the end is not called an orderly one."""
        cluster = NodeCluster(self)
        log = HangingLogStore(1, random_bytes=cluster.random.randbytes)
        node = cluster.make(1, log=log)
        cluster.result(node.bootstrap())
        cluster.leader()
        log.hangs = True
        stopped = node.stopped
        cluster.result(node.shutdown(), seconds=2 * node._runtime.config.bulk_timeout + 5.0)
        self.assertIsInstance(cluster.result(stopped), StorageFailed)
        self.assertIn("log", str(cluster.result(node.stopped)))

    def test_the_first_cause_stays(self) -> None:
        """What stopped the node is told, not that its disk hung then."""
        cluster = NodeCluster(self)
        log = HangingLogStore(1, random_bytes=cluster.random.randbytes)
        node = cluster.make(1, log=log)
        log.hangs = True
        fail(node)
        self.assertIs(cluster.result(node.stopped), BROKEN)
        self.flushLoggedErrors()
