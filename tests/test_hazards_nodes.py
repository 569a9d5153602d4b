"""Whole nodes on simulated disks, against hazards that no other file has a story for (docs/record.rst)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests import node_cluster
from tests.node_cluster import START_OF_TIME, NodeCluster, NodeTestCase, apply
from zlayer_consensus import _cbor
from zlayer_consensus.errors import NodeStopped, NotLeader, OutcomeUnknown, StorageCorrupt, StorageFailed
from zlayer_consensus.node import ConsensusNode
from zlayer_consensus.raft import HeartbeatRequest, VoteRequest
from zlayer_consensus.storage import (
    ApplyContext,
    FileLogStore,
    FileStateMachine,
    IExecutor,
    InlineExecutor,
    IStateMachine,
    IStateSink,
)
from zlayer_consensus.testing import SimulatedFileSystem

IDS = (1, 2, 3)
DAY = 86_400.0


def chain(state: dict[str, Any], command: Any) -> int:
    """Append a command to a chain of hashes: whatever is lost, doubled or in another order changes the last one."""
    count: int = state.get("count", 0) + 1
    state["count"] = count
    state["hash"] = sha256(state.get("hash", b"") + command.encode()).digest()
    return count


def chained(commands: list[str]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for command in commands:
        chain(state, command)
    return state


class FileNodes:
    """Nodes on files that run the chain."""

    def __init__(self, test: SynchronousTestCase, *ids: int, **settings: Any) -> None:
        self.cluster = NodeCluster(test, **settings)
        self.files = {node_id: SimulatedFileSystem() for node_id in ids}
        for node_id in ids:
            self.start(node_id)
        members = [self.cluster.member(node_id) for node_id in ids]
        for waiting in [node.bootstrap(members) for node in self.cluster.nodes.values()]:
            self.cluster.result(waiting)

    def start(self, node_id: int) -> ConsensusNode:
        files = self.files[node_id]
        log = FileLogStore(
            "/log",
            node_id,
            reactor=self.cluster.clock,
            executor=InlineExecutor(),
            file_system=files,
            segment_bytes=16 << 10,
            tail_bytes=0,
            random_bytes=Random(node_id).randbytes,
        )
        machine = FileStateMachine("/data", {}, chain, executor=InlineExecutor(), file_system=files)
        return self.cluster.make(node_id, log=log, machine=machine)

    def power_failure(self, node_id: int) -> None:
        self.files[node_id] = self.files[node_id].crash("none")
        self.cluster.crash(node_id)

    def stop(self, node_id: int) -> None:
        self.cluster.result(self.cluster.nodes.pop(node_id).shutdown())

    def propose(self, commands: list[str]) -> None:
        for command in commands:
            self.cluster.result(self.cluster.leader().propose(command))

    def isolate(self, node_id: int) -> None:
        others = [self.cluster.address(other) for other in self.files if other != node_id]
        self.cluster.network.partition([self.cluster.address(node_id)], others)


def numbered(first: int, last: int) -> list[str]:
    return [f"command {n}" for n in range(first, last + 1)]


class PowerFailureTests(SynchronousTestCase):
    def test_a_power_failure_at_every_operation_of_both_stores(self) -> None:
        """J-82, J-91: log and snapshots of a node agree, whichever of their writes, renames and removals was last."""
        nodes = FileNodes(self, 1, snapshot_logs_since_last=6, max_in_snapshot_log_to_keep=2)
        cluster, files = nodes.cluster, nodes.files[1]
        node = cluster.leader()
        commands = numbered(1, 30)
        rng = Random(82)
        acknowledged = 0
        left: list[tuple[SimulatedFileSystem, int, str]] = []

        def before(operation: str, path: str) -> None:
            if operation not in ("read", "list", "open"):
                keep: Any = rng.choice(("none", "all", "prefix", rng))
                left.append((files.crash(keep), acknowledged, f"{len(left)}: {operation} {path}, keep {keep}"))

        files.before = before
        for command in commands:
            cluster.result(node.propose(command))
            acknowledged += 1
        files.before = None
        purged = node.metrics().purged
        nodes.stop(1)
        self.assertGreater(purged, 20)
        self.assertGreater(sum("/data" in what for _, _, what in left), 40)
        for disk, known, what in left:
            nodes.files[1] = disk
            again = nodes.start(1)
            cluster.leader()
            cluster.settle()
            count = again.machine.state.get("count", 0)
            self.assertGreaterEqual(count, known, what)
            self.assertEqual(again.machine.state, chained(commands[:count]), what)
            nodes.stop(1)

    def test_fail_over_again_and_again(self) -> None:
        """J-80: each leader loses its power in turn and comes back; every next one has the whole chain."""
        nodes = FileNodes(self, *IDS, snapshot_logs_since_last=8, max_in_snapshot_log_to_keep=0)
        cluster = nodes.cluster
        commands: list[str] = []
        led = set()
        for turn in range(9):
            more = numbered(turn * 10, turn * 10 + 9)
            nodes.propose(more)
            commands += more
            old = cluster.leader().node_id
            led.add(old)
            nodes.power_failure(old)
            new = cluster.leader()
            self.assertEqual(cluster.result(new.read_state(lambda m: dict(m.state))), chained(commands), f"turn {turn}")
            nodes.start(old)
        cluster.settle()
        self.assertEqual(cluster.states(), [chained(commands)] * 3)
        self.assertGreater(len(led), 1)
        self.assertGreater(cluster.leader().metrics().purged, 60)


class DamageTests(SynchronousTestCase):
    def test_a_leader_that_cannot_read_an_old_entry_stops(self) -> None:
        """J-27, S-13: nothing is sent that was made from a failed read; the others go on, and have everything."""
        nodes = FileNodes(self, *IDS, log_cache_bytes=0, snapshot_policy="never")
        cluster = nodes.cluster
        lead = cluster.leader()
        behind = cluster.followers()[0].node_id
        nodes.isolate(behind)
        nodes.propose(numbered(1, 40))
        known = cluster.nodes[behind].metrics().last
        told = lead.when_stopped()
        nodes.files[lead.node_id].fail("read")
        cluster.network.heal()
        self.assertIsInstance(cluster.result(told), StorageFailed)
        self.assertEqual(cluster.nodes[behind].metrics().last, known)
        del cluster.nodes[lead.node_id]
        cluster.leader()
        nodes.propose(["one more"])
        cluster.settle()
        self.assertEqual(cluster.states(), [chained([*numbered(1, 40), "one more"])] * 2)

    def test_a_damaged_node_takes_no_part(self) -> None:
        """J-98: one flipped bit in one node's log: it does not start, changes nothing, and costs nobody anything."""
        nodes = FileNodes(self, *IDS)
        cluster = nodes.cluster
        nodes.propose(numbered(1, 40))
        victim = cluster.followers()[0].node_id
        nodes.stop(victim)
        files = nodes.files[victim]
        wal = [f"/log/wal/{name}" for name in files.list("/log/wal") if name.endswith(".seg")]
        path = wal[-1]
        data = files.read(path, 0, files.size(path))
        used = len(data.rstrip(b"\0"))
        at = next(n for n in range((4096 + used) // 2, used) if data[n])
        files.corrupt(path, at, bytes([data[at] ^ 4]))
        before = [files.read(each, 0, files.size(each)) for each in wal]
        with self.assertRaises(StorageCorrupt):
            nodes.start(victim)
        self.assertEqual([files.read(each, 0, files.size(each)) for each in wal], before)
        damaged = cluster.nodes.pop(victim)
        cluster.dead.append(damaged)
        lead = cluster.leader()
        term = lead.metrics().term
        envelope = lead._runtime.peers.envelope(lead.metrics().membership.members[victim])
        vote = VoteRequest(term + 1, lead.metrics().last, 1, False, True)
        self.failureResultOf(damaged.handle(envelope, vote), NodeStopped)
        cluster.run(10.0)
        nodes.propose(numbered(41, 50))
        self.assertEqual((cluster.leader(), lead.metrics().term), (lead, term))
        cluster.settle()
        self.assertEqual(cluster.states(), [chained(numbered(1, 50))] * 2)

    def damaged_snapshot(self, kept: int) -> FileNodes:
        """A node with two snapshots; the newer one is damaged, and refused."""
        nodes = FileNodes(self, 1, snapshot_policy="never", max_in_snapshot_log_to_keep=kept)
        node = nodes.cluster.leader()
        for first in (1, 21):
            nodes.propose(numbered(first, first + 19))
            nodes.cluster.result(node.trigger("snapshot"))
        nodes.propose(numbered(41, 45))
        nodes.stop(1)
        files = nodes.files[1]
        self.newest = max(
            (name for name in files.list("/data/snap") if name != "LOCK"), key=lambda name: int(name.split("-")[0])
        )
        path = f"/data/snap/{self.newest}/0"
        files.corrupt(path, files.size(path) // 2, b"\xff\xfe")
        with self.assertRaises(StorageCorrupt):
            nodes.start(1)
        self.flushLoggedErrors()
        nodes.cluster.dead.append(nodes.cluster.nodes.pop(1))
        return nodes

    def move_away(self, nodes: FileNodes) -> None:
        """What an operator does to a damaged snapshot; the process that refused it has ended."""
        files = nodes.files[1] = nodes.files[1].crash("all")
        directory = f"/data/snap/{self.newest}"
        for name in files.list(directory):
            files.remove(f"{directory}/{name}")
        files.remove(directory)
        files.sync_dir("/data/snap")

    def test_an_older_snapshot_with_the_log_behind_it(self) -> None:
        """S-16: the damaged one is moved away, and the log reaches back to the one before: nothing is missing."""
        nodes = self.damaged_snapshot(kept=1000)
        self.move_away(nodes)
        node = nodes.start(1)
        nodes.cluster.leader()
        nodes.cluster.settle()
        self.assertEqual(node.machine.state, chained(numbered(1, 45)))

    def test_an_older_snapshot_without_the_log_behind_it(self) -> None:
        """S-16, J-81: the log begins after the older snapshot, so the node refuses to start."""
        nodes = self.damaged_snapshot(kept=0)
        self.move_away(nodes)
        with self.assertRaises(StorageCorrupt):
            nodes.start(1)


class RestoredBackupTests(SynchronousTestCase):
    def test_a_node_on_an_old_copy_of_its_disk(self) -> None:
        """S-23: the leader sees that it lacks what it had acknowledged, tells of it, and does not count it."""
        nodes = FileNodes(self, *IDS)
        cluster = nodes.cluster
        nodes.propose(numbered(1, 10))
        lead = cluster.leader()
        restored, other = (node.node_id for node in cluster.followers())
        cluster.settle()
        backup = nodes.files[restored].crash("all")
        nodes.propose(numbered(11, 30))
        cluster.settle()
        cluster.run(1.0)
        nodes.power_failure(restored)
        nodes.files[restored] = backup
        again = nodes.start(restored)
        cluster.until(lambda: lead.metrics().replication[restored].alarmed)
        cluster.until(lambda: again.metrics().last == lead.metrics().last)
        self.assertFalse(lead.metrics().replication[other].alarmed)
        nodes.power_failure(other)
        commit = lead.metrics().commit
        cluster.error(lead.propose("counted?", timeout=1.0), OutcomeUnknown)
        self.assertEqual(lead.metrics().commit, commit)
        nodes.start(other)
        cluster.leader()
        cluster.settle()
        self.assertEqual([state["count"] for state in cluster.states()], [31] * 3)


@implementer(IStateMachine)
class Counters:
    """Counters whose snapshot has a piece for each."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def apply(self, command: Any, context: ApplyContext) -> Any:
        return apply(self.state, command, context)

    def snapshot(self) -> Iterator[bytes]:
        return map(_cbor.dumps, [list(item) for item in self.state.items()])

    def restore(self) -> _Counts:
        return _Counts(self)


@implementer(IStateSink)
class _Counts:
    def __init__(self, machine: Counters) -> None:
        self.machine = machine
        self.state: dict[str, Any] = {}

    def write(self, chunk: bytes) -> None:
        key, value = _cbor.loads(chunk)
        self.state[key] = value

    def finish(self) -> None:
        self.machine.state = self.state


@implementer(IExecutor)
class SlowExecutor:
    """Whatever is handed over takes a fifth of a second."""

    def __init__(self, cluster: NodeCluster) -> None:
        self.cluster = cluster

    def run(self, call: Callable[..., Any], *args: Any) -> Deferred[Any]:
        return deferLater(self.cluster.clock, 0.2, call, *args)

    def stop(self) -> Deferred[None]:
        return self.run(lambda: None)


class SnapshotPositionTests(SynchronousTestCase):
    def test_what_is_applied_while_a_snapshot_is_written_is_not_in_it(self) -> None:
        """J-83: else the log behind it would count that a second time after a restart."""
        cluster = NodeCluster(self, snapshot_policy="never", max_in_snapshot_log_to_keep=0)
        files = SimulatedFileSystem()

        def machine() -> FileStateMachine:
            executor = SlowExecutor(cluster)
            return FileStateMachine("/data", Counters(), executor=executor, file_system=files, part_bytes=1)

        node = cluster.make(1, machine=machine())
        cluster.result(node.bootstrap())
        cluster.leader()
        keys = [str(n) for n in range(40)]
        session = cluster.result(node.register_session())
        for n in range(1, 9):  # their replies are kept, and come before the counters in the snapshot
            cluster.result(node.propose(["set", "big", "x" * 60_000], session=session, sequence=n))
        cluster.result(node.propose_many([["add", key, 1] for key in keys]))
        began = node.metrics().applied
        taking = node.trigger("snapshot")
        for _ in range(5):
            cluster.result(node.propose_many([["add", key, 1] for key in keys]))
        self.assertNoResult(taking)
        cluster.result(taking)
        snapshot = node.metrics().snapshot
        assert snapshot is not None
        self.assertEqual((snapshot.index, node.metrics().applied), (began, began + 5 * len(keys)))
        cluster.result(node.trigger("purge"))
        self.assertEqual(node.metrics().purged, began)
        cluster.result(cluster.nodes.pop(1).shutdown())
        again = cluster.make(1, log=cluster.logs[1].reopened(), machine=machine())
        cluster.leader()
        cluster.settle()
        self.assertEqual([again.machine.state[key] for key in keys], [6] * len(keys))


class ClockTests(NodeTestCase):
    def test_the_time_of_day_jumps(self) -> None:
        """H-14: a day ahead and back again: no election, no lost write, and the time in the log never falls."""
        term = self.lead.metrics().term
        times = []
        for jump in (0.0, DAY, -DAY, 0.0):
            self.patch(node_cluster, "START_OF_TIME", START_OF_TIME + jump)
            self.cluster.run(10.0)
            times.append(self.cluster.result(self.lead.propose(["time"]))[1])
            self.assertEqual(self.cluster.result(self.follower.read_state(lambda machine: len(machine.state))), 0)
        self.assertEqual(times, sorted(times))
        self.assertGreaterEqual(times[1] - times[0], DAY * 1000)
        self.assertEqual((self.cluster.leader(), self.lead.metrics().term), (self.lead, term))


class DeposedTests(NodeTestCase):
    def depose(self) -> None:
        """Have a follower ask for the leader's vote in a later term, as after a transfer."""
        node, metrics = self.follower, self.lead.metrics()
        envelope = node._runtime.peers.envelope(metrics.membership.members[self.lead.node_id])
        vote = VoteRequest(metrics.term + 1, metrics.last, 1, False, True)
        _ = self.lead.handle(envelope, vote).addErrback(lambda _: None)
        self.assertFalse(self.lead.is_leader)

    def test_a_proposal_that_was_not_appended_when_the_leader_stepped_down(self) -> None:
        """H-33: it definitely did not happen."""
        waiting = self.lead.propose(["set", "a", 1], forward=False)
        self.depose()
        self.cluster.error(waiting, NotLeader)
        self.cluster.leader()
        self.cluster.settle()
        self.assertEqual(self.cluster.states(), [{}] * 3)

    def test_a_proposal_that_was_appended_when_the_leader_stepped_down(self) -> None:
        """H-33: it may yet be committed; who cannot wait for that is told so."""
        self.cluster.network.partition(*[[self.cluster.address(node_id)] for node_id in self.ids])
        last = self.lead.metrics().last.index
        waiting = self.lead.propose(["set", "a", 1], forward=False, timeout=1.0)
        self.cluster.clock.advance(0)
        self.assertEqual(self.lead.metrics().last.index, last + 1)
        self.depose()
        self.cluster.error(waiting, OutcomeUnknown)

    def test_an_old_leaders_heartbeat_changes_nothing(self) -> None:
        """H-33: neither does a deposed leader take the next proposal, nor does anybody take its orders."""
        metrics = self.lead.metrics()
        envelope = self.lead._runtime.peers.envelope(metrics.membership.members[self.follower.node_id])
        node = self.follower
        self.depose()
        new = self.cluster.leader()
        reply: Any = self.cluster.result(node.handle(envelope, HeartbeatRequest(metrics.term, 0, 1)))
        self.assertGreater(reply.term, metrics.term)
        self.assertEqual(self.cluster.leader(), new)
