"""Application values to bytes and back, without loss.

What one replica encodes, another decodes and goes on with. So a codec gives back exactly what went in, down to the
type of every container, or refuses to encode it: an entry that nobody can decode would stop every node that applies it,
and a snapshot that nobody can load is lost data. Three codecs: bytes as they are, plain values, and declared classes
(cattrs).
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import attrs
import cattrs
from cattrs.errors import ForbiddenExtraKeysError

from . import _cbor
from .errors import ConversionError

__all__ = ["BytesCodec", "Codec", "Configure", "PlainCodec", "TypedCodec", "codec_for", "is_class_type"]

_SCALARS = (bool, int, float, str, bytes)
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1

Configure = Callable[[cattrs.Converter], None]
"""Registers hooks for types that cattrs and we do not know."""


class Codec(Protocol):
    """Turns values of one declared type into bytes, and back."""

    def encode(self, value: Any) -> bytes:
        """Encode ``value``.

        :raises ConversionError: if it is not of the declared type, or would not come back as it is.
        """

    def decode(self, data: bytes) -> Any:
        """Decode what :meth:`encode` made.

        :raises ConversionError: if ``data`` is anything else.
        """


class BytesCodec:
    """Bytes travel as they are."""

    def __init__(self, what: str) -> None:
        self._what = what

    def encode(self, value: Any) -> bytes:
        """Return ``value``, which must be bytes."""
        if type(value) is not bytes:
            raise ConversionError(self._what, "bytes", f"got {_name(type(value))}")
        return value

    def decode(self, data: bytes) -> bytes:
        """Return ``data``."""
        return data


class PlainCodec:
    """Any value that CBOR knows: None, bool, int, float, str, bytes, list, and dict with keys of str or bytes.

    A tuple is accepted, and comes back as a list.
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def encode(self, value: Any) -> bytes:
        """Encode ``value``."""
        problem = _plain_problem(value, self._what, 0)
        if problem:
            raise ConversionError(self._what, "plain value", problem)
        return _cbor.dumps(value)

    def decode(self, data: bytes) -> Any:
        """Decode strictly."""
        try:
            return _cbor.loads(data)
        except _cbor.CborError as error:
            raise ConversionError(self._what, "plain value", str(error)) from error


def _plain_problem(value: Any, path: str, depth: int) -> str | None:
    """Say why strict CBOR does not give ``value`` back, and where in it."""
    kind = type(value)
    if value is None or kind in (bool, bytes):
        return None
    if kind is str:
        return _text_problem(value, path)
    if kind is int:
        return None if _INT_MIN <= value <= _INT_MAX else f"{path}: an integer of more than 64 bits"
    if kind is float:
        return None if value - value == 0 else f"{path}: {value} is not a finite number"
    if depth >= _cbor.MAX_DEPTH:
        return f"{path}: nested deeper than {_cbor.MAX_DEPTH}"
    if kind is list or kind is tuple:
        return _first(_plain_problem(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value))
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str and type(key) is not bytes:
                return f"{path}: the key {key!r} is neither text nor bytes"
            problem = _plain_problem(key, f"{path} (key)", depth + 1) or _plain_problem(
                item, f"{path}[{key!r}]", depth + 1
            )
            if problem:
                return problem
        return None
    return f"{path}: a value of type {_name(kind)} is not plain"


def _text_problem(value: str, path: str) -> str | None:
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{path}: text with a lone surrogate cannot be encoded"
    return None


def _first(problems: Iterable[str | None]) -> str | None:
    return next((problem for problem in problems if problem), None)


class TypedCodec:
    """A declared type: attrs classes, dataclasses, unions of them, and annotated containers of such.

    :param kind: the type.
    :param what: ``request``, ``response`` or ``state``, for errors.
    :param keep_order: whether the order of a dict's keys is part of the value.
    :param configure: registers further hooks.
    :raises TypeError: if a type in it has no conversion.
    """

    def __init__(self, kind: Any, what: str, *, keep_order: bool = False, configure: Configure | None = None) -> None:
        self._kind = kind
        self._what = what
        self._keep_order = keep_order
        self._converter = _converter()
        if configure is not None:
            configure(self._converter)
        _check_declared(self._converter, kind, _name(kind))

    def encode(self, value: Any) -> bytes:
        """Encode ``value``, and make sure that it comes back as it is."""
        try:
            plain = self._unstructure(value, self._kind, self._what)
            data = _cbor.dumps(plain, canonical=not self._keep_order)
        except ConversionError:
            raise
        except Exception as error:  # whatever a wrong value does to the conversion: the error says so
            raise self._error(_reasons(error, self._what)) from error
        problem = _plain_problem(plain, self._what, 0) or _difference(
            value, self.decode(data), self._what, self._keep_order
        )
        if problem:
            raise self._error(problem)
        return data

    def decode(self, data: bytes) -> Any:
        """Decode strictly: exact types, no missing and no unknown field."""
        try:
            return self._converter.structure(_cbor.loads(data), self._kind)
        except Exception as error:  # cattrs groups its own; hooks and constructors may raise anything
            raise self._error(_reasons(error, self._what)) from error

    def _unstructure(self, value: Any, kind: Any, path: str) -> Any:
        try:
            return self._converter.unstructure(value, unstructure_as=kind)
        except Exception as error:
            # cattrs does not say where: look for the field, and say it.
            if is_class_type(type(value)):
                for name, field_type in _fields(type(value)):
                    self._unstructure(getattr(value, name), field_type, f"{path}.{name}")
            raise self._error(f"{path}: {_reason(error, None)}") from error

    def _error(self, problem: str) -> ConversionError:
        return ConversionError(self._what, _name(self._kind), problem)


