"""
``zconsensus log verify`` and ``stat``: every kind of damage, what an opening would decide, nodes that run.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock
from zlib import crc32

from zope.interface import implementer

from tests.cli_kit import (
    MEMBERSHIP,
    SECTOR,
    START_MS,
    CliTestCase,
    config,
    fingerprint,
    flip,
    make_log,
    noop,
    open_log,
    overwrite,
    put,
    records,
    save_snapshot,
    segments,
    tear_last_record,
    write,
)
from tests.log_store_kit import result
from zlayer_consensus.cli._diff import diff
from zlayer_consensus.cli._directory import DataDirectory, is_held
from zlayer_consensus.cli._dump import Selection, dump
from zlayer_consensus.cli._exit import ExitCode
from zlayer_consensus.cli._output import Output
from zlayer_consensus.cli._payload import Payloads
from zlayer_consensus.cli._stat import stat
from zlayer_consensus.cli._verdict import judge, refusal
from zlayer_consensus.cli._verify import verify
from zlayer_consensus.errors import StorageCorrupt, StorageError, StorageFailed, WrongIdentity
from zlayer_consensus.raft import Entry, EntryKind, HardState, LogId, LogWrite, Membership
from zlayer_consensus.storage import FileLogStore, IFileSystem, InlineExecutor, RealFileSystem
from zlayer_consensus.storage._record import SEAL, check_record, encode_record
from zlayer_consensus.storage._segment import SEGMENT_HEADER, decode_header, encode_header
from zlayer_consensus.storage.inspection import ReadOnlyFileSystem, scan_records


def add_torn_record(directory: Path) -> int:
    """Appends a record of several sectors and takes its first back; returns where it was."""
    log = open_log(directory)
    write(log, put(61, value=b"v" * 3000), commit=60)
    result(log.close())
    return tear_last_record(directory)


class VerifyTests(CliTestCase):
    """On a log of 60 entries in several segments, with two snapshots."""

    def setUp(self) -> None:
        super().setUp()
        make_log(self.data, 60)
        save_snapshot(self.data, 20)
        save_snapshot(self.data, 40, chunks=(b"a" * 300, b"b" * 300))
        self.segments = segments(self.data)
        self.newest = self.segments[-1]

    def opens(self) -> bool:
        """Opens a copy as a node would, and says whether that succeeds."""
        copy = self.root / "copy"
        if copy.exists():
            shutil.rmtree(copy)
        shutil.copytree(self.data, copy)
        log = FileLogStore(copy, 1, executor=InlineExecutor(), segment_bytes=16 << 10)
        try:
            result(log.open())
        except StorageError:
            return False
        finally:
            result(log.close())
            shutil.rmtree(copy)
        return True

    def rot(self, path: Path, **expected: Any) -> dict[str, Any]:
        """Verifies: it must be rot in that file, and a start must be refused as the verdict says."""
        found = self.verdict("verify", exit_code=2)
        self.assertEqual(str(path.relative_to(self.data)), found["file"])
        self.assertEqual({**expected}, {key: found[key] for key in expected})
        self.assertNotEqual("", found["advice"])
        return found

    def test_a_whole_directory_is_clean(self) -> None:
        found = self.verdict("verify")
        self.assertEqual(("clean", "opens", 0), (found["verdict"], found["opening"], found["findings"]))
        checked = {line["file"] for line in self.of_kind("check", "verify", self.data)}
        self.assertLessEqual({f"wal/{path.name}" for path in self.segments}, checked)
        self.assertLessEqual({"snap/20-1", "snap/40-1"}, checked)

    def test_a_copy_is_verified_like_the_original(self) -> None:
        copy = self.root / "copy"
        shutil.copytree(self.data, copy)
        self.assertEqual("clean", self.lines("verify", copy)[-1]["verdict"])

    def test_a_torn_tail_is_what_an_opening_cuts(self) -> None:
        """S-01: the offset is the one that the opening cuts at, the entries are those that it drops."""
        offset = add_torn_record(self.data)
        found = self.verdict("verify", exit_code=1)
        self.assertEqual(("torn", "cuts the torn tail"), (found["verdict"], found["opening"]))
        self.assertEqual((f"wal/{segments(self.data)[-1].name}", offset), (found["file"], found["offset"]))
        self.assertEqual((61, None), (found["first_index"], found["last_index"]))
        self.assertEqual("torn", self.verdict("stat", exit_code=1)["verdict"])
        log = open_log(self.data)
        result(log.close())
        self.assertEqual("clean", self.verdict("verify")["verdict"])
        [aside] = self.of_kind("quarantine", "stat", self.data)
        self.assertIn(f"-at-{offset}-", aside["file"])

    def test_a_flipped_bit_in_the_newest_segment_is_rot(self) -> None:
        """S-02."""
        record = records(self.newest)[3]
        flip(self.newest, record.position + 80)
        self.rot(self.newest, offset=record.position, first_index=record.first, opening="refuses")
        self.assertFalse(self.opens())

    def test_a_flipped_length_is_rot(self) -> None:
        """S-03."""
        record = records(self.newest)[3]
        flip(self.newest, record.position + 9)
        self.rot(self.newest, offset=record.position, opening="refuses")
        self.assertFalse(self.opens())

    def test_a_lost_record_before_others_is_rot(self) -> None:
        """S-04: what follows proves that it was durable."""
        record = records(self.newest)[3]
        overwrite(self.newest, record.position, bytes(record.size))
        found = self.rot(self.newest, offset=record.position, opening="refuses")
        self.assertIn("was durable", found["rule"])
        self.assertFalse(self.opens())

    def test_a_misdirected_record_is_rot(self) -> None:
        """S-05."""
        first, second = records(self.newest)[2:4]
        data = self.newest.read_bytes()[first.position : first.position + first.size]
        overwrite(self.newest, second.position, data)
        self.rot(self.newest, offset=second.position, opening="refuses")
        self.assertFalse(self.opens())

    def test_rot_in_a_sealed_segment_is_found_though_a_start_would_succeed(self) -> None:
        """S-02: and each damaged segment is named."""
        for path in self.segments[:2]:
            flip(path, records(path)[2].position + 80)
        self.rot(self.segments[0], offset=records(self.segments[0])[2].position, opening="opens")
        found = self.of_kind("finding", "verify", self.data, exit_code=2)
        self.assertEqual([f"wal/{path.name}" for path in self.segments[:2]], [each["file"] for each in found])
        self.assertTrue(self.opens())

    def test_a_seal_that_tells_another_story_is_rot(self) -> None:
        """J-100."""
        for path in self.segments[:-1]:
            seal = records(path)[-1]
            flip(path, seal.position + 70)
            self.rot(path, offset=seal.position, opening="refuses")
            self.assertFalse(self.opens())
            flip(path, seal.position + 70)

    def test_a_seal_that_contradicts_itself_is_rot(self) -> None:
        """J-100: intact by its checksums, and it miscounts."""
        path = self.segments[1]
        data, (before, seal) = path.read_bytes(), records(path)[-2:]
        salt = decode_header(data[:SEGMENT_HEADER]).salt
        payload = bytearray(check_record(seal, data[seal.position : seal.position + seal.size], salt, before.chain))
        payload[8] += 1
        record, _ = encode_record(
            SEAL, bytes(payload), 0, seal.first, seal.last, seal.position, salt, before.chain
        )  # fmt: skip
        overwrite(path, seal.position, record)
        found = self.rot(path, offset=seal.position, opening="refuses")
        self.assertIn("counts", found["rule"])
        self.assertFalse(self.opens())

    def test_a_missing_segment_is_rot(self) -> None:
        """S-07, S-08: the first, one in the middle, the newest."""
        for path in (self.segments[0], self.segments[1], self.newest):
            data = path.read_bytes()
            path.unlink()
            found = self.verdict("verify", exit_code=2)
            self.assertEqual("refuses", found["opening"])
            self.assertIn("missing", found["rule"])
            self.assertFalse(self.opens())
            path.write_bytes(data)

    def test_no_segments_at_all_is_rot(self) -> None:
        shutil.rmtree(self.data / "wal")
        self.assertEqual("refuses", self.verdict("verify", exit_code=2)["opening"])
        self.assertEqual("refuses", self.verdict("stat", exit_code=2)["opening"])

    def test_a_segment_of_another_node_is_rot(self) -> None:
        """S-09."""
        other = self.root / "node-2"
        make_log(other, 60, node_id=2)
        for path, foreign in zip(self.segments, segments(other), strict=True):
            data = path.read_bytes()
            path.write_bytes(foreign.read_bytes())
            found = self.rot(path, opening="refuses")
            self.assertIn("node 2", found["rule"])
            self.assertFalse(self.opens())
            path.write_bytes(data)

    def test_a_truncated_file_is_rot(self) -> None:
        for path in (self.segments[0], self.newest):
            data = path.read_bytes()
            path.write_bytes(data[:-SECTOR])
            self.rot(path, opening="refuses")
            self.assertFalse(self.opens())
            path.write_bytes(data)

    def test_a_file_that_ends_between_two_records_is_rot(self) -> None:
        """What follows is nothing, and not a record that does not check; every command says so."""
        for path in (self.segments[0], self.newest):
            data = path.read_bytes()
            for record in records(path)[1:3]:
                path.write_bytes(data[: record.position])
                self.rot(path, opening="refuses")
                self.verdict("stat", "--full", exit_code=2)
                self.run_log("dump", self.data, exit_code=2)
            path.write_bytes(data)

    def test_a_file_that_goes_on_behind_its_end_is_rot(self) -> None:
        for path in (self.segments[0], self.newest):
            data = path.read_bytes()
            for more in (b"x", bytes(SECTOR), b"x" * SECTOR):
                path.write_bytes(data + more)
                self.rot(path, opening="refuses")
                self.verdict("stat", "--full", exit_code=2)
                self.assertFalse(self.opens())
            path.write_bytes(data)

    def test_a_damaged_or_missing_identity_is_rot(self) -> None:
        path = self.data / "identity"
        data = path.read_bytes()
        flip(path, 30)
        self.rot(path, opening="refuses")
        self.assertFalse(self.opens())
        path.unlink()
        self.rot(path, opening="refuses")
        self.assertEqual("bad", self.of_kind("identity", "stat", self.data, exit_code=2)[0]["identity"])
        path.write_bytes(data)
        self.verdict("verify")

    def test_a_later_format_cannot_be_opened(self) -> None:
        """S-25: it is no damage."""
        data = bytearray(self.newest.read_bytes())
        data[8:10] = b"\x02\x00"
        data[12:16] = bytes(4)
        data[12:16] = crc32(bytes(data[16:SEGMENT_HEADER]), crc32(bytes(data[:16]))).to_bytes(4, "little")
        self.newest.write_bytes(data)
        self.assertEqual("unreadable", self.verdict("verify", exit_code=3)["verdict"])
        self.assertFalse(self.opens())

    def test_a_header_that_forgets_the_vote_is_rot(self) -> None:
        """J-02: intact by itself, but not what the segment before it ended with."""
        data = self.newest.read_bytes()
        header = decode_header(data[:SEGMENT_HEADER])
        overwrite(self.newest, 0, encode_header(header._replace(state=HardState(1, 0, header.state.commit))))
        found = self.verdict("verify", exit_code=2)
        self.assertIn("state", found["rule"])

    def test_damaged_snapshots_are_rot(self) -> None:
        """S-16: the newest is refused at a start; the older one is not looked at there."""
        for name, part, opening in (("40-1", "manifest", "refuses"), ("40-1", "1", "refuses"), ("20-1", "0", "opens")):
            path = self.data / "snap" / name / part
            flip(path, 40)
            found = self.verdict("verify", exit_code=2)
            self.assertEqual((f"snap/{name}/{part}", opening), (found["file"], found["opening"]))
            self.assertIn("snapshot", found["advice"])
            self.assertEqual("rot", self.verdict("stat", "--full", exit_code=2)["verdict"])
            flip(path, 40)
        (self.data / "snap" / "40-1" / "1").unlink()
        self.assertEqual("snap/40-1/1", self.verdict("verify", exit_code=2)["file"])

    def test_a_damaged_file_is_found_in_every_snapshot_that_names_it(self) -> None:
        """It is one file with several names. A start does not read it, and says so; the stream is another matter."""
        live = [self.root / name for name in ("first", "second")]
        for number, path in enumerate(live):
            path.write_bytes(b"values of the state machine" * (100 + number))
        save_snapshot(self.data, 50, files=(live[0], live[1]))
        save_snapshot(self.data, 55, files=(live[1],))
        self.assertEqual("clean", self.verdict("verify")["verdict"])
        [older, newer] = self.of_kind("snapshot", "stat", self.data)
        self.assertEqual([(3, 2), (2, 1)], [(each["parts"], each["files"]) for each in (older, newer)])
        self.assertIn("2 files of the state machine", self.run_log("stat", self.data).output)
        flip(live[1], 1000)
        found = self.of_kind("finding", "verify", self.data, exit_code=2)
        self.assertEqual(["snap/50-1/2", "snap/55-1/1"], [each["file"] for each in found])
        verdict = self.verdict("verify", exit_code=2)
        self.assertEqual(("rot", "opens"), (verdict["verdict"], verdict["opening"]))
        self.assertIn("stops when it reads it", verdict["advice"])
        self.assertEqual(
            {"bad"}, {each["digest"] for each in self.of_kind("snapshot", "stat", self.data, "--full", exit_code=2)}
        )
        flip(self.data / "snap/55-1/0", 100)
        found = self.of_kind("finding", "verify", self.data, exit_code=2)
        self.assertEqual(["snap/50-1/2", "snap/55-1/0"], [each["file"] for each in found])
        self.assertEqual("refuses", self.verdict("verify", exit_code=2)["opening"])

    def test_a_name_that_is_no_snapshot_is_named(self) -> None:
        (self.data / "snap" / "4O-1").mkdir()
        self.assertEqual("snap/4O-1", self.verdict("verify", exit_code=2)["file"])

    def test_a_log_and_a_snapshot_that_do_not_fit_are_rot(self) -> None:
        """S-17, J-81: the log ends before the node's own snapshot; the log was purged past the snapshot."""
        save_snapshot(self.data, 70)
        self.assertIn("before the node's own snapshot", self.verdict("verify", exit_code=2)["rule"])
        shutil.rmtree(self.data / "snap")
        log = open_log(self.data)
        result(log.purge(LogId(1, 30)))
        result(log.close())
        found = self.verdict("verify", exit_code=2)
        self.assertIn("no snapshot", found["rule"])
        self.assertEqual(("wal", 1, 30), (found["file"], found["first_index"], found["last_index"]))
        save_snapshot(self.data, 29)
        found = self.verdict("verify", exit_code=2)
        self.assertIn("begins after", found["rule"])
        self.assertEqual(("wal", 30, 30), (found["file"], found["first_index"], found["last_index"]))
        save_snapshot(self.data, 35)
        self.verdict("verify")

    def test_a_snapshot_of_another_cluster_is_rot(self) -> None:
        """S-09: it fits the log by its position, but knows this node's id as another member's."""
        others = Membership.initial([replace(each, incarnation=b"o" * 16) for each in MEMBERSHIP.members.values()])
        with mock.patch("tests.cli_kit.MEMBERSHIP", others):
            save_snapshot(self.data, 50)
        found = self.verdict("verify", exit_code=2)
        self.assertEqual(("snap/50-1", "refuses"), (found["file"], found["opening"]))
        self.assertIn((b"o" * 16).hex(), found["rule"])

    def test_snapshots_may_be_elsewhere(self) -> None:
        elsewhere = self.root / "elsewhere"
        elsewhere.mkdir()
        shutil.move(self.data / "snap", elsewhere / "snap")
        found = self.of_kind("snapshot", "stat", self.data, "--snapshots", elsewhere)
        self.assertEqual([20, 40], [each["index"] for each in found])
        flip(elsewhere / "snap" / "40-1" / "1", 20)
        self.verdict("verify", "--snapshots", elsewhere, exit_code=2)

    def test_snapshots_that_are_not_where_one_says_are_not_taken_for_none(self) -> None:
        for wrong in (self.root / "absent", self.data / "identity"):
            for command in ("verify", "stat", "repair"):
                found = self.run_log(command, self.data, "--snapshots", wrong, exit_code=3)
                self.assertIn("where the snapshots are to be", found.output)

    def test_what_may_not_be_read_is_neither_damaged_nor_wrong_usage(self) -> None:
        with mock.patch("os.access", return_value=False):
            self.run_log("verify", self.data)
        (self.data / "identity").unlink()
        (self.data / "identity").mkdir()
        self.assertEqual("unreadable", self.of_kind("identity", "stat", self.data, exit_code=3)[0]["identity"])
        for command in ("stat", "verify"):
            output = self.run_log(command, self.data, exit_code=3).output
            self.assertIn("Is a directory", output)
            self.assertNotIn("None", output)

    def test_a_configuration_that_does_not_decode_is_rot(self) -> None:
        log = open_log(self.data)
        write(log, Entry.make(61, 1, EntryKind.CONFIG, b"nonsense", START_MS + 61), commit=60)
        result(log.close())
        self.assertIn("configuration in entry 61", self.verdict("verify", exit_code=2)["rule"])

    def test_what_only_looks_odd_is_clean(self) -> None:
        """Truncations into earlier segments, resets, purges, and a crash between a new segment and the seal."""
        log = open_log(self.data)
        for index in range(61, 110):
            write(log, put(index), commit=60)
        write(log, put(62, 2), after=61, commit=60)
        for index in range(63, 110):
            write(log, put(index, 2), commit=60)
        result(log.close())
        self.verdict("verify")
        before, newest = segments(self.data)[-2:]
        seal = records(before)[-1]
        overwrite(before, seal.position, bytes(seal.size))
        overwrite(newest, SEGMENT_HEADER, bytes(len(newest.read_bytes()) - SEGMENT_HEADER))
        self.verdict("verify")
        self.assertTrue(self.opens())
        log = open_log(self.data)
        result(log.purge(LogId(1, 30)))
        result(log.close())
        self.verdict("verify")
        log = open_log(self.data)
        result(log.write(LogWrite(reset=LogId(3, 500), hard_state=HardState(3, 0, 500))))
        for index in range(501, 560):
            write(log, put(index, 3), commit=index - 1)
        result(log.close())
        save_snapshot(self.data, 500, term=3)
        self.verdict("verify")

    def test_every_verdict_is_an_openings_verdict(self) -> None:
        """A sweep over sectors and bytes of the newest segment: refused, cut or opened, by both alike."""
        data = self.newest.read_bytes()
        end = max(each.position + each.size for each in records(self.newest))
        spots = [(at, bytes(SECTOR)) for at in range(0, end, SECTOR)]
        spots += [(at, bytes([data[at] ^ 0x40])) for at in range(0, end, 977)]
        for offset, damage in spots:
            overwrite(self.newest, offset, damage)
            directory = DataDirectory(str(self.data), sleep=lambda _seconds: None)
            _, _, found = judge(directory)
            self.assertEqual(self.opens(), found.opening != "refuses", (offset, found))
            self.newest.write_bytes(data)

    def test_a_file_that_cannot_be_read_says_nothing_about_the_log(self) -> None:
        @implementer(IFileSystem)
        class Failing(ReadOnlyFileSystem):
            def read(self, path: str, offset: int, size: int) -> bytes:
                raise StorageFailed("read", path, "Input/output error")

        directory = DataDirectory(str(self.data), files=Failing(RealFileSystem()), sleep=lambda _seconds: None)
        self.assertEqual(ExitCode.CANNOT_OPEN, judge(directory)[2].exit_code)


