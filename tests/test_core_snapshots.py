"""Snapshots and purging (§7): H-52, H-60 to H-68, J-32, J-61, J-84 to J-88."""

from __future__ import annotations

from unittest import TestCase

from tests.core_cluster import Cluster, Node
from tests.core_scripts import add_learners, led, numbers, voters
from zlayer_consensus.errors import InvalidMessage, InvariantBroken
from zlayer_consensus.raft import (
    AppendRequest,
    Entry,
    EntryKind,
    HeartbeatReply,
    HeartbeatRequest,
    LogId,
    Role,
    SnapshotPoint,
)


def behind(**settings: int) -> tuple[Cluster, Node]:
    """Return a cluster whose leader has purged what node 3, which was cut off and is back, still needs."""
    c, leader = led(3, **{"max_in_snapshot_log_to_keep": 0, **settings})
    c.cut({1, 2}, {3})
    leader.propose(*numbers(20))
    c.advance(0.5)
    leader.snapshot()
    c.heal()
    return c, leader


class SendingTests(TestCase):
    def test_h60_a_follower_behind_the_purge_point_gets_a_snapshot(self) -> None:
        """H-60, J-32: it is installed, the log goes on behind it, and no append ever lacks its position before."""
        c, leader = behind()
        self.assertEqual(leader.core.purged, leader.core.last)
        c.advance(6.0)
        self.assertEqual(c[3].commands, numbers(20))
        self.assertEqual(c[3].core.purged, leader.core.purged)
        leader.propose(b"more")
        c.advance(0.5)
        self.assertEqual(c[3].commands, [*numbers(20), b"more"])

    def test_j32_a_fresh_node_of_a_purged_log(self) -> None:
        """J-32: nothing of the log is left at the leader; a blank learner gets all the same."""
        c, leader = led(1, max_in_snapshot_log_to_keep=0)
        leader.propose(*numbers(10))
        c.settle()
        leader.snapshot()
        add_learners(c, 2)
        c.advance(1.0)
        self.assertEqual(c[2].commands, numbers(10))
        leader.change("vote", voters(1, 2))
        c.advance(1.0)
        self.assertIn("vote", leader.done)

    def test_h60_the_log_is_purged_while_it_is_read_for_a_follower(self) -> None:
        """H-60: the store says that it is gone, or the position before it is unknown by now: a snapshot instead."""
        for gone in (True, False):
            c, leader = led(3, max_in_snapshot_log_to_keep=0, log_cache_bytes=0)
            c.cut({1, 2}, {3})
            for number in numbers(20):
                leader.propose(number)
                c.settle()
            c.heal()
            c.sleep(5.5)
            for peer in (2, 3):
                c.time_out(AppendRequest, 1, peer)
                c.time_out(HeartbeatRequest, 1, peer)
            leader.input("heartbeat")
            c.deliver(*c.sent(HeartbeatRequest, target=3))
            c.deliver(*c.sent(HeartbeatReply, source=3))
            (request,) = leader.log_reads
            leader.log_reads.clear()
            entries = leader.disk.serve(request)
            leader.snapshot()
            leader.input("log_read", request, None if gone else entries)
            self.assertEqual(leader.core.progress()[3].state, "snapshot")
            self.assertEqual(c.sent(AppendRequest, target=3), [])
            c.advance(3.0)
            self.assertEqual(c[3].commands, numbers(20))

    def test_h60_without_a_snapshot_nothing_is_purged(self) -> None:
        """H-60: there is always a snapshot that covers what was purged."""
        c, leader = led(3)
        leader.propose(*numbers(5))
        c.settle()
        effects = leader.input("purge", 4)
        self.assertIsNone(effects.purge)
        self.assertEqual(leader.core.purged.index, 0)

    def test_a_failed_transfer_is_tried_again(self) -> None:
        """After the next sign of life; until then the peer gets heartbeats only."""
        c, leader = behind()
        c.hold_transfers = True
        c.advance(6.0)
        (transfer,) = c.transfers
        c.transfers.clear()
        leader.input("snapshot_sent", transfer.request, None)
        self.assertEqual(c.transfers, [])
        c.hold_transfers = False
        c.advance(1.0)
        self.assertEqual(c[3].commands, numbers(20))

    def test_only_heartbeats_are_sent_during_a_transfer(self) -> None:
        """And the peer counts as live, so that the leader keeps its quorum with it."""
        c, leader = behind()
        c.hold_transfers = True
        c.advance(6.0)
        c[2].crash()
        before = c.delivered[AppendRequest]
        leader.propose(b"x")
        c.advance(20.0)
        self.assertEqual((leader.role, len(c.transfers)), (Role.LEADER, 1))
        self.assertEqual(c.delivered[AppendRequest], before)
        c.hold_transfers = False
        c.advance(1.0)
        self.assertEqual(leader.commands[-1], b"x")

    def test_an_answer_to_an_earlier_transfer_is_ignored(self) -> None:
        """H-64: a transfer that was given up, or of an earlier office, moves nothing."""
        c, leader = behind()
        c.hold_transfers = True
        c.advance(6.0)
        old = c.transfers.pop()
        leader.input("snapshot_sent", old.request, None)
        c.advance(0.5)
        self.assertEqual(len(c.transfers), 1)
        leader.input("snapshot_sent", old.request, old.point.last)
        self.assertLess(leader.core.progress()[3].match, old.point.last.index)
        c.isolate(3)
        for giver, taker in ((1, 2), (2, 1)):
            c[giver].input("transfer", "t", taker)
            c.settle()
        self.assertEqual((leader.role, leader.core.term), (Role.LEADER, 3))
        leader.input("snapshot_sent", old.request, old.point.last)
        self.assertLess(leader.core.progress()[3].match, old.point.last.index)

    def test_an_installed_position_that_is_not_in_the_log_stops_the_leader(self) -> None:
        """A peer cannot have installed what was never committed."""
        c, leader = behind()
        c.hold_transfers = True
        c.advance(6.0)
        with self.assertRaisesRegex(InvariantBroken, "installed a snapshot"):
            leader.input("snapshot_sent", c.transfers[0].request, LogId(1, 999))


