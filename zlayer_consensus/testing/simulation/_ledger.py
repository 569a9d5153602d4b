"""Which commands were carried out, and whether clients were told the truth about it. Holds for every application."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from ...errors import DomainError
from ...storage import (
    ApplyContext,
    IReplaceableFiles,
    IReplaceableState,
    IStateMachine,
    IStateMachineFiles,
    IStateSink,
    StateFile,
)
from .._simfs import SimulatedFileSystem
from ._application import Application, Propose
from ._chain import begin_to_replace
from ._with_files import ForwardsFiles

if TYPE_CHECKING:
    from ._checker import Checker

__all__ = ["Executed", "Ledger", "WatchedMachine"]

_ROUND_TRIP = 8
"""Commands after which a restored machine must have had the same results as the one whose snapshot it has."""


class Executed(NamedTuple):
    """A command that some replica has carried out.

    :param raw: the encoded command.
    :param time_ms: the log's time.
    :param outcome: the encoded result or domain error.
    :param node_id: who was first.
    """

    raw: bytes
    time_ms: int
    outcome: bytes
    node_id: int


class Ledger:
    """All commands that were carried out, and all that may have been.

    :param application: what is replicated.
    :param checker: takes what is violated.
    """

    def __init__(self, application: Application, checker: Checker) -> None:
        self.entries: dict[int, Executed] = {}
        """By index."""
        self.highest = 0
        """The highest index that any client was told of."""
        self.reads: list[tuple[int, Any, Any]] = []
        """What clients read: the index that the state had, how they read, and what they got."""
        self.replies: list[tuple[Any, int, int, str]] = []
        """Of proposals that were sent once: the process, their order there, their index, and their name."""
        self._application = application
        self._types = application.types
        self._checker = checker
        self._allowed: dict[bytes, int] = {}
        """How often each command may be carried out: once for each time that it was proposed and not refused."""
        self._done: dict[bytes, list[int]] = {}
        """Where each command was carried out."""

    # The replicas

    def watched(self, machine: IStateMachine, node_id: int) -> WatchedMachine:
        """Return a machine that does as the given one, and has it written down."""
        has_files = IStateMachineFiles.providedBy(machine)
        return (_WatchedMachineFiles if has_files else WatchedMachine)(machine, self, node_id)

    def executed(self, machine: WatchedMachine, raw: bytes, context: ApplyContext, outcome: bytes) -> None:
        """A replica carried out a command."""
        known = self.entries.get(context.index)
        if known is None:
            self.entries[context.index] = Executed(raw, context.time_ms, outcome, machine.node_id)
            done = self._done.setdefault(raw, [])
            done.append(context.index)
            if len(done) > self._allowed.get(raw, 0):
                raise self._too_often(raw, done)
        elif known.outcome != outcome and known.raw == raw:
            text = (
                f"entry {context.index}, {self.show(raw)}: node {machine.node_id}{machine.restored} has the result "
                f"{self.show_outcome(outcome)}, node {known.node_id} had {self.show_outcome(known.outcome)}"
            )
            raise self._checker.violated("determinism", text)

    def _too_often(self, raw: bytes, done: list[int]) -> Exception:
        allowed = self._allowed.get(raw)
        where = f"{self.show(raw)} was carried out at {', '.join(map(str, done))}"
        if allowed is None:
            return self._checker.violated("nothing from nowhere", f"{where}, and no client has proposed it")
        if not allowed:
            return self._checker.violated("definite failures", f"{where}, and the client was told that it was not done")
        return self._checker.violated("exactly once", f"{where}, and was proposed {allowed} times")

    def outcome(self, result: Any) -> bytes:
        """Encode a result or a domain error, to compare it."""
        if isinstance(result, DomainError):
            return b"!" + repr((result.reason, result.message)).encode()
        return b"=" + self._types.encode_response(result)

    def show(self, raw: bytes) -> str:
        """Return a command as text."""
        return _short(self._types.decode_request(raw))

    def show_outcome(self, outcome: bytes) -> str:
        """Return a result as text."""
        return outcome[1:].decode() if outcome[:1] == b"!" else _short(self._types.decode_response(outcome[1:]))

    # The clients

    def proposed(self, raw: bytes) -> None:
        """A client proposes a command."""
        self._allowed[raw] = self._allowed.get(raw, 0) + 1

    def refused(self, raw: bytes) -> None:
        """It was told that this did not happen."""
        self._allowed[raw] -= 1
        done = self._done.get(raw, ())
        if len(done) > self._allowed[raw]:
            raise self._too_often(raw, list(done))

    def acknowledged(self, raw: bytes, floor: int, index: int | None, result: Any) -> int:
        """A client was told of a result; return where the command was carried out.

        :param floor: the highest index that any client had been told of when it was proposed.
        :param index: the index that it was told, unless the result is a domain error, which has none.
        """
        outcome = self.outcome(result)
        places = [index] if index is not None else self._done.get(raw, [])
        for place in reversed(places):
            entry = self.entries.get(place)
            if entry is not None and entry.raw == raw and entry.outcome == outcome:
                break
        else:
            text = f"{self.show(raw)} is said to have had the result {self.show_outcome(outcome)}"
            text += "" if index is None else f" at {index}, where {self._show_entry(index)} was carried out"
            raise self._checker.violated("answers", text)
        if place <= floor:
            text = f"{self.show(raw)} was carried out at {place}, and {floor} was known when it was proposed"
            raise self._checker.violated("real time", text)
        self.highest = max(self.highest, place)
        return place

    def _show_entry(self, index: int) -> str:
        entry = self.entries.get(index)
        return "nothing" if entry is None else f"{self.show(entry.raw)} with {self.show_outcome(entry.outcome)}"

    def has_read(self, floor: int, index: int, read: Any, result: Any) -> None:
        """A client has read, linearizably."""
        if index < floor:
            text = f"the state after entry {index} was read, and {floor} was known when the read began"
            raise self._checker.violated("real time", text)
        self.highest = max(self.highest, index)
        self.reads.append((index, read, result))

    # The end

    def place(self, raw: bytes) -> int | None:
        """Return where a command was carried out, if it was proposed but once, and carried out."""
        done = self._done.get(raw, ())
        return done[0] if len(done) == 1 and self._allowed[raw] == 1 else None

    def check(self, reached: int) -> None:
        """See that all this is what one machine would have done.

        :param reached: the index up to which the cluster has carried out commands.
        """
        if reached < self.highest:
            text = f"clients know of entry {self.highest}, and the cluster has nothing after {reached}"
            raise self._checker.violated("acknowledged is durable", text)
        self._check_order()
        self._replay()

    def _check_order(self) -> None:
        """What was proposed at one node, one after the other, is carried out in that order (H-88)."""
        last: dict[Any, tuple[int, str]] = {}
        for process, _, index, name in sorted(self.replies, key=lambda reply: reply[1]):
            before = last.get(process)
            if before is not None and before[0] >= index:
                text = f"{name} was carried out at {index}, and {before[1]}, proposed before it, at {before[0]}"
                raise self._checker.violated("proposal order", text)
            last[process] = index, name

    def _replay(self) -> None:
        """Give the commands to one machine, and compare all results and reads."""
        files = SimulatedFileSystem()
        machine = self._application.replica(files, "/one")
        reads = sorted(self.reads, key=lambda read: read[0])
        position = 0
        for index in (*sorted(self.entries), None):
            while position < len(reads) and (index is None or reads[position][0] < index):
                self._compare_read(machine, *reads[position])
                position += 1
            if index is not None:
                entry = self.entries[index]
                outcome = self._apply(machine, entry.raw, ApplyContext(index, entry.time_ms))
                if outcome != entry.outcome:
                    text = (
                        f"entry {index}, {self.show(entry.raw)}: a new machine has the result "
                        f"{self.show_outcome(outcome)}, node {entry.node_id} had {self.show_outcome(entry.outcome)}"
                    )
                    raise self._checker.violated("determinism", text)
        self._round_trip(machine, self._application.replica(files, "/other"))

    def _apply(self, machine: IStateMachine, raw: bytes, context: ApplyContext) -> bytes:
        try:
            return self.outcome(machine.apply(self._types.decode_request(raw), context))
        except DomainError as error:
            return self.outcome(error)

    def _compare_read(self, machine: IStateMachine, index: int, read: Any, result: Any) -> None:
        expected = _now(read(machine))
        if expected != result:
            text = f"a read after entry {index} has seen {_short(result)}, and it was {_short(expected)}"
            raise self._checker.violated("reads", text)

    def _round_trip(self, machine: IStateMachine, other: IStateMachine) -> None:
        """A machine that is restored from a snapshot goes on like the one that made it.

        That one goes on meanwhile: a node takes the state away piece by piece, and applies commands in between.
        """
        pieces = iter(machine.snapshot())
        files = _files_of(machine)
        steps: list[tuple[Any, bytes, ApplyContext, bytes]] = []
        taken: list[bytes] = []
        for raw, context in self._further():
            steps.append((self._read(machine), raw, context, self._apply(machine, raw, context)))
            taken += islice(pieces, 1)
        taken += pieces
        sink = _now(other.restore_files(files)) if files else other.restore()  # type: ignore[attr-defined]
        for chunk in taken:
            sink.write(chunk)
        sink.finish()
        for expected, raw, context, outcome in steps:
            self._compare_restored(expected, self._read(other))
            after = self._apply(other, raw, context)
            if after != outcome:
                text = (
                    f"{self.show(raw)} has the result {self.show_outcome(outcome)}, and {self.show_outcome(after)} "
                    "in a machine that was restored from a snapshot of before"
                )
                raise self._checker.violated("snapshot", text)
        self._compare_restored(self._read(machine), self._read(other))

    def _further(self) -> Iterator[tuple[bytes, ApplyContext]]:
        """Return commands that could come next."""
        last = max(self.entries, default=0)
        time_ms = self.entries[last].time_ms if last else 0
        random, actions = Random("round trip"), self._application.actions(2)
        for index in range(last + 1, last + 1 + _ROUND_TRIP):
            action = actions(random, 1)
            if isinstance(action, Propose):
                yield self._types.encode_request(action.request), ApplyContext(index, time_ms)

    def _read(self, machine: IStateMachine) -> Any:
        read = self._application.read
        return None if read is None else _now(read(machine))

    def _compare_restored(self, expected: Any, found: Any) -> None:
        if expected != found:
            text = f"{_short(expected)} is read before a snapshot, and {_short(found)} from the restored machine"
            raise self._checker.violated("snapshot", text)


@implementer(IStateMachine, IReplaceableState)
class WatchedMachine:
    """The application's machine; what it does is written down.

    :param inner: the machine.
    :param ledger: takes what is carried out.
    :param node_id: who runs it.
    """

    def __init__(self, inner: IStateMachine, ledger: Ledger, node_id: int) -> None:
        self.inner = inner
        self.node_id = node_id
        self.restored = ""
        """Says that its state is from a snapshot, for people."""
        self._ledger = ledger
        self._encode = ledger._types.encode_request

    def apply(self, command: Any, context: ApplyContext) -> Any:
        """See :meth:`~zlayer_consensus.storage.IStateMachine.apply`."""
        raw = self._encode(command)
        try:
            result = self.inner.apply(command, context)
        except DomainError as error:
            self._ledger.executed(self, raw, context, self._ledger.outcome(error))
            raise
        self._ledger.executed(self, raw, context, self._ledger.outcome(result))
        return result

    def snapshot(self) -> Iterator[bytes]:
        """See :meth:`~zlayer_consensus.storage.IStateMachine.snapshot`."""
        return self.inner.snapshot()

    def restore(self) -> IStateSink:
        """See :meth:`~zlayer_consensus.storage.IStateMachine.restore`."""
        return self.sink(self.inner.restore())

    def replace(self) -> IStateSink:
        """See :meth:`~zlayer_consensus.storage.IReplaceableState.replace`."""
        return self.sink(begin_to_replace(self.inner))

    def sink(self, inner: IStateSink) -> IStateSink:
        """Take note that the state is about to be replaced."""
        self.restored = " (restored from a snapshot)"
        return inner


@implementer(IStateMachineFiles, IReplaceableFiles)
class _WatchedMachineFiles(WatchedMachine, ForwardsFiles):
    """The same of a machine with files."""


def _now(value: Any) -> Any:
    """Return what a Deferred of a machine whose disk works at once has fired with; or what is no Deferred."""
    if not isinstance(value, Deferred):
        return value
    results: list[Any] = []
    _ = value.addBoth(results.append)
    [result] = results
    if isinstance(result, Failure):
        result.raiseException()
    return result


def _files_of(machine: Any) -> Sequence[StateFile]:
    """Return the files of the snapshot that a machine has just begun."""
    files: Sequence[StateFile] = _now(machine.sealed()) if IStateMachineFiles.providedBy(machine) else ()
    return files


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:150]}… ({len(text)} characters)"
