"""Compaction: garbage goes, in the background, in slices and at a rate, and nothing that can be seen changes."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.kv_files_kit import VALUES, ManualExecutor, apply, link, make_machine, opened, restore
from zlayer_consensus.errors import InvariantBroken, StorageFailed
from zlayer_consensus.kv import Delete, FileKeyValueMachine, KeyValueMachine, Put
from zlayer_consensus.testing import SimulatedFileSystem
from zlayer_consensus.testing.crashes import outcome

SLICE = 256 << 10


class CompactionCase(SynchronousTestCase):
    settings: ClassVar[dict[str, Any]] = {"file_bytes": 1000, "history_changes": 0, "history_bytes": 0}

    def setUp(self) -> None:
        self.files = SimulatedFileSystem()
        self.clock = Clock()
        self.memory = KeyValueMachine(history_changes=self.settings["history_changes"], history_bytes=0)
        self.index = 0
        self.machine = opened(self.files, self.clock, **self.settings)

    def apply(self, *commands: Any) -> None:
        for command in commands:
            self.index += 1
            result = apply(self.machine, command, self.index)
            self.assertEqual(result, apply(self.memory, command, self.index))

    def names(self) -> list[str]:
        return self.files.list(VALUES)

    def run_for(self, seconds: float, step: float = 0.05) -> None:
        self.clock.pump([step] * round(seconds / step))
        self.assertNoResult(self.machine.failed())

    def assert_same(self, machine: FileKeyValueMachine | None = None) -> None:
        machine = machine or self.machine
        self.assertEqual(machine.digest(), self.memory.digest())
        self.assertEqual(machine.revision, self.memory.revision)
        for revision in range(self.memory.compacted_revision, self.memory.revision + 1):
            self.assertEqual(outcome(machine.range(revision=revision)), self.memory.range(revision=revision))


class CompactionTests(CompactionCase):
    def test_file_of_which_less_than_half_is_needed(self) -> None:
        """What is needed is written anew, and the file goes; others are left alone."""
        self.apply(*(Put(b"k%02d" % n, bytes([n]) * 280) for n in range(9)))
        self.assertEqual(self.names(), ["1.values", "2.values", "3.values"])
        self.apply(Delete(b"k00"), Delete(b"k01"), Delete(b"k03"))
        self.run_for(5)
        self.assertEqual(self.names(), ["2.values", "3.values", "4.values"])
        self.assert_same()

    def test_nothing_to_do(self) -> None:
        self.apply(*(Put(b"k%02d" % n, bytes([n]) * 280) for n in range(9)))
        self.apply(Delete(b"k00"))
        self.files.operations.clear()
        self.run_for(20)
        self.assertEqual(self.files.operations, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_without_room_it_waits(self) -> None:
        """S-11: what it writes takes space at once, what it frees may come back with the next snapshot only.

        It asks for that, and half a full file, but not for the garbage as well.
        """
        self.apply(*(Put(b"k%02d" % n, bytes([n]) * 280) for n in range(9)))
        self.apply(Delete(b"k00"), Delete(b"k01"))
        self.files.capacity = self.files.used() + (self.files.size(f"{VALUES}/1.values") - 8) // 3 + 500 - 1
        self.run_for(10)
        self.assertEqual(self.names(), ["1.values", "2.values", "3.values"])
        self.files.capacity += 1
        self.run_for(5)
        self.assertEqual(self.names(), ["2.values", "3.values", "4.values"])
        self.assert_same()

    def test_it_goes_on_after_there_was_no_room(self) -> None:
        """Also if what there was to do has done itself meanwhile."""
        self.apply(*(Put(b"k%02d" % n, bytes([n]) * 280) for n in range(9)))
        self.apply(Delete(b"k00"), Delete(b"k01"))
        self.files.capacity = self.files.used()
        self.run_for(3)
        self.apply(Delete(b"k02"))
        self.run_for(3)
        self.files.capacity = None
        self.apply(Delete(b"k03"), Delete(b"k04"))
        self.run_for(5)
        self.assertEqual(self.names(), ["3.values", "4.values"])
        self.assert_same()

    def test_garbage_of_what_is_written_to_waits(self) -> None:
        """The file that is being written to is not rewritten; it is when it is complete."""
        self.apply(Put(b"a", bytes(200)), Put(b"a", bytes(100)), Put(b"a", bytes(50)))
        self.run_for(5)
        self.assertEqual(self.names(), ["1.values"])
        pieces = self.machine.snapshot()
        outcome(self.machine.sealed())
        pieces.close()  # type: ignore[attr-defined]
        self.run_for(5)
        self.assertEqual(self.names(), ["2.values"])
        self.assert_same()

    def test_small_files_are_merged(self) -> None:
        """Every snapshot completes a file: without an end to that there would be ever more of them."""
        for number in range(60):
            self.apply(Put(b"k%02d" % number, b"v" * 30))
            pieces = self.machine.snapshot()
            outcome(self.machine.sealed())
            pieces.close()  # type: ignore[attr-defined]
            self.run_for(3)
            self.assertLessEqual(len(self.names()), 22)
        self.assert_same()
        # A few are left, for there are always small ones; and each value was written some times, not sixty.
        self.assertLess(int(self.names()[-1].partition(".")[0]), 200)

    def test_snapshot_under_way_is_of_its_moment(self) -> None:
        """Values are moved in front of it and behind it, and what it said of the places before stays right."""
        self.apply(*(Put(b"k%04d" % n, b"%04d" % n * 20) for n in range(1500)))
        expected, digest = self.memory.range(), self.machine.digest()
        pieces, sealed = self.machine.snapshot(), self.machine.sealed()
        chunks = [next(pieces), next(pieces)]
        self.apply(*(Delete(b"k%04d" % n) for n in range(1500) if n % 3))
        before = set(self.machine._log.files)
        self.run_for(30)
        moved = {self.machine._log.files[number].number for number in before if number in self.machine._log.files}
        self.assertTrue(all(self.machine._log.files[number].count == 0 for number in moved), "nothing was moved")
        files = link(self.files, outcome(sealed))
        chunks += pieces
        pieces.close()  # type: ignore[attr-defined]
        self.assertEqual(len(self.names()), len(self.machine._log.files))
        copy = opened(self.files, directory="/copy")
        restore(copy, chunks, files)
        self.assertEqual((copy.digest(), outcome(copy.range())), (digest, expected))
        self.assert_same()

    def test_close_in_the_middle(self) -> None:
        writer = ManualExecutor()
        self.machine = make_machine(self.files, self.clock, writer, **self.settings)
        opening = self.machine.open()
        writer.settle()
        outcome(opening)
        for n in range(12):
            apply(self.machine, Put(b"%d" % n, bytes(280)), n + 1)
        for n in (0, 1, 3, 4):
            apply(self.machine, Delete(b"%d" % n), 20 + n)
        writer.settle()
        self.clock.advance(1.0)
        self.assertFalse(writer.idle)
        closing = self.machine.close()
        writer.settle()
        self.successResultOf(closing)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertNoResult(self.machine.failed())

    def test_failure_in_the_middle(self) -> None:
        """When the disk has failed, nothing is moved any more: what is moved has to be written."""
        self.apply(*(Put(b"k%02d" % n, bytes([n]) * 280) for n in range(9)))
        self.apply(Delete(b"k00"), Delete(b"k01"))
        self.files.fail("write")
        moves: list[object] = []
        move = self.machine._store.move

        def counted(*args: bytes) -> None:
            moves.append(args)
            move(*args)

        self.patch(self.machine._store, "move", counted)
        self.apply(*(Put(b"new%d" % n, bytes(280)) for n in range(3)))
        self.assertIsInstance(self.successResultOf(self.machine.failed()), StorageFailed)
        self.clock.pump([0.5] * 20)
        self.assertEqual((moves, self.clock.getDelayedCalls()), ([], []))

    def test_restored_machine_compacts_its_own_files(self) -> None:
        self.apply(*(Put(b"k%02d" % n, bytes([n]) * 280) for n in range(9)))
        pieces, sealed = self.machine.snapshot(), self.machine.sealed()
        files = link(self.files, outcome(sealed))
        self.apply(*(Delete(b"k%02d" % n) for n in (0, 1, 3, 4)))
        self.clock.advance(0.5)  # the old one was about to begin
        self.memory = KeyValueMachine(history_changes=0, history_bytes=0)
        for n in range(9):
            apply(self.memory, Put(b"k%02d" % n, bytes([n]) * 280), n + 1)
        restore(self.machine, list(pieces), files)
        pieces.close()  # type: ignore[attr-defined]
        self.assertEqual(len(self.names()), 3)
        self.apply(*(Delete(b"k%02d" % n) for n in (6, 7)))
        self.run_for(5)
        self.assertEqual(len(self.names()), 3)
        self.assert_same()

    def test_value_that_is_not_where_it_should_be(self) -> None:
        """The books do not balance: the machine stops, and does not throw the file away."""
        self.apply(*(Put(b"k%02d" % n, bytes([n]) * 280) for n in range(6)))
        self.apply(Delete(b"k00"), Delete(b"k01"))
        self.machine._log.files[1].count += 1
        self.clock.pump([0.5] * 10)
        self.assertIsInstance(self.successResultOf(self.machine.failed()), InvariantBroken)
        self.assertIn("1.values", self.names())


class PastTests(CompactionCase):
    settings: ClassVar[dict[str, Any]] = {"file_bytes": 1000, "history_changes": 200, "history_bytes": 1 << 20}

    def setUp(self) -> None:
        super().setUp()
        self.memory = KeyValueMachine(history_changes=200, history_bytes=1 << 20)

    def test_values_of_the_past_are_moved_too(self) -> None:
        """A file that only the history needs goes as well, and the past can be read as before."""
        draw = random.Random(1)
        for number in range(120):
            self.apply(Put(b"k%d" % draw.randrange(10), b"%03d" % number * draw.choice((10, 60))))
            if draw.random() < 0.2:
                self.apply(Delete(b"k%d" % draw.randrange(10)))
        self.assert_same()
        # All that was written is needed, for the present or the past: so let it be rewritten without a reason.
        complete = self.machine._compactor._complete_files()
        self.assertGreater(len(complete), 5)
        for file in complete:
            rewriting = Deferred.fromCoroutine(self.machine._compactor._rewrite(file))
            self.run_for(1)
            self.successResultOf(rewriting)
            self.assertNotIn(file.number, self.machine._log.files)
            self.assertNotIn(f"{file.number}.values", self.names())
        self.assert_same()

    def test_window_moves_on_after_a_move(self) -> None:
        """What was moved is forgotten like all else, and its files go."""
        for number in range(30):
            self.apply(Put(b"k", b"%03d" % number * 90))
        self.apply(*(Put(b"k%d" % n, b"") for n in range(400)))
        self.run_for(30)
        self.assert_same()
        live = sum(file.live for file in self.machine._log.files.values())
        self.assertLess(live, 100 + 401 * 24 + 200 * 24)


class PaceTests(CompactionCase):
    settings: ClassVar[dict[str, Any]] = {
        "file_bytes": 4 << 20,
        "history_changes": 0,
        "history_bytes": 0,
        "compaction_bytes": 100_000,
        "buffer_bytes": 200_000,
    }

    def fill(self, files: int, needed: float) -> None:
        """Make files of a MiB each, of which so much is needed."""
        for file in range(files):
            self.apply(*(Put(b"%d/%04d" % (file, n), bytes(1000)) for n in range(1024)))
            self.machine._log.complete()
        for file in range(files):
            self.apply(*(Delete(b"%d/%04d" % (file, n)) for n in range(int(1024 * (1 - needed)))))

    def reads(self) -> int:
        reads = [path for operation, path in self.files.operations if operation == "read"]
        return SLICE * len(reads)

    def test_rate(self) -> None:
        """Not more is read than the rate allows, and not much less."""
        self.fill(1, 0.4)
        self.files.operations.clear()
        for _ in range(40):
            if not self.files.exists(f"{VALUES}/1.values"):
                break
            self.clock.pump([0.05] * 10)
            self.assertLessEqual(self.reads(), 100_000 * (self.clock.seconds() - 1) + SLICE)
        else:
            self.fail("it never ended")
        self.assertGreater(self.clock.seconds(), 8)
        self.assertLess(self.clock.seconds(), 15)
        self.assert_same()

    def test_rate_rises_with_what_there_is_to_do(self) -> None:
        """So that garbage cannot grow faster than it goes."""
        self.fill(24, 0.1)
        begin = self.clock.seconds()
        while len(self.machine._log.files) > 4:
            self.clock.pump([0.05] * 10)
            self.assertLess(self.clock.seconds() - begin, 120)  # at the rate alone it would be 250
        self.assert_same()

    def test_slices(self) -> None:
        """However small the values, only some hundred are moved in one turn of the reactor."""
        self.apply(*(Put(b"%05d" % n, b"") for n in range(10_000)))
        self.machine._log.complete()
        self.apply(*(Delete(b"%05d" % n) for n in range(6000)))
        moves = [0]
        move, call_later = self.machine._store.move, self.clock.callLater

        def counted(key: bytes, old: bytes, new: bytes) -> None:
            moves[-1] += 1
            move(key, old, new)

        def next_turn(*args: Any) -> Any:
            moves.append(0)
            return call_later(*args)

        self.patch(self.machine._store, "move", counted)
        self.patch(self.clock, "callLater", next_turn)
        self.run_for(20)
        self.assertEqual(sum(moves), 4000)
        self.assertLessEqual(max(moves), 256)
        self.assert_same()

    def test_it_gives_way(self) -> None:
        """While half of the buffer is full, it waits: what clients write comes first."""
        writer = ManualExecutor()
        self.machine = make_machine(self.files, self.clock, writer, directory="/slow", **self.settings)
        opening = self.machine.open()
        writer.settle()
        outcome(opening)
        for n in range(1024):
            apply(self.machine, Put(b"%04d" % n, bytes(1000)), n + 1)
        self.machine._log.complete()
        for n in range(0, 1024, 2):
            apply(self.machine, Delete(b"%04d" % n), 2000 + n)
        apply(self.machine, Delete(b"0001"), 5000)
        highest = 0
        for _ in range(4000):
            self.clock.advance(0.02)
            if writer.jobs:
                writer.work()
                writer.tell()
            highest = max(highest, self.machine._storage.writes.bytes if self.clock.seconds() > 2 else 0)
        self.assertNotIn("1.values", self.files.list("/slow"))
        self.assertGreater(highest, 0)
        self.assertLessEqual(highest, 100_000 + SLICE + 256 * 320)
