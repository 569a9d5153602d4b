"""The key-value store with values on disk: as the one in memory in all that can be seen, and larger than memory."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests import test_kv_machine as memory
from tests.kv_files_kit import (
    SNAPSHOTS,
    Commands,
    ManualExecutor,
    apply,
    link,
    make_machine,
    opened,
    restore,
)
from tests.test_store_contracts import failing
from zlayer_consensus.kv import (
    TO_THE_END,
    Command,
    Delete,
    FileKeyValueMachine,
    KeyValueMachine,
    Put,
    encode,
)
from zlayer_consensus.storage import ApplyContext, IFileSystem, IStateMachine, IStateSink, StateFile
from zlayer_consensus.testing import SimulatedFileSystem, StateMachineFilesContract
from zlayer_consensus.testing.crashes import outcome


class Blocking(FileKeyValueMachine):
    """Answers reads at once, as the machine in memory does: for tests that are about neither."""

    def get(self, key: bytes, revision: int = 0) -> Any:
        return outcome(super().get(key, revision))

    def range(self, *args: Any, **keywords: Any) -> Any:
        return outcome(super().range(*args, **keywords))


class _InFiles:
    """Makes the tests of the machine in memory those of the one with files."""

    files: SimulatedFileSystem
    machine: Any

    def make(self) -> Any:
        if not hasattr(self, "files"):
            self.files = SimulatedFileSystem()
            self.made = 0
        self.made += 1
        settings: Any = {"directory": f"/values{self.made}", "file_bytes": 5000}
        plain = make_machine(self.files, **settings)
        plain.__class__ = Blocking
        outcome(plain.open())
        return plain

    def begin_snapshot(self) -> tuple[Iterator[bytes], Any]:
        pieces = self.machine.snapshot()
        return pieces, outcome(self.machine.sealed())

    def restored(self, pieces: list[bytes], files: Any) -> Any:
        machine = self.make()
        restore(machine, pieces, files)
        return machine


class CommandTests(_InFiles, memory.CommandTests):
    pass


class TxnTests(_InFiles, memory.TxnTests):
    pass


class RefusedCommandTests(_InFiles, memory.RefusedCommandTests):
    pass


class RestoreTests(_InFiles, memory.RestoreTests):
    pass


class ContractTests(StateMachineFilesContract, SynchronousTestCase):
    """The public contract of every state machine with files."""

    file_bytes = 2000

    def setUp(self) -> None:
        super().setUp()
        self.files = SimulatedFileSystem()
        self.files.mkdir(SNAPSHOTS)
        self.made = 0

    def file_system(self) -> IFileSystem:
        return self.files

    def snapshot_directory(self) -> str:
        return SNAPSHOTS

    def make_machine(self) -> IStateMachine:
        self.made += 1
        directory = f"/values{self.made}"
        settings = {"file_bytes": self.file_bytes, "history_changes": 20, "history_bytes": 4000}
        machine: IStateMachine = opened(self.files, directory=directory, **settings)
        return machine

    def state_of(self, machine: Any) -> Any:
        found = [machine.index, machine.revision, machine.compacted_revision, machine.state_digest()]
        for revision in range(machine.compacted_revision, machine.revision + 1):
            found.append(outcome(machine.range(revision=revision)))
        return found

    def commands(self) -> list[Any]:
        draw = Commands("contract")
        # In the end nothing of all that is needed any more, not even for the past.
        last: list[Command] = [Delete(b"", TO_THE_END), *(Put(b"last", bytes([n]) * 300) for n in range(15))]
        return [*(draw.next() for _ in range(60)), *map(encode, last)]


class ContractTestsWithOneFile(ContractTests):
    file_bytes = 1 << 20


class BrokenMachineTests(SynchronousTestCase):
    """The suite finds what is wrong with a machine, and nothing else."""

    def found(self, broken: type[FileKeyValueMachine]) -> set[str]:
        def make(case: ContractTests) -> Any:
            machine: Any = ContractTests.make_machine(case)
            machine.__class__ = broken
            return machine

        return failing(ContractTests, make_machine=make)

    def test_sound_machine(self) -> None:
        self.assertEqual(self.found(FileKeyValueMachine), set())

    def test_machine_that_lets_files_go_too_early(self) -> None:
        class Broken(FileKeyValueMachine):
            def sealed(self) -> Deferred[Any]:
                named: Any = self._named
                sealed = super().sealed()
                named.release()
                return sealed

        self.assertIn("test_files_stay_until_the_snapshot_is_closed", self.found(Broken))

    def test_machine_that_goes_on_writing_to_a_sealed_file(self) -> None:
        class Broken(FileKeyValueMachine):
            def apply(self, command: bytes, context: ApplyContext) -> list[Any]:
                files: Any = self._storage._files
                for file in list(self._log.files.values()):
                    if file.sealed is not None:
                        files.open(file.path).write(file.size - 1, b"?")
                return super().apply(command, context)

        self.assertIn("test_sealed_files_never_change", self.found(Broken))

    def test_machine_that_uses_the_names_of_the_snapshot(self) -> None:
        class Broken(FileKeyValueMachine):
            def restore_files(self, files: Sequence[StateFile]) -> Deferred[IStateSink]:
                log = self._new_log()
                adopted, _ = log.adopt(files)
                for mine, theirs in zip(adopted, files, strict=True):
                    mine.path = theirs.path
                return succeed(self._sink(log, adopted))

        self.assertIn("test_restored_machine_has_names_of_its_own", self.found(Broken))

    def test_machine_that_shows_what_it_prepares(self) -> None:
        class Broken(FileKeyValueMachine):
            def prepare(self, command: bytes) -> Deferred[None] | None:
                self._index += 1
                return super().prepare(command)

        self.assertIn("test_apply_does_not_need_preparation", self.found(Broken))

    def test_machine_that_does_not_count_the_files(self) -> None:
        class Broken(FileKeyValueMachine):
            def restore_files(self, files: Sequence[StateFile]) -> Deferred[IStateSink]:
                log = self._new_log()
                adopted, _ = log.adopt(files)
                sink: Any = self._sink(log, adopted)
                self_files: list[Any] = sink._reading._files
                sink._reading.begin = lambda header: self_files.__delitem__(slice(header["files"], None))
                return succeed(sink)

        self.assertEqual(self.found(Broken), {"test_other_files_are_refused"})


class EqualityTests(SynchronousTestCase):
    """Whatever the disk does meanwhile, it is the machine in memory, to the last byte of every result."""

    def run_seed(self, seed: int, count: int) -> int:
        run = _Run(self, seed)
        for _ in range(count):
            run.command()
            run.read()
            run.perhaps_snapshot()
            run.let_time_pass()
        run.end()
        return run.waited

    def test_random_commands(self) -> None:
        self.assertGreater(sum(self.run_seed(seed, 150) for seed in range(40)), 100, "nothing was ever waited for")

    def test_many_commands(self) -> None:
        self.run_seed(4711, 2500)


class _Run:
    """Gives one sequence of commands to both machines, and compares all that can be seen."""

    def __init__(self, case: SynchronousTestCase, seed: int) -> None:
        self.case = case
        self.seed = seed
        self.draw = draw = random.Random(seed)
        self.files = SimulatedFileSystem()
        self.clock = Clock()
        self.executors = (ManualExecutor(), ManualExecutor())
        self.history: dict[str, Any] = {
            "history_changes": draw.choice((5, 20, 200)),
            "history_bytes": draw.choice((1000, 4000)),
        }
        self.settings: dict[str, Any] = {
            "file_bytes": draw.choice((1, 300, 2000, 9000)),
            "buffer_bytes": draw.choice((1, 3000, 100_000)),
            "compaction_bytes": draw.choice((1000, 100_000)),
        }
        self.memory = KeyValueMachine(**self.history)
        self.made = 0
        self.machines: list[FileKeyValueMachine] = []
        self.machine = self.new_machine()
        self.commands = Commands(seed)
        self.index = 0
        self.waited = 0

    def new_machine(self) -> FileKeyValueMachine:
        self.made += 1
        machine = make_machine(
            self.files,
            self.clock,
            self.executors[0],
            self.executors[1],
            directory=f"/values{self.made}",
            **self.history,
            **self.settings,
        )
        self.machines.append(machine)
        self.wait(machine.open())
        return machine

    def wait(self, waiting: Deferred[Any]) -> Any:
        """Let the disk work until a Deferred fires."""
        fired: list[Any] = []
        _ = waiting.addBoth(fired.append)
        while not fired:
            self.case.assertFalse(all(each.idle for each in self.executors), f"seed {self.seed}: it waits for nothing")
            self.draw.choice(self.executors).step(self.draw)
        return outcome(succeed(fired[0]))

    def command(self) -> None:
        self.index += 1
        command = self.commands.next()
        while (waiting := self.machine.prepare(command)) is not None:
            self.waited += 1
            self.case.assertIsNone(self.wait(waiting))
        self.files.operations.clear()
        found, expected = apply(self.machine, command, self.index), apply(self.memory, command, self.index)
        self.equal(found, expected)
        self.equal(self.files.operations, [])  # nothing was waited for
        self.compare_state()

    def equal(self, found: Any, expected: Any) -> None:
        self.case.assertEqual(found, expected, f"seed {self.seed}, command {self.index}")

    def compare_state(self) -> None:
        for each in ("index", "revision", "compacted_revision"):
            self.equal(getattr(self.machine, each), getattr(self.memory, each))
        self.equal(self.machine.state_digest(), self.memory.state_digest())
        histories = [machine._store.history for machine in (self.machine, self.memory)]
        self.equal(len(histories[0]), len(histories[1]))
        self.equal(histories[0]._bytes, histories[1]._bytes)

    def read(self) -> None:
        draw, machine = self.draw, self.memory
        revision = draw.choice((0, machine.revision, draw.randint(machine.compacted_revision, machine.revision)))
        key = self.commands.key()
        self.equal(self.wait(self.machine.get(key, revision)), self.memory.get(key, revision))
        if draw.random() < 0.2:
            found = self.wait(self.machine.range(b"key", limit=draw.choice((0, 3)), revision=revision))
            self.equal(found.kvs, self.memory.range(b"key", limit=len(found.kvs), revision=revision).kvs)

    def perhaps_snapshot(self) -> None:
        """Take a snapshot while commands go on, and go on with a machine that was restored from it."""
        draw = self.draw
        if draw.random() > 0.03:
            return
        digest, revision = self.machine.digest(), self.machine.revision
        expected = self.memory.range()
        pieces, sealed = self.machine.snapshot(), self.machine.sealed()
        chunks: list[bytes] = []
        for _ in range(draw.randrange(6)):
            self.command()
            self.let_time_pass()
            chunks += [chunk for chunk in (next(pieces, None),) if chunk is not None]
        files = link(self.files, self.wait(sealed), f"/snap{self.made}.{self.index}")
        chunks += pieces
        pieces.close()  # type: ignore[attr-defined]
        copy = self.new_machine()
        self.restore(copy, chunks, files)
        self.equal((copy.digest(), copy.revision), (digest, revision))
        self.equal(self.wait(copy.range()), expected)
        if draw.random() < 0.5 and chunks:
            # The one that is restored once more is the one that goes on.
            target = self.machine if draw.random() < 0.5 else copy
            chunks, files = self.snapshot()
            self.restore(target, chunks, files)
            self.machine = target
            self.compare_state()

    def snapshot(self) -> tuple[list[bytes], list[StateFile]]:
        pieces, sealed = self.machine.snapshot(), self.machine.sealed()
        files = link(self.files, self.wait(sealed), f"/snap{self.made}.{self.index}again")
        chunks = list(pieces)
        pieces.close()  # type: ignore[attr-defined]
        return chunks, files

    def restore(self, machine: FileKeyValueMachine, chunks: list[bytes], files: list[StateFile]) -> None:
        if self.draw.random() < 0.5:
            sink = self.wait(machine.replace_files(files)) if files else machine.replace()
        else:
            sink = self.wait(machine.restore_files(files)) if files else machine.restore()
        for chunk in chunks:
            sink.write(chunk)
        sink.finish()

    def let_time_pass(self) -> None:
        for _ in range(self.draw.randrange(6)):
            self.draw.choice(self.executors).step(self.draw)
        if self.draw.random() < 0.3:
            self.clock.advance(self.draw.choice((0.0, 0.1, 1.0)))

    def end(self) -> None:
        """When nothing happens any more, little is left that nobody needs, and nothing is held."""
        for _ in range(400):
            for each in self.executors:
                each.settle()
            self.clock.advance(1.0)
        machine = self.machine
        self.case.assertIsNone(machine._storage.failure)
        files = machine._log.files.values()
        self.equal(self.files.list(machine.directory), sorted(file.path.rpartition("/")[2] for file in files))
        self.equal([file for file in files if file.pins or not file.count], [])
        self.equal([file for file in files if file.sealed and 2 * file.live < file.size], [])
        self.equal(machine._storage.writes.bytes, 0)
        self.equal(machine._storage.writes.waiting, {})
        self.equal(self.wait(machine.range()), self.memory.range())
        for machine in self.machines:
            self.wait(machine.close())
        self.equal(self.clock.getDelayedCalls(), [])
