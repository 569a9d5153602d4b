"""Whole simulated runs: some seeds, what counts as which verdict, equal runs, and the command line."""

import gc
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.testing import simulate
from zlayer_consensus.testing.simulation import _run
from zlayer_consensus.testing.simulation._checker import Violation
from zlayer_consensus.testing.simulation._plan import Plan
from zlayer_consensus.testing.simulation._plan_file import dump_plan, load_plan
from zlayer_consensus.testing.simulation._pool import run_many
from zlayer_consensus.testing.simulation._report import Report
from zlayer_consensus.testing.simulation._run import Outcome, load_application, run_named, run_plan, run_seed
from zlayer_consensus.testing.simulation._time import ProcessClock
from zlayer_consensus.testing.simulation._trace import Line
from zlayer_consensus.testing.simulation._world import World

ROOT = Path(__file__).resolve().parent.parent

# Prints for each seed the check sum of the run and that of its trace.
DIGESTS = """
import sys, zlib
from zlayer_consensus.testing.simulation._plan import Plan
from zlayer_consensus.testing.simulation._run import run_plan
for seed in map(int, sys.argv[1:]):
    lines = []
    outcome = run_plan(Plan.draw(seed), None, lines.append, trace_disk=True)
    print(seed, outcome.digest, zlib.crc32("\\n".join(map(str, lines)).encode()))
"""


class SeedTests(SynchronousTestCase):
    def test_seeds(self) -> None:
        """The whole of it, ten times."""
        outcomes = [run_seed(seed) for seed in range(11, 21)]
        self.assertEqual([str(outcome) for outcome in outcomes if outcome.failed], [])
        self.assertGreaterEqual(sum(outcome.verdict == "passed" for outcome in outcomes), 6)
        counted = {name for outcome in outcomes for name in outcome.counts}
        told = {"election", "crash", "power loss", "lost write", "bit rot while running"}
        told |= {"snapshot taken", "snapshot received", "voter added"}
        self.assertEqual(told - counted, set())


class EqualRunTests(SynchronousTestCase):
    SEEDS = (2, 3, 5, 7)

    def digests(self, hash_seed: str, seeds: tuple[int, ...]) -> dict[str, str]:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", DIGESTS, *map(str, seeds)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return dict(line.split(" ", 1) for line in done.stdout.splitlines())

    def test_a_seed_runs_the_same_way_in_every_process(self) -> None:
        """Whatever the hashes of strings are, and whatever ran before in the same process."""
        one = self.digests("1", self.SEEDS)
        self.assertEqual(len(one), len(self.SEEDS))
        self.assertEqual(one, self.digests("77", self.SEEDS[::-1]))

    def test_nobody_who_looks_changes_a_run(self) -> None:
        plan = Plan.draw(2)
        lines: list[Line] = []
        watched = run_plan(plan, None, lines.append, trace_disk=True)
        self.assertEqual(run_plan(plan), watched)
        self.assertEqual({line.category for line in lines} - {"event", "log"}, {"message", "state", "disk"})

    def test_other_seeds_run_in_other_ways(self) -> None:
        self.assertEqual(len({run_seed(seed).digest for seed in (2, 3, 5)}), 3)

    def test_a_difference_in_one_fault_shows(self) -> None:
        plan = Plan.draw(2)
        self.assertNotEqual(run_plan(plan).digest, run_plan(plan.without(faults=plan.faults[1:])).digest)


