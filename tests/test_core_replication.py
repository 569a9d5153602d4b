"""Sending appends and committing (§5.3, §5.4.2): H-20 to H-35, J-20 to J-34, with figures 7 and 8 of the paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from unittest import TestCase

from tests.core_cluster import Cluster
from tests.core_scripts import numbers
from zlayer_consensus.errors import InvariantBroken, NotLeader
from zlayer_consensus.raft import (
    AppendReply,
    AppendRequest,
    Draft,
    Entry,
    EntryKind,
    HeartbeatRequest,
    Role,
)


class CommitTests(TestCase):
    def figure_8(self) -> Cluster:
        """Play figure 8 up to (c): S1 leads again, in term 4, and its entry of term 2 is on a majority."""
        c = Cluster(
            5,
            logs={1: [1, 2], 2: [1, 2], 3: [1], 4: [1], 5: [1, 3]},
            terms={1: 3, 2: 3, 3: 3, 4: 3, 5: 3},
            max_payload_entries=1,
        )
        c.cut({1, 2, 3}, {4}, {5})
        c[1].input("campaign")
        probed: set[int] = set()
        for _ in range(30):
            c.sync()
            if not c.wire:
                c[1].input("heartbeat")
            for envelope in list(c.wire):
                message = envelope.message
                if isinstance(message, AppendRequest) and any(entry.term == 4 for entry in message.entries):
                    if envelope.target not in probed:  # it tells what it has, and gets nothing
                        probed.add(envelope.target)
                        envelope.message = dataclasses.replace(message, entries=())
                        c.deliver(envelope)
                        continue
                    c.wire.remove(envelope)
                    c[1].input("send_failed", envelope.target, message)
                else:
                    c.deliver(envelope)
        self.assertEqual((c[1].role, c[1].core.term), (Role.LEADER, 4))
        self.assertEqual([c[1].core.progress()[peer].match for peer in (2, 3)], [3, 3])
        self.assertEqual([c[1].core.term_at(3), c[2].core.term_at(3), c[3].core.term_at(3)], [2, 2, 2])
        return c

    def test_h20_figure_8_an_older_term_is_not_committed_by_counting(self) -> None:
        """H-20, J-20: the entry of term 2 is on three of five, and not committed; S5 may still overwrite it."""
        c = self.figure_8()
        self.assertLess(c[1].core.commit, 3)
        c[1].crash()
        c.wire.clear()
        c.heal()
        c[5].input("campaign")
        c.settle()  # it learns the term
        c.elect(5)
        c.advance(1.0)
        self.assertEqual({c[n].disk.written.term_at(3) for n in (2, 3, 4, 5)}, {3})
        c[1].start()
        c.advance(1.0)
        self.assertEqual(c[1].disk.written.term_at(3), 3)

    def test_h20_figure_8_an_entry_of_its_own_term_commits_the_older_one(self) -> None:
        """H-20: (e) of the figure: the no-op of term 4 on a majority commits what is before it; S5 cannot win."""
        c = self.figure_8()
        c.advance(1.0)
        self.assertEqual(c[1].core.commit, 4)
        c[1].crash()
        c.heal()
        c.sleep(1.6)
        c[5].input("campaign")
        c.settle()
        self.assertNotEqual(c[5].role, Role.LEADER)
        c.advance(10.0)
        self.assertIn(c.leader().id, (2, 3))
        self.assertEqual({node.disk.written.term_at(3) for node in c.nodes.values()}, {2})

    def test_h21_a_new_leader_appends_a_no_op(self) -> None:
        """H-21: what an earlier leader left uncommitted is committed without a new proposal."""
        c = Cluster(3, logs={1: [1, 1], 2: [1, 1], 3: [1]})
        c.elect(1)
        c.advance(0.1)
        self.assertEqual([node.commands for node in c.nodes.values()], [[b"1-2", b"1-3"]] * 3)
        self.assertEqual(c[1].machine[-1].kind, EntryKind.NOOP)

    def test_h34_nothing_is_committed_before_a_majority_has_it_durable(self) -> None:
        """H-34, J-21, J-22: neither sending nor receiving commits, only completed writes, the leader's own included."""
        c = Cluster(3)
        c.elect(1)
        for node in c.nodes.values():
            node.hold_disk = True
        commit = c[1].core.commit
        c[1].propose(b"a")
        c.settle()
        self.assertEqual(c[1].core.commit, commit)
        c[1].sync()
        c.settle()
        self.assertEqual(c[1].core.commit, commit)
        c[2].sync()
        c.settle()
        self.assertEqual(c[1].core.commit, commit + 1)

    def test_j21_a_single_node_commits_after_its_own_fsync(self) -> None:
        """J-21: alone, the own disk is the majority."""
        c = Cluster(1)
        c.advance(0.0)
        c[1].hold_disk = True
        c[1].propose(b"a")
        c.settle()
        self.assertEqual(c[1].commands, [])
        c[1].crash()
        c[1].start()
        c[1].hold_disk = False
        c.advance(0.0)
        self.assertEqual((c[1].role, c[1].commands), (Role.LEADER, []))

    def test_the_leaders_disk_runs_beside_replication(self) -> None:
        """design, "The core": a majority of others commits an entry that the leader's own disk still has to write."""
        c = Cluster(3)
        c.elect(1)
        c[1].hold_disk = True
        c[1].propose(b"a")
        c.settle()
        self.assertEqual(c[1].commands, [b"a"])
        self.assertLess(c[1].core.durable, c[1].core.commit)
        c[1].propose(b"b")
        for write in c[1].disk.pending:
            state = write.write.hard_state
            self.assertTrue(state is None or state.commit <= c[1].core.durable)

    def test_j22_all_nodes_lose_power_after_an_acknowledgement(self) -> None:
        """J-22: whatever was committed is there when all restart from what was durable."""
        c = Cluster(3)
        c.elect(1)
        done = 0
        for number in range(30):
            c[1 + number % 3].hold_disk = True
            c[1].propose(b"%d" % number)
            c.settle()
            c[1 + number % 3].hold_disk = False
            done = len(c[1].commands)
        for node in c.nodes.values():
            node.crash()
        for node in c.nodes.values():
            node.start()
        c.advance(10.0)
        self.assertEqual(c.leader().commands[:done], numbers(done))
        self.assertEqual(done, 30)

    def test_followers_learn_the_commit_index_soon(self) -> None:
        """A commit notice follows within a tenth of the heartbeat interval."""
        c = Cluster(3)
        c.elect(1)
        c.advance(0.05)
        c[1].propose(b"a")
        c.advance(c.config.heartbeat_interval / 10 + 0.001)
        self.assertEqual([node.commands for node in c.nodes.values()], [[b"a"]] * 3)

    def test_a_follower_that_restarts_within_a_term_learns_the_commit_index(self) -> None:
        """It has to verify its log again; the leader sees from its heartbeat replies that it needs an append."""
        c = Cluster(3)
        c.elect(1)
        c[1].propose(b"a")
        c.settle()
        c[2].crash()
        c[2].start()
        c.advance(1.0)
        self.assertEqual((c[2].commands, c[2].core.term), ([b"a"], 1))

    def test_the_time_in_the_log_never_falls(self) -> None:
        """design, "The core": a clock that steps back, also on the next leader, leaves the log's time where it was."""
        c = Cluster(3)
        c.elect(1)
        c[1].propose(b"a", time_ms=5000)
        c[1].propose(b"b", time_ms=10)
        c.settle()
        c[1].crash()
        c.elect(2).propose(b"c", time_ms=20)
        c.settle()
        self.assertEqual([e.time_ms for e in c[2].machine if e.kind == EntryKind.COMMAND], [5000, 5000, 5000])


