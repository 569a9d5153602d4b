"""Errors on the wire: a status and a CBOR map ``{code, message, attributes}``, each kind with a closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .. import _cbor
from ..errors import (
    ClusterMismatch,
    ConsensusError,
    IncarnationMismatch,
    InvalidMessage,
    NodeRemoved,
    NodeStopped,
    Overloaded,
    PeerRefused,
    PeerUnreachable,
    ProposalTooLarge,
    TargetMismatch,
)
from ._schema import ID, OPTIONAL_ID, TEXT, U64, WORD, Field
from .interfaces import Envelope

__all__ = ["MAX_ERROR_BYTES", "decode_error", "encode_error", "error_body"]

MAX_ERROR_BYTES = 16 << 10
"""Most bytes of an error's body that a caller reads."""

_MAX_TEXT = 1000
_NO_TEXT = "no reason given, perhaps this is not the peer address of a node"


class _Form(NamedTuple):
    status: int
    build: Callable[..., ConsensusError]
    fields: dict[str, Field]


def _stopped(cause: str | None) -> NodeStopped:
    return NodeStopped(ConsensusError(cause) if cause else None)


def _refused(detail: str, refusal: str) -> PeerRefused:
    return PeerRefused(detail, refusal)


def _cause(value: Any) -> str | None:
    if value is None:
        return None
    text: str = TEXT.read(value)
    return text


_FORMS: dict[str, _Form] = {
    InvalidMessage.code: _Form(400, InvalidMessage, {"detail": TEXT}),
    ClusterMismatch.code: _Form(412, ClusterMismatch, {"expected": TEXT, "found": TEXT}),
    TargetMismatch.code: _Form(412, TargetMismatch, {"expected": OPTIONAL_ID, "found": OPTIONAL_ID}),
    IncarnationMismatch.code: _Form(
        412, IncarnationMismatch, {"node_id": OPTIONAL_ID, "expected": TEXT, "found": TEXT}
    ),
    PeerRefused.code: _Form(412, _refused, {"detail": TEXT, "refusal": WORD}),
    NodeRemoved.code: _Form(410, NodeRemoved, {"node_id": ID}),
    NodeStopped.code: _Form(503, _stopped, {"cause": Field("text or null", _cause)}),
    Overloaded.code: _Form(429, Overloaded, {"queue": TEXT, "limit": U64}),
    ProposalTooLarge.code: _Form(413, ProposalTooLarge, {"size": U64, "limit": U64}),
}


def encode_error(error: BaseException) -> tuple[int, bytes]:
    """Return the status and the body that tell a caller of ``error``.

    What is not meant for callers is told as an internal error, without its text: status 500.
    """
    form = _FORMS.get(error.code) if isinstance(error, ConsensusError) else None
    if form is None and isinstance(error, PeerRefused):
        error = PeerRefused(error.detail, error.refusal)
        form = _FORMS[error.code]
    if form is None or not isinstance(error, ConsensusError):
        return 500, error_body("internal", "an internal error; the node's log has it")
    attributes = error.attributes()
    plain = {name: _clean(attributes[name]) for name in form.fields}
    return form.status, error_body(error.code, str(error), plain)


def error_body(code: str, message: str, attributes: dict[str, Any] | None = None) -> bytes:
    """Return the body of an error."""
    return _cbor.dumps({"code": code, "message": _clean(message), "attributes": attributes or {}})


def _clean(value: Any) -> Any:
    """Bring text into the form that :data:`TEXT` asks for."""
    if not isinstance(value, str):
        return value
    text = value[:_MAX_TEXT]
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def decode_error(status: int, body: bytes, address: str, envelope: Envelope) -> ConsensusError:
    """Return the error that a peer's answer other than 200 stands for.

    Only a body of the exact form is believed to come from the peer's node: a proxy's 503 says nothing about whether the
    request was executed, and a forged 410 would take this node out of service.

    :param envelope: the request's.
    """
    code, message, attributes = _parse(body)
    form = _FORMS.get(code)
    if form is not None and form.status == status and form.fields.keys() == attributes.keys():
        try:
            values = {name: field.read(attributes[name]) for name, field in form.fields.items()}
        except ValueError:
            values = None
        if values is not None and (code != NodeRemoved.code or values["node_id"] == envelope.sender_id):
            return form.build(**values)
    reason = f"{address} answered {status}: {message}"
    if status in (400, 404, 405, 411, 412, 413, 415, 417, 426, 431):
        return InvalidMessage(reason)
    if status in (401, 403, 407, 421):
        return PeerRefused(reason)
    return PeerUnreachable(address, f"the answer was {status}: {message}", sent=True)


def _parse(body: bytes) -> tuple[str, str, dict[str, Any]]:
    """Read an error's body as far as it has the common form; else the code is empty."""
    nothing = "", _NO_TEXT, {}  # type: tuple[str, str, dict[str, Any]]
    try:
        plain = _cbor.loads(body)
    except _cbor.CborError:
        return nothing
    if type(plain) is not dict or plain.keys() != {"code", "message", "attributes"}:
        return nothing
    try:
        code, message = WORD.read(plain["code"]), TEXT.read(plain["message"])
    except ValueError:
        return nothing
    attributes = plain["attributes"]
    return (code, message, attributes) if type(attributes) is dict else nothing
