"""The client side of RPCs over HTTP/1.1: kept-alive connections, one set for each kind of traffic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from ..errors import InvalidMessage, PeerUnreachable
from ._agents import NO_COOKIES, BytesProducer, Endpoints, FixedUrl, base_url, make_client, make_pool
from ._codec import PROTOCOL_VERSION, UNDERSTOOD, decode_reply, encode_request
from ._errors import MAX_ERROR_BYTES, decode_error
from ._headers import CBOR, PROTOCOL_HEADER, identity_headers, parse_versions
from ._schema import ENDPOINTS, Endpoint
from .interfaces import Envelope, INetwork, RpcReply, RpcRequest

__all__ = ["HttpNetwork"]

_LANES = {"control": 4, "append": 16, "snapshot": 2, "forward": 32}
"""Kinds of traffic that do not wait for each other, and how many idle connections each keeps to a peer."""

_MAX_PEERS = 1024


class _Peer:
    """What is worth remembering of one address."""

    def __init__(self, address: str) -> None:
        base = base_url(address)
        self.urls = {name: FixedUrl.of(base.child("raft", name)) for name in ENDPOINTS}
        self.version = PROTOCOL_VERSION
        self._headers: tuple[Envelope, int, Headers] | None = None

    def headers(self, envelope: Envelope) -> Headers:
        """Return the headers of a request; they are the same as long as nobody's identity changes."""
        kept = self._headers
        if kept is None or kept[0] != envelope or kept[1] != self.version:
            headers = Headers({b"Content-Type": [CBOR], PROTOCOL_HEADER: [b"%d" % self.version]})
            for name, value in identity_headers(envelope):
                headers.setRawHeaders(name, [value])
            kept = self._headers = (envelope, self.version, headers)
        return kept[2]

    def refused_version(self, understood: bytes | None) -> None:
        """The peer does not understand our version: speak the newest that both do from now on."""
        both = [version for version in parse_versions(understood or b"") if version in UNDERSTOOD]
        if both:
            self.version = max(both)


