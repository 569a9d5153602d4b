"""
The file log store on disks that fail, are full or slow, and how it prepares its files.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from typing import cast
from unittest import mock

from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.log_store_kit import (
    SMALL,
    WAL,
    HeldExecutor,
    append,
    content,
    entries,
    opened,
    result,
    store,
)
from tests.real_disk import RealDisk
from zlayer_consensus.errors import ConfigError, StorageFailed, StorageFull
from zlayer_consensus.raft import Entry, EntryKind, HardState, LogWrite
from zlayer_consensus.storage import FileLogStore
from zlayer_consensus.testing import SimulatedFileSystem

RESERVE = 64 << 10


def writes(disk: SimulatedFileSystem) -> list[tuple[str, str]]:
    """Lists what was done to files since the list of operations was cleared."""
    return [(operation, path.rpartition("/")[2]) for operation, path in disk.operations]


def segments(disk: SimulatedFileSystem) -> list[str]:
    """Lists the files of segments, also of those to come."""
    return [name for name in disk.list(WAL) if name != "reserve"]


class FailingDiskTests(SynchronousTestCase):
    def make_disk(self) -> SimulatedFileSystem:
        return SimulatedFileSystem()

    def setUp(self) -> None:
        self.disk = self.make_disk()
        self.executor = HeldExecutor()
        self.log = store(self.disk, executor=self.executor)
        start = self.log.open()
        self.executor.release_all()
        result(start)
        done = self.log.write(LogWrite(entries=entries(1, 3), hard_state=HardState(1, 1, 0)))
        self.executor.release_all()
        result(done)
        self.disk.operations.clear()

    def fail_two_groups(self, operation: str) -> None:
        self.disk.fail(operation)
        writing = [self.log.write(LogWrite(entries=entries(index, index))) for index in (4, 5)]
        self.executor.release_all()
        errors = [self.assertRaises(StorageFailed, result, done) for done in writing]
        later = self.assertRaises(StorageFailed, result, self.log.write(LogWrite(entries=entries(4, 4))))
        self.assertEqual({operation}, {error.operation for error in [*errors, later]})
        self.assertRaises(StorageFailed, result, self.log.read(1, 1, 1))

    def test_a_failed_sync_is_final(self) -> None:
        """S-12: nothing is retried, written or truncated after it; all that waits and all that comes fails."""
        self.fail_two_groups("sync")
        self.assertEqual(["write", "sync"], [operation for operation, _ in self.disk.operations])
        closed = self.log.close()
        self.executor.release_all()
        result(closed)
        self.assertEqual(["write", "sync"], [operation for operation, _ in self.disk.operations])

    def test_a_failed_write_is_final(self) -> None:
        """S-12."""
        self.fail_two_groups("write")
        self.assertEqual(["write"], [operation for operation, _ in self.disk.operations])

    def test_what_a_failed_sync_left_behind_is_written_again_when_it_counts(self) -> None:
        """Hazards §3.1: the page cache shows it, and a new sync would not bring it to the disk."""
        self.fail_two_groups("sync")
        killed = self.disk.crash(process_only=True)
        _, start = opened(killed)
        self.assertEqual(4, start.last.index)
        self.assertEqual(4, opened(killed.crash("none"))[1].last.index)

    def test_an_empty_record_that_a_failed_sync_left_behind_is_written_again(self) -> None:
        """Hazards §3.1: what follows it would prove that it was durable, and it never was."""
        self.executor.release_all()
        self.disk.fail("sync")
        stopping = self.log.close()  # writes the empty record
        self.executor.release_all()
        self.assertRaises(StorageFailed, result, stopping)
        killed = self.disk.crash(process_only=True)
        log, _ = opened(killed)
        result(log.write(LogWrite(entries=entries(4, 4))))
        self.assertEqual(4, opened(killed.crash("none"))[1].last.index)

    def test_what_was_queued_behind_a_failure_does_not_reach_the_disk(self) -> None:
        """S-12: a thread works on before anybody hears of the failure; the next record would leave a gap before it."""
        clock, executor = Clock(), HeldExecutor()
        log = store(self.disk.crash("all"), executor=executor, reactor=clock)
        disk = cast(SimulatedFileSystem, log._writer._file_system)
        start = log.open()
        executor.release_all()
        result(start)
        done = log.write(LogWrite(entries=entries(4, 4)))
        executor.release_all()
        result(done)
        clock.pump([0.05] * 4)  # the empty record is due
        writing = log.write(LogWrite(entries=entries(5, 5)))
        self.assertEqual(len(executor.held), 2)
        disk.operations.clear()
        disk.fail("write")
        outcomes = []
        for waiting, call, args in executor.held:
            with self.assertRaises(StorageFailed) as caught:
                call(*args)
            outcomes.append((waiting, caught.exception))
        self.assertEqual(writes(disk), [("write", writes(disk)[0][1])])
        for waiting, error in outcomes:
            waiting.errback(error)
        self.assertRaises(StorageFailed, result, writing)
        _, found = opened(disk.crash(process_only=True))
        self.assertEqual(found.last.index, 4)

    def test_a_failed_rotation_is_final(self) -> None:
        """S-12: the rename or the directory's sync of a new segment."""
        for operation in ("rename", "sync_dir", "create"):
            disk = self.make_disk()
            log, _ = opened(disk)
            append(log, 1, 30)
            disk.fail(operation)
            index = 31
            with self.assertRaises(StorageFailed):
                while index < 400:
                    append(log, index, index + 9)
                    index += 10
            _, start = opened(disk.crash("none"))
            self.assertEqual(index - 1, start.last.index)


