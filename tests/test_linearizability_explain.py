"""Counterexamples are small, true, and readable."""

from __future__ import annotations

import html.parser
import random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.linearizability_kit import brute_force, generate, proves, setting
from tests.test_linearizability import INFINITY, distort, without_index
from zlayer_consensus.kv import PutResult
from zlayer_consensus.testing.linearizability import (
    CasRegister,
    Counterexample,
    History,
    Model,
    Operation,
    StringRegister,
    VersionedRegister,
    check,
    timeline,
)
from zlayer_consensus.testing.linearizability._closure import Closure, settle_unknown
from zlayer_consensus.testing.linearizability._minimize import _after, _until

KINDS = ("register", "string", "versioned")


def starting_state(kind: str, state: Any) -> Any:
    """Return the model's state as trying all orders takes it, which knows no hidden revisions."""
    if kind == "register":
        return state[0]
    if kind == "versioned":
        value, version, create, mod = state
        return (value, create, mod if version else 0, version, mod)
    return state


class SoundnessTests(SynchronousTestCase):
    """What the minimizer does to a linearizable history leaves it linearizable, so no failure is made."""

    def histories(self, kind: str, rounds: int = 150) -> Any:
        for seed in range(rounds):
            rng = random.Random(f"sound {kind} {seed}")
            do, choose, model = setting(kind, values=rng.choice([0, 2]))
            history = generate(rng, do, choose, operations=7, processes=3, lost=rng.choice([0.0, 0.15]))
            yield f"seed {seed}", rng, without_index(history.operations()), model

    def test_closed_parts_of_good_histories_are_good(self) -> None:
        for kind in KINDS:
            smaller = 0
            for seed, rng, operations, model in self.histories(kind):
                closure = Closure(operations, model)
                for _ in range(4):
                    some = [i for i in range(len(operations)) if rng.random() < 0.7]
                    part = [operations[i] for i in closure.largest(some)]
                    smaller += 0 < len(part) < len(operations)
                    self.assertTrue(brute_force(part, kind), f"{kind} {seed} {part}")
            self.assertGreater(smaller, 100)

    def test_beginnings_of_good_histories_are_good(self) -> None:
        for kind in KINDS:
            for seed, _, operations, model in self.histories(kind):
                for each in operations:
                    if not each.unknown:
                        part = _until(operations, each.return_time, model)
                        self.assertTrue(brute_force(part, kind), f"{kind} {seed} {part}")

    def test_later_starts_of_good_histories_are_good(self) -> None:
        for kind in KINDS:
            tried = 0
            for seed, _, operations, model in self.histories(kind):
                for start in operations:
                    state = None if start.unknown else model.leaves(start)
                    if state is not None:
                        part = _after(operations, start, model)
                        tried += len(part) > 1
                        good = brute_force(part, kind, starting_state(kind, state))
                        self.assertTrue(good, f"{kind} {seed} {start} {part}")
            self.assertGreater(tried, 200)

    def test_leaving_out_unknown_operations_changes_no_verdict(self) -> None:
        for kind in KINDS:
            settled, bounded = 0, 0
            for seed in range(200):
                rng = random.Random(seed)
                do, choose, model = setting(kind)
                operations = generate(rng, do, choose, operations=6, lost=0.3).operations()
                if all(each.unknown for each in operations):
                    continue
                distort(rng, operations)
                rest, bounds = settle_unknown(operations, model, model.initial)
                self.assertEqual(brute_force(rest, kind), brute_force(operations, kind), f"{kind} {seed}")
                settled += len(rest) < len(operations)
                bounded += len(bounds)
            self.assertGreater(settled, 5)
            self.assertGreater(bounded, 5)

    def test_a_write_that_a_read_may_have_seen_is_not_dropped(self) -> None:
        """Without it, every read would look like a failure."""
        write, read = Operation(1, 0, 1, "write", "x", 5), Operation(2, 2, 3, "read", "x", None, 5)
        closure = Closure([write, read], CasRegister())
        self.assertEqual(closure.largest([1]), [])
        self.assertEqual(closure.largest([0]), [0])


