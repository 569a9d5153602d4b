"""The model of the key-value store of :mod:`zlayer_consensus.kv`: every key with its revisions and its version."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from ...kv import DeleteResult, KeyValue, PutResult, RangeResult, TxnResult
from ._model import Conflict, Model
from ._operation import Operation

__all__ = ["VersionedRegister"]

# A state is (value, version, create_revision, mod_revision); without a value it is (None, 0, 0, r), where r is a
# revision that the next change must exceed. The revision of a change that nobody was told is (lowest, excluded): a
# number of at least `lowest` that is not in `excluded`. `lowest` itself is never in it.
_Revision = int | tuple[int, frozenset[int]]
_State = tuple[bytes | None, int, _Revision, _Revision]

_NONE: frozenset[int] = frozenset()
_ABSENT, _PRESENT = "absent", "present"


class VersionedRegister(Model):
    """One key of the replicated key-value store: the data model of etcd v3.

    ================  =====================  =====================================================
    function          argument               result
    ================  =====================  =====================================================
    ``get``           None                   ``KeyValue``, None (absent), or ``RangeResult``
    ``put``           value                  ``PutResult``
    ``delete``        None                   ``DeleteResult``
    ``append``        suffix                 ``PutResult``; an absent key counts as empty
    ``cas``           (expected, value)      ``TxnResult``, ``PutResult``, or a bool; expected None: absent
    ``cas_revision``  (mod_revision, value)  the same; mod_revision 0: absent
    ================  =====================  =====================================================

    Keys and values are bytes. A result that is None or True says that the change was done, and not at which revision;
    a refused transaction (``TxnResult`` or False) may hold a read of the key. The operations are recorded as the
    client sees them: an append that is made of a read and a transaction begins with the read and ends with the
    transaction that succeeded.

    Within a key, the version counts the changes and each change has a larger mod_revision than the one before. Where
    nobody was told the revision of a change, the first operation that shows it settles it. Across keys
    (:meth:`conflict`), no two changes have one revision, and what began after a reply shows no older revision than
    that reply: so an operation changes one key only.
    """

    reads = frozenset({"get"})
    initial: Any = (None, 0, 0, 0)

    def step(self, state: Any, operation: Operation) -> Hashable | None:
        """See :meth:`Model.step`."""
        function = operation.function
        result = None if operation.unknown else operation.result
        if function == "put":
            return _change(state, operation.argument, _put_result(result))
        if function == "get":
            return state if operation.unknown else _read(state, result)
        if function == "append":
            return _change(state, (state[0] or b"") + operation.argument, _put_result(result))
        if function == "delete":
            return _delete(state, result, operation.unknown)
        if function in ("cas", "cas_revision"):
            if not operation.unknown and not _succeeded(result):
                refused = _refuse(state, function, operation.argument[0])
                return refused and _read_of_refused(refused, result)
            met = _meet(state, function, operation.argument[0])
            return met and _change(met, operation.argument[1], _put_result(result))
        raise ValueError(f"a key of the key-value store has no function {function!r}")

    def observes(self, operation: Operation) -> bool:
        """Reads do, deletions of nothing, and transactions that were refused."""
        if operation.function == "get":
            return True
        if operation.unknown:
            return False
        if operation.function == "delete":
            return isinstance(operation.result, DeleteResult) and not operation.result.deleted
        return operation.function in ("cas", "cas_revision") and not _succeeded(operation.result)

    def may_follow(self, operation: Operation, change: Operation) -> bool:
        """By revisions and version if the change's are known, else by the value."""
        left = None if change.unknown else self.leaves(change)
        if left is not None:
            return self.step(left, operation) is not None
        seen = _seen(operation)
        if seen is None:
            return True
        if change.function == "delete":
            return seen is _ABSENT
        if seen is _ABSENT or seen is _PRESENT:
            return seen is _PRESENT
        if change.function == "append":
            return bool(seen.endswith(change.argument))
        return bool(seen == (change.argument if change.function == "put" else change.argument[1]))

    def leaves(self, operation: Operation) -> Hashable | None:
        """All that show revisions do."""
        function, result, argument = operation.function, operation.result, operation.argument
        if function == "get":
            return _read_state(_key_value(result))
        if function == "delete":
            if not isinstance(result, DeleteResult):
                return (None, 0, 0, 0)
            return (None, 0, 0, result.revision if result.deleted else 0)
        put = _put_result(result) if function in ("put", "append") or _succeeded(result) else None
        if put is None:
            shown = _reads_of_refused(result) if function in ("cas", "cas_revision") else []
            return _read_state(_key_value(shown[0])) if shown else None
        if function == "append" and put.version > 1:
            return None
        value = argument if function in ("put", "append") else argument[1]
        return (value, put.version, put.create_revision, put.revision)

    def conflict(self, operations: Sequence[Operation]) -> Conflict | None:
        """Compare the revisions of all keys with each other and with real time."""
        makers: dict[int, Operation] = {}
        events: list[tuple[float, int, Operation]] = []
        for each in operations:
            if each.unknown:
                continue
            revision = _revision(each)
            if revision and not self.observes(each):
                other = makers.setdefault(revision, each)
                if other is not each:
                    return Conflict((other, each), f"two changes have the revision {revision}")
            events += [(each.call_time, 0, each), (each.return_time, 1, each)]
        events.sort(key=lambda event: event[:2])
        highest, known = 0, None
        for _, is_return, each in events:
            if is_return:
                shown = max(_revision(each), _least_revision(each))
                if shown > highest:
                    highest, known = shown, each
                continue
            revision = _revision(each)
            if revision and known and revision < highest + (not self.observes(each)):
                return Conflict((known, each), f"revision {revision} came after a reply with revision {highest}")
        return None

    def describe(self, operation: Operation) -> str:
        """See :meth:`Model.describe`."""
        function, argument = operation.function, operation.argument
        call = function if argument is None else f"{function} {argument!r}"
        if function in ("cas", "cas_revision"):
            call = f"{function} {argument[0]!r} to {argument[1]!r}"
        return f"{call} → {'unknown' if operation.unknown else _describe_result(function, operation.result)}"

    def describe_state(self, state: Any) -> str:
        """See :meth:`Model.describe_state`."""
        value, version, create, mod = state
        if not version:
            return f"absent (last revision {mod})" if mod else "absent"
        return f"{value!r}, version {version}, created at {_describe(create)}, changed at {_describe(mod)}"


