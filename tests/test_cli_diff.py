"""
``zconsensus log diff``, and what all commands of ``zconsensus log`` have in common: JSON, memory, terminals.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from tests.cli_kit import (
    CliTestCase,
    config,
    flip,
    make_log,
    noop,
    open_log,
    put,
    records,
    save_snapshot,
    segments,
    tear_last_record,
    write,
)
from tests.log_store_kit import result
from tests.test_cli_dump import Order, Orders
from zlayer_consensus.cli import ExitCode, program
from zlayer_consensus.raft import Entry, EntryKind, HardState, LogId, LogWrite

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "log-tool.rst"


class DiffTests(CliTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.other = self.root / "node-2"

    def both(self, mine: list[Entry], theirs: list[Entry], commits: tuple[int, int] = (0, 0)) -> None:
        """Makes two logs, one record per entry."""
        for directory, node_id, entries, commit in (
            (self.data, 1, mine, commits[0]),
            (self.other, 2, theirs, commits[1]),
        ):
            log = open_log(directory, node_id)
            for entry in entries:
                write(log, entry, commit=min(commit, entry.index))
            result(log.close())

    def diff(self, exit_code: int = 0) -> dict[str, Any]:
        """Compares, both ways round; both must say the same."""
        one = self.lines("diff", self.data, self.other, exit_code=exit_code)[-1]
        other = self.lines("diff", self.other, self.data, exit_code=exit_code)[-1]
        self.assertEqual("result", one["kind"])
        for key in ("result", "index"):
            self.assertEqual(one.get(key), other.get(key))
        return one

    def test_equal_logs_are_equal_however_they_were_written(self) -> None:
        """Records and segments differ, entries do not."""
        make_log(self.data, 60)
        log = open_log(self.other, 2)
        write(log, config(1), noop(2), *(put(index) for index in range(3, 61)), commit=60)
        result(log.close())
        found = self.diff()
        self.assertEqual(("equal", 60), (found["result"], found["compared"]))

    def test_a_log_that_lags_is_equal_as_far_as_it_reaches(self) -> None:
        make_log(self.data, 60)
        make_log(self.other, 50, node_id=2)
        found = self.diff()
        self.assertEqual(("equal", 1, 50), (found["result"], found["first"], found["last"]))
        self.assertIn("10 entries more", found["detail"])

    def test_what_was_purged_is_not_compared_and_said_so(self) -> None:
        make_log(self.data, 60)
        make_log(self.other, 60, node_id=2)
        log = open_log(self.data)
        result(log.purge(LogId(1, 30)))
        result(log.close())
        found = self.diff()
        self.assertEqual((31, 60), (found["first"], found["last"]))
        self.assertIn("nothing up to 30", found["detail"])
        sides = self.of_kind("side", "diff", self.data, self.other)
        self.assertEqual([30, 0], [each["purged"]["index"] for each in sides])

    def test_a_difference_that_both_know_as_committed_is_a_divergence(self) -> None:
        same = [put(index) for index in range(1, 20)]
        self.both([*same, put(20, 1), put(21, 3)], [*same, put(20, 2), put(21, 2)], (20, 21))
        found = self.diff(2)
        self.assertEqual(("divergence", 20), (found["result"], found["index"]))
        entries = self.of_kind("entry", "diff", self.data, self.other, exit_code=2)
        self.assertEqual([("A", 20, 1), ("B", 20, 2)], [(e["side"], e["index"], e["term"]) for e in entries])

    def test_two_entries_of_one_index_and_term_are_a_divergence_committed_or_not(self) -> None:
        """Log matching (§5.3); also where only time or session differ."""
        same = [put(index) for index in range(1, 5)]
        other = put(5)
        later = Entry.make(5, 1, EntryKind.COMMAND, other.payload, other.time_ms + 1, 2, 5)
        self.both([*same, other], [*same, later])
        found = self.diff(2)
        self.assertEqual((5, True), (found["index"], found["same_term"]))

    def test_a_tail_that_is_not_committed_on_both_sides_may_differ(self) -> None:
        same = [put(index) for index in range(1, 5)]
        self.both([*same, put(5, 2), put(6, 2)], [*same, put(5, 3)], (4, 4))
        self.assertEqual(("uncommitted", []), (self.diff(1)["result"], self.diff(1)["committed_at"]))
        log = open_log(self.other, 2)
        write(log, commit=5, term=3)
        result(log.close())
        found = self.diff(1)
        self.assertEqual(5, found["index"])
        self.assertEqual(["B"], self.lines("diff", self.data, self.other, exit_code=1)[-1]["committed_at"])

    def test_a_snapshot_says_what_is_committed(self) -> None:
        """The commit on the disk is a hint that may lag; what is in a snapshot was applied."""
        same = [put(index) for index in range(1, 5)]
        self.both([*same, put(5, 2)], [*same, put(5, 3)], (5, 4))
        self.diff(1)
        save_snapshot(self.other, 5, term=3)
        self.diff(2)

    def test_terms_that_differ_at_a_purged_position_are_found(self) -> None:
        same = [put(index) for index in range(1, 5)]
        self.both([*same, put(5, 2), put(6, 3)], [*same, put(5, 3), put(6, 3)], (6, 6))
        log = open_log(self.data)
        result(log.purge(LogId(2, 5)))
        result(log.close())
        found = self.diff(2)
        self.assertEqual(5, found["index"])

    def test_logs_without_a_common_entry_are_not_called_equal(self) -> None:
        make_log(self.data, 20)
        make_log(self.other, 60, node_id=2)
        log = open_log(self.other, 2)
        result(log.purge(LogId(1, 30)))
        result(log.close())
        self.assertEqual("incomparable", self.diff(3)["result"])

    def test_two_empty_logs_are_equal(self) -> None:
        result(open_log(self.data, 1).close())
        result(open_log(self.other, 2).close())
        self.assertEqual(0, self.diff()["compared"])

    def test_payloads_are_masked_or_shown_as_dump_does(self) -> None:
        self.both([put(1, value=b"secret-a")], [put(1, value=b"secret-b")])
        pair = (self.data, self.other)
        for arguments in ((), ("--json",)):
            self.assertNotIn("secret", self.run_log("diff", *pair, *arguments, exit_code=2).output)
        shown = self.run_log("diff", *pair, "--payload", "decoded", exit_code=2).output
        self.assertIn("secret-a", shown)
        self.assertIn("secret-b", shown)
        self.run_log("diff", *pair, "--payload", "hex", "--application", "kv", exit_code=64)

    def test_an_application_of_ones_own_decodes(self) -> None:
        mine, theirs = (
            Entry.make(1, 1, EntryKind.COMMAND, Orders.types.encode_request(Order(item, 3)), 5)
            for item in ("apples", "pears")
        )
        self.both([mine], [theirs])
        arguments = ("diff", self.data, self.other, "--application", "tests.test_cli_dump:Orders")
        entries = self.of_kind("entry", *arguments, exit_code=2)
        self.assertEqual(["apples", "pears"], [each["payload"]["item"] for each in entries])
        self.assertIn("Order(item='pears', count=3", self.run_log(*arguments, exit_code=2).output)

    def test_snapshots_may_be_elsewhere(self) -> None:
        same = [put(index) for index in range(1, 5)]
        self.both([*same, put(5, 2)], [*same, put(5, 3)], (5, 4))
        elsewhere = self.root / "snapshots-2"
        save_snapshot(elsewhere, 5, term=3)
        pair = (self.data, self.other)
        self.run_log("diff", *pair, exit_code=1)
        self.run_log("diff", *pair, "--snapshots", self.data, "--snapshots", elsewhere, exit_code=2)
        self.run_log("diff", *pair, "--snapshots", elsewhere, exit_code=64)
        found = self.run_log("diff", *pair, "--snapshots", self.data, "--snapshots", self.root / "no", exit_code=3)
        self.assertIn("is no directory", found.output)

    def test_clusters_are_not_compared(self) -> None:
        make_log(self.data, 5)
        log = open_log(self.other, 2, cluster=b"d" * 16)
        write(log, put(1))
        result(log.close())
        self.assertIn("different clusters", self.diff(3)["detail"])

    def test_a_log_that_joined_no_cluster_is_compared(self) -> None:
        """It may be an embedding application's, which has none; its entries count."""
        for directory, node_id, cluster, entry in ((self.data, 1, b"", put(1)), (self.other, 2, b"c" * 16, put(1, 2))):
            log = open_log(directory, node_id, cluster)
            write(log, entry, commit=1)
            result(log.close())
        self.assertEqual(1, self.diff(2)["index"])

    def test_a_damaged_side_is_named(self) -> None:
        make_log(self.data, 60)
        make_log(self.other, 60, node_id=2)
        path = segments(self.other)[-1]
        flip(path, records(path)[2].position + 80)
        found = self.run_log("diff", self.data, self.other, exit_code=3)
        self.assertIn("B cannot be compared", found.stderr)
        flip(path, records(path)[2].position + 80)
        path = segments(self.other)[0]
        flip(path, records(path)[2].position + 80)
        found = self.run_log("diff", self.data, self.other, exit_code=3)
        self.assertIn(path.name, found.stderr)

    def test_running_nodes_are_compared(self) -> None:
        make_log(self.data, 30)
        make_log(self.other, 30, node_id=2)
        log = open_log(self.data)
        write(log, put(31), commit=30)
        self.assertEqual(30, self.diff()["compared"])
        result(log.close())