def _reasons(error: BaseException, path: str) -> str:
    if isinstance(error, _cbor.CborError):
        return str(error)
    return "; ".join(cattrs.transform_error(error, path=path, format_exception=_reason))


def _reason(error: BaseException, _kind: type | None) -> str:
    if isinstance(error, KeyError):
        return f"the field {error.args[0]!r} is missing"
    if isinstance(error, ForbiddenExtraKeysError):
        return "unknown field " + ", ".join(repr(name) for name in sorted(error.extra_fields))
    return str(error) or type(error).__name__


def _converter() -> cattrs.Converter:
    """Return a converter that coerces nothing."""
    converter = cattrs.Converter(
        forbid_extra_keys=True, unstruct_collection_overrides={collections.abc.Set: _sorted_by_encoding}
    )
    for kind in (*_SCALARS, type(None)):
        converter.register_structure_hook(kind, _exact(kind))
    converter.register_structure_hook_factory(_is_odd_mapping, _structure_pairs)
    converter.register_unstructure_hook_factory(_is_odd_mapping, _unstructure_pairs)
    converter.register_structure_hook_factory(_is_real_union, _structure_union)
    converter.register_unstructure_hook_factory(_is_real_union, _unstructure_union)
    return converter


def _exact(kind: type) -> Callable[[Any, Any], Any]:
    def check(value: Any, target: Any) -> Any:
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise TypeError(f"expected {_name(kind)}, got {_name(type(value))}")
        return value if target is kind else target(value)  # else: an enum of this kind

    return check


def _sorted_by_encoding(items: Iterable[Any]) -> list[Any]:
    """A set has no order of its own; one that every replica finds alike keeps encodings comparable (J-92)."""
    return sorted(items, key=_cbor.dumps)


def _is_odd_mapping(target: Any) -> bool:
    """Say whether a mapping has keys that a CBOR map of ours cannot have; it becomes a list of pairs."""
    origin, arguments = typing.get_origin(target), typing.get_args(target)
    if not (isinstance(origin, type) and issubclass(origin, collections.abc.Mapping)) or len(arguments) != 2:
        return False
    key = getattr(arguments[0], "__supertype__", arguments[0])
    if isinstance(key, type) and issubclass(key, enum.Enum):
        return not all(type(each.value) is str for each in key)
    return key is not str and key is not bytes


