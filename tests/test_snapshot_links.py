"""Snapshots that name files of the state machine: linked, never copied, verified, sent, and damaged together."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SkipTest, SynchronousTestCase
from zope.interface import implementer

from tests.snapshot_kit import NEW, OLD, ROOT, Case, PowerFailure, fail_power, ignore, point
from zlayer_consensus import _cbor
from zlayer_consensus.errors import (
    ConfigError,
    ConsensusError,
    StorageCorrupt,
    StorageFailed,
    StorageFull,
    StorageLocked,
)
from zlayer_consensus.storage import (
    ApplyContext,
    FileStateMachine,
    InlineExecutor,
    ISnapshotReader,
    IStateMachineFiles,
    IStateSink,
    Manifest,
    MemStateMachine,
    RealFileSystem,
    StateFile,
    decode_manifest,
    encode_manifest,
)
from zlayer_consensus.storage.inspection import list_snapshots, verify_parts
from zlayer_consensus.testing import SimulatedFileSystem

LIVE = "/data/live"
FIRST, SECOND = b"first file" * 70, b"\x00second"


@implementer(IStateMachineFiles)
class Filed:
    """As much of a machine as a store sees of it."""

    directory = LIVE
    full = False

    def __init__(self, files: SimulatedFileSystem) -> None:
        self.files = files
        self.calls: list[str] = []

    def open(self) -> Deferred[None]:
        self.calls.append("open")
        self.files.mkdir(LIVE)
        for name in self.files.list(LIVE):
            self.files.remove(f"{LIVE}/{name}")
        return succeed(None)

    def close(self) -> Deferred[None]:
        self.calls.append("close")
        return succeed(None)

    def failed(self) -> Deferred[ConsensusError]:
        return Deferred()

    def prepare(self, command: Any) -> Deferred[None] | None:
        return None

    def room(self) -> Deferred[None] | None:
        return None

    def apply(self, command: Any, context: ApplyContext) -> None:
        raise NotImplementedError

    def snapshot(self) -> Iterator[bytes]:
        raise NotImplementedError

    def sealed(self) -> Deferred[Sequence[StateFile]]:
        raise NotImplementedError

    def restore(self) -> IStateSink:
        raise NotImplementedError

    def restore_files(self, files: Sequence[StateFile]) -> Deferred[IStateSink]:
        raise NotImplementedError


class LinkCase(Case):
    def store(self, files: SimulatedFileSystem, part_bytes: int = 400, keep: int = 2) -> FileStateMachine:
        return FileStateMachine(
            "/data", Filed(files), executor=InlineExecutor(), file_system=files, part_bytes=part_bytes, keep=keep
        )

    def make_file(self, files: SimulatedFileSystem, name: str, data: bytes) -> StateFile:
        path = f"{LIVE}/{name}"
        if not files.exists(path):
            file = files.create(path)
            file.write(0, data)
            file.sync()
            file.close()
        return StateFile(path, len(data), hashlib.sha256(data).digest())

    def save_files(self, store: FileStateMachine, index: int, chunks: tuple[bytes, ...], *names: str) -> Manifest:
        """Publish a snapshot that names files: ``first`` and ``second``, which are made if need be."""
        manifest: Manifest = self.done(list(self.saving(store, index, chunks, *names))[-1])
        return manifest

    def saving(
        self, store: FileStateMachine, index: int, chunks: tuple[bytes, ...], *names: str
    ) -> Iterator[Deferred[Any]]:
        files = store._directory.files
        assert isinstance(files, SimulatedFileSystem)
        writer = store.writer(point(index))
        for chunk in chunks:
            yield writer.write(chunk)
        made = [self.make_file(files, name, {"first": FIRST, "second": SECOND}[name]) for name in names]
        yield writer.publish(made)

    def read_files(self, files: SimulatedFileSystem, reader: ISnapshotReader) -> list[bytes]:
        return [files.read(file.path, 0, file.size) for file in reader.files]


class LinkTests(LinkCase):
    def test_files_are_parts_behind_the_stream(self) -> None:
        """The documented layout; loading gives the stream alone, and the files by their paths."""
        files = SimulatedFileSystem()
        store = self.opened(files)
        manifest = self.save_files(store, 5, NEW, "first", "second")
        self.assertEqual((len(manifest.parts), manifest.files, manifest.streams), (5, 2, 3))
        self.assertEqual(files.list(f"{ROOT}/5-2"), ["0", "1", "2", "3", "4", "manifest"])
        self.assertEqual(manifest.parts[3:], tuple((len(d), hashlib.sha256(d).digest()) for d in (FIRST, SECOND)))
        reader = store.reader()
        self.assertEqual([file.path for file in reader.files], [f"{ROOT}/5-2/3", f"{ROOT}/5-2/4"])
        self.assertEqual(self.read_files(files, reader), [FIRST, SECOND])
        self.assertEqual(self.load(reader), NEW)

    def test_nothing_is_copied(self) -> None:
        """Two snapshots that name a file, and the machine that has it, have one file."""
        files = SimulatedFileSystem()
        store = self.opened(files)
        self.save_files(store, 5, NEW, "first")
        used = files.used()
        self.save_files(store, 6, NEW, "first")
        manifest = files.size(f"{ROOT}/6-2/manifest")
        self.assertEqual(files.used() - used, manifest + sum(files.size(f"{ROOT}/6-2/{n}") for n in range(3)))

    def test_snapshot_outlives_the_machines_name(self) -> None:
        """Once it is published, the machine may remove the file; the snapshot has its own name for it."""
        files = SimulatedFileSystem()
        store = self.opened(files)
        self.save_files(store, 5, NEW, "first")
        files.remove(f"{LIVE}/first")
        files.sync_dir(LIVE)
        store = self.opened(files.crash())
        crashed = store._directory.files
        assert isinstance(crashed, SimulatedFileSystem)
        self.assertEqual(self.read_files(crashed, store.reader()), [FIRST])

    def test_stream_may_be_empty(self) -> None:
        files = SimulatedFileSystem()
        store = self.opened(files)
        manifest = self.save_files(store, 5, (), "first")
        self.assertEqual((manifest.files, manifest.streams, self.load(store.reader())), (1, 0, ()))

    def test_file_that_is_not_what_was_said(self) -> None:
        """It is refused before anything is published, and the writer can be aborted."""
        files = SimulatedFileSystem()
        store = self.opened(files)
        good = self.make_file(files, "first", FIRST)
        empty = self.make_file(files, "empty", b"")
        for bad, error in (
            (StateFile(f"{LIVE}/none", 5, good.digest), StorageCorrupt),
            (StateFile(good.path, good.size + 1, good.digest), StorageCorrupt),
            (StateFile(good.path, good.size - 1, good.digest), StorageCorrupt),
            (empty, ValueError),
            (StateFile(good.path, (64 << 20) + 1, good.digest), ValueError),
        ):
            writer = store.writer(point(5))
            self.failureResultOf(writer.publish([good, bad]), error)
            self.successResultOf(writer.abort())
        self.assertEqual(files.list(ROOT), ["LOCK"])
        self.assertEqual(files.read(good.path, 0, good.size), FIRST)

    def test_machine_lives_within_the_store(self) -> None:
        """It is opened under the store's lock, closed with the store, and what it was tried with is gone."""
        files = SimulatedFileSystem()
        store, other = self.opened(files), self.store(files)
        self.failureResultOf(other.open(), StorageLocked)
        machine: Any = other.machine
        self.assertEqual(machine.calls, [])
        self.assertEqual((files.list(LIVE), files.list(ROOT)), ([], ["LOCK"]))
        self.successResultOf(store.close())
        opened: Any = store.machine
        self.assertEqual(opened.calls, ["open", "close"])

    def test_no_links(self) -> None:
        """A file system without them, or another one, is told of when the store is opened; then it can be mended."""
        files = SimulatedFileSystem()
        files.fail("link", cause="Operation not permitted")
        store = self.store(files)
        error = self.failureResultOf(store.open(), ConfigError).value
        self.assertEqual((error.field, error.value), ("directory", LIVE))
        self.assertIn("hard links (Operation not permitted)", error.rule)
        self.assertEqual((files.list(LIVE), files.list(ROOT)), ([], ["LOCK"]))
        self.successResultOf(store.open())
        self.successResultOf(store.close())
        files.fail("create")
        self.failureResultOf(self.store(files).open(), StorageFailed)
        self.opened(files)

    def test_other_file_system(self) -> None:
        """The same on two real ones."""
        here, there = os.path.abspath(self.mktemp()), "/dev/shm"
        if not os.path.isdir(there) or os.stat(there).st_dev == os.stat(os.path.dirname(here)).st_dev:
            raise SkipTest("there is no second file system to write to")
        live = tempfile.mkdtemp(dir=there)
        self.addCleanup(shutil.rmtree, live)

        class Elsewhere(Filed):
            directory = live

            def open(self) -> Deferred[None]:
                return succeed(None)

        machine = Elsewhere(SimulatedFileSystem())
        store = FileStateMachine(here, machine, executor=InlineExecutor(), file_system=RealFileSystem())
        error = self.failureResultOf(store.open(), ConfigError).value
        self.assertIn("cross-device", str(error))
        self.assertEqual(os.listdir(live), [])

    def test_memory_has_no_place_for_files(self) -> None:
        with self.assertRaisesRegex(TypeError, "give it to a FileStateMachine"):
            MemStateMachine(Filed(SimulatedFileSystem()))

    def test_whole_contract_is_asked_for(self) -> None:
        class Half(Filed):
            sealed = None  # type: ignore[assignment]

        with self.assertRaisesRegex(TypeError, "does not keep IStateMachineFiles"):
            FileStateMachine("/data", Half(SimulatedFileSystem()), executor=InlineExecutor())


