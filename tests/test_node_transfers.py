"""Snapshot transfers between whole nodes with files that break off: by the network, by a restart, by another leader."""

from __future__ import annotations

from typing import Any, NamedTuple

from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.network import SnapshotChunk
from zlayer_consensus.node import ConsensusNode
from zlayer_consensus.storage import FileLogStore, FileStateMachine, InlineExecutor
from zlayer_consensus.testing import SimulatedFileSystem

from .node_cluster import NodeCluster
from .test_node_snapshots import Pieces

IDS = (1, 2, 3)
PART = 2000
CHUNK = 300
VALUE = "x" * 200


class Sent(NamedTuple):
    """A chunk that was sent: where it belongs, counted over the whole snapshot."""

    sender: int
    begin: int
    end: int


class TransferCase(SynchronousTestCase):
    """One node was away, and needs a snapshot of some tens of parts."""

    def setUp(self) -> None:
        self.cluster = NodeCluster(
            self, snapshot_policy="never", max_in_snapshot_log_to_keep=5, snapshot_chunk_bytes=CHUNK
        )
        self.files = {node_id: SimulatedFileSystem() for node_id in IDS}
        for node_id in IDS:
            self.start(node_id)
        members = [self.cluster.member(node_id) for node_id in IDS]
        for waiting in [node.bootstrap(members) for node in self.cluster.nodes.values()]:
            self.cluster.result(waiting)
        self.lead = self.cluster.leader()
        self.sent: list[Sent] = []
        self.cluster.network.watch = self.see
        behind, self.other = self.cluster.followers()
        self.behind = behind.node_id
        self.isolate()
        self.fill()
        for node in (self.lead, self.other):
            self.take(node)
        self.lead_id = self.lead.node_id

    def start(self, node_id: int) -> ConsensusNode:
        files = self.files[node_id]
        log = FileLogStore(
            "/log", node_id, reactor=self.cluster.clock, executor=InlineExecutor(), file_system=files,
            segment_bytes=64 << 10,
        )  # fmt: skip
        machine = FileStateMachine("/data", Pieces(), executor=InlineExecutor(), file_system=files, part_bytes=PART)
        return self.cluster.make(node_id, log=log, machine=machine)

    def see(self, kind: str, source: str, target: str, message: Any) -> None:
        if kind == "request" and isinstance(message, SnapshotChunk) and message.data:
            sender = int(source[4:].partition(":")[0])
            sizes = [size for size, _ in self.manifest(sender).parts]
            begin = sum(sizes[: message.part]) + message.offset
            self.sent.append(Sent(sender, begin, begin + len(message.data)))

    def manifest(self, node_id: int) -> Any:
        return self.cluster.nodes[node_id]._runtime.store.newest()

    def isolate(self) -> None:
        others = [self.cluster.address(node_id) for node_id in IDS if node_id != self.behind]
        self.cluster.network.partition([self.cluster.address(self.behind)], others)

    def fill(self, count: int = 200) -> None:
        for first in range(0, count, 50):
            requests = [["set", str(number), VALUE] for number in range(first, first + 50)]
            self.cluster.result(self.cluster.leader([1, 2, 3]).propose_many(requests))

    def take(self, node: ConsensusNode) -> None:
        """Take a snapshot, and let go of the log before it."""
        applied = self.lead.metrics().applied
        self.cluster.until(lambda: node.metrics().applied >= applied)
        self.cluster.result(node.trigger("snapshot"))
        self.cluster.result(node.trigger("purge"))
        self.assertGreater(node.metrics().purged, self.cluster.nodes[self.behind].metrics().last.index)

    def until_sent(self, share: float) -> int:
        """Let the transfer get so far; return how many bytes have arrived."""
        size = self.manifest(self.lead_id).size
        self.assertGreater(size, 20 * PART)
        self.cluster.until(lambda: bool(self.sent) and self.sent[-1].end >= share * size)
        return self.sent[-1].begin

    def until_installed(self, seconds: float = 30.0) -> None:
        def installed() -> bool:
            snapshot = self.cluster.nodes[self.behind].metrics().snapshot
            return snapshot is not None and self.cluster.nodes[self.behind].metrics().applied >= snapshot.index

        self.cluster.until(installed, seconds)
        self.cluster.settle()
        self.assertEqual(len({repr(sorted(node.machine.state.items())) for node in self.cluster.nodes.values()}), 1)
        self.assertEqual(self.unfinished(), [])

    def unfinished(self) -> list[str]:
        return [name for name in self.files[self.behind].list("/data/snap") if name.endswith(".tmp")]

    def restart(self, *, orderly: bool) -> None:
        """Let the receiving process end, and start again."""
        if orderly:
            self.cluster.result(self.cluster.nodes.pop(self.behind).shutdown())
        else:
            self.cluster.crash(self.behind)
            self.cluster.network.restore()
        self.files[self.behind] = self.files[self.behind].crash(process_only=True)
        self.start(self.behind)


