"""How nodes come to their cluster, and who may speak to them."""

from __future__ import annotations

import dataclasses
from typing import Any

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.errors import (
    BootstrapMismatch,
    ClusterMismatch,
    IncarnationMismatch,
    InvalidMessage,
    NodeRemoved,
    NodeStopped,
    TargetMismatch,
)
from zlayer_consensus.network import Envelope, IdentifyReply, IdentifyRequest
from zlayer_consensus.node import ConsensusNode, InitialMember
from zlayer_consensus.raft import HeartbeatReply, HeartbeatRequest, LogId, VoteRequest
from zlayer_consensus.storage import MemLogStore

from .node_cluster import NodeCluster, NodeTestCase


class BootstrapTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.cluster = NodeCluster(self)

    def members(self, *ids: int) -> list[InitialMember]:
        return [self.cluster.member(node_id) for node_id in ids]

    def test_alone(self) -> None:
        node = self.cluster.make(1)
        self.assertEqual((node.metrics().role, node.metrics().cluster_id), ("learner", b""))
        self.cluster.result(node.bootstrap())
        self.cluster.leader()
        self.assertEqual((node.voter_ids, len(node.metrics().cluster_id)), ({1}, 16))

    def test_a_blank_node_is_passive(self) -> None:
        node = self.cluster.make(1)
        self.cluster.run(10.0)
        self.assertEqual((node.metrics().role, node.metrics().term, node.leader_id), ("learner", 0, None))

    def test_all_members_compute_the_same_cluster(self) -> None:
        """In any order of the list; and another set of disks is another cluster."""
        for node_id in (1, 2, 3):
            self.cluster.make(node_id)
        orders = ((1, 2, 3), (3, 2, 1), (2, 1, 3))
        waiting = [self.cluster.nodes[i].bootstrap(self.members(*orders[i - 1])) for i in (1, 2, 3)]
        for each in waiting:
            self.cluster.result(each)
        ids = {node.metrics().cluster_id for node in self.cluster.nodes.values()}
        self.assertEqual(len(ids), 1)
        other = NodeCluster(self, seed=2)
        self.assertNotEqual(ids, {other.begin(1, 2, 3).metrics().cluster_id})

    def test_nobody_writes_before_all_have_answered(self) -> None:
        """And nothing else is needed once the last one comes."""
        for node_id in (1, 2):
            self.cluster.make(node_id)
        waiting = [self.cluster.nodes[i].bootstrap(self.members(1, 2, 3)) for i in (1, 2)]
        self.cluster.run(5.0)
        for i, each in zip((1, 2), waiting, strict=True):
            self.assertNoResult(each)
            self.assertEqual(self.cluster.nodes[i].metrics().last.index, 0)
        self.cluster.make(3)
        self.cluster.run(5.0)
        self.assertNoResult(waiting[0])
        self.cluster.result(self.cluster.nodes[3].bootstrap(self.members(1, 2, 3)))
        for each in waiting:
            self.cluster.result(each)
        self.cluster.leader()

    def test_different_lists_are_refused(self) -> None:
        """Neither writes anything; each is told what the other was given."""
        for node_id in (1, 2):
            self.cluster.make(node_id)
        first = self.cluster.nodes[1].bootstrap(self.members(1, 2))
        second = self.cluster.nodes[2].bootstrap(self.members(1, 2, 3))
        error = self.cluster.error(first, BootstrapMismatch)
        self.assertIn("3 at node3:7000", error.detail)
        self.assertEqual(self.cluster.nodes[1].metrics().last.index, 0)
        second.cancel()
        _ = second.addErrback(lambda _: None)

    def test_different_names_are_refused(self) -> None:
        self.cluster.make(1, cluster_name="red")
        self.cluster.make(2, cluster_name="blue")
        waiting = [self.cluster.nodes[i].bootstrap(self.members(1, 2)) for i in (1, 2)]
        self.assertIn("blue", self.cluster.error(waiting[0], BootstrapMismatch).detail)
        waiting[1].cancel()
        _ = waiting[1].addErrback(lambda _: None)

    def test_impossible_lists_are_refused(self) -> None:
        """H-50: at once, and nothing is asked."""
        node = self.cluster.make(1)
        for members in (
            self.members(2, 3),
            self.members(1, 2, 2),
            [*self.members(1), InitialMember(2, self.cluster.address(1))],
            [InitialMember(1, "elsewhere:1")],
            [*self.members(1), InitialMember(0, "x:1")],
            [*self.members(1), InitialMember(2, "")],
            [],
        ):
            with self.subTest(members):
                self.failureResultOf(node.bootstrap(members), BootstrapMismatch)

    def test_the_wrong_node_at_an_address(self) -> None:
        """J-12."""
        for node_id in (1, 2):
            self.cluster.make(node_id)
        self.cluster.network.attach("node3:7000", self.cluster.nodes[2])
        error = self.cluster.error(self.cluster.nodes[1].bootstrap(self.members(1, 3)), BootstrapMismatch)
        self.assertIn("node 3 at node3:7000", error.detail)

    def test_again_is_no_change(self) -> None:
        """It may be called at every start; with the list it began with, or with the voters as they are now."""
        lead = self.cluster.begin(1, 2, 3)
        last = lead.metrics().last
        for node in self.cluster.nodes.values():
            self.cluster.result(node.bootstrap(self.members(3, 1, 2)))
        self.assertEqual(lead.metrics().last, last)
        self.cluster.error(
            lead.bootstrap(self.members(*{1, 2, 3} - {3 if lead.node_id != 3 else 1})), BootstrapMismatch
        )
        self.cluster.error(lead.bootstrap(), BootstrapMismatch)
        gone = next(i for i in (1, 2, 3) if i != lead.node_id)
        self.cluster.result(lead.remove_voter(gone))
        self.cluster.result(lead.bootstrap(self.members(*{1, 2, 3} - {gone})))
        self.cluster.result(lead.bootstrap(self.members(1, 2, 3)))

    def late_member(self) -> ConsensusNode:
        """Node 3 had answered 1 and 2, which began; it died before it wrote anything, and is back."""
        for node_id in (1, 2, 3):
            self.cluster.make(node_id)
        dying = self.cluster.nodes[3].bootstrap(self.members(1, 2, 3))
        self.cluster.run(0.005, step=0.001)  # it has asked, and nobody there was told yet
        starts = [self.cluster.nodes[i].bootstrap(self.members(1, 2, 3)) for i in (1, 2)]
        while not all(each.called for each in starts):
            self.cluster.clock.advance(0.001)
        for each in starts:
            self.successResultOf(each)
        self.assertNoResult(dying)
        self.assertEqual(self.cluster.nodes[3].metrics().last.index, 0)
        log = self.cluster.logs[3]
        self.cluster.crash(3)
        _ = dying.addErrback(lambda _: None)
        self.cluster.leader()
        return self.cluster.make(3, log=log.reopened())

    def test_a_member_that_was_down_at_the_end_finds_its_way(self) -> None:
        """It comes back to a running cluster that knows it."""
        late = self.late_member()
        self.cluster.result(late.bootstrap(self.members(1, 2, 3)))
        self.cluster.result(self.cluster.leader().propose(["set", "a", 1]))
        self.cluster.settle()
        self.assertEqual(late.machine.state, {"a": 1})

    def test_a_member_that_was_down_while_others_came(self) -> None:
        """The configuration is not the initial one any more; what has happened comes from the leader."""
        late = self.late_member()
        new = self.cluster.make(4)
        self.cluster.result(self.cluster.leader().add_learner(4, new.address))
        self.cluster.result(late.bootstrap(self.members(1, 2, 3)))
        self.cluster.settle()
        self.assertEqual((late.voter_ids, late.learner_ids), ({1, 2, 3}, {4}))

    def test_a_late_member_that_asks_a_repaired_one(self) -> None:
        """That one does not know with which list it began, but it knows who belongs to its cluster."""
        late = self.late_member()
        log = self.cluster.logs[1]
        self.cluster.crash(1)
        log = log.reopened()
        log.identity = dataclasses.replace(log.identity, origin=b"")
        self.cluster.make(1, log)
        self.cluster.result(late.bootstrap(self.members(1, 2, 3)))
        self.cluster.settle()

    def test_a_late_member_that_asks_one_whose_log_is_lost(self) -> None:
        """Repair has left it nothing but its cluster's id: it can tell nothing, and another one is asked."""
        late = self.late_member()
        identity = self.cluster.logs[1].identity
        self.cluster.crash(1)
        log = MemLogStore(1, random_bytes=self.cluster.random.randbytes)
        log.identity = dataclasses.replace(identity, origin=b"", repair=bytes(16))
        self.cluster.make(1, log)
        self.cluster.network.partition([self.cluster.address(1)], [self.cluster.address(2)])
        with capturedLogs() as events:
            self.cluster.result(late.bootstrap(self.members(1, 2, 3)))
        told = [each for each in events if "does not know with which members" in (each.get("log_format") or "")]
        self.assertIn(identity.cluster_id.hex(), {each["cluster"] for each in told})
        self.cluster.network.heal()
        self.cluster.settle()

    def test_a_late_member_with_another_list(self) -> None:
        late = self.late_member()
        error = self.cluster.error(late.bootstrap(self.members(2, 3)), BootstrapMismatch)
        self.assertIn("begun with another list", error.detail)

    def test_adopted_but_nothing_written(self) -> None:
        """A crash between the two is repaired by bootstrapping again."""
        node = self.cluster.make(1)
        self.cluster.result(node.bootstrap())
        cluster_id = node.metrics().cluster_id
        blank = MemLogStore(1, random_bytes=lambda n: node.metrics().incarnation)
        self.successResultOf(blank.open())
        self.successResultOf(blank.adopt(self.cluster.logs[1].identity))
        self.cluster.crash(1)
        again = self.cluster.make(1, log=blank.reopened())
        self.assertEqual(again.metrics().cluster_id, cluster_id)
        self.cluster.error(again.bootstrap(self.members(1, 2)), BootstrapMismatch)
        self.cluster.result(again.bootstrap())
        self.cluster.leader()

    def test_a_log_that_a_repair_emptied_is_the_leaders_to_fill(self) -> None:
        """Also if the others still have just those members: nothing is written anew (H-29)."""
        self.cluster.begin(1, 2, 3)
        self.cluster.settle()
        victim = next(i for i in (1, 2, 3) if not self.cluster.nodes[i].is_leader)
        identity = self.cluster.logs[victim].identity
        self.cluster.crash(victim)
        emptied = MemLogStore(victim)
        emptied.identity = dataclasses.replace(identity, repair=b"r" * 16)
        node = self.cluster.make(victim, emptied)
        self.cluster.result(node.bootstrap(self.members(1, 2, 3)))
        self.assertEqual(node.metrics().last.index, 0)
        self.cluster.until(lambda: node.metrics().last == self.cluster.leader().metrics().last)

    def test_a_repaired_identity_does_not_know_with_which_list_it_began(self) -> None:
        """And the voters may have changed since; that it is one of them has to do."""
        leader = self.cluster.begin(1, 2, 3)
        self.cluster.make(4)
        self.cluster.result(leader.add_voter(4, self.cluster.address(4), "client4:8000"))
        victim = self.cluster.followers()[0].node_id
        self.cluster.crash(victim)
        log = self.cluster.logs[victim].reopened()
        log.identity = dataclasses.replace(log.identity, origin=b"")
        node = self.cluster.make(victim, log)
        self.cluster.result(node.bootstrap(self.members(1, 2, 3)))

    def test_a_repaired_identity_and_a_log_that_removes_it(self) -> None:
        """It starts like any other that is being removed: what removes it is not committed, and it may be needed."""
        leader = self.cluster.begin(1, 2, 3)
        victim = self.cluster.followers()[0]
        removing = leader.remove_voter(victim.node_id)
        self.cluster.until(lambda: victim.node_id not in victim.voter_ids)
        self.assertLess(victim.metrics().commit, victim.metrics().last.index)
        self.cluster.crash(victim.node_id)
        log = self.cluster.logs[victim.node_id].reopened()
        log.identity = dataclasses.replace(log.identity, origin=b"")
        node = self.cluster.make(victim.node_id, log)
        self.cluster.result(node.bootstrap(self.members(1, 2, 3)))
        self.cluster.result(removing)

    def test_a_repaired_identity_and_a_foreign_list(self) -> None:
        leader = self.cluster.begin(1, 2, 3)
        victim = self.cluster.followers()[0].node_id
        self.cluster.result(leader.remove_voter(victim))
        self.cluster.crash(victim)
        log = self.cluster.logs[victim].reopened()
        log.identity = dataclasses.replace(log.identity, origin=b"")
        node = self.cluster.make(victim, log)
        error = self.cluster.error(node.bootstrap(self.members(victim, 7, 8)), BootstrapMismatch)
        self.assertIn("cluster with other members", error.detail)

    def test_stop_ends_a_bootstrap(self) -> None:
        """J-47: it waits for as long as it takes, but not longer than the node lives."""
        node = self.cluster.make(1)
        waiting = node.bootstrap(self.members(1, 2))
        self.cluster.run(1.0)
        self.cluster.result(node.shutdown())
        self.failureResultOf(waiting, NodeStopped)


