"""Snapshots on a disk that crashes, fails and lies."""

from __future__ import annotations

import hashlib
import itertools
import random
import shutil
import tempfile
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.real_disk import RealDisk
from tests.snapshot_kit import MEMBERSHIP, NEW, OLD, ROOT, Case, PowerFailure, ignore, point
from zlayer_consensus import _cbor
from zlayer_consensus.errors import ConfigError, StorageCorrupt, StorageFailed, StorageFull, StorageLocked
from zlayer_consensus.raft import LogId, SnapshotPoint
from zlayer_consensus.storage import (
    FileStateMachine,
    InlineExecutor,
    Manifest,
    MemStateMachine,
    decode_manifest,
    encode_manifest,
)
from zlayer_consensus.testing import SimulatedFileSystem


class LayoutTests(Case):
    def test_files_on_the_disk(self) -> None:
        """The documented layout: directories by position, parts by number, a manifest."""
        files = self.make_files()
        store = self.opened(files)
        manifest = self.save(store, point(5), NEW)
        self.assertEqual(files.list(ROOT), ["5-2", "LOCK"])
        self.assertEqual(files.list(f"{ROOT}/5-2"), ["0", "1", "2", "manifest"])
        self.assertEqual([files.size(f"{ROOT}/5-2/{part}") for part in range(3)], [size for size, _ in manifest.parts])

    def test_parts_are_bounded(self) -> None:
        files = self.make_files()
        store = self.opened(files, part_bytes=1000)
        manifest = self.save(store, point(5), (b"x" * 100,) * 50)
        self.assertEqual(len(manifest.parts), 6)
        self.assertLessEqual(max(size for size, _ in manifest.parts), 1000)
        self.assertEqual(self.load(store.reader()), (b"x" * 100,) * 50)

    def test_so_much_is_gathered_before_it_is_written(self) -> None:
        files = self.make_files()
        store = FileStateMachine("/data", {}, ignore, executor=InlineExecutor(), file_system=files, buffer_bytes=250)
        self.done(store.open())
        writer = store.writer(point(5))
        written = []
        for _ in range(6):
            files.operations.clear()
            self.done(writer.write(b"x" * 100))
            written.append(any(operation == "write" for operation, _ in files.operations))
        self.assertEqual(written, [False, False, True] * 2)
        self.done(writer.publish())
        self.assertEqual(self.load(store.reader()), (b"x" * 100,) * 6)
        for wrong in (0, -1):
            self.assertRaises(ConfigError, FileStateMachine, "/data", {}, ignore, reactor=0, buffer_bytes=wrong)

    def test_oversized_chunk_is_refused(self) -> None:
        store = self.opened(self.make_files())
        writer = store.writer(point(5))
        self.failureResultOf(writer.write(bytes(16 << 20)), ValueError)
        self.failureResultOf(writer.write("text"), TypeError)  # type: ignore[arg-type]
        self.successResultOf(writer.abort())

    def test_two_snapshots_are_kept(self) -> None:
        files = self.make_files()
        store = self.opened(files)
        for index in range(1, 6):
            self.save(store, point(index), (b"%d" % index,))
        self.assertEqual(files.list(ROOT), ["4-2", "5-2", "LOCK"])

    def test_open_reader_holds_its_snapshot(self) -> None:
        """An older snapshot goes when its last reader is closed, and not before."""
        files = self.make_files()
        store = self.opened(files)
        self.save(store, point(1), OLD)
        readers = [store.reader(), store.reader()]
        for index in range(2, 6):
            self.save(store, point(index), NEW)
        readers[0].close()
        readers[0].close()
        self.assertEqual(files.list(ROOT), ["1-2", "4-2", "5-2", "LOCK"])
        self.assertEqual(self.load(readers[1]), OLD)
        self.assertEqual(files.list(ROOT), ["4-2", "5-2", "LOCK"])

    def test_directory_is_locked(self) -> None:
        """Two stores would remove each other's unfinished snapshots."""
        files = self.make_files()
        store = self.opened(files)
        self.failureResultOf(self.store(files).open(), StorageLocked)
        self.successResultOf(store.close())
        self.opened(files)

    def test_failed_opening_gives_the_lock_back(self) -> None:
        files = self.make_files()
        for operation in ("mkdir", "sync_dir", "lock", "list"):
            files.fail(operation)
            store = self.store(files)
            self.failureResultOf(store.open(), StorageFailed)
            self.successResultOf(store.open())
            self.successResultOf(store.close())

    def test_names_do_not_come_from_outside(self) -> None:
        """A received snapshot is stored under its position; a manifest has no other name in it."""
        source = MemStateMachine({}, ignore)
        self.successResultOf(source.open())
        manifest = self.save(source, point(5), NEW)
        files = self.make_files()
        store = self.opened(files)
        receiver = store.receiver(manifest)
        self.successResultOf(receiver.write(0, 0, self.raw(source)[0]))
        self.successResultOf(receiver.publish())
        self.assertEqual(files.list(f"{ROOT}/5-2"), ["0", "manifest"])
        for position in (LogId(2, 0), LogId(2, -5), LogId(-1, 5), LogId(2, 1 << 63)):
            at = SnapshotPoint(position, MEMBERSHIP)
            self.assertRaises(ValueError, store.receiver, Manifest(at, ()))
            self.assertRaises(ValueError, store.writer, at)

    def test_backends_understand_each_other(self) -> None:
        """What one kind of store sends, the other takes: the parts are the wire format."""
        stores = [self.opened(self.make_files()), MemStateMachine({}, ignore), MemStateMachine({}, ignore)]
        self.successResultOf(stores[1].open())
        self.successResultOf(stores[2].open())
        stores.append(self.opened(self.make_files()))
        self.save(stores[0], point(5), NEW)
        for source, target in itertools.pairwise(stores):
            newest = source.newest()
            assert newest is not None
            receiver = target.receiver(newest)
            for part, data in enumerate(self.raw(source)):
                self.successResultOf(receiver.write(part, 0, data))
            self.successResultOf(receiver.publish())
            self.assertEqual(self.load(target.reader()), NEW)

    def test_part_with_the_right_digest_and_wrong_frames_is_refused(self) -> None:
        """A sender of another format cannot leave behind a snapshot that nobody can load."""
        data = b"not framed at all"
        manifest = Manifest(point(5), ((len(data), hashlib.sha256(data).digest()),))
        memory = MemStateMachine({}, ignore)
        self.successResultOf(memory.open())
        for store in (memory, self.opened(self.make_files())):
            receiver = store.receiver(manifest)
            self.failureResultOf(receiver.write(0, 0, data), ValueError)
            self.assertEqual(receiver.position, (0, 0))

    def test_old_snapshot_that_cannot_be_removed_is_no_reason_to_stop(self) -> None:
        files = self.make_files()
        store = self.opened(files)
        self.save(store, point(1), OLD)
        self.save(store, point(2), OLD)
        files.fail("remove")
        self.save(store, point(3), NEW)
        self.assertEqual(self.load(store.reader()), NEW)
        self.save(store, point(4), NEW)
        self.assertEqual([name for name in files.list(ROOT) if not name.endswith(".tmp")], ["3-2", "4-2", "LOCK"])
        self.successResultOf(store.close())
        self.opened(files)
        self.assertEqual(files.list(ROOT), ["3-2", "4-2", "LOCK"])


