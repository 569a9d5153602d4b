"""The parts of the simulator: time, executor, plans as files, and the search for smaller plans."""

import json
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from zlayer_consensus.storage import IExecutor
from zlayer_consensus.testing.simulation._executor import SimulatedExecutor
from zlayer_consensus.testing.simulation._plan import BUFFER_BYTES, Fault, Plan
from zlayer_consensus.testing.simulation._plan_file import PlanFileError, describe, dump_plan, load_plan
from zlayer_consensus.testing.simulation._shrink import shrink
from zlayer_consensus.testing.simulation._time import ProcessClock, Timeline


class TimelineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.timeline = Timeline()
        self.seen: list[tuple[float, str]] = []

    def see(self, what: str) -> None:
        self.seen.append((self.timeline.now, what))

    def test_clocks_and_timers_are_those_of_a_reactor(self) -> None:
        clock = ProcessClock(self.timeline)
        verifyObject(IReactorTime, clock)
        verifyObject(IDelayedCall, clock.callLater(1, self.see, "a"))

    def test_events_come_by_time_and_then_in_the_order_of_asking(self) -> None:
        for delay, what in ((2, "c"), (1, "a"), (1, "b")):
            self.timeline.later(delay, self.see, what)
        self.timeline.run(2)
        self.assertEqual(self.seen, [(1, "a"), (1, "b"), (2, "c")])

    def test_what_is_due_after_the_end_waits_for_the_next_run(self) -> None:
        self.timeline.later(3, self.see, "late")
        self.timeline.run(2)
        self.assertEqual((self.seen, self.timeline.now), ([], 2))
        self.timeline.run(3)
        self.assertEqual(self.seen, [(3, "late")])

    def test_a_run_ends_when_what_it_waits_for_holds(self) -> None:
        for second in range(1, 10):
            self.timeline.later(second, self.see, "tick")
        self.assertTrue(self.timeline.run(9, lambda: len(self.seen) == 3, every=0.5))
        self.assertEqual(len(self.seen), 3)
        self.assertFalse(self.timeline.run(9, lambda: False))

    def test_a_timer_is_cancelled_once(self) -> None:
        clock = ProcessClock(self.timeline)
        timer = clock.callLater(1, self.see, "never")
        timer.cancel()
        self.assertFalse(timer.active())
        self.assertRaises(AlreadyCancelled, timer.cancel)
        self.timeline.run(2)
        self.assertEqual(self.seen, [])

    def test_a_timer_that_was_called_cannot_be_moved(self) -> None:
        timer = ProcessClock(self.timeline).callLater(1, self.see, "now")
        self.timeline.run(1)
        self.assertRaises(AlreadyCalled, timer.cancel)
        self.assertRaises(AlreadyCalled, timer.reset, 1)

    def test_a_timer_moves_in_both_directions(self) -> None:
        clock = ProcessClock(self.timeline)
        clock.callLater(5, self.see, "sooner").reset(1)
        clock.callLater(1, self.see, "later").delay(2)
        self.timeline.run(10)
        self.assertEqual(self.seen, [(1, "sooner"), (3, "later")])

    def test_a_clock_that_drifts_calls_by_its_own_seconds(self) -> None:
        clock = ProcessClock(self.timeline, rate=2.0, start=100.0)
        timer = clock.callLater(4, self.see, "half")
        self.assertEqual(timer.getTime(), 104.0)
        self.timeline.run(3)
        self.assertEqual(self.seen, [(2.0, "half")])
        self.assertEqual(clock.seconds(), 106.0)

    def test_a_process_that_is_paused_does_everything_afterwards_in_order(self) -> None:
        clock = ProcessClock(self.timeline)
        for delay in (1, 2, 4):
            clock.callLater(delay, self.see, f"due {delay}")
        self.timeline.later(1.5, clock.enter, self.see, "request")
        clock.pause(3.0)
        clock.pause(2.0)
        self.timeline.run(5)
        self.assertEqual(self.seen, [(3, "due 1"), (3, "request"), (3, "due 2"), (4, "due 4")])

    def test_a_process_that_was_paused_may_meet_requests_before_it_looks_at_the_clock(self) -> None:
        clock = ProcessClock(self.timeline)
        for delay in (1, 2, 3.25, 4):
            clock.callLater(delay, self.see, f"due {delay}")
        self.timeline.later(2.5, clock.enter, self.see, "request")
        clock.pause(3.0, timers_late=0.5)
        self.timeline.run(5)
        self.assertEqual(self.seen, [(3, "request"), (3.5, "due 1"), (3.5, "due 2"), (3.5, "due 3.25"), (4, "due 4")])

    def test_nothing_happens_in_a_process_that_is_dead(self) -> None:
        clock = ProcessClock(self.timeline)
        before = clock.callLater(1, self.see, "timer")
        clock.dead = True
        clock.callLater(1, self.see, "another")
        clock.enter(self.see, "request")
        self.timeline.run(5)
        self.assertEqual(self.seen, [])
        self.assertFalse(before.active())

    def test_each_event_of_a_process_is_told_of_when_it_is_over(self) -> None:
        """The checker looks at a node then, after an exception too."""
        clock = ProcessClock(self.timeline)
        told: list[object] = []
        self.timeline.after = told.append
        inside: list[object] = []
        clock.callLater(1, lambda: inside.append(self.timeline.current))
        self.timeline.later(2, self.see, "the world's own")
        self.timeline.run(3)
        self.assertEqual((told, inside, self.timeline.current), ([clock], [clock], None))
        self.assertEqual(self.timeline.events, 2)


