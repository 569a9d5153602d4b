"""What is under way to a peer, and what comes back (§5.3): H-23, H-26, H-29, H-32, J-25, J-26, J-33, J-34."""

from __future__ import annotations

from unittest import TestCase

from tests.core_cluster import Cluster, Node
from tests.core_disk import Disk
from tests.core_scripts import numbers
from zlayer_consensus.raft import (
    MAX_INDEX,
    MAX_TERM,
    AppendReply,
    AppendRequest,
    Draft,
    HeartbeatReply,
    HeartbeatRequest,
    LogId,
    Role,
    VoteRequest,
)


class WindowTests(TestCase):
    """H-32: what is under way to one peer is bounded."""

    def under_way(self, c: Cluster, peer: int = 3) -> list[AppendRequest]:
        return [envelope.message for envelope in c.sent(AppendRequest, target=peer)]

    def test_h32_messages_and_entries_are_bounded(self) -> None:
        c = Cluster(3, max_inflight_appends=4, max_payload_entries=10)
        c.elect(1)
        for _ in range(100):
            c[1].propose(*numbers(10))
        self.assertEqual([len(message.entries) for message in self.under_way(c)], [10, 10, 10, 10])
        c.advance(1.0)
        self.assertEqual(len(c[3].commands), 1000)

    def test_h32_bytes_are_bounded(self) -> None:
        """H-32: by the window, and in each message; an entry above the bound travels alone."""
        c = Cluster(3, max_payload_bytes=1000, max_inflight_bytes=3000)
        c.elect(1)
        for _ in range(40):
            c[1].propose(bytes(300))
        c[1].propose(bytes(5000))
        c[1].propose(bytes(300))
        sizes = []
        while messages := self.under_way(c):
            flying = [sum(len(entry.raw) for entry in message.entries) for message in messages]
            self.assertLess(sum(flying), 3000 + max(flying))
            sizes.append(flying[0])
            self.assertTrue(flying[0] <= 1000 or len(messages[0].entries) == 1)
            c.deliver(c.sent(AppendRequest, target=3)[0])
            c[3].sync()
            for reply in c.sent(AppendReply, source=3):
                c.deliver(reply)
        self.assertIn(5000, [size - size % 1000 for size in sizes])
        self.assertEqual(len(c[3].log), 42)

    def test_small_appends_wait_for_company_a_short_while(self) -> None:
        """What is proposed within a few ms joins one append; on a long link the window fills all the same."""
        c = Cluster(3)
        c.elect(1)
        for number in numbers(50):
            c[1].propose(number)
        self.assertEqual([len(message.entries) for message in self.under_way(c)], [1])
        wake = c[1].core.next_wake
        assert wake is not None and wake - c.now < 0.01
        c.sleep(wake - c.now)
        c[1].input("tick")
        self.assertEqual([len(message.entries) for message in self.under_way(c)], [1, 49])
        c.settle()
        self.assertEqual(c[3].log, [(1, number) for number in numbers(50)])

    def test_a_probe_is_alone(self) -> None:
        """Until the logs are known to match, one append is under way."""
        c = Cluster(3, logs={1: [1, 1], 2: [1, 1], 3: []}, terms={3: 1})
        c[1].input("campaign")
        while c[1].role is not Role.LEADER:
            c.sync()
            c.deliver(c.wire[0])
        for number in numbers(10):
            c[1].propose(number)
        self.assertEqual(len(self.under_way(c)), 1)
        self.assertEqual(c[1].core.progress()[3].state, "probe")

    def test_j33_a_peer_that_never_answers_gets_little(self) -> None:
        """J-33: at most a window and two heartbeats are under way to a hung peer, and the others are served."""
        c = Cluster(3)
        c.elect(1)
        for number in numbers(100):
            c[1].propose(number)
            for envelope in list(c.wire):
                if envelope.target != 3:
                    c.deliver(envelope)
                    c.sync()
            c.sleep(0.05)
            c[1].input("tick")
        c[1].input("heartbeat")
        self.assertEqual(len(self.under_way(c)), c.config.max_inflight_appends)
        self.assertLessEqual(len(c.sent(HeartbeatRequest, target=3)), 2)
        self.assertGreater(len(c[1].commands), 98)

    def test_after_a_loss_nothing_is_sent_until_the_peer_answers(self) -> None:
        """J-33: a peer that is down costs one failed append, then heartbeats only."""
        c = Cluster(3)
        c.elect(1)
        c[3].crash()
        c[1].propose(b"a")
        c.settle()
        sent = 0
        for number in numbers(50):
            c[1].propose(number)
            sent += len(c.sent(AppendRequest, target=3))
            c.advance(0.1)
        self.assertEqual(sent, 0)
        c[3].start()
        c.advance(0.5)
        self.assertEqual(c[3].commands, [b"a", *numbers(50)])


