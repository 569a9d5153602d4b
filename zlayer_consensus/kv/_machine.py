"""The key-value application as a node sees it: what every machine of it does, and the one that is all in memory."""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from zope.interface import implementer

from ..errors import ConfigError, DomainError
from ..storage.interfaces import ApplyContext, IReplaceableState, IStateDigest, IStateMachine, IStateSink
from ..types import declare_raft_types
from ._commands import (
    COMPACT,
    DELETE,
    MAX_RESULT_BYTES,
    PUT,
    RANGE,
    RECORD_HEAD,
    TO_THE_END,
    TXN,
    Command,
    Compact,
    Compare,
    Comparison,
    Delete,
    KeyValue,
    Operation,
    Put,
    RangeResult,
    Target,
    Txn,
    decode,
)
from ._records import check_record
from ._snapshot import INLINE, Snapshot, StateSink
from ._store import HISTORY_BYTES, HISTORY_CHANGES, Store

__all__ = ["TYPES", "KeyValueMachine", "MachineBase", "holds"]

_NUMBERS = struct.Struct("<QQQ")

TYPES = declare_raft_types(request=bytes, response=Any)
"""The types to give to a node that runs :class:`KeyValueMachine` or :class:`FileKeyValueMachine`."""


class MachineBase:
    """What the machines have in common, wherever their values are.

    :param store: the empty store.
    """

    digest_kind = "zlayer kv 1"
    """See :class:`~zlayer_consensus.storage.IStateDigest`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._index = 0
        self._debris: Iterator[None] = iter(())

    @property
    def index(self) -> int:
        """The log index of the last command that was applied."""
        return self._index

    @property
    def revision(self) -> int:
        """The current revision; that of an empty store is 1."""
        return self._store.revision

    @property
    def compacted_revision(self) -> int:
        """The oldest revision that can be read."""
        return self._store.compacted

    def __len__(self) -> int:
        return len(self._store)

    def digest(self) -> bytes:
        """Return 16 bytes that depend on the keys and their records alone."""
        return self._store.digest()

    def state_digest(self) -> bytes:
        """Return what tells this state from every other; see :class:`~zlayer_consensus.storage.IStateDigest`.

        Of the history it has the reach alone: each change in it was a record once.
        """
        store = self._store
        return store.digest() + _NUMBERS.pack(store.revision, store.compacted, self._index)

    def apply(self, command: bytes, context: ApplyContext) -> list[Any]:
        """Carry out a command, in one step or not at all.

        :raises DomainError: if it is refused; every replica says the same.
        :raises UnknownCommand: if a later version made it; the node stops.
        """
        next(self._debris, None)
        try:
            result = self._carry_out(self._decode(command))
        except BaseException as error:
            self._store.rollback()
            if isinstance(error, DomainError):
                self._index = context.index
            raise
        finally:
            self._applied()
        self._store.commit()
        self._index = context.index
        return result

    def _decode(self, command: bytes) -> Command:
        return decode(command)

    def _applied(self) -> None:
        """A command was carried out, or refused."""

    def _adopt(self, store: Store, index: int) -> None:
        self._clear_away(self._store)
        self._store = store
        self._index = index

    def _clear_away(self, store: Store) -> None:
        # Freed bit by bit, here or in apply: to free a million keys at once would stop the event loop for 0.1 s.
        self._debris = chain(self._debris, store.dismantle())

    # --- commands

    def _carry_out(self, command: Command) -> list[Any]:
        if isinstance(command, Txn):
            return self._txn(command)
        if isinstance(command, Compact):
            self._store.compact(command.revision)
            return [COMPACT, self._store.revision, self._store.compacted]
        return self._operation(command, MAX_RESULT_BYTES)[0]

    def _txn(self, txn: Txn) -> list[Any]:
        succeeded = self._succeeds(txn)
        results: list[list[Any]] = []
        total = 0
        for operation in txn.success if succeeded else txn.failure:
            result, size = self._operation(operation, MAX_RESULT_BYTES - total)
            results.append(result)
            total += size
            if total > MAX_RESULT_BYTES and total > size:
                raise DomainError(
                    "result_too_large",
                    f"the transaction reads more than {MAX_RESULT_BYTES} bytes; nothing was done",
                    {"limit": MAX_RESULT_BYTES},
                )
        return [TXN, self._store.revision_so_far, succeeded, results]

    def _operation(self, operation: Operation, max_bytes: int) -> tuple[list[Any], int]:
        """Return the result, and how many bytes of the store are in it."""
        store = self._store
        if isinstance(operation, Put):
            put = store.put(operation.key, operation.value)
            return [PUT, store.revision_so_far, *put], 0
        start, range_end = operation.key, operation.range_end
        end = None if range_end == TO_THE_END else range_end
        if isinstance(operation, Delete):
            deleted = store.delete_range(start, end) if range_end else store.delete(start)
            return [DELETE, store.revision_so_far, deleted], 0
        if range_end:
            pairs, next_key = store.page(start, end, operation.limit, max_bytes=max_bytes)
        else:
            record = store.get(start)
            pairs, next_key = [] if record is None else [(start, record)], None
        value_size = store.values.size
        size = sum(len(key) + value_size(record) for key, record in pairs)
        return [RANGE, store.revision_so_far, [[key, self._whole(key, each)] for key, each in pairs], next_key], size

    def _succeeds(self, txn: Txn) -> bool:
        return all(self._holds(each) for each in txn.compare)

    def _holds(self, compare: Compare) -> bool:
        record = self._store.get(compare.key)
        if compare.target is Target.VALUE:
            return record is not None and self._value_holds(compare, record)
        create, mod, version, *_ = RECORD_HEAD.unpack_from(record) if record else (0, 0, 0)
        actual = {Target.CREATE_REVISION: create, Target.MOD_REVISION: mod, Target.VERSION: version}[compare.target]
        return holds(compare.comparison, actual, compare.operand)

    # --- values

    def _whole(self, key: bytes, record: bytes) -> bytes:
        """Return a record with its value in it."""
        raise NotImplementedError

    def _value_holds(self, compare: Compare, record: bytes) -> bool:
        """Say whether a comparison with a record's value holds."""
        raise NotImplementedError