def _lowest(revision: _Revision) -> int:
    return revision if isinstance(revision, int) else revision[0]


def _is(revision: _Revision, number: int) -> bool:
    """Whether a revision can be this number."""
    if isinstance(revision, int):
        return revision == number
    return number >= revision[0] and number not in revision[1]


def _is_not(revision: _Revision, number: int) -> _Revision | None:
    """Return the revision that is known not to be a number, or None if it is that number."""
    if isinstance(revision, int):
        return None if revision == number else revision
    lowest, excluded = revision
    if number < lowest:
        return revision
    excluded |= {number}
    while lowest in excluded:
        excluded -= {lowest}
        lowest += 1
    return (lowest, excluded)


def _change(state: _State, value: bytes, result: PutResult | None) -> _State | None:
    _, version, create, mod = state
    if result is None:
        hidden = (_lowest(mod) + 1, _NONE)
        return (value, version + 1, create if version else hidden, hidden)
    if result.version != version + 1 or result.revision <= _lowest(mod):
        return None
    if not version:
        return (value, 1, result.revision, result.revision) if result.create_revision == result.revision else None
    # The changes since the creation had different revisions, up to the present one.
    latest = mod if isinstance(mod, int) else result.revision - 1
    if not _is(create, result.create_revision) or result.create_revision + version - 1 > latest:
        return None
    return (value, result.version, result.create_revision, result.revision)


def _delete(state: _State, result: DeleteResult | None, unknown: bool) -> _State | None:
    _, version, _, mod = state
    if result is None:
        if version:
            return (None, 0, 0, _lowest(mod) + 1)
        return None if unknown else state
    if not result.deleted:
        return state if not version and result.revision >= _lowest(mod) else None
    return (None, 0, 0, result.revision) if version and result.revision > _lowest(mod) else None


