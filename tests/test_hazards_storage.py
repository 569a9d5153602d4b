"""Data directories, against hazards that no other file has a story for (docs/record.rst)."""

from __future__ import annotations

import errno
import os
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from tests.log_store_kit import DIRECTORY, WAL, append, content, entries, opened, result, store
from zlayer_consensus.errors import StorageFailed
from zlayer_consensus.raft import HardState, LogId, LogWrite
from zlayer_consensus.storage import FileLogStore, InlineExecutor, RealFileSystem
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
