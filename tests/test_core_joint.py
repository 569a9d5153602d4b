"""Membership changes that fail half way (§6): H-40, H-41, H-43, J-62, J-63, J-67, J-70."""

from __future__ import annotations

from itertools import combinations
from unittest import TestCase

from tests.core_cluster import Cluster, member
from tests.core_scripts import led, voters
from zlayer_consensus.raft import (
    AddLearner,
    AppendRequest,
    ChangeVoters,
    Entry,
    EntryKind,
    LogId,
    Membership,
    MembershipChange,
    Role,
    VoteRequest,
)


class RollbackTests(TestCase):
    """H-41, J-62, J-63: an uncommitted configuration that is truncated."""

    def config(self, term: int, index: int, membership: Membership) -> Entry:
        return Entry.make(index, term, EntryKind.CONFIG, membership.encode())

    def test_h41_the_last_configuration_comes_back_at_once(self) -> None:
        c, leader = led(3, 4)
        before = leader.core.membership
        c.isolate(1)
        leader.change("lost", voters(1, 2))
        self.assertEqual(leader.core.membership.outgoing, {1, 2, 3})
        c.sleep(1.6)
        c[2].input("campaign")
        c.settle()
        c.heal()
        c.advance(6.0)
        self.assertEqual(leader.core.membership, before)
        self.assertTrue(all(node.core.membership == before for node in c.nodes.values()))

    def test_j63_several_are_removed_from_the_back(self) -> None:
        """J-63: a truncation that takes two configurations goes back behind both."""
        c = Cluster(3, logs={1: [1]})
        base = c.membership
        one = base.after(AddLearner(member(4)))
        two = one.after(AddLearner(member(5)))
        entries = (self.config(2, 3, one), Entry.make(4, 2, EntryKind.NOOP), self.config(2, 5, two))
        c.ask(1, 2, AppendRequest(2, 0, 0, LogId(1, 2), entries, 0))
        self.assertEqual(c[1].core.membership, two)
        c.ask(1, 3, AppendRequest(3, 0, 0, LogId(2, 3), (Entry.make(4, 3, EntryKind.NOOP),), 0))
        self.assertEqual(c[1].core.membership, one)
        c.ask(1, 3, AppendRequest(3, 1, 0, LogId(1, 2), (Entry.make(3, 3, EntryKind.NOOP),), 0))
        self.assertEqual(c[1].core.membership, base)
        c[1].crash()
        c[1].start()
        self.assertEqual(c[1].core.membership, base)

    def test_j62_the_configuration_behind_a_purged_log_comes_back(self) -> None:
        """J-62: the entry of the last committed configuration is purged; the snapshot has it."""
        c, leader = led(3, 4, max_in_snapshot_log_to_keep=0)
        before = leader.core.membership
        leader.propose(b"a")
        c.advance(0.5)
        for node in c.nodes.values():
            node.snapshot()
        self.assertGreater(leader.core.purged.index, 3)
        c.isolate(1)
        leader.change("lost", voters(1, 2))
        leader.sync()
        for restart in (False, True):
            if restart:
                leader.crash()
                leader.start()
            self.assertEqual(leader.core.membership.outgoing, {1, 2, 3})
        c.sleep(1.6)
        c[2].input("campaign")
        c.settle()
        c.heal()
        c.advance(6.0)
        self.assertEqual(leader.core.membership, before)


class JointTests(TestCase):
    """H-43, J-67: leaders that fail in the middle of a change."""

    def test_h43_the_leader_dies_after_any_number_of_messages(self) -> None:
        """H-43: whatever was delivered, the rest finishes the change or rolls it back by itself, and serves."""
        for steps in range(40):
            for change in (voters(1, 2, 4), voters(3, 4), voters(2, 3, 4, retain=True)):
                c, leader = led(3, 4)
                leader.change("change", change)
                for _ in range(steps):
                    c.sync()
                    if c.wire:
                        c.deliver(c.wire[0])
                leader.crash()
                c.advance(14.0)
                now = c.leader()
                self.assertTrue(now.core.ready, (steps, change))
                self.assertFalse(now.core.membership.joint, (steps, change))
                self.assertEqual(now.core.membership, now.core.committed_membership)
                self.assertIn(now.core.membership.voters, ({1, 2, 3}, change.voters))
                leader.start()
                c.advance(4.0)
                now.propose(b"x")
                c.advance(0.5)
                if now.role is Role.LEADER:
                    self.assertIn(b"x", now.commands)

    def test_h43_an_election_in_a_joint_configuration_needs_both_majorities(self) -> None:
        """H-43: neither the old voters nor the new ones alone elect a leader."""
        c, leader = led(3, 4, 5)
        leader.change("change", voters(1, 4, 5))
        c.deliver(*c.sent(AppendRequest))
        for node_id in (2, 3, 4, 5):
            c[node_id].sync()
        leader.crash()
        c.wire.clear()
        for group in ((2, 3), (4, 5), (2, 3, 4), (3, 4, 5)):
            c.cut(group)
            c.advance(10.0)
            led_by = {node.id for node in c.nodes.values() if node.up and node.role is Role.LEADER}
            joint = len({2, 3} & set(group)) == 2 and len({4, 5} & set(group)) == 2
            self.assertEqual(bool(led_by), joint, group)
        c.heal()
        c.advance(10.0)
        self.assertEqual(c.leader().core.committed_membership.voters, {1, 4, 5})

    def test_j67_a_joint_configuration_is_left_only_when_it_is_committed(self) -> None:
        """J-67: a leader that starts with an uncommitted joint configuration commits it before it leaves it."""
        c, leader = led(3, 4)
        c.cut({1, 2}, {3}, {4})
        leader.change("change", voters(1, 2, 4))
        joint = leader.core.last.index
        c.settle()
        self.assertEqual(leader.core.last.index, joint + 1, "one of the new voters is enough with the leader")
        c, leader = led(3, 4, 5)
        c.cut({1, 2}, {3}, {4}, {5})
        leader.change("change", voters(1, 4, 5))
        joint = leader.core.last.index
        c.settle()
        leader.crash()
        leader.start()
        c.cut({1, 2, 3}, {4}, {5})
        c.advance(15.0)
        self.assertTrue(all(node.core.membership.joint for node in (leader, c[2])))
        self.assertLess(leader.core.commit, joint)
        c.heal()
        c.advance(10.0)
        self.assertEqual(c.leader().core.committed_membership.voters, {1, 4, 5})

    def test_a_read_in_a_joint_configuration_needs_both_majorities(self) -> None:
        """§6, §8: reads are confirmed by the configuration in effect."""
        c, leader = led(3, 4, 5)
        c.cut({1, 2, 3}, {4}, {5})
        leader.change("change", voters(1, 4, 5))
        leader.input("read", "r")
        c.advance(1.0)
        self.assertEqual(leader.reads, {})
        c.heal()
        c.advance(1.0)
        self.assertIn("r", leader.reads)


