"""Elections, proposals and reads of whole nodes."""

from __future__ import annotations

from .node_cluster import NodeTestCase


class ProposeTests(NodeTestCase):
    def test_result_of_apply_comes_back(self) -> None:
        """A proposal at the leader is applied everywhere and answered with what apply returned."""
        self.assertIsNone(self.cluster.result(self.lead.propose(["set", "a", 1])))
        self.assertEqual(self.cluster.result(self.lead.propose(["set", "a", 2])), 1)
        self.cluster.settle()
        self.assertEqual(self.cluster.states(), [{"a": 2}] * 3)
