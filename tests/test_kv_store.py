"""The versioned store, against a model that keeps every state it ever had."""

import gc
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.errors import DomainError
from zlayer_consensus.kv import MAX_DELETED_KEYS, MAX_RANGE_KEYS, KeyValue, KeyValueMachine
from zlayer_consensus.kv._ordered import OrderedMap
from zlayer_consensus.kv._store import Store

ROOT = Path(__file__).resolve().parent.parent
PIECE_BYTES = 256 << 10


class Known(NamedTuple):
    """What the model knows of a key."""

    value: bytes
    create: int
    mod: int
    version: int


class Model:
    """Every state that the store had, by revision."""

    def __init__(self) -> None:
        self.states: dict[int, dict[bytes, Known]] = {1: {}}
        self.revision = 1

    @property
    def now(self) -> dict[bytes, Known]:
        return self.states[self.revision]

    def change(self, puts: dict[bytes, bytes], deleted: set[bytes]) -> None:
        state = {key: known for key, known in self.now.items() if key not in deleted}
        revision = self.revision + 1
        for key, value in puts.items():
            old = self.now.get(key)
            state[key] = Known(value, old.create if old else revision, revision, old.version + 1 if old else 1)
        if puts or deleted & set(self.now):
            self.revision = revision
            self.states[revision] = state

    def range(self, revision: int, start: bytes, end: bytes | None) -> list[tuple[bytes, Known]]:
        state = self.states[revision]
        return [(key, state[key]) for key in sorted(state) if key >= start and (end is None or key < end)]


def value(machine: KeyValueMachine, key: bytes) -> bytes | None:
    found = machine.get(key)
    return None if found is None else found.value


def known(key: bytes, record: bytes) -> tuple[bytes, Known]:
    kv = KeyValue.of(key, record)
    return key, Known(kv.value, kv.create_revision, kv.mod_revision, kv.version)


def content(store: Store, revision: int = 0) -> dict[bytes, Known]:
    found: dict[bytes, Known] = {}
    start: bytes | None = b""
    while start is not None:
        pairs, start = store.page(start, None, 7, revision)
        found.update(known(*pair) for pair in pairs)
    return found


def digest(state: dict[bytes, Known]) -> bytes:
    """The digest by its definition, from nothing but the content."""
    total = 0
    for key, each in state.items():
        numbers = b"".join(n.to_bytes(8, "little") for n in (each.create, each.mod, each.version, 0))
        data = len(key).to_bytes(4, "little") + key + numbers + each.value
        total += int.from_bytes(hashlib.sha256(data).digest()[:16], "little")
    return (total % (1 << 128)).to_bytes(16, "little")


class Workload:
    """Random changes of few keys, applied to a store and a model alike."""

    def __init__(self, seed: int, store: Store) -> None:
        self.random = random.Random(seed)
        self.store = store
        self.model = Model()
        self.keys = [bytes([a]) * n for a in (0, 1, 97, 98, 254, 255) for n in (1, 2, 3)] + [
            b"k%d" % i for i in range(30)
        ]

    def value(self) -> bytes:
        return self.random.randbytes(self.random.choice((0, 1, 20, 200)))

    def step(self) -> None:
        store, model, draw = self.store, self.model, self.random
        puts = {draw.choice(self.keys): self.value() for _ in range(draw.choice((0, 1, 1, 3)))}
        deleted = {draw.choice(self.keys) for _ in range(draw.choice((0, 0, 1, 2)))} - set(puts)
        for key, value in puts.items():
            store.put(key, value)
        for key in deleted:
            store.delete(key)
        if draw.random() < 0.15:
            store.rollback()
            return
        if draw.random() < 0.1:
            start, end = sorted(draw.sample(self.keys, 2))
            covered = {key for key in model.now if start <= key < end} - set(puts)
            for key in sorted(covered):
                store.delete_range(key, key + b"\0")
            deleted |= covered
        store.commit()
        model.change(puts, deleted)


def restored(pieces: Iterator[bytes]) -> KeyValueMachine:
    machine = KeyValueMachine(history_changes=100)
    sink = machine.restore()
    for piece in pieces:
        sink.write(piece)
    sink.finish()
    return machine


