"""Leadership transfer (dissertation §3.10): H-90 to H-95, J-14, J-46."""

from __future__ import annotations

from unittest import TestCase

from tests.core_cluster import Cluster
from tests.core_scripts import led, numbers, voters
from zlayer_consensus.errors import NotLeader, TransferFailed, TransferInProgress
from zlayer_consensus.raft import (
    AppendRequest,
    HeartbeatRequest,
    RemoveLearner,
    Role,
    TimeoutNowReply,
    TimeoutNowRequest,
    VoteRequest,
)


class TransferTests(TestCase):
    def test_leadership_is_handed_over_at_once(self) -> None:
        """Without a pre-vote, without waiting for a timeout, and past the stickiness of the others."""
        c, leader = led(3)
        leader.input("transfer", "t", 3)
        c.settle()
        self.assertEqual((c[3].role, c[3].core.term, leader.role), (Role.LEADER, 2, Role.FOLLOWER))
        self.assertEqual(leader.done, {"t": 3})
        self.assertTrue(c[3].core.ready)

    def test_the_most_caught_up_voter_is_chosen(self) -> None:
        c, leader = led(3, 4)
        c.cut({1, 3, 4}, {2})
        leader.propose(*numbers(5))
        c.settle()
        leader.input("transfer", "t", None)
        self.assertEqual(leader.core.transferring, 3)
        c.settle()
        self.assertEqual(leader.done["t"], 3)

    def test_j14_the_new_leader_stays(self) -> None:
        """J-14: its quorum clock starts when it is elected."""
        c, leader = led(3)
        leader.input("transfer", "t", 2)
        c.settle()
        c.advance(30.0)
        self.assertEqual((c[2].role, c[2].core.term), (Role.LEADER, 2))

    def test_h90_a_target_that_dies_after_timeout_now(self) -> None:
        """H-90, J-46: after an election timeout the leader takes proposals again, and who asked is told."""
        c, leader = led(3)
        leader.input("transfer", "t", 3)
        c.deliver(*c.sent(TimeoutNowRequest))
        c[3].crash()
        c.wire.clear()
        self.assertIsNone(leader.propose(b"refused"))
        c.advance(c.config.election_timeout_max + 0.3)
        self.assertIsInstance(leader.refused["t"], TransferFailed)
        self.assertIsNone(leader.core.transferring)
        leader.propose(b"a")
        c.settle()
        self.assertEqual(leader.commands, [b"a"])

    def test_h90_a_target_that_never_catches_up(self) -> None:
        """H-90: the time-out counts from the request, also if TimeoutNow was never sent."""
        c, leader = led(3)
        c.isolate(3)
        leader.propose(b"a")
        leader.input("transfer", "t", 3)
        c.advance(4.0)
        self.assertEqual(c.delivered[TimeoutNowRequest], 0)
        self.assertIsInstance(leader.refused["t"], TransferFailed)

    def test_j46_a_later_office_knows_nothing_of_an_earlier_transfer(self) -> None:
        """J-46: deposed in the middle of a transfer and elected again, the leader takes proposals."""
        c, leader = led(3)
        c.isolate(1)
        leader.input("transfer", "t", 3)
        c.ask(1, 2, HeartbeatRequest(2, 0, 1))
        c.heal()
        c.wire.clear()
        c.sleep(3.0)
        for peer in (2, 3):
            c.time_out(HeartbeatRequest, 1, peer)
        c.elect(1)
        self.assertIsNone(leader.core.transferring)
        leader.propose(b"a")
        c.advance(0.5)
        self.assertEqual(leader.commands, [b"a"])
        self.assertIn("t", leader.refused)

    def test_h91_timeout_now_waits_until_the_target_has_everything(self) -> None:
        """H-91: it is sent when the target's match equals the last entry, which is durable here."""
        c, leader = led(3)
        c.cut_link(1, 3)
        leader.propose(b"a")
        c.settle()
        leader.input("transfer", "t", 3)
        c.settle()
        self.assertEqual(c.delivered[TimeoutNowRequest], 0)
        c.heal()
        c.advance(1.0) if leader.core.progress()[3].match == leader.core.last.index else c.time_out(AppendRequest, 1, 3)
        c.advance(1.0)
        self.assertEqual((c[3].role, leader.done), (Role.LEADER, {"t": 3}))
        self.assertEqual(c[3].commands, [b"a"])

    def test_h91_timeout_now_waits_for_the_own_disk(self) -> None:
        """H-91: also the leader's own log has to be durable."""
        c, leader = led(3)
        leader.hold_disk = True
        leader.propose(b"a")
        c.settle()
        leader.input("transfer", "t", 3)
        self.assertEqual(c.sent(TimeoutNowRequest), [])
        leader.sync()
        self.assertEqual(len(c.sent(TimeoutNowRequest)), 1)

    def test_h92_targets_that_cannot_lead(self) -> None:
        """H-92: a learner, a stranger and a dead node are refused; the leader itself is there already."""
        c, leader = led(3, 4)
        for target in (4, 9):
            leader.input("transfer", target, target)
            self.assertIsInstance(leader.refused[target], TransferFailed)
        leader.input("transfer", "self", 1)
        self.assertEqual(leader.done["self"], 1)
        c[3].crash()
        c.advance(3.5)
        leader.input("transfer", "dead", 3)
        self.assertIsInstance(leader.refused["dead"], TransferFailed)
        self.assertIsNone(leader.core.transferring)
        leader.propose(b"a")
        c.settle()
        self.assertEqual(leader.commands, [b"a"])

    def test_h92_a_follower_refuses(self) -> None:
        c, _ = led(3)
        c[2].input("transfer", "t", 3)
        self.assertIsInstance(c[2].refused["t"], NotLeader)

    def test_h92_a_single_node_has_nobody_to_hand_over_to(self) -> None:
        c = Cluster(1)
        c.advance(0.0)
        c[1].input("transfer", "t", None)
        self.assertIsInstance(c[1].refused["t"], TransferFailed)

    def test_h93_a_second_transfer(self) -> None:
        """H-93: to the same target it shares the outcome, to another it is refused."""
        c, leader = led(3)
        leader.input("transfer", "first", 3)
        leader.input("transfer", "again", 3)
        leader.input("transfer", "other", 2)
        error = leader.refused["other"]
        assert isinstance(error, TransferInProgress)
        self.assertEqual(error.target, 3)
        c.settle()
        self.assertEqual(leader.done, {"first": 3, "again": 3})
        self.assertEqual(set(leader.refused), {"other"})

    def test_h93_a_second_transfer_shares_the_failure(self) -> None:
        c, leader = led(3)
        c.isolate(3)
        leader.propose(b"a")
        for token in ("first", "again"):
            leader.input("transfer", token, 3)
        c.advance(4.0)
        self.assertEqual(set(leader.refused), {"first", "again"})

    def test_h94_a_stale_timeout_now(self) -> None:
        """H-94: of an older term, or not from the leader, it is answered and ignored."""
        c, leader = led(3)
        leader.input("transfer", "t", 3)
        late = c.sent(TimeoutNowRequest)[0].message
        c.wire.clear()
        c.sleep(2.0)
        for node_id in (2, 3):
            c.ask(node_id, 2 if node_id == 3 else 3, HeartbeatRequest(5, 0, 1))
        self.assertEqual(c.ask(3, 1, late), TimeoutNowReply(5))
        self.assertEqual((c[3].role, c[3].core.term), (Role.FOLLOWER, 5))
        self.assertIsInstance(c.ask(3, 1, TimeoutNowRequest(5)), TimeoutNowReply)
        self.assertIsInstance(c.ask(3, 1, TimeoutNowRequest(6)), TimeoutNowReply)
        self.assertEqual((c[3].role, c[3].core.term), (Role.FOLLOWER, 5))

    def test_h94_a_timeout_now_from_an_earlier_office_of_the_same_leader(self) -> None:
        """H-94: node 1 leads again, two terms later, when the old request arrives."""
        c, leader = led(3)
        for giver, taker in ((1, 2), (2, 1)):
            c[giver].input("transfer", "t", taker)
            c.settle()
        self.assertEqual((c[3].core.leader_id, c[3].core.term), (1, 3))
        c.ask(3, 1, TimeoutNowRequest(1))
        self.assertEqual((c[3].role, c[3].core.term, leader.role), (Role.FOLLOWER, 3, Role.LEADER))

    def test_h94_a_learner_ignores_timeout_now(self) -> None:
        """H-94, H-13: whoever has no vote does not campaign."""
        c, _ = led(3, 4)
        c.ask(4, 1, TimeoutNowRequest(1))
        self.assertEqual(c.sent(VoteRequest), [])

    def test_h95_proposals_are_refused_without_being_appended(self) -> None:
        """H-95: definite, and with the target named."""
        c, leader = led(3)
        c.isolate(3)
        leader.propose(b"a")
        leader.input("transfer", "t", 3)
        last = leader.core.last
        self.assertIsNone(leader.propose(b"b"))
        error = leader.refused["propose"]
        assert isinstance(error, TransferInProgress)
        self.assertEqual((error.target, leader.core.last), (3, last))

    def test_a_lost_timeout_now_is_sent_again(self) -> None:
        c, leader = led(3)
        leader.input("transfer", "t", 3)
        c.drop(*c.sent(TimeoutNowRequest))
        c.advance(1.5)
        self.assertEqual((c[3].role, leader.done), (Role.LEADER, {"t": 3}))

    def test_another_node_wins_the_election(self) -> None:
        """Whoever asked is told that it is not the one that was wanted."""
        c, leader = led(3)
        c.isolate(1)
        leader.input("transfer", "t", 3)
        c.heal()
        c.wire.clear()
        c.sleep(1.6)
        c[2].input("campaign")
        c.settle()
        c.advance(1.0)
        self.assertIsInstance(leader.refused["t"], TransferFailed)

    def test_the_target_is_removed_meanwhile(self) -> None:
        """A transfer to a voter that is about to lose its vote ends, and the leader goes on."""
        c, leader = led(3)
        c.cut({1, 2}, {3})
        leader.change("remove", voters(1, 2, retain=True))
        leader.input("transfer", "t", 3)
        c.settle()
        c.heal()
        c.advance(6.0)
        self.assertIn("remove", leader.done)
        self.assertTrue({"t"} & (set(leader.refused) | set(leader.done)))
        now = c.leader()
        now.change("drop", RemoveLearner(3))
        c.advance(1.0)
        self.assertIn("drop", now.done)
