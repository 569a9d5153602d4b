"""Commands of the key-value store, their results, and how both travel.

A request is the bytes that :func:`encode` makes: one CBOR list that starts with the command's number. A result is a
plain list (see :func:`decode_result`), so that the node which proposed a command gets it without any conversion.
Ranges are etcd's: ``range_end`` empty means the key alone, one NUL byte means everything from the key on, and
anything else is the first key that is not in the range.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Any, Final

import attrs

from ..errors import ConversionError, DomainError
from . import _plain

__all__ = [
    "MAX_DELETED_KEYS",
    "MAX_KEY_BYTES",
    "MAX_RANGE_KEYS",
    "MAX_RESULT_BYTES",
    "MAX_TXN_OPERATIONS",
    "TO_THE_END",
    "Command",
    "Compact",
    "CompactResult",
    "Compare",
    "Comparison",
    "Delete",
    "DeleteResult",
    "KeyValue",
    "Operation",
    "OperationResult",
    "Put",
    "PutResult",
    "Range",
    "RangeResult",
    "Result",
    "Target",
    "Txn",
    "TxnResult",
    "decode",
    "decode_result",
    "encode",
    "frees_space",
    "prefix_end",
    "validate",
]

MAX_KEY_BYTES: Final = 4096
"""Longest key. Percent-encoded it still fits into the 16 KiB that a request line may have."""
MAX_TXN_OPERATIONS: Final = 128
"""Most comparisons, and most operations in each branch, of one transaction (as in etcd)."""
MAX_RANGE_KEYS: Final = 1000
"""Most keys in one page of a range, whatever limit was asked for: a page must not hold up the event loop."""
MAX_DELETED_KEYS: Final = 2000
"""Most keys that one command deletes, for the same reason."""
MAX_RESULT_BYTES: Final = 1 << 20
"""Most bytes of keys and values in one result, unless the first pair alone is larger."""
TO_THE_END: Final = b"\0"
"""As ``range_end``: no upper bound."""

RECORD_HEAD: Final = struct.Struct("<QQQQ16s")
"""What stands before the value in a record: create_revision, mod_revision, version, lease; and the key's share in the
digest, so that changing or deleting a large value does not mean to hash it again."""
_MAX_INT: Final = (1 << 63) - 1


class Target(enum.IntEnum):
    """What of a key a comparison looks at. The numbers are part of the log's format."""

    VALUE = 0
    VERSION = 1
    CREATE_REVISION = 2
    MOD_REVISION = 3


class Comparison(enum.IntEnum):
    """What the key's part must be, seen from the operand. The numbers are part of the log's format."""

    EQUAL = 0
    NOT_EQUAL = 1
    LESS = 2
    GREATER = 3


@attrs.frozen
class KeyValue:
    """One key as of some revision. ``lease`` is 0: no lease."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0

    @classmethod
    def of(cls, key: bytes, record: bytes) -> KeyValue:
        """Read a record of the store."""
        create, mod, version, lease, _ = RECORD_HEAD.unpack_from(record)
        return cls(key, record[RECORD_HEAD.size :], create, mod, version, lease)


@attrs.frozen
class Put:
    """Set a key."""

    key: bytes
    value: bytes


@attrs.frozen
class Delete:
    """Delete a key, or a range of at most :data:`MAX_DELETED_KEYS` keys."""

    key: bytes
    range_end: bytes = b""


@attrs.frozen
class Range:
    """Read a key, or a range in key order.

    :param limit: most keys; 0, and what is beyond :data:`MAX_RANGE_KEYS`, mean that bound.
    """

    key: bytes
    range_end: bytes = b""
    limit: int = 0


Operation = Put | Delete | Range


@attrs.frozen
class Compare:
    """A condition on one key.

    A key that does not exist has version, create_revision and mod_revision 0; no comparison of its value holds.

    :param operand: bytes for :attr:`Target.VALUE`, which are compared byte by byte; else an integer.
    """

    key: bytes
    target: Target
    comparison: Comparison
    operand: bytes | int


@attrs.frozen
class Txn:
    """Do ``success`` if every comparison holds, else ``failure``; atomically, in order, at one revision.

    An operation sees what earlier ones of the transaction did. No key may be changed twice, except by two deletions.
    """

    compare: tuple[Compare, ...] = ()
    success: tuple[Operation, ...] = ()
    failure: tuple[Operation, ...] = ()


@attrs.frozen
class Compact:
    """Forget the history up to a revision: what was superseded or deleted by then takes space no more.

    Reads at an earlier revision are refused from then on.
    """

    revision: int


Command = Put | Delete | Range | Txn | Compact


@attrs.frozen
class PutResult:
    """A key was set. ``revision`` is also its mod_revision."""

    revision: int
    create_revision: int
    version: int


@attrs.frozen
class DeleteResult:
    """``deleted`` keys are gone. Without any, the revision stays as it was."""

    revision: int
    deleted: int


@attrs.frozen
class RangeResult:
    """A page of a range.

    :param revision: the revision it shows.
    :param kvs: the keys in order.
    :param more: whether the range goes on.
    :param next_key: where it goes on, or None. It may, if ``more``, be that a page has no keys at all.
    """

    revision: int
    kvs: tuple[KeyValue, ...]
    more: bool = False
    next_key: bytes | None = None


OperationResult = PutResult | DeleteResult | RangeResult


@attrs.frozen
class TxnResult:
    """What a transaction did: the branch, and the result of each of its operations."""

    revision: int
    succeeded: bool
    results: tuple[OperationResult, ...]


@attrs.frozen
class CompactResult:
    """What a compaction did: ``compacted`` is the oldest revision that can be read."""

    revision: int
    compacted: int


Result = PutResult | DeleteResult | RangeResult | TxnResult | CompactResult

PUT, DELETE, RANGE, TXN, COMPACT = 1, 2, 3, 4, 5
_KNOWN = (PUT, DELETE, RANGE, TXN, COMPACT)


def frees_space(command: Command) -> bool:
    """Return whether a command can only make the state smaller: it deletes or compacts, and puts nothing.

    Propose such a command with ``frees_space=True``: it is taken when the disks are full. What is deleted goes into the
    history; so after many deletions a :class:`Compact` is needed as well.
    """
    if isinstance(command, Compact):
        return True
    operations = (*command.success, *command.failure) if isinstance(command, Txn) else (command,)
    deletes = any(isinstance(operation, Delete) for operation in operations)
    return deletes and not any(isinstance(operation, Put) for operation in operations)


def prefix_end(prefix: bytes) -> bytes:
    """Return the ``range_end`` of all keys that start with ``prefix``."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else TO_THE_END