class DocumentTests(CliTestCase):
    """What scripts rely on stands in the documentation."""

    def documented(self) -> dict[str, set[str]]:
        """Reads the table of JSON objects: the keys of each kind."""
        text = DOCUMENT.read_text(encoding="utf-8")
        rows = re.findall(r"^   \* - ``(\w+)``\n     - (.*(?:\n       .*)*)", text, re.MULTILINE)
        return {kind: set(re.findall(r"``(\w+)``", keys)) for kind, keys in rows}

    def test_every_kind_and_every_key_is_documented(self) -> None:
        log = open_log(self.data)
        session = Entry.make(3, 1, EntryKind.SESSION, b"\x83\x19\xea\x60\x19\x03\xe8\x18\x40", 7)
        write(log, config(1), noop(2), session, Entry.make(4, 1, EntryKind.COMMAND, b"\xff", 8), commit=1)
        for index in range(5, 60):
            write(log, put(index), commit=4)
        write(log, put(59, 2), after=58, commit=58)
        result(log.purge(LogId(1, 20)))
        result(log.close())
        save_snapshot(self.data, 30)
        other = self.root / "node-2"
        log = open_log(other, 2)
        write(log, *(put(index) for index in range(1, 59)), put(59, 3), commit=58)
        result(log.write(LogWrite(reset=LogId(4, 80), hard_state=HardState(4, 0, 80))))
        for index in range(81, 120):
            write(log, put(index, 4, value=b"v" * 2000), commit=80)
        result(log.close())
        lines = [*self.lines("dump", other), *self.lines("stat", self.data, "--full"), *self.lines("verify", self.data)]
        lines += self.lines("diff", self.data, self.data)
        for payload in ("hex", "text", "none", "decoded"):
            lines += self.lines("dump", self.data, "--payload", payload)
        lines += self.lines("dump", self.data, "--application", "kv")
        tear_last_record(other)
        lines += self.lines("dump", other, exit_code=1)
        lines += self.lines("verify", other, exit_code=2)
        result(open_log(other, 2).close())
        lines += self.lines("stat", other)
        flip(segments(other)[-1], 100)
        lines += self.lines("stat", other, exit_code=2)
        lines += self.repaired_lines(other)
        segments(self.data)[1].unlink()
        lines += self.lines("stat", self.data, exit_code=2)
        known = self.documented()
        seen: dict[str, set[str]] = {}
        for line in lines:
            seen.setdefault(line["kind"], set()).update(set(line) - {"kind"})
        self.assertEqual({}, {kind: keys - known.get(kind, set()) for kind, keys in seen.items() if keys - known[kind]})
        self.assertEqual(set(known), set(seen) | {"leftover"})

    def repaired_lines(self, directory: Path) -> list[dict[str, Any]]:
        """Repairs a damaged log, and says what it shows."""
        (directory / "snap").mkdir()
        found = CliRunner().invoke(program, ["log", "repair", str(directory), "--yes", "--json"])
        self.assertEqual(0, found.exit_code, found.output)
        return [json.loads(line) for line in found.stdout.splitlines()]

    def test_every_exit_code_is_documented(self) -> None:
        text = DOCUMENT.read_text(encoding="utf-8")
        for code in ExitCode:
            self.assertIn(f"``{int(code)}``", text)


