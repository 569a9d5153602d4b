"""The scrub of sealed segments: what is whole passes, what is not is named, and the log goes on meanwhile."""

from __future__ import annotations

import random
from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from tests.log_store_kit import HeldExecutor, append, entries, entry, opened, result, store
from tests.test_file_log_recovery import copied, segments
from zlayer_consensus.errors import StorageCorrupt, StorageFailed
from zlayer_consensus.raft import HardState, LogId, LogWrite
from zlayer_consensus.storage import FileLogStore, ScrubStep
from zlayer_consensus.storage._segment import SEGMENT_HEADER, decode_header
from zlayer_consensus.testing import SimulatedFileSystem

PIECE = 4096


def one_pass(log: FileLogStore, piece: int = PIECE) -> list[ScrubStep]:
    """Scrub to the end of a pass."""
    steps: list[ScrubStep] = []
    while not steps or not steps[-1].done:
        steps.append(result(log.scrub(piece)))
        assert len(steps) < 10_000, "the pass has no end"
    return steps


def looked_at(steps: list[ScrubStep]) -> dict[str, int]:
    """Return how many bytes of each file were read."""
    sizes: dict[str, int] = {}
    for step in steps:
        if step.path:
            sizes[step.path] = sizes.get(step.path, 0) + step.size
    return sizes


