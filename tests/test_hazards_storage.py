"""Data directories, against hazards that no other file has a story for (docs/record.rst)."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
from unittest import mock

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from tests.kill_kit import chain, make_node
from tests.log_store_kit import DIRECTORY, WAL, append, content, entries, opened, result, store
from zlayer_consensus.errors import NodeStopped, OutcomeUnknown, StorageFailed
from zlayer_consensus.raft import HardState, LogId, LogWrite
from zlayer_consensus.storage import FileLogStore, IFile, InlineExecutor, RealFileSystem
from zlayer_consensus.testing import SimulatedFileSystem


class UnusableDirectoryTests(SynchronousTestCase):
    def test_a_directory_of_somebody_else(self) -> None:
        """S-20: refused, and both users are named."""
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory, 0o700)
        me = os.geteuid()
        with mock.patch("os.geteuid", lambda: me + 1):
            log = FileLogStore(directory, 1, executor=InlineExecutor())
            error = self.assertRaises(StorageFailed, result, log.open())
        self.assertEqual(error.path, directory)
        self.assertIn(f"belongs to user {me}, not to {me + 1}", str(error))
        self.assertEqual(os.listdir(directory), [])

    def test_a_directory_that_cannot_be_written(self) -> None:
        """S-20: path and cause are named, whether the log is new or was used before."""
        cause = os.strerror(errno.EROFS)
        for used in (False, True):
            disk = SimulatedFileSystem()
            if used:
                log, _ = opened(disk)
                append(log, 1, 5)
                result(log.close())

            def read_only(operation: str, path: str) -> None:
                if operation not in ("open", "read", "list"):
                    raise StorageFailed(operation, path, cause)

            disk.before = read_only
            error = self.assertRaises(StorageFailed, result, store(disk).open())
            self.assertTrue(error.path.startswith(DIRECTORY))
            self.assertIn(cause, str(error))
            disk.before = None
            self.assertEqual(opened(disk)[1].last.index, 5 if used else 0)


class TimesOfFilesTests(SynchronousTestCase):
    def test_the_times_of_files_say_nothing(self) -> None:
        """S-22: with the newest file the oldest by its time, or from the future, the log is what it was."""
        directory = os.path.abspath(self.mktemp())

        def made() -> FileLogStore:
            files = RealFileSystem()
            return FileLogStore(directory, 1, executor=InlineExecutor(), file_system=files, segment_bytes=16 << 10)

        log = made()
        result(log.open())
        for first in range(1, 200, 10):
            append(log, first, first + 9)
        result(log.write(LogWrite(hard_state=HardState(3, 2, 150))))
        result(log.purge(LogId(1, 60)))
        result(log.close())
        wal = directory + WAL.removeprefix(DIRECTORY)
        names = sorted(os.listdir(wal))
        self.assertGreater(len(names), 2)
        for times in (range(2 * 10**9, 0, -(10**8)), [0] * 20, [4 * 10**9] * 20):
            for name, at in zip(names, times, strict=False):
                if os.path.exists(f"{wal}/{name}"):
                    os.utime(f"{wal}/{name}", (at, at))
            log = made()
            start = result(log.open())
            self.assertEqual((start.hard_state, start.purged), (HardState(3, 2, 150), LogId(1, 60)))
            self.assertEqual(content(log, start), list(entries(61, 200)))
            result(log.close())


class FailingSync(RealFileSystem):
    """The real file system, of whose syncs one fails: the one that makes ``left`` 0."""

    left = 0

    def create(self, path: str) -> IFile:
        return FailingFile(self, super().create(path))

    def open(self, path: str) -> IFile:
        return FailingFile(self, super().open(path))


@implementer(IFile)
class FailingFile:
    def __init__(self, files: FailingSync, file: IFile) -> None:
        self.path = file.path
        self.write, self.zero, self.close = file.write, file.zero, file.close
        self._files = files
        self._file = file

    def sync(self) -> None:
        self._files.left -= 1
        if self._files.left == 0:
            raise StorageFailed("sync", self.path, os.strerror(errno.EIO))
        self._file.sync()


class FailingNodeTests(TestCase):
    timeout = 120

    async def test_a_node_whose_sync_fails_stops_and_has_lost_nothing(self) -> None:
        """S-12: on real files, with a reactor, threads and groups of writes; whichever sync it is that fails."""
        place = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, place)
        for fails in (1, 2, 3, 4, 5, 20, 60):
            directory = f"{place}/{fails}"
            acknowledged = await self.until_it_fails(directory, fails)
            node = make_node(directory, reactor)
            self.addCleanup(node.shutdown)
            await node.start()
            state = await node.read_state(lambda machine: dict(machine.state), 60.0)
            expected: dict[str, object] = {}
            for number in range(1, state["count"] + 1):
                chain(expected, f"command {number}")
            self.assertEqual(expected, state)
            self.assertGreaterEqual(state["count"], acknowledged)
            self.assertEqual(state["count"] + 1, await node.propose("one more"))
            await node.shutdown()

    async def until_it_fails(self, directory: str, fails: int) -> int:
        """Proposes until the node has stopped; returns how many commands were acknowledged."""
        files = FailingSync()
        node = make_node(directory, reactor, files)
        self.addCleanup(node.shutdown)
        stopped = node.when_stopped()
        await node.start()
        await node.bootstrap()
        await node.ensure_linearizable(60.0)
        files.left = fails
        acknowledged, ended = 0, False
        while not ended:
            group = node.propose_many([f"command {acknowledged + each}" for each in (1, 2, 3)])
            for outcome in await group:
                if isinstance(outcome, Exception):
                    self.assertIsInstance(outcome, (NodeStopped, OutcomeUnknown))
                    ended = True
                else:
                    acknowledged += 1
                    self.assertEqual((acknowledged, False), (outcome, ended))
        cause = await stopped
        assert isinstance(cause, StorageFailed)
        self.assertEqual("sync", cause.operation)
        self.flushLoggedErrors()
        return acknowledged


class SlowSync(RealFileSystem):
    """The real file system, whose syncs of segments wait until they may go on."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def open(self, path: str) -> IFile:
        file = super().open(path)
        sync = file.sync

        def held() -> None:
            self.waiting.set()
            self.gate.wait()
            sync()

        file.sync = held  # type: ignore[method-assign]
        return file


