"""Linearizable reads (§8, dissertation §6.4): H-70 to H-76, J-50 to J-54."""

from __future__ import annotations

from unittest import TestCase

from tests.core_cluster import Cluster, Node
from tests.core_scripts import led
from zlayer_consensus.errors import NodeStopped, NotLeader
from zlayer_consensus.raft import (
    AppendReply,
    AppendRequest,
    HeartbeatReply,
    HeartbeatRequest,
    ReadIndexReply,
    ReadIndexRequest,
    Role,
)


class LeaderReadTests(TestCase):
    def test_h70_a_fresh_leader_holds_reads_back(self) -> None:
        """H-70, J-50, J-52: until an entry of its own term is committed it does not know what is committed."""
        c = Cluster(3)
        c.elect(1).propose(b"a")
        c.settle()
        c.sleep(1.6)
        c[2].input("campaign")
        while c[2].role is not Role.LEADER:
            c.sync()
            c.deliver(c.wire[0])
        self.assertLess(c[2].core.commit, c[1].core.commit)
        c[2].input("read", "r")
        for _ in range(3):
            c[2].input("heartbeat")
            for envelope in [e for e in c.wire if isinstance(e.message, HeartbeatRequest | HeartbeatReply)]:
                c.deliver(envelope)
            c.sync()
        self.assertFalse(c[2].core.ready)
        self.assertEqual(c[2].reads, {})
        c.settle()
        self.assertEqual(c[2].reads, {"r": c[2].core.commit})
        self.assertGreater(c[2].core.commit, c[1].core.term_at(1) or 0)
        self.assertIn(b"a", c[2].commands)

    def test_h70_a_ready_leader_reads_at_its_commit_index(self) -> None:
        """§8: what was acknowledged before the read began is in what it reads."""
        c, leader = led(3)
        leader.propose(b"a")
        c.settle()
        leader.input("read", "r")
        self.assertEqual(leader.reads, {}, "a quorum has to confirm it")
        c.settle()
        self.assertEqual(leader.reads, {"r": leader.core.commit})

    def test_h71_a_deposed_leader_never_answers(self) -> None:
        """H-71: cut off, with a newer leader writing elsewhere, its reads fail when it steps down."""
        c, leader = led(3)
        c.isolate(1)
        c.sleep(1.6)
        c[2].input("campaign")
        c.settle()
        c[2].propose(b"new")
        c.settle()
        self.assertEqual((leader.role, c[2].commands), (Role.LEADER, [b"new"]))
        for token in range(5):
            leader.input("read", token)
            c.advance(0.3)
        self.assertEqual(leader.reads, {})
        c.advance(5.0)
        self.assertEqual(leader.reads, {})
        self.assertTrue(all(isinstance(leader.refused[token], NotLeader) for token in range(5)))

    def test_h71_a_deposed_leader_that_comes_back_does_not_answer_either(self) -> None:
        """H-71: the replies of those who follow another leader now depose it, they do not confirm it."""
        c, leader = led(3)
        c.isolate(1)
        leader.input("read", "r")
        c.sleep(1.6)
        c[2].input("campaign")
        c.settle()
        c.heal()
        c.advance(6.0)
        self.assertEqual(leader.reads, {})
        self.assertIn("r", leader.refused)

    def test_h72_only_heartbeats_sent_after_the_read_count(self) -> None:
        """H-72, J-51: a reply to a heartbeat from before the read releases nothing, however late it comes."""
        c, leader = led(3)
        leader.input("heartbeat")
        old = c.sent(HeartbeatRequest)
        c.deliver(*old)
        early = c.sent(HeartbeatReply)
        leader.input("read", "r")
        for reply in early:
            c.deliver(reply)
        self.assertEqual(leader.reads, {})
        c.settle()
        self.assertIn("r", leader.reads)

    def test_h72_a_paused_leader_confirms_its_quorum_anew(self) -> None:
        """H-72, H-14, J-51: replies that waited while the process was stopped do not release a read made since."""
        c, leader = led(3)
        leader.input("heartbeat")
        c.deliver(*c.sent(HeartbeatRequest))
        waiting = c.sent(HeartbeatReply, target=1)
        for reply in waiting:
            c.wire.remove(reply)
        c.cut({2, 3}, {1})
        c.sleep(2.5)
        c[2].input("campaign")
        c.settle()
        c[2].propose(b"new")
        c.settle()
        c.cut_links = {(1, 2), (1, 3)}
        leader.input("read", "r")
        for reply in waiting:
            c.wire.insert(0, reply)
        c.settle()
        self.assertEqual(leader.reads, {})
        c.advance(5.0)
        self.assertIn("r", leader.refused)

    def test_h72_each_read_depends_on_a_round_of_its_own_time(self) -> None:
        """H-72: the confirmation of an older read does not release a younger one whose round is still out."""
        c, leader = led(3)
        leader.input("read", "first")
        first = c.sent(HeartbeatRequest, target=2)
        leader.input("read", "second")
        c.deliver(*first)
        c.deliver(*c.sent(HeartbeatReply))
        self.assertEqual(list(leader.reads), ["first"])
        c.settle()
        self.assertEqual(list(leader.reads), ["first", "second"])

    def test_reads_are_batched(self) -> None:
        """design, "The core": a thousand concurrent reads take a few heartbeats, not a thousand."""
        c, leader = led(3)
        before = c.delivered[HeartbeatRequest]
        for token in range(1000):
            leader.input("read", token)
        c.settle()
        self.assertEqual(len(leader.reads), 1000)
        self.assertLess(c.delivered[HeartbeatRequest] - before, 10)

    def test_a_read_does_not_wait_for_the_slowest(self) -> None:
        """One of three that hangs, with both its heartbeat slots taken, holds no read up."""
        c, leader = led(3)
        for token in range(5):
            leader.input("read", token)
            c.deliver(*c.sent(HeartbeatRequest, target=2))
            c.deliver(*c.sent(HeartbeatReply))
        self.assertEqual(len(leader.reads), 5)
        self.assertLessEqual(len(c.sent(HeartbeatRequest, target=3)), 2)

    def test_h73_the_read_index_may_be_ahead_of_what_is_applied(self) -> None:
        """H-73: the read index is the commit index, whatever the state machine has got to."""
        c, leader = led(3)
        leader.hold_apply = True
        leader.propose(b"a")
        c.settle()
        leader.input("read", "r")
        c.settle()
        self.assertGreater(leader.reads["r"], len(leader.machine))

    def test_h76_a_single_node_reads_after_its_no_op(self) -> None:
        """H-76: at once when it is ready, not before."""
        c = Cluster(1)
        c[1].hold_disk = True
        c[1].input("tick")
        c[1].sync()
        c[1].input("read", "early")
        self.assertEqual(c[1].reads, {})
        c[1].sync()
        self.assertEqual(c[1].reads, {"early": 2})
        c[1].input("read", "late")
        self.assertEqual(c[1].reads["late"], 2)

    def test_j53_reads_fail_when_leadership_is_handed_over(self) -> None:
        """J-53, J-54: a read that is not confirmed by then is refused; none is answered from the old office."""
        c, leader = led(3)
        c.cut_link(1, 3)
        leader.input("read", "before")
        for beat in c.sent(HeartbeatRequest):
            c.drop(beat)
        leader.input("transfer", "t", 2)
        leader.input("read", "during")
        for beat in c.sent(HeartbeatRequest):
            c.drop(beat)
        c.settle()
        self.assertEqual(c[2].role, Role.LEADER)
        self.assertEqual(leader.reads, {})
        self.assertEqual(set(leader.refused), {"before", "during"})

    def test_j54_a_read_during_a_transfer_is_confirmed_by_a_quorum(self) -> None:
        """J-54: there is no lease that could outlive the transfer; the read index is as good as ever."""
        c, leader = led(3)
        c.cut_link(1, 3)
        leader.propose(b"a")
        c.settle()
        leader.input("transfer", "t", 3)
        leader.input("read", "r")
        c.settle()
        self.assertEqual(leader.reads, {"r": leader.core.commit})

    def test_cancelled_reads_are_forgotten(self) -> None:
        """Nothing follows for a read that nobody waits for."""
        c, leader = led(3)
        for token in ("a", "b", "c", "d"):
            leader.input("read", token)
        for token in ("a", "c"):
            leader.core.cancel_read(token)
        c.settle()
        self.assertEqual(set(leader.reads), {"b", "d"})
        c[2].input("read", "e")
        c[2].input("read", "f")
        c[2].core.cancel_read("e")
        c[2].core.cancel_read("f")
        c.settle()
        self.assertEqual((c[2].reads, c[2].refused), ({}, {}))

    def test_reads_end_when_the_node_stops(self) -> None:
        """Every operation ends: reads, changes and transfers of a node that stops."""
        c, leader = led(3)
        leader.input("read", "r")
        c[2].input("read", "there")
        leader.input("transfer", "t", 2)
        leader.input("stop")
        c[2].input("stop")
        self.assertIn("r", leader.refused)
        self.assertIn("there", c[2].refused)
        self.assertIsInstance(leader.refused["t"], NodeStopped)
        self.assertIsNone(leader.core.next_wake)


