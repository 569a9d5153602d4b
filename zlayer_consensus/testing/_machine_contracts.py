"""The contract of an application's state machine, as tests that any application can run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from twisted.trial.unittest import SkipTest
from zope.interface.verify import verifyObject

from ..errors import DomainError
from ..storage import ApplyContext, IReplaceableState, IStateDigest, IStateMachine, IStateSink, StateFile
from ._contracts import Base

__all__ = ["StateMachineContract"]

_PIECE = 1 << 20
"""The most that a state machine should yield at once."""


class StateMachineContract(Base):
    """What every :class:`~zlayer_consensus.storage.IStateMachine` has to do.

    Mix it into a test case class and say what to test::

        class MyMachineTests(StateMachineContract, twisted.trial.unittest.SynchronousTestCase):
            def make_machine(self):
                return MyMachine()

            def commands(self):
                return [Put("a", 1), Put("b", 2), Delete("a")]
    """

    def make_machine(self) -> IStateMachine:
        """Return a machine in the state in which every replica begins."""
        raise NotImplementedError

    def commands(self) -> list[Any]:
        """Return commands, at least four, that bring the machine through states that all differ."""
        raise NotImplementedError

    def state_of(self, machine: IStateMachine) -> Any:
        """Return what two machines in the same state have in common; by default the bytes of a snapshot."""
        return b"".join(machine.snapshot())

    # Helpers

    def run_commands(self, machine: IStateMachine, commands: Iterable[Any], first: int = 1) -> list[Any]:
        """Apply commands as a node does, from this log index on, and return the results."""
        results: list[Any] = []
        for index, command in enumerate(commands, first):
            try:
                results.append(machine.apply(command, ApplyContext(index, 1_000_000 + index)))
            except DomainError as error:
                results.append((type(error), error.reason, error.message, error.details))
        return results

    def begin_snapshot(self, machine: IStateMachine) -> tuple[Iterator[bytes], Sequence[StateFile]]:
        """Begin a snapshot as a node does; return its pieces, and the files that it names, if there are any."""
        return machine.snapshot(), ()

    def begin_restore(self, machine: IStateMachine, files: Sequence[StateFile]) -> IStateSink:
        """Begin to restore a snapshot as a node does."""
        return machine.restore()

    def restore_into(self, machine: IStateMachine, chunks: Iterable[bytes], files: Sequence[StateFile] = ()) -> None:
        """Restore a snapshot as a node does."""
        sink = self.begin_restore(machine, files)
        for chunk in chunks:
            sink.write(chunk)
        sink.finish()

    def halves(self) -> tuple[list[Any], list[Any]]:
        """Return the commands in two halves."""
        commands = self.commands()
        self.assertGreaterEqual(len(commands), 4, "give at least four commands")
        return commands[: len(commands) // 2], commands[len(commands) // 2 :]

    # Tests

    def test_provides_the_interface(self) -> None:
        """The machine has the methods of the interface, with their arguments."""
        self.assertTrue(verifyObject(IStateMachine, self.make_machine()))

    def test_replay_is_deterministic(self) -> None:
        """The same commands give the same results and the same state on every replica (H-80, J-92)."""
        first, second = self.make_machine(), self.make_machine()
        self.assertEqual(self.run_commands(first, self.commands()), self.run_commands(second, self.commands()))
        self.assertEqual(self.state_of(first), self.state_of(second))

    def test_machines_share_nothing(self) -> None:
        """Commands for one replica do not change another in the same process."""
        first, second = self.make_machine(), self.make_machine()
        fresh = self.state_of(second)
        self.run_commands(first, self.commands())
        self.assertNotEqual(self.state_of(first), fresh, "the commands change nothing")
        self.assertEqual(self.state_of(second), fresh)

    def test_pieces_are_small(self) -> None:
        """A snapshot comes in bytes of at most a MiB each, so that no piece holds up the reactor."""
        machine = self.make_machine()
        self.run_commands(machine, self.commands())
        for chunk in machine.snapshot():
            self.assertIs(type(chunk), bytes)
            self.assertLessEqual(len(chunk), _PIECE)

    def test_snapshot_is_of_its_moment(self) -> None:
        """A snapshot that is drained while the machine goes on shows nothing of what came later (J-83)."""
        before, after = self.halves()
        machine, expected = self.make_machine(), self.make_machine()
        self.run_commands(machine, before)
        self.run_commands(expected, before)
        pieces, files = self.begin_snapshot(machine)
        chunks = []
        for index, command in enumerate(after, len(before) + 1):
            self.run_commands(machine, [command], index)
            chunks += [chunk for chunk in (next(pieces, None),) if chunk is not None]
        chunks += pieces
        restored = self.make_machine()
        self.restore_into(restored, chunks, files)
        self.assertEqual(self.state_of(restored), self.state_of(expected))

    def test_snapshot_given_up(self) -> None:
        """A snapshot that is closed halfway leaves the machine as it was, and the next one is whole."""
        before, after = self.halves()
        machine, expected = self.make_machine(), self.make_machine()
        self.run_commands(expected, self.commands())
        self.run_commands(machine, before)
        pieces, _ = self.begin_snapshot(machine)
        next(pieces, None)
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
        self.run_commands(machine, after, len(before) + 1)
        self.assertEqual(self.state_of(machine), self.state_of(expected))

    def test_restored_machine_goes_on_alike(self) -> None:
        """A restored replica has the same state, and gives the same results for what follows (J-80, H-80)."""
        before, after = self.halves()
        machine, restored = self.make_machine(), self.make_machine()
        self.run_commands(machine, before)
        pieces, files = self.begin_snapshot(machine)
        self.restore_into(restored, list(pieces), files)
        self.assertEqual(self.state_of(restored), self.state_of(machine))
        first = len(before) + 1
        self.assertEqual(self.run_commands(restored, after, first), self.run_commands(machine, after, first))
        self.assertEqual(self.state_of(restored), self.state_of(machine))

    def test_restore_replaces(self) -> None:
        """Nothing of the old state is left behind a restored one, and restoring twice is the same (J-87)."""
        before, _ = self.halves()
        machine, other = self.make_machine(), self.make_machine()
        self.run_commands(machine, before)
        pieces, files = self.begin_snapshot(machine)
        chunks = list(pieces)
        self.run_commands(other, self.commands())
        for _ in range(2):
            self.restore_into(other, chunks, files)
            self.assertEqual(self.state_of(other), self.state_of(machine))

    def test_unfinished_restore_changes_nothing(self) -> None:
        """Until ``finish`` the old state stands, and the machine works on it (H-66)."""
        before, after = self.halves()
        machine, other = self.make_machine(), self.make_machine()
        self.run_commands(other, self.commands())
        self.run_commands(machine, before)
        expected = self.state_of(machine)
        pieces, files = self.begin_snapshot(other)
        sink = self.begin_restore(machine, files)
        for chunk in pieces:
            sink.write(chunk)
        self.assertEqual(self.state_of(machine), expected)
        self.run_commands(machine, after, len(before) + 1)
        self.assertEqual(self.state_of(machine), self.state_of(other))

    def test_failed_restore_changes_nothing(self) -> None:
        """Bytes that are no snapshot are refused, and the old state stands, never an empty one (J-89)."""
        machine = self.make_machine()
        self.run_commands(machine, self.commands())
        expected = self.state_of(machine)
        for garbage in ([b"\xff\x00 this is not a snapshot"], []):
            self.assert_refused(machine, garbage)
            self.assertEqual(self.state_of(machine), expected)

    def test_replaced_machine_goes_on_alike(self) -> None:
        """Where a state can be replaced without two in memory: the new one is the snapshot's, and nothing else."""
        before, after = self.halves()
        machine, other = self.make_machine(), self.make_machine()
        if not IReplaceableState.providedBy(machine):
            raise SkipTest("this machine has no other way than restore")
        self.assertTrue(verifyObject(IReplaceableState, machine))
        self.run_commands(machine, before)
        pieces, files = self.begin_snapshot(machine)
        chunks = list(pieces)
        self.run_commands(other, self.commands())
        for _ in range(2):
            self.replace_in(other, chunks, files)
            self.assertEqual(self.state_of(other), self.state_of(machine))
        first = len(before) + 1
        self.assertEqual(self.run_commands(other, after, first), self.run_commands(machine, after, first))
        self.assertEqual(self.state_of(other), self.state_of(machine))

    def begin_replacement(self, machine: Any, files: Sequence[StateFile]) -> IStateSink:
        """Begin to replace a state as a node does."""
        sink: IStateSink = machine.replace()
        return sink

    def replace_in(self, machine: Any, chunks: Iterable[bytes], files: Sequence[StateFile] = ()) -> None:
        """Replace a machine's state as a node does."""
        sink = self.begin_replacement(machine, files)
        for chunk in chunks:
            sink.write(chunk)
        sink.finish()

    def test_digest_is_of_the_state(self) -> None:
        """Where there is one: equal for equal states, restored ones too, and another for every other state (J-92)."""
        machine, replica = self.make_machine(), self.make_machine()
        if not IStateDigest.providedBy(machine):
            raise SkipTest("this machine has no digest")
        self.assertTrue(verifyObject(IStateDigest, machine))
        states: dict[bytes, Any] = {}
        for index, command in enumerate(self.commands(), 1):
            for each in (machine, replica):
                self.run_commands(each, [command], index)
            digest, state = _digest(machine), self.state_of(machine)
            self.assertTrue(1 <= len(digest) <= 64, digest)
            self.assertEqual(digest, _digest(replica))
            self.assertEqual(states.setdefault(digest, state), state, "two states have one digest")
            restored = self.make_machine()
            pieces, files = self.begin_snapshot(machine)
            self.restore_into(restored, list(pieces), files)
            self.assertEqual(_digest(restored), digest)

    def assert_refused(self, machine: IStateMachine, chunks: Iterable[bytes]) -> None:
        """Check that these pieces cannot be restored; by which error is the machine's choice."""
        try:
            self.restore_into(machine, chunks)
        except Exception:
            return
        self.fail(f"{chunks!r} was taken for a snapshot")


def _digest(machine: Any) -> bytes:
    digest: bytes = machine.state_digest()
    return digest
