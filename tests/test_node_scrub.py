"""Whole nodes that read again what lies on their disks."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.errors import StorageCorrupt
from zlayer_consensus.node import ConsensusNode, ScrubMetrics
from zlayer_consensus.storage import FileLogStore, FileStateMachine, InlineExecutor
from zlayer_consensus.testing import SimulatedFileSystem

from .node_cluster import START_OF_TIME, NodeCluster, NodeTestCase, apply

RATE = 20_000


class FileNodeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.files = SimulatedFileSystem()
        self.cluster = NodeCluster(
            self,
            snapshot_logs_since_last=150,
            max_in_snapshot_log_to_keep=10_000,
            scrub_bytes_per_second=RATE,
            scrub_interval=100.0,
        )
        self.node = self.make()
        self.cluster.result(self.node.bootstrap())
        self.cluster.leader()
        self.cluster.result(self.node.propose_many([["set", str(n), "x" * 100] for n in range(400)]))
        self.read: list[tuple[float, str, int]] = []
        self.said: list[str] = []

        def critical(text: str, /, **fields: Any) -> None:
            self.said.append(text.format(**fields))

        self.patch(self.node._runtime.log, "critical", critical)

    def make(self) -> ConsensusNode:
        log = FileLogStore(
            "/log",
            1,
            reactor=self.cluster.clock,
            executor=InlineExecutor(),
            file_system=self.files,
            segment_bytes=16 << 10,
        )
        machine = FileStateMachine(
            "/data", {}, apply, executor=InlineExecutor(), file_system=self.files, part_bytes=4096
        )
        return self.cluster.make(1, log=log, machine=machine)

    def scrub(self) -> ScrubMetrics:
        found = self.node.metrics().scrub
        assert found is not None
        return found

    def snapshots(self) -> list[str]:
        return [f"/data/snap/{name}" for name in self.files.list("/data/snap") if name != "LOCK"]

    def segments(self) -> list[str]:
        return [f"/log/wal/{name}" for name in self.files.list("/log/wal") if name.endswith(".seg")]

    def finish(self, passes: int) -> None:
        self.cluster.until(lambda: self.scrub().passes == passes or self.node.metrics().stopped, seconds=200.0)

    def test_passes(self) -> None:
        """Both stores, whole, at the rate that is set, with a pause behind; and the metrics tell."""
        self.assertEqual(self.scrub(), ScrubMetrics(0, 0, "", 0, ()))
        began = self.cluster.clock.seconds()
        self.cluster.until(lambda: self.scrub().bytes > 0, seconds=61.0)
        self.assertGreaterEqual(self.cluster.clock.seconds() - began, 59.0)
        began = self.cluster.clock.seconds()
        self.assertIn(self.scrub().path, self.segments())
        self.finish(1)
        took = self.cluster.clock.seconds() - began
        size = self.scrub().bytes
        least = sum(self.files.size(path) // 2 for path in self.segments()[:-1])
        least += sum(self.files.size(f"{path}/{name}") for path in self.snapshots() for name in self.files.list(path))
        self.assertGreater(size, least * 0.9)
        self.assertLess(size / took, 1.1 * RATE)
        self.assertGreater(size / took, 0.7 * RATE)
        ended = START_OF_TIME + self.cluster.clock.seconds()
        self.assertLess(abs(self.scrub().finished_ms / 1000 - ended), 0.1)
        self.assertEqual(self.scrub().path, "")
        self.cluster.run(99.0)
        self.assertEqual(self.scrub().bytes, size)
        self.finish(2)
        self.assertEqual(self.scrub().bytes, 2 * size)
        self.assertEqual(self.said, [])

    def test_work_goes_on(self) -> None:
        """Entries are written, snapshots taken and the log purged while a pass is under way."""
        self.cluster.until(lambda: self.scrub().bytes > 0, seconds=61.0)
        count = 0
        while not self.scrub().passes:
            count += 1
            self.cluster.result(self.node.propose_many([["set", f"{count} {n}", "y" * 50] for n in range(20)]))
            if count % 5 == 0:
                self.cluster.result(self.node.trigger("snapshot"))
                self.cluster.result(self.node.trigger("purge"))
            self.cluster.run(0.3)
        self.assertGreater(count, 5)
        self.assertFalse(self.node.metrics().stopped)

    def test_rot_in_a_sealed_segment(self) -> None:
        """S-02: the node stops and says where, although nobody has asked for these entries."""
        path = self.segments()[1]
        self.files.corrupt(path, 6000, b"\xff\xff")
        self.finish(1)
        error: Any = self.cluster.result(self.node.when_stopped())
        self.assertIsInstance(error, StorageCorrupt)
        self.assertEqual(error.path, path)
        self.assertTrue(0 < error.offset <= 6000)
        self.assertIn(f"{path} is damaged at offset {error.offset}", self.said[-1])
        self.assertIn("entries", self.said[-1])

    def test_rot_in_the_newest_snapshot(self) -> None:
        """J-89: what the node would start from."""
        path = f"{self.snapshots()[-1]}/1"
        self.files.corrupt(path, 100, b"\xff\xff")
        self.finish(1)
        error: Any = self.cluster.result(self.node.when_stopped())
        self.assertIsInstance(error, StorageCorrupt)
        self.assertEqual(error.path, path)

    def test_rot_in_an_older_snapshot(self) -> None:
        """The node goes on: nothing falls back to it. It is told once, and shown until the snapshot is gone."""
        self.cluster.result(self.node.propose(["set", "a", 0]))
        self.cluster.result(self.node.trigger("snapshot"))
        self.assertEqual(len(self.snapshots()), 2)
        path = f"{self.snapshots()[0]}/1"
        self.files.corrupt(path, 100, b"\xff\xff")
        self.finish(1)
        [line] = self.scrub().damaged
        self.assertIn(path, line)
        self.finish(2)
        self.assertEqual(self.scrub().damaged, (line,))
        self.assertEqual(len(self.said), 1)
        self.assertIn(f"{path} is damaged", self.said[0])
        self.cluster.result(self.node.propose(["set", "a", 1]))
        self.cluster.result(self.node.trigger("snapshot"))
        self.finish(3)
        self.assertEqual(self.scrub().damaged, ())

    def test_stopped_meanwhile(self) -> None:
        """It leaves no timer (the cluster checks), and what it waits for says nothing any more."""
        self.cluster.until(lambda: self.scrub().bytes > 0, seconds=61.0)
        self.cluster.result(self.node.shutdown())
        self.assertEqual(self.flushLoggedErrors(), [])


class OtherTests(NodeTestCase):
    def test_in_memory(self) -> None:
        """There is nothing to be read, and the passes come and go."""
        self.cluster.run(70.0, step=0.1)
        self.assertEqual([node.metrics().scrub.passes for node in self.cluster.nodes.values()], [1] * 3)  # type: ignore[union-attr]

    def test_off(self) -> None:
        cluster = NodeCluster(self, scrub_bytes_per_second=0)
        node = cluster.begin(1)
        self.assertIsNone(node.metrics().scrub)