class ManyEntriesTests(CliTestCase):
    def test_memory_does_not_grow_with_the_log(self) -> None:
        """More than 12 MiB of entries pass through; what is kept is pieces of files, and a little of each segment."""
        log = open_log(self.data, size=1 << 20)
        other = open_log(self.root / "node-2", 2, size=1 << 20)
        for first in range(1, 1201, 40):
            entries = [put(index, value=b"%d " % index * 2500) for index in range(first, first + 40)]
            for each in (log, other):
                write(each, *entries, commit=first - 1)
        result(log.close())
        result(other.close())
        total = sum(path.stat().st_size for path in segments(self.data))
        self.assertGreater(total, 12 << 20)
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            for command in (
                ["dump", str(self.data)],
                ["dump", str(self.data), "--json"],
                ["dump", str(self.data), "--last", "3"],
                ["verify", str(self.data)],
                ["stat", str(self.data), "--full"],
                ["diff", str(self.data), str(self.root / "node-2")],
            ):
                tracemalloc.start()
                try:
                    with self.assertRaises(SystemExit) as ended:
                        program(["log", *command], prog_name="zconsensus")
                    peak = tracemalloc.get_traced_memory()[1]
                finally:
                    tracemalloc.stop()
                self.assertEqual(0, ended.exception.code)
                self.assertLess(peak, 5 << 20, command)


