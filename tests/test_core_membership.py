"""Membership changes (§6, dissertation §4): H-40 to H-53, J-60 to J-70."""

from __future__ import annotations

from unittest import TestCase

from tests.core_cluster import Cluster, Node, member
from tests.core_scripts import add_learners, led, voters
from zlayer_consensus.errors import MembershipRefused, NotLeader, OutcomeUnknown, TransferInProgress
from zlayer_consensus.raft import (
    AddLearner,
    AppendRequest,
    ChangeAddress,
    LogId,
    Member,
    MembershipChange,
    RemoveLearner,
    Role,
)


class RefusalTests(TestCase):
    def refused(self, node: Node, change: MembershipChange) -> str:
        """Return why a change is refused; it must not have touched the log."""
        last = node.core.last
        node.change("refused", change)
        error = node.refused.pop("refused")
        assert isinstance(error, MembershipRefused), error
        self.assertEqual(node.core.last, last)
        return error.reason

    def test_h40_no_change_before_an_entry_of_the_own_term_is_committed(self) -> None:
        """H-40, J-60: the rule that mends the single-server bug holds for every kind of change."""
        c = Cluster(3)
        c.advance(1.6)
        c.elect(1)
        c.advance(0.5)
        c.sleep(1.6)
        c[2].input("campaign")
        while c[2].role is not Role.LEADER:
            c.sync()
            c.deliver(c.wire[0])
        for change in (voters(1, 2), AddLearner(member(4)), ChangeAddress(1, "new:1", "")):
            self.assertEqual(self.refused(c[2], change), "not_ready")
        c.settle()
        c[2].change("now", AddLearner(member(4)))
        c.settle()
        self.assertIn("now", c[2].done)

    def test_j60_one_change_at_a_time(self) -> None:
        """J-60, H-51: an isolated leader takes one change, and no second one before that is committed."""
        c, leader = led(3, 4)
        c.isolate(1)
        leader.change("first", AddLearner(member(5)))
        for change in (AddLearner(member(6)), voters(1, 2), RemoveLearner(4), ChangeAddress(1, "new:1", "")):
            self.assertEqual(self.refused(leader, change), "in_progress")

    def test_h51_no_change_of_a_joint_configuration(self) -> None:
        """H-51: while the configuration is joint, committed or not, every change is refused."""
        _, leader = led(3, 4)
        leader.change("first", voters(1, 2, 4))
        self.assertTrue(leader.core.membership.joint)
        self.assertEqual(self.refused(leader, voters(1, 2, 3)), "in_progress")
        with self.assertRaises(MembershipRefused):
            leader.core.membership.after(AddLearner(member(5)))

    def test_h49_an_id_is_never_used_again(self) -> None:
        """H-49, J-11, J-68: a removed learner's or voter's id is refused for ever, also by later leaders."""
        c, leader = led(4, 5)
        leader.change("learner", RemoveLearner(5))
        c.advance(0.5)
        leader.change("voter", voters(1, 2, 3))
        c.advance(0.5)
        self.assertEqual(leader.core.membership.tombstones, {4, 5})
        c.elect(2)
        c.advance(0.5)
        for gone in (4, 5):
            again = Member(gone, bytes(16), "elsewhere:1")
            self.assertEqual(self.refused(c[2], AddLearner(again)), "tombstoned")
            self.assertEqual(self.refused(c[2], voters(1, 2, 3, gone)), "unknown_member")

    def test_h50_configurations_that_make_no_sense(self) -> None:
        """H-50: no voters, the same voters, strangers, an id or an address that is taken, impossible members."""
        _, leader = led(3, 4)
        for change, reason in (
            (voters(), "empty"),
            (voters(1, 2, 3), "invalid"),
            (voters(1, 2, 9), "unknown_member"),
            (AddLearner(member(3)), "duplicate"),
            (AddLearner(member(4)), "duplicate"),
            (AddLearner(Member(5, bytes(16), "n2:7000")), "duplicate"),
            (AddLearner(Member(0, bytes(16), "n5:7000")), "invalid"),
            (AddLearner(Member(5, b"short", "n5:7000")), "invalid"),
            (AddLearner(Member(5, bytes(16), "")), "invalid"),
            (RemoveLearner(9), "unknown_member"),
            (RemoveLearner(2), "invalid"),
            (ChangeAddress(9, "a:1", ""), "unknown_member"),
            (ChangeAddress(2, "n1:7000", ""), "duplicate"),
            (ChangeAddress(2, "", ""), "invalid"),
        ):
            self.assertEqual(self.refused(leader, change), reason, change)

    def test_h44_a_learner_that_lacks_too_much_is_not_promoted(self) -> None:
        """H-44: neither one that never answered, nor one that is behind by more than the threshold."""
        c, leader = led(3, replication_lag_threshold=10)
        leader.change("dead", AddLearner(member(4)))
        c.advance(0.5)
        self.assertEqual(self.refused(leader, voters(1, 2, 3, 4)), "not_caught_up")
        add_learners(c, 5)
        c.cut({1, 2, 3})
        leader.propose(*(b"%d" % n for n in range(11)))
        c.settle()
        self.assertEqual(self.refused(leader, voters(1, 2, 3, 5)), "not_caught_up")
        c.heal()
        c.advance(6.0)
        leader.change("promote", voters(1, 2, 3, 5))
        c.settle()
        self.assertIn("promote", leader.done)

    def test_h44_an_empty_node_does_not_stop_a_small_cluster(self) -> None:
        """H-44: one voter, one node that never came: still writable, and the promotion is refused."""
        c, leader = led(1)
        leader.change("add", AddLearner(member(2)))
        c.advance(0.5)
        self.assertEqual(self.refused(leader, voters(1, 2)), "not_caught_up")
        leader.propose(b"a")
        c.settle()
        self.assertEqual(leader.commands, [b"a"])

    def test_h45_a_change_that_would_lose_the_quorum(self) -> None:
        """H-45: with one of three dead, removing a live one is refused; `force` overrides; the dead one may go."""
        c, leader = led(3)
        c[3].crash()
        c.advance(3.5)
        self.assertEqual(self.refused(leader, voters(1, 3)), "quorum_at_risk")
        leader.change("right", voters(1, 2))
        c.advance(0.5)
        self.assertIn("right", leader.done)
        c, leader = led(3)
        c[3].crash()
        c.advance(3.5)
        leader.change("forced", voters(1, 3, force=True))
        self.assertTrue(leader.core.membership.joint)

    def test_a_follower_refuses_and_names_the_leader(self) -> None:
        c, _ = led(3)
        c[2].change("there", AddLearner(member(4)))
        error = c[2].refused["there"]
        assert isinstance(error, NotLeader)
        self.assertEqual(error.leader_id, 1)

    def test_no_change_while_leadership_is_handed_over(self) -> None:
        """H-95: a change would be one more entry that the target lacks."""
        c, leader = led(3)
        c.isolate(1)
        leader.input("transfer", "t", 2)
        leader.change("change", AddLearner(member(4)))
        self.assertIsInstance(leader.refused["change"], TransferInProgress)