class StoreTests(SynchronousTestCase):
    def check_now(self, work: Workload) -> None:
        store, model, draw = work.store, work.model, work.random
        self.assertEqual(store.revision, model.revision)
        self.assertEqual(len(store), len(model.now))
        self.assertEqual(store.digest(), digest(model.now))
        key = draw.choice(work.keys)
        record = store.get(key)
        self.assertEqual(known(key, record)[1] if record is not None else None, model.now.get(key))
        start, end = sorted(draw.sample(work.keys, 2))
        pairs, goes_on = store.page(start, end)
        self.assertEqual([known(*pair) for pair in pairs], model.range(model.revision, start, end))
        self.assertIsNone(goes_on)

    def check_past(self, work: Workload) -> None:
        store, model, draw = work.store, work.model, work.random
        revision = draw.randint(store.compacted, store.revision)
        self.assertEqual(content(store, revision), model.states[revision])
        start = draw.choice(work.keys)
        pairs, goes_on = store.page(start, None, 3, revision)
        expected = model.range(revision, start, None)
        self.assertEqual([known(*pair) for pair in pairs], expected[:3])
        if len(expected) > 3:
            self.assertEqual(goes_on, expected[3][0])
        record = store.get(start, revision)
        self.assertEqual(known(start, record)[1] if record is not None else None, model.states[revision].get(start))

    def test_random_changes(self) -> None:
        """Content, ranges, history and digest are those of the model, also after rollbacks."""
        for seed in range(8):
            work = Workload(seed, Store(history_changes=60, history_bytes=1 << 20))
            for _ in range(400):
                work.step()
                self.check_now(work)
                self.check_past(work)
            self.assertGreater(work.store.compacted, 1)

    def test_history_is_bounded_by_bytes(self) -> None:
        store = Store(history_changes=10_000, history_bytes=10_000)
        for number in range(300):
            store.put(b"key", b"%d" % number * 100)
            store.commit()
        self.assertLess(len(store.history), 60)
        self.assertEqual(store.compacted, store.revision - len(store.history))

    def test_history_is_bounded_by_count(self) -> None:
        store = Store(history_changes=10)
        for number in range(1000):
            store.put(b"%d" % (number % 17), b"")
            store.commit()
        self.assertLess(len(store.history), 200)

    def test_revisions_out_of_the_window(self) -> None:
        """A revision that was compacted, or is not there yet, has its own error and no data."""
        store = Store(history_changes=0, history_bytes=0)
        for value in (b"1", b"2", b"3"):
            store.put(b"key", value)
            store.commit()
        for revision, reason in ((2, "compacted"), (5, "future_revision")):
            error = self.assertRaises(DomainError, store.get, b"key", revision)
            self.assertEqual(error.reason, reason)
            error = self.assertRaises(DomainError, store.page, b"", None, 0, revision)
            self.assertEqual(error.reason, reason)
        self.assertIsNotNone(store.get(b"key", 4))

    def test_compaction(self) -> None:
        """What is left of the history is as it was, and the rest is as if it had been out of the window."""
        for seed in range(4):
            work = Workload(seed, Store())
            for step in range(300):
                work.step()
                if step % 40 == 20:
                    revision = work.random.randint(work.store.compacted, work.store.revision)
                    before = (work.store.revision, work.store.digest())
                    work.store.compact(revision)
                    self.assertEqual((revision, *before), (work.store.compacted, work.store.revision, before[1]))
                    self.assertFalse([event for event in work.store.history.all() if event[0] <= revision])
                self.check_now(work)
                self.check_past(work)
            store = work.store
            store.compact(store.revision)
            self.assertEqual((0, 0), (len(store.history), store.history._bytes))
            self.check_now(work)

    def test_compaction_out_of_the_window(self) -> None:
        store = Store()
        for value in (b"1", b"2", b"3"):
            store.put(b"key", value)
            store.commit()
        store.compact(3)
        for revision, reason in ((2, "compacted"), (5, "future_revision")):
            self.assertEqual(reason, self.assertRaises(DomainError, store.compact, revision).reason)
        store.compact(3)
        self.assertEqual(3, store.compacted)

    def test_events_for_a_watch(self) -> None:
        """From a past revision on, the events lead from its content to the present one, in order."""
        work = Workload(11, Store(history_changes=50))
        for _ in range(200):
            work.step()
        store, model = work.store, work.model
        for start in range(store.compacted + 1, store.revision + 2):
            state = {key: each.value for key, each in model.states[start - 1].items()}
            last = start
            for revision, key, before, after in store.history.since(start):
                self.assertGreaterEqual(revision, last)
                last = revision
                self.assertEqual(state.get(key), before and KeyValue.of(key, before).value)
                if after is None:
                    del state[key]
                else:
                    state[key] = KeyValue.of(key, after).value
            self.assertEqual(state, {key: each.value for key, each in model.now.items()})
        self.assertRaises(LookupError, store.history.since, store.compacted)

    def test_pages(self) -> None:
        """A page ends at the limit, at the bound of keys or at the bound of bytes, and says where it goes on."""
        store = Store()
        for number in range(MAX_RANGE_KEYS + 10):
            store.put(b"%06d" % number, bytes(100))
        store.commit()
        for limit in (0, MAX_RANGE_KEYS, 10 * MAX_RANGE_KEYS):
            pairs, goes_on = store.page(b"", None, limit)
            self.assertEqual((len(pairs), goes_on), (MAX_RANGE_KEYS, b"%06d" % MAX_RANGE_KEYS))
        pairs, goes_on = store.page(b"000005", b"000015", 10)
        self.assertEqual((len(pairs), goes_on), (10, None))
        pairs, goes_on = store.page(b"", None, max_bytes=1000)
        self.assertTrue(3 < len(pairs) < 10)
        self.assertEqual(goes_on, b"%06d" % len(pairs))
        pairs, goes_on = store.page(b"", None, max_bytes=1)
        self.assertEqual((len(pairs), goes_on), (1, b"000001"))

    def test_page_of_the_past_looks_at_a_bounded_number_of_keys(self) -> None:
        """Among keys that are all newer, a read of the past ends early and says where it goes on."""
        store = Store(history_changes=100_000)
        store.put(b"\xff", b"old")
        store.commit()
        for number in range(12_000):
            store.put(b"%06d" % number, b"")
        store.commit()
        pairs, goes_on = store.page(b"", None, revision=2)
        self.assertEqual(pairs, [])
        assert goes_on is not None
        pairs, goes_on = store.page(goes_on, None, revision=2)
        self.assertEqual(([key for key, _ in pairs], goes_on), ([b"\xff"], None))

    def test_deletion_of_too_many(self) -> None:
        """It is refused before it begins, because it would hold up the event loop."""
        store = Store()
        for number in range(MAX_DELETED_KEYS + 1):
            store.put(b"%06d" % number, b"")
        store.commit()
        before = store.digest()
        error = self.assertRaises(DomainError, store.delete_range, b"", None)
        self.assertEqual(error.reason, "too_many_keys")
        self.assertEqual((store.digest(), len(store)), (before, MAX_DELETED_KEYS + 1))
        self.assertEqual(store.delete_range(b"000001", None), MAX_DELETED_KEYS)

    def test_collector_has_nothing_to_visit(self) -> None:
        """However many keys there are, a full pass of the garbage collector does not look at them."""
        store = Store(history_changes=0, history_bytes=0)
        tracked = []
        for end in (1000, 20_000):
            for number in range(len(store), end):
                store.put(b"%d" % number, b"value")
                store.commit()
            gc.collect()
            tracked.append(len(gc.get_objects()))
            self.assertEqual(len(store), end)
        self.assertLess(tracked[1] - tracked[0], 100)

    def test_digest_knows_every_part(self) -> None:
        """Content that differs in a key, a value, a version or a revision has another digest."""

        def after(*changes: tuple[bytes, bytes | None]) -> bytes:
            store = Store()
            for key, value in changes:
                if value is None:
                    store.delete(key)
                else:
                    store.put(key, value)
                store.commit()
            return store.digest()

        digests = {
            after(),
            after((b"a", b"b")),
            after((b"ab", b"")),
            after((b"a", b"c")),
            after((b"a", b"c"), (b"a", b"b")),
            after((b"x", b""), (b"x", None), (b"a", b"b")),
        }
        self.assertEqual(len(digests), 6)
        self.assertEqual(after((b"a", b"b"), (b"a", None)), after())


