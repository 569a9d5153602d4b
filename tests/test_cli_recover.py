"""
``zconsensus recover``: what it shows, asks and refuses; the plan's own rules are tested with the storage.
"""

from __future__ import annotations

import json
import random
from typing import Any
from unittest import mock

from click.testing import CliRunner, Result

from tests.cli_kit import CliTestCase, fingerprint, flip, noop, open_log, put, records, save_snapshot, segments, write
from tests.log_store_kit import result
from zlayer_consensus.cli import program
from zlayer_consensus.raft import Entry, EntryKind, Member, Membership
from zlayer_consensus.storage import RealFileSystem


def members(*ids: int) -> Membership:
    """Makes the configuration of nodes with the incarnations that the test kit gives them."""
    return Membership.initial(
        Member(n, random.Random(f"node {n}").randbytes(16), f"host-{n}:7001", f"host-{n}:8001") for n in ids
    )


class RecoverCommandTests(CliTestCase):
    """On the directories of nodes 1 and 2 of three; node 1 has more, and each has a tail of its own."""

    def setUp(self) -> None:
        super().setUp()
        self.dirs = {}
        for node_id, (last, term) in {1: (40, 3), 2: (35, 2)}.items():
            self.dirs[node_id] = directory = self.root / f"node-{node_id}"
            log = open_log(directory, node_id)
            write(log, Entry.make(1, 1, EntryKind.CONFIG, members(1, 2, 3, 4, 5).encode()), noop(2))
            for index in range(3, 31):
                write(log, put(index), commit=index - 1)
            for index in range(31, last + 1):
                write(log, put(index, term), commit=30)
            result(log.close())
        save_snapshot(self.dirs[2], 20)
        self.plan = self.root / "plan.json"

    def run_recover(self, *arguments: object, exit_code: int = 0, **options: Any) -> Result:
        found = CliRunner().invoke(program, ["recover", *map(str, arguments)], **options)
        self.assertEqual(exit_code, found.exit_code, found.output)
        return found

    def both(self, *arguments: object, lost: str = "3,4,5", exit_code: int = 0, **options: Any) -> Result:
        return self.run_recover(
            *self.dirs.values(), "--lost", lost, "--plan", self.plan, *arguments, exit_code=exit_code, **options
        )

    def untouched(self, *arguments: object, exit_code: int = 3, **options: Any) -> Result:
        before = fingerprint(self.root)
        found = self.both(*arguments, exit_code=exit_code, **options)
        self.assertEqual(before, fingerprint(self.root))
        return found

    def identity(self, node_id: int) -> dict[str, Any]:
        return self.of_kind("identity", "stat", self.dirs[node_id])[0]

    def test_it_shows_what_is_there_and_what_is_lost(self) -> None:
        text = self.both("--yes").output
        self.assertIn("entries up to 30", text)
        self.assertIn("entries 31 to 40 of node 1, of which that is not known: they are committed from now on", text)
        self.assertIn("entries 31 to 35 of node 2, by those of node 1", text)
        self.assertIn("what only node 3, 4, 5 had", text)
        self.assertEqual(2, text.count("is part of the new cluster"))
        new = {self.identity(node_id)["cluster_id"] for node_id in (1, 2)}
        self.assertEqual(1, len(new))
        self.assertIn(f"{new.pop()} of 2 voters, which begins in term 4", text)
        for node_id in (1, 2):
            self.assertEqual("clean", self.lines("verify", self.dirs[node_id])[-1]["verdict"])

    def test_snapshots_may_be_elsewhere(self) -> None:
        places = {node_id: self.root / f"snapshots-{node_id}" for node_id in self.dirs}
        for place in places.values():
            place.mkdir()
        (self.dirs[2] / "snap").rename(places[2] / "snap")
        options = [option for place in places.values() for option in ("--snapshots", place)]
        self.untouched("--yes", *options[:2], exit_code=64)
        lines = [json.loads(line) for line in self.both("--yes", "--json", *options).stdout.splitlines()]
        self.assertEqual([None, 20], [line["snapshot"] for line in lines if line["kind"] == "survivor"])
        for node_id, place in places.items():
            self.assertEqual("clean", self.lines("verify", self.dirs[node_id], "--snapshots", place)[-1]["verdict"])

    def test_the_note_in_the_log_is_readable(self) -> None:
        self.both("--yes")
        self.assertIn("RECOVERY of cluster", self.run_log("dump", self.dirs[1], "--type", "noop").stdout)
        config = self.of_kind("entry", "dump", self.dirs[1], "--type", "config")[-1]["config"]
        self.assertEqual(([1, 2], [3, 4, 5]), (config["voters"], config["tombstones"]))
        self.assertIn("until a recovery", self.run_log("stat", self.dirs[2]).stdout)

    def test_a_lost_member_can_be_compared(self) -> None:
        """What it had, and the new cluster has not, is what somebody may miss."""
        lost = self.root / "node-3"
        log = open_log(lost, 3)
        write(log, Entry.make(1, 1, EntryKind.CONFIG, members(1, 2, 3, 4, 5).encode()), noop(2))
        for index in range(3, 36):
            write(log, put(index), commit=index - 1)
        result(log.close())
        self.both("--yes")
        for pair in ((lost, self.dirs[1]), (self.dirs[1], lost)):
            self.assertEqual(31, self.lines("diff", *pair, exit_code=2)[-1]["index"])

    def test_it_asks_for_the_new_members(self) -> None:
        self.untouched(exit_code=64)
        terminal = mock.patch("zlayer_consensus.cli._ask._require_terminal", lambda: None)
        with terminal:
            self.assertIn("nothing was changed", self.untouched(input="1,2,3\n").output)
            self.both(input="1, 2\n")
        self.assertEqual(self.identity(1)["cluster_id"], self.identity(2)["cluster_id"])

    def test_what_is_refused_changes_nothing(self) -> None:
        said = self.untouched("--yes", lost="3").output
        self.assertIn("the members of the cluster are: 3, 4, 5; named as lost: 3", said)
        self.untouched("--yes", lost="3,x", exit_code=64)
        held = RealFileSystem().lock(str(self.dirs[2] / "LOCK"))
        self.assertIn("the node is running", self.untouched("--yes").output)
        held.release()
        path = segments(self.dirs[1])[0]
        flip(path, records(path)[3].position + 80)
        self.assertIn("log repair first, or leave this node out", self.untouched("--yes").output)
        flip(path, records(path)[3].position + 80)
        self.plan.write_text("there")
        self.assertIn("exists already", self.untouched("--yes").output)

    def test_a_repaired_survivor_has_to_be_allowed(self) -> None:
        path = segments(self.dirs[2])[-1]
        flip(path, records(path)[-3].position + 80)
        found = CliRunner().invoke(program, ["log", "repair", str(self.dirs[2]), "--yes"])
        self.assertEqual(0, found.exit_code, found.output)
        self.assertIn("was repaired", self.untouched("--yes").output)
        self.assertIn("it may lack what it had acknowledged", self.both("--yes", "--allow-repaired").output)
        self.assertIsNone(self.identity(2)["repair_id"])

    def test_a_sole_voter_that_was_repaired(self) -> None:
        """Nobody is lost, and nobody else could ever say that it has everything again."""
        alone = self.root / "alone"
        log = open_log(alone)
        write(log, Entry.make(1, 1, EntryKind.CONFIG, members(1).encode()))
        for index in range(2, 30):
            write(log, put(index), commit=index - 1)
        result(log.close())
        arguments = (alone, "--lost", "none", "--plan", self.plan, "--yes")
        self.assertIn("nothing is lost", self.run_recover(*arguments, exit_code=3).output)
        path = segments(alone)[-1]
        flip(path, records(path)[-3].position + 80)
        CliRunner().invoke(program, ["log", "repair", str(alone), "--yes"])
        self.run_recover(*arguments, "--allow-repaired")
        self.assertIsNone(self.of_kind("identity", "stat", alone)[0]["repair_id"])
        self.assertEqual("clean", self.lines("verify", alone)[-1]["verdict"])

    def test_a_recovery_that_was_interrupted_is_brought_to_an_end_with_its_plan(self) -> None:
        real = RealFileSystem.sync_dir
        calls = []

        def dying(files: RealFileSystem, path: str) -> None:
            calls.append(path)
            if "node-2" in path:
                raise OSError("power failure")
            real(files, path)

        with mock.patch.object(RealFileSystem, "sync_dir", dying):
            self.both("--yes", exit_code=3)
        self.assertNotEqual(self.identity(1)["cluster_id"], self.identity(2)["cluster_id"])
        self.assertIn("earlier recovery was not finished", self.run_recover(
            *self.dirs.values(), "--lost", "3,4,5", "--plan", self.root / "other.json", "--yes", exit_code=3
        ).output)  # fmt: skip
        for changed in (False, True), (False, False):
            for node_id, expected in zip((1, 2), changed, strict=True):
                line = json.loads(self.run_recover("apply", self.plan, self.dirs[node_id], "--yes", "--json").stdout)
                self.assertEqual(expected, line["changed"])
        self.assertEqual(self.identity(1)["cluster_id"], self.identity(2)["cluster_id"])
        self.assertIn("the ids 3, 4, 5 are spent already", self.run_recover(
            *self.dirs.values(), "--lost", "3,4,5", "--plan", self.root / "other.json", "--yes", exit_code=3
        ).output)  # fmt: skip

    def test_across_machines(self) -> None:
        surveys = []
        for node_id, directory in self.dirs.items():
            path = self.root / f"{node_id}.json"
            path.write_text(self.run_recover("survey", directory, "--snapshots", directory).stdout)
            surveys.append(path)
        lines = self.run_recover("plan", *surveys, "--lost", "3,4,5", "--out", self.plan, "--yes", "--json").stdout
        kinds = [json.loads(line)["kind"] for line in lines.splitlines()]
        self.assertEqual(["survivor", "survivor", "recovery_plan"], kinds)
        self.assertIn("exists already", self.run_recover(
            "plan", *surveys, "--lost", "3,4,5", "--out", self.plan, "--yes", exit_code=3
        ).output)  # fmt: skip
        self.run_recover("apply", self.plan, self.dirs[1], exit_code=64)
        terminal = mock.patch("zlayer_consensus.cli._ask._require_terminal", lambda: None)
        with terminal:
            self.run_recover("apply", self.plan, self.dirs[1], input="n\n", exit_code=3)
            self.run_recover("apply", self.plan, self.dirs[1], input="y\n")
        self.run_recover("apply", self.plan, self.dirs[2], "--yes")
        self.assertEqual(self.identity(1)["cluster_id"], self.identity(2)["cluster_id"])

    def test_files_that_are_something_else(self) -> None:
        nonsense = self.root / "nonsense"
        deep = "[" * 100_000
        body = f"{deep}{']' * 100_000}"
        deeper = (f'{{"survey": {body}, "sha256": ""}}', f'{{"recovery_plan": {body}, "sha256": ""}}')
        for content in ("", "{}", "[1]", '{"survey": {"node_id": 1}}', deep, *deeper):
            nonsense.write_text(content)
            self.run_recover("plan", nonsense, "--lost", "3", "--out", self.plan, "--yes", exit_code=3)
            self.run_recover("apply", nonsense, self.dirs[1], "--yes", exit_code=3)
        self.run_recover("apply", self.root / "missing", self.dirs[1], "--yes", exit_code=64)

    def test_a_survey_that_somebody_changed(self) -> None:
        survey = self.root / "1.json"
        text = self.run_recover("survey", self.dirs[1]).stdout
        for changed in (text.replace('"committed":30', '"committed":31'), text[:-20], text.replace('"sha256"', '"x"')):
            self.assertNotEqual(text, changed)
            survey.write_text(changed)
            said = self.run_recover("plan", survey, "--lost", "2,3,4,5", "--out", self.plan, "--yes", exit_code=3)
            self.assertIn("is not what zconsensus recover survey prints", said.output)

    def test_a_plan_that_somebody_changed(self) -> None:
        self.both("--yes")
        self.plan.write_text(self.plan.read_text().replace('"base": 1', '"base": 2'))
        self.assertIn("was changed", self.run_recover("apply", self.plan, self.dirs[2], "--yes", exit_code=3).output)

    def test_help(self) -> None:
        for arguments in ((), ("-h",), ("survey", "-h")):
            self.assertIn("Usage: program recover", CliRunner().invoke(program, ["recover", *arguments]).output)
        self.run_recover("-h")