class ChangeTests(TestCase):
    """§6: through joint consensus, finished by the leader itself."""

    def test_a_voter_is_added(self) -> None:
        c, leader = led(3, 4)
        leader.change("vote", voters(1, 2, 3, 4))
        self.assertEqual((leader.core.membership.voters, leader.core.membership.outgoing), ({1, 2, 3, 4}, {1, 2, 3}))
        c.advance(0.5)
        final = leader.done["vote"]
        self.assertEqual(final, LogId(1, leader.core.last.index))
        for node in c.nodes.values():
            self.assertEqual(node.core.committed_membership.voters, {1, 2, 3, 4})
            self.assertFalse(node.core.membership.joint)
        self.assertEqual(c[4].role, Role.FOLLOWER)

    def test_all_voters_are_replaced(self) -> None:
        """§6: {1,2,3} becomes {4,5,6}; the old ones learn of it, the new ones elect a leader at once."""
        c, leader = led(3, 4, 5, 6)
        leader.propose(b"before")
        leader.change("swap", voters(4, 5, 6))
        c.advance(0.5)
        self.assertIn("swap", leader.done)
        self.assertIn(c.leader().id, (4, 5, 6))
        self.assertEqual([c[n].removed for n in (1, 2, 3)], [True] * 3)
        c.leader().propose(b"after")
        c.advance(0.5)
        self.assertEqual(c.leader().commands, [b"before", b"after"])
        self.assertEqual([c[n].core.next_wake for n in (1, 2, 3)], [None] * 3)

    def test_retained_voters_become_learners(self) -> None:
        c, leader = led(3)
        leader.change("demote", voters(1, 2, retain=True))
        c.advance(0.5)
        self.assertEqual((leader.core.membership.learners, leader.core.membership.tombstones), ({3}, frozenset()))
        self.assertEqual((c[3].role, c[3].removed), (Role.LEARNER, False))
        leader.propose(b"a")
        c.advance(0.5)
        self.assertEqual(c[3].commands, [b"a"])

    def test_a_learner_is_promoted_by_its_flag(self) -> None:
        """design, "Members": once it has caught up, without anybody asking; at once neither before nor twice."""
        c, leader = led(3, replication_lag_threshold=0)
        leader.propose(*(b"%d" % n for n in range(20)))
        leader.change("add", AddLearner(member(4), auto_promote=True))
        c.advance(1.0)
        self.assertEqual(leader.core.membership.voters, {1, 2, 3})
        c.add_blank(4)
        c.advance(1.0)
        self.assertEqual(leader.core.committed_membership.voters, {1, 2, 3, 4})
        self.assertEqual(leader.core.membership.auto_promote, frozenset())
        last = leader.core.last
        c.advance(5.0)
        self.assertEqual(leader.core.last, last)

    def test_an_address_is_changed(self) -> None:
        c, leader = led(3)
        leader.change("move", ChangeAddress(2, "new:1", "new:2"))
        c.advance(0.5)
        for node in c.nodes.values():
            self.assertEqual(node.core.membership.members[2], Member(2, b"\x02" * 16, "new:1", "new:2"))

    def test_j66_a_learner_is_never_counted(self) -> None:
        """J-66: five learners that have an entry do not commit it, and cannot elect anybody."""
        c, leader = led(3, 4, 5, 6, 7, 8)
        c.cut({1, 4, 5, 6, 7, 8}, {2}, {3})
        commit = leader.core.commit
        leader.propose(b"a")
        leader.input("read", "r")
        c.advance(2.0)
        self.assertEqual((leader.core.commit, leader.reads), (commit, {}))
        c.advance(3.0)
        self.assertNotEqual(leader.role, Role.LEADER)

    def test_h46_two_become_one(self) -> None:
        """H-46: the one that is removed has to acknowledge it; if it is dead, the other cannot go on alone."""
        c, leader = led(2)
        leader.change("alone", voters(1))
        c.advance(0.5)
        self.assertIn("alone", leader.done)
        leader.propose(b"a")
        c.settle()
        self.assertEqual(leader.commands, [b"a"])
        c, leader = led(2)
        c[2].crash()
        leader.change("alone", voters(1))
        c.advance(10.0)
        self.assertIsInstance(leader.refused["alone"], OutcomeUnknown)
        self.assertNotEqual(leader.role, Role.LEADER)

    def test_j44_a_change_of_a_deposed_leader_has_an_unknown_outcome(self) -> None:
        """J-44, J-45: it was appended, and may yet be committed by the next leader."""
        c, leader = led(3)
        c.isolate(1)
        leader.change("change", AddLearner(member(4)))
        c.advance(5.0)
        self.assertIsInstance(leader.refused["change"], OutcomeUnknown)
        self.assertNotIn("change", leader.done)

    def test_h53_a_configuration_counts_from_its_append(self) -> None:
        """H-53: at the leader and at a follower, before it is committed."""
        c, leader = led(3, 4)
        c.hold_transfers = True
        leader.change("vote", voters(1, 2, 3, 4))
        c.deliver(*c.sent(AppendRequest, target=2))
        for node in (leader, c[2]):
            self.assertEqual(node.core.membership.outgoing, {1, 2, 3})
            self.assertEqual(node.core.committed_membership.voters, {1, 2, 3})
        self.assertEqual(c[3].core.membership.voters, {1, 2, 3})


