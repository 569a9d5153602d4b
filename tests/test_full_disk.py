"""Full disks, simulated and real: what was acknowledged is there, and a start needs no space (S-10, S-11)."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.crash_kit import make_log, make_machine_store
from tests.real_disk import RealDisk
from zlayer_consensus.errors import StorageFailed, StorageFull
from zlayer_consensus.raft import LogWrite
from zlayer_consensus.testing import SimulatedFileSystem
from zlayer_consensus.testing.crashes import (
    SNAPSHOT_STEPS,
    Explored,
    GatedExecutor,
    LogContent,
    LogSubject,
    Script,
    SnapshotStep,
    SnapshotSubject,
    Story,
    explore_crashes,
    log_story,
    outcome,
)

KIB = 1 << 10


class FullDiskSubject(LogSubject):
    """A log that is opened while the disk is full; it goes on when there is space again."""

    def go_on(self, files: SimulatedFileSystem) -> LogContent:
        files.capacity = None
        return super().go_on(files)


def until_full(script: Script) -> Story:
    """A story that goes on until there is no space, neither on the disk nor in the reserve."""
    story = log_story(make_log, script.steps)

    def play(files: SimulatedFileSystem) -> Iterator[Sequence[LogContent]]:
        try:
            yield from story(files)
        except StorageFull:
            return
        raise AssertionError("the disk was not filled")

    return play


def filling() -> Script:
    script = Script("filling")
    for turn in range(30):
        script.append(3, 700, with_state=turn % 3 == 0)
        if turn % 4 == 2:
            script.conflict(2, 2, 500)
        if turn % 5 == 3:
            script.elect()
    return script


class FullDiskCrashTests(SynchronousTestCase):
    def test_crashes_on_a_disk_that_fills_up(self) -> None:
        """S-10, S-11, S-24: at every operation until the reserve is used up; each opening has to do without space."""
        seen = Explored()
        for room in range(0, 60 * KIB, 15 * KIB + 500):
            files = SimulatedFileSystem()
            log = make_log(files, GatedExecutor())
            self.successResultOf(log.open())
            self.successResultOf(log.close())
            files.capacity = files.used() + room
            subject, story = FullDiskSubject(make_log), until_full(filling())
            seen += explore_crashes(subject, story, files=files.crash("all"), seed=room)
        self.assertGreater(seen.torn, 100)

    def test_a_torn_record_on_a_full_disk(self) -> None:
        """S-01, S-10: neither the reserve nor the start is given up for a copy of what was never acknowledged."""
        for reserved in (True, False):
            files = SimulatedFileSystem()
            log = make_log(files, GatedExecutor())
            self.successResultOf(log.open())
            script = Script("torn").append(3, 500, with_state=True).append(5, 700)
            first, second = script.steps
            assert isinstance(first, LogWrite) and isinstance(second, LogWrite)
            self.successResultOf(log.write(first))
            files.fail("sync")
            self.failureResultOf(log.write(second), StorageFailed)
            [segment] = [path for path, _ in files.files() if path.endswith(".seg")]
            used = len(files.read(segment, 0, 1 << 20).rstrip(b"\0"))
            files.corrupt(segment, used // 512 * 512 - 1024, bytes(512))
            if not reserved:
                files.remove("/data/wal/reserve")
            torn = files.crash(process_only=True)
            torn.capacity = torn.used()
            self.assertEqual(3, LogSubject(make_log).recover(torn).last.index)
            self.assertEqual(reserved, torn.exists("/data/wal/reserve"))
            self.assertEqual([], torn.list("/data/quarantine") if torn.exists("/data/quarantine") else [])


class RealFullDiskTests(SynchronousTestCase):
    """S-10, S-11: on a small file system in memory."""

    def disk(self, size: int) -> RealDisk:
        """Mount one; without the right to, the test is skipped."""
        place = tempfile.mkdtemp()
        self.addCleanup(os.rmdir, place)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", place], capture_output=True, check=False
        )
        if done.returncode:
            raise SkipTest(f"cannot mount a tmpfs: {done.stderr.decode(errors='replace').strip()}")
        self.addCleanup(subprocess.run, ["umount", place], check=True)
        disk = RealDisk.make(place)
        self.addCleanup(disk.die)
        # What is not the log's takes the rest, and can be removed.
        with open(f"{place}/ballast", "wb") as ballast:
            ballast.write(bytes(64 * KIB))
        return disk

    def fill(self, disk: RealDisk) -> LogContent:
        """Write until there is no space; return what was acknowledged."""
        content: list[LogContent] = [LogContent()]
        for possible in until_full(filling())(disk):
            if len(possible) == 1:
                content = [*possible]
        return content[0]

    def test_a_log_on_a_disk_that_is_full(self) -> None:
        """What was acknowledged is there, a start needs no space, and the log goes on when there is some."""
        disk = self.disk(260 * KIB)
        acknowledged = self.fill(disk)
        self.assertGreater(acknowledged.last.index, 20)
        subject = LogSubject(make_log)
        for _ in range(2):
            disk.die()
            found = subject.recover(disk)
            self.assertTrue(subject.admits(acknowledged, found), f"{found} instead of {acknowledged}")
        disk.die()
        os.remove(f"{disk.place}/ballast")
        wanted = subject.go_on(disk)
        disk.die()
        self.assertEqual(wanted, subject.recover(disk))

    def test_a_snapshot_on_a_disk_that_is_full(self) -> None:
        """It is given up without a trace, the one before stays, and the next one succeeds when there is space."""
        disk = self.disk(160 * KIB)
        store = make_machine_store(disk, GatedExecutor())
        self.successResultOf(store.open())
        old, new = SNAPSHOT_STEPS["take"][0], SNAPSHOT_STEPS["take"][1]
        assert isinstance(old, SnapshotStep) and isinstance(new, SnapshotStep)
        writer = store.writer(old.content.point)
        self.successResultOf(writer.write(b"old"))
        self.successResultOf(writer.publish())
        large = [bytes([n]) * 20 * KIB for n in range(6)]
        writer = store.writer(new.content.point)
        with self.assertRaises(StorageFull):
            for chunk in large:
                outcome(writer.write(chunk))
            outcome(writer.publish())
        self.successResultOf(writer.abort())
        self.assertEqual(["1-2", "LOCK"], disk.list("/data/snap"))
        self.successResultOf(store.close())
        found = SnapshotSubject(make_machine_store).recover(disk)
        assert found is not None
        self.assertEqual((old.content.point, (b"old",)), (found.point, found.chunks))
        disk.die()
        os.remove(f"{disk.place}/ballast")
        store = make_machine_store(disk, GatedExecutor())
        self.successResultOf(store.open())
        writer = store.writer(new.content.point)
        for chunk in large:
            self.successResultOf(writer.write(chunk))
        self.assertEqual(new.content.point, self.successResultOf(writer.publish()).point)
