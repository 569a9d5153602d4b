"""
The file log store: life cycle, writing, reading, purging.
"""

from __future__ import annotations

import random
from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.log_store_kit import (
    DIRECTORY,
    SMALL,
    WAL,
    HeldExecutor,
    append,
    content,
    entries,
    entry,
    opened,
    result,
    store,
)
from zlayer_consensus.errors import (
    ConfigError,
    InvariantBroken,
    LogCompacted,
    StorageFailed,
    StorageLocked,
    WrongIdentity,
)
from zlayer_consensus.raft import NO_LOG, Entry, EntryKind, HardState, LogId, LogWrite, Start
from zlayer_consensus.storage import FileLogStore, Identity, ILogStore
from zlayer_consensus.storage._identity import write_identity
from zlayer_consensus.testing import SimulatedFileSystem


def writes(disk: SimulatedFileSystem) -> list[tuple[str, str]]:
    """Lists what was done to files since the list of operations was cleared."""
    return [(operation, path.rpartition("/")[2]) for operation, path in disk.operations]


class LifeCycleTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.disk = SimulatedFileSystem()

    def test_it_provides_the_contract(self) -> None:
        log, _ = opened(self.disk)
        verifyObject(ILogStore, log)

    def test_an_empty_directory_becomes_an_empty_log(self) -> None:
        log, start = opened(self.disk)
        self.assertEqual(Start(), start)
        self.assertEqual(Identity(1, log.identity.incarnation), log.identity)
        self.assertEqual(16, len(log.identity.incarnation))

    def test_what_was_written_is_there_after_reopening(self) -> None:
        """J-01: term and vote, entries, their terms and configurations, the log's time."""
        log, _ = opened(self.disk)
        written = (*entries(1, 3), entry(4, 2, kind=EntryKind.CONFIG), *entries(5, 6, term=2))
        result(log.write(LogWrite(entries=written, hard_state=HardState(2, 3, 4))))
        result(log.close())
        again, start = opened(self.disk)
        self.assertEqual(
            Start(
                hard_state=HardState(2, 3, 4),
                last=LogId(2, 6),
                terms=((1, 1), (4, 2)),
                configs=(written[3],),
                tail=written,
                last_time_ms=1006,
            ),
            start,
        )
        self.assertEqual(list(written), content(again, start))

    def test_the_incarnation_is_made_once(self) -> None:
        """H-29, J-11: a directory keeps it, a new directory gets another."""
        rng = random.Random(1).randbytes
        log, _ = opened(self.disk, random_bytes=rng)
        result(log.close())
        again, _ = opened(self.disk, random_bytes=rng)
        other, _ = opened(SimulatedFileSystem(), random_bytes=rng)
        self.assertEqual(log.identity.incarnation, again.identity.incarnation)
        self.assertNotEqual(log.identity.incarnation, other.identity.incarnation)

    def test_the_cluster_is_adopted_once(self) -> None:
        """H-30: durably, before the first write; later only the same again."""
        log, _ = opened(self.disk)
        wanted = Identity(99, b"ignored", b"c" * 16, b"members")
        result(log.adopt(wanted))
        adopted = Identity(1, log.identity.incarnation, b"c" * 16, b"members")
        self.assertEqual(adopted, log.identity)
        append(log, 1, 300)
        result(log.adopt(wanted))
        disk = self.disk.crash("none")
        again, start = opened(disk)
        self.assertEqual(adopted, again.identity)
        self.assertEqual(300, start.last.index)
        self.assertRaises(WrongIdentity, result, again.adopt(Identity(1, b"", b"d" * 16)))

    def test_marks_and_former_clusters_stay_with_the_identity(self) -> None:
        log, _ = opened(self.disk)
        result(log.adopt(Identity(1, b"", b"c" * 16)))
        append(log, 1, 300)
        result(log.close())
        marked = replace(log.identity, cluster_id=b"d" * 16, former=(b"c" * 16,), repair=b"r" * 16)
        write_identity(self.disk, DIRECTORY, marked)
        again, start = opened(self.disk)
        self.assertEqual((marked, 300), (again.identity, start.last.index))
        result(again.close())
        write_identity(self.disk, DIRECTORY, replace(marked, former=()))
        error = self.assertRaises(WrongIdentity, result, store(self.disk).open())
        self.assertEqual("cluster", error.field)

    def test_a_log_that_was_written_to_joins_no_cluster(self) -> None:
        log, _ = opened(self.disk)
        append(log, 1, 1)
        self.assertRaises(InvariantBroken, result, log.adopt(Identity(1, b"", b"c" * 16)))

    def test_another_nodes_directory_is_refused(self) -> None:
        """S-09: and nothing in it changes."""
        log, _ = opened(self.disk)
        result(log.close())
        self.disk.operations.clear()
        error = self.assertRaises(WrongIdentity, result, store(self.disk, node_id=2).open())
        self.assertEqual(("node", "2", "1"), (error.field, error.expected, error.found))
        self.assertFalse({"write", "create", "rename", "remove"} & {operation for operation, _ in self.disk.operations})

    def test_the_directory_is_locked_while_it_is_open(self) -> None:
        """S-20: and free again after closing, and after a refusal."""
        log, _ = opened(self.disk)
        error = self.assertRaises(StorageLocked, result, store(self.disk).open())
        self.assertEqual(f"{DIRECTORY}/LOCK", error.path)
        result(log.close())
        self.assertRaises(WrongIdentity, result, store(self.disk, node_id=2).open())
        opened(self.disk)

    def test_it_is_opened_once_and_used_while_it_is_open(self) -> None:
        log = store(self.disk)
        for use in (lambda: log.write(LogWrite()), lambda: log.read(1, 1, 1), lambda: log.purge(NO_LOG)):
            self.assertRaises(StorageFailed, result, use())
        result(log.open())
        self.assertRaises(StorageFailed, result, log.open())
        result(log.close())
        result(log.close())
        self.assertRaises(StorageFailed, result, log.write(LogWrite()))

    def test_impossible_settings_are_refused(self) -> None:
        self.assertRaises(ConfigError, store, self.disk, segment_bytes=100)
        self.assertRaises(ConfigError, FileLogStore, DIRECTORY, 1, file_system=self.disk)


class WriteTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.disk = SimulatedFileSystem()
        self.log, _ = opened(self.disk)
        self.disk.operations.clear()

    def reopened(self) -> tuple[FileLogStore, Start]:
        return opened(self.disk.crash("none"))

    def test_a_write_is_one_write_and_one_sync_of_its_segment(self) -> None:
        """J-21, J-22, J-99: entries, truncation and hard state together, in the segment that was written."""
        append(self.log, 1, 5)
        self.disk.operations.clear()
        result(self.log.write(LogWrite(None, 3, entries(4, 12, term=2), HardState(2, 1, 3))))
        segment = "0000000000000001-00000000000000000001.seg"
        self.assertEqual([("write", segment), ("sync", segment)], writes(self.disk))
        _, start = self.reopened()
        self.assertEqual((LogId(2, 12), HardState(2, 1, 3)), (start.last, start.hard_state))

    def test_the_parts_of_a_write_take_effect_in_order(self) -> None:
        """Reset, then truncation, then entries, then hard state."""
        append(self.log, 1, 5)
        write = LogWrite(LogId(3, 20), 20, entries(21, 22, term=4), HardState(4, 0, 21))
        result(self.log.write(write))
        log, start = self.reopened()
        self.assertEqual((LogId(3, 20), LogId(4, 22)), (start.purged, start.last))
        self.assertEqual(HardState(4, 0, 21), start.hard_state)
        self.assertEqual(list(entries(21, 22, term=4)), content(log, start))

    def test_the_commit_never_exceeds_the_log(self) -> None:
        """What is committed elsewhere is not durable here: the hint stops at the last entry."""
        result(self.log.write(LogWrite(entries=entries(1, 3), hard_state=HardState(1, 0, 50))))
        _, start = self.reopened()
        self.assertEqual(3, start.hard_state.commit)
        result(self.log.write(LogWrite(None, 3, (), HardState(1, 0, 50))))
        self.assertEqual(3, self.reopened()[1].hard_state.commit)

    def test_truncation_below_the_commit_is_refused(self) -> None:
        """H-25: the store fails, and nothing was removed."""
        result(self.log.write(LogWrite(entries=entries(1, 9), hard_state=HardState(1, 0, 5))))
        self.assertRaises(InvariantBroken, result, self.log.write(LogWrite(truncate_after=4)))
        self.assertRaises(InvariantBroken, result, self.log.write(LogWrite(entries=entries(10, 10))))
        self.assertEqual(9, self.reopened()[1].last.index)

    def test_what_no_correct_log_has_is_refused(self) -> None:
        """Gaps, falling terms, two votes in a term, a truncation or purge of what is not there."""
        for broken in (
            LogWrite(entries=entries(8, 9)),
            LogWrite(entries=entries(6, 7)),
            LogWrite(entries=(entry(7), entry(9))),
            LogWrite(entries=entries(7, 7, term=1)),
            LogWrite(hard_state=HardState(1, 0, 0)),
            LogWrite(hard_state=HardState(2, 3, 0)),
            LogWrite(reset=LogId(2, 1)),
            LogId(2, 9),
            LogId(1, 6),
        ):
            disk = SimulatedFileSystem()
            log, _ = opened(disk)
            result(log.write(LogWrite(entries=entries(1, 6, term=2), hard_state=HardState(2, 1, 2))))
            refused = log.purge(broken) if isinstance(broken, LogId) else log.write(broken)
            self.assertRaises(InvariantBroken, result, refused)
            _, start = opened(disk.crash("all"))
            self.assertEqual((LogId(2, 6), HardState(2, 1, 2)), (start.last, start.hard_state))

    def test_removed_entries_do_not_come_back(self) -> None:
        """J-63: after truncations across segments, and shorter replacements."""
        append(self.log, 1, 200)
        result(self.log.write(LogWrite(None, 50, entries(51, 60, term=2))))
        log, start = self.reopened()
        self.assertEqual([*entries(1, 50), *entries(51, 60, term=2)], content(log, start))
        self.assertEqual(((1, 1), (51, 2)), start.terms)

    def test_an_entry_may_be_larger_than_a_segment(self) -> None:
        big = entry(3, payload=bytes(5 * SMALL))
        append(self.log, 1, 2)
        result(self.log.write(LogWrite(entries=(big,))))
        append(self.log, 4, 5)
        log, start = self.reopened()
        self.assertEqual([*entries(1, 2), big, *entries(4, 5)], content(log, start))

    def test_a_split_write_begins_with_its_term(self) -> None:
        """S-18: whatever part of a write that needs several records survives, its entries' term is known."""
        many = tuple(entry(index, 7, bytes(2000)) for index in range(1, 20))
        disks = []
        self.disk.before = lambda operation, path: disks.append(self.disk.crash("none"))
        result(self.log.write(LogWrite(entries=many, hard_state=HardState(7, 2, 19))))
        seen = set()
        for disk in disks:
            _, start = opened(disk)
            if start.last != NO_LOG:
                self.assertEqual((7, 2), start.hard_state[:2])
                self.assertLessEqual(start.hard_state.commit, start.last.index)
            seen.add(start.last.index)
        self.assertGreater(len(seen), 2)

    def test_a_cancelled_write_is_written(self) -> None:
        """Cancelling gives up waiting and nothing else."""
        executor = HeldExecutor()
        log = store(self.disk.crash("all"), executor=executor)
        start = log.open()
        executor.release()
        result(start)
        done = log.write(LogWrite(entries=entries(1, 1)))
        _ = done.addErrback(lambda failure: None)
        done.cancel()
        executor.release_all()
        read = log.read(1, 1, 1)
        executor.release_all()
        self.assertEqual([entry(1)], result(read))


class GroupCommitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.disk = SimulatedFileSystem()
        self.executor = HeldExecutor()
        self.log = store(self.disk, executor=self.executor)
        start = self.log.open()
        self.executor.release_all()
        result(start)
        self.disk.operations.clear()
        self.fired: list[int] = []

    def write(self, index: int) -> Deferred[None]:
        done = self.log.write(LogWrite(entries=entries(index, index)))
        return done.addCallback(lambda _: self.fired.append(index))

    def syncs(self) -> int:
        return sum(operation == "sync" for operation, _ in self.disk.operations)

    def test_what_arrives_during_a_sync_shares_the_next(self) -> None:
        """J-23: all are durable when they fire, and they fire in order."""
        for index in range(1, 6):
            _ = self.write(index)
        self.executor.release()
        self.assertEqual(([1], 1), (self.fired, self.syncs()))
        for index in range(6, 8):
            _ = self.write(index)
        self.executor.release()
        self.assertEqual((list(range(1, 6)), 2), (self.fired, self.syncs()))
        self.executor.release()
        self.assertEqual((list(range(1, 8)), 3), (self.fired, self.syncs()))
        _, start = opened(self.disk.crash("none"))
        self.assertEqual(7, start.last.index)

    def test_nothing_fires_before_its_sync(self) -> None:
        """J-21, J-22: and what has not fired may be lost."""
        _ = self.write(1)
        self.assertEqual([], self.fired)
        _, start = opened(self.disk.crash("all"))
        self.assertEqual(0, start.last.index)

    def test_writes_of_one_group_take_effect_in_order(self) -> None:
        """J-24: an entry that was replaced within the group is not the one that survives."""
        _ = self.write(1)
        steps = [
            self.log.write(LogWrite(entries=entries(2, 9))),
            self.log.write(LogWrite(truncate_after=4, hard_state=HardState(2, 1, 2))),
            self.log.write(LogWrite(entries=entries(5, 6, term=2))),
            self.log.purge(LogId(1, 2)),
            self.log.write(LogWrite(None, 5, entries(6, 12, term=3), HardState(3, 0, 5))),
        ]
        self.executor.release()
        self.executor.release()
        for step in steps:
            result(step)
        self.assertEqual(2, self.syncs())
        log, start = opened(self.disk.crash("none"))
        self.assertEqual(((3, 1), (5, 2), (6, 3)), start.terms)
        self.assertEqual([*entries(3, 4), entry(5, 2), *entries(6, 12, term=3)], content(log, start))
        self.assertEqual((HardState(3, 0, 5), LogId(1, 2)), (start.hard_state, start.purged))

    def test_no_write_goes_ahead_of_those_before_it(self) -> None:
        """What a group needs several records for is written in order: the term of the last write comes last."""
        _ = self.write(1)
        big = [Entry.make(index, 1, EntryKind.COMMAND, bytes(3000), 1000) for index in range(2, 6)]
        steps = [self.log.write(LogWrite(entries=(each,))) for each in big]
        steps.append(self.log.write(LogWrite(entries=entries(6, 6, term=2), hard_state=HardState(2, 0, 1))))
        self.executor.release()
        states = set()

        def before(operation: str, _path: str) -> None:
            if operation == "write":
                start = opened(self.disk.crash("none"))[1]
                states.add((start.last.index, start.hard_state.term))

        self.disk.before = before
        self.executor.release()
        for step in steps:
            result(step)
        self.assertGreater(len(states), 2)
        self.assertEqual({0}, {term for _, term in states})

    def test_a_write_from_a_callback_fires_after_those_before_it(self) -> None:
        log, _ = opened(SimulatedFileSystem())
        order: list[str] = []
        first = log.write(LogWrite(entries=entries(1, 1)))
        _ = first.addCallback(
            lambda _: log.write(LogWrite(entries=entries(2, 2))).addCallback(lambda _: order.append("nested"))
        )
        _ = first.addCallback(lambda _: order.append("first"))
        self.assertEqual(["nested", "first"], order)

    def test_closing_waits_for_what_was_written(self) -> None:
        for index in range(1, 4):
            _ = self.write(index)
        closed = self.log.close()
        self.executor.release()
        self.assertNoResult(closed)
        self.executor.release_all()
        result(closed)
        self.assertEqual([1, 2, 3], self.fired)
        self.assertEqual(3, opened(self.disk)[1].last.index)


class ReadTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.disk = SimulatedFileSystem()
        self.log, _ = opened(self.disk)
        for first in range(1, 400, 7):
            append(self.log, first, first + 6)

    def test_any_range_can_be_read(self) -> None:
        for first, last in ((1, 1), (1, 399), (17, 230), (399, 399), (200, 201), (5, 5000)):
            self.assertEqual(list(entries(first, min(last, 399))), result(self.log.read(first, last, 1 << 40)))

    def test_bytes_bound_a_read_but_one_entry_always_comes(self) -> None:
        size = len(entry(10).raw)
        self.assertEqual(list(entries(10, 12)), result(self.log.read(10, 99, 3 * size + 1)))
        self.assertEqual([entry(10)], result(self.log.read(10, 99, 0)))

    def test_what_is_not_there_yet_is_refused_and_the_store_goes_on(self) -> None:
        self.assertRaises(ValueError, result, self.log.read(400, 400, 1))
        self.assertEqual([entry(3)], result(self.log.read(3, 3, 1)))

    def test_memory_does_not_grow_with_the_entries(self) -> None:
        """The index of a segment has a point per 64 KiB, however many entries there are."""
        disk = SimulatedFileSystem()
        log, _ = opened(disk, segment_bytes=1 << 20)
        tiny = [Entry.make(index, 1, EntryKind.NOOP) for index in range(1, 10_001)]
        for at in range(0, len(tiny), 100):
            result(log.write(LogWrite(entries=tuple(tiny[at : at + 100]))))
        segments = log._writer._index.segments
        self.assertEqual(1, len(segments))
        self.assertLess(len(segments[0]._point_indexes), 20)
        self.assertEqual(tiny[7777:7790], result(log.read(7778, 7790, 1 << 20)))

    def test_a_failed_read_stops_the_store(self) -> None:
        """S-13, J-27: nothing is sent that was made from a failed read."""
        self.disk.fail("read")
        self.assertRaises(StorageFailed, result, self.log.read(1, 5, 1 << 20))
        self.assertRaises(StorageFailed, result, self.log.write(LogWrite(entries=entries(400, 400))))
        self.flushLoggedErrors()


class PurgeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.disk = SimulatedFileSystem()
        self.log, _ = opened(self.disk)
        for first in range(1, 400, 10):
            append(self.log, first, first + 9)
        result(self.log.write(LogWrite(hard_state=HardState(4, 2, 300))))

    def test_what_was_purged_cannot_be_read(self) -> None:
        result(self.log.purge(LogId(1, 120)))
        error = self.assertRaises(LogCompacted, result, self.log.read(120, 130, 1 << 20))
        self.assertEqual(121, error.first_index)
        self.assertEqual([entry(121)], result(self.log.read(121, 121, 1 << 20)))

    def test_whole_segments_go_oldest_first_after_the_position_is_durable(self) -> None:
        """S-26, J-96: first the record and its sync, then the files, then the sync of the directory."""
        before = self.disk.list(WAL)
        self.disk.operations.clear()
        result(self.log.purge(LogId(1, 250)))
        operations = [operation for operation, _ in self.disk.operations]
        removed = [path.rpartition("/")[2] for operation, path in self.disk.operations if operation == "remove"]
        self.assertEqual(["write", "sync"], operations[:2])
        self.assertEqual("sync_dir", operations[2 + len(removed)])
        self.assertEqual(before[: len(removed)], removed)
        self.assertGreater(len(removed), 3)
        self.assertEqual(before[len(removed) :], self.disk.list(WAL))

    def test_term_and_vote_outlive_the_segment_they_were_written_in(self) -> None:
        """J-02: the header of a later segment repeats them, and the purge position."""
        result(self.log.purge(LogId(1, 250)))
        for first in range(401, 600, 10):
            result(self.log.write(LogWrite(entries=entries(first, first + 9, term=4))))
        result(self.log.purge(LogId(4, 590)))
        log, start = opened(self.disk.crash("none"))
        self.assertEqual((HardState(4, 2, 300), LogId(4, 590)), (start.hard_state, start.purged))
        self.assertEqual(list(entries(591, 600, term=4)), content(log, start))
        self.assertEqual(((591, 4),), start.terms)

    def test_everything_may_be_purged(self) -> None:
        result(self.log.purge(LogId(1, 400)))
        disk = self.disk.crash("none")
        log, start = opened(disk)
        self.assertEqual((LogId(1, 400), LogId(1, 400), ()), (start.purged, start.last, start.terms))
        append(log, 401, 402)
        self.assertEqual(((401, 1),), opened(disk.crash("none"))[1].terms)

    def test_a_purge_that_lies_behind_changes_nothing(self) -> None:
        result(self.log.purge(LogId(1, 120)))
        result(self.log.purge(LogId(1, 100)))
        self.assertEqual(LogId(1, 120), opened(self.disk.crash("none"))[1].purged)
