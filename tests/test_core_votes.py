"""Terms and votes (§5.1, §5.2, §5.4.1): H-01 to H-05, H-15, H-28, J-01, J-02, J-06, J-08, J-09."""

from __future__ import annotations

from unittest import TestCase

from tests.core_cluster import Cluster
from zlayer_consensus.errors import InvalidMessage, InvariantBroken
from zlayer_consensus.raft import (
    MAX_TERM,
    AppendRequest,
    HeartbeatReply,
    HeartbeatRequest,
    LogId,
    Role,
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
