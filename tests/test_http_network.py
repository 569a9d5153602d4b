"""
The client: what goes over real sockets, and what every way to fail becomes.
"""

import gc
import gzip
import tracemalloc
from collections.abc import Callable
from typing import Any, TypeVar, cast

from treq.testing import RequestTraversalAgent
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase
from twisted.web.iweb import IAgent
from twisted.web.pages import notFound
from twisted.web.resource import Resource
from zope.interface import implementer
from zope.interface.verify import verifyObject

from zlayer_consensus.errors import (
    IncarnationMismatch,
    InvalidMessage,
    NodeRemoved,
    NodeStopped,
    PeerRefused,
    PeerUnreachable,
)
from zlayer_consensus.network import (
    Envelope,
    HttpNetwork,
    INetwork,
    IRaftService,
    RpcReply,
    RpcRequest,
    SiteLimits,
    SnapshotChunk,
    _client,
    limited_site,
    raft_body_limit,
    raft_service_resource,
    request_limits,
)
from zlayer_consensus.network._agents import base_url
from zlayer_consensus.network._codec import decode_request, encode_reply
from zlayer_consensus.network._errors import encode_error
from zlayer_consensus.network._schema import ENDPOINTS
from zlayer_consensus.raft import (
    NO_LOG,
    AppendReply,
    AppendRequest,
    Entry,
    HeartbeatReply,
    HeartbeatRequest,
    LogId,
    VoteReply,
    VoteRequest,
)

from .test_wire_codec import REPLIES, REQUESTS

ENVELOPE = Envelope(b"c" * 16, 1, b"1" * 16, 2, b"2" * 16)
VOTE = VoteRequest(5, LogId(4, 10), 3)
GRANTED = VoteReply(5, 3, False, True)
Error = TypeVar("Error", bound=Exception)
BEAT = HeartbeatRequest(5, 7, 9)


@implementer(IRaftService)
class Node:
    """Answers each request with its example, or whenever it is told to."""

    node_id = 2

    def __init__(self) -> None:
        self.asked: list[RpcRequest] = []
        self.held: list[Deferred[RpcReply]] = []
        self.hold: tuple[type, ...] = ()
        self.next_request: Deferred[RpcRequest] = Deferred()
        self.replies = {type(request): REPLIES[name] for name, request in REQUESTS.items()}

    def handle(self, envelope: Envelope, request: RpcRequest) -> Deferred[RpcReply]:
        self.asked.append(request)
        answer: Deferred[RpcReply] = Deferred()
        if isinstance(request, self.hold):
            self.held.append(answer)
        else:
            answer.callback(self.replies[type(request)])
        come, self.next_request = self.next_request, Deferred()
        come.callback(request)
        return answer


class Missing(Resource):
    """Has no children but those put there."""

    def getChild(self, path: bytes, request: Any) -> Any:
        return notFound()


class LoopbackCase(TestCase):
    """A node behind our own site, and a client, over sockets of this machine."""

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = cast(Any, reactor)
        self.clock = Clock()
        self.node = Node()
        root = Resource()
        root.putChild(b"raft", raft_service_resource(self.node, clock=self.clock))
        limits = SiteLimits(body=raft_body_limit(request_limits()))
        self.site = limited_site(root, limits=limits, reactor=self.reactor)
        self.made = 0
        build = self.site.buildProtocol

        def count(addr: Any) -> Any:
            self.made += 1
            return build(addr)

        self.patch(self.site, "buildProtocol", count)
        self.address = self.listen(self.site)
        # Deadlines pass when the test says so.
        self.network = HttpNetwork(self.reactor, clock=self.clock)
        self.peers: list[Peer] = []

    def tearDown(self) -> Any:
        return Deferred.fromCoroutine(self.close())

    async def close(self) -> None:
        """The servers' sides of the connections end a little after the client's."""
        await self.network.stop()
        while self.site.used or self.site.fresh or any(peer.connections for peer in self.peers):
            await deferLater(self.reactor, 0.001)

    def listen(self, factory: Any) -> str:
        port = self.reactor.listenTCP(0, factory, interface="127.0.0.1")
        if isinstance(factory, Peer):
            self.peers.append(factory)
        self.addCleanup(port.stopListening)
        return f"127.0.0.1:{port.getHost().port}"

    def call(self, request: RpcRequest, address: str = "", timeout: float = 5.0) -> Deferred[RpcReply]:
        return self.network.call(address or self.address, ENVELOPE, request, timeout)

    async def unreachable(self, call: Deferred[RpcReply], sent: bool) -> str:
        """Wait for a failure of the right kind and return its reason."""
        error = await self.failing(call, PeerUnreachable)
        self.assertIs(error.sent, sent, error.reason)
        self.assertTrue(error.reason.isprintable(), error.reason)
        return error.reason

    async def failing(self, call: Deferred[RpcReply], kind: type[Error]) -> Error:
        """Wait for a failure of exactly this kind."""
        error = cast(Any, await self.assertFailure(call, kind))
        self.assertIs(type(error), kind)
        return cast(Error, error)


