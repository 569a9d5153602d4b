"""
Repairing a damaged data directory: what is kept, what is marked.
"""

from __future__ import annotations

import random

from tests.log_store_kit import DIRECTORY, SMALL, append, entries, entry, opened, result
from tests.repair_kit import (
    CLUSTER,
    IDENTITY,
    SNAP,
    RepairTestCase,
    Scene,
    contents,
    damage_of,
    make_scene,
    mend,
    remove,
    save_snapshot,
    start_node,
    state_machine,
)
from tests.test_file_log_recovery import copied, records, segments
from zlayer_consensus.errors import StorageLocked
from zlayer_consensus.raft import HardState, LogId, LogWrite
from zlayer_consensus.storage import Identity
from zlayer_consensus.storage._identity import read_identity, write_identity
from zlayer_consensus.storage._record import BATCH, SECTOR, Truncate, encode_batch, encode_operation, encode_record
from zlayer_consensus.storage._segment import SEGMENT_HEADER, decode_header, encode_header
from zlayer_consensus.storage.inspection import examine_log
from zlayer_consensus.storage.offline import (
    CannotRepair,
    plan_repair,
)
from zlayer_consensus.testing import SimulatedFileSystem


class WholeTests(RepairTestCase):
    def test_what_is_whole_is_left_alone(self) -> None:
        scene = make_scene(snapshots=(100,), purged=50)
        before = scene.disk.files(), contents(scene.disk)
        plan, outcome = mend(scene.disk)
        self.assertFalse(plan.needed)
        self.assertIsNone(outcome)
        self.assertEqual(before, (scene.disk.files(), contents(scene.disk)))

    def test_a_torn_tail_needs_no_repair(self) -> None:
        """S-01: the next start sets it aside."""
        scene = make_scene()
        log, _ = opened(scene.disk)
        result(log.write(LogWrite(entries=entries(301, 340, 5))))
        last = records(scene.disk, scene.segments[-1])[-1]
        scene.disk.corrupt(scene.segments[-1], last.position + SECTOR, bytes(SECTOR))
        torn = copied(scene.disk)
        self.assertFalse(plan_repair(torn, DIRECTORY, DIRECTORY).needed)
        self.assertEqual(last.first - 1, start_node(torn)[0].last.index)

    def test_what_a_crash_leaves_needs_no_repair(self) -> None:
        """A seal that is missing before an empty segment; a log that has to yield to a received snapshot (S-17)."""
        scene = make_scene()
        log, _ = opened(scene.disk)
        path = scene.segments[-1]
        while scene.segments[-1] == path:
            append(log, log_end(scene.disk) + 1, log_end(scene.disk) + 1, 5)
        before, newest = scene.segments[-2:]
        seal = records(scene.disk, before)[-1]
        scene.disk.corrupt(before, seal.position, bytes(seal.size))
        size = scene.disk.size(newest)
        scene.disk.corrupt(newest, SEGMENT_HEADER, bytes(size - SEGMENT_HEADER))
        self.assertFalse(plan_repair(copied(scene.disk), DIRECTORY, DIRECTORY).needed)
        scene = make_scene()
        save_snapshot(scene.disk, LogId(5, 900), installed=True)
        self.assertFalse(plan_repair(scene.disk, DIRECTORY, DIRECTORY).needed)
        self.assertEqual(900, start_node(scene.disk)[0].last.index)

    def test_a_running_node_is_not_repaired(self) -> None:
        scene = make_scene(snapshots=(100,))
        log, _ = opened(scene.disk)
        self.assertRaises(StorageLocked, mend, scene.disk)
        result(log.close())
        machine = state_machine(scene.disk)
        result(machine.open())
        self.assertRaises(StorageLocked, mend, scene.disk)
        result(machine.close())
        mend(scene.disk)


def log_end(disk: SimulatedFileSystem) -> int:
    return examine_log(disk, DIRECTORY)[1].index.last.index


