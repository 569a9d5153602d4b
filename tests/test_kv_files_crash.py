"""A store of snapshots with values on disk, whose power fails at every operation: what is found is whole."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.kv_files_kit import Commands, apply, make_machine
from tests.snapshot_kit import PowerFailure, point
from zlayer_consensus.errors import InvariantBroken, StorageCorrupt, StorageFull
from zlayer_consensus.kv import FileKeyValueMachine, KeyValueMachine
from zlayer_consensus.storage import FileStateMachine, InlineExecutor, Manifest
from zlayer_consensus.storage.inspection import list_snapshots, verify_parts
from zlayer_consensus.testing import SimulatedFileSystem
from zlayer_consensus.testing.crashes import outcome

VALUES = "/data/values"
HISTORY = 12
KEEPS: list[Any] = ["none", "all", "prefix", random.Random(1), random.Random(2)]


def commands(count: int) -> list[bytes]:
    draw = Commands("crash", keys=6, largest=120)
    return [draw.next() for _ in range(count)]


class Life:
    """The life of a process: a store and its machine, from the newest snapshot on, and the log behind it."""

    def __init__(self, files: SimulatedFileSystem, log: list[bytes]) -> None:
        self.files = files
        self.log = log
        self.clock = Clock()
        self.index = 0
        self.machine: FileKeyValueMachine = make_machine(
            files, self.clock, directory=VALUES, file_bytes=400, history_changes=HISTORY, history_bytes=0
        )
        self.store = FileStateMachine("/data", self.machine, executor=InlineExecutor(), file_system=files)

    def open(self) -> int:
        """Open the store, load the newest snapshot, and return its index; 0 if there is none."""
        if outcome(self.store.open()) is not None:
            self.load()
        return self.index

    def load(self) -> None:
        reader = self.store.reader()
        sink = outcome(self.machine.restore_files(reader.files)) if reader.files else self.machine.restore()
        while (chunk := outcome(reader.next_chunk())) is not None:
            sink.write(chunk)
        sink.finish()
        reader.close()
        self.index = self.machine.index

    def apply(self, until: int) -> None:
        """Apply the log up to an index."""
        while self.index < until:
            self.index += 1
            apply(self.machine, self.log[self.index - 1], self.index)

    def snapshot(self) -> None:
        pieces, sealed = self.machine.snapshot(), self.machine.sealed()
        writer = self.store.writer(point(self.index))
        try:
            for piece in pieces:
                outcome(writer.write(piece))
            outcome(writer.publish(outcome(sealed)))
        finally:
            pieces.close()  # type: ignore[attr-defined]

    def compact(self) -> None:
        for _ in range(40):
            self.clock.advance(1)
            failed = self.machine._storage.failure
            if failed is not None:
                raise failed

    def close(self) -> None:
        outcome(self.store.close())


class FileCrashTests(SynchronousTestCase):
    """S-15, S-24, H-66, J-80, J-90, J-91: the newest snapshot or the one before, each with the values of its moment."""

    def setUp(self) -> None:
        self.log = commands(70)
        self.models: dict[int, KeyValueMachine] = {}
        self.indexes: tuple[int, ...] = ()

    def model(self, index: int) -> KeyValueMachine:
        """The machine in memory after so many commands."""
        if index not in self.models:
            model = KeyValueMachine(history_changes=HISTORY, history_bytes=0)
            for at in range(index):
                apply(model, self.log[at], at + 1)
            self.models[index] = model
        return self.models[index]

    def disk(self) -> SimulatedFileSystem:
        files = SimulatedFileSystem()
        files.mkdir("/data")
        files.sync_dir("/")
        return files

    def assert_state(self, life: Life) -> None:
        """Every value, of the present and the past, is that of the machine in memory."""
        model, machine = self.model(life.index), life.machine
        self.assertEqual((machine.digest(), machine.index), (model.digest(), model.index))
        self.assertEqual(machine.compacted_revision, model.compacted_revision)
        for revision in range(model.compacted_revision, model.revision + 1):
            self.assertEqual(outcome(machine.range(revision=revision)), model.range(revision=revision))

    def reopen(self, files: SimulatedFileSystem, allowed: set[int]) -> None:
        """Start again: what is found must be allowed, and the machine must go on from it as all others do."""
        life = Life(files, self.log)
        self.assertIn(life.open(), allowed)
        self.assert_state(life)
        self.assertEqual(len(files.list(VALUES)), len(life.machine._log.files))
        life.apply(len(self.log))
        self.assert_state(life)
        life.snapshot()
        life.close()
        again = Life(files.crash("none"), self.log)
        self.assertEqual(again.open(), len(self.log))
        self.assert_state(again)

    def everywhere(self, story: Any, prepared: SimulatedFileSystem, before: int) -> None:
        """Let the power fail before each operation of a story.

        The story is a generator that yields the index of each snapshot when it is published.
        """
        for nth in range(1, 3000):
            files = prepared.crash(process_only=True)
            published = {before}
            ended = self.run_until(files, story, nth, published)
            for keep in KEEPS if nth % 3 == 0 or ended else KEEPS[nth % 2 :: 2]:
                # What was being published may be there; what was published must be, or what followed it.
                last = max(published)
                following = {index for index in self.indexes if index >= last}
                self.reopen(files.crash(keep), following if not ended else {last})
            if ended:
                self.assertGreater(nth, 60)
                return
        self.fail("the story never ended")

    def run_until(self, files: SimulatedFileSystem, story: Any, nth: int, published: set[int]) -> bool:
        count = 0

        def operation(name: str, path: str) -> None:
            nonlocal count
            count += 1
            if count >= nth:
                raise PowerFailure

        files.before = operation
        try:
            for index in story(Life(files, self.log)):
                published.add(index)
        except (PowerFailure, InvariantBroken):  # the machine takes it for a defect of its own
            self.assertGreaterEqual(count, nth)
            return False
        finally:
            files.before = None
        return True

    # Stories

    def first_snapshots(self, life: Life) -> Iterator[int]:
        life.open()
        for index in (8, 14):
            life.apply(index)
            life.snapshot()
            yield index
        life.close()

    def restart_and_snapshot(self, life: Life) -> Iterator[int]:
        life.open()
        life.apply(34)
        life.snapshot()
        yield 34
        life.close()

    def compaction(self, life: Life) -> Iterator[int]:
        life.open()
        life.apply(44)
        life.compact()
        life.apply(50)
        life.snapshot()
        yield 50
        life.close()

    def installation(self, life: Life) -> Iterator[int]:
        life.open()
        receiver = life.store.receiver(self.manifest)
        for part, data in enumerate(self.parts):
            for offset in range(0, len(data), 300):
                outcome(receiver.write(part, offset, data[offset : offset + 300]))
        outcome(receiver.publish())
        yield 60
        life.load()
        life.apply(64)
        life.snapshot()
        yield 64
        life.close()

    # Tests

    def test_first_snapshots(self) -> None:
        self.indexes = (0, 8, 14)
        self.everywhere(self.first_snapshots, self.disk(), 0)

    def test_restart_and_snapshot(self) -> None:
        files = self.with_snapshots(self.disk())
        self.indexes = (28, 34)
        self.everywhere(self.restart_and_snapshot, files, 28)

    def test_compaction(self) -> None:
        """Files that snapshots name are rewritten, and go: the snapshots have their own names for them."""
        files = self.with_snapshots(self.disk())
        self.indexes = (28, 50)
        self.everywhere(self.compaction, files, 28)

    def test_installation(self) -> None:
        """A leader's snapshot is received, loaded in the place of the state, and the node goes on from it."""
        leader = Life(self.disk(), self.log)
        leader.open()
        leader.apply(60)
        leader.snapshot()
        reader = leader.store.reader()
        self.manifest = reader.manifest
        self.assertGreater(self.manifest.files, 1)
        self.parts = [outcome(reader.read(part, 0, size)) for part, (size, _) in enumerate(self.manifest.parts)]
        files = self.with_snapshots(self.disk())
        self.indexes = (28, 60, 64)
        self.everywhere(self.installation, files, 28)

    def with_snapshots(self, files: SimulatedFileSystem) -> SimulatedFileSystem:
        life = Life(files, self.log)
        life.open()
        for index in (20, 28):
            life.apply(index)
            life.snapshot()
        life.close()
        return files

    def test_operations_that_fail(self) -> None:
        """What fails is reported, and leaves the snapshots that there are."""
        prepared = self.with_snapshots(self.disk())
        for operation in ("create", "write", "sync", "link", "rename", "sync_dir", "remove", "mkdir"):
            for nth in range(1, 60):
                files = prepared.crash(process_only=True)
                life = Life(files, self.log)
                life.open()
                files.fail(operation, nth)
                failed = False
                try:
                    life.apply(50)
                    life.compact()
                    life.snapshot()
                except Exception:
                    failed = True
                files.fail("nothing")
                files.before = None
                self.reopen(files.crash("none"), {28, 50} if failed else {50})
                if not failed and operation in files._faults:
                    break  # it came to its end before the nth
            else:
                self.fail(f"{operation} never failed to fail")

    def test_bit_flips_in_a_value_file(self) -> None:
        """What is damaged is reported for every snapshot that names it, and never read as something else."""
        files = self.with_snapshots(self.disk())
        snapshots, _ = list_snapshots(files, "/data")
        first, second = (snapshot for snapshot in snapshots)
        assert first.manifest is not None and second.manifest is not None
        digests = [[digest for _, digest in each.manifest.parts] for each in (first, second) if each.manifest]
        shared = set(digests[0]) & set(digests[1])
        self.assertTrue(shared, "the two have no file in common")
        part = next(part for part, digest in enumerate(digests[1]) if digest in shared)
        path = f"{second.path}/{part}"
        for at in range(0, files.size(path), 7):
            [byte] = files.read(path, at, 1)
            files.corrupt(path, at, bytes([byte ^ (1 << at % 8)]))
            for each in (first, second):
                with self.assertRaises(StorageCorrupt):
                    list(verify_parts(files, each))
            life = Life(files.crash("all"), self.log)
            self.assertEqual(life.open(), 28)
            model = self.model(28)
            for revision in range(model.compacted_revision, model.revision + 1):
                for kv in model.range(revision=revision).kvs:
                    try:
                        self.assertEqual(outcome(life.machine.get(kv.key, revision)), kv)
                    except StorageCorrupt:
                        self.assertIsInstance(outcome(life.machine.failed()), StorageCorrupt)
            transfer = Life(files.crash("all"), self.log)
            transfer.open()
            self.failureResultOf(transfer.store.reader().read(part, 0, 10), StorageCorrupt)
            files.corrupt(path, at, bytes([byte]))

    def test_full_disk(self) -> None:
        """S-11: whatever room there is, the snapshots are there, and with room again the node goes on."""
        prepared = self.with_snapshots(self.disk())
        used = prepared.used()
        for room in range(0, 9000, 150):
            files = prepared.crash(process_only=True)
            life = Life(files, self.log)
            life.open()
            files.capacity = used + room
            life.apply(50)
            waits = life.machine.full  # else the snapshot does, for the values
            try:
                if not waits:
                    life.snapshot()
            except StorageFull:
                waits = True
            if not waits:
                self.assertGreater(room, 500)
                self.assertIsInstance(life.store.newest(), Manifest)
                break
            crashed = files.crash("none")
            crashed.capacity = None
            self.reopen(crashed, {28})
        else:
            self.fail("it never fitted")