class CallTests(LoopbackCase):
    def test_provides_the_contract(self) -> None:
        verifyObject(INetwork, self.network)

    async def test_every_rpc(self) -> None:
        for name, request in REQUESTS.items():
            self.assertEqual(await self.call(request), REPLIES[name])
            self.assertEqual(self.node.asked[-1], request)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_connections_are_kept(self) -> None:
        """One for each kind of traffic, however many calls follow each other."""
        for _ in range(5):
            for request in REQUESTS.values():
                await self.call(request)
        self.assertEqual(self.made, len({endpoint.lane for endpoint in ENDPOINTS.values()}))

    async def test_bodies_are_not_left_to_the_garbage_collector(self) -> None:
        """A snapshot is sent in many of them, faster than the collector comes; on either side nothing of them stays."""
        gc.disable()
        self.addCleanup(gc.enable)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        chunk, traced = REQUESTS["snapshot"], []
        for _ in range(2):  # the first round fills caches and pools
            for _ in range(30):
                request = SnapshotChunk(chunk.term, chunk.last, chunk.digest, b"", 1, 2, bytes(256 << 10), False)
                await self.call(request)
                self.node.asked.clear()
            traced.append(tracemalloc.get_traced_memory()[0])
        self.assertLess(traced[1] - traced[0], 2 << 20)

    async def test_vote_passes_while_appends_are_stuck(self) -> None:
        """J-34: and while snapshots and forwarded proposals are."""
        self.node.hold = (AppendRequest, type(REQUESTS["snapshot"]), type(REQUESTS["propose"]))
        stuck = [self.call(REQUESTS[name]) for name in ("append", "snapshot", "propose") for _ in range(12)]
        while len(self.node.held) < 36:
            await self.node.next_request
        for _ in range(3):
            self.assertEqual(await self.call(VOTE), REPLIES["vote"])
            self.assertEqual(await self.call(BEAT), REPLIES["heartbeat"])
        self.assertFalse(any(call.called for call in stuck))
        for held, request in zip(
            self.node.held, [each for each in self.node.asked if self.held_back(each)], strict=True
        ):
            held.callback(self.node.replies[type(request)])
        await gatherResults(stuck)

    def held_back(self, request: RpcRequest) -> bool:
        return isinstance(request, self.node.hold)

    async def test_concurrent_appends_get_their_own_replies(self) -> None:
        """J-41"""
        self.node.hold = (AppendRequest,)
        calls = [self.call(AppendRequest(5, 1, seq, NO_LOG, (), 0)) for seq in range(8)]
        while len(self.node.held) < 8:
            await self.node.next_request
        for request, held in reversed(list(zip(self.node.asked, self.node.held, strict=True))):
            assert isinstance(request, AppendRequest)
            held.callback(AppendReply(5, 1, request.seq, True, 0, NO_LOG, 0))
        replies = await gatherResults(calls)
        self.assertEqual([cast(AppendReply, reply).seq for reply in replies], list(range(8)))

    async def test_large_append(self) -> None:
        """As large as the default settings make them."""
        entries = tuple(Entry.make(n + 1, 5, 1, b"x" * 3400) for n in range(300))
        request = AppendRequest(5, 1, 0, NO_LOG, entries, 0)
        await self.call(request)
        self.assertEqual(self.node.asked, [request])

    async def test_errors_of_the_peer(self) -> None:
        for error in (IncarnationMismatch(1, "aa", "bb"), NodeRemoved(1), NodeStopped(), InvalidMessage("why")):
            self.node.hold = (VoteRequest,)
            call = self.call(VOTE)
            await self.node.next_request
            self.node.held.pop().errback(error)
            found = await self.failing(call, type(error))
            self.assertEqual(found.attributes(), error.attributes())

    async def test_body_that_the_peers_site_refuses(self) -> None:
        """A-10 from the other side: refused with certainty, and the connection is not used again."""
        entry = Entry.make(1, 5, 1, b"x" * (18 << 20))
        await self.assertFailure(self.call(AppendRequest(5, 1, 0, NO_LOG, (entry,), 0)), InvalidMessage)
        self.assertEqual(await self.call(REQUESTS["append"]), REPLIES["append"])
        self.assertEqual(len(self.node.asked), 1)

    async def test_addresses(self) -> None:
        for address in (f"http://{self.address}", f"http://{self.address}/", f"http://{self.address}//"):
            self.assertEqual(await self.call(VOTE, address), REPLIES["vote"])
        self.assertEqual(await self.call(VOTE, f"localhost:{self.address.split(':')[1]}"), REPLIES["vote"])

    async def test_address_of_ipv6(self) -> None:
        try:
            port = self.reactor.listenTCP(0, self.site, interface="::1")
        except CannotListenError:
            raise SkipTest("this machine has no IPv6") from None
        self.addCleanup(port.stopListening)
        self.assertEqual(await self.call(VOTE, f"[::1]:{port.getHost().port}"), REPLIES["vote"])

    async def test_below_a_prefix(self) -> None:
        inner, outer = Resource(), Missing()
        inner.putChild(b"raft", raft_service_resource(self.node, clock=self.clock))
        outer.putChild(b"in ner", inner)
        self.address = self.listen(limited_site(outer, limits=SiteLimits(body=9999), reactor=self.reactor))
        address = self.address
        self.assertEqual(await self.call(VOTE, f"http://{address}/in ner"), REPLIES["vote"])
        self.assertEqual(await self.call(VOTE, f"http://{address}/in%20ner/"), REPLIES["vote"])
        error = await self.failing(self.call(VOTE, f"http://{address}/elsewhere"), InvalidMessage)
        self.assertIn("404", error.detail)


