"""Arguments that cannot be are refused where they are given, and stop nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from zlayer_consensus.node import ConsensusNode

from .node_cluster import NodeTestCase

IMPOSSIBLE: tuple[Any, ...] = (float("inf"), float("nan"), -float("inf"), 0, -1.0, 86_401, 1e300, True, "5", b"5", [1])

OPERATIONS: dict[str, Callable[[ConsensusNode, Any], Deferred[Any]]] = {
    "propose": lambda node, timeout: node.propose(["set", "key", 1], timeout=timeout),
    "propose_with_index": lambda node, timeout: node.propose_with_index(["set", "key", 1], timeout=timeout),
    "propose_many": lambda node, timeout: node.propose_many([["set", "key", 1]], timeout=timeout),
    "register_session": lambda node, timeout: node.register_session(timeout=timeout),
    "read_state": lambda node, timeout: node.read_state(lambda machine: 1, timeout),
    "ensure_linearizable": lambda node, timeout: node.ensure_linearizable(timeout),
    "add_learner": lambda node, timeout: node.add_learner(9, "node9:7000", timeout=timeout),
    "add_voter": lambda node, timeout: node.add_voter(9, "node9:7000", timeout=timeout),
    "remove_voter": lambda node, timeout: node.remove_voter(3, timeout=timeout),
    "remove_learner": lambda node, timeout: node.remove_learner(3, timeout=timeout),
    "change_membership": lambda node, timeout: node.change_membership([1, 2], timeout=timeout),
    "change_address": lambda node, timeout: node.change_address(3, "elsewhere:7000", timeout=timeout),
    "transfer_leadership": lambda node, timeout: node.transfer_leadership(timeout=timeout),
    "wait": lambda node, timeout: node.wait(lambda metrics: True, timeout),
    "wait.term": lambda node, timeout: node.wait.term(1000, timeout),
}


class TimeoutTests(NodeTestCase):
    def test_impossible_timeouts(self) -> None:
        """H-87: each operation refuses them with a failed Deferred, at a leader and at a follower; nothing stays."""
        before = self.lead.metrics()
        for node in (self.lead, self.follower):
            for name, operation in OPERATIONS.items():
                for timeout in IMPOSSIBLE:
                    with self.subTest(f"{name}, {timeout!r}"):
                        error = self.failureResultOf(operation(node, timeout), ValueError).value
                        self.assertIn(repr(timeout), str(error))
        self.cluster.run(1.0)
        self.assertEqual(self.lead.metrics().last, before.last)
        for node in self.cluster.nodes.values():
            metrics = node.metrics()
            self.assertEqual((metrics.stopped, metrics.pending_proposals, metrics.pending_reads), (False, 0, 0))

    def test_longest_and_shortest(self) -> None:
        for node in (self.lead, self.follower):
            for timeout in (86_400, 86_400.0, 1, None):
                self.cluster.result(node.propose(["set", "key", 1], timeout=timeout))
                self.assertEqual(self.cluster.result(node.read_state(lambda m: m.state["key"], timeout)), 1)
            self.cluster.result(node.wait(lambda metrics: True, 1e-9))
        self.cluster.error(self.follower.wait(lambda metrics: False, 1e-9))
