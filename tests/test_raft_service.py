"""
The service: what a request must be before the node sees it, and what its caller is told.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import cbor2
from treq.testing import StubTreq
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver, StringTransport
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface import implementer

from zlayer_consensus.errors import (
    ClusterMismatch,
    IncarnationMismatch,
    NodeRemoved,
    NodeStopped,
    Overloaded,
    StorageFailed,
    TargetMismatch,
)
from zlayer_consensus.network import (
    Envelope,
    IdentifyRequest,
    IRaftService,
    RpcReply,
    RpcRequest,
    raft_body_limit,
    raft_service_resource,
    request_limits,
)
from zlayer_consensus.network._codec import decode_reply, encode_request
from zlayer_consensus.network._schema import ENDPOINTS
from zlayer_consensus.raft import NO_LOG, AppendRequest, Entry, LogId, VoteReply, VoteRequest

ENVELOPE = Envelope(b"c" * 16, 1, b"1" * 16, 2, b"2" * 16)
VOTE = VoteRequest(5, LogId(4, 10), 3)
GRANTED = VoteReply(5, 3, False, True)


@implementer(IRaftService)
class Node:
    """Answers with what it was given, and keeps what it was asked."""

    node_id = 2

    def __init__(self) -> None:
        self.asked: list[tuple[Envelope, RpcRequest]] = []
        self.answer: Any = GRANTED

    def handle(self, envelope: Envelope, request: RpcRequest) -> Deferred[RpcReply]:
        self.asked.append((envelope, request))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if isinstance(self.answer, Deferred) else succeed(self.answer)


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.node = Node()
        self.resource = raft_service_resource(self.node, clock=self.clock)
        root = Resource()
        root.putChild(b"raft", self.resource)
        self.http: Any = StubTreq(root)
        self.root = root
        self.events = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)  # type: ignore[arg-type]  # any test case will do
        self.path = "vote"
        self.body = encode_request(ENVELOPE, VOTE, 7)[1]
        self.headers = {
            "Content-Type": "application/cbor",
            "X-ZLayer-Raft-Protocol": "1",
            "X-ZLayer-Cluster": "63" * 16,
            "X-ZLayer-From": "1:" + "31" * 16,
            "X-ZLayer-To": "2:" + "32" * 16,
        }

    def send(self, method: str = "POST", url: str | None = None) -> Any:
        """Send ``self.body`` with ``self.headers``; return the response."""
        response = self.http.request(
            method, url or f"http://node/raft/{self.path}", data=self.body, headers=self.headers
        )
        self.http.flush()
        return self.successResultOf(response)

    def read(self, response: Any) -> bytes:
        body: bytes = self.successResultOf(response.content())
        self.assertEqual(response.length, len(body))
        self.assertEqual(response.headers.getRawHeaders("Content-Type"), ["application/cbor"])
        self.assertNotIn(b"Traceback", body)
        return body

    def assert_refused(self, status: int, code: str, response: Any = None, asked: int = 0) -> Any:
        """Send, and be refused in the form that every refusal has, without the node having been asked."""
        response = response or self.send()
        body = self.read(response)
        self.assertEqual(response.code, status, body)
        error = cbor2.loads(body)
        self.assertEqual(set(error), {"code", "message", "attributes"})
        self.assertEqual(error["code"], code)
        self.assertEqual(len(self.node.asked), asked)
        self.assertEqual(self.flushLoggedErrors(), [])
        return response


class AnswerTests(Case):
    def test_reply(self) -> None:
        response = self.send()
        self.assertEqual(response.code, 200)
        frame = decode_reply("vote", self.read(response), 1, ENVELOPE, 7)
        self.assertEqual(frame.message, GRANTED)
        self.assertEqual(self.node.asked, [(ENVELOPE, VOTE)])

    def test_reply_that_takes_time(self) -> None:
        self.node.answer = waiting = Deferred[RpcReply]()
        response = self.http.post("http://node/raft/vote", data=self.body, headers=self.headers)
        self.http.flush()
        self.assertNoResult(response)
        waiting.callback(GRANTED)
        self.http.flush()
        self.assertEqual(decode_reply("vote", self.read(self.successResultOf(response))).message, GRANTED)

    def test_every_rpc_has_its_path(self) -> None:
        from .test_wire_codec import REPLIES, REQUESTS

        for name in ENDPOINTS:
            self.path, self.body, self.node.answer = name, encode_request(ENVELOPE, REQUESTS[name], 7)[1], REPLIES[name]
            response = self.send()
            self.assertEqual(response.code, 200, name)
            self.assertEqual(decode_reply(name, self.read(response)).message, REPLIES[name])
            self.assertEqual(self.node.asked.pop()[1], REQUESTS[name])

    def test_below_a_prefix(self) -> None:
        outer = Resource()
        outer.putChild(b"inner", self.root)
        self.http: Any = StubTreq(outer)
        self.assertEqual(self.send(url="http://node/inner/raft/vote").code, 200)

    def test_identify_before_there_is_a_cluster(self) -> None:
        from .test_wire_codec import REPLIES

        envelope = Envelope(b"", 1, b"1" * 16, 0, b"")
        self.path, self.body = "identify", encode_request(envelope, IdentifyRequest(b""), 7)[1]
        self.node.answer = REPLIES["identify"]
        self.headers.update({"X-ZLayer-Cluster": "-", "X-ZLayer-To": "0:-"})
        self.assertEqual(self.send().code, 200)
        self.assertEqual(self.node.asked[0][0], envelope)

    def test_errors_of_the_node(self) -> None:
        """A-08: the node refuses what does not fit, and the caller sees which of all it was."""
        for error, status in (
            (ClusterMismatch("aa", "bb"), 412),
            (TargetMismatch(2, 3), 412),
            (IncarnationMismatch(1, "aa", "bb"), 412),
            (NodeRemoved(1), 410),
            (NodeStopped(), 503),
            (Overloaded("appends", 8), 429),
        ):
            self.node.answer, self.node.asked = error, []
            response = self.assert_refused(status, error.code, asked=1)
            retry = response.headers.getRawHeaders("Retry-After")
            self.assertEqual(retry, ["1"] if status in (429, 503) else None)

    def test_defect_of_the_node(self) -> None:
        """The traceback is in the log, not in the answer."""
        for answer in (ValueError("secret"), HeartbeatLike()):
            self.node.answer = answer
            response = self.send()
            self.assertEqual(response.code, 500)
            self.assertNotIn(b"secret", self.read(response))
            self.assertEqual(len(self.flushLoggedErrors(ValueError, KeyError)), 1)

    def test_reply_of_another_rpc_is_a_defect(self) -> None:
        from .test_wire_codec import REPLIES

        self.node.answer = REPLIES["append"]
        self.assertEqual(self.send().code, 500)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_failed_disk_of_the_node(self) -> None:
        self.node.answer = StorageFailed("write", "/secret/path", "EIO")
        response = self.send()
        self.assertEqual(response.code, 500)
        self.assertNotIn(b"secret", self.read(response))
        self.assertEqual(self.flushLoggedErrors(), [])


class HeartbeatLike:
    """Not a message at all."""


class RawTests(SynchronousTestCase):
    """What treq does not send, and what happens after the connection was lost."""

    def setUp(self) -> None:
        self.node = Node()
        self.node.answer = self.waiting = Deferred[RpcReply]()
        self.cancelled: list[object] = []
        root = Resource()
        root.putChild(b"raft", raft_service_resource(self.node, clock=Clock()))
        site = Site(root, reactor=Clock())
        self.channel = site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        self.transport = StringTransport()
        self.channel.makeConnection(self.transport)
        self.body = encode_request(ENVELOPE, VOTE, 7)[1]

    def send(self, lengths: bytes | None = None) -> None:
        if lengths is None:
            lengths = b"Content-Length: %d\r\n" % len(self.body)
        self.channel.dataReceived(
            b"POST /raft/vote HTTP/1.1\r\nHost: node\r\nContent-Type: application/cbor\r\n"
            b"X-ZLayer-Raft-Protocol: 1\r\nX-ZLayer-Cluster: %s\r\nX-ZLayer-From: 1:%s\r\nX-ZLayer-To: 2:%s\r\n"
            b"%s\r\n" % (b"63" * 16, b"31" * 16, b"32" * 16, lengths) + self.body
        )

    def status(self) -> bytes:
        line: bytes = self.transport.value().split(b"\r\n")[0]
        return line

    def hang_up(self) -> None:
        from twisted.internet.error import ConnectionLost
        from twisted.python.failure import Failure

        self.channel.connectionLost(Failure(ConnectionLost()))

    def test_no_length(self) -> None:
        """A-12"""
        self.body = b""
        self.send(b"")
        self.assertIn(b"411", self.status())
        self.assertIn(b"length_required", self.transport.value())
        self.assertEqual(self.node.asked, [])

    def test_chunks(self) -> None:
        body = self.body
        self.body = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (9, body[:9], len(body) - 9, body[9:])
        self.send(b"Transfer-Encoding: chunked\r\n")
        self.assertEqual(self.node.asked, [(ENVELOPE, VOTE)])
        self.waiting.callback(GRANTED)
        self.assertIn(b"200", self.status())

    def test_work_goes_on(self) -> None:
        """A-17: a caller that hangs up gives up the answer, and nothing else."""
        self.send()
        self.assertEqual(len(self.node.asked), 1)
        self.hang_up()
        self.assertFalse(self.waiting.called)
        self.waiting.callback(GRANTED)

    def test_failure_after_it(self) -> None:
        """A-17"""
        self.send()
        self.hang_up()
        self.waiting.errback(ClusterMismatch("aa", "bb"))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_defect_after_it_is_still_logged(self) -> None:
        """A-17"""
        self.send()
        self.hang_up()
        self.waiting.errback(ValueError("broken"))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_cancellation_inside_of_the_node(self) -> None:
        """Not the caller's doing: it is answered."""
        self.send()
        self.waiting.errback(CancelledError())
        self.assertIn(b"500", self.status())
        self.flushLoggedErrors(CancelledError)