class RunningTests(CliTestCase):
    """A store that is open, in this very process."""

    def setUp(self) -> None:
        super().setUp()
        make_log(self.data, 40)
        self.log = open_log(self.data)
        self.addCleanup(lambda: result(self.log.close()))

    def test_a_running_node_is_seen_by_its_lock_and_keeps_it(self) -> None:
        lock = str(self.data / "LOCK")
        if is_held(lock) is None:
            self.skipTest("the system does not list its locks")
        self.assertTrue(is_held(lock))
        self.assertTrue(self.of_kind("identity", "stat", self.data)[0]["running"])
        result(self.log.close())
        self.assertFalse(is_held(lock))
        self.assertFalse(self.of_kind("identity", "stat", self.data)[0]["running"])
        self.assertIsNone(is_held(lock, str(self.root / "no-list")))
        self.assertFalse(is_held(str(self.root / "no-lock")))

    def test_what_is_durable_is_shown_while_it_grows(self) -> None:
        for index in range(41, 60):
            write(self.log, put(index), commit=index - 1)
            entries = self.of_kind("entry", "dump", self.data, "--last", 1)
            self.assertEqual([index], [each["index"] for each in entries])
        self.verdict("verify")
        self.verdict("stat", "--full")
        result(self.log.purge(LogId(1, 30)))
        save_snapshot(self.data, 35)
        self.verdict("verify")

    def test_the_tool_never_stands_in_the_way_of_a_start(self) -> None:
        """S-20: no lock is taken, not even for a moment."""
        result(self.log.close())
        directory = DataDirectory(str(self.data))
        directory.examine()
        again = open_log(self.data)
        directory.examine()
        result(again.close())

    def torn(self, heals_after: int) -> tuple[DataDirectory, list[float]]:
        """Returns the directory as it is seen in the middle of a write that completes after so many looks."""
        write(self.log, put(41, value=b"v" * 3000), commit=40)
        path = str(segments(self.data)[-1])
        record = records(Path(path))[-1]
        slept: list[float] = []

        @implementer(IFileSystem)
        class Halfway(ReadOnlyFileSystem):
            def read(self, read: str, offset: int, size: int) -> bytes:
                found = bytearray(super().read(read, offset, size))
                if read == path and len(slept) < heals_after:
                    for at in range(record.position + SECTOR, record.position + 2 * SECTOR):
                        if 0 <= at - offset < len(found):
                            found[at - offset] = 0
                return bytes(found)

        return DataDirectory(str(self.data), files=Halfway(RealFileSystem()), sleep=slept.append), slept

    def test_a_write_that_is_under_way_is_no_damage(self) -> None:
        for heals_after in (1, 5):
            directory, slept = self.torn(heals_after)
            if directory.running is None:
                self.skipTest("the system does not list its locks")
            _, found, verdict = judge(directory)
            assert found is not None
            self.assertEqual(("clean", 41), (verdict.verdict, found.index.last.index))
            self.assertEqual(heals_after, len(slept))
            slept.clear()
            self.assertEqual([], self.problems(directory))
            write(self.log, after=40, commit=40)

    def test_a_record_that_stays_unfinished_is_reported_after_a_while(self) -> None:
        directory, slept = self.torn(1000)
        _, _, verdict = judge(directory)
        self.assertEqual("torn", verdict.verdict)
        self.assertLess(sum(slept), 3)
        self.assertEqual(1, len(self.problems(directory)))

    def output_of(self, command: Callable[[Output], ExitCode]) -> list[dict[str, Any]]:
        """Runs a command's function, which must find nothing wrong, and returns its objects."""
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(io.StringIO()):
            self.assertEqual(ExitCode.CLEAN, command(Output(True, False)))
        return [json.loads(line) for line in shown.getvalue().splitlines()]

    def purging(self, after: int) -> DataDirectory:
        """Returns the directory of a node that purges a segment when it has been read from so many times."""
        log = self.log
        oldest = str(segments(self.data)[0])
        reads: list[int] = []

        @implementer(IFileSystem)
        class Purging(ReadOnlyFileSystem):
            def read(self, path: str, offset: int, size: int) -> bytes:
                if path == oldest:
                    reads.append(offset)
                    if len(reads) == after + 1:
                        result(log.purge(LogId(1, 30)))
                return super().read(path, offset, size)

        return DataDirectory(str(self.data), files=Purging(RealFileSystem()), sleep=lambda _seconds: None)

    def test_a_segment_that_is_purged_while_it_is_looked_at_is_no_damage(self) -> None:
        other = DataDirectory(str(self.data))
        commands: list[Callable[[DataDirectory, Output], ExitCode]] = [
            lambda directory, out: dump(directory, out, Payloads("none", None), Selection()),
            lambda directory, out: stat(directory, out, True),
            verify,
            lambda directory, out: diff(directory, other, out, Payloads(None, None)),
        ]
        for command in commands:
            purged = 0
            for after in range(8):
                result(self.log.close())
                shutil.rmtree(self.data)
                make_log(self.data, 40)
                save_snapshot(self.data, 35)
                self.log = open_log(self.data)
                directory = self.purging(after)
                oldest = segments(self.data)[0]
                self.assertNotEqual([], self.output_of(functools.partial(command, directory)))
                purged += not oldest.exists()
            self.assertGreater(purged, 0)

    def test_a_snapshot_newer_than_the_look_at_the_log_is_no_damage(self) -> None:
        """S-17, but for a moment only: the log is looked at before or after the snapshot, never at once."""
        save_snapshot(self.data, 50)

        def later(_seconds: float) -> None:
            if result(self.log.read(40, 99, 1 << 20))[-1].index == 40:
                write(self.log, *(put(index) for index in range(41, 61)), commit=40)

        directory = DataDirectory(str(self.data), sleep=later)
        self.assertEqual("clean", self.output_of(lambda out: verify(directory, out))[-1]["verdict"])

    def problems(self, directory: DataDirectory) -> list[str]:
        """Scans the newest segment as ``dump`` does."""
        path = segments(self.data)[-1]
        header = decode_header(path.read_bytes()[:SEGMENT_HEADER])
        found = scan_records(directory.files, str(path), header, again=directory.look_again)
        return [each.problem for each in found if each.problem]