class ConvergenceTests(TestCase):
    def test_figure_7_every_log_becomes_the_leaders(self) -> None:
        """§5.3, figure 7: followers that lack entries, have too many, or others."""
        logs = {
            1: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6],
            2: [1, 1, 1, 4, 4, 5, 5, 6, 6],
            3: [1, 1, 1, 4],
            4: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
            5: [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
            6: [1, 1, 1, 4, 4, 4, 4],
            7: [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
        }
        for entries in (300, 1):
            c = Cluster(7, logs=logs, terms={1: 7}, max_payload_entries=entries)
            c.elect(1)
            c.advance(2.0)
            for node in c.nodes.values():
                self.assertTrue(node.disk.written.entries == c[1].disk.written.entries)
                self.assertEqual(node.core.commit, c[1].core.last.index)

    def test_conflicts_are_found_in_a_few_steps(self) -> None:
        """§5.3: a hundred entries of three foreign terms take a probe a term, not one an entry."""
        c = Cluster(2, logs={1: [1, *[5] * 100], 2: [1, *[2] * 40, *[3] * 40, *[4] * 40]}, terms={2: 5})
        c.elect(1)
        self.assertTrue(c[2].disk.written.entries == c[1].disk.written.entries)
        self.assertLess(c.delivered[AppendRequest], 8)

    def test_old_entries_are_read_from_the_store(self) -> None:
        """What is not in memory any more is read in bounded pieces, one at a time."""
        c = Cluster(3, log_cache_bytes=0, max_payload_entries=7)
        c.elect(1)
        c.cut({1, 2}, {3})
        for number in numbers(50):
            c[1].propose(number)
            c.settle()
        c.heal()
        c.advance(8.0)
        self.assertEqual(c[3].commands, numbers(50))

    def test_j27_entries_from_the_store_that_are_not_the_logs_stop_the_leader(self) -> None:
        """J-27: a store that returns something else is broken; nothing is sent."""
        for wrong in (
            lambda entries: entries[1:],
            lambda entries: [entry._replace(term=9) for entry in entries],
            lambda entries: [entries[0], entries[2]],
        ):
            self.serve_wrong_entries(wrong)

    def serve_wrong_entries(self, wrong: Callable[[list[Entry]], list[Entry]]) -> None:
        c = Cluster(3, logs={1: [1] * 20, 2: [1] * 20, 3: [1]}, terms={3: 1})
        c[1].input("campaign")
        while not c[1].log_reads:
            for node in c.nodes.values():
                node.sync()
            c.deliver(c.wire[0])
        request = c[1].log_reads[0]
        entries = c[1].disk.serve(request)
        assert entries is not None
        with self.assertRaisesRegex(InvariantBroken, "are not those in the log"):
            c[1].input("log_read", request, wrong(entries))
        self.assertEqual([e for e in c.wire if e.source == 1 and e.target == 3], [])

    def test_a_lost_append_is_made_up_for(self) -> None:
        """§5.3: one of a window gets lost; after its timeout everything is there, in order."""
        c = Cluster(3, max_payload_entries=1)
        c.elect(1)
        c.advance(0.1)
        for number in numbers(8):
            c[1].propose(number)
        lost = c.sent(AppendRequest, target=3)[1]
        c.drop(lost)
        c.settle()
        self.assertLess(len(c[3].log), 8)
        c.advance(6.0)
        self.assertEqual(c[3].commands, numbers(8))

    def test_any_loss_in_a_window_is_made_up_for(self) -> None:
        """§5.3: each single request, and each single reply, of eight appends."""
        for place in range(8):
            for kind in (AppendRequest, AppendReply):
                c = Cluster(3, max_payload_entries=1)
                c.elect(1)
                c.advance(0.1)
                c[1].input("propose", [Draft(number) for number in numbers(8)], 0)
                seen = 0
                while c.wire:
                    c.sync()
                    envelope = c.wire[0]
                    if isinstance(envelope.message, kind) and 3 in (envelope.source, envelope.target):
                        seen += 1
                        if seen == place + 1:
                            c.drop(envelope)
                            continue
                    c.deliver(envelope)
                    c.sync()
                self.assertGreater(seen, place)
                c.advance(6.0)
                self.assertEqual(c[3].commands, numbers(8), (place, kind))


class ProposalTests(TestCase):
    def test_h33_a_follower_refuses_and_names_the_leader(self) -> None:
        """H-33: definite, with the leader's addresses; nothing is appended."""
        c = Cluster(3)
        c.elect(1)
        self.assertIsNone(c[2].propose(b"a"))
        error = c[2].refused["propose"]
        assert isinstance(error, NotLeader)
        self.assertEqual(
            (error.leader_id, error.leader_address, error.leader_client_address), (1, "n1:7000", "n1:8000")
        )
        self.assertEqual(c[2].log, [])

    def test_h33_a_deposed_leader_refuses(self) -> None:
        c = Cluster(3)
        c.elect(1)
        c.ask(1, 2, HeartbeatRequest(9, 0, 1))
        self.assertIsNone(c[1].propose(b"a"))
        self.assertIsInstance(c[1].refused["propose"], NotLeader)

    def test_h88_a_batch_keeps_its_order(self) -> None:
        """H-88: indexes are consecutive, in the order of the drafts and of the calls."""
        c = Cluster(3)
        c.elect(1)
        first, second = c[1].propose(*numbers(3)), c[1].propose(b"x")
        assert first is not None and second is not None
        self.assertEqual((second.first - first.first, first.term), (3, 1))
        c.advance(0.1)
        self.assertEqual(c[2].commands, [*numbers(3), b"x"])

    def test_an_empty_batch_is_nothing(self) -> None:
        c = Cluster(3)
        c.elect(1)
        last = c[1].core.last
        self.assertIsNone(c[1].propose())
        self.assertEqual((c[1].core.last, c[1].refused), (last, {}))

    def test_h34_an_entry_of_a_crashed_leader_is_committed_or_gone(self) -> None:
        """H-34: whether anybody had received it decides; nobody was told it succeeded."""
        for received in (False, True):
            c = Cluster(3)
            c.elect(1)
            c.advance(0.1)
            c[1].propose(b"a")
            c[1].sync()
            if received:
                c.deliver(*c.sent(AppendRequest, target=2))
                c[2].sync()
            self.assertEqual(c[1].commands, [])
            c[1].crash()
            c.wire.clear()
            c.advance(10.0)
            c[1].start()
            c.advance(1.0)
            for node in c.nodes.values():
                self.assertEqual(node.commands, [b"a"] if received else [])
