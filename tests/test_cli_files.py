"""
``zconsensus log`` and what may lie in a directory: names that act on a terminal, files that are none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from tests.cli_kit import CliTestCase, make_log, save_snapshot, segments
from zlayer_consensus.cli import program

EVIL = "\x1b[2Jgone\nverdict  clean\x9b"


class NamesTests(CliTestCase):
    def test_a_name_cannot_move_the_cursor(self) -> None:
        """A-34: who can write to the directory must not act on the terminal of who looks."""
        make_log(self.data, 5)
        save_snapshot(self.data, 4)
        (self.data / "quarantine").mkdir()
        for name in (f"quarantine/{EVIL}", f"snap/{EVIL}.tmp"):
            (self.data / name).write_bytes(b"x")
        shown = self.run_log("stat", self.data, "--color", "never").output
        self.assertNotIn("\x1b", shown)
        self.assertEqual(2, shown.count(r"\x1b[2Jgone\nverdict  clean\x9b"), shown)
        files = [line["file"] for line in self.of_kind("quarantine", "stat", self.data)]
        self.assertEqual([f"quarantine/{EVIL}"], files)
        (self.data / "snap" / EVIL).mkdir()
        for command in (("stat",), ("verify",), ("repair", "--dry-run")):
            found = self.run_log(*command, self.data, "--color", "never", exit_code=2)
            self.assertNotIn("\x1b", found.output, command)
            self.assertIn(r"snap/\x1b[2Jgone\n", found.output, command)

    def test_neither_can_one_in_an_error(self) -> None:
        found = self.run_log("dump", self.root / EVIL, exit_code=3)
        self.assertNotIn("\x1b", found.output)


class OddFilesTests(CliTestCase):
    def refused(self, odd: Path, *commands: tuple[object, ...]) -> None:
        """Runs commands, each in a process of its own because it may hang; each must name what is no file."""
        odd.rename(self.root / "kept")
        os.mkfifo(odd)
        for command in commands:
            arguments = [sys.executable, "-m", "zlayer_consensus.cli", *map(str, command)]
            found = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
            self.assertEqual(3, found.returncode, (command, found.stdout, found.stderr))
            self.assertIn(odd.name, found.stdout + found.stderr)
            self.assertIn("not a regular file", found.stdout + found.stderr)
        odd.unlink()
        (self.root / "kept").rename(odd)

    def test_a_pipe_in_place_of_a_file_is_refused(self) -> None:
        """To open it would wait for ever."""
        make_log(self.data, 60)
        save_snapshot(self.data, 40)
        plan = self.root / "plan.json"
        arguments = ("--lost", "1,3", "--plan", plan, "--yes")
        other = self.root / "node-2"
        make_log(other, 60, node_id=2)
        done = CliRunner().invoke(program, ["recover", str(other), *map(str, arguments)])
        self.assertEqual(0, done.exit_code, done.output)
        self.refused(other / "identity", ("recover", "apply", plan, other, "--yes"), ("log", "repair", other, "--yes"))
        self.refused(
            self.data / "identity",
            ("log", "stat", self.data),
            ("log", "verify", self.data),
            ("log", "dump", self.data),
            ("log", "repair", self.data, "--yes"),
            ("recover", "survey", self.data),
        )
        self.refused(segments(self.data)[1], ("log", "stat", self.data), ("log", "dump", self.data))
        self.refused(self.data / "snap" / "40-1" / "manifest", ("log", "stat", self.data), ("log", "verify", self.data))
        self.run_log("verify", self.data)
