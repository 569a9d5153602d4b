"""Taking appends in (§5.3): order, conflicts, hints and the commit index at a follower (H-22 … H-28, J-24 … J-30)."""

from __future__ import annotations

import random
from itertools import permutations
from unittest import TestCase

from tests.core_cluster import Cluster
from zlayer_consensus.errors import InvalidMessage, InvariantBroken
from zlayer_consensus.raft import AppendReply, AppendRequest, Entry, EntryKind, HeartbeatRequest, LogId

CONFIG = LogId(0, 1)


def entry(term: int, index: int, payload: bytes = b"") -> Entry:
    return Entry.make(index, term, EntryKind.COMMAND, payload or f"{term}-{index}".encode())


def append(
    term: int, prev: tuple[int, int], *terms: int, seq: int = 0, stream: int = 0, commit: int = 0
) -> AppendRequest:
    """Build an append of commands with these terms."""
    entries = tuple(entry(of_term, index) for index, of_term in enumerate(terms, prev[1] + 1))
    return AppendRequest(term, stream, seq, LogId(*prev), entries, commit)


def terms(c: Cluster, node_id: int) -> list[int]:
    return [entry.term for entry in c[node_id].disk.written.entries[1:]]


class MatchTests(TestCase):
    def test_entries_are_taken_after_a_matching_position_only(self) -> None:
        """§5.3: the consistency check, with the log that is too short, right, and in conflict."""
        c = Cluster(3, logs={1: [1, 1, 2]})
        self.assertFalse(c.ask(1, 2, append(3, (2, 9), 3)).success)
        self.assertFalse(c.ask(1, 2, append(3, (3, 4), 3, stream=1)).success)
        self.assertEqual(terms(c, 1), [1, 1, 2])
        reply = c.ask(1, 2, append(3, (2, 4), 3, 3, stream=2))
        self.assertEqual((reply.success, reply.match, terms(c, 1)), (True, 6, [1, 1, 2, 3, 3]))

    def test_a_conflicting_suffix_is_replaced(self) -> None:
        c = Cluster(3, logs={1: [1, 2, 2, 2]})
        reply = c.ask(1, 2, append(3, (1, 2), 3))
        self.assertEqual((reply.match, terms(c, 1), c[1].core.last), (3, [1, 3], LogId(3, 3)))

    def test_h22_duplicates_and_older_appends_remove_nothing(self) -> None:
        """H-22: the log is shortened by a conflict only, never by an append that is older or shorter."""
        c = Cluster(3)
        longer = append(1, (0, 1), 1, 1, 1)
        self.assertEqual(c.ask(1, 2, longer).match, 4)
        self.assertEqual(c.ask(1, 2, longer).match, 4)
        self.assertEqual(c.ask(1, 2, append(1, (0, 1), 1)).match, 2)
        self.assertEqual(c.ask(1, 2, append(1, (0, 1))).match, 1)
        self.assertEqual(terms(c, 1), [1, 1, 1])

    def test_h27_entries_that_do_not_follow_each_other(self) -> None:
        """H-27: a gap, a repeated index, a falling term or one above the leader's is refused whole."""
        c = Cluster(3, logs={1: [1]})
        for entries in (
            (entry(1, 4),),
            (entry(1, 3), entry(1, 5)),
            (entry(1, 3), entry(1, 3)),
            (entry(2, 3), entry(1, 4)),
            (entry(0, 3),),
            (entry(4, 3),),
            (Entry.make(3, 2, EntryKind.CONFIG, b"nonsense"),),
        ):
            with self.assertRaises(InvalidMessage):
                c[1].core.request("token", 2, AppendRequest(3, 0, 0, LogId(1, 2), entries, 0), c.now)
        for prev in (LogId(0, -1), LogId(-1, 1), LogId(4, 2)):
            with self.assertRaises(InvalidMessage):
                c[1].core.request("token", 2, AppendRequest(3, 0, 0, prev, (), 0), c.now)
        self.assertEqual((terms(c, 1), c[1].core.term, c[1].core.leader_id), ([1], 1, None))

    def test_h24_the_commit_index_stays_within_what_was_verified(self) -> None:
        """H-24: entries behind this append may be of a deposed leader; neither it nor a heartbeat commits them."""
        c = Cluster(3, logs={1: [1, 1, 1, 1]})
        c.ask(1, 2, HeartbeatRequest(2, 5, 1))
        self.assertEqual(c[1].core.commit, 0)
        c.ask(1, 2, append(2, (1, 2), 1, commit=5))
        self.assertEqual(c[1].core.commit, 3)
        c.ask(1, 2, HeartbeatRequest(2, 5, 2))
        self.assertEqual(c[1].core.commit, 3)
        c.ask(1, 2, append(2, (1, 3), 1, seq=1))
        c.ask(1, 2, HeartbeatRequest(2, 5, 3))
        self.assertEqual(c[1].core.commit, 4)

    def test_h24_what_was_verified_counts_in_its_term_only(self) -> None:
        """H-24: a new leader's log may differ from what the last leader verified."""
        c = Cluster(3)
        c.ask(1, 2, append(1, (0, 1), 1, 1))
        c.ask(1, 3, HeartbeatRequest(2, 3, 1))
        self.assertEqual(c[1].core.commit, 0)

    def test_h25_a_committed_entry_is_never_overwritten(self) -> None:
        """H-25, J-29: the node stops, and says which entry would go; nothing was written."""
        for request in (append(3, (1, 2), 3), append(3, (0, 1), 3), append(3, (3, 3))):
            c = Cluster(3, logs={1: [1, 1, 1]})
            c.ask(1, 2, append(2, (1, 4), commit=3))
            self.assertEqual(c[1].core.commit, 3)
            with self.assertRaisesRegex(InvariantBroken, "committed"):
                c.ask(1, 3, request)
            self.assertEqual(terms(c, 1), [1, 1, 1])

    def test_j28_a_position_that_was_purged_matches(self) -> None:
        """J-28: what is committed equals the leader's log, also where it cannot be looked up any more."""
        c = Cluster(3, logs={1: [1, 1, 1, 1]}, max_in_snapshot_log_to_keep=0)
        c.ask(1, 2, append(2, (1, 5), commit=5))
        c[1].snapshot(4)
        self.assertEqual(c[1].core.purged, LogId(1, 4))
        for prev in ((0, 0), (0, 1), (1, 2), (1, 3), (1, 4)):
            sent = [0, 1, 1, 1, 1, 2][prev[1] :]
            if prev == (0, 0):
                head = (c.nodes[2].disk.durable.entries[0],)
                request = AppendRequest(2, 1, 0, LogId(0, 0), head, 5)
                self.assertEqual(c.ask(1, 2, request).match, 1)
                continue
            reply = c.ask(1, 2, append(2, prev, *sent, stream=2 + prev[1]))
            self.assertEqual((reply.success, reply.match), (True, 6), prev)
        self.assertEqual((c[1].core.purged, c[1].core.last, c[1].core.commit), (LogId(1, 4), LogId(2, 6), 5))

    def test_a_conflict_hint_skips_whole_terms(self) -> None:
        """§5.3: the hint is a position of the follower at which the logs may agree."""
        c = Cluster(3, logs={1: [1, 1, 3, 3, 3]})
        self.assertEqual(c.ask(1, 2, append(5, (4, 20))).conflict, LogId(3, 6))
        self.assertEqual(c.ask(1, 2, append(5, (4, 5), stream=1)).conflict, LogId(3, 5))
        self.assertEqual(c.ask(1, 2, append(5, (2, 5), stream=2)).conflict, LogId(1, 3))

    def test_a_conflict_hint_is_never_before_the_commit_index(self) -> None:
        c = Cluster(3, logs={1: [2, 2, 2, 2]})
        c.ask(1, 2, append(4, (2, 4), commit=4))
        self.assertEqual(c.ask(1, 2, append(4, (1, 5), stream=1)).conflict, LogId(2, 4))


