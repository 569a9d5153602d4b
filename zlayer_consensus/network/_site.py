"""A twisted.web site that limits what strangers can make it do before any resource is asked.

twisted.web reads a whole body, of any size, before it looks for the resource; its time-out starts anew with every byte;
and it counts no connections (hazards §4.2). This module is the only one that overrides methods of twisted.web that
are not meant for users; ``tests/test_site_limits.py`` pins what it relies on.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http import RESPONSES, HTTPChannel
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

__all__ = ["LimitedSite", "SiteLimits", "limited_site"]

_MAX_LENGTH_DIGITS = 15
_NEEDS_LENGTH = frozenset({b"POST", b"PUT", b"PATCH"})
_IN_MEMORY = 4 << 20


def _plain_refusal(status: int, message: str, _limits: Mapping[str, int]) -> tuple[bytes, bytes]:
    return b"text/plain; charset=utf-8", message.encode() + b"\n"


@attrs.frozen(kw_only=True)
class SiteLimits:
    """What one site allows. Times are seconds, sizes bytes.

    :param body: the largest body: a number, or a function of method and raw path (with its query).
    :param connections: most connections at a time. Beyond it the oldest one that never brought a complete request is
        closed to make room; if there is none, the one that has been idle the longest; else the new one.
    :param headers_timeout: a request's line and headers have to be there so long after the connection was made, or
        after the first byte if it was kept alive.
    :param body_timeout: a body has to be there so long after its headers, and
    :param body_rate: one second more for every so many bytes of its declared length.
    :param idle_timeout: a kept-alive connection without a request is closed then. Clients that keep connections
        must give them up sooner, or they lose requests to the close.
    :param linger_timeout: after a refusal the rest of the body is read and thrown away so long, since closing at once
        would reset the connection and take the answer with it.
    :param require_length: whether POST, PUT and PATCH without length and chunks are refused with 411, or taken as
        having an empty body.
    :param refusal: returns content type and body of a refusal, from its status, a sentence, and what of ``limit`` (of
        the body) and ``size`` is known, with 413.
    """

    body: int | Callable[[bytes, bytes], int]
    connections: int = 1000
    headers_timeout: float = 10.0
    body_timeout: float = 30.0
    body_rate: int = 64 << 10
    idle_timeout: float = 75.0
    linger_timeout: float = 2.0
    require_length: bool = True
    refusal: Callable[[int, str, Mapping[str, int]], tuple[bytes, bytes]] = _plain_refusal

    def body_limit(self, method: bytes, path: bytes) -> int:
        """Return the largest body of a request."""
        return self.body if isinstance(self.body, int) else self.body(method, path)


class _Request(Request):
    """Counts the body's bytes as they come, for bodies in chunks."""

    channel: Any
    _received = 0
    _limit = 0

    def gotLength(self, length: int | None) -> None:
        """The headers are complete, and the channel has accepted the declared length."""
        self._limit = self.channel.body_limit
        super().gotLength(length)

    def handleContentChunk(self, data: bytes) -> None:
        """Take bytes of the body, unless they are too many."""
        self._received += len(data)
        if self._received > self._limit:
            self.channel.refuse(413, f"the body is larger than the limit of {self._limit} bytes", limit=self._limit)
        elif not self.channel.refused:
            super().handleContentChunk(data)


