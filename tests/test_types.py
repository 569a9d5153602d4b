"""Application values to bytes and back: exactly, or not at all."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
from typing import Any

import attrs
import cattrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus import _cbor
from zlayer_consensus.types import ConversionError, RaftTypes, declare_raft_types


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


@attrs.frozen
class Put:
    key: bytes
    value: bytes
    tags: tuple[str, ...] = ()
    by_id: dict[int, str] = attrs.Factory(dict)


@dataclasses.dataclass
class Delete:
    key: bytes
    count: int | None = None
    color: Color = Color.RED
    level: Level = Level.LOW
    nested: Put | int | None = None
    names: set[str] = dataclasses.field(default_factory=set)
    pair: tuple[int, str] = (1, "x")
    share: float = 1.0
    extra: Any = None
    more: list[Put | Delete] = dataclasses.field(default_factory=list)


@attrs.frozen
class Stamped:
    when: datetime.datetime


@attrs.frozen
class Outer:
    inner: list[Stamped]


class SpecialPut(Put):
    pass


def typed() -> RaftTypes:
    return declare_raft_types(request=Put | Delete, response=Delete | None)


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


class PlainTests(SynchronousTestCase):
    @settings(max_examples=200, deadline=None)
    @given(plain_values)
    def test_every_plain_value_comes_back(self, value: Any) -> None:
        types = declare_raft_types()
        again = types.decode_request(types.encode_request(value))
        self.assertEqual((again, repr(type(again))), (value, repr(type(value))))

    def test_bytes_stay_bytes(self) -> None:
        types = declare_raft_types()
        value = {"key": b"\x00\xff", b"raw": [b"", "text"]}
        self.assertEqual(types.decode_response(types.encode_response(value)), value)

    def test_tuple_comes_back_as_list(self) -> None:
        types = declare_raft_types()
        self.assertEqual(types.decode_request(types.encode_request(("put", b"k", (1,)))), ["put", b"k", [1]])

    def test_what_does_not_come_back_is_refused_with_its_place(self) -> None:
        types = declare_raft_types()
        deep: list[Any] = []
        for _ in range(_cbor.MAX_DEPTH):
            deep = [deep]
        for value, place in (
            ({"a": [1, {2}]}, "request['a'][1]"),
            ({"a": {1: 2}}, "request['a']"),
            ([math.nan], "request[0]"),
            ([-math.inf], "request[0]"),
            ({"n": 1 << 64}, "request['n']"),
            ({"n": -(1 << 63) - 1}, "request['n']"),
            (["\ud800"], "request[0]"),
            (bytearray(b"x"), "request"),
            (Color.RED, "request"),
            (Level.LOW, "request"),
            (deep, "[0][0]"),
        ):
            error = self.assertRaises(ConversionError, types.encode_request, value)
            self.assertIn(place, str(error))
            self.assertEqual(error.what, "request")

    def test_deepest_value_comes_back(self) -> None:
        types = declare_raft_types()
        deep: list[Any] = []
        for _ in range(_cbor.MAX_DEPTH - 1):
            deep = [deep]
        self.assertEqual(types.decode_request(types.encode_request(deep)), deep)

    def test_garbage_is_refused(self) -> None:
        types = declare_raft_types()
        for data in (b"", b"\xff", b"\x01\x01", b"\xc1\x01", b"\xa1\x01\x02"):
            self.assertRaises(ConversionError, types.decode_request, data)


class BytesTests(SynchronousTestCase):
    def test_passed_through(self) -> None:
        """No CBOR between a request of bytes and the log."""
        types = declare_raft_types(request=bytes)
        value = b"\xff not CBOR"
        self.assertIs(types.encode_request(value), value)
        self.assertIs(types.decode_request(value), value)

    def test_only_bytes(self) -> None:
        types = declare_raft_types(request=bytes)
        for value in ("text", bytearray(b"x"), None, 5):
            self.assertRaises(ConversionError, types.encode_request, value)


class ClassTests(SynchronousTestCase):
    def test_values_come_back(self) -> None:
        types = typed()
        for value in (
            Put(b"k", b"v", ("x", "y"), {3: "three", 1: "one"}),
            Delete(b"k"),
            Delete(b"k", 5, Color.BLUE, Level.LOW, Put(b"", b""), {"b", "a"}, (2, "y"), 0.1, {"any": [b"thing"]}),
            Delete(b"k", nested=7, share=2, more=[Put(b"", b""), Delete(b"")]),
        ):
            again = types.decode_request(types.encode_request(value))
            self.assertEqual((again, type(again)), (value, type(value)))
        self.assertIsNone(types.decode_response(types.encode_response(None)))

    def test_order_of_a_dict_is_kept(self) -> None:
        types = typed()
        again = types.decode_request(types.encode_request(Put(b"", b"", (), {3: "x", 1: "y", 2: "z"})))
        self.assertEqual(list(again.by_id), [3, 1, 2])

    def test_sets_have_one_encoding(self) -> None:
        """The encoding does not depend on the order in which a set grew (J-92)."""
        types = declare_raft_types(request=set[int])
        one, other = set[int](), set[int]()
        for number in (0, 8):
            one.add(number)
        for number in (8, 0):
            other.add(number)
        self.assertNotEqual(list(one), list(other), "choose numbers whose hashes collide")
        self.assertEqual(types.encode_request(one), types.encode_request(other))

    def test_what_does_not_come_back_is_refused_with_its_field(self) -> None:
        """An entry that cannot be decoded would stop every node: it is refused where it is proposed (H-81)."""
        types = typed()
        wrong: Any
        for wrong, place in (
            (Put("text", b""), "request.key"),  # type: ignore[arg-type]
            (Put(b"", b"", ["list"]), "request.tags"),  # type: ignore[arg-type]
            (Put(b"", b"", (), {"x": "y"}), "request.by_id"),  # type: ignore[dict-item]
            (Delete(b"", "5"), "request.count"),  # type: ignore[arg-type]
            (Delete(b"", True), "request.count"),
            (Delete(b"", 1 << 70), "'count'"),
            (Delete(b"", color="r"), "request.color"),  # type: ignore[arg-type]
            (Delete(b"", nested="x"), "request.nested"),  # type: ignore[arg-type]
            (Delete(b"", names=["a"]), "request.names"),  # type: ignore[arg-type]
            (Delete(b"", pair=(1, 2)), "request.pair[1]"),  # type: ignore[arg-type]
            (Delete(b"", pair=(1, "x", 3)), "request.pair"),  # type: ignore[arg-type]
            (Delete(b"", share=math.nan), "'share'"),
            (Delete(b"", extra=(1,)), "request.extra"),
            (Delete(b"", extra=object()), "request"),
            (Delete(b"", more=[Put(b"", b""), 5]), "request.more"),  # type: ignore[list-item]
            (SpecialPut(b"", b""), "request"),
            (5, "request"),
            (None, "request"),
        ):
            error = self.assertRaises(ConversionError, types.encode_request, wrong)
            self.assertIn(place, str(error), repr(wrong))

    def test_decoding_coerces_nothing(self) -> None:
        """Wrong types, missing fields, unknown fields and unknown classes are errors, and say where."""
        types = typed()
        for plain, place in (
            ({"Put": {"key": "text", "value": b""}}, "request.key"),
            ({"Put": {"key": b""}}, "'value'"),
            ({"Put": {"key": b"", "value": b"", "newer": 1}}, "'newer'"),
            ({"Other": {}}, "'Other'"),
            ({"Put": {}, "Delete": {}}, "request"),
            ({"Put": 5}, "request"),
            ({"Delete": {"key": b"", "color": "green"}}, "request.color"),
            ({"Put": {"key": b"", "value": b"", "by_id": [[1, "a"], [1, "b"]]}}, "request.by_id"),
            (["Put"], "request"),
            (None, "request"),
        ):
            error = self.assertRaises(ConversionError, types.decode_request, _cbor.dumps(plain))
            self.assertIn(place, str(error))

    def test_a_new_field_with_a_default_reads_old_entries(self) -> None:
        """How a type may grow: entries in the log were written without the field."""
        old = declare_raft_types(request=attrs.make_class("Job", {"name": attrs.field(type=str)}))
        fields = {"name": attrs.field(type=str), "priority": attrs.field(type=int, default=3)}
        new = declare_raft_types(request=attrs.make_class("Job", fields))
        data = old.encode_request(old.request("backup"))
        self.assertEqual(new.decode_request(data), new.request("backup", 3))

    def test_unknown_types_are_refused_when_declared(self) -> None:
        for kind, place in (
            (Outer, "Outer.inner.when: datetime"),
            (object, "object"),
            (list[int] | int, "list[int]"),
            (Put | list[Delete], "list["),
            (dict[str, Stamped], "when"),
        ):
            error = self.assertRaises(TypeError, declare_raft_types, kind)
            self.assertIn(place, str(error))

    def test_hooks_for_further_types(self) -> None:
        def configure(converter: cattrs.Converter) -> None:
            converter.register_structure_hook(datetime.datetime, lambda v, _: datetime.datetime.fromisoformat(v))
            converter.register_unstructure_hook(datetime.datetime, datetime.datetime.isoformat)

        types = declare_raft_types(request=Outer, configure=configure)
        value = Outer([Stamped(datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC))])
        self.assertEqual(types.decode_request(types.encode_request(value)), value)

    def test_a_lossy_hook_is_caught(self) -> None:
        def configure(converter: cattrs.Converter) -> None:
            converter.register_structure_hook(datetime.datetime, lambda v, _: datetime.datetime.fromtimestamp(v))
            converter.register_unstructure_hook(datetime.datetime, lambda v: int(v.timestamp()))

        types = declare_raft_types(request=Stamped, configure=configure)
        value = Stamped(datetime.datetime(2024, 2, 29, 12, 0, 0, 5))
        error = self.assertRaises(ConversionError, types.encode_request, value)
        self.assertIn("request.when", str(error))