class OrderTests(TestCase):
    """design, "The core": the receiver puts what is within the window in order."""

    def deliver(self, order: tuple[int, ...]) -> None:
        c = Cluster(3)
        replies: dict[int, AppendReply] = {}
        envelopes = {}
        for seq in order:
            request = append(1, (1 if seq else 0, 1 + 2 * seq), 1, 1, seq=seq, commit=1 + 2 * seq)
            reply = c.ask(1, 2, request)
            if reply is None:
                envelopes[seq] = next(e for e in c[1].waiting.values() if e is not None and e.message is request)
            else:
                replies[seq] = reply
        replies.update({seq: c.reply_to(envelope) for seq, envelope in envelopes.items()})
        for seq in order:
            self.assertTrue(replies[seq].success, order)
            self.assertEqual((replies[seq].match, replies[seq].seq), (3 + 2 * seq, seq))
        self.assertEqual(c[1].waiting, {})
        self.assertEqual(terms(c, 1), [1] * 2 * len(order))
        self.assertEqual(c[1].core.commit, 1 + 2 * max(order))

    def test_every_order_of_five(self) -> None:
        """All 120 orders give the same log, and every append succeeds."""
        for order in permutations(range(5)):
            self.deliver(order)

    def test_a_full_window_in_many_orders(self) -> None:
        """Eight concurrent POSTs: reversed, rotated, and three hundred other orders."""
        draw = random.Random(8)
        orders = [tuple(reversed(range(8))), *(tuple(range(n, 8)) + tuple(range(n)) for n in range(8))]
        orders += [tuple(draw.sample(range(8), 8)) for _ in range(300)]
        for order in orders:
            self.deliver(order)

    def test_a_missing_append_does_not_hold_the_others_for_ever(self) -> None:
        """The one in the middle is lost: after a heartbeat interval what came behind it is refused, not forgotten."""
        c = Cluster(3)
        for seq in (0, 2, 3):
            c.ask(1, 2, append(1, (1 if seq else 0, 1 + seq), 1, seq=seq))
        self.assertEqual(len(c[1].waiting), 2)
        wake = c[1].core.next_wake
        assert wake is not None
        self.assertAlmostEqual(wake, c.now + c.config.heartbeat_interval)
        c.sleep(0.2)
        c[1].input("tick")
        self.assertEqual(c[1].waiting, {})
        replies = [envelope.message for envelope in c.sent(AppendReply)]
        self.assertEqual([(reply.seq, reply.success) for reply in replies], [(2, False), (3, False)])
        self.assertEqual(c.ask(1, 2, append(1, (1, 2), 1, 1, 1, stream=1)).match, 5)

    def test_a_new_stream_ends_the_wait(self) -> None:
        """When the leader starts over, what was held for the old stream is answered at once."""
        c = Cluster(3)
        c.ask(1, 2, append(1, (1, 2), 1, seq=3))
        self.assertEqual(len(c[1].waiting), 1)
        self.assertTrue(c.ask(1, 2, append(1, (0, 1), 1, stream=1)).success)
        self.assertEqual(c[1].waiting, {})

    def test_an_old_stream_is_still_answered(self) -> None:
        """A straggler of the stream before neither waits nor disturbs the order of the new one."""
        c = Cluster(3)
        c.ask(1, 2, append(1, (0, 1), 1, 1, stream=4))
        self.assertEqual(c.ask(1, 2, append(1, (0, 1), 1, stream=3, seq=7)).match, 2)
        self.assertEqual(c.ask(1, 2, append(1, (1, 3), 1, stream=4, seq=1)).match, 4)

    def test_a_newer_term_ends_the_wait(self) -> None:
        """What a deposed leader's stream held is answered when the term moves on, and not executed."""
        c = Cluster(3)
        c.ask(1, 2, append(1, (0, 1), 1, seq=0))
        c.ask(1, 2, append(1, (1, 3), 1, seq=2))
        c.ask(1, 3, HeartbeatRequest(2, 0, 1))
        self.assertEqual(c[1].waiting, {})
        reply = c.sent(AppendReply, target=2)[0].message
        self.assertEqual((reply.success, reply.term, reply.seq), (False, 2, 2))

    def test_held_appends_are_bounded(self) -> None:
        """A sender that never sends the first one does not fill the memory."""
        c = Cluster(3, max_inflight_appends=4)
        for seq in range(1, 40):
            c.ask(1, 2, append(1, (1, 1 + seq), 1, seq=seq))
        self.assertLessEqual(len(c[1].waiting), 8)

    def test_a_doubled_append_of_a_window_is_answered_twice(self) -> None:
        """H-22: the copy of one that is held gets an answer of its own, and the order is kept."""
        c = Cluster(3)
        second = append(1, (1, 2), 1, seq=1)
        c.ask(1, 2, second)
        c.ask(1, 2, second)
        self.assertTrue(c.ask(1, 2, append(1, (0, 1), 1, seq=0)).success)
        c.sleep(1.0)
        c[1].input("tick")
        c[1].sync()
        self.assertEqual((c[1].waiting, terms(c, 1)[:1]), ({}, [1]))

    def test_j30_a_reply_names_its_request(self) -> None:
        """J-30, J-25: stream and sequence come back, on success, on failure and from a newer term."""
        c = Cluster(3)
        self.assertEqual(c.ask(1, 2, append(3, (0, 1), 3, stream=7, seq=0)).stream, 7)
        late = c.ask(1, 2, append(3, (3, 9), 3, stream=8, seq=0))
        self.assertEqual((late.stream, late.seq, late.success), (8, 0, False))
        old = c.ask(1, 2, append(2, (0, 1), stream=9, seq=5))
        self.assertEqual((old.stream, old.seq, old.success, old.term), (9, 5, False, 3))


