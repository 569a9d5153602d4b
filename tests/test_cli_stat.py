"""
``zconsensus log stat``: what it says of each segment, and of those that are missing.
"""

from __future__ import annotations

from typing import Any

from tests.cli_kit import (
    SECTOR,
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
from tests.log_store_kit import result


class SegmentTests(CliTestCase):
    def checks(self, *arguments: object, exit_code: int = 0, kind: str = "segment") -> list[Any]:
        """Returns what is said of the segments' checksums."""
        return [line["crc"] for line in self.of_kind(kind, "stat", self.data, *arguments, exit_code=exit_code)]

    def test_full_says_of_each_segment_whether_it_checks(self) -> None:
        make_log(self.data, 60)
        count = len(segments(self.data))
        self.assertEqual([None] * count, self.checks())
        self.assertEqual(["ok"] * count, self.checks("--full"))
        self.assertEqual(count, self.run_log("stat", self.data, "--full").output.count("CRC OK"))
        self.assertNotIn("CRC", self.run_log("stat", self.data).output)
        path = segments(self.data)[1]
        flip(path, records(path)[2].position + 80)
        self.assertEqual(["ok", "bad", *["ok"] * (count - 2)], self.checks("--full", exit_code=2))
        verdict = self.verdict("stat", "--full", exit_code=2)
        self.assertEqual((f"wal/{path.name}", "opens"), (verdict["file"], verdict["opening"]))

    def test_rot_in_the_oldest_entry_hides_nothing_else(self) -> None:
        make_log(self.data, 60)
        path = segments(self.data)[0]
        flip(path, records(path)[0].position + 80)
        for arguments, crc in ((), None), (("--full",), "bad"):
            self.assertEqual(crc, self.checks(*arguments, exit_code=2)[0])
            self.assertEqual(60, self.of_kind("log", "stat", self.data, *arguments, exit_code=2)[0]["entries"])
            self.assertEqual(f"wal/{path.name}", self.verdict("stat", *arguments, exit_code=2)["file"])

    def test_rot_in_what_was_truncated_counts(self) -> None:
        """No entry of the log is in it, so reading the entries does not find it."""
        log = open_log(self.data)
        write(log, config(1), noop(2), commit=1)
        write(log, *(put(index) for index in range(3, 6)), commit=1)
        for index in range(3, 60):
            write(log, put(index, 2), after=2 if index == 3 else None, commit=1)
        result(log.close())
        path = segments(self.data)[0]
        flip(path, records(path)[1].position + 80)
        self.assertEqual("bad", self.checks("--full", exit_code=2)[0])
        self.assertEqual(records(path)[1].position, self.verdict("stat", "--full", exit_code=2)["offset"])
        self.assertEqual(1, len(self.of_kind("totals", "stat", self.data, "--full", exit_code=2)))

    def test_a_torn_tail_is_no_bad_segment(self) -> None:
        make_log(self.data, 60)
        log = open_log(self.data)
        write(log, put(61, value=b"v" * 3000), commit=60)
        result(log.close())
        tear_last_record(self.data)
        found = self.checks("--full", exit_code=1)
        self.assertEqual(["ok"] * (len(found) - 1) + ["torn"], found)

    def test_bytes_behind_a_seal_are_bad(self) -> None:
        make_log(self.data, 60)
        path = segments(self.data)[0]
        seal = records(path)[-1]
        overwrite(path, seal.position + seal.size + SECTOR, b"x")
        self.assertEqual("bad", self.checks("--full", exit_code=2)[0])

    def test_a_log_that_cannot_be_opened_is_read_all_the_same(self) -> None:
        make_log(self.data, 120)
        files = segments(self.data)
        overwrite(files[0], 60, b"\xff")
        flip(files[2], records(files[2])[2].position + 80)
        rest = ["ok"] * (len(files) - 3)
        self.assertEqual(["bad", "ok", "bad", *rest], self.checks("--full", exit_code=2, kind="segment_file"))
        self.assertEqual({None}, set(self.checks(exit_code=2, kind="segment_file")))

    def test_missing_numbers_are_shown(self) -> None:
        """S-07: a start is refused, and says where; this says which."""
        make_log(self.data, 120)
        self.assertIn("no gap", self.run_log("stat", self.data).output)
        files = segments(self.data)
        self.assertGreater(len(files), 6)
        for number in (1, 3, 4):
            files[number].unlink()
        gaps = self.of_kind("gap", "stat", self.data, exit_code=2)
        self.assertEqual([(2, 2), (4, 5)], [(each["first_seq"], each["last_seq"]) for each in gaps])
        shown = self.run_log("stat", self.data, exit_code=2).output
        self.assertIn("segment 2 is missing", shown)
        self.assertIn("segments 4 to 5 are missing", shown)
        self.assertLess(shown.index(files[2].name), shown.index("segments 4 to 5"))
        self.assertLess(shown.index("segments 4 to 5"), shown.index(files[5].name))
