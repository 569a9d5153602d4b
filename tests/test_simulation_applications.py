"""Applications under the simulator: right ones pass, and each kind of wrong one is caught and explained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from zlayer_consensus.errors import DomainError
from zlayer_consensus.kv import Delete, Put, encode
from zlayer_consensus.storage import ApplyContext, IStateMachine, IStateSink
from zlayer_consensus.testing.simulation import Application, Propose, Query, SimulationFailed, load_plan, simulate
from zlayer_consensus.testing.simulation import _store as store
from zlayer_consensus.testing.simulation._checker import Checker, Violation
from zlayer_consensus.testing.simulation._ledger import Ledger, WatchedMachine

ROOT = Path(__file__).resolve().parent.parent


@implementer(IStateSink)
class Sink:
    def __init__(self, machine: Totals) -> None:
        self.machine = machine
        self.pieces: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        self.pieces.append(chunk)

    def finish(self) -> None:
        self.machine.load(json.loads(b"".join(self.pieces)))


@implementer(IStateMachine)
class Totals:
    """Adds numbers up, by name and in all."""

    node: Any = None

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.sum = 0

    def apply(self, command: list[Any], context: ApplyContext) -> Any:
        name, number = command
        if number % 17 == 0:
            raise DomainError("unlucky", f"{number} divides by 17")
        self.totals[name] = self.totals.get(name, 0) + number
        self.sum += number
        return [self.totals[name], self.sum]

    def snapshot(self) -> Iterator[bytes]:
        return iter([json.dumps([self.totals, self.sum]).encode()])

    def restore(self) -> IStateSink:
        return Sink(self)

    def load(self, state: list[Any]) -> None:
        self.totals, self.sum = state


class RandomTotals(Totals):
    random = Random(1)

    def apply(self, command: list[Any], context: ApplyContext) -> Any:
        return [*super().apply(command, context), self.random.random()]


class TimedTotals(Totals):
    def apply(self, command: list[Any], context: ApplyContext) -> Any:
        return [*super().apply(command, context), time.perf_counter_ns()]


class AddressedTotals(Totals):
    """Sorts by where the objects lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.objects = [object() for _ in range(30)]

    def apply(self, command: list[Any], context: ApplyContext) -> Any:
        super().apply(command, context)
        return id(self.objects[context.index % 30]) % 1_000_003


class ForgetfulTotals(Totals):
    def load(self, state: list[Any]) -> None:
        self.totals = state[0]


class SecretlyForgetfulTotals(ForgetfulTotals):
    """Forgets what no result shows."""

    def apply(self, command: list[Any], context: ApplyContext) -> Any:
        return super().apply(command, context)[0]


class LateTotals(Totals):
    """Looks at the state only when the snapshot is taken away, piece by piece."""

    def snapshot(self) -> Iterator[bytes]:
        yield b"["
        yield json.dumps(self.totals).encode()
        yield b","
        yield json.dumps(self.sum).encode()
        yield b"]"


