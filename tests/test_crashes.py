"""Our file backends under crashes at every operation, and the exploration itself, which has to find what is wrong."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from tests.crash_kit import make_log, make_machine_store
from tests.rewriting_log_store import RewritingLogStore
from zlayer_consensus.errors import StorageFailed
from zlayer_consensus.raft import LogId
from zlayer_consensus.storage import FileLogStore, FileStateMachine, IExecutor
from zlayer_consensus.storage._recovery import _Recovery
from zlayer_consensus.testing import SimulatedFileSystem
from zlayer_consensus.testing.crashes import (
    SCRIPTS,
    SNAPSHOT_STEPS,
    CrashSubject,
    CrashViolation,
    Depth,
    GatedExecutor,
    LogStoreCrashContract,
    LogSubject,
    NodeCrashContract,
    SnapshotContent,
    SnapshotStep,
    SnapshotSubject,
    StateMachineStoreCrashContract,
    explore_crashes,
    explore_failures,
    log_story,
    outcome,
    random_script,
    read_newest,
    receive,
    survivors,
)


class FileLogCrashTests(LogStoreCrashContract, SynchronousTestCase):
    """S-01, S-24, S-26, J-95, J-96, J-97, J-101, H-35: of the log store on files."""

    def make_log(self, files: SimulatedFileSystem, executor: IExecutor) -> FileLogStore:
        return make_log(files, executor)

    def test_long_scripts_without_a_crash(self) -> None:
        """J-02, J-63: term, vote, truncations and purges are as they were after every segment was replaced."""
        subject = LogSubject(self.make_log)
        for seed in range(20):
            files = SimulatedFileSystem()
            *_, expected = log_story(self.make_log, random_script(seed, 120).steps)(files)
            found = subject.recover(files)
            self.assertTrue(subject.admits(expected[0], found), f"seed {seed}: {found} instead of {expected[0]}")
            self.assertEqual(found.purged, expected[0].purged)


class TidySnapshotSubject(SnapshotSubject):
    """Sees that an opening leaves nothing unfinished but parts of a transfer, and that the transfer can go on."""

    sent: ClassVar = {
        step.content.point.last: step.content
        for steps in SNAPSHOT_STEPS.values()
        for step in steps
        if isinstance(step, SnapshotStep)
    }

    def recover(self, files: SimulatedFileSystem) -> SnapshotContent | None:
        found = super().recover(files)
        left = self.unfinished(files)
        if left:
            [name] = left
            self.go_on_with(files.crash("all"), name)
        return found

    def unfinished(self, files: SimulatedFileSystem) -> list[str]:
        return [name for name in files.list("/data/snap") if name.endswith(".tmp")]

    def go_on_with(self, files: SimulatedFileSystem, name: str) -> None:
        index, term = name.partition(".")[0].split("-")
        made = self.sent[LogId(int(term), int(index))]
        store = make_machine_store(files, GatedExecutor())
        outcome(store.open())
        parts = [each for each in files.list(f"/data/snap/{name}") if each != "announced"]
        receive(store, made)
        after = read_newest(store)
        outcome(store.close())
        if not parts or after != replace(made, installed=True) or self.unfinished(files):
            raise AssertionError(f"{parts} were received, and the transfer did not go on to its end: {after}")


class FileSnapshotCrashTests(StateMachineStoreCrashContract, SynchronousTestCase):
    """S-15, S-24, J-82, J-87, J-90, J-96, H-66: of the snapshots on files."""

    def make_machine_store(self, files: SimulatedFileSystem, executor: IExecutor) -> FileStateMachine:
        return make_machine_store(files, executor)

    def subject(self) -> CrashSubject:
        return TidySnapshotSubject(self.make_machine_store)


class FileNodeCrashTests(NodeCrashContract, SynchronousTestCase):
    """
    S-17, S-24, J-81, J-82, J-84, J-85, J-87, J-88, J-91, H-66: of log and snapshots together, as a node opens them. A
    leader's snapshot comes twice, right behind another, or contradicts the log; term and vote never fall.
    """

    def make_log(self, files: SimulatedFileSystem, executor: IExecutor) -> FileLogStore:
        return make_log(files, executor)

    def make_machine_store(self, files: SimulatedFileSystem, executor: IExecutor) -> FileStateMachine:
        return make_machine_store(files, executor)


class RewritingLogCrashTests(LogStoreCrashContract, SynchronousTestCase):
    """The contract asks for nothing that another store could not do in another way."""

    depth = Depth(exhaustive=2, samples=1, subsets=1, further=1)

    def make_log(self, files: SimulatedFileSystem, executor: IExecutor) -> RewritingLogStore:
        return RewritingLogStore(files, executor)


class ForgetfulFileSystem(SimulatedFileSystem):
    """Does not do one of the things that it is asked for, and says that it did."""

    forgets = ""

    def sync_dir(self, path: str) -> None:
        if self.forgets != f"sync_dir {path}":
            super().sync_dir(path)

    def crash(self, keep: Any = "none", process_only: bool = False) -> ForgetfulFileSystem:
        other = ForgetfulFileSystem(self.capacity)
        other.forgets = self.forgets
        plain = super().crash(keep, process_only)
        other._root, other.torn_files, other.changes = plain._root, plain.torn_files, plain.changes
        return other


class FindingTests(SynchronousTestCase):
    """What the exploration has to find: each with a step left out."""

    def explore_rewriting(self, without: str, script: str = "conflict") -> str:
        def make(files: SimulatedFileSystem, executor: IExecutor) -> RewritingLogStore:
            return RewritingLogStore(files, executor, without)

        story = log_story(make, SCRIPTS[script]().steps)
        error: CrashViolation = self.assertRaises(CrashViolation, explore_crashes, LogSubject(make), story)
        return str(error)

    def test_a_file_that_is_not_synced(self) -> None:
        self.assertIn("it does not open", self.explore_rewriting("sync"))

    def test_a_name_that_is_not_synced(self) -> None:
        self.assertIn("what is found is not what was left", self.explore_rewriting("sync_dir"))

    def test_a_file_that_is_overwritten_in_place(self) -> None:
        self.assertIn("it does not open", self.explore_rewriting("replace"))

    def test_truncated_entries_that_come_back(self) -> None:
        self.assertIn("what is found is not what was left", self.explore_rewriting("truncate"))

    def test_a_write_that_is_called_durable_too_early(self) -> None:
        self.assertIn("what is found is not what was left", self.explore_rewriting("wait", "groups"))

    def explore_log(self, script: str, forgets: str = "") -> str:
        files = ForgetfulFileSystem()
        log = make_log(files, GatedExecutor())
        self.successResultOf(log.open())
        self.successResultOf(log.close())
        files.forgets = forgets
        story = log_story(make_log, SCRIPTS[script]().steps)
        error: CrashViolation = self.assertRaises(
            CrashViolation, explore_crashes, LogSubject(make_log), story, files=files
        )
        return str(error)

    def test_names_of_segments_that_are_not_synced(self) -> None:
        """J-96."""
        self.assertIn("it does not open", self.explore_log("rotate", "sync_dir /data/wal"))

    def test_an_opening_that_reports_what_is_in_the_cache_alone(self) -> None:
        """Design, "Stores": a killed process leaves pages that are not on the disk."""
        with mock.patch.object(_Recovery, "_rewrite", lambda *_: None):
            self.assertIn("the process alone dies; then", self.explore_log("append"))

    def test_an_opening_that_cannot_be_cut_off(self) -> None:
        """S-24: zeros first, and the copy afterwards."""

        def set_aside(recovery: _Recovery, segment: Any, end: int) -> None:
            data = recovery._file_system.read(segment.path, segment.end, end - segment.end)
            recovery._write(segment.path, segment.end, b"\x01" * len(data))
            recovery._write(segment.path, segment.end, bytes(len(data)))

        with mock.patch.object(_Recovery, "_set_aside", set_aside):
            self.assertIn("then, in the opening, ", self.explore_log("large"))

    def test_a_failure_that_is_hidden(self) -> None:
        """S-12: the write is called durable though its sync has failed."""

        class Hiding(RewritingLogStore):
            def _save(self) -> None:
                with contextlib.suppress(StorageFailed):
                    super()._save()

        def make(files: SimulatedFileSystem, executor: IExecutor) -> Hiding:
            return Hiding(files, executor)

        story = log_story(make, SCRIPTS["append"]().steps)
        error = self.assertRaises(CrashViolation, explore_failures, LogSubject(make), story)
        self.assertIn("failed", str(error))


class ExplorationTests(SynchronousTestCase):
    def dirty(self) -> SimulatedFileSystem:
        """A disk with 20 sectors and two names that are not synced."""
        files = SimulatedFileSystem()
        file = files.create("/a")
        file.zero(0, 20 * 512)
        file.sync()
        files.sync_dir("/")
        file.write(0, b"\x01" * 20 * 512)
        files.create("/b").write(0, b"b")
        files.rename("/a", "/c")
        return files

    def test_every_subset_of_a_few(self) -> None:
        """J-97."""
        files = SimulatedFileSystem()
        file = files.create("/a")
        file.zero(0, 4 * 512)
        file.sync()
        files.sync_dir("/")
        file.write(0, b"\x01" * 4 * 512)
        kept = [kept for _, kept in survivors(files, Depth(exhaustive=4), random.Random(1))]
        self.assertEqual((16, 16), (len(kept), len(set(kept))))
        self.assertEqual(16, len({files.crash(each).read("/a", 0, 9999)[::512] for each in kept}))

    def test_every_class_of_many(self) -> None:
        """Sectors, sizes and names survive apart from each other, in order and out of it, one by one and by pages."""
        found = dict(survivors(self.dirty(), Depth(samples=2, subsets=3), random.Random(1)))
        names = " / ".join(found)
        for each in (
            "nothing survives",
            "everything survives",
            "names survive",
            "names and sizes survive",
            "contents survive",
            "oldest of 24 survive",
            "newest of 24 survive",
            "sector 1",
            "is lost",
            "alone survives",
            "page ",
        ):
            self.assertIn(each, names)
        self.assertEqual(len(set(found.values())), len(found))
        self.assertEqual({0, 24}, {len(found["nothing survives"]), len(found["everything survives"])})

    def test_every_moment_once(self) -> None:
        """A moment is before an operation that follows a change, or between two steps; nothing else differs."""
        opened: list[bytes] = []

        class Register(CrashSubject):
            def recover(self, files: SimulatedFileSystem) -> bytes:
                opened.append(b"")
                if not files.exists("/a"):
                    return b""
                opened[-1] = files.read("/a", 0, 9)
                file = files.open("/a")
                file.write(0, opened[-1])
                file.sync()
                files.sync_dir("/")
                return opened[-1]

            def go_on(self, files: SimulatedFileSystem) -> bytes:
                return self.recover(files)

        def story(files: SimulatedFileSystem) -> Iterator[Sequence[bytes]]:
            yield [b""]
            yield [b"", b"\0", b"x"]
            file = files.create("/a")
            file.write(0, b"x")
            file.sync()
            files.sync_dir("/")
            yield [b"x"]
            files.read("/a", 0, 1)
            files.list("/")

        seen = explore_crashes(Register(), story, depth=Depth(levels=0))
        # The empty disk; before write, sync and sync_dir; the end.
        self.assertEqual(5, seen.moments)
        self.assertEqual({b"", b"\0", b"x"}, set(opened))
        self.assertEqual(len(opened), seen.openings)
        self.assertEqual(2 * seen.states, seen.openings)

    def test_a_run_can_be_repeated(self) -> None:
        story = log_story(RewritingLogStore, SCRIPTS["append"]().steps)
        runs = [explore_crashes(LogSubject(RewritingLogStore), story, seed="x") for _ in range(2)]
        self.assertEqual(runs[0], runs[1])

    def test_calls_wait_while_the_gate_is_closed(self) -> None:
        executor = GatedExecutor()
        done: list[int] = []
        executor.close()
        waiting = executor.run(done.append, 1)
        self.assertEqual([], done)
        executor.open()
        executor.run(done.append, 2).addErrback(self.fail)  # type: ignore[unused-awaitable]
        self.successResultOf(waiting)
        self.failureResultOf(executor.run(int, "x"), ValueError)
        self.successResultOf(executor.stop())
        self.assertEqual([1, 2], done)
