"""Plain Python state to bytes and back, without loss.

CBOR as we use it knows fewer types than a state is made of. What it lacks is written as a map of one key that is bytes,
which no other map here has. Dicts keep their order: an application may depend on it, and a replica that was restored
from a snapshot must go on as the others do (H-80). Sets have no order to keep; they are sorted.
"""

from __future__ import annotations

import math
from typing import Any

from .. import _cbor
from ..errors import ConversionError

__all__ = ["StateCodec"]

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1
_MAX_DEPTH = 64
_TUPLE, _DICT, _SET, _FROZENSET, _INT, _FLOAT = b"tuple", b"dict", b"set", b"frozenset", b"int", b"float"


class _Problem(Exception):
    """Something cannot be encoded; ``path`` is built while the error passes the containers around it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def inside(self, step: str) -> _Problem:
        self.path = step + self.path
        return self


class StateCodec:
    """Any nesting of None, bool, int, float, str, bytes, list, tuple, dict, set and frozenset, 64 deep at most."""

    def encode(self, value: Any) -> bytes:
        """Encode ``value``.

        :raises ConversionError: if something in it is of another type; subclasses are other types.
        """
        try:
            return _cbor.dumps(_wrap(value, 0), canonical=False)
        except _Problem as problem:
            text = f"state{problem.path}: {problem.reason}"
            raise ConversionError("state", "plain Python value", text) from None
        except UnicodeEncodeError as error:
            raise ConversionError("state", "plain Python value", "text with a lone surrogate") from error

    def decode(self, data: bytes) -> Any:
        """Decode what :meth:`encode` made.

        :raises ConversionError: if ``data`` is anything else.
        """
        try:
            # A marked container is two levels of CBOR, and an item of it a third.
            return _unwrap(_cbor.loads(data, max_depth=2 * _MAX_DEPTH + 2))
        except ValueError as error:
            raise ConversionError("state", "plain Python value", str(error)) from error


def _wrap(value: Any, depth: int) -> Any:
    kind = type(value)
    if value is None or kind in (bool, str, bytes):
        return value
    if kind is int:
        return value if _INT_MIN <= value <= _INT_MAX else {_INT: hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {_FLOAT: repr(value)}
    if depth >= _MAX_DEPTH:
        raise _Problem(f"nested deeper than {_MAX_DEPTH}, or in itself")
    if kind is list:
        return _wrap_items(value, depth)
    if kind is tuple:
        return {_TUPLE: _wrap_items(value, depth)}
    if kind is dict:
        return _wrap_dict(value, depth)
    if kind is set or kind is frozenset:
        items = [_wrap(item, depth + 1) for item in value]
        return {_SET if kind is set else _FROZENSET: sorted(items, key=_cbor.dumps)}
    raise _Problem(f"a value of type {kind.__qualname__} is not plain: declare state_type, or provide IStateMachine")


def _wrap_items(items: list[Any] | tuple[Any, ...], depth: int) -> list[Any]:
    wrapped: list[Any] = []
    try:
        for item in items:
            wrapped.append(_wrap(item, depth + 1))
    except _Problem as problem:
        raise problem.inside(f"[{len(wrapped)}]") from None
    return wrapped


def _wrap_dict(value: dict[Any, Any], depth: int) -> dict[Any, Any]:
    key: Any = None
    try:
        if all(type(key) is str for key in value):
            wrapped = {}
            for key, item in value.items():
                wrapped[key] = _wrap(item, depth + 1)
            return wrapped
        flat: list[Any] = []
        for key, item in value.items():
            flat += (_wrap(key, depth + 1), _wrap(item, depth + 1))
        return {_DICT: flat}
    except _Problem as problem:
        raise problem.inside(f"[{key!r}]") from None


def _unwrap(plain: Any) -> Any:
    kind = type(plain)
    if kind is list:
        return [_unwrap(item) for item in plain]
    if kind is not dict:
        return plain
    if all(type(key) is str for key in plain):
        return {key: _unwrap(item) for key, item in plain.items()}
    if len(plain) != 1:
        raise ValueError("a map has keys that are not text")
    [(marker, content)] = plain.items()
    if marker in (_INT, _FLOAT) and type(content) is str:
        return int(content, 16) if marker == _INT else float(content)
    if type(content) is not list:
        raise ValueError(f"the marker {marker!r} has no list")
    return _unwrap_marked(marker, [_unwrap(item) for item in content])


def _unwrap_marked(marker: Any, items: list[Any]) -> Any:
    if marker == _TUPLE:
        return tuple(items)
    try:
        if marker == _SET:
            return set(items)
        if marker == _FROZENSET:
            return frozenset(items)
        if marker == _DICT and len(items) % 2 == 0:
            return dict(zip(items[::2], items[1::2], strict=True))
    except TypeError as error:
        raise ValueError(f"a key or an item of a set is not hashable: {error}") from error
    raise ValueError(f"the marker {marker!r} is not known")
