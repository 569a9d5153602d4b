"""Our own backends under the public contract suites."""

from __future__ import annotations

import dataclasses
import re
import unittest
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from zlayer_consensus.errors import ConversionError
from zlayer_consensus.raft import NO_LOG, Entry, LogWrite, SnapshotPoint, Start
from zlayer_consensus.storage import (
    ApplyContext,
    FileLogStore,
    FileStateMachine,
    FunctionStateMachine,
    ILogStore,
    InlineExecutor,
    ISnapshotReceiver,
    IStateDigest,
    IStateMachine,
    IStateMachineStore,
    IStateSink,
    Manifest,
    MemLogStore,
    MemStateMachine,
)
from zlayer_consensus.testing import (
    LogStoreContract,
    SimulatedFileSystem,
    StateMachineContract,
    StateMachineStoreContract,
)


def count(state: dict[str, int], command: str) -> int:
    state[command] = state.get(command, 0) + 1
    return state[command]


class MemLogStoreContract(LogStoreContract, SynchronousTestCase):
    def make_store(self) -> ILogStore:
        return MemLogStore(self.node_id)

    def reopen(self, store: ILogStore) -> ILogStore:
        assert isinstance(store, MemLogStore)
        return store.reopened()

    crash = reopen


class SimulatedFileLogStoreContract(LogStoreContract, SynchronousTestCase):
    """With a disk that forgets, at every reopening, whatever was not synced."""

    def setUp(self) -> None:
        self.systems: dict[Any, SimulatedFileSystem] = {}

    def on(self, files: SimulatedFileSystem) -> ILogStore:
        store = FileLogStore(
            "/data", self.node_id, executor=InlineExecutor(), file_system=files, segment_bytes=16 << 10
        )
        self.systems[store] = files
        return store

    def make_store(self) -> ILogStore:
        return self.on(SimulatedFileSystem())

    def reopen(self, store: ILogStore) -> ILogStore:
        return self.on(self.systems[store].crash())

    crash = reopen


class FileLogStoreContract(LogStoreContract, TestCase):
    """With the real file system and a thread."""

    def setUp(self) -> None:
        self.paths: dict[Any, str] = {}

    def at(self, path: str) -> ILogStore:
        store = FileLogStore(path, self.node_id, reactor=reactor, segment_bytes=64 << 10)
        self.paths[store] = path
        return store

    def make_store(self) -> ILogStore:
        return self.at(self.mktemp())

    def reopen(self, store: ILogStore) -> ILogStore:
        return self.at(self.paths[store])


class MemStateMachineContract(StateMachineStoreContract, SynchronousTestCase):
    def make_store(self) -> IStateMachineStore:
        return MemStateMachine({}, count)

    def reopen(self, store: IStateMachineStore) -> IStateMachineStore:
        assert isinstance(store, MemStateMachine)
        return store.reopened()


class SimulatedFileStateMachineContract(StateMachineStoreContract, SynchronousTestCase):
    """With a disk that forgets, at every reopening, whatever was not synced."""

    def setUp(self) -> None:
        self.systems: dict[Any, SimulatedFileSystem] = {}

    def on(self, files: SimulatedFileSystem) -> IStateMachineStore:
        store = FileStateMachine("/data", {}, count, executor=InlineExecutor(), file_system=files)
        self.systems[store] = files
        return store

    def make_store(self) -> IStateMachineStore:
        return self.on(SimulatedFileSystem())

    def reopen(self, store: IStateMachineStore) -> IStateMachineStore:
        return self.on(self.systems[store].crash())


class FileStateMachineContract(StateMachineStoreContract, TestCase):
    """With the real file system and a thread."""

    def setUp(self) -> None:
        self.paths: dict[Any, str] = {}

    def at(self, path: str) -> IStateMachineStore:
        store = FileStateMachine(path, {}, count, reactor=reactor)
        self.paths[store] = path
        return store

    def make_store(self) -> IStateMachineStore:
        return self.at(self.mktemp())

    def reopen(self, store: IStateMachineStore) -> IStateMachineStore:
        return self.at(self.paths[store])


