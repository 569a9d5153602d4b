"""Elections and pre-votes (§5.2, dissertation §9.6): H-06 to H-13, H-16, J-03, J-04, J-07, J-10."""

from __future__ import annotations

import random
from unittest import TestCase

from tests.core_cluster import Cluster
from zlayer_consensus.raft import (
    AppendReply,
    AppendRequest,
    HeartbeatRequest,
    LogId,
    RaftCore,
    Role,
    Start,
    VoteReply,
    VoteRequest,
)

CONFIG = LogId(0, 1)
"""Where the bootstrapped log ends."""


def vote(
    term: int, last: LogId = CONFIG, *, campaign: int = 1, pre: bool = False, transfer: bool = False
) -> VoteRequest:
    return VoteRequest(term, last, campaign, pre, transfer)


class ElectionTests(TestCase):
    """§5.2."""

    def test_a_follower_without_a_leader_campaigns_and_wins(self) -> None:
        c = Cluster(3)
        c.advance(4.0)
        self.assertEqual((c[1].role, c[2].role, c[3].role), (Role.LEADER, Role.FOLLOWER, Role.FOLLOWER))
        self.assertEqual({node.core.leader_id for node in c.nodes.values()}, {1})

    def test_j10_the_first_leader_has_been_elected(self) -> None:
        """J-10: also a single node gets its first term by an election, at once."""
        c = Cluster(1)
        c.advance(0.0)
        self.assertEqual((c[1].role, c[1].core.term), (Role.LEADER, 1))
        self.assertEqual(c[1].machine[0].term, 0)

    def test_a_minority_elects_nobody(self) -> None:
        c = Cluster(5)
        c.cut({1, 2}, {3}, {4}, {5})
        c.advance(60.0)
        self.assertEqual(c.leaders, {})
        self.assertEqual({node.core.term for node in c.nodes.values()}, {0})

    def test_h16_equal_timeouts_end_in_an_election(self) -> None:
        """H-16: four nodes on one clock tick, each with its own randomness; split votes end."""
        for seed in range(20):
            c = Cluster(4, enable_prevote=bool(seed % 2), election_timeout_max_ms=1600)
            for node in c.nodes.values():
                node.random = random.Random(seed * 10 + node.id).random
                node.crash()
                node.start()
            c.advance(30.0)
            self.assertEqual(len({node.core.leader_id for node in c.nodes.values()}), 1, seed)

    def test_timeouts_are_drawn_anew_within_the_bounds(self) -> None:
        """Each election draws its own timeout, between the two settings."""
        c = Cluster(3)
        c.isolate(1)
        waits = set()
        for _ in range(10):
            before = c.now
            c[1].core.campaign(c.now)
            wake = c[1].core.next_wake
            assert wake is not None
            waits.add(round(wake - before, 6))
            self.assertTrue(1.5 <= wake - before <= 3.0)
        self.assertGreater(len(waits), 5)

    def test_lost_vote_requests_are_sent_again_during_the_campaign(self) -> None:
        """A campaign outlasts the loss of its first requests, and never has more than one under way per voter."""
        c = Cluster(3)
        c.cut()
        c[1].input("campaign")
        c.settle()
        c.heal()
        for peer in (2, 3):
            c.time_out(VoteRequest, 1, peer)
        c.advance(0.3)
        self.assertEqual(c[1].role, Role.LEADER)

    def test_j03_a_pre_vote_reply_is_no_vote(self) -> None:
        """J-03: reply kind, term and campaign have to be those of the campaign that runs."""
        c = Cluster(3)
        c[1].input("campaign")
        pre = c.sent(VoteRequest)[0].message
        c[1].input("response", 2, pre, VoteReply(0, pre.campaign, False, True))
        self.assertEqual(c[1].role, Role.PRE_CANDIDATE, "a vote was counted as a pre-vote")
        c[1].input("response", 2, pre, VoteReply(0, pre.campaign, True, True))
        self.assertEqual(c[1].role, Role.CANDIDATE)
        c[1].sync()
        c[1].input("response", 3, pre, VoteReply(0, pre.campaign, True, True))
        self.assertEqual(c[1].role, Role.CANDIDATE, "a pre-vote was counted as a vote")
        real = c.sent(VoteRequest)[-1].message
        self.assertFalse(real.pre_vote)
        for reply in (VoteReply(1, pre.campaign, False, True), VoteReply(1, real.campaign, True, True)):
            c[1].input("response", 3, real, reply)
            self.assertEqual(c[1].role, Role.CANDIDATE)

    def test_j03_a_vote_granted_in_an_older_term_is_none(self) -> None:
        """J-03: whoever grants a vote is in the candidate's term by then."""
        c = Cluster(3, enable_prevote=False)
        c[1].input("campaign")
        c[1].sync()
        request = c.sent(VoteRequest)[0].message
        c[1].input("response", 2, request, VoteReply(0, request.campaign, False, True))
        self.assertEqual(c[1].role, Role.CANDIDATE)

    def test_j07_late_pre_votes_change_nothing(self) -> None:
        """J-07: pre-votes that arrive after the election was won are ignored."""
        c = Cluster(5)
        c[1].input("campaign")
        late = c.sent(VoteRequest, target=5)[0]
        c.wire.remove(late)
        c.settle()
        self.assertEqual(c[1].role, Role.LEADER)
        for granted in (True, False):
            c[1].input("response", 5, late.message, VoteReply(1, late.message.campaign, True, granted))
        self.assertEqual((c[1].role, c[1].core.term), (Role.LEADER, 1))

    def test_j03_pre_votes_of_an_earlier_attempt_are_ignored(self) -> None:
        """J-03: each attempt counts its own answers; the last one's grants do not add up with this one's."""
        c = Cluster(5)
        c[1].input("campaign")
        first = c.sent(VoteRequest, target=2)[0].message
        c[1].input("campaign")
        for peer in (2, 3):
            c[1].input("response", peer, first, VoteReply(0, first.campaign, True, True))
        self.assertEqual((c[1].role, c[1].core.term), (Role.PRE_CANDIDATE, 0))

    def test_replies_to_an_earlier_campaign_are_ignored(self) -> None:
        """J-03: a refusal or a grant that belongs to the last campaign does not touch this one."""
        c = Cluster(3, enable_prevote=False)
        c[1].input("campaign")
        c[1].sync()
        first = c.sent(VoteRequest, target=2)[0].message
        c[1].input("campaign")
        c[1].sync()
        c[1].input("response", 2, first, VoteReply(1, first.campaign, False, True))
        self.assertEqual((c[1].role, c[1].core.term), (Role.CANDIDATE, 2))


