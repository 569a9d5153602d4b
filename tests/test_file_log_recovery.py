"""
What an opening of the file log store decides: the table in docs/storage-format.rst, and sweeps of damage.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from unittest import mock
from zlib import crc32

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.log_store_kit import DIRECTORY, SMALL, WAL, append, content, entries, entry, opened, result, store
from tests.real_disk import RealDisk
from zlayer_consensus.errors import StorageCorrupt, StorageError, WrongIdentity
from zlayer_consensus.raft import Entry, HardState, LogId, LogWrite, Start
from zlayer_consensus.storage import FileLogStore, InlineExecutor
from zlayer_consensus.storage._record import (
    BATCH,
    RECORD_HEADER,
    SECTOR,
    RecordHeader,
    Truncate,
    encode_batch,
    encode_operation,
    encode_record,
    mark_position,
    parse_header,
)
from zlayer_consensus.storage._segment import SEGMENT_HEADER, decode_header, encode_header
from zlayer_consensus.testing import SimulatedFileSystem


def files(disk: SimulatedFileSystem, path: str = DIRECTORY) -> dict[str, bytes]:
    """Reads every file below a directory; LOCK says nothing."""
    found = {}
    for name in disk.list(path):
        inside = f"{path}/{name}"
        if name in ("wal", "quarantine"):
            found.update(files(disk, inside))
        elif name != "LOCK":
            found[inside] = disk.read(inside, 0, disk.size(inside))
    return found


def segments(disk: SimulatedFileSystem) -> list[str]:
    return [f"{WAL}/{name}" for name in disk.list(WAL) if name.endswith(".seg")]


def records(disk: SimulatedFileSystem, path: str) -> list[RecordHeader]:
    """Lists the headers of a segment's records."""
    header = decode_header(disk.read(path, 0, SEGMENT_HEADER))
    found, at = [], SEGMENT_HEADER
    while at < header.size:
        sector = disk.read(path, at, SECTOR)
        if any(sector):
            found.append(parse_header(sector, at, header.salt))
            at += found[-1].size
        elif at == mark_position(at):
            break
        else:
            at = mark_position(at)
    return found


def copied(disk: SimulatedFileSystem) -> SimulatedFileSystem:
    return disk.crash("none")


def state(log: FileLogStore, start: Start) -> tuple[object, ...]:
    return start.hard_state, start.purged, start.last, start.terms, start.configs, content(log, start)


class OnRealFiles(SynchronousTestCase):
    """Mixed in before a test case, it runs that on the real file system."""

    def make_disk(self) -> SimulatedFileSystem:
        place = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, place)
        disk = RealDisk.make(place)
        self.addCleanup(disk.die)
        return disk


class DamageTestCase(SynchronousTestCase):
    def make_disk(self) -> SimulatedFileSystem:
        return SimulatedFileSystem()

    def refuse(self, disk: SimulatedFileSystem) -> StorageCorrupt:
        """Opens a damaged log; it must be refused, and stay as it is."""
        disk = copied(disk)
        before = files(disk)
        error: StorageCorrupt = self.assertRaises(StorageCorrupt, result, store(disk).open())
        self.assertEqual(before, files(disk))
        self.assertIn(error.path, str(error))
        return error