class RemovalTests(TestCase):
    def test_h42_a_leader_removes_itself(self) -> None:
        """H-42: it manages until C_new is committed, does not count itself in it, tells the others, and steps down."""
        c, leader = led(3)
        leader.change("go", voters(2, 3))
        leader.propose(b"meanwhile")
        c.settle()
        self.assertIn("go", leader.done)
        self.assertTrue(leader.removed)
        self.assertNotEqual(leader.role, Role.LEADER)
        self.assertIn(c.leader().id, (2, 3), "one of the others takes over at once")
        for node_id in (2, 3):
            self.assertEqual(c[node_id].core.committed_membership.voters, {2, 3})
        self.assertIsNone(leader.core.next_wake)
        c.leader().propose(b"after")
        c.advance(0.5)
        self.assertEqual(c.leader().commands, [b"meanwhile", b"after"])

    def test_h42_the_leader_does_not_count_itself_in_the_new_configuration(self) -> None:
        """H-42: of {2,3} both have to have it; the leader and one of them are no majority."""
        c, leader = led(3)
        c.cut({1, 2}, {3})
        leader.change("go", voters(2, 3))
        c.settle()
        self.assertTrue(leader.core.membership.joint, "the joint configuration needs both of the new voters")
        self.assertNotIn("go", leader.done)
        c.heal()
        c.advance(6.0)
        self.assertIn("go", leader.done)

    def test_h42_a_leader_makes_itself_a_learner(self) -> None:
        """H-42: with `retain` it stays, follows, and is not tombstoned."""
        c, leader = led(3)
        leader.change("demote", voters(2, 3, retain=True))
        c.advance(1.0)
        self.assertEqual((leader.role, leader.removed), (Role.LEARNER, False))
        c.leader().propose(b"a")
        c.advance(0.5)
        self.assertEqual(leader.commands, [b"a"])

    def test_h47_a_removed_node_hears_of_it(self) -> None:
        """H-47: its last append and a heartbeat carry the commit of its removal; then it is left alone."""
        c, leader = led(3)
        leader.change("remove", voters(1, 2))
        c.advance(1.0)
        self.assertTrue(c[3].removed)
        self.assertEqual(set(leader.core.progress()), {2})
        c.advance(10.0)
        self.assertEqual((leader.role, leader.core.term), (Role.LEADER, 1))

    def test_h47_a_removed_node_that_never_learns_disturbs_nobody(self) -> None:
        """H-47, H-10, J-65: removed while partitioned, it asks for votes when it is back; the term stays."""
        for prevote in (True, False):
            c, leader = led(3, enable_prevote=prevote)
            c.isolate(3)
            leader.change("remove", voters(1, 2))
            c.advance(5.0)
            self.assertIn("remove", leader.done)
            c.heal()
            c.advance(30.0)
            self.assertEqual((leader.role, leader.core.term, c[2].core.term), (Role.LEADER, 1, 1), prevote)
            self.assertEqual(set(leader.core.progress()), {2})

    def test_j65_a_removed_node_restarts_with_its_old_log(self) -> None:
        """J-65: what it has in its log gives it no part in the cluster, which is not disturbed."""
        c, leader = led(3)
        leader.change("remove", voters(1, 2))
        c.advance(1.0)
        c[3].crash()
        c[3].start()
        c.advance(30.0)
        self.assertIn(3, c[3].core.membership.tombstones)
        self.assertEqual((leader.role, leader.core.term, c[2].core.term), (Role.LEADER, 1, 1))

    def test_h48_a_removed_leader_in_a_minority(self) -> None:
        """H-48: it steps down for want of a quorum, and its reads fail."""
        c, leader = led(3)
        c.isolate(1)
        c.sleep(1.6)
        c[2].input("campaign")
        c.settle()
        c[2].change("remove", voters(2, 3))
        c.settle()
        self.assertIn("remove", c[2].done)
        leader.input("read", "r")
        leader.propose(b"lost")
        c.advance(4.0)
        self.assertNotEqual(leader.role, Role.LEADER)
        self.assertIsInstance(leader.refused["r"], NotLeader)
        c.heal()
        c.advance(20.0)
        self.assertEqual((c[2].role, c[2].core.term), (Role.LEADER, 2))
