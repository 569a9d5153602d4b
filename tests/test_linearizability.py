"""The verdicts of the linearizability checker, against a checker that tries every order."""

from __future__ import annotations

import random
import re
import textwrap
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.linearizability_kit import brute_force, generate, proves, setting
from zlayer_consensus.kv import DeleteResult, KeyValue, PutResult, RangeResult
from zlayer_consensus.testing.linearizability import (
    CasRegister,
    History,
    HistoryError,
    Model,
    Operation,
    Outcome,
    StringRegister,
    VersionedRegister,
    check,
)

KINDS = ("register", "string", "versioned")
INFINITY = float("inf")


def without_index(operations: list[Operation]) -> list[Operation]:
    for each in operations:
        each.index = None
    return operations


def distort(rng: random.Random, operations: list[Operation]) -> None:
    """Let one client have seen something else: what another one saw, a number off by one, or another time."""
    completed = [each for each in operations if not each.unknown]
    each = rng.choice(completed)
    others = [other for other in completed if other.function == each.function]
    if rng.random() < 0.7:
        each.result = rng.choice(others).result
        if isinstance(each.result, PutResult) and rng.random() < 0.5:
            each.result = PutResult(each.result.revision + rng.choice([-1, 1]), each.result.create_revision, 1)
    else:
        shift = rng.choice([-4, 4])
        each.call_time += shift
        each.return_time += shift