class JoinTests(NodeTestCase):
    def test_join_and_be_added(self) -> None:
        node = self.cluster.make(4)
        joining = node.join(["nowhere:1", self.lead.address])
        self.cluster.run(1.0)
        self.assertNoResult(joining)
        self.assertEqual(node.metrics().cluster_id, self.lead.metrics().cluster_id)
        self.cluster.result(self.lead.add_voter(4, node.address))
        self.cluster.result(joining)
        self.cluster.result(node.join(["nowhere:1"]))

    def test_join_waits_for_a_cluster(self) -> None:
        """Those who are asked may belong to none yet."""
        first, second = self.cluster.make(5), self.cluster.make(6)
        joining = second.join([first.address])
        self.cluster.run(1.0)
        self.assertEqual(second.metrics().cluster_id, b"")
        self.cluster.result(first.bootstrap())
        self.cluster.until(lambda: second.metrics().cluster_id == first.metrics().cluster_id)
        self.cluster.until(lambda: first.metrics().ready)
        self.cluster.result(first.add_learner(6, second.address))
        self.cluster.result(joining)

    def test_one_cluster_only(self) -> None:
        """H-30: a node that is pinned to a cluster refuses another one."""
        node = self.cluster.make(4)
        joining = node.join([self.lead.address])
        self.cluster.run(1.0)
        other = self.cluster.make(5)
        self.cluster.result(other.bootstrap())
        self.cluster.error(node.join([other.address]), ClusterMismatch)
        self.cluster.error(node.bootstrap(), BootstrapMismatch)
        joining.cancel()
        _ = joining.addErrback(lambda _: None)

    def test_removed_ids_cannot_join(self) -> None:
        """H-49."""
        node = self.cluster.make(4)
        self.cluster.result(self.lead.add_learner(4, node.address))
        self.cluster.result(self.lead.remove_learner(4))
        self.cluster.result(node.when_stopped())
        back = self.cluster.make(4)
        self.cluster.error(back.join([self.lead.address]), NodeRemoved)


