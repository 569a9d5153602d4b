"""
Our site: what it refuses while it arrives. These tests pin the insides of twisted.web that the site relies on.
"""

from typing import Any, ClassVar, cast

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from zlayer_consensus.network import LimitedSite, SiteLimits, limited_site


class Echo(Resource):
    """Answers a POST with its body, and ``/wait`` when it is told to."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes] = []
        self.waiting: list[Request] = []
        self.form_fields = 0

    def render(self, request: Request) -> bytes | int:
        assert request.content is not None
        body: bytes = request.content.read()
        self.seen.append(body)
        self.form_fields += len(request.args or {})
        if request.path == b"/wait":
            self.waiting.append(request)
            return NOT_DONE_YET
        return b"<" + body + b">"


class Wire(StringTransport):
    """Delivers nothing more once it is closed, as a socket."""

    protocol: Any = None

    def loseConnection(self) -> None:
        if self.connected:
            super().loseConnection()
            self.connected = False
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def abortConnection(self) -> None:
        self.loseConnection()


class Case(SynchronousTestCase):
    limits: ClassVar[dict[str, Any]] = {}

    def setUp(self) -> None:
        self.clock = Clock()
        self.echo = Echo()
        limits = SiteLimits(**{"body": self.body_limit, "linger_timeout": 2.0, **self.limits})
        self.site: LimitedSite = limited_site(self.echo, limits=limits, reactor=self.clock)
        self.wire, self.channel = self.connect()

    def body_limit(self, method: bytes, path: bytes) -> int:
        return {b"/large": 10 << 20}.get(path.split(b"?")[0], 100)

    def connect(self) -> tuple[Wire, Any]:
        wire = Wire()
        channel = self.site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1))
        if channel is not None:
            wire.protocol = channel
            channel.makeConnection(wire)
        return wire, channel

    def send(self, *lines: bytes, body: bytes = b"") -> None:
        """Send a head and what follows it."""
        self.channel.dataReceived(b"\r\n".join([*lines, b"", b""]) + body)

    def post(self, *headers: bytes, path: bytes = b"/", body: bytes = b"") -> None:
        self.send(b"POST %s HTTP/1.1" % path, b"Host: x", *headers, body=body)

    def status(self) -> int:
        """Return the status of the only answer; its body is as long as it says."""
        head, _, body = self.wire.value().partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        [length] = [int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length:")]
        self.assertEqual(len(body), length)
        return int(lines[0].split(b" ")[1])

    def assert_refused(self, status: int) -> None:
        """The answer is there, nothing reached the resource, and the connection ends."""
        self.assertEqual(self.status(), status, self.wire.value())
        self.assertIn(b"Connection: close", self.wire.value())
        self.assertNotIn(b"Traceback", self.wire.value())
        self.assertEqual(self.echo.seen, [])
        self.clock.advance(2)
        self.assertTrue(self.wire.disconnecting)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.site.fresh) + len(self.site.used), 0)
        self.assertEqual(self.flushLoggedErrors(), [])


class BodyTests(Case):
    def test_bodies_within_the_limit(self) -> None:
        self.post(b"Content-Length: 100", body=b"x" * 100)
        self.assertEqual(self.echo.seen, [b"x" * 100])
        self.assertEqual(self.status(), 200)
        self.wire.clear()
        self.post(b"Transfer-Encoding: chunked", body=b"32\r\n%s\r\n32\r\n%s\r\n0\r\n\r\n" % (b"x" * 50, b"y" * 50))
        self.assertEqual(self.echo.seen[1], b"x" * 50 + b"y" * 50)
        self.wire.clear()
        self.send(b"GET / HTTP/1.1", b"Host: x")
        self.assertEqual(self.echo.seen[2], b"")
        self.assertFalse(self.wire.disconnecting)

    def test_declared_length(self) -> None:
        """A-10: refused at the headers, before a byte of the body."""
        self.post(b"Content-Length: 101")
        self.assert_refused(413)

    def test_declared_length_with_expect(self) -> None:
        """A-10: and without ``100 Continue``, which twisted.web sends by itself."""
        self.post(b"Content-Length: 101", b"Expect: 100-continue")
        self.assertNotIn(b"100 Continue", self.wire.value())
        self.assert_refused(413)

    def test_expect_within_the_limit(self) -> None:
        self.post(b"Content-Length: 3", b"Expect: 100-continue")
        self.assertEqual(self.wire.value(), b"HTTP/1.1 100 Continue\r\n\r\n")
        self.channel.dataReceived(b"abc")
        self.assertEqual(self.echo.seen, [b"abc"])

    def test_other_methods(self) -> None:
        """A-10: a body is a body, whatever the method."""
        self.send(b"GET / HTTP/1.1", b"Host: x", b"Content-Length: 101")
        self.assert_refused(413)

    def test_limit_by_path(self) -> None:
        self.post(b"Content-Length: 101", path=b"/large?x=y", body=b"x" * 101)
        self.assertEqual(self.echo.seen, [b"x" * 101])

    def test_endless_chunks(self) -> None:
        """A-11: counted, also when each chunk is one byte; what follows is thrown away."""
        self.post(b"Transfer-Encoding: chunked")
        for _ in range(100):
            self.channel.dataReceived(b"1\r\nx\r\n")
        self.assertEqual(self.wire.value(), b"")
        self.channel.dataReceived(b"1\r\nx\r\n" * 50)
        self.assertEqual(self.status(), 413)
        self.channel.dataReceived(b"0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assert_refused(413)

    def test_chunk_of_enormous_size(self) -> None:
        """A-11"""
        self.post(b"Transfer-Encoding: chunked", body=b"FFFFFFFFFFFFFFFFFFFF\r\n" + b"x" * 101)
        self.assert_refused(413)

    def test_whole_body_too_large_in_one_packet(self) -> None:
        self.post(b"Content-Length: 101", body=b"x" * 101 + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assert_refused(413)

    def test_flood_after_a_refusal_ends_at_once(self) -> None:
        self.post(b"Content-Length: 999999999")
        for _ in range(5):
            self.assertFalse(self.wire.disconnecting)
            self.channel.dataReceived(b"x" * (1 << 20))
        self.assertTrue(self.wire.disconnecting)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_length(self) -> None:
        """A-12"""
        self.post()
        self.assert_refused(411)

    def test_large_bodies_are_whole(self) -> None:
        """Kept in memory up to 4 MiB, and beyond in a file."""
        for size in (100_000, (4 << 20) + 1):
            self.post(b"Content-Length: %d" % size, path=b"/large", body=b"x" * size)
            self.assertEqual(len(self.echo.seen.pop()), size)
            self.wire.clear()

    def test_forms_are_not_parsed(self) -> None:
        self.post(b"Content-Type: application/x-www-form-urlencoded", b"Content-Length: 3", body=b"a=b")
        self.wire.clear()
        self.post(b"Content-Type: multipart/form-data; boundary=x", b"Content-Length: 3", body=b"--x")
        self.assertEqual(self.echo.seen, [b"a=b", b"--x"])
        self.assertEqual(self.echo.form_fields, 0)

    def test_client_hangs_up_in_the_middle(self) -> None:
        """A-17: nothing is left."""
        self.post(b"Content-Length: 50", body=b"x")
        content = self.channel.requests[0].content
        self.wire.loseConnection()
        self.assertTrue(content.closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class FriendlyTests(Case):
    """The site as the clients' listener has it."""

    limits: ClassVar = {
        "body": 10,
        "require_length": False,
        "refusal": lambda status, message, limits: (b"application/json", b'{"status": %d}' % status),
    }

    def test_no_length_is_an_empty_body(self) -> None:
        self.post()
        self.assertEqual(self.echo.seen, [b""])

    def test_refusals_in_the_form_of_the_application(self) -> None:
        self.post(b"Content-Length: 11")
        self.assertIn(b"application/json", self.wire.value())
        self.assertTrue(self.wire.value().endswith(b'{"status": 413}'))
        self.assert_refused(413)