class FunctionStateMachineContract(StateMachineContract, SynchronousTestCase):
    def make_machine(self) -> IStateMachine:
        return FunctionStateMachine({"log": [], "seen": set(), 5: (1, 2)}, remember)

    def commands(self) -> list[Any]:
        return ["b", "a", {"x": [1, b"\x00"]}, 5, "c", None]


def remember(state: dict[Any, Any], command: Any, context: Any) -> int:
    state["log"].append((context.index, context.time_ms, command))
    state["seen"].add(repr(command))
    state[repr(command)] = context.index
    return len(state)


def failing(contract: type, *bases: type, **members: Any) -> set[str]:
    """Run a suite against something broken, and return the names of the tests that did not pass."""
    case = type("Broken", (*bases, contract, SynchronousTestCase), members)
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    return {test.id().rpartition(".")[2] for test, _ in (*result.failures, *result.errors)}


class SuitesFindTests(SynchronousTestCase):
    """A suite that passes everything is worth nothing: each of these stores and machines is broken in one way."""

    def log_store(self, broken: type[MemLogStore]) -> set[str]:
        return failing(
            LogStoreContract,
            make_store=lambda case: broken(case.node_id),
            reopen=lambda case, store: store.reopened(),
            crash=lambda case, store: store.reopened(),
        )

    def test_log_that_forgets_at_a_restart(self) -> None:
        class Broken(MemLogStore):
            def reopened(self) -> MemLogStore:
                return MemLogStore(self.identity.node_id)

        self.assertTrue(
            {"test_identity_stays", "test_vote", "test_acknowledged_writes_survive_a_crash"} <= self.log_store(Broken)
        )

    def test_log_that_does_not_truncate(self) -> None:
        class Broken(MemLogStore):
            def write(self, write: LogWrite) -> Deferred[None]:
                return super().write(dataclasses.replace(write, truncate_after=None))

        self.assertIn("test_truncate_without_appending", self.log_store(Broken))

    def test_log_that_gives_an_empty_answer(self) -> None:
        class Broken(MemLogStore):
            def read(self, first: int, last: int, max_bytes: int) -> Deferred[list[Entry]]:
                return succeed([]) if max_bytes == 1 else super().read(first, last, max_bytes)

        self.assertIn("test_read_is_bounded_in_bytes", self.log_store(Broken))

    def test_log_that_forgets_its_end_when_purged(self) -> None:
        """What the original did: an empty log reported no last position."""

        class Broken(MemLogStore):
            def open(self) -> Deferred[Start]:
                return super().open().addCallback(self.forget)

            def forget(self, start: Start) -> Start:
                return dataclasses.replace(start, last=NO_LOG) if not start.terms else start

            def reopened(self) -> MemLogStore:
                other = super().reopened()
                other.__class__ = Broken
                return other

        self.assertIn("test_last_of_a_purged_log", self.log_store(Broken))

    def state_machine_store(self, broken: type[MemStateMachine]) -> set[str]:
        def reopen(case: Any, store: MemStateMachine) -> MemStateMachine:
            other = store.reopened()
            other.__class__ = broken
            return other

        return failing(StateMachineStoreContract, make_store=lambda case: broken({}, count), reopen=reopen)

    def test_store_that_goes_back(self) -> None:
        class Broken(MemStateMachine):
            def _check_newer(self, point: SnapshotPoint) -> None:
                pass

        self.assertIn("test_older_is_refused", self.state_machine_store(Broken))

    def test_store_that_keeps_no_built_snapshot(self) -> None:
        """What the original did: only an installed snapshot was ever found again."""

        class Broken(MemStateMachine):
            def newest(self) -> Manifest | None:
                manifest = super().newest()
                return manifest if manifest is not None and manifest.installed else None

        self.assertIn("test_publish", self.state_machine_store(Broken))

    def test_store_that_does_not_resume(self) -> None:
        class Broken(MemStateMachine):
            def receiver(self, manifest: Manifest) -> ISnapshotReceiver:
                self._receiver = None
                return super().receiver(manifest)

        self.assertIn("test_receiver_resumes", self.state_machine_store(Broken))

    def machine(self, broken: type[FunctionStateMachine]) -> set[str]:
        return failing(
            FunctionStateMachineContract, make_machine=lambda case: broken({"log": [], "seen": set()}, remember)
        )

    def test_machine_whose_snapshot_is_taken_late(self) -> None:
        class Broken(FunctionStateMachine):
            def snapshot(self) -> Iterator[bytes]:
                yield from super().snapshot()

        self.assertEqual(self.machine(Broken), {"test_snapshot_is_of_its_moment"})

    def test_machine_that_restores_early(self) -> None:
        class Broken(FunctionStateMachine):
            def restore(self) -> IStateSink:
                self.state = {"log": [], "seen": set()}
                return super().restore()

        self.assertEqual(
            self.machine(Broken), {"test_unfinished_restore_changes_nothing", "test_failed_restore_changes_nothing"}
        )

    def test_machine_that_takes_damage_for_an_empty_state(self) -> None:
        """What the original did."""

        class Broken(FunctionStateMachine):
            def _replace(self, data: bytes) -> None:
                try:
                    super()._replace(data)
                except ConversionError:
                    self.state = {"log": [], "seen": set()}

        self.assertEqual(self.machine(Broken), {"test_failed_restore_changes_nothing"})

    def test_machine_with_randomness(self) -> None:
        class Broken(FunctionStateMachine):
            def apply(self, command: Any, context: ApplyContext) -> Any:
                return super().apply(command, context), id(self)

        self.assertIn("test_replay_is_deterministic", self.machine(Broken))

    def test_machine_whose_digest_is_not_of_the_state(self) -> None:
        """Of what was applied since the start, of the same state in two ways, or of nothing at all."""

        @implementer(IStateDigest)
        class Broken(FunctionStateMachine):
            digest_kind = "broken"
            count = 0

            def apply(self, command: Any, context: ApplyContext) -> Any:
                self.count += 1
                return super().apply(command, context)

            def state_digest(self) -> bytes:
                return b"%d" % self.count

        self.assertEqual(self.machine(Broken), {"test_digest_is_of_the_state"})
        for wrong in (lambda self: b"%d" % id(self), lambda self: b"always", lambda self: b"x" * 65):
            self.patch(Broken, "state_digest", wrong)
            self.assertEqual(self.machine(Broken), {"test_digest_is_of_the_state"})
        self.patch(Broken, "state_digest", lambda self: sha256(repr(self.state["log"]).encode()).digest())
        self.assertEqual(self.machine(Broken), set())

    def test_store_that_does_not_complete_at_once(self) -> None:
        """In a case without a reactor the suite says what to do, and does not pass."""

        class Broken(MemLogStore):
            def open(self) -> Deferred[Start]:
                return Deferred()

        self.assertIn("test_new_store_is_empty", self.log_store(Broken))


class DocumentationTests(SynchronousTestCase):
    def test_mapping_names_tests_that_exist(self) -> None:
        """Where a reader is sent from openraft's suite, there is something."""
        text = (Path(__file__).parent.parent / "docs" / "store-contracts.rst").read_text(encoding="utf-8")
        named = set(re.findall(r"``(?:[A-Za-z]+\.)?(test_[a-z_]+)``", text))
        there = {*dir(LogStoreContract), *dir(StateMachineStoreContract), *dir(StateMachineContract)}
        self.assertGreater(len(named), 20)
        self.assertEqual(named - there, set())
