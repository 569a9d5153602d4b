"""What the client needs of twisted.web and treq, tuned: pools, endpoints, agents, URLs.

treq parses every URL anew and keeps cookies; over a connection that is alive, those two cost as much as the rest of the
call. What is overridden here avoids that, through public names only.
"""

from __future__ import annotations

from typing import Any, cast
from weakref import WeakSet

from hyperlink import DecodedURL, EncodedURL
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IConsumer, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.web.client import URI, BrowserLikePolicyForHTTPS, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

__all__ = ["NO_COOKIES", "BytesProducer", "Endpoints", "FixedUrl", "base_url", "make_client", "make_pool"]


class FixedUrl(EncodedURL):
    """A URL that was turned into what goes over the wire once."""

    _fixed_text: str = ""

    @classmethod
    def of(cls, url: DecodedURL) -> FixedUrl:
        """Return ``url``, fixed."""
        if isIPv6Address(url.host):
            # hyperlink takes it for a name, and refuses it: the rest is encoded without it.
            text = url.replace(host="host").encoded_url.to_uri().replace(host=url.host).to_text()
        else:
            text = url.encoded_url.to_uri().to_text()
        fixed = cast(FixedUrl, cls.from_text(text))
        fixed._fixed_text = text
        return fixed

    def to_uri(self) -> FixedUrl:
        """Return itself: it is one already."""
        return self

    def to_text(self, with_password: bool = False) -> str:
        """Return the text; there is no password in it."""
        return self._fixed_text


def base_url(address: str) -> DecodedURL:
    """Return the URL that an address stands for: ``host:port``, or an http or https URL with or without a path.

    :raises ValueError: if it is neither.
    """
    url = DecodedURL.from_text(address if "://" in address else f"http://{address}")
    if "://" not in address and not address.rpartition(":")[2].isdecimal():
        raise ValueError("an address without a scheme must be host:port")
    if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 0) < 1 << 16:
        raise ValueError("an address must be host:port, or an http or https URL")
    if url.encoded_url.userinfo or url.query or url.fragment:
        raise ValueError("an address has no user, query or fragment")
    return url.replace(path=[segment for segment in url.path if segment])


@implementer(IBodyProducer)
class BytesProducer:
    """A body that is written at once, and remembers whether it was.

    The head of a request is of no use without the body, so a request whose body was never asked for was not executed.
    """

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.length = len(body)
        self.started = False

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write everything, and keep nothing: requests end in cycles, which wait for the garbage collector."""
        self.started = True
        body, self.body = self.body, b""
        consumer.write(body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """There is nothing left to pause."""

    def resumeProducing(self) -> None:
        """There is nothing left to resume."""

    def stopProducing(self) -> None:
        """There is nothing left to stop."""


class _NoCookies(IndexableCookieJar):
    """Keeps no cookies and sends none."""

    def add_cookie_header(self, request: Any) -> None:
        """Add none."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Take none."""


NO_COOKIES = _NoCookies()
"""A jar that stays empty."""


@implementer(IAgent)
class _PlainAgent:
    """Asks for bodies as they are, and takes them as such: treq would unpack a small reply to any size."""

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """Send a request. ``headers`` is treq's own copy."""
        if headers is not None:
            headers.removeHeader(b"Accept-Encoding")
        return self._agent.request(method, uri, headers, bodyProducer).addCallback(_without_encoding)


def _without_encoding(response: IResponse) -> IResponse:
    response.headers.removeHeader(b"Content-Encoding")
    return response


@implementer(IStreamClientEndpoint)
class _Tracked:
    """An endpoint whose connections are remembered as long as they live."""

    def __init__(self, endpoint: IStreamClientEndpoint, live: WeakSet[Any]) -> None:
        self._endpoint = endpoint
        self._live = live

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect."""
        return self._endpoint.connect(factory).addCallback(self._remember)

    def _remember(self, protocol: IProtocol) -> IProtocol:
        self._live.add(protocol)
        return protocol


@implementer(IAgentEndpointFactory)
class Endpoints:
    """Makes each endpoint once, and knows all connections. An address that is an IP address asks no resolver.

    :param connect_timeout: seconds.
    """

    def __init__(self, reactor: Any, connect_timeout: float, tls_policy: IPolicyForHTTPS | None) -> None:
        self._live: WeakSet[Any] = WeakSet()
        self._reactor = reactor
        self._connect_timeout = connect_timeout
        self._tls_policy = tls_policy
        self._made: dict[tuple[bytes, bytes, int], IStreamClientEndpoint] = {}

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """Return the endpoint of a URI."""
        key = (uri.scheme, uri.host, uri.port)
        if key not in self._made:
            self._made[key] = _Tracked(self._make(*key), self._live)
        return self._made[key]

    def abort(self) -> None:
        """Cut all connections off, also those that are closing but have not sent all that was written to them."""
        for protocol in list(self._live):
            if protocol.transport is not None:
                protocol.transport.abortConnection()

    def _make(self, scheme: bytes, host: bytes, port: int) -> IStreamClientEndpoint:
        name, timeout = host.decode("ascii"), self._connect_timeout
        endpoint: IStreamClientEndpoint
        if isIPAddress(name):
            endpoint = TCP4ClientEndpoint(self._reactor, name, port, timeout)
        elif isIPv6Address(name):
            endpoint = TCP6ClientEndpoint(self._reactor, name, port, timeout)
        else:
            endpoint = HostnameEndpoint(self._reactor, host, port, timeout)
        if scheme != b"https":
            return endpoint
        if self._tls_policy is None:
            self._tls_policy = BrowserLikePolicyForHTTPS()
        return wrapClientTLS(self._tls_policy.creatorForNetloc(host, port), endpoint)


def make_pool(reactor: Any, idle_connections: int, idle_timeout: float) -> HTTPConnectionPool:
    """Return a pool of kept-alive connections.

    :param idle_connections: how many are kept per address; more are opened as needed.
    """
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.maxPersistentPerHost = idle_connections
    pool.cachedConnectionTimeout = idle_timeout  # type: ignore[assignment]  # callLater takes fractions
    pool.retryAutomatically = False
    return pool


def make_client(agent: IAgent) -> HTTPClient:
    """Return a treq client that takes :class:`BytesProducer` as data."""
    return HTTPClient(_PlainAgent(agent), cookiejar=NO_COOKIES, data_to_body_producer=lambda producer: producer)
