"""The store with values on disk, when the disk is slow, full, broken or lies; and how long files live."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.kv_files_kit import (
    VALUES,
    ManualExecutor,
    apply,
    link,
    make_machine,
    opened,
    restore,
    take,
)
from zlayer_consensus.errors import (
    ConfigError,
    InvariantBroken,
    NodeStopped,
    StorageCorrupt,
    StorageFailed,
    StorageFull,
)
from zlayer_consensus.kv import (
    TO_THE_END,
    Compare,
    Comparison,
    Delete,
    FileKeyValueMachine,
    KeyValue,
    KeyValueMachine,
    Put,
    Range,
    Target,
    Txn,
    encode,
)
from zlayer_consensus.kv._commands import RECORD_HEAD
from zlayer_consensus.kv._value_files import MAGIC
from zlayer_consensus.storage import StateFile
from zlayer_consensus.testing import SimulatedFileSystem
from zlayer_consensus.testing._simfs import _SimulatedFile
from zlayer_consensus.testing.crashes import outcome

HEADER = struct.calcsize("<IIIQ")


def value(waiting: Deferred[KeyValue | None]) -> bytes:
    found = outcome(waiting)
    assert found is not None
    return found.value


class Case(SynchronousTestCase):
    """A machine with a disk that works when it is told to."""

    def setUp(self) -> None:
        self.files = SimulatedFileSystem()
        self.clock = Clock()
        self.writer, self.reader = ManualExecutor(), ManualExecutor()
        self.index = 0
        self.machine = self.begin()

    def begin(self, **settings: Any) -> FileKeyValueMachine:
        machine = make_machine(self.files, self.clock, self.writer, self.reader, **settings)
        waiting = machine.open()
        self.writer.settle()
        outcome(waiting)
        return machine

    def apply(self, *commands: Any) -> list[Any]:
        results = []
        for command in commands:
            self.index += 1
            results.append(apply(self.machine, command, self.index))
        return results

    def settle(self) -> None:
        while not (self.writer.idle and self.reader.idle):
            self.writer.settle()
            self.reader.settle()

    def settled(self, waiting: Deferred[Any]) -> Any:
        self.settle()
        return outcome(waiting)

    def names(self) -> list[str]:
        return self.files.list(VALUES)


class WriteBehindTests(Case):
    def test_values_are_there_before_they_are_written(self) -> None:
        """Apply waits for nothing, and a read is answered from memory until the disk has it, and then from there."""
        self.apply(Put(b"a", b"1"), Put(b"b", b"2"))
        self.assertEqual(self.names(), [])
        for _ in range(2):  # one write of the first value is under way, then done and not known to be
            found = self.successResultOf(self.machine.get(b"a"))
            assert found is not None
            self.assertEqual(found.value, b"1")
            self.writer.work() if self.writer.jobs else None
        self.settle()
        self.files.operations.clear()
        waiting = self.machine.get(b"a")
        self.assertNoResult(waiting)
        self.assertEqual(self.settled(waiting).value, b"1")
        self.assertEqual([operation for operation, _ in self.files.operations], ["read"])

    def test_what_waits_is_written_together(self) -> None:
        """While one write is under way, everything that comes joins the next."""
        self.apply(*(Put(b"k%d" % number, b"value") for number in range(50)))
        self.files.operations.clear()
        self.settle()
        writes = [path for operation, path in self.files.operations if operation == "write"]
        self.assertEqual(len(writes), 2)

    def test_reads_that_wait_are_done_together(self) -> None:
        self.apply(*(Put(b"k%d" % number, b"value %d" % number) for number in range(50)))
        self.settle()
        waiting = [self.machine.get(b"k%d" % number) for number in range(50)]
        jobs = 0
        while not self.reader.idle:
            jobs += len(self.reader.jobs)
            self.reader.work()
            self.reader.tell()
        self.assertEqual(jobs, 2)
        self.assertEqual([value(each) for each in waiting], [b"value %d" % number for number in range(50)])

    def test_memory_is_bounded_while_the_disk_does_nothing(self) -> None:
        """The node is held back before the next command, and goes on when half of the buffer is free."""
        self.machine = self.begin(buffer_bytes=100_000)
        applied = 0
        while (waiting := self.machine.prepare(encode(Put(b"%d" % applied, bytes(5000))))) is None:
            self.apply(Put(b"%d" % applied, bytes(5000)))
            applied += 1
            self.assertLess(applied, 30)
        self.assertGreater(applied, 15)
        self.assertLessEqual(self.machine._storage.writes.bytes, 100_000 + 6000)
        self.assertNoResult(waiting)
        again = self.machine.prepare(encode(Delete(b"1")))
        assert again is not None
        self.settle()
        self.assertIsNone(self.successResultOf(waiting))
        self.assertIsNone(self.successResultOf(again))
        self.assertIsNone(self.machine.prepare(encode(Put(b"x", b""))))

    def test_half_of_the_buffer_is_freed_before_it_goes_on(self) -> None:
        self.machine = self.begin(buffer_bytes=100_000)
        self.apply(Put(b"first", bytes(40_000)))  # its write begins at once
        self.apply(Put(b"a", bytes(40_000)), Put(b"b", bytes(40_000)))
        waiting = self.machine.prepare(encode(Put(b"c", b"")))
        assert waiting is not None
        self.writer.work()
        self.writer.tell()
        self.assertNoResult(waiting)
        self.settle()
        self.assertIsNone(self.successResultOf(waiting))

    def test_a_restored_stream_is_held_back_too(self) -> None:
        """A snapshot of the machine in memory brings values, which are written like others."""
        source = KeyValueMachine()
        for number in range(40):
            apply(source, Put(b"%02d" % number, bytes(10_000)), number + 1)
        machine = self.begin(buffer_bytes=50_000, directory="/other")
        sink = machine.restore()
        waited = 0
        for chunk in source.snapshot():
            while (room := machine.room()) is not None:
                waited += 1
                self.assertNoResult(room)
                self.settled(room)
            sink.write(chunk)
            self.assertLessEqual(machine._storage.writes.bytes, 50_000 + (300 << 10))
        sink.finish()
        self.assertGreater(waited, 2)
        self.assertEqual((machine.digest(), machine.index), (source.digest(), 40))
        self.assertEqual(self.settled(machine.range()), source.range())


class PrepareTests(Case):
    """What a command reads is fetched before, and nothing else is."""

    def setUp(self) -> None:
        super().setUp()
        self.memory = KeyValueMachine()
        self.both(*(Put(key, key * 10) for key in (b"a", b"b", b"c")))
        self.settle()
        self.files.operations.clear()

    def reads(self, command: Any) -> int:
        """Prepare and apply a command as a node does; return how many values it reads."""
        data = encode(command)
        for _ in range(5):
            waiting = self.machine.prepare(data)
            if waiting is None:
                break
            self.assertIsNone(self.settled(waiting))
        reads = [operation for operation, _ in self.files.operations if operation == "read"]
        self.files.operations.clear()
        before = self.machine.digest()
        self.assertIsNone(self.machine.prepare(data))
        self.assertEqual(self.machine.digest(), before)
        self.both(command)
        self.assertEqual([each for each in self.files.operations if each[0] == "read"], [])
        self.settle()
        self.files.operations.clear()
        return len(reads)

    def both(self, *commands: Any) -> None:
        """Apply commands to the machine in memory, too, and see that they have the same results."""
        for command in commands:
            [result] = self.apply(command)
            self.assertEqual(result, apply(self.memory, command, self.index))

    def test_writes_read_nothing(self) -> None:
        for command in (Put(b"a", b"new"), Delete(b"zz"), Txn((), (Put(b"d", b""),))):
            self.assertEqual(self.reads(command), 0)

    def test_ranges_read_what_they_show(self) -> None:
        self.assertEqual(self.reads(Range(b"a")), 1)
        self.assertEqual(self.reads(Range(b"", TO_THE_END, 2)), 2)
        self.assertEqual(self.reads(Txn((), (Range(b"a"), Range(b"b")), (Range(b"c"),))), 2)
        self.assertEqual(self.reads(Range(b"zz")), 0)

    def test_equality_is_a_matter_of_hashes(self) -> None:
        """A compare-and-swap by value, the most common one, reads nothing."""
        for comparison in (Comparison.EQUAL, Comparison.NOT_EQUAL):
            for value in (b"a" * 10, b"a" * 9, b"x"):
                condition = Compare(b"a", Target.VALUE, comparison, value)
                self.assertEqual(self.reads(Txn((condition,), (Put(b"y", b""),), (Put(b"y", b"z"),))), 0)

    def test_order_reads_what_it_compares(self) -> None:
        """No more than one byte beyond the operand; and the branch is read after it is known."""
        for comparison in (Comparison.LESS, Comparison.GREATER):
            for value in (b"a" * 10, b"a" * 9, b"a" * 11, b"", b"b"):
                condition = Compare(b"a", Target.VALUE, comparison, value)
                self.assertEqual(self.reads(Txn((condition,), (), ())), 1)
        greater = Compare(b"a", Target.VALUE, Comparison.GREATER, b"")
        self.assertEqual(self.reads(Txn((greater,), (Range(b"b"),), (Range(b"b"), Range(b"c")))), 2)
        self.assertEqual(self.reads(Txn((greater,), (Range(b"a"),))), 2)

    def test_only_as_much_as_is_compared_is_kept(self) -> None:
        self.apply(Put(b"big", b"z" * 500_000))
        self.settle()
        operands = (b"z", b"zz", b"y")
        conditions = tuple(Compare(b"big", Target.VALUE, Comparison.GREATER, each) for each in operands)
        waiting = self.machine.prepare(encode(Txn(conditions)))
        assert waiting is not None
        self.settled(waiting)
        self.assertEqual([len(value) for value in self.machine._beginnings.values()], [3])
        self.assertEqual(self.machine._fetched, {})

    def test_what_decides_without_the_disk_comes_first(self) -> None:
        order = Compare(b"a", Target.VALUE, Comparison.LESS, b"b")
        false = Compare(b"a", Target.VERSION, Comparison.EQUAL, 77)
        self.assertEqual(self.reads(Txn((order, false), (Range(b"a"),), (Put(b"b", b""),))), 0)

    def test_a_transaction_sees_its_own_changes(self) -> None:
        """What it puts itself is not read, nor what it deletes."""
        get = Range(b"", TO_THE_END)
        self.assertEqual(self.reads(Txn((), (Delete(b"a"), Put(b"b", b"new"), Put(b"n", b""), get))), 1)

    def test_refused_command_reads_nothing(self) -> None:
        self.apply(*(Put(b"many/%04d" % number, b"") for number in range(2001)))
        self.settle()
        self.files.operations.clear()
        command = Txn((), (Range(b"a"), Delete(b"many/", b"many0")))
        self.assertIsNone(self.machine.prepare(encode(command)))
        self.assertEqual(self.apply(command)[0][0], "too_many_keys")

    def test_a_value_that_was_moved_meanwhile_is_fetched_again(self) -> None:
        """Whatever happens between preparation and the command: the machine is asked until it is ready."""
        command = encode(Range(b"a"))
        waiting = self.machine.prepare(command)
        assert waiting is not None
        old = self.machine._store.get(b"a")
        assert old is not None
        self.machine._store.move(b"a", old, self.machine._log.keep(b"a", old[:48], b"a" * 10))
        self.settled(waiting)
        again = self.machine.prepare(command)
        assert again is not None
        self.settled(again)
        self.assertIsNone(self.machine.prepare(command))

    def test_what_was_fetched_is_let_go(self) -> None:
        waiting = self.machine.prepare(encode(Range(b"a")))
        assert waiting is not None
        self.settled(waiting)
        self.assertEqual(len(self.machine._fetched), 1)
        self.apply(Range(b"a"))
        self.assertEqual(self.machine._fetched, {})


class FullDiskTests(Case):
    """S-10: what there is no space for waits in memory, and is written when there is; nothing else happens."""

    def let_wait(self, room: int) -> None:
        self.files.capacity = self.files.used() + room
        self.settle()

    def wait_a_second(self) -> None:
        self.clock.advance(1.0)
        self.settle()

    def values(self, machine: FileKeyValueMachine) -> dict[bytes, bytes]:
        return {kv.key: kv.value for kv in self.settled(machine.range()).kvs}

    def test_values_wait_for_space(self) -> None:
        for room in range(0, 2100, 37):
            self.setUp()
            self.machine = self.begin(file_bytes=900)
            expected = {b"k%d" % number: b"%d" % number * 200 for number in range(10)}
            commands = [Put(key, value) for key, value in expected.items()]
            self.apply(*commands[:5])
            pieces = self.machine.snapshot()
            sealed = self.machine.sealed()
            stream = list(pieces)
            self.apply(*commands[5:])
            self.let_wait(room)
            self.assertTrue(self.machine.full)
            self.assertNoResult(self.machine.failed())
            self.assertIsNone(self.machine.room())
            self.assertEqual(expected, self.values(self.machine))
            for _ in range(3):
                self.wait_a_second()
                self.assertTrue(self.machine.full)
            self.files.capacity = None
            self.wait_a_second()
            self.assertFalse(self.machine.full)
            self.assertEqual({}, self.machine._storage.writes.waiting)
            self.assertEqual(0, self.machine._storage.writes.bytes)
            self.assertEqual(expected, self.values(self.machine))
            kept = link(self.files, self.successResultOf(sealed))
            other = opened(self.files, directory="/other")
            restore(other, stream, kept)
            self.assertEqual({key: expected[key] for key in list(expected)[:5]}, self.values(other))

    def test_memory_stays_bounded(self) -> None:
        """When the buffer is full, the next command waits."""
        self.machine = self.begin(buffer_bytes=1000)
        self.let_wait(0)
        self.apply(Put(b"a", bytes(2000)))
        self.settle()
        waiting = self.machine.prepare(encode(Put(b"b", b"")))
        assert waiting is not None
        self.wait_a_second()
        self.assertNoResult(waiting)
        self.files.capacity = None
        self.wait_a_second()
        self.successResultOf(waiting)

    def test_it_is_closed_meanwhile(self) -> None:
        self.let_wait(0)
        self.apply(Put(b"a", b"1"))
        self.settle()
        self.assertTrue(self.machine.full)
        self.settled(self.machine.close())
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_failure_meanwhile(self) -> None:
        """S-12."""
        self.let_wait(0)
        self.apply(Put(b"a", b"1"))
        self.settle()
        self.files.capacity = None
        self.files.fail("write")
        self.wait_a_second()
        self.assertIsInstance(self.successResultOf(self.machine.failed()), StorageFailed)
        self.assertEqual([], self.clock.getDelayedCalls())


class FailureTests(Case):
    """A write, sync or read that fails is the end: said once, to all who ask, and nothing is tried again."""

    def assert_failed(self, kind: type[Exception], machine: FileKeyValueMachine | None = None) -> None:
        machine = machine or self.machine
        error = self.successResultOf(machine.failed())
        self.assertIsInstance(error, kind)
        self.files.operations.clear()
        prepared = machine.prepare(encode(Put(b"z", b"")))
        assert prepared is not None
        self.failureResultOf(prepared, kind)
        room = machine.room()
        assert room is not None
        self.failureResultOf(room, kind)
        self.apply(Put(b"later", b"value"))
        self.settle()
        self.assertEqual(self.files.operations, [])

    def test_each_operation(self) -> None:
        """S-12."""
        for operation in ("create", "write", "sync"):
            self.setUp()
            early = self.machine.failed()
            self.files.fail(operation)
            self.apply(Put(b"a", b"1"))
            self.machine.snapshot()
            sealed = self.machine.sealed()
            self.assertNoResult(early)
            self.settle()
            self.failureResultOf(sealed, StorageFailed)
            self.assertIsInstance(self.successResultOf(early), StorageFailed)
            self.assert_failed(StorageFailed)

    def test_a_full_disk_at_a_sync_is_a_failure(self) -> None:
        """S-12: some file systems find only then that there is no space; what is there is unknown after that."""
        self.apply(Put(b"a", b"1"))
        self.settle()

        def sync(_self: Any) -> None:
            raise StorageFull("sync", "x", "No space left on device")

        self.machine.snapshot()
        sealed = self.machine.sealed()
        with patch.object(_SimulatedFile, "sync", sync):
            self.settle()
        self.assertNotIsInstance(self.failureResultOf(sealed, StorageFailed).value, StorageFull)
        self.assert_failed(StorageFailed)

    def test_who_waits_for_room_is_told(self) -> None:
        self.machine = self.begin(buffer_bytes=1)
        self.apply(Put(b"a", b"1"))
        waiting = self.machine.prepare(encode(Put(b"b", b"")))
        assert waiting is not None
        self.files.fail("write")
        self.settle()
        self.failureResultOf(waiting, StorageFailed)

    def test_failing_read(self) -> None:
        """S-13: who asked gets the error; it is the machine's end as well."""
        self.apply(Put(b"a", b"1"))
        self.settle()
        self.files.fail("read")
        waiting = self.machine.get(b"a")
        self.settle()
        self.failureResultOf(waiting, StorageFailed)
        self.assert_failed(StorageFailed)

    def test_a_defect_is_no_storage_error(self) -> None:
        """An exception that nobody foresaw stops the machine, too, as what it is."""
        self.apply(Put(b"a", b"1"))

        def broken(operation: str, path: str) -> None:
            raise KeyError("a bug")

        self.files.before = broken
        self.settle()
        self.files.before = None
        self.assert_failed(InvariantBroken)

    def test_file_that_cannot_be_removed_is_no_reason_to_stop(self) -> None:
        self.machine = self.begin(file_bytes=1, history_changes=0, history_bytes=0)
        self.apply(Put(b"a", b"1"), Put(b"b", b"1"))
        self.settle()
        self.files.fail("remove")
        self.apply(Put(b"a", b"2"))
        self.settle()
        self.assertNoResult(self.machine.failed())
        self.assertEqual(self.names(), ["1.values", "2.values", "3.values"])
        self.assertEqual(self.settled(self.machine.get(b"a")).value, b"2")
        outcome(opened(self.files).close())
        self.assertEqual(self.names(), [])

    def test_closed_machine(self) -> None:
        """Who still waits for a read gets it if it was under way; the others are told."""
        self.apply(Put(b"a", b"1"), Put(b"b", b"2"))
        self.settle()
        first, second = self.machine.get(b"a"), self.machine.get(b"b")
        self.reader.work()
        closing = self.machine.close()
        self.settle()
        self.successResultOf(closing)
        self.assertEqual(value(first), b"1")
        self.failureResultOf(second, NodeStopped)
        self.failureResultOf(self.machine.get(b"a"), NodeStopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_settings_are_checked(self) -> None:
        for name, value in (("file_bytes", 0), ("file_bytes", 1 << 30), ("buffer_bytes", 0), ("compaction_bytes", 0)):
            error = self.assertRaises(ConfigError, make_machine, self.files, **{name: value})
            self.assertEqual(error.field, name)
        self.assertRaises(ConfigError, FileKeyValueMachine, "/values")


class DamageTests(Case):
    """S-02, S-04, S-05: a value is what was put, or it is damaged, with file and offset; never another one."""

    def setUp(self) -> None:
        super().setUp()
        self.expected = {b"k%d" % number: random.Random(number).randbytes(30 + number) for number in range(6)}
        self.apply(*(Put(key, value) for key, value in self.expected.items()))
        self.settle()
        self.path = f"{VALUES}/1.values"
        self.places = self.offsets()

    def offsets(self) -> dict[bytes, tuple[int, int]]:
        """Where each key's record begins and ends."""
        at, found = len(MAGIC), {}
        for key, value in self.expected.items():
            found[key] = (at, at + HEADER + len(key) + len(value))
            at = found[key][1]
        self.assertEqual(at, self.files.size(self.path))
        return found

    def read_all(self) -> dict[bytes, Any]:
        found: dict[bytes, Any] = {}
        for key in self.expected:
            waiting = self.machine.get(key)
            self.settle()
            try:
                found[key] = value(waiting)
            except StorageCorrupt as damage:
                found[key] = (damage.path, damage.offset)
        self.machine._storage.failure = None
        return found

    def test_every_flipped_byte(self) -> None:
        """Whatever byte is flipped, the value that it belongs to is refused, and all others are read."""
        self.assertEqual(self.read_all(), self.expected)
        for at in range(self.files.size(self.path)):
            [byte] = self.files.read(self.path, at, 1)
            self.files.corrupt(self.path, at, bytes([byte ^ (1 << at % 8)]))
            hit = {key: (self.path, first) for key, (first, end) in self.places.items() if first <= at < end}
            self.assertEqual(self.read_all(), {**self.expected, **hit})
            self.files.corrupt(self.path, at, bytes([byte]))

    def test_the_first_damage_ends_the_machine(self) -> None:
        self.files.corrupt(self.path, self.places[b"k3"][0] + 30, b"?")
        waiting = self.machine.range()
        self.settle()
        self.failureResultOf(waiting, StorageCorrupt)
        error = self.successResultOf(self.machine.failed())
        assert isinstance(error, StorageCorrupt)
        self.assertEqual((error.path, error.offset), (self.path, self.places[b"k3"][0]))

    def test_truncated_file(self) -> None:
        self.files.truncate(self.path, self.places[b"k4"][1] - 1)
        found = self.read_all()
        bad = {key: (self.path, self.places[key][0]) for key in (b"k4", b"k5")}
        self.assertEqual(found, {**self.expected, **bad})

    def test_zeroed_page(self) -> None:
        self.files.corrupt(self.path, 0, bytes(self.files.size(self.path)))
        self.assertEqual(self.read_all(), {key: (self.path, first) for key, (first, _) in self.places.items()})

    def test_whole_records_in_the_wrong_place(self) -> None:
        """S-05, S-06: a record whose checksums are right, of another key or another revision."""
        self.apply(Put(b"x0", b"same size"), Put(b"x1", b"same size"), Put(b"x0", b"same SIZE"))
        self.settle()
        end = self.places[b"k5"][1]
        length = HEADER + 2 + 9
        records = [self.files.read(self.path, end + n * length, length) for n in range(3)]
        for key, place, other in ((b"x1", 1, 0), (b"x0", 2, 0)):
            self.files.corrupt(self.path, end + place * length, records[other])
            waiting = self.machine.get(key)
            self.settle()
            error = self.failureResultOf(waiting, StorageCorrupt).value
            self.assertEqual((error.path, error.offset), (self.path, end + place * length))
            self.files.corrupt(self.path, end + place * length, records[place])

    def test_compaction_finds_damage_also_where_nobody_reads(self) -> None:
        self.machine = self.begin(file_bytes=400, history_changes=0, history_bytes=0)
        self.apply(*(Put(b"%d" % n, bytes(80)) for n in range(6)))
        self.apply(*(Delete(b"%d" % n) for n in range(2)))
        self.settle()
        self.assertEqual(self.names()[0], "1.values")
        self.files.corrupt(self.path, 8 + 50, b"?")
        for _ in range(50):
            self.clock.advance(1)
            self.settle()
        error = self.successResultOf(self.machine.failed())
        assert isinstance(error, StorageCorrupt)
        self.assertEqual((error.path, error.offset), (self.path, 8))

    def test_stream_that_points_elsewhere(self) -> None:
        """What a snapshot says of its files is checked, or shows when it is read: it is never another value."""
        pieces, named = self.machine.snapshot(), self.machine.sealed()
        files = link(self.files, self.settled(named))
        chunks = list(pieces)
        [block] = [chunk for chunk in chunks if chunk[:1] == b"K"]
        [at] = [at for at, chunk in enumerate(chunks) if chunk is block]
        size = 8 + len(b"k0") + RECORD_HEAD.size + 12
        self.assertEqual(len(block), 1 + 6 * size)
        refused = 0
        for number, key in enumerate(self.expected):
            for byte in range((number + 1) * size - 11, (number + 1) * size + 1):
                damaged = block[:byte] + bytes([block[byte] ^ 1]) + block[byte + 1 :]
                machine = opened(self.files, directory="/other")
                try:
                    restore(machine, [*chunks[:at], damaged, *chunks[at + 1 :]], files)
                except ValueError:
                    refused += 1
                else:
                    self.failureResultOf(machine.get(key), StorageCorrupt)
        self.assertGreater(refused, 40)


class FormatTests(Case):
    def test_documented_example(self) -> None:
        """The bytes in the documentation."""
        self.apply(Put(b"greeting", b"hello"))
        self.settle()
        text = (Path(__file__).parent.parent / "docs" / "value-files.rst").read_text()
        rows = re.findall(r"^   0000[0-9a-f]{4}  ((?:[0-9a-f]{2} {1,2})+)", text, re.MULTILINE)
        self.assertEqual(self.files.read(f"{VALUES}/1.values", 0, 1000), bytes.fromhex("".join(rows)))


class FileLifeTests(Case):
    """A file goes when nobody needs it, and not before."""

    def setUp(self) -> None:
        super().setUp()
        self.machine = self.begin(file_bytes=1, history_changes=0, history_bytes=0)
        self.apply(Put(b"a", b"1"), Put(b"b", b"2"))
        self.settle()

    def test_unneeded_file_goes_at_once(self) -> None:
        self.assertEqual(self.names(), ["1.values", "2.values"])
        self.apply(Delete(b"a"))
        self.settle()
        self.assertEqual(self.names(), ["2.values"])

    def test_read_holds_its_file(self) -> None:
        waiting = self.machine.get(b"a")
        self.apply(Delete(b"a"))
        self.writer.settle()
        self.assertEqual(self.names(), ["1.values", "2.values"])
        self.assertEqual(self.settled(waiting).value, b"1")
        self.settle()
        self.assertEqual(self.names(), ["2.values"])

    def test_read_that_nobody_waits_for_holds_its_file(self) -> None:
        """Else it would fail, which is the end of the machine."""
        waiting = self.machine.get(b"a")
        self.apply(Delete(b"a"))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.settle()
        self.assertNoResult(self.machine.failed())
        self.assertEqual(self.names(), ["2.values"])

    def test_snapshot_holds_its_files(self) -> None:
        pieces, named = self.machine.snapshot(), self.machine.sealed()
        self.apply(Delete(b"a"), Put(b"b", b"3"))
        self.settle()
        files: Sequence[StateFile] = outcome(named)
        self.assertEqual(self.names(), ["1.values", "2.values", "3.values"])
        self.assertEqual([file.path for file in files], [f"{VALUES}/1.values", f"{VALUES}/2.values"])
        chunks = list(pieces)
        self.settle()
        self.assertEqual(len(self.names()), 3)
        pieces.close()  # type: ignore[attr-defined]
        self.settle()
        self.assertEqual(self.names(), ["3.values"])
        self.assertEqual(chunks[0][:1], b"H")

    def test_history_holds_its_files(self) -> None:
        """As long as a past revision can be read, and no longer."""
        self.machine = self.begin(file_bytes=1, history_changes=200)
        self.apply(Put(b"a", b"1"), Put(b"a", b"2"), Delete(b"a"))
        revision = self.machine.revision - 2
        self.assertEqual(self.settled(self.machine.get(b"a", revision)).value, b"1")
        self.settle()
        self.assertEqual(len(self.names()), 2)
        self.apply(*(Delete(b"%d" % n) for n in range(3)))
        self.apply(*(Put(b"b", b"") for _ in range(330)))
        self.settle()
        self.assertGreater(self.machine.compacted_revision, revision)
        self.assertNotIn("1.values", self.names())
        self.assertLessEqual(len(self.names()), 330)

    def test_leftovers_go_at_the_start(self) -> None:
        """What no snapshot names is of no use: the log has it."""
        for name in ("7.values", "trial.tmp"):
            self.files.create(f"{VALUES}/{name}").close()
        opened(self.files)
        self.assertEqual(self.names(), [])

    def test_what_is_not_ours_stays(self) -> None:
        self.files.create(f"{VALUES}/photo.jpg").close()
        machine = make_machine(self.files)
        error = self.failureResultOf(machine.open(), ConfigError).value
        self.assertEqual((error.field, error.value), ("directory", VALUES))
        self.assertIn("move 'photo.jpg' elsewhere", error.rule)
        self.assertEqual(len(self.names()), 3)

    def test_restored_state_replaces_the_files(self) -> None:
        """The old ones go, also those that a read holds, when it ends; and those of a restoration that was given up."""
        other = opened(self.files, directory="/other")
        apply(other, Put(b"c", b"3"), 1)
        chunks, named = take(other)
        files = link(self.files, named)
        waiting = self.machine.get(b"a")
        abandoned = self.machine.restore_files(files)
        self.settled(abandoned).write(chunks[0])
        sink = self.settled(self.machine.restore_files(files))
        waiting = self.machine.get(b"a")
        for chunk in chunks:
            sink.write(chunk)
        sink.finish()
        self.writer.settle()
        self.assertEqual(len(self.names()), 2)
        self.assertEqual(self.settled(waiting).value, b"1")
        self.settle()
        self.assertEqual(len(self.names()), 1)
        self.assertEqual(self.settled(self.machine.get(b"c")).value, b"3")

    def test_replaced_state_goes_before_the_new_one_comes(self) -> None:
        """Neither memory nor the disk has to have both; what is being read of the old one is still there for that."""
        other = opened(self.files, directory="/other")
        apply(other, Put(b"c", b"3"), 1)
        chunks, named = take(other)
        files = link(self.files, named)
        self.settle()
        waiting = self.machine.get(b"a")
        sink = self.settled(self.machine.replace_files(files))
        self.assertEqual(self.settled(waiting).value, b"1")
        self.settle()
        self.assertEqual((len(self.machine), len(self.names())), (0, 1))
        for chunk in chunks:
            sink.write(chunk)
        sink.finish()
        self.settle()
        self.assertEqual((len(self.machine), len(self.names())), (1, 1))
        self.assertEqual(self.settled(self.machine.get(b"c")).value, b"3")
        self.apply(Put(b"c", b"4"))
        self.assertEqual(self.settled(self.machine.get(b"c")).value, b"4")

    def test_large_values_have_files_of_their_own(self) -> None:
        self.machine = self.begin(file_bytes=1000)
        self.apply(Put(b"a", bytes(5000)), Put(b"b", b""), Put(b"c", b""))
        self.settle()
        self.assertEqual([self.files.size(f"{VALUES}/{name}") for name in self.names()], [8 + 21 + 5000, 8 + 2 * 21])
