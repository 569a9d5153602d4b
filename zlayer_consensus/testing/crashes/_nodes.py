"""A node's two stores under crashes: after a start they belong together, and nothing that was applied is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Self

from twisted.internet.defer import Deferred

from ...node._recovery import recover
from ...raft import Entry, LogId, LogWrite
from ...storage import ILogStore, IStateMachineStore
from .._simfs import SimulatedFileSystem
from ._explore import CrashSubject, Story
from ._logs import GatedExecutor, LogContent, LogStep, LogSubject, MakeLog, foresee, outcome, parts_of, work
from ._scripts import Script
from ._snapshots import MakeMachineStore, SnapshotContent, content, read_newest, receive, write

__all__ = ["NODE_SCRIPTS", "NodeContent", "NodeScript", "NodeStep", "NodeSubject", "node_story"]

_NOTHING = bytes(32)


@dataclass(frozen=True)
class Taken:
    """The node takes a snapshot of its state as of an index that is committed and durable."""

    index: int


@dataclass(frozen=True)
class Received:
    """The node takes in a leader's snapshot.

    :param position: where it was taken.
    :param reset: what is then written to the log; None if the log has that position, and stays.
    """

    position: LogId
    reset: LogWrite | None


NodeStep = LogStep | Taken | Received


@dataclass(frozen=True)
class NodeContent:
    """What a node has.

    :param log: its log.
    :param snapshot: its newest snapshot.
    :param digests: what the state is after each index of the log, as a chain of hashes.
    """

    log: LogContent
    snapshot: SnapshotContent | None
    digests: dict[int, bytes]

    def __str__(self) -> str:
        """Show both stores."""
        return f"{self.log}; {self.snapshot or 'no snapshot'}"

    def with_log(self, log: LogContent) -> NodeContent:
        """Return it with another log, all of whose entries are applied."""
        digests = dict(self.digests)
        for index in sorted(log.entries):
            # Else it lies before the oldest state that is known.
            if index - 1 in digests:
                digests[index] = _applied(digests[index - 1], log.entries[index])
        return replace(self, log=log, digests=digests)


def _applied(digest: bytes, entry: Entry) -> bytes:
    return sha256(digest + entry.raw).digest()


class NodeSubject(CrashSubject):
    """A log store and a store of snapshots under crashes, opened as a node opens them.

    :param make_log, make_machine: make the stores.
    :param node_id: the log's.
    """

    def __init__(self, make_log: MakeLog, make_machine: MakeMachineStore, node_id: int = 1) -> None:
        self._make_log = make_log
        self._make_machine = make_machine
        self._node_id = node_id
        self._logs = LogSubject(make_log)

    def recover(self, files: SimulatedFileSystem) -> NodeContent:
        """Start as a node does: open both, load the snapshot, and apply what is in the log behind it."""
        return self._start(files)[2]

    def _start(self, files: SimulatedFileSystem) -> tuple[ILogStore, IStateMachineStore, NodeContent]:
        log, store = self._make_log(files, GatedExecutor()), self._make_machine(files, GatedExecutor())
        start = outcome(Deferred.fromCoroutine(recover(self._node_id, log, store)))
        held = self._logs.read(log, start)
        snapshot = read_newest(store)
        index, digest = (snapshot.point.last.index, snapshot.chunks[0]) if snapshot is not None else (0, _NOTHING)
        digests = {index: digest}
        for at in range(index + 1, held.last.index + 1):
            digests[at] = _applied(digests[at - 1], held.entries[at])
        return log, store, NodeContent(held, snapshot, digests)

    def admits(self, expected: NodeContent, found: NodeContent) -> bool:
        """Compare: both stores, and the state in the end."""
        last = expected.log.last.index
        log = expected.log
        if found.log.hard_state.commit > log.hard_state.commit and found.snapshot is not None:
            # A start that resets the log commits what the snapshot has.
            commit = max(log.hard_state.commit, found.snapshot.point.last.index)
            log = replace(log, hard_state=log.hard_state._replace(commit=commit))
        return (
            found.snapshot == expected.snapshot
            and self._logs.admits(log, found.log)
            and found.digests[last] == expected.digests[last]
        )

    def go_on(self, files: SimulatedFileSystem) -> NodeContent:
        """Append an entry, and take a snapshot that has it."""
        log, store, node = self._start(files)
        step = node.log.next_write()
        outcome(log.write(step))
        after = node.with_log(node.log.after(step))
        made = _snapshot(after, after.log.last.index)
        write(store, made)
        return replace(after, snapshot=made, digests={made.point.last.index: made.chunks[0]})


def _snapshot(node: NodeContent, index: int) -> SnapshotContent:
    position = node.log.position(index)
    assert position is not None
    made = content(index, position.term)
    return replace(made, chunks=(node.digests[index], *made.chunks))


class NodeScript(Script):
    """Puts a node's steps together."""

    def __init__(self, seed: object) -> None:
        super().__init__(seed)
        self.node_steps: list[NodeStep] = []

    def flush(self) -> Self:
        """Move the steps of the log to the node's."""
        self.node_steps += self.steps
        self.steps = []
        return self

    def snapshot(self, keep: int | None = None) -> Self:
        """Commit everything, take a snapshot, and purge all but some entries; None leaves the log alone."""
        self.commit = self.last.index
        self.steps.append(LogWrite(hard_state=self.state))
        self.flush()
        self.node_steps.append(Taken(self.last.index))
        if keep is not None:
            self.purge(keep)
        return self.flush()

    def install(self, ahead: int) -> Self:
        """Take in a snapshot of the leader of the next term, whose log goes further, or another way."""
        self.term += 1
        self.vote = 0
        self.steps.append(LogWrite(hard_state=self.state))
        self.flush()
        index = self.last.index + ahead
        assert index > self.commit
        self.last = self.purged = LogId(self.term, index)
        self.terms[index] = self.term
        self.commit = index
        self.node_steps.append(Received(self.last, LogWrite(reset=self.last, hard_state=self.state)))
        return self

    def learn(self) -> Self:
        """Take in a leader's snapshot of what is in the log already."""
        self.flush()
        self.node_steps.append(Received(self.last, None))
        return self