class SnapshotTests(SynchronousTestCase):
    def test_snapshot_shows_one_moment(self) -> None:
        """Whatever is applied or rolled back while it is read, a snapshot is of the revision that it was asked for."""
        for seed in range(30):
            machine = KeyValueMachine(history_changes=100)
            work = Workload(seed, machine._store)
            for _ in range(100):
                work.step()
            model = work.model
            revision = model.revision
            compacted = work.store.compacted
            snapshot = machine.snapshot()
            pieces = []
            for piece in snapshot:
                pieces.append(piece)
                for _ in range(work.random.choice((0, 1, 40))):
                    work.step()
            copy = restored(iter(pieces))
            self.assertEqual((copy.revision, len(copy)), (revision, len(model.states[revision])))
            self.assertEqual(copy.digest(), digest(model.states[revision]))
            self.assertEqual(copy.compacted_revision, compacted)
            for past in range(compacted, revision + 1):
                self.assertEqual(content(copy._store, past), model.states[past])
            self.assertEqual(content(work.store), model.now)

    def test_changes_between_any_two_pieces(self) -> None:
        """Keys before, at and behind the place that the snapshot has reached change, appear and vanish."""
        machine = KeyValueMachine(history_changes=10)
        store = machine._store
        for number in range(3000):
            store.put(b"%05d" % (2 * number), b"old %d" % number)
            store.commit()
        expected, expected_digest = content(store), machine.digest()
        snapshot = machine.snapshot()
        draw = random.Random(5)
        pieces = []
        for piece in snapshot:
            pieces.append(piece)
            for _ in range(300):
                number = draw.randrange(6000)
                if draw.random() < 0.3:
                    store.delete(b"%05d" % number)
                else:
                    store.put(b"%05d" % number, b"new")
                store.commit()
        self.assertGreater(len(pieces), 6)
        copy = restored(iter(pieces))
        self.assertEqual(content(copy._store), expected)
        self.assertEqual(copy.digest(), expected_digest)

    def test_restored_store_goes_on_as_the_original(self) -> None:
        """After the same further changes, original and copy are equal, their history too."""
        machine = KeyValueMachine(history_changes=100)
        work = Workload(3, machine._store)
        for _ in range(300):
            work.step()
        copy = restored(machine.snapshot())
        draw = random.Random(4)
        for _ in range(300):
            key, value = draw.choice(work.keys), draw.randbytes(10)
            for store in (machine._store, copy._store):
                if value[0] < 100:
                    store.delete(key)
                else:
                    store.put(key, value)
                store.commit()
        self.assertEqual(copy.digest(), machine.digest())
        self.assertEqual(copy.compacted_revision, machine.compacted_revision)
        self.assertEqual(copy._store.history.all(), machine._store.history.all())
        for revision in range(copy.compacted_revision, copy.revision + 1):
            self.assertEqual(content(copy._store, revision), content(machine._store, revision))

    def test_pieces_are_small(self) -> None:
        """Values that are longer than a piece are cut, in the history too."""
        machine = KeyValueMachine()
        store = machine._store
        for size in (PIECE_BYTES - 100, PIECE_BYTES, 3 * PIECE_BYTES + 1, 1 << 20):
            for _ in range(2):
                store.put(b"%d" % size, random.Random(size).randbytes(size))
                store.commit()
        pieces = list(machine.snapshot())
        self.assertLessEqual(max(map(len, pieces)), PIECE_BYTES + 1)
        copy = restored(iter(pieces))
        self.assertEqual(content(copy._store), content(store))
        self.assertEqual(content(copy._store, 2), content(store, 2))

    def test_two_snapshots_at_once(self) -> None:
        machine = KeyValueMachine()
        store = machine._store
        copies = []
        for value in (b"1", b"2"):
            store.put(b"key", value)
            store.commit()
            copies.append((value, machine.snapshot()))
        store.put(b"key", b"3")
        store.commit()
        for value, pieces in copies:
            kv = restored(pieces).get(b"key")
            self.assertEqual(kv and kv.value, value)

    def test_closed_snapshot_costs_nothing(self) -> None:
        """Finished or given up, a snapshot is not told of changes any more."""
        machine = KeyValueMachine()
        machine._store.put(b"key", b"1")
        machine._store.commit()
        given_up = machine.snapshot()
        next(given_up)
        given_up.close()  # type: ignore[attr-defined]
        given_up.close()  # type: ignore[attr-defined]
        self.assertRaises(StopIteration, next, given_up)
        list(machine.snapshot())
        self.assertEqual(machine._store._observers, [])

    def test_old_state_stands_until_the_end(self) -> None:
        machine = KeyValueMachine()
        machine._store.put(b"key", b"old")
        machine._store.commit()
        other = KeyValueMachine()
        other._store.put(b"key", b"new")
        other._store.commit()
        sink = machine.restore()
        for piece in other.snapshot():
            sink.write(piece)
            self.assertEqual(value(machine, b"key"), b"old")
        sink.finish()
        self.assertEqual(value(machine, b"key"), b"new")