class StatTests(CliTestCase):
    def test_it_says_what_there_is(self) -> None:
        make_log(self.data, 60)
        save_snapshot(self.data, 20)
        lines = {line["kind"]: line for line in self.lines("stat", self.data)}
        self.assertEqual((1, "63" * 16), (lines["identity"]["node_id"], lines["identity"]["cluster_id"]))
        state = lines["hard_state"]
        self.assertEqual((1, 1, 59, "record"), (state["term"], state["vote"], state["commit"], state["from"]))
        last = [each for each in records(segments(self.data)[-1]) if each.entries][-1]
        self.assertEqual(last.position, state["offset"])
        self.assertEqual((1, 60, [[1, 1]]), (lines["log"]["first"], lines["log"]["entries"], lines["log"]["terms"]))
        self.assertEqual(START_MS + 1, lines["log"]["first_time_ms"])
        self.assertEqual(START_MS + 60, lines["log"]["last_time_ms"])
        table = self.of_kind("segment", "stat", self.data)
        self.assertEqual(60, sum(each["entries"] for each in table))
        self.assertEqual([True] * (len(table) - 1) + [False], [each["sealed"] for each in table])
        for each, path in zip(table, segments(self.data), strict=True):
            self.assertEqual(path.stat().st_size, each["allocated"])
            self.assertEqual(max(r.position + r.size for r in records(path)), each["used"])
        self.assertEqual(4 << 20, lines["reserve"]["bytes"])

    def test_a_hard_state_of_a_header_is_found_there(self) -> None:
        """J-02: the newest segment may have no record with one."""
        make_log(self.data, 60)
        count = len(segments(self.data))
        log = open_log(self.data)
        while len(segments(self.data)) == count:
            last = records(segments(self.data)[-1])[-1].last
            result(log.write(LogWrite(entries=(put(last + 1),))))
        result(log.close())
        state = self.of_kind("hard_state", "stat", self.data)[0]
        self.assertEqual(("header", 120), (state["from"], state["offset"]))
        self.assertEqual(f"wal/{segments(self.data)[-1].name}", state["file"])

    def test_it_reads_sealed_segments_only_if_asked_to(self) -> None:
        make_log(self.data, 60)
        path = segments(self.data)[0]
        flip(path, records(path)[4].position + 80)
        self.verdict("stat")
        self.assertEqual(f"wal/{path.name}", self.verdict("stat", "--full", exit_code=2)["file"])

    def test_totals_count_what_is_in_the_log(self) -> None:
        log = open_log(self.data)
        write(log, config(1), put(2), put(3), commit=1)
        write(log, put(3, 2), after=2, commit=2)
        result(log.close())
        [totals] = self.of_kind("totals", "stat", self.data, "--full")
        self.assertEqual((1, 2, 0, 0), tuple(totals[kind] for kind in ("config", "command", "noop", "session")))
        self.assertEqual(sum(len(each.payload) for each in (config(1), put(2), put(3, 2))), totals["payload_bytes"])
        self.assertEqual(2, totals["in_sessions"])
        self.assertEqual((1, 0), (totals["truncations"], totals["resets"]))

    def test_digests_of_the_same_entries_are_equal(self) -> None:
        """However they were written, and whatever follows."""
        make_log(self.data, 60)
        other = self.root / "node-2"
        log = open_log(other, 2)
        write(log, *(config(1), noop(2)), *(put(index) for index in range(3, 40)))
        result(log.close())

        def digest(directory: Path, *arguments: object) -> str:
            [totals] = self.of_kind("totals", "stat", directory, "--full", *arguments)
            self.assertEqual(1, totals["first"])
            return str(totals["sha256"])

        self.assertEqual(digest(self.data, "--to", 39), digest(other))
        self.assertNotEqual(digest(self.data, "--to", 38), digest(other))
        self.run_log("stat", other, "--full", "--to", 41, exit_code=3)
        self.run_log("stat", other, "--to", 4, exit_code=64)

    def test_snapshots_say_whether_they_were_verified(self) -> None:
        make_log(self.data, 60)
        save_snapshot(self.data, 40)
        [found] = self.of_kind("snapshot", "stat", self.data)
        self.assertEqual((40, 1, "unverified"), (found["index"], found["term"], found["digest"]))
        self.assertEqual(sorted(MEMBERSHIP.voters), found["membership"]["voters"])
        flip(self.data / "snap" / "40-1" / "0", 100)
        self.assertEqual("unverified", self.of_kind("snapshot", "stat", self.data)[0]["digest"])
        self.assertEqual("bad", self.of_kind("snapshot", "stat", self.data, "--full", exit_code=2)[0]["digest"])

    def test_a_damaged_log_still_shows_what_its_files_say(self) -> None:
        make_log(self.data, 60)
        path = segments(self.data)[-1]
        flip(path, records(path)[2].position + 80)
        found = self.of_kind("segment_file", "stat", self.data, exit_code=2)
        self.assertEqual([f"wal/{each.name}" for each in segments(self.data)], [each["file"] for each in found])
        self.assertEqual(1, self.of_kind("identity", "stat", self.data, exit_code=2)[0]["node_id"])

    def test_a_log_that_was_just_begun(self) -> None:
        result(open_log(self.data).close())
        self.verdict("stat", "--full")
        self.verdict("verify")
        [found] = self.of_kind("log", "stat", self.data)
        self.assertEqual((None, 0), (found["first"], found["entries"]))

    def test_text_is_for_people(self) -> None:
        make_log(self.data, 60)
        save_snapshot(self.data, 40)
        output = self.run_log("stat", self.data, "--full").output
        for expected in (
            "node 1",
            "term 1, vote 1, commit 59",
            "60 entries, 1 to 60",
            "1=host-1:7001",
            "verdict  clean",
        ):
            self.assertIn(expected, output)
        self.assertIn("verdict  clean", self.run_log("verify", self.data).output)