class VerdictTests(SynchronousTestCase):
    def run_rigged(self, rig: Callable[[World], object], *, enough: bool = True) -> Outcome:
        """Run a world in which nothing happens but what ``rig`` lets happen."""

        class Rigged(World):
            def run(self) -> None:
                rig(self)
                self.timeline.run(10.0)

        self.patch(_run, "World", Rigged)
        self.patch(_run, "_shortage", lambda _world: "" if enough else "nothing was written")
        before = list(globalLogPublisher._observers)
        outcome = run_plan(Plan.draw(1))
        self.assertEqual(globalLogPublisher._observers, before)
        self.assertTrue(gc.isenabled())
        self.assertEqual(pickle.loads(pickle.dumps(outcome)), outcome)
        return outcome

    def inside(self, call: Callable[[], object]) -> Callable[[World], object]:
        """Let something happen in the life of a process, after a second."""
        return lambda world: ProcessClock(world.timeline).callLater(1.0, call)

    def test_a_run_in_which_all_is_well_passed(self) -> None:
        outcome = self.run_rigged(self.inside(lambda: None))
        self.assertEqual((outcome.verdict, outcome.failed, outcome.at, outcome.events), ("passed", False, 10.0, 1))

    def test_an_interrupt_ends_it_whoever_is_at_work(self) -> None:
        """A Deferred would take the exception for its own."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        after: list[int] = []

        def rig(world: World) -> None:
            inside = ProcessClock(world.timeline)
            inside.callLater(1.0, lambda: succeed(signal.SIGINT).addCallback(signal.raise_signal))
            inside.callLater(2.0, after.append, 1)

        self.assertRaises(KeyboardInterrupt, self.run_rigged, rig)
        self.assertEqual(after, [])
        self.assertIs(signal.getsignal(signal.SIGINT), signal.default_int_handler)

    def test_a_run_in_which_too_little_happened_did_not_pass(self) -> None:
        outcome = self.run_rigged(self.inside(lambda: None), enough=False)
        self.assertEqual((outcome.verdict, outcome.failed), ("vacuous", False))

    def test_a_violation_is_one_of_safety(self) -> None:
        def violate() -> None:
            raise Violation("one vote", "node 3 votes twice")

        outcome = self.run_rigged(self.inside(violate))
        self.assertEqual((outcome.verdict, outcome.invariant, outcome.at), ("safety", "one vote", 1.0))
        self.assertEqual(str(outcome), "seed 1: safety: one vote: node 3 votes twice")

    def test_a_violation_counts_although_its_exception_was_swallowed(self) -> None:
        def rig(world: World) -> None:
            self.inside(lambda: world.checker.violated("log matching", "other bytes"))(world)

        self.assertEqual(self.run_rigged(rig).invariant, "log matching")

    def test_a_cluster_without_rest_is_one_of_liveness(self) -> None:
        def violate() -> None:
            raise Violation("liveness", "no leader")

        self.assertEqual(self.run_rigged(self.inside(violate)).verdict, "liveness")

    def test_an_exception_is_a_crash(self) -> None:
        outcome = self.run_rigged(self.inside(lambda: int("x")))
        self.assertEqual((outcome.verdict, outcome.invariant), ("crash", "ValueError"))
        self.assertIn("Traceback", outcome.details)

    def test_a_failure_that_is_only_logged_is_a_crash(self) -> None:
        def log() -> None:
            Logger().failure("It went wrong", Failure(KeyError("x")))

        outcome = self.run_rigged(self.inside(log))
        self.assertEqual((outcome.verdict, outcome.invariant), ("crash", "KeyError"))
        self.assertIn("It went wrong", outcome.text)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_line_is_not(self) -> None:
        """A node that stops says why; whether it may is judged elsewhere."""
        self.assertEqual(self.run_rigged(self.inside(lambda: Logger().critical("The disk is full"))).verdict, "passed")

    def test_a_failure_that_nobody_handles_is_a_crash(self) -> None:
        def forget() -> None:
            _ = fail(KeyError("x"))

        outcome = self.run_rigged(self.inside(forget))
        self.assertEqual((outcome.verdict, outcome.invariant), ("crash", "KeyError"))

    def test_a_failure_in_a_cycle_is_found_at_the_end(self) -> None:
        """No collector runs meanwhile, so that the run does not depend on when it would."""

        def make() -> None:
            lost: Deferred[Any] = fail(KeyError("x"))
            lost.myself = lost  # type: ignore[attr-defined]  # a cycle

        outcome = self.run_rigged(self.inside(make))
        self.assertEqual((outcome.verdict, outcome.invariant), ("crash", "unhandled"))
        self.assertIn("KeyError", outcome.details)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_process_that_is_dead_may_say_what_it_likes(self) -> None:
        def rig(world: World) -> None:
            clock = ProcessClock(world.timeline)

            def die() -> None:
                clock.dead = True
                Logger().failure("It went wrong", Failure(KeyError("x")))

            clock.callLater(1.0, die)

        self.assertEqual(self.run_rigged(rig).verdict, "passed")


def outcome(seed: int, verdict: str, invariant: str = "") -> Outcome:
    return Outcome(seed=seed, verdict=verdict, invariant=invariant, text="what", at=1.0, events=10, counts={"crash": 2})


class CommandLineTests(SynchronousTestCase):
    def invoke(self, *arguments: str) -> Result:
        return CliRunner().invoke(simulate.main, arguments)

    def with_outcomes(self, *outcomes: Outcome) -> None:
        """Let these come of the seeds."""

        def fake(_seeds: Any, _run: Any, _jobs: int, stop: Callable[[], bool]) -> Iterator[Outcome]:
            for each in outcomes:
                if stop():
                    return
                yield each

        self.patch(simulate, "run_many", fake)
        self.patch(simulate, "run_plan", lambda plan, _application: outcome(plan.seed, "passed"))

    def test_the_exit_code_is_that_of_the_worst(self) -> None:
        cases = [
            (0, ["passed", "passed", "passed", "vacuous"]),
            (13, ["passed", "vacuous"]),
            (11, ["passed", "vacuous", "liveness"]),
            (12, ["passed", "liveness", "crash"]),
            (10, ["crash", "safety", "liveness"]),
        ]
        for code, verdicts in cases:
            self.with_outcomes(*(outcome(seed, verdict, "x") for seed, verdict in enumerate(verdicts)))
            result = self.invoke("--seeds", "0..9")
            self.assertEqual(result.exit_code, code, (verdicts, result.output))

    def test_wrong_usage_is_told(self) -> None:
        wrong = [
            ["--seeds", "5..1"],
            ["--seeds", "x"],
            ["--seeds", "1", "--seed", "1"],
            ["--trace"],
            ["--jobs", "0"],
            ["--minutes", "0"],
            ["--plan", "/there/is/no/such/file"],
            ["--seed", "1", "--application", "zlayer_consensus.no_such_module:x"],
            ["--seed", "1", "--application", "json:JSONDecoder"],
            ["--seed", "1", "--application", "json"],
        ]
        for arguments in wrong:
            result = self.invoke(*arguments)
            self.assertEqual(result.exit_code, 2, (arguments, result.output, result.exception))

    def test_an_interrupt_has_an_exit_code_of_its_own(self) -> None:
        def interrupted(*_: Any, **__: Any) -> Outcome:
            raise KeyboardInterrupt

        self.patch(simulate, "run_plan", interrupted)
        self.assertEqual(self.invoke("--seed", "1", "--trace").exit_code, 130)

    def test_each_failure_has_a_line_and_its_command(self) -> None:
        self.with_outcomes(outcome(1, "passed"), outcome(2, "safety", "one vote"), outcome(3, "safety", "one vote"))
        result = self.invoke("--seeds", "1..3", "--no-shrink")
        self.assertIn("seed 2: safety: one vote: what\nseed 3: safety: one vote: what\n", result.output)
        self.assertIn("safety: one vote: 2 of the seeds: 2, 3", result.output)
        self.assertIn("python -m zlayer_consensus.testing.simulate --seed 2 --trace", result.output)

    def test_the_first_failure_may_be_the_last(self) -> None:
        self.with_outcomes(outcome(1, "passed"), outcome(2, "crash", "KeyError"), outcome(3, "safety", "x"))
        result = self.invoke("--seeds", "1..3", "--first", "--no-shrink")
        self.assertEqual(result.exit_code, 12)
        self.assertNotIn("seed 3", result.output)

    def test_what_does_not_come_again_is_not_shrunk(self) -> None:
        self.with_outcomes(outcome(2, "safety", "one vote"))
        self.assertIn("does not come again", self.invoke("--seeds", "2").output)

    def test_a_failure_is_shrunk_and_saved(self) -> None:
        def fake(plan: Plan, _application: Any) -> Outcome:
            needed = any(fault == Plan.draw(4).faults[0] for fault in plan.faults)
            return outcome(plan.seed, "safety", "one vote") if needed else outcome(plan.seed, "crash", "another")

        self.with_outcomes(outcome(4, "safety", "one vote"))
        self.patch(simulate, "run_plan", fake)
        path = self.mktemp()
        result = self.invoke("--seeds", "4", "--save-plan", path)
        self.assertEqual(result.exit_code, 10)
        saved = Path(path).read_text(encoding="utf-8")
        self.assertEqual(load_plan(saved).faults, Plan.draw(4).faults[:1])
        self.assertIn("seed 4: safety: one vote", json.loads(saved)["reason"])

    def test_a_plan_that_cannot_be_saved_does_not_hide_what_failed(self) -> None:
        self.with_outcomes(outcome(4, "safety", "one vote"))
        result = self.invoke("--seeds", "4", "--no-shrink", "--save-plan", "/there/is/none/plan.json")
        self.assertEqual(result.exit_code, 10)
        self.assertIn("The plan was not saved: /there/is/none/plan.json: No such file", result.output)

    def test_a_summary_for_programs_is_all_there_is_on_the_output(self) -> None:
        self.with_outcomes(outcome(1, "passed"), outcome(2, "vacuous"), outcome(3, "liveness", "liveness"))
        data = json.loads(self.invoke("--seeds", "1..3", "--json", "--no-shrink").stdout)
        self.assertEqual((data["seeds"], data["vacuous"], data["exit_code"]), (3, [2], 11))
        self.assertEqual(data["counts"], {"crash": {"total": 6, "seeds": 3}})
        self.assertEqual([failure["seed"] for failure in data["failures"]], [3])

    def test_the_command_for_a_saved_plan_names_the_application(self) -> None:
        path = str(Path(self.mktemp()))
        application = "zlayer_consensus.testing.simulation:Application"
        result = self.invoke("--seed", "4", "--application", application, "--save-plan", path)
        self.assertIn(f"--plan {path} --application {application} --trace", result.output)

    def test_a_seed_is_replayed_with_its_trace(self) -> None:
        result = self.invoke("--seed", "2", "--trace-disk")
        self.assertEqual(result.exit_code, 0, result.output[-500:])
        for part in (
            "plan of seed 2",
            "is leader in term",
            "AppendRequest term=",
            "commit ",
            "sync ",
            "seed 2: passed",
        ):
            self.assertIn(part, result.output)
        self.assertNotIn("\x1b", result.output)

    def test_a_plan_is_run_from_its_file(self) -> None:
        path = Path(self.mktemp())
        path.write_text(dump_plan(Plan.draw(2)), encoding="utf-8")
        result = self.invoke("--plan", str(path), "--json")
        self.assertEqual(json.loads(result.stdout)["digest"], run_seed(2).digest)
        path.write_text("{}", encoding="utf-8")
        self.assertEqual(self.invoke("--plan", str(path)).exit_code, 2)


def die(seed: int) -> Outcome:
    """Kill the process at an odd seed."""
    if seed % 2:
        os._exit(7)
    return outcome(seed, "passed")


def hang(seed: int) -> Outcome:
    """Never end at seed 1."""
    while seed == 1:
        pass
    return outcome(seed, "passed")


class PoolTests(SynchronousTestCase):
    def test_many_processes_find_what_one_finds(self) -> None:
        def run(jobs: int) -> list[Outcome]:
            outcomes = run_many(iter(range(1, 5)), run_application, jobs, lambda: False)
            return sorted(outcomes, key=lambda each: each.seed)

        self.assertEqual(run(2), run(1))

    def test_a_process_that_dies_is_told_with_its_seed(self) -> None:
        outcomes = sorted(run_many(iter(range(4)), die, 2, lambda: False), key=lambda each: each.seed)
        self.assertEqual([each.verdict for each in outcomes], ["passed", "crash", "passed", "crash"])
        self.assertIn("exit code 7", outcomes[1].text)

    def test_a_process_that_hangs_is_ended(self) -> None:
        outcomes = sorted(run_many(iter(range(4)), hang, 2, lambda: False, patience=3.0), key=lambda each: each.seed)
        self.assertEqual([each.verdict for each in outcomes], ["passed", "crash", "passed", "passed"])
        self.assertIn("longer than 3 s", outcomes[1].text)

    def test_no_seed_begins_after_the_end(self) -> None:
        seen: list[Outcome] = []
        seen.extend(run_many(iter(range(100)), die_never, 1, lambda: len(seen) >= 3))
        self.assertEqual([each.seed for each in seen], [0, 1, 2])


def die_never(seed: int) -> Outcome:
    return outcome(seed, "passed")


def run_application(seed: int) -> Outcome:
    return run_named("", seed)


class ReportTests(SynchronousTestCase):
    def test_it_adds_up(self) -> None:
        report = Report("a.b:c")
        for each in (outcome(1, "passed"), outcome(5, "safety", "x"), outcome(3, "safety", "x")):
            report.add(each)
        self.assertEqual((report.runs, report.events, report.simulated), (3, 30, 3.0))
        self.assertEqual([[each.seed for each in group] for group in report.groups()], [[3, 5]])
        self.assertIn("--application a.b:c", report.replay(report.failures[0]))

    def test_the_application_is_found_by_its_name(self) -> None:
        module = "zlayer_consensus.testing.simulation._application"
        self.assertEqual(type(load_application(f"{module}:Application")), type(load_application("")))