class LinkTransferTests(LinkCase):
    """File by file, in pieces, with digests, and with resume in the middle of a file."""

    def setUp(self) -> None:
        self.files = SimulatedFileSystem()
        self.source = self.opened(self.files)
        self.manifest = self.save_files(self.source, 5, OLD, "first", "second")
        self.target_files = SimulatedFileSystem()
        self.target = self.opened(self.target_files)

    def test_transfer(self) -> None:
        receiver = self.target.receiver(self.manifest)
        for part, data in enumerate(self.raw(self.source)):
            for offset in range(0, len(data), 100):
                self.done(receiver.write(part, offset, data[offset : offset + 100]))
        received = self.done(receiver.publish())
        self.assertEqual((received.parts, received.files, received.installed), (self.manifest.parts, 2, True))
        reader = self.target.reader()
        self.assertEqual(self.read_files(self.target_files, reader), [FIRST, SECOND])
        self.assertEqual(self.load(reader), OLD)
        again = self.opened(self.target_files.crash())
        self.assertEqual(again.newest(), received)

    def test_resume_in_the_middle_of_a_file(self) -> None:
        data = self.raw(self.source)
        receiver = self.target.receiver(self.manifest)
        self.done(receiver.write(0, 0, data[0]))
        self.done(receiver.write(1, 0, data[1][:321]))
        receiver = self.target.receiver(self.manifest)
        self.assertEqual(receiver.position, (1, 321))
        self.done(receiver.write(1, 321, data[1][321:]))
        self.done(receiver.write(2, 0, data[2]))
        self.done(receiver.publish())
        self.assertEqual(self.read_files(self.target_files, self.target.reader()), [FIRST, SECOND])

    def test_file_that_arrives_damaged_starts_over(self) -> None:
        """S-16: alone, and not the files before it."""
        data = self.raw(self.source)
        receiver = self.target.receiver(self.manifest)
        self.done(receiver.write(0, 0, data[0]))
        self.done(receiver.write(1, 0, data[1]))
        self.failureResultOf(receiver.write(2, 0, bytes([data[2][0] ^ 1]) + data[2][1:]), ValueError)
        self.assertEqual(receiver.position, (2, 0))
        self.done(receiver.write(2, 0, data[2]))
        self.done(receiver.publish())
        self.assertEqual(self.read_files(self.target_files, self.target.reader()), [FIRST, SECOND])

    def test_damaged_file_is_not_sent(self) -> None:
        """S-16, J-27: it is found before its first byte leaves, wherever it is damaged."""
        self.files.corrupt(f"{LIVE}/first", len(FIRST) - 1, b"x")
        reader = self.source.reader()
        self.done(reader.read(0, 0, 10))
        error = self.failureResultOf(reader.read(1, 0, 10), StorageCorrupt).value
        self.assertEqual(error.path, f"{ROOT}/5-2/1")

    def test_memory_store_passes_it_on(self) -> None:
        """What is sent needs no machine that understands it; but there are no paths to load the files by."""
        memory = MemStateMachine({}, ignore)
        self.successResultOf(memory.open())
        receiver = memory.receiver(self.manifest)
        for part, data in enumerate(self.raw(self.source)):
            self.done(receiver.write(part, 0, data))
        self.done(receiver.publish())
        self.assertEqual(self.raw(memory), self.raw(self.source))
        reader = memory.reader()
        self.assertEqual((list(reader.files), self.load(reader)), ([], OLD))


