"""Learners, voters, removals, addresses and leadership: the operations of whole nodes."""

from __future__ import annotations

from typing import Any

from twisted.python.failure import Failure

from zlayer_consensus.errors import (
    IncarnationMismatch,
    InvalidMessage,
    MembershipRefused,
    NodeRemoved,
    NodeStopped,
    NotLeader,
    OutcomeUnknown,
    PeerUnreachable,
    TransferFailed,
)
from zlayer_consensus.network import ForwardedProposal, OperateRequest, ProposeRequest
from zlayer_consensus.node import ConsensusNode
from zlayer_consensus.raft import Membership
from zlayer_consensus.storage import MemLogStore

from .node_cluster import NodeTestCase


class MembershipTests(NodeTestCase):
    def blank(self, node_id: int = 4) -> ConsensusNode:
        """A running node that belongs to nothing."""
        return self.cluster.make(node_id)

    def fill(self, count: int = 50) -> None:
        self.cluster.result(self.lead.propose_many([["set", str(n), n] for n in range(count)]))

    def test_a_learner_gets_everything_and_has_no_vote(self) -> None:
        """The blank node accepts the cluster by first contact: the leader knows its incarnation."""
        self.fill()
        node = self.blank()
        membership = self.cluster.result(self.lead.add_learner(4, node.address, "client4:8000"))
        self.assertIsInstance(membership, Membership)
        self.assertEqual((membership.voters, membership.learners), ({1, 2, 3}, {4}))
        self.cluster.settle()
        self.assertEqual(node.machine.state, self.lead.machine.state)
        self.assertEqual(node.metrics().cluster_id, self.lead.metrics().cluster_id)
        self.assertEqual((node.metrics().role, node.learner_ids), ("learner", {4}))
        self.assertEqual(self.cluster.result(node.read_state(lambda m: len(m.state))), 50)

    def test_a_voter_is_a_learner_first(self) -> None:
        """H-44."""
        self.fill()
        node = self.blank()
        membership = self.cluster.result(self.lead.add_voter(4, node.address))
        self.assertEqual((membership.voters, membership.joint), ({1, 2, 3, 4}, False))
        self.cluster.settle()
        self.assertEqual(node.metrics().role, "follower")

    def test_operations_are_forwarded(self) -> None:
        node = self.blank()
        membership = self.cluster.result(self.follower.add_voter(4, node.address))
        self.assertEqual(membership.voters, {1, 2, 3, 4})
        refused = self.cluster.error(self.follower.remove_voter(9), MembershipRefused)
        self.assertEqual(refused.reason, "unknown_member")
        self.cluster.error(self.follower.remove_voter(4, forward=False), NotLeader)
        membership = self.cluster.result(self.follower.remove_voter(4, retain=True))
        self.assertEqual((membership.voters, membership.learners), ({1, 2, 3}, {4}))

    def test_operations_may_be_repeated(self) -> None:
        """After an unknown outcome one may try again."""
        node = self.blank()
        for _ in range(2):
            self.assertEqual(self.cluster.result(self.lead.add_learner(4, node.address)).learners, {4})
        for _ in range(2):
            self.assertEqual(self.cluster.result(self.lead.add_voter(4, node.address)).voters, {1, 2, 3, 4})

    def test_automatic_promotion(self) -> None:
        node = self.blank()
        self.cluster.result(self.lead.add_learner(4, node.address, auto_promote=True, blocking=False))
        self.cluster.result(self.lead.wait.voter_ids({1, 2, 3, 4}, timeout=10.0))

    def test_not_blocking(self) -> None:
        """It fires although the learner gets nothing yet."""
        node = self.blank()
        adding = self.lead.add_learner(4, node.address, blocking=False)
        self.cluster.until(lambda: node.node_id in self.lead.learner_ids)
        self.cluster.network.partition([node.address], [self.lead.address])
        self.assertEqual(self.cluster.result(adding).learners, {4})

    def test_catching_up_has_its_time(self) -> None:
        """J-47: the learner was added, and lacks everything; the error says so."""
        node = self.blank()
        adding = self.lead.add_voter(4, node.address, timeout=3.0)
        self.cluster.until(lambda: node.node_id in self.lead.learner_ids)
        self.cluster.network.partition([node.address], [self.lead.address])
        error = self.cluster.error(adding, MembershipRefused, seconds=4.0)
        self.assertEqual(error.reason, "not_caught_up")
        self.assertEqual((self.lead.voter_ids, self.lead.learner_ids), ({1, 2, 3}, {4}))

    def test_the_wrong_node_is_not_added(self) -> None:
        """J-12: whoever answers there must be the one that was meant, and free."""
        other = self.blank(4)
        self.cluster.result(other.bootstrap())
        self.assertEqual(
            self.cluster.error(self.lead.add_learner(5, other.address), MembershipRefused).reason, "invalid"
        )
        error = self.cluster.error(self.lead.add_learner(4, other.address), MembershipRefused)
        self.assertIn("cluster id", error.detail)
        self.cluster.error(self.lead.add_learner(5, "nowhere:1"), PeerUnreachable)
        self.assertEqual(self.lead.learner_ids, frozenset())

    def test_removed_voter_stops(self) -> None:
        """H-47, J-65: it stops with its own cause, and its id is used up (H-49)."""
        node = self.follower
        told = node.when_stopped()
        membership = self.cluster.result(self.lead.remove_voter(node.node_id))
        self.assertEqual(membership.voters, {1, 2, 3} - {node.node_id})
        self.assertIsInstance(self.cluster.result(told), NodeRemoved)
        del self.cluster.nodes[node.node_id]
        back = self.blank(node.node_id)
        error = self.cluster.error(self.lead.add_learner(node.node_id, back.address), MembershipRefused)
        self.assertEqual(error.reason, "tombstoned")
        self.cluster.result(self.lead.propose(["set", "a", 1]))

    def test_removed_leader_hands_over_and_stops(self) -> None:
        """H-42: it manages until the change is committed, and answers it."""
        told = self.lead.when_stopped()
        membership = self.cluster.result(self.lead.remove_voter(self.lead.node_id))
        self.assertEqual(membership.voters, {1, 2, 3} - {self.lead.node_id})
        self.assertIsInstance(self.cluster.result(told), NodeRemoved)
        del self.cluster.nodes[self.lead.node_id]
        new = self.cluster.leader()
        self.cluster.result(new.propose(["set", "a", 1]))

    def test_removed_while_cut_off(self) -> None:
        """H-47: it learns of its removal from the refusal of its RPCs."""
        node = self.follower
        others = [self.cluster.address(i) for i in self.ids if i != node.node_id]
        self.cluster.network.partition([node.address], others)
        told = node.when_stopped()
        self.cluster.result(self.lead.remove_voter(node.node_id))
        self.cluster.run(10.0)
        self.assertNoResult(told)
        self.cluster.network.heal()
        self.assertIsInstance(self.cluster.result(told), NodeRemoved)

    def test_removed_node_does_not_start_again(self) -> None:
        """H-47: also if its own snapshot has the removal, so that nobody would ever tell it."""
        node = self.follower
        told = node.when_stopped()
        removing = self.lead.remove_voter(node.node_id)
        self.cluster.until(lambda: node.node_id in node._runtime.core.committed_membership.tombstones)
        self.cluster.until(lambda: node.metrics().applied >= node.metrics().commit)
        self.cluster.result(node.trigger("snapshot"))
        self.cluster.result(removing)
        self.assertIsInstance(self.cluster.result(told), NodeRemoved)
        self.cluster.dead.append(self.cluster.nodes.pop(node.node_id))
        log, machine = self.cluster.logs[node.node_id].reopened(), node._runtime.store.reopened()  # type: ignore[attr-defined]
        with self.assertRaises(NodeRemoved):
            self.cluster.make(node.node_id, log=log, machine=machine)
        again = self.cluster.nodes.pop(node.node_id)
        self.cluster.dead.append(again)
        self.assertIsInstance(self.cluster.result(again.stopped), NodeRemoved)
        self.cluster.error(again.propose(["time"]), NodeStopped)

    def test_removed_learner_stops(self) -> None:
        node = self.blank()
        self.cluster.result(self.lead.add_learner(4, node.address))
        told = node.when_stopped()
        membership = self.cluster.result(self.lead.remove_learner(4))
        self.assertEqual(membership.tombstones, {4})
        self.assertIsInstance(self.cluster.result(told), NodeRemoved)

    def test_replace_voters_at_once(self) -> None:
        """Through one joint configuration."""
        for node_id in (4, 5):
            self.cluster.result(self.lead.add_learner(node_id, self.blank(node_id).address))
        membership = self.cluster.result(self.lead.change_membership({self.lead.node_id, 4, 5}))
        self.assertEqual(membership.voters, {self.lead.node_id, 4, 5})
        self.assertEqual(membership.tombstones, {1, 2, 3} - {self.lead.node_id})

    def test_nonsense_is_refused(self) -> None:
        """H-50, A-32."""
        for voters, reason in (([], "empty"), ([1, 2, 3], "invalid"), ([1, 2, 9], "unknown_member")):
            with self.subTest(voters):
                error = self.cluster.error(self.lead.change_membership(voters), MembershipRefused)
                self.assertEqual(error.reason, reason)

    def test_address_change(self) -> None:
        """A member that moved is reached where it is now."""
        node = self.follower
        self.cluster.network.detach(node.address)
        self.cluster.network.attach("elsewhere:1", node)
        membership = self.cluster.result(self.lead.change_address(node.node_id, "elsewhere:1", "there:2"))
        self.assertEqual(membership.members[node.node_id].peer_address, "elsewhere:1")
        self.cluster.result(self.lead.propose(["set", "a", 1]))
        self.cluster.settle()
        self.assertEqual(node.machine.state, {"a": 1})

    def test_unknown_outcome_of_a_change(self) -> None:
        """J-44: the leader is cut off after it appended the change."""
        others = [self.cluster.address(i) for i in self.ids if i != self.lead.node_id]
        self.cluster.network.partition([self.lead.address], others)
        changing = self.lead.remove_voter(self.follower.node_id, timeout=60.0)
        found = self.cluster.outcome(changing)
        assert isinstance(found, Failure)
        self.assertIsInstance(found.value, OutcomeUnknown)

    def test_wiped_node_counts_for_nothing(self) -> None:
        """H-29, J-11, S-19: the same id with another data directory is refused, by both sides, and changes nothing."""
        node = self.follower
        self.cluster.crash(node.node_id)
        self.cluster.network.heal()
        term = self.lead.metrics().term
        wiped = self.cluster.make(node.node_id, log=MemLogStore(node.node_id))
        self.cluster.run(10.0)
        self.assertEqual(self.lead.metrics().term, term)
        self.assertEqual((wiped.metrics().last.index, wiped.metrics().cluster_id), (0, b""))
        members = [self.cluster.member(node_id) for node_id in self.ids]
        error = self.cluster.error(wiped.bootstrap(members), IncarnationMismatch)
        self.assertIn("come back under a new id", str(error))
        error = self.cluster.error(wiped.join([self.lead.address]), IncarnationMismatch)
        self.assertIn("come back under a new id", str(error))
        self.cluster.result(self.lead.propose(["set", "a", 1]))

    def test_forwarded_nonsense_is_refused(self) -> None:
        """A-21: unknown operations, missing, extra and wrong arguments change nothing."""
        envelope = self.follower._runtime.peers.envelope(self.follower._runtime.leader_member())  # type: ignore[arg-type]
        good = b"\xa1gnode_id\x09"
        cases = (
            ("explode", good),
            ("remove_learner", b"\xa0"),
            ("remove_learner", b"\xa1gnode_idctwo"),
            ("remove_learner", b"\xa1gnode_id\xf5"),
            ("remove_learner", b"\xff"),
            ("add_voter", good),
        )
        for number, (name, payload) in enumerate(cases):
            with self.subTest(name=name, payload=payload):
                request = OperateRequest(self.lead.metrics().term, 2, number, name, payload, 1000)
                self.cluster.error(self.lead.handle(envelope, request), InvalidMessage)
        last = self.lead.metrics().last
        wrong = (
            ForwardedProposal(b"\xff", 1, 0, 0, 1000),
            ForwardedProposal(b"\x01", 2, 0, 0, 1000),
            ForwardedProposal(b"\x01", 1, 1, 0, 1000),
            ForwardedProposal(b"\x01", 1, 1 << 63, 1, 1000),
            ForwardedProposal(b"\x01", 1, 0, 0, 0),
        )
        reply: Any = self.cluster.result(
            self.lead.handle(envelope, ProposeRequest(self.lead.metrics().term, 1, 1, wrong))
        )
        self.assertEqual([each.error for each in reply.outcomes], ["conversion"] + ["invalid_message"] * 4)
        self.assertEqual(self.lead.metrics().last, last)


class TransferTests(NodeTestCase):
    def test_transfer_to_a_certain_node(self) -> None:
        target = self.follower
        self.assertEqual(self.cluster.result(self.lead.transfer_leadership(target.node_id)), target.node_id)
        self.cluster.until(lambda: target.is_leader)
        self.assertFalse(self.lead.is_leader)

    def test_transfer_to_whoever_lacks_least(self) -> None:
        taken = self.cluster.result(self.lead.transfer_leadership())
        self.cluster.until(lambda: self.cluster.nodes[taken].is_leader)

    def test_transfer_asked_for_at_a_follower(self) -> None:
        node = self.follower
        self.assertEqual(self.cluster.result(node.transfer_leadership(node.node_id)), node.node_id)
        self.cluster.until(lambda: node.is_leader)

    def test_impossible_targets(self) -> None:
        """H-92: to itself it is no change, to a stranger it fails."""
        me = self.lead.node_id
        self.assertEqual(self.cluster.result(self.lead.transfer_leadership(me)), me)
        self.assertEqual(self.cluster.error(self.lead.transfer_leadership(9), TransferFailed).target, 9)
        self.assertTrue(self.lead.is_leader)