class RemovalTests(Case):
    def test_half_removed_snapshot_is_a_leftover(self) -> None:
        """J-90: a crash while an old snapshot is removed never leaves a name without its files."""
        files = self.make_files()
        store = self.opened(files)
        for index in (1, 2):
            self.save(store, point(index), OLD)
        removed: list[str] = []

        def before(operation: str, path: str) -> None:
            if operation == "remove":
                removed.append(path)
                if len(removed) >= 3:
                    raise PowerFailure

        files.before = before
        with self.assertRaises(PowerFailure):
            self.save(store, point(9), NEW)
        for seed in range(20):
            crashed = files.crash(random.Random(seed))
            for name in crashed.list(ROOT):
                if not name.endswith(".tmp") and name != "LOCK":
                    self.assertIn(crashed.list(f"{ROOT}/{name}"), (["0", "manifest"], ["0", "1", "2", "manifest"]))
            content = self.content(crashed)
            assert content is not None
            self.assertEqual((content[0].point, content[1]), (point(9), NEW))


class FaultTests(Case):
    """Every operation can fail; what fails is reported, and the old snapshot stays."""

    def test_each_operation_fails_once(self) -> None:
        """S-15."""
        for operation in ("mkdir", "create", "write", "sync", "sync_dir", "rename"):
            for nth in range(1, 100):
                files = self.make_files()
                store = self.opened(files)
                self.save(store, point(1), OLD)
                files.fail(operation, nth)
                writer = store.writer(point(2))
                for chunk in NEW:
                    self.successResultOf(writer.write(chunk))
                result = self.settled(writer.publish())
                if isinstance(result, Manifest):
                    break
                result.trap(StorageFailed)
                self.successResultOf(writer.abort())
                newest = store.newest()
                assert newest is not None
                self.assertEqual((newest.point, self.load(store.reader())), (point(1), OLD))
                content = self.content(files.crash())
                assert content is not None
                self.assertIn(content[0].point, (point(1), point(2)))
            else:
                self.fail("never succeeded")

    def test_leftovers_that_cannot_be_removed_are_in_nobodys_way(self) -> None:
        """The next snapshot can be taken, also if it is one of the same position; and an opening removes them."""
        files = self.make_files()
        store = self.opened(files)
        for at in (1, 1, 2):
            writer = store.writer(point(at))
            for chunk in NEW:
                self.successResultOf(writer.write(chunk))
            files.fail("sync")
            self.failureResultOf(writer.publish(), StorageFailed)
            files.fail("remove")
            self.failureResultOf(writer.abort(), StorageFailed)
            self.successResultOf(writer.abort())
        manifest = self.save(store, point(2), NEW)
        receiver = store.receiver(Manifest(point(3), manifest.parts))
        self.successResultOf(receiver.write(0, 0, b"x"))
        files.fail("remove")
        self.failureResultOf(receiver.abort(), StorageFailed)
        self.assertEqual(store.receiver(Manifest(point(3), manifest.parts)).position, (0, 0))
        content = self.content(files.crash(process_only=True))
        assert content is not None
        self.assertEqual(content[1], NEW)


