"""Entries as people read them: kinds, configurations, and payloads decoded by the application's types."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import attrs

from .. import _cbor
from ..raft import Entry, EntryKind, Membership
from ._output import printable

__all__ = ["MODES", "Payloads", "describe_membership", "kind_name", "plain", "plain_membership"]

MODES = ("masked", "none", "hex", "text", "decoded")
_DIGEST_DIGITS = 12
"""Enough to tell payloads apart."""
_SHOWN = 160
"""Characters of a payload in text output; JSON has it whole."""


def kind_name(entry: Entry) -> str:
    """Return the name of an entry's kind."""
    return EntryKind(entry.kind).name.lower()


def plain(value: Any) -> Any:
    """Return a decoded value as JSON has it. Bytes become ``{"utf8": …}``, or ``{"hex": …}`` if they are no text."""
    if value is None or isinstance(value, str) or (isinstance(value, bool | int) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, bytes):
        try:
            return {"utf8": value.decode()}
        except UnicodeDecodeError:
            return {"hex": value.hex()}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: plain(item) for key, item in value.items()}
        return {"items": [[plain(key), plain(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    kind = type(value)
    if attrs.has(kind):
        names = [field.name for field in attrs.fields(kind)]
    elif dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
    else:
        return {"repr": repr(value)}
    return {"type": kind.__name__, **{name: plain(getattr(value, name)) for name in names}}


def plain_membership(membership: Membership) -> dict[str, Any]:
    """Return a configuration as JSON has it."""
    found = membership.to_plain()
    found["members"] = [
        {"id": node_id, "incarnation": incarnation.hex(), "peer": peer, "client": client}
        for node_id, incarnation, peer, client in found["members"]
    ]
    return found


def describe_membership(membership: Membership) -> str:
    """Return a configuration as one line."""

    def ids(some: Any) -> str:
        return ",".join(map(str, sorted(some))) or "none"

    parts = [f"voters {ids(membership.voters)}"]
    if membership.joint:
        parts[0] = f"joint, voters {ids(membership.outgoing)} to {ids(membership.voters)}"
    if membership.learners:
        parts.append(f"learners {ids(membership.learners)}")
    if membership.tombstones:
        parts.append(f"removed {ids(membership.tombstones)}")
    parts.append(" ".join(f"{node_id}={each.peer_address}" for node_id, each in sorted(membership.members.items())))
    return printable("; ".join(part for part in parts if part))


class Payloads:
    """Shows payloads in one of five ways.

    :param mode: of :data:`MODES`; None is ``decoded`` if there is an application, and else ``masked``.
    :param application: as a node's configuration names it; None is the key-value store where it decodes.
    """

    def __init__(self, mode: str | None, application: str | None) -> None:
        if mode is None:
            # The types do not say which of their fields are secret, so all are, until somebody asks.
            mode = "masked" if application is None else "decoded"
        self._mode = mode
        self._reads_own = mode in ("masked", "decoded")
        self._guess = application is None
        self._decode = _decoder(application or "kv") if mode == "decoded" else None

    def show(self, entry: Entry) -> tuple[dict[str, Any], str]:
        """Return an entry's payload as JSON fields and as text."""
        payload = entry.payload
        if self._mode == "none":
            return {}, ""
        if entry.kind == EntryKind.CONFIG and self._reads_own:
            return _shown(payload, Membership.decode, plain_membership, describe_membership, "config")
        if entry.kind == EntryKind.SESSION and self._reads_own:
            return _shown(payload, _session, dict, _describe_session, "session_settings")
        if not payload:
            return {}, ""
        if entry.kind == EntryKind.NOOP and self._reads_own:
            return _shown(payload, _recovery, dict, _describe_recovery, "recovery")
        if self._mode == "masked":
            return _masked(payload)
        if self._mode == "hex":
            return _hex(payload)
        if self._mode == "text" or self._decode is None:
            return _text(payload)
        if entry.kind != EntryKind.COMMAND:
            return _hex(payload)
        fields, text = _shown(payload, self._decode, plain, repr, "payload")
        if self._guess and "payload_error" in fields:
            # Nobody said that it is the key-value store.
            return _text(payload) if _is_text(payload) else _hex(payload)
        return fields, text


def _shown(
    payload: bytes,
    decode: Callable[[bytes], Any],
    to_json: Callable[[Any], Any],
    to_text: Callable[[Any], str],
    key: str,
) -> tuple[dict[str, Any], str]:
    try:
        value = decode(payload)
        return {key: to_json(value)}, _cut(to_text(value))
    except Exception as error:
        # The types are the application's, and so are the errors that they raise.
        fields, text = _hex(payload)
        reason = f"{type(error).__name__}: {error}"
        return {**fields, "payload_error": reason}, f"{text} {_cut(f'(does not decode: {reason})')}"


def _masked(payload: bytes) -> tuple[dict[str, Any], str]:
    digest = sha256(payload).hexdigest()[:_DIGEST_DIGITS]
    return {"payload_digest": digest}, f"SHA-256 {digest}..."


def _hex(payload: bytes) -> tuple[dict[str, Any], str]:
    return {"payload_hex": payload.hex()}, _cut(payload[:_SHOWN].hex())


def _text(payload: bytes) -> tuple[dict[str, Any], str]:
    text = payload.decode("utf-8", "backslashreplace")
    return {"payload_text": text}, _cut(text)


def _is_text(payload: bytes) -> bool:
    try:
        return payload.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _cut(text: str) -> str:
    text = printable(text[: _SHOWN + 1])
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _session(payload: bytes) -> dict[str, int]:
    values = _cbor.loads(payload)
    if not isinstance(values, list) or len(values) != 3 or not all(type(value) is int for value in values):
        raise ValueError("session settings are three integers")
    return dict(zip(("ttl_ms", "max_sessions", "window"), values, strict=True))


def _describe_session(settings: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _recovery(payload: bytes) -> dict[str, Any]:
    """Read what ``zconsensus recover`` leaves in the log."""
    values = _cbor.loads(payload)
    if not isinstance(values, dict) or "recovery" not in values:
        raise ValueError("it is not the note of a recovery")
    return {key: _without_bytes(value) for key, value in values.items()}


def _without_bytes(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_without_bytes(item) for item in value]
    return {key: _without_bytes(item) for key, item in value.items()} if isinstance(value, dict) else value


def _describe_recovery(values: Mapping[str, Any]) -> str:
    survivors = ",".join(str(each["id"]) for each in values["survivors"])
    lost = ",".join(map(str, values["lost"]))
    return (
        f"RECOVERY of cluster {values['old_cluster']}: survivors {survivors}, base {values['base']}, lost {lost}; "
        f"by {values['tool']}"
    )


def _decoder(application: str) -> Callable[[bytes], Any]:
    if application == "kv":
        from ..kv import decode

        return decode
    from ..daemon.application import application_named

    types = application_named(application, "--application").types
    if types is None:
        from ..types import declare_raft_types

        types = declare_raft_types()
    decode_request: Callable[[bytes], Any] = types.decode_request
    return decode_request
