"""What the tests of repair and recovery share: damaged directories on a simulated disk, and starting a node on them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from hashlib import sha256

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.log_store_kit import DIRECTORY, WAL, append, content, entries, entry, opened, result, store
from tests.test_file_log_recovery import copied, segments
from zlayer_consensus.errors import StorageCorrupt, StorageError
from zlayer_consensus.node._recovery import recover
from zlayer_consensus.raft import Entry, EntryKind, HardState, LogId, LogWrite, Member, Membership, SnapshotPoint, Start
from zlayer_consensus.storage import FileStateMachine, Identity, InlineExecutor
from zlayer_consensus.storage._snapshot_format import seal_manifest
from zlayer_consensus.storage.inspection import examine_log, full_replay, list_snapshots, verify_parts
from zlayer_consensus.storage.offline import (
    RepairOutcome,
    RepairPlan,
    carry_out,
    finish_interrupted,
    locked,
    plan_repair,
)
from zlayer_consensus.testing import SimulatedFileSystem

CLUSTER = b"c" * 16
MEMBERS = Membership.initial(
    # The incarnations that log_store_kit gives.
    [Member(n, random.Random(f"salts of {n}").randbytes(16), f"host-{n}:7001") for n in (1, 2, 3)]
)
SNAP = f"{DIRECTORY}/snap"
IDENTITY = f"{DIRECTORY}/identity"


@dataclass
class Scene:
    """A directory that was closed in order, and what was in it."""

    disk: SimulatedFileSystem
    entries: dict[int, Entry]
    state: HardState
    identity: Identity

    @property
    def last(self) -> int:
        return max(self.entries)

    @property
    def segments(self) -> list[str]:
        return segments(self.disk)

    def copy(self) -> Scene:
        return Scene(copied(self.disk), self.entries, self.state, self.identity)


def state_machine(disk: SimulatedFileSystem) -> FileStateMachine:
    return FileStateMachine(
        DIRECTORY, {}, lambda _state, _command: None, executor=InlineExecutor(), file_system=disk, part_bytes=400
    )


def save_snapshot(
    disk: SimulatedFileSystem, position: LogId, installed: bool = False, membership: Membership = MEMBERS
) -> None:
    machine = state_machine(disk)
    result(machine.open())
    point = SnapshotPoint(position, membership, 1000 + position.index)
    writer = machine.writer(point)
    for _ in range(3):
        result(writer.write(b"state" * 50))
    result(writer.publish())
    result(machine.close())
    if installed:
        [found] = [each for each in list_snapshots(disk, DIRECTORY)[0] if each.position == position]
        assert found.manifest is not None
        sealed = seal_manifest(replace(found.manifest, installed=True))
        disk.truncate(f"{found.path}/manifest", 0)
        disk.corrupt(f"{found.path}/manifest", 0, sealed)


def make_scene(last: int = 300, snapshots: tuple[int, ...] = (), purged: int = 0) -> Scene:
    """Entries of two terms in several segments, of which the last few are not known as committed; vote for 3 in term 5.

    The half of it is of term 1; a tail of term 1 was replaced by term 4.
    """
    disk = SimulatedFileSystem()
    log, _ = opened(disk)
    result(log.adopt(Identity(1, b"", CLUSTER, b"origin")))
    half = last // 2
    config = Entry.make(1, 1, EntryKind.CONFIG, MEMBERS.encode(), 1001)
    result(log.write(LogWrite(entries=(config,), hard_state=HardState(1, 1, 0))))
    for first in range(2, half, 5):
        result(log.write(LogWrite(entries=entries(first, first + 4), hard_state=HardState(1, 1, first - 1))))
    reached = half - 3
    result(log.write(LogWrite(hard_state=HardState(4, 2, reached))))
    first = True
    for index in range(reached + 1, last + 1):
        added = (entry(index, 4),)
        after = reached if first else None
        commit = max(reached, index - 4)
        result(log.write(LogWrite(truncate_after=after, entries=added, hard_state=HardState(4, 2, commit))))
        first = False
    result(log.write(LogWrite(hard_state=HardState(5, 3, last - 3))))
    result(log.close())
    everything = read(disk)
    for index in snapshots:
        save_snapshot(disk, everything[index].id)
    if purged:
        log, _ = opened(disk)
        result(log.purge(everything[purged].id))
        result(log.close())
    return Scene(disk, everything, HardState(5, 3, last - 3), log.identity)


def read(disk: SimulatedFileSystem) -> dict[int, Entry]:
    """Opens the log alone."""
    log, start = opened(disk)
    found = {each.index: each for each in content(log, start)}
    result(log.close())
    return found


def start_node(disk: SimulatedFileSystem, node_id: int = 1) -> tuple[Start, dict[int, Entry], Identity]:
    """Opens log and snapshots as a node does when it starts, and reads every entry."""
    log, machine = store(disk, node_id), state_machine(disk)
    try:
        start = result(Deferred.fromCoroutine(recover(node_id, log, machine)))
        return start, {each.index: each for each in content(log, start)}, log.identity
    finally:
        result(log.close())
        result(machine.close())


def mend(disk: SimulatedFileSystem, seed: object = 0, cluster: bytes = b"") -> tuple[RepairPlan, RepairOutcome | None]:
    """Repairs as ``zconsensus log repair`` does."""
    with locked(disk, DIRECTORY, DIRECTORY):
        finish_interrupted(disk, DIRECTORY)
        plan = plan_repair(disk, DIRECTORY, DIRECTORY, cluster)
        if not plan.needed:
            return plan, None
        return plan, carry_out(disk, DIRECTORY, DIRECTORY, plan, random.Random(f"repair {seed}").randbytes)


def damage_of(disk: SimulatedFileSystem) -> list[str]:
    """Verifies everything that there is; returns what is wrong."""
    try:
        identity, found = examine_log(disk, DIRECTORY)
    except StorageError as error:
        return [str(error)]
    wrong = []
    rows = [each.header for each in found.index.segments]
    before = None
    for segment, following in zip(found.index.segments, [*rows[1:], None], strict=True):
        try:
            before, _ = full_replay(disk, segment.path, segment.header, following, before)
        except StorageCorrupt as error:
            wrong.append(str(error))
            before = None
    for each in list_snapshots(disk, DIRECTORY)[0]:
        try:
            if each.damage is not None:
                raise each.damage
            list(verify_parts(disk, each))
        except StorageCorrupt as error:
            wrong.append(str(error))
    try:
        start_node(disk.crash(process_only=True), identity.node_id)
    except StorageError as error:
        wrong.append(str(error))
    return wrong


def contents(disk: SimulatedFileSystem) -> dict[str, str]:
    """Says what content is where; of what holds data, so without the identity, unless it is damaged."""
    found = {}
    for name, size in disk.files():
        data = disk.read(name, 0, size)
        whole_identity = name == IDENTITY and data[30] != 0xEE
        if not whole_identity and not name.endswith(("LOCK", "reserve", ".tmp")):
            found[sha256(data).hexdigest()] = name
    return found


def destroyed(before: dict[str, str], disk: SimulatedFileSystem) -> list[str]:
    """Names the files whose content is nowhere any more."""
    now = contents(disk)
    return [name for digest, name in before.items() if digest not in now]


class RepairTestCase(SynchronousTestCase):
    def refuses(self, disk: SimulatedFileSystem) -> StorageError:
        error: StorageError = self.assertRaises(StorageError, start_node, copied(disk))
        return error

    def repaired(
        self, scene: Scene, first: int, last: int, marks: bool = True, term: int = 5, vote: int = 3
    ) -> RepairPlan:
        """Repairs a damaged scene; it must have just these entries then, and start."""
        self.assertNotEqual([], damage_of(scene.disk))
        before = contents(scene.disk)
        plan, outcome = mend(scene.disk)
        assert outcome is not None
        self.assertEqual([], damage_of(scene.disk))
        self.assertEqual([], destroyed(before, scene.disk))
        self.assertFalse(plan_repair(scene.disk, DIRECTORY, DIRECTORY).needed)
        start, found, identity = start_node(scene.disk.crash("none"))
        expected = {index: scene.entries[index] for index in range(first, last + 1)}
        self.assertEqual(sorted(expected), sorted(found))
        self.assertEqual(expected, found)
        self.assertEqual(last, start.last.index)
        self.assertEqual(plan.last, start.last)
        self.assertEqual((term, vote), start.hard_state[:2])
        self.assertLessEqual(start.hard_state.commit, start.last.index)
        self.assertEqual(marks, plan.marks)
        self.assertEqual(marks, bool(identity.repair))
        if marks:
            self.assertEqual(outcome.identity.repair, identity.repair)
        self.assertEqual(scene.identity.incarnation, identity.incarnation)
        self.assertEqual(CLUSTER, identity.cluster_id)
        self.goes_on(scene.disk, start)
        return plan

    def goes_on(self, disk: SimulatedFileSystem, start: Start) -> None:
        """The repaired log takes what a leader sends, over several segments, and keeps it; a scrub finds it whole."""
        log, _ = opened(disk)
        term, first = start.last.term + 7, start.last.index + 1
        result(log.write(LogWrite(hard_state=HardState(term, 0, start.last.index))))
        for index in range(first, first + 200, 10):
            append(log, index, index + 9, term)
        while not result(log.scrub(1 << 16)).done:
            pass
        result(log.close())
        self.assertEqual(first + 199, opened(disk.crash("none"))[1].last.index)


def remove(disk: SimulatedFileSystem, *paths: str) -> None:
    for path in paths:
        disk.remove(path)
    disk.sync_dir(WAL)
