"""Nodes whose disks are full: what they say, what they still do, and how they come back (S-10, S-11)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.errors import DomainError, NotLeader, OutOfSpace, StorageFull, TransferInProgress
from zlayer_consensus.kv import MAX_TXN_OPERATIONS, Delete, Put, Txn, encode
from zlayer_consensus.kv._commands import PUT
from zlayer_consensus.network import SnapshotChunk
from zlayer_consensus.node import ConsensusNode
from zlayer_consensus.node._snapshots import SnapshotBuilder, _Joined
from zlayer_consensus.node._space import Space
from zlayer_consensus.storage import FileLogStore, FileStateMachine, InlineExecutor
from zlayer_consensus.storage.interfaces import ISnapshotWriter
from zlayer_consensus.testing import SimulatedFileSystem

from .kv_files_kit import make_machine
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
        return super().make(node_id, log, self.store(node_id, disk), **settings)

    def store(self, node_id: int, disk: SimulatedFileSystem) -> FileStateMachine:
        return FileStateMachine("/log", {}, apply, executor=InlineExecutor(), file_system=disk)

    def put(self, number: int) -> Any:
        return ["set", f"k{number}", "v" * 1000]

    def limit(self, *node_ids: int, room: int = ROOM) -> None:
        """Let disks have so much room."""
        for node_id in node_ids:
            self.disks[node_id].capacity = self.disks[node_id].used() + room

    def fill(self) -> int:
        """Set keys until that is refused, and nothing that the nodes do by themselves helps; return how many were."""
        number = refused = 0
        while refused < 5:
            found = self.outcome(self.leader().propose(self.put(number)))
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
        asked = c.clock.seconds()
        self.assertEqual(leader.node_id, c.error(full.read_state(len), NotLeader).leader_id)
        self.assertLess(c.clock.seconds() - asked, 1.0)
        self.assertEqual(0, c.result(full.read_state(lambda machine: len(machine.state), linearizable=False)))
        c.disks[full.node_id].capacity = None
        c.settle()
        self.assertFalse(full.metrics().full)
        self.assertEqual(100, c.result(full.read_state(lambda machine: len(machine.state))))

    def test_one_full_node_gets_what_was_deleted_elsewhere(self) -> None:
        """S-10: in a snapshot, for which it has room, as it takes no entries; also if no snapshot is due."""
        for logs in (50, 10_000):
            c = DiskCluster(self, **self.settings | {"snapshot_logs_since_last": logs})
            c.begin(1, 2, 3)
            c.run(1.0)
            for number in range(200):
                c.result(c.leader().propose(c.put(number)))
            c.settle()
            for node in c.nodes.values():
                c.result(node.trigger("snapshot"))
            full = c.followers()[0]
            c.limit(full.node_id, room=1000)  # and what it frees at once
            c.run(5.0)
            c.limit(full.node_id, room=250_000)  # less than its own snapshot wants
            c.run(5.0)
            self.assertTrue(full.metrics().full)
            c.result(c.leader().propose(c.put(200)))
            for number in range(190):
                c.result(c.leader().propose(["delete", f"k{number}"]))
            c.run(120.0, 0.05)
            c.settle()
            self.assertFalse(full.metrics().full)
            self.assertEqual(11, c.result(full.read_state(lambda machine: len(machine.state))))

    def test_one_full_node_gets_a_newer_snapshot_that_is_smaller(self) -> None:
        """S-10: one was taken before the deletions, for which it has no room; that no other is due does not matter."""
        c = DiskCluster(self, **self.settings | {"snapshot_logs_since_last": 10_000, "snapshot_timeout": 1000.0})
        leader = c.begin(1, 2, 3)
        c.run(1.0)
        for number in range(200):
            c.result(leader.propose(c.put(number)))
        c.settle()
        full = c.followers()[0]
        c.limit(full.node_id, room=1000)
        c.until(lambda: full.metrics().full)
        for number in range(200, 210):
            c.result(leader.propose(c.put(number)))
        c.result(leader.trigger("snapshot"))
        c.limit(full.node_id, room=100_000)
        c.run(10.0)
        self.assertLess(full.metrics().applied, leader.metrics().applied)
        for number in range(200):
            c.result(leader.propose(["delete", f"k{number}"]))
        c.until(lambda: full.metrics().applied == leader.metrics().applied, 60.0)

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

    def test_one_that_was_full_before_the_others_gets_what_they_took(self) -> None:
        """S-10: they keep some of the log, as it has no room for a snapshot."""
        c = DiskCluster(self, **self.settings | {"snapshot_logs_since_last": 1000, "max_in_snapshot_log_to_keep": 50})
        c.begin(1, 2, 3)
        c.run(1.0)
        for number in range(200):
            c.result(c.leader().propose(c.put(number)))
        for node in c.nodes.values():
            c.result(node.trigger("snapshot"))
        first, *others = sorted(c.nodes)
        c.limit(first, room=50_000)
        c.until(lambda: c.nodes[first].metrics().full)
        for number in range(200, 230):
            c.result(c.leader(set(others)).propose(c.put(number)))
        self.assertLess(c.nodes[first].metrics().applied, 210)
        for node_id in others:
            c.result(c.nodes[node_id].trigger("snapshot"))
        c.limit(*others, room=-200_000)  # that much is freed with the older snapshot
        c.until(lambda: all(c.nodes[i].metrics().full for i in others))
        c.until(lambda: c.nodes[first].metrics().applied >= 230, 30.0)
        self.assertTrue(c.nodes[first].metrics().full)
        self.assertEqual(230, c.result(c.nodes[first].read_state(lambda machine: len(machine.state))))

    def test_one_that_lacks_room_for_a_snapshot_is_full(self) -> None:
        """S-10: entries find room there, but it can take none: with another that is full there is no majority."""
        c = DiskCluster(self, **self.settings | {"snapshot_logs_since_last": 10_000})
        leader = c.begin(1, 2, 3)
        c.run(1.0)
        late, other = c.followers()
        c.crash(late.node_id)
        for number in range(300):
            c.result(leader.propose(c.put(number)))
        for node in (leader, other):
            c.result(node.trigger("snapshot"))
            c.result(node.trigger("purge"))
        c.limit(late.node_id, room=290_000)
        c.dead.pop().shutdown()  # type: ignore[unused-awaitable]
        c.run(1.0)
        late = c.make(late.node_id)
        c.until(lambda: late.metrics().full)
        self.assertEqual(300, c.result(leader.propose(c.put(0))))  # one member alone is in nobody's way
        c.limit(other.node_id, room=390_000)
        c.until(lambda: other.metrics().full)
        c.run(1.0)
        self.assertEqual((late.node_id, other.node_id), c.error(leader.propose(c.put(1)), OutOfSpace).nodes)
        for number in range(200):
            c.result(leader.propose(["delete", f"k{number}"], frees_space=True))
        c.limit(late.node_id, other.node_id)
        c.until(lambda: not any(node.metrics().full for node in c.nodes.values()), 60.0)
        c.settle()
        self.assertEqual([100] * 3, [len(node.machine.state) for node in c.nodes.values()])

    def test_a_majority_that_is_full_closes_the_cluster_and_a_third_disk_does_not_matter(self) -> None:
        c = self.cluster
        leader = c.leader()
        others = {1, 2, 3} - {leader.node_id}
        c.limit(*others, room=1000)
        c.until(lambda: all(c.nodes[i].metrics().full for i in others))
        c.run(1.0)
        error = c.error(c.leader().propose(["set", "x", "y"]), OutOfSpace)
        self.assertEqual(tuple(sorted(others)), error.nodes)

    def test_a_snapshot_leaves_space_to_the_log(self) -> None:
        """S-10: what is under way when a disk is full has to be written still; a log without space ends the node."""
        c = DiskCluster(self, **self.settings | {"snapshot_logs_since_last": 10_000})
        node = c.begin(1)
        for number in range(300):
            c.result(node.propose(c.put(number)))
        disk = c.disks[1]
        for room, taken in ((330_000, False), (480_000, True)):  # the state is some 300 000 bytes
            c.limit(1, room=room)
            lowest = room
            for _ in range(1000):
                c.clock.advance(0.01)
                lowest = min(lowest, (disk.capacity or 0) - disk.used())
            self.assertGreater(lowest, 49_000)
            self.assertEqual(taken, node.metrics().snapshot is not None)
        self.assertFalse(node.metrics().stopped)

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
        events: list[LogEvent] = []
        observer: ILogObserver = events.append  # type: ignore[assignment]
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        node = c.make(late, low_space_bytes=1)
        c.run(20.0, 0.05)
        self.assertEqual((False, 0), (node.metrics().stopped, len(node.machine.state)))
        told = [each for each in events if "waits for room" in (each.get("log_format") or "")]
        self.assertTrue(told and node.metrics().full)
        self.assertTrue(all(each["needed"] > each["free"] for each in told))
        self.assertEqual(len(told), len({each["needed"] for each in told}))  # each snapshot is told of once
        self.assertEqual(c.leader().node_id, c.error(node.read_state(len), NotLeader, 1.0).leader_id)
        c.disks[late].capacity = None
        c.until(lambda: len(node.machine.state) == 200, 120.0)

    def test_the_error_is_of_its_own_type(self) -> None:
        self.assertFalse(issubclass(OutOfSpace, StorageFull))
        self.assertIn("nodes 1, 3", str(OutOfSpace((1, 3))))
        self.assertEqual({"nodes": (1, 3)}, OutOfSpace((1, 3)).attributes())


class QuotaTests(SynchronousTestCase):
    """Snapshots in a directory with a quota: free space is measured where the log is, and says nothing of it."""

    def test_what_finds_no_room_is_not_sent_again_and_again(self) -> None:
        quota = SimulatedFileSystem()

        class Cluster(DiskCluster):
            def store(self, node_id: int, disk: SimulatedFileSystem) -> FileStateMachine:
                disk = quota if node_id == 3 else disk
                return FileStateMachine("/data", {}, apply, executor=InlineExecutor(), file_system=disk)

        c = Cluster(self, **FullDiskTests.settings | {"snapshot_chunk_bytes": 10_000})
        leader = c.begin(1, 2, 3)
        c.run(1.0)
        if leader.node_id == 3:
            c.result(leader.transfer_leadership(1))
            leader = c.leader()
        c.crash(3)
        for number in range(200):
            c.result(leader.propose(c.put(number)))
        c.result(leader.trigger("snapshot"))
        c.result(leader.trigger("purge"))
        c.dead.pop().shutdown()  # type: ignore[unused-awaitable]
        c.run(1.0)
        quota.capacity = quota.used() + 150_000
        sent: list[int] = []

        def see(kind: str, source: str, target: str, message: Any) -> None:
            if kind == "request" and isinstance(message, SnapshotChunk):
                sent.append(len(message.data))

        c.network.watch = see
        late = c.make(3)
        c.run(200.0, 0.02)
        self.assertTrue(0 < sum(sent) < 20_000_000, sum(sent))
        quota.capacity = None
        c.until(lambda: late.metrics().applied == leader.metrics().applied, 120.0)


class ValueCluster(DiskCluster):
    """Nodes with the values of the key-value store on the same disks."""

    def store(self, node_id: int, disk: SimulatedFileSystem) -> FileStateMachine:
        # A history as short as the disk is small: what it can show is needed.
        machine = make_machine(
            disk, self.clock, directory="/log/values", file_bytes=20_000, history_changes=0, history_bytes=0
        )
        return FileStateMachine("/log", machine, executor=InlineExecutor(), file_system=disk)

    def put(self, number: int) -> Any:
        return encode(Put(b"k%d" % number, b"v" * 1000))


class FullDiskWithValuesTests(SynchronousTestCase):
    """The same with values on disk."""

    settings: ClassVar[dict[str, Any]] = FullDiskTests.settings

    def setUp(self) -> None:
        self.cluster = c = ValueCluster(self, **self.settings)
        c.begin(1, 2, 3)
        c.run(1.0)

    def left_by_deleting(self, doomed: Callable[[int], bool]) -> None:
        c = self.cluster
        c.limit(1, 2, 3)
        count = c.fill()
        self.assertGreater(count, 300)
        left = count
        for number in filter(doomed, range(count)):
            self.assertEqual(1, self.delete(b"k%d" % number))
            left -= 1
        c.until(lambda: not any(node.metrics().full for node in c.nodes.values()), 600.0)
        self.assertEqual(PUT, c.result(c.leader().propose(c.put(count)))[0])
        c.settle()
        self.assertEqual(
            {(left + 1, count + count - left + 2)}, {(len(n.machine), n.machine.revision) for n in c.nodes.values()}
        )
        self.assertEqual(1, len({node.machine.digest() for node in c.nodes.values()}))

    def delete(self, key: bytes) -> int:
        c = self.cluster
        while True:
            found: Any = c.outcome(c.leader().propose(encode(Delete(key)), frees_space=True))
            error = getattr(found, "value", None)
            if error is None:
                return int(found[2])
            assert isinstance(error, TransferInProgress), error
            c.run(1.0)

    def test_left_by_deleting_whole_files(self) -> None:
        self.left_by_deleting(lambda number: number % 100 > 20)

    def test_left_by_deleting_parts_of_files(self) -> None:
        """There is room enough for compaction."""
        self.left_by_deleting(lambda number: number % 5 > 0)

    def test_left_by_deleting_at_a_stroke(self) -> None:
        """Compaction comes later than the last snapshot: that is taken again, and nobody has to change anything."""
        c = self.cluster
        for node in c.nodes.values():
            node.machine._compactor._rate = node.machine._compactor._least = 10_000
        c.limit(1, 2, 3)
        count = c.fill()
        doomed = [number for number in range(count) if number % 5]
        for at in range(0, len(doomed), MAX_TXN_OPERATIONS):
            txn = Txn(success=tuple(Delete(b"k%d" % number) for number in doomed[at : at + MAX_TXN_OPERATIONS]))
            c.result(c.leader().propose(encode(txn), frees_space=True))
        c.run(120.0, 0.05)
        self.assertEqual([False] * 3, [node.metrics().full for node in c.nodes.values()])
        self.assertEqual(PUT, c.result(c.leader().propose(c.put(count)))[0])
        c.settle()
        self.assertEqual(1, len({node.machine.digest() for node in c.nodes.values()}))

    def test_one_full_node_gets_the_same_snapshot_when_it_is_smaller(self) -> None:
        """Nothing is written after the deletions: compaction alone makes a snapshot smaller, which is taken again."""
        c = ValueCluster(self, **self.settings | {"snapshot_timeout": 1000.0})
        leader = c.begin(1, 2, 3)
        c.run(1.0)
        for node in c.nodes.values():
            node.machine._compactor._rate = node.machine._compactor._least = 10_000
        full = c.followers()[0]
        for number in range(300):
            c.result(leader.propose(c.put(number)))
        c.settle()
        c.limit(full.node_id, room=1000)
        c.until(lambda: full.metrics().full)
        for number in range(300, 310):
            c.result(leader.propose(c.put(number)))
        doomed = [Delete(b"k%d" % number) for number in range(300) if number % 5]
        for at in range(0, len(doomed), MAX_TXN_OPERATIONS):
            txn = Txn(success=tuple(doomed[at : at + MAX_TXN_OPERATIONS]))
            c.result(c.leader().propose(encode(txn), frees_space=True))
        c.result(leader.trigger("snapshot"))
        newest = leader._runtime.store.newest()
        assert newest is not None
        self.assertGreater(newest.size, 200_000)
        c.limit(full.node_id, room=100_000)
        c.until(lambda: full.metrics().applied == leader.metrics().applied, 300.0)

    def full_and_behind(self, c: ValueCluster) -> tuple[ConsensusNode, ConsensusNode, ConsensusNode]:
        """Begin a cluster; return the leader, a follower that is full and lacks entries, and the other one."""
        leader = c.begin(1, 2, 3)
        c.run(1.0)
        for number in range(300):
            c.result(leader.propose(c.put(number)))
        c.settle()
        full, other = c.followers()
        c.limit(full.node_id, room=1000)
        c.run(5.0)  # its own log goes first
        c.limit(full.node_id, room=1000)
        c.until(lambda: full.metrics().full)
        for number in range(300, 310):
            c.result(leader.propose(c.put(number)))
        return leader, full, other

    def test_one_full_node_goes_on_with_entries_though_a_snapshot_would_not_fit(self) -> None:
        """The leader offers one since it is full, not since it has no entries: that must not keep it full."""
        c = ValueCluster(self, **self.settings | {"max_in_snapshot_log_to_keep": 10_000})
        leader, full, _ = self.full_and_behind(c)
        c.result(leader.trigger("snapshot"))
        c.run(10.0)
        self.assertEqual(0, leader.metrics().purged)
        c.limit(full.node_id, room=250_000)
        c.until(lambda: full.metrics().applied == leader.metrics().applied, 120.0)

    def test_one_full_node_goes_on_with_entries_of_another_leader(self) -> None:
        """A new leader does not know what the node has. It has the entries, so it offers no snapshot as needed."""
        c = ValueCluster(self, **self.settings | {"max_in_snapshot_log_to_keep": 200})
        old, full, other = self.full_and_behind(c)
        c.run(1.0)
        for node in (old, other):
            c.result(node.trigger("snapshot"))
        c.result(old.transfer_leadership(other.node_id))
        c.run(5.0)
        self.assertTrue(0 < other.metrics().purged < full.metrics().last.index)
        c.limit(full.node_id, room=250_000)
        c.until(lambda: full.metrics().applied == other.metrics().applied, 120.0)

    def test_a_blank_node_on_a_disk_with_little_space(self) -> None:
        """It has nothing of which a snapshot could be taken."""
        c = self.cluster
        c.disks[4] = SimulatedFileSystem()
        c.disks[4].capacity = 150_000
        node = c.make(4)
        c.run(5.0)
        self.assertEqual((True, False), (node.metrics().full, node.metrics().stopped))

    def test_a_new_learner_without_room_for_its_first_snapshot(self) -> None:
        c = self.cluster
        leader = c.leader()
        for number in range(300):
            c.result(leader.propose(c.put(number)))
        c.result(leader.trigger("snapshot"))
        c.result(leader.trigger("purge"))
        c.disks[4] = SimulatedFileSystem()
        c.disks[4].capacity = 300_000
        node = c.make(4)
        _ = leader.add_learner(4, c.address(4), "").addErrback(lambda _: None)
        c.until(lambda: node.metrics().full)
        c.run(20.0)
        self.assertFalse(node.metrics().stopped)
        c.disks[4].capacity = None
        c.until(lambda: node.metrics().applied == leader.metrics().applied, 120.0)

    def test_files_are_not_counted_twice(self) -> None:
        """The next snapshot takes what its stream takes: the files are there already."""
        c = self.cluster
        leader = c.leader()
        for number in range(300):
            c.result(leader.propose(c.put(number)))
        c.result(leader.trigger("snapshot"))
        newest = leader._runtime.store.newest()
        assert newest is not None
        self.assertGreater(newest.size, 300_000)
        c.limit(leader.node_id, room=200_000)
        c.run(5.0)
        self.assertFalse(leader.metrics().full)


class GrowingLogTests(SynchronousTestCase):
    """A snapshot in the making beside a log that grows; both on one disk, of which a part is for the log alone."""

    def drain(self, room: int, growth: int) -> tuple[int, Failure | None]:
        """Write a snapshot of 40 pieces of 1000 bytes; return the least that was free, and why it was given up."""
        free = lowest = room
        runtime: Any = SimpleNamespace(
            config=SimpleNamespace(low_space_bytes=20_000),
            log_store=SimpleNamespace(space=lambda keep: succeed(free), full=False),
            store=SimpleNamespace(newest=lambda: None),
            applier=SimpleNamespace(bytes_applied=0, bytes_covered=0, files_full=False),
            builder=SimpleNamespace(busy=True),
            receiver=SimpleNamespace(lacks_room=False),
            core=SimpleNamespace(progress=dict),
            clock=Clock(),
            sleep=lambda seconds: succeed(None),
        )
        space = runtime.space = Space(runtime)
        space.look()

        async def write(piece: bytes) -> None:
            nonlocal free, lowest
            free -= len(piece) + growth
            lowest = min(lowest, free)
            runtime.clock.advance(0.3)  # it looks every second

        draining = SnapshotBuilder(runtime)._drain(
            cast(ISnapshotWriter, SimpleNamespace(write=write)), cast(_Joined, iter([bytes(1000)] * 40))
        )
        found: list[Failure] = []
        _ = Deferred.fromCoroutine(draining).addErrback(found.append)
        space.stop()
        return lowest, found[0] if found else None

    def test_what_the_log_takes_meanwhile_counts(self) -> None:
        """S-10: it is measured again after each look, and not counted from the beginning."""
        lowest, failure = self.drain(60_000, growth=1000)
        assert failure is not None and failure.check(StorageFull)
        self.assertGreater(lowest, 0)

    def test_with_room_for_both(self) -> None:
        lowest, failure = self.drain(100_000, growth=1000)
        self.assertIsNone(failure)
        self.assertEqual(lowest, 20_000)