class SnapshotSpaceTests(Case):
    def test_full_disk_everywhere(self) -> None:
        """S-11, at every size of the room that is left."""
        whole = self.make_files()
        store = self.opened(whole)
        self.save(store, point(1), OLD)
        before = whole.used()
        self.save(store, point(2), NEW)
        needed = whole.used() - before
        for room in range(0, needed, 61):
            files = SimulatedFileSystem(before + room)
            store = self.opened(files)
            self.save(store, point(1), OLD)
            writer = store.writer(point(2))
            for chunk in NEW:
                self.successResultOf(writer.write(chunk))
            self.failureResultOf(writer.publish(), StorageFull)
            self.successResultOf(writer.abort())
            self.assertEqual(files.list(ROOT), ["1-2", "LOCK"])
            content = self.content(files.crash())
            assert content is not None
            self.assertEqual(content[1], OLD)


class DamageTests(Case):
    """J-89, J-90, S-16: damage is named and refused; the store is never taken for empty, nor for an older one."""

    def setUp(self) -> None:
        self.files = self.make_files()
        store = self.opened(self.files)
        self.save(store, point(1), OLD)
        self.save(store, point(2), NEW)
        self.successResultOf(store.close())
        self.directory = f"{ROOT}/2-2"

    def refuse(self, files: SimulatedFileSystem, path: str) -> StorageCorrupt:
        """Open and load; return the error, which must name the file. Nothing may have changed."""
        store = self.store(files)
        files.operations.clear()
        result = self.settled(store.open())
        if isinstance(result, Manifest):
            error = self.loading(store)
        else:
            changes = {"create", "write", "rename", "remove"}
            self.assertEqual([each for each in files.operations if each[0] in changes], [])
            result.trap(StorageCorrupt)
            error = result.value
        self.assertEqual(error.path, path)
        return error

    def loading(self, store: FileStateMachine) -> StorageCorrupt:
        with self.assertRaises(StorageCorrupt) as caught:
            self.load(store.reader())
        transfer = store.reader()
        raw = [self.settled(transfer.read(part, 0, size)) for part, (size, _) in enumerate(transfer.manifest.parts)]
        [failure] = [each for each in raw if not isinstance(each, bytes)]
        failure.trap(StorageCorrupt)
        error: StorageCorrupt = caught.exception
        self.assertEqual(failure.value.path, error.path)
        return error

    def test_every_flipped_byte_is_refused(self) -> None:
        """Each byte of manifest and parts, and each bit of some; a transfer refuses the same."""
        for name in self.files.list(self.directory):
            path = f"{self.directory}/{name}"
            size = self.files.size(path)
            for offset in range(0, size, self.stride):
                files = self.files.crash("all")
                [byte] = files.read(path, offset, 1)
                files.corrupt(path, offset, bytes([byte ^ (1 << offset % 8)]))
                error = self.refuse(files, path)
                self.assertTrue(0 <= error.offset <= size, f"{path}: {error.offset}")

    def test_every_truncation_is_refused(self) -> None:
        for name in self.files.list(self.directory):
            path = f"{self.directory}/{name}"
            for size in range(0, self.files.size(path), self.stride):
                files = self.files.crash("all")
                files.truncate(path, size)
                self.refuse(files, path)

    def test_appended_bytes_are_refused(self) -> None:
        for name in self.files.list(self.directory):
            path = f"{self.directory}/{name}"
            files = self.files.crash("all")
            file = files.open(path)
            file.write(files.size(path), b"\x00")
            file.sync()
            self.refuse(files, path)

    def test_zeroed_part_is_refused(self) -> None:
        path = f"{self.directory}/1"
        self.files.corrupt(path, 0, bytes(self.files.size(path)))
        self.refuse(self.files, path)

    def test_missing_file_is_refused(self) -> None:
        """J-90: never passed over for the older snapshot, and never taken for a new node."""
        for name in self.files.list(self.directory):
            files = self.files.crash("all")
            files.remove(f"{self.directory}/{name}")
            self.refuse(files, f"{self.directory}/{name}")

    def test_swapped_parts_are_refused(self) -> None:
        """S-05: a valid part in the place of another."""
        chunks = (b"a" * 300, b"b" * 300)
        files = self.make_files()
        store = self.opened(files)
        self.save(store, point(5), chunks)
        self.successResultOf(store.close())
        files.rename(f"{ROOT}/5-2/0", f"{ROOT}/5-2/x")
        files.rename(f"{ROOT}/5-2/1", f"{ROOT}/5-2/0")
        files.rename(f"{ROOT}/5-2/x", f"{ROOT}/5-2/1")
        store = self.opened(files)
        error = self.failureResultOf(store.reader().next_chunk(), StorageCorrupt).value
        self.assertEqual(error.path, f"{ROOT}/5-2/0")

    def test_renamed_snapshot_is_refused(self) -> None:
        self.files.rename(self.directory, f"{ROOT}/7-2")
        error = self.refuse(self.files, f"{ROOT}/7-2/manifest")
        self.assertIn("2-2", error.reason)

    def test_strange_name_is_refused(self) -> None:
        for name in ("2-2.bak", "02-2", "2", "2-2-2", "-2-2", "0-0", "current"):
            files = self.files.crash("all")
            files.rename(self.directory, f"{ROOT}/{name}")
            self.refuse(files, f"{ROOT}/{name}")

    def test_newer_format_is_refused_as_such(self) -> None:
        """S-25: a later release's snapshot is not damaged, and the error says so."""
        from zlayer_consensus.storage import _snapshot_format as format_module

        path = f"{self.directory}/manifest"
        newest = self.opened(self.files.crash("all")).newest()
        assert newest is not None
        self.patch(format_module, "_FORMAT", 2)
        sealed = format_module.seal_manifest(newest)
        self.patch(format_module, "_FORMAT", 1)
        self.files.corrupt(path, 0, sealed)
        self.assertIn("format 2 is not known", self.refuse(self.files, path).reason)

    def test_an_older_snapshot_is_the_operators_choice(self) -> None:
        """S-16: with the damaged directory moved away, the store offers the one before."""
        for name in self.files.list(self.directory):
            self.files.remove(f"{self.directory}/{name}")
        self.files.remove(self.directory)
        content = self.content(self.files)
        assert content is not None
        self.assertEqual((content[0].point, content[1]), (point(1), OLD))

    def test_damage_under_an_open_reader(self) -> None:
        """A part that rots after it was verified ends short, and is not sent as if it were whole."""
        store = self.opened(self.files)
        reader = store.reader()
        size, _ = reader.manifest.parts[1]
        self.successResultOf(reader.read(1, 0, 10))
        self.files.truncate(f"{self.directory}/1", size - 5)
        self.failureResultOf(reader.read(1, 0, size), StorageCorrupt)

    def test_failing_disk_is_not_damage(self) -> None:
        store = self.opened(self.files)
        self.files.fail("read")
        self.failureResultOf(store.reader().next_chunk(), StorageFailed)


