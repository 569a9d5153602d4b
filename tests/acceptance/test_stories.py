"""The stories with real processes, at a length for every day; ``make acceptance`` tells them at their full length."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from twisted.trial.unittest import SkipTest, TestCase

from tests.node_cluster import NodeTestCase
from zlayer_consensus.daemon._local_cluster import LocalCluster
from zlayer_consensus.errors import ProposalTooLarge

from . import answers, broken_off, full_disks, kill_all, large_log, larger_than_memory, snapshot_load, torture
from ._scene import CALM, QUICK, STORAGE, Scene
from .catch_up import CatchUp, settings
from .stopped import StoppedFollower, StoppedLeader


class Stories(TestCase):
    # Seconds; each takes less than 20 on an idle machine, and this one may be anything else.
    timeout = 600

    def scene(self, raft: Mapping[str, Any], storage: Mapping[str, Any] = STORAGE, application: str = "kv") -> Scene:
        from twisted.internet import reactor

        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        cluster = LocalCluster(directory, reactor, raft=raft, storage=storage, application=application)
        self.addCleanup(cluster.stop)
        scene = Scene(cluster, reactor, 1, lambda text: None)
        self.addCleanup(lambda: self._closed(scene))
        return scene

    async def _closed(self, scene: Scene) -> None:
        await scene.close()
        await scene.cluster.close()

    async def test_all_killed(self) -> None:
        """Every acknowledged write is there after all nodes were killed at once, and none is doubled (J-80, J-101)."""
        await kill_all.KillAll(self.scene(kill_all.RAFT), rounds=2, acks=200).run()

    async def test_all_killed_with_values_on_disk(self) -> None:
        """The same where the values are in files of their own (S-13, J-80)."""
        scene = self.scene(kill_all.RAFT, larger_than_memory.STORAGE_ON_DISK)
        await kill_all.KillAll(scene, rounds=2, acks=200).run()

    async def test_stopped_follower(self) -> None:
        """One that was stopped leaves the term as it was (H-10)."""
        await StoppedFollower(self.scene(CALM), seconds=4).run()

    async def test_stopped_leader(self) -> None:
        """One that was stopped, and does not know that another leads now, answers no read with an old value."""
        await StoppedLeader(self.scene(QUICK), seconds=4).run()

    async def test_catching_up_by_snapshot(self) -> None:
        """Nodes that need entries which are purged everywhere get a snapshot, and then have all of it."""
        await CatchUp(self.scene(settings(1500)), entries=1500, keys=5).run()

    async def test_snapshots_under_load(self) -> None:
        """A snapshot of everything is taken, sent and installed while writes go on, without another leader."""
        scene = self.scene(snapshot_load.settings())
        # Other tests may run beside it.
        await snapshot_load.SnapshotLoad(scene, keys=20_000, rounds=1, strict=False).run()

    async def test_snapshots_that_break_off(self) -> None:
        """One goes on where it was when its receiver was stopped or killed, and another sender begins afresh."""
        await broken_off.BrokenOff(self.scene(broken_off.RAFT), keys=15_000, stopped=2.0).run()

    async def test_answers(self) -> None:
        """What clients hear at each node, of large proposals, across a dead leader, of a wiped node (H-29, S-19)."""
        await answers.run(self.scene(answers.RAFT))

    async def test_full_disks(self) -> None:
        """S-10, S-11: nodes whose disks are full read on, are left by deleting, and none has to be started again."""
        scene = self.scene(full_disks.RAFT)
        try:
            disks = full_disks.SmallDisks(scene.cluster.directory, 3, 24 << 20)
        except PermissionError as error:
            raise SkipTest(str(error)) from error
        self.addCleanup(disks.unmount)
        self.addCleanup(lambda: scene.kill(scene.running))
        await full_disks.FullDisks(scene).run()

    async def test_large_log(self) -> None:
        """A node starts on a log of many segments without reading them, and takes little memory."""
        told: list[str] = []
        scene = self.scene(large_log.RAFT, STORAGE, large_log.APPLICATION)
        scene.say = told.append
        await large_log.LargeLog(scene, 50_000, STORAGE["segment_bytes"]).run()
        self.assertIn("start 2: ready", told[-1])

    async def test_values_on_disk(self) -> None:
        """Written, read, restarted, sent and overwritten, they take no more memory than fewer would."""
        scene = self.scene(larger_than_memory.RAFT, larger_than_memory.STORAGE_ON_DISK)
        await larger_than_memory.LargerThanMemory(scene, megabytes=48, limit=250).run()

    async def test_torture(self) -> None:
        """Whatever is done to the processes, no acknowledged write is lost or doubled, and no read goes back."""
        await torture.Torture(self.scene(torture.RAFT), seconds=8).run()


class InProcess(NodeTestCase):
    def test_proposal_of_five_megabytes(self) -> None:
        """It is refused by name and limit, and nothing has happened."""
        before = self.lead.metrics().last
        for node in self.cluster.nodes.values():
            error = self.cluster.error(node.propose(["set", "key", bytes(5_000_000)]), ProposalTooLarge)
            self.assertEqual(error.limit, 1 << 20)
            self.assertGreater(error.size, 5_000_000)
            self.assertIn(str(1 << 20), str(error))
        self.cluster.run(1.0)
        self.assertEqual(self.lead.metrics().last, before)
