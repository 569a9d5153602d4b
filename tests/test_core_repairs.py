"""Members whose log was repaired (S-02, J-98): they may lack what they acknowledged, and have forgotten votes."""

from __future__ import annotations

from unittest import TestCase

from tests.core_cluster import Cluster, Node, member
from tests.core_scripts import numbers
from zlayer_consensus.raft import (
    AddLearner,
    AppendReply,
    AppendRequest,
    HeartbeatReply,
    LogId,
    Role,
    TimeoutNowRequest,
    VoteRequest,
)

REPAIR = b"R" * 16


def damaged(c: Cluster, node_id: int, keep: int, *, term: int | None = None, repair: bytes = REPAIR) -> Node:
    """Cut a node's log after ``keep``, as a repair does, and start it."""
    node = c[node_id]
    c.check_durability = False
    node.crash()
    node.disk.cut(keep, node.core.term if term is None else term, repair)
    node.start()
    return node


def cluster(size: int = 3, commands: int = 6) -> Cluster:
    """Return a cluster that node 1 leads, with so many commands everywhere."""
    c = Cluster(size)
    c.elect(1).propose(*numbers(commands))
    c.advance(0.5)
    return c


class VotingTests(TestCase):
    def test_it_does_not_vote(self) -> None:
        c = cluster()
        node = damaged(c, 3, 4)
        c[1].crash()
        c.sleep(10)
        term, last = node.core.term, c[2].core.last
        for pre_vote in (True, False):
            reply = c.ask(3, 2, VoteRequest(term + 1, last, 7, pre_vote))
            self.assertFalse(reply.granted)
        self.assertEqual((0, term + 1), (node.core.voted_for, node.core.term))

    def test_it_does_not_campaign(self) -> None:
        c = cluster()
        node = damaged(c, 3, 4)
        c.isolate(3)
        term = node.core.term
        c.advance(30)
        self.assertEqual((Role.FOLLOWER, term), (node.role, node.core.term))
        node.input("campaign")
        c.ask(3, 1, TimeoutNowRequest(term))
        self.assertEqual((Role.FOLLOWER, term), (node.role, node.core.term))

    def test_a_committed_entry_that_it_lost_is_safe(self) -> None:
        """J-98: two of three had it, one of them lost it; the third alone, or with that one, elects nobody."""
        c = Cluster(3)
        c.elect(1)
        c.advance(0.5)
        c.isolate(2)
        c[1].propose(b"precious")
        c.advance(0.5)
        c.heal()
        damaged(c, 3, 2)
        c[1].crash()
        c.advance(30)
        self.assertNotIn(Role.LEADER, (c[2].role, c[3].role))
        c[1].start()
        c.advance(10)
        self.assertEqual([[b"precious"]] * 3, [c[i].commands for i in (1, 2, 3)])


class CountingTests(TestCase):
    def test_it_counts_for_nothing(self) -> None:
        """Not for commits, not for reads, and not for the quorum that a leader needs."""
        c = cluster()
        node = damaged(c, 3, 4)
        c[2].crash()
        commit = c[1].core.commit
        c[1].propose(b"x")
        c[1].input("read", "r")
        c.advance(1.0)
        self.assertEqual((commit, {}), (c[1].core.commit, c[1].reads))
        self.assertEqual(c[1].core.last, node.core.last, "it is replicated to all the same")
        c.advance(3.0)
        self.assertNotEqual(Role.LEADER, c[1].role)
        self.assertIn("r", c[1].refused)

    def test_it_is_no_alarm(self) -> None:
        """H-29: it says that it may lack something."""
        c = cluster()
        damaged(c, 3, 4)
        c.advance(0.5)
        self.assertEqual([], c[1].alarms)

    def test_a_member_that_gave_an_alarm_comes_back_by_a_repair(self) -> None:
        """S-23: its directory was replaced by an old copy, which was noticed, and then marked."""
        c = cluster()
        damaged(c, 3, 4, repair=b"")
        c.advance(0.5)
        self.assertTrue(c[1].core.progress()[3].alarmed)
        damaged(c, 3, 4)
        c.advance(1.0)
        progress = c[1].core.progress()[3]
        self.assertEqual((False, b"", c[1].core.last.index), (progress.alarmed, progress.repair, progress.match))

    def test_a_late_acknowledgement_of_before_does_not_count(self) -> None:
        c = cluster()
        c[1].propose(b"late")
        c.deliver(*c.sent(AppendRequest, target=3))
        c[3].sync()
        (late,) = c.sent(AppendReply, source=3)
        c.wire.remove(late)
        c[2].crash()
        c.drop(*c.wire)
        damaged(c, 3, 4)
        c.advance(0.5)
        commit = c[1].core.commit
        c.wire.append(late)
        c.settle()
        self.assertEqual((commit, REPAIR), (c[1].core.commit, c[1].core.progress()[3].repair))
        self.assertLess(commit, c[1].core.last.index)

    def test_leadership_does_not_go_to_it(self) -> None:
        c = cluster()
        damaged(c, 3, 4).hold_clearing = True
        c[2].hold_disk = True
        c[1].propose(b"x")
        c.advance(0.3)
        self.assertGreater(c[1].core.progress()[3].match, c[1].core.progress()[2].match)
        c[1].input("transfer", "t", 3)
        self.assertIn("repaired", str(c[1].refused["t"]))
        c[1].input("transfer", "u", None)
        c[2].hold_disk = False
        c.settle()
        self.assertEqual((2, 2), (c[1].done["u"], c.leader().id))


