"""Transactions as JSON: a closed schema, whose errors name the field; and their results."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any, Final

from ..kv import (
    MAX_TXN_OPERATIONS,
    Compare,
    Comparison,
    Delete,
    DeleteResult,
    KeyValue,
    Operation,
    OperationResult,
    Put,
    PutResult,
    Range,
    Target,
    Txn,
    TxnResult,
)
from ._api_http import ApiError

__all__ = ["fields", "integer", "invalid", "parse_txn", "plain_pair", "plain_result"]

_MAX_INT: Final = (1 << 63) - 1


def invalid(field: str, rule: str) -> ApiError:
    """Return the error for a field of a JSON body."""
    return ApiError(400, "invalid_field", f"{field} {rule}", field=field)


def fields(value: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Check that ``value`` is an object with these fields, and no others.

    :param where: its name for errors, empty for the body itself.
    :raises ApiError: 400.
    """
    if not isinstance(value, dict):
        raise invalid(where, "must be an object")
    dot = where + "." if where else ""
    for name in value:
        if name not in required and name not in optional:
            known = ", ".join((*required, *optional)) or "none"
            raise invalid(dot + name[:80], f"is not known here; the fields are: {known}")
    for name in required:
        if name not in value:
            raise invalid(dot + name, "is missing")
    return value


def integer(value: Any, where: str, low: int = 0) -> int:
    """Check that ``value`` is an integer from ``low`` to 2^63 - 1.

    :raises ApiError: 400.
    """
    if type(value) is not int or not low <= value <= _MAX_INT:
        raise invalid(where, f"must be an integer from {low} to 2^63 - 1")
    return value


def parse_txn(body: dict[str, Any]) -> Txn:
    """Read the body of ``POST /v1/txn``.

    :raises ApiError: 400 with the field, or 413.
    """
    fields(body, "", (), ("compare", "success", "failure"))
    return Txn(
        tuple(_each(body, "compare", _compare)),
        tuple(_each(body, "success", _operation)),
        tuple(_each(body, "failure", _operation)),
    )


def _each(body: dict[str, Any], name: str, parse: Callable[[Any, str], Any]) -> list[Any]:
    items = body.get(name, [])
    if not isinstance(items, list):
        raise invalid(name, "must be a list")
    if len(items) > MAX_TXN_OPERATIONS:
        message = f"{name} has {len(items)} items, the limit is {MAX_TXN_OPERATIONS}"
        raise ApiError(413, "too_many_operations", message, field=name, limit=MAX_TXN_OPERATIONS)
    return [parse(item, f"{name}[{number}]") for number, item in enumerate(items)]


def _compare(value: Any, where: str) -> Compare:
    if not isinstance(value, dict):
        raise invalid(where, "must be an object")
    target = _one_of(value.get("target"), f"{where}.target", Target)
    operand_name = target.name.lower()
    fields(value, where, ("key", "target", "result", operand_name))
    operand_at = f"{where}.{operand_name}"
    raw = value[operand_name]
    operand = _binary(raw, operand_at) if target is Target.VALUE else integer(raw, operand_at)
    key = _key(value["key"], f"{where}.key")
    return Compare(key, target, _one_of(value["result"], f"{where}.result", Comparison), operand)


def _operation(value: Any, where: str) -> Operation:
    if not isinstance(value, dict):
        raise invalid(where, "must be an object")
    kind = value.get("op")
    if kind not in ("put", "get", "delete"):
        raise invalid(f"{where}.op", "must be put, get or delete")
    fields(value, where, ("op", "key", "value") if kind == "put" else ("op", "key"))
    key = _key(value["key"], f"{where}.key")
    if kind == "put":
        return Put(key, _binary(value["value"], f"{where}.value"))
    return Delete(key) if kind == "delete" else Range(key)


def _one_of(value: Any, where: str, choices: Any) -> Any:
    names = {choice.name.lower(): choice for choice in choices}
    if not isinstance(value, str) or value not in names:
        raise invalid(where, "must be " + ", ".join(names))
    return names[value]


def _key(value: Any, where: str) -> bytes:
    key = _binary(value, where)
    if not key:
        raise invalid(where, "must have at least one byte")
    return key


def _binary(value: Any, where: str) -> bytes:
    if not isinstance(value, str):
        raise invalid(where, "must be text in base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(where, "must be text in base64") from None


def plain_pair(kv: KeyValue) -> dict[str, Any]:
    """Return a key as JSON shows it."""
    return {
        "key": base64.b64encode(kv.key).decode(),
        "value": base64.b64encode(kv.value).decode(),
        "create_revision": kv.create_revision,
        "mod_revision": kv.mod_revision,
        "version": kv.version,
    }


def plain_result(result: TxnResult) -> dict[str, Any]:
    """Return a transaction's result as JSON shows it."""
    return {
        "revision": result.revision,
        "succeeded": result.succeeded,
        "results": [_plain_operation(each) for each in result.results],
    }


def _plain_operation(result: OperationResult) -> dict[str, Any]:
    if isinstance(result, PutResult):
        return {"op": "put", "create_revision": result.create_revision, "version": result.version}
    if isinstance(result, DeleteResult):
        return {"op": "delete", "deleted": bool(result.deleted)}
    return {"op": "get", "kv": plain_pair(result.kvs[0]) if result.kvs else None}
