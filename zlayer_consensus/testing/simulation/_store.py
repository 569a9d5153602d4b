"""The application that is simulated by default: the key-value store, with commands that append, and with tags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from ...kv import (
    TYPES,
    Compare,
    Comparison,
    Delete,
    KeyValue,
    KeyValueMachine,
    Put,
    Range,
    RangeResult,
    Target,
    Txn,
    decode_result,
    encode,
)
from ...storage import ApplyContext
from ..linearizability import VersionedRegister
from ._application import Action, Propose, Query, Record

__all__ = ["TYPES", "AppendingStore", "actions", "encode_append", "encode_tagged", "model", "read"]

_APPEND = b"+"
_TAG = b"#"
"""No command of the store starts with one of these: theirs are CBOR lists."""


def encode_append(key: bytes, suffix: bytes) -> bytes:
    """Return the request that adds ``suffix`` to a key's value. It shows what was done twice, or in another order."""
    return _APPEND + bytes([len(key)]) + key + suffix


def encode_tagged(tag: bytes, command: bytes) -> bytes:
    """Return a request that does the same as another one, and is told from it."""
    return _TAG + bytes([len(tag)]) + tag + command


class AppendingStore(KeyValueMachine):
    """The shipped store, with a command that appends, by the store's own put; and commands may have a tag."""

    def apply(self, command: bytes, context: ApplyContext) -> list[Any]:
        """See :meth:`~zlayer_consensus.storage.IStateMachine.apply`."""
        if command[:1] == _TAG:
            command = command[2 + command[1] :]
        if command[:1] == _APPEND:
            end = 2 + command[1]
            key = command[2:end]
            old = self.get(key)
            command = encode(Put(key, (b"" if old is None else old.value) + command[end:]))
        return super().apply(command, context)


def actions(keys: int) -> Callable[[Random, int], Action]:
    """Return what the clients of a run with so many keys ask for next."""
    return _Clients(keys).next


def read(machine: KeyValueMachine) -> tuple[int, bytes]:
    """Return what tells one state from all others."""
    return machine.revision, machine.digest()


def model() -> VersionedRegister:
    """Return what checks a history of the store."""
    return VersionedRegister()


class _Clients:
    """What clients know of the store, all of them together, and what they ask for next."""

    def __init__(self, keys: int) -> None:
        self._keys = [b"k%d" % number for number in range(keys)]
        self._known: dict[bytes, KeyValue | None] = {}
        self._count = 0
        self._large: float | None = None
        """How many values are larger than they need be."""
        self._kinds: list[tuple[float, Callable[[Random, bytes, int], Action]]] = [
            (20, self._put),
            (22, self._get),
            (4, self._get_by_log),
            (18, self._append),
            (8, self._delete),
            (10, self._swap_value),
            (10, self._swap_revision),
            (3, self._put_several),
            (3, self._range),
            (2, self._invalid),
        ]
        self._weights = [weight for weight, _ in self._kinds]

    def next(self, random: Random, client: int) -> Action:
        """Return the next action of a client."""
        make = random.choices(self._kinds, self._weights)[0][1]
        return make(random, random.choice(self._keys), client)

    def _token(self, random: Random, client: int) -> bytes:
        """Return a value that no other command has."""
        token = self._tag(client)
        if self._large is None:
            self._large = random.choice((0.02, 0.1, 0.6))
        return token.ljust(random.choice((30, 300, 3000)), b"-") if random.random() < self._large else token

    def _tag(self, client: int) -> bytes:
        self._count += 1
        return b"%d.%d " % (client, self._count)

    def _learn(self, key: bytes, found: KeyValue | None) -> None:
        known = self._known.get(key)
        if known is None or found is None or known.mod_revision < found.mod_revision:
            self._known[key] = found

    # One key

    def _put(self, random: Random, key: bytes, client: int) -> Action:
        value = self._token(random, client)
        return Propose(encode(Put(key, value)), "put", (Record("put", key, value),), _decoded)

    def _append(self, random: Random, key: bytes, client: int) -> Action:
        suffix = self._token(random, client)
        return Propose(encode_append(key, suffix), "append", (Record("append", key, suffix),), _decoded)

    def _delete(self, random: Random, key: bytes, client: int) -> Action:
        request = encode_tagged(self._tag(client), encode(Delete(key)))
        return Propose(request, "delete", (Record("delete", key),), _decoded, frees_space=True)

    def _get(self, random: Random, key: bytes, client: int) -> Action:
        return Query(
            lambda machine: machine.get(key),
            "get",
            (Record("get", key),),
            seen=lambda result: self._learn(key, result),
        )

    def _get_by_log(self, random: Random, key: bytes, client: int) -> Action:
        request = encode_tagged(self._tag(client), encode(Range(key)))
        return Propose(request, "get by log", (Record("get", key),), _decoded)

    def _swap_value(self, random: Random, key: bytes, client: int) -> Action:
        known, new = self._known.get(key), self._token(random, client)
        old = known.value if known is not None else b"nothing"
        condition = Compare(key, Target.VALUE, Comparison.EQUAL, old)
        return self._swap(key, condition, new, Record("cas", key, (old, new)))

    def _swap_revision(self, random: Random, key: bytes, client: int) -> Action:
        known, new = self._known.get(key), self._token(random, client)
        old = known.mod_revision if known is not None else 0
        condition = Compare(key, Target.MOD_REVISION, Comparison.EQUAL, old)
        return self._swap(key, condition, new, Record("cas_revision", key, (old, new)))

    def _swap(self, key: bytes, condition: Compare, new: bytes, record: Record) -> Action:
        request = encode(Txn((condition,), (Put(key, new),), (Range(key),)))

        def seen(result: Any) -> None:
            txn: Any = decode_result(result)
            if not txn.succeeded:
                found = txn.results[0].kvs
                self._learn(key, found[0] if found else None)

        return Propose(request, "cas", (record,), _decoded, seen)

    # Several keys

    def _put_several(self, random: Random, key: bytes, client: int) -> Action:
        chosen = sorted(random.sample(self._keys, random.randint(1, len(self._keys))))
        value = self._token(random, client)
        request = encode(Txn((), tuple(Put(each, value) for each in chosen)))
        records = tuple(Record("put", each, value) for each in chosen)
        # The model knows one key at a time: two with one revision would look wrong to it, so it is told of none.
        return Propose(request, "put several", records, lambda _: [None] * len(records))

    def _range(self, random: Random, key: bytes, client: int) -> Action:
        keys = self._keys

        def results(result: RangeResult) -> Sequence[Any]:
            found = {kv.key: kv for kv in result.kvs}
            return [found.get(each) for each in keys]

        records = tuple(Record("get", each) for each in keys)
        return Query(lambda machine: machine.range(b"k", b"l"), "range", records, results)

    def _invalid(self, random: Random, key: bytes, client: int) -> Action:
        return Propose(b"\x00" + self._token(random, client), "invalid")


def _decoded(result: list[Any]) -> Sequence[Any]:
    return (decode_result(result),)