class LogDamageTests(RepairTestCase):
    """Without snapshots: the log keeps what stands before the damage."""

    def setUp(self) -> None:
        self.scene = make_scene()
        self.assertGreater(len(self.scene.segments), 6)

    def cut_at(self, path: str, position: int) -> int:
        """The last entry before a record, by what the records before it say."""
        ends = [each.last for each in records(self.scene.disk, path) if each.position < position]
        header = decode_header(self.scene.disk.read(path, 0, SEGMENT_HEADER))
        return ends[-1] if ends else header.last.index

    def damaged(self, path: str, offset: int, data: bytes = b"\xee") -> Scene:
        scene = self.scene.copy()
        scene.disk.corrupt(path, offset, data)
        return scene

    def without(self, *paths: str) -> Scene:
        scene = self.scene.copy()
        remove(scene.disk, *paths)
        return scene

    def test_rot_in_any_record(self) -> None:
        """S-02, S-03, S-04: in the newest segment, one in the middle, the first; a bit, a length, a page."""
        for path in (self.scene.segments[-1], self.scene.segments[3], self.scene.segments[0]):
            found = [each for each in records(self.scene.disk, path) if each.entries]
            for record in (found[0], found[len(found) // 2]):
                for offset, data in ((70, b"\xee"), (8, b"\xff\xff\xff\x7f"), (0, bytes(record.size))):
                    scene = self.damaged(path, record.position + offset, data)
                    last = self.cut_at(path, record.position)
                    plan = self.repaired(scene, 1, last)
                    self.assertEqual(path, plan.cut)
                    self.assertGreater(plan.traces.last, last)

    def test_a_misdirected_record(self) -> None:
        """S-05."""
        path = self.scene.segments[2]
        first, second = [each for each in records(self.scene.disk, path) if each.entries][1:3]
        data = self.scene.disk.read(path, first.position, first.size)
        scene = self.damaged(path, second.position, data)
        self.repaired(scene, 1, self.cut_at(path, second.position))

    def test_old_content_of_another_segment(self) -> None:
        """S-06: the salt is another's."""
        path, other = self.scene.segments[3:5]
        size = self.scene.disk.size(path) - SEGMENT_HEADER
        data = self.scene.disk.read(other, SEGMENT_HEADER, size)
        scene = self.damaged(path, SEGMENT_HEADER, data)
        self.repaired(scene, 1, self.cut_at(path, 0))

    def test_a_missing_segment(self) -> None:
        """S-07, S-08: the newest, one in the middle, the first, all."""
        for at in (-1, 3, 1):
            path = self.scene.segments[at]
            scene = self.without(path)
            plan = self.repaired(scene, 1, self.cut_at(path, 0), *self.known_state(at))
            self.assertEqual(path != self.scene.segments[-1], bool(plan.dropped))
        scene = self.without(self.scene.segments[0])
        self.repaired(scene, 1, 0)
        scene = self.without(*self.scene.segments)
        self.repaired(scene, 1, 0, term=0, vote=0)

    def known_state(self, at: int) -> tuple[bool, int, int]:
        """The newest segment holds the last term and vote; without it, another vote may have been given."""
        return (True, 4, 2) if at == -1 else (True, 5, 3)

    def test_a_damaged_segment_header(self) -> None:
        """S-18: term and vote come from what is left; nothing behind is kept, as it does not say what came before."""
        for at in (0, 3, -1):
            path = self.scene.segments[at]
            scene = self.damaged(path, 130)
            last = 0 if at == 0 else self.cut_at(path, 0)
            self.repaired(scene, 1, last, *self.known_state(at))

    def test_a_vote_that_may_be_lost_is_given_to_nobody(self) -> None:
        """S-18: of the greatest term that is known no vote is; so it counts as spent."""
        log, _ = opened(self.scene.disk)
        result(log.write(LogWrite(hard_state=HardState(9, 0, 297))))
        result(log.write(LogWrite(hard_state=HardState(9, 2, 297))))
        result(log.close())
        path = self.scene.segments[-1]
        voted = records(self.scene.disk, path)[-2]
        self.scene.disk.corrupt(path, voted.position + 70, b"\xee")
        self.repaired(self.scene, 1, 300, term=9, vote=1)

    def test_a_header_that_forgets_the_vote(self) -> None:
        """J-02: intact, and not what the segment before it says."""
        path = self.scene.segments[-1]
        header = decode_header(self.scene.disk.read(path, 0, SEGMENT_HEADER))
        forged = encode_header(header._replace(state=HardState(1, 0, header.state.commit)))
        scene = self.damaged(path, 0, forged)
        self.repaired(scene, 1, self.cut_at(path, 0))

    def test_a_damaged_or_false_seal(self) -> None:
        """J-100."""
        for at in (0, 3, -2):
            path = self.scene.segments[at]
            seal = records(self.scene.disk, path)[-1]
            scene = self.damaged(path, seal.position + 70)
            self.repaired(scene, 1, self.cut_at(path, seal.position))

    def test_a_file_of_another_size(self) -> None:
        for at in (2, -1):
            path = self.scene.segments[at]
            scene = self.scene.copy()
            scene.disk.truncate(path, SEGMENT_HEADER + 700)
            self.repaired(scene, 1, self.cut_at(path, 0), *self.known_state(at))

    def test_a_segment_of_another_node(self) -> None:
        """S-09: it counts as missing; but a whole log of another node is not thrown away."""
        other = SimulatedFileSystem()
        log, _ = opened(other, node_id=2)
        result(log.adopt(Identity(2, b"", CLUSTER)))
        for first in range(1, 400, 10):
            append(log, first, first + 9)
        result(log.close())
        foreign = segments(other)[3]
        data = other.read(foreign, 0, SMALL)
        path = self.scene.segments[3]
        scene = self.damaged(path, 0, data)
        self.repaired(scene, 1, self.cut_at(path, 0))
        identity = other.read(IDENTITY, 0, 4096)
        scene = self.scene.copy()
        scene.disk.truncate(IDENTITY, 0)
        scene.disk.corrupt(IDENTITY, 0, identity)
        self.assertRaises(CannotRepair, mend, scene.disk)

    def test_two_damaged_places(self) -> None:
        """What stands before the first one is kept; what stands behind the second is looked at for term and vote."""
        first, second = self.scene.segments[2], self.scene.segments[-1]
        where = records(self.scene.disk, first)[1].position
        scene = self.damaged(first, where + 70)
        scene.disk.corrupt(second, records(scene.disk, second)[0].position + 70, b"\xee")
        self.repaired(scene, 1, self.cut_at(first, where))

    def test_the_commit_is_what_the_kept_part_says(self) -> None:
        """Entries of its end may have been replaced behind the damage, so a later commit may be about others (H-25)."""
        disk = SimulatedFileSystem()
        log, _ = opened(disk, segment_bytes=256 << 10)
        result(log.adopt(Identity(1, b"", CLUSTER)))
        result(log.write(LogWrite(entries=entries(1, 20), hard_state=HardState(1, 1, 10))))
        replaced = records(disk, segments(disk)[0])[-1]
        result(log.write(LogWrite(truncate_after=12, entries=entries(13, 18, 2), hard_state=HardState(2, 1, 12))))
        result(log.write(LogWrite(entries=entries(19, 30, 2), hard_state=HardState(2, 1, 25))))
        result(log.close())
        disk.corrupt(segments(disk)[0], replaced.position + replaced.size + 70, b"\xee")
        plan, _ = mend(disk)
        start, found, _ = start_node(disk)
        self.assertEqual((LogId(1, 20), HardState(2, 1, 10)), (start.last, start.hard_state))
        self.assertEqual(list(entries(1, 20)), list(found.values()))
        self.assertEqual((30, 25), (plan.traces.last, plan.traces.commit))

    def test_an_operation_that_no_log_has(self) -> None:
        """Of a record that breaks a rule at its second operation, the first has no effect either."""
        path = self.scene.segments[-1]
        header = decode_header(self.scene.disk.read(path, 0, SEGMENT_HEADER))
        last = records(self.scene.disk, path)[-1]
        payload = b"".join(encode_batch([entry(301, 6)])[1]) + encode_operation(Truncate(20))
        record, _ = encode_record(BATCH, payload, 1, 301, 20, last.position + last.size, header.salt, last.chain)
        self.scene.disk.corrupt(path, last.position + last.size, record)
        # What the record's other operations say is seen.
        self.repaired(self.scene, 1, 300, term=6, vote=1)

    def test_every_sector(self) -> None:
        """A sweep over the directory: each damaged sector gives the log up to it, or was no damage."""
        rng = random.Random(4)
        for path in self.scene.segments:
            end = max(each.position + each.size for each in records(self.scene.disk, path))
            for at in sorted(rng.sample(range(0, end, SECTOR), 4)):
                scene = self.damaged(path, at, b"\xee" * SECTOR)
                if not damage_of(scene.disk):
                    continue
                plan, _ = mend(scene.disk)
                self.assertEqual([], damage_of(scene.disk))
                _, found, identity = start_node(scene.disk)
                self.assertEqual(list(range(1, plan.last.index + 1)), list(found))
                self.assertEqual(found, {index: self.scene.entries[index] for index in found})
                self.assertTrue(identity.repair)


class SnapshotDamageTests(RepairTestCase):
    """S-16, S-17, J-89."""

    def flip(self, disk: SimulatedFileSystem, path: str) -> None:
        byte = disk.read(path, 40, 1)[0]
        disk.corrupt(path, 40, bytes([byte ^ 1]))

    def name(self, scene: Scene, index: int) -> str:
        return f"{SNAP}/{index}-{scene.entries[index].term}"

    def test_the_newest_of_two(self) -> None:
        """The log reaches back to the older one: nothing is lost."""
        for part in ("manifest", "0", "1"):
            scene = make_scene(snapshots=(100, 200), purged=90)
            self.flip(scene.disk, f"{self.name(scene, 200)}/{part}")
            plan = self.repaired(scene, 91, 300, marks=False)
            self.assertFalse(plan.rewrites_log)
            self.assertEqual(["100-1"], [name for name in scene.disk.list(SNAP) if name != "LOCK"])

    def test_an_older_one(self) -> None:
        scene = make_scene(snapshots=(100, 200), purged=150)
        self.flip(scene.disk, f"{self.name(scene, 100)}/0")
        self.repaired(scene, 151, 300, marks=False)

    def test_the_log_does_not_reach_back_to_the_older_one(self) -> None:
        """What is behind the gap goes; the older snapshot is a state that the cluster had."""
        scene = make_scene(snapshots=(100, 200), purged=150)
        self.flip(scene.disk, f"{self.name(scene, 200)}/manifest")
        self.refuses(scene.disk)
        plan = self.repaired(scene, 101, 100)
        self.assertEqual(LogId(1, 100), plan.last)
        self.assertEqual(300, plan.traces.last)

    def test_the_only_one(self) -> None:
        """With the beginning of the log nothing is lost; without it, nothing is left but who the node is."""
        scene = make_scene(snapshots=(100,))
        self.flip(scene.disk, f"{self.name(scene, 100)}/1")
        self.repaired(scene, 1, 300, marks=False)
        scene = make_scene(snapshots=(100,), purged=80)
        self.flip(scene.disk, f"{self.name(scene, 100)}/1")
        self.repaired(scene, 1, 0)

    def test_one_that_was_taken_again(self) -> None:
        scene = make_scene(snapshots=(100, 200), purged=90)
        again = f"{self.name(scene, 200)}+1"
        scene.disk.rename(self.name(scene, 200), again)
        plan, _ = mend(scene.disk)
        self.assertFalse(plan.needed)
        self.flip(scene.disk, f"{again}/1")
        self.repaired(scene, 91, 300, marks=False)
        self.assertEqual(["100-1"], [name for name in scene.disk.list(SNAP) if name != "LOCK"])

    def test_what_is_no_snapshot(self) -> None:
        scene = make_scene(snapshots=(100,))
        scene.disk.mkdir(f"{SNAP}/1O0-1")
        scene.disk.mkdir(f"{SNAP}/1O0-1/more")
        file = scene.disk.create(f"{SNAP}/1O0-1/more/0")
        file.write(0, b"something")
        file.sync()
        self.repaired(scene, 1, 300, marks=False)

    def test_snapshots_that_are_elsewhere_are_not_taken_for_lost(self) -> None:
        scene = make_scene(snapshots=(100,), purged=80)
        scene.disk.rename(SNAP, f"{DIRECTORY}/elsewhere")
        self.assertRaises(CannotRepair, mend, scene.disk)
        scene.disk.mkdir(SNAP)
        self.repaired(scene, 1, 0)

    def test_a_log_that_ends_before_its_snapshot(self) -> None:
        """S-17: it begins anew behind the snapshot."""
        scene = make_scene(snapshots=(100,))
        save_snapshot(scene.disk, LogId(5, 400))
        self.refuses(scene.disk)
        plan = self.repaired(scene, 401, 400)
        self.assertEqual(LogId(5, 400), plan.last)

    def test_damage_behind_the_snapshot_resets_the_log_to_it(self) -> None:
        """The good part ends before the snapshot does."""
        scene = make_scene(snapshots=(250,))
        path = scene.segments[1]
        scene.disk.corrupt(path, records(scene.disk, path)[1].position + 70, b"\xee")
        at = segment_of(scene, 251)
        scene.disk.corrupt(at, records(scene.disk, at)[0].position + 70, b"\xee")
        plan = self.repaired(scene, 251, 250)
        self.assertIsNone(plan.run)

    def test_damage_that_the_snapshot_covers_loses_nothing(self) -> None:
        """The log goes on from the whole segment behind it, and what is before counts as purged."""
        scene = make_scene(snapshots=(250,))
        path = scene.segments[1]
        scene.disk.corrupt(path, records(scene.disk, path)[1].position + 70, b"\xee")
        self.assertEqual(250, self.repaired(scene, 251, 300, marks=False).last.index - 50)
        scene = make_scene(snapshots=(250,))
        remove(scene.disk, scene.segments[0])
        self.refuses(scene.disk)
        self.repaired(scene, 251, 300, marks=False)

    def test_a_purged_segment_that_is_still_there(self) -> None:
        """The opening looks at it, as nothing is missing behind it: the node does not start, and so it has to go."""
        scene = make_scene(snapshots=(250,))
        log, _ = opened(scene.disk)
        there = {path: scene.disk.read(path, 0, scene.disk.size(path)) for path in scene.segments}
        result(log.purge(scene.entries[200].id))
        result(log.close())
        path = max(there.keys() - set(scene.segments))
        file = scene.disk.create(path)
        file.write(0, there[path])
        file.sync()
        file.close()
        scene.disk.sync_dir(path.rpartition("/")[0])
        self.assertEqual([], damage_of(scene.disk))
        scene.disk.corrupt(path, 3000, b"\xee")
        self.refuses(scene.disk)
        self.repaired(scene, 201, 300, marks=False)

    def test_a_covered_damage_and_another(self) -> None:
        scene = make_scene(snapshots=(250,))
        path = scene.segments[1]
        scene.disk.corrupt(path, records(scene.disk, path)[1].position + 70, b"\xee")
        path = scene.segments[-1]
        record = [each for each in records(scene.disk, path) if each.entries][3]
        scene.disk.corrupt(path, record.position + 70, b"\xee")
        self.repaired(scene, 251, record.first - 1)

    def test_a_vote_that_only_the_damaged_part_knows_marks_the_node(self) -> None:
        """J-02: what follows was begun with a header that has forgotten it."""
        scene = make_scene(snapshots=(250,))
        path = segment_of(scene, 240)
        header = decode_header(scene.disk.read(path, 0, SEGMENT_HEADER))
        forged = header._replace(state=header.state._replace(term=2, voted_for=0))
        scene.disk.corrupt(path, 0, encode_header(forged))
        self.assertNotEqual([], damage_of(scene.disk))
        plan, _ = mend(scene.disk)
        self.assertTrue(plan.marks)
        self.assertEqual([], damage_of(scene.disk))


def segment_of(scene: Scene, index: int) -> str:
    """The segment that begins at or before an entry."""
    return [path for path in scene.segments if int(path[-24:-4]) <= index][-1]


class IdentityDamageTests(RepairTestCase):
    def test_it_is_read_from_the_segments(self) -> None:
        for there in (True, False):
            scene = make_scene(snapshots=(100,), purged=60)
            if there:
                scene.disk.corrupt(IDENTITY, 30, b"\xee")
            else:
                scene.disk.remove(IDENTITY)
                scene.disk.sync_dir(DIRECTORY)
            self.refuses(scene.disk)
            plan = self.repaired(scene, 61, 300)
            self.assertFalse(plan.rewrites_log)
            self.assertTrue(plan.identity_damaged)

    def test_former_clusters_are_read_too(self) -> None:
        scene = make_scene()
        identity = read_identity(scene.disk, DIRECTORY, 1)
        assert identity is not None
        later = Identity(1, identity.incarnation, b"d" * 16, b"", former=(CLUSTER,))
        write_identity(scene.disk, DIRECTORY, later)
        log, _ = opened(scene.disk)
        for index in range(301, 400):
            append(log, index, index, 5)
        result(log.close())
        scene.disk.corrupt(IDENTITY, 30, b"\xee")
        mend(scene.disk)
        found = read_identity(scene.disk, DIRECTORY, 1)
        assert found is not None
        self.assertEqual((b"d" * 16, (CLUSTER,)), (found.cluster_id, found.former))
        self.assertEqual([], damage_of(scene.disk))

    def test_the_first_segment_does_not_know_the_cluster(self) -> None:
        disk = SimulatedFileSystem()
        log, _ = opened(disk)
        result(log.adopt(Identity(1, b"", CLUSTER)))
        append(log, 1, 5)
        result(log.close())
        disk.corrupt(IDENTITY, 30, b"\xee")
        self.assertIn("/v1/status", str(self.assertRaises(CannotRepair, mend, copied(disk))))
        mend(disk, cluster=CLUSTER)
        self.assertEqual(CLUSTER, start_node(disk)[2].cluster_id)

    def test_a_named_cluster_must_be_that_of_the_segments(self) -> None:
        scene = make_scene()
        scene.disk.corrupt(IDENTITY, 30, b"\xee")
        self.assertRaises(CannotRepair, mend, scene.disk, cluster=b"x" * 16)

    def test_with_the_log_damaged_too(self) -> None:
        scene = make_scene()
        path = scene.segments[2]
        record = records(scene.disk, path)[1]
        scene.disk.corrupt(path, record.position + 70, b"\xee")
        scene.disk.corrupt(IDENTITY, 30, b"\xee")
        self.repaired(scene, 1, record.first - 1)

    def test_a_repair_has_an_id_of_its_own(self) -> None:
        """A node that is damaged again before its mark has cleared gets another."""
        scene = make_scene()
        ids = set()
        for seed in range(3):
            path = scene.segments[-1]
            scene.disk.corrupt(path, records(scene.disk, path)[0].position + 70, b"\xee")
            _, outcome = mend(scene.disk, seed)
            assert outcome is not None
            ids.add(outcome.identity.repair)
            scene = Scene(scene.disk, scene.entries, scene.state, outcome.identity)
            log, start = opened(scene.disk)
            for index in range(start.last.index + 1, start.last.index + 50):
                append(log, index, index, 8)
            result(log.close())
        self.assertEqual(3, len(ids))
