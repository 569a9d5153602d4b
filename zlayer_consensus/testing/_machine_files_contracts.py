"""The contract of a state machine that has files of its own, as tests that any such application can run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from ..errors import DomainError
from ..storage import (
    ApplyContext,
    IFileSystem,
    IReplaceableFiles,
    IStateMachine,
    IStateMachineFiles,
    IStateSink,
    StateFile,
)
from ._machine_contracts import StateMachineContract

__all__ = ["StateMachineFilesContract"]

_MANY = 100
"""More questions than a machine that is ready at some time is asked."""


class StateMachineFilesContract(StateMachineContract):
    """What every :class:`~zlayer_consensus.storage.IStateMachineFiles` has to do; what every machine has to, included.

    ``make_machine`` returns a machine that is open. All machines of a test are in one file system, each with a
    directory of its own, and their calls complete at once: give them an
    :class:`~zlayer_consensus.storage.InlineExecutor`.
    ``state_of`` must be overridden, unless machines in one state give equal bytes and equal files.

    The commands should be enough for a machine to fill several files.
    """

    def file_system(self) -> IFileSystem:
        """Return where the machines' files are."""
        raise NotImplementedError

    def snapshot_directory(self) -> str:
        """Return a directory in the same file system for the names that snapshots have for files."""
        raise NotImplementedError

    def setUp(self) -> None:
        """Note what there is."""
        super().setUp()
        self._linked = 0

    # Helpers

    def result_of(self, waiting: Deferred[Any]) -> Any:
        """Return what a Deferred has fired with."""
        results: list[Any] = []
        _ = waiting.addBoth(results.append)
        self.assertEqual(len(results), 1, "the machine's calls must complete at once here")
        return results[0]

    def ready(self, machine: Any, command: Any) -> None:
        """Ask a machine whether it can apply a command, until it says so."""
        for _ in range(_MANY):
            waiting = machine.prepare(command)
            if waiting is None:
                return
            self.assertIsNone(self.result_of(waiting))
        self.fail("the machine is never ready")

    def run_commands(self, machine: IStateMachine, commands: Iterable[Any], first: int = 1) -> list[Any]:
        """Apply commands as a node does: the machine is asked whether it is ready before each."""
        results: list[Any] = []
        for index, command in enumerate(commands, first):
            self.ready(machine, command)
            try:
                results.append(machine.apply(command, ApplyContext(index, 1_000_000 + index)))
            except DomainError as error:
                results.append((type(error), error.reason, error.message, error.details))
        return results

    def begin_snapshot(self, machine: Any) -> tuple[Iterator[bytes], Sequence[StateFile]]:
        """Begin a snapshot, and give its files names, as a store does."""
        pieces = machine.snapshot()
        return pieces, self.link(self.result_of(machine.sealed()))

    def link(self, files: Sequence[StateFile]) -> list[StateFile]:
        """Give files further names."""
        linked = []
        for file in files:
            self._linked += 1
            path = f"{self.snapshot_directory()}/{self._linked}"
            self.file_system().link(file.path, path)
            linked.append(StateFile(path, file.size, file.digest))
        return linked

    def begin_restore(self, machine: Any, files: Sequence[StateFile]) -> IStateSink:
        """Begin to restore a snapshot."""
        sink: IStateSink = self.result_of(machine.restore_files(files)) if files else machine.restore()
        return sink

    def begin_replacement(self, machine: Any, files: Sequence[StateFile]) -> IStateSink:
        """Begin to replace a state."""
        self.assertTrue(IReplaceableFiles.providedBy(machine), "a machine with files has replace_files beside replace")
        sink: IStateSink = self.result_of(machine.replace_files(files)) if files else machine.replace()
        return sink

    def content(self, file: StateFile) -> bytes:
        """Return what is in a file, and see that it is what was said."""
        data = self.file_system().read(file.path, 0, self.file_system().size(file.path))
        self.assertEqual((len(data), sha256(data).digest()), (file.size, file.digest))
        return data

    # Tests

    def test_provides_the_interface_for_files(self) -> None:
        """The machine has the methods of the interface, with their arguments."""
        self.assertTrue(verifyObject(IStateMachineFiles, self.make_machine()))

    def test_files_are_used(self) -> None:
        """The commands make files: else nothing of this says anything."""
        machine = self.make_machine()
        self.run_commands(machine, self.commands())
        self.assertNotEqual(self.begin_snapshot(machine)[1], [])

    def test_apply_does_not_need_preparation(self) -> None:
        """Preparation changes no result, and nothing that anybody can see; nor is it needed."""
        prepared, other = self.make_machine(), self.make_machine()
        for index, command in enumerate(self.commands(), 1):
            before = self.state_of(prepared)
            self.ready(prepared, command)
            self.assertEqual(self.state_of(prepared), before)
            expected = StateMachineContract.run_commands(self, other, [command], index)
            self.assertEqual(StateMachineContract.run_commands(self, prepared, [command], index), expected)
        self.assertEqual(self.state_of(prepared), self.state_of(other))

    def test_sealed_files_never_change(self) -> None:
        """What a snapshot names is as it said, from the moment that it is sealed on, whatever comes after."""
        machine = self.make_machine()
        named: list[tuple[StateFile, bytes]] = []
        for index, command in enumerate(self.commands(), 1):
            self.run_commands(machine, [command], index)
            pieces, files = self.begin_snapshot(machine)
            named += [(file, self.content(file)) for file in files]
            pieces.close()  # type: ignore[attr-defined]
        for file, data in named:
            self.assertEqual(self.content(file), data)

    def test_files_stay_until_the_snapshot_is_closed(self) -> None:
        """They stay under their paths while the machine goes on, and also when the pieces are at their end."""
        before, after = self.halves()
        machine: Any = self.make_machine()
        self.run_commands(machine, before)
        pieces = machine.snapshot()
        files = self.result_of(machine.sealed())
        self.run_commands(machine, after, len(before) + 1)
        list(pieces)
        self.run_commands(machine, self.commands(), len(before) + len(after) + 1)
        for file in files:
            self.content(file)
        pieces.close()
        pieces.close()

    def test_restored_machine_has_names_of_its_own(self) -> None:
        """The snapshot may go when it is restored, and the machine that made it goes its own way."""
        before, after = self.halves()
        machine: Any = self.make_machine()
        self.run_commands(machine, before)
        expected = self.state_of(machine)
        pieces, files = self.begin_snapshot(machine)
        restored: Any = self.make_machine()
        self.restore_into(restored, list(pieces), files)
        pieces.close()  # type: ignore[attr-defined]
        for file in files:
            self.file_system().remove(file.path)
        self.run_commands(machine, after, len(before) + 1)
        self.assertEqual(self.state_of(restored), expected)
        self.run_commands(restored, after, len(before) + 1)
        self.assertEqual(self.state_of(restored), self.state_of(machine))

    def test_snapshot_of_a_restored_machine(self) -> None:
        """It names what it was restored from and what came after, and is whole."""
        before, after = self.halves()
        machine = self.make_machine()
        self.run_commands(machine, before)
        pieces, files = self.begin_snapshot(machine)
        restored, again = self.make_machine(), self.make_machine()
        self.restore_into(restored, list(pieces), files)
        self.run_commands(restored, after, len(before) + 1)
        pieces, files = self.begin_snapshot(restored)
        self.restore_into(again, list(pieces), files)
        self.assertEqual(self.state_of(again), self.state_of(restored))

    def test_other_files_are_refused(self) -> None:
        """A stream comes with the files that it was made with, no more and no fewer; else the old state stands."""
        before, _ = self.halves()
        machine, other = self.make_machine(), self.make_machine()
        self.run_commands(machine, self.commands())
        pieces, files = self.begin_snapshot(machine)
        chunks = list(pieces)
        self.run_commands(other, before)
        expected = self.state_of(other)
        for wrong in (files[:-1], [*files, files[0]]):
            try:
                self.restore_into(other, chunks, wrong)
            except Exception:
                self.assertEqual(self.state_of(other), expected)
            else:
                self.fail("a snapshot was restored with other files than its own")

    def test_close_is_idempotent(self) -> None:
        """A machine can be closed twice, and in the middle of a snapshot."""
        machine: Any = self.make_machine()
        self.run_commands(machine, self.commands())
        pieces, _ = self.begin_snapshot(machine)
        next(pieces, None)
        self.result_of(machine.close())
        self.result_of(machine.close())
        pieces.close()  # type: ignore[attr-defined]