class SingleServerBugTests(TestCase):
    """H-40: the bug of single-server changes (raft-dev, 2015), shown impossible in its three variants."""

    def play(self, first: ChangeVoters, second: ChangeVoters, reach: frozenset[int], back: frozenset[int]) -> None:
        """S1 begins a change that only 5 sees; S2 makes another one with ``reach``; S1 returns with ``back``.

        The cluster checks after every step that no committed entry is lost and no term has two leaders.
        """
        c = self.start()
        c.cut({1, 5}, {2, 3, 4}, {6})
        c[1].change("first", first)
        c.settle()
        self.assertNotIn("first", c[1].done)
        c.sleep(1.6)
        c[2].input("campaign")
        c.settle()
        assert c[2].role is Role.LEADER
        c.cut({2} | reach)
        c[2].change("second", second)
        c.settle()
        c.cut({1} | back)
        c.sleep(3.1)
        for _ in range(2):
            c[1].input("campaign")
            c.settle()
            if c[1].role is Role.LEADER:
                c[1].propose(b"overwritten?")
                c.advance(0.2)
        c.heal()
        c.advance(8.0)
        self.assertFalse(c.leader().core.membership.joint)

    def start(self) -> Cluster:
        c, _ = led(4, 5, 6)
        c.advance(0.5)
        return c

    def every_partition(self, first: ChangeVoters, second: ChangeVoters) -> None:
        others = (1, 3, 4, 5)
        for reach in (frozenset(s) for size in range(5) for s in combinations(others, size)):
            for back in (frozenset({3, 4}), frozenset({4, 5}), frozenset({3, 5}), frozenset({3, 4, 5, 6})):
                self.play(first, second, reach, back)

    def test_h40_add_and_remove(self) -> None:
        """H-40: S1 adds S5, S2 removes S1."""
        self.every_partition(voters(1, 2, 3, 4, 5), voters(2, 3, 4))

    def test_h40_add_and_add(self) -> None:
        """H-40: S1 adds S5, S2 adds S6."""
        self.every_partition(voters(1, 2, 3, 4, 5), voters(1, 2, 3, 4, 6))

    def test_h40_remove_and_remove(self) -> None:
        """H-40: S1 removes S2, S2 removes S1."""
        self.every_partition(voters(1, 3, 4), voters(2, 3, 4))


class CampaignWithOldConfigurationTests(TestCase):
    def test_j70_two_more_voters_and_a_node_that_knows_none_of_it(self) -> None:
        """J-70: {1,2,3} + 4 + 5 is committed without node 3; in no split does it or anybody become a second leader."""
        steps: tuple[MembershipChange, ...] = (
            AddLearner(member(4)),
            AddLearner(member(5)),
            voters(1, 2, 3, 4, 5),
        )
        for size in range(1, 5):
            for side in combinations((1, 2, 3, 4, 5), size):
                c, leader = led(3)
                c.add_blank(4)
                c.add_blank(5)
                c.isolate(3)
                for step, change in enumerate(steps):
                    leader.change(step, change)
                    c.advance(0.5)
                self.assertIn(2, leader.done)
                self.assertEqual(c[3].core.membership.voters, {1, 2, 3})
                self.assertNotIn(4, c[3].core.membership.members)
                c.cut(side, {1, 2, 3, 4, 5} - set(side))
                c.advance(3.3)
                c[3].input("campaign")
                c.advance(12.0)
                leading = [node for node in c.nodes.values() if node.role is Role.LEADER]
                self.assertEqual(len(leading), 1, side)
                majority = set(side) if len(side) > 2 else {1, 2, 3, 4, 5} - set(side)
                self.assertIn(leading[0].id, majority)
                c.heal()
                c.advance(8.0)
                self.assertEqual(c[3].core.committed_membership.voters, {1, 2, 3, 4, 5})

    def test_h13_a_learner_that_is_a_voter_by_now_lets_the_others_elect(self) -> None:
        """H-13: its vote is needed although its own log does not call it a voter yet."""
        c, leader = led(1, 2, 3)
        leader.change("change", voters(1, 2, 3))
        c.deliver(*c.sent(AppendRequest, target=2))
        c.sync()
        leader.crash()
        c.wire.clear()
        self.assertEqual((c[2].role, c[3].role), (Role.FOLLOWER, Role.LEARNER))
        reply = c.ask(3, 2, VoteRequest(9, LogId(9, 99), 1, transfer=True))
        self.assertTrue(reply.granted)