class _Channel(HTTPChannel):
    """One connection: deadlines, refusals, and an end to parsing once a request was refused."""

    requestFactory = _Request
    limits: SiteLimits
    site: LimitedSite
    transport: Any
    refused = False
    body_limit = 0
    _used = False
    _in_body = False
    _drained = 0
    _deadline: IDelayedCall | None = None
    _closing: IDelayedCall | None = None

    @property
    def busy(self) -> bool:
        """Whether a request is being worked on."""
        return bool(self._handlingRequest)

    def connectionMade(self) -> None:
        """Start the deadline of the first request."""
        super().connectionMade()
        self.site.fresh[self] = None
        self._set_deadline()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget everything."""
        self.site.forget(self)
        self._stop_deadline()
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        super().connectionLost(reason)

    def dataReceived(self, data: bytes) -> None:
        """Parse; after a refusal only count."""
        if self.refused:
            self._drain(len(data))
            return
        super().dataReceived(data)
        self._set_deadline()

    def lineReceived(self, line: bytes) -> None:
        """Take a line of the head. twisted.web goes on parsing after its own refusals; here it ends."""
        if not self.refused:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        """Take bytes of the body."""
        if not self.refused:
            super().rawDataReceived(data)

    def lineLengthExceeded(self, line: bytes) -> None:
        """Answer, where twisted.web closes without a word."""
        self.refuse(431, "the request line or a header is too long")

    def headerReceived(self, line: bytes) -> bool:
        """Take one header. ``int`` raises on thousands of digits, which twisted.web does not expect (A-13)."""
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and len(value.strip()) > _MAX_LENGTH_DIGITS:
            self._respondToBadRequestAndDisconnect()
            return False
        return bool(super().headerReceived(line))

    def allHeadersReceived(self) -> None:
        """Decide by the declared length, before ``Expect: 100-continue`` is answered and before any byte of a body."""
        if self.refused:
            return
        self._stop_deadline()
        self._in_body = True
        self.body_limit = self.limits.body_limit(self._command, self._path)
        if self.length is not None and self.length > self.body_limit:
            message = f"the body has {self.length} bytes, the limit is {self.body_limit}"
            self.refuse(413, message, size=self.length, limit=self.body_limit)
        elif self._transferDecoder is None and self.limits.require_length and self._command in _NEEDS_LENGTH:
            self.refuse(411, "the request has neither a length nor chunks")
        else:
            super().allHeadersReceived()

    def allContentReceived(self) -> None:
        """Hand a complete request on."""
        if not self.refused:
            self._in_body = False
            self._stop_deadline()
            self._used = True
            self.site.worked(self)
            super().allContentReceived()

    def requestDone(self, request: Request) -> None:
        """The answer is written; a pipelined request may have begun."""
        self.site.worked(self)
        super().requestDone(request)
        self._set_deadline()

    def refuse(self, status: int, message: str, **limits: int) -> None:
        """Answer with an error of the site, and close: what follows on the connection is never looked at."""
        if self.refused:
            return
        self.refused = True
        self._in_body = False
        self._stop_deadline()
        self.setTimeout(None)
        self.site.told(self, status, message)
        content_type, body = self.limits.refusal(status, message, limits)
        head = (
            f"HTTP/1.1 {status} {RESPONSES.get(status, b'Refused').decode('ascii')}\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\nContent-Type: {content_type.decode('ascii')}\r\n\r\n"
        )
        self.transport.writeSequence([head.encode("ascii"), body])
        self._closing = self.callLater(self.limits.linger_timeout, self._end)

    def timeoutConnection(self) -> None:
        """A kept-alive connection has been idle for too long."""
        self._end()

    def _respondToBadRequestAndDisconnect(self) -> None:
        """Refuse what is not HTTP; twisted.web calls this wherever its parser fails."""
        self.refuse(400, "the request is not valid HTTP")

    def _drain(self, size: int) -> None:
        """Throw away what still comes, up to a bound."""
        self._drained += size
        if self._drained > _IN_MEMORY:
            self._end()

    def _end(self) -> None:
        """Close, and do not wait for a client that reads nothing."""
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        self._closing = self.callLater(self.abortTimeout, self.forceAbortClient)
        self.loseConnection()

    def _set_deadline(self) -> None:
        """Start the deadline of what the connection waits for; the usual request arrives whole and needs none."""
        if self.refused or self._handlingRequest:
            self._stop_deadline()
            return
        begun = self._in_body or self.requests or self._buffer or not self._used
        if not begun or self._deadline is not None:
            return
        seconds = self.limits.headers_timeout
        if self._in_body:
            seconds = self.limits.body_timeout + (self.length or 0) / self.limits.body_rate
        self._deadline = self.callLater(seconds, self._too_late)

    def _stop_deadline(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()

    def _too_late(self) -> None:
        self._deadline = None
        self.refuse(408, "the request took too long to arrive")


class LimitedSite(Site):
    """A site with limits; see :func:`limited_site`."""

    protocol = _Channel  # type: ignore[assignment]  # declared as the switch between HTTP/1.1 and HTTP/2
    requestFactory = _Request
    displayTracebacks = False
    _log: ClassVar[Logger] = Logger()

    def __init__(self, resource: IResource, limits: SiteLimits, reactor: IReactorTime) -> None:
        super().__init__(resource, parsePOSTFormSubmission=False, timeout=limits.idle_timeout, reactor=reactor)
        self.limits = limits
        self.fresh: dict[_Channel, None] = {}
        """Connections that never brought a complete request, the oldest first."""
        self.used: dict[_Channel, None] = {}
        """The others, the one that has been idle the longest first."""
        self._next_line = reactor.seconds()
        self._unsaid = 0

    def startFactory(self) -> None:
        """Open no log, and keep no clock for its lines."""

    def stopFactory(self) -> None:
        """Close nothing."""

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Return a channel, or None if the site is full."""
        limit = self.limits.connections
        if len(self.fresh) + len(self.used) >= limit and not self._make_room():
            self.say("Refused a connection from {client}: {limit} are open and at work", client=addr, limit=limit)
            return None
        channel: Any = super().buildProtocol(addr)
        channel.limits = self.limits
        return channel

    def _make_room(self) -> bool:
        """Give up the connection that is the least likely to be a peer's (A-15)."""
        victim = next(iter(self.fresh), None) or next((each for each in self.used if not each.busy), None)
        if victim is None:
            return False
        self.forget(victim)
        victim.transport.abortConnection()
        return True

    def worked(self, channel: _Channel) -> None:
        """A request is complete, or was answered: the channel is now the last to be given up."""
        self.forget(channel)
        self.used[channel] = None

    def forget(self, channel: _Channel) -> None:
        """The connection is gone."""
        self.fresh.pop(channel, None)
        self.used.pop(channel, None)

    def acceptableProtocols(self) -> list[bytes]:
        """Speak HTTP/1.1 alone: the limits are those of its parser."""
        return [b"http/1.1"]

    def getContentFile(self, length: int | None) -> Any:
        """Return where a body is kept: in memory, and large ones in a file without a name."""
        if length is not None and length <= _IN_MEMORY:
            return io.BytesIO()
        return tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)

    def log(self, request: http.Request) -> None:
        """Write no line per request."""

    def told(self, channel: _Channel, status: int, message: str) -> None:
        """Log a refusal."""
        self.say(
            "Refused a request from {client} with {status}: {message}",
            client=getattr(channel.getPeer(), "host", "unknown"),
            status=status,
            message=message,
        )

    def say(self, text: str, **fields: object) -> None:
        """Log one line, at most one in ten seconds."""
        now = self.reactor.seconds()
        if now < self._next_line:
            self._unsaid += 1
            return
        self._log.warn(text + " ({unsaid} more since the last such line)", unsaid=self._unsaid, **fields)
        self._next_line, self._unsaid = now + 10.0, 0


def limited_site(resource: IResource, *, limits: SiteLimits, reactor: IReactorTime) -> LimitedSite:
    """Return a site that serves ``resource`` and enforces ``limits`` while a request arrives.

    A body that is declared larger than allowed is refused with 413 at its headers, also before ``100 Continue`` is
    sent; one in chunks is counted. Headers and bodies have absolute deadlines (408). What is not HTTP is refused with
    400. What is refused here ends its connection. Forms are not parsed, tracebacks not shown, requests not logged.
    """
    return LimitedSite(resource, limits, reactor)