class RefusalTests(Case):
    """Rows of hazards §4.5; none of them reaches the node."""

    def test_unknown_paths(self) -> None:
        """A-05: also what Klein would merge, redirect, or stumble over."""
        for path in (
            "",
            "/",
            "/vote/",
            "//vote",
            "/vote/x",
            "/full-snapshot",
            "/VOTE",
            "/%ff",
            "/vote%00",
            "/a%2fvote",
        ):
            self.assert_refused(404, "not_found", self.send(url=f"http://node/raft{path}"))
            self.flushLoggedErrors()

    def test_other_methods(self) -> None:
        """A-05"""
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"):
            response = self.assert_refused(405, "method_not_allowed", self.send(method))
            self.assertEqual(response.headers.getRawHeaders("Allow"), ["POST"])
        response = self.send("HEAD")
        self.assertEqual((response.code, self.node.asked), (405, []))

    def test_content_types(self) -> None:
        """A-06"""
        for bad in ("text/plain", "application/json", "multipart/mixed; boundary=x", "application/cbor; x=y", ""):
            self.headers["Content-Type"] = bad
            self.assert_refused(415, "unsupported_type")
        del self.headers["Content-Type"]
        self.assert_refused(415, "unsupported_type")

    def test_content_encodings(self) -> None:
        """A-06"""
        for bad in ("gzip", "deflate", "identity, gzip"):
            self.headers["Content-Encoding"] = bad
            self.assert_refused(415, "unsupported_encoding")

    def test_protocol_missing_or_malformed(self) -> None:
        """A-07"""
        for bad in ("", "one", "-1", "01", "1.0", "1" * 5000, "١"):
            self.headers["X-ZLayer-Raft-Protocol"] = bad
            self.assert_refused(400, "bad_header")
        del self.headers["X-ZLayer-Raft-Protocol"]
        self.assert_refused(400, "bad_header")

    def test_other_version(self) -> None:
        """A-07: the answer says which versions are understood."""
        self.headers["X-ZLayer-Raft-Protocol"] = "2"
        response = self.assert_refused(426, "unsupported_protocol")
        self.assertEqual(response.headers.getRawHeaders("X-ZLayer-Raft-Protocol"), ["1-1"])

    def test_identity_headers(self) -> None:
        """A-09: each is there once, and says what the body says, in the one form there is."""
        for name, bad in (
            ("X-ZLayer-Cluster", ["64" * 16, "63" * 15, "6363", "-", "", "63" * 15 + "6A"]),
            ("X-ZLayer-From", ["3:" + "31" * 16, "1:" + "32" * 16, "1", "01:" + "31" * 16, "1:-", "+1:" + "31" * 16]),
            ("X-ZLayer-To", ["1:" + "32" * 16, "2:" + "31" * 16, "2", "0:-", "2:" + "32" * 16 + " "]),
        ):
            good = self.headers[name]
            for value in bad:
                if value.strip() == good:
                    continue
                self.headers[name] = value
                self.assert_refused(400, "bad_header")
            del self.headers[name]
            self.assert_refused(400, "bad_header")
            self.headers[name] = [good, good]  # type: ignore[assignment]
            self.assert_refused(400, "bad_header")
            self.headers[name] = good
        self.assertEqual(self.send().code, 200)

    def test_node_that_speaks_to_itself(self) -> None:
        """A-08: ``from`` = me."""
        self.body = encode_request(Envelope(b"c" * 16, 2, b"2" * 16, 2, b"2" * 16), VOTE, 7)[1]
        self.headers["X-ZLayer-From"] = "2:" + "32" * 16
        self.assert_refused(400, "invalid_message")

    def test_sender_nobody_knows_is_the_nodes_matter(self) -> None:
        """A-08: a lagging voter may not know its new leader yet."""
        self.body = encode_request(Envelope(b"c" * 16, 99, b"9" * 16, 2, b"2" * 16), VOTE, 7)[1]
        self.headers["X-ZLayer-From"] = "99:" + "39" * 16
        self.assertEqual(self.send().code, 200)

    def test_bodies(self) -> None:
        """A-18 to A-22, A-24: one of each; tests of the codec have the rest."""
        good = self.body
        for bad in (
            good[:-1],
            good + b"\0",
            good * 2,
            b"\x81" * 4000 + b"\0",
            b"\xd8\x1c\x81\xd8\x1d\x00",
            b"\xff",
            cbor2.dumps({**cbor2.loads(good), "protocol": True}),
            cbor2.dumps({**cbor2.loads(good), "protocol": 2}),
        ):
            self.body = bad
            self.assert_refused(400, "invalid_message")
        self.body = encode_request(ENVELOPE, VoteRequest(1 << 62, NO_LOG, 1), 1)[1]
        self.assert_refused(400, "invalid_message")
        gap = AppendRequest(5, 1, 0, NO_LOG, (Entry.make(2, 5, 1),), 0)
        self.path, self.body = "append", encode_request(ENVELOPE, gap, 1)[1]
        self.assert_refused(400, "invalid_message")

    def test_body_of_another_rpc(self) -> None:
        self.path = "append"
        self.assert_refused(400, "invalid_message")

    def test_empty_body(self) -> None:
        """A-18"""
        self.body = b""
        self.assert_refused(400, "invalid_message")

    def test_large_body_in_a_foreign_site(self) -> None:
        """A-10: there it was read, and is refused before it is decoded; each RPC has its own limit."""
        self.body = b"x" * 4097
        self.assert_refused(413, "body_too_large")
        self.path = "append"
        self.assert_refused(400, "invalid_message")
        self.body = b"x" * (request_limits()["append"] + 1)
        self.assert_refused(413, "body_too_large")

    def test_limits_can_be_given(self) -> None:
        limits = {**request_limits(), "vote": len(self.body)}
        self.root.putChild(b"raft", raft_service_resource(self.node, limits=limits, clock=self.clock))
        self.assertEqual(self.send().code, 200)
        self.body += b"x"
        self.assert_refused(413, "body_too_large", asked=1)

    def test_hostile_host(self) -> None:
        """Klein answers these with 500 and a traceback."""
        for host in (
            "a" * 64,
            "a" * 64 + ".example",
            "é",
            "a..b",
            ".a",
            "a b",
            "a/b",
            "[::1",
            "a:port",
            "a." * 200,
            "",
        ):
            self.headers["Host"] = host
            self.assert_refused(400, "bad_header")
        for host in ("node", "node:7000", "node.example.", "127.0.0.1:1", "[::1]:7000", "[::1]", "xn--a", "node_1"):
            self.headers["Host"] = host
            self.assertEqual(self.send().code, 200, host)
            self.assertEqual(self.flushLoggedErrors(), [])

    def test_nothing_can_be_mounted_below(self) -> None:
        self.assertRaises(TypeError, self.resource.putChild, b"x", Resource())