class CompletionTests(TestCase):
    """Storage completions as inputs (J-13, J-23, J-24)."""

    def test_h01_an_append_is_acknowledged_when_it_is_durable(self) -> None:
        """H-01, H-35: the answer waits for its write; a crash before leaves no entry and no answer."""
        c = Cluster(3)
        c[1].hold_disk = True
        self.assertIsNone(c.ask(1, 2, append(1, (0, 1), 1), sync=False))
        c[1].crash()
        c[1].start()
        self.assertEqual(c[1].core.last, CONFIG)

    def test_h01_a_heartbeat_is_not_held_up_by_entries(self) -> None:
        """S-21, J-34: while entries wait for the disk, heartbeats are answered; a term that waits holds them up."""
        c = Cluster(3)
        c.ask(1, 2, HeartbeatRequest(1, 0, 1))
        c.ask(1, 2, append(1, (0, 1), 1), sync=False)
        reply = c.ask(1, 2, HeartbeatRequest(1, 0, 2), sync=False)
        self.assertEqual((reply.round, reply.last_index), (2, 1))
        self.assertIsNone(c.ask(1, 3, HeartbeatRequest(2, 0, 1), sync=False))

    def test_h01_a_duplicate_is_acknowledged_when_the_first_is_durable(self) -> None:
        """H-01: an append that adds nothing still waits for the write that it relies on."""
        c = Cluster(3)
        self.assertIsNone(c.ask(1, 2, append(1, (0, 1), 1), sync=False))
        self.assertIsNone(c.ask(1, 2, append(1, (0, 1), 1), sync=False))
        c[1].sync()
        self.assertEqual([e.message.match for e in c.sent(AppendReply)], [2, 2])

    def test_j24_a_completion_for_an_overwritten_entry(self) -> None:
        """J-24: the same index of an older term on disk does not make the new entry durable."""
        c = Cluster(3, logs={1: [1]})
        c.ask(1, 2, append(2, (1, 2), 2, 2), sync=False)
        c.ask(1, 3, append(3, (1, 2), 3, 3), sync=False)
        c[1].sync(1)
        self.assertEqual(c[1].core.durable, 2)
        self.assertEqual(c.sent(AppendReply, target=3), [])
        c[1].sync(1)
        self.assertEqual((c[1].core.durable, len(c.sent(AppendReply, target=3))), (4, 1))

    def test_j24_there_and_back_again(self) -> None:
        """J-24: an entry that was written, overwritten and written again is durable with its last write only."""
        c = Cluster(3, logs={1: [1]})
        c.ask(1, 2, append(2, (1, 2), 2, 2), sync=False)
        c.ask(1, 3, append(3, (1, 2), 3, 3), sync=False)
        c.ask(1, 2, append(4, (1, 2), 2, 2, 4), sync=False)
        for durable in (2, 2, 5):
            c[1].sync(1)
            self.assertEqual(c[1].core.durable, durable)

    def test_j24_a_completion_from_before_a_restart_of_the_log(self) -> None:
        """J-24: what was written before a snapshot replaced the log says nothing about the new log."""
        c = Cluster(2, max_in_snapshot_log_to_keep=0)
        c.elect(1).propose(*(b"%d" % n for n in range(10)))
        c.advance(0.5)
        c.add_blank(3)
        c.ask(3, 1, append(1, (0, 0), 0, 0, 0), sync=False)
        point = c[1].snapshot()
        verdict, _ = c[3].core.snapshot_offered(1, 1, point.last, c.now)
        self.assertEqual(verdict, "accept")
        c[3].disk.publish(point, c[1].machine, installed=True)
        c[3].input("install", point)
        c[3].sync(1)
        self.assertLess(c[3].core.durable, point.last.index)
        c[3].sync(1)
        self.assertEqual(c[3].core.durable, point.last.index)

    def test_j23_a_completion_stands_for_all_before_it(self) -> None:
        """J-23: durable is a prefix: a later completion covers the earlier ones, whose own then say nothing."""
        c = Cluster(3)
        for index in range(1, 5):
            c.ask(1, 2, append(1, (1 if index > 1 else 0, index), 1, seq=index - 1), sync=False)
        writes = list(c[1].disk.pending)
        c[1].sync(3)
        self.assertEqual((c[1].core.durable, len(c.sent(AppendReply))), (4, 3))
        for write in writes[:3]:
            c[1].input("persisted", write.seq, write.last)
        self.assertEqual(c[1].core.durable, 4)
        with self.assertRaisesRegex(InvariantBroken, "before it was issued"):
            c[1].input("persisted", writes[-1].seq + 1, writes[-1].last)

    def test_j13_a_completion_after_the_term_moved_on(self) -> None:
        """J-13: a leader's write that completes after it was deposed counts for nobody's commit."""
        c = Cluster(3)
        c.elect(1)
        c[1].hold_disk = True
        c[1].propose(b"lost")
        c.wire.clear()
        c.ask(1, 2, append(2, (1, 2), 2), sync=False)
        self.assertEqual(terms(c, 1), [1, 2])
        c[1].sync()
        self.assertEqual((c[1].core.commit, c[1].core.durable), (2, 3))

    def test_h35_a_crash_in_the_middle_of_a_batch(self) -> None:
        """H-35: a prefix of a batch survives; the leader sends the rest, and nothing of it was acknowledged."""
        c = Cluster(3)
        c.elect(1)
        c[3].hold_disk = True
        c[1].propose(b"a", b"b", b"c")
        c.settle()
        write = c[3].disk.pending[0]
        c[3].disk.durable.entries += write.write.entries[:1]
        c[3].crash()
        c[3].hold_disk = False
        c[3].start()
        c.advance(1.0)
        self.assertEqual(c[3].commands, [b"a", b"b", b"c"])
