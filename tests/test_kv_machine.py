"""The key-value application: commands, transactions, what is refused, and what the node asks of a state machine."""

import random
from collections.abc import Iterator
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from zlayer_consensus import _cbor
from zlayer_consensus.errors import DomainError
from zlayer_consensus.kv import (
    MAX_DELETED_KEYS,
    MAX_KEY_BYTES,
    MAX_RESULT_BYTES,
    MAX_TXN_OPERATIONS,
    TO_THE_END,
    TYPES,
    Command,
    Compact,
    CompactResult,
    Compare,
    Comparison,
    Delete,
    DeleteResult,
    KeyValue,
    KeyValueMachine,
    Put,
    PutResult,
    Range,
    RangeResult,
    Result,
    Target,
    Txn,
    TxnResult,
    UnknownCommand,
    decode,
    decode_result,
    encode,
    frees_space,
    prefix_end,
)
from zlayer_consensus.storage import ApplyContext, IStateMachine, IStateSink
from zlayer_consensus.testing import StateMachineContract


def restored_into(machine: Any, pieces: list[bytes]) -> Any:
    sink = machine.restore()
    for piece in pieces:
        sink.write(piece)
    sink.finish()
    return machine


class MachineTestCase(SynchronousTestCase):
    """Tests that hold for every machine of the store; ``test_kv_files`` runs them with another one."""

    def setUp(self) -> None:
        self.machine = self.make()
        self.index = 0

    def make(self) -> Any:
        return KeyValueMachine()

    def begin_snapshot(self) -> tuple[Iterator[bytes], Any]:
        """A snapshot's pieces, and what else is needed to restore it."""
        return self.machine.snapshot(), None

    def restored(self, pieces: list[bytes], files: Any) -> Any:
        return restored_into(self.make(), pieces)

    def snapshot_size(self) -> int:
        pieces, files = self.begin_snapshot()
        size: int = sum(map(len, pieces)) + sum(file.size for file in files or ())
        if files is not None:
            pieces.close()  # type: ignore[attr-defined]
        return size

    def apply(self, command: Command | bytes) -> Result:
        self.index += 1
        data = command if isinstance(command, bytes) else encode(command)
        result = self.machine.apply(data, ApplyContext(self.index, 0))
        # As it is, and as it comes back from the leader over the wire.
        over_the_wire = TYPES.decode_response(TYPES.encode_response(result))
        self.assertEqual(over_the_wire, result)
        return decode_result(over_the_wire)

    def refused(self, command: Command | bytes) -> str:
        """Nothing has changed when a command is refused, but the index that was applied."""
        before = (self.machine.digest(), self.machine.revision, len(self.machine._store.history))
        error = self.assertRaises(DomainError, self.apply, command)
        self.assertEqual((self.machine.digest(), self.machine.revision, len(self.machine._store.history)), before)
        self.assertEqual(self.machine.index, self.index)
        return str(error.reason)

    def value(self, key: bytes) -> bytes | None:
        kv = self.machine.get(key)
        return None if kv is None else kv.value


