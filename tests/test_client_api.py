"""The client and admin interface over HTTP, against a node that does what the test says."""

import inspect
import json
import time
from base64 import b64decode, b64encode
from typing import Any
from urllib.parse import quote

from treq.testing import StubTreq
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Site

from tests.fake_node import MAX_PROPOSAL, FakeNode
from tests.node_cluster import NodeCluster
from zlayer_consensus.daemon._api import client_resource
from zlayer_consensus.daemon._collector import Collections
from zlayer_consensus.errors import (
    ClusterMismatch,
    DeadlineExceeded,
    InvariantBroken,
    MembershipRefused,
    NodeRemoved,
    NodeStopped,
    OutcomeUnknown,
    Overloaded,
    PeerUnreachable,
    SessionSequenceStale,
    StorageFull,
    TransferInProgress,
)
from zlayer_consensus.kv import MAX_KEY_BYTES, MAX_TXN_OPERATIONS, KeyValueMachine
from zlayer_consensus.node import DigestMetrics, LoopMetrics, ScrubMetrics
from zlayer_consensus.storage import MemStateMachine

JSON = {"Content-Type": "application/json"}


def b64(value: bytes) -> str:
    return b64encode(value).decode()


class Answer:
    """A response, read to its end."""

    def __init__(self, response: Any, body: bytes) -> None:
        self.status = response.code
        self.body = body
        self.length = response.length
        self._headers = response.headers

    def header(self, name: str) -> str | None:
        values = self._headers.getRawHeaders(name)
        return None if values is None else str(values[0])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ApiTestCase(SynchronousTestCase):
    """Tests of the interface; ``test_client_api_files`` runs some of them with values on disk."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.node = FakeNode(self.make_machine())
        self.serve()

    def make_machine(self) -> Any:
        return KeyValueMachine()

    def serve(self) -> None:
        self.resource = client_resource(self.node, self.node.machine, clock=self.clock)
        self.http: Any = StubTreq(self.resource)  # its methods are made at run time

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        asked = self.http.request(method, "http://n1" + path, data=body, headers=headers or {})
        self.http.flush()
        response = self.successResultOf(asked)
        answer = Answer(response, self.successResultOf(response.content()))
        # Not UNKNOWN_LENGTH, as it would be if the body came in chunks; and the body has no more than was said.
        if method != "HEAD":
            self.assertEqual(answer.length, len(answer.body))
        return answer

    def ask_json(self, method: str, path: str, value: Any) -> Answer:
        return self.ask(method, path, json.dumps(value).encode(), JSON)

    def expect_error(self, answer: Answer, status: int, code: str) -> dict[str, Any]:
        """An error is JSON with a code, a sentence and attributes, whatever went wrong."""
        self.assertEqual((answer.status, answer.json["code"]), (status, code), answer.body)
        self.assertEqual(answer.header("content-type"), "application/json")
        self.assertEqual(set(answer.json), {"code", "message", "attributes"})
        self.assertTrue(answer.json["message"])
        attributes: dict[str, Any] = answer.json["attributes"]
        return attributes

    def put(self, key: bytes, value: bytes) -> Answer:
        answer = self.ask("PUT", "/v1/kv/" + quote(key, safe=""), value)
        self.assertEqual(answer.status, 200, answer.body)
        return answer


class KeyTests(ApiTestCase):
    def test_put_get_delete(self) -> None:
        """The life of a key; revisions are in the headers."""
        put = self.ask("PUT", "/v1/kv/colour", b"red")
        self.assertEqual(put.json, {"revision": 2, "create_revision": 2, "version": 1})
        put = self.ask("PUT", "/v1/kv/colour", b"blue")
        names = ("Revision", "Create-Revision", "Mod-Revision", "Version", "Index")
        self.assertEqual([put.header("X-ZLayer-" + name) for name in names], ["3", "2", "3", "2", "2"])
        got = self.ask("GET", "/v1/kv/colour")
        self.assertEqual((got.status, got.body), (200, b"blue"))
        self.assertEqual(got.header("content-type"), "application/octet-stream")
        self.assertEqual([got.header("X-ZLayer-" + name) for name in names], ["3", "2", "3", "2", "2"])
        self.assertEqual(self.ask("DELETE", "/v1/kv/colour").json, {"deleted": True, "revision": 4})
        gone = self.ask("DELETE", "/v1/kv/colour")
        self.assertEqual((gone.status, gone.json), (200, {"deleted": False, "revision": 4}))
        missing = self.ask("GET", "/v1/kv/colour")
        self.expect_error(missing, 404, "key_not_found")
        self.assertEqual(missing.header("X-ZLayer-Revision"), "4")

    def test_any_bytes(self) -> None:
        """Keys and values are arbitrary bytes: not UTF-8, slashes, dots, empty segments, escapes of escapes."""
        keys = [
            bytes(range(256)),
            b"/",
            b"//a//b/",
            b"a/b",
            b"a%2Fb",
            b"..",
            b"../../v1/status",
            b"+",
            b" ",
            b"?a=b",
            b"#",
            b";x",
            b"\xff\xfe",
            "ключ".encode(),
            b"x" * MAX_KEY_BYTES,
        ]
        for number, key in enumerate(keys):
            self.put(key, bytes(range(256)) * number)
        for number, key in enumerate(keys):
            got = self.ask("GET", "/v1/kv/" + quote(key, safe=""))
            self.assertEqual((got.status, got.body), (200, bytes(range(256)) * number), key)
        page = self.ask("GET", "/v1/kv")
        self.assertEqual([each["key"] for each in page.json["kvs"]], [b64(key) for key in sorted(keys)])

    def test_slash_may_be_plain(self) -> None:
        self.put(b"a/b//c", b"1")
        self.assertEqual(self.ask("GET", "/v1/kv/a/b//c").body, b"1")
        self.assertEqual(self.ask("GET", "/v1/kv/a/b%2F%2Fc").body, b"1")

    def test_empty_key(self) -> None:
        for method in ("GET", "PUT", "DELETE"):
            self.expect_error(self.ask(method, "/v1/kv/"), 400, "empty_key")
        self.assertEqual(self.node.applied, 0)

    def test_long_key(self) -> None:
        attributes = self.expect_error(self.ask("PUT", "/v1/kv/" + "x" * (MAX_KEY_BYTES + 1)), 413, "key_too_long")
        self.assertEqual(attributes["limit"], MAX_KEY_BYTES)
        self.assertEqual(self.node.applied, 0)

    def test_broken_escape(self) -> None:
        for path in ("/v1/kv/a%", "/v1/kv/a%4", "/v1/kv/%zz"):
            self.expect_error(self.ask("PUT", path, b"x"), 400, "invalid_path")

    def test_empty_value(self) -> None:
        self.put(b"key", b"")
        got = self.ask("GET", "/v1/kv/key")
        self.assertEqual((got.status, got.body), (200, b""))

    def test_too_large_value(self) -> None:
        """A-28: a proposal beyond the limit is refused, and the limit named."""
        attributes = self.expect_error(self.ask("PUT", "/v1/kv/key", bytes(5 << 20)), 413, "proposal_too_large")
        self.assertEqual(attributes["limit"], MAX_PROPOSAL)

    def test_wrong_method(self) -> None:
        answer = self.ask("POST", "/v1/kv/key", b"x")
        self.expect_error(answer, 405, "method_not_allowed")
        self.assertEqual(answer.header("allow"), "GET, HEAD, PUT, DELETE")

    def test_reads_of_the_past(self) -> None:
        for value in (b"1", b"2", b"3"):
            self.put(b"key", value)
        got = self.ask("GET", "/v1/kv/key?revision=3")
        self.assertEqual((got.body, got.header("X-ZLayer-Revision")), (b"2", "3"))
        self.expect_error(self.ask("GET", "/v1/kv/key?revision=1"), 404, "key_not_found")
        self.expect_error(self.ask("GET", "/v1/kv/key?revision=9"), 400, "future_revision")


class ConsistencyTests(ApiTestCase):
    def test_default_is_linearizable(self) -> None:
        self.put(b"key", b"1")
        self.node.calls.clear()
        self.ask("GET", "/v1/kv/key")
        self.ask("GET", "/v1/kv/key?consistency=linearizable&timeout=2.5")
        self.ask("GET", "/v1/kv?consistency=linearizable")
        self.assertEqual(self.node.calls, [("read", None, None), ("read", 2.5, None), ("read", None, None)])

    def test_stale(self) -> None:
        """A stale read answers from what the node has, also without a leader."""
        self.put(b"key", b"1")
        self.node.calls.clear()
        self.node.leader_id = None
        self.assertEqual(self.ask("GET", "/v1/kv/key?consistency=stale").body, b"1")
        self.assertEqual(len(self.ask("GET", "/v1/kv?consistency=stale").json["kvs"]), 1)
        self.assertEqual(self.node.calls, [])
        self.expect_error(self.ask("GET", "/v1/kv/key"), 503, "no_leader")

    def test_stale_at_a_stopped_node(self) -> None:
        self.node.stopped_by = RuntimeError()
        self.expect_error(self.ask("GET", "/v1/kv/key?consistency=stale"), 503, "node_stopped")

    def test_lease_is_refused(self) -> None:
        for path in ("/v1/kv/key", "/v1/kv"):
            self.expect_error(self.ask("GET", path + "?consistency=lease"), 400, "lease_reads_refused")
            self.expect_error(self.ask("GET", path + "?consistency=eventual"), 400, "invalid_option")
        self.assertEqual(self.node.calls, [])


class OptionTests(ApiTestCase):
    def test_bad_options(self) -> None:
        """An option that is misspelt, doubled or out of range is refused, and named."""
        for query, code, field in (
            ("consistncy=stale", "unknown_option", "consistncy"),
            ("consistency=stale&consistency=stale", "invalid_option", "consistency"),
            ("forward=maybe", "invalid_option", "forward"),
            ("timeout=0", "invalid_option", "timeout"),
            ("timeout=nan", "invalid_option", "timeout"),
            ("timeout=1e9", "invalid_option", "timeout"),
            ("timeout=soon", "invalid_option", "timeout"),
            ("revision=-1", "invalid_option", "revision"),
            ("revision=1.5", "invalid_option", "revision"),
            ("revision=99999999999999999999", "invalid_option", "revision"),
            ("%ff%0a=1", "unknown_option", "\\xff\n"),
        ):
            attributes = self.expect_error(self.ask("GET", "/v1/kv/key?" + query), 400, code)
            self.assertEqual(attributes["field"], field)
        self.expect_error(self.ask("PUT", "/v1/kv/key?consistency=stale", b""), 400, "unknown_option")
        self.expect_error(self.ask("GET", "/v1/status?x=1"), 400, "unknown_option")
        self.assertEqual(self.node.calls, [])

    def test_timeout_reaches_the_node(self) -> None:
        self.ask("PUT", "/v1/kv/key?timeout=0.5&forward=yes", b"")
        self.assertEqual(self.node.calls, [("propose", 0, 0, 0.5, True)])


class RangeTests(ApiTestCase):
    def setUp(self) -> None:
        super().setUp()
        for key in (b"a", b"a/1", b"a/2", b"b", b"\xff", b"\xff\xff"):
            self.put(key, b"v" + key)

    def keys(self, query: str) -> list[str]:
        answer = self.ask("GET", "/v1/kv?" + query)
        self.assertEqual(answer.status, 200, answer.body)
        return [each["key"] for each in answer.json["kvs"]]

    def test_everything(self) -> None:
        page = self.ask("GET", "/v1/kv").json
        self.assertEqual((page["more"], page["next"], page["revision"]), (False, None, 7))
        self.assertEqual(
            page["kvs"][1],
            {"key": b64(b"a/1"), "value": b64(b"va/1"), "create_revision": 3, "mod_revision": 3, "version": 1},
        )

    def test_bounds(self) -> None:
        for query, keys in (
            ("prefix=a/", [b"a/1", b"a/2"]),
            ("prefix=a", [b"a", b"a/1", b"a/2"]),
            ("prefix=%ff", [b"\xff", b"\xff\xff"]),
            ("prefix=", [b"a", b"a/1", b"a/2", b"b", b"\xff", b"\xff\xff"]),
            ("prefix=c", []),
            ("start=a/2", [b"a/2", b"b", b"\xff", b"\xff\xff"]),
            ("start=a/2&end=b", [b"a/2"]),
            ("end=a/1", [b"a"]),
            ("start=b&end=a", []),
            ("prefix=a&start=a/1", [b"a/1", b"a/2"]),
        ):
            self.assertEqual(self.keys(query), [b64(key) for key in keys], query)

    def test_pages(self) -> None:
        """``next`` leads through a range, page by page, at one revision."""
        found: list[str] = []
        start = ""
        while True:
            page = self.ask("GET", f"/v1/kv?limit=2&revision=7&start={start}").json
            found += [each["key"] for each in page["kvs"]]
            self.put(b"a/3", b"later")
            if not page["more"]:
                break
            start = quote(b64decode(page["next"]))
        self.assertEqual(found, [b64(key) for key in (b"a", b"a/1", b"a/2", b"b", b"\xff", b"\xff\xff")])

    def test_contradictions(self) -> None:
        self.expect_error(self.ask("GET", "/v1/kv?prefix=a&end=b"), 400, "invalid_option")
        self.expect_error(self.ask("GET", "/v1/kv?prefix=a&start=b"), 400, "invalid_option")
        self.expect_error(self.ask("GET", "/v1/kv?limit=many"), 400, "invalid_option")


class CompactTests(ApiTestCase):
    def test_compact(self) -> None:
        for value in (b"1", b"2", b"3"):
            self.put(b"key", value)
        answer = self.ask_json("POST", "/v1/compact", {"revision": 3})
        self.assertEqual((200, {"revision": 4, "compacted_revision": 3}), (answer.status, answer.json))
        self.assertEqual(answer.header("X-ZLayer-Index"), "4")
        for revision, code, status in ((2, "compacted", 410), (9, "future_revision", 400)):
            answer = self.ask_json("POST", "/v1/compact", {"revision": revision})
            self.assertEqual((status, code), (answer.status, answer.json["code"]))

    def test_schema_is_closed(self) -> None:
        for body in ({}, {"revision": 0}, {"revision": "3"}, {"revision": True}, {"revision": 1, "x": 1}):
            answer = self.ask_json("POST", "/v1/compact", body)
            self.assertEqual(400, answer.status, body)


class TxnTests(ApiTestCase):
    def test_compare_and_swap(self) -> None:
        """What the comparisons say decides between the two lists."""
        self.put(b"key", b"old")
        txn = {
            "compare": [{"key": b64(b"key"), "target": "value", "result": "equal", "value": b64(b"old")}],
            "success": [
                {"op": "put", "key": b64(b"key"), "value": b64(b"new")},
                {"op": "get", "key": b64(b"key")},
                {"op": "delete", "key": b64(b"other")},
            ],
            "failure": [{"op": "get", "key": b64(b"key")}, {"op": "get", "key": b64(b"none")}],
        }
        answer = self.ask_json("POST", "/v1/txn", txn)
        shown = {"key": b64(b"key"), "value": b64(b"new"), "create_revision": 2, "mod_revision": 3, "version": 2}
        self.assertEqual(
            answer.json,
            {
                "revision": 3,
                "succeeded": True,
                "results": [
                    {"op": "put", "create_revision": 2, "version": 2},
                    {"op": "get", "kv": shown},
                    {"op": "delete", "deleted": False},
                ],
            },
        )
        self.assertEqual(answer.header("X-ZLayer-Revision"), "3")
        self.assertEqual(answer.header("X-ZLayer-Index"), "2")
        answer = self.ask_json("POST", "/v1/txn", txn)
        self.assertEqual((answer.json["succeeded"], answer.json["revision"]), (False, 3))
        self.assertEqual(answer.json["results"], [{"op": "get", "kv": shown}, {"op": "get", "kv": None}])

    def test_every_comparison(self) -> None:
        self.put(b"key", b"m")
        self.put(b"key", b"m")
        for target, low, same, high in (
            ("value", b64(b"a"), b64(b"m"), b64(b"z")),
            ("version", 1, 2, 3),
            ("create_revision", 1, 2, 3),
            ("mod_revision", 2, 3, 4),
        ):
            for result, holds in (
                ("equal", [False, True, False]),
                ("not_equal", [True, False, True]),
                ("less", [False, False, True]),
                ("greater", [True, False, False]),
            ):
                for operand, expected in zip((low, same, high), holds, strict=True):
                    compare = {"key": b64(b"key"), "target": target, "result": result, target: operand}
                    answer = self.ask_json("POST", "/v1/txn", {"compare": [compare]})
                    self.assertEqual(answer.json["succeeded"], expected, compare)

    def test_schema_is_closed(self) -> None:
        """Each wrong body is refused with the field that is wrong, and changes nothing."""
        key = b64(b"k")
        compare = {"key": key, "target": "version", "result": "equal", "version": 1}
        for body, field in (
            ({"compares": []}, "compares"),
            ({"compare": {}}, "compare"),
            ({"compare": [1]}, "compare[0]"),
            ({"compare": [{**compare, "target": "size"}]}, "compare[0].target"),
            ({"compare": [{**compare, "target": None}]}, "compare[0].target"),
            ({"compare": [{**compare, "result": ["equal"]}]}, "compare[0].result"),
            ({"compare": [{**compare, "version": True}]}, "compare[0].version"),
            ({"compare": [{**compare, "version": -1}]}, "compare[0].version"),
            ({"compare": [{**compare, "version": 1 << 63}]}, "compare[0].version"),
            ({"compare": [{**compare, "value": ""}]}, "compare[0].value"),
            ({"compare": [compare, {**compare, "target": "value"}]}, "compare[1].version"),
            ({"compare": [{**compare, "key": ""}]}, "compare[0].key"),
            ({"success": [{"op": "put", "key": key}]}, "success[0].value"),
            ({"success": [{"op": "put", "key": key, "value": "%%"}]}, "success[0].value"),
            ({"success": [{"op": "put", "key": key, "value": "ü"}]}, "success[0].value"),
            ({"success": [{"op": "put", "key": 1, "value": ""}]}, "success[0].key"),
            ({"failure": [{"op": "get", "key": key, "value": ""}]}, "failure[0].value"),
            ({"failure": [{"op": "get", "key": key}, {"op": "increment", "key": key}]}, "failure[1].op"),
            ({"failure": [{"key": key}]}, "failure[0].op"),
            ({"failure": [[]]}, "failure[0]"),
        ):
            attributes = self.expect_error(self.ask_json("POST", "/v1/txn", body), 400, "invalid_field")
            self.assertEqual(attributes["field"], field)
        self.assertEqual(self.node.calls, [])

    def test_body_is_not_json(self) -> None:
        for body in (b"{", b"[]", b"\xff", b'{"a":NaN}', b"[" * 100_000, b'{"compare":[],"compare":[]}', b"1" * 5000):
            self.expect_error(self.ask("POST", "/v1/txn", body, JSON), 400, "invalid_json")
        for headers in ({}, {"Content-Type": "text/plain"}):
            self.expect_error(self.ask("POST", "/v1/txn", b"{}", headers), 415, "unsupported_media_type")
        answer = self.ask("POST", "/v1/txn", b" " * (2 << 20) + b"{}", JSON)
        self.expect_error(answer, 413, "body_too_large")

    def test_limits(self) -> None:
        get = {"op": "get", "key": b64(b"k")}
        answer = self.ask_json("POST", "/v1/txn", {"success": [get] * (MAX_TXN_OPERATIONS + 1)})
        self.assertEqual(self.expect_error(answer, 413, "too_many_operations")["limit"], MAX_TXN_OPERATIONS)
        put = {"op": "put", "key": b64(b"k"), "value": ""}
        answer = self.ask_json("POST", "/v1/txn", {"success": [put, put]})
        self.expect_error(answer, 400, "duplicate_key")


class ForwardingTests(ApiTestCase):
    def test_follower_forwards(self) -> None:
        """The answer at a follower is the same as at the leader."""
        answers = []
        for leader_id in (1, 2):
            self.node = FakeNode()
            self.node.leader_id = leader_id
            self.serve()
            put = self.put(b"key", b"1")
            get = self.ask("GET", "/v1/kv/key")
            answers.append((put.body, put.header("X-ZLayer-Index"), get.body, get.header("X-ZLayer-Revision")))
        self.assertEqual(answers[0], answers[1])

    def test_forwarding_refused(self) -> None:
        """A-29, A-30: 421 names the leader, with its address from the configuration."""
        self.node.leader_id = 2
        for method, path, body in (
            ("PUT", "/v1/kv/key", b"x"),
            ("DELETE", "/v1/kv/key", None),
            ("GET", "/v1/kv/key", None),
            ("GET", "/v1/kv", None),
            ("POST", "/v1/txn", b"{}"),
            ("POST", "/v1/sessions", None),
            ("POST", "/v1/members", b'{"id":4,"peer_address":"h:1"}'),
            ("POST", "/v1/transfer", None),
            ("DELETE", "/v1/members/3", None),
        ):
            answer = self.ask(method, path + "?forward=no", body, JSON)
            attributes = self.expect_error(answer, 421, "not_leader")
            self.assertEqual(answer.header("X-Leader-Addr"), "10.0.0.2:8000")
            self.assertEqual(attributes, {"leader_id": 2, "leader_client_address": "10.0.0.2:8000"})
        self.assertEqual(self.node.applied, 0)
        self.assertEqual(self.ask("GET", "/v1/kv?consistency=stale&forward=no").status, 200)

    def test_no_leader(self) -> None:
        self.node.leader_id = None
        answer = self.ask("PUT", "/v1/kv/key?forward=no", b"x")
        self.expect_error(answer, 503, "no_leader")
        self.assertEqual(answer.header("X-Leader-Addr"), None)
        self.assertEqual(answer.header("Retry-After"), "1")


class SessionTests(ApiTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.session = str(self.ask("POST", "/v1/sessions").json["session"])

    def put_in_session(self, sequence: str, value: bytes, session: str | None = None) -> Answer:
        headers = {"X-ZLayer-Session": session or self.session, "X-ZLayer-Sequence": sequence}
        return self.ask("PUT", "/v1/kv/key", value, headers)

    def test_retry_is_answered_not_repeated(self) -> None:
        first = self.put_in_session("1", b"x")
        again = self.put_in_session("1", b"x")
        self.assertEqual((first.status, first.body), (again.status, again.body))
        self.assertEqual(self.ask("GET", "/v1/kv/key").header("X-ZLayer-Version"), "1")

    def test_definite_errors(self) -> None:
        """A-31: unknown session, same sequence with another payload."""
        self.put_in_session("1", b"x")
        self.expect_error(self.put_in_session("1", b"y"), 409, "session_sequence_reused")
        self.expect_error(self.put_in_session("2", b"y", session="999"), 409, "session_expired")
        self.assertEqual(self.ask("GET", "/v1/kv/key").body, b"x")

    def test_headers_are_checked(self) -> None:
        for headers in (
            {"X-ZLayer-Session": "1"},
            {"X-ZLayer-Sequence": "1"},
            {"X-ZLayer-Session": "0", "X-ZLayer-Sequence": "1"},
            {"X-ZLayer-Session": "1", "X-ZLayer-Sequence": "-1"},
            {"X-ZLayer-Session": "one", "X-ZLayer-Sequence": "1"},
            {"X-ZLayer-Session": "1", "X-ZLayer-Sequence": "9" * 30},
        ):
            self.expect_error(self.ask("PUT", "/v1/kv/key", b"x", headers), 400, "invalid_header")
            self.expect_error(self.ask("POST", "/v1/txn", b"{}", {**JSON, **headers}), 400, "invalid_header")


class StatusTests(ApiTestCase):
    def test_status(self) -> None:
        self.put(b"key", b"1")
        status = self.ask("GET", "/v1/status").json
        expected = {
            "id": 1,
            "cluster_id": (b"c" * 16).hex(),
            "role": "leader",
            "term": 3,
            "leader_id": 1,
            "leader_client_address": "10.0.0.1:8000",
            "commit": 1,
            "applied": 1,
            "last": {"term": 3, "index": 1},
            "purged": 0,
            "snapshot": None,
            "joint": False,
            "digest": {"index": 1, "value": self.node.machine.digest().hex()},
            "store": {"revision": 2, "compacted_revision": 1, "keys": 1},
        }
        self.assertEqual({name: status[name] for name in expected}, expected)
        self.assertEqual(
            status["members"][1],
            {
                "id": 2,
                "role": "voter",
                "auto_promote": False,
                "peer_address": "10.0.0.2:7000",
                "client_address": "10.0.0.2:8000",
                "incarnation": "02" * 16,
            },
        )
        lag = [(each["id"], each["lag"], each["state"], each["last_contact"]) for each in status["replication"]]
        self.assertEqual(lag, [(2, 0, "replicate", 0.25), (3, 1, "probe", None)])

    def test_status_of_the_comparison(self) -> None:
        self.node.digest = DigestMetrics("kind", 128, 64, "", 2, (3,))
        expected = {"kind": "kind", "index": 128, "agreed": 64, "alarm": None, "alarms": 2, "contradicted": [3]}
        self.assertEqual(self.ask("GET", "/v1/status").json["agreement"], expected)

    def test_status_of_the_scrub(self) -> None:
        self.assertEqual(self.ask("GET", "/v1/status").json["scrub"], None)
        self.node.scrub = ScrubMetrics(2, 3000, "", 1_700_000_000_000, ("a is damaged",))
        expected = {
            "passes": 2, "bytes": 3000, "path": None, "finished_ms": 1_700_000_000_000, "damaged": ["a is damaged"],
        }  # fmt: skip
        self.assertEqual(self.ask("GET", "/v1/status").json["scrub"], expected)

    def test_status_of_the_loop(self) -> None:
        """The probe's figures in milliseconds, and the collector's of a process that watches it."""
        self.assertEqual(self.ask("GET", "/v1/status").json["loop"], None)
        self.assertEqual(self.ask("GET", "/v1/status").json["collector"], None)
        self.assertEqual(self.ask("GET", "/v1/status").json["agreement"], None)
        self.node.loop = LoopMetrics(0.02, 0.1234, 0.05, 3, 0.0111)
        collections = Collections(time.perf_counter)
        collections.full, collections.longest_full, collections.longest_young = 7, 0.0456, 0.0008
        self.http = StubTreq(client_resource(self.node, self.node.machine, collections=collections))
        status = self.ask("GET", "/v1/status").json
        expected = {
            "interval_ms": 20.0, "longest_ms": 123.4, "longest_recent_ms": 50.0, "longest_work_ms": 11.1, "stalls": 3,
        }  # fmt: skip
        self.assertEqual(status["loop"], expected)
        self.assertEqual(status["collector"], {"full": 7, "longest_full_ms": 45.6, "longest_young_ms": 0.8})

    def test_status_without_leader(self) -> None:
        self.node.leader_id = None
        status = self.ask("GET", "/v1/status").json
        self.assertEqual((status["leader_id"], status["leader_client_address"]), (None, None))
        self.assertEqual(status["replication"], [])

    def test_health(self) -> None:
        self.node.leader_id = None
        self.assertEqual(self.ask("GET", "/health").status, 200)
        self.node.stopped_by = RuntimeError()
        self.expect_error(self.ask("GET", "/health"), 503, "node_stopped")

    def test_ready(self) -> None:
        self.assertEqual(self.ask("GET", "/ready").status, 200)
        self.node.recovered = False
        self.expect_error(self.ask("GET", "/ready"), 503, "not_ready")
        self.node.recovered = True
        self.node.leader_id = None
        self.assertIn("leader", self.ask("GET", "/ready").json["message"])

    def test_another_application(self) -> None:
        """A node with an application of its own has the admin interface, and no keys."""
        self.node = FakeNode(machine=object())
        self.serve()
        self.assertEqual(self.ask("GET", "/v1/status").json["digest"], None)
        for method, path in (("GET", "/v1/kv/key"), ("PUT", "/v1/kv/key"), ("GET", "/v1/kv"), ("POST", "/v1/txn")):
            self.expect_error(self.ask(method, path), 404, "not_found")


class MemberTests(ApiTestCase):
    def roles(self, answer: Answer) -> dict[int, str]:
        self.assertEqual(answer.status, 200, answer.body)
        return {each["id"]: each["role"] for each in answer.json["members"]}

    def test_life_of_a_member(self) -> None:
        body = {"id": 4, "peer_address": "10.0.0.4:7000", "client_address": "10.0.0.4:8000"}
        three = dict.fromkeys((1, 2, 3), "voter")
        self.assertEqual(self.roles(self.ask("GET", "/v1/members")), three)
        answer = self.ask_json("POST", "/v1/members?timeout=9", {**body, "auto_promote": True, "wait": True})
        self.assertEqual(self.roles(answer), {**three, 4: "learner"})
        self.assertEqual(self.node.calls[-1], ("add_learner", 4, True, True, 9.0))
        self.assertEqual(self.roles(self.ask("POST", "/v1/members/4/promote")), {**three, 4: "voter"})
        self.assertEqual(self.roles(self.ask("DELETE", "/v1/members/4")), three)
        body = {"id": 5, "peer_address": "10.0.0.5:7000", "role": "voter"}
        self.assertEqual(self.roles(self.ask_json("POST", "/v1/members", body)), {**three, 5: "voter"})
        body = {"id": 6, "peer_address": "10.0.0.6:7000"}
        self.assertEqual(self.roles(self.ask_json("POST", "/v1/members", body)), {**three, 5: "voter", 6: "learner"})
        self.assertEqual(self.roles(self.ask("DELETE", "/v1/members/6")), {**three, 5: "voter"})

    def test_promotion_may_be_repeated(self) -> None:
        self.assertEqual(self.roles(self.ask("POST", "/v1/members/1/promote")), dict.fromkeys((1, 2, 3), "voter"))

    def test_removal_that_retains_or_forces(self) -> None:
        roles = self.roles(self.ask("DELETE", "/v1/members/3?retain=yes&force=yes"))
        self.assertEqual(roles, {1: "voter", 2: "voter", 3: "learner"})
        self.assertEqual(self.node.calls[-1], ("remove_voter", 3, True, True))
        self.expect_error(self.ask("DELETE", "/v1/members/3?retain=yes"), 400, "invalid_option")
        self.ask("DELETE", "/v1/members/2?force=no")
        self.assertEqual(self.node.calls[-1], ("remove_voter", 2, False, False))

    def test_change_of_address(self) -> None:
        body = {"peer_address": "10.0.1.2:7000", "client_address": "10.0.1.2:8000"}
        members = self.ask_json("PUT", "/v1/members/2/address", body).json["members"]
        self.assertEqual((members[1]["peer_address"], members[1]["client_address"]), tuple(body.values()))

    def test_refusals(self) -> None:
        """A-32: unknown and used ids, a second address, the last voter: 409 with the reason."""
        self.ask("DELETE", "/v1/members/3")
        for method, path, body, reason in (
            ("DELETE", "/v1/members/9", None, "unknown_member"),
            ("POST", "/v1/members/9/promote", None, "unknown_member"),
            ("POST", "/v1/members", {"id": 2, "peer_address": "h:1"}, "duplicate"),
            ("POST", "/v1/members", {"id": 4, "peer_address": "10.0.0.2:7000"}, "duplicate"),
            ("POST", "/v1/members", {"id": 3, "peer_address": "h:1"}, "tombstoned"),
        ):
            answer = self.ask_json(method, path, body) if body else self.ask(method, path)
            attributes = self.expect_error(answer, 409, "membership_refused")
            self.assertEqual(attributes["reason"], reason)
        self.ask("DELETE", "/v1/members/2")
        attributes = self.expect_error(self.ask("DELETE", "/v1/members/1"), 409, "membership_refused")
        self.assertEqual(attributes["reason"], "empty")

    def test_bad_bodies(self) -> None:
        good = {"id": 4, "peer_address": "h:1"}
        for change, field in (
            ({"id": "4"}, "id"),
            ({"id": 0}, "id"),
            ({"id": True}, "id"),
            ({"peer_address": ""}, "peer_address"),
            ({"peer_address": "a\nb:1"}, "peer_address"),
            ({"client_address": 5}, "client_address"),
            ({"role": "observer"}, "role"),
            ({"auto_promote": 1}, "auto_promote"),
            ({"role": "voter", "wait": True}, "wait"),
            ({"weight": 1}, "weight"),
        ):
            answer = self.ask_json("POST", "/v1/members", {**good, **change})
            self.assertEqual(self.expect_error(answer, 400, "invalid_field")["field"], field)
        self.assertEqual(
            self.expect_error(self.ask_json("POST", "/v1/members", {}), 400, "invalid_field")["field"], "id"
        )
        self.expect_error(self.ask("DELETE", "/v1/members/x"), 400, "invalid_path")
        self.expect_error(self.ask("DELETE", "/v1/members/" + "9" * 30), 400, "invalid_path")
        self.assertEqual(len(self.node.membership.members), 3)

    def test_transfer(self) -> None:
        self.assertEqual(self.ask_json("POST", "/v1/transfer", {"target": 2}).json, {"leader_id": 2})
        self.assertEqual(self.ask("POST", "/v1/transfer").json, {"leader_id": 1})
        self.expect_error(self.ask_json("POST", "/v1/transfer", {"target": 3}), 409, "transfer_failed")
        self.expect_error(self.ask_json("POST", "/v1/transfer", {"target": "2"}), 400, "invalid_field")

    def test_snapshot(self) -> None:
        self.put(b"key", b"1")
        self.assertEqual(self.ask("POST", "/v1/snapshot").json, {"snapshot": {"term": 3, "index": 1}})
        self.assertEqual(self.node.calls[-1], ("trigger", "snapshot"))


class ErrorTests(ApiTestCase):
    def test_errors_of_the_node(self) -> None:
        """504 is for unknown outcomes alone; what is refused for certain has its own status and code."""
        for error, status in (
            (OutcomeUnknown("the reply was lost"), 504),
            (Overloaded("proposals", 10), 429),
            (NodeStopped(RuntimeError("disk")), 503),
            (NodeRemoved(1), 503),
            (TransferInProgress(2), 503),
            (DeadlineExceeded("propose", 5.0), 503),
            (StorageFull("write", "x", "no space"), 503),
            (InvariantBroken("x"), 503),
            (SessionSequenceStale(1, 2, 3), 409),
            (MembershipRefused("in_progress", "another one"), 409),
            (ClusterMismatch("a", "b"), 412),
            (PeerUnreachable("h:1", "refused", False), 502),
        ):
            self.node.failure = error
            for answer in (self.ask("PUT", "/v1/kv/key", b""), self.ask("POST", "/v1/txn", b"{}", JSON)):
                attributes = self.expect_error(answer, status, error.code)
                self.assertEqual(attributes, error.attributes())
                retry = "1" if status in (429, 503) else None
                self.assertEqual(answer.header("Retry-After"), retry)

    def test_defect(self) -> None:
        """An exception that nobody expected is 500, says nothing of the inside, and is logged."""
        self.node.failure = KeyError("secret")
        for answer in (self.ask("GET", "/v1/kv/key"), self.ask("POST", "/v1/sessions")):
            self.expect_error(answer, 500, "internal")
            self.assertNotIn(b"secret", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 2)

    def test_unknown_paths(self) -> None:
        """A-05: JSON also where Klein would answer in HTML or not at all."""
        for path in (
            "/",
            "/x",
            "/v1",
            "/v1/",
            "//v1/status",
            "/v1//status",
            "/v1/status/",
            "/v1/%ff",
            "/v1/kvs/%ff",
            "/%00",
        ):
            self.expect_error(self.ask("GET", path), 404, "not_found")

    def test_wrong_methods(self) -> None:
        for method, path, allowed in (
            ("DELETE", "/v1/status", "GET, HEAD"),
            ("GET", "/v1/txn", "POST"),
            ("PUT", "/v1/members", "GET, HEAD, POST"),
            ("GET", "/v1/snapshot", "POST"),
        ):
            answer = self.ask(method, path)
            self.expect_error(answer, 405, "method_not_allowed")
            self.assertEqual(answer.header("allow"), allowed)

    def test_hostile_host(self) -> None:
        """A host that Werkzeug cannot take does not matter: nothing here depends on it."""
        for host in ("a" * 70, "a..b", "%", "x:y:z", "[", "a b"):
            answer = self.ask("GET", "/v1/status", headers={"Host": host})
            self.assertEqual(answer.status, 200, host)


class ConnectionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = FakeNode()
        self.node.hold = True
        self.site = Site(client_resource(self.node, self.node.machine))

    def send(self, request: bytes) -> StringTransport:
        channel = self.site.buildProtocol(None)
        assert channel is not None
        transport = StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived(request)
        self.addCleanup(channel.connectionLost, Failure(ConnectionError()))
        self.channel = channel
        return transport

    def hang_up(self) -> None:
        self.channel.connectionLost(Failure(ConnectionError()))

    def test_client_gives_up_the_answer_alone(self) -> None:
        """A-17: a client that hangs up loses its answer; the proposal goes on, and nothing is logged."""
        for request in (
            b"PUT /v1/kv/one HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
            b"POST /v1/txn HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        ):
            transport = self.send(request)
            before = self.node.applied
            self.hang_up()
            self.node.release()
            self.assertEqual(self.node.applied, before + 1)
            self.assertEqual(transport.value(), b"")
        kv = self.node.machine.get(b"one")
        self.assertEqual(kv and kv.value, b"x")

    def test_client_that_waits_gets_its_answer(self) -> None:
        transport = self.send(b"PUT /v1/kv/one HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
        self.assertEqual(transport.value(), b"")
        self.node.release()
        self.assertIn(b"200 OK", transport.value())

    def test_head(self) -> None:
        """HEAD has the headers of GET, the length included, and no body."""
        self.node.hold = False
        self.send(b"PUT /v1/kv/one HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nred")
        for path in (b"/v1/kv/one", b"/v1/status"):
            get = self.send(b"GET %s HTTP/1.0\r\n\r\n" % path).value()
            head = self.send(b"HEAD %s HTTP/1.0\r\n\r\n" % path).value()
            self.assertIn(b"Content-Length: ", head)
            without_date = [
                [line for line in each.split(b"\r\n\r\n")[0].split(b"\r\n") if not line.startswith(b"Date")]
                for each in (get, head)
            ]
            self.assertEqual(without_date[0], without_date[1])
            self.assertTrue(head.endswith(b"\r\n\r\n"))

    def test_pipelined_requests(self) -> None:
        """A-16: answers come in the order of the requests."""
        transport = self.send(b"".join(b"GET /v1/kv/%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(3)))
        for _ in range(3):
            self.node.release()
        self.assertEqual(transport.value().count(b"key_not_found"), 3)


class ClusterTests(SynchronousTestCase):
    """The interface on real nodes, with a network in memory between them."""

    def setUp(self) -> None:
        self.cluster = self.make_cluster()
        self.leader = self.cluster.begin(1, 2, 3).node_id
        self.follower = min({1, 2, 3} - {self.leader})
        self.http: dict[int, Any] = {}
        for node_id, node in self.cluster.nodes.items():
            self.http[node_id] = StubTreq(client_resource(node, node.machine, clock=self.cluster.clock))

    def make_cluster(self) -> NodeCluster:
        cluster = NodeCluster(self)
        cluster.make_machine = lambda: MemStateMachine(KeyValueMachine())
        return cluster

    def ask(self, node_id: int, method: str, path: str, body: bytes = b"", headers: Any = None) -> Answer:
        asked = self.http[node_id].request(method, "http://n" + path, data=body, headers=headers or {})
        results: list[Any] = []
        _ = asked.addBoth(results.append)

        def answered() -> bool:
            self.http[node_id].flush()
            return bool(results)

        self.cluster.until(answered)
        self.assertNotIsInstance(results[0], Failure)
        return Answer(results[0], self.successResultOf(results[0].content()))

    def test_forwarded_replies_are_unchanged(self) -> None:
        """What a follower forwards is answered as by the leader, errors of the application too."""
        get = json.dumps({"success": [{"op": "get", "key": b64(b"key")}]}).encode()
        for number, node_id in enumerate((self.leader, self.follower)):
            put = self.ask(node_id, "PUT", "/v1/kv/key", b"value %d" % number)
            self.assertEqual((put.status, put.json["version"]), (200, number + 1))
            txn = self.ask(node_id, "POST", "/v1/txn", get, JSON)
            self.assertEqual(txn.json["results"][0]["kv"]["value"], b64(b"value %d" % number))
            read = self.ask(node_id, "GET", "/v1/kv/key")
            self.assertEqual((read.body, read.header("X-ZLayer-Version")), (b"value %d" % number, str(number + 1)))
            self.assertEqual(int(put.header("X-ZLayer-Index") or 0), int(read.header("X-ZLayer-Index") or 0) - 1)
            deleted = self.ask(node_id, "DELETE", "/v1/kv/none")
            self.assertEqual(deleted.json["deleted"], False)

    def test_refusal_at_a_follower(self) -> None:
        for method, path in (("PUT", "/v1/kv/key"), ("GET", "/v1/kv/key"), ("POST", "/v1/sessions")):
            self.assertEqual(self.ask(self.leader, method, path + "?forward=no").status, 200)
            answer = self.ask(self.follower, method, path + "?forward=no")
            self.assertEqual((answer.status, answer.json["code"]), (421, "not_leader"))
            self.assertEqual(answer.header("X-Leader-Addr"), f"client{self.leader}:8000")

    def test_exactly_once_across_nodes(self) -> None:
        """H-82: a write of a session is done once, whichever node it is sent to, and however often."""
        session = str(self.ask(self.follower, "POST", "/v1/sessions").json["session"])
        headers = {"X-ZLayer-Session": session, "X-ZLayer-Sequence": "1"}
        bodies = {
            self.ask(node_id, "PUT", "/v1/kv/key", b"x", headers).body
            for node_id in (self.follower, self.leader, self.follower)
        }
        self.assertEqual(len(bodies), 1)
        self.assertEqual(self.ask(self.leader, "GET", "/v1/kv/key").header("X-ZLayer-Version"), "1")
        reused = self.ask(self.follower, "PUT", "/v1/kv/key", b"y", headers)
        self.assertEqual((reused.status, reused.json["code"]), (409, "session_sequence_reused"))

    def test_digests_are_equal_at_equal_index(self) -> None:
        for number in range(20):
            self.ask(self.leader, "PUT", f"/v1/kv/{number % 7}", b"%d" % number)
        self.cluster.settle()
        digests = [self.ask(node_id, "GET", "/v1/status").json["digest"] for node_id in (1, 2, 3)]
        self.assertEqual(digests[0], digests[1])
        self.assertEqual(digests[0], digests[2])
        self.assertEqual(self.ask(1, "GET", "/ready").status, 200)

    def test_members(self) -> None:
        """Asked at a follower, a fourth node becomes learner and voter, and the first one leaves."""
        self.cluster.make(4)
        body = json.dumps({"id": 4, "peer_address": "node4:7000", "client_address": "client4:8000"}).encode()
        added = self.ask(self.follower, "POST", "/v1/members", body, JSON)
        self.assertEqual((added.status, added.json["members"][3]["role"]), (200, "learner"))
        promoted = self.ask(self.follower, "POST", "/v1/members/4/promote")
        self.assertEqual((promoted.status, promoted.json["members"][3]["role"]), (200, "voter"))
        other = next(iter({1, 2, 3} - {self.leader, self.follower}))
        removed = self.ask(self.follower, "DELETE", f"/v1/members/{other}")
        self.assertEqual(sorted(each["id"] for each in removed.json["members"]), sorted({1, 2, 3, 4} - {other}))
        again = self.ask(self.follower, "DELETE", f"/v1/members/{other}")
        self.assertEqual((again.status, again.json["attributes"]["reason"]), (409, "unknown_member"))

    def test_transfer_and_snapshot(self) -> None:
        body = json.dumps({"target": self.follower}).encode()
        moved = self.ask(self.follower, "POST", "/v1/transfer", body, JSON)
        self.assertEqual((moved.status, moved.json), (200, {"leader_id": self.follower}))
        self.ask(self.follower, "PUT", "/v1/kv/key", b"x")
        snapshot = self.ask(self.follower, "POST", "/v1/snapshot")
        self.assertEqual(snapshot.status, 200)
        status = self.ask(self.follower, "GET", "/v1/status").json
        self.assertEqual(status["snapshot"], snapshot.json["snapshot"])


class FakeNodeTests(SynchronousTestCase):
    def test_fake_has_the_signatures_of_the_node(self) -> None:
        """Whatever the interface calls on the fake, the real node takes in the same way."""
        from zlayer_consensus.node import ConsensusNode

        for name, fake in inspect.getmembers(FakeNode):
            if name.startswith("_") or name == "release":
                continue
            real = getattr(ConsensusNode, name)
            self.assertEqual(isinstance(fake, property), isinstance(real, property), name)
            if callable(fake):
                # All the fake takes, the node takes in the same manner; it may take more that is optional.
                wanted, actual = (inspect.signature(each).parameters for each in (fake, real))
                for parameter in wanted.values():
                    self.assertIn(parameter.name, actual, name)
                    self.assertEqual(parameter.kind, actual[parameter.name].kind, f"{name}: {parameter.name}")
                    self.assertEqual(parameter.default, actual[parameter.name].default, f"{name}: {parameter.name}")
                for extra in set(actual) - set(wanted):
                    self.assertIsNot(actual[extra].default, inspect.Parameter.empty, f"{name}: {extra}")