class ClearingTests(TestCase):
    def test_it_counts_again_once_an_entry_was_committed_without_it(self) -> None:
        c = cluster()
        node = damaged(c, 3, 4)
        before = c[1].core.last.index
        c.advance(1.0)
        self.assertEqual((b"", b""), (node.core.repair, node.disk.repair))
        self.assertEqual(b"", c[1].core.progress()[3].repair)
        self.assertEqual(before + 1, c[1].core.last.index, "one entry was appended for it")
        c[2].crash()
        c[1].propose(b"x")
        c.advance(0.5)
        self.assertEqual(c[1].core.last.index, c[1].core.commit)
        c[1].crash()
        c[2].start()
        c.advance(10)
        self.assertIn(Role.LEADER, (c[2].role, node.role))

    def test_not_while_it_is_needed_for_that(self) -> None:
        c = cluster()
        c[2].crash()
        node = damaged(c, 3, 4)
        c.advance(2.0)
        self.assertEqual((c[1].core.last, REPAIR), (node.core.last, node.core.repair))
        c[2].start()
        c.advance(10)
        self.assertEqual(b"", node.core.repair)

    def test_what_was_appended_before_it_named_the_repair_is_not_enough(self) -> None:
        """Who acknowledged that may have done so in the time of which it knows nothing."""
        c = cluster()
        node = damaged(c, 3, 4)
        c[1].propose(b"x")
        until = c[1].core.last.index
        c.deliver(*c.sent(AppendRequest, target=2))
        c[2].sync()
        c.isolate(2)
        c.advance(1.0)
        self.assertEqual((until + 1, REPAIR), (node.core.last.index, node.core.repair))
        c.heal()
        c.advance(c.config.bulk_timeout + 1)
        self.assertEqual(b"", node.core.repair)

    def test_it_has_to_be_durable_there(self) -> None:
        c = cluster()
        node = damaged(c, 3, 4)
        node.hold_disk = True
        c.advance(1.0)
        self.assertEqual((REPAIR, REPAIR), (node.core.repair, c[1].core.progress()[3].repair))
        node.hold_disk = False
        c.advance(1.0)
        self.assertEqual(b"", node.core.repair)

    def test_until_the_mark_is_gone_from_the_disk_it_is_named(self) -> None:
        c = cluster()
        node = damaged(c, 3, 4)
        node.hold_clearing = True
        c.advance(1.0)
        self.assertEqual((REPAIR, REPAIR), (node.core.repair, c[1].core.progress()[3].repair))
        node.crash()
        node.start()
        self.assertEqual(REPAIR, node.core.repair)
        node.hold_clearing = False
        c.advance(1.0)
        self.assertEqual((b"", b""), (node.core.repair, c[1].core.progress()[3].repair))

    def test_what_it_acknowledges_before_the_leader_knows_that_the_mark_is_gone_is_sent_again(self) -> None:
        """Else nobody would ask for it any more, and with one of the others away it would never be committed."""
        for others in ((2,), ()):
            c = cluster()
            node = damaged(c, 3, 4)
            node.hold_clearing = True
            c.advance(1.0)
            node.clear_repair()
            for other in others:
                c[other].crash()
            c[1].propose(b"x")
            c.settle()
            self.assertEqual((c[1].core.last, REPAIR), (node.core.last, c[1].core.progress()[3].repair))
            c.advance(1.0)
            last = c[1].core.last.index
            self.assertEqual((last, b""), (c[1].core.progress()[3].match, c[1].core.progress()[3].repair))
            self.assertEqual((last, last), (c[1].core.commit, node.core.commit))

    def test_a_late_reply_that_names_it_changes_nothing(self) -> None:
        c = cluster()
        damaged(c, 3, 4)
        c.advance(0.01)
        c[1].input("heartbeat")
        c.deliver(*[e for e in c.wire if e.target == 3])
        late = [e for e in c.wire if isinstance(e.message, HeartbeatReply) and e.source == 3]
        self.assertEqual([REPAIR], [e.message.repair for e in late])
        c.wire.remove(late[0])
        c.advance(1.0)
        last = c[1].core.last
        self.assertEqual(b"", c[1].core.progress()[3].repair)
        c.wire.append(late[0])
        c.advance(0.5)
        progress = c[1].core.progress()[3]
        self.assertEqual((last, b"", last.index), (c[1].core.last, progress.repair, progress.match))

    def test_every_leader_sees_for_itself(self) -> None:
        c = cluster(5)
        node = damaged(c, 5, 4)
        node.hold_clearing = True
        c.advance(1.0)
        c[1].crash()
        c.advance(10)
        leader = c.leader()
        self.assertEqual((REPAIR, REPAIR), (node.core.repair, leader.core.progress()[5].repair))
        node.clear_repair()
        c.advance(1.0)
        self.assertEqual((b"", b""), (node.core.repair, leader.core.progress()[5].repair))

    def test_a_second_repair_begins_anew(self) -> None:
        c = cluster()
        node = damaged(c, 3, 4)
        node.hold_clearing = True
        c.advance(1.0)
        node = damaged(c, 3, 3, repair=b"S" * 16)
        node.hold_clearing = False
        node.hold_disk = True
        c.advance(0.5)
        self.assertEqual(b"S" * 16, c[1].core.progress()[3].repair)
        self.assertEqual(b"S" * 16, node.core.repair)
        node.hold_disk = False
        c.advance(1.0)
        self.assertEqual((b"", c[1].core.last), (node.core.repair, node.core.last))

    def test_it_may_need_a_snapshot(self) -> None:
        c = Cluster(3, max_in_snapshot_log_to_keep=0)
        c.elect(1).propose(*numbers(6))
        c.advance(0.5)
        c[1].snapshot()
        node = damaged(c, 3, 4)
        c.advance(2.0)
        self.assertEqual((b"", c[1].core.last), (node.core.repair, node.core.last))

    def test_a_learner_is_not_promoted_before(self) -> None:
        c = cluster()
        c.add_blank(4).hold_disk = True
        c[1].change("add", AddLearner(member(4), auto_promote=True))
        c.advance(0.5)
        node = c[4]
        node.crash()
        node.disk.repair = REPAIR
        node.hold_disk, node.hold_clearing = False, True
        node.start()
        c.advance(2.0)
        self.assertEqual((c[1].core.last, True), (node.core.last, 4 in c[1].core.membership.learners))
        node.clear_repair()
        c.advance(1.0)
        self.assertIn(4, c[1].core.membership.voters)


class ForgottenVoteTests(TestCase):
    def test_a_vote_that_was_forgotten_elects_nobody_beside_the_next(self) -> None:
        """J-98: node 3 voted for node 2 in term 3, and its repaired log knows of term 2 only."""
        c = cluster()
        term = c[1].core.term
        c.isolate(2)
        c.advance(5.0)
        c[1].propose(b"only here and at 3")
        c.advance(0.5)
        reply = c.ask(3, 2, VoteRequest(term + 1, LogId(term, 99), 1, transfer=True))
        self.assertTrue(reply.granted)
        node = damaged(c, 3, 3, term=term)
        self.assertEqual((term, 0), (node.core.term, node.core.voted_for))
        c.heal()
        c.advance(10.0)
        leader = c.leader()
        self.assertEqual(b"", node.core.repair)
        self.assertEqual(leader.core.last, node.core.last)
