"""Crashes between any two effects (H-01, H-35, H-66, J-01): what has left is backed by what a restart finds.

The cluster checks every vote and acknowledgement that leaves against the durable writes; here a node is killed and
started again at every point of a script, with any number of its unfinished writes on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import TestCase

from tests.core_cluster import Cluster, member
from tests.core_scripts import numbers, voters
from zlayer_consensus.raft import AddLearner, HardState, LogId, LogWrite, Role, VoteRequest


class Fragile(Cluster):
    """A cluster with slow disks, in which one node crashes once.

    :param at: the event before which it happens.
    :param victim: who crashes, and starts again at once.
    :param kept: how many of its unfinished writes are on disk by then (-1: all).
    """

    def __init__(self, size: int, at: int, victim: int, kept: int, **settings: Any) -> None:
        super().__init__(size, **settings)
        self.events = 0
        self._at, self._victim, self._kept = at, victim, kept

    def _do_one(self) -> bool:
        self.events += 1
        if self.events == self._at:
            node = self[self._victim]
            node.disk.flush(None if self._kept < 0 else self._kept)
            node.crash()
            node.start()
        if self.wire and self.events % 3:
            self.deliver(self.wire[0])
            return True
        for node in self.nodes.values():
            if node.up and node.disk.pending:
                node.sync(1)
                return True
        return super()._do_one()

    def leading(self) -> bool:
        """Return whether somebody leads."""
        return any(node.role is Role.LEADER for node in self.nodes.values())


def short(c: Fragile) -> None:
    """Elect, propose, elect another one."""
    c.advance(2.5)
    for number in numbers(3):
        if c.leading():
            c.leader().propose(number)
        c.advance(0.05)
    c.isolate(1)
    c.advance(4.0)
    if c.leading():
        c.leader().propose(b"x")
    c.settle()
    c.heal()


def long(c: Fragile) -> None:
    """Snapshots, a lagging follower, a new voter, a transfer, a removal."""
    c.advance(2.5)
    c.isolate(3)
    for number in numbers(6):
        if c.leading():
            c.leader().propose(number)
        c.advance(0.05)
    for node in c.nodes.values():
        have = node.core.snapshot.last.index if node.core.snapshot else 0
        if have < len(node.machine) <= node.core.durable:
            node.snapshot()
    c.heal()
    c.advance(2.0)
    for change in (AddLearner(member(4)), voters(1, 2, 3, 4), voters(2, 3, 4)):
        if c.leading():
            c.leader().change("change", change)
        c.advance(1.0)
    if c.leading():
        c.leader().input("transfer", "t", None)
    c.advance(1.0)


class CrashTests(TestCase):
    def play(self, script: Callable[[Fragile], None], at: int, victim: int, kept: int) -> int:
        c = Fragile(3, at, victim, kept, max_in_snapshot_log_to_keep=1)
        if script is long:
            c.add_blank(4)
        script(c)
        events = c.events
        c.advance(12.0)
        where = (script.__name__, at, victim, kept)
        leader = c.leader()
        self.assertTrue(leader.core.ready, where)
        self.assertFalse(leader.core.membership.joint, where)
        leader.propose(b"end")
        c.advance(1.0)
        for node_id in leader.core.membership.members:
            self.assertEqual(c[node_id].commands, leader.commands, where)
        self.assertEqual(leader.commands[-1], b"end", where)
        return events

    def test_h01_a_crash_before_every_event_of_a_short_script(self) -> None:
        """H-01, J-01: each of three victims; none, one or all of its unfinished writes are on disk."""
        events = self.play(short, 0, 1, 0)
        self.assertGreater(events, 60)
        for at in range(1, events + 1):
            for victim in (1, 2, 3):
                self.play(short, at, victim, (0, 1, -1)[(at + victim) % 3])

    def test_h66_crashes_in_a_long_script(self) -> None:
        """H-35, H-43, H-66: with snapshots, membership changes and a transfer."""
        events = self.play(long, 0, 1, 0)
        self.assertGreater(events, 300)
        for at in range(1, events + 1, 5):
            self.play(long, at, 1 + at % 4, at % 3 - 1)


class BackingTests(TestCase):
    """The checks of the harness do find what they are for."""

    def test_an_early_vote_is_found(self) -> None:
        c = Cluster(3)
        c[1].hold_disk = True
        c[1].waiting[1] = None
        c._tokens = 1
        c[1].input("request", 1, 2, VoteRequest(1, LogId(0, 1), 1))
        write = c[1].disk.pending.pop()
        with self.assertRaisesRegex(AssertionError, "may forget"):
            c[1].input("persisted", write.seq, write.last)

    def test_a_second_vote_on_disk_is_found(self) -> None:
        c = Cluster(3)
        c.ask(1, 2, VoteRequest(1, LogId(0, 1), 1))
        image = c[1].disk.durable
        with self.assertRaisesRegex(AssertionError, "second vote"):
            image.apply(LogWrite(hard_state=HardState(1, 3)))

    def test_two_leaders_are_found(self) -> None:
        """J-05: every script of the core is checked for two leaders of one term, after each step."""
        c = Cluster(3)
        c.elect(1)
        c.leaders[1] = 2
        with self.assertRaisesRegex(AssertionError, "both led in term 1"):
            c[1].input("heartbeat")

    def test_a_commit_without_a_quorum_is_found(self) -> None:
        c = Cluster(3)
        c.elect(1)
        for node_id in (2, 3):
            c[node_id].disk.durable.entries.clear()
        c[1].hold_apply = True
        c[1].commit += 1
        with self.assertRaises(AssertionError):
            c.check(c[1])
