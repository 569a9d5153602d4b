"""CBOR for commands and snapshots: made by cbor2, read by the strict codec that every application gets."""

from __future__ import annotations

from typing import Any

import cbor2

from ..types import declare_raft_types

__all__ = ["dumps", "loads"]

_PLAIN = declare_raft_types()


def dumps(value: list[Any] | dict[str, Any]) -> bytes:
    """Encode lists, maps, integers, bytes and truth values, which all come back as they are."""
    return cbor2.dumps(value)


def loads(data: bytes) -> Any:
    """Decode strictly.

    :raises ConversionError: if ``data`` is not one strict item; it is a ValueError as well.
    """
    return _PLAIN.decode_request(data)
