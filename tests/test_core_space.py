"""Full disks (S-10): who gets entries, what is taken, and who leads."""

from __future__ import annotations

from unittest import TestCase

from tests.core_cluster import Cluster, Node
from tests.core_scripts import numbers
from zlayer_consensus.errors import OutOfSpace
from zlayer_consensus.raft import AppendReply, AppendRequest, Draft, Role


def cluster(size: int = 3) -> Cluster:
    """Return a cluster that node 1 leads."""
    c = Cluster(size)
    c.elect(1).propose(*numbers(3))
    c.advance(0.5)
    return c


def fill(c: Cluster, *node_ids: int) -> None:
    """Let disks be full."""
    for node_id in node_ids:
        c[node_id].input("space", True)


def fill_all(c: Cluster) -> None:
    """Let all disks be full, the leader's last."""
    fill(c, 2, 3)
    c.advance(0.5)
    fill(c, 1)
    c.advance(0.5)


def frees(node: Node, payload: bytes) -> None:
    """Propose what frees space."""
    node.input("propose", [Draft(payload, frees=True)], 0)


class FollowerTests(TestCase):
    """S-10: a full disk at a follower."""

    def test_a_full_follower_gets_nothing_while_others_suffice(self) -> None:
        c = cluster()
        fill(c, 3)
        c.advance(0.5)
        before = c[3].core.last
        c[1].propose(*numbers(5))
        c.advance(2.0)
        self.assertEqual((c[1].core.last.index, before), (c[1].core.commit, c[3].core.last))
        self.assertTrue(c[1].core.progress()[3].full)
        self.assertEqual(((), 1), (c[1].core.full_members, c.leader().id))

    def test_one_that_the_leader_does_not_know_of_refuses(self) -> None:
        c = cluster()
        before = c[3].core.last
        fill(c, 3)
        c[1].propose(b"x")
        c.settle()
        self.assertEqual((before, True), (c[3].core.last, c[1].core.progress()[3].full))
        self.assertEqual(c[1].core.last.index, c[1].core.commit)

    def test_it_is_not_asked_all_the_time(self) -> None:
        c = cluster()
        fill(c, 3)
        c.advance(0.5)
        asked = c.delivered[AppendReply]
        c[1].propose(b"x")
        c.advance(2.0)
        self.assertLess(c.delivered[AppendReply] - asked, 8)

    def test_it_takes_what_it_has_already(self) -> None:
        c = cluster()
        (again,) = (c[1].core.entries(2, 2, 1 << 20) or [])[:1]
        fill(c, 3)
        prev = c[1].disk.written.entries[0].id
        request = AppendRequest(c[1].core.term, 99, 0, prev, (again,), 0)
        reply = c.ask(3, 1, request)
        self.assertEqual((True, False, 2), (reply.success, reply.full, reply.match))

    def test_it_catches_up_when_there_is_space(self) -> None:
        c = cluster()
        fill(c, 3)
        c.advance(0.5)
        c[1].propose(*numbers(5))
        c.advance(1.0)
        c[3].input("space", False)
        c.advance(1.0)
        self.assertEqual((c[1].core.last, False), (c[3].core.last, c[1].core.progress()[3].full))

    def test_it_gets_a_snapshot(self) -> None:
        """What frees space may be among the entries that it does not get; it knows whether it has room."""
        c = cluster()
        fill(c, 3)
        c.advance(0.5)
        c[1].propose(*numbers(5))
        c.advance(0.5)
        c[1].snapshot()
        c.advance(0.5)
        self.assertEqual((c[1].core.commit, True), (c[3].core.commit, c[1].core.progress()[3].full))
        behind = c[3].core.last
        c[1].propose(b"x")
        c.advance(0.5)
        self.assertEqual(behind, c[3].core.last)

    def test_it_gets_entries_after_all_when_others_are_full_too(self) -> None:
        """It may have no room for the snapshot that is under way, and nobody has room without it."""
        c = cluster()
        c.hold_transfers = True
        fill(c, 3)
        c.advance(0.5)
        c[1].propose(*numbers(5))
        c.advance(0.5)
        c[1].snapshot()
        c.advance(0.5)
        self.assertEqual("snapshot", c[1].core.progress()[3].state)
        fill(c, 1, 2)
        c.advance(0.5)
        frees(c.leader(), b"delete")
        c.advance(0.5)
        self.assertEqual(b"delete", c[3].commands[-1])

    def test_a_full_learner_is_in_nobodys_way(self) -> None:
        c = cluster(4)
        fill(c, 4)
        c.advance(0.5)
        c[1].propose(b"x")
        c.advance(0.5)
        self.assertEqual((c[1].core.last.index, ()), (c[1].core.commit, c[1].core.full_members))

    def test_it_votes(self) -> None:
        c = cluster()
        fill(c, 2, 3)
        c[1].crash()
        c.advance(10)
        self.assertIn(Role.LEADER, (c[2].role, c[3].role))