class HeartbeatTests(TestCase):
    def test_at_most_two_heartbeats_are_under_way(self) -> None:
        """design, "The core": at most two per peer, however many intervals, commits and reads go by."""
        c = Cluster(3)
        c.elect(1)
        for number in range(30):
            c.sleep(0.05)
            c[1].input("tick")
            c[1].input("read", number)
            c[1].input("heartbeat")
            for peer in (2, 3):
                self.assertLessEqual(len(c.sent(HeartbeatRequest, target=peer)), 2)

    def test_at_most_two_vote_requests_are_under_way(self) -> None:
        """design, "The core": a candidate does not pile up requests at a voter that hangs."""
        c = Cluster(3)
        for _ in range(12):
            c.sleep(1.0)
            wake = c[1].core.next_wake
            if wake is not None and wake <= c.now:
                c[1].input("tick")
            self.assertLessEqual(len(c.sent(VoteRequest, target=3)), 2)
            for envelope in c.sent(VoteRequest):
                c.drop(envelope)
                c.time_out(VoteRequest, 1, envelope.target)

    def test_j34_heartbeats_pass_a_full_window(self) -> None:
        """J-34: with the append window full, a heartbeat still goes out and is answered."""
        c = Cluster(3, max_inflight_appends=1)
        c.elect(1)
        c[1].propose(*numbers(10))
        c[1].propose(*numbers(10))
        c[1].input("heartbeat")
        c.deliver(*c.sent(HeartbeatRequest, target=3))
        self.assertEqual(len(c.sent(HeartbeatReply, source=3)), 1)

    def test_a_lost_heartbeat_frees_its_slot(self) -> None:
        """After its timeout the next one goes out."""
        c = Cluster(3)
        c.elect(1)
        c.isolate(3)
        c.advance(10.0)
        c.heal()
        c.advance(1.0)
        self.assertLess(c.now - c[1].core.progress()[3].last_contact, 0.5)

    def test_heartbeats_commit_no_more_than_the_peer_has(self) -> None:
        """§5.3: the commit index in a heartbeat is one that this peer acknowledged."""
        c = Cluster(3)
        c.elect(1)
        c.cut({1, 2}, {3})
        c[1].propose(*numbers(5))
        c.settle()
        c[1].input("heartbeat")
        beat = c.sent(HeartbeatRequest, target=3)[-1].message
        self.assertEqual(beat.commit, c[1].core.progress()[3].match)


class ReplyTests(TestCase):
    """Old, doubled and wrong replies (H-23, H-26, H-29, J-25, J-26)."""

    def leader_with_window(self) -> tuple[Cluster, Node]:
        c = Cluster(3, max_payload_entries=1)
        leader = c.elect(1)
        c.advance(0.1)
        c.cut({1, 2}, {3})
        c.cut_links = set()
        leader.input("propose", [Draft(number) for number in numbers(6)], 0)
        return c, leader

    def test_h23_replies_in_any_order(self) -> None:
        """H-23: match only grows, and ends at the last index."""
        c, leader = self.leader_with_window()
        for envelope in c.sent(AppendRequest, target=3):
            c.deliver(envelope)
        c[3].sync()
        seen = []
        for reply in reversed(c.sent(AppendReply, source=3)):
            c.deliver(reply)
            seen.append(leader.core.progress()[3].match)
        self.assertEqual(seen, [leader.core.last.index] * len(seen))
        self.assertGreater(len(seen), 3)

    def test_h23_a_rejection_after_a_success_is_ignored(self) -> None:
        """H-23, J-26: a refusal that was overtaken by an acknowledgement moves nothing back."""
        c, leader = self.leader_with_window()
        request = c.sent(AppendRequest, target=3)[0].message
        c.settle()
        before = leader.core.progress()[3]
        refusal = AppendReply(1, request.stream, request.seq, False, 0, LogId(0, 0), 0)
        leader.input("response", 3, request, refusal)
        c.settle()
        after = leader.core.progress()[3]
        self.assertEqual((after.match, after.next, after.alarmed), (before.match, before.next, False))

    def test_j25_replies_to_a_stream_that_was_given_up(self) -> None:
        """J-25: an old acknowledgement still shows what the peer has; an old refusal shows nothing."""
        c, leader = self.leader_with_window()
        requests = c.sent(AppendRequest, target=3)
        c.drop(requests[0])
        c.time_out(AppendRequest, 1, 3)
        stream = requests[1].message
        before = leader.core.progress()[3]
        leader.input("response", 3, stream, AppendReply(1, stream.stream, stream.seq, False, 0, LogId(0, 0), 0))
        self.assertEqual(leader.core.progress()[3].match, before.match)
        probes = len(c.sent(AppendRequest, target=3))
        late = requests[2].message
        leader.input("response", 3, late, AppendReply(1, late.stream, late.seq, False, 0, LogId(0, 0), 0))
        self.assertEqual(len(c.sent(AppendRequest, target=3)), probes, "the probe under way was given up")
        match = stream.prev.index + 1
        c.deliver(requests[1])
        leader.input("response", 3, stream, AppendReply(1, stream.stream, stream.seq, True, match, LogId(0, 0), match))
        self.assertEqual(leader.core.progress()[3].match, match)

    def test_h23_replies_from_an_earlier_term_are_ignored(self) -> None:
        """H-23: what was asked in term 1 says nothing to the leader of term 3, be it the same node."""
        c, leader = self.leader_with_window()
        request = c.sent(AppendRequest, target=3)[0].message
        beat = HeartbeatRequest(1, 0, 999)
        c.wire.clear()
        c.elect(2)
        c.elect(1)
        before = leader.core.progress()[3]
        leader.input("response", 3, request, AppendReply(1, request.stream, request.seq, True, 2, LogId(0, 0), 2))
        leader.input("response", 3, beat, HeartbeatReply(1, 999, 0, 0))
        self.assertEqual(leader.core.progress()[3], before)

    def test_h26_hints_are_clamped(self) -> None:
        """H-26: whatever position a refusal names, the next index stays within (match, last + 1]."""
        for conflict in (
            LogId(0, 0),
            LogId(0, -9),
            LogId(-3, 2),
            LogId(MAX_TERM, MAX_INDEX),
            LogId(0, MAX_INDEX),
            LogId(MAX_TERM, 0),
        ):
            c = Cluster(3, logs={1: [1, 2, 3], 2: [1, 2, 3], 3: [1]}, terms={3: 3})
            c.cut({1, 2}, {3})
            leader = c.elect(1)
            request = next(item[1].message for item in c._lost if isinstance(item[1].message, AppendRequest))
            leader.input("response", 3, request, AppendReply(4, request.stream, request.seq, False, 0, conflict, 0))
            progress = leader.core.progress()[3]
            self.assertTrue(0 < progress.next <= request.prev.index, conflict)
            c.heal()
            c.advance(6.0)
            self.assertEqual(c[3].disk.written.entries, c[1].disk.written.entries)

    def test_an_acknowledgement_of_what_was_never_sent_counts_for_nothing(self) -> None:
        """Counting it could commit what nobody has; the fault is the peer's, so the leader goes on without it."""
        c, leader = self.leader_with_window()
        request = c.sent(AppendRequest, target=3)[0].message
        commit = leader.core.commit
        leader.input("response", 3, request, AppendReply(1, request.stream, request.seq, True, 99, LogId(0, 0), 99))
        self.assertTrue(leader.core.progress()[3].alarmed)
        self.assertEqual(leader.core.commit, commit)
        self.assertEqual(leader.core.role, Role.LEADER)

    def test_replies_of_another_kind_count_as_none(self) -> None:
        """A wrong reply type frees the slot, as a lost reply does."""
        c, leader = self.leader_with_window()
        request = c.sent(AppendRequest, target=3)[0].message
        leader.input("response", 3, request, HeartbeatReply(1, 1, 0, 0))
        self.assertEqual(leader.core.progress()[3].state, "probe")


