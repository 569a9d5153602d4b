"""The scrub of published snapshots: oldest first, in pieces, while others are taken and removed."""

from __future__ import annotations

from typing import Any

from zlayer_consensus.errors import StorageCorrupt, StorageFailed
from zlayer_consensus.storage import FileStateMachine, MemStateMachine, ScrubStep
from zlayer_consensus.testing import SimulatedFileSystem

from .snapshot_kit import NEW, OLD, ROOT, Case, ignore, point

CHUNKS = tuple(bytes([n]) * 300 for n in range(20))


class ScrubCase(Case):
    def setUp(self) -> None:
        self.files = SimulatedFileSystem()
        self.disk = self.opened(self.files)

    def scrub(self, piece: int = 256) -> ScrubStep:
        step: ScrubStep = self.done(self.disk.scrub(piece))
        return step

    def one_pass(self, piece: int = 256) -> list[ScrubStep]:
        steps = [self.scrub(piece)]
        while not steps[-1].done:
            steps.append(self.scrub(piece))
            self.assertLess(len(steps), 1000, "the pass has no end")
        return steps

    def corrupt(self, path: str, offset: int = 100) -> None:
        byte = self.files.read(path, offset, 1)[0]
        self.files.corrupt(path, offset, bytes([byte ^ 1]))


class PassTests(ScrubCase):
    def test_there_is_none(self) -> None:
        self.assertEqual(self.scrub(), ScrubStep(done=True))

    def test_every_part_is_read(self) -> None:
        """The oldest snapshot first, in pieces; and the next pass does it again."""
        old = self.save(self.disk, point(5), CHUNKS)
        new = self.save(self.disk, point(7), (*CHUNKS, b"more"))
        for _ in range(2):
            steps = self.one_pass()
            self.assertEqual(sum(step.size for step in steps), old.size + new.size)
            self.assertLess(max(step.size for step in steps), 512)
            directories = [step.path.split("/")[-2] for step in steps]
            self.assertEqual(directories, sorted(directories))
            self.assertEqual(set(directories), {"5-2", "7-2"})

    def test_reopened(self) -> None:
        manifest = self.save(self.disk, point(5), CHUNKS)
        self.done(self.disk.close())
        self.disk = self.opened(self.files)
        self.assertEqual(sum(step.size for step in self.one_pass()), manifest.size)

    def test_removed_meanwhile(self) -> None:
        """By newer ones, between two steps; and one that came meanwhile is the next pass's."""
        self.save(self.disk, point(5), CHUNKS)
        self.save(self.disk, point(6), CHUNKS)
        self.assertIn("5-2", self.scrub().path)
        self.save(self.disk, point(7), CHUNKS)
        self.assertFalse(self.files.exists(f"{ROOT}/5-2"))
        self.assertEqual({step.path.split("/")[-2] for step in self.one_pass()}, {"6-2"})
        self.assertEqual({step.path.split("/")[-2] for step in self.one_pass()}, {"6-2", "7-2"})

    def test_all_are_removed_meanwhile(self) -> None:
        self.save(self.disk, point(5), CHUNKS)
        self.scrub()
        for index in (6, 7, 8):
            self.save(self.disk, point(index), CHUNKS)
        self.assertEqual(self.scrub(), ScrubStep(done=True))
        self.assertEqual({step.path.split("/")[-2] for step in self.one_pass()}, {"7-2", "8-2"})

    def test_store_that_is_closed(self) -> None:
        self.done(self.disk.close())
        self.failureResultOf(self.disk.scrub(256), RuntimeError)

    def test_in_memory(self) -> None:
        """There is nothing that could rot; a pass is one step for each."""
        store = MemStateMachine({}, ignore)
        self.done(store.open())
        self.assertEqual(self.done(store.scrub(256)), ScrubStep(done=True))
        self.save(store, point(5), OLD)
        self.save(store, point(6), NEW)
        self.assertFalse(self.done(store.scrub(256)).done)
        self.assertTrue(self.done(store.scrub(256)).done)