class WaitingTotals(Totals):
    """Waits for ever, and would wait again when it is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = Deferred.fromCoroutine(self.wait())

    async def wait(self) -> None:
        try:
            await Deferred()
        finally:
            await Deferred()


class DyingTotals(Totals):
    """Raises where nobody can catch it."""

    def __del__(self) -> None:
        raise ZeroDivisionError("in the end")


class RepeatingTotals(Totals):
    """Proposes as a consequence of a command (J-40)."""

    def apply(self, command: list[Any], context: ApplyContext) -> Any:
        if self.node is not None and command[1] % 5 == 0:
            node = self.node
            node._runtime.clock.callLater(0, lambda: node.propose(["again", 1]).addErrback(lambda _: None))
        return super().apply(command, context)


def add(random: Random, client: int) -> list[Any]:
    return [random.choice("abc"), 17 * random.randint(1, 9) if random.random() < 0.1 else random.getrandbits(40)]


def everything(machine: Totals) -> tuple[dict[str, int], int]:
    return dict(machine.totals), machine.sum


def introduce(machine: Any, node: Any) -> None:
    machine.node = node


class ApplicationTests(SynchronousTestCase):
    SEEDS = range(1, 9)

    def failure(self, machine: type[Totals], **application: Any) -> SimulationFailed:
        whole = Application(machine, commands=add, **application)
        failed: SimulationFailed = self.assertRaises(
            SimulationFailed, simulate, whole, seeds=self.SEEDS, shrink_seconds=2.0
        )
        return failed

    def invariant(self, machine: type[Totals], **application: Any) -> str:
        outcome = self.failure(machine, **application).outcome
        assert outcome is not None
        return outcome.invariant

    def test_a_right_one_passes(self) -> None:
        report = simulate(Application(Totals, commands=add, read=everything), seeds=self.SEEDS)
        self.assertEqual(report.verdicts["passed"] + report.verdicts["vacuous"], len(self.SEEDS))
        self.assertGreaterEqual(report.verdicts["passed"], 5)

    def test_chance_is_caught(self) -> None:
        """H-80: random numbers."""
        self.assertEqual(self.invariant(RandomTotals), "determinism")

    def test_a_clock_of_its_own_is_caught(self) -> None:
        """H-80: time."""
        self.assertEqual(self.invariant(TimedTotals), "determinism")

    def test_addresses_in_memory_are_caught(self) -> None:
        """H-80: the order of objects."""
        self.assertEqual(self.invariant(AddressedTotals), "determinism")

    def test_the_command_is_named(self) -> None:
        outcome = self.failure(RandomTotals).outcome
        assert outcome is not None
        self.assertRegex(outcome.text, r"entry \d+, \['[abc]', \d+\]: .* the result .* had ")

    def test_a_snapshot_that_forgets_is_caught(self) -> None:
        self.assertIn(self.invariant(ForgetfulTotals), ("determinism", "snapshot"))

    def test_a_snapshot_that_forgets_what_only_reads_show_is_caught(self) -> None:
        self.assertIn(self.invariant(SecretlyForgetfulTotals, read=everything), ("reads", "snapshot"))

    def test_a_snapshot_that_shows_later_changes_is_caught(self) -> None:
        self.assertIn(self.invariant(LateTotals), ("determinism", "snapshot"))

    def test_what_is_read_may_be_the_state_itself(self) -> None:
        whole = Application(Totals, commands=add, read=lambda machine: [machine.totals])
        self.assertEqual(simulate(whole, seeds=self.SEEDS).failures, [])

    def test_what_waits_in_a_process_that_dies_is_cut_off_in_silence(self) -> None:
        told: list[Any] = []
        self.patch(sys, "unraisablehook", told.append)
        simulate(Application(WaitingTotals, commands=add), seeds=range(11, 17))
        self.assertEqual(told, [])

    def test_what_is_raised_where_nobody_can_catch_it_is_a_crash(self) -> None:
        outcome = self.failure(DyingTotals).outcome
        assert outcome is not None
        self.assertEqual((outcome.verdict, outcome.invariant), ("crash", "unhandled"))
        self.assertIn("ZeroDivisionError: in the end", outcome.details)

    def test_a_machine_that_proposes_is_caught(self) -> None:
        """J-40."""
        self.assertEqual(self.invariant(RepeatingTotals, attach=introduce), "nothing from nowhere")

    def test_the_failure_explains_itself(self) -> None:
        path = Path(self.mktemp())
        whole = Application(RepeatingTotals, commands=add, attach=introduce)
        failed = self.assertRaises(
            SimulationFailed, simulate, whole, seeds=self.SEEDS, shrink_seconds=2.0, save_plan=path
        )
        assert failed.outcome is not None
        for part in (str(failed.outcome), "plan of seed", "The end of its trace", f"seeds=[{failed.outcome.seed}]"):
            self.assertIn(part, str(failed))
        plan = load_plan(path.read_text(encoding="utf-8"))
        self.assertEqual(plan, failed.plan)
        again = self.assertRaises(SimulationFailed, simulate, whole, plan=plan, shrink_seconds=0.0)
        assert again.outcome is not None
        self.assertEqual(again.outcome.invariant, failed.outcome.invariant)

    def test_where_nothing_happens_nothing_is_proved(self) -> None:
        """Vacuous runs are no success."""
        idle = Application(Totals, commands=lambda *_: Query(everything))
        failed = self.assertRaises(SimulationFailed, simulate, idle, seeds=range(1, 4))
        self.assertIn("too little happened", str(failed))

    def test_clients_need_commands(self) -> None:
        self.assertRaises(TypeError, Application, Totals)


class LedgerTests(SynchronousTestCase):
    """What is told to clients, against what was done."""

    def setUp(self) -> None:
        self.checker = Checker()
        self.application = Application(Totals, commands=add)
        self.ledger = Ledger(self.application, self.checker)
        self.machine = self.ledger.watched(Totals(), 1)
        self.time_ms = 0

    def raw(self, *command: Any) -> bytes:
        return self.application.types.encode_request(list(command))

    def do(self, index: int, *command: Any, machine: WatchedMachine | None = None) -> Any:
        return (machine or self.machine).apply(list(command), ApplyContext(index, 1))

    def assert_violated(self, invariant: str, function: Any, *arguments: Any) -> None:
        violation = self.assertRaises(Violation, function, *arguments)
        self.assertEqual(violation.invariant, invariant)
        self.assertIs(self.checker.violation, violation)

    def test_machine_is_one(self) -> None:
        self.assertTrue(verifyObject(IStateMachine, self.machine))

    def test_what_is_true_passes(self) -> None:
        self.ledger.proposed(self.raw("a", 5))
        result = self.do(3, "a", 5)
        self.assertEqual(self.ledger.acknowledged(self.raw("a", 5), 2, 3, result), 3)
        self.ledger.has_read(3, 3, everything, ({"a": 5}, 5))
        self.ledger.check(3)

    def test_a_command_from_nowhere(self) -> None:
        self.assert_violated("nothing from nowhere", self.do, 3, "a", 5)

    def test_a_command_that_is_done_twice(self) -> None:
        """J-42, J-43."""
        self.ledger.proposed(self.raw("a", 5))
        self.do(3, "a", 5)
        self.assert_violated("exactly once", self.do, 4, "a", 5)

    def test_a_command_that_is_refused_and_done(self) -> None:
        """J-44: before or after the refusal."""
        self.ledger.proposed(self.raw("a", 5))
        self.ledger.refused(self.raw("a", 5))
        self.assert_violated("definite failures", self.do, 3, "a", 5)

    def test_a_command_that_is_done_and_refused(self) -> None:
        self.ledger.proposed(self.raw("a", 5))
        self.do(3, "a", 5)
        self.assert_violated("definite failures", self.ledger.refused, self.raw("a", 5))

    def test_the_answer_of_another_command(self) -> None:
        """J-41."""
        for number in (5, 6):
            self.ledger.proposed(self.raw("a", number))
        self.do(3, "a", 5)
        self.do(4, "a", 6)
        self.assert_violated("answers", self.ledger.acknowledged, self.raw("a", 5), 0, 4, [11, 11])

    def test_an_answer_that_is_not_true(self) -> None:
        self.ledger.proposed(self.raw("a", 5))
        self.do(3, "a", 5)
        self.assert_violated("answers", self.ledger.acknowledged, self.raw("a", 5), 0, 3, [6, 6])

    def test_a_domain_error_is_an_answer(self) -> None:
        self.ledger.proposed(self.raw("a", 17))
        error = self.assertRaises(DomainError, self.do, 3, "a", 17)
        self.assertEqual(self.ledger.acknowledged(self.raw("a", 17), 0, None, error), 3)
        self.assert_violated("answers", self.ledger.acknowledged, self.raw("a", 17), 0, None, DomainError("other"))

    def test_a_command_before_what_was_known(self) -> None:
        self.ledger.proposed(self.raw("a", 5))
        result = self.do(3, "a", 5)
        self.assert_violated("real time", self.ledger.acknowledged, self.raw("a", 5), 3, 3, result)

    def test_a_stale_read(self) -> None:
        self.assert_violated("real time", self.ledger.has_read, 3, 2, everything, ({}, 0))

    def test_a_read_of_what_never_was(self) -> None:
        self.ledger.has_read(0, 2, everything, ({"a": 1}, 1))
        self.assert_violated("reads", self.ledger.check, 2)

    def test_what_was_acknowledged_is_gone(self) -> None:
        self.ledger.has_read(0, 5, everything, ({}, 0))
        self.assert_violated("acknowledged is durable", self.ledger.check, 4)

    def test_replicas_with_different_results(self) -> None:
        """H-80."""
        self.ledger.proposed(self.raw("a", 5))
        self.do(3, "a", 5)
        other = Totals()
        other.sum = 1
        self.assert_violated("determinism", lambda: self.do(3, "a", 5, machine=self.ledger.watched(other, 2)))

    def test_proposals_that_overtake_each_other(self) -> None:
        """H-88: at one node they keep their order, at two they have none."""
        self.ledger.replies += [("one", 1, 10, "a"), ("two", 2, 8, "b"), ("one", 3, 11, "c")]
        self.ledger.check(0)
        self.ledger.replies.append(("one", 4, 9, "d"))
        self.assert_violated("proposal order", self.ledger.check, 0)


class StoreTests(SynchronousTestCase):
    """The store with which the simulator runs by default."""

    def test_append_and_tag(self) -> None:
        machine = store.AppendingStore()
        commands = [
            store.encode_append(b"k", b"1"),
            store.encode_append(b"k", b"2"),
            store.encode_tagged(b"tag", store.encode_append(b"k", b"3")),
            encode(Put(b"j", b"x")),
            store.encode_tagged(b"tag", encode(Delete(b"j"))),
        ]
        for index, command in enumerate(commands, 1):
            machine.apply(command, ApplyContext(index, 0))
        found = machine.get(b"k")
        assert found is not None
        self.assertEqual((found.value, found.version), (b"123", 3))
        self.assertIsNone(machine.get(b"j"))

    def test_clients_do_everything_and_no_command_twice(self) -> None:
        actions, random = store.actions(3), Random(1)
        made = [actions(random, client) for client in (1, 2) for _ in range(400)]
        requests = [action.request for action in made if isinstance(action, Propose)]
        self.assertEqual(len(requests), len(set(requests)))
        names = {"append", "cas", "delete", "get", "get by log", "invalid", "put", "put several", "range"}
        self.assertEqual({action.name for action in made}, names)


FIXTURE_TEST = """
from tests.test_simulation_applications import RepeatingTotals, Totals, add, everything, introduce

def test_right(consensus_simulation):
    consensus_simulation(Totals, commands=add, read=everything, seeds=range(1, 4))

def test_wrong(consensus_simulation):
    consensus_simulation(RepeatingTotals, commands=add, attach=introduce, seeds=range(1, 4), shrink_seconds=1)
"""


class FixtureTests(SynchronousTestCase):
    def test_fixture(self) -> None:
        """The right machine passes; the wrong one fails with all that is needed to find out why."""
        path = Path(self.mktemp()).with_suffix(".py").absolute()
        path.write_text(FIXTURE_TEST, encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(path.parent)]
        command += ["-c", os.devnull, "-p", "zlayer_consensus.testing.pytest_plugin", str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("1 failed, 1 passed", done.stdout)
        for part in ("nothing from nowhere", "plan of seed", "seeds=[1]", "plan.json"):
            self.assertIn(part, done.stdout)