def _snapshots() -> NodeScript:
    script = NodeScript("snapshots")
    for turn, keep in enumerate((3, None, 0, 8, 1)):
        script.append(9, 400).append(2, 700, with_state=True)
        script.snapshot(keep)
        if turn % 2:
            script.append(4, 30).conflict(3, 2, 200)
    return script


def _install() -> NodeScript:
    script = NodeScript("install")
    script.append(6, 300).append(3, 700, with_state=True)
    script.install(20).append(3, 200, with_state=True).append(2, 20)
    script.install(-1).append(2, 500)
    script.install(5).install(1).append(12, 900, with_state=True)
    return script.snapshot(4).append(5, 20).learn().append(1, 20, with_state=True)


def _both() -> NodeScript:
    """Own snapshots and a leader's in turn, with stops between."""
    script = NodeScript("both").append(5, 300)
    script.snapshot(0).reopen().append(20, 600)
    script.install(3).reopen()
    script.append(3, 200).elect()
    script.snapshot(1).append(4, 300).reopen()
    script.install(-2).append(2, 30)
    return script.snapshot(0)


NODE_SCRIPTS: dict[str, Callable[[], NodeScript]] = {"snapshots": _snapshots, "install": _install, "both": _both}
"""Scripts by name, with snapshots, purges and resets between the writes."""


def node_story(make_log: MakeLog, make_machine: MakeMachineStore, script: NodeScript, node_id: int = 1) -> Story:
    """Return a story in which a node's stores are opened, do what the script says, and are closed."""

    def play(files: SimulatedFileSystem) -> Iterator[Sequence[NodeContent]]:
        node = NodeContent(LogContent(), None, {0: _NOTHING})
        yield [node]
        executor = GatedExecutor()
        log, store = make_log(files, executor), make_machine(files, executor)
        outcome(Deferred.fromCoroutine(recover(node_id, log, store)))
        for step in script.flush().node_steps:
            if step == "reopen":
                outcome(log.close())
                outcome(store.close())
                log, store = make_log(files, executor), make_machine(files, executor)
                outcome(Deferred.fromCoroutine(recover(node_id, log, store)))
            elif isinstance(step, Taken):
                made = _snapshot(node, step.index)
                after = replace(node, snapshot=made)
                yield [node, after]
                write(store, made)
                node = after
                yield [node]
            elif isinstance(step, Received):
                made = replace(_leaders(node, step), installed=True)
                after = replace(node, snapshot=made)
                if step.reset is not None:
                    index = step.position.index
                    after = NodeContent(node.log.after(step.reset), made, {index: made.chunks[0]})
                yield [node, after]
                receive(store, made)
                if step.reset is not None:
                    outcome(log.write(step.reset))
                node = after
                yield [node]
            else:
                parts = parts_of(step)
                for possible in work(log, executor, node.log, parts):
                    yield [node.with_log(each) for each in possible]
                node = node.with_log(foresee(node.log, parts)[1])
                yield [node]
        outcome(log.close())
        outcome(store.close())

    return play


def _leaders(node: NodeContent, step: Received) -> SnapshotContent:
    """Return what a leader sends: of a history of its own, unless the node has it."""
    if step.reset is None:
        return _snapshot(node, step.position.index)
    made = content(step.position.index, step.position.term, size=400)
    return replace(made, chunks=(sha256(str(step.position).encode()).digest(), *made.chunks))
