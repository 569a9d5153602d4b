"""The probe of the event loop: on a clock that a test moves, and on the real reactor."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from zlayer_consensus.node._metrics import LoopMetrics
from zlayer_consensus.node._probe import LoopProbe

from .node_cluster import NodeCluster


class ProbeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.probe = LoopProbe(self.clock, self.clock.seconds, None, 0.5)
        self.probe.start()

    def metrics(self) -> LoopMetrics:
        found = self.probe.metrics()
        assert found is not None
        return found

    def test_a_loop_that_turns(self) -> None:
        self.clock.pump([0.25] * 8)
        self.assertEqual(self.metrics(), LoopMetrics(0.5, 0.0, 0.0, 0))

    def test_delays(self) -> None:
        """The longest one stays, and all above 50 ms are counted."""
        for seconds in (0.53125, 0.75, 1.5, 0.5625):
            self.clock.advance(seconds)
        self.assertEqual(self.metrics(), LoopMetrics(0.5, 1.0, 1.0, 3))

    def test_the_last_minute(self) -> None:
        self.clock.advance(2.5)
        self.clock.advance(0.625)
        self.clock.pump([0.5] * 100)
        self.assertEqual(self.metrics().longest_recent, 2.0)
        self.clock.pump([0.5] * 30)
        self.assertEqual((self.metrics().longest_recent, self.metrics().longest), (0.0, 2.0))
        self.clock.advance(0.75)
        self.assertEqual(self.metrics().longest_recent, 0.25)

    def test_a_clock_that_is_ahead_of_the_reactors(self) -> None:
        """The call may come too soon by the other clock; that is no delay."""
        probe = LoopProbe(self.clock, lambda: self.clock.seconds() / 2, None, 0.5)
        probe.start()
        self.clock.pump([0.5] * 4)
        self.assertEqual(probe.metrics(), LoopMetrics(0.5, 0.0, 0.0, 0))
        probe.stop()

    def test_own_work(self) -> None:
        """What the loop's thread did itself, from one look to the next, however long that took."""
        spent = iter([7.0, 7.25, 7.75, 7.875])
        probe = LoopProbe(self.clock, self.clock.seconds, lambda: next(spent), 0.5)
        self.clock.advance(3.0)
        probe.start()
        for seconds in (0.5, 10.0, 0.5):
            self.clock.advance(seconds)
        self.assertEqual(probe.metrics(), LoopMetrics(0.5, 9.5, 9.5, 1, 0.5))
        probe.stop()

    def test_stop(self) -> None:
        self.clock.advance(1.0)
        self.probe.stop()
        self.probe.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.metrics().longest, 0.5)

    def test_off(self) -> None:
        """With an interval of 0 there is nothing, not even a timer."""
        clock = Clock()
        probe = LoopProbe(clock, clock.seconds, None, 0.0)
        probe.start()
        self.assertEqual(clock.getDelayedCalls(), [])
        self.assertIsNone(probe.metrics())

    def test_of_a_node(self) -> None:
        """Its settings and its clock are what the probe uses; that it leaves no timer, the cluster checks."""
        cluster = NodeCluster(self, loop_probe_interval_ms=10)
        lead = cluster.begin(1)
        cluster.clock.advance(0.25)
        loop: Any = lead.metrics().loop
        self.assertEqual(loop.interval, 0.01)
        self.assertGreaterEqual(loop.longest, 0.24)
        self.assertEqual(loop.stalls, 1)
        self.assertIsNone(NodeCluster(self).begin(1).metrics().loop)


class ReactorTests(TestCase):
    async def test_a_loop_that_is_held_up(self) -> None:
        """Whatever holds it up is seen, though it says nothing of itself."""
        from twisted.internet import reactor

        clock: Any = reactor
        probe = LoopProbe(clock, time.perf_counter, time.thread_time, 0.005)
        probe.start()
        self.addCleanup(probe.stop)
        end = time.perf_counter() + 0.08
        while time.perf_counter() < end:
            pass
        turned: Deferred[None] = Deferred()
        clock.callLater(0, clock.callLater, 0, turned.callback, None)
        await turned
        loop: Any = probe.metrics()
        self.assertGreaterEqual(loop.longest, 0.07)
        self.assertGreaterEqual(loop.stalls, 1)
        # A machine that is busy may let it have less of the time, but not none.
        self.assertGreater(loop.longest_work, 0.0)
