"""
Repairs that are interrupted, or find no space: power failures at every step.
"""

from __future__ import annotations

import random
from typing import Literal

from twisted.trial.unittest import SynchronousTestCase

from tests.crash_kit import PowerFailure, fail_power
from tests.log_store_kit import DIRECTORY, SMALL
from tests.repair_kit import (
    IDENTITY,
    SNAP,
    RepairTestCase,
    Scene,
    contents,
    damage_of,
    destroyed,
    make_scene,
    mend,
    remove,
    start_node,
)
from tests.test_file_log_recovery import records, segments
from zlayer_consensus.errors import StorageError, StorageFailed
from zlayer_consensus.storage.inspection import Layout, list_segments
from zlayer_consensus.storage.offline import (
    RepairPlan,
    interrupted,
)
from zlayer_consensus.testing import SimulatedFileSystem


class InterruptionTests(SynchronousTestCase):
    """S-24: a power failure at any operation of a repair; done again, it gives what it would have given."""

    KEEPS: tuple[Literal["none", "all", "prefix"], ...] = ("none", "all", "prefix")

    def explore(self, scene: Scene, every: int = 1) -> None:
        whole = scene.copy()
        plan, _ = mend(whole.disk)
        expected = self.look(whole.disk)
        operations = [name for name, _ in self.operations(scene)]
        for at in range(0, len(operations), every):
            if operations[at] in {"read", "list", "open"}:
                continue
            disk = scene.copy().disk
            disk.operations.clear()
            fail_power(disk, at)
            self.assertRaises(PowerFailure, mend, disk)
            rng = random.Random(at)
            for keep in (*self.KEEPS, rng):
                self.again(disk.crash(keep), scene, plan, expected, f"power failure before operation {at}, keep {keep}")
            self.again(disk.crash(process_only=True), scene, plan, expected, f"killed before operation {at}")

    def operations(self, scene: Scene) -> list[tuple[str, str]]:
        disk = scene.copy().disk
        disk.operations.clear()
        mend(disk)
        return disk.operations

    def look(self, disk: SimulatedFileSystem) -> tuple[object, ...]:
        start, found, identity = start_node(disk.crash(process_only=True))
        return start.last, start.purged, start.hard_state, sorted(found.items()), bool(identity.repair)

    def again(
        self, disk: SimulatedFileSystem, scene: Scene, plan: RepairPlan, expected: tuple[object, ...], what: str
    ) -> None:
        try:
            found = self.look(disk)
        except StorageError:
            found = ()
        if found:
            # Nothing that is less than repaired may open; a log that opens all the same did so before, too.
            self.assertTrue(found == expected or not plan.rewrites_log or self.opened_before(scene), what)
        mend(disk, what)
        self.assertEqual([], damage_of(disk), what)
        self.assertEqual(expected, self.look(disk), what)
        self.assertFalse(interrupted(disk, DIRECTORY), what)
        self.assertEqual([], destroyed(contents(scene.disk), disk), what)

    def opened_before(self, scene: Scene) -> bool:
        try:
            start_node(scene.copy().disk)
        except StorageError:
            return False
        return True

    def test_rot_in_the_newest_segment(self) -> None:
        scene = make_scene(120)
        path = scene.segments[-1]
        scene.disk.corrupt(path, records(scene.disk, path)[2].position + 70, b"\xee")
        self.explore(scene)

    def test_rot_in_the_middle(self) -> None:
        """The newest term and vote stand behind the damage: they are not lost on the way."""
        scene = make_scene(160)
        path = scene.segments[1]
        scene.disk.corrupt(path, records(scene.disk, path)[2].position + 70, b"\xee")
        self.explore(scene)

    def test_a_damaged_snapshot_and_a_log_that_does_not_reach_back(self) -> None:
        scene = make_scene(160, snapshots=(50, 100), purged=90)
        scene.disk.corrupt(f"{SNAP}/100-4/manifest", 30, b"\xee")
        self.explore(scene)

    def test_a_damaged_snapshot_alone(self) -> None:
        scene = make_scene(120, snapshots=(50, 100), purged=30)
        scene.disk.corrupt(f"{SNAP}/100-4/0", 30, b"\xee")
        self.explore(scene)

    def test_damage_that_the_snapshot_covers(self) -> None:
        scene = make_scene(160, snapshots=(120,))
        path = scene.segments[1]
        scene.disk.corrupt(path, records(scene.disk, path)[1].position + 70, b"\xee")
        self.explore(scene)

    def test_a_damaged_identity_and_log(self) -> None:
        scene = make_scene(120)
        path = scene.segments[1]
        scene.disk.corrupt(path, records(scene.disk, path)[1].position + 70, b"\xee")
        scene.disk.corrupt(IDENTITY, 30, b"\xee")
        self.explore(scene)

    def test_a_log_that_is_lost(self) -> None:
        scene = make_scene(120)
        remove(scene.disk, *scene.segments)
        self.explore(scene)


class PlaceTests(RepairTestCase):
    def damaged(self) -> Scene:
        scene = make_scene()
        path = scene.segments[3]
        scene.disk.corrupt(path, records(scene.disk, path)[2].position + 70, b"\xee")
        return scene

    def test_where_files_have_one_name_only_they_are_copied(self) -> None:
        scene = self.damaged()

        def before(operation: str, path: str) -> None:
            if operation == "link":
                raise StorageFailed("link", path, "Operation not permitted")

        scene.disk.before = before
        plan, _ = mend(scene.disk)
        self.assertEqual([], damage_of(scene.disk))
        self.assertTrue(plan.marks)

    def test_on_a_full_disk_it_can_be_done_again(self) -> None:
        scene = self.damaged()
        scene.disk.capacity = scene.disk.used() + 8192
        before = contents(scene.disk)
        self.assertRaises(StorageFailed, mend, scene.disk)
        self.refuses(scene.disk)
        scene.disk.capacity = None
        mend(scene.disk)
        self.assertEqual([], damage_of(scene.disk))
        self.assertEqual([], destroyed(before, scene.disk))

    def test_the_reserve_stays(self) -> None:
        scene = self.damaged()
        mend(scene.disk)
        layout = Layout(DIRECTORY)
        self.assertTrue(scene.disk.exists(layout.reserve))
        self.assertEqual([], [name for name in scene.disk.list(DIRECTORY) if name.startswith("wal.")])

    def test_what_is_kept_takes_no_space_twice(self) -> None:
        scene = self.damaged()
        before = scene.disk.used()
        mend(scene.disk)
        kept_twice = scene.disk.used() - before
        self.assertLess(kept_twice, 3 * SMALL + (64 << 10))
        self.assertEqual(len(list_segments(scene.disk, DIRECTORY)), len(set(segments(scene.disk))))
