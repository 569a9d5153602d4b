"""What must be true of all nodes together: that the checker sees where it is not, and where a run proves nothing."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.network import SnapshotChunk, SnapshotChunkReply
from zlayer_consensus.raft import (
    NO_LOG,
    AppendReply,
    AppendRequest,
    Entry,
    EntryKind,
    HardState,
    LogId,
    LogWrite,
    Start,
)
from zlayer_consensus.testing.simulation._checker import Checker, Violation
from zlayer_consensus.testing.simulation._mirror import Mirror
from zlayer_consensus.testing.simulation._plan import Fault, Plan
from zlayer_consensus.testing.simulation._run import Outcome, run_plan


def entry(index: int, term: int, payload: bytes = b"x") -> Entry:
    return Entry.make(index, term, EntryKind.COMMAND, payload, index)


class DurabilityTests(SynchronousTestCase):
    """H-01, J-21, J-22: what a reply promises is on the disk when it leaves."""

    def setUp(self) -> None:
        self.checker = Checker()
        self.checker.started(2)

    def write(self, *, durable: bool = True, **fields: Any) -> None:
        write = LogWrite(**fields)
        self.checker.written(2, write)
        if durable:
            self.checker.durable(2, write)

    def told(self, message: Any, asked: Any) -> str:
        try:
            self.checker.message("reply", 1, 2, message, asked)
        except Violation as violation:
            return violation.invariant
        return ""

    def appended(self, term: int, match: int, *entries: Entry) -> str:
        reply = AppendReply(term, 1, 1, True, match, NO_LOG, match)
        return self.told(reply, AppendRequest(term, 1, 1, NO_LOG, entries, 0))

    def test_an_acknowledged_entry_is_the_one_that_was_sent(self) -> None:
        self.write(entries=(entry(1, 1), entry(2, 1)), hard_state=HardState(2, 0, 0))
        self.assertEqual(self.appended(2, 2, entry(1, 1), entry(2, 1)), "")
        self.assertEqual(self.appended(2, 2, entry(1, 1), entry(2, 2)), "persist before send")
        self.assertEqual(self.appended(2, 3, entry(3, 2)), "persist before send")
        self.write(durable=False, truncate_after=1, entries=(entry(2, 2),))
        self.assertEqual(self.appended(2, 2, entry(2, 2)), "persist before send")

    def test_the_term_of_what_is_acknowledged_is_durable(self) -> None:
        self.write(entries=(entry(1, 1),), hard_state=HardState(1, 0, 0))
        self.assertEqual(self.appended(2, 1, entry(1, 1)), "persist before send")
        # A late reply to a former leader says nothing of what a newer one has made of the log since.
        self.write(truncate_after=0, entries=(entry(1, 3),), hard_state=HardState(3, 0, 0))
        self.assertEqual(self.appended(2, 1, entry(1, 1)), "")

    def test_a_snapshot_that_is_installed_is_durable(self) -> None:
        asked = SnapshotChunk(1, LogId(1, 10), b"", b"", 0, 0, b"", True)
        self.assertEqual(self.told(SnapshotChunkReply(1, "installed"), asked), "persist before send")
        self.assertEqual(self.told(SnapshotChunkReply(1, "busy"), asked), "")
        self.write(reset=LogId(1, 10))
        self.assertEqual(self.told(SnapshotChunkReply(1, "installed"), asked), "")

    def test_a_commit_never_runs_ahead_of_the_log_and_never_falls(self) -> None:
        mirror = Mirror()
        write = LogWrite(entries=(entry(1, 1),), hard_state=HardState(1, 0, 2))
        mirror.written(write)
        self.assertIn("the log ends at 1", mirror.completed(write))
        mirror = Mirror()
        write = LogWrite(entries=(entry(1, 1), entry(2, 1)), hard_state=HardState(1, 0, 2))
        mirror.written(write)
        self.assertEqual(mirror.completed(write), "")
        start = Start(HardState(1, 0, 1), NO_LOG, LogId(1, 2), terms=((1, 1),))
        self.assertIn("commit 2 was durable", mirror.opened(start))


class VacuousTests(SynchronousTestCase):
    """A run in which nothing goes wrong proves nothing of what happens when something does."""

    def run_with(self, *faults: Fault) -> Outcome:
        plan = Plan.draw(7)
        knobs = attrs.evolve(plan.knobs, loss=0.0, duplicate=0.0, reply_loss=0.0, straggle=0.0, early_faults=False)
        return run_plan(plan.without(faults=faults, knobs=knobs))

    def test_a_run_without_harm(self) -> None:
        outcome = self.run_with(Fault(0.1, "snapshot", 1))
        self.assertEqual(outcome.verdict, "vacuous")
        self.assertIn("nothing went wrong", outcome.text)
        self.assertEqual(self.run_with(Fault(0.1, "crash", 1)).verdict, "passed")
        self.assertEqual(self.run_with(Fault(0.1, "isolate", 1)).verdict, "passed")


class RotTests(SynchronousTestCase):
    def test_what_rots_under_a_running_node_is_found_by_its_scrub(self) -> None:
        """S-02, S-13."""
        plan = Plan.draw(7)
        config = attrs.evolve(plan.knobs.config, scrub_bytes_per_second=10_000_000, scrub_interval=0.001)
        knobs = attrs.evolve(plan.knobs, config=config)
        faults = tuple(Fault(plan.knobs.duration * (0.5 + at / 50), "bit rot while running", at) for at in range(4))
        outcome = run_plan(plan.without(faults=faults, knobs=knobs))
        self.assertEqual(outcome.verdict, "passed", str(outcome))
        self.assertGreaterEqual(outcome.counts.get("bit rot refused", 0), 1, outcome.counts)
