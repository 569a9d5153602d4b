"""The application that is simulated by default: the key-value store, with commands that append, and with tags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from twisted.internet.defer import Deferred

from ...kv import (
    TYPES,
    Compare,
    Comparison,
    Delete,
    FileKeyValueMachine,
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
from ._application import Action, Application, Propose, Query, Record
from ._with_files import Disk

__all__ = [
    "TYPES",
    "AppendingFileStore",
    "AppendingStore",
    "actions",
    "encode_append",
    "encode_tagged",
    "model",
    "read",
    "values_on_disk",
]

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
        return super().apply(_plain(command, self._value), context)

    def _value(self, key: bytes) -> bytes:
        found = self.get(key)
        return b"" if found is None else found.value


class AppendingFileStore(FileKeyValueMachine):
    """The same with values on disk. What is appended to has to be read before."""

    def prepare(self, command: bytes) -> Deferred[None] | None:
        """See :meth:`~zlayer_consensus.storage.IStateMachineFiles.prepare`."""
        command = _untagged(command)
        if command[:1] == _APPEND:
            command = encode(Range(_appended(command)[0]))
        return super().prepare(command)

    def apply(self, command: bytes, context: ApplyContext) -> list[Any]:
        """See :meth:`~zlayer_consensus.storage.IStateMachine.apply`."""
        return super().apply(_plain(command, self._value), context)

    def _value(self, key: bytes) -> bytes:
        record = self._store.get(key)
        return b"" if record is None else KeyValue.of(key, self._whole(key, record)).value


def values_on_disk() -> Application:
    """Return the default application with its values on disk: files, buffers and rates of all sizes."""

    def make(disk: Disk) -> FileKeyValueMachine:
        choice = disk.random.choice
        return AppendingFileStore(
            disk.directory,
            executor=disk.executor,
            read_executor=disk.read_executor,
            clock=disk.clock,
            file_system=disk.file_system,
            # What a replica forgets is part of what all agree on, though no command here asks for the past.
            history_changes=5,
            history_bytes=2000,
            file_bytes=choice((1, 300, 3000, 30_000)),
            buffer_bytes=choice((1, 1000, 100_000)),
            compaction_bytes=choice((1000, 100_000)),
        )

    return Application(files_machine=make)


def _untagged(command: bytes) -> bytes:
    return command[2 + command[1] :] if command[:1] == _TAG else command


def _appended(command: bytes) -> tuple[bytes, bytes]:
    """Return the key and what is to be appended."""
    end = 2 + command[1]
    return command[2:end], command[end:]


def _plain(command: bytes, value: Callable[[bytes], bytes]) -> bytes:
    """Return the store's own command that does the same.

    :param value: returns a key's present value.
    """
    command = _untagged(command)
    if command[:1] != _APPEND:
        return command
    key, suffix = _appended(command)
    return encode(Put(key, value(key) + suffix))


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