class AmnesiaTests(TestCase):
    """H-29: a voter that came back with less than it had acknowledged. Its identity stops it first; this is the net."""

    def wiped(self) -> Cluster:
        c = Cluster(3)
        c.elect(1).propose(*numbers(5))
        c.advance(0.5)
        c.check_durability = False
        c[3].crash()
        c[3].disk = Disk()
        c[3].start()
        return c

    def test_h29_it_is_reported_and_counted_for_nothing(self) -> None:
        c = self.wiped()
        c.advance(0.5)
        (alarm,) = c[1].alarms
        self.assertEqual((alarm.peer, alarm.match, alarm.last_index), (3, 7, 0))
        self.assertTrue(c[1].core.progress()[3].alarmed)
        c[2].crash()
        commit = c[1].core.commit
        c[1].propose(b"x")
        c[1].input("read", "r")
        c.advance(1.0)
        self.assertEqual((c[1].core.commit, c[1].reads), (commit, {}))
        self.assertEqual(c[3].commands[:5], numbers(5), "it is replicated to all the same")
        c.advance(2.5)
        self.assertNotEqual(c[1].role, Role.LEADER)
        self.assertIn("r", c[1].refused)

    def test_h29_its_refusals_do_not_make_the_leader_spin(self) -> None:
        """H-29: until a heartbeat shows what is wrong, an append refused at a known match is not repeated at once."""
        c = self.wiped()
        c[1].propose(b"a")
        c.deliver(*c.sent(AppendRequest, target=3))
        c.sleep(0.2)
        c[3].input("tick")
        c.sync()
        before = c.delivered[AppendRequest]
        c.settle()
        self.assertLess(c.delivered[AppendRequest] - before, 5)
        c.advance(0.5)
        self.assertEqual((len(c[1].alarms), c[3].commands), (1, [*numbers(5), b"a"]))

    def test_j26_a_late_refusal_is_no_amnesia(self) -> None:
        """J-26: only a heartbeat reply that was asked for after the acknowledgement can show it."""
        c = Cluster(3)
        leader = c.elect(1)
        c.advance(0.1)
        leader.input("heartbeat")
        early = c.sent(HeartbeatRequest, target=3)[0]
        c.deliver(early)
        leader.propose(b"a")
        held = c.sent(HeartbeatReply, source=3)[0]
        c.wire.remove(held)
        c.settle()
        c.wire.append(held)
        c.settle()
        self.assertEqual((leader.alarms, leader.core.progress()[3].alarmed), ([], False))
