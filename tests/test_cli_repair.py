"""
``zconsensus log repair``: what it shows and asks, what it changes, and what a start makes of it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import click
from click.testing import CliRunner, Result

from tests.cli_kit import (
    CLUSTER,
    CliTestCase,
    fingerprint,
    flip,
    make_log,
    open_log,
    put,
    records,
    save_snapshot,
    segments,
    tear_last_record,
    write,
)
from tests.log_store_kit import content, result
from zlayer_consensus.cli import program
from zlayer_consensus.cli._ask import confirmed, typed
from zlayer_consensus.cli._directory import DataDirectory
from zlayer_consensus.cli._exit import ExitCode
from zlayer_consensus.cli._output import Output
from zlayer_consensus.cli._repair import repair
from zlayer_consensus.errors import StorageFailed
from zlayer_consensus.raft import Entry, EntryKind, LogId, Member, Membership
from zlayer_consensus.storage import FileLogStore, InlineExecutor, RealFileSystem


class RepairCommandTests(CliTestCase):
    """On a log of 60 entries in several segments."""

    def setUp(self) -> None:
        super().setUp()
        make_log(self.data, 60)
        self.newest = segments(self.data)[-1]
        self.record = [each for each in records(self.newest) if each.entries][2]

    def damage(self) -> None:
        flip(self.newest, self.record.position + 80)

    def run_repair(self, *arguments: object, exit_code: int = 0, **options: Any) -> Result:
        found = CliRunner().invoke(program, ["log", "repair", str(self.data), *map(str, arguments)], **options)
        self.assertEqual(exit_code, found.exit_code, found.output)
        return found

    def repair_lines(self, *arguments: object, exit_code: int = 0) -> list[dict[str, Any]]:
        found = self.run_repair(*arguments, "--json", exit_code=exit_code)
        return [json.loads(line) for line in found.stdout.splitlines()]

    def untouched(self, *arguments: object, exit_code: int, **options: Any) -> Result:
        before = fingerprint(self.data)
        found = self.run_repair(*arguments, exit_code=exit_code, **options)
        self.assertEqual(before, fingerprint(self.data))
        return found

    def test_a_damaged_log_is_cut_and_marked(self) -> None:
        """S-02: what goes is named before, and is in the quarantine afterwards."""
        self.damage()
        whole = self.newest.read_bytes()
        finding, plan, done = self.repair_lines("--yes")
        last = self.record.first - 1
        self.assertEqual(("finding", f"wal/{self.newest.name}"), (finding["kind"], finding["file"]))
        self.assertEqual(("repair_plan", 1, last), (plan["kind"], plan["first"], plan["last"]["index"]))
        self.assertEqual((last + 1, 60, 59), tuple(plan[f"goes_{name}"] for name in ("first", "last", "committed")))
        self.assertEqual((True, False), (plan["marks"], plan["sole_voter"]))
        self.assertEqual(("repair", True, "clean"), (done["kind"], done["needed"], done["verdict"]))
        self.verdict("verify")
        identity = self.of_kind("identity", "stat", self.data)[0]
        self.assertEqual(done["repair_id"], identity["repair_id"])
        self.assertEqual(whole, (self.data / done["quarantine"] / self.newest.name).read_bytes())
        self.assertIn(done["quarantine"], self.of_kind("quarantine", "stat", self.data)[0]["file"])
        log = FileLogStore(self.data, 1, executor=InlineExecutor())
        start = result(log.open())
        self.assertEqual(list(range(1, last + 1)), [each.index for each in content(log, start)])
        self.assertEqual(bytes.fromhex(done["repair_id"]), log.identity.repair)
        result(log.close())
        self.assertIn(f"repair id {done['repair_id']}", self.run_log("stat", self.data).stdout)

    def test_it_says_what_it_will_do_and_asks(self) -> None:
        self.damage()
        with mock.patch("sys.stdin.isatty", lambda: True), mock.patch("click.confirm", lambda *_args, **_kw: False):
            self.assertFalse(confirmed("Really?", yes=False))
        before = fingerprint(self.data)
        out = Output(False, False)
        with (
            mock.patch("zlayer_consensus.cli._repair.confirmed", lambda _question, _yes: False),
            mock.patch.object(out, "_stream") as stream,
        ):
            self.assertIs(ExitCode.ROT, repair(DataDirectory(str(self.data)), out))
        said = "".join(call.args[0] for call in stream.write.call_args_list)
        self.assertIn(f"entries {self.record.first} to 60; those up to 59 are known as committed", said)
        self.assertIn(f"wal/{self.newest.name} from offset {self.record.position} on", said)
        after = {path: found for path, found in fingerprint(self.data).items() if not path.endswith("LOCK")}
        self.assertEqual({path: found for path, found in before.items() if not path.endswith("LOCK")}, after)

    def test_without_a_terminal_it_needs_to_be_told(self) -> None:
        self.damage()
        self.assertIn("--yes", self.run_repair(exit_code=64).output)
        with mock.patch("zlayer_consensus.cli._ask.sys.stdin", None):
            self.assertTrue(confirmed("Really?", yes=True))
            self.assertRaises(click.UsageError, confirmed, "Really?", yes=False)
        self.assertEqual("rot", self.verdict("verify", exit_code=2)["verdict"])
        with mock.patch("sys.stdin.isatty", lambda: True), mock.patch("click.prompt", lambda *_args, **_kw: " 1, 2 "):
            self.assertTrue(typed("Which?", "1,2", yes=False))
            self.assertFalse(typed("Which?", "1,2,3", yes=False))
        self.assertTrue(typed("Which?", "1,2", yes=True))

    def test_a_dry_run_changes_nothing(self) -> None:
        self.damage()
        found = self.untouched("--dry-run", exit_code=2)
        self.assertIn(f"kept       entries 1 to {self.record.first - 1}", found.stdout)
        self.untouched("--dry-run", "--yes", exit_code=2)

    def test_what_is_whole_needs_no_repair(self) -> None:
        self.assertIn("nothing to do: no damage", self.untouched("--dry-run", exit_code=0).stdout)
        before = segments(self.data)
        [line] = self.repair_lines()
        self.assertEqual((False, "clean", ""), (line["needed"], line["verdict"], line["repair_id"]))
        self.assertEqual(before, segments(self.data))

    def test_a_torn_tail_needs_no_repair(self) -> None:
        """S-01."""
        log = open_log(self.data)
        write(log, put(61, value=b"v" * 3000), commit=60)
        result(log.close())
        tear_last_record(self.data)
        self.assertIn("a torn tail", self.untouched("--dry-run", exit_code=1).stdout)
        self.assertIn("a torn tail", self.run_repair("--yes", exit_code=1).stdout)
        self.verdict("verify", exit_code=1)

    def test_a_running_node_is_left_alone(self) -> None:
        self.damage()
        copy = self.root / "copy"
        shutil.copytree(self.data, copy)
        held = RealFileSystem().lock(str(self.data / "LOCK"))
        self.addCleanup(held.release)
        self.assertIn("the node is running", self.untouched("--yes", exit_code=3).output)
        with mock.patch("zlayer_consensus.cli._directory.is_held", return_value=None):
            self.assertIn("is locked", self.untouched("--yes", exit_code=3).output)
        self.assertIn("the node is running", self.untouched("--dry-run", exit_code=3).output)

    def test_what_is_no_log_is_not_repaired(self) -> None:
        self.assertIn("holds no log", self.run_other(self.root, exit_code=3).output)

    def run_other(self, directory: Path, exit_code: int) -> Result:
        found = CliRunner().invoke(program, ["log", "repair", str(directory), "--yes"])
        self.assertEqual(exit_code, found.exit_code, found.output)
        return found

    def test_what_cannot_be_cut_off_is_said_so(self) -> None:
        """A configuration that does not decode is no damage of the disk."""
        log = open_log(self.data)
        write(log, Entry.make(61, 1, EntryKind.CONFIG, b"nonsense", 61), commit=60)
        result(log.close())
        self.assertIn("configuration in entry 61", self.untouched("--dry-run", exit_code=3).output)

    def test_a_sole_voter_is_warned(self) -> None:
        """Nobody could ever say that it has everything again."""
        alone = self.root / "alone"
        log = open_log(alone)
        members = Membership.initial([Member(1, log.identity.incarnation, "host-1:7001")])
        write(log, Entry.make(1, 1, EntryKind.CONFIG, members.encode()))
        for index in range(2, 30):
            write(log, put(index), commit=index - 1)
        result(log.close())
        path = segments(alone)[-1]
        flip(path, records(path)[-3].position + 80)
        found = CliRunner().invoke(program, ["log", "repair", str(alone), "--dry-run"])
        self.assertEqual(2, found.exit_code, found.output)
        self.assertIn("zconsensus recover", found.stdout)

    def test_a_sole_voter_is_warned_though_only_damaged_snapshots_say_that_it_is_one(self) -> None:
        """Their manifests are good: the configuration is known, also if nothing else can be kept."""
        alone = self.root / "alone"
        log = open_log(alone)
        members = Membership.initial([Member(1, log.identity.incarnation, "host-1:7001")])
        write(log, *(put(index) for index in range(1, 41)), commit=40)
        with mock.patch("tests.cli_kit.MEMBERSHIP", members):
            save_snapshot(alone, 30)
        result(log.purge(LogId(1, 30)))
        result(log.close())
        flip(alone / "snap" / "30-1" / "0", 20)
        found = CliRunner().invoke(program, ["log", "repair", str(alone), "--dry-run"])
        self.assertEqual(2, found.exit_code, found.output)
        self.assertIn("WARNING: this node is the only voter", found.stdout)
        self.assertIn("restore a backup", found.stdout)
        found = CliRunner().invoke(program, ["log", "repair", str(alone), "--yes"])
        self.assertEqual(0, found.exit_code, found.output)
        found = CliRunner().invoke(program, ["recover", "survey", str(alone)])
        self.assertNotIn("Traceback", found.output)

    def test_an_identity_that_is_lost_is_written_anew(self) -> None:
        flip(self.data / "identity", 30)
        plan = self.repair_lines("--yes")[-2]
        self.assertEqual(("rebuilt", CLUSTER.hex(), True), (plan["identity"], plan["cluster_id"], plan["marks"]))
        self.verdict("verify")
        self.assertEqual(1, len(list((self.data / "quarantine").glob("*/identity"))))

    def test_the_cluster_can_be_named(self) -> None:
        young = self.root / "young"
        make_log(young, 5)
        (young / "identity").unlink()
        program_line = ["log", "repair", str(young), "--yes"]
        found = CliRunner().invoke(program, program_line)
        self.assertEqual(3, found.exit_code)
        self.assertIn("/v1/status", found.output)
        for wrong in ("12", "xy" * 16):
            self.assertEqual(64, CliRunner().invoke(program, [*program_line, "--cluster", wrong]).exit_code)
        found = CliRunner().invoke(program, [*program_line, "--cluster", "ab" * 16])
        self.assertEqual(0, found.exit_code, found.output)
        self.assertEqual("ab" * 16, self.of_kind("identity", "stat", young)[0]["cluster_id"])

    def test_snapshots_may_be_elsewhere(self) -> None:
        """S-16: they are looked at there, and their files get a second name across directories."""
        elsewhere = self.root / "elsewhere"
        elsewhere.mkdir()
        save_snapshot(elsewhere, 20)
        save_snapshot(elsewhere, 40)
        flip(elsewhere / "snap" / "40-1" / "0", 20)
        damaged = (elsewhere / "snap" / "40-1" / "0").read_bytes()
        plan, done = self.repair_lines("--snapshots", elsewhere, "--yes")[-2:]
        self.assertEqual((False, 20, False), (plan["marks"], plan["snapshot"], plan["rewritten"]))
        self.assertEqual(damaged, (self.data / done["quarantine"] / "snap-40-1" / "0").read_bytes())
        self.assertFalse((elsewhere / "snap" / "40-1").exists())
        self.verdict("verify", "--snapshots", elsewhere)

    def test_a_purged_log_without_its_snapshots_is_left_alone(self) -> None:
        log = open_log(self.data)
        result(log.purge(LogId(1, 30)))
        result(log.close())
        self.assertIn("where the snapshots are", self.untouched("--dry-run", exit_code=3).output)

    def test_a_repair_that_was_interrupted_is_brought_to_an_end(self) -> None:
        """S-24: before and after the new segments took the place of the old ones."""
        self.damage()
        for operation, nth in (("rename", 2), ("rename", 3), ("sync_dir", 4)):
            copy = self.root / f"{operation}-{nth}"
            shutil.copytree(self.data, copy)
            directory = DataDirectory(str(copy))
            with self.assertRaises(StorageFailed):
                repair(directory, Output.silent(), yes=True, files=_Failing(operation, nth))
            found = CliRunner().invoke(program, ["log", "repair", str(copy), "--dry-run"])
            self.assertEqual(2, found.exit_code, found.output)
            self.run_other(copy, 0)
            self.assertEqual("clean", self.lines("verify", copy)[-1]["verdict"])
            self.assertIsNotNone(self.of_kind("identity", "stat", copy)[0]["repair_id"])
            self.assertEqual([], self.of_kind("leftover", "stat", copy))


class _Failing(RealFileSystem):
    """A file system whose process dies at the nth operation of a kind."""

    def __init__(self, operation: str, nth: int) -> None:
        self._left = {operation: nth}

    def _count(self, operation: str, path: str) -> None:
        if operation in self._left:
            self._left[operation] -= 1
            if self._left[operation] <= 0:
                raise StorageFailed(operation, path, "the process is dead")

    def rename(self, old: str, new: str) -> None:
        self._count("rename", old)
        super().rename(old, new)

    def sync_dir(self, path: str) -> None:
        self._count("sync_dir", path)
        super().sync_dir(path)