class ExecutorTests(SynchronousTestCase):
    def make(self, *, late: bool) -> tuple[Timeline, ProcessClock, SimulatedExecutor]:
        timeline = Timeline()
        clock = ProcessClock(timeline)
        return timeline, clock, SimulatedExecutor(clock, lambda: 1.0, lambda: late)

    def test_it_is_an_executor(self) -> None:
        verifyObject(IExecutor, self.make(late=False)[2])

    def test_calls_take_their_time_one_after_the_other(self) -> None:
        for late in (False, True):
            timeline, _, executor = self.make(late=late)
            ends: list[tuple[float, str]] = []

            def ended(found: str, timeline: Timeline = timeline, ends: list[tuple[float, str]] = ends) -> None:
                ends.append((timeline.now, found))

            for name in "ab":
                _ = executor.run(str.upper, name).addCallback(ended)
            timeline.run(5)
            self.assertEqual(ends, [(1.0, "A"), (2.0, "B")])

    def test_work_is_done_at_the_beginning_or_at_the_end_of_its_time(self) -> None:
        for late, early_work in ((False, ["work"]), (True, [])):
            timeline, _, executor = self.make(late=late)
            done: list[str] = []
            result = executor.run(done.append, "work")
            timeline.run(0.5)
            self.assertEqual(done, early_work)
            self.assertNoResult(result)

    def test_a_process_that_dies_hears_nothing(self) -> None:
        timeline, clock, executor = self.make(late=True)
        done: list[str] = []
        result = executor.run(done.append, "work")
        clock.dead = True
        timeline.run(5)
        self.assertEqual(done, [])
        self.assertNoResult(result)

    def test_an_exception_is_the_calls_own(self) -> None:
        timeline, _, executor = self.make(late=True)
        bad, good = executor.run(int, "x"), executor.run(int, "1")
        timeline.run(5)
        self.failureResultOf(bad, ValueError)
        self.assertEqual(self.successResultOf(good), 1)

    def test_it_stops_after_its_work(self) -> None:
        timeline, _, executor = self.make(late=True)
        self.successResultOf(executor.stop())
        result = executor.run(int, "1")
        stopped = executor.stop()
        self.assertNoResult(stopped)
        timeline.run(5)
        self.assertEqual(self.successResultOf(result), 1)
        self.successResultOf(stopped)