class PurgeTests(TestCase):
    def test_h65_a_transfer_holds_the_log_behind_its_snapshot(self) -> None:
        """H-65: what follows the snapshot that is under way stays, whatever snapshots are taken meanwhile."""
        c, leader = behind()
        c.hold_transfers = True
        c.advance(6.0)
        pinned = c.transfers[0].point.last.index
        for number in numbers(10):
            leader.propose(number)
            c.settle()
            leader.snapshot()
        self.assertEqual(leader.core.purged.index, pinned)
        c.hold_transfers = False
        c.advance(1.0)
        self.assertEqual((c[3].commands, c.delivered[HeartbeatRequest] > 0), ([*numbers(20), *numbers(10)], True))
        self.assertEqual(c[3].core.purged.index, pinned, "one transfer was enough")

    def test_h65_the_held_log_is_capped(self) -> None:
        """H-65: beyond the cap the log is purged, and the follower gets another snapshot."""
        c, leader = behind(max_pinned_log_bytes=4 << 20)
        c.hold_transfers = True
        c.advance(6.0)
        pinned = c.transfers[0].point.last.index
        for _ in range(8):
            leader.propose(bytes(1 << 20))
            c.settle()
            leader.snapshot()
        self.assertGreater(leader.core.purged.index, pinned)
        c.hold_transfers = False
        c.advance(2.0)
        self.assertEqual(len(c[3].commands), 28)

    def test_the_policy_keeps_a_tail(self) -> None:
        """H-65: so that a follower that is a little behind needs no snapshot."""
        c, leader = led(3, max_in_snapshot_log_to_keep=7)
        leader.propose(*numbers(20))
        c.advance(0.5)
        point = leader.snapshot()
        self.assertEqual(leader.core.purged.index, point.last.index - 7)
        self.assertEqual(leader.core.term_at(point.last.index - 7), 1)
        self.assertIsNone(leader.core.term_at(point.last.index - 8))

    def test_a_purge_that_is_asked_for_stops_at_the_snapshot(self) -> None:
        c, leader = led(3)
        leader.propose(*numbers(20))
        c.advance(0.5)
        leader.snapshot(10)
        self.assertEqual(leader.core.purged.index, 0)
        leader.input("purge", 999)
        self.assertEqual(leader.core.purged.index, 10)
        leader.input("purge", 5)
        self.assertEqual(leader.core.purged.index, 10)

    def test_every_position_of_a_log_of_many_terms_can_be_purged(self) -> None:
        """Terms and entries behind the purge point stay what they were, wherever a run of terms is cut."""
        terms = [1, 1, 2, 4, 4, 4, 5]
        for upto in range(1, len(terms) + 2):
            c = Cluster(3, logs={1: terms, 2: terms, 3: terms}, max_in_snapshot_log_to_keep=0)
            leader = c.elect(1)
            c.advance(0.5)
            before = [leader.core.term_at(index) for index in range(upto, leader.core.last.index + 1)]
            leader.snapshot(upto)
            self.assertEqual(leader.core.purged.index, upto)
            after = [leader.core.term_at(index) for index in range(upto, leader.core.last.index + 1)]
            self.assertEqual(before, after, upto)
            leader.propose(b"x")
            c.advance(0.5)
            leader.crash()
            leader.start()
            c.advance(5.0)
            self.assertEqual(leader.commands, c[2].commands)

    def test_a_snapshot_of_what_is_not_durable_stops_the_node(self) -> None:
        """design, "Stores": no position that a state machine keeps exceeds what is durable here."""
        c, leader = led(3)
        leader.hold_disk = True
        leader.propose(b"a")
        c.settle()
        self.assertGreater(leader.core.commit, leader.core.durable)
        point = SnapshotPoint(leader.core.last, leader.core.membership)
        with self.assertRaisesRegex(InvariantBroken, "durable"):
            leader.input("snapshot_taken", point)