class DamagedSnapshotTests(SynchronousTestCase):
    def setUp(self) -> None:
        machine = KeyValueMachine()
        for number in range(20):
            machine._store.put(b"key %d" % (number % 7), b"value %d" % number)
            machine._store.commit()
        self.pieces = list(machine.snapshot())

    def load(self, pieces: list[bytes]) -> None:
        restored(iter(pieces))

    def test_whole(self) -> None:
        self.assertEqual([piece[:1] for piece in self.pieces], [b"H", b"K", b"V", b"E"])
        self.load(self.pieces)

    def test_piece_is_missing_or_in_the_wrong_place(self) -> None:
        for number in range(len(self.pieces)):
            self.assertRaises(ValueError, self.load, self.pieces[:number] + self.pieces[number + 1 :])
            self.assertRaises(
                ValueError, self.load, self.pieces[:number] + self.pieces[number:] + [self.pieces[number]]
            )
        self.assertRaises(ValueError, self.load, self.pieces[::-1])
        self.assertRaises(ValueError, self.load, [self.pieces[0], self.pieces[1], *self.pieces[1:]])

    def test_every_byte_of_the_keys_counts(self) -> None:
        """Whatever byte of keys and records is changed, the snapshot is refused."""
        block = self.pieces[1]
        for at in range(len(block)):
            damaged = block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :]
            self.assertRaises(ValueError, self.load, [self.pieces[0], damaged, *self.pieces[2:]])

    def test_cut_blocks(self) -> None:
        for number, block in enumerate(self.pieces):
            for size in range(1, len(block)):
                pieces = [*self.pieces[:number], block[:size], *self.pieces[number + 1 :]]
                self.assertRaises(ValueError, self.load, pieces)

    def test_format_of_a_later_version(self) -> None:
        header = self.pieces[0].replace(b"format\x01", b"format\x03")
        self.assertNotEqual(header, self.pieces[0])
        error = self.assertRaises(ValueError, self.load, [header, *self.pieces[1:]])
        self.assertIn("format 3", str(error))


