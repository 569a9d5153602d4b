"""The wire codec: envelopes and messages to CBOR bodies, and strictly back.

A body is one map with the keys ``protocol``, ``cluster``, ``from``, ``to``, ``rpc``, ``type`` and ``body``. A reply
repeats ``rpc`` and swaps ``from`` and ``to``, so that the caller notices an answer to somebody else's question (J-41).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import _cbor
from ..errors import InvalidMessage
from ..raft import AppendRequest
from ._entries import pack_entries, unpack_entries
from ._schema import (
    CLUSTER_ID,
    ENDPOINT_OF,
    ENDPOINTS,
    ID,
    IDENTIFY,
    INCARNATION,
    OPTIONAL_ID,
    U64,
    Endpoint,
    Field,
    MessageSchema,
)
from .interfaces import Envelope, RpcReply, RpcRequest

__all__ = [
    "PROTOCOL_VERSION",
    "UNDERSTOOD",
    "Frame",
    "decode_reply",
    "decode_request",
    "encode_reply",
    "encode_request",
]

PROTOCOL_VERSION = 1
"""The version that is spoken to a peer of which nothing else is known."""

UNDERSTOOD = range(1, 2)
"""The versions that are understood. During a rolling upgrade it holds the version of the release before too."""

_KEYS = frozenset({"protocol", "cluster", "from", "to", "rpc", "type", "body"})


class Frame(NamedTuple):
    """A decoded body.

    :param version: the protocol version it is written in; the reply is written in the same.
    :param rpc: the caller's number of this call; the reply repeats it.
    :param envelope: who speaks to whom; in a reply too it is the *request's*.
    """

    version: int
    envelope: Envelope
    rpc: int
    message: Any


def encode_request(
    envelope: Envelope, request: RpcRequest, rpc: int, version: int = PROTOCOL_VERSION
) -> tuple[str, bytes]:
    """Return the name of the RPC that takes ``request``, and the body."""
    endpoint = ENDPOINT_OF[type(request)]
    ends = ([envelope.sender_id, envelope.sender_incarnation], [envelope.target_id, envelope.target_incarnation])
    return endpoint.name, _encode(endpoint.request, envelope.cluster_id, ends, request, rpc, version)


def encode_reply(envelope: Envelope, reply: RpcReply, rpc: int, version: int = PROTOCOL_VERSION) -> tuple[str, bytes]:
    """Return the name of the RPC that ``reply`` answers, and the body.

    :param envelope: the request's.
    """
    endpoint = _ENDPOINT_OF_REPLY[type(reply)]
    ends = ([envelope.target_id, envelope.target_incarnation], [envelope.sender_id, envelope.sender_incarnation])
    return endpoint.name, _encode(endpoint.reply, envelope.cluster_id, ends, reply, rpc, version)


def decode_request(name: str, body: bytes, version: int = PROTOCOL_VERSION) -> Frame:
    """Read the body of a request.

    :param name: the RPC's.
    :param version: what the header says; the body must say the same.
    :raises InvalidMessage: if it is anything else than one request of that RPC in that version; names the field.
    """
    endpoint = ENDPOINTS[name]
    schema = endpoint.request
    plain = _frame(schema, body, version)
    sender, target = _end(schema, plain, "from"), _end(schema, plain, "to")
    cluster_id = _read(schema.name, "cluster", CLUSTER_ID, plain["cluster"])
    envelope = Envelope(cluster_id, sender[0], sender[1], target[0], target[1])
    _check_envelope(endpoint, envelope)
    message = _message(schema, plain["body"])
    return Frame(version, envelope, plain["rpc"], message)


def decode_reply(
    name: str,
    body: bytes,
    version: int = PROTOCOL_VERSION,
    envelope: Envelope | None = None,
    rpc: int | None = None,
) -> Frame:
    """Read the body of a reply.

    :param envelope, rpc: the request's, if known; the reply must belong to it.
    :raises InvalidMessage: if it is anything else than the reply to that request; names the field.
    """
    schema = ENDPOINTS[name].reply
    plain = _frame(schema, body, version)
    sender, target = _end(schema, plain, "to"), _end(schema, plain, "from")
    cluster_id = _read(schema.name, "cluster", CLUSTER_ID, plain["cluster"])
    found = Envelope(cluster_id, sender[0], sender[1], target[0], target[1])
    if envelope is not None and found != envelope:
        raise InvalidMessage(f"{schema.name}: it answers a request of other nodes or another cluster")
    if rpc is not None and plain["rpc"] != rpc:
        raise InvalidMessage(f"{schema.name}.rpc: it answers request {plain['rpc']} instead of {rpc}")
    return Frame(version, found, plain["rpc"], _message(schema, plain["body"]))


_ENDPOINT_OF_REPLY = {endpoint.reply.message: endpoint for endpoint in ENDPOINTS.values()}
_FIELD_NAMES = {
    schema.name: frozenset(key for key, _ in schema.fields)
    for endpoint in ENDPOINTS.values()
    for schema in (endpoint.request, endpoint.reply)
}
_SORTED_FIELDS = {
    schema.name: sorted(schema.fields, key=lambda item: (len(item[0]), item[0]))
    for endpoint in ENDPOINTS.values()
    for schema in (endpoint.request, endpoint.reply)
}


def _encode(
    schema: MessageSchema, cluster_id: bytes, ends: tuple[list[Any], list[Any]], message: Any, rpc: int, version: int
) -> bytes:
    fields = {}
    for name, field in _SORTED_FIELDS[schema.name]:
        value = getattr(message, name)
        fields[name] = field.write(value) if field.write is not None else value
    if schema.message is AppendRequest:
        fields["entries"] = pack_entries(message.entries)
    # The keys stand in their canonical order already: to let the encoder sort them takes three times as long.
    return _cbor.dumps(
        {
            "to": ends[1],
            "rpc": rpc,
            "body": fields,
            "from": ends[0],
            "type": schema.name,
            "cluster": cluster_id,
            "protocol": version,
        },
        canonical=False,
    )


def _frame(schema: MessageSchema, body: bytes, version: int) -> dict[str, Any]:
    """Decode the outer map and check what does not depend on the direction."""
    try:
        plain = _cbor.loads(body)
    except _cbor.CborError as error:
        raise InvalidMessage(f"{schema.name}: {error}") from error
    _check_keys(schema.name, plain, _KEYS)
    if type(plain["protocol"]) is not int or plain["protocol"] != version:
        raise InvalidMessage(f"{schema.name}.protocol: must be {version}")
    if plain["type"] != schema.name:
        raise InvalidMessage(f"{schema.name}.type: must be {schema.name!r}")
    _read(schema.name, "rpc", U64, plain["rpc"])
    return plain  # type: ignore[no-any-return]


def _check_keys(name: str, plain: Any, keys: frozenset[str] | set[str]) -> None:
    if type(plain) is not dict:
        raise InvalidMessage(f"{name}: must be a map")
    if plain.keys() != keys:
        missing = sorted(keys - plain.keys())
        if missing:
            raise InvalidMessage(f"{name}.{missing[0]}: is missing")
        # An unknown key's text is the peer's; it is not repeated.
        raise InvalidMessage(f"{name}: has {len(plain.keys() - keys)} unknown keys")


def _end(schema: MessageSchema, plain: dict[str, Any], key: str) -> tuple[int, bytes]:
    pair = plain[key]
    if type(pair) is not list or len(pair) != 2:
        raise InvalidMessage(f"{schema.name}.{key}: must be a list of id and incarnation")
    return (
        _read(schema.name, f"{key} id", OPTIONAL_ID, pair[0]),
        _read(schema.name, f"{key} incarnation", CLUSTER_ID, pair[1]),
    )


def _check_envelope(endpoint: Endpoint, envelope: Envelope) -> None:
    """Refuse what an envelope may not leave out, and a node that speaks to itself (A-08)."""
    name = endpoint.request.name
    _read(name, "from id", ID, envelope.sender_id)
    _read(name, "from incarnation", INCARNATION, envelope.sender_incarnation)
    if endpoint is IDENTIFY:
        return
    if not envelope.cluster_id:
        raise InvalidMessage(f"{name}.cluster: must be 16 bytes")
    _read(name, "to id", ID, envelope.target_id)
    _read(name, "to incarnation", INCARNATION, envelope.target_incarnation)
    if envelope.sender_id == envelope.target_id:
        raise InvalidMessage(f"{name}.from id: must not be the id of the target")


def _read(name: str, key: str, field: Field, value: Any) -> Any:
    try:
        return field.read(value)
    except ValueError as error:
        raise InvalidMessage(f"{name}.{key}: must be {field.form}") from error


def _message(schema: MessageSchema, plain: Any) -> Any:
    """Build the message from the inner map."""
    name = schema.name
    _check_keys(name, plain, _FIELD_NAMES[name])
    values = [_read(name, key, field, plain[key]) for key, field in schema.fields]
    if schema.message is AppendRequest:
        term, _stream, _seq, prev, packed, *_ = values
        try:
            values[4] = unpack_entries(packed, prev, term)
        except ValueError as error:
            raise InvalidMessage(f"{name}.entries: {error}") from error
    message = schema.message(*values)
    broken = schema.rule(message)
    if broken is not None:
        raise InvalidMessage(f"{name}.{broken[0]}: {broken[1]}")
    return message