class CommandTests(MachineTestCase):
    def test_put(self) -> None:
        """A put makes a revision; the key keeps the one that created it, and counts."""
        self.assertEqual(self.apply(Put(b"a", b"1")), PutResult(2, 2, 1))
        self.assertEqual(self.apply(Put(b"b", b"1")), PutResult(3, 3, 1))
        self.assertEqual(self.apply(Put(b"a", b"2")), PutResult(4, 2, 2))
        self.assertEqual(self.machine.get(b"a"), KeyValue(b"a", b"2", 2, 4, 2))
        self.apply(Delete(b"a"))
        self.assertEqual(self.apply(Put(b"a", b"3")), PutResult(6, 6, 1))

    def test_delete(self) -> None:
        """A deletion that finds nothing makes no revision."""
        self.apply(Put(b"a", b"1"))
        self.assertEqual(self.apply(Delete(b"b")), DeleteResult(2, 0))
        self.assertEqual(self.apply(Delete(b"a")), DeleteResult(3, 1))
        self.assertEqual(self.machine.revision, 3)

    def test_delete_range(self) -> None:
        for key in (b"a", b"b", b"b/1", b"b/2", b"c", b"\xff"):
            self.apply(Put(key, b""))
        self.assertEqual(self.apply(Delete(b"b/", prefix_end(b"b/"))), DeleteResult(8, 2))
        self.assertEqual(self.apply(Delete(b"c", TO_THE_END)), DeleteResult(9, 2))
        self.assertEqual([kv.key for kv in self.machine.range().kvs], [b"a", b"b"])
        self.assertEqual(self.apply(Delete(b"", TO_THE_END)), DeleteResult(10, 2))
        self.assertEqual(self.machine.range().kvs, ())

    def test_range(self) -> None:
        for key in (b"a", b"b", b"c"):
            self.apply(Put(key, b"v" + key))
        kvs = tuple(KeyValue(key, b"v" + key, n, n, 1) for n, key in enumerate((b"a", b"b", b"c"), 2))
        self.assertEqual(self.apply(Range(b"a", b"c")), RangeResult(4, kvs[:2]))
        self.assertEqual(self.apply(Range(b"b")), RangeResult(4, kvs[1:2]))
        self.assertEqual(self.apply(Range(b"x")), RangeResult(4, ()))
        self.assertEqual(self.apply(Range(b"", TO_THE_END, 2)), RangeResult(4, kvs[:2], True, b"c"))
        self.assertEqual(self.machine.range(b"b", limit=1), RangeResult(4, kvs[1:2], True, b"c"))

    def test_index_and_revision(self) -> None:
        self.assertEqual((self.machine.index, self.machine.revision, len(self.machine)), (0, 1, 0))
        self.machine.apply(encode(Put(b"a", b"")), ApplyContext(17, 0))
        self.assertEqual((self.machine.index, self.machine.revision, len(self.machine)), (17, 2, 1))

    def test_compact(self) -> None:
        """It takes no revision, and makes the snapshot smaller by what was superseded and deleted."""
        for number in range(50):
            self.apply(Put(b"key", bytes([number]) * 1000))
        self.apply(Delete(b"key"))
        before = self.snapshot_size()
        self.assertEqual(self.apply(Compact(52)), CompactResult(52, 52))
        self.assertEqual((self.machine.revision, self.machine.compacted_revision), (52, 52))
        self.assertLess(self.snapshot_size(), before - 49_000)
        self.assertEqual("compacted", self.refused(Compact(51)))
        self.assertEqual("future_revision", self.refused(Compact(53)))
        pieces, files = self.begin_snapshot()
        self.assertEqual(52, self.restored(list(pieces), files).compacted_revision)

    def test_what_frees_space(self) -> None:
        """S-10: deletions and compactions, alone or in a transaction that reads as well, but puts nothing."""
        for command, frees in (
            (Put(b"k", b""), False),
            (Delete(b"k"), True),
            (Range(b"k"), False),
            (Compact(1), True),
            (Txn(), False),
            (Txn((), (Range(b"k"),)), False),
            (Txn((), (Delete(b"k"), Range(b"k"))), True),
            (Txn((), (Delete(b"k"),), (Put(b"k", b""),)), False),
        ):
            self.assertEqual(frees, frees_space(command), command)

    def test_prefix_end(self) -> None:
        for prefix, end in (
            (b"a", b"b"),
            (b"a\xff", b"b"),
            (b"\xff\xff", TO_THE_END),
            (b"", TO_THE_END),
            (b"\0", b"\1"),
        ):
            self.assertEqual(prefix_end(prefix), end)


