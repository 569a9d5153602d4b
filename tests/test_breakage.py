"""What a user got wrong, or the network did, and the product once took in silence."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.daemon._assembly import make_sites
from zlayer_consensus.daemon._config import parse_config
from zlayer_consensus.errors import BootstrapMismatch, MembershipRefused
from zlayer_consensus.node import InitialMember
from zlayer_consensus.storage import MemLogStore

from .node_cluster import NodeCluster, NodeTestCase
from .test_client_api import Answer, ApiTestCase

CONFIG = """
[node]
id = 1
data_dir = "data"
[listen]
peer = "tcp:7001:interface=127.0.0.1"
client = "tcp:8001:interface=127.0.0.1"
[cluster]
members = [{ id = 1, peer = "127.0.0.1:7001", client = "127.0.0.1:8001" }]
"""


class QueryTests(ApiTestCase):
    def test_options_without_a_value(self) -> None:
        """``?retain`` is no way to ask for ``retain=yes``, and must not remove a member for ever."""
        for method, path, code in (
            ("DELETE", "/v1/members/3?retain", "invalid_option"),
            ("DELETE", "/v1/members/3?force=no&retain", "invalid_option"),
            ("PUT", "/v1/kv/key?forward", "invalid_option"),
            ("PUT", "/v1/kv/key?once", "unknown_option"),
            ("GET", "/v1/kv/key?consistency=stale&fast", "unknown_option"),
            ("GET", "/v1/kv?prefix", "invalid_option"),
            ("GET", "/v1/status?verbose", "unknown_option"),
        ):
            with self.subTest(path):
                name = path.rpartition("?")[2].rpartition("&")[2]
                attributes = self.expect_error(self.ask(method, path, b"" if method == "PUT" else None), 400, code)
                self.assertEqual(attributes["field"], name)
        self.assertEqual((self.node.calls, len(self.node.membership.members)), ([], 3))

    def test_empty_queries_are_fine(self) -> None:
        for query in ("?", "?&", "?&&consistency=stale&"):
            self.assertEqual(self.ask("GET", "/v1/kv" + query).status, 200)

    def test_broken_escapes(self) -> None:
        """In a path they are refused; a prefix that is read as something else would be worse."""
        for query in ("prefix=%", "prefix=%zz", "start=a%4"):
            self.expect_error(self.ask("GET", "/v1/kv?" + query), 400, "invalid_option")

    def test_times_that_only_python_reads(self) -> None:
        for value in ("1_0", "%201", "1%0a", "0x1", "+1", "infinity"):
            with self.subTest(value):
                answer = self.ask("GET", "/v1/kv/key?timeout=" + value)
                self.assertEqual(self.expect_error(answer, 400, "invalid_option")["field"], "timeout")
        for value in ("1", "0.5", "2.", "1e2", "1E-3"):
            self.assertEqual(self.ask("GET", "/v1/kv?timeout=" + value).status, 200)

    def test_session_headers_that_come_twice(self) -> None:
        """Which of two sessions was meant, nobody knows: a write that is done exactly once must not guess."""
        session = self.ask("POST", "/v1/sessions").json["session"]
        for name in ("X-ZLayer-Session", "X-ZLayer-Sequence"):
            headers: Any = {"X-ZLayer-Session": str(session), "X-ZLayer-Sequence": "1"}
            headers[name] = [str(session), "1"]
            asked = self.http.request("PUT", "http://n1/v1/kv/key", data=b"x", headers=headers)
            self.http.flush()
            response = self.successResultOf(asked)
            answer = Answer(response, self.successResultOf(response.content()))
            self.assertEqual(self.expect_error(answer, 400, "invalid_header")["field"], name)
        self.assertEqual(self.ask("GET", "/v1/kv/key").status, 404)


class MemberRequestTests(ApiTestCase):
    def test_addresses_that_nobody_can_connect_to(self) -> None:
        """A-32: a typing error in a committed address would cut the member off from its cluster."""
        before = self.node.membership
        for address in ("nonsense", "h:0", "h:99999", "http://h:1", "a b:1", "0.0.0.0:80", "[::]:80", "h:1/x", ":1"):
            for method, path in (("POST", "/v1/members"), ("PUT", "/v1/members/2/address")):
                for field in ("peer_address", "client_address"):
                    body = {"peer_address": "h:1", "client_address": "h:2", field: address}
                    if method == "POST":
                        body["id"] = 4  # type: ignore[assignment]
                    with self.subTest(path=path, body=body):
                        answer = self.ask_json(method, path, body)
                        self.assertEqual(self.expect_error(answer, 400, "invalid_field")["field"], field)
        self.assertEqual(self.node.membership, before)

    def test_client_address_stays(self) -> None:
        """What is not said is not changed; else clients would be told of a leader without an address."""
        answer = self.ask_json("PUT", "/v1/members/2/address", {"peer_address": "10.0.1.2:7000"})
        member = answer.json["members"][1]
        self.assertEqual((member["peer_address"], member["client_address"]), ("10.0.1.2:7000", "10.0.0.2:8000"))
        answer = self.ask_json("PUT", "/v1/members/2/address", {"peer_address": "h:1", "client_address": ""})
        self.assertEqual(answer.json["members"][1]["client_address"], "")

    def test_promotion_is_up_to_the_leader(self) -> None:
        """A follower may not know the member yet; with ``forward=no`` it says who would."""
        self.node.leader_id = 2
        answer = self.ask("POST", "/v1/members/9/promote?forward=no")
        self.expect_error(answer, 421, "not_leader")


class MemberTests(NodeTestCase):
    def test_promotion_at_a_follower_that_lags(self) -> None:
        """A member is promoted where the leader knows it to be, whatever the node that was asked has heard."""
        node = self.cluster.make(4)
        lagging, other = self.cluster.followers()[:2]
        self.cluster.network.partition([lagging.address], [self.lead.address, other.address])
        self.cluster.result(self.lead.add_learner(4, node.address, "client4:8000"))
        self.assertNotIn(4, lagging.learner_ids)
        self.cluster.network.heal()
        membership = self.cluster.result(lagging.add_voter(4))
        self.assertEqual(membership.voters, {1, 2, 3, 4})
        member = membership.members[4]
        self.assertEqual((member.peer_address, member.client_address), (node.address, "client4:8000"))
        self.assertEqual(self.cluster.error(lagging.add_voter(9), MembershipRefused).reason, "unknown_member")

    def test_address_change_keeps_the_client_address(self) -> None:
        node = self.follower
        membership = self.cluster.result(node.change_address(node.node_id, "elsewhere:1"))
        member = membership.members[node.node_id]
        self.assertEqual((member.peer_address, member.client_address), ("elsewhere:1", f"client{node.node_id}:8000"))
        error = self.cluster.error(self.lead.change_address(9, "elsewhere:2"), MembershipRefused)
        self.assertEqual(error.reason, "unknown_member")


class QuorumTests(NodeTestCase):
    def test_a_voter_that_died_just_now_counts_for_nothing(self) -> None:
        """H-45: removing one of the two that are left, right after the third died, would stop the cluster for ever."""
        alive, dead = (node.node_id for node in self.cluster.followers())
        self.cluster.crash(dead)
        self.cluster.run(0.6)
        self.assertIn(self.lead.node_id, self.lead.voter_ids)
        error = self.cluster.error(self.lead.remove_voter(alive), MembershipRefused)
        self.assertEqual(error.reason, "quorum_at_risk")
        self.assertFalse(self.lead.metrics().membership.joint)
        self.assertEqual(self.cluster.result(self.lead.remove_voter(dead)).voters, {self.lead.node_id, alive})
        self.cluster.result(self.lead.propose(["set", "a", 1]))

    def test_a_learner_that_died_just_now_gets_no_vote(self) -> None:
        """H-44: of two voters, both are needed."""
        for follower in self.cluster.followers():
            self.cluster.result(self.lead.remove_voter(follower.node_id))
        node = self.cluster.make(4)
        self.cluster.result(self.lead.add_learner(4, node.address))
        self.cluster.crash(4)
        self.cluster.run(0.6)
        error = self.cluster.error(self.lead.change_membership([self.lead.node_id, 4]), MembershipRefused)
        self.assertEqual(error.reason, "not_caught_up")
        self.cluster.result(self.lead.propose(["set", "a", 1]))


class NameTests(SynchronousTestCase):
    def test_another_name(self) -> None:
        """The name is part of the cluster: a node of one cluster does not run under the name of another."""
        cluster = NodeCluster(self)
        log = MemLogStore(1, random_bytes=cluster.random.randbytes)
        members = [InitialMember(1, cluster.address(1), "client1:8000")]
        node = cluster.make(1, log=log, cluster_name="red")
        cluster.result(node.bootstrap(members))
        cluster.leader()
        cluster.crash(1)
        node = cluster.make(1, log=log.reopened(), cluster_name="blue")
        error = cluster.error(node.bootstrap(members), BootstrapMismatch)
        self.assertIn("'red'", error.detail)
        self.assertIn("'blue'", error.detail)


def _observe(test: Any) -> None:
    """Collects in ``test.lines`` what the package logs, with its level."""
    test.lines = []

    def note(event: Any) -> None:
        if str(event.get("log_namespace")).startswith("zlayer_consensus"):
            test.lines.append(event["log_level"].name + " " + event["log_format"].format(**event))

    observer: Any = note
    globalLogPublisher.addObserver(observer)
    test.addCleanup(globalLogPublisher.removeObserver, observer)


class LogTests(NodeTestCase):
    lines: list[str]

    def setUp(self) -> None:
        super().setUp()
        _observe(self)

    def about(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]

    def test_a_peer_that_is_down_is_named_once(self) -> None:
        """Operators learn that a member is away, and that it is back; a minute of it is one line."""
        away = self.follower.node_id
        address = self.follower.address
        others = [node.address for node in self.cluster.nodes.values() if node.address != address]
        self.cluster.network.partition([address], others)
        self.cluster.run(60.0)
        told = self.about(f"node {away} at {address} does not answer")
        self.assertEqual((len(told), told[0].split()[0]), (1, "warn"))
        self.cluster.network.heal()
        self.cluster.run(5.0)
        self.assertEqual(len(self.about(f"node {away} answers again")), 1)
        self.assertEqual(len(self.about("does not answer")), 3, "the one that was cut off missed two")

    def test_a_short_silence_is_nobodys_business(self) -> None:
        address = self.follower.address
        others = [node.address for node in self.cluster.nodes.values() if node.address != address]
        self.cluster.network.partition([address], others)
        self.cluster.run(1.0)
        self.cluster.network.heal()
        self.cluster.run(5.0)
        self.assertEqual(self.about("answer"), [])

    def test_who_leads_is_told(self) -> None:
        """Each follower names the leader of the new term."""
        old = self.lead.node_id
        self.cluster.crash(old)
        new = self.cluster.leader()
        self.cluster.run(1.0)
        other = next(i for i in (1, 2, 3) if i not in (old, new.node_id))
        self.assertTrue(self.about(f"node {other} follows node {new.node_id} in term {new.metrics().term}"))


class WaitingTests(SynchronousTestCase):
    lines: list[str]

    def setUp(self) -> None:
        _observe(self)

    def test_whom_a_bootstrap_waits_for(self) -> None:
        """Two of three are up: their logs say who lacks, once."""
        cluster = NodeCluster(self)
        members = [cluster.member(node_id) for node_id in (1, 2, 3)]
        for node_id in (1, 2):
            _ = cluster.make(node_id).bootstrap(members).addErrback(lambda _: None)
        cluster.run(30.0)
        told = [line for line in self.lines if "waiting for" in line]
        self.assertEqual(told, ["info waiting for node 3 at node3:7000, to begin the cluster together"] * 2)

    def test_what_a_joining_node_waits_for(self) -> None:
        """An address that does not answer is named once; and what is missing when one does."""
        cluster = NodeCluster(self)
        cluster.begin(1)
        node = cluster.make(4)
        _ = node.join(["nowhere:1"]).addErrback(lambda _: None)
        cluster.run(30.0)
        self.assertEqual(len([line for line in self.lines if "cannot join through nowhere:1" in line]), 1)
        other = cluster.make(5)
        _ = other.join([cluster.address(1)]).addErrback(lambda _: None)
        cluster.run(5.0)
        self.assertIn("info node 5 waits until the cluster makes it a member", self.lines)


class RefusedBodyTests(SynchronousTestCase):
    def refused(self, request: bytes) -> tuple[bytes, Any]:
        """Sends bytes to the client listener's site; returns the status line and the JSON body."""
        clock = Clock()
        site = make_sites(parse_config(tomllib.loads(CONFIG), "node.toml"), clock)["client"]
        wire = StringTransport()
        channel = site.buildProtocol(None)
        channel.makeConnection(wire)
        channel.dataReceived(request)
        clock.advance(60)
        channel.connectionLost(Failure(ConnectionDone()))
        head, _, body = wire.value().partition(b"\r\n\r\n")
        return head.split(b"\r\n")[0], json.loads(body)

    def test_the_limit_is_an_attribute(self) -> None:
        """A program that gets 413 can read the limit, whether the site or the node refused."""
        head = b"PUT /v1/kv/key HTTP/1.1\r\nHost: x\r\n"
        status, value = self.refused(head + b"Content-Length: 5000000\r\n\r\n")
        self.assertIn(b" 413 ", status)
        self.assertEqual(value["code"], "body_too_large")
        self.assertEqual(value["attributes"], {"size": 5_000_000, "limit": 1 << 20})
        chunk = b"80000\r\n" + b"x" * 0x80000 + b"\r\n"
        status, value = self.refused(head + b"Transfer-Encoding: chunked\r\n\r\n" + 3 * chunk)
        self.assertEqual((value["code"], value["attributes"]), ("body_too_large", {"limit": 1 << 20}))

    def test_a_head_that_is_too_long(self) -> None:
        status, value = self.refused(b"GET /v1/kv/" + b"x" * 20_000)
        self.assertIn(b" 431 ", status)
        self.assertEqual((value["code"], value["attributes"]), ("header_too_large", {}))
