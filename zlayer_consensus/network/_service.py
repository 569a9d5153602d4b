"""The server side of RPCs over HTTP, without a router: from a request to an answer.

Form is checked here, in the order in which checks get more expensive; whether the envelope fits is the node's to say.
Nothing of a refused request reaches the node.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource

from ..errors import ConsensusError, InvalidMessage, PeerRefused
from ._codec import UNDERSTOOD, Frame, decode_request, encode_reply
from ._errors import encode_error, error_body
from ._headers import CBOR, PROTOCOL_HEADER, format_versions, identity_headers
from ._schema import request_limits
from .interfaces import IRaftService, RpcReply

__all__ = ["Refused", "RpcServer", "raft_body_limit", "raft_service_resource"]

_VERSION = re.compile(rb"[1-9][0-9]{0,3}")
_RETRY_AFTER = {429: b"1", 503: b"1"}
_LINE_EVERY = 10.0


def raft_service_resource(
    service: IRaftService, *, limits: Mapping[str, int] | None = None, clock: IReactorTime | None = None
) -> IResource:
    """Return the resource that serves a node's RPCs; it can be mounted in any twisted.web site.

    Mount it as the child named ``raft``, wherever the node's address points: for the address ``host:port`` that is
    ``root.putChild(b"raft", raft_service_resource(node))``, and its paths are ``/raft/vote`` and so on; for the address
    ``http://host:port/inner`` it is the child ``raft`` of the child ``inner``. What its site reads before it asks the
    resource is the site's matter; see :func:`~zlayer_consensus.network.limited_site`.

    :param service: the node.
    :param limits: most bytes of a request's body by the RPC's name; the default is ``request_limits()``.
    :param clock: for the rate of log lines; the default is the reactor. Calling this function installs a reactor in
        any case, if there is none: Klein does.
    """
    # Klein installs the default reactor when it is imported; an application that embeds us chooses its own before.
    from ._klein_resource import RpcResource

    if clock is None:
        from twisted.internet import reactor

        clock = IReactorTime(reactor)
    return RpcResource(RpcServer(service, request_limits() if limits is None else limits, clock))


def raft_body_limit(limits: Mapping[str, int], mount: bytes = b"/raft/") -> Callable[[bytes, bytes], int]:
    """Return what a limited site asks for the largest body: of an RPC's path its limit, of any other path nothing.

    :param limits: as given to :func:`raft_service_resource`.
    :param mount: the path of the resource, with a slash at its end.
    """
    by_path = {mount + name.encode("ascii"): limit for name, limit in limits.items()}
    return lambda _method, path: by_path.get(path.split(b"?", 1)[0], 0)


class Refused(Exception):
    """A request is answered with an error before it is decoded."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[bytes, bytes] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


class RpcServer:
    """Answers RPC requests for one node.

    :param service: the node.
    :param limits: most bytes of a request's body, by the RPC's name.
    :param clock: for the rate of log lines.
    """

    def __init__(self, service: IRaftService, limits: Mapping[str, int], clock: IReactorTime) -> None:
        self._service = service
        self._limits = dict(limits)
        self._log = _RefusalLog(clock)

    def answer(self, name: str, request: IRequest) -> Deferred[bytes]:
        """Answer one request of the RPC ``name``: sets status and headers, and fires with the body. Never fails.

        The Deferred is the request's own: cancelling it, when the client has gone, gives up the answer and not the
        work, which may be shared with others or be half on its way to the disk.
        """
        waiter: Deferred[tuple[int, bytes]] = Deferred()
        try:
            body, version = self._body(name, request)
            frame = decode_request(name, body, version)
            _check_identities(request, frame)
        except (Refused, InvalidMessage) as error:
            return _fired(self.refuse(request, error))
        replied: Deferred[Any] = maybeDeferred(self._service.handle, frame.envelope, frame.message)
        replied = replied.addCallback(_encode, name, frame).addErrback(self._failed, request, name, body)
        _ = replied.addCallback(waiter.callback)
        return waiter.addCallback(lambda answer: respond(request, *answer))

    def refuse(self, request: IRequest, error: Refused | InvalidMessage) -> bytes:
        """Write the head of a refusal and return its body."""
        headers: Mapping[bytes, bytes] = {}
        if isinstance(error, Refused):
            status, body, headers = error.status, error_body(error.code, error.message), error.headers
        else:
            status, body = encode_error(error)
        self._log.refused(request, status, str(error))
        return respond(request, status, body, headers)

    def _failed(self, failure: Failure, request: IRequest, name: str, body: bytes) -> tuple[int, bytes]:
        error = failure.value
        assert error is not None
        status, answer = encode_error(error)
        if isinstance(error, PeerRefused):
            self._log.refused(request, status, str(error), body)
        elif status == 500:
            self._log.failed(failure, name, isinstance(error, ConsensusError))
        return status, answer

    def _body(self, name: str, request: IRequest) -> tuple[bytes, int]:
        """Check the head and return the body and the version it is written in."""
        headers = request.requestHeaders
        if not headers.hasHeader(b"Content-Length") and not headers.hasHeader(b"Transfer-Encoding"):
            raise Refused(411, "length_required", "the request has neither a length nor chunks")
        # In a site of our own the body was never read; in another it is in memory or in a temporary file.
        limit, size = self._limits[name], request.content.seek(0, 2)
        if size > limit:
            raise Refused(413, "body_too_large", f"the body has {size} bytes, the limit is {limit}")
        if (_only(request, b"Content-Type") or b"").lower() != CBOR:
            raise Refused(415, "unsupported_type", "the content type must be application/cbor")
        if (_only(request, b"Content-Encoding") or b"identity").lower() != b"identity":
            raise Refused(415, "unsupported_encoding", "content encodings are not supported")
        version = _version(request)
        request.content.seek(0)
        return request.content.read(), version


