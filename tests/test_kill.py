"""
Processes that write to real files and are killed with SIGKILL; ``python -m tests.acceptance.kill_writer`` kills more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.crash_kit import make_log
from tests.kill_kit import NodeKiller, StoreKiller
from tests.real_disk import RealDisk
from zlayer_consensus.testing.crashes import CrashViolation, LogContent, LogSubject

ROOT = Path(__file__).resolve().parent.parent


class KillTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.place = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.place)

    def test_killed_processes_lose_nothing_that_they_acknowledged(self) -> None:
        """
        J-80, J-81, J-82, J-83, J-84, J-88, J-91, J-101, S-15, S-17, S-24, S-26: at any time, while they append,
        truncate, purge, take and install snapshots, or start; stores by themselves, and a node on one directory again
        and again.
        """
        # In a process of its own, because this one may have a reactor, with which it must not fork.
        done = subprocess.run(
            [sys.executable, "-m", "tests.acceptance.kill_writer", "--rounds", "12", "--directory", self.place],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        self.assertEqual(0, done.returncode, done.stdout + done.stderr)
        self.assertIn("12 rounds", done.stdout)
        self.assertIn("12 nodes killed", done.stdout)
        self.assertEqual([], os.listdir(self.place))

    def test_what_is_missing_is_noticed(self) -> None:
        """Of the stores: a state that the story did not allow; of a node: fewer commands than were acknowledged."""
        disk = RealDisk.make(self.place)
        self.addCleanup(disk.die)
        subject = LogSubject(make_log)
        found = subject.recover(disk)
        disk.die()
        stores = StoreKiller(self.place, 1)
        stores._judge(subject, disk, [LogContent(), found], "nothing was written")
        with self.assertRaises(CrashViolation):
            stores._judge(subject, disk, [LogContent()], "one entry was written by the look before")
        node = NodeKiller(self.place, 1)
        node._judge({"count": 0, "hash": ""})
        node._told = 1
        with self.assertRaises(CrashViolation):
            node._judge({"count": 0, "hash": ""})
        with self.assertRaises(CrashViolation):
            node._judge({"count": 1, "hash": "00"})