class LinkDamageTests(LinkCase):
    """A damaged file is damage of every snapshot that names it, and of no other."""

    def setUp(self) -> None:
        self.files = SimulatedFileSystem()
        self.store_ = self.opened(self.files, keep=3)
        self.save_files(self.store_, 1, OLD, "second")
        self.save_files(self.store_, 2, OLD, "first", "second")
        self.save_files(self.store_, 3, NEW, "first")

    def damaged(self) -> list[str]:
        """What the tool that looks at all snapshots finds."""
        found = []
        for snapshot in list_snapshots(self.files, "/data")[0]:
            try:
                self.assertIsNone(snapshot.damage)
                assert snapshot.manifest is not None
                self.assertEqual(sum(verify_parts(self.files, snapshot)), snapshot.manifest.size)
            except StorageCorrupt as damage:
                self.assertTrue(snapshot.in_file(damage))
                found.append(damage.path)
        return found

    def test_every_flipped_byte_is_found_in_all_of_them(self) -> None:
        self.assertEqual(self.damaged(), [])
        for offset in range(len(FIRST)):
            [byte] = self.files.read(f"{LIVE}/first", offset, 1)
            self.files.corrupt(f"{LIVE}/first", offset, bytes([byte ^ (1 << offset % 8)]))
            self.assertEqual(self.damaged(), [f"{ROOT}/2-2/1", f"{ROOT}/3-2/3"])
            self.files.corrupt(f"{LIVE}/first", offset, bytes([byte]))
        self.files.corrupt(f"{LIVE}/second", 3, b"?")
        self.assertEqual(self.damaged(), [f"{ROOT}/1-2/1", f"{ROOT}/2-2/2"])

    def test_scrub_finds_it_in_all_of_them(self) -> None:
        """In the older one it is told, in the newest it is fatal."""
        self.files.corrupt(f"{LIVE}/first", len(FIRST) - 1, b"?")
        damage, stop = [], None
        while stop is None:
            try:
                step = self.done(self.store_.scrub(256))
            except StorageCorrupt as error:
                stop = error.path
            else:
                damage += [step.damage.path] if step.damage else []
        self.assertEqual((damage, stop), ([f"{ROOT}/2-2/1"], f"{ROOT}/3-2/3"))

    def test_scrub_reads_all_of_it(self) -> None:
        """Files are no frames, and not read as such."""
        size, done = 0, False
        while not done:
            step = self.done(self.store_.scrub(256))
            size, done = size + step.size, step.done
        self.assertEqual(
            size, sum(each.manifest.size for each in list_snapshots(self.files, "/data")[0] if each.manifest)
        )

    def test_damage_of_the_stream_is_another_matter(self) -> None:
        self.files.corrupt(f"{ROOT}/3-2/1", 100, b"?")
        [newest] = [each for each in list_snapshots(self.files, "/data")[0] if each.path.endswith("3-2")]
        with self.assertRaises(StorageCorrupt) as caught:
            list(verify_parts(self.files, newest))
        self.assertFalse(newest.in_file(caught.exception))

    def test_file_of_another_size_or_missing_refuses_the_start(self) -> None:
        for spoil in (lambda path: self.files.truncate(path, 5), self.files.remove):
            spoil(f"{ROOT}/3-2/3")
            error = self.failureResultOf(self.store(self.files.crash("all")).open(), StorageCorrupt).value
            self.assertEqual(error.path, f"{ROOT}/3-2/3")