def _encode(reply: RpcReply, name: str, frame: Frame) -> tuple[int, bytes]:
    answered, body = encode_reply(frame.envelope, reply, frame.rpc, frame.version)
    if answered != name:
        raise TypeError(f"the service answered {name} with {type(reply).__name__}")
    return 200, body


def respond(request: IRequest, status: int, body: bytes, headers: Mapping[bytes, bytes] | None = None) -> bytes:
    """Write the head of an answer and return its body."""
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", CBOR)
    # Else the answer is chunked, which costs both sides.
    request.setHeader(b"Content-Length", b"%d" % len(body))
    if status in _RETRY_AFTER:
        request.setHeader(b"Retry-After", _RETRY_AFTER[status])
    for name, value in (headers or {}).items():
        request.setHeader(name, value)
    return body


def _fired(body: bytes) -> Deferred[bytes]:
    fired: Deferred[bytes] = Deferred()
    fired.callback(body)
    return fired


def _only(request: IRequest, name: bytes) -> bytes | None:
    """Return a header's value, None if it is missing; it must not come twice."""
    values = request.requestHeaders.getRawHeaders(name, [])
    if len(values) > 1:
        raise Refused(400, "bad_header", f"the header {name.decode()} comes {len(values)} times")
    return values[0] if values else None


def _version(request: IRequest) -> int:
    value = _only(request, PROTOCOL_HEADER)
    if value is None:
        raise Refused(400, "bad_header", f"the header {PROTOCOL_HEADER.decode()} is missing")
    if not _VERSION.fullmatch(value):
        raise Refused(400, "bad_header", f"the header {PROTOCOL_HEADER.decode()} is not a version")
    version = int(value)
    if version not in UNDERSTOOD:
        understood = format_versions(UNDERSTOOD)
        text = f"protocol version {version} is not understood, only {understood.decode()}"
        raise Refused(426, "unsupported_protocol", text, {PROTOCOL_HEADER: understood})
    return version


def _check_identities(request: IRequest, frame: Frame) -> None:
    """Compare headers and body: what a proxy or a log saw is what the node acts on (A-09)."""
    for name, value in identity_headers(frame.envelope):
        found = _only(request, name)
        if found is None:
            raise Refused(400, "bad_header", f"the header {name.decode()} is missing")
        if found != value:
            raise Refused(400, "bad_header", f"the header {name.decode()} says something else than the body")


class _RefusalLog:
    """At most one line in ten seconds, however much is refused. Bodies are told by length and hash, never shown."""

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._next = clock.seconds()
        self._unsaid = 0

    def refused(self, request: IRequest, status: int, reason: str, body: bytes | None = None) -> None:
        """Tell of a request that was answered with an error."""
        if not self._due():
            return
        if body is None:
            size = request.content.seek(0, 2)
            request.content.seek(0)
            body = request.content.read(1 << 20)
        else:
            # Given when the client may have gone, and the content with it.
            size = len(body)
        self._log.warn(
            "Refused {method!r} {path!r} from {client} with {status}: {reason} (body: {size} bytes, SHA-256 {digest}; "
            "{unsaid} more refusals since the last such line)",
            method=request.method[:16],
            path=request.path[:128],
            client=getattr(request.getClientAddress(), "host", "unknown"),
            status=status,
            reason=reason,
            size=size,
            digest=hashlib.sha256(body).hexdigest(),
            unsaid=self._unsaid,
        )
        self._unsaid = 0

    def failed(self, failure: Failure, name: str, expected: bool) -> None:
        """Tell of an RPC that the node could not answer: a defect with its traceback, every time."""
        if not expected:
            self._log.failure("The RPC {name} failed", failure, name=name)
        elif self._due():
            self._log.error("The RPC {name} failed: {error}", name=name, error=failure.getErrorMessage())
            self._unsaid = 0

    def _due(self) -> bool:
        now = self._clock.seconds()
        if now < self._next:
            self._unsaid += 1
            return False
        self._next = now + _LINE_EVERY
        return True
