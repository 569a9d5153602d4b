"""Snapshots of whole nodes: taken, sent, received, loaded; and what is made of a disk at a start."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any, ClassVar

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from zlayer_consensus import _cbor
from zlayer_consensus.errors import (
    ConsensusError,
    InvalidMessage,
    NodeStopped,
    StorageCorrupt,
    StorageFailed,
    StorageFull,
    WrongIdentity,
)
from zlayer_consensus.network import SnapshotChunk
from zlayer_consensus.node import ConsensusNode
from zlayer_consensus.raft import LogId, SnapshotPoint
from zlayer_consensus.storage import (
    ApplyContext,
    FileLogStore,
    FileStateMachine,
    InlineExecutor,
    ISnapshotReader,
    IStateMachine,
    Manifest,
    MemLogStore,
    MemStateMachine,
    encode_manifest,
)
from zlayer_consensus.storage._snapshot_format import frame
from zlayer_consensus.testing import SimulatedFileSystem

from .log_store_kit import HeldExecutor
from .node_cluster import NodeCluster, NodeTestCase, apply


@implementer(IStateMachine)
class Pieces:
    """A machine whose snapshot is many small pieces."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.closed = 0

    def apply(self, command: Any, context: ApplyContext) -> Any:
        return apply(self.state, command, context)

    def snapshot(self) -> Iterator[bytes]:
        return self._pieces(sorted(self.state.items()))

    def _pieces(self, items: list[tuple[str, Any]]) -> Iterator[bytes]:
        try:
            for item in items:
                yield _cbor.dumps(list(item))
        finally:
            self.closed += 1

    def restore(self) -> Any:
        return _Sink(self)


class _Sink:
    def __init__(self, machine: Pieces) -> None:
        self.machine = machine
        self.state: dict[str, Any] = {}

    def write(self, chunk: bytes) -> None:
        key, value = _cbor.loads(chunk)
        self.state[key] = value

    def finish(self) -> None:
        self.machine.state = self.state