def encode(command: Command) -> bytes:
    """Return the request to propose.

    :raises DomainError: if :func:`validate` refuses the command. Nothing needs to be proposed to learn that.
    :raises TypeError: if a key or a value is not bytes.
    """
    validate(command)
    if isinstance(command, Txn):
        plain: list[Any] = [
            TXN,
            [[each.key, int(each.target), int(each.comparison), each.operand] for each in command.compare],
            [_plain_operation(each) for each in command.success],
            [_plain_operation(each) for each in command.failure],
        ]
    elif isinstance(command, Compact):
        plain = [COMPACT, command.revision]
    else:
        plain = _plain_operation(command)
    return _plain.dumps(plain)


def _plain_operation(operation: Operation) -> list[Any]:
    if isinstance(operation, Put):
        return [PUT, operation.key, operation.value]
    if isinstance(operation, Delete):
        return [DELETE, operation.key, operation.range_end]
    return [RANGE, operation.key, operation.range_end, operation.limit]


def validate(command: Command) -> None:
    """Check the limits that every replica applies.

    :raises DomainError: with one of the reasons ``empty_key``, ``key_too_long``, ``invalid_range``,
        ``invalid_limit``, ``too_many_operations``, ``duplicate_key``, ``invalid_compare``, ``invalid_revision``.
    """
    if isinstance(command, Txn):
        _validate_txn(command)
    elif isinstance(command, Compact):
        if type(command.revision) is not int or not 0 < command.revision <= _MAX_INT:
            raise DomainError("invalid_revision", "a revision is a positive number")
    else:
        _validate_operation(command)


def _validate_operation(operation: Operation) -> None:
    if isinstance(operation, Put):
        _validate_key(operation.key)
        if not isinstance(operation.value, bytes):
            raise TypeError("a value is bytes")
        return
    end = operation.range_end
    _validate_key(operation.key, may_be_empty=bool(end))
    _validate_key(end, may_be_empty=True)
    if end and end != TO_THE_END and end < operation.key:
        raise DomainError("invalid_range", "range_end lies before the key")
    if isinstance(operation, Range) and not 0 <= operation.limit <= _MAX_INT:
        raise DomainError("invalid_limit", "a limit is not negative")


def _validate_key(key: bytes, may_be_empty: bool = False) -> None:
    if not isinstance(key, bytes):
        raise TypeError("a key is bytes")
    if not key and not may_be_empty:
        raise DomainError("empty_key", "a key has at least one byte")
    if len(key) > MAX_KEY_BYTES:
        raise DomainError(
            "key_too_long",
            f"the key has {len(key)} bytes, the limit is {MAX_KEY_BYTES}",
            {"size": len(key), "limit": MAX_KEY_BYTES},
        )


