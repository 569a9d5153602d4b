"""What an error is over HTTP: one status, and a JSON body with a stable code, a sentence and attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest

from .. import errors
from ._api_http import ApiError, Headers, reply_json

__all__ = ["error_reply"]

_log = Logger()

_STATUSES: Final[tuple[tuple[type[errors.ConsensusError], int], ...]] = (
    (errors.OutcomeUnknown, 504),
    (errors.Overloaded, 429),
    (errors.OutOfSpace, 507),
    (errors.ProposalTooLarge, 413),
    (errors.MembershipRefused, 409),
    (errors.SessionExpired, 409),
    (errors.SessionSequenceReused, 409),
    (errors.SessionSequenceStale, 409),
    (errors.TransferFailed, 409),
    (errors.DomainError, 409),
    (errors.ConversionError, 400),
    (errors.ConfigError, 400),
    (errors.PeerRefused, 412),
    (errors.PeerUnreachable, 502),
)
"""The first that fits counts. 504 is for unknown outcomes alone. Every other error that is raised on purpose means that
nothing has happened; it is 503 unless it stands here."""

_REFUSED: Final = {
    "key_too_long": 413,
    "too_many_keys": 413,
    "too_many_operations": 413,
    "result_too_large": 413,
    "compacted": 410,
    "future_revision": 400,
    "empty_key": 400,
    "invalid_range": 400,
    "invalid_limit": 400,
    "invalid_revision": 400,
    "invalid_compare": 400,
    "invalid_command": 400,
    "duplicate_key": 400,
}
"""Statuses of what the key-value store refuses, by reason."""


def error_reply(request: IRequest, node: Any, error: BaseException | None) -> bytes:
    """Set up the response for an error, and return its body.

    :param node: whose configuration knows the leader's address.
    """
    if isinstance(error, ApiError):
        return _body(request, error.status, error.code, error.message, error.attributes, error.headers)
    if isinstance(error, errors.NotLeader):
        return _not_leader(request, node, error)
    if isinstance(error, errors.DomainError):
        status = _REFUSED.get(error.reason, 409)
        return _body(request, status, error.reason, str(error), error.details)
    if isinstance(error, errors.ConsensusError):
        status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 503)
        headers = {b"retry-after": b"1"} if status in (429, 503) else {}
        return _body(request, status, error.code, str(error), error.attributes(), headers)
    _log.failure("{method} {path} failed", Failure(error), method=request.method, path=request.path)
    return _body(request, 500, "internal", "the request failed because of a defect; the node's log says more", {})


def _not_leader(request: IRequest, node: Any, error: errors.NotLeader) -> bytes:
    # The address comes from the configuration, never from another node's message.
    leader = node.leader_member()
    if leader is None:
        attributes = {"leader_id": None, "leader_client_address": ""}
        message = "no leader is known at the moment; nothing was done"
        return _body(request, 503, "no_leader", message, attributes, {b"retry-after": b"1"})
    address = leader.client_address
    attributes = {"leader_id": leader.node_id, "leader_client_address": address}
    headers = {b"x-leader-addr": address.encode("ascii", "backslashreplace")} if address else {}
    message = f"this node is not the leader; node {leader.node_id} leads"
    return _body(request, 421, error.code, message, attributes, headers)


def _body(
    request: IRequest,
    status: int,
    code: str,
    message: str,
    attributes: Mapping[str, Any],
    headers: Headers | None = None,
) -> bytes:
    value = {"code": code, "message": message, "attributes": dict(attributes)}
    return reply_json(request, value, status, headers)