_HOLDS: dict[Comparison, Callable[[Any, Any], bool]] = {
    Comparison.EQUAL: operator.eq,
    Comparison.NOT_EQUAL: operator.ne,
    Comparison.LESS: operator.lt,
    Comparison.GREATER: operator.gt,
}


def holds(comparison: Comparison, actual: Any, operand: Any) -> bool:
    """Say whether a comparison holds."""
    return _HOLDS[comparison](actual, operand)


@implementer(IStateMachine, IStateDigest, IReplaceableState)
class KeyValueMachine(MachineBase):
    """A replicated, ordered, versioned map of bytes to bytes.

    Commands are what :func:`~zlayer_consensus.kv.encode` makes, results what
    :func:`~zlayer_consensus.kv.decode_result` reads. Reads that do not go through the log use :meth:`get` and
    :meth:`range` from within ``read_state``. A command that is refused (:class:`~zlayer_consensus.errors.DomainError`)
    has changed nothing.

    :param history_changes: changes of which the history is kept, for reads at a past revision.
    :param history_bytes: bytes that this history may take.
    """

    def __init__(self, *, history_changes: int = HISTORY_CHANGES, history_bytes: int = HISTORY_BYTES) -> None:
        self._history = (history_changes, history_bytes)
        super().__init__(Store(*self._history))

    def get(self, key: bytes, revision: int = 0) -> KeyValue | None:
        """Return a key, now or as of a past revision, or None.

        :raises DomainError: ``compacted`` or ``future_revision``.
        """
        record = self._store.get(key, revision)
        return None if record is None else KeyValue.of(key, record)

    def range(self, start: bytes = b"", end: bytes | None = None, *, limit: int = 0, revision: int = 0) -> RangeResult:
        """Return a page of the keys in [start, end), in order; ``end`` None is no bound.

        :raises DomainError: ``compacted`` or ``future_revision``.
        """
        pairs, next_key = self._store.page(start, end, limit, revision)
        kvs = tuple(KeyValue.of(key, record) for key, record in pairs)
        return RangeResult(revision or self._store.revision, kvs, next_key is not None, next_key)

    def snapshot(self) -> Iterator[bytes]:
        """Return the state as of now, in pieces of at most 256 KiB; nothing is copied yet."""
        return Snapshot(self._store, self._index)

    def restore(self) -> IStateSink:
        """Begin to replace the state."""
        return StateSink(Store(*self._history), _Inline(), self._adopt)

    def replace(self) -> IStateSink:
        """Begin to replace the state; the old one goes as the new one comes."""
        self._clear_away(self._store)
        self._store = Store(*self._history)
        return StateSink(Store(*self._history), _Inline(), self._adopt, self._debris)

    def _whole(self, key: bytes, record: bytes) -> bytes:
        return record

    def _value_holds(self, compare: Compare, record: bytes) -> bool:
        return holds(compare.comparison, record[RECORD_HEAD.size :], compare.operand)


class _Inline:
    """Reads the records of a snapshot whose values are in them."""

    def begin(self, header: dict[str, Any]) -> None:
        """Refuse a snapshot whose values are elsewhere."""
        if header["format"] != INLINE:
            rule = 'cannot load a snapshot of a node that has its values on disk; [storage] values must be "disk"'
            raise ConfigError("values", "memory", rule)

    def record(self, key: bytes, written: bytes) -> bytes:
        """Return the record, if it is whole."""
        check_record(key, written)
        return written
