"""CBOR as this project uses it: one way to encode, one strict way to decode.

What is decoded here came from a disk or a peer. Everything that can make a decoded value surprising is refused:
tags, shared references, indefinite lengths, duplicate keys, keys that are not text or bytes, trailing bytes,
NaN and infinities, undefined and simple values, integers beyond 64 bits (hazards §4.3, A-18 to A-20).
"""

from __future__ import annotations

import io
import math
from typing import Any, NoReturn

import cbor2

__all__ = ["CborError", "dumps", "loads"]

MAX_DEPTH = 16
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 64) - 1


class CborError(ValueError):
    """The bytes are not one strictly encoded CBOR item."""


def _refuse_tag(*_args: object, **_kwargs: object) -> NoReturn:
    raise CborError("CBOR tags are not allowed")


_KNOWN_TAGS = (
    0,
    1,
    2,
    3,
    4,
    5,
    25,
    28,
    29,
    30,
    35,
    36,
    37,
    52,
    54,
    100,
    256,
    258,
    260,
    261,
    1004,
    43000,
    55799,
)
_SEMANTIC: Any = dict.fromkeys(_KNOWN_TAGS, _refuse_tag)


def dumps(value: object, *, canonical: bool = True) -> bytes:
    """Encode plain values (None, bool, int, float, str, bytes, list, tuple, dict).

    :param canonical: sort the keys of maps; else they keep their order, which is part of an application's state.
    """
    return cbor2.dumps(value, canonical=canonical)


def loads(data: bytes, *, max_depth: int = MAX_DEPTH) -> Any:
    """Decode exactly one item.

    :param max_depth: how deep lists and maps may lie in one another.
    :raises CborError: if ``data`` is anything but one strict item.
    """
    stream = io.BytesIO(data)
    try:
        value = cbor2.CBORDecoder(
            stream,
            semantic_decoders=_SEMANTIC,
            tag_hook=_refuse_tag,
            max_depth=max_depth,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        ).decode()
    except CborError:
        raise
    except Exception as error:  # the decoder's own errors, and what a hook raised inside it
        raise CborError(f"not valid CBOR: {type(error).__name__}") from error
    if stream.tell() != len(data):
        raise CborError("bytes follow the CBOR item")
    _check(value)
    return value


_HARMLESS = frozenset((bytes, str, bool, type(None)))


def _check(value: Any) -> None:
    """Refuse what the decoder takes and nobody here wants. What it returns has no cycles."""
    pending = [value]
    for each in pending:  # which grows meanwhile; calls would cost more than all the rest
        kind = type(each)
        if kind in _HARMLESS:
            continue
        if kind is int:
            if not _INT_MIN <= each <= _INT_MAX:
                raise CborError("an integer has more than 64 bits")
        elif kind is list:
            pending += each
        elif kind is dict:
            for key in each:
                if type(key) is not str and type(key) is not bytes:
                    raise CborError("a map key is neither text nor bytes")
            pending += each.values()
        elif kind is float:
            if not math.isfinite(each):
                raise CborError("NaN and infinities are not allowed")
        else:
            raise CborError(f"a value of type {kind.__name__} is not allowed")
