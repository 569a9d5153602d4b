"""When a leader steps down, and who stays (design, "The core"): H-08, H-12, H-14, J-14, J-15."""

from __future__ import annotations

from unittest import TestCase

from tests.core_cluster import Cluster
from zlayer_consensus.raft import (
    HeartbeatRequest,
    LogId,
    Role,
    VoteRequest,
)

CONFIG = LogId(0, 1)
"""Where the bootstrapped log ends."""


def vote(
    term: int, last: LogId = CONFIG, *, campaign: int = 1, pre: bool = False, transfer: bool = False
) -> VoteRequest:
    return VoteRequest(term, last, campaign, pre, transfer)


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
        """S-21: after an election timeout, and not before."""
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
