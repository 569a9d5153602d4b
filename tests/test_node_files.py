"""Nodes whose state lies partly in files: what they wait for, what they send, what stops them."""

from __future__ import annotations

from hashlib import sha256
from io import BytesIO
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.kv_files_kit import ManualExecutor, make_machine
from tests.node_cluster import NodeCluster
from zlayer_consensus.errors import ConfigError, NodeStopped, OutOfSpace, StorageCorrupt, StorageFailed, StorageFull
from zlayer_consensus.kv import (
    TO_THE_END,
    Compare,
    Comparison,
    Delete,
    KeyValueMachine,
    Put,
    Range,
    Target,
    Txn,
    decode_result,
    encode,
)
from zlayer_consensus.kv._value_files import Append
from zlayer_consensus.network import SnapshotChunk
from zlayer_consensus.node import ConsensusNode
from zlayer_consensus.storage import FileLogStore, FileStateMachine, FunctionStateMachine, IExecutor, InlineExecutor
from zlayer_consensus.storage.backup import BackupFile, BackupHeader, NewMember, encode_backup_head, restore_backup
from zlayer_consensus.testing import SimulatedFileSystem


@implementer(IExecutor)
class SlowExecutor:
    """A disk that takes its time; it notes how much is handed to it at once."""

    most_bytes = 0

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.at = 0.0

    def run(self, call: Any, *args: Any) -> Deferred[Any]:
        if args and isinstance(args[0], list):
            size = sum(len(job.value) for job in args[0] if isinstance(job, Append))
            SlowExecutor.most_bytes = max(SlowExecutor.most_bytes, size)
        self.at = max(self.at, self.clock.seconds()) + 0.01
        return deferLater(self.clock, self.at - self.clock.seconds(), call, *args)

    def stop(self) -> Deferred[None]:
        return self.run(lambda: None)