class FollowerReadTests(TestCase):
    """H-75: the same guarantees at a follower, which asks its leader."""

    def test_h75_a_follower_reads_what_is_committed(self) -> None:
        c, leader = led(3)
        c.cut_link(1, 2)
        leader.propose(b"a")
        c.settle()
        c.heal()
        c[2].input("read", "r")
        c.settle()
        self.assertEqual(c[2].reads, {"r": leader.core.commit})

    def test_h75_the_index_moves_the_followers_commit_index(self) -> None:
        """A follower that has the entry applies it at once, without waiting for the next notice."""
        c, leader = led(3)
        leader.propose(b"a")
        c.settle()
        self.assertEqual(c[2].commands, [])
        c[2].input("read", "r")
        c.settle()
        self.assertEqual(c[2].commands, [b"a"])

    def test_h75_many_reads_are_one_request_at_a_time(self) -> None:
        c, _ = led(3)
        for token in range(100):
            c[2].input("read", token)
        self.assertEqual(len(c.sent(ReadIndexRequest)), 1)
        c.settle()
        self.assertEqual(len(c[2].reads), 100)
        self.assertEqual(c.delivered[ReadIndexRequest], 2)

    def test_h75_without_a_leader_it_is_refused_at_once(self) -> None:
        c = Cluster(3)
        c[2].input("read", "r")
        self.assertIsInstance(c[2].refused["r"], NotLeader)

    def test_h75_a_lost_request_refuses_its_reads_and_asks_for_the_others(self) -> None:
        c, _ = led(3)
        c[2].input("read", "lost")
        c[2].input("read", "next")
        c.drop(*c.sent(ReadIndexRequest))
        c.time_out(ReadIndexRequest, 2, 1)
        self.assertEqual(set(c[2].refused), {"lost"})
        c.settle()
        self.assertEqual(set(c[2].reads), {"next"})

    def test_h75_a_new_leader_refuses_what_was_asked_of_the_old_one(self) -> None:
        """H-75, J-53: an index from a leader that is none any more is not used."""
        c, leader = led(3)
        c[3].input("read", "r")
        request = c.sent(ReadIndexRequest)[0]
        c.wire.remove(request)
        c.cut_link(1, 2)
        c.cut_link(1, 3)
        c.sleep(1.6)
        c[2].input("campaign")
        c.settle()
        self.assertIn("r", c[3].refused)
        c[3].input("response", 1, request.message, ReadIndexReply(1, request.message.context, leader.core.commit))
        self.assertEqual(c[3].reads, {})

    def test_h75_a_node_that_does_not_lead_refuses(self) -> None:
        c, _ = led(3)
        self.assertEqual(c.ask(3, 2, ReadIndexRequest(1, 77)), ReadIndexReply(1, 77, 0))

    def test_h75_a_leader_that_steps_down_answers_with_a_refusal(self) -> None:
        """J-53: exactly one answer, whatever becomes of the leader."""
        c, leader = led(3)
        c[2].input("read", "r")
        c.deliver(*c.sent(ReadIndexRequest))
        c.wire.clear()
        c.ask(1, 3, HeartbeatRequest(9, 0, 1))
        reply = c.sent(ReadIndexReply)[0].message
        self.assertEqual((reply.index, leader.role), (0, Role.FOLLOWER))
        c.settle()
        self.assertIn("r", c[2].refused)

    def test_h75_contexts_are_never_used_again(self) -> None:
        """H-72, J-51: a reply to an earlier request does not answer a later one."""
        c, _ = led(3)
        c[2].input("read", "a")
        old = c.sent(ReadIndexRequest)[0]
        c.settle()
        c[2].input("read", "b")
        new = c.sent(ReadIndexRequest)[0]
        self.assertNotEqual(old.message.context, new.message.context)
        c[2].input("response", 1, old.message, ReadIndexReply(1, old.message.context, 1))
        c[2].input("response", 1, new.message, ReadIndexReply(1, old.message.context, 1))
        self.assertEqual(set(c[2].reads), {"a"})

    def test_h75_a_wiped_answer_of_another_term_is_refused(self) -> None:
        """H-75: the reply's term has to be the follower's."""
        c, _ = led(3)
        c[2].input("read", "a")
        request = c.sent(ReadIndexRequest)[0].message
        c[2].input("response", 1, request, ReadIndexReply(0, request.context, 1))
        self.assertEqual((set(c[2].refused), c[2].reads), ({"a"}, {}))