class SyntaxTests(Case):
    """A-13: what is not HTTP gets 400, and nothing that follows it is looked at."""

    def test_lengths(self) -> None:
        for bad in (b"1" * 5000, b"0" * 4400 + b"1", b"+5", b"-1", b"5,5", b"", b"5 5", b"0x5", b"1e3", b"\xb2"):
            self.setUp()
            self.post(b"Content-Length: " + bad, body=b"hello")
            self.assert_refused(400)

    def test_length_twice_or_with_chunks(self) -> None:
        for lines in (
            [b"Content-Length: 5", b"Content-Length: 5"],
            [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
            [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
            [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
            [b"Transfer-Encoding: gzip"],
        ):
            for more in ([], [b"X: y"]):
                self.setUp()
                self.post(*lines, *more, body=b"hello")
                self.assert_refused(400)

    def test_other_nonsense(self) -> None:
        for head in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: a\x00b\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 600 + b"\r\n",
            b"GET / HTTP/1.1\r\n" + b"X: %s\r\n" % (b"y" * 8000) * 3 + b"\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        ):
            self.setUp()
            self.channel.dataReceived(head)
            self.assert_refused(400)

    def test_enormous_line(self) -> None:
        """twisted.web closes without a word here."""
        self.channel.dataReceived(b"GET / HTTP/1.1\r\nX: " + b"y" * 20_000)
        self.assert_refused(431)

    def test_pipelined_requests_come_in_order(self) -> None:
        """A-16"""
        self.site.limits = self.channel.limits
        for n in range(100):
            self.post(b"Content-Length: 3", body=b"%03d" % n)
        answers = [part for part in self.wire.value().split(b"HTTP/1.1 200 OK") if part]
        self.assertEqual([answer[-5:] for answer in answers], [b"<%03d>" % n for n in range(100)])

    def test_refusal_behind_an_answer_under_way(self) -> None:
        """A-16: a pipelined request that is refused waits for its turn."""
        self.post(b"Content-Length: 1", path=b"/wait", body=b"1")
        self.post(b"Content-Length: 999")
        self.assertEqual(self.wire.value(), b"")
        request = self.echo.waiting.pop()
        request.setHeader(b"Content-Length", b"2")
        request.write(b"ok")
        request.finish()
        first, _, second = self.wire.value().partition(b"okHTTP/1.1 ")
        self.assertTrue(first.startswith(b"HTTP/1.1 200 "))
        self.assertTrue(second.startswith(b"413 "))


class DeadlineTests(Case):
    """A-14: deadlines are absolute, so that a byte now and then wins nothing."""

    limits: ClassVar = {"headers_timeout": 10.0, "body_timeout": 30.0, "body_rate": 10, "idle_timeout": 75.0}

    def trickle(self, data: bytes, every: float, total: float) -> None:
        for at in range(int(total / every)):
            if self.wire.disconnecting or self.channel.refused:
                return
            self.channel.dataReceived(data[at : at + 1])
            self.clock.advance(every)

    def test_silence(self) -> None:
        self.clock.advance(9.9)
        self.assertEqual(self.wire.value(), b"")
        self.clock.advance(0.2)
        self.assert_refused(408)

    def test_slow_headers(self) -> None:
        self.trickle(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1000, 5, 100)
        self.assertLess(self.clock.seconds(), 11)
        self.assert_refused(408)

    def test_headers_that_never_end(self) -> None:
        self.channel.dataReceived(b"GET / HTTP/1.1\r\n")
        for _ in range(20):
            if not self.channel.refused:
                self.channel.dataReceived(b"X: y\r\n")
                self.clock.advance(1)
        self.assertEqual(self.clock.seconds(), 10)
        self.assert_refused(408)

    def test_body_that_stalls(self) -> None:
        """Its time grows with what it declares: 30 s and 100 bytes at 10 bytes a second."""
        self.post(b"Content-Length: 100")
        self.trickle(b"x" * 99, 0.9, 39.7)
        self.assertEqual(self.wire.value(), b"")
        self.clock.advance(1)
        self.assert_refused(408)

    def test_chunks_that_stall(self) -> None:
        """A-11"""
        self.post(b"Transfer-Encoding: chunked", body=b"5\r\nab")
        self.clock.advance(30)
        self.assert_refused(408)

    def test_request_in_pieces_within_its_time(self) -> None:
        for byte in b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc":
            self.channel.dataReceived(bytes([byte]))
            self.clock.advance(0.1)
        self.assertEqual(self.echo.seen, [b"abc"])
        self.assertEqual(self.status(), 200)

    def test_second_request_has_its_own_time(self) -> None:
        self.send(b"GET / HTTP/1.1", b"Host: x")
        self.wire.clear()
        self.clock.advance(40)
        self.channel.dataReceived(b"GET / HTTP/1.1\r\n")
        self.clock.advance(9)
        self.assertEqual(self.wire.value(), b"")
        self.clock.advance(1)
        self.assertEqual(self.status(), 408)

    def test_idle_connection_is_closed(self) -> None:
        self.send(b"GET / HTTP/1.1", b"Host: x")
        self.clock.advance(74)
        self.assertFalse(self.wire.disconnecting)
        self.clock.advance(1)
        self.assertTrue(self.wire.disconnecting)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_answer_may_take_its_time(self) -> None:
        self.send(b"GET /wait HTTP/1.1", b"Host: x")
        self.clock.advance(1000)
        self.assertFalse(self.wire.disconnecting)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_usual_request_starts_no_timer(self) -> None:
        """It arrives whole; thousands of timers a second would cost more than it takes to parse them."""
        self.send(b"GET / HTTP/1.1", b"Host: x")
        started: list[float] = []

        def call_later(seconds: float, *rest: Any) -> Any:
            started.append(seconds)
            return self.clock.callLater(seconds, *rest)

        self.channel.callLater = call_later
        self.post(b"Content-Length: 3", body=b"abc")
        self.assertEqual(started, [75.0])


class ConnectionTests(Case):
    """A-15: the number of connections is limited, and those that work are the last to go."""

    limits: ClassVar = {"connections": 5}

    def work(self, channel: Any) -> None:
        channel.dataReceived(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

    def test_idle_strangers_make_room_for_each_other(self) -> None:
        self.work(self.channel)
        strangers = [self.connect() for _ in range(2000)]
        self.assertFalse(self.wire.disconnecting)
        self.assertEqual([wire.disconnecting for wire, _ in strangers].count(False), 4)
        self.assertFalse(strangers[-1][0].disconnecting)
        self.work(self.channel)
        self.assertEqual(self.wire.value().count(b"200 OK"), 2)
        self.assertLessEqual(len(self.clock.getDelayedCalls()), 10)

    def test_longest_idle_goes_before_a_newcomer_is_refused(self) -> None:
        others = [self.connect() for _ in range(4)]
        for _, channel in others:
            self.work(channel)
        self.work(self.channel)
        self.work(others[0][1])
        newcomer, _ = self.connect()
        self.assertFalse(newcomer.disconnecting)
        self.assertEqual([wire.disconnecting for wire, _ in others], [False, True, False, False])
        self.assertFalse(self.wire.disconnecting)

    def test_work_is_never_cut_off(self) -> None:
        for _ in range(4):
            _, channel = self.connect()
            channel.dataReceived(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        self.channel.dataReceived(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIs(self.connect()[1], None)
        self.assertFalse(self.wire.disconnecting)

    def test_closed_connections_make_room(self) -> None:
        for _ in range(50):
            wire, channel = self.connect()
            channel.dataReceived(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            wire.loseConnection()
        self.assertFalse(self.wire.disconnecting)


class Shouter(Protocol):
    """Sends everything at once, and keeps what comes until the end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.received = b""
        self.done: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self.data)

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.done.callback(self.received)


class SocketTests(TestCase):
    """Over real sockets: a client that is still sending gets to read the answer."""

    def setUp(self) -> None:
        from twisted.internet import reactor

        # Twisted's own declarations do not let a site listen.
        self.reactor: Any = cast(Any, reactor)
        self.echo = Echo()
        limits = SiteLimits(body=1000, linger_timeout=0.05)
        site = limited_site(self.echo, limits=limits, reactor=self.reactor)
        self.port = self.reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)

    def shout(self, data: bytes) -> Deferred[bytes]:
        shouter = Shouter(data)
        factory: Any = ClientFactory()
        factory.buildProtocol = lambda _address: shouter
        factory.noisy = False
        self.reactor.connectTCP("127.0.0.1", self.port.getHost().port, factory)
        return shouter.done

    async def test_declared_body(self) -> None:
        """A-10"""
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n"
        received = await self.shout(head + b"x" * 3_000_000)
        self.assertTrue(received.startswith(b"HTTP/1.1 413 "), received)
        self.assertEqual(self.echo.seen, [])

    async def test_chunks(self) -> None:
        """A-11"""
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        received = await self.shout(head + b"3E8\r\n" + b"x" * 1000 + b"\r\n1\r\nx\r\n" * 2)
        self.assertTrue(received.startswith(b"HTTP/1.1 413 "), received)
        self.assertEqual(self.echo.seen, [])

    async def test_answer_and_close(self) -> None:
        received = await self.shout(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc")
        self.assertTrue(received.endswith(b"<abc>"))