class OrderedMapTests(SynchronousTestCase):
    def test_random_changes(self) -> None:
        """Thousands of keys, so that leaves split, shrink, merge and vanish."""
        for seed in range(3):
            draw = random.Random(seed)
            ordered = OrderedMap()
            expected: dict[bytes, bytes] = {}
            for target in (4500, 100, 3000, 0):
                while len(expected) != target:
                    key, value = b"%d" % draw.randrange(9000), draw.randbytes(2)
                    self.assertEqual(ordered.get(key), expected.get(key))
                    if key in expected and (len(expected) > target or draw.random() < 0.1):
                        ordered.remove(key)
                        del expected[key]
                    elif key in expected or len(expected) < target:
                        ordered.set(key, value)
                        expected[key] = value
                    self.assertEqual(len(ordered), len(expected))
                self.assertEqual(list(ordered.items()), sorted(expected.items()))
                for _ in range(50):
                    start, end = sorted((b"%d" % draw.randrange(9000), b"%d" % draw.randrange(9000)))
                    inside = sorted(item for item in expected.items() if start <= item[0] < end)
                    self.assertEqual(list(ordered.items(start, end)), inside)
                    behind = [item for item in inside if item[0] != start]
                    self.assertEqual(list(ordered.items(start, end, after=True)), behind)
            self.assertRaises(LookupError, ordered.remove, b"1")

    def test_keys_in_order(self) -> None:
        """As a snapshot brings them, upwards; and downwards, between the same bounds."""
        for keys in (range(5000), range(5000, 0, -1)):
            ordered = OrderedMap()
            for number in keys:
                ordered.set(b"%05d" % number, b"")
            self.assertEqual([key for key, _ in ordered.items()], [b"%05d" % number for number in sorted(keys)])


DETERMINISM = """
import random
from zlayer_consensus.kv import *
from zlayer_consensus.storage.interfaces import ApplyContext
machine = KeyValueMachine(history_changes=50)
draw = random.Random(9)
results = []
for index in range(1, 400):
    key, other = b"%d" % draw.randrange(90), b"%d" % draw.randrange(90)
    command = draw.choice((
        Put(key, draw.randbytes(5)), Delete(key), Delete(b"1", b"2"), Range(b"", TO_THE_END, 3),
        Txn(
            (Compare(key, Target.VERSION, Comparison.GREATER, 1),),
            (Put(key, b"x"), Range(b"", b"5")),
            (Delete(other),),
        ),
    ))
    results.append(machine.apply(encode(command), ApplyContext(index, 1000 + index)))
print(machine.digest().hex(), machine.revision, machine.compacted_revision)
print(results)
print([piece.hex() for piece in machine.snapshot()])
"""


class DeterminismTests(SynchronousTestCase):
    def test_hash_seed_does_not_matter(self) -> None:
        """H-80: the same log gives the same results, digest and snapshot under another PYTHONHASHSEED."""
        outputs = {
            subprocess.run(
                [sys.executable, "-c", DETERMINISM],
                env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                check=True,
                timeout=60,
            ).stdout
            for seed in ("0", "1", "4711")
        }
        self.assertEqual(len(outputs), 1)
        self.assertGreater(len(outputs.pop()), 10_000)
