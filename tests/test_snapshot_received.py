"""Transfers that the end of the receiving process cuts off, and that go on: on a disk that crashes, fails and rots."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from zlayer_consensus.errors import StorageCorrupt, StorageFailed
from zlayer_consensus.storage import FileStateMachine, ISnapshotReceiver, Manifest, StateFile
from zlayer_consensus.storage._snapshot_format import seal_manifest
from zlayer_consensus.testing import SimulatedFileSystem

from .snapshot_kit import NEW, OLD, ROOT, Case, PowerFailure, fail_power, point

CHUNKS = tuple(bytes([n]) * 300 for n in range(10))
PIECE = 130


class ReceivedCase(Case):
    def setUp(self) -> None:
        self.source = self.opened(SimulatedFileSystem())
        self.manifest = self.save(self.source, point(9), CHUNKS)
        self.parts = self.raw(self.source)
        self.assertGreater(len(self.parts), 5)
        self.files = SimulatedFileSystem()

    def receive(self, receiver: ISnapshotReceiver, upto: float = 1.0, parts: list[bytes] | None = None) -> int:
        """Receive up to a share of the whole; return how many bytes that were."""
        parts, total = parts or self.parts, 0
        while not receiver.complete:
            part, offset = receiver.position
            if sum(map(len, parts[:part])) + offset >= upto * sum(map(len, parts)):
                break
            data = parts[part][offset : offset + PIECE]
            self.done(receiver.write(part, offset, data))
            total += len(data)
        return total

    def cut_off(self, upto: float = 0.6) -> tuple[int, int]:
        """Receive a part of the whole, and end in order; return how far it was."""
        store = self.opened(self.files)
        receiver = store.receiver(self.manifest)
        self.receive(receiver, upto)
        self.done(store.close())
        position: tuple[int, int] = receiver.position
        return position

    def finish(self, store: FileStateMachine) -> int:
        """Receive the rest; return how many bytes that were."""
        receiver = store.receiver(self.manifest)
        size = self.receive(receiver)
        self.done(receiver.publish())
        self.check(store)
        return size

    def check(self, store: FileStateMachine, chunks: tuple[bytes, ...] = CHUNKS) -> None:
        self.assertEqual(self.load(store.reader()), chunks)
        newest: Any = store.newest()
        self.assertTrue(newest.installed)
        self.done(store.close())
        self.assertEqual([name for name in self.files.list(ROOT) if name.endswith(".tmp")], [])
        self.assertNotIn("announced", self.files.list(f"{ROOT}/9-2"))
        self.done(self.opened(self.files).close())

    def unfinished(self) -> list[str]:
        return [f"{ROOT}/{name}" for name in self.files.list(ROOT) if name.endswith(".tmp")]


class ResumeTests(ReceivedCase):
    """H-66: what has arrived is not sent again."""

    def test_after_an_orderly_end(self) -> None:
        part, offset = self.cut_off(0.64)
        self.assertTrue(part > 2 and offset, "it was to end within a part")
        [path] = self.unfinished()
        store = self.opened(self.files)
        self.assertEqual(self.files.list(path), [*map(str, range(part)), f"{part}.part", "announced"])
        self.assertEqual(store.receiver(self.manifest).position, (part, offset))
        self.assertEqual(self.finish(store), sum(map(len, self.parts[part:])) - offset)

    def test_again_and_again(self) -> None:
        """Ended once in each part, and the process killed or ended in turns."""
        sent = 0
        for number in range(len(self.parts)):
            store = self.opened(self.files)
            sent += self.receive(store.receiver(self.manifest), (number + 0.9) / len(self.parts))
            if number % 2:
                self.files = self.files.crash(process_only=True)
            else:
                self.done(store.close())
        sent += self.finish(self.opened(self.files))
        self.assertEqual(sent, self.manifest.size)

    def test_all_was_there(self) -> None:
        """It ended between the last byte and the publication."""
        self.cut_off(1.0)
        self.assertEqual(self.finish(self.opened(self.files)), 0)

    def test_before_the_first_part_was_whole(self) -> None:
        part, offset = self.cut_off(0.05)
        self.assertEqual((part, offset), (0, 2 * PIECE))
        store = self.opened(self.files)
        self.assertEqual(store.receiver(self.manifest).position, (0, offset))
        self.assertEqual(self.finish(store), self.manifest.size - offset)

    def test_before_the_first_byte(self) -> None:
        """There is nothing to go on with, and nothing is left."""
        self.cut_off(0.05)
        [path] = self.unfinished()
        self.files.remove(f"{path}/0.part")
        self.files.create(f"{path}/0.part")
        store = self.opened(self.files)
        self.assertEqual(self.unfinished(), [])
        self.assertEqual(store.receiver(self.manifest).position, (0, 0))
        self.assertEqual(self.finish(store), self.manifest.size)

    def test_power_failures(self) -> None:
        """At every operation, whatever the disk keeps: what is taken over is right, and the transfer ends well."""
        resumed = 0
        for nth in range(1, 1000):
            files = self.files = SimulatedFileSystem()
            files.mkdir("/data")
            files.sync_dir("/")
            ended = self.run_until(files, nth)
            keeps: list[Any] = ["none", "all", "prefix", *(random.Random(seed) for seed in range(3))]
            for keep in keeps:
                self.files = files.crash(keep)
                store = self.opened(self.files)
                if store.newest() is None:
                    resumed += store.receiver(self.manifest).position != (0, 0)
                    self.finish(store)
                else:
                    self.check(store)
            if ended:
                self.assertGreater(resumed, nth)
                return
        self.fail("the work never ended")

    def run_until(self, files: SimulatedFileSystem, nth: int) -> bool:
        fail_power(files, nth)
        try:
            store = self.opened(files)
            receiver = store.receiver(self.manifest)
            self.receive(receiver)
            self.done(receiver.publish())
            self.done(store.close())
        except PowerFailure:
            return False
        finally:
            files.before = None
        return True


class ResumeWithFilesTests(ResumeTests):
    """The same with parts that are files of the state machine."""

    def setUp(self) -> None:
        self.source = self.opened(SimulatedFileSystem())
        writer = self.source.writer(point(9))
        for chunk in CHUNKS[:3]:
            self.done(writer.write(chunk))
        self.contents = [bytes([n]) * 401 for n in range(7)]
        self.manifest = self.done(writer.publish([self.a_file(f"/data/{data[0]}", data) for data in self.contents]))
        self.assertEqual(self.manifest.files, 7)
        self.parts = self.raw(self.source)
        self.files = SimulatedFileSystem()

    def a_file(self, path: str, data: bytes) -> StateFile:
        file = self.source._directory.files.create(path)
        file.write(0, data)
        file.sync()
        return StateFile(path, len(data), hashlib.sha256(data).digest())

    def check(self, store: FileStateMachine, chunks: tuple[bytes, ...] = CHUNKS[:3]) -> None:
        reader = store.reader()
        self.assertEqual([self.files.read(file.path, 0, file.size) for file in reader.files], self.contents)
        reader.close()
        super().check(store, chunks)


class NotResumedTests(ReceivedCase):
    def test_a_part_whose_sync_failed(self) -> None:
        """S-12: the cache has all of it, the disk perhaps nothing: the next process writes it again."""
        large = tuple(bytes([n]) * 3000 for n in range(3))  # several sectors each
        self.source = self.opened(SimulatedFileSystem())
        self.manifest = self.save(self.source, point(9), large)
        self.parts = self.raw(self.source)
        store = self.opened(self.files)
        receiver = store.receiver(self.manifest)
        self.receive(receiver, 0.5)
        part, offset = receiver.position
        self.files.fail("sync")
        self.failureResultOf(receiver.write(part, offset, self.parts[part][offset:]), StorageFailed)
        self.files = self.files.crash(process_only=True)
        store = self.opened(self.files)
        self.assertEqual(store.receiver(self.manifest).position, (part, len(self.parts[part]) - 1))
        self.receive(store.receiver(self.manifest))
        self.done(store.receiver(self.manifest).publish())
        self.files = self.files.crash("none")
        self.check(self.opened(self.files), large)

    def test_bytes_of_a_part_under_way_that_are_wrong(self) -> None:
        """They are seen when the part is whole; it is sent again, and nothing else."""
        for change in ("rot", "cut", "longer"):
            with self.subTest(change):
                self.files = SimulatedFileSystem()
                part, offset = self.cut_off(0.64)
                [path] = self.unfinished()
                name = f"{path}/{part}.part"
                if change == "rot":
                    self.files.corrupt(name, 20, b"\xff\xff")
                else:
                    data = self.files.read(name, 0, 1 << 20)
                    self.files.remove(name)
                    self.files.create(name).write(0, data[:-50] if change == "cut" else data + bytes(5000))
                store = self.opened(self.files)
                receiver = store.receiver(self.manifest)
                at, had = receiver.position
                self.assertEqual((at, had > 0), (part, True))
                if change == "cut":  # what is there is right
                    self.assertEqual(had, offset - 50)
                else:
                    refused = self.failureResultOf(receiver.write(at, had, self.parts[part][had:]), ValueError)
                    self.assertIn(f"part {part} did not arrive", str(refused.value))
                    self.assertEqual(receiver.position, (part, 0))
                self.finish(store)

    def test_a_part_that_rotted_since(self) -> None:
        """It is seen before anything is published, and the snapshot is received again."""
        self.cut_off()
        [path] = self.unfinished()
        self.files.corrupt(f"{path}/1", 50, b"\xff\xff")
        store = self.opened(self.files)
        receiver = store.receiver(self.manifest)
        self.receive(receiver)
        error = self.failureResultOf(receiver.publish(), ValueError)
        self.assertIn("part 1", str(error.value))
        self.assertIsNone(store.newest())
        self.done(receiver.abort())
        self.assertEqual(self.finish(store), self.manifest.size)

    def test_a_part_that_was_cut_off_since(self) -> None:
        """One that has not its size is none, and so is what follows it."""
        self.cut_off()
        [path] = self.unfinished()
        self.files.remove(f"{path}/1")
        self.files.create(f"{path}/1").write(0, b"short")
        store = self.opened(self.files)
        self.assertEqual(self.files.list(path), ["0", "announced"])
        self.assertEqual(store.receiver(self.manifest).position, (1, 0))
        self.finish(store)

    def test_damaged_announcement(self) -> None:
        """Nobody knows what these parts are of."""
        self.cut_off()
        [path] = self.unfinished()
        self.files.corrupt(f"{path}/announced", 20, b"\xff\xff")
        store = self.opened(self.files)
        self.assertEqual(self.unfinished(), [])
        self.assertEqual(self.finish(store), self.manifest.size)

    def test_another_snapshot(self) -> None:
        """H-64: another leader's, or a later one. What there was goes; also if it is of the same position."""
        for at in (point(9), point(12)):
            with self.subTest(at):
                self.files = SimulatedFileSystem()
                self.cut_off()
                other = self.opened(SimulatedFileSystem())
                manifest = self.save(other, at, NEW)
                store = self.opened(self.files)
                receiver = store.receiver(manifest)
                self.assertEqual(receiver.position, (0, 0))
                self.assertEqual(self.unfinished(), [])
                self.receive(receiver, parts=self.raw(other))
                self.done(receiver.publish())
                self.assertEqual(self.load(store.reader()), NEW)
                self.assertEqual(self.unfinished(), [])

    def test_it_is_not_needed_any_more(self) -> None:
        """The node has come so far by itself: with its own snapshot the transfer goes."""
        self.cut_off()
        store = self.opened(self.files)
        self.save(store, point(8), OLD)
        self.assertEqual(len(self.unfinished()), 1)
        self.save(store, point(9), OLD)
        self.assertEqual(self.unfinished(), [])

    def test_an_older_one_than_the_newest(self) -> None:
        """The process ended before the transfer could be removed."""
        self.cut_off()
        [path] = self.unfinished()
        names = {name: self.files.read(f"{path}/{name}", 0, 1 << 20) for name in self.files.list(path)}
        store = self.opened(self.files)
        self.save(store, point(10), OLD)
        self.done(store.close())
        self.files.mkdir(path)
        for name, data in names.items():
            self.files.create(f"{path}/{name}").write(0, data)
        self.opened(self.files)
        self.assertEqual(self.unfinished(), [])

    def test_several(self) -> None:
        """The latest is what a leader may still have."""
        self.cut_off()
        later = f"{ROOT}/12-2.7.tmp"
        self.files.mkdir(later)
        manifest = Manifest(point(12), self.manifest.parts)
        for name, data in (("announced", seal_manifest(manifest)), ("0", self.parts[0])):
            self.files.create(f"{later}/{name}").write(0, data)
        store = self.opened(self.files)
        self.assertEqual(self.unfinished(), [later])
        self.assertEqual(store.receiver(manifest).position, (1, 0))

    def test_own_snapshots_keep_out_of_its_way(self) -> None:
        """An unfinished one of the same position has another name, however often the process has started."""
        self.cut_off()
        store = self.opened(self.files)
        writer = store.writer(point(9))
        self.done(writer.write(bytes(300_000)))
        self.assertEqual(len(self.unfinished()), 2)
        self.done(writer.abort())
        self.finish(store)

    def test_leftovers_of_earlier_versions(self) -> None:
        """Without an announcement nobody knows what they are of."""
        self.files.mkdir("/data")
        self.files.mkdir(ROOT)
        self.files.mkdir(f"{ROOT}/9-2.0.tmp")
        self.files.create(f"{ROOT}/9-2.0.tmp/0").write(0, self.parts[0])
        store = self.opened(self.files)
        self.assertEqual(self.unfinished(), [])
        self.assertEqual(self.finish(store), self.manifest.size)

    def test_damage_is_still_damage(self) -> None:
        """A published snapshot that is damaged is refused, whatever lies beside it (J-89)."""
        self.finish(self.opened(self.files))
        self.files.corrupt(f"{ROOT}/9-2/manifest", 10, b"\xff\xff")
        self.failureResultOf(self.store(self.files).open(), StorageCorrupt)