class LinkCrashTests(LinkCase):
    """S-15, S-24, J-82, J-96: the old snapshot or the new one, each with its files, whenever the power fails."""

    def prepared(self) -> SimulatedFileSystem:
        files = SimulatedFileSystem()
        files.mkdir("/data")
        files.sync_dir("/")
        store = self.opened(files)
        self.save_files(store, 1, OLD, "first")
        self.save_files(store, 2, OLD, "first")
        self.done(store.close())
        return files

    def test_power_failure_at_every_operation(self) -> None:
        for nth in range(1, 1000):
            files = self.prepared()
            ended = self.run_until(files, nth)
            keeps: list[Any] = ["none", "all", "prefix", *(random.Random(seed) for seed in range(4))]
            for crashed in [*map(files.crash, keeps), files.crash(process_only=True)]:
                self.assert_old_or_new(crashed, ended)
            if ended:
                self.assertGreater(nth, 30)
                return
        self.fail("the work never ended")

    def run_until(self, files: SimulatedFileSystem, nth: int) -> bool:
        fail_power(files, nth)
        try:
            store = self.opened(files)
            for step in self.saving(store, 9, NEW, "first", "second"):
                self.done(step)
            self.done(store.close())
        except PowerFailure:
            return False
        finally:
            files.before = None
        return True

    def assert_old_or_new(self, files: SimulatedFileSystem, ended: bool) -> None:
        store = self.opened(files)
        newest, reader = store.newest(), store.reader()
        assert newest is not None
        found = (newest.point.last.index, self.read_files(files, reader), self.load(reader))
        self.assertIn(found, [(9, [FIRST, SECOND], NEW)] + ([] if ended else [(2, [FIRST], OLD)]))
        self.assertEqual([name for name in files.list(ROOT) if name.endswith(".tmp")], [])
        self.assertEqual(files.list(LIVE), [])
        self.done(store.close())

    def test_full_disk(self) -> None:
        """S-11: there is no room for the stream or the manifest; the files took theirs before."""
        whole = self.prepared()
        store = self.opened(whole)
        made = [self.make_file(whole, "first", FIRST), self.make_file(whole, "second", SECOND)]
        for room in range(0, 5000, 61):
            whole.capacity = whole.used() + room
            writer = store.writer(point(9))
            for chunk in NEW:
                self.settled(writer.write(chunk))
            result = self.settled(writer.publish(made))
            if isinstance(result, Manifest):
                self.assertGreater(room, sum(map(len, NEW)))
                return
            result.trap(StorageFull)
            self.successResultOf(writer.abort())
            self.assertEqual(whole.list(ROOT), ["1-2", "2-2", "LOCK"])
        self.fail("it never fitted")


