"""
The real file system behind the seam, and the simulated one that stands in for it.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
from typing import Any
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from tests.log_store_kit import entries
from zlayer_consensus.errors import StorageFailed, StorageFull, StorageLocked
from zlayer_consensus.raft import LogWrite
from zlayer_consensus.storage import (
    FileLogStore,
    IExecutor,
    IFile,
    IFileLock,
    IFileSystem,
    InlineExecutor,
    RealFileSystem,
    ThreadExecutor,
)
from zlayer_consensus.testing import SimulatedFileSystem
from zlayer_consensus.testing._simfs import Interrupted


class FileSystemContract:
    """What holds on every file system behind the seam."""

    files: IFileSystem
    root: str

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def write(self, name: str, data: bytes) -> None:
        file = self.files.create(self.path(name))
        file.write(0, data)
        file.sync()
        file.close()
        file.close()

    def test_it_provides_the_contract(self: Any) -> None:
        verifyObject(IFileSystem, self.files)
        file = self.files.create(self.path("a"))
        verifyObject(IFile, file)
        self.assertEqual(self.path("a"), file.path)
        file.close()
        verifyObject(IFileLock, self.files.lock(self.path("LOCK")))

    def test_what_is_written_can_be_read(self: Any) -> None:
        self.write("a", b"0123456789")
        file = self.files.open(self.path("a"))
        file.write(3, b"xyz")
        file.write(12, b"end")
        file.zero(20, 5)
        file.sync()
        file.close()
        self.assertEqual(b"012xyz6789\0\0end" + bytes(10), self.files.read(self.path("a"), 0, 100))
        self.assertEqual(b"xyz", self.files.read(self.path("a"), 3, 3))
        self.assertEqual(b"", self.files.read(self.path("a"), 99, 3))
        self.assertEqual(25, self.files.size(self.path("a")))

    def test_names(self: Any) -> None:
        self.files.mkdir(self.path("d"))
        self.files.mkdir(self.path("d"))
        self.write("d/b", b"b")
        self.write("d/a", b"a")
        self.assertEqual(["a", "b"], self.files.list(self.path("d")))
        self.files.rename(self.path("d/a"), self.path("d/b"))
        self.files.sync_dir(self.path("d"))
        self.assertEqual((["b"], b"a"), (self.files.list(self.path("d")), self.files.read(self.path("d/b"), 0, 9)))
        self.assertRaises(StorageFailed, self.files.remove, self.path("d"))
        self.files.remove(self.path("d/b"))
        self.files.remove(self.path("d"))
        self.assertFalse(self.files.exists(self.path("d")))

    def test_a_file_with_two_names_is_one_file(self: Any) -> None:
        self.write("a", b"0123456789")
        self.files.mkdir(self.path("d"))
        self.files.link(self.path("a"), self.path("d/b"))
        self.files.sync_dir(self.path("d"))
        file = self.files.open(self.path("a"))
        file.write(0, b"x")
        file.close()
        self.assertEqual(b"x123456789", self.files.read(self.path("d/b"), 0, 99))
        self.files.remove(self.path("a"))
        self.assertEqual(b"x123456789", self.files.read(self.path("d/b"), 0, 99))
        self.write("a", b"another")
        error = self.assertRaises(StorageFailed, self.files.link, self.path("d/b"), self.path("a"))
        self.assertEqual(("link", self.path("a")), (error.operation, error.path))

    def test_free_space_is_told(self: Any) -> None:
        self.assertGreater(self.files.free(self.root), 0)
        error = self.assertRaises(StorageFailed, self.files.free, self.path("b"))
        self.assertEqual(("free", self.path("b")), (error.operation, error.path))

    def test_what_is_missing_or_in_the_way_is_named(self: Any) -> None:
        self.write("a", b"")
        for operation, call, name in (
            ("create", self.files.create, "a"),
            ("mkdir", self.files.mkdir, "a"),
            ("open", self.files.open, "b"),
            ("remove", self.files.remove, "b"),
            ("size", self.files.size, "b"),
            ("list", self.files.list, "b"),
        ):
            error = self.assertRaises(StorageFailed, call, self.path(name))
            self.assertEqual((operation, self.path(name)), (error.operation, error.path))

    def test_a_lock_has_one_holder(self: Any) -> None:
        """S-20."""
        lock = self.files.lock(self.path("LOCK"))
        error = self.assertRaises(StorageLocked, self.files.lock, self.path("LOCK"))
        self.assertEqual(self.path("LOCK"), error.path)
        lock.release()
        lock.release()
        self.files.lock(self.path("LOCK")).release()


class RealFileSystemTests(FileSystemContract, SynchronousTestCase):
    def setUp(self) -> None:
        self.files = RealFileSystem()
        self.root = self.mktemp()
        os.makedirs(self.root)

    def test_files_are_the_owners_alone(self) -> None:
        """Hazards §3.4: 0600 and 0700."""
        self.files.mkdir(self.path("d"))
        self.write("d/a", b"")
        self.files.lock(self.path("LOCK")).release()
        modes = [stat.S_IMODE(os.stat(self.path(name)).st_mode) for name in ("d", "d/a", "LOCK")]
        self.assertEqual([0o700, 0o600, 0o600], modes)

    def test_a_directory_that_others_may_write_to_is_refused(self) -> None:
        """S-20."""
        os.mkdir(self.path("d"))
        os.chmod(self.path("d"), 0o777)
        self.assertRaises(StorageFailed, self.files.mkdir, self.path("d"))

    def test_links_are_not_followed(self) -> None:
        self.write("a", b"secret")
        os.symlink("a", self.path("link"))
        for call in (self.files.open, self.files.lock, lambda path: self.files.read(path, 0, 1)):
            self.assertRaises(StorageFailed, call, self.path("link"))

    def test_the_holder_of_a_lock_is_named(self) -> None:
        """S-20: another process holds it; when that dies, it is free."""
        program = (
            "import sys; from zlayer_consensus.storage import RealFileSystem\n"
            "held = RealFileSystem().lock(sys.argv[1]); print('held', flush=True); sys.stdin.read()\n"
        )
        holder = subprocess.Popen(
            [sys.executable, "-c", program, os.path.abspath(self.path("LOCK"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        )
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            error = self.assertRaises(StorageLocked, self.files.lock, self.path("LOCK"))
            self.assertEqual(f"process {holder.pid}", error.holder)
        finally:
            holder.kill()
            holder.communicate()
        self.files.lock(self.path("LOCK")).release()

    def test_a_short_write_goes_on(self) -> None:
        """S-14: and one that takes nothing is an error."""
        real = os.pwrite
        with mock.patch("os.pwrite", lambda fd, data, offset: real(fd, bytes(data)[:3], offset)):
            self.write("a", b"0123456789")
        self.assertEqual(b"0123456789", self.files.read(self.path("a"), 0, 99))
        with mock.patch("os.pwrite", lambda fd, data, offset: 0):
            self.assertRaises(StorageFailed, self.write, "b", b"x")

    def test_a_short_read_goes_on(self) -> None:
        """S-14."""
        self.write("a", b"0123456789")
        real = os.pread
        with mock.patch("os.pread", lambda fd, size, offset: real(fd, min(size, 4), offset)):
            self.assertEqual(b"123456789", self.files.read(self.path("a"), 1, 99))

    def test_a_full_disk_has_an_error_of_its_own(self) -> None:
        """S-10."""
        for number, kind in ((errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, StorageFailed)):
            with mock.patch("os.pwrite", side_effect=OSError(number, os.strerror(number))):
                error = self.assertRaises(StorageFailed, self.write, f"file-{number}", b"x")
            self.assertIs(kind, type(error))
            self.assertEqual(("write", os.strerror(number)), (error.operation, error.cause))

    def test_a_failed_sync_is_reported(self) -> None:
        """S-12."""
        file = self.files.create(self.path("a"))
        self.addCleanup(file.close)
        with mock.patch("zlayer_consensus.storage._files._sync_fd", side_effect=OSError(errno.EIO, "bad")):
            error = self.assertRaises(StorageFailed, file.sync)
        self.assertEqual(("sync", self.path("a")), (error.operation, error.path))


class SimulatedFileSystemTests(FileSystemContract, SynchronousTestCase):
    def setUp(self) -> None:
        self.disk = SimulatedFileSystem()
        self.files = self.disk
        self.root = ""

    def synced(self) -> IFile:
        file = self.disk.create("/a")
        file.write(0, b"1" * 2048)
        file.sync()
        self.disk.sync_dir("/")
        return file

    def test_what_was_not_synced_is_lost(self) -> None:
        file = self.synced()
        file.write(512, b"2" * 1024)
        self.assertEqual(b"1" * 2048, self.disk.crash("none").read("/a", 0, 9999))
        self.assertEqual(b"1" * 512 + b"2" * 1024 + b"1" * 512, self.disk.crash("all").read("/a", 0, 9999))
        self.assertEqual(b"1" * 512 + b"2" * 512 + b"1" * 1024, self.disk.crash("prefix").read("/a", 0, 9999))

    def test_any_subset_of_sectors_may_survive(self) -> None:
        """J-97: sectors reach the disk in any order."""
        self.synced().write(0, b"2" * 2048)
        seen = {self.disk.crash(random.Random(seed)).read("/a", 0, 9999)[::512] for seed in range(200)}
        self.assertEqual(16, len(seen))

    def test_a_lost_sector_of_a_grown_file_holds_zeros(self) -> None:
        self.synced().write(2048, b"2" * 1024)
        seen = {self.disk.crash(random.Random(seed)).read("/a", 2048, 9999) for seed in range(100)}
        self.assertIn(bytes(512) + b"2" * 512, seen)
        self.assertIn(b"", seen)

    def test_names_survive_if_their_directory_was_synced(self) -> None:
        """J-96."""
        self.disk.create("/a").sync()
        self.assertFalse(self.disk.crash("none").exists("/a"))
        self.assertTrue(self.disk.crash("all").exists("/a"))
        self.disk.sync_dir("/")
        self.disk.rename("/a", "/b")
        self.assertEqual((["a"], ["b"]), (self.disk.crash("none").list("/"), self.disk.crash("all").list("/")))
        self.disk.remove("/b")
        self.assertEqual(["a"], self.disk.crash("none").list("/"))
        self.assertEqual([], self.disk.crash("all").list("/"))

    def test_renames_that_are_lost_are_counted(self) -> None:
        system = SimulatedFileSystem()
        system.create("/old")
        system.sync_dir("/")
        system.create("/other")
        system.rename("/old", "/new")
        self.assertEqual([system.crash(keep).lost_renames for keep in ("none", "all")], [1, 0])
        self.assertEqual(system.crash("none").list("/"), ["old"])

    def test_a_killed_process_loses_nothing_but_it_is_not_durable(self) -> None:
        self.synced().write(0, b"2")
        self.disk.lock("/LOCK")
        killed = self.disk.crash(process_only=True)
        self.assertEqual(b"2", killed.read("/a", 0, 1))
        self.assertEqual(b"1", killed.crash("none").read("/a", 0, 1))
        killed.lock("/LOCK")

    def test_a_sync_that_a_crash_cuts_off_is_no_failed_one(self) -> None:
        """What it was to make durable still may be, or can be by the next process; a failed one's pages are clean."""

        def die(operation: str, path: str) -> None:
            if operation == "sync":
                raise Interrupted(operation, path, "the process dies")

        file = self.synced()
        file.write(0, b"2" * 2048)
        self.disk.before = die
        self.assertRaises(Interrupted, file.sync)
        self.assertEqual(b"2" * 2048, self.disk.crash("all").read("/a", 0, 9999))
        self.assertEqual(
            b"2" * 512 + b"1" * 1536, self.disk.crash(frozenset(self.disk.unsynced()[:1])).read("/a", 0, 9999)
        )
        self.assertEqual(b"1" * 2048, self.disk.crash("none").read("/a", 0, 9999))
        next_process = self.disk.crash(process_only=True)
        next_process.open("/a").sync()
        self.assertEqual(b"2" * 2048, next_process.crash("none").read("/a", 0, 9999))
        self.disk.before = None
        self.disk.fail("sync")
        self.assertRaises(StorageFailed, file.sync)
        self.assertEqual(b"1" * 2048, self.disk.crash("all").read("/a", 0, 9999))

    def test_a_crash_leaves_the_original_alone(self) -> None:
        file = self.synced()
        file.write(0, b"2")
        crashed = self.disk.crash("all")
        crashed.open("/a").write(0, b"3")
        file.write(1, b"4")
        self.assertEqual((b"24", b"31"), (self.disk.read("/a", 0, 2), crashed.read("/a", 0, 2)))

    def test_what_is_not_synced_can_be_lost_one_by_one(self) -> None:
        """Sectors that differ, sizes and names, oldest first; a sector that is the same as before does not count."""
        file = self.synced()
        file.write(0, b"1" * 512 + b"2" * 512)
        self.disk.create("/b").write(0, bytes(1024) + b"3")
        self.disk.rename("/b", "/c")
        found = self.disk.unsynced()
        shown = ["sector 1 of /a", "name 0 of /", "sector 2 of /c", "size of /c", "name 1 of /"]
        self.assertEqual(shown, [str(each) for each in found])
        sector, created, content, size, renamed = found
        after = self.disk.crash(frozenset((created, size)))
        self.assertEqual((b"1" * 2048, bytes(1025)), (after.read("/a", 0, 9999), after.read("/b", 0, 9999)))
        after = self.disk.crash(frozenset((sector, renamed)))
        self.assertEqual((b"12", b""), (after.read("/a", 511, 2), after.read("/c", 0, 9999)))
        after = self.disk.crash(frozenset((renamed, content)))
        self.assertEqual(bytes(1024) + b"3", after.read("/c", 0, 9999))
        self.assertEqual(sorted(map(str, found)), sorted(map(str, self.disk.crash(process_only=True).unsynced())))
        file.sync()
        self.assertEqual(shown[1:], [str(each) for each in self.disk.unsynced()])

    def test_changes_are_counted(self) -> None:
        """Equal counts mean that nothing has changed, neither what programs see nor what is on the disk."""
        file = self.synced()
        counts = [self.disk.changes]
        for change in (
            lambda: file.write(0, b"2"),
            file.sync,
            lambda: self.disk.rename("/a", "/b"),
            lambda: self.disk.sync_dir("/"),
            lambda: self.disk.corrupt("/b", 0, b"3"),
            lambda: self.disk.truncate("/b", 5),
        ):
            change()
            counts.append(self.disk.changes)
        self.assertEqual(counts, sorted(set(counts)))
        file.sync()
        self.disk.sync_dir("/")
        self.disk.read("/b", 0, 5)
        self.disk.list("/")
        self.assertEqual(counts[-1], self.disk.changes)

    def test_faults_come_when_they_are_due(self) -> None:
        """Hazards §3.1: what a failed sync had to make durable never will be, though the next one succeeds."""
        file = self.synced()
        self.disk.fail("sync", 2)
        file.write(0, b"2")
        file.sync()
        file.write(0, b"3")
        self.assertTrue(self.disk.failing)
        self.assertRaises(StorageFailed, file.sync)
        self.assertFalse(self.disk.failing)
        file.sync()
        self.assertEqual(b"3", self.disk.read("/a", 0, 1))
        self.assertEqual(b"2", self.disk.crash("all").read("/a", 0, 1))

    def test_a_second_name_takes_no_space_and_may_be_lost(self) -> None:
        self.synced()
        used = self.disk.used()
        self.disk.capacity = used + 100
        self.disk.link("/a", "/b")
        self.assertEqual((used, 100), (self.disk.used(), self.disk.free("/")))
        self.assertEqual([False, True], [self.disk.crash(keep).exists("/b") for keep in ("none", "all")])
        self.disk.sync_dir("/")
        after = self.disk.crash("none")
        self.disk.remove("/a")
        self.assertTrue(after.exists("/a"))
        after.corrupt("/a", 0, b"x")
        self.assertEqual((b"x", b"1"), (after.read("/b", 0, 1), self.disk.read("/b", 0, 1)))

    def test_the_capacity_bounds_all_files(self) -> None:
        self.synced()
        self.disk.capacity = 3000
        file = self.disk.create("/b")
        self.assertRaises(StorageFull, file.zero, 0, 1000)
        file.zero(0, 900)
        self.disk.remove("/a")
        file.zero(0, 3000)

    def test_hooks_see_every_operation(self) -> None:
        seen: list[tuple[str, str]] = []
        self.disk.before = lambda operation, path: seen.append((operation, path))
        self.synced()
        self.assertEqual([("create", "/a"), ("write", "/a"), ("sync", "/a"), ("sync_dir", "/")], seen)
        self.assertEqual(seen, self.disk.operations)


