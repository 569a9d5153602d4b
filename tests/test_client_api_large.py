"""Large values on their way to clients that read slowly, or not to the end."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.server import Site

from tests.fake_node import FakeNode
from zlayer_consensus.daemon._api import client_resource
from zlayer_consensus.kv import Put, encode
from zlayer_consensus.storage import ApplyContext

SIZE = 3 << 20


class _Wire(StringTransport):
    """Takes so much, then asks whoever writes to wait, as a connection does whose client reads nothing."""

    limit = 1 << 40
    producer: Any

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.io.tell() >= self.limit:
            self.producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))


class LargeValueTests(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.value = bytes(range(256)) * (SIZE // 256)
        node = FakeNode()
        node.machine.apply(encode(Put(b"large", self.value)), ApplyContext(1, 0))
        self.channel: Any = Site(client_resource(node, node.machine)).buildProtocol(None)
        self.wire = _Wire()
        self.channel.makeConnection(self.wire)
        self.open = True
        self.addCleanup(self.hang_up)

    def hang_up(self) -> None:
        if self.open:
            self.open = False
            self.channel.connectionLost(Failure(ConnectionError()))

    def turn(self) -> Deferred[None]:
        from twisted.internet import reactor

        clock: Any = reactor
        return deferLater(clock, 0)

    def ask(self) -> None:
        self.channel.dataReceived(b"GET /v1/kv/large HTTP/1.1\r\nHost: a\r\n\r\n")

    async def test_it_is_sent_as_fast_as_the_client_reads(self) -> None:
        """A connection is given no more than it takes, so that a thousand slow readers need no copies each."""
        self.wire.limit = 1 << 20
        self.ask()
        while self.wire.io.tell() < self.wire.limit:
            await self.turn()
        for _ in range(20):
            await self.turn()
        self.assertLess(self.wire.io.tell(), self.wire.limit + (256 << 10))
        self.wire.limit = 1 << 40
        self.wire.producer.resumeProducing()
        while self.wire.io.tell() < SIZE:
            await self.turn()
        head, _, body = self.wire.value().partition(b"\r\n\r\n")
        self.assertIn(b"Content-Length: %d" % SIZE, head)
        self.assertEqual(body, self.value)
        self.ask()
        while self.wire.io.tell() < 2 * SIZE:
            await self.turn()
        self.assertTrue(self.wire.value().endswith(self.value), "the connection is as good as before")

    async def test_client_that_hangs_up(self) -> None:
        """It loses its answer, and nothing is logged."""
        self.wire.limit = 1 << 20
        self.ask()
        while self.wire.io.tell() < self.wire.limit:
            await self.turn()
        self.hang_up()
        for _ in range(5):
            await self.turn()
