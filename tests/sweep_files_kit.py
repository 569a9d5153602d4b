"""A data directory of the key-value store with values on disk, and what a start of the node makes of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain

from twisted.internet.defer import Deferred

from tests.kv_files_kit import Commands, apply, make_machine
from tests.sweep_kit import DIRECTORY, Directory, Sweep, kind_of
from zlayer_consensus.errors import StorageCorrupt
from zlayer_consensus.kv import KeyValue
from zlayer_consensus.kv._value_files import MAGIC, record_bytes
from zlayer_consensus.node._recovery import recover
from zlayer_consensus.node._sessions import SessionLoader, SessionTable
from zlayer_consensus.raft import Entry, EntryKind, HardState, LogId, LogWrite, Member, Membership, SnapshotPoint
from zlayer_consensus.storage import FileStateMachine, InlineExecutor, Manifest
from zlayer_consensus.testing import SimulatedFileSystem
from zlayer_consensus.testing.crashes import LogContent, LogSubject, MakeLog, outcome

__all__ = ["VALUES", "FilesContent", "FilesDirectory", "FilesSweep"]

VALUES = f"{DIRECTORY}/values"
_TERM = 2
_MEMBERS = Membership.initial(Member(each, bytes([each]) * 16, f"host-{each}:7001") for each in (101, 102, 103))


@dataclass(frozen=True)
class FilesContent:
    """What a node has.

    :param log: its log.
    :param manifest: its newest snapshot's.
    :param digest: of the state, everything in the log applied.
    :param values: what every read can show, at each revision that can be read.
    """

    log: LogContent
    manifest: Manifest | None
    digest: bytes
    values: tuple[tuple[KeyValue, ...], ...]


class _Node:
    """The stores of a node, opened as it opens them, with the newest snapshot restored."""

    def __init__(self, files: SimulatedFileSystem, make_log: MakeLog) -> None:
        self.machine = make_machine(files, directory=VALUES, file_bytes=500, history_changes=25)
        executor = InlineExecutor()
        self.store = FileStateMachine(DIRECTORY, self.machine, executor=executor, file_system=files, part_bytes=1200)
        self.log = make_log(files, executor)
        start = outcome(Deferred.fromCoroutine(recover(1, self.log, self.store)))
        self.held = LogSubject(make_log).read(self.log, start)
        if self.store.newest() is not None:
            self._restore()

    def _restore(self) -> None:
        reader = self.store.reader()
        loader, sink = SessionLoader(), outcome(self.machine.restore_files(reader.files))
        while (chunk := outcome(reader.next_chunk())) is not None:
            if loader.done:
                sink.write(chunk)
            else:
                loader.feed(chunk)
        sink.finish()
        reader.close()

    def content(self) -> FilesContent:
        """Apply what is in the log behind the snapshot, and read every value."""
        machine = self.machine
        for index in range(machine.index + 1, self.held.last.index + 1):
            apply(machine, self.held.entries[index].command()[3], index)
        revisions = range(machine.compacted_revision, machine.revision + 1)
        values = tuple(outcome(machine.range(revision=revision)).kvs for revision in revisions)
        return FilesContent(self.held, self.store.newest(), machine.digest(), values)

    def append(self, commands: list[bytes]) -> None:
        """Write commands to the log, one after the other, and apply them."""
        for command in commands:
            index = self.machine.index + 1
            entry = Entry.make(index, _TERM, EntryKind.COMMAND, command, 1000 + index)
            outcome(self.log.write(LogWrite(entries=(entry,), hard_state=HardState(_TERM, 1, index - 1))))
            apply(self.machine, command, index)

    def snapshot(self, keep: int) -> None:
        """Take a snapshot, and purge all but some entries."""
        index = self.machine.index
        pieces, sealed = self.machine.snapshot(), self.machine.sealed()
        writer = self.store.writer(SnapshotPoint(LogId(_TERM, index), _MEMBERS, 1000 + index))
        for piece in chain(SessionTable().snapshot(), pieces):
            outcome(writer.write(piece))
        outcome(writer.publish(outcome(sealed)))
        pieces.close()  # type: ignore[attr-defined]
        outcome(self.log.purge(LogId(_TERM, index - keep)))

    def close(self) -> None:
        """Stop in order."""
        outcome(self.log.close())
        outcome(self.store.close())


class FilesDirectory(Directory):
    """A data directory with several segments, and two snapshots that share files of values."""

    def recover(self, files: SimulatedFileSystem) -> FilesContent:
        """Start as a node does, and read every value."""
        return _Node(files, self._make_log).content()

    def stopped(self) -> SimulatedFileSystem:
        """Return it after a clean stop."""
        files, draw = SimulatedFileSystem(), Commands("sweep", keys=8, largest=120)
        node = _Node(files, self._make_log)
        for count in (*(20 for _ in range(self._rounds)), 8):
            node.append([draw.next() for _ in range(count)])
            node.snapshot(4)
        node.append([draw.next() for _ in range(16)])
        node.close()
        return files.crash("all")


class FilesSweep(Sweep):
    """Damages such a directory. What is wrong with a value shows when it is read."""

    def kind(self, path: str) -> str:
        """Return what kind of file it is: also ``values``."""
        return "values" if self._files.read(path, 0, len(MAGIC)) == MAGIC else kind_of(path)

    def says_what(self, error: StorageCorrupt, path: str, offset: int) -> bool:
        """Whether a refusal says what is damaged: a range of entries, or the value that the byte belongs to.

        That is a key and a revision.
        """
        if self.kind(path) != "values" or error.first_index is not None:
            return super().says_what(error, path, offset)
        data = self._files.read(path, error.offset, 1 << 20)
        key_size, size = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8))
        key, revision = data[20 : 20 + key_size], int.from_bytes(data[12:20], "little")
        named = rf"value of {re.escape(repr(key))} at revision {revision}\b"
        within = error.offset <= offset < error.offset + record_bytes(key, size)
        return within and re.search(named, error.reason) is not None