class InlineExecutorTests(SynchronousTestCase):
    def test_calls_have_ended_when_run_returns(self) -> None:
        executor = InlineExecutor()
        verifyObject(IExecutor, executor)
        self.assertEqual(3, self.successResultOf(executor.run(max, 1, 3)))
        self.failureResultOf(executor.run(int, "x"), ValueError)
        self.successResultOf(executor.stop())


class ThreadExecutorTests(TestCase):
    def setUp(self) -> None:
        self.executor = ThreadExecutor(reactor, "test")
        self.addCleanup(self.executor.stop)

    def test_it_provides_the_contract(self) -> None:
        verifyObject(IExecutor, self.executor)

    async def test_calls_run_in_order_on_one_thread(self) -> None:
        ran: list[int] = []
        calls = [self.executor.run(ran.append, number) for number in range(200)]
        for call in calls:
            await call
        self.assertEqual(list(range(200)), ran)

    async def test_an_exception_comes_back(self) -> None:
        with self.assertRaises(ValueError):
            await self.executor.run(int, "x")

    async def test_stop_waits_for_what_was_handed_over(self) -> None:
        ran: list[int] = []
        last: Deferred[None] = self.executor.run(ran.append, 1)
        await self.executor.stop()
        await last
        self.assertEqual([1], ran)
        self.assertRaises(RuntimeError, self.executor.run, ran.append, 2)


class RealStoreTests(TestCase):
    """The file log store with its own thread on the real file system."""

    async def test_what_was_written_is_there_after_reopening(self) -> None:
        directory = self.mktemp()
        log = FileLogStore(directory, 1, reactor=reactor, segment_bytes=64 << 10)
        await log.open()
        writing = [log.write(LogWrite(entries=entries(first, first + 9))) for first in range(1, 2001, 10)]
        await writing[-1]
        self.assertTrue(all(done.called for done in writing))
        with self.assertRaises(StorageLocked):
            await FileLogStore(directory, 1, file_system=RealFileSystem(), executor=InlineExecutor()).open()
        await log.close()
        again = FileLogStore(directory, 1, reactor=reactor, segment_bytes=64 << 10)
        start = await again.open()
        self.assertEqual(2000, start.last.index)
        self.assertEqual(list(entries(1, 2000)), await again.read(1, 2000, 1 << 30))
        await again.close()