def _validate_txn(txn: Txn) -> None:
    for name in ("compare", "success", "failure"):
        count = len(getattr(txn, name))
        if count > MAX_TXN_OPERATIONS:
            raise DomainError(
                "too_many_operations",
                f"{name} has {count} items, the limit is {MAX_TXN_OPERATIONS}",
                {"field": name, "count": count, "limit": MAX_TXN_OPERATIONS},
            )
    for each in txn.compare:
        _validate_key(each.key)
        operand = each.operand
        if each.target is Target.VALUE:
            fits = isinstance(operand, bytes)
        else:
            fits = type(operand) is int and 0 <= operand <= _MAX_INT
        if not fits:
            raise DomainError("invalid_compare", f"{each.target.name.lower()} cannot be compared with that")
    for branch in (txn.success, txn.failure):
        for operation in branch:
            _validate_operation(operation)
        _refuse_double_changes(branch)


def _refuse_double_changes(branch: tuple[Operation, ...]) -> None:
    """One revision changes a key once, so that the history has one event for both (as in etcd)."""
    keys: set[bytes] = set()
    for operation in branch:
        if isinstance(operation, Put):
            if operation.key in keys:
                raise DomainError("duplicate_key", "a transaction puts the same key twice")
            keys.add(operation.key)
    for operation in branch:
        if isinstance(operation, Delete) and any(_covers(operation, key) for key in keys):
            raise DomainError("duplicate_key", "a transaction puts and deletes the same key")


def _covers(delete: Delete, key: bytes) -> bool:
    end = delete.range_end
    if not end:
        return key == delete.key
    return delete.key <= key and (end == TO_THE_END or key < end)


class UnknownCommand(Exception):
    """A command of a later version. The node must stop: to skip it would be to differ from the others."""


def decode(data: bytes) -> Command:
    """Read what :func:`encode` made; whatever else the bytes are, every replica says the same.

    :raises DomainError: with the reason ``invalid_command`` if they are not a command, else as :func:`validate`.
    :raises UnknownCommand: if they are a command of a later version.
    """
    try:
        plain = _plain.loads(data)
    except ConversionError as error:
        raise DomainError("invalid_command", f"not a command of the key-value store: {error.problem}") from None
    if type(plain) is not list or not plain or type(plain[0]) is not int:
        raise DomainError("invalid_command", "not a command of the key-value store: no command number")
    if plain[0] not in _KNOWN:
        raise UnknownCommand(f"command number {plain[0]} of the key-value store is not known to this version")
    read: Callable[[Any], Command] = {TXN: _txn, COMPACT: _compact}.get(plain[0], _operation)
    command = read(plain)
    validate(command)
    return command


def _compact(plain: list[Any]) -> Compact:
    if len(plain) != 2 or type(plain[1]) is not int:
        raise DomainError("invalid_command", "a compaction has the wrong form")
    return Compact(plain[1])


def _operation(plain: Any) -> Operation:
    if type(plain) is list and plain:
        number, count = plain[0], len(plain)
        if number == PUT and count == 3 and type(plain[1]) is bytes and type(plain[2]) is bytes:
            return Put(plain[1], plain[2])
        if number == DELETE and count == 3 and type(plain[1]) is bytes and type(plain[2]) is bytes:
            return Delete(plain[1], plain[2])
        if number == RANGE and count == 4 and [type(each) for each in plain[1:]] == [bytes, bytes, int]:
            return Range(plain[1], plain[2], plain[3])
    raise DomainError("invalid_command", "an operation has the wrong form")


def _txn(plain: list[Any]) -> Txn:
    if len(plain) != 4 or any(type(each) is not list for each in plain[1:]):
        raise DomainError("invalid_command", "a transaction has the wrong form")
    return Txn(
        tuple(_compare(each) for each in plain[1]),
        tuple(_operation(each) for each in plain[2]),
        tuple(_operation(each) for each in plain[3]),
    )


def _compare(plain: Any) -> Compare:
    if type(plain) is not list or [type(each) for each in plain[:3]] != [bytes, int, int] or len(plain) != 4:
        raise DomainError("invalid_command", "a comparison has the wrong form")
    try:
        return Compare(plain[0], Target(plain[1]), Comparison(plain[2]), plain[3])
    except ValueError as error:
        raise DomainError("invalid_command", str(error)) from None


def decode_result(plain: list[Any]) -> Result:
    """Read the result of a proposal.

    A result is a list: ``[1, revision, create_revision, version]`` of a put, ``[2, revision, deleted]`` of a
    deletion, ``[3, revision, [[key, record], ...], next_key or None]`` of a range, and
    ``[4, revision, succeeded, results]`` of a transaction, and ``[5, revision, compacted]`` of a compaction.
    """
    if plain[0] == TXN:
        return TxnResult(plain[1], plain[2], tuple(decode_result(each) for each in plain[3]))  # type: ignore[misc]
    if plain[0] == PUT:
        return PutResult(plain[1], plain[2], plain[3])
    if plain[0] == DELETE:
        return DeleteResult(plain[1], plain[2])
    if plain[0] == COMPACT:
        return CompactResult(plain[1], plain[2])
    kvs = tuple(KeyValue.of(key, record) for key, record in plain[2])
    return RangeResult(plain[1], kvs, plain[3] is not None, plain[3])