class InstallTests(TestCase):
    """What a follower makes of a leader's snapshot."""

    def follower(self, terms: list[int], commit: int = 1) -> tuple[Cluster, Node]:
        c = Cluster(3, logs={1: terms, 2: terms, 3: terms}, terms=dict.fromkeys((1, 2, 3), 5))
        entries = tuple(c[1].disk.written.entries[:commit])
        c.ask(1, 2, AppendRequest(5, 0, 0, LogId(0, 0), entries, commit))
        self.assertEqual(c[1].core.commit, commit)
        return c, c[1]

    def offer(self, c: Cluster, last: LogId, term: int = 5, sender: int = 2) -> str:
        verdict, effects = c[1].core.snapshot_offered(sender, term, last, c.now)
        c[1]._carry_out(effects)
        return str(verdict)

    def install(self, c: Cluster, last: LogId) -> None:
        """Publish and install a snapshot, as the driver does."""
        point = SnapshotPoint(last, c.membership)
        node = c[1]
        data = [Entry.make(index, 1, EntryKind.NOOP) for index in range(1, last.index + 1)]
        if node.core.needs_install(point):
            node.disk.publish(point, data, installed=True)
            node.commit, node.machine = max(node.commit, last.index), data
        node.input("install", point)

    def test_h61_a_snapshot_of_what_is_committed_is_not_taken(self) -> None:
        """H-61: the follower has it; the leader is told so, and nothing changes."""
        c, node = self.follower([1, 1, 1, 1], commit=4)
        for index in (2, 3, 4):
            self.assertEqual(self.offer(c, LogId(1, index)), "covered")
            self.assertFalse(node.core.needs_install(SnapshotPoint(LogId(1, index), c.membership)))
        self.install(c, LogId(1, 3))
        self.assertEqual((node.core.commit, node.core.last, node.core.purged.index), (4, LogId(1, 5), 0))

    def test_h61_what_is_committed_but_not_durable_is_not_confirmed(self) -> None:
        """H-61, H-01: until the disk has returned the leader is told to ask again."""
        c, node = self.follower([1])
        node.hold_disk = True
        entries = tuple(Entry.make(index, 1, EntryKind.NOOP) for index in (3, 4))
        c.ask(1, 2, AppendRequest(5, 0, 1, LogId(1, 2), entries, 4), sync=False)
        self.assertEqual(self.offer(c, LogId(1, 4)), "busy")
        node.sync()
        self.assertEqual(self.offer(c, LogId(1, 4)), "covered")

    def test_h62_a_snapshot_whose_last_entry_is_in_the_log(self) -> None:
        """H-62: the suffix stays, and the commit index moves up to the snapshot."""
        c, node = self.follower([1, 1, 2, 2, 2])
        self.assertEqual(self.offer(c, LogId(2, 5)), "covered")
        self.assertEqual((node.core.commit, node.core.last), (5, LogId(2, 6)))
        c, node = self.follower([1, 1, 2, 2, 2])
        self.assertFalse(node.core.needs_install(SnapshotPoint(LogId(2, 5), c.membership)))
        node.input("install", SnapshotPoint(LogId(2, 5), c.membership))
        self.assertEqual((node.core.commit, node.core.last), (5, LogId(2, 6)))

    def test_h63_a_snapshot_whose_last_entry_has_another_term(self) -> None:
        """H-63, J-84: the whole log goes, and what comes behind the snapshot is taken."""
        c, node = self.follower([1, 1, 2, 2, 2])
        self.assertEqual(self.offer(c, LogId(3, 5)), "accept")
        self.install(c, LogId(3, 5))
        self.assertEqual((node.core.last, node.core.purged, node.core.commit), (LogId(3, 5), LogId(3, 5), 5))
        node.sync()
        self.assertEqual(node.core.durable, 5)
        reply = c.ask(1, 2, AppendRequest(5, 1, 0, LogId(3, 5), (Entry.make(6, 5, EntryKind.NOOP),), 6))
        self.assertEqual((reply.success, reply.match), (True, 6))

    def test_what_is_durable_counts_while_the_log_is_replaced(self) -> None:
        """J-26: what was acknowledged is told in heartbeats too, or the leader takes the log for one that went back."""
        c, node = self.follower([1])
        node.hold_disk = True
        entries = tuple(Entry.make(index, 5, EntryKind.NOOP) for index in (3, 4))
        self.assertIsNone(c.ask(1, 2, AppendRequest(5, 0, 0, LogId(1, 2), entries, 0), sync=False))
        self.install(c, LogId(5, 6))
        node.sync(1)
        reply = c.ask(1, 2, HeartbeatRequest(5, 1, 1), sync=False)
        self.assertEqual(reply.last_index, 4)

    def test_j86_a_snapshot_that_contradicts_what_is_committed(self) -> None:
        """J-86, H-25: same index, other term, and committed here: the node stops."""
        c, _ = self.follower([1, 1, 1], commit=4)
        with self.assertRaisesRegex(InvariantBroken, "committed"):
            self.offer(c, LogId(2, 3))

    def test_j87_installing_twice_is_installing_once(self) -> None:
        """J-87, J-85: a second copy, or an older snapshot that was under way, changes nothing."""
        c, node = self.follower([1])
        self.offer(c, LogId(4, 30))
        self.install(c, LogId(4, 30))
        for last in (LogId(4, 30), LogId(4, 20)):
            self.install(c, last)
            self.assertEqual((node.core.last, node.core.commit), (LogId(4, 30), 30))
        self.assertEqual(len(node.disk.pending), 1)

    def test_j85_a_newer_snapshot_right_after(self) -> None:
        """J-85: installed before the first one is durable, it replaces it."""
        c, node = self.follower([1])
        node.hold_disk = True
        self.install(c, LogId(4, 30))
        self.install(c, LogId(4, 40))
        self.assertEqual(self.offer(c, LogId(4, 30)), "busy")
        node.sync(1)
        self.assertLess(node.core.durable, 40)
        node.sync()
        self.assertEqual((node.core.durable, node.core.last), (40, LogId(4, 40)))

    def test_j88_term_and_vote_survive_an_installation(self) -> None:
        """J-88, J-02: neither falls with the log."""
        c, node = self.follower([1])
        c.ask(1, 3, HeartbeatRequest(9, 0, 1))
        self.install(c, LogId(4, 30))
        node.sync()
        node.crash()
        node.start()
        self.assertEqual((node.core.term, node.core.last, node.core.commit), (9, LogId(4, 30), 30))

    def test_h64_a_deposed_leaders_snapshot_is_stale(self) -> None:
        """H-64: chunks of an older term are refused; the newer leader's are taken."""
        c, node = self.follower([1])
        self.assertEqual(self.offer(c, LogId(4, 30)), "accept")
        self.assertEqual(self.offer(c, LogId(5, 31), term=6, sender=3), "accept")
        self.assertEqual(self.offer(c, LogId(4, 30)), "stale")
        self.assertEqual((node.core.term, node.core.leader_id), (6, 3))

    def test_a_snapshot_is_a_sign_of_life(self) -> None:
        """A follower that takes chunks does not campaign."""
        c, node = self.follower([1])
        for _ in range(10):
            c.sleep(1.4)
            self.offer(c, LogId(4, 30))
            wake = node.core.next_wake
            assert wake is not None and wake > c.now + 1.4

    def test_h15_a_snapshot_of_an_impossible_term_is_refused(self) -> None:
        c, node = self.follower([1])
        for term in (-1, 1 << 62):
            with self.assertRaises(InvalidMessage):
                node.core.snapshot_offered(2, term, LogId(1, 9), c.now)

    def test_h66_a_crash_at_each_step_of_an_installation(self) -> None:
        """H-66: published, written, durable: log and snapshot agree after every restart, and it catches up."""
        for crash in ("before", "published", "written", "durable"):
            c, leader = behind()
            c.hold_transfers = True
            c.advance(6.0)
            transfer = c.transfers[0]
            if crash == "published":
                c[3].disk.publish(transfer.point, transfer.data, installed=True)
            elif crash != "before":
                c[3].hold_disk = True
                c[3].take_snapshot(1, transfer, leader.core.term)
                if crash == "durable":
                    c[3].sync()
            c[3].crash()
            c[3].hold_disk = False
            c[3].start()
            have = crash != "before"
            self.assertEqual(c[3].commands, numbers(20) if have else [], crash)
            self.assertEqual(c[3].core.commit == transfer.point.last.index, have)
            c.hold_transfers = False
            c.advance(8.0)
            leader.propose(b"x")
            c.advance(1.0)
            self.assertEqual(c[3].commands, [*numbers(20), b"x"], crash)

    def test_h68_what_was_applied_is_committed(self) -> None:
        """H-68: a state machine that is ahead of the hint on disk is believed."""
        c, leader = led(3)
        leader.propose(*numbers(5))
        c.settle()
        start = leader.disk.start()
        self.assertLess(start.hard_state.commit, leader.core.commit)
        leader.snapshot()
        leader.crash()
        leader.start()
        self.assertEqual(leader.core.commit, leader.disk.data[-1].index)