class TxnTests(MachineTestCase):
    def compare(self, key: bytes, target: Target, comparison: Comparison, operand: bytes | int) -> bool:
        result = self.apply(Txn((Compare(key, target, comparison, operand),)))
        assert isinstance(result, TxnResult)
        return result.succeeded

    def test_one_revision_for_all(self) -> None:
        self.apply(Put(b"old", b""))
        result = self.apply(Txn((), (Put(b"a", b"1"), Put(b"b", b"2"), Delete(b"old")), (Put(b"never", b""),)))
        self.assertEqual(result, TxnResult(3, True, (PutResult(3, 3, 1), PutResult(3, 3, 1), DeleteResult(3, 1))))
        self.assertEqual(self.machine.revision, 3)
        events = [(event[0], event[1]) for event in self.machine._store.history.since(3)]
        self.assertEqual(events, [(3, b"a"), (3, b"b"), (3, b"old")])

    def test_operations_see_earlier_ones(self) -> None:
        self.apply(Put(b"a", b"1"))
        get = Range(b"", TO_THE_END)
        result = self.apply(Txn((), (get, Put(b"b", b"2"), get, Delete(b"a"), get)))
        assert isinstance(result, TxnResult)
        seen = [[kv.key for kv in each.kvs] for each in result.results if isinstance(each, RangeResult)]
        self.assertEqual(seen, [[b"a"], [b"a", b"b"], [b"b"]])

    def test_failure_branch(self) -> None:
        condition = Compare(b"a", Target.VERSION, Comparison.GREATER, 0)
        result = self.apply(Txn((condition,), (Put(b"x", b""),), (Put(b"a", b""),)))
        self.assertEqual(result, TxnResult(2, False, (PutResult(2, 2, 1),)))
        self.assertIsNone(self.value(b"x"))

    def test_all_comparisons_count(self) -> None:
        self.apply(Put(b"a", b"1"))
        true = Compare(b"a", Target.VERSION, Comparison.EQUAL, 1)
        false = Compare(b"a", Target.VERSION, Comparison.EQUAL, 2)
        for conditions, holds in (((), True), ((true, true), True), ((true, false), False), ((false, true), False)):
            result = self.apply(Txn(conditions))
            assert isinstance(result, TxnResult)
            self.assertEqual(result.succeeded, holds)
        self.assertEqual(self.machine.revision, 2)

    def test_missing_key(self) -> None:
        """It has version and revisions 0, and no comparison of its value holds (as in etcd)."""
        for target in (Target.VERSION, Target.CREATE_REVISION, Target.MOD_REVISION):
            self.assertTrue(self.compare(b"a", target, Comparison.EQUAL, 0))
            self.assertTrue(self.compare(b"a", target, Comparison.LESS, 1))
            self.assertFalse(self.compare(b"a", target, Comparison.GREATER, 0))
        for comparison in Comparison:
            self.assertFalse(self.compare(b"a", Target.VALUE, comparison, b"x"))

    def test_values_are_compared_as_bytes(self) -> None:
        self.apply(Put(b"a", b"m"))
        for operand, expected in ((b"", 3), (b"a", 3), (b"m", 0), (b"m\0", 2), (b"\xff", 2)):
            holding = {each for each in Comparison if self.compare(b"a", Target.VALUE, each, operand)}
            wanted = {Comparison.EQUAL} if expected == 0 else {Comparison(expected), Comparison.NOT_EQUAL}
            self.assertEqual(holding, wanted)

    def test_refused_halfway(self) -> None:
        """What fails in its last operation has done nothing, and the next command makes the next revision."""
        for number in range(MAX_DELETED_KEYS + 1):
            self.apply(Put(b"many/%05d" % number, b""))
        self.apply(Put(b"a", b"1"))
        everything = Delete(b"many/", prefix_end(b"many/"))
        self.assertEqual(self.refused(Txn((), (Put(b"b", b"2"), Delete(b"a"), everything))), "too_many_keys")
        self.assertEqual((self.value(b"a"), self.value(b"b")), (b"1", None))
        self.assertEqual(self.apply(Put(b"c", b"")), PutResult(self.machine.revision, self.machine.revision, 1))

    def test_refused_during_a_snapshot(self) -> None:
        """What is rolled back does not show in a snapshot that is under way."""
        self.apply(Put(b"other", b""))
        for number in range(MAX_DELETED_KEYS + 1):
            self.apply(Put(b"many/%05d" % number, b"x"))
        digest = self.machine.digest()
        snapshot, files = self.begin_snapshot()
        pieces = [next(snapshot), next(snapshot)]
        everything = Delete(b"many/", prefix_end(b"many/"))
        changes = (Delete(b"many/01999"), Put(b"other", b"changed"), Put(b"a", b""), Put(b"z", b""), everything)
        self.assertEqual(self.refused(Txn((), changes)), "too_many_keys")
        pieces += snapshot
        self.assertEqual((self.restored(pieces, files).digest(), self.machine.digest()), (digest, digest))

    def test_result_too_large(self) -> None:
        """A transaction reads out a bounded number of bytes; one value alone may be larger."""
        self.apply(Put(b"a", bytes(MAX_RESULT_BYTES + 5)))
        self.apply(Put(b"b", b"small"))
        self.apply(Txn((), (Range(b"a"),)))
        self.assertEqual(self.refused(Txn((), (Put(b"c", b""), Range(b"a"), Range(b"b")))), "result_too_large")
        self.assertIsNone(self.value(b"c"))