class TerminalTests(CliTestCase):
    def on_terminal(self, *arguments: str, **env: str) -> tuple[int, str]:
        """Runs the program with a terminal as stdout and stderr; returns exit code and what it shows."""
        primary, secondary = pty.openpty()
        command = [sys.executable, "-m", "zlayer_consensus.cli", "log", *arguments]
        environment = {**os.environ, "TERM": "xterm", **env}
        if "NO_COLOR" not in env:
            environment.pop("NO_COLOR", None)
        with subprocess.Popen(command, stdout=secondary, stderr=secondary, env=environment) as process:
            os.close(secondary)
            shown = b""
            # The terminal reports an error once nobody has it open any more.
            with contextlib.suppress(OSError):
                while piece := os.read(primary, 65536):
                    shown += piece
            code = process.wait(60)
        os.close(primary)
        return code, shown.decode()

    def test_colours_and_progress_are_for_terminals(self) -> None:
        make_log(self.data, 60)
        code, shown = self.on_terminal("verify", str(self.data))
        self.assertEqual(0, code, shown)
        self.assertIn("\x1b[32m", shown)
        self.assertIn("verifying segments", shown)
        # A line that is printed while there is a bar takes its place, and does not stand behind it.
        for line in shown.replace("\r\n", "\n").split("\n"):
            visible = line.rpartition("\x1b[K")[2].rpartition("\r")[2]
            self.assertFalse("%" in visible and "OK" in visible, line)
        code, shown = self.on_terminal("verify", str(self.data), NO_COLOR="1")
        self.assertNotIn("\x1b[3", shown)
        plain = self.run_log("verify", self.data)
        self.assertNotIn("verifying segments", plain.output)
        self.assertNotIn("\x1b", plain.output)

    def test_without_any_output_there_is_still_an_exit_code(self) -> None:
        """As started by something that closes what it does not use."""
        make_log(self.data, 10)
        command = f"{shlex.quote(sys.executable)} -m zlayer_consensus.cli log verify {shlex.quote(str(self.data))}"
        for closed in (">&-", "2>&-", ">&- 2>&-"):
            found = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, timeout=60, check=False)
            self.assertEqual(0, found.returncode, found)
