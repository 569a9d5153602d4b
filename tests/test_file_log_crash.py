"""
Crashes of the file log store: at every operation of the file system, with any part of what was not synced surviving.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from twisted.trial.unittest import SynchronousTestCase

from tests.log_store_kit import content, entry, opened, result, store
from zlayer_consensus.errors import StorageCorrupt
from zlayer_consensus.raft import NO_LOG, Entry, EntryKind, HardState, LogId, LogWrite, Start
from zlayer_consensus.testing import SimulatedFileSystem


class PowerFailure(Exception):
    """The simulated machine stops before an operation."""


@dataclass
class State:
    """What a log holds."""

    entries: dict[int, Entry] = field(default_factory=dict)
    hard_state: HardState = field(default_factory=HardState)
    purged: LogId = NO_LOG

    def copy(self) -> State:
        return State(dict(self.entries), self.hard_state, self.purged)

    def apply(self, item: LogWrite | LogId) -> None:
        if isinstance(item, LogId):
            self.purged = max(self.purged, item, key=lambda position: position.index)
        else:
            if item.reset is not None:
                self.entries, self.purged = {}, item.reset
            if item.truncate_after is not None:
                self.entries = {i: e for i, e in self.entries.items() if i <= item.truncate_after}
            self.entries.update({e.index: e for e in item.entries})
            if item.hard_state is not None:
                self.hard_state = item.hard_state
        self.entries = {i: e for i, e in self.entries.items() if i > self.purged.index}


@dataclass
class Outcome:
    """What a run acknowledged, and what was under way when it ended."""

    acknowledged: State = field(default_factory=State)
    possible: list[State] = field(default_factory=list)
    opened: bool = False


def workload(seed: int, length: int = 40) -> list[LogWrite | LogId]:
    """Makes a random but legal sequence of writes and purges: truncations, resets, elections, records of all sizes."""
    rng = random.Random(seed)
    items: list[LogWrite | LogId] = []
    last, commit, purged, term, terms = 0, 0, 0, 1, {0: 0}
    for _ in range(length):
        choice = rng.random()
        if choice < 0.08 and commit > purged:
            purged = rng.randint(purged + 1, commit)
            items.append(LogId(terms[purged], purged))
            continue
        if choice < 0.12:
            term += 1
            last = commit = purged = last + rng.randint(1, 30)
            terms[last] = term
            items.append(LogWrite(reset=LogId(term, last), hard_state=HardState(term, 0, commit)))
            continue
        truncate = None
        if choice < 0.3 and last > commit:
            truncate = last = rng.randint(commit, last - 1)
            term += 1
        if choice < 0.4:
            items.append(LogWrite(truncate_after=truncate, hard_state=HardState(term, rng.randint(1, 3), commit)))
            term += 1
            continue
        sizes = [0, 20, 300, 700, 5000] if rng.random() < 0.9 else [20000]
        added = tuple(
            Entry.make(
                last + 1 + n,
                term,
                rng.choice((EntryKind.COMMAND, EntryKind.COMMAND, EntryKind.CONFIG, EntryKind.NOOP)),
                rng.choice((bytes, rng.randbytes))(rng.choice(sizes)),
                time_ms=1000 * len(items),
            )
            for n in range(rng.randint(1, 4))
        )
        last += len(added)
        terms.update({e.index: e.term for e in added})
        commit = rng.randint(commit, last)
        items.append(LogWrite(None, truncate, added, HardState(term, 0, commit) if rng.random() < 0.5 else None))
    return items


def run(disk: SimulatedFileSystem, items: list[LogWrite | LogId]) -> Outcome:
    """Opens a store and works through the items until the end, or until the power fails."""
    outcome = Outcome()
    log = store(disk)
    try:
        result(log.open())
        outcome.opened = True
        for item in items:
            outcome.possible = possible_after(outcome.acknowledged, item)
            result(log.purge(item) if isinstance(item, LogId) else log.write(item))
            outcome.acknowledged.apply(item)
            outcome.possible = []
        result(log.close())
    except PowerFailure:
        pass
    return outcome


def possible_after(before: State, item: LogWrite | LogId) -> list[State]:
    """Lists the states that a crash during an item may leave: before, after, and a prefix of its entries."""
    states = []
    if isinstance(item, LogWrite):
        for count in range(len(item.entries)):
            state = before.copy()
            state.apply(LogWrite(item.reset, item.truncate_after, item.entries[:count]))
            states.append(state)
            if item.hard_state is not None:
                early = state.copy()
                early.hard_state = item.hard_state._replace(commit=before.hard_state.commit)
                states.append(early)
    after = before.copy()
    after.apply(item)
    return [*states, after]


def count_operations(items: list[LogWrite | LogId]) -> int:
    disk = SimulatedFileSystem()
    run(disk, items)
    return len(disk.operations)


def run_until(operations: int, items: list[LogWrite | LogId]) -> tuple[SimulatedFileSystem, Outcome]:
    """Works through the items until a number of operations is over, then fails the power."""
    disk = SimulatedFileSystem()
    fail_power(disk, operations)
    return disk, run(disk, items)


def fail_power(disk: SimulatedFileSystem, operations: int) -> None:
    """Lets the power fail at the operation after so many, and at all that follow."""

    def before(_operation: str, _path: str) -> None:
        if len(disk.operations) > operations:
            raise PowerFailure

    disk.before = before


KEEPS: tuple[Literal["none", "all", "prefix"], ...] = ("none", "all", "prefix")


class CrashTests(SynchronousTestCase):
    def check(self, disk: SimulatedFileSystem, allowed: list[State], what: str, unsynced: bool = False) -> None:
        """Opens what a crash left, and everything that crashes of that opening, and of its successors, leave."""
        before = disk.crash(process_only=True)
        state = self.open(disk, allowed, what)
        # What an opening reports is durable, though nobody closed the store.
        self.open(disk.crash("none"), [state], f"{what}; power failure after the recovery")
        rng = random.Random(what)
        recovery = [operation for operation, _ in disk.operations]
        for operations in range(len(recovery)):
            # What only looks leaves the disk as the operation before it did; of the others, a part is enough.
            if recovery[operations] in {"read", "list", "open"} or rng.random() < 0.6:
                continue
            again = before.crash(process_only=True)
            fail_power(again, operations)
            self.assertRaises(PowerFailure, result, store(again).open())
            keep = rng.choice((*KEEPS, rng))
            # A killed process leaves what is not yet on the disk: until it is, the next crash may still take it.
            expected = allowed if unsynced else [state]
            self.open(again.crash(keep), expected, f"{what}; again in the recovery at {operations}, keep {keep}")
        self.go_on(disk, state, what)

    def open(self, disk: SimulatedFileSystem, allowed: list[State], what: str) -> State:
        disk.operations.clear()
        try:
            log, start = opened(disk)
        except StorageCorrupt as error:
            raise self.failureException(f"{what}: {error}") from error
        operations = disk.operations[:]
        state = State({e.index: e for e in content(log, start)}, start.hard_state, start.purged)
        disk.operations[:] = operations
        self.assertIn(state, allowed, what)
        self.assert_consistent(start, state, what)
        return state

    def go_on(self, disk: SimulatedFileSystem, state: State, what: str) -> None:
        """A recovered store takes writes, and they are there after the next crash."""
        disk = disk.crash(process_only=True)
        log, start = opened(disk)
        more = LogWrite(entries=(entry(start.last.index + 1, start.last.term + 1),))
        result(log.write(more))
        expected = state.copy()
        expected.apply(more)
        self.open(disk.crash("none"), [expected], f"{what}; then one more write")

    def assert_consistent(self, start: Start, state: State, what: str) -> None:
        last = max(state.entries, default=start.purged.index)
        self.assertEqual(last, start.last.index, what)
        runs: list[tuple[int, int]] = []
        for index, found_entry in sorted(state.entries.items()):
            if not runs or runs[-1][1] != found_entry.term:
                runs.append((index, found_entry.term))
        self.assertEqual(tuple(runs), start.terms, what)
        configs = tuple(e for _, e in sorted(state.entries.items()) if e.kind == EntryKind.CONFIG)
        self.assertEqual(configs, start.configs, what)
        for at, tail_entry in enumerate(start.tail):
            self.assertEqual(state.entries[start.last.index - len(start.tail) + 1 + at], tail_entry, what)
        self.assertGreaterEqual(start.last_time_ms, max((e.time_ms for e in state.entries.values()), default=0), what)

    def crash_everywhere(self, seed: int, length: int) -> None:
        items = workload(seed, length)
        for operations in range(count_operations(items)):
            disk, outcome = run_until(operations, items)
            allowed = [outcome.acknowledged, *outcome.possible]
            rng = random.Random(f"{seed} {operations}")
            for keep in (*KEEPS, rng):
                what = f"seed {seed}, power failure before operation {operations}, keep {keep}"
                self.check(disk.crash(keep), allowed, what)
            what = f"seed {seed}, killed before operation {operations}"
            self.check(disk.crash(process_only=True), allowed, what, unsynced=True)

    def test_no_crash_loses_what_was_acknowledged(self) -> None:
        """
        S-01, S-24, S-26, J-95, J-96, J-97, J-101, H-35: after a crash at any operation, and crashes of the recovery,
        the store opens with all that was acknowledged, and of the write under way nothing or a prefix.
        """
        self.crash_everywhere(seed=1, length=20)

    def test_many_workloads(self) -> None:
        """The same with other workloads, each crashed at a few places."""
        for seed in range(100, 120):
            items = workload(seed, 60)
            rng = random.Random(seed)
            total = count_operations(items)
            for _ in range(4):
                operations = rng.randrange(total)
                disk, outcome = run_until(operations, items)
                allowed = [outcome.acknowledged, *outcome.possible]
                what = f"seed {seed}, operation {operations}"
                self.check(disk.crash(rng), allowed, what)

    def test_a_run_without_crash(self) -> None:
        """J-02, J-63: hard state, truncations and purges are as they were after every segment was replaced."""
        for seed in range(20):
            items = workload(seed, 120)
            disk = SimulatedFileSystem()
            outcome = run(disk, items)
            self.open(disk, [outcome.acknowledged], f"seed {seed}")