class RefusedCommandTests(MachineTestCase):
    def test_limits(self) -> None:
        """Every replica gives the same stable reason; :func:`encode` gives it before anything is proposed."""
        long = b"k" * (MAX_KEY_BYTES + 1)
        many = (Range(b"k"),) * (MAX_TXN_OPERATIONS + 1)
        compare = Compare(b"k", Target.VERSION, Comparison.EQUAL, 1)
        cases: tuple[tuple[Command, list[Any], str], ...] = (
            (Put(b"", b"v"), [1, b"", b"v"], "empty_key"),
            (Put(long, b"v"), [1, long, b"v"], "key_too_long"),
            (Delete(b""), [2, b"", b""], "empty_key"),
            (Delete(b"a", long), [2, b"a", long], "key_too_long"),
            (Delete(b"b", b"a"), [2, b"b", b"a"], "invalid_range"),
            (Range(b"b", b"a"), [3, b"b", b"a", 0], "invalid_range"),
            (Range(b"b", b"", -1), [3, b"b", b"", -1], "invalid_limit"),
            (Txn((), many), [4, [], [[3, b"k", b"", 0]] * len(many), []], "too_many_operations"),
            (Txn((compare,) * 129), [4, [[b"k", 1, 0, 1]] * 129, [], []], "too_many_operations"),
            (Txn((), (), (Put(b"", b""),)), [4, [], [], [[1, b"", b""]]], "empty_key"),
            (Txn((), (Put(b"k", b"1"), Put(b"k", b"2"))), [4, [], [[1, b"k", b"1"]] * 2, []], "duplicate_key"),
            (Txn((), (Put(b"k", b""), Delete(b"k"))), [4, [], [[1, b"k", b""], [2, b"k", b""]], []], "duplicate_key"),
            (
                Txn((), (), (Delete(b"a", TO_THE_END), Put(b"k", b""))),
                [4, [], [], [[2, b"a", b"\0"], [1, b"k", b""]]],
                "duplicate_key",
            ),
            (
                Txn((Compare(b"k", Target.VALUE, Comparison.LESS, 1),)),
                [4, [[b"k", 0, 2, 1]], [], []],
                "invalid_compare",
            ),
            (
                Txn((Compare(b"k", Target.VERSION, Comparison.LESS, b""),)),
                [4, [[b"k", 1, 2, b""]], [], []],
                "invalid_compare",
            ),
        )
        for command, plain, reason in cases:
            self.assertEqual(self.assertRaises(DomainError, encode, command).reason, reason)
            self.assertEqual(self.refused(_cbor.dumps(plain)), reason)

    def test_two_deletions_may_overlap(self) -> None:
        self.apply(Put(b"k", b""))
        result = self.apply(Txn((), (Delete(b"k"), Delete(b"a", TO_THE_END))))
        self.assertEqual(result, TxnResult(3, True, (DeleteResult(3, 1), DeleteResult(3, 0))))

    def test_bytes_that_are_no_command(self) -> None:
        """Whatever is in the log, it is one definite error, and not the end of the node."""
        cases: tuple[Any, ...] = (
            None,
            [],
            {},
            [True, b"k", b"v"],
            ["put", b"k", b"v"],
            [1],
            [1, b"k"],
            [1, b"k", "v"],
            [1, b"k", b"v", b"w"],
            [2, b"k", None],
            [3, b"k", b"", True],
            [3, b"k", b"", 1.5],
            [4, [], []],
            [4, [], [[]], []],
            [4, [], [[4, [], [], []]], []],
            [4, [], [1], []],
            [4, [[b"k", 9, 0, 1]], [], []],
            [4, [[b"k", 1, 9, 1]], [], []],
            [4, [[b"k", 1, 0]], [], []],
            [4, [[b"k", 1, 0, None]], [], []],
            [4, [b"k"], [], []],
        )
        for plain in cases:
            reason = self.refused(_cbor.dumps(plain))
            self.assertIn(reason, ("invalid_command", "invalid_compare"), plain)
        valid = encode(Put(b"key", b"value"))
        for data in (b"", b"\xff", valid[:-1], valid + b"\0", b"\xc1\x01"):
            self.assertEqual(self.refused(data), "invalid_command")

    def test_random_bytes(self) -> None:
        """A-37: whatever the bytes, only the declared errors come out."""
        draw = random.Random(1)
        samples = [encode(Put(b"key", b"value")), encode(Txn((), (Put(b"k", b"v"), Range(b"k")), (Delete(b"k"),)))]
        for _ in range(3000):
            data = bytearray(draw.choice(samples))
            for _ in range(draw.choice((1, 2, 5))):
                data[draw.randrange(len(data))] = draw.randrange(256)
            try:
                command = decode(bytes(data))
            except (DomainError, UnknownCommand):
                continue
            self.assertEqual(decode(encode(command)), command)

    def test_command_of_a_later_version(self) -> None:
        """H-81: to skip what others carry out would be to differ from them; so the node stops, and nothing changes."""
        self.apply(Put(b"a", b""))
        error = self.assertRaises(UnknownCommand, self.machine.apply, _cbor.dumps([77, b"k"]), ApplyContext(9, 0))
        self.assertIn("77", str(error))
        self.assertEqual(self.machine.index, 1)