class RecoveryTests(DamageTestCase):
    """On a log of 60 entries in one segment; the last record is large, and no other follows it."""

    def setUp(self) -> None:
        self.disk = self.make_disk()
        log, _ = opened(self.disk, segment_bytes=256 << 10)
        for first in range(1, 50, 10):
            append(log, first, first + 9)
        result(log.write(LogWrite(entries=entries(51, 60, term=2), hard_state=HardState(2, 1, 50))))
        self.log = log
        self.path = segments(self.disk)[0]
        self.records = records(self.disk, self.path)
        self.last = self.records[-1]

    def clear(self, disk: SimulatedFileSystem, *sectors: int) -> None:
        """Takes back sectors of the last record, as if they had never been written."""
        for sector in sectors:
            disk.corrupt(self.path, self.last.position + sector * SECTOR, bytes(SECTOR))

    def test_a_torn_last_record_is_set_aside(self) -> None:
        """S-01: with any of its sectors missing; what was there is kept, what is reported is durable."""
        count = self.last.size // SECTOR
        self.assertGreater(count, 3)
        for missing in ((0,), (1,), (count - 1,), (0, count - 1), (1, 2), tuple(range(1, count))):
            disk = copied(self.disk)
            self.clear(disk, *missing)
            remains = disk.read(self.path, self.last.position, self.last.size)
            events: list[LogEvent] = []
            observer: ILogObserver = events.append  # type: ignore[assignment]
            globalLogPublisher.addObserver(observer)
            log, start = opened(disk)
            globalLogPublisher.removeObserver(observer)
            self.assertEqual(list(entries(1, 50)), content(log, start))
            self.assertEqual(HardState(), start.hard_state)
            warnings = [event["text"] for event in events if "text" in event]
            self.assertEqual(1, len(warnings))
            self.assertIn(f"offset {self.last.position}", warnings[0])
            kept = [data for path, data in files(disk).items() if "quarantine" in path]
            self.assertEqual([remains.rstrip(b"\0")], [data.rstrip(b"\0") for data in kept])
            append(log, 51, 55, term=3)
            self.assertEqual(LogId(3, 55), opened(disk.crash("none"))[1].last)

    def test_garbage_in_the_last_record_is_rot(self) -> None:
        """S-02: every sector was written, so the record was complete once, and perhaps acknowledged."""
        for offset in (3, 20, 50, 70, SECTOR + 5, self.last.size - 1, self.last.size - SECTOR):
            disk = copied(self.disk)
            disk.corrupt(self.path, self.last.position + offset, b"\xee")
            error = self.refuse(disk)
            # Without its header, nobody knows what it replaced; and here nothing is known as committed.
            first = 1 if offset < RECORD_HEADER else 51
            self.assertEqual((self.path, self.last.position, first), (error.path, error.offset, error.first_index))

    def test_a_damaged_record_may_have_replaced_what_was_not_committed(self) -> None:
        """S-05: it says itself where it begins, unless its header is damaged; then the last known commit does."""
        disk = SimulatedFileSystem()
        log, _ = opened(disk)
        append(log, 1, 10)
        result(log.write(LogWrite(hard_state=HardState(1, 0, 6))))
        result(log.write(LogWrite(truncate_after=7, entries=entries(8, 12, 2))))
        append(log, 13, 14, 2)
        [path] = segments(disk)
        damaged = next(each for each in records(disk, path) if each.entries and each.last == 12)
        for offset, first, last in ((4, 7, None), (RECORD_HEADER + 5, 8, 12)):
            copy = copied(disk)
            copy.corrupt(path, damaged.position + offset, b"\xee")
            error = self.refuse(copy)
            self.assertEqual((first, last), (error.first_index, error.last_index))
        copy = copied(disk)
        copy.corrupt(path, damaged.position, bytes(damaged.size))
        error = self.refuse(copy)
        self.assertEqual((7, 12), (error.first_index, error.last_index))

    def test_a_bad_length_is_not_believed(self) -> None:
        """S-03: the header has a checksum of its own, and nothing of such a length is asked for."""
        for record in (self.records[1], self.last):
            length = self.disk.read(self.path, record.position + 8, 4)
            flipped = [bytearray(length) for _ in range(32)]
            for bit, each in enumerate(flipped):
                each[bit // 8] ^= 1 << bit % 8
            for bad in (b"\xff\xff\xff\x7f", *map(bytes, flipped)):
                disk = copied(self.disk)
                disk.corrupt(self.path, record.position + 8, bad)
                with mock.patch.object(disk, "read", wraps=disk.read) as read:
                    error: StorageCorrupt = self.assertRaises(StorageCorrupt, result, store(disk).open())
                self.assertIn("header", error.reason)
                self.assertEqual((self.path, record.position), (error.path, error.offset))
                self.assertLessEqual(max(call.args[2] for call in read.call_args_list), 1 << 20)

    def test_damage_before_a_valid_record_is_rot(self) -> None:
        """S-02, S-04: also when it looks like a write that never happened."""
        for record in self.records[:-1]:
            for sectors in ((0,), (1,), (0, 1, 2), tuple(range(record.size // SECTOR))):
                disk = copied(self.disk)
                for sector in sectors:
                    disk.corrupt(self.path, record.position + sector * SECTOR, bytes(SECTOR))
                error = self.refuse(disk)
                first = 1 if 0 in sectors else record.first
                self.assertEqual((self.path, record.position, first), (error.path, error.offset, error.first_index))

    def test_after_a_clean_stop_no_damage_passes_for_a_torn_write(self) -> None:
        """Design, "Stores": the empty record at the end proves that the last one was durable."""
        result(self.log.close())
        for sector in range(self.last.size // SECTOR):
            disk = copied(self.disk)
            self.clear(disk, sector)
            self.refuse(disk)

    def test_zeros_in_a_payload_do_not_pass_for_a_torn_write(self) -> None:
        """Design, "Stores": a record full of zeros, and one flipped bit in it, in the last record of a busy log."""
        result(self.log.write(LogWrite(entries=(Entry.make(61, 2, 1, bytes(4000)),))))
        last = records(self.disk, self.path)[-1]
        for offset in (100, 1000, 3000, last.size - SECTOR):
            disk = copied(self.disk)
            disk.corrupt(self.path, last.position + offset, b"\x01")
            self.refuse(disk)

    def test_a_misdirected_record_is_rot(self) -> None:
        """S-05: a valid record in another's place."""
        record = self.disk.read(self.path, self.records[1].position, self.records[1].size)
        disk = copied(self.disk)
        disk.corrupt(self.path, self.records[2].position, record)
        self.refuse(disk)
        disk = copied(self.disk)
        disk.corrupt(self.path, self.last.position + self.last.size, record)
        self.assertIn("offset", self.refuse(disk).reason)

    def test_a_file_of_another_size_is_refused(self) -> None:
        """A segment has its full size from the start, so no crash shortens it."""
        disk = copied(self.disk)
        disk.truncate(self.path, self.last.position + 700)
        self.refuse(disk)
        disk = copied(self.disk)
        disk.truncate(self.path, 0)
        self.refuse(disk)

    def test_a_damaged_segment_header_is_refused(self) -> None:
        """S-18: it holds term and vote."""
        disk = copied(self.disk)
        disk.corrupt(self.path, 130, b"\xee")
        self.assertEqual((self.path, 0), (self.refuse(disk).path, self.refuse(disk).offset))

    def craft(self, payload: bytes, first: int, last: int, count: int) -> SimulatedFileSystem:
        """Appends a well-formed record that no correct store writes."""
        disk = copied(self.disk)
        salt = decode_header(disk.read(self.path, 0, SEGMENT_HEADER)).salt
        end = self.last.position + self.last.size
        record, _ = encode_record(BATCH, payload, count, first, last, end, salt, self.last.chain)
        disk.corrupt(self.path, end, record)
        return disk

    def test_truncation_below_the_commit_is_refused_at_replay(self) -> None:
        """H-25."""
        error = self.refuse(self.craft(encode_operation(Truncate(49)), 50, 49, 0))
        self.assertIn("H-25", error.reason)

    def test_a_gap_is_refused_at_replay(self) -> None:
        """H-35, S-08: an entry that does not follow, one of an older term, and a record that miscounts (J-100)."""
        for made, count in ((entries(62, 63, term=2), 2), (entries(61, 62, term=1), 2), (entries(61, 62, term=2), 3)):
            payload = b"".join(encode_batch(made)[1])
            self.refuse(self.craft(payload, made[0].index, made[-1].index, count))

    def test_what_recovery_reports_is_durable(self) -> None:
        """Design, "Stores": a killed process leaves what is in the page cache alone; it is synced before it counts."""
        held = self.make_disk()
        log, _ = opened(held)
        append(log, 1, 5)
        held.fail("sync")
        self.assertRaises(StorageError, result, log.write(LogWrite(entries=entries(6, 9))))
        killed = held.crash(process_only=True)
        _, start = opened(killed)
        self.assertEqual(9, start.last.index)
        self.assertEqual(9, opened(killed.crash("none"))[1].last.index)


class SegmentFileTests(DamageTestCase):
    """On a log of several segments."""

    def setUp(self) -> None:
        self.disk = self.make_disk()
        self.log, _ = opened(self.disk)
        for first in range(1, 400, 10):
            append(self.log, first, first + 9)
        result(self.log.write(LogWrite(hard_state=HardState(3, 2, 350))))
        self.paths = segments(self.disk)
        self.assertGreater(len(self.paths), 5)

    def test_a_missing_tail_file_is_noticed(self) -> None:
        """S-07: the seal of the segment before names it."""
        disk = copied(self.disk)
        disk.remove(self.paths[-1])
        disk.sync_dir(WAL)
        error = self.refuse(disk)
        self.assertEqual(self.paths[-2], error.path)
        self.assertIn("must follow", error.reason)

    def test_a_missing_first_or_middle_segment_is_noticed(self) -> None:
        """S-08: unless it was purged, the log is not whole."""
        for missing in (0, 2, len(self.paths) - 2):
            disk = copied(self.disk)
            disk.remove(self.paths[missing])
            disk.sync_dir(WAL)
            error = self.refuse(disk)
            self.assertIn(f"segment {missing + 1}, which must come before, is missing", error.reason)
            self.assertEqual(1, error.first_index)

    def test_a_log_without_segments_is_not_an_empty_one(self) -> None:
        """S-18: the identity says that the log was begun."""
        disk = copied(self.disk)
        for path in self.paths:
            disk.remove(path)
        disk.sync_dir(WAL)
        self.assertIn("missing", self.refuse(disk).reason)

    def test_a_log_without_its_folder_is_not_an_empty_one(self) -> None:
        """S-18: on a real file system, where the folder can go with everything in it."""
        directory = self.mktemp()
        first = FileLogStore(directory, 1, executor=InlineExecutor())
        self.successResultOf(first.open())
        self.successResultOf(first.close())
        shutil.rmtree(f"{directory}/wal")
        failed = FileLogStore(directory, 1, executor=InlineExecutor())
        error = self.failureResultOf(failed.open(), StorageCorrupt).value
        self.successResultOf(failed.close())
        self.assertIn("missing", error.reason)

    def test_segments_without_identity_are_not_an_empty_log(self) -> None:
        """S-19: it never starts empty where data should be."""
        disk = copied(self.disk)
        disk.remove(f"{DIRECTORY}/identity")
        disk.sync_dir(DIRECTORY)
        self.assertEqual(f"{DIRECTORY}/identity", self.refuse(disk).path)

    def test_a_damaged_seal_is_refused(self) -> None:
        """J-100."""
        for path in self.paths[:-1]:
            disk = copied(self.disk)
            seal = records(disk, path)[-1]
            disk.corrupt(path, seal.position + 80, b"\xee")
            error = self.refuse(disk)
            self.assertEqual((path, seal.position), (error.path, error.offset))

    def test_damage_in_a_sealed_segment_is_noticed_when_it_is_read(self) -> None:
        """S-02, S-13: entries are verified each time; the store stops, and names file, offset and entries."""
        disk = copied(self.disk)
        record = records(disk, self.paths[1])[1]
        disk.corrupt(self.paths[1], record.position + 100, b"\xee")
        log, start = opened(disk)
        self.assertEqual(400, start.last.index)
        error = self.assertRaises(StorageCorrupt, result, log.read(record.first, record.last, 1 << 20))
        self.assertEqual((self.paths[1], record.position), (error.path, error.offset))
        self.assertEqual((record.first, record.last), (error.first_index, error.last_index))
        self.assertRaises(StorageCorrupt, result, log.write(LogWrite(entries=entries(401, 401))))

    def test_another_nodes_segment_is_refused(self) -> None:
        """S-09: a file copied in from another data directory of the same node id."""
        other = self.make_disk()
        log, _ = opened(other, random_bytes=random.Random("another").randbytes)
        for first in range(1, 400, 10):
            append(log, first, first + 9)
        disk = copied(self.disk)
        disk.corrupt(self.paths[2], 0, other.read(self.paths[2], 0, SMALL))
        error = self.assertRaises(WrongIdentity, result, store(disk).open())
        self.assertEqual((self.paths[2], "incarnation"), (error.path, error.field))

    def test_a_segment_under_another_name_is_refused(self) -> None:
        """S-05."""
        disk = copied(self.disk)
        disk.corrupt(self.paths[2], 0, disk.read(self.paths[3], 0, SMALL))
        self.assertEqual(self.paths[2], self.refuse(disk).path)

    def test_old_bytes_of_another_segment_are_rot(self) -> None:
        """S-06: writes that got lost, so that what the file held in an earlier life shows; in part, and as a whole."""
        earlier = self.disk.read(self.paths[1], SEGMENT_HEADER, SMALL - SEGMENT_HEADER)
        there = records(self.disk, self.paths[-1])
        end = there[-1].position + there[-1].size
        for offset in (SEGMENT_HEADER, there[-1].position, end):
            disk = copied(self.disk)
            disk.corrupt(self.paths[-1], offset, earlier[: SMALL - offset])
            error = self.refuse(disk)
            self.assertEqual((self.paths[-1], offset), (error.path, error.offset))

    def test_a_later_format_is_refused(self) -> None:
        """S-25: as another format, not as damage."""
        disk = copied(self.disk)
        header = decode_header(disk.read(self.paths[-1], 0, SEGMENT_HEADER))
        with_version = self.patched_version(encode_header(header))
        disk.corrupt(self.paths[-1], 0, with_version)
        error = self.assertRaises(WrongIdentity, result, store(disk).open())
        self.assertEqual(("format version", "1", "2"), (error.field, error.expected, error.found))

    def patched_version(self, data: bytes) -> bytes:
        head = data[:8] + (2).to_bytes(2, "little") + data[10:12]
        check = crc32(data[16:], crc32(head + bytes(4)))
        return head + check.to_bytes(4, "little") + data[16:]

    def test_leftovers_of_an_interrupted_purge_are_removed(self) -> None:
        """S-26: whichever of the removed files are still there after a crash."""
        for leftovers in ((0,), (1,), (0, 2), (0, 1, 2)):
            disk = copied(self.disk)
            kept = {path: disk.read(path, 0, SMALL) for path in self.paths}
            log, _ = opened(disk)
            result(log.purge(LogId(1, 200)))
            gone = [path for path in self.paths if path not in segments(disk)]
            self.assertGreater(len(gone), 2)
            for at in leftovers:
                file = disk.create(gone[at])
                file.write(0, kept[gone[at]])
                file.sync()
            disk.sync_dir(WAL)
            log, start = opened(disk.crash("none"))
            self.assertEqual((LogId(1, 200), list(entries(201, 400))), (start.purged, content(log, start)))
            disk = disk.crash("none")
            opened(disk)
            self.assertFalse(set(gone) & set(segments(disk)))

    def test_preallocated_files_are_removed_and_foreign_ones_stay(self) -> None:
        disk = copied(self.disk)
        for name in ("00000000000000ff.tmp", "README"):
            disk.create(f"{WAL}/{name}").sync()
        opened(disk)
        self.assertEqual(["README", "reserve"], [name for name in disk.list(WAL) if not name.endswith(".seg")])

    def test_a_damaged_identity_is_refused(self) -> None:
        disk = copied(self.disk)
        disk.truncate(f"{DIRECTORY}/identity", 10)
        self.assertEqual(f"{DIRECTORY}/identity", self.refuse(disk).path)


class RealRecoveryTests(OnRealFiles, RecoveryTests):
    """S-01, S-02, S-03, S-04, S-05, S-18, H-25, H-35, J-100: the same on the real file system."""


class RealSegmentFileTests(OnRealFiles, SegmentFileTests):
    """S-02, S-05, S-06, S-07, S-08, S-09, S-13, S-18, S-19, S-25, S-26, J-100: the same on the real file system."""


class LostSectorTests(SynchronousTestCase):
    """J-98, S-02: whichever sector or page is lost, an opening finds the identical log, or refuses."""

    def make(self) -> SimulatedFileSystem:
        disk = SimulatedFileSystem()
        log, _ = opened(disk)
        append(log, 1, 40)
        result(log.write(LogWrite(None, 30, entries(31, 60, term=2), HardState(2, 1, 20))))
        for first in range(61, 200, 20):
            append(log, first, first + 19, term=3)
        result(log.purge(LogId(1, 10)))
        result(
            log.write(LogWrite(entries=(entry(201, 4, bytes(1500)), entry(202, 4)), hard_state=HardState(4, 2, 190)))
        )
        result(log.close())
        return copied(disk)

    def outcome(self, disk: SimulatedFileSystem) -> object:
        try:
            log, start = opened(disk)
            return state(log, start)
        except StorageError as error:
            if isinstance(error, StorageCorrupt):
                self.assertTrue(error.path.startswith(DIRECTORY) and error.offset >= 0, str(error))
            return None

    def test_any_lost_sector_or_page_after_a_clean_stop(self) -> None:
        """S-04: zeroed sectors and pages."""
        disk = self.make()
        expected = self.outcome(copied(disk))
        lost = 0
        for path, data in files(disk).items():
            for size in (SECTOR, 4096):
                for offset in range(0, len(data.rstrip(b"\0")), size):
                    damaged = copied(disk)
                    damaged.corrupt(path, offset, bytes(min(size, len(data) - offset)))
                    lost += damaged.read(path, 0, len(data)) != data
                    self.assertIn(self.outcome(damaged), (None, expected), f"{path}, {size} bytes at {offset}")
        self.assertGreater(lost, 50)