class TakenAgainTests(LinkCase):
    """The newest snapshot with other files in the place of those that the machine has got rid of."""

    def setUp(self) -> None:
        self.files = SimulatedFileSystem()
        self.store_ = self.opened(self.files)
        self.save_files(self.store_, 1, OLD, "second")
        self.save_files(self.store_, 5, OLD, "first", "second")

    def again(self) -> Manifest:
        return self.save_files(self.store_, 5, NEW, "second")

    def published(self) -> list[str]:
        return self.files.list(ROOT)

    def test_it_counts(self) -> None:
        """At once, and after a restart; the files of the former take go with it, the other snapshots stay."""
        manifest = self.again()
        self.assertEqual((manifest.files, self.store_.newest()), (1, manifest))
        self.assertEqual(self.published(), ["1-2", "5-2+1", "LOCK"])
        reader = self.store_.reader()
        self.assertEqual([file.path for file in reader.files], [f"{ROOT}/5-2+1/3"])
        self.assertEqual(self.load(reader), NEW)
        self.done(self.store_.close())
        self.store_ = self.opened(self.files)
        self.assertEqual(self.store_.newest(), manifest)
        self.assertEqual(self.load(self.store_.reader()), NEW)

    def test_again_and_again(self) -> None:
        self.again()
        manifest = self.save_files(self.store_, 5, OLD, "second")
        self.assertEqual((self.published(), self.store_.newest()), (["1-2", "5-2+2", "LOCK"], manifest))
        self.save_files(self.store_, 6, NEW, "second")
        self.assertEqual(self.published(), ["5-2+2", "6-2", "LOCK"])
        self.save_files(self.store_, 7, NEW, "second")
        self.assertEqual(self.published(), ["6-2", "7-2", "LOCK"])

    def test_one_that_is_alike_is_none(self) -> None:
        manifest = self.save_files(self.store_, 5, OLD, "first", "second")
        self.assertEqual((self.published(), self.store_.newest()), (["1-2", "5-2", "LOCK"], manifest))

    def test_who_reads_the_former_take_may_go_on(self) -> None:
        reader = self.store_.reader()
        self.again()
        self.assertEqual(self.published(), ["1-2", "5-2", "5-2+1", "LOCK"])
        self.assertEqual(self.read_files(self.files, reader), [FIRST, SECOND])
        later = self.store_.reader()
        self.assertEqual(self.load(reader), OLD)
        self.assertEqual(self.load(later), NEW)
        self.assertEqual(self.published(), ["1-2", "5-2+1", "LOCK"])

    def test_former_take_that_was_left_is_removed_by_the_next_start(self) -> None:
        self.store_.reader()
        self.again()
        found, leftovers = list_snapshots(self.files, "/data")
        self.assertEqual([each.path for each in found], [f"{ROOT}/1-2", f"{ROOT}/5-2+1"])
        self.assertEqual(leftovers, [f"{ROOT}/5-2"])
        self.files = self.files.crash("all")
        self.opened(self.files)
        self.assertEqual(self.published(), ["1-2", "5-2+1", "LOCK"])

    def test_scrub_in_the_midst(self) -> None:
        """It goes on with the take that counts, and misses nothing."""
        for steps in range(12):
            self.files = SimulatedFileSystem()
            self.store_ = self.opened(self.files)
            self.save_files(self.store_, 5, OLD, "first", "second")
            for _ in range(steps):
                self.done(self.store_.scrub(200))
            manifest = self.again()
            while not self.done(self.store_.scrub(200)).done:
                pass
            size, done = 0, False
            while not done:
                step = self.done(self.store_.scrub(200))
                size, done = size + step.size, step.done
            self.assertEqual(size, manifest.size)

    def test_damage_of_the_take_that_counts(self) -> None:
        self.again()
        self.files.corrupt(f"{ROOT}/5-2+1/1", 100, b"?")
        error = self.failureResultOf(self.store_.reader().read(1, 0, 9), StorageCorrupt).value
        self.assertEqual(error.path, f"{ROOT}/5-2+1/1")

    def test_that_it_came_from_a_leader_is_kept(self) -> None:
        """S-17: the log may still end before it."""
        target_files = SimulatedFileSystem()
        target = self.opened(target_files)
        newest = self.store_.newest()
        assert newest is not None
        receiver = target.receiver(newest)
        for part, data in enumerate(self.raw(self.store_)):
            self.done(receiver.write(part, 0, data))
        self.done(receiver.publish())
        self.files, self.store_ = target_files, target
        self.assertTrue(self.again().installed)

    def test_power_failure_at_every_operation(self) -> None:
        """S-15, J-82: one take or the other, with its files."""
        for nth in range(1, 1000):
            self.setUp()
            ended = self.run_until(nth)
            keeps: list[Any] = ["none", "all", "prefix", *(random.Random(seed) for seed in range(4))]
            for crashed in [*map(self.files.crash, keeps), self.files.crash(process_only=True)]:
                store = self.opened(crashed)
                reader = store.reader()
                found = self.read_files(crashed, reader), self.load(reader)
                self.assertIn(found, [([SECOND], NEW)] + ([] if ended else [([FIRST, SECOND], OLD)]))
                self.assertEqual((len(crashed.list(ROOT)), crashed.list(ROOT)[0]), (3, "1-2"))
                self.done(store.close())
            if ended:
                self.assertGreater(nth, 20)
                return
        self.fail("the work never ended")

    def run_until(self, nth: int) -> bool:
        fail_power(self.files, nth)
        try:
            self.again()
        except PowerFailure:
            return False
        finally:
            self.files.before = None
        return True


