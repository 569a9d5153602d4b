"""Waiting for a state of a node."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.errors import DeadlineExceeded
from zlayer_consensus.node import Metric
from zlayer_consensus.node._deadlines import Deadlines
from zlayer_consensus.raft import LogId

from .node_cluster import NodeTestCase


class WaitTests(NodeTestCase):
    def test_indexes(self) -> None:
        index = self.lead.metrics().applied + 1
        node = self.follower
        waiting = [
            self.lead.wait.log_index(index, timeout=5.0),
            self.lead.wait.log_index_at_least(index, timeout=5.0),
            node.wait.applied_index(index, timeout=5.0),
            node.wait.applied_index_at_least(index, timeout=5.0),
        ]
        self.cluster.run(1.0)
        for each in waiting:
            self.assertNoResult(each)
        self.cluster.result(self.lead.propose(["time"]))
        for each in waiting:
            self.assertGreaterEqual(self.cluster.result(each).last.index, index)

    def test_leader_term_role_and_vote(self) -> None:
        node = self.follower
        term = node.metrics().term + 1
        waiting = [
            node.wait.term(term),
            node.wait.current_leader(node.node_id),
            node.wait.state("leader"),
            node.wait.vote(term, node.node_id),
        ]
        self.cluster.result(self.lead.transfer_leadership(node.node_id))
        for each in waiting:
            self.assertEqual(self.cluster.result(each).term, term)
        self.cluster.result(self.lead.wait.current_leader(timeout=5.0))

    def test_voters_snapshot_and_purge(self) -> None:
        self.cluster.result(self.lead.wait.voter_ids({1, 2, 3}, timeout=1.0))
        index = self.lead.metrics().applied
        waiting = [self.lead.wait.snapshot(index), self.lead.wait.purged(index)]
        self.cluster.result(self.lead.trigger("snapshot"))
        self.cluster.result(self.lead.trigger("purge"))
        for each in waiting:
            self.cluster.result(each)

    def test_a_metric_at_least_and_exactly(self) -> None:
        node = self.follower
        before = self.lead.metrics()
        index, term = before.applied + 1, before.term
        waiting = {
            "at least": node.wait.ge(Metric.APPLIED_INDEX, index, timeout=5.0),
            "exactly": node.wait.eq("last_log_index", index, timeout=5.0),
            "by name": node.wait.ge("applied", LogId(term, index)),
            "snapshot": node.wait.ge(Metric.SNAPSHOT, LogId(term, index)),
            "purged": node.wait.ge(Metric.PURGED, index),
            "term": node.wait.eq(Metric.TERM, term + 1),
            "vote": node.wait.eq(Metric.VOTE, (term + 1, node.node_id)),
        }
        self.cluster.run(0.5)
        for each in waiting.values():
            self.assertNoResult(each)
        self.cluster.result(self.lead.propose(["time"]))
        for name in ("at least", "exactly", "by name"):
            self.assertEqual(self.cluster.result(waiting.pop(name)).last.index, index)
        self.cluster.result(node.trigger("snapshot"))
        self.cluster.result(node.trigger("purge"))
        for name in ("snapshot", "purged"):
            self.cluster.result(waiting.pop(name))
        self.cluster.result(self.lead.transfer_leadership(node.node_id))
        for each in waiting.values():
            self.assertEqual(self.cluster.result(each).term, term + 1)

    def test_a_metric_that_never_comes(self) -> None:
        """J-47: the error names what was waited for."""
        error = self.cluster.error(self.lead.wait.eq(Metric.APPLIED_INDEX, 10**6, 0.5), DeadlineExceeded)
        self.assertEqual(error.operation, "waiting for applied_index to be 1000000")
        error = self.cluster.error(self.lead.wait.ge("snapshot", LogId(9, 9), 0.5), DeadlineExceeded)
        self.assertEqual(error.operation, "waiting for snapshot to reach 9-9")

    def test_impossible_metrics(self) -> None:
        """Refused at the call, with a failed Deferred."""
        for metric, value in (
            ("height", 1),
            (Metric.TERM, "1"),
            (Metric.TERM, True),
            (Metric.TERM, LogId(1, 1)),
            (Metric.VOTE, 1),
            (Metric.APPLIED, 1),
            (Metric.SNAPSHOT, None),
        ):
            for wait in (self.lead.wait.ge, self.lead.wait.eq):
                with self.subTest(f"{metric} {value}"):
                    self.failureResultOf(wait(metric, value), ValueError)

    def test_what_holds_already(self) -> None:
        self.successResultOf(self.lead.wait(lambda metrics: metrics.role == "leader"))

    def test_time_is_over(self) -> None:
        """J-47: the error names what was waited for."""
        error = self.cluster.error(self.lead.wait(lambda m: False, 0.5, "rain"), DeadlineExceeded, seconds=0.6)
        self.assertEqual(error.operation, "waiting for rain")

    def test_broken_predicates_are_the_callers(self) -> None:
        self.failureResultOf(self.lead.wait(lambda m: bool(1 / 0)), ZeroDivisionError)
        calls: list[Any] = []

        def fails_later(_metrics: Any) -> bool:
            calls.append(None)
            return bool(len(calls) > 1 and 1 / 0)

        waiting = self.lead.wait(fails_later)
        self.cluster.result(self.lead.propose(["time"]))
        self.failureResultOf(waiting, ZeroDivisionError)

    def test_cancelled(self) -> None:
        waiting = self.lead.wait(lambda m: False, 5.0)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.cluster.result(self.lead.propose(["time"]))


class _Item(Deferred[Any]):
    deadline = 0.0

    def expire(self) -> None:
        self.callback("expired")


class DeadlineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock)

    def item(self, at: float, usual: bool) -> _Item:
        item = _Item()
        item.deadline = at
        self.deadlines.add(item, usual)
        return item

    def test_each_in_its_time_with_one_timer(self) -> None:
        usual = [self.item(at, True) for at in (1.0, 2.0, 2.0)]
        odd = [self.item(at, False) for at in (3.0, 0.5, 1.5)]
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        for step, expired in (
            (0.5, {4}),
            (0.5, {0, 4}),
            (0.5, {0, 4, 5}),
            (0.5, {0, 1, 2, 4, 5}),
            (1.0, set(range(6))),
        ):
            self.clock.advance(step)
            self.assertEqual({n for n, item in enumerate(usual + odd) if item.called}, expired)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_is_done_is_forgotten(self) -> None:
        """Memory does not grow with what was done before its deadline."""
        for usual in (True, False):
            for _ in range(3000):
                self.item(10.0, usual).callback(None)
        self.assertLess(len(self.deadlines._usual), 10)
        self.assertLess(len(self.deadlines._odd), 600)

    def test_stop(self) -> None:
        item = self.item(1.0, True)
        self.deadlines.stop()
        self.clock.advance(2.0)
        _ = self.item(3.0, True)
        self.assertEqual((item.called, self.clock.getDelayedCalls()), (False, []))