class LogTests(Case):
    """Every row of §4.5: one line, however much comes, and nothing of a body."""

    def lines(self) -> list[str]:
        from twisted.logger import formatEvent

        return [formatEvent(event) for event in self.events if event["log_namespace"].startswith("zlayer_consensus")]

    def test_one_line_in_ten_seconds(self) -> None:
        self.body = b"secret bytes"
        for _ in range(50):
            self.assert_refused(400, "invalid_message")
        [line] = self.lines()
        self.assertNotIn("secret", line)
        self.assertIn("12 bytes", line)
        self.assertIn("SHA-256 ", line)
        self.clock.advance(10)
        self.send()
        self.assertIn("49 more", self.lines()[1])
        self.assertEqual(len(self.lines()), 2)

    def test_what_the_node_refuses_is_logged_too(self) -> None:
        self.node.answer = ClusterMismatch("aa", "bb")
        self.send()
        [line] = self.lines()
        self.assertIn("cluster id bb is not ours", line)

    def test_no_line_is_the_peers(self) -> None:
        """A-34"""
        self.send(url="http://node/raft/%0a%1b[31mvote")
        self.assertTrue(all(line.isprintable() for line in self.lines()), self.lines())
        self.assertEqual(len(self.lines()), 1)

    def test_answers_are_not_logged(self) -> None:
        for _ in range(3):
            self.send()
        self.assertEqual(self.lines(), [])