class ManifestWithFilesTests(SynchronousTestCase):
    def manifest(self, files: int = 2) -> Manifest:
        return Manifest(point(5), ((400, b"d" * 32), (8, b"e" * 32), (1, b"f" * 32)), True, files)

    def test_round_trip(self) -> None:
        for manifest in (self.manifest(1), self.manifest(2), Manifest(point(5), ((1, b"f" * 32),) * 3, files=3)):
            data = encode_manifest(manifest)
            self.assertEqual(decode_manifest(data), manifest)
            self.assertEqual(encode_manifest(decode_manifest(data)), data)

    def test_without_files_it_is_as_it_was(self) -> None:
        """A version that knows of no files reads it."""
        without = Manifest(point(5), ((400, b"d" * 32),))
        plain = _cbor.loads(encode_manifest(without))
        self.assertEqual(set(plain), {"format", "term", "index", "membership", "time_ms", "parts", "installed"})
        self.assertEqual(plain["format"], 1)
        self.assertEqual(_cbor.loads(encode_manifest(self.manifest()))["format"], 2)

    def test_closed_schema(self) -> None:
        good = _cbor.loads(encode_manifest(self.manifest()))
        changes: list[dict[str, Any]] = [{"format": 1}, {"format": 3}, {"format": 2.0}]
        changes += [{"files": files} for files in (0, -1, 4, True, "2", None, 1.0)]
        changes += [{"parts": [[400, b"d" * 32], [8, b"e" * 32], [size, b"f" * 32]]} for size in (0, (64 << 20) + 1)]
        changes += [{"parts": [[7, b"d" * 32], [8, b"e" * 32], [1, b"f" * 32]]}]
        for change in changes:
            self.assertRaises(ValueError, decode_manifest, _cbor.dumps({**good, **change}))
        without = {name: value for name, value in good.items() if name != "files"}
        self.assertRaises(ValueError, decode_manifest, _cbor.dumps(without))
        self.assertRaises(ValueError, decode_manifest, _cbor.dumps({**good, "more": 1}))