class MinimalTests(SynchronousTestCase):
    def spoiled(self, kind: str, size: int, rounds: int, whole: bool = False) -> Any:
        """Yield counterexamples to spoiled histories; by the rules across keys too if the ``whole`` model is asked."""
        for seed in range(rounds):
            rng = random.Random(f"minimal {kind} {seed}")
            do, choose, model = setting(kind)
            if whole and kind == "versioned":
                model = VersionedRegister()
            operations = generate(rng, do, choose, operations=size, processes=4, keys=2, lost=0.02).operations()
            distort(rng, operations)
            verdict = check(without_index(operations), model)
            if verdict.counterexample is not None:
                yield f"{kind} {seed}", operations, model, verdict.counterexample

    def test_counterexamples_are_true(self) -> None:
        """Trying all orders finds none, from the state that one operation shows."""
        for kind in KINDS:
            small = 0
            for name, operations, _, counterexample in self.spoiled(kind, 40, 40):
                whole = {id(each) for each in operations}
                if counterexample.start is not None:
                    self.assertIn(id(counterexample.start), whole)
                if len(counterexample.operations) <= 8:
                    small += 1
                    state = starting_state(kind, counterexample.state)
                    self.assertFalse(brute_force(counterexample.operations, kind, state), name)
            self.assertGreater(small, 5, kind)

    def test_counterexamples_are_small(self) -> None:
        for kind in KINDS:
            sizes = sorted(len(each.operations) for _, _, _, each in self.spoiled(kind, 120, 25, whole=True))
            self.assertLess(sizes[len(sizes) // 2], 5)
            self.assertLess(sizes[-1], 15)

    def test_the_longest_order_is_one(self) -> None:
        for kind in KINDS:
            for name, _, model, counterexample in self.spoiled(kind, 40, 15):
                order = counterexample.order
                self.assertTrue(proves(order, order, model, counterexample.state), name)
                self.assertTrue(counterexample.stuck, name)
                self.assertFalse({id(each) for each in order} & {id(each) for each in counterexample.stuck})

    def test_other_keys_and_later_operations_are_left_out(self) -> None:
        history = History()
        for number, (key, function, argument, result) in enumerate(
            [
                ("y", "write", 8, None),
                ("x", "write", 1, None),
                ("x", "write", 2, None),
                ("x", "read", None, 1),
                ("x", "read", None, 2),
                ("y", "read", None, 8),
            ]
        ):
            handle = history.invoke(number, function, key, argument, 2 * number)
            history.ok(handle, result, 2 * number + 1)
        counterexample = check(history, CasRegister()).counterexample
        assert counterexample is not None and counterexample.start is not None
        self.assertEqual([(each.key, each.call_time) for each in counterexample.operations], [("x", 6)])
        self.assertEqual(counterexample.start.argument, 2)
        self.assertEqual((counterexample.state, counterexample.total), ((2,), 4))

    def test_the_whole_key_if_asked_for(self) -> None:
        reads = [Operation(n, n, n + 0.5, "read", "x", None, n or None) for n in range(5)]
        counterexample = check(reads, CasRegister(), minimize=False).counterexample
        assert counterexample is not None
        self.assertEqual(list(counterexample.operations), reads)


class TextTests(SynchronousTestCase):
    def test_a_stale_read(self) -> None:
        operations = [
            Operation("alice", 0, 1, "write", "x", 1),
            Operation("bob", 2, 3, "write", "x", 2),
            Operation("carol", 2.5, INFINITY, "cas", "x", (2, 3)),
            Operation("alice", 4, 5, "read", "x", None, 3),
            Operation("bob", 6, 7, "read", "x", None, 2),
        ]
        self.assertEqual(
            check(operations, CasRegister()).text().splitlines(),
            [
                "not linearizable: key 'x': no order explains one operation of 5",
                "  at first: 3 (read → 3, process alice, 4 to 5)",
                "    process  called  returned  operation",
                "    bob      6       7         read → 2   (cannot be placed)",
            ],
        )

    def test_an_order_with_places(self) -> None:
        operations = [
            Operation(1, 0, 9, "append", "x", "a"),
            Operation(2, 0, 9, "append", "x", "b"),
            Operation(3, 10, 11, "get", "x", None, "ba"),
            Operation(4, 10, 11, "get", "x", None, "ab"),
        ]
        lines = check(operations, StringRegister(), minimize=False).text().splitlines()
        self.assertEqual(len(lines), 7)
        text = check(operations, StringRegister()).text()
        self.assertIn("cannot be placed", text)

    def test_every_model_describes_its_operations(self) -> None:
        for kind in KINDS:
            do, choose, model = setting(kind)
            operations = generate(random.Random(5), do, choose, operations=60, lost=0.1).operations()
            for each in operations:
                text = model.describe(each)
                self.assertIn(each.function, text)
                self.assertEqual("unknown" in text, each.unknown)
                self.assertNotIn("Result(", text)
                self.assertNotIn("KeyValue(", text)


class PageReader(html.parser.HTMLParser):
    """Collects what a page shows, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.classes: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "line", "rect", "path", "circle"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "class":
                self.classes += (value or "").split()
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect", "path", "circle"):
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


class TimelineTests(SynchronousTestCase):
    def read(self, page: str) -> PageReader:
        reader = PageReader()
        reader.feed(page)
        reader.close()
        self.assertEqual(reader.open, [])
        return reader

    def counterexample(self, operations: list[Operation], model: Model) -> Counterexample:
        counterexample = check(operations, model).counterexample
        assert counterexample is not None
        return counterexample

    def test_a_page_stands_alone(self) -> None:
        """No script, no address but the name of the SVG language: it works without a network."""
        operations = [Operation(1, 0, 1, "write", "x", 1), Operation(2, 2, 3, "read", "x", None, 2)]
        page = timeline([("a run", self.counterexample(operations, CasRegister()))])
        reader = self.read(page)
        self.assertEqual(reader.addresses, [])
        self.assertNotIn("<script", page)
        self.assertEqual(page.count("http"), page.count('xmlns="http://www.w3.org/2000/svg"'))
        self.assertNotIn("@import", page)
        self.assertNotIn("url(", page)

    def test_what_users_wrote_is_escaped(self) -> None:
        evil = "</title><script>alert('&')</script>"
        operations = [
            Operation(evil, 0, 1, "put", evil, evil),
            Operation(evil + "2", 2, 3, "get", evil, None, evil + "!"),
        ]
        page = timeline([(evil, self.counterexample(operations, StringRegister()))], evil)
        self.assertNotIn("<script", page)
        reader = self.read(page)
        self.assertIn(evil, reader.texts)

    def test_rows_bars_and_marks(self) -> None:
        """One row for each process, one bar for each operation; open, stuck and starting ones look different."""
        operations = [
            Operation(0, 0, 1, "write", "x", 0),
            Operation(1, 2, INFINITY, "write", "x", 1),
            Operation(2, 3, 4, "read", "x", None, 1),
            Operation(3, 5, 6, "write", "x", 2),
            Operation(2, 7, 8, "read", "x", None, 1),
        ]
        counterexample = self.counterexample(operations, CasRegister())
        reader = self.read(timeline([("run", counterexample)]))
        processes = {each.process for each in [*counterexample.operations, counterexample.start] if each is not None}
        self.assertEqual(reader.classes.count("who"), len(processes))
        self.assertEqual(reader.classes.count("bar"), len(counterexample.operations) + 1)
        self.assertEqual(reader.classes.count("start"), 1)
        # The bar, and the line of the table.
        self.assertEqual(reader.classes.count("bad"), 2 * len(counterexample.stuck))
        self.assertEqual(reader.classes.count("point"), len(counterexample.order))

    def test_open_operations_and_their_places(self) -> None:
        operations = [
            Operation(1, 0, INFINITY, "write", "x", 1),
            Operation(2, 1, 2, "read", "x", None, 1),
            Operation(3, 1, 9, "read", "x", None, None),
            Operation(4, 3, 4, "read", "x", None, None),
        ]
        counterexample = self.counterexample(operations, CasRegister())
        counterexample = Counterexample(
            model=CasRegister(),
            key="x",
            operations=tuple(operations),
            total=4,
            order=(operations[2], operations[0], operations[1]),
            stuck=(operations[3],),
        )
        reader = self.read(timeline([("run", counterexample)]))
        self.assertEqual((reader.classes.count("open"), reader.classes.count("point")), (1, 3))
        self.assertIn("write 1 → unknown", reader.texts)

    def test_a_contradiction_across_keys(self) -> None:
        one = Operation(1, 0, 1, "put", "x", b"a", PutResult(9, 9, 1))
        other = Operation(2, 2, 3, "put", "y", b"b", PutResult(8, 8, 1))
        counterexample = self.counterexample([one, other], VersionedRegister())
        self.assertEqual(counterexample.operations, (one, other))
        text = counterexample.text()
        self.assertIn("revision 8 came after a reply with revision 9", text)
        self.assertIn("'y': put b'b'", text)
        reader = self.read(timeline([("run", counterexample)]))
        self.assertTrue(any("'y': put b'b'" in each for each in reader.texts))