class LimitTests(SynchronousTestCase):
    def test_limits_by_path(self) -> None:
        """What a site of ours allows is what the resource allows; other paths take nothing."""
        limits = request_limits()
        limit = raft_body_limit(limits)
        self.assertEqual({name: limit(b"POST", b"/raft/" + name.encode()) for name in limits}, limits)
        self.assertEqual(limit(b"POST", b"/raft/append?x=y"), limits["append"])
        for path in (b"/", b"/raft/", b"/raft/other", b"/append", b"/raft/append/", b"/x/raft/append"):
            self.assertEqual(limit(b"POST", path), 0)
        self.assertEqual(raft_body_limit(limits, b"/x/raft/")(b"POST", b"/x/raft/vote"), limits["vote"])


class ImportTests(SynchronousTestCase):
    def run_python(self, program: str) -> str:
        root = Path(__file__).resolve().parent.parent
        program = f"import sys; sys.path.insert(0, {str(root)!r})\n{program}\n"
        program += "print('loaded:', *sorted({'klein', 'twisted.internet.reactor'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    def test_import_leaves_the_reactor_to_the_application(self) -> None:
        self.assertEqual(self.run_python("import zlayer_consensus.network, zlayer_consensus.testing"), "loaded:")

    def test_client_and_site_need_no_global_reactor(self) -> None:
        program = (
            "from twisted.internet.task import Clock\nfrom twisted.web.resource import Resource\n"
            "from zlayer_consensus.network import *\n"
            "HttpNetwork(Clock()); limited_site(Resource(), limits=SiteLimits(body=0), reactor=Clock())"
        )
        self.assertEqual(self.run_python(program), "loaded:")