class DeadlineTests(LoopbackCase):
    async def test_no_reply(self) -> None:
        """It was sent, and may be executed; the connection is not used again."""
        self.node.hold = (VoteRequest,)
        call = self.call(VOTE, timeout=0.75)
        await self.node.next_request
        self.clock.advance(0.74)
        self.assertFalse(call.called)
        self.clock.advance(0.01)
        self.assertIn("0.75 s", await self.unreachable(call, sent=True))
        self.node.held.pop().callback(GRANTED)
        self.node.hold = ()
        self.assertEqual(await self.call(VOTE), REPLIES["vote"])
        self.assertEqual(self.made, 2)

    async def test_reply_whose_body_stalls(self) -> None:
        """The deadline is for the whole reply, not for its head."""
        peer = Peer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        call = self.call(VOTE, self.listen(peer), timeout=1.0)
        await peer.asked
        # One turn for the bytes to arrive; whether they have makes no difference to what is checked.
        await deferLater(self.reactor, 0.01)
        self.clock.advance(1)
        self.assertIn("no reply within 1 s", await self.unreachable(call, sent=True))
        await peer.lost

    async def test_call_that_is_cancelled(self) -> None:
        self.node.hold = (VoteRequest,)
        call = self.call(VOTE)
        await self.node.next_request
        call.cancel()
        await self.assertFailure(call, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.node.held.pop().callback(GRANTED)


class Peer(Factory):
    """Reads the head of a request, writes what it was given, and perhaps closes. Not a correct server."""

    noisy = False

    def __init__(self, answer: bytes | Callable[[bytes], bytes], close: bool = False, at_head: bool = False) -> None:
        self.answer = answer
        self.close = close
        self.at_head = at_head
        self.received = 0
        self.resume: Callable[[], None] = lambda: None
        self.requests: list[bytes] = []
        self.connections = 0
        self.asked: Deferred[None] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def buildProtocol(self, addr: Any) -> Protocol:
        return PeerProtocol(self)


class PeerProtocol(Protocol):
    """One connection of a :class:`Peer`."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.data = b""

    def connectionMade(self) -> None:
        self.peer.connections += 1

    def dataReceived(self, data: bytes) -> None:
        self.peer.received += len(data)
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        if self.peer.at_head:
            # Answers before it has the body, and reads no more of it.
            self.peer.at_head = False
            transport = cast(Any, self.transport)
            transport.write(self.peer.answer)
            transport.pauseProducing()
            self.peer.resume = transport.resumeProducing
            return
        [length] = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        if len(body) < length:
            return
        self.data = b""
        peer = self.peer
        peer.requests.append(head)
        assert self.transport is not None
        self.transport.write(peer.answer(body) if callable(peer.answer) else peer.answer)
        if peer.close:
            self.transport.loseConnection()
        if not peer.asked.called:
            peer.asked.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.peer.connections -= 1
        if not self.peer.lost.called:
            self.peer.lost.callback(None)


def answer(body: bytes, status: bytes = b"200 OK", *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", b""]
    return b"\r\n".join(lines) + body


class BadPeerTests(LoopbackCase):
    """What a peer, a proxy or a stranger at the address may answer."""

    async def test_nobody_there(self) -> None:
        """The one failure of which it is certain that nothing was executed."""
        port = self.reactor.listenTCP(0, Peer(b""), interface="127.0.0.1")
        address = f"127.0.0.1:{port.getHost().port}"
        await port.stopListening()
        self.assertIn("refused", await self.unreachable(self.call(VOTE, address), sent=False))

    async def test_peer_that_hangs_up(self) -> None:
        await self.unreachable(self.call(VOTE, self.listen(Peer(b"", close=True))), sent=True)

    async def test_reply_that_is_cut_off(self) -> None:
        peer = Peer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", close=True)
        self.assertIn("cut off", await self.unreachable(self.call(VOTE, self.listen(peer)), sent=True))

    async def test_reply_without_an_end(self) -> None:
        """A body that ends with the connection may lack a part."""

        def reply(body: bytes) -> bytes:
            frame = decode_request("vote", body)
            return b"HTTP/1.1 200 OK\r\n\r\n" + encode_reply(ENVELOPE, GRANTED, frame.rpc)[1]

        await self.unreachable(self.call(VOTE, self.listen(Peer(reply, close=True))), sent=True)

    async def test_not_http(self) -> None:
        for nonsense in (b"\x16\x03\x01", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n\r\n"):
            await self.unreachable(self.call(VOTE, self.listen(Peer(nonsense, close=True))), sent=True)
        self.flushLoggedErrors()

    async def test_reply_that_is_too_large(self) -> None:
        """It is not kept, and the connection is closed before it is all there."""
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"
        peer = Peer(head + b"x" * 5000)
        reason = await self.unreachable(self.call(VOTE, self.listen(peer)), sent=True)
        self.assertIn("larger", reason)
        await peer.lost

    async def test_error_that_is_too_large(self) -> None:
        peer = Peer(answer(b"x" * 20_000, b"400 Bad"))
        self.assertIn("larger", await self.unreachable(self.call(VOTE, self.listen(peer)), sent=True))

    async def test_packed_reply_is_not_unpacked(self) -> None:
        bomb = answer(gzip.compress(b"x" * 1_000_000), b"200 OK", b"Content-Encoding: gzip")
        peer = Peer(bomb)
        self.assertIn("invalid", await self.unreachable(self.call(VOTE, self.listen(peer)), sent=True))
        self.assertNotIn(b"accept-encoding", peer.requests[0].lower())

    async def test_invalid_replies(self) -> None:
        for body in (b"", b"\xa0", b"<html>", encode_reply(ENVELOPE, REPLIES["append"], 1)[1]):
            reason = await self.unreachable(self.call(VOTE, self.listen(Peer(answer(body)))), sent=True)
            self.assertIn("the reply is invalid: vote_reply", reason)

    async def test_reply_to_another_request(self) -> None:
        """J-41: the same peer, but another call's; and J-12: the same call, but from another node."""
        other = Envelope(b"c" * 16, 1, b"1" * 16, 2, b"x" * 16)

        def of_another_call(body: bytes) -> bytes:
            return answer(encode_reply(ENVELOPE, GRANTED, decode_request("vote", body).rpc + 1)[1])

        def of_another_node(body: bytes) -> bytes:
            return answer(encode_reply(other, GRANTED, decode_request("vote", body).rpc)[1])

        for reply in (of_another_call, of_another_node):
            reason = await self.unreachable(self.call(VOTE, self.listen(Peer(reply))), sent=True)
            self.assertIn("answers", reason)

    async def test_redirect_is_not_followed(self) -> None:
        """A-30"""
        peer = Peer(answer(b"", b"307 Go", b"Location: http://%s/raft/vote" % self.address.encode()))
        await self.unreachable(self.call(VOTE, self.listen(peer)), sent=True)
        self.assertEqual(self.node.asked, [])

    async def test_cookies_are_not_kept(self) -> None:
        def reply(body: bytes) -> bytes:
            frame = decode_request("vote", body)
            return answer(encode_reply(ENVELOPE, GRANTED, frame.rpc)[1], b"200 OK", b"Set-Cookie: a=b; Path=/")

        peer = Peer(reply)
        address = self.listen(peer)
        for _ in range(2):
            self.assertEqual(await self.call(VOTE, address), GRANTED)
        self.assertEqual([b"cookie:" in request.lower() for request in peer.requests], [False, False])

    async def test_statuses(self) -> None:
        """Only a body of our own form is believed; else an answer of 5xx says nothing about what was executed."""
        for status, kind in (
            (b"404 Not Found", InvalidMessage),
            (b"403 Forbidden", PeerRefused),
            (b"410 Gone", PeerUnreachable),
            (b"500 Oops", PeerUnreachable),
            (b"503 Busy", PeerUnreachable),
        ):
            await self.assertFailure(self.call(VOTE, self.listen(Peer(answer(b"<html>", status)))), kind)
        _, stopped = encode_error(NodeStopped())
        await self.assertFailure(self.call(VOTE, self.listen(Peer(answer(stopped, b"503 Busy")))), NodeStopped)

    async def test_kept_connection_that_the_peer_closed(self) -> None:
        """A new one is made; nothing that was sent is sent again."""
        await self.call(VOTE)
        [channel] = self.site.used
        channel.loseConnection()
        while self.site.used:
            await deferLater(self.reactor, 0.001)
        await deferLater(self.reactor, 0.01)
        self.assertEqual(await self.call(VOTE), REPLIES["vote"])
        self.assertEqual((self.made, len(self.node.asked)), (2, 2))


class StopTests(LoopbackCase):
    async def test_stop_ends_everything(self) -> None:
        self.node.hold = (VoteRequest,)
        await self.call(BEAT)
        call = self.call(VOTE)
        await self.node.next_request
        stops = [self.network.stop(), self.network.stop()]
        self.assertIn("stopped", await self.unreachable(call, sent=True))
        await gatherResults(stops)
        self.assertIn("stopped", await self.unreachable(self.call(VOTE), sent=False))
        await self.network.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.node.held.pop().callback(GRANTED)
        while self.site.used or self.site.fresh:
            await deferLater(self.reactor, 0.001)

    async def test_stop_leaves_no_connection_with_unsent_data(self) -> None:
        """A peer that refused a large body, and does not read it either, holds nothing up."""
        peer = Peer(answer(b"", b"413 No", b"Connection: close"), at_head=True)
        entry = Entry.make(1, 5, 1, b"x" * (16 << 20))
        call = self.call(AppendRequest(5, 1, 0, NO_LOG, (entry,), 0), self.listen(peer))
        await self.failing(call, InvalidMessage)
        await self.network.stop()
        peer.resume()
        await peer.lost
        self.assertLess(peer.received, 16 << 20)

    async def test_stop_before_anything_was_sent(self) -> None:
        network = HttpNetwork(self.reactor)
        call = network.call(self.address, ENVELOPE, VOTE, 5.0)
        stopped = network.stop()
        await self.unreachable(call, sent=False)
        await stopped
        self.assertEqual(self.node.asked, [])


@implementer(IAgent)
class SilentAgent:
    """Never connects."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.requests: list[Any] = []

    def request(self, method: bytes, uri: bytes, headers: Any = None, bodyProducer: Any = None) -> Deferred[Any]:
        self.requests.append((method, uri, headers, bodyProducer))
        return Deferred(self._cancel)

    def _cancel(self, _result: Deferred[Any]) -> None:
        self.cancelled += 1


class InjectedTests(SynchronousTestCase):
    """With agents of the test's own: what sockets of this machine do not show."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.silent = SilentAgent()
        self.lanes: list[str] = []

    def network(self, agent: IAgent) -> HttpNetwork:
        def factory(lane: str) -> IAgent:
            self.lanes.append(lane)
            return agent

        return HttpNetwork(self.clock, agent_factory=factory)

    def test_deadline_while_connecting(self) -> None:
        """Nothing was sent, so nothing was executed."""
        call = self.network(self.silent).call("node:1", ENVELOPE, VOTE, 0.5)
        self.clock.advance(0.5)
        self.assertIs(self.failureResultOf(call, PeerUnreachable).value.sent, False)
        self.assertEqual(self.silent.cancelled, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_deadline_after_the_body_was_asked_for(self) -> None:
        class Consumer:
            def write(self, data: bytes) -> None:
                """Take it."""

        call = self.network(self.silent).call("node:1", ENVELOPE, VOTE, 0.5)
        producer = self.silent.requests[0][3]
        producer.startProducing(Consumer())
        self.clock.advance(0.5)
        self.assertIs(self.failureResultOf(call, PeerUnreachable).value.sent, True)

    def test_one_agent_per_lane(self) -> None:
        network = self.network(self.silent)
        self.assertEqual(sorted(self.lanes), sorted({endpoint.lane for endpoint in ENDPOINTS.values()}))
        stopped = network.stop()
        self.clock.advance(0)
        self.successResultOf(stopped)

    def test_addresses_that_are_none(self) -> None:
        network = self.network(self.silent)
        for bad in (
            "",
            "node",
            "node:",
            ":1",
            "node:x",
            "node:99999999",
            "http://",
            "ftp://node:1",
            "http://user:secret@node:1",
            "node:1?x=y",
            "http://node:1/#x",
            "http://[::1",
            "::1:7000",
            "a b:1",
            "node:1/\nx",
        ):
            call = network.call(bad, ENVELOPE, VOTE, 1.0)
            error = self.failureResultOf(call, PeerUnreachable).value
            self.assertIs(error.sent, False, bad)
        self.assertEqual(self.silent.requests, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_addresses(self) -> None:
        for address, url in (
            ("node:7000", "http://node:7000"),
            ("127.0.0.1:7000", "http://127.0.0.1:7000"),
            ("[::1]:7000", "http://[::1]:7000"),
            ("https://node.example", "https://node.example"),
            ("https://node.example:8443/a/b/", "https://node.example:8443/a/b"),
        ):
            self.assertEqual(base_url(address).to_text(), url)
        call = self.network(self.silent).call("https://[::1]:7000/a", ENVELOPE, VOTE, 1.0)
        self.assertEqual(self.silent.requests[0][1], b"https://[::1]:7000/a/raft/vote")
        self.clock.advance(1)
        self.failureResultOf(call, PeerUnreachable)

    def test_headers_follow_the_envelope(self) -> None:
        """They are remembered per peer, and made anew when an identity changes."""
        network = self.network(self.silent)
        for envelope, target in (
            (ENVELOPE, b"2:" + b"32" * 16),
            (ENVELOPE, b"2:" + b"32" * 16),
            (Envelope(b"c" * 16, 1, b"1" * 16, 3, b"3" * 16), b"3:" + b"33" * 16),
        ):
            call = network.call("node:1", envelope, VOTE, 1.0)
            headers = self.silent.requests[-1][2]
            self.assertEqual(headers.getRawHeaders(b"X-ZLayer-To"), [target])
            self.assertEqual(headers.getRawHeaders(b"X-ZLayer-From"), [b"1:" + b"31" * 16])
            self.assertEqual(headers.getRawHeaders(b"X-ZLayer-Cluster"), [b"63" * 16])
            self.assertEqual(headers.getRawHeaders(b"Content-Type"), [b"application/cbor"])
            call.cancel()
            self.failureResultOf(call, CancelledError)

    def test_older_peer(self) -> None:
        """A rolling upgrade: one call is refused, the next ones speak the version that both understand."""
        node, root = Node(), Resource()
        root.putChild(b"raft", raft_service_resource(node, clock=self.clock))
        self.patch(_client, "PROTOCOL_VERSION", 2)
        self.patch(_client, "UNDERSTOOD", range(1, 3))
        network = self.network(RequestTraversalAgent(root))
        error = self.failureResultOf(network.call("node:1", ENVELOPE, VOTE, 1.0), InvalidMessage).value
        self.assertIn("426", error.detail)
        self.assertEqual(self.successResultOf(network.call("node:1", ENVELOPE, VOTE, 1.0)), REPLIES["vote"])
        self.assertEqual(self.successResultOf(network.call("node:1", ENVELOPE, BEAT, 1.0)), HeartbeatReply(5, 9, 10, 7))
        self.assertEqual(len(node.asked), 2)

    def test_peer_without_a_common_version(self) -> None:
        root = Resource()
        root.putChild(b"raft", raft_service_resource(Node(), clock=self.clock))
        self.patch(_client, "PROTOCOL_VERSION", 3)
        self.patch(_client, "UNDERSTOOD", range(2, 4))
        network = self.network(RequestTraversalAgent(root))
        for _ in range(2):
            self.failureResultOf(network.call("node:1", ENVELOPE, VOTE, 1.0), InvalidMessage)