class BreakTests(TransferCase):
    def test_connection_that_is_lost(self) -> None:
        """A follower that breaks off at 60 % resumes at 60 %."""
        self.cluster.network.heal()
        arrived = self.until_sent(0.6)
        self.isolate()
        self.cluster.run(20.0, step=0.05)
        self.sent.clear()
        self.cluster.network.heal()
        self.until_installed()
        self.assertGreaterEqual(min(sent.begin for sent in self.sent), arrived)
        self.assertEqual(self.sent[-1].end, self.manifest(self.lead_id).size)

    def test_connection_that_is_lost_for_long(self) -> None:
        """The leader has given the transfer up; the next one goes on where it was."""
        self.cluster.network.heal()
        arrived = self.until_sent(0.6)
        self.isolate()
        self.cluster.run(self.lead._runtime.config.snapshot_timeout + 30.0, step=0.1)
        self.sent.clear()
        self.cluster.network.heal()
        self.until_installed()
        self.assertGreaterEqual(min(sent.begin for sent in self.sent), arrived)

    def test_receiver_that_restarts(self) -> None:
        """Its next process goes on where that one was (H-66)."""
        self.check_restart(orderly=True)

    def test_receiver_that_is_killed(self) -> None:
        """The same, without a word (H-66)."""
        self.check_restart(orderly=False)

    def check_restart(self, *, orderly: bool) -> None:
        self.cluster.network.heal()
        arrived = self.until_sent(0.6)
        self.restart(orderly=orderly)
        self.sent.clear()
        self.until_installed()
        self.assertGreaterEqual(min(sent.begin for sent in self.sent), arrived)

    def test_receiver_that_restarts_while_it_is_not_asked(self) -> None:
        """It keeps them as long as they may be needed, through further restarts."""
        self.cluster.network.heal()
        arrived = self.until_sent(0.6)
        self.isolate()
        for orderly in (True, False, True):
            self.restart(orderly=orderly)
            self.isolate()
            self.assertEqual(len(self.unfinished()), 1)
        self.sent.clear()
        self.cluster.network.heal()
        self.until_installed()
        self.assertGreaterEqual(min(sent.begin for sent in self.sent), arrived)

    def test_rot_in_a_part_under_way(self) -> None:
        """It is sent again, as fast as all else."""
        self.cluster.network.heal()
        self.until_sent(0.6)
        self.isolate()
        [name] = self.unfinished()
        [part] = [each for each in self.files[self.behind].list(f"/data/snap/{name}") if each.endswith(".part")]
        self.files[self.behind].corrupt(f"/data/snap/{name}/{part}", 100, b"\xff\xff")
        self.restart(orderly=False)
        self.sent.clear()
        self.until_installed(2.0)
        sizes = [size for size, _ in self.manifest(self.lead_id).parts]
        self.assertEqual(min(sent.begin for sent in self.sent), sum(sizes[: int(part.removesuffix(".part"))]))

    def test_rot_in_what_was_received(self) -> None:
        """It is seen before it is installed; the snapshot is sent again, and the node goes on."""
        self.cluster.network.heal()
        self.until_sent(0.6)
        self.isolate()
        [name] = self.unfinished()
        self.files[self.behind].corrupt(f"/data/snap/{name}/1", 100, b"\xff\xff")
        self.restart(orderly=False)
        self.sent.clear()
        self.until_installed()
        self.assertEqual(self.sent[-1].end, self.manifest(self.lead_id).size)
        self.assertEqual(min(sent.begin for sent in self.sent), 0)
        self.assertFalse(self.cluster.nodes[self.behind].metrics().stopped)

    def test_a_later_snapshot_of_the_same_leader(self) -> None:
        """What was received of the earlier one is of no use any more, and goes."""
        self.cluster.network.heal()
        self.until_sent(0.6)
        self.isolate()
        self.restart(orderly=True)
        self.isolate()
        self.cluster.run(self.lead._runtime.config.snapshot_timeout + 30.0, step=0.1)
        self.fill()
        self.take(self.lead)
        self.sent.clear()
        self.cluster.network.heal()
        self.until_installed()
        self.assertEqual(min(sent.begin for sent in self.sent), 0)


class LeaderChangeTests(TransferCase):
    """J-85, H-64: another leader begins anew, and of the first transfer nothing is left."""

    def setUp(self) -> None:
        super().setUp()
        self.fill(50)
        self.take(self.other)
        self.assertNotEqual(self.manifest(self.lead_id), self.manifest(self.other.node_id))
        self.cluster.network.heal()
        self.until_sent(0.6)
        [self.first] = self.unfinished()

    def check(self) -> None:
        """The other node leads now."""
        new = self.other.node_id
        self.until_installed()
        self.assertTrue(self.other.is_leader)
        begun = next(number for number, sent in enumerate(self.sent) if sent.sender == new)
        self.assertEqual(self.sent[begun].begin, 0)
        self.assertEqual({sent.sender for sent in self.sent[begun:]}, {new}, "the old leader goes on sending")
        installed = self.cluster.nodes[self.behind].metrics().snapshot
        self.assertEqual(installed, self.manifest(new).point.last)
        self.assertEqual(self.cluster.nodes[self.behind]._runtime.senders._tasks, {})

    def test_leadership_that_is_transferred(self) -> None:
        self.cluster.result(self.lead.transfer_leadership(self.other.node_id))
        self.check()
        self.assertEqual(self.lead._runtime.senders._tasks, {})

    def test_leader_that_dies(self) -> None:
        self.cluster.crash(self.lead_id)
        self.cluster.until(lambda: self.other.is_leader)
        self.check()

    def test_leader_that_dies_and_receiver_that_restarts(self) -> None:
        """What the receiver finds on its disk is of a leader that is no more."""
        self.cluster.crash(self.lead_id)
        self.restart(orderly=False)
        self.assertEqual(self.unfinished(), [self.first])
        self.cluster.until(lambda: self.other.is_leader)
        self.check()

    def test_first_transfer_is_removed_as_soon_as_the_second_begins(self) -> None:
        self.cluster.result(self.lead.transfer_leadership(self.other.node_id))
        self.sent.clear()
        self.cluster.until(lambda: len(self.sent) > 2)
        [second] = self.unfinished()
        self.assertNotEqual(second, self.first)