def ends(disk: SimulatedFileSystem) -> dict[str, int]:
    """Return where the content of each sealed segment ends, behind its seal."""
    paths = segments(disk)
    found = {}
    for path, following in pairwise(paths):
        seal_at = decode_header(disk.read(following, 0, SEGMENT_HEADER)).previous_end
        content = disk.read(path, 0, disk.size(path)).rstrip(b"\0")
        assert len(content) > seal_at
        found[path] = -(-len(content) // 512) * 512
    return found


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.disk = SimulatedFileSystem()
        self.log, _ = opened(self.disk)

    def fill(self, count: int = 400) -> None:
        for first in range(1, count + 1, 10):
            append(self.log, first, first + 9)


class PassTests(Case):
    def test_nothing_is_sealed(self) -> None:
        append(self.log, 1, 3)
        self.assertEqual(result(self.log.scrub(PIECE)), ScrubStep(done=True))

    def test_every_sealed_segment_is_read(self) -> None:
        """Oldest first, each to the end of its seal, in pieces; and the next pass does it again."""
        self.fill()
        expected = ends(self.disk)
        self.assertGreater(len(expected), 3)
        for _ in range(2):
            steps = one_pass(self.log)
            sizes = looked_at(steps)
            self.assertEqual(list(sizes), list(expected))
            for path, end in expected.items():
                self.assertLessEqual(sizes[path], end)
                self.assertGreater(sizes[path], end - 4096, "a gap before a page is all that is not counted")
            self.assertLess(max(step.size for step in steps), 2 * PIECE)

    def test_whatever_correct_logs_do(self) -> None:
        """Truncations into older segments, resets, votes, purges, restarts: nothing of it is taken for damage."""
        for seed in range(60):
            with self.subTest(seed):
                self.check_history(random.Random(seed))

    def check_history(self, rng: random.Random) -> None:
        disk = SimulatedFileSystem()
        log, _ = opened(disk)
        last, term, purged, committed = 0, 1, 0, 0
        for _ in range(rng.randint(20, 150)):
            action = rng.random()
            if action < 0.7:
                count = rng.randint(1, 15)
                result(log.write(LogWrite(entries=entries(last + 1, last + count, term))))
                last += count
            elif action < 0.8 and last > committed:
                keep = rng.randint(max(committed, last - 200), last)
                term += 1
                write = LogWrite(truncate_after=keep, entries=entries(keep + 1, keep + 2, term))
                result(log.write(write))
                last = keep + 2
            elif action < 0.87:
                committed = max(committed, rng.randint(max(0, last - 100), last))
                term += 1
                result(log.write(LogWrite(hard_state=HardState(term, rng.choice((0, 1, 2)), committed))))
            elif action < 0.92 and committed > purged:
                purged = rng.randint(purged + 1, committed)
                [found] = result(log.read(purged, purged, 1))
                result(log.purge(found.id))
            elif action < 0.94:
                last = purged = committed = last + rng.randint(1, 50)
                result(log.write(LogWrite(reset=LogId(term, last))))
            elif action < 0.97:
                result(log.close())
                disk = disk.crash("none")
                log, _ = opened(disk)
            else:
                one_pass(log)
        steps = one_pass(log, rng.choice((512, 4096, 1 << 20)))
        self.assertEqual(list(looked_at(steps)), segments(disk)[:-1])

    def test_purged_meanwhile(self) -> None:
        """What is gone is left out, also in the middle of it; nobody misses it."""
        self.fill()
        paths = segments(self.disk)
        self.assertEqual(result(self.log.scrub(PIECE)).path, paths[0])
        result(self.log.purge(LogId(1, 200)))
        left = segments(self.disk)
        self.assertNotIn(paths[0], left)
        self.assertEqual(list(looked_at(one_pass(self.log))), left[:-1])

    def test_everything_is_purged_meanwhile(self) -> None:
        self.fill()
        result(self.log.scrub(PIECE))
        result(self.log.purge(LogId(1, 400)))
        self.assertEqual(len(segments(self.disk)), 1)
        self.assertEqual(result(self.log.scrub(PIECE)), ScrubStep(done=True))

    def test_sealed_meanwhile(self) -> None:
        """A log that is written to faster than it is scrubbed: the pass ends, and the next one has the rest."""
        self.fill()
        before, last = segments(self.disk), 400
        steps = [result(self.log.scrub(PIECE))]
        while not steps[-1].done:
            append(self.log, last + 1, last + 20)
            last += 20
            steps.append(result(self.log.scrub(PIECE)))
        self.assertEqual(list(looked_at(steps)), before[:-1])
        self.assertGreater(len(segments(self.disk)), len(before) + 3)
        self.assertEqual(list(looked_at(one_pass(self.log))), segments(self.disk)[:-1])

    def test_a_record_that_is_larger_than_a_piece(self) -> None:
        result(self.log.write(LogWrite(entries=(entry(1, payload=random.Random(1).randbytes(50_000)),))))
        append(self.log, 2, 40)
        steps = one_pass(self.log)
        self.assertGreater(max(step.size for step in steps), 50_000)

    def test_reopened_log(self) -> None:
        """It knows its segments by their seals alone then."""
        self.fill()
        result(self.log.close())
        log, _ = opened(self.disk)
        self.assertEqual(list(looked_at(one_pass(log))), segments(self.disk)[:-1])

    def test_it_takes_its_turn_among_the_writes(self) -> None:
        """A write that comes while a step is under way waits for that one step."""
        self.fill()
        result(self.log.close())
        executor = HeldExecutor()
        log = store(self.disk, executor=executor)
        opening = log.open()
        executor.release_all()
        result(opening)
        step = log.scrub(PIECE)
        write = log.write(LogWrite(entries=entries(401, 401)))
        self.assertEqual(len(executor.held), 2)
        executor.release()
        self.assertLess(result(step).size, 2 * PIECE)
        self.assertNoResult(write)
        executor.release()
        result(write)
        executor.release_all()

    def test_store_that_is_closed(self) -> None:
        self.fill(20)
        result(self.log.close())
        self.assertRaises(StorageFailed, result, self.log.scrub(PIECE))


class DamageTests(Case):
    """S-02: what opening again does not see, because a sealed segment is opened by its seal."""

    def setUp(self) -> None:
        super().setUp()
        self.fill()
        result(self.log.close())
        self.paths = segments(self.disk)

    def scrub(self, disk: SimulatedFileSystem) -> StorageCorrupt:
        log, _ = opened(disk)
        error: StorageCorrupt = self.assertRaises(StorageCorrupt, one_pass, log)
        self.assertRaises(StorageCorrupt, result, log.write(LogWrite(entries=entries(401, 401))))
        result(log.close())
        return error

    def test_flipped_bits(self) -> None:
        """S-02: each is found, and the error names the file, the offset, and entries of that segment."""
        rng = random.Random(2)
        path, following = self.paths[1:3]
        end = ends(self.disk)[path]
        first = decode_header(self.disk.read(path, 0, SEGMENT_HEADER)).last.index + 1
        last = decode_header(self.disk.read(following, 0, SEGMENT_HEADER)).last.index
        log, _ = opened(copied(self.disk))
        seal_at = log._writer._index.segments[1].end
        for offset in rng.sample(range(SEGMENT_HEADER, seal_at), 300):
            disk = copied(self.disk)
            log, _ = opened(disk)
            byte = disk.read(path, offset, 1)[0] ^ (1 << rng.randrange(8))
            disk.corrupt(path, offset, bytes([byte]))
            error: StorageCorrupt = self.assertRaises(StorageCorrupt, one_pass, log)
            self.assertEqual(error.path, path)
            self.assertTrue(SEGMENT_HEADER <= error.offset <= offset < end, (error.offset, offset))
            assert error.first_index is not None
            # A damaged header leaves unknown what the record replaced; and here nothing is known as committed.
            self.assertTrue(error.first_index == 1 or first <= error.first_index <= last + 1)
            self.assertIn(str(error.offset), str(error))

    def test_damage_that_an_opening_passes_over(self) -> None:
        """The node starts, and finds it before anybody needs the entries; then the store has failed."""
        for path in self.paths[:-1]:
            disk = copied(self.disk)
            disk.corrupt(path, SEGMENT_HEADER + 100, b"\xff")
            self.assertEqual(self.scrub(disk).path, path)

    def test_header_and_seal(self) -> None:
        """Damaged while the node runs; an opening would refuse it."""
        path = self.paths[0]
        for offset in (100, 4000, ends(self.disk)[path] - 300):
            disk = copied(self.disk)
            log, _ = opened(disk)
            disk.corrupt(path, offset, b"\xff\xff")
            self.assertEqual(self.assertRaises(StorageCorrupt, one_pass, log).path, path)

    def test_missing_and_cut_off(self) -> None:
        """S-07: a file that nobody has purged."""
        path = self.paths[1]
        disk = copied(self.disk)
        log, _ = opened(disk)
        disk.remove(path)
        error = self.assertRaises(StorageCorrupt, one_pass, log)
        self.assertEqual((error.path, error.reason), (path, "the segment is missing"))
        disk = copied(self.disk)
        log, _ = opened(disk)
        data = disk.read(path, 0, 8000)
        disk.remove(path)
        file = disk.create(path)
        file.write(0, data)
        error = self.assertRaises(StorageCorrupt, one_pass, log)
        self.assertEqual((error.path, error.offset), (path, 8000))

    def test_another_segment_under_its_name(self) -> None:
        """S-05: whole in itself, and in the wrong place."""
        disk = copied(self.disk)
        log, _ = opened(disk)
        data = disk.read(self.paths[2], 0, disk.size(self.paths[2]))
        disk.corrupt(self.paths[1], 0, data)
        self.assertEqual(self.assertRaises(StorageCorrupt, one_pass, log).path, self.paths[1])

    def test_disk_that_cannot_be_read(self) -> None:
        """S-13: not damage but failure, and fatal like any other."""
        log, _ = opened(self.disk)
        result(log.scrub(PIECE))
        self.disk.fail("read")
        self.assertRaises(StorageFailed, one_pass, log)