class ConfigurationTests(TestCase):
    def test_h67_a_snapshot_has_the_configuration_of_its_index(self) -> None:
        """H-67, J-61: neither a later one nor one that is not committed, and the tombstones of that time."""
        c, leader = led(4, 5)
        leader.propose(b"a")
        c.settle()
        early = len(leader.machine)
        leader.change("remove", voters(1, 2, 3))
        c.advance(0.5)
        late = len(leader.machine)
        c.isolate(1)
        leader.change("uncommitted", voters(1, 2))
        self.assertEqual(leader.core.membership_at(early).tombstones, frozenset())
        self.assertEqual(leader.core.membership_at(early).voters, {1, 2, 3, 4})
        self.assertEqual(leader.core.membership_at(late).tombstones, {4})
        self.assertEqual(leader.core.membership_at(late).voters, {1, 2, 3})
        self.assertEqual(leader.snapshot().membership, leader.core.membership_at(late))

    def test_h52_an_installed_snapshot_brings_its_configuration(self) -> None:
        """H-52: adopted with its tombstones; configurations behind it in the log are adopted in turn."""
        c, leader = led(4, 5, max_in_snapshot_log_to_keep=0)
        c.isolate(3)
        leader.change("remove", voters(1, 2, 3))
        c.settle()
        leader.propose(b"a")
        c.settle()
        leader.snapshot()
        leader.change("add", voters(1, 2, 3, 5))
        c.settle()
        self.assertIn("add", leader.done)
        c.heal()
        c.advance(8.0)
        self.assertEqual(c[3].core.membership, leader.core.membership)
        self.assertEqual(c[3].core.committed_membership.tombstones, {4})
        c[3].crash()
        c[3].start()
        self.assertEqual(c[3].core.membership, leader.core.membership)

    def test_j61_an_uncommitted_configuration_does_not_survive_an_installation(self) -> None:
        """J-61: what a follower took from a deposed leader goes with its log; no two quorums become disjoint."""
        c, leader = led(3, 4, max_in_snapshot_log_to_keep=0)
        c.isolate(1)
        leader.change("lost", voters(1, 4))
        c.sleep(3.1)
        c[2].input("campaign")
        c.settle()
        c[2].propose(*numbers(5))
        c.settle()
        c[2].snapshot()
        self.assertTrue(leader.core.membership.joint)
        c.heal()
        c.advance(8.0)
        self.assertEqual(leader.core.membership, c[2].core.membership)
        self.assertFalse(leader.core.membership.joint)
        self.assertEqual(leader.commands, numbers(5))

    def test_a_node_that_learns_of_its_removal_by_snapshot(self) -> None:
        """H-47: the tombstone in a snapshot says the same as the entry."""
        c, leader = led(3)
        self.assertFalse(c[3].removed)
        gone = leader.core.membership.after(voters(1, 2)).left_joint()
        point = SnapshotPoint(LogId(1, 50), gone)
        verdict, effects = c[3].core.snapshot_offered(1, 1, point.last, c.now)
        self.assertEqual(verdict, "accept")
        c[3]._carry_out(effects)
        c[3].machine = [Entry.make(index, 1, EntryKind.NOOP) for index in range(1, 51)]
        c[3].commit = 50
        c[3].disk.publish(point, c[3].machine, installed=True)
        c[3].input("install", point)
        self.assertTrue(c[3].removed)