class DamageTests(ScrubCase):
    """J-89, S-02: in the newest it is fatal; in an older one it is told."""

    def setUp(self) -> None:
        super().setUp()
        self.save(self.disk, point(5), CHUNKS)
        self.save(self.disk, point(7), CHUNKS)

    def refused(self) -> Any:
        return self.assertRaises(StorageCorrupt, self.one_pass)

    def test_newest(self) -> None:
        """Any byte of its files: file and offset are named."""
        for name in self.files.list(f"{ROOT}/7-2"):
            for offset in (0, 5, 30, 60):
                with self.subTest(name=name, offset=offset):
                    path = f"{ROOT}/7-2/{name}"
                    self.corrupt(path, offset)
                    error = self.refused()
                    self.assertEqual(error.path, path)
                    self.assertLessEqual(error.offset, self.files.size(path))
                    self.corrupt(path, offset)
        self.one_pass()

    def test_older(self) -> None:
        """It stands in the step, once in a pass, and the pass goes on with the newest."""
        path = f"{ROOT}/5-2/3"
        self.corrupt(path)
        for _ in range(2):
            steps = self.one_pass()
            [damage] = [step.damage for step in steps if step.damage]
            self.assertEqual(damage.path, path)
            self.assertTrue(any("/7-2/" in step.path for step in steps))

    def test_newest_that_is_superseded(self) -> None:
        """What was the newest when it was damaged is not when that is found: nothing depends on it any more."""
        self.corrupt(f"{ROOT}/7-2/0")
        self.save(self.disk, point(9), CHUNKS)
        [damage] = [step.damage for step in self.one_pass() if step.damage]
        self.assertEqual(damage.path, f"{ROOT}/7-2/0")

    def test_older_manifest(self) -> None:
        self.corrupt(f"{ROOT}/5-2/manifest")
        [damage] = [step.damage for step in self.one_pass() if step.damage]
        self.assertEqual(damage.path, f"{ROOT}/5-2/manifest")

    def test_one_file_of_several_snapshots(self) -> None:
        """A second name of the same file: each snapshot that has it is told, before the newest stops the node."""
        for name in ("0", "1"):
            self.files.remove(f"{ROOT}/7-2/{name}")
            self.files.link(f"{ROOT}/5-2/{name}", f"{ROOT}/7-2/{name}")
        self.one_pass()
        self.corrupt(f"{ROOT}/5-2/1")
        steps = []
        with self.assertRaises(StorageCorrupt) as caught:
            while True:
                steps.append(self.scrub())
        self.assertEqual([step.damage.path for step in steps if step.damage], [f"{ROOT}/5-2/1"])
        self.assertEqual(caught.exception.path, f"{ROOT}/7-2/1")

    def test_missing(self) -> None:
        """The newest must be there; an older one may have been moved away by hand."""
        self.files.rename(f"{ROOT}/5-2", f"{ROOT}/5-2.gone.tmp")
        self.assertEqual([step.damage for step in self.one_pass() if step.damage], [])
        self.files.rename(f"{ROOT}/7-2", f"{ROOT}/7-2.gone.tmp")
        error = self.refused()
        self.assertEqual(error.path, f"{ROOT}/7-2")
        self.assertIn("missing", str(error))

    def test_missing_part(self) -> None:
        self.files.remove(f"{ROOT}/7-2/4")
        self.assertEqual(self.refused().path, f"{ROOT}/7-2/4")

    def test_manifest_of_another_snapshot(self) -> None:
        """S-05: whole in itself, and not what this store has published or opened."""
        other = SimulatedFileSystem()
        store: FileStateMachine = self.opened(other)
        self.save(store, point(7), NEW)
        for name in self.files.list(f"{ROOT}/7-2"):
            self.files.remove(f"{ROOT}/7-2/{name}")
        for name in other.list(f"{ROOT}/7-2"):
            file = self.files.create(f"{ROOT}/7-2/{name}")
            file.write(0, other.read(f"{ROOT}/7-2/{name}", 0, other.size(f"{ROOT}/7-2/{name}")))
        self.assertEqual(self.refused().path, f"{ROOT}/7-2/manifest")

    def test_disk_that_cannot_be_read(self) -> None:
        """Not damage but failure, whichever snapshot it is in."""
        self.files.fail("read")
        self.assertRaises(StorageFailed, self.one_pass)