class PlanFileTests(SynchronousTestCase):
    def changed(self, change: Callable[[Any], object]) -> str:
        data = json.loads(dump_plan(Plan.draw(3)))
        change(data)
        return json.dumps(data)

    def test_every_plan_comes_back_as_it_was(self) -> None:
        for seed in range(100):
            plan = Plan.draw(seed)
            self.assertEqual(repr(load_plan(dump_plan(plan, reason="why"))), repr(plan))

    def test_a_setting_of_later_times_is_drawn_from_the_seed(self) -> None:
        def older(data: Any) -> None:
            del data["knobs"]["keys"], data["knobs"]["config"]["log_cache_bytes"]

        plan, drawn = load_plan(self.changed(older)), Plan.draw(3)
        self.assertEqual(plan.knobs.keys, drawn.knobs.keys)
        self.assertEqual(plan.knobs.config.log_cache_bytes, type(drawn.knobs.config)().log_cache_bytes)

    def test_snapshots_of_earlier_plans_are_gathered_as_they_were(self) -> None:
        seed = next(seed for seed in range(100) if Plan.draw(seed).knobs.buffer_bytes != BUFFER_BYTES)
        data = json.loads(dump_plan(Plan.draw(seed)))
        del data["knobs"]["buffer_bytes"]
        self.assertEqual(load_plan(json.dumps(data)).knobs.buffer_bytes, BUFFER_BYTES)

    def test_what_is_wrong_is_named(self) -> None:
        wrong: list[tuple[str, Callable[[Any], object]]] = [
            ("knobs.speed: there is no such setting", lambda data: data["knobs"].update(speed=1)),
            ("knobs.config: must be an object", lambda data: data["knobs"].update(config=1)),
            ("rpc_timeout", lambda data: data["knobs"]["config"].update(rpc_timeout="long")),
            ("election_timeout_min_ms", lambda data: data["knobs"]["config"].update(election_timeout_min_ms=0)),
            ("kind", lambda data: data["faults"][0].update(kind=7)),
            ("format", lambda data: data.update(format=99)),
            ("seed", lambda data: data.pop("seed")),
        ]
        for text, change in wrong:
            error = self.assertRaises(PlanFileError, load_plan, self.changed(change))
            self.assertIn(text, str(error))
        self.assertIn("JSON", str(self.assertRaises(PlanFileError, load_plan, "{")))

    def test_a_description_names_every_fault(self) -> None:
        plan = Plan.draw(3)
        lines = describe(plan)
        for fault in plan.faults:
            self.assertTrue(any(fault.kind in line and f"{fault.at:.6f}" in line for line in lines), fault)


class ShrinkTests(SynchronousTestCase):
    def plan(self, faults: int) -> Plan:
        plan = Plan.draw(1)
        knobs = attrs.evolve(plan.knobs, loss=0.1, duplicate=0.3, clients=5, voters=5, duration=100.0)
        return Plan(1, knobs, tuple(Fault(float(at), "crash", at) for at in range(faults)))

    def test_what_matters_stays_and_all_else_goes(self) -> None:
        def fails(plan: Plan) -> bool:
            needed = {fault.seed for fault in plan.faults} >= {3, 11, 17}
            return needed and plan.knobs.duplicate > 0 and plan.knobs.voters >= 3 and plan.knobs.duration >= 20

        shrunk = shrink(self.plan(20), fails, lambda runs: runs >= 500)
        self.assertTrue(shrunk.complete)
        self.assertEqual([fault.seed for fault in shrunk.plan.faults], [3, 11, 17])
        knobs = shrunk.plan.knobs
        self.assertEqual((knobs.duplicate, knobs.voters, knobs.clients, knobs.loss), (0.3, 3, 1, 0.0))
        self.assertEqual(knobs.duration, 25.0)

    def test_what_came_after_the_failure_goes_at_once(self) -> None:
        tried: list[Plan] = []

        def fails(plan: Plan) -> bool:
            tried.append(plan)
            return {fault.seed for fault in plan.faults} >= {1, 3}

        shrunk = shrink(self.plan(1000), fails, lambda runs: runs >= 500, until=5.0)
        self.assertEqual([fault.seed for fault in shrunk.plan.faults], [1, 3])
        self.assertEqual(len(tried[0].faults), 6)
        self.assertLess(shrunk.runs, 60)

    def test_it_ends_when_enough_was_tried(self) -> None:
        shrunk = shrink(self.plan(20), lambda plan: len(plan.faults) >= 2, lambda runs: runs >= 3)
        self.assertEqual((shrunk.runs, shrunk.complete), (3, False))

    def test_no_run_is_made_twice_in_a_row_for_nothing(self) -> None:
        """A plan that cannot be made smaller comes back as it is."""
        plan = self.plan(2)
        shrunk = shrink(plan, lambda tried: tried == plan, lambda runs: runs >= 500)
        self.assertEqual((shrunk.plan, shrunk.complete), (plan, True))

    def test_what_needs_no_fault_at_all_is_found_first(self) -> None:
        tried: list[int] = []

        def fails(plan: Plan) -> bool:
            tried.append(len(plan.faults))
            return True

        self.assertEqual(shrink(self.plan(20), fails, lambda runs: runs >= 500).plan.faults, ())
        self.assertEqual(tried[0], 0)
