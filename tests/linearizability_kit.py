"""Histories that are linearizable by construction, and a checker that tries every order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zlayer_consensus.kv import DeleteResult, KeyValue, PutResult, RangeResult, TxnResult
from zlayer_consensus.testing.linearizability import (
    CasRegister,
    History,
    Model,
    Operation,
    StringRegister,
    VersionedRegister,
)

# Does one thing to the value of one key at one moment, and returns what the client hears.
Do = Callable[[str, str, Any], Any]
Choose = Callable[[random.Random, int], tuple[str, Any]]


class PlainStore:
    """Values without more: what registers and strings do."""

    def __init__(self, initial: Any) -> None:
        self._initial = initial
        self._values: dict[str, Any] = {}

    def do(self, key: str, function: str, argument: Any) -> Any:
        value = self._values.get(key, self._initial)
        if function in ("read", "get"):
            return value
        if function == "cas":
            if value != argument[0]:
                return False
            argument = argument[1]
        self._values[key] = value + argument if function == "append" else argument
        return True if function == "cas" else None


class RevisionStore:
    """What the key-value store does, as its documentation says."""

    def __init__(self) -> None:
        self._revision = 1
        self._keys: dict[str, KeyValue] = {}

    def do(self, key: str, function: str, argument: Any) -> Any:
        now = self._keys.get(key)
        if function == "get":
            return now
        if function == "delete":
            if now is None:
                return DeleteResult(self._revision, 0)
            del self._keys[key]
            self._revision += 1
            return DeleteResult(self._revision, 1)
        if function == "put":
            return self._put(key, argument)
        if function == "append":
            return self._put(key, (now.value if now else b"") + argument)
        met = (now.value if now else None) if function == "cas" else now.mod_revision if now else 0
        if met == argument[0]:
            put = self._put(key, argument[1])
            return TxnResult(put.revision, True, (put,))
        return TxnResult(self._revision, False, (RangeResult(self._revision, (now,) if now else ()),))

    def _put(self, key: str, value: bytes) -> PutResult:
        self._revision += 1
        now = self._keys.get(key)
        create, version = (now.create_revision, now.version + 1) if now else (self._revision, 1)
        self._keys[key] = KeyValue(key.encode(), value, create, self._revision, version)
        return PutResult(self._revision, create, version)


def choose_register(values: int) -> Choose:
    def choose(rng: random.Random, number: int) -> tuple[str, Any]:
        function = rng.choice(["read", "read", "write", "cas"])
        value = rng.randrange(values) if values else number
        old = rng.randrange(values) if values else max(0, number - rng.randrange(1, 4))
        return function, {"read": None, "write": value, "cas": (old, value)}[function]

    return choose


def choose_string(rng: random.Random, number: int) -> tuple[str, Any]:
    function = rng.choice(["get", "get", "append", "append", "put"])
    return function, None if function == "get" else f"<{number}>"


def choose_versioned(rng: random.Random, number: int) -> tuple[str, Any]:
    function = rng.choice(["get", "get", "put", "delete", "append", "cas", "cas_revision"])
    value = b"%d;" % rng.randrange(max(1, number - 2), number + 1)
    expected: Any = rng.choice([None, b"%d;" % rng.randrange(number + 1)])
    if function == "cas_revision":
        expected = rng.randrange(max(1, number - 3), number + 2) if rng.random() < 0.8 else 0
    arguments: dict[str, Any] = {"get": None, "delete": None, "put": value, "append": value}
    return function, arguments.get(function, (expected, value))


def generate(
    rng: random.Random,
    do: Do,
    choose: Choose,
    *,
    operations: int,
    processes: int = 3,
    keys: int = 1,
    lost: float = 0.0,
) -> History:
    """Run clients that really take effect at one moment each, between call and return, and record what they see.

    The index of a change is the number of its turn, that of a read the number of turns before it. Of a lost operation
    the client never hears; it takes effect at some time, or never.
    """
    history = History()
    clients: dict[int, list[Any]] = {}
    names = iter(range(10**9))
    free = [next(names) for _ in range(processes)]
    abandoned: list[tuple[str, str, Any]] = []
    begun = turn = time = 0
    while begun < operations or clients:
        time += rng.randrange(2)
        if abandoned and rng.random() < 0.2:
            do(*abandoned.pop(rng.randrange(len(abandoned))))
            turn += 1
        if begun < operations and free and (not clients or rng.random() < 0.5):
            process = free.pop(rng.randrange(len(free)))
            key = f"k{rng.randrange(keys)}"
            begun += 1
            function, argument = choose(rng, begun)
            handle = history.invoke(process, function, key, argument, time)
            clients[process] = [handle, (key, function, argument), False, None, 0]
            continue
        process = rng.choice(sorted(clients))
        handle, what, done, result, index = client = clients[process]
        if rng.random() < lost:
            history.unknown(handle)
            if not done and rng.random() < 0.6:
                abandoned.append(what)
        elif not done:
            turn += what[1] not in ("read", "get")
            client[2:] = True, do(*what), turn
            continue
        else:
            history.ok(handle, result, time, index)
        del clients[process]
        free.append(process if not history.retired(process) else next(names))
    return history


def precedes(one: Operation, other: Operation) -> bool:
    return one.return_time < other.call_time


def orders(operations: Sequence[Operation]) -> Iterator[list[Operation]]:
    """Yield every order of all completed and some unknown operations that respects real time."""

    def extend(order: list[Operation], left: list[Operation]) -> Iterator[list[Operation]]:
        if all(each.unknown for each in left):
            yield order
        for each in left:
            if not any(precedes(other, each) for other in left):
                yield from extend([*order, each], [other for other in left if other is not each])

    return extend([], list(operations))


def brute_force(operations: Sequence[Operation], kind: str, start: Any = None) -> bool:
    """Say whether any order explains all results, with nothing of the checker's but the data."""
    explain = {"register": _explain_plain, "string": _explain_plain, "versioned": _explain_versioned}[kind]
    first = {"register": None, "string": "", "versioned": (None, 0, 0, 0, 0)}[kind] if start is None else start
    highest = 1 + len(operations) + max([_shown_revision(each) for each in operations], default=0)
    return any(explain(order, 0, first, highest) for order in orders(operations))