class EnvelopeTests(NodeTestCase):
    """A-08: what does not fit is refused, and changes nothing, its term included."""

    def setUp(self) -> None:
        super().setUp()
        self.node = self.follower
        self.cluster.settle()
        metrics = self.node.metrics()
        lead = self.lead.metrics()
        self.envelope = Envelope(
            metrics.cluster_id, lead.node_id, lead.incarnation, metrics.node_id, metrics.incarnation
        )

    def give(self, node: ConsensusNode | None = None, request: Any = None, **changes: Any) -> Any:
        request = request or HeartbeatRequest(1_000_000, 0, 1)
        return (node or self.node).handle(dataclasses.replace(self.envelope, **changes), request)

    def refused(self, kind: type[Exception], **changes: Any) -> Any:
        before = self.node.metrics()
        error = self.failureResultOf(self.give(**changes), kind).value
        self.assertEqual(self.node.metrics(), before)
        return error

    def test_a_term_that_no_election_explains_is_counted(self) -> None:
        """H-15: it is legal, so it is adopted; but it is told."""
        term = self.node.metrics().term + 2_000_000
        self.give(request=HeartbeatRequest(term, 0, 1))
        self.cluster.run(0.1)
        metrics = self.node.metrics()
        self.assertEqual((metrics.term, metrics.term_jumps), (term, 1))

    def test_other_cluster(self) -> None:
        """H-30: both ids are named."""
        error = self.refused(ClusterMismatch, cluster_id=bytes(16))
        self.assertEqual(error.expected, self.node.metrics().cluster_id.hex())
        self.assertEqual(error.found, bytes(16).hex())

    def test_other_target(self) -> None:
        """H-31, J-12."""
        self.refused(TargetMismatch, target_id=9)

    def test_other_incarnation_of_the_target(self) -> None:
        """H-29: the text says what to do."""
        self.assertIn("wiped or replaced", str(self.refused(IncarnationMismatch, target_incarnation=bytes(16))))

    def test_other_incarnation_of_the_sender(self) -> None:
        """H-29, J-11."""
        error = self.refused(IncarnationMismatch, sender_incarnation=bytes(16))
        self.assertEqual(error.node_id, self.lead.node_id)

    def test_sender_is_the_receiver(self) -> None:
        """H-28."""
        self.refused(InvalidMessage, sender_id=self.node.node_id)

    def test_unknown_sender_of_the_cluster(self) -> None:
        """It is listened to: the receiver's configuration may be the one that is behind."""
        reply = self.give(sender_id=77, sender_incarnation=bytes(16), request=HeartbeatRequest(0, 0, 1))
        self.assertIsInstance(self.cluster.result(reply), HeartbeatReply)

    def test_removed_sender(self) -> None:
        """H-47, J-65: once that is committed here."""
        gone = next(node for node in self.cluster.followers() if node is not self.node)
        incarnation = gone.metrics().incarnation
        self.cluster.result(self.lead.remove_voter(gone.node_id))
        self.cluster.result(self.lead.propose(["time"]))
        self.cluster.run(1.0)
        error = self.refused(NodeRemoved, sender_id=gone.node_id, sender_incarnation=incarnation)
        self.assertEqual(error.node_id, gone.node_id)

    def test_garbage_terms(self) -> None:
        """H-15, A-24: refused without effect, and the node goes on."""
        self.refused(InvalidMessage, request=HeartbeatRequest(1 << 62, 0, 1))
        self.refused(InvalidMessage, request=VoteRequest(-1, LogId(0, 0), 1))
        self.cluster.result(self.lead.propose(["set", "a", 1]))

    def test_a_node_that_does_not_run(self) -> None:
        node = self.node
        self.cluster.result(node.shutdown())
        self.failureResultOf(self.give(), NodeStopped)

    def test_first_contact(self) -> None:
        """A blank node accepts a cluster from a leader that knows its incarnation, and from nobody else."""
        blank = self.cluster.make(4)
        there: dict[str, Any] = {"target_id": 4, "target_incarnation": blank.metrics().incarnation}
        vote = VoteRequest(5, LogId(5, 5), 1)
        self.failureResultOf(self.give(blank, vote, **there), ClusterMismatch)
        self.failureResultOf(self.give(blank, **{**there, "target_incarnation": bytes(16)}), IncarnationMismatch)
        self.failureResultOf(self.give(blank, **there, cluster_id=b""), InvalidMessage)
        self.assertEqual((blank.metrics().cluster_id, blank.metrics().term), (b"", 0))
        both = [self.give(blank, HeartbeatRequest(5, 0, n), **there) for n in (1, 2)]
        for each in both:
            self.assertIsInstance(self.cluster.result(each), HeartbeatReply)
        self.assertEqual(blank.metrics().cluster_id, self.envelope.cluster_id)
        self.assertEqual(self.cluster.logs[4].identity.cluster_id, self.envelope.cluster_id)
        self.failureResultOf(self.give(blank, **there, cluster_id=bytes(16)), ClusterMismatch)

    def test_no_first_contact_while_bootstrapping(self) -> None:
        """A node that waits for its own cluster does not fall for another."""
        blank = self.cluster.make(4)
        waiting = blank.bootstrap([self.cluster.member(4), self.cluster.member(5)])
        self.cluster.run(0.5)
        there: dict[str, Any] = {"target_id": 4, "target_incarnation": blank.metrics().incarnation}
        self.failureResultOf(self.give(blank, **there), ClusterMismatch)
        waiting.cancel()
        _ = waiting.addErrback(lambda _: None)

    def test_identify(self) -> None:
        """Who asks may leave open what it asks for, and nothing else."""
        request = IdentifyRequest(b"")
        open_one: dict[str, Any] = {"cluster_id": b"", "target_id": 0, "target_incarnation": b""}
        reply = self.cluster.result(self.give(request=request, **open_one))
        assert isinstance(reply, IdentifyReply)
        self.assertEqual((reply.node_id, reply.cluster_id), (self.node.node_id, self.envelope.cluster_id))
        self.assertEqual(reply.leader_id, self.lead.node_id)
        self.failureResultOf(self.give(request=request, target_id=9), TargetMismatch)
        self.failureResultOf(self.give(request=request, cluster_id=bytes(16)), ClusterMismatch)
        self.failureResultOf(self.give(request=request, target_incarnation=bytes(16)), IncarnationMismatch)