class SnapshotTests(NodeTestCase):
    settings: ClassVar[dict[str, Any]] = {
        "snapshot_logs_since_last": 100,
        "max_in_snapshot_log_to_keep": 10,
        "snapshot_chunk_bytes": 2000,
    }

    def fill(self, count: int = 300, start: int = 0) -> None:
        lead = self.cluster.leader()
        for first in range(start, start + count, 50):
            requests = [["set", str(n), "x" * 50] for n in range(first, min(first + 50, start + count))]
            self.cluster.result(lead.propose_many(requests))

    def test_snapshots_are_taken_by_policy_and_the_log_is_purged(self) -> None:
        self.fill()
        self.cluster.settle()
        for node in self.cluster.nodes.values():
            metrics = node.metrics()
            assert metrics.snapshot is not None
            self.assertGreaterEqual(metrics.snapshot.index, 200)
            self.assertEqual(metrics.purged, metrics.snapshot.index - 10)

    def test_snapshot_by_bytes(self) -> None:
        cluster = NodeCluster(self, snapshot_bytes_since_last=5000)
        lead = cluster.begin(1)
        cluster.result(lead.propose_many([["set", str(n), "x" * 500] for n in range(11)]))
        cluster.result(lead.wait.snapshot(10, timeout=1.0))

    def test_never(self) -> None:
        cluster = NodeCluster(self, snapshot_policy="never", snapshot_logs_since_last=1)
        lead = cluster.begin(1)
        cluster.result(lead.propose_many([["time"]] * 20))
        self.assertIsNone(lead.metrics().snapshot)
        cluster.result(lead.trigger("snapshot"))
        self.assertEqual(lead.metrics().snapshot, LogId(1, lead.metrics().applied))
        cluster.result(lead.trigger("snapshot"))
        self.assertLess(lead.metrics().purged, 5)
        cluster.result(lead.trigger("purge", upto=7))
        self.assertEqual(lead.metrics().purged, 7)
        cluster.result(lead.trigger("purge"))
        self.assertEqual(lead.metrics().purged, lead.metrics().applied)

    def test_a_follower_that_was_away_at_the_election_gets_entries(self) -> None:
        """The new leader's first append to it is lost, and tells nothing: what it lacks is in the log."""
        self.fill()
        self.cluster.settle()
        away, heir = self.cluster.followers()
        others = [self.cluster.address(i) for i in self.ids if i != away.node_id]
        self.cluster.network.partition([away.address], others)
        self.cluster.result(self.cluster.leader().transfer_leadership(heir.node_id))
        self.cluster.until(lambda: heir.metrics().ready)
        self.cluster.result(heir.propose(["set", "late", "x"]))
        self.assertTrue(0 < heir.metrics().purged < away.metrics().last.index)
        self.cluster.run(5.0)
        chunks: list[SnapshotChunk] = []

        def see(kind: str, source: str, target: str, message: Any) -> None:
            if isinstance(message, SnapshotChunk):
                chunks.append(message)

        self.cluster.network.watch = see
        self.cluster.network.heal()
        self.cluster.settle()
        self.assertEqual(away.machine.state, heir.machine.state)
        self.assertEqual([], chunks)

    def test_lagging_follower_gets_a_snapshot(self) -> None:
        """H-60, H-65, J-32: state, sessions and configuration arrive, and the log goes on behind it."""
        node = self.follower
        others = [self.cluster.address(i) for i in self.ids if i != node.node_id]
        session = self.cluster.result(self.lead.register_session())
        self.cluster.network.partition([node.address], others)
        self.assertEqual(self.cluster.result(self.lead.propose(["add", "n", 1], session=session, sequence=1)), 1)
        self.fill()
        self.assertGreater(self.lead.metrics().purged, node.metrics().last.index)
        self.cluster.network.heal()
        self.fill(30, start=1000)
        self.cluster.settle()
        self.assertEqual(node.machine.state, self.lead.machine.state)
        tables = {tuple(each._runtime.applier.sessions.snapshot()) for each in self.cluster.nodes.values()}
        self.assertEqual(len(tables), 1)
        self.cluster.result(self.cluster.leader().transfer_leadership(node.node_id))
        self.cluster.until(lambda: node.metrics().ready)
        self.assertEqual(self.cluster.result(node.propose(["add", "n", 1], session=session, sequence=1)), 1)

    def test_stop_while_a_snapshot_is_loaded(self) -> None:
        """H-66: giving up says nothing against the snapshot."""
        node = self.follower
        others = [self.cluster.address(i) for i in self.ids if i != node.node_id]
        self.cluster.network.partition([node.address], others)
        self.fill()
        chunks: list[Deferred[bytes | None]] = []
        store = node._runtime.store
        plain = store.reader

        def slow() -> ISnapshotReader:
            reader = plain()

            def held() -> Deferred[bytes | None]:
                chunks.append(Deferred())
                return chunks[-1]

            self.patch(reader, "next_chunk", held)
            return reader

        self.patch(store, "reader", slow)
        self.cluster.network.heal()
        self.cluster.until(lambda: bool(chunks))
        stopped = node.when_stopped()
        self.cluster.result(node.shutdown())
        self.assertIsNone(self.successResultOf(stopped))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_new_member_gets_a_snapshot(self) -> None:
        """H-67: with the tombstones of those who left before."""
        self.fill()
        gone = self.follower
        self.cluster.result(self.lead.remove_voter(gone.node_id))
        self.cluster.run(1.0)
        del self.cluster.nodes[gone.node_id]
        self.fill(start=1000)
        node = self.cluster.make(4)
        self.cluster.result(self.lead.add_voter(4, node.address))
        self.cluster.settle()
        self.assertEqual(node.machine.state, self.lead.machine.state)
        self.assertEqual(node.metrics().membership.tombstones, {gone.node_id})

    def test_transfer_goes_on_after_a_break(self) -> None:
        """It resumes within the same term, and survives lost and doubled messages."""
        node = self.follower
        others = [self.cluster.address(i) for i in self.ids if i != node.node_id]
        self.cluster.network.partition([node.address], others)
        self.fill(400)
        self.cluster.network.heal()
        self.cluster.network.default.loss = 0.05
        self.cluster.network.default.duplicate = 0.1
        self.cluster.until(lambda: node.metrics().applied >= 300, seconds=300.0)
        self.cluster.network.default.loss = self.cluster.network.default.duplicate = 0.0
        self.cluster.settle()
        self.assertEqual(node.machine.state, self.cluster.leader().machine.state)

    def test_a_receiver_that_is_busy_for_ever(self) -> None:
        """Given up after ``snapshot_timeout`` like one that does not answer, and tried again."""
        node, ended = self.follower, []
        others = [self.cluster.address(i) for i in self.ids if i != node.node_id]
        self.cluster.network.partition([node.address], others)
        self.fill()
        self.patch(node._runtime.receiver, "chunk", lambda *_: succeed(node._runtime.receiver._reply("busy")))
        core = self.lead._runtime.core
        snapshot_sent = core.snapshot_sent

        def sent(request: Any, last: Any, now: float) -> Any:
            ended.append(last)
            return snapshot_sent(request, last, now)

        self.patch(core, "snapshot_sent", sent)
        self.cluster.network.heal()
        limit = self.lead._runtime.config.snapshot_timeout
        self.cluster.run(limit - 10.0, step=0.1)
        self.assertEqual(ended, [])
        self.cluster.run(20.0, step=0.1)
        self.assertEqual(ended, [None])

    def test_proposals_that_a_snapshot_supersedes_are_unknown(self) -> None:
        """J-45: an old leader's waiting proposal ends when it gets a snapshot in place of the log."""
        old = self.lead
        others = [i for i in self.ids if i != old.node_id]
        self.cluster.network.partition([old.address], [self.cluster.address(i) for i in others])
        waiting = old.propose(["set", "lost", 1], timeout=600.0)
        self.cluster.clock.advance(0)
        new = self.cluster.leader(others)
        requests = [["set", str(n), "x" * 50] for n in range(300)]
        self.cluster.result(new.propose_many(requests))
        self.cluster.network.heal()
        error = self.cluster.error(waiting, ConsensusError)
        self.assertEqual(error.code, "outcome_unknown")
        self.cluster.settle()
        self.assertEqual(old.machine.state, new.machine.state)

    def test_applying_goes_on_while_a_snapshot_is_built(self) -> None:
        """J-83, H-67: its position is that of its beginning; what is applied meanwhile is not in it."""
        machines: list[Pieces] = []

        def make() -> MemStateMachine:
            machines.append(Pieces())
            return MemStateMachine(machines[-1])

        cluster = NodeCluster(self, snapshot_policy="never")
        cluster.make_machine = make
        lead = cluster.begin(1)
        cluster.result(lead.propose_many([["set", str(n), n] for n in range(100)]))
        taking = lead.trigger("snapshot")
        cluster.result(lead.propose_many([["set", str(n), -n] for n in range(100)]))
        cluster.result(taking)
        self.assertEqual(machines[0].closed, 1)

    def test_snapshot_that_is_given_up_before_its_first_piece_is_closed(self) -> None:
        """What the machine keeps for it, it keeps no longer."""
        closed: list[object] = []

        class Iterating(Iterator[bytes]):
            def __next__(self) -> bytes:
                raise AssertionError("it was given up")

            def close(self) -> None:
                closed.append(self)

        class Machine(Pieces):
            def snapshot(self) -> Iterator[bytes]:
                return Iterating()

        cluster = NodeCluster(self)
        cluster.make_machine = lambda: MemStateMachine(Machine())
        lead = cluster.begin(1)
        cluster.result(lead.propose(["time"]))

        def full(point: SnapshotPoint) -> Any:
            raise StorageFull("create", "/snap", "No space left on device")

        self.patch(lead._runtime.store, "writer", full)
        cluster.error(lead.trigger("snapshot"), StorageFull)
        self.assertEqual(len(closed), 1)
        self.assertFalse(lead.metrics().stopped)

    def test_one_that_waits_until_the_former_is_removed_can_be_given_up(self) -> None:
        """A removal goes on; the next one waits for it, too, and a node that stops meanwhile has no failure to tell."""
        cluster = NodeCluster(self)
        lead = cluster.begin(1)
        cluster.result(lead.propose(["time"]))
        store = lead._runtime.store
        make, removed = store.writer, Deferred[None]()
        begun: list[SnapshotPoint] = []

        class Full:
            def write(self, piece: bytes) -> Deferred[None]:
                raise StorageFull("write", "/snap", "No space left on device")

            def abort(self) -> Deferred[None]:
                return removed

        def writer(point: SnapshotPoint) -> Any:
            begun.append(point)
            return Full() if len(begun) == 1 else make(point)

        self.patch(store, "writer", writer)
        cluster.error(lead.trigger("snapshot"), StorageFull)
        waiting = lead.trigger("snapshot")
        for _ in range(2):
            cluster.settle()
            lead._runtime.builder.abandon()
            cluster.settle()
            self.assertEqual(len(begun), 1)
        removed.callback(None)
        cluster.result(waiting)
        self.assertEqual((len(begun), lead.metrics().snapshot), (2, lead.metrics().last))

    def test_failing_snapshot_stops_the_node(self) -> None:
        """The application's own bug: told with its name, nothing goes on half broken."""

        class Broken(Pieces):
            def snapshot(self) -> Iterator[bytes]:
                raise ZeroDivisionError("a bug")

        cluster = NodeCluster(self)
        cluster.make_machine = lambda: MemStateMachine(Broken())
        lead = cluster.begin(1)
        cluster.result(lead.propose(["time"]))
        told = lead.when_stopped()
        cluster.error(lead.trigger("snapshot"), ConsensusError)
        self.assertIn("ZeroDivisionError", str(cluster.result(told)))
        self.assertGreaterEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ReceiverTests(NodeTestCase):
    """Chunks that no correct leader sends."""

    def setUp(self) -> None:
        super().setUp()
        self.node = self.follower
        for _ in range(3):
            self.cluster.result(self.lead.propose(["set", "a", 1]))
        self.cluster.settle()
        self.state = dict(self.node.machine.state)
        membership = self.lead.metrics().membership
        self.data = b"part"
        self.point = SnapshotPoint(LogId(self.lead.metrics().term, 1000), membership)
        self.announce(self.data * 4)
        self.addCleanup(self.went_on)
        self.envelope = self.lead._runtime.peers.envelope(membership.members[self.node.node_id])

    def announce(self, part: bytes) -> None:
        """Let the manifest be one for this part."""
        self.manifest = encode_manifest(Manifest(self.point, ((len(part), sha256(part).digest()),)))

    def chunk(self, **changes: Any) -> SnapshotChunk:
        term = self.lead.metrics().term
        fields: dict[str, Any] = {
            "term": term,
            "last": LogId(term, 1000),
            "digest": sha256(self.manifest).digest(),
            "manifest": b"",
            "part": 0,
            "offset": 0,
            "data": b"",
            "done": False,
        }
        return SnapshotChunk(**{**fields, **changes})

    def give(self, **changes: Any) -> tuple[str, int, int]:
        reply: Any = self.cluster.result(self.node.handle(self.envelope, self.chunk(**changes)))
        return reply.status, reply.part, reply.offset

    def went_on(self) -> None:
        self.assertEqual(self.node.machine.state, self.state)
        self.cluster.result(self.cluster.leader().propose(["set", "b", 1]))

    def test_data_without_a_manifest(self) -> None:
        """A-26: the sender has to begin anew."""
        self.assertEqual(self.give(data=self.data), ("restart", 0, 0))

    def test_gap_overlap_and_repetition(self) -> None:
        """A-25, A-26: the reply says where it goes on; nothing else is taken."""
        self.assertEqual(self.give(manifest=self.manifest), ("continue", 0, 0))
        self.assertEqual(self.give(data=self.data, offset=4), ("continue", 0, 0))
        self.assertEqual(self.give(data=self.data), ("continue", 0, 4))
        self.assertEqual(self.give(data=self.data), ("continue", 0, 4))
        self.assertEqual(self.give(data=self.data, offset=2), ("continue", 0, 4))
        self.assertEqual(self.give(data=self.data, part=1), ("continue", 0, 4))
        self.assertEqual(self.give(manifest=self.manifest), ("continue", 0, 4))

    def test_done_too_early(self) -> None:
        """A-26."""
        self.give(manifest=self.manifest)
        self.assertEqual(self.give(done=True), ("continue", 0, 0))

    def test_more_than_was_announced(self) -> None:
        """A-26: declared size and sent bytes differ."""
        self.give(manifest=self.manifest)
        self.assertEqual(self.give(data=bytes(17)), ("continue", 0, 0))

    def test_wrong_digest_of_a_part(self) -> None:
        """A-26: the part starts over."""
        self.give(manifest=self.manifest)
        self.assertEqual(self.give(data=bytes(16)), ("continue", 0, 0))

    def test_stop_while_a_chunk_is_written(self) -> None:
        """H-66: what the chunk completes is not installed: the stores are about to close."""
        executor, part = HeldExecutor(), frame(self.data)
        self.patch(self.node._runtime.store, "_executor", executor)
        self.announce(part)
        self.give(manifest=self.manifest)
        reply = self.node.handle(self.envelope, self.chunk(data=part))
        log_store, closing = self.node._runtime.log_store, Deferred[None]()
        close = log_store.close
        self.patch(log_store, "close", lambda: closing.addCallback(lambda _: close()))
        stopped = self.node.shutdown()
        executor.release_all()
        self.cluster.run(0.1)
        self.failureResultOf(reply, NodeStopped)
        self.assertEqual(executor.held, [])
        closing.callback(None)
        executor.release_all()
        self.successResultOf(stopped)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_stop_while_another_transfer_is_given_up(self) -> None:
        """H-64: the next one is not begun any more."""
        executor = HeldExecutor()
        self.patch(self.node._runtime.store, "_executor", executor)
        self.give(manifest=self.manifest)
        self.announce(bytes(100))
        reply = self.node.handle(self.envelope, self.chunk(manifest=self.manifest))
        stopped = self.node.shutdown()
        executor.release_all()
        self.failureResultOf(reply, NodeStopped)
        self.successResultOf(stopped)

    def test_chunk_of_another_transfer(self) -> None:
        """A-26, H-64."""
        self.give(manifest=self.manifest)
        self.assertEqual(self.give(data=self.data, digest=bytes(32))[0], "restart")

    def test_manifest_that_is_none(self) -> None:
        """A-21, A-26."""
        for manifest in (b"\xff", b"\xa0", self.manifest + b"\0"):
            with self.subTest(manifest):
                chunk = self.chunk(manifest=manifest, digest=sha256(manifest).digest())
                self.cluster.error(self.node.handle(self.envelope, chunk), InvalidMessage)
        chunk = self.chunk(manifest=self.manifest, digest=bytes(32))
        self.cluster.error(self.node.handle(self.envelope, chunk), InvalidMessage)
        chunk = self.chunk(manifest=self.manifest, last=LogId(self.lead.metrics().term, 999))
        self.cluster.error(self.node.handle(self.envelope, chunk), InvalidMessage)

    def test_old_term_and_known_position(self) -> None:
        """A-25, H-61: replayed chunks are answered and ignored."""
        self.assertEqual(self.give(term=0, manifest=self.manifest)[0], "stale")
        known = LogId(self.lead.metrics().term, self.node.metrics().applied)
        self.assertEqual(self.give(last=known, manifest=self.manifest)[0], "installed")