class CodecTests(SynchronousTestCase):
    def test_commands_come_back(self) -> None:
        compare = tuple(
            Compare(b"k%d" % n, target, comparison, b"v" if target is Target.VALUE else n)
            for n, target in enumerate(Target)
            for comparison in Comparison
        )
        for command in (
            Put(b"k", b""),
            Put(bytes(range(256)), bytes(10_000)),
            Delete(b"k"),
            Delete(b"", TO_THE_END),
            Range(b"k"),
            Range(b"a", b"b", 12),
            Compact(1),
            Compact((1 << 63) - 1),
            Txn(),
            Txn(compare, (Put(b"a", b"b"), Delete(b"k", b"l")), (Range(b"", b"z", 1),)),
        ):
            self.assertEqual(decode(encode(command)), command)

    def test_keys_and_values_are_bytes(self) -> None:
        text: Any = "text"
        mutable: Any = bytearray(b"k")
        wrong: tuple[Any, ...] = (
            Put(text, b""),
            Put(b"k", text),
            Put(b"k", mutable),
            Delete(mutable),
            Range(b"k", text),
        )
        for command in (*wrong, Txn((), (wrong[0],))):
            self.assertRaises(TypeError, encode, command)

    def test_small_commands_are_small(self) -> None:
        self.assertLessEqual(len(encode(Put(b"k" * 20, b"v" * 100))), 126)

    def test_types_for_the_node(self) -> None:
        """Requests pass the node as they are."""
        data = encode(Put(b"k", b"v"))
        self.assertIs(TYPES.encode_request(data), data)
        self.assertEqual(TYPES.decode_request(data), data)