class PreVoteTests(TestCase):
    def test_h06_a_pre_vote_touches_nothing(self) -> None:
        """H-06, J-03: no term, no vote, no timer, no write, at the voter as at the candidate."""
        c = Cluster(3)
        before = c[2].core.next_wake
        reply = c.ask(2, 1, vote(9, pre=True))
        self.assertEqual(reply, VoteReply(0, 1, True, True))
        self.assertEqual((c[2].core.term, c[2].core.voted_for, c[2].core.next_wake), (0, 0, before))
        self.assertEqual(c[2].disk.pending, [])
        c[1].input("campaign")
        self.assertEqual((c[1].core.term, c[1].core.voted_for, c[1].disk.pending), (0, 0, []))

    def test_h06_a_refused_pre_vote_carries_the_voters_term(self) -> None:
        """H-06: the pre-candidate learns a newer term from the refusal."""
        c = Cluster(3, logs={1: [1], 2: [1], 3: [1]}, terms={1: 1, 2: 5, 3: 1})
        self.assertEqual(c.ask(2, 1, vote(2, LogId(1, 2), pre=True)), VoteReply(5, 1, True, False))

    def test_h07_a_newer_log_in_an_older_term_gets_elected(self) -> None:
        """H-07, J-04: A has the newer term, B the newer log; B learns the term from the refusal, and wins."""
        c = Cluster(3, logs={1: [1], 2: [1, 3], 3: []}, terms={1: 5, 2: 3})
        c[3].crash()
        c.advance(12.0)
        self.assertEqual((c[2].role, c[2].core.leader_id, c[1].core.leader_id), (Role.LEADER, 2, 2))
        self.assertGreater(c[2].core.term, 5)

    def test_h07_a_node_of_a_newer_term_deposes_the_leader_it_hears(self) -> None:
        """H-07: what a stale leader sends is answered with the newer term, so that nobody is stuck."""
        c = Cluster(3)
        c.elect(1)
        c.ask(3, 2, vote(6, LogId(9, 9), transfer=True))
        self.assertEqual(c[3].core.term, 6)
        c.advance(10.0)
        self.assertGreater(c.leader().core.term, 6)
        self.assertEqual({node.core.leader_id for node in c.nodes.values()}, {c.leader().id})

    def test_h09_sticky_follower_ignores_votes(self) -> None:
        """H-09: a follower that hears its leader ignores votes and pre-votes of any term, unless the leader asked."""
        c = Cluster(3)
        c.elect(1)
        for pre in (True, False):
            reply = c.ask(2, 3, vote(9, LogId(8, 9), pre=pre))
            self.assertEqual((reply.granted, reply.term, c[2].core.term), (False, 1, 1))
        c.sleep(1.6)
        self.assertTrue(c.ask(2, 3, vote(9, LogId(8, 9))).granted)

    def test_h09_a_vote_that_is_free_is_not_given_against_the_leader(self) -> None:
        """H-09: a follower that has not voted in its leader's term does not help another candidate of that term."""
        c = Cluster(3)
        c.ask(1, 2, HeartbeatRequest(4, 0, 1))
        self.assertFalse(c.ask(1, 3, vote(4)).granted)
        self.assertEqual(c[1].core.voted_for, 0)

    def test_h09_a_leader_ignores_votes(self) -> None:
        """H-09: a leader stays until its quorum check says otherwise, or the one asks whom it handed over to."""
        c = Cluster(3)
        c.elect(1)
        self.assertFalse(c.ask(1, 3, vote(9, LogId(8, 9))).granted)
        self.assertEqual((c[1].role, c[1].core.term), (Role.LEADER, 1))
        self.assertTrue(c.ask(1, 3, vote(9, LogId(8, 9), transfer=True)).granted)
        self.assertEqual(c[1].role, Role.FOLLOWER)

    def test_h09_the_transfer_flag_passes_a_sticky_follower(self) -> None:
        """H-09: a vote request that the leader asked for is answered by the log alone."""
        c = Cluster(3)
        c.elect(1)
        self.assertTrue(c.ask(2, 3, vote(2, LogId(8, 9), transfer=True)).granted)

    def test_h10_a_partitioned_node_returns_without_disturbance(self) -> None:
        """H-10: however long a node was alone, the term stays as it was when it comes back."""
        c = Cluster(3)
        c.elect(1).propose(b"a")
        c.settle()
        c.isolate(3)
        c.advance(120.0)
        self.assertEqual(c[3].core.term, 1)
        c.heal()
        c.advance(10.0)
        self.assertEqual([node.core.term for node in c.nodes.values()], [1, 1, 1])
        self.assertEqual(c[1].role, Role.LEADER)

    def test_h10_a_rising_term_without_pre_vote_is_ignored_by_sticky_nodes(self) -> None:
        """H-10: a candidate that cannot receive does not move the others' term, though it sends a new one each time."""
        c = Cluster(3, enable_prevote=False)
        c.elect(1)
        c.cut_link(1, 3, both=False)
        c.cut_link(2, 3, both=False)
        c.advance(30.0)
        self.assertGreater(c[3].core.term, 5)
        self.assertEqual((c[1].role, c[1].core.term, c[2].core.term), (Role.LEADER, 1, 1))

    def test_h11_pre_vote_traffic_is_no_sign_of_life(self) -> None:
        """H-11: asking or being asked does not make a follower believe in its leader for longer."""
        c = Cluster(3)
        c.elect(1)
        c.sleep(1.0)
        c.ask(2, 3, vote(2, pre=True))
        wake = c[2].core.next_wake
        c.sleep(0.6)
        c.ask(2, 3, vote(2, pre=True))
        self.assertEqual(c[2].core.next_wake, wake)
        self.assertTrue(c.ask(2, 3, vote(2, c[2].core.last, pre=True)).granted)

    def test_a_refused_candidate_puts_no_election_off(self) -> None:
        """§5.2: a fast clock and an old log, again and again, do not keep the others from campaigning."""
        c = Cluster(3, enable_prevote=False)
        c.elect(1).propose(b"a")
        c.settle()
        c.isolate(1)
        c.sleep(1.6)
        wake = c[2].core.next_wake
        for term in range(5, 10):
            self.assertFalse(c.ask(2, 3, vote(term)).granted)
            self.assertEqual((c[2].core.term, c[2].core.next_wake), (term, wake))

    def test_h13_a_learner_never_campaigns_but_votes(self) -> None:
        """H-13: a node that is no voter by its own log answers a candidate whose log says otherwise."""
        c = Cluster(3)
        c.add_blank(4)
        self.assertIsNone(c[4].core.next_wake)
        c[4].input("campaign")
        self.assertEqual((c[4].role, c.wire), (Role.LEARNER, []))
        self.assertTrue(c.ask(4, 1, vote(3)).granted)
        c[4].crash()
        c[4].start()
        self.assertEqual((c[4].core.term, c[4].core.voted_for, c[4].role), (3, 1, Role.LEARNER))


class BlankTests(TestCase):
    def test_a_node_without_a_configuration_waits(self) -> None:
        """A blank node is never woken, never campaigns, and follows the leader that finds it."""
        core = RaftCore(node_id=9, config=Cluster(1).config, start=Start(), random=lambda: 0.5, now=0.0)
        self.assertIsNone(core.next_wake)
        self.assertEqual(core.role, Role.LEARNER)
        effects = core.request("t", 1, AppendRequest(3, 0, 0, CONFIG, (), 0), 1.0)
        effects = core.persisted(effects.persist[0].seq, effects.persist[0].last, 1.0)
        reply = effects.answers[0].message
        assert isinstance(reply, AppendReply)
        self.assertEqual((reply.success, reply.conflict), (False, LogId(0, 0)))

    def test_bootstrap_refuses_a_log_that_is_not_empty(self) -> None:
        """Nobody's log is overwritten by an initial configuration."""
        c = Cluster(3)
        with self.assertRaises(ValueError):
            c[1].core.bootstrap(c.membership, c.now)