class OnRealFiles(Case):
    """Mixed in before a test case, it runs that on the real file system."""

    stride = 53

    def make_files(self) -> SimulatedFileSystem:
        place = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, place)
        disk = RealDisk.make(place)
        self.addCleanup(disk.die)
        return disk


class RealLayoutTests(OnRealFiles, LayoutTests):
    """S-20: the same on the real file system."""


class RealFaultTests(OnRealFiles, FaultTests):
    """S-12, S-15: the same on the real file system, whose operations fail."""


class RealDamageTests(OnRealFiles, DamageTests):
    """S-05, S-16, S-25, J-89, J-90: the same on the real file system."""


class ManifestTests(SynchronousTestCase):
    def manifest(self) -> Manifest:
        return Manifest(point(5), ((400, b"d" * 32), (8, b"e" * 32)), installed=True)

    def test_round_trip(self) -> None:
        for manifest in (self.manifest(), Manifest(point(1 << 61, 0), ())):
            data = encode_manifest(manifest)
            self.assertEqual(decode_manifest(data), manifest)
            self.assertEqual(encode_manifest(decode_manifest(data)), data)

    def test_closed_schema(self) -> None:
        """What a peer sends is taken only if every key is known, there, of its type and in its range (A-18)."""
        good = _cbor.loads(encode_manifest(self.manifest()))
        changes: list[dict[str, Any]] = [{name: None} for name in good]
        changes += [{"more": 1}, {"format": 2}, {"format": True}, {"format": "1"}]
        changes += [{"index": 0}, {"index": -1}, {"index": 1 << 62}, {"index": True}, {"index": 5.0}]
        changes += [{"term": -1}, {"term": 1 << 62}, {"time_ms": -1}, {"time_ms": 1 << 63}, {"installed": 1}]
        wrong_parts: tuple[Any, ...] = (
            {},
            [1],
            [[400]],
            [[400, b"d" * 32, 1]],
            [[400, b"d" * 31]],
            [[400, "d" * 32]],
            [[7, b"d" * 32]],
            [[0, b"d" * 32]],
            [[-1, b"d" * 32]],
            [[1 << 27, b"d" * 32]],
            [[8, b"d" * 32]] * ((1 << 16) + 1),
        )
        changes += [{"parts": parts} for parts in wrong_parts]
        changes += [{"membership": {}}, {"membership": {**good["membership"], "voters": [99]}}]
        for change in changes:
            self.assertRaises(ValueError, decode_manifest, _cbor.dumps({**good, **change}))
        for name in good:
            self.assertRaises(ValueError, decode_manifest, _cbor.dumps({k: v for k, v in good.items() if k != name}))
        for data in (b"", b"\x80", encode_manifest(self.manifest()) + b"\x00", encode_manifest(self.manifest())[:-1]):
            self.assertRaises(ValueError, decode_manifest, data)

    def test_one_encoding(self) -> None:
        """A transfer is known by its manifest's digest: another encoding of the same is refused."""
        good = _cbor.loads(encode_manifest(self.manifest()))
        turned = _cbor.dumps(dict(reversed(good.items())), canonical=False)
        self.assertNotEqual(turned, encode_manifest(self.manifest()))
        self.assertRaises(ValueError, decode_manifest, turned)