class RestartTests(SynchronousTestCase):
    """One node and its files."""

    def setUp(self) -> None:
        self.files = SimulatedFileSystem()
        self.cluster = NodeCluster(
            self, snapshot_logs_since_last=50, max_in_snapshot_log_to_keep=5, snapshot_chunk_bytes=2000
        )

    def stores(self, node_id: int = 1, files: SimulatedFileSystem | None = None) -> dict[str, Any]:
        files = files or self.files
        log = FileLogStore(
            f"/log{node_id}",
            node_id,
            reactor=self.cluster.clock,
            executor=InlineExecutor(),
            file_system=files,
            segment_bytes=64 << 10,
        )
        machine = FileStateMachine(f"/data{node_id}", {}, apply, executor=InlineExecutor(), file_system=files)
        return {"log": log, "machine": machine}

    def begin(self) -> ConsensusNode:
        node = self.cluster.make(1, **self.stores())
        self.cluster.result(node.bootstrap())
        return self.cluster.leader()

    def test_everything_is_there_again(self) -> None:
        """H-68, J-91: state, sessions, identity; newest snapshot and the log behind it."""
        node = self.begin()
        session = self.cluster.result(node.register_session())
        self.cluster.result(node.propose(["add", "n", 1], session=session, sequence=1))
        self.cluster.result(node.propose_many([["set", str(n), n] for n in range(130)]))
        state, before = dict(node.machine.state), node.metrics()
        self.cluster.result(node.shutdown())
        node = self.cluster.make(1, **self.stores())
        self.assertEqual(node.metrics().incarnation, before.incarnation)
        self.assertEqual(node.metrics().cluster_id, before.cluster_id)
        self.cluster.result(node.bootstrap())
        self.cluster.leader()
        self.assertTrue(node.metrics().recovered)
        self.assertEqual(node.machine.state, state)
        self.assertEqual(self.cluster.result(node.propose(["add", "n", 1], session=session, sequence=1)), 1)

    def test_acknowledged_writes_survive_a_crash(self) -> None:
        """What was synced is there, and nothing else is needed."""
        node = self.begin()
        for n in range(120):
            self.cluster.result(node.propose(["set", str(n), n]))
        after = self.files.crash()
        self.cluster.crash(1)
        node = self.cluster.make(1, **self.stores(files=after))
        self.cluster.leader()
        self.cluster.until(lambda: node.metrics().recovered)
        self.assertEqual(node.machine.state, {str(n): n for n in range(120)})

    def test_three_nodes_restart_at_once(self) -> None:
        """J-01: with term and vote as they were; J-80: and all of the data."""
        members = [self.cluster.member(i) for i in (1, 2, 3)]
        for i in (1, 2, 3):
            self.cluster.make(i, **self.stores(i))
        for each in [node.bootstrap(members) for node in self.cluster.nodes.values()]:
            self.cluster.result(each)
        for _ in range(3):
            lead = self.cluster.leader()
            self.cluster.result(lead.propose_many([["add", "n", 1]] * 70))
            terms = {i: node.metrics().term for i, node in self.cluster.nodes.items()}
            for i in (1, 2, 3):
                self.cluster.crash(i)
            self.cluster.network.heal()
            self.files = self.files.crash()
            for i in (1, 2, 3):
                self.assertGreaterEqual(self.cluster.make(i, **self.stores(i)).metrics().term, terms[i])
        lead = self.cluster.leader()
        self.assertEqual(self.cluster.result(lead.propose(["add", "n", 0])), 210)

    def test_follower_with_files_installs_a_snapshot_and_restarts(self) -> None:
        """H-66: snapshot and log agree afterwards."""
        members = [self.cluster.member(i) for i in (1, 2, 3)]
        for i in (1, 2, 3):
            self.cluster.make(i, **self.stores(i))
        for each in [node.bootstrap(members) for node in self.cluster.nodes.values()]:
            self.cluster.result(each)
        lead = self.cluster.leader()
        node = self.cluster.followers()[0]
        others = [self.cluster.address(i) for i in (1, 2, 3) if i != node.node_id]
        self.cluster.network.partition([node.address], others)
        self.cluster.result(lead.propose_many([["set", str(n), "x" * 50] for n in range(200)]))
        self.cluster.network.heal()
        self.cluster.until(lambda: node.metrics().applied == self.cluster.leader().metrics().applied)
        self.cluster.crash(node.node_id)
        self.cluster.network.heal()
        self.files = self.files.crash()
        again = self.cluster.make(node.node_id, **self.stores(node.node_id))
        self.cluster.settle()
        self.assertEqual(again.machine.state, self.cluster.leader().machine.state)

    def test_receiver_that_restarts_begins_anew_at_full_speed(self) -> None:
        """H-66: it has lost what it had received; that is no reason to back off from then on."""
        self.cluster.settings["snapshot_chunk_bytes"] = 100
        members = [self.cluster.member(i) for i in (1, 2, 3)]
        for i in (1, 2, 3):
            self.cluster.make(i, **self.stores(i))
        for each in [node.bootstrap(members) for node in self.cluster.nodes.values()]:
            self.cluster.result(each)
        lead = self.cluster.leader()
        node = self.cluster.followers()[0]
        self.cluster.crash(node.node_id)
        self.cluster.result(lead.propose_many([["set", str(n), "x" * 50] for n in range(120)]))
        self.cluster.make(node.node_id, **self.stores(node.node_id, self.files.crash("all")))
        self.cluster.until(lambda: lead.metrics().replication[node.node_id].state == "snapshot")
        self.cluster.run(0.3)
        self.assertLess(self.cluster.nodes[node.node_id].metrics().applied, 100)
        self.cluster.crash(node.node_id)
        again = self.cluster.make(node.node_id, **self.stores(node.node_id, self.files.crash("all")))
        self.cluster.until(lambda: again.machine.state == lead.machine.state, seconds=3.0)

    def test_directory_of_another_node(self) -> None:
        node = self.begin()
        self.cluster.result(node.shutdown())
        stores = self.stores()
        with self.assertRaises(WrongIdentity):
            self.cluster.make(2, **stores)
        self.assertTrue(self.cluster.nodes[2].metrics().stopped)
        self.assertIsInstance(self.successResultOf(self.cluster.nodes[2].when_stopped()), WrongIdentity)
        self.failureResultOf(self.cluster.nodes[2].start(), WrongIdentity)
        self.failureResultOf(self.cluster.nodes[2].propose(["time"]), NodeStopped)

    def test_damaged_snapshot_is_refused(self) -> None:
        """J-89: never passed over, never taken for an empty state."""
        node = self.begin()
        self.cluster.result(node.propose_many([["set", str(n), n] for n in range(60)]))
        self.cluster.result(node.shutdown())
        for directory in self.files.list("/data1/snap"):
            if directory == "LOCK":
                continue
            for name in self.files.list(f"/data1/snap/{directory}"):
                path = f"/data1/snap/{directory}/{name}"
                if "manifest" not in name.lower():
                    self.files.corrupt(path, self.files.size(path) // 2, b"\xff\xfe\xfd")
        with self.assertRaises(StorageCorrupt):
            self.cluster.make(1, **self.stores())
        self.flushLoggedErrors()

    def test_lost_snapshot_is_refused(self) -> None:
        """J-81, J-90, S-19: a log that begins after a snapshot which is not there."""
        node = self.begin()
        self.cluster.result(node.propose_many([["set", str(n), n] for n in range(60)]))
        self.cluster.result(node.shutdown())
        stores = {**self.stores(), "machine": MemStateMachine({}, apply)}
        with self.assertRaises(StorageCorrupt):
            self.cluster.make(1, **stores)

    def test_a_snapshot_of_another_cluster_is_refused(self) -> None:
        """S-09: a snapshot that was copied in, though it fits the log by its position."""
        other, points = SimulatedFileSystem(), set()
        for files in (other, self.files):
            node = self.cluster.make(1, **self.stores(files=files))
            self.cluster.result(node.bootstrap())
            self.cluster.leader()
            self.cluster.result(node.propose_many([["set", str(n), n] for n in range(60)]))
            points.add(node.metrics().snapshot)
            self.cluster.result(node.shutdown())
        [point] = points
        assert point is not None
        mixed = {"log": self.stores()["log"], "machine": self.stores(files=other)["machine"]}
        with self.assertRaises(WrongIdentity) as caught:
            self.cluster.make(1, **mixed)
        self.assertEqual(
            (f"snap/{point.index}-{point.term}", "incarnation"), (caught.exception.path, caught.exception.field)
        )

    def test_lost_log_is_refused(self) -> None:
        """S-17, J-81: the node's own snapshot reaches further than its log."""
        node = self.begin()
        self.cluster.result(node.propose_many([["set", str(n), n] for n in range(60)]))
        self.cluster.result(node.shutdown())
        stores = {**self.stores(), "log": MemLogStore(1)}
        with self.assertRaises(StorageCorrupt) as caught:
            self.cluster.make(1, **stores)
        self.assertIn("before the node's own snapshot", str(caught.exception))

    def test_installed_snapshot_resets_the_log(self) -> None:
        """S-17, H-66: a crash came between receiving it and resetting the log; term and vote stay safe."""
        node = self.begin()
        self.cluster.result(node.propose_many([["set", str(n), n] for n in range(20)]))
        membership = node.metrics().membership
        self.cluster.result(node.trigger("snapshot"))
        self.cluster.result(node.shutdown())
        machine = self.stores()["machine"]
        self.successResultOf(machine.open())
        reader = machine.reader()
        sent = reader.manifest
        later = Manifest(SnapshotPoint(LogId(7, 5000), membership, sent.point.time_ms), sent.parts)
        receiver = machine.receiver(later)
        for part, (size, _) in enumerate(sent.parts):
            data = self.successResultOf(reader.read(part, 0, size))
            self.successResultOf(receiver.write(part, 0, data))
        self.successResultOf(receiver.publish())
        reader.close()
        self.successResultOf(machine.close())
        node = self.cluster.make(1, **self.stores())
        metrics = node.metrics()
        self.assertEqual((metrics.last, metrics.purged, metrics.term), (LogId(7, 5000), 5000, 7))
        self.assertIsNone(metrics.voted_for)
        self.assertEqual(node.machine.state, {str(n): n for n in range(20)})
        self.cluster.leader()
        self.cluster.result(node.propose(["set", "a", 1]))
        self.cluster.result(node.shutdown())
        node = self.cluster.make(1, **self.stores())
        self.cluster.leader()
        self.assertEqual(node.machine.state["a"], 1)

    def test_disk_that_fails_while_taking_a_snapshot(self) -> None:
        """S-12: fatal, and told."""
        node = self.begin()
        told = node.when_stopped()
        self.cluster.result(node.propose(["time"]))
        self.files.fail("rename")
        self.cluster.error(node.trigger("snapshot"), ConsensusError)
        self.assertIsInstance(self.cluster.result(told), StorageFailed)
        self.flushLoggedErrors()

    def test_full_disk_costs_the_snapshot_only(self) -> None:
        """S-11: it is given up and told, what was written goes, the node goes on; later there is room again."""
        node = self.begin()
        self.cluster.result(node.propose(["set", "a", 1]))
        for full in ("create", "write", "sync", "rename"):
            with self.subTest(full):

                def no_space(operation: str, path: str, full: str = full) -> None:
                    if operation == full and path.startswith("/data1"):
                        raise StorageFull(operation, path, "No space left on device")

                self.files.before = no_space
                before = node.metrics().snapshot
                self.cluster.error(node.trigger("snapshot"), StorageFull)
                self.files.before = None
                self.assertEqual(node.metrics().snapshot, before)
                self.assertEqual(self.cluster.result(node.propose(["set", "a", 1])), 1)
                self.cluster.result(node.trigger("snapshot"))
                self.assertEqual(node.metrics().snapshot, node.metrics().last)
                self.cluster.result(node.propose(["set", "a", 1]))
        self.assertFalse(node.metrics().stopped)