class RealFailingDiskTests(FailingDiskTests):
    """S-12: the same on the real file system, with an operation of it failed."""

    def make_disk(self) -> SimulatedFileSystem:
        place = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, place)
        disk = RealDisk.make(place)
        self.addCleanup(disk.die)
        return disk


class FullDiskTests(SynchronousTestCase):
    def fill(self, disk: SimulatedFileSystem, log: FileLogStore) -> int:
        """Appends until the disk is full; returns the last index that was acknowledged."""
        last = 0
        with self.assertRaises(StorageFull):
            while last < 10_000:
                append(log, last + 1, last + 10)
                last += 10
        return last

    def test_a_full_disk_without_reserve_fails_the_store_and_loses_nothing(self) -> None:
        """S-10, S-11: the entry is not acknowledged, and the log opens again."""
        disk = SimulatedFileSystem()
        log, _ = opened(disk)
        disk.remove(f"{WAL}/reserve")
        disk.capacity = disk.used() + 3 * SMALL + 100
        last = self.fill(disk, log)
        self.assertRaises(StorageFull, result, log.write(LogWrite(hard_state=HardState(9, 1, 0))))
        self.assertGreater(last, 30)
        self.assertEqual(last, opened(disk.crash("none"))[1].last.index)

    def test_the_log_goes_on_on_its_reserve(self) -> None:
        """S-10, S-11: so that what is under way can end, and votes, deletions and purges still get through."""
        disk = SimulatedFileSystem()
        log, _ = opened(disk, reserve_bytes=RESERVE)
        self.assertEqual((RESERVE, False), (disk.size(f"{WAL}/reserve"), log.full))
        append(log, 1, 10)
        disk.capacity = disk.used()
        for term in range(2, 100):
            result(log.write(LogWrite(hard_state=HardState(term, term % 3, 0))))
        append(log, 11, 12, term=99)
        self.assertEqual((False, True), (disk.exists(f"{WAL}/reserve"), log.full))
        again, start = opened(disk.crash("none"), reserve_bytes=RESERVE)
        self.assertEqual((HardState(99, 0, 0), 12, True), (start.hard_state, start.last.index, again.full))

    def test_it_is_seen_before_the_reserve_is_needed(self) -> None:
        """S-10: when there is no room for the segment that is prepared ahead."""
        disk = SimulatedFileSystem()
        log, _ = opened(disk, reserve_bytes=RESERVE)
        disk.capacity = disk.used()
        last = 0
        while not log.full:
            append(log, last + 1, last + 5)
            last += 5
        self.assertTrue(disk.exists(f"{WAL}/reserve"))
        self.assertEqual(1, len(segments(disk)))

    def test_space_comes_back(self) -> None:
        """S-10: with hysteresis: the reserve, and a segment beside it."""
        disk = SimulatedFileSystem()
        log, _ = opened(disk, reserve_bytes=RESERVE)
        disk.capacity = disk.used()
        last = 0
        while disk.exists(f"{WAL}/reserve"):
            append(log, last + 1, last + 5)
            last += 5
        for room, full in ((0, True), (RESERVE, True), (RESERVE + SMALL - 1, True), (RESERVE + SMALL, False)):
            disk.capacity = disk.used() + room
            if disk.exists(f"{WAL}/reserve"):
                disk.remove(f"{WAL}/reserve")
                disk.capacity -= RESERVE
            free = result(log.space(0))
            self.assertEqual((full, room - (RESERVE if room >= RESERVE else 0)), (log.full, free))
        self.assertEqual(RESERVE, disk.size(f"{WAL}/reserve"))
        disk.capacity = None
        append(log, last + 1, last + 300)
        self.assertEqual(last + 300, opened(disk.crash("none"), reserve_bytes=RESERVE)[1].last.index)

    def test_a_full_disk_can_be_opened(self) -> None:
        """S-10: an opening needs no space."""
        disk = SimulatedFileSystem()
        log, _ = opened(disk, reserve_bytes=RESERVE)
        append(log, 1, 300)
        disk.remove(f"{WAL}/reserve")
        disk.sync_dir(WAL)
        for closed in (False, True):
            if closed:
                result(log.close())
            crashed = disk.crash("none")
            crashed.capacity = crashed.used()
            again, start = opened(crashed, reserve_bytes=RESERVE)
            self.assertEqual((300, True), (start.last.index, again.full))

    def test_a_crash_on_the_way_to_the_reserve(self) -> None:
        """S-10, S-24: at each operation, whatever of it reaches the disk."""
        disk = SimulatedFileSystem()
        log, _ = opened(disk, reserve_bytes=RESERVE)
        append(log, 1, 20)
        disk.capacity = disk.used()
        crashes: list[tuple[int, SimulatedFileSystem]] = []
        done = 20

        def before(_operation: str, _path: str) -> None:
            crashes.extend((done, disk.crash(keep)) for keep in ("none", "all", "prefix", random.Random(len(crashes))))

        disk.before = before
        while disk.exists(f"{WAL}/reserve"):
            append(log, done + 1, done + 3)
            done += 3
        disk.before = None
        self.assertGreater(len(crashes), 40)
        for acknowledged, crashed in crashes:
            for capacity in (crashed.used(), None):
                crashed.capacity = capacity
                again, start = opened(crashed, reserve_bytes=RESERVE)
                self.assertGreaterEqual(start.last.index, acknowledged)
                self.assertEqual(capacity is not None and not crashed.exists(f"{WAL}/reserve"), again.full)
                result(again.close())

    def test_rot_in_the_reserve_does_no_harm(self) -> None:
        """S-02: it is zeros again before it is used."""
        disk = SimulatedFileSystem()
        log, _ = opened(disk, reserve_bytes=RESERVE)
        for offset in (100, 20_000, RESERVE - 1):
            disk.corrupt(f"{WAL}/reserve", offset, b"x")
        disk.capacity = disk.used()
        last = 0
        while disk.exists(f"{WAL}/reserve"):
            append(log, last + 1, last + 5)
            last += 5
        self.assertEqual(last, opened(disk.crash("none"), reserve_bytes=RESERVE)[1].last.index)

    def test_the_reserve_has_bounds(self) -> None:
        for size in (0, 1000, (16 << 10) + 1, 1 << 31):
            error = self.assertRaises(ConfigError, store, SimulatedFileSystem(), reserve_bytes=size)
            self.assertEqual(("reserve_bytes", size), (error.field, error.value))


class IdleTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.disk = SimulatedFileSystem()
        self.clock = Clock()
        self.log, _ = opened(self.disk, reactor=self.clock, idle_seconds=0.1, segment_bytes=1 << 20)
        self.disk.operations.clear()

    def test_an_empty_record_follows_when_the_log_is_idle(self) -> None:
        """Design, "Stores": it closes the window in which the last record could be taken for a torn one."""
        append(self.log, 1, 5)
        self.disk.operations.clear()
        self.clock.advance(0.2)
        self.assertEqual(["write", "sync"], [operation for operation, _ in self.disk.operations])
        self.clock.advance(10)
        self.assertEqual(2, len(self.disk.operations))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_busy_log_is_not_idle(self) -> None:
        for index in range(1, 20):
            append(self.log, index, index)
            self.clock.advance(0.09)
        self.assertEqual(19, self.disk.operations.count(("sync", f"{WAL}/{self.disk.list(WAL)[0]}")))

    def test_a_clean_stop_writes_it_too(self) -> None:
        append(self.log, 1, 5)
        self.disk.operations.clear()
        result(self.log.close())
        self.assertEqual(["write", "sync"], [operation for operation, _ in self.disk.operations][:2])
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_an_opening_leaves_a_closed_log_alone(self) -> None:
        """Opening and stopping a log again and again does not fill it."""
        append(self.log, 1, 5)
        result(self.log.close())
        log, _ = opened(self.disk)
        self.disk.operations.clear()
        result(log.close())
        self.assertEqual([], self.disk.operations)

    def test_a_slow_disk_is_reported(self) -> None:
        """S-21: a write that took longer than a second."""
        executor = HeldExecutor()
        log = store(self.disk.crash("all"), executor=executor, reactor=self.clock)
        start = log.open()
        executor.release_all()
        result(start)
        done = log.write(LogWrite(entries=entries(1, 1)))
        self.clock.advance(2)
        events: list[LogEvent] = []
        observer = cast(ILogObserver, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        executor.release()
        result(done)
        self.assertEqual([2.0], [event["seconds"] for event in events if "seconds" in event])


class SegmentTests(SynchronousTestCase):
    def test_sealed_segments_are_opened_by_header_and_seal_alone(self) -> None:
        disk = SimulatedFileSystem()
        log, _ = opened(disk, segment_bytes=64 << 10)
        for first in range(1, 2000, 20):
            append(log, first, first + 19)
        result(log.close())
        names = [name for name in disk.list(WAL) if name.endswith(".seg")]
        self.assertGreater(len(names), 5)
        disk.operations.clear()
        _, start = opened(disk, segment_bytes=64 << 10)
        self.assertEqual(2000, start.last.index)
        for name in names[:-1]:
            self.assertLessEqual(disk.operations.count(("read", f"{WAL}/{name}")), 3)

    def test_large_files_are_read_in_pieces(self) -> None:
        """Also where an opening has to see that one is empty: when a crash came before the seal of the one before."""
        disk = SimulatedFileSystem()
        log, _ = opened(disk, segment_bytes=4 << 20)
        crashed: list[SimulatedFileSystem] = []

        def before(operation: str, path: str) -> None:
            names = [name for name in disk.list(WAL) if name.endswith(".seg")] if operation == "write" else []
            if len(names) == 2 and path.endswith(names[0]) and not crashed:
                crashed.append(disk.crash("none"))

        last = 0
        while not crashed:
            disk.before = before if last > 3000 else None
            made = tuple(Entry.make(index, 1, EntryKind.COMMAND, bytes(1000)) for index in range(last + 1, last + 501))
            result(log.write(LogWrite(entries=made)))
            last += 500
        sizes: list[int] = []
        read = crashed[0].read

        def noted(path: str, offset: int, size: int) -> bytes:
            sizes.append(size)
            return read(path, offset, size)

        with mock.patch.object(crashed[0], "read", noted):
            self.assertEqual(last - 500, opened(crashed[0], segment_bytes=4 << 20)[1].last.index)
        self.assertGreater(sum(sizes), 8 << 20)
        self.assertLessEqual(max(sizes), 1 << 20)

    def test_the_next_segment_is_prepared_before_it_is_needed(self) -> None:
        """S-11: a rotation in the middle of a write zeroes no file."""
        disk = SimulatedFileSystem()
        log, _ = opened(disk)
        index = 0
        while len(segments(disk)) < 2:
            index += 1
            append(log, index, index)
        self.assertTrue(any(name.endswith(".tmp") for name in segments(disk)))
        self.assertEqual(index, opened(disk.crash("none"))[1].last.index)

    def test_files_have_their_full_size_from_the_start(self) -> None:
        """The size of a file never changes while records are written, so that syncing data is enough."""
        disk = SimulatedFileSystem()
        log, _ = opened(disk)
        append(log, 1, 3)
        for name in segments(disk):
            self.assertEqual(SMALL, disk.size(f"{WAL}/{name}"))

    def test_a_seal_always_has_room(self) -> None:
        """However many terms, configurations and truncations a segment holds, its seal fits behind its records."""
        disk = SimulatedFileSystem()
        size = 64 << 10
        log, _ = opened(disk, segment_bytes=size)
        last, term = 0, 1
        for step in range(120):
            if step % 3 == 2:
                term += 1
                last -= 20
                result(log.write(LogWrite(truncate_after=last, hard_state=HardState(term, 0, 0))))
            added = tuple(Entry.make(last + n, term + n, EntryKind.CONFIG) for n in range(1, 41))
            last, term = last + 40, term + 40
            result(log.write(LogWrite(entries=added)))
        names = [name for name in disk.list(WAL) if name.endswith(".seg")]
        self.assertGreater(len(names), 3)
        self.assertEqual({size}, {disk.size(f"{WAL}/{name}") for name in names})
        again, start = opened(disk.crash("none"), segment_bytes=size)
        self.assertEqual((last, last), (start.last.index, len(content(again, start))))
        self.assertEqual(last, len(start.configs))