class SlowDiskTests(TestCase):
    timeout = 120

    async def test_the_loop_goes_on_while_a_sync_takes_its_time(self) -> None:
        """S-21: the disk stalls, and a thread with it; what the node does on its loop, reads for example, goes on."""
        place = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, place)
        files = SlowSync()
        node = make_node(f"{place}/node", reactor, files)
        self.addCleanup(node.shutdown)
        self.addCleanup(files.gate.set)
        await node.start()
        await node.bootstrap()
        await node.ensure_linearizable(60.0)
        files.gate.clear()
        files.waiting.clear()
        waiting = node.propose("while it stalls", timeout=60.0)
        while not files.waiting.is_set():
            await deferLater(reactor, 0.001)
        for _ in range(20):
            await deferLater(reactor, 0.01)
            self.assertFalse(waiting.called)
            state = await node.read_state(lambda machine: dict(machine.state), 60.0)
            self.assertEqual({}, state)
        files.gate.set()
        await waiting


class SyncedFilesTests(SynchronousTestCase):
    def test_what_is_synced_is_what_was_written(self) -> None:
        """J-99, J-96: at a change of segments the operating system syncs the new file, the directory that has its name,
        and the old file with its seal, before the first record of the new one.
        """
        directory = os.path.realpath(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        log = FileLogStore(directory, 1, executor=InlineExecutor(), segment_bytes=16 << 10, reserve_bytes=16 << 10)
        result(log.open())
        synced: list[str] = []
        sync = os.fsync

        def note(fd: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{fd}").removeprefix(f"{directory}/"))
            sync(fd)

        def segments() -> list[str]:
            return sorted(name for name in os.listdir(f"{directory}/wal") if name.endswith(".seg"))

        last = 0
        with mock.patch("zlayer_consensus.storage._files._sync_fd", note), mock.patch("os.fsync", note):
            while len(segments()) < 2:
                synced.clear()
                append(log, last + 1, last + 10)
                last += 10
        old, new = segments()
        self.assertEqual([f"wal/{new[:16]}.tmp", "wal", f"wal/{old}", f"wal/{new}"], synced)
        result(log.close())