class BruteForceTests(SynchronousTestCase):
    def compare(self, kind: str, rounds: int, lost: float) -> None:
        verdicts = {True: 0, False: 0}
        for seed in range(rounds):
            rng = random.Random(f"{kind} {lost} {seed}")
            do, choose, model = setting(kind, values=rng.choice([0, 2]))
            history = generate(
                rng, do, choose, operations=rng.randrange(4, 8), processes=rng.randrange(2, 4), lost=lost
            )
            operations = history.operations()
            if not any(not each.unknown for each in operations):
                continue
            for _ in range(rng.randrange(6)):
                distort(rng, operations)
            if rng.random() < 0.7:
                without_index(operations)
            expected = brute_force(operations, kind)
            verdict = check(operations, model)
            self.assertEqual(verdict.linearizable, expected, f"seed {seed}: {operations}\n{verdict.text()}")
            self.assertIsNot(verdict.outcome, Outcome.UNKNOWN)
            verdicts[expected] += 1
            for key, order in verdict.orders.items():
                its = [each for each in operations if each.key == key]
                self.assertTrue(proves(order, its, model), f"seed {seed}")
        self.assertGreater(min(verdicts.values()), rounds // 10, verdicts)

    def test_registers(self) -> None:
        self.compare("register", 600, 0.0)

    def test_registers_with_unknown_outcomes(self) -> None:
        """H-87: what timed out may have happened, may happen later, or never."""
        self.compare("register", 600, 0.15)

    def test_strings(self) -> None:
        self.compare("string", 400, 0.0)

    def test_strings_with_unknown_outcomes(self) -> None:
        self.compare("string", 400, 0.15)

    def test_versioned_keys(self) -> None:
        self.compare("versioned", 600, 0.0)

    def test_versioned_keys_with_unknown_outcomes(self) -> None:
        self.compare("versioned", 600, 0.15)


class GoodHistoryTests(SynchronousTestCase):
    """No false alarms, and a proof for every pass."""

    def test_generated_histories_pass_by_their_log(self) -> None:
        """The witness suffices where every outcome is known."""
        for kind in KINDS:
            for seed in range(20):
                do, choose, model = setting(kind)
                history = generate(random.Random(seed), do, choose, operations=150, processes=6, keys=4)
                verdict = check(history, model)
                self.assertIs(verdict.outcome, Outcome.LINEARIZABLE, verdict.text())
                self.assertEqual((len(verdict.witnessed), verdict.steps), (verdict.keys, 0))

    def test_generated_histories_pass_by_search(self) -> None:
        for kind in KINDS:
            for seed in range(20):
                do, choose, model = setting(kind)
                history = generate(random.Random(seed), do, choose, operations=100, processes=4, keys=3, lost=0.03)
                operations = without_index(history.operations())
                verdict = check(operations, model)
                self.assertIs(verdict.outcome, Outcome.LINEARIZABLE, f"{kind} {seed} {verdict.text()}")
                for key, order in verdict.orders.items():
                    self.assertTrue(proves(order, [each for each in operations if each.key == key], model))

    def test_a_wrong_index_changes_no_verdict(self) -> None:
        do, choose, model = setting("register")
        operations = generate(random.Random(7), do, choose, operations=40, processes=4).operations()
        for each in operations:
            each.index = 100 - (each.index or 0)
        verdict = check(operations, model)
        self.assertTrue(verdict.linearizable)
        self.assertEqual((verdict.witnessed, verdict.misled), ((), ("k0",)))

    def test_an_unknown_write_is_put_into_the_order_of_the_log(self) -> None:
        history = History()
        lost = history.invoke(1, "write", "x", 5, 1)
        history.unknown(lost)
        read = history.invoke(2, "read", "x", None, 2)
        history.ok(read, 5, 3, index=9)
        verdict = check(history, CasRegister())
        self.assertEqual(verdict.witnessed, ("x",))
        self.assertEqual([each.function for each in verdict.orders["x"]], ["write", "read"])


class ViolationTests(SynchronousTestCase):
    """Seeded violations in good histories: each is found, or proved to be harmless by another order."""

    def judge(self, operations: list[Operation], model: Model) -> bool:
        """Check with and without the log's witness; return whether the history is bad."""
        verdict = check(operations, model)
        self.assertIsNot(verdict.outcome, Outcome.UNKNOWN)
        for key, order in verdict.orders.items():
            self.assertTrue(proves(order, [each for each in operations if each.key == key], model))
        again = check(without_index(operations), model, minimize=False)
        self.assertIs(verdict.outcome, again.outcome)
        return not verdict.linearizable

    def seeded(self, kind: str, spoil: Any, rounds: int = 60) -> list[bool]:
        found = []
        for seed in range(rounds):
            rng = random.Random(seed)
            do, choose, model = setting(kind)
            operations = generate(rng, do, choose, operations=40, processes=3).operations()
            if spoil(rng, operations):
                found.append(self.judge(operations, model))
        self.assertGreater(len(found), rounds // 3)
        return found

    def test_stale_reads(self) -> None:
        """A read shows what an earlier one showed, after two changes that were over before it began."""

        def spoil(rng: random.Random, operations: list[Operation]) -> bool:
            reads = [each for each in operations if each.function in ("read", "get")]
            for read in reversed(reads):
                old = next((each for each in reads if each.return_time < read.call_time), None)
                # Absent is what a key may be again.
                if old is None or old.result in (None, read.result):
                    continue
                between = [
                    each
                    for each in operations
                    if each.function in ("write", "append", "put")
                    and each.call_time > old.return_time
                    and each.return_time < read.call_time
                ]
                if len(between) > 1:
                    read.result = old.result
                    return True
            return False

        self.assertNotIn(False, self.seeded("string", spoil))
        self.assertNotIn(False, self.seeded("versioned", spoil))
        self.assertNotIn(False, self.seeded("register", spoil))

    def test_lost_writes(self) -> None:
        """J-20 and its kin: an acknowledged change is not in what is read later."""

        def spoil(rng: random.Random, operations: list[Operation]) -> bool:
            for change in operations:
                later = [
                    each for each in operations if each.function == "get" and (change.argument or "-") in each.result
                ]
                puts = [each for each in operations if each.function == "put"]
                # No put can have wiped it out before it was read.
                if change.function != "append" or not any(
                    change.return_time < get.call_time
                    and all(put.return_time < change.call_time or put.call_time > get.return_time for put in puts)
                    for get in later
                ):
                    continue
                for each in later:
                    each.result = each.result.replace(change.argument, "")
                return True
            return False

        self.assertNotIn(False, self.seeded("string", spoil))

    def test_doubled_appends(self) -> None:
        """H-82: a retry was carried out a second time."""

        def spoil(rng: random.Random, operations: list[Operation]) -> bool:
            appends = [each for each in operations if each.function == "append"]
            for change in rng.sample(appends, len(appends)):
                seen = [each for each in operations if each.function == "get" and change.argument in each.result]
                for each in seen:
                    each.result = each.result.replace(change.argument, change.argument * 2)
                if seen:
                    return True
            return False

        self.assertNotIn(False, self.seeded("string", spoil))

    def test_swaps_that_should_have_failed(self) -> None:
        """A compare-and-swap is done although the value was another one."""

        def spoil(rng: random.Random, operations: list[Operation]) -> bool:
            refused = [each for each in operations if each.function == "cas" and each.result is False]
            if refused:
                rng.choice(refused).result = True
            return bool(refused)

        found = self.seeded("register", spoil)
        # The rest had another order: `judge` has seen it.
        self.assertGreater(sum(found), len(found) * 2 // 3)


def versioned(*operations: tuple[float, float, str, Any, Any], key: Hashable = "x") -> list[Operation]:
    return [
        Operation(number, call, back, function, key, argument, result)
        for number, (call, back, function, argument, result) in enumerate(operations)
    ]


def shown(value: bytes, create: int, mod: int, version: int) -> KeyValue:
    return KeyValue(b"x", value, create, mod, version)


class VersionedTests(SynchronousTestCase):
    def assert_verdict(self, expected: bool, operations: list[Operation]) -> None:
        self.assertEqual(check(operations, VersionedRegister()).linearizable, expected)

    def test_the_first_read_settles_the_revision_of_an_unknown_put(self) -> None:
        lost = (0, INFINITY, "put", b"a", None)
        first = (1, 2, "get", None, shown(b"a", 5, 5, 1))
        self.assert_verdict(True, versioned(lost, first, (3, 4, "get", None, shown(b"a", 5, 5, 1))))
        self.assert_verdict(False, versioned(lost, first, (3, 4, "get", None, shown(b"a", 6, 6, 1))))

    def test_a_swap_settles_the_revision_of_an_unknown_put(self) -> None:
        lost = (0, INFINITY, "put", b"a", None)
        read = (3, 4, "get", None, shown(b"b", 5, 9, 2))
        for mod, expected in ((5, True), (6, False)):
            swap = (1, 2, "cas_revision", (mod, b"b"), PutResult(9, mod, 2))
            self.assert_verdict(expected, versioned(lost, swap, read))

    def test_a_refused_swap_tells_what_the_revision_is_not(self) -> None:
        lost = (0, INFINITY, "put", b"a", None)
        before = (1, 2, "get", None, shown(b"a", 7, 7, 1))
        for mod, expected in ((7, False), (6, True)):
            refused = (0, 0.5, "cas_revision", (mod, b"b"), False)
            forced = versioned(lost, (-2, -1, "get", None, None), refused, before)
            # Absent before the put: then the swap is refused anyway.
            self.assert_verdict(True, forced)
            late = (2.5, 2.6, "cas_revision", (mod, b"b"), False)
            self.assert_verdict(expected, versioned(lost, late, (3, 4, "get", None, shown(b"a", 7, 7, 1)), before))

    def test_a_refused_swap_tells_what_an_untold_revision_is_not(self) -> None:
        """The put is done, at a revision that no client knows until the read."""
        done = (0, 1, "put", b"a", None)
        refused = [(2 + n, 2.5 + n, "cas_revision", (mod, b"b"), False) for n, mod in enumerate((7, 1, 2))]
        for mod, expected in ((1, False), (2, False), (3, True), (6, True), (7, False), (8, True)):
            self.assert_verdict(expected, versioned(done, *refused, (9, 10, "get", None, shown(b"a", mod, mod, 1))))

    def test_what_a_revision_is_not_bounds_the_next(self) -> None:
        done, refused = (0, 1, "put", b"a", None), (2, 3, "cas_revision", (1, b"b"), False)
        for revision, expected in ((1, False), (2, False), (3, True)):
            self.assert_verdict(expected, versioned(done, refused, (4, 5, "delete", None, DeleteResult(revision, 1))))

    def test_changes_between_creation_and_now_had_revisions(self) -> None:
        done = [(n, n + 0.5, "put", b"a", None) for n in range(3)]
        for create, mod, expected in ((5, 7, True), (5, 6, False), (5, 5, False), (1, 3, True)):
            read = (9, 10, "get", None, shown(b"a", create, mod, 3))
            self.assert_verdict(expected, versioned(*done, read))
            put = (9, 10, "put", b"b", PutResult(mod + 1, create, 4))
            self.assert_verdict(expected, versioned(*done, put))
        self.assert_verdict(False, versioned(done[0], (9, 10, "get", None, shown(b"a", 5, 6, 1))))

    def test_revisions_grow_within_a_key(self) -> None:
        """Also over a deletion, of which the key itself keeps no trace."""
        put, gone = (0, 1, "put", b"a", PutResult(4, 4, 1)), (2, 3, "delete", None, DeleteResult(6, 1))
        self.assert_verdict(True, versioned(put, gone, (4, 5, "put", b"a", PutResult(7, 7, 1))))
        self.assert_verdict(False, versioned(put, gone, (4, 5, "put", b"a", PutResult(5, 5, 1))))

    def test_one_revision_belongs_to_one_change(self) -> None:
        one = versioned((0, 9, "put", b"a", PutResult(4, 4, 1)))
        other = versioned((0, 9, "put", b"b", PutResult(4, 4, 1)), key="y")
        verdict = check(one + other, VersionedRegister())
        self.assertIs(verdict.outcome, Outcome.NOT_LINEARIZABLE)
        self.assertIn("two changes have the revision 4", verdict.text())

    def test_revisions_grow_across_keys(self) -> None:
        """What began after a reply is not older than the reply: not a change, and not a read."""
        first = versioned((0, 1, "put", b"a", PutResult(9, 9, 1)))
        for late, expected in (
            ((2, 3, "put", b"b", PutResult(8, 8, 1)), False),
            ((2, 3, "put", b"b", PutResult(10, 10, 1)), True),
            ((0.5, 3, "put", b"b", PutResult(8, 8, 1)), True),
            ((2, 3, "get", None, RangeResult(8, ())), False),
            ((2, 3, "get", None, RangeResult(9, ())), True),
        ):
            verdict = check(first + versioned(late, key="y"), VersionedRegister())
            self.assertEqual(verdict.linearizable, expected, late)


class BudgetTests(SynchronousTestCase):
    def hard(self) -> list[Operation]:
        """Twelve appends at once, and then a read that only one order explains."""
        appends = [Operation(n, 0, 1, "append", "x", f"{n};") for n in range(12)]
        result = "".join(f"{n};" for n in reversed(range(12)))
        return [*appends, Operation(99, 2, 3, "get", "x", None, result)]

    def test_exhausted_is_unknown_and_no_pass(self) -> None:
        for limits in ({"budget": 1000}, {"max_states": 1000}):
            verdict = check(self.hard(), StringRegister(), **limits)  # type: ignore[arg-type]
            self.assertIs(verdict.outcome, Outcome.UNKNOWN)
            self.assertFalse(verdict.linearizable)
            self.assertEqual(verdict.unknown, ("x",))
            self.assertIn("budget", verdict.text())
            self.assertGreater(verdict.steps, 0)

    def test_a_bad_key_counts_more_than_an_unknown_one(self) -> None:
        bad = [Operation(200, 0, 1, "get", "y", None, "never put")]
        verdict = check(self.hard() + bad, StringRegister(), budget=1000)
        self.assertIs(verdict.outcome, Outcome.NOT_LINEARIZABLE)

    def test_equal_open_operations_cost_one_order(self) -> None:
        """Sixteen equal appends without an answer: their orders are not tried one by one."""
        lost = [Operation(n, n, INFINITY, "append", "x", "a") for n in range(16)]
        known = [Operation(100, 20, 21, "get", "x", None, "aaa"), Operation(101, 22, 23, "get", "x", None, "aa")]
        verdict = check([*lost, *known], StringRegister(), minimize=False)
        self.assertIs(verdict.outcome, Outcome.NOT_LINEARIZABLE)
        self.assertLess(verdict.steps, 500)

    def test_long_histories_are_cut(self) -> None:
        """Twenty thousand operations: where nothing is under way, the search begins anew."""
        do, choose, model = setting("register")
        operations = generate(random.Random(3), do, choose, operations=20_000, processes=3).operations()
        verdict = check(without_index(operations), model)
        self.assertTrue(verdict.linearizable)
        self.assertLess(verdict.steps, 200_000)


class RecorderTests(SynchronousTestCase):
    def test_a_process_does_one_thing_at_a_time(self) -> None:
        history = History()
        history.invoke(1, "write", "x", 1, 0)
        with self.assertRaisesRegex(HistoryError, "process 1 calls 'read' while"):
            history.invoke(1, "read", "x", None, 1)

    def test_a_process_ends_with_an_unknown_outcome(self) -> None:
        for function in ("write", "read"):
            history = History()
            history.unknown(history.invoke(1, function, "x", 1, 0))
            self.assertTrue(history.retired(1))
            with self.assertRaisesRegex(HistoryError, "process 1 had an operation of unknown outcome"):
                history.invoke(1, "write", "x", 2, 1)

    def test_an_operation_ends_once(self) -> None:
        history = History()
        handle = history.invoke(1, "write", "x", 1, 0)
        history.ok(handle, None, 1)
        for again in (
            lambda: history.ok(handle, None, 2),
            lambda: history.fail(handle),
            lambda: history.unknown(handle),
        ):
            self.assertRaises(HistoryError, again)

    def test_time_does_not_go_back(self) -> None:
        history = History()
        handle = history.invoke(1, "write", "x", 1, 5)
        for bad in (4, INFINITY, float("nan")):
            self.assertRaises(HistoryError, history.ok, handle, None, bad)
        history.ok(handle, None, 5)
        self.assertRaises(HistoryError, check, [Operation(1, 2, 1, "write", "x", 1)], CasRegister())

    def test_events_at_one_instant_keep_their_order(self) -> None:
        """A read that began after the reply of a write sees it, though the clock stood still."""
        history = History()
        history.ok(history.invoke(1, "write", "x", 1, 5), None, 5)
        history.ok(history.invoke(2, "read", "x", None, 5), None, 5)
        self.assertFalse(check(history, CasRegister()).linearizable)

    def test_failures_and_unknown_reads_say_nothing(self) -> None:
        history = History()
        history.fail(history.invoke(1, "write", "x", 1, 0))
        history.unknown(history.invoke(2, "read", "x", None, 1))
        history.invoke(3, "read", "x", None, 2)
        self.assertEqual((history.operations(), len(history)), ([], 0))

    def test_what_has_not_ended_is_unknown(self) -> None:
        history = History()
        history.invoke(1, "write", "x", 1, 0)
        history.ok(history.invoke(2, "read", "x", None, 1), 1, 2)
        self.assertTrue(check(history, CasRegister()).linearizable)


class CounterModel(Model):
    """A model of a user's own: nothing but the two things that it must define."""

    initial = 0

    def step(self, state: Any, operation: Operation) -> Hashable | None:
        if operation.function == "add":
            return int(state) + 1
        return state if state == operation.result else None


class OwnModelTests(SynchronousTestCase):
    def test_a_model_is_two_things(self) -> None:
        adds = [Operation(n, n, n + 1.5, "add", "c") for n in range(4)]
        for result, expected in ((4, True), (3, False)):
            verdict = check([*adds, Operation(9, 10, 11, "read", "c", None, result)], CounterModel())
            self.assertEqual(verdict.linearizable, expected)

    def test_a_model_refuses_functions_it_does_not_know(self) -> None:
        for model in (CasRegister(), StringRegister(), VersionedRegister()):
            with self.assertRaisesRegex(ValueError, "no function 'increment'"):
                check([Operation(1, 0, 1, "increment", "x")], model)


class SpeedTests(SynchronousTestCase):
    def test_a_simulated_run_takes_little_time(self) -> None:
        """With the witness, 300 operations take milliseconds; the bound is generous for a machine that is busy."""
        do, choose, _ = setting("versioned")
        history = generate(random.Random(1), do, choose, operations=300, processes=8, keys=5, lost=0.02)
        took = []
        for _ in range(5):
            began = time.process_time()
            verdict = check(history, VersionedRegister())
            took.append(time.process_time() - began)
            self.assertTrue(verdict.linearizable)
        self.assertLess(min(took), 0.2)


class DocumentationTests(SynchronousTestCase):
    def test_the_examples_do_what_the_page_says(self) -> None:
        """Every block of Python of the page runs, one after the other; the counter is a model."""
        page = (Path(__file__).resolve().parent.parent / "docs" / "linearizability.rst").read_text(encoding="utf-8")
        names: dict[str, Any] = {}
        blocks = re.findall(r"\.\. code-block:: python\n\n((?:(?: {3}.*)?\n)+)", page)
        self.assertEqual(len(blocks), 3)
        for block in blocks:
            exec(textwrap.dedent(block), names)
        self.assertTrue(names["verdict"].linearizable)
        adds = [Operation(n, n, n + 0.5, "add", "c", 2) for n in range(3)]
        for result, expected in ((6, True), (4, False)):
            verdict = check([*adds, Operation(9, 9, 10, "read", "c", None, result)], names["Counter"]())
            self.assertEqual(verdict.linearizable, expected)