def _explain_plain(order: list[Operation], at: int, value: Any, highest: int) -> bool:
    if at == len(order):
        return True
    each = order[at]
    function, argument = each.function, each.argument
    if function in ("read", "get"):
        if not each.unknown and each.result != value:
            return False
    elif function == "cas":
        if not each.unknown and (value == argument[0]) != each.result:
            return False
        if value == argument[0]:
            value = argument[1]
    else:
        value = value + argument if function == "append" else argument
    return _explain_plain(order, at + 1, value, highest)


def _shown_revision(each: Operation) -> int:
    result = None if each.unknown else each.result
    if isinstance(result, KeyValue):
        return result.mod_revision
    return result.revision if isinstance(result, PutResult | DeleteResult | TxnResult) else 0


def _explain_versioned(order: list[Operation], at: int, state: Any, highest: int) -> bool:
    """Try every revision for a change of which no client was told the revision."""
    if at == len(order):
        return True
    each = order[at]
    value, create, mod, version, last = state
    function, argument = each.function, each.argument
    result = None if each.unknown else each.result
    shown = KeyValue(each.key.encode(), value, create, mod, version) if version else None  # type: ignore[attr-defined]
    if function == "get":
        return (each.unknown or result == shown) and _explain_versioned(order, at + 1, state, highest)
    does = {"put": True, "append": True, "delete": version > 0}.get(function)
    if does is None:
        does = argument[0] == ((value if version else None) if function == "cas" else mod)
    told: Any = result if isinstance(result, DeleteResult | PutResult | TxnResult) else None
    if told is not None:
        said = told.deleted == 1 if function == "delete" else getattr(told, "succeeded", True)
        if said != does or told.revision < last:
            return False
        if function.startswith("cas") and not said and told.results[0].kvs != ((shown,) if shown else ()):
            return False
    elif not each.unknown and result is not None and bool(result) != does:
        return False
    if not does:
        return _explain_versioned(order, at + 1, state, highest)
    for revision in (told.revision,) if told is not None else range(last + 1, highest + 1):
        if revision <= last:
            continue
        if function == "delete":
            after: Any = (None, 0, 0, 0, revision)
        else:
            new = (value or b"") + argument if function == "append" else argument[1] if function != "put" else argument
            after = (new, create if version else revision, revision, version + 1, revision)
            put = result.results[0] if isinstance(result, TxnResult) else result
            if told is not None and put != PutResult(revision, after[1], after[3]):
                continue
        if _explain_versioned(order, at + 1, after, highest):
            return True
    return False


def proves(order: Sequence[Operation], operations: Sequence[Operation], model: Model, state: Any = None) -> bool:
    """Say whether an order is a linearization of operations of one key."""
    missing = {id(each) for each in operations if not each.unknown} - {id(each) for each in order}
    if missing or len({id(each) for each in order}) != len(order):
        return False
    state = model.initial if state is None else state
    for at, each in enumerate(order):
        if any(precedes(later, each) for later in order[at + 1 :]):
            return False
        state = model.step(state, each)
        if state is None:
            return False
    return True


class OneKey(VersionedRegister):
    """Without the rules across keys, which trying all orders of one key knows nothing of."""

    def conflict(self, operations: Sequence[Operation]) -> None:
        return None


def setting(kind: str, *, values: int = 0) -> tuple[Do, Choose, Model]:
    """Return a store, what clients do with it, and its model."""
    if kind == "register":
        return PlainStore(None).do, choose_register(values), CasRegister()
    if kind == "string":
        return PlainStore("").do, choose_string, StringRegister()
    return RevisionStore().do, choose_versioned, OneKey()
