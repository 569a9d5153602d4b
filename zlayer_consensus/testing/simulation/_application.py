"""What is replicated in a simulation, and what its clients ask for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred

from ...storage import IFileSystem, IStateMachine, IStateMachineFiles
from ...types import RaftTypes, declare_raft_types
from ._with_files import Disk

if TYPE_CHECKING:
    from ...node import ConsensusNode

__all__ = ["Action", "Application", "Propose", "Query", "Record"]


def _whole(result: Any) -> Sequence[Any]:
    return (result,)


@attrs.frozen
class Record:
    """One operation of a history that a model checks.

    :param f: the function's name, as the model knows it.
    :param key: what it works on; histories are checked key by key.
    :param argument: as the model takes it.
    """

    f: str
    key: Any = None
    argument: Any = None


@attrs.frozen(eq=False)
class Propose:
    """A command to send through the log.

    :param request: the command.
    :param name: what it is counted as.
    :param records: what it is in the history, if a model checks it; one that works on several keys is one for each.
    :param results: makes of the command's result those of the records.
    :param seen: told of the command's result, for commands that build on earlier ones.
    :param frees_space: whether the state becomes smaller by it; such commands are taken when the disks are full.
    """

    request: Any
    name: str = "command"
    records: tuple[Record, ...] = ()
    results: Callable[[Any], Sequence[Any]] = _whole
    seen: Callable[[Any], object] | None = None
    frees_space: bool = False


@attrs.frozen(eq=False)
class Query:
    """A read that does not go through the log.

    :param read: called with the state machine; must not change it, and must not give out what changes later. What it
        returns may be a Deferred, if the machine has files: for what is on its way from the disk.
    :param name: what it is counted as.
    :param records: see :class:`Propose`.
    :param results: see :class:`Propose`.
    :param seen: see :class:`Propose`.
    """

    read: Callable[[Any], Any]
    name: str = "read"
    records: tuple[Record, ...] = ()
    results: Callable[[Any], Sequence[Any]] = _whole
    seen: Callable[[Any], object] | None = None


Action = Propose | Query
_READS = 0.3


class Application:
    """A state machine under test, and its clients.

    Whatever it is, these things are checked: every replica has the same result for the same entry, and goes on in the
    same way after a snapshot; no command is carried out twice, or after it was refused, or without having been
    proposed; what was acknowledged is not lost; and every result and every read is what a single machine, given the
    same commands in the same order, has at that point, in an order that respects real time.

    :param machine: makes the state machine of a new process, in its initial state. None: the key-value store, with
        clients of its own; then nothing else is to be said.
    :param files_machine: in the place of ``machine``, for one with files of its own:
        ``files_machine(disk)``, with a :class:`~zlayer_consensus.testing.simulation.Disk`, which it must use for all
        that it does with them. Without ``commands`` it is one that carries out the commands of the simulator's store.
    :param commands: ``commands(random, client)`` returns what client number ``client`` asks for next: a request, or a
        :class:`Propose` or :class:`Query`. All randomness must be from ``random``. Commands that are all different
        find more: a doubled one is then seen for what it is.
    :param types: the application's types, as for a node.
    :param read: ``read(machine)`` returns something of the state, or all of it: beside the commands, clients call it
        through ``read_state``. What it returns is copied (``copy.deepcopy``), so it may be a part of the state itself.
        None: they do not read, unless ``commands`` gives them a :class:`Query`.
    :param model: checks the history of the actions that have records; see
        :mod:`zlayer_consensus.testing.linearizability`. None: no history is kept.
    :param attach: called with each new state machine and the node that runs it, for a machine that needs its node.
        Those that are made to compare results have none.
    """

    def __init__(
        self,
        machine: Callable[[], IStateMachine] | None = None,
        *,
        files_machine: Callable[[Disk], IStateMachineFiles] | None = None,
        commands: Callable[[Random, int], Any] | None = None,
        types: RaftTypes | None = None,
        read: Callable[[Any], Any] | None = None,
        model: Any = None,
        attach: Callable[[Any, ConsensusNode], object] | None = None,
    ) -> None:
        self._actions: Callable[[int], Callable[[Random, int], Action]] = lambda _: self._next
        if machine is not None and files_machine is not None:
            raise TypeError("give a machine without files, or one with files")
        if machine is None and (files_machine is None or commands is None):
            from . import _store

            # The store has clients of its own, wherever its values are.
            if files_machine is None:
                machine = _store.AppendingStore
            types, read, model = _store.TYPES, _store.read, _store.model()
            self._actions = _store.actions
        elif commands is None:
            raise TypeError("say which commands the clients of this machine propose")
        self.types = types or declare_raft_types()
        self._machine = machine
        self._files_machine = files_machine
        self.read = None if read is None else _copied(read)
        self.model = model
        self._commands = commands
        self._attach = attach

    def make(self, disk: Callable[[], Disk]) -> IStateMachine:
        """Return the state machine of a new process.

        :param disk: makes its disk, if it needs one.
        """
        if self._files_machine is not None:
            return self._files_machine(disk())
        assert self._machine is not None
        return self._machine()

    def replica(self, file_system: IFileSystem, directory: str) -> IStateMachine:
        """Return a machine that is in no cluster, and ready, to compare others with.

        :param file_system, directory: for its files, if it has any.
        """
        machine: Any = self.make(lambda: Disk.at_once(file_system, directory))
        if IStateMachineFiles.providedBy(machine):
            opened: Deferred[None] = machine.open()
            assert opened.called, "a machine with files must work at once, if its executor does"
        replica: IStateMachine = machine
        return replica

    def attach(self, machine: Any, node: ConsensusNode) -> None:
        """Introduce a machine to its node."""
        if self._attach is not None:
            self._attach(machine, node)

    def actions(self, keys: int) -> Callable[[Random, int], Action]:
        """Return what a run's clients ask for next.

        :param keys: how many keys they use, if they use keys.
        """
        return self._actions(keys)

    def _next(self, random: Random, client: int) -> Action:
        assert self._commands is not None
        if self.read is not None and random.random() < _READS:
            return Query(self.read)
        command = self._commands(random, client)
        return command if isinstance(command, Propose | Query) else Propose(command)


def _copied(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what reads the same, as it is now."""

    def copied(machine: Any) -> Any:
        found = read(machine)
        return found.addCallback(copy.deepcopy) if isinstance(found, Deferred) else copy.deepcopy(found)

    return copied