def _structure_pairs(target: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    key_type, item_type = typing.get_args(target)
    key_hook, item_hook = converter.get_structure_hook(key_type), converter.get_structure_hook(item_type)

    def structure(value: Any, _target: Any) -> Any:
        if type(value) is not list or any(type(pair) is not list or len(pair) != 2 for pair in value):
            raise TypeError("expected a list of pairs")
        result = {key_hook(key, key_type): item_hook(item, item_type) for key, item in value}
        if len(result) != len(value):
            raise ValueError("a key stands in the map twice")
        return result

    return structure


def _unstructure_pairs(target: Any, converter: cattrs.Converter) -> Callable[[Any], Any]:
    key_type, item_type = typing.get_args(target)

    def unstructure(value: Any) -> Any:
        return [
            [converter.unstructure(key, unstructure_as=key_type), converter.unstructure(item, unstructure_as=item_type)]
            for key, item in value.items()
        ]

    return unstructure


def is_class_type(kind: Any) -> bool:
    """Say whether ``kind`` is an attrs class or a dataclass."""
    return isinstance(kind, type) and (attrs.has(kind) or dataclasses.is_dataclass(kind))


def _is_union(target: Any) -> bool:
    return typing.get_origin(target) in (typing.Union, types.UnionType)


def _is_real_union(target: Any) -> bool:
    """Say whether it is a union of more than ``X | None``, which cattrs does well."""
    return _is_union(target) and len(set(typing.get_args(target)) - {type(None)}) > 1


def _union_members(target: Any) -> tuple[dict[str, type], tuple[type, ...]]:
    classes = [each for each in typing.get_args(target) if is_class_type(each)]
    others = tuple(each for each in typing.get_args(target) if not is_class_type(each))
    strange = [_name(each) for each in others if each not in (*_SCALARS, type(None))]
    if strange:
        raise TypeError(f"{', '.join(strange)} cannot be told apart in a union: wrap it in a class")
    tags = {each.__name__: each for each in classes}
    if len(tags) != len(classes):
        raise TypeError("two classes of a union have the same name, which is their tag")
    return tags, others


def _structure_union(target: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    """A class travels as a map of one key, its name; anything else as it is."""
    tags, others = _union_members(target)
    hooks = {tag: converter.get_structure_hook(kind) for tag, kind in tags.items()}

    def structure(value: Any, _target: Any) -> Any:
        if type(value) is dict and len(value) == 1:
            [(tag, fields)] = value.items()
            if tag not in tags:
                raise ValueError(f"{tag!r} is not one of {', '.join(tags)}")
            return hooks[tag](fields, tags[tag])
        if type(value) not in others:
            raise TypeError(f"expected {_name(target)}, got {_name(type(value))}")
        return value

    return structure


def _unstructure_union(target: Any, converter: cattrs.Converter) -> Callable[[Any], Any]:
    tags, others = _union_members(target)

    def unstructure(value: Any) -> Any:
        kind = type(value)
        if tags.get(kind.__name__) is kind:
            return {kind.__name__: converter.unstructure(value, unstructure_as=kind)}
        if kind not in others:
            raise TypeError(f"expected {_name(target)}, got {_name(kind)}")
        return value

    return unstructure


def _check_declared(converter: cattrs.Converter, kind: Any, path: str, seen: tuple[Any, ...] = ()) -> None:
    """Refuse a type without a conversion when it is declared, and name the field."""
    if kind in seen:
        return
    try:
        if is_class_type(kind):
            for name, field_type in _fields(kind):
                _check_declared(converter, field_type, f"{path}.{name}", (*seen, kind))
        else:
            for argument in typing.get_args(kind):
                if isinstance(argument, type) or typing.get_args(argument):
                    _check_declared(converter, argument, path, (*seen, kind))
        converter.get_structure_hook(kind)
        converter.get_unstructure_hook(kind)
    except _UndeclarableError:
        raise
    except Exception as error:  # cattrs' own errors, unresolvable annotations, and what hooks raise
        raise _UndeclarableError(f"{path}: {_name(kind)} has no conversion: {error}") from error


class _UndeclarableError(TypeError):
    """A declared type has no conversion."""


def _fields(kind: type) -> Iterable[tuple[str, Any]]:
    hints = typing.get_type_hints(kind)
    names = [a.name for a in attrs.fields(kind)] if attrs.has(kind) else [f.name for f in dataclasses.fields(kind)]
    return [(name, hints.get(name, Any)) for name in names]


def _difference(before: Any, after: Any, path: str, ordered: bool) -> str | None:
    """Say what is not the same in two values that should be, types of containers included."""
    kind = type(before)
    if kind is not type(after):
        return f"{path}: {_name(kind)} would come back as {_name(type(after))}"
    if is_class_type(kind):
        return _first(
            _difference(getattr(before, name), getattr(after, name), f"{path}.{name}", ordered)
            for name in _fields_of(kind)
        )
    if kind is dict:
        if ordered and list(before) != list(after):
            return f"{path}: the keys would come back in another order"
        if before.keys() != after.keys():
            return f"{path}: the keys would come back as others"
        return _first(_difference(item, after[key], f"{path}[{key!r}]", ordered) for key, item in before.items())
    if kind is list or kind is tuple:
        if len(before) != len(after):
            return f"{path}: {len(before)} items would come back as {len(after)}"
        return _first(
            _difference(*pair, f"{path}[{i}]", ordered) for i, pair in enumerate(zip(before, after, strict=True))
        )
    return None if before == after else f"{path}: {before!r} would come back as {after!r}"


def _names_of_fields(kind: Any) -> tuple[str, ...]:
    return tuple(name for name, _ in _fields(kind))


_fields_of: Callable[[Any], tuple[str, ...]] = functools.cache(_names_of_fields)
"""Typed by hand: mypy takes a ``type[Any]`` for unhashable, and a cache wants hashable arguments."""


def _name(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def codec_for(kind: Any, what: str, *, keep_order: bool = False, configure: Configure | None = None) -> Codec:
    """Return the codec of a declared type: bytes, ``Any`` for plain values, or anything that cattrs converts."""
    if kind is bytes:
        return BytesCodec(what)
    if kind is Any:
        return PlainCodec(what)
    return TypedCodec(kind, what, keep_order=keep_order, configure=configure)