@implementer(INetwork)
class HttpNetwork:
    """Calls peers over HTTP.

    Addresses are ``host:port``, or ``http://host:port/prefix`` where the peer has mounted its resource as the child
    ``raft`` of ``prefix``; ``https`` likewise. Votes, heartbeats, timeout-now, read-index and identify share
    connections that nothing else uses; so do appends, snapshots, and forwarded proposals. Nothing is retried, redirects
    are not followed, cookies are not kept, and replies beyond their limit are not read.

    :param reactor: for connections, and their idle times.
    :param clock: for deadlines; the default is the reactor, whose time is the wall clock's.
    :param connect_timeout: seconds for making a connection; the time-out of a call ends it sooner.
    :param idle_timeout: seconds after which an unused connection is closed. It must be shorter than the time after
        which the peer's site closes it (75 for ours, 60 for twisted.web's), or requests are lost to the close.
    :param tls_policy: certificates for ``https`` addresses; the default trusts what browsers trust.
    :param agent_factory: makes the agent of a lane (``control``, ``append``, ``snapshot``, ``forward``) in place of
        twisted.web's over a pool of connections.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        clock: IReactorTime | None = None,
        connect_timeout: float = 5.0,
        idle_timeout: float = 50.0,
        tls_policy: IPolicyForHTTPS | None = None,
        agent_factory: Callable[[str], IAgent] | None = None,
    ) -> None:
        self._reactor = reactor
        self._clock: IReactorTime = IReactorTime(reactor) if clock is None else clock
        self._pools: dict[str, HTTPConnectionPool] = {}
        self._clients: dict[str, HTTPClient] = {}
        self._peers: dict[str, _Peer] = {}
        self._calls: set[_Call] = set()
        self._last_rpc = 0
        self._stopped = False
        self._stop_waiters: list[Deferred[None]] | None = None
        self._endpoints = Endpoints(reactor, connect_timeout, tls_policy)
        for lane, idle_connections in _LANES.items():
            if agent_factory is not None:
                agent = agent_factory(lane)
            else:
                pool = self._pools[lane] = make_pool(reactor, idle_connections, idle_timeout)
                agent = Agent.usingEndpointFactory(reactor, self._endpoints, pool)
            self._clients[lane] = make_client(agent)

    def call(self, address: str, envelope: Envelope, request: RpcRequest, timeout: float) -> Deferred[RpcReply]:
        """Send one RPC; see :class:`~zlayer_consensus.network.INetwork`."""
        if self._stopped:
            return fail(PeerUnreachable(address, "this network was stopped", sent=False))
        try:
            peer = self._peer(address)
        except ValueError as error:
            return fail(PeerUnreachable(address, f"{address!r} is no address: {error}", sent=False))
        self._last_rpc += 1
        name, body = encode_request(envelope, request, self._last_rpc, peer.version)
        call = _Call(self._calls, peer, address, ENDPOINTS[name], envelope, self._last_rpc, body)
        # Before the request goes out: it may fail at once.
        call.start(self._clock, timeout)
        call.send(self._clients[call.endpoint.lane], self._reactor)
        return call.result

    def _peer(self, address: str) -> _Peer:
        peer = self._peers.get(address)
        if peer is None:
            peer = _Peer(address)
            if len(self._peers) >= _MAX_PEERS:
                self._peers.clear()
            self._peers[address] = peer
        return peer

    def stop(self) -> Deferred[None]:
        """Fail the calls under way, close the connections, and fire when they are closed."""
        done: Deferred[None] = Deferred()
        if self._stop_waiters is not None:
            self._stop_waiters.append(done)
            return done
        self._stopped, self._stop_waiters = True, [done]
        for call in list(self._calls):
            call.abandon("this network was stopped")
        _ = Deferred.fromCoroutine(self._close()).addBoth(self._closed)
        return done

    async def _close(self) -> None:
        self._endpoints.abort()
        # Connections that were cut off are gone one turn of the reactor later.
        await deferLater(self._reactor, 0)
        for pool in self._pools.values():
            await pool.closeCachedConnections()

    def _closed(self, result: Failure | None) -> None:
        waiters, self._stop_waiters = self._stop_waiters or [], None
        for waiter in waiters:
            waiter.callback(result)


class _Call:
    """One RPC under way: from the request to the last byte of the reply, within one deadline."""

    def __init__(
        self,
        calls: set[_Call],
        peer: _Peer,
        address: str,
        endpoint: Endpoint,
        envelope: Envelope,
        rpc: int,
        body: bytes,
    ) -> None:
        self.endpoint = endpoint
        self.result: Deferred[RpcReply] = Deferred(self._cancelled)
        self._calls = calls
        self._peer = peer
        self._address = address
        self._envelope = envelope
        self._rpc = rpc
        self._version = peer.version
        self._body = BytesProducer(body)
        self._deadline: IDelayedCall | None = None
        self._exchange: Deferred[Any] | None = None
        self._reader: _Reader | None = None

    def start(self, clock: IReactorTime, timeout: float) -> None:
        """Start the deadline."""
        self._calls.add(self)
        self._deadline = clock.callLater(timeout, self.abandon, f"no reply within {timeout:g} s")

    def send(self, client: HTTPClient, reactor: Any) -> None:
        """Send the request."""
        exchange: Deferred[Any] = client.request(
            "POST",
            self._peer.urls[self.endpoint.name],
            headers=self._peer.headers(self._envelope),
            data=self._body,
            cookies=NO_COOKIES,
            allow_redirects=False,
            unbuffered=True,
            reactor=reactor,
        )
        self._exchange = exchange
        _ = exchange.addCallbacks(self._respond, self._fail)

    def abandon(self, reason: str) -> None:
        """Give up, whatever is under way."""
        self._finish(Failure(PeerUnreachable(self._address, reason, sent=self._body.started)))
        self._cut()

    def complete(self, status: int, headers: Headers, body: bytes) -> None:
        """The reply is there, whole."""
        if status == 200:
            try:
                frame = decode_reply(self.endpoint.name, body, self._version, self._envelope, self._rpc)
            except InvalidMessage as error:
                self.abandon(f"the reply is invalid: {error.detail}")
            else:
                self._finish(frame.message)
            return
        if status == 426:
            self._peer.refused_version(headers.getRawHeaders(PROTOCOL_HEADER, [None])[0])
        self._finish(Failure(decode_error(status, body, self._address, self._envelope)))

    def _respond(self, response: IResponse) -> None:
        limit = self.endpoint.reply_limit if response.code == 200 else MAX_ERROR_BYTES
        self._exchange, self._reader = None, _Reader(self, response, limit)
        response.deliverBody(self._reader)

    def _fail(self, failure: Failure) -> None:
        self._exchange = None
        if not self._body.started:
            # Nobody is there. Who comes back may be of another version.
            self._peer.version = PROTOCOL_VERSION
        self.abandon(_reason(failure))

    def _finish(self, result: RpcReply | Failure) -> None:
        if self not in self._calls:
            return
        self._calls.remove(self)
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self.result.callback(result)

    def _cancelled(self, _result: Deferred[RpcReply]) -> None:
        self._calls.discard(self)
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._cut()

    def _cut(self) -> None:
        """Close the connection of a call that nobody waits for any more."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cut()


class _Reader(Protocol):
    """Reads a reply's body up to a limit."""

    def __init__(self, call: _Call, response: IResponse, limit: int) -> None:
        self._call = call
        self._response = response
        self._left = limit
        self._parts: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        """Keep a piece."""
        self._left -= len(data)
        if self._left < 0:
            self._call.abandon("the reply is larger than its limit")
        else:
            self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body is complete, or will never be."""
        if reason.check(ResponseDone):
            self._call.complete(self._response.code, self._response.headers, b"".join(self._parts))
        else:
            self._call.abandon(f"the reply was cut off: {_reason(reason)}")

    def cut(self) -> None:
        """Read no more."""
        if self.transport is not None:
            self.transport.loseConnection()


def _reason(failure: Failure) -> str:
    """Say what went wrong, from the innermost error: twisted.web wraps it once or twice."""
    error: Any = failure.value
    while getattr(error, "reasons", None):
        error = error.reasons[0].value
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
