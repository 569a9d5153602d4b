"""Terms, votes and elections (§5.1, §5.2, §5.4.1): H-01 to H-16, J-01 to J-15."""

from __future__ import annotations

import random
from unittest import TestCase

from tests.core_cluster import Cluster
from zlayer_consensus.errors import InvalidMessage, InvariantBroken
from zlayer_consensus.raft import (
    MAX_TERM,
    AppendReply,
    AppendRequest,
    HeartbeatReply,
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


class TermTests(TestCase):
    """§5.1."""

    def test_a_request_with_a_newer_term_is_followed_and_one_with_an_older_term_refused(self) -> None:
        c = Cluster(3)
        self.assertEqual(c.ask(1, 2, HeartbeatRequest(5, 0, 1)).term, 5)
        self.assertEqual((c[1].core.term, c[1].core.leader_id), (5, 2))
        old = c.ask(1, 3, HeartbeatRequest(4, 0, 1))
        self.assertEqual((old.term, c[1].core.leader_id), (5, 2))
        refused = c.ask(1, 3, AppendRequest(4, 0, 0, CONFIG, (), 0))
        self.assertEqual((refused.term, refused.success), (5, False))

    def test_a_reply_with_a_newer_term_deposes_a_leader(self) -> None:
        c = Cluster(3)
        c.elect(1).input("heartbeat")
        request = c.sent(HeartbeatRequest, target=2)[0].message
        c[1].input("response", 2, request, HeartbeatReply(7, request.round, 0, 0))
        self.assertEqual((c[1].role, c[1].core.term, c[1].core.leader_id), (Role.FOLLOWER, 7, None))

    def test_h15_terms_out_of_range_are_refused_and_change_nothing(self) -> None:
        """H-15: a garbage term is not adopted, neither from a request nor from a reply; a huge legal one is."""
        c = Cluster(3)
        for term in (-1, MAX_TERM + 1, 1 << 63):
            for message in (HeartbeatRequest(term, 0, 1), vote(term), AppendRequest(term, 0, 0, CONFIG, (), 0)):
                with self.assertRaises(InvalidMessage):
                    c[1].core.request("token", 2, message, c.now)
        c.elect(1).input("heartbeat")
        request = c.sent(HeartbeatRequest, target=2)[0].message
        c[1].input("response", 2, request, HeartbeatReply(1 << 63, request.round, 0, 0))
        self.assertEqual((c[1].core.term, c[1].role), (1, Role.LEADER))
        self.assertEqual(c.ask(3, 2, HeartbeatRequest(MAX_TERM, 0, 1)).term, MAX_TERM)

    def test_h28_a_message_from_itself_is_refused(self) -> None:
        """H-28, J-65: a node that talks to itself by a wrong address changes nothing."""
        c = Cluster(3)
        for message in (HeartbeatRequest(3, 0, 1), vote(3), AppendRequest(3, 0, 0, CONFIG, (), 0)):
            with self.assertRaises(InvalidMessage):
                c[1].core.request("token", 1, message, c.now)
        with self.assertRaises(InvalidMessage):
            c[1].core.snapshot_offered(1, 3, LogId(1, 9), c.now)
        self.assertEqual(c[1].core.term, 0)

    def test_j88_nothing_lowers_the_term(self) -> None:
        """J-88: a restart finds the term and the vote, and the newest term anybody was told of."""
        c = Cluster(3)
        c.ask(1, 2, vote(9))
        c[1].crash()
        c[1].start()
        self.assertEqual((c[1].core.term, c[1].core.voted_for), (9, 2))


class VoteTests(TestCase):
    def test_h01_a_vote_leaves_only_when_it_is_durable(self) -> None:
        """H-01: with a slow disk the answer waits; a crash before it is durable leaves no vote and no answer."""
        c = Cluster(3)
        c[1].hold_disk = True
        self.assertIsNone(c.ask(1, 2, vote(1), sync=False))
        c[1].crash()
        c[1].start()
        self.assertEqual(c[1].core.voted_for, 0)
        self.assertTrue(c.ask(1, 3, vote(1)).granted)
        c[1].crash()
        c[1].start()
        self.assertFalse(c.ask(1, 2, vote(1)).granted)

    def test_h01_a_candidate_asks_only_when_its_own_vote_is_durable(self) -> None:
        """H-01: the request for votes of a term rides on the write of that term."""
        c = Cluster(3, enable_prevote=False)
        c[1].hold_disk = True
        c[1].input("campaign")
        self.assertEqual((c[1].role, c[1].core.term), (Role.CANDIDATE, 1))
        self.assertEqual(c.sent(VoteRequest), [])
        c[1].sync()
        self.assertEqual({e.target for e in c.sent(VoteRequest)}, {2, 3})

    def test_h01_votes_that_are_not_durable_elect_nobody(self) -> None:
        """H-01, J-21: a candidate's own vote counts only when its disk has returned."""
        c = Cluster(1, enable_prevote=False)
        c[1].hold_disk = True
        c[1].input("tick")
        self.assertEqual(c[1].role, Role.CANDIDATE)
        c[1].sync()
        self.assertEqual(c[1].role, Role.LEADER)
        self.assertFalse(c[1].core.ready)
        c[1].sync()
        self.assertTrue(c[1].core.ready)

    def test_h02_one_vote_a_term_and_the_same_one_again(self) -> None:
        """H-02: the same candidate is granted again, also after a restart; another is refused."""
        c = Cluster(3)
        self.assertTrue(c.ask(1, 2, vote(1)).granted)
        self.assertTrue(c.ask(1, 2, vote(1)).granted)
        self.assertFalse(c.ask(1, 3, vote(1)).granted)
        c[1].crash()
        c[1].start()
        self.assertTrue(c.ask(1, 2, vote(1)).granted)
        self.assertFalse(c.ask(1, 3, vote(1)).granted)

    def test_h02_a_pre_candidate_repeats_its_vote(self) -> None:
        """H-02: a duplicate that arrives while the voter has begun to campaign itself is granted as well."""
        c = Cluster(3)
        c.ask(1, 2, vote(1))
        c[1].input("campaign")
        self.assertEqual(c[1].role, Role.PRE_CANDIDATE)
        self.assertTrue(c.ask(1, 2, vote(1)).granted)
        self.assertEqual(c[1].role, Role.FOLLOWER)

    def test_h02_a_candidate_does_not_vote_for_another(self) -> None:
        """H-02: two candidates of one term both keep their own vote."""
        c = Cluster(3, enable_prevote=False)
        c[1].input("campaign")
        c[1].sync()
        self.assertFalse(c.ask(1, 2, vote(1)).granted)
        self.assertEqual((c[1].role, c[1].core.voted_for), (Role.CANDIDATE, 1))

    def test_h03_the_last_term_decides_before_the_length(self) -> None:
        """H-03, §5.4.1: every pair of logs, compared by last term, then by last index."""
        mine = LogId(3, 4)
        c = Cluster(3, logs={1: [1, 2, 3]})
        for term, index, granted in (
            (2, 9, False),
            (3, 3, False),
            (3, 4, True),
            (3, 5, True),
            (4, 2, True),
            (0, 1, False),
        ):
            for pre in (True, False):
                self.assertEqual(c[1].core.last, mine)
                asked = c[1].core.term + 1
                self.assertIs(
                    c.ask(1, 2, vote(asked, LogId(term, index), pre=pre)).granted, granted, (term, index, pre)
                )

    def test_j06_only_a_granted_vote_counts(self) -> None:
        """J-06: a voter that merely is in the candidate's term has not voted for it."""
        c = Cluster(5, enable_prevote=False)
        c[1].input("campaign")
        c[1].sync()
        request = c.sent(VoteRequest)[0].message
        for peer in (2, 3):
            c[1].input("response", peer, request, VoteReply(1, request.campaign, False, False))
        self.assertEqual(c[1].role, Role.CANDIDATE)
        c[1].input("response", 4, request, VoteReply(1, request.campaign, False, True))
        self.assertEqual(c[1].role, Role.CANDIDATE)
        c[1].input("response", 4, request, VoteReply(1, request.campaign, False, True))
        self.assertEqual(c[1].role, Role.CANDIDATE, "one voter counted twice")
        c[1].input("response", 5, request, VoteReply(1, request.campaign, False, True))
        self.assertEqual(c[1].role, Role.LEADER)

    def test_j08_an_append_of_the_same_term_keeps_the_vote(self) -> None:
        """J-08: the vote is forgotten with a newer term only."""
        c = Cluster(3)
        c.ask(1, 2, vote(1))
        c.ask(1, 2, AppendRequest(1, 0, 0, CONFIG, (), 0))
        c.ask(1, 2, HeartbeatRequest(1, 0, 1))
        self.assertEqual(c[1].core.voted_for, 2)
        c.sleep(10)
        self.assertFalse(c.ask(1, 3, vote(1)).granted)

    def test_j09_a_leader_is_followed_whoever_was_voted_for(self) -> None:
        """J-09: an append of this term from another than the one voted for is accepted."""
        c = Cluster(3)
        c.ask(1, 2, vote(1))
        self.assertTrue(c.ask(1, 3, AppendRequest(1, 0, 0, CONFIG, (), 0)).success)
        self.assertEqual((c[1].core.leader_id, c[1].core.voted_for), (3, 2))

    def test_h04_a_candidate_that_hears_the_leader_of_its_term_follows_it(self) -> None:
        """H-04: it keeps its vote, and what it was about to ask is not sent any more."""
        c = Cluster(3, enable_prevote=False)
        c[1].hold_disk = True
        c[1].input("campaign")
        c.ask(1, 2, AppendRequest(1, 0, 0, CONFIG, (), 0), sync=False)
        self.assertEqual((c[1].role, c[1].core.voted_for, c[1].core.leader_id), (Role.FOLLOWER, 1, 2))
        c[1].sync()
        self.assertEqual(c.sent(VoteRequest), [])
        self.assertEqual(c[1].role, Role.FOLLOWER)

    def test_h05_two_leaders_in_one_term_stop_the_node(self) -> None:
        """H-05: neither a leader nor a follower steps over a second leader of its term in silence."""
        for message in (HeartbeatRequest(1, 0, 1), AppendRequest(1, 0, 0, CONFIG, (), 0)):
            c = Cluster(3)
            c.elect(1)
            with self.assertRaisesRegex(InvariantBroken, "term 1"):
                c.ask(1, 2, message)
            with self.assertRaisesRegex(InvariantBroken, "nodes 1 and 2 both lead"):
                c.ask(3, 2, message)
            self.assertIsNone(c[3].core.next_wake)

    def test_j02_purging_the_log_keeps_term_and_vote(self) -> None:
        """J-02: after a snapshot, a purge and a restart there is still no second vote in the term."""
        c = Cluster(3, max_in_snapshot_log_to_keep=0)
        c.elect(1).propose(b"a")
        c.advance(0.5)
        c[3].snapshot()
        self.assertEqual(c[3].core.purged, c[3].core.last)
        c[3].crash()
        c[3].start()
        self.assertEqual(c[3].core.voted_for, 1)
        self.assertFalse(c.ask(3, 2, vote(1, LogId(1, 9))).granted)

    def test_j01_all_nodes_restart_at_once(self) -> None:
        """J-01: over many restarts of everybody no term has two leaders (checked after every step); votes stay."""
        c = Cluster(3)
        for _ in range(20):
            c.advance(2.0)
            votes = {node.id: (node.core.term, node.core.voted_for) for node in c.nodes.values()}
            for node in c.nodes.values():
                node.sync()
                node.crash()
            for node in c.nodes.values():
                node.start()
            self.assertEqual(votes, {node.id: (node.core.term, node.core.voted_for) for node in c.nodes.values()})
        c.advance(10.0)
        self.assertEqual(c.leader().core.term, max(c.leaders))
        self.assertGreater(len(c.leaders), 5)


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


class QuorumCheckTests(TestCase):
    def test_h08_a_leader_without_a_majority_steps_down(self) -> None:
        """H-08: within an election timeout (and a heartbeat), and not before."""
        c = Cluster(5)
        c.elect(1)
        c.cut({1, 2}, {3, 4, 5})
        c.advance(2.5)
        self.assertEqual(c[1].role, Role.LEADER)
        c.advance(1.0)
        self.assertNotEqual(c[1].role, Role.LEADER)
        c.advance(3.0)
        self.assertIn(c.leader().id, (3, 4, 5))

    def test_h08_a_leader_with_a_majority_stays(self) -> None:
        """H-08: two of five lost is no reason to step down."""
        c = Cluster(5)
        c.elect(1)
        c.cut({1, 2, 3}, {4}, {5})
        c.advance(60.0)
        self.assertEqual((c[1].role, c[1].core.term), (Role.LEADER, 1))

    def test_h08_five_nodes_on_a_line(self) -> None:
        """H-08: 1–2–3–4–5 in a row and the leader at an end; the middle one, which has a majority, gets to lead."""
        c = Cluster(5)
        c.elect(1).propose(b"a")
        c.settle()
        c.cut()
        for a, b in ((1, 2), (2, 3), (3, 4), (4, 5)):
            c.cut_links -= {(a, b), (b, a)}
        c.advance(60.0)
        self.assertIn(c.leader().id, (2, 3, 4))
        self.assertTrue(c.leader().core.ready)
        term = c.leader().core.term
        c.advance(60.0)
        self.assertEqual(c.leader().core.term, term, "the line does not come to rest")
        self.assertLess(term, 12)

    def test_h08_the_leader_sees_one_of_three(self) -> None:
        """H-08: A–B–C with the leader at A: B hears it, so C cannot depose it; A has its majority and stays."""
        c = Cluster(3)
        c.elect(1)
        c.cut_link(1, 3)
        c.advance(60.0)
        self.assertEqual((c[1].role, c[1].core.term, c[2].core.leader_id), (Role.LEADER, 1, 1))
        c[1].propose(b"a")
        c.advance(0.1)
        self.assertEqual(c[2].commands, [b"a"])

    def test_h12_a_leader_that_cannot_receive(self) -> None:
        """H-12: its heartbeats keep the others quiet, but it steps down for want of replies, and another leads."""
        c = Cluster(3)
        c.elect(1)
        c.cut_link(2, 1, both=False)
        c.cut_link(3, 1, both=False)
        c.advance(15.0)
        self.assertIn(c.leader().id, (2, 3))
        term = c.leader().core.term
        c.advance(60.0)
        self.assertEqual(c.leader().core.term, term)

    def test_h12_a_leader_that_cannot_send(self) -> None:
        """H-12: the others elect one of them, and it stays."""
        c = Cluster(3)
        c.elect(1)
        c.cut_link(1, 2, both=False)
        c.cut_link(1, 3, both=False)
        c.advance(15.0)
        self.assertIn(c.leader().id, (2, 3))
        term = c.leader().core.term
        c.advance(60.0)
        self.assertEqual((c.leader().core.term, c[1].role is Role.LEADER), (term, False))

    def test_h12_a_follower_that_cannot_receive(self) -> None:
        """H-12: it asks and asks; nobody minds."""
        c = Cluster(3)
        c.elect(1)
        c.cut_link(1, 3, both=False)
        c.cut_link(2, 3, both=False)
        c.advance(60.0)
        self.assertEqual((c[1].role, c[1].core.term, c[3].core.term), (Role.LEADER, 1, 1))

    def test_j14_the_quorum_clock_starts_with_the_office(self) -> None:
        """J-14: a leader elected long after the last contact with anybody is not at once deposed by its own check."""
        c = Cluster(3)
        c.elect(1)
        c.sleep(100.0)
        c[2].input("campaign")
        c.settle()
        self.assertEqual(c[2].role, Role.LEADER)
        c.isolate(2)
        c.advance(1.0)
        self.assertEqual(c[2].role, Role.LEADER)

    def test_j15_a_healthy_cluster_keeps_its_leader(self) -> None:
        """J-15: ten minutes without a change of role, term or leader."""
        c = Cluster(5)
        c.elect(1)
        c.advance(1.0)
        for node in c.nodes.values():
            node.changes.clear()
        c.advance(600.0)
        self.assertEqual([node.changes for node in c.nodes.values()], [[]] * 5)

    def test_a_sole_voter_never_steps_down(self) -> None:
        """design, "The core": neither for want of contact nor because its disk stalls."""
        c = Cluster(1)
        c.advance(1.0)
        c[1].hold_disk = True
        c[1].propose(b"a")
        c.advance(60.0)
        self.assertEqual((c[1].role, c[1].core.term), (Role.LEADER, 1))
        c[1].hold_disk = False
        c.settle()
        self.assertEqual(c[1].commands, [b"a"])


class PauseTests(TestCase):
    def test_h14_a_paused_follower_does_not_campaign_at_once(self) -> None:
        """H-14: after a pause it first reads what waits for it; the term stays."""
        c = Cluster(3)
        c.elect(1)
        c.sleep(10.0)
        c[2].input("tick")
        self.assertEqual(c[2].role, Role.FOLLOWER)
        c.advance(0.0)
        self.assertEqual(c[2].core.term, 1)

    def test_h14_a_paused_leader_steps_down_before_it_does_anything_else(self) -> None:
        """H-14: a leader that slept longer than an election timeout has no quorum to speak for."""
        c = Cluster(3)
        c.elect(1)
        c.advance(0.1)
        c.isolate(1)
        c.sleep(10.0)
        c[1].input("tick")
        self.assertEqual(c[1].role, Role.FOLLOWER)
        self.assertEqual(c.sent(HeartbeatRequest, source=1), [])

    def test_h14_a_late_tick_fires_once(self) -> None:
        """H-14: fifty missed heartbeats are made up for by one."""
        c = Cluster(3)
        c.elect(1)
        c.advance(0.1)
        c.sleep(2.8)
        c[1].input("tick")
        self.assertEqual(len(c.sent(HeartbeatRequest, source=1)), 2)
        wake = c[1].core.next_wake
        assert wake is not None
        self.assertAlmostEqual(wake, c.now + 0.2)

    def test_h14_time_never_runs_backwards(self) -> None:
        """H-14: a `now` before the last one counts as the last one."""
        c = Cluster(3)
        c.elect(1)
        wake = c[1].core.next_wake
        c[1].core.tick(c.now - 1000.0)
        self.assertEqual((c[1].core.next_wake, c[1].role), (wake, Role.LEADER))


class StalledDiskTests(TestCase):
    """design, "The core": a leader whose disk stalls beyond an election timeout."""

    def test_it_steps_down_while_a_majority_without_it_makes_progress(self) -> None:
        c = Cluster(3)
        c.elect(1)
        c[1].hold_disk = True
        c[1].propose(b"a")
        c.advance(2.5)
        self.assertEqual((c[1].role, c[2].commands), (Role.LEADER, [b"a"]), "the others commit without its disk")
        c.advance(1.0)
        self.assertNotEqual(c[1].role, Role.LEADER)
        c.advance(5.0)
        self.assertIn(c.leader().id, (2, 3))

    def test_it_does_not_campaign_until_a_write_completes(self) -> None:
        c = Cluster(3)
        c.elect(1)
        c[1].hold_disk = True
        c[1].propose(b"a")
        c.advance(3.5)
        c[1].input("campaign")
        self.assertEqual(c[1].role, Role.FOLLOWER)
        c.isolate(1)
        c.advance(20.0)
        self.assertEqual(c[1].role, Role.FOLLOWER)
        c[1].hold_disk = False
        c.advance(5.0)
        self.assertEqual(c[1].role, Role.PRE_CANDIDATE)

    def test_it_stays_when_the_others_lack_the_entries_too(self) -> None:
        """Its disk and another one stall: nobody could do better, so it stays."""
        c = Cluster(3)
        c.elect(1)
        c[1].hold_disk = c[2].hold_disk = True
        c[1].propose(b"a")
        c.advance(20.0)
        self.assertEqual((c[1].role, c[3].commands), (Role.LEADER, []))
        c[1].hold_disk = False
        c.advance(1.0)
        self.assertEqual(c[3].commands, [b"a"])

    def test_one_of_two_stays(self) -> None:
        """In a cluster of two there is no majority without it."""
        c = Cluster(2)
        c.elect(1)
        c[1].hold_disk = True
        c[1].propose(b"a")
        c.advance(20.0)
        self.assertEqual(c[1].role, Role.LEADER)

    def test_a_slow_disk_is_not_a_stalled_one(self) -> None:
        """Writes that take less than an election timeout change nothing, however many there are."""
        c = Cluster(3)
        c.elect(1)
        c[1].hold_disk = True
        for number in range(20):
            c[1].propose(b"%d" % number)
            c.advance(1.0)
            c[1].sync(1 if number % 2 else None)
        c.advance(0.0)
        self.assertEqual((c[1].role, c[1].core.term), (Role.LEADER, 1))

    def test_a_follower_with_a_stalled_disk_does_not_campaign(self) -> None:
        """It could not make its own vote durable."""
        c = Cluster(3)
        c.elect(1)
        c[2].hold_disk = True
        c[1].propose(b"a")
        c.advance(3.1)
        c.isolate(2)
        c.advance(30.0)
        self.assertEqual((c[2].role, c[2].core.term), (Role.FOLLOWER, 1))


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