class RealTimeTests(TestCase):
    """H-71, H-73: a read that begins after a write was acknowledged sees it, wherever it is asked."""

    def check(self, c: Cluster, node: Node, seen: int) -> None:
        for token, index in node.reads.items():
            assert isinstance(token, tuple)
            self.assertGreaterEqual(index, token[0], f"node {node.id} read at {index}, {token[0]} was acknowledged")
        self.assertGreaterEqual(len(c.committed), seen)

    def test_reads_never_go_back(self) -> None:
        """Leaders come and go, reads are asked for everywhere; each index is at least what was committed before it."""
        c = Cluster(5)
        c.advance(4.0)
        answered = 0
        for turn in range(60):
            leading = [node for node in c.nodes.values() if node.role is Role.LEADER]
            for node in leading:
                node.propose(b"%d" % turn)
            if turn % 6 == 0:
                c.isolate(1 + turn % 5)
            elif turn % 6 == 4:
                c.heal()
            for node in c.nodes.values():
                node.input("read", (max(c.committed, default=0), turn))
            for envelope in list(c.wire)[:: 1 + turn % 3]:
                if envelope in c.wire and not isinstance(envelope.message, AppendRequest | AppendReply):
                    c.deliver(envelope)
            c.advance(0.7)
            for node in c.nodes.values():
                self.check(c, node, turn // 3)
        answered = sum(len(node.reads) for node in c.nodes.values())
        self.assertGreater(answered, 100)