class RestoreTests(MachineTestCase):
    def test_interfaces(self) -> None:
        self.assertTrue(verifyObject(IStateMachine, self.machine))
        self.assertTrue(verifyObject(IStateSink, self.machine.restore()))

    def test_old_state_is_released_in_steps(self) -> None:
        """A replaced state goes bit by bit while commands are applied, because to free a large one takes long."""
        for number in range(5000):
            self.apply(Put(b"%d" % number, b""))
        old = self.machine._store
        sink = self.machine.restore()
        for piece in self.make().snapshot():
            sink.write(piece)
        sink.finish()
        self.assertEqual((self.machine.index, self.machine.revision, len(self.machine)), (0, 1, 0))
        self.assertEqual(len(list(old.items())), 5000)
        for number in range(1000):
            self.apply(Put(b"new %d" % number, b""))
        self.assertEqual(list(old.items()), [])
        self.assertEqual(len(self.machine), 1000)

    def test_index_is_in_the_snapshot(self) -> None:
        self.machine.apply(encode(Put(b"a", b"")), ApplyContext(41, 0))
        pieces, files = self.begin_snapshot()
        copy = self.restored(list(pieces), files)
        self.assertEqual((copy.index, copy.revision, copy.digest()), (41, 2, self.machine.digest()))


class ReplacedStateTests(SynchronousTestCase):
    """States of some thousand keys that make room for others."""

    def filled(self, mark: bytes) -> KeyValueMachine:
        machine = KeyValueMachine()
        for index in range(40):
            puts = tuple(Put(b"key %06d" % (100 * index + number), mark) for number in range(100))
            machine.apply(encode(Txn((), puts)), ApplyContext(index + 1, 0))
        return machine

    def steps(self, machine: KeyValueMachine) -> int:
        """Return in how many steps what is left of old states would go, at the least."""
        return sum(1 for _ in machine._debris)

    def test_restored_twice_in_a_row(self) -> None:
        """Nothing of either old state goes in one step: a million keys at once would stop the loop for 0.1 s."""
        once, twice, pieces = self.filled(b"old"), self.filled(b"old"), list(self.filled(b"new").snapshot())
        for machine, count in ((once, 1), (twice, 2)):
            for _ in range(count):
                sink = machine.restore()
                for piece in pieces:
                    sink.write(piece)
                sink.finish()
        expected = self.steps(once)
        self.assertGreater(expected, 2)
        self.assertGreater(self.steps(twice), 1.8 * expected)

    def test_replaced(self) -> None:
        """The old state goes while the new one comes: little of it is left at the end."""
        machine, pieces = self.filled(b"old"), list(self.filled(b"new").snapshot())
        sink = machine.replace()
        self.assertEqual(len(machine), 0)
        for piece in pieces:
            sink.write(piece)
        sink.finish()
        self.assertEqual(len(machine), 4000)
        self.assertEqual(machine.get(b"key 000000").value, b"new")  # type: ignore[union-attr]
        self.assertEqual(self.steps(machine), 0)


class ContractTests(StateMachineContract, SynchronousTestCase):
    """The public contract of every state machine."""

    def make_machine(self) -> IStateMachine:
        machine: IStateMachine = KeyValueMachine()
        return machine

    def commands(self) -> list[Any]:
        draw = random.Random(2)
        puts = [encode(Put(b"key %d" % draw.randrange(40), draw.randbytes(50))) for _ in range(200)]
        rest: list[Command] = [
            Put(b"big", bytes(3 << 20)),
            Put(b"doomed", b""),
            Delete(b"doomed"),
            Txn((Compare(b"big", Target.VERSION, Comparison.EQUAL, 1),), (Put(b"a", b"1"), Put(b"b", b"2"))),
            Delete(b"key 1", b"key 2"),
        ]
        return [*puts, *map(encode, rest)]
