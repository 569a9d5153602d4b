"""What every message looks like on the wire: each is described once, here.

A message is a CBOR map with exactly the keys of its schema and values of exactly their types. Rules that tie fields
together are those that every correct sender keeps; they hold for all versions that are understood.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..raft import (
    MAX_INDEX,
    MAX_TERM,
    NO_LOG,
    AppendReply,
    AppendRequest,
    EntryKind,
    HeartbeatReply,
    HeartbeatRequest,
    LogId,
    ReadIndexReply,
    ReadIndexRequest,
    TimeoutNowReply,
    TimeoutNowRequest,
    VoteReply,
    VoteRequest,
)
from ._messages import (
    MAX_DIGEST_BYTES,
    MAX_DIGEST_KIND,
    MAX_DIGESTS,
    MAX_FORWARDED,
    MAX_OUTCOME_BYTES,
    MAX_TIMEOUT_MS,
    DigestAt,
    DigestReply,
    DigestRequest,
    ForwardedOutcome,
    ForwardedProposal,
    IdentifyReply,
    IdentifyRequest,
    OperateReply,
    OperateRequest,
    ProposeReply,
    ProposeRequest,
    SnapshotChunk,
    SnapshotChunkReply,
)

__all__ = [
    "CLUSTER_ID",
    "ENDPOINTS",
    "ENDPOINT_OF",
    "ID",
    "IDENTIFY",
    "INCARNATION",
    "OPTIONAL_ID",
    "OUTCOME_COLUMNS",
    "PROPOSAL_COLUMNS",
    "TEXT",
    "U64",
    "WORD",
    "Endpoint",
    "Field",
    "MessageSchema",
    "request_limits",
]

KIB = 1 << 10
MIB = 1 << 20
_MAX_U64 = (1 << 64) - 1
# Of nodes, sessions and sequences.
_MAX_ID = (1 << 63) - 1
_MAX_CHUNK = MIB
_MAX_MANIFEST = MIB
_MAX_MEMBERS = 128 * KIB
_MAX_PROPOSAL = 16 * MIB
# `max_payload_bytes`, or one larger entry, with each entry's head and length beside it.
_MAX_APPEND = 17 * MIB
# The frame around a body: identities, names, heads of items.
_FRAME = 4 * KIB


class Field(NamedTuple):
    """One value's form.

    :param form: what it must be, in words that follow "must be".
    :param read: returns the value as the message holds it; raises :class:`ValueError` if it is anything else.
    :param write: returns the plain value to encode, or None to encode it as it is.
    """

    form: str
    read: Callable[[Any], Any]
    write: Callable[[Any], Any] | None = None


def _integer(form: str, low: int, high: int) -> Field:
    def read(value: Any) -> int:
        # `type`, not isinstance: True is an int.
        if type(value) is int and low <= value <= high:
            return value
        raise ValueError

    return Field(form, read)


def _sized(form: str, kind: type[bytes] | type[str], *sizes: int, upto: int | None = None) -> Field:
    """Bytes or text of one of ``sizes``, or of any length up to ``upto``."""

    def read(value: Any) -> Any:
        if type(value) is kind and (len(value) in sizes if upto is None else len(value) <= upto):
            return value
        raise ValueError

    return Field(form, read)


def _word(value: Any) -> str:
    if type(value) is str and len(value) <= 64 and all(c == "_" or "a" <= c <= "z" for c in value):
        return value
    raise ValueError


def _text(value: Any) -> str:
    # Control characters would let a peer write lines of its own into our log.
    if type(value) is str and len(value) <= 1024 and value.isprintable():
        return value
    raise ValueError


def _kind(value: Any) -> str:
    if len(_text(value)) <= MAX_DIGEST_KIND:
        return str(value)
    raise ValueError


def _boolean(value: Any) -> bool:
    if type(value) is bool:
        return value
    raise ValueError


def _log_id(value: Any) -> LogId:
    if type(value) is list and len(value) == 2:
        term, index = value
        if type(term) is int and type(index) is int:
            if 0 < term <= MAX_TERM and 0 < index <= MAX_INDEX:
                return LogId(term, index)
            if term == 0 == index:
                return NO_LOG
            if term == 0 and index == 1:  # the initial configuration, which no leader wrote
                return LogId(0, 1)
    raise ValueError


def _one_of(*choices: str) -> Field:
    def read(value: Any) -> str:
        if type(value) is str and value in choices:
            return value
        raise ValueError

    return Field("one of " + ", ".join(choices), read)


ID = _integer("an integer from 1 to 2^63-1", 1, _MAX_ID)
OPTIONAL_ID = _integer("an integer from 0 to 2^63-1", 0, _MAX_ID)
U64 = _integer("an integer from 0 to 2^64-1", 0, _MAX_U64)
WORD = Field("at most 64 of the characters a-z and _", _word)
TEXT = Field("at most 1024 printable characters", _text)
INCARNATION = _sized("16 bytes", bytes, 16)
_REPAIR = _sized("16 bytes, or none", bytes, 0, 16)
CLUSTER_ID = _sized("16 bytes, or none", bytes, 0, 16)
_TERM = _integer("an integer from 1 to 2^62-1", 1, MAX_TERM)
_TERM_OR_0 = _integer("an integer from 0 to 2^62-1", 0, MAX_TERM)
_INDEX = _integer("an integer from 0 to 2^62-1", 0, MAX_INDEX)
_BOOL = Field("true or false", _boolean)
_LOG_ID = Field("a list of term and index, each from 1 to 2^62-1, or 0 and 0, or 0 and 1", _log_id, list)
_MEMBERS = _sized(f"at most {_MAX_MEMBERS} bytes", bytes, upto=_MAX_MEMBERS)
_PAYLOAD = _sized(f"at most {_MAX_PROPOSAL} bytes", bytes, upto=_MAX_PROPOSAL)
_RESULT = _sized(f"at most {MAX_OUTCOME_BYTES} bytes", bytes, upto=MAX_OUTCOME_BYTES)
_KIND = _integer(f"an integer from 0 to {max(EntryKind)}", 0, max(EntryKind))
_TIMEOUT = _integer(f"an integer from 1 to {MAX_TIMEOUT_MS}", 1, MAX_TIMEOUT_MS)
_KIND_OF_DIGEST = Field(f"at most {MAX_DIGEST_KIND} printable characters", _kind)
_DIGEST = _sized(f"at most {MAX_DIGEST_BYTES} bytes", bytes, upto=MAX_DIGEST_BYTES)
_PACKED = _sized("a byte string of packed entries", bytes, upto=1 << 32)


def _rows(what: str, row: Callable[..., Any], least: int, most: int, **columns: Field) -> Field:
    """A list of ``least`` to ``most`` lists, whose values have each the form of their column."""

    def read(value: Any) -> Any:
        if type(value) is not list or not least <= len(value) <= most:
            raise ValueError
        return tuple(read_row(each) for each in value)

    def read_row(values: Any) -> Any:
        if type(values) is not list or len(values) != len(columns):
            raise ValueError
        return row(*(column.read(value) for column, value in zip(columns.values(), values, strict=True)))

    def write(rows: Any) -> Any:
        return [list(each) for each in rows]

    *names, last = columns
    form = f"a list of {least} to {most} {what}, each a list of {', '.join(names)} and {last}"
    return Field(form, read, write)


PROPOSAL_COLUMNS = {
    "payload": _PAYLOAD,
    "kind": _KIND,
    "session": OPTIONAL_ID,
    "sequence": OPTIONAL_ID,
    "timeout_ms": _TIMEOUT,
    "frees": _BOOL,
}
OUTCOME_COLUMNS = {"error": WORD, "payload": _RESULT, "index": _INDEX}


class MessageSchema(NamedTuple):
    """One message: its fields, in the order of the class's, and the rule that ties them together.

    :param rule: returns the field that breaks a rule and what the rule is, or None.
    """

    name: str
    message: type
    fields: tuple[tuple[str, Field], ...]
    rule: Callable[[Any], tuple[str, str] | None] = lambda _message: None


class Endpoint(NamedTuple):
    """One RPC.

    :param name: the last segment of its path.
    :param lane: which connections carry it.
    :param request_limit, reply_limit: most bytes of a body.
    """

    name: str
    lane: str
    request: MessageSchema
    reply: MessageSchema
    request_limit: int
    reply_limit: int


def _schema(
    message: type, rule: Callable[[Any], tuple[str, str] | None] = lambda _message: None, **fields: Field
) -> MessageSchema:
    name = "".join("_" + c.lower() if c.isupper() else c for c in message.__name__).lstrip("_")
    slots = tuple(getattr(message, "__slots__", ()))
    if tuple(fields) != slots:
        raise TypeError(f"the schema of {name} has the fields {tuple(fields)}, the message has {slots}")
    return MessageSchema(name, message, tuple(fields.items()), rule)


def _last_term(message: Any) -> tuple[str, str] | None:
    return ("last", "must not be of a later term than the message") if message.last.term > message.term else None


def _prev_term(message: AppendRequest) -> tuple[str, str] | None:
    return ("prev", "must not be of a later term than the message") if message.prev.term > message.term else None


def _match(message: AppendReply) -> tuple[str, str] | None:
    return ("match", "must be 0 without success") if message.match and not message.success else None


def _chunk(message: SnapshotChunk) -> tuple[str, str] | None:
    if message.last == NO_LOG:
        return "last", "must not be the beginning of the log"
    if message.manifest and (message.data or message.part or message.offset):
        return "manifest", "must come alone, before the data"
    return _last_term(message)


def _outcomes(message: ProposeReply) -> tuple[str, str] | None:
    if sum(len(outcome.payload) for outcome in message.outcomes) > MAX_OUTCOME_BYTES:
        return "outcomes", f"must have at most {MAX_OUTCOME_BYTES} bytes of payload together"
    return None


def _agreed(message: DigestRequest) -> tuple[str, str] | None:
    nothing = not message.index
    return ("digest", "must come with an index, and only then") if nothing is bool(message.digest) else None


def _digests(message: DigestReply) -> tuple[str, str] | None:
    return ("digests", "must be empty without a kind") if message.digests and not message.kind else None


_STATUS = _one_of("continue", "busy", "installed", "restart", "stale", "full")

_ENDPOINTS = (
    Endpoint(
        "vote",
        "control",
        _schema(VoteRequest, _last_term, term=_TERM, last=_LOG_ID, campaign=U64, pre_vote=_BOOL, transfer=_BOOL),
        _schema(VoteReply, term=_TERM_OR_0, campaign=U64, pre_vote=_BOOL, granted=_BOOL),
        _FRAME,
        _FRAME,
    ),
    Endpoint(
        "heartbeat",
        "control",
        _schema(HeartbeatRequest, term=_TERM, commit=_INDEX, round=U64, repaired=_REPAIR),
        _schema(
            HeartbeatReply, term=_TERM_OR_0, round=U64, last_index=_INDEX, commit=_INDEX, repair=_REPAIR, full=_BOOL
        ),
        _FRAME,
        _FRAME,
    ),
    Endpoint(
        "append",
        "append",
        _schema(
            AppendRequest,
            _prev_term,
            term=_TERM,
            stream=U64,
            seq=U64,
            prev=_LOG_ID,
            entries=_PACKED,
            commit=_INDEX,
            reserve=_BOOL,
        ),
        _schema(
            AppendReply,
            _match,
            term=_TERM_OR_0,
            stream=U64,
            seq=U64,
            success=_BOOL,
            match=_INDEX,
            conflict=_LOG_ID,
            last_index=_INDEX,
            repair=_REPAIR,
            full=_BOOL,
        ),
        _MAX_APPEND,
        _FRAME,
    ),
    Endpoint(
        "snapshot",
        "snapshot",
        _schema(
            SnapshotChunk,
            _chunk,
            term=_TERM,
            last=_LOG_ID,
            digest=_sized("32 bytes", bytes, 32),
            manifest=_sized(f"at most {_MAX_MANIFEST} bytes", bytes, upto=_MAX_MANIFEST),
            part=_INDEX,
            offset=_INDEX,
            data=_sized(f"at most {_MAX_CHUNK} bytes", bytes, upto=_MAX_CHUNK),
            done=_BOOL,
            needed=_BOOL,
        ),
        _schema(SnapshotChunkReply, term=_TERM_OR_0, status=_STATUS, part=_INDEX, offset=_INDEX),
        max(_MAX_CHUNK, _MAX_MANIFEST) + _FRAME,
        _FRAME,
    ),
    Endpoint(
        "timeout-now",
        "control",
        _schema(TimeoutNowRequest, term=_TERM),
        _schema(TimeoutNowReply, term=_TERM_OR_0),
        _FRAME,
        _FRAME,
    ),
    Endpoint(
        "read-index",
        "control",
        _schema(ReadIndexRequest, term=_TERM_OR_0, context=U64),
        _schema(ReadIndexReply, term=_TERM_OR_0, context=U64, index=_INDEX),
        _FRAME,
        _FRAME,
    ),
    Endpoint(
        "propose",
        "forward",
        _schema(
            ProposeRequest,
            term=_TERM,
            stream=U64,
            number=U64,
            proposals=_rows("proposals", ForwardedProposal, 1, MAX_FORWARDED, **PROPOSAL_COLUMNS),
        ),
        _schema(
            ProposeReply, _outcomes, outcomes=_rows("outcomes", ForwardedOutcome, 1, MAX_FORWARDED, **OUTCOME_COLUMNS)
        ),
        # The heads of a full batch need far less than what is added here.
        _MAX_PROPOSAL + MIB,
        MAX_OUTCOME_BYTES + MIB,
    ),
    Endpoint(
        "operate",
        "forward",
        _schema(
            OperateRequest,
            term=_TERM,
            stream=U64,
            number=U64,
            operation=WORD,
            arguments=_sized(f"at most {_MAX_MEMBERS} bytes", bytes, upto=_MAX_MEMBERS),
            timeout_ms=_TIMEOUT,
        ),
        _schema(OperateReply, error=WORD, payload=_sized(f"at most {MIB} bytes", bytes, upto=MIB)),
        _MAX_MEMBERS + _FRAME,
        MIB + _FRAME,
    ),
    Endpoint(
        "identify",
        "control",
        _schema(IdentifyRequest, members=_MEMBERS),
        _schema(
            IdentifyReply,
            node_id=ID,
            incarnation=INCARNATION,
            cluster_id=CLUSTER_ID,
            members=_MEMBERS,
            membership=_MEMBERS,
            leader_id=OPTIONAL_ID,
        ),
        _MAX_MEMBERS + _FRAME,
        2 * _MAX_MEMBERS + _FRAME,
    ),
    Endpoint(
        "digest",
        "control",
        _schema(DigestRequest, _agreed, kind=_KIND_OF_DIGEST, index=_INDEX, digest=_DIGEST),
        _schema(
            DigestReply,
            _digests,
            kind=_KIND_OF_DIGEST,
            digests=_rows("digests", DigestAt, 0, MAX_DIGESTS, index=_INDEX, digest=_DIGEST),
        ),
        _FRAME,
        # Each with the heads of its items.
        MAX_DIGESTS * (MAX_DIGEST_BYTES + 12) + _FRAME,
    ),
)

ENDPOINTS = {endpoint.name: endpoint for endpoint in _ENDPOINTS}
"""Every RPC by name."""

ENDPOINT_OF = {endpoint.request.message: endpoint for endpoint in _ENDPOINTS}
"""Every RPC by the class of its request."""

IDENTIFY = ENDPOINTS["identify"]
"""The one RPC that is allowed before there is a cluster."""


def request_limits() -> dict[str, int]:
    """Return the largest body of each RPC's request in bytes, by the RPC's name.

    They are the protocol's and not the configuration's: what one node may send, every other must take, or a single
    entry could block replication to it for good.
    """
    return {endpoint.name: endpoint.request_limit for endpoint in _ENDPOINTS}