class FilesCase(SynchronousTestCase):
    """A cluster of the key-value store with values on disks of its nodes' own."""

    def setUp(self) -> None:
        self.cluster = NodeCluster(
            self, snapshot_policy="never", max_in_snapshot_log_to_keep=5, snapshot_chunk_bytes=1000
        )
        self.disks: dict[int, SimulatedFileSystem] = {}

    def store(
        self, node_id: int, executor: IExecutor | None = None, machine: Any = None, **settings: Any
    ) -> FileStateMachine:
        """A store on a node's disk, which may be there already."""
        files = self.disks.setdefault(node_id, SimulatedFileSystem())
        if not files.exists("/data"):
            files.mkdir("/data")
        if machine is None:
            settings = {"file_bytes": 5000, **settings}
            machine = make_machine(files, self.cluster.clock, executor, directory="/data/values", **settings)
        return FileStateMachine("/data", machine, executor=InlineExecutor(), file_system=files)

    def begin(self, *ids: int, **settings: Any) -> ConsensusNode:
        stores = iter([self.store(node_id, **settings) for node_id in ids])
        self.cluster.make_machine = lambda: next(stores)
        return self.cluster.begin(*ids)

    def put(self, node: ConsensusNode, count: int, start: int = 0, size: int = 200) -> None:
        requests = [encode(Put(b"k%04d" % n, b"%04d" % n * (size // 4))) for n in range(start, start + count)]
        self.cluster.result(node.propose_many(requests))

    def machine(self, node: ConsensusNode) -> Any:
        return node._runtime.store.machine

    def value(self, node: ConsensusNode, key: bytes) -> bytes | None:
        """Read at a node as the daemon does."""
        [waiting] = self.cluster.result(node.read_state(lambda machine: [machine.get(key)]))
        found = self.cluster.result(waiting)
        return None if found is None else found.value

    def restart(self, node_id: int, keep: Any = "none", **settings: Any) -> ConsensusNode:
        """Let a node's process die and its machine lose its power; then start it again."""
        self.cluster.crash(node_id)
        self.disks[node_id] = self.disks[node_id].crash(keep)
        log = self.cluster.logs[node_id].reopened()
        return self.cluster.make(node_id, log=log, machine=self.store(node_id, **settings))

    def agree(self) -> None:
        self.cluster.settle()
        digests = {self.machine(node).digest() for node in self.cluster.nodes.values()}
        self.assertEqual(len(digests), 1)


class SnapshotWithFilesTests(FilesCase):
    def test_restart(self) -> None:
        """H-68, J-91: the newest snapshot with its files, and the log behind it; whatever else was on the disk goes."""
        lead = self.begin(1)
        self.put(lead, 60)
        self.cluster.result(lead.trigger("snapshot"))
        self.put(lead, 20, start=50, size=100)
        manifest = lead._runtime.store.newest()
        assert manifest is not None
        self.assertGreater(manifest.files, 2)
        digest = self.machine(lead).digest()
        again = self.restart(1)
        self.cluster.until(lambda: again.metrics().ready)
        self.assertEqual(self.machine(again).digest(), digest)
        self.assertEqual(self.value(again, b"k0010"), b"0010" * 50)
        self.assertEqual(self.value(again, b"k0055"), b"0055" * 25)
        self.assertEqual(len(self.machine(again)), 70)

    def test_purge_waits_for_the_published_manifest(self) -> None:
        """Whatever the disk takes to seal the files, the log stays until the snapshot has its names for them."""
        executor = ManualExecutor()
        files = self.disks[1] = SimulatedFileSystem()
        files.mkdir("/data")
        store = self.store(1, executor)
        self.patch(store.machine, "open", self.settled(executor, store.machine.open))  # type: ignore[attr-defined]
        self.cluster.make_machine = lambda: store
        lead = self.cluster.begin(1)
        self.put(lead, 60)
        taking = lead.trigger("snapshot")
        self.cluster.run(5.0)
        self.assertNoResult(taking)
        self.assertEqual((lead.metrics().purged, lead.metrics().snapshot), (0, None))
        operations = files.operations
        operations.clear()
        executor.settle()
        self.cluster.result(taking)
        syncs = [at for at, (operation, path) in enumerate(operations) if operation == "sync" and "/values/" in path]
        links = [at for at, (operation, _) in enumerate(operations) if operation == "link"]
        [manifest] = [at for at, each in enumerate(operations) if each[0] == "create" and each[1].endswith("manifest")]
        self.assertTrue(max(syncs) < min(links) < max(links) < manifest)
        snapshot = lead.metrics().snapshot
        assert snapshot is not None
        self.assertEqual(lead.metrics().purged, snapshot.index - 5)
        self.patch(store.machine, "close", self.settled(executor, store.machine.close))  # type: ignore[attr-defined]

    def settled(self, executor: ManualExecutor, call: Any) -> Any:
        """A call after which the disk does what there is to do."""

        def settle() -> Any:
            waiting = call()
            executor.settle()
            return waiting

        return settle

    def test_files_of_a_snapshot_that_is_given_up(self) -> None:
        """S-11: it is not published, and holds the files no longer."""
        lead = self.begin(1, history_changes=0, history_bytes=0)
        self.put(lead, 60)
        self.disks[1].capacity = self.disks[1].used() + 100
        self.cluster.error(lead.trigger("snapshot"), StorageFull)
        self.disks[1].capacity = None
        self.assertEqual([file.pins for file in self.machine(lead)._log.files.values() if file.pins], [])
        self.put(lead, 60, size=40)
        self.cluster.result(lead.trigger("snapshot"))
        self.assertEqual(self.value(lead, b"k0059"), b"0059" * 10)

    def test_backup_and_restore(self) -> None:
        """A backup has the files in it, and the members of the new cluster have them."""
        lead = self.begin(1)
        self.put(lead, 60)
        self.cluster.result(lead.trigger("snapshot"))
        reader = lead._runtime.store.reader()
        data = encode_backup_head(BackupHeader(b"c" * 16, "name", "kv", reader.manifest))
        for part, (size, _) in enumerate(reader.manifest.parts):
            data += self.successResultOf(reader.read(part, 0, size))
        reader.close()
        backup = BackupFile(BytesIO(data + sha256(data).digest()))
        backup.verify()
        self.disks[7] = files = SimulatedFileSystem()
        restore_backup(files, backup, [NewMember(7, "new:1", "new:2", "/data")], b"", self.cluster.random.randbytes)
        log = FileLogStore("/data", 7, executor=InlineExecutor(), file_system=files, reactor=self.cluster.clock)
        restored = self.cluster.make(7, log=log, machine=self.store(7))
        self.assertEqual(self.machine(restored).digest(), self.machine(lead).digest())
        found = self.successResultOf(self.machine(restored).get(b"k0033"))
        assert found is not None
        self.assertEqual(found.value, b"0033" * 50)

    def test_compaction_in_a_node(self) -> None:
        """Garbage goes while the node runs, and snapshots are as before."""
        lead = self.begin(1, history_changes=0, history_bytes=0)
        self.put(lead, 100)
        for number in range(0, 100, 3):
            self.cluster.result(lead.propose(encode(Delete(b"k%04d" % number, b"k%04d" % (number + 2)))))
        before = set(self.machine(lead)._log.files)
        self.cluster.run(10.0)
        self.assertNotEqual(set(self.machine(lead)._log.files) & before, before)
        self.cluster.result(lead.trigger("snapshot"))
        digest = self.machine(lead).digest()
        again = self.restart(1)
        self.assertEqual(self.machine(again).digest(), digest)
        self.assertEqual(self.value(again, b"k0002"), b"0002" * 50)


class TransferTests(FilesCase):
    def setUp(self) -> None:
        super().setUp()
        self.lead = self.begin(1, 2, 3)
        self.node = self.cluster.followers()[0]
        others = [self.cluster.address(i) for i in (1, 2, 3) if i != self.node.node_id]
        self.cluster.network.partition([self.node.address], others)
        self.put(self.lead, 120)
        self.cluster.result(self.lead.trigger("snapshot"))
        self.assertGreater(self.lead.metrics().purged, self.node.metrics().last.index)
        manifest = self.lead._runtime.store.newest()
        assert manifest is not None
        self.manifest = manifest
        self.chunks: list[tuple[int, int]] = []
        self.cluster.network.watch = self.watch
        self.stop_at: tuple[int, int] | None = None

    def watch(self, kind: str, source: str, target: str, message: Any) -> None:
        if kind == "execute" and isinstance(message, SnapshotChunk) and message.data:
            self.chunks.append((message.part, message.offset))
            if (message.part, message.offset) == self.stop_at:
                self.stop_at = None
                self.cluster.network.partition([self.node.address], [source])

    def test_file_by_file(self) -> None:
        """A follower that was purged past gets the files, has the same state, and goes on."""
        self.cluster.network.heal()
        self.agree()
        self.assertEqual({part for part, _ in self.chunks}, set(range(len(self.manifest.parts))))
        self.assertEqual(self.value(self.node, b"k0099"), b"0099" * 50)
        received = self.node._runtime.store.newest()
        assert received is not None
        self.assertEqual((received.parts, received.files), (self.manifest.parts, self.manifest.files))
        self.put(self.lead, 10, start=500)
        self.agree()
        self.cluster.result(self.node.trigger("snapshot"))
        again = self.restart(self.node.node_id)
        self.agree()
        self.assertEqual(self.value(again, b"k0505"), b"0505" * 50)

    def test_resume_in_the_middle_of_a_file(self) -> None:
        """What has arrived before a break is not sent again."""
        self.stop_at = (self.manifest.streams + 3, 2000)
        self.cluster.network.heal()
        self.cluster.until(lambda: self.stop_at is None)
        self.cluster.run(1.0)
        self.assertEqual(self.chunks[-1], (self.manifest.streams + 3, 2000))
        before = self.chunks[:-1]
        self.chunks.clear()
        self.cluster.network.heal()
        self.agree()
        self.assertFalse(set(before) & set(self.chunks))
        self.assertIn(self.chunks[0], [(self.manifest.streams + 3, 2000), (self.manifest.streams + 3, 3000)])
        self.assertEqual(self.value(self.node, b"k0099"), b"0099" * 50)

    def test_damaged_file_is_not_sent(self) -> None:
        """J-27: the leader stops, and says which file it is."""
        stopped = self.lead.when_stopped()
        path = f"/data/snap/{self.manifest.point.last.index}-{self.manifest.point.last.term}/{self.manifest.streams}"
        self.disks[self.lead.node_id].corrupt(path, 100, b"?")
        self.cluster.network.heal()
        error = self.cluster.result(stopped)
        assert isinstance(error, StorageCorrupt)
        self.assertEqual(error.path, path)

    def test_a_member_with_all_in_memory(self) -> None:
        """One clear error, when it is to load the snapshot and at every start; the setting cures it."""
        node_id = self.node.node_id
        stopped = self.restart(node_id, machine=KeyValueMachine()).when_stopped()
        self.cluster.network.heal()
        error = self.cluster.result(stopped)
        assert isinstance(error, ConfigError)
        self.assertEqual((error.field, error.value), ("values", "memory"))
        self.cluster.crash(node_id)
        log = self.cluster.logs[node_id].reopened()
        with self.assertRaises(ConfigError):
            self.cluster.make(node_id, log=log, machine=self.store(node_id, machine=KeyValueMachine()))
        self.assertEqual([], self.flushLoggedErrors(), "one line, and no traceback")
        self.cluster.dead.append(self.cluster.nodes.pop(node_id))
        again = self.cluster.make(node_id, log=log.reopened(), machine=self.store(node_id))
        self.agree()
        self.assertEqual(self.value(again, b"k0099"), b"0099" * 50)

    def test_another_machine(self) -> None:
        """A machine that knows of no files is not given a state without them."""

        class Anything(FunctionStateMachine):
            def restore(self) -> Any:
                return self

            def write(self, chunk: bytes) -> None:
                pass

            def finish(self) -> None:
                raise AssertionError("it was given a state without its files")

        machine = Anything({}, lambda state, command: None)
        stopped = self.restart(self.node.node_id, machine=machine).when_stopped()
        self.cluster.network.heal()
        error = self.cluster.result(stopped)
        assert isinstance(error, ConfigError)
        self.assertIn("it has files", error.rule)
        self.assertEqual([], self.flushLoggedErrors(), "one line, and no traceback")


class KindsTests(FilesCase):
    def test_from_memory_to_disk(self) -> None:
        """A node that had all in memory is started with values on disk, and has what it had."""
        lead = self.begin(1, machine=KeyValueMachine())
        self.put(lead, 600, size=1000)
        self.cluster.result(lead.trigger("snapshot"))
        self.put(lead, 20, start=590, size=100)
        digest = self.machine(lead).digest()
        self.cluster.result(lead.shutdown())
        again = self.restart(1, "all", executor=SlowExecutor(self.cluster.clock), buffer_bytes=50_000)
        machine: Any = self.machine(again)
        self.cluster.until(lambda: again.metrics().ready)
        self.cluster.settle()
        self.assertEqual(machine.digest(), digest)
        self.assertEqual(self.value(again, b"k0010"), b"0010" * 250)
        self.assertLess(SlowExecutor.most_bytes, 200_000)  # the stream waits for the disk
        self.cluster.result(again.trigger("snapshot"))
        newest = again._runtime.store.newest()
        assert newest is not None
        self.assertGreater(newest.files, 1)


class WaitingTests(FilesCase):
    """A node whose machine waits for its disk: it applies nothing meanwhile, and does all else."""

    def setUp(self) -> None:
        super().setUp()
        self.executor = ManualExecutor()
        store = self.store(1, self.executor, buffer_bytes=20_000)
        opening = store.machine.open  # type: ignore[attr-defined]

        def opened() -> Any:
            waiting = opening()
            self.executor.settle()
            return waiting

        self.patch(store.machine, "open", opened)
        self.cluster.make_machine = lambda: store
        self.lead = self.cluster.begin(1)
        self.addCleanup(self.let_close)

    def let_close(self) -> None:
        """Closing waits for the disk, which goes on by itself from now on."""
        self.patch(self.executor, "run", InlineExecutor().run)
        self.executor.settle()

    def settle(self) -> None:
        for _ in range(20):
            self.executor.settle()
            self.cluster.run(0.05)

    def test_a_command_that_reads(self) -> None:
        """It has its result when the value is there; those behind it wait, and the order stays."""
        self.put(self.lead, 3)
        self.settle()
        asked: list[bytes] = []
        prepare = self.machine(self.lead).prepare

        def count(command: bytes) -> Any:
            asked.append(command)
            return prepare(command)

        self.patch(self.machine(self.lead), "prepare", count)
        order: list[str] = []
        get = self.lead.propose(encode(Range(b"k0001")))
        later = self.lead.propose(encode(Put(b"k0001", b"new")))
        last = self.lead.propose(encode(Range(b"k0001")))

        def note(result: Any, name: str) -> Any:
            order.append(name)
            return result

        for name, waiting in (("get", get), ("put", later), ("last", last)):
            _ = waiting.addCallback(note, name)
        self.cluster.run(2.0)
        self.assertEqual((order, len(asked)), ([], 1))  # and it is not asked again and again
        self.assertGreater(self.lead.metrics().commit, self.lead.metrics().applied)
        reading = self.lead.read_state(lambda machine: machine.index)
        self.cluster.run(0.5)
        self.assertNoResult(reading)
        self.settle()
        self.assertEqual(order, ["get", "put", "last"])
        results: list[Any] = [decode_result(self.successResultOf(each)) for each in (get, last)]
        self.assertEqual([result.kvs[0].value for result in results], [b"0001" * 50, b"new"])
        self.assertEqual(self.successResultOf(reading), self.lead.metrics().applied)

    def test_in_a_session(self) -> None:
        """H-82: a command of a session waits as well, and its reply is kept with the values in it."""
        session = self.cluster.result(self.lead.register_session())
        self.put(self.lead, 3)
        self.settle()
        condition = Compare(b"k0002", Target.VALUE, Comparison.GREATER, b"0001")
        command = encode(Txn((condition,), (Range(b"", TO_THE_END),)))
        waiting = self.lead.propose(command, session=session, sequence=1)
        self.cluster.run(1.0)
        self.assertNoResult(waiting)
        self.settle()
        result: Any = decode_result(self.successResultOf(waiting))
        self.assertEqual([kv.value for kv in result.results[0].kvs], [b"%04d" % n * 50 for n in range(3)])
        again = self.lead.propose(command, session=session, sequence=1)
        self.settle()
        self.assertEqual(decode_result(self.successResultOf(again)), result)

    def test_a_disk_that_cannot_keep_up(self) -> None:
        """Memory stays bounded: commands are committed and wait in the log, not in the buffer."""
        requests = [encode(Put(b"k%04d" % n, bytes(1000))) for n in range(100)]
        waiting = self.lead.propose_many(requests)
        self.cluster.run(2.0)
        self.assertNoResult(waiting)
        machine: Any = self.machine(self.lead)
        self.assertLess(machine._storage.writes.bytes, 20_000 + 2000)
        self.assertGreater(self.lead.metrics().commit - self.lead.metrics().applied, 70)
        self.settle()
        self.assertEqual(len(self.successResultOf(waiting)), 100)
        self.assertEqual(len(machine), 100)

    def test_stop_while_it_waits(self) -> None:
        self.put(self.lead, 3)
        self.settle()
        waiting = self.lead.propose(encode(Range(b"k0001")))
        self.cluster.run(1.0)
        stopping = self.lead.shutdown()
        self.let_close()
        self.cluster.result(stopping)
        self.cluster.error(waiting)

    def test_failure_while_it_waits(self) -> None:
        """S-13: the node stops with what the disk said."""
        self.put(self.lead, 3)
        self.settle()
        stopped = self.lead.when_stopped()
        waiting = self.lead.propose(encode(Range(b"k0001")))
        self.cluster.run(1.0)
        self.disks[1].fail("read")
        self.settle()
        self.let_close()
        self.assertIsInstance(self.cluster.result(stopped), StorageFailed)
        error = self.cluster.error(waiting)
        self.assertEqual(error.code, "outcome_unknown")


class FailingTests(FilesCase):
    def stopped_by(self, node: ConsensusNode, kind: type[Exception]) -> Any:
        error = self.cluster.result(node.when_stopped())
        self.assertIsInstance(error, kind)
        return error

    def test_failed_write(self) -> None:
        """S-12: the node stops, also if nothing more is proposed."""
        for operation in ("create", "write", "sync"):
            self.setUp()
            lead = self.begin(1)
            self.put(lead, 3)
            self.disks[1].fail(operation, nth=2)
            waiting = lead.propose_many([encode(Put(b"x%d" % n, bytes(2000))) for n in range(10)])
            self.stopped_by(lead, StorageFailed)
            self.cluster.outcome(waiting)

    def test_full_disk(self) -> None:
        """S-10: it is a full disk, and said to be one; what it took is there, and it goes on when there is space."""
        lead = self.begin(1)
        self.disks[1].capacity = self.disks[1].used() + 1000
        done = self.cluster.result(lead.propose_many([encode(Put(b"x%d" % n, bytes(2000))) for n in range(5)]))
        self.assertEqual(5, len(done))
        self.cluster.run(3.0)
        self.assertTrue(lead.metrics().full)
        self.cluster.error(lead.propose(encode(Put(b"y", b""))), OutOfSpace)
        read = lead.read_state(lambda machine: [machine.get(b"x4")])
        self.assertEqual(bytes(2000), self.cluster.result(self.cluster.result(read)[0]).value)
        self.disks[1].capacity = None
        self.cluster.until(lambda: not lead.metrics().full)
        self.put(lead, 1)
        self.cluster.result(lead.trigger("snapshot"))

    def test_a_stop_on_a_full_disk(self) -> None:
        """S-10: a snapshot that waits for the values does not hold it up."""
        lead = self.begin(1)
        self.disks[1].capacity = self.disks[1].used() + 1000
        self.cluster.result(lead.propose(encode(Put(b"x", bytes(2000)))))
        snapshot = lead.trigger("snapshot")
        self.cluster.run(3.0)
        self.cluster.result(lead.shutdown())
        self.cluster.error(snapshot, NodeStopped)

    def test_damaged_value(self) -> None:
        """J-27: who reads it gets the error, and the node stops: it cannot know what else is damaged."""
        lead = self.begin(1)
        self.put(lead, 3)
        stopped = lead.when_stopped()
        self.disks[1].corrupt("/data/values/1.values", 60, b"?")
        [waiting] = self.cluster.result(lead.read_state(lambda machine: [machine.get(b"k0000")]))
        self.cluster.error(waiting, StorageCorrupt)
        error = self.cluster.result(stopped)
        self.assertIsInstance(error, StorageCorrupt)
        self.cluster.error(lead.propose(encode(Put(b"a", b""))), NodeStopped)

    def test_failure_while_loading(self) -> None:
        """A node that cannot link the files of its snapshot does not start."""
        lead = self.begin(1)
        self.put(lead, 30)
        self.cluster.result(lead.trigger("snapshot"))
        self.cluster.crash(1)
        self.disks[1] = files = self.disks[1].crash()
        files.fail("link", nth=3)
        with self.assertRaises(StorageFailed):
            self.cluster.make(1, log=self.cluster.logs[1].reopened(), machine=self.store(1))
        self.assertEqual(self.cluster.nodes[1].metrics().stopped, True)
