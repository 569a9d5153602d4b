"""Our own backends under the public contract suites."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from zlayer_consensus.storage import (
    FileLogStore,
    FileStateMachine,
    FunctionStateMachine,
    ILogStore,
    InlineExecutor,
    IStateMachine,
    IStateMachineStore,
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