class LeaderTests(TestCase):
    """S-10: a full disk at the leader, and at a majority."""

    def test_a_full_leader_lets_one_with_room_lead(self) -> None:
        c = cluster()
        fill(c, 2)
        c.advance(0.5)
        fill(c, 1)
        c.advance(0.5)
        self.assertEqual((3, Role.FOLLOWER), (c.leader().id, c[1].role))

    def test_it_takes_nothing_ordinary_until_then(self) -> None:
        c = cluster()
        c.hold_transfers = True
        c[2].hold_disk = c[3].hold_disk = True
        c[1].propose(b"under way")
        fill(c, 1)
        self.assertIsNone(c[1].propose(b"x"))
        c[2].hold_disk = c[3].hold_disk = False
        c.advance(0.5)
        self.assertNotEqual(1, c.leader().id)
        self.assertEqual(b"under way", c.leader().commands[-1])

    def test_where_nobody_has_room_it_stays(self) -> None:
        c = cluster()
        fill_all(c)
        c.advance(5.0)
        self.assertEqual((1, (1, 2, 3)), (c.leader().id, c[1].core.full_members))
        self.assertIsNone(c[1].propose(b"x"))
        error = c[1].refused["propose"]
        assert isinstance(error, OutOfSpace)
        self.assertEqual((1, 2, 3), error.nodes)

    def test_leadership_does_not_go_round_among_full_members(self) -> None:
        """Not even when they become full at the same moment, so that nobody knows of the others."""
        c = cluster()
        fill(c, 1, 2, 3)
        c.advance(1.0)
        term = c.leader().core.term
        c.advance(30.0)
        self.assertEqual(term, c.leader().core.term)

    def test_a_full_majority_of_others_closes_it_too(self) -> None:
        c = cluster()
        fill(c, 2, 3)
        c.advance(0.5)
        self.assertEqual((1, (2, 3)), (c.leader().id, c[1].core.full_members))
        self.assertIsNone(c[1].propose(b"x"))

    def test_it_reads(self) -> None:
        c = cluster()
        fill_all(c)
        c[1].input("read", "here")
        c[2].input("read", "there")
        c.advance(0.5)
        self.assertIn("here", c[1].reads)
        self.assertIn("there", c[2].reads)

    def test_what_frees_space_goes_to_the_reserves(self) -> None:
        c = cluster()
        fill_all(c)
        frees(c[1], b"delete")
        c.advance(0.5)
        self.assertEqual([b"delete"] * 3, [c[i].commands[-1] for i in (1, 2, 3)])

    def test_what_was_taken_before_goes_there_too(self) -> None:
        """Else it would stand in the way of what frees space for ever."""
        c = cluster()
        fill(c, 2, 3)
        c[1].propose(*numbers(5))
        frees(c[1], b"delete")
        c.advance(1.0)
        self.assertEqual([[*numbers(3), *numbers(5), b"delete"]] * 3, [c[i].commands for i in (1, 2, 3)])

    def test_a_batch_with_anything_else_is_refused_as_a_whole(self) -> None:
        c = cluster()
        fill_all(c)
        effects = c[1].input("propose", [Draft(b"delete", frees=True), Draft(b"put")], 0)
        self.assertIsNone(effects.proposed)

    def test_a_leader_can_be_elected_and_reads_serve(self) -> None:
        """Its no-op goes to the reserves."""
        c = cluster()
        fill_all(c)
        c[1].crash()
        c.advance(10)
        leader = c.leader()
        self.assertTrue(leader.core.ready)
        leader.input("read", "r")
        c.advance(0.5)
        self.assertIn("r", leader.reads)

    def test_all_goes_on_when_a_majority_has_room(self) -> None:
        c = cluster()
        fill_all(c)
        c[2].input("space", False)
        c.advance(0.5)
        c[3].input("space", False)
        c.advance(6.5)
        leader = c.leader()
        self.assertIn(leader.id, (2, 3), "node 1 has no room yet, and let another one lead")
        self.assertIsNotNone(leader.propose(b"x"))
        c.advance(0.5)
        self.assertEqual(leader.core.last.index, leader.core.commit)

    def test_a_sole_voter_stays(self) -> None:
        c = cluster(1)
        fill(c, 1)
        c.advance(1.0)
        self.assertEqual((1, (1,)), (c.leader().id, c[1].core.full_members))
        frees(c[1], b"delete")
        c.advance(0.5)
        self.assertEqual(b"delete", c[1].commands[-1])
        c[1].input("space", False)
        c[1].propose(b"x")
        c.advance(0.5)
        self.assertEqual(b"x", c[1].commands[-1])
