"""The key-value application with its values on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from zope.interface import implementer

from ..errors import ConfigError, ConsensusError, DomainError
from ..storage import (
    IExecutor,
    IFileSystem,
    IReplaceableFiles,
    IStateDigest,
    IStateMachineFiles,
    IStateSink,
    RealFileSystem,
    StateFile,
    ThreadExecutor,
)
from ._commands import (
    RECORD_HEAD,
    Command,
    Compare,
    Comparison,
    KeyValue,
    Range,
    RangeResult,
    Target,
    Txn,
    UnknownCommand,
    decode,
)
from ._compaction import Compactor
from ._machine import MachineBase, holds
from ._records import check_record, value_is
from ._snapshot import INLINE, Snapshot, StateSink
from ._store import HISTORY_BYTES, HISTORY_CHANGES, Store
from ._value_log import NamedFiles, ValueFile, ValueLog
from ._value_storage import ValueStorage

__all__ = ["FileKeyValueMachine"]

FILE_BYTES = 16 << 20
BUFFER_BYTES = 16 << 20
COMPACTION_BYTES = 8 << 20

_BY_HASH: Final = frozenset((Comparison.EQUAL, Comparison.NOT_EQUAL))
"""Comparisons of a value that its share in the digest, a hash, decides: no need to read it."""
_Pair = tuple[bytes, bytes]
"""A key and its record."""


@implementer(IStateMachineFiles, IStateDigest, IReplaceableFiles)
class FileKeyValueMachine(MachineBase):
    """A replicated, ordered, versioned map of bytes to bytes, whose values are in files, and its keys in memory.

    It does as :class:`KeyValueMachine` does: the same commands give the same results, revisions and digest. But reads
    that do not go through the log take a while: :meth:`get` and :meth:`range` find, when they are called, what the
    state is at that moment, and return a Deferred for it. Since the result of what ``read_state`` calls cannot be a
    Deferred, put it into a tuple or list there.

    A key takes some hundred bytes of memory beside its own. What was written and is not yet on the disk is in memory,
    too, up to ``buffer_bytes``; when that is full, nothing is applied until there is room. So it is while the disk is
    full. A value is verified when it is read. If it is damaged, or the disk fails, the machine has failed, and its node
    stops.

    :param directory: for the files, of its own: what else is in it is refused. It must be in the same file system as
        the snapshots, which must have hard links; its parent must exist.
    :param reactor: for two threads and the clock, unless executors and clock are given.
    :param executor: runs what writes, and what reads for compaction; it must keep the order, and stays the caller's.
    :param read_executor: runs reads that somebody waits for; stays the caller's.
    :param clock: paces compaction, and what is tried again; provides ``IReactorTime``.
    :param file_system: the real one, unless a test has another.
    :param history_changes: changes of which the history is kept, for reads at a past revision.
    :param history_bytes: bytes that this history may take; they count as if the values were in memory.
    :param file_bytes: a file is closed before it would grow beyond this, unless one value alone is larger.
    :param buffer_bytes: bytes that may wait to be written, and one command more.
    :param compaction_bytes: bytes per second that compaction reads; it reads more if there is much garbage.
    :raises ConfigError: if a setting cannot be.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        reactor: Any = None,
        executor: IExecutor | None = None,
        read_executor: IExecutor | None = None,
        clock: Any = None,
        file_system: IFileSystem | None = None,
        history_changes: int = HISTORY_CHANGES,
        history_bytes: int = HISTORY_BYTES,
        file_bytes: int = FILE_BYTES,
        buffer_bytes: int = BUFFER_BYTES,
        compaction_bytes: int = COMPACTION_BYTES,
    ) -> None:
        for name, value, most in (
            ("file_bytes", file_bytes, 32 << 20),
            ("buffer_bytes", buffer_bytes, 1 << 40),
            ("compaction_bytes", compaction_bytes, 1 << 40),
        ):
            if not 1 <= value <= most:
                raise ConfigError(name, value, f"must be between 1 and {most}")
        if reactor is None and (executor is None or read_executor is None or clock is None):
            raise ConfigError("reactor", None, "is needed unless both executors and the clock are given")
        self._own: list[IExecutor] = []
        self.directory = os.fspath(directory).rstrip("/") or "/"
        self._clock = reactor if clock is None else clock
        self._storage = ValueStorage(
            file_system or RealFileSystem(),
            self.directory,
            executor or self._thread(reactor, "values"),
            read_executor or self._thread(reactor, "value reads"),
            self._clock,
        )
        self._history = (history_changes, history_bytes)
        self._file_bytes = file_bytes
        self._buffer_bytes = buffer_bytes
        self._compaction_bytes = compaction_bytes
        self._log = ValueLog(self._storage, file_bytes)
        super().__init__(Store(*self._history, self._log))
        self._compactor = self._new_compactor()
        _ = self._storage.failed().addCallback(lambda _: self._compactor.stop())
        self._restoring: ValueLog | None = None
        self._named: NamedFiles | None = None
        self._decoded: tuple[bytes, Command] | None = None
        self._fetched: dict[bytes, bytes] = {}
        """By record: the values that :meth:`prepare` has fetched."""
        self._beginnings: dict[bytes, bytes] = {}
        """By record: as much of the values as the command compares."""
        self._missing: list[_Pair] | None = None
        """During a trial: the keys, with their records, whose values are not at hand."""
        self._closed = False

    def _thread(self, reactor: Any, name: str) -> IExecutor:
        executor = ThreadExecutor(reactor, name)
        self._own.append(executor)
        return executor

    def _new_compactor(self) -> Compactor:
        return Compactor(self._store, self._log, self._clock, self._compaction_bytes, self._buffer_bytes)

    # --- reading

    def get(self, key: bytes, revision: int = 0) -> Deferred[KeyValue | None]:
        """Return a key, as of this call or of a past revision, or None.

        :raises DomainError: at once: ``compacted`` or ``future_revision``.
        :raises StorageCorrupt: as a failure, if the value is damaged. The machine has failed then.
        :raises StorageFailed: as a failure, if the disk failed.
        """
        record = self._store.get(key, revision)
        pairs = [] if record is None else [(key, record)]
        return self._log.load(pairs).addCallback(lambda values: next(_key_values(pairs, values), None))

    def range(
        self, start: bytes = b"", end: bytes | None = None, *, limit: int = 0, revision: int = 0
    ) -> Deferred[RangeResult]:
        """Return a page of the keys in [start, end), in order, as of this call or of a past revision.

        :param end: None is no bound.
        :raises DomainError: at once: ``compacted`` or ``future_revision``.
        :raises StorageCorrupt: as a failure, if a value is damaged. The machine has failed then.
        :raises StorageFailed: as a failure, if the disk failed.
        """
        pairs, next_key = self._store.page(start, end, limit, revision)
        shown = revision or self._store.revision

        def page(values: list[bytes]) -> RangeResult:
            return RangeResult(shown, tuple(_key_values(pairs, values)), next_key is not None, next_key)

        return self._log.load(pairs).addCallback(page)

    # --- before a command

    def prepare(self, command: bytes) -> Deferred[None] | None:
        """See :meth:`IStateMachineFiles.prepare`: waits for room, and fetches the values that a command reads."""
        room = self.room()
        if room is not None:
            return room
        try:
            decoded = decode(command)
        except (DomainError, UnknownCommand):
            return None
        self._decoded = command, decoded
        if isinstance(decoded, Txn):
            compared = self._compared(decoded)
            if compared:
                return self._fetch(list(compared), self._beginnings, list(compared.values()))
            operations: Sequence[Any] = (*decoded.success, *decoded.failure)
        else:
            operations = (decoded,)
        pairs = self._tried(decoded) if any(isinstance(each, Range) for each in operations) else []
        return self._fetch(pairs, self._fetched) if pairs else None

    def _fetch(self, pairs: list[_Pair], into: dict[bytes, bytes], keep: Sequence[int] = ()) -> Deferred[None]:
        def fetched(values: list[bytes]) -> None:
            into.update(zip((record for _, record in pairs), values, strict=True))

        return self._log.load(pairs, keep).addCallback(fetched)

    def room(self) -> Deferred[None] | None:
        """See :meth:`IStateMachineFiles.room`."""
        problem = self._storage.problem
        if problem is not None:
            return fail(problem)
        return self._storage.writes.below(self._buffer_bytes)

    def _compared(self, txn: Txn) -> dict[_Pair, int]:
        """Return what is needed to choose the branch and not at hand: of each value, how many bytes."""
        needed: dict[_Pair, int] = {}
        for each in txn.compare:
            record = self._unread(each)
            if record is not None:
                pair = each.key, record
                # One byte more than the operand tells which of the two is longer.
                needed[pair] = max(needed.get(pair, 0), len(each.operand) + 1)  # type: ignore[arg-type]
            elif not self._holds(each):
                return {}  # whatever the others say
        return needed

    def _unread(self, compare: Compare) -> bytes | None:
        """Return the record whose value a comparison has to read from the disk."""
        if compare.target is not Target.VALUE or compare.comparison in _BY_HASH:
            return None
        record = self._store.get(compare.key)
        return None if record is None or self._beginning(record) is not None else record

    def _tried(self, command: Command) -> list[_Pair]:
        """Carry out a command without its values, and undo it; return what it would read that is not at hand."""
        missing: list[_Pair] = []
        self._missing = missing
        self._log.trial = True
        try:
            self._carry_out(command)
        except DomainError:
            return []
        finally:
            self._store.rollback()
            self._log.trial = False
            self._missing = None
        return missing

    def _at_hand(self, record: bytes) -> bytes | None:
        """Return a value, if it is in memory."""
        value = self._log.waiting(record)
        return self._fetched.get(record) if value is None else value

    def _beginning(self, record: bytes) -> bytes | None:
        """Return as much of a value as the command compares, or all of it, if it is in memory."""
        value = self._at_hand(record)
        return self._beginnings.get(record) if value is None else value

    # --- MachineBase

    def _decode(self, command: bytes) -> Command:
        decoded, self._decoded = self._decoded, None
        return decoded[1] if decoded is not None and decoded[0] == command else decode(command)

    def _applied(self) -> None:
        self._fetched.clear()
        self._beginnings.clear()

    def _succeeds(self, txn: Txn) -> bool:
        # First those that need no disk: if one of them decides, no value was fetched for the others.
        return all(self._holds(each) for each in sorted(txn.compare, key=lambda each: self._unread(each) is not None))

    def _whole(self, key: bytes, record: bytes) -> bytes:
        value = self._at_hand(record)
        if value is None:
            if self._missing is not None:
                if self._log.is_kept(record):  # what the command itself puts is at hand when it is carried out
                    self._missing.append((key, record))
                return record
            # Nobody has prepared this command.
            value = self._storage.read_now(self._log.place(key, record))
        return record[: RECORD_HEAD.size] + value

    def _value_holds(self, compare: Compare, record: bytes) -> bool:
        if compare.comparison in _BY_HASH:
            equal = value_is(compare.key, record, compare.operand)  # type: ignore[arg-type]
            return equal is (compare.comparison is Comparison.EQUAL)
        value = self._beginning(record)
        if value is None:
            value = self._storage.read_now(self._log.place(compare.key, record))
        return holds(compare.comparison, value, compare.operand)

    # --- IStateMachineFiles

    def open(self) -> Deferred[None]:
        """See :meth:`IStateMachineFiles.open`."""
        return self._storage.open()

    @property
    def full(self) -> bool:
        """See :attr:`IStateMachineFiles.full`."""
        return self._storage.writes.full

    def failed(self) -> Deferred[ConsensusError]:
        """See :meth:`IStateMachineFiles.failed`."""
        return self._storage.failed()

    def snapshot(self) -> Iterator[bytes]:
        """Return keys and places of values as of now, in pieces of at most 256 KiB; nothing is copied yet."""
        self._named = self._log.name_files()
        return Snapshot(self._store, self._index, self._named)

    def sealed(self) -> Deferred[Sequence[StateFile]]:
        """See :meth:`IStateMachineFiles.sealed`.

        :raises RuntimeError: if it is not called after :meth:`snapshot`, once.
        """
        named, self._named = self._named, None
        if named is None:
            raise RuntimeError("no snapshot was begun")
        problem = self._storage.problem
        return named.sealed() if problem is None else fail(problem)

    def restore(self) -> IStateSink:
        """Begin to replace the state by one without files: that of a machine with all in memory, or an empty one."""
        return self._sink(self._new_log(), [])

    def restore_files(self, files: Sequence[StateFile]) -> Deferred[IStateSink]:
        """See :meth:`IStateMachineFiles.restore_files`."""
        return self._with_files(self._new_log(), files)

    def _new_log(self) -> ValueLog:
        if self._restoring is not None:
            self._restoring.clear()  # of one that was not finished
        log = self._restoring = ValueLog(self._storage, self._file_bytes)
        return log

    def _with_files(self, log: ValueLog, files: Sequence[StateFile]) -> Deferred[IStateSink]:
        adopted, linked = log.adopt(files)
        return linked.addCallback(lambda _: self._sink(log, adopted))

    def _sink(self, log: ValueLog, files: list[ValueFile]) -> IStateSink:
        def restored(store: Store, index: int) -> None:
            if log is not self._log:
                old, self._log, self._restoring = self._log, log, None
                self._compactor.stop()
                old.clear()
            self._adopt(store, index)
            self._applied()
            self._compactor = self._new_compactor()
            log.sweep(files)
            self._compactor.consider()

        return StateSink(Store(*self._history, log), _Reading(log, files), restored, self._debris)

    # --- IReplaceableFiles

    def replace(self) -> IStateSink:
        """Begin to replace the state by one without files; the old one goes as the new one comes."""
        return self._sink(self._give_up(), [])

    def replace_files(self, files: Sequence[StateFile]) -> Deferred[IStateSink]:
        """See :meth:`IReplaceableFiles.replace_files`."""
        return self._with_files(self._give_up(), files)

    def _give_up(self) -> ValueLog:
        """Let the state go, and its files; return where the values of another one come."""
        if self._restoring is not None:
            self._restoring.clear()
            self._restoring = None
        self._compactor.stop()
        self._log.clear()
        self._clear_away(self._store)
        log = self._log = ValueLog(self._storage, self._file_bytes)
        self._store = Store(*self._history, log)
        self._applied()
        return log

    def close(self) -> Deferred[None]:
        """See :meth:`IStateMachineFiles.close`."""
        if self._closed:
            return succeed(None)
        self._closed = True
        self._compactor.stop()
        return self._storage.close().addBoth(self._stop_threads)

    def _stop_threads(self, result: Any) -> Deferred[Any]:
        return DeferredList([executor.stop() for executor in self._own]).addCallback(lambda _: result)


class _Reading:
    """Reads the records of a snapshot, of either format, into files."""

    def __init__(self, log: ValueLog, files: list[ValueFile]) -> None:
        self._log = log
        self._files = files
        self._inline = False

    def begin(self, header: dict[str, Any]) -> None:
        """Take the header."""
        self._inline = header["format"] == INLINE
        named = 0 if self._inline else header["files"]
        if named != len(self._files):
            raise ValueError(f"the snapshot refers to {named} files, and has {len(self._files)}")

    def record(self, key: bytes, written: bytes) -> bytes:
        """Return the record to keep."""
        if not self._inline:
            return self._log.take(key, written, self._files)
        check_record(key, written)
        return self._log.keep(key, written[: RECORD_HEAD.size], written[RECORD_HEAD.size :])


def _key_values(pairs: Sequence[_Pair], values: Sequence[bytes]) -> Iterator[KeyValue]:
    for (key, record), value in zip(pairs, values, strict=True):
        yield KeyValue.of(key, record[: RECORD_HEAD.size] + value)