class ReadOnlyTests(CliTestCase):
    def test_the_file_system_of_the_tools_cannot_write(self) -> None:
        make_log(self.data, 5)
        before = fingerprint(self.root)
        files = ReadOnlyFileSystem(RealFileSystem())
        path = str(self.data / "identity")
        attempts: list[Callable[[], object]] = [
            lambda: files.mkdir(f"{path}.d"),
            lambda: files.create(f"{path}.new"),
            lambda: files.open(path),
            lambda: files.rename(path, f"{path}.old"),
            lambda: files.remove(path),
            lambda: files.sync_dir(str(self.data)),
            lambda: files.lock(str(self.data / "LOCK")),
        ]
        for attempt in attempts:
            self.assertRaises(StorageFailed, attempt)
        self.assertEqual(before, fingerprint(self.root))

    def test_errors_of_storage_have_their_verdict(self) -> None:
        directory = DataDirectory(str(self.root))
        for error, code in (
            (StorageCorrupt("p", 5, "why", 1, 2), ExitCode.ROT),
            (WrongIdentity("p", "node", "1", "2"), ExitCode.ROT),
            (WrongIdentity("p", "format version", "1", "2"), ExitCode.CANNOT_OPEN),
            (StorageFailed("read", "p", "denied"), ExitCode.CANNOT_OPEN),
        ):
            self.assertEqual(code, refusal(directory, error).exit_code)
