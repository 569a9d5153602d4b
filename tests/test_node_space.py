"""Nodes whose disks are full: what they say, what they still do, and how they come back (S-10, S-11)."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.errors import DomainError, OutOfSpace, StorageFull, TransferInProgress
from zlayer_consensus.node import ConsensusNode
from zlayer_consensus.storage import FileLogStore, FileStateMachine, InlineExecutor
from zlayer_consensus.testing import SimulatedFileSystem

from .node_cluster import NodeCluster

ROOM = 1_000_000


def apply(state: dict[str, Any], command: Any) -> Any:
    """``["set", key, value]`` and ``["delete", key]``."""
    match command:
        case ["set", key, value]:
            state[key] = value
            return len(state)
        case ["delete", key]:
            return state.pop(key, None) is not None
    raise DomainError("unknown", f"{command!r}")


class DiskCluster(NodeCluster):
    """Nodes on simulated disks."""

    def __init__(self, test: SynchronousTestCase, **settings: Any) -> None:
        super().__init__(test, **settings)
        self.disks: dict[int, SimulatedFileSystem] = {}

    def make(self, node_id: int, log: Any = None, machine: Any = None, **settings: Any) -> ConsensusNode:
        disk = self.disks.setdefault(node_id, SimulatedFileSystem())
        log = FileLogStore(
            "/log",
            node_id,
            executor=InlineExecutor(),
            file_system=disk,
            random_bytes=self.random.randbytes,
            segment_bytes=16 << 10,
            reserve_bytes=64 << 10,
        )
        machine = FileStateMachine("/log", {}, apply, executor=InlineExecutor(), file_system=disk)
        return super().make(node_id, log, machine, **settings)

    def limit(self, *node_ids: int, room: int = ROOM) -> None:
        """Let disks have so much room."""
        for node_id in node_ids:
            self.disks[node_id].capacity = self.disks[node_id].used() + room

    def fill(self) -> int:
        """Set keys until that is refused, and nothing that the nodes do by themselves helps; return how many were."""
        number = refused = 0
        while refused < 5:
            found = self.outcome(self.leader().propose(["set", f"k{number}", "v" * 1000]))
            error = getattr(found, "value", None)
            if error is None:
                number, refused = number + 1, 0
                continue
            assert isinstance(error, OutOfSpace | TransferInProgress), error
            self.run(5.0, 0.05)
            refused += 1
        return number


class FullDiskTests(SynchronousTestCase):
    settings: ClassVar[dict[str, Any]] = {
        "snapshot_logs_since_last": 50,
        "max_in_snapshot_log_to_keep": 5,
        "low_space_bytes": 100_000,
    }

    def setUp(self) -> None:
        self.cluster = c = DiskCluster(self, **self.settings)
        c.begin(1, 2, 3)
        c.run(1.0)

    def test_one_full_node_gives_leadership_away_and_waits(self) -> None:
        """S-10: the others go on; it reads, says so, and comes back by itself."""
        c = self.cluster
        full = c.leader()
        c.limit(full.node_id, room=1000)
        c.until(lambda: full.metrics().full)
        leader = c.leader({1, 2, 3} - {full.node_id})
        for number in range(100):
            c.result(leader.propose(["set", f"k{number}", "v" * 1000]))
        m = full.metrics()
        self.assertEqual((False, True), (m.stopped, leader.metrics().replication[full.node_id].full))
        self.assertLess(m.applied, leader.metrics().applied)
        self.assertLess(m.free_bytes or 0, 100_000)
        c.disks[full.node_id].capacity = None
        c.settle()
        self.assertFalse(full.metrics().full)
        self.assertEqual(100, c.result(full.read_state(lambda machine: len(machine.state))))

    def test_all_full_nodes_are_left_by_deleting(self) -> None:
        """S-10, S-11: with what is deleted, with snapshots and purging; nobody has to start or to tell anything."""
        c = self.cluster
        c.limit(1, 2, 3)
        count = c.fill()
        self.assertGreater(count, 100)
        c.run(30.0, 0.05)
        leader = c.leader()
        self.assertIsInstance(c.error(leader.propose(["set", "x", ""])), OutOfSpace)
        self.assertIsInstance(c.error(leader.register_session()), OutOfSpace)
        self.assertGreater(sum(node.metrics().full for node in c.nodes.values()), 1)
        for node in c.nodes.values():
            self.assertFalse(node.metrics().stopped)
            self.assertEqual(count, c.result(node.read_state(lambda machine: len(machine.state))))
        follower = c.followers()[0]
        for number in range(count - 20):
            node = follower if number % 2 else leader
            self.assertIs(True, c.result(node.propose(["delete", f"k{number}"], frees_space=True)))
        c.until(lambda: not any(node.metrics().full for node in c.nodes.values()), 300.0)
        self.assertEqual(21, c.result(c.leader().propose(["set", "again", "v"])))
        c.settle()
        self.assertEqual(1, len({repr(sorted(state)) for state in c.states()}))

    def test_a_majority_that_is_full_closes_the_cluster_and_a_third_disk_does_not_matter(self) -> None:
        c = self.cluster
        leader = c.leader()
        others = {1, 2, 3} - {leader.node_id}
        c.limit(*others, room=1000)
        c.until(lambda: all(c.nodes[i].metrics().full for i in others))
        c.run(1.0)
        error = c.error(c.leader().propose(["set", "x", "y"]), OutOfSpace)
        self.assertEqual(tuple(sorted(others)), error.nodes)

    def test_a_snapshot_for_which_there_is_no_room_waits(self) -> None:
        """S-11, A-26: it is announced again and again, and taken when there is room."""
        c = self.cluster
        leader = c.leader()
        late = c.followers()[0].node_id
        c.crash(late)
        for number in range(200):
            c.result(leader.propose(["set", f"k{number}", "v" * 1000]))
        self.assertGreater(leader.metrics().purged, 100)
        c.limit(late, room=100_000)
        c.dead.pop().shutdown()  # type: ignore[unused-awaitable]
        c.run(1.0)
        node = c.make(late)
        c.run(20.0, 0.05)
        self.assertEqual((False, 0), (node.metrics().stopped, len(node.machine.state)))
        c.disks[late].capacity = None
        c.until(lambda: len(node.machine.state) == 200, 120.0)

    def test_the_error_is_of_its_own_type(self) -> None:
        self.assertFalse(issubclass(OutOfSpace, StorageFull))
        self.assertIn("nodes 1, 3", str(OutOfSpace((1, 3))))
        self.assertEqual({"nodes": (1, 3)}, OutOfSpace((1, 3)).attributes())