def _read(state: _State, result: KeyValue | RangeResult | None) -> _State | None:
    if isinstance(result, RangeResult) and result.revision < _lowest(state[3]):
        return None
    shown = _key_value(result)
    value, version, create, mod = state
    if shown is None:
        return None if version else state
    if shown.value != value or shown.version != version:
        return None
    if not (_is(create, shown.create_revision) and _is(mod, shown.mod_revision)):
        return None
    gap = shown.mod_revision - shown.create_revision
    if gap < version - 1 or (version == 1 and gap):
        return None
    return (value, version, shown.create_revision, shown.mod_revision)


def _meet(state: _State, function: str, expected: Any) -> _State | None:
    """Return the state if it fulfils the condition of a compare-and-swap, and what follows from that."""
    value, version, create, mod = state
    if function == "cas":
        return state if value == expected else None
    if not version:
        return state if expected == 0 else None
    if not _is(mod, expected):
        return None
    return (value, version, expected if version == 1 else create, expected)


def _refuse(state: _State, function: str, expected: Any) -> _State | None:
    """Return the state if it does not fulfil the condition, and what follows from that."""
    value, version, create, mod = state
    if function == "cas":
        return state if value != expected else None
    if not version:
        return state if expected != 0 else None
    other = _is_not(mod, expected)
    if other is None:
        return None
    return (value, version, other if version == 1 else create, other)


def _reads_of_refused(result: Any) -> list[RangeResult]:
    if isinstance(result, TxnResult) and not result.succeeded:
        return [each for each in result.results if isinstance(each, RangeResult)]
    return []


def _read_of_refused(state: _State, result: Any) -> _State | None:
    for each in _reads_of_refused(result):
        after = _read(state, each)
        if after is None:
            return None
        state = after
    return state


def _succeeded(result: Any) -> bool:
    if isinstance(result, TxnResult):
        return result.succeeded
    return result is None or result is True or isinstance(result, PutResult)


def _put_result(result: Any) -> PutResult | None:
    if isinstance(result, TxnResult):
        return next((each for each in result.results if isinstance(each, PutResult)), None)
    return result if isinstance(result, PutResult) else None


def _key_value(result: KeyValue | RangeResult | None) -> KeyValue | None:
    if isinstance(result, RangeResult):
        return result.kvs[0] if result.kvs else None
    return result


def _read_state(shown: KeyValue | None) -> _State:
    if shown is None:
        return (None, 0, 0, 0)
    return (shown.value, shown.version, shown.create_revision, shown.mod_revision)


def _seen(operation: Operation) -> Any:
    """Return the value that an operation found; or whether there was one; or None if its result does not tell."""
    function, result = operation.function, operation.result
    if function == "cas" and (operation.unknown or _succeeded(result)):
        expected = operation.argument[0]
        return _ABSENT if expected is None else expected
    if operation.unknown:
        return None
    if function == "get":
        shown = _key_value(result)
        return _ABSENT if shown is None else shown.value
    if function == "delete":
        return (_PRESENT if result.deleted else _ABSENT) if isinstance(result, DeleteResult) else None
    put = _put_result(result)
    return None if put is None else _PRESENT if put.version > 1 else _ABSENT


def _revision(operation: Operation) -> int:
    """Return the revision of the store at the moment of an operation, or 0 if its result does not tell."""
    result = operation.result
    if isinstance(result, PutResult | DeleteResult | RangeResult | TxnResult):
        return result.revision
    return 0


def _least_revision(operation: Operation) -> int:
    shown = operation.result
    return shown.mod_revision if isinstance(shown, KeyValue) else 0


def _describe_result(function: str, result: Any) -> str:
    if function == "get":
        shown = _key_value(result)
        return "absent" if shown is None else _describe_key_value(shown)
    if isinstance(result, DeleteResult):
        return f"deleted at {result.revision}" if result.deleted else "nothing to delete"
    if function in ("cas", "cas_revision") and not _succeeded(result):
        reads = _reads_of_refused(result)
        shown = _key_value(reads[0]) if reads else None
        return "refused" + (f", {_describe_key_value(shown)}" if shown else "")
    put = _put_result(result)
    return (
        "done" if put is None else f"version {put.version}, created at {put.create_revision}, revision {put.revision}"
    )


def _describe_key_value(shown: KeyValue) -> str:
    return (
        f"{shown.value!r}, version {shown.version}, created at {shown.create_revision}, changed at {shown.mod_revision}"
    )


def _describe(revision: _Revision) -> str:
    return str(revision) if isinstance(revision, int) else f"{revision[0]} or later"
