"""HTTP/1.1 without comfort: kept-alive connections to the nodes, cheap enough that the nodes are what is slow.

Nothing is repeated here, so that whoever asks knows what was sent how often.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from zlayer_consensus.daemon._local_cluster import LocalCluster

__all__ = ["Answer", "Caller", "NoAnswer"]


class NoAnswer(Exception):
    """Nothing came back: what was asked for may have happened."""


class Answer(NamedTuple):
    """A response; header names in lower case."""

    code: int
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The stable code of an error."""
        return str(self.value["code"]) if self.body else ""


class _Connection(Protocol):
    """One request at a time."""

    transport: Any

    def __init__(self) -> None:
        self._buffer = b""
        self._waiting: Deferred[Answer] | None = None
        self.usable = True
        self.gone: Deferred[None] = Deferred()

    def ask(self, request: bytes) -> Deferred[Answer]:
        """Send a request; cancelling it gives the connection up."""
        waiting = self._waiting = Deferred(lambda _: self.abort())
        self.transport.write(request)
        return waiting

    def abort(self) -> None:
        """Give the connection up."""
        self.usable = False
        self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Collect a response."""
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if len(body) < int(headers["content-length"]):
            return
        self._buffer = b""
        if headers.get("connection", "").lower() == "close":
            self.usable = False
            self.transport.loseConnection()
        waiting, self._waiting = self._waiting, None
        assert waiting is not None, "an answer that nobody asked for"
        waiting.callback(Answer(int(first.split()[1]), headers, body))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell who waits."""
        self.usable = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.errback(NoAnswer(f"connection lost: {reason.getErrorMessage()}"))
        self.gone.callback(None)


class Caller:
    """Asks the nodes of a cluster; keeps connections.

    :param cluster: whose client addresses are asked.
    :param reactor: for connections and time-outs.
    """

    def __init__(self, cluster: LocalCluster, reactor: Any) -> None:
        self._cluster = cluster
        self._reactor = reactor
        self._idle: dict[int, list[_Connection]] = {}
        self._open: set[_Connection] = set()

    async def call(
        self,
        node_id: int,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> Answer:
        """Send one request, once, and return what the node answers, whatever that is.

        :raises NoAnswer: if nothing came back in time.
        """
        address = self._cluster.nodes[node_id].client_address
        lines = [f"{method} {path} HTTP/1.1", f"Host: {address}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body is not None or method in ("PUT", "POST"):
            lines.append(f"Content-Length: {len(body or b'')}")
        request = "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
        connection = self._take(node_id) or await self._connect(address, min(timeout, 10.0))
        try:
            answer = await connection.ask(request).addTimeout(timeout, self._reactor)
        except TimeoutError:
            raise NoAnswer(f"nothing within {timeout:g} s") from None
        if connection.usable:
            self._idle.setdefault(node_id, []).append(connection)
        return answer

    async def post(self, node_id: int, path: str, value: Any, timeout: float = 10.0, **headers: str) -> Answer:
        """Send JSON."""
        named = {"Content-Type": "application/json", **headers}
        return await self.call(node_id, "POST", path, json.dumps(value).encode(), named, timeout)

    def _take(self, node_id: int) -> _Connection | None:
        idle = self._idle.get(node_id, [])
        while idle:
            connection = idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self, address: str, timeout: float) -> _Connection:
        host, _, port = address.partition(":")
        endpoint = TCP4ClientEndpoint(self._reactor, host, int(port), timeout=timeout)
        try:
            made: Any = await endpoint.connect(Factory.forProtocol(_Connection))
        except CancelledError:
            raise
        except Exception as error:
            raise NoAnswer(f"no connection: {type(error).__name__}") from error
        connection: _Connection = made
        self._open.add(connection)
        _ = connection.gone.addCallback(lambda _: self._open.discard(connection))
        return connection

    def close(self) -> Deferred[Any]:
        """Close every connection; fires when they are."""
        gone = [connection.gone for connection in self._open]
        for connection in list(self._open):
            connection.abort()
        return DeferredList(gone)
