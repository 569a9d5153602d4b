"""
``zconsensus log dump``: records and entries, filters, payloads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import attrs

from tests.cli_kit import (
    CliTestCase,
    config,
    flip,
    make_log,
    noop,
    open_log,
    overwrite,
    put,
    records,
    segments,
    tear_last_record,
    write,
)
from tests.daemon_application import Counter
from tests.log_store_kit import result
from zlayer_consensus.raft import Entry, EntryKind, HardState, LogId, LogWrite
from zlayer_consensus.types import declare_raft_types


@attrs.frozen
class Order:
    """A request."""

    item: str
    count: int
    note: bytes = b""


class Orders(Counter):
    """An application as ``--application`` names it: its types are looked for on it."""

    types = declare_raft_types(request=Order, response=int)


class DumpTests(CliTestCase):
    def indexes(self, *arguments: object) -> list[int]:
        return [line["index"] for line in self.of_kind("entry", "dump", self.data, *arguments)]

    def test_every_entry_is_shown_once_in_order_over_all_segments(self) -> None:
        make_log(self.data, 60)
        self.assertGreater(len(segments(self.data)), 2)
        self.assertEqual(list(range(1, 61)), self.indexes())
        files = [line["file"] for line in self.of_kind("segment", "dump", self.data)]
        self.assertEqual([f"wal/{path.name}" for path in segments(self.data)], files)

    def test_an_entry_says_all_that_is_in_it(self) -> None:
        make_log(self.data, 5)
        [entry] = self.of_kind("entry", "dump", self.data, "--from", 4, "--to", 4, "--payload", "decoded")
        record = next(each for each in records(segments(self.data)[0]) if each.first == 4)
        payload = {"type": "Put", "key": {"utf8": "key-4"}, "value": {"utf8": "value-4"}}
        self.assertEqual(
            {
                "kind": "entry",
                "file": f"wal/{segments(self.data)[0].name}",
                "offset": record.position,
                "index": 4,
                "term": 1,
                "type": "command",
                "time_ms": 1_700_000_000_004,
                "session": 2,
                "sequence": 4,
                "payload_bytes": len(put(4).payload),
                "payload": payload,
            },
            entry,
        )

    def test_what_changes_the_log_is_shown_where_it_happens(self) -> None:
        log = open_log(self.data)
        write(log, config(1), put(2), put(3), commit=1)
        write(log, put(3, 2), after=2, commit=2)
        result(log.purge(LogId(1, 2)))
        result(log.write(LogWrite(reset=LogId(4, 9), hard_state=HardState(4, 0, 9))))
        result(log.close())
        kinds = [line["kind"] for line in self.lines("dump", self.data)]
        expected = ["segment", "record", "entry", "entry", "entry", "state", "record", "truncate", "entry", "state"]
        self.assertEqual(expected, kinds[:10])
        [reset] = self.of_kind("reset", "dump", self.data)
        [purge] = self.of_kind("purge", "dump", self.data)
        self.assertEqual((4, 9, 1, 2), (reset["term"], reset["index"], purge["term"], purge["index"]))
        self.assertEqual(2, self.of_kind("truncate", "dump", self.data)[0]["last"])

    def test_ranges_and_terms_and_types_select(self) -> None:
        log = open_log(self.data)
        write(log, config(1), noop(2), put(3), commit=1)
        write(log, noop(4, 2), put(5, 2), put(6, 2))
        session = Entry.make(7, 3, EntryKind.SESSION, b"\x83\x19\xea\x60\x19\x03\xe8\x18\x40", 1_700_000_000_007)
        write(log, session, term=3)
        result(log.close())
        self.assertEqual([2, 3, 4], self.indexes("--from", 2, "--to", 4))
        self.assertEqual([4, 5, 6], self.indexes("--term", 2))
        self.assertEqual([4, 5, 6, 7], self.indexes("--term", 2, "--term", 3))
        self.assertEqual([1], self.indexes("--type", "config"))
        self.assertEqual([2, 4, 7], self.indexes("--type", "noop", "--type", "session"))
        self.assertEqual([5], self.indexes("--type", "command", "--from", 4, "--to", 5))
        self.assertEqual([6, 7], self.indexes("--last", 2))
        self.assertEqual(list(range(1, 8)), self.indexes("--last", 100))
        [shown] = self.of_kind("entry", "dump", self.data, "--type", "session")
        self.assertEqual({"ttl_ms": 60000, "max_sessions": 1000, "window": 64}, shown["session_settings"])

    def test_a_type_that_is_no_entry_shows_that_alone(self) -> None:
        make_log(self.data, 60)
        kinds = {line["kind"] for line in self.lines("dump", self.data, "--type", "seal")}
        self.assertEqual({"segment", "record", "seal"}, kinds)
        self.assertEqual(len(segments(self.data)) - 1, len(self.of_kind("seal", "dump", self.data, "--type", "seal")))
        marks = self.of_kind("record", "dump", self.data, "--type", "mark")
        self.assertEqual(["mark"], [each["type"] for each in marks])
        states = self.of_kind("state", "dump", self.data, "--type", "state")
        self.assertEqual(59, states[-1]["commit"])

    def test_a_range_selects_what_is_no_entry_too(self) -> None:
        """By the entries that its record holds, or by where the log ended if it holds none."""
        log = open_log(self.data)
        write(log, config(1), noop(2), commit=1)
        write(log, put(3), commit=2)
        write(log, put(4), commit=3)
        write(log, commit=4, term=1)
        write(log, put(5), commit=4)
        result(log.close())

        def commits(*arguments: object) -> list[int]:
            shown = self.of_kind("state", "dump", self.data, "--type", "state", *arguments)
            return [each["commit"] for each in shown]

        self.assertEqual([1, 2, 3, 4, 4], commits())
        self.assertEqual([1, 2], commits("--to", 3))
        self.assertEqual([3, 4, 4], commits("--from", 4))
        self.assertEqual([3, 4], commits("--from", 4, "--to", 4))
        self.assertEqual([4], commits("--last", 1))
        self.assertEqual([], self.of_kind("record", "dump", self.data, "--type", "mark", "--to", 4))
        self.assertEqual(1, len(self.of_kind("record", "dump", self.data, "--type", "mark", "--from", 5)))

    def test_a_range_is_the_same_with_and_without_reading_everything(self) -> None:
        """Seals say which segments need not be read, and where to begin; truncations must not confuse that."""
        log = open_log(self.data)
        write(log, config(1), noop(2), commit=1)
        for index in range(3, 40):
            write(log, put(index), commit=1)
        for index in range(20, 60):
            write(log, put(index, 2), after=index - 1, commit=19)
        result(log.close())
        everything = self.of_kind("entry", "dump", self.data)
        live = {each["index"]: each["term"] for each in everything}
        for first, last in ((1, 60), (5, 9), (18, 22), (38, 41), (59, 59), (60, 70)):
            some = self.of_kind("entry", "dump", self.data, "--from", first, "--to", last)
            newest = {each["index"]: each["term"] for each in some}
            self.assertEqual({n: term for n, term in live.items() if first <= n <= last}, newest)

    def test_payloads_as_nothing_and_hex_and_text(self) -> None:
        log = open_log(self.data)
        write(log, Entry.make(1, 1, EntryKind.COMMAND, b"caf\xc3\xa9\x1b[31m", 5))
        result(log.close())

        def shown(*arguments: object) -> dict[str, Any]:
            [entry] = self.of_kind("entry", "dump", self.data, *arguments)
            return {key: value for key, value in entry.items() if key.startswith("payload")}

        self.assertEqual({"payload_bytes": 10}, shown("--payload", "none"))
        self.assertEqual({"payload_bytes": 10, "payload_hex": "636166c3a91b5b33316d"}, shown("--payload", "hex"))
        self.assertEqual({"payload_bytes": 10, "payload_text": "café\x1b[31m"}, shown("--payload", "text"))
        # It is no command of the key-value store, and nobody said that it is.
        self.assertNotIn("payload_error", shown("--payload", "decoded"))
        self.assertIn("payload_error", shown("--application", "kv"))

    def test_what_clients_sent_is_masked_unless_it_is_asked_for(self) -> None:
        """Values may be secrets, and no type says which are. What the cluster itself writes is none."""
        make_log(self.data, 5)
        for arguments in ((), ("--payload", "masked"), ("--json",)):
            shown = self.run_log("dump", self.data, *arguments).output
            self.assertIn(sha256(put(4).payload).hexdigest()[:12], shown)
            self.assertIn("host-1:7001", shown)
            for secret in (b"value-4", b"key-4"):
                self.assertNotIn(secret.decode(), shown)
                self.assertNotIn(secret.hex(), shown)
        self.assertIn("value-4", self.run_log("dump", self.data, "--payload", "decoded").output)
        self.assertIn("value-4", self.run_log("dump", self.data, "--application", "kv").output)
        self.run_log("dump", self.data, "--application", "kv", "--payload", "masked", exit_code=64)

    def test_text_cannot_move_the_cursor(self) -> None:
        """A-34: what a client sent must not act on the terminal of who looks."""
        log = open_log(self.data)
        write(log, Entry.make(1, 1, EntryKind.COMMAND, b"\x1b[2Jgone\nverdict  clean\x9b", 5))
        result(log.close())
        for mode in ("text", "decoded", "hex"):
            output = self.run_log("dump", self.data, "--payload", mode, "--color", "never").output
            self.assertNotIn("\x1b", output)
            self.assertEqual(5, len(output.splitlines()), output)

    def test_an_application_of_ones_own_decodes(self) -> None:
        log = open_log(self.data)
        good = Orders.types.encode_request(Order("apples", 3, b"\xff"))
        write(log, Entry.make(1, 1, EntryKind.COMMAND, good, 5), Entry.make(2, 1, EntryKind.COMMAND, b"\xff", 6))
        result(log.close())
        name = "tests.test_cli_dump:Orders"
        first, second = self.of_kind("entry", "dump", self.data, "--application", name)
        self.assertEqual({"type": "Order", "item": "apples", "count": 3, "note": {"hex": "ff"}}, first["payload"])
        self.assertIn("Order(item='apples', count=3", self.run_log("dump", self.data, "--application", name).output)
        self.assertEqual("ff", second["payload_hex"])
        self.assertIn("ConversionError", second["payload_error"])
        plain = self.of_kind("entry", "dump", self.data, "--application", "tests.daemon_application:Counter")
        self.assertIn("payload", plain[0])
        for wrong in ("tests.daemon_application:Absent", "no.such.module:x"):
            found = self.run_log("dump", self.data, "--application", wrong, exit_code=64)
            self.assertIn(wrong, found.output)

    def test_damage_is_shown_and_reading_goes_on_behind_it(self) -> None:
        """S-02: also with filters that would hide the record."""
        make_log(self.data, 60)
        path = segments(self.data)[-1]
        record = records(path)[2]
        flip(path, record.position + 100)
        for filters in ((), ("--last", 1), ("--type", "config")):
            lines = self.lines("dump", self.data, *filters, exit_code=2)
            [damage] = [line for line in lines if line["kind"] == "damage"]
            self.assertEqual((f"wal/{path.name}", record.position), (damage["file"], damage["offset"]))
            self.assertEqual(["bad"], [line["crc"] for line in lines if line.get("crc") == "bad"])
        lines = self.of_kind("entry", "dump", self.data, exit_code=2)
        self.assertEqual([n for n in range(1, 61) if n != record.first], [line["index"] for line in lines])
        newest = self.of_kind("entry", "dump", self.data, "--last", 1, exit_code=2)
        self.assertEqual([60], [each["index"] for each in newest])

    def test_a_damaged_header_of_a_record_does_not_hide_what_follows(self) -> None:
        """S-03: its length is not believed."""
        make_log(self.data, 60)
        path = segments(self.data)[-1]
        record = records(path)[2]
        flip(path, record.position + 8)
        lines = self.lines("dump", self.data, exit_code=2)
        [damage] = [line for line in lines if line["kind"] == "damage"]
        self.assertEqual((record.position, record.size), (damage["offset"], damage["size"]))
        self.assertEqual(60, [line["index"] for line in lines if line["kind"] == "entry"][-1])

    def test_damage_in_a_sealed_segment_is_rot_though_a_start_would_not_see_it(self) -> None:
        make_log(self.data, 60)
        path = segments(self.data)[0]
        flip(path, records(path)[1].position + 100)
        found = self.run_log("dump", self.data, exit_code=2)
        self.assertIn("does not read", found.stderr)

    def test_what_a_start_would_refuse_is_never_clean(self) -> None:
        """S-07, S-08, J-100: where every record that is there checks, and with filters that skip the place."""
        make_log(self.data, 120)
        files = segments(self.data)
        self.assertGreater(len(files), 4)
        seal = records(files[1])[-1]
        damages: list[tuple[Path, Callable[[], object]]] = [
            (files[2], files[2].unlink),
            (files[-1], files[-1].unlink),
            (self.data / "identity", lambda: flip(self.data / "identity", 30)),
            (files[1], lambda: overwrite(files[1], seal.position, bytes(seal.size))),
        ]
        for path, damage in damages:
            content = path.read_bytes()
            damage()
            self.assertEqual("refuses", self.verdict("verify", exit_code=2)["opening"])
            for filters in ((), ("--last", 1), ("--from", 1, "--to", 2), ("--type", "config")):
                found = self.verdict("dump", *filters, exit_code=2)
                self.assertEqual("refuses", found["opening"], (path, filters))
            path.write_bytes(content)
        self.run_log("dump", self.data)

    def test_a_filter_shows_damage_of_what_it_reads_only(self) -> None:
        """As docs/log-tool.rst says: to read everything is the matter of verify."""
        make_log(self.data, 120)
        path = segments(self.data)[1]
        record = records(path)[2]
        flip(path, record.position + 100)
        self.run_log("dump", self.data, "--from", record.first + 60)
        self.run_log("dump", self.data, "--last", 2)
        self.run_log("dump", self.data, "--to", record.first, exit_code=2)
        self.run_log("verify", self.data, exit_code=2)

    def test_rot_is_not_hidden_by_a_torn_tail(self) -> None:
        make_log(self.data, 60)
        log = open_log(self.data)
        write(log, put(61, value=b"v" * 3000), commit=60)
        result(log.close())
        tear_last_record(self.data)
        self.verdict("dump", exit_code=1)
        path = segments(self.data)[0]
        flip(path, records(path)[2].position + 100)
        self.assertIn("does not read", self.run_log("dump", self.data, exit_code=2).stderr)
        verdict = self.verdict("dump", exit_code=2)
        self.assertEqual(("rot", f"wal/{path.name}"), (verdict["verdict"], verdict["file"]))
        self.assertEqual("cuts the torn tail", verdict["opening"])

    def test_a_torn_tail_is_torn(self) -> None:
        """S-01."""
        make_log(self.data, 10)
        log = open_log(self.data)
        write(log, put(11, value=b"v" * 3000), commit=10)
        result(log.close())
        offset = tear_last_record(self.data)
        lines = self.lines("dump", self.data, exit_code=1)
        self.assertEqual(offset, next(line["offset"] for line in lines if line["kind"] == "damage"))
        self.assertEqual(("verdict", "torn"), (lines[-1]["kind"], lines[-1]["verdict"]))
        self.assertEqual(10, [line["index"] for line in lines if line["kind"] == "entry"][-1])

    def test_a_damaged_segment_header_is_named(self) -> None:
        make_log(self.data, 60)
        path = segments(self.data)[1]
        overwrite(path, 60, b"\xff")
        lines = self.lines("dump", self.data, exit_code=2)
        self.assertEqual([f"wal/{path.name}"], [line["file"] for line in lines if line["kind"] == "damage"])
        self.assertIn(60, [line["index"] for line in lines if line["kind"] == "entry"])

    def test_what_is_no_data_directory_cannot_be_opened(self) -> None:
        self.run_log("dump", self.root / "absent", exit_code=3)
        self.run_log("dump", self.root, exit_code=3)
        file = self.root / "file"
        file.write_bytes(b"")
        for command in ("dump", "stat", "verify", "repair"):
            self.assertIn("is not a directory", self.run_log(command, file, exit_code=3).output)
        make_log(self.data, 3)
        self.assertIn("is not a directory", self.run_log("diff", self.data, file, exit_code=3).output)

    def test_striped_records_are_shown_as_they_were_written(self) -> None:
        log = open_log(self.data)
        write(log, Entry.make(1, 1, EntryKind.COMMAND, bytes(2000), 5))
        result(log.close())
        [record] = [each for each in self.of_kind("record", "dump", self.data) if each["type"] == "batch"]
        self.assertTrue(record["striped"])
        [entry] = self.of_kind("entry", "dump", self.data, "--payload", "hex")
        self.assertEqual("00" * 2000, entry["payload_hex"])

    def test_colours_are_for_terminals(self) -> None:
        make_log(self.data, 3)
        for arguments, env, colourful in (
            ((), {}, False),
            (("--color", "always"), {"NO_COLOR": "1"}, True),
            (("--color", "never"), {}, False),
            (("--color", "always", "--json"), {}, False),
        ):
            output = self.run_log("dump", self.data, *arguments, env=env).output
            self.assertEqual(colourful, "\x1b[" in output, arguments)


class UsageTests(CliTestCase):
    def test_wrong_usage_is_neither_torn_nor_rot(self) -> None:
        for arguments in (
            (),
            ("dump",),
            ("dump", self.root, "--payload", "loud"),
            ("dump", self.root, "--from", "x"),
            ("dump", self.root, "--from", "5", "--to", "4"),
            ("dump", self.root, "--from", "5", "--last", "4"),
            ("dump", self.root, "--application", "kv", "--payload", "hex"),
            ("diff", self.root),
            ("polish", self.root),
            ("dump", ""),
            ("repair", ""),
            ("diff", self.root, ""),
            ("stat", self.root, "--snapshots", ""),
        ):
            self.run_log(*arguments, exit_code=64)

    def test_help_is_clean(self) -> None:
        for command in ("dump", "verify", "stat", "diff"):
            self.assertIn("Usage", self.run_log(command, "--help").output)

    def test_who_reads_may_stop_reading(self) -> None:
        """``| head`` must not look like a torn tail."""
        make_log(self.data, 400)
        command = [sys.executable, "-m", "zlayer_consensus.cli", "log", "dump", str(self.data)]
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
        finally:
            os.close(writing)
        self.assertEqual((141, b""), (done.returncode, done.stderr))
