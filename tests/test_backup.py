"""
Backups: the file, the answer of a node that streams one, and the directories that are made of it.
"""

from __future__ import annotations

import io
import random
from hashlib import sha256
from typing import Any

from treq.testing import StubTreq
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseFailed
from twisted.web.server import Site
from zope.interface.verify import verifyObject

from tests.crash_kit import PowerFailure, fail_power
from tests.fake_node import FakeNode
from tests.log_store_kit import result
from tests.node_cluster import NodeTestCase
from tests.repair_kit import damage_of
from tests.test_client_api import ApiTestCase
from zlayer_consensus import _cbor
from zlayer_consensus.daemon._api import client_resource
from zlayer_consensus.daemon._api_backup import _Outflow
from zlayer_consensus.errors import NodeStopped, NotLeader, StorageCorrupt, StorageFailed, StorageFull
from zlayer_consensus.node import InitialMember, encode_members
from zlayer_consensus.node._recovery import recover
from zlayer_consensus.raft import HardState, LogId, Member, Membership, SnapshotPoint
from zlayer_consensus.storage import FileLogStore, FileStateMachine, InlineExecutor, Manifest, MemStateMachine
from zlayer_consensus.storage._backup import _HEAD
from zlayer_consensus.storage.backup import (
    BackupDamage,
    BackupFile,
    BackupHeader,
    NewMember,
    encode_backup_head,
    restore_backup,
)
from zlayer_consensus.testing import SimulatedFileSystem

MEMBERS = Membership.initial([Member(n, bytes([n]) * 16, f"old-{n}:7001") for n in (1, 2, 3)])
POINT = SnapshotPoint(LogId(4, 70), MEMBERS, 9000)


class Parts:
    """A snapshot in memory, and a reader of it."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts
        self.manifest = Manifest(POINT, tuple((len(part), sha256(part).digest()) for part in parts))
        self.closed = 0
        self.reads: list[tuple[int, int, int]] = []
        self.held: list[Deferred[bytes]] | None = None
        self.failure: Exception | None = None

    def read(self, part: int, offset: int, size: int) -> Deferred[bytes]:
        self.reads.append((part, offset, size))
        if self.failure is not None and part == len(self.parts) - 1:
            return fail(self.failure)
        if self.held is not None:
            self.held.append(Deferred())
            return self.held[-1]
        return succeed(self.parts[part][offset : offset + size])

    def close(self) -> None:
        self.closed += 1

    def file(self, name: str = "a name", application: str = "kv") -> bytes:
        header = BackupHeader(b"c" * 16, name, application, self.manifest)
        body = encode_backup_head(header) + b"".join(self.parts)
        return body + sha256(body).digest()


def real_snapshot() -> Parts:
    """The parts of a snapshot that a store has written."""
    disk = SimulatedFileSystem()
    disk.mkdir("/old")
    machine = FileStateMachine(
        "/old", {}, lambda _state, _command: None, executor=InlineExecutor(), file_system=disk, part_bytes=400
    )
    result(machine.open())
    writer = machine.writer(POINT)
    for n in range(5):
        result(writer.write(bytes([n]) * 300))
    result(writer.publish())
    result(machine.close())
    names = [name for name in disk.list("/old/snap/70-4") if name != "manifest"]
    return Parts(*(disk.read(f"/old/snap/70-4/{name}", 0, 1 << 20) for name in names))


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.parts = Parts(b"a" * 1000, b"b" * 50, b"c" * 700)
        self.data = self.parts.file()

    def read(self, data: bytes) -> BackupFile:
        backup = BackupFile(io.BytesIO(data))
        backup.verify()
        return backup

    def test_what_is_written_is_read(self) -> None:
        backup = self.read(self.data)
        self.assertEqual((b"c" * 16, "a name", "kv"), (backup.header.cluster_id, backup.header.cluster_name, "kv"))
        self.assertEqual((self.parts.manifest, len(self.data)), (backup.header.manifest, backup.size))
        found = [b"", b"", b""]
        for part, offset, data in backup.pieces():
            self.assertEqual(offset, len(found[part]))
            found[part] += data
        self.assertEqual(list(self.parts.parts), found)

    def test_an_application_without_state(self) -> None:
        self.assertEqual(0, self.read(Parts().file()).header.manifest.size)

    def test_every_damaged_byte_is_noticed(self) -> None:
        """And every length that is not the whole."""
        for at in range(len(self.data)):
            damaged = bytearray(self.data)
            damaged[at] ^= 0x20
            self.assertRaises(BackupDamage, self.read, bytes(damaged))
        for end in range(0, len(self.data), 7):
            self.assertRaises(BackupDamage, self.read, self.data[:end])
        self.assertRaises(BackupDamage, self.read, self.data + b"x")

    def test_a_part_that_is_not_the_manifests(self) -> None:
        """Though the whole is intact: the snapshot was damaged before."""
        self.parts.parts = (b"a" * 1000, b"x" * 50, b"c" * 700)
        self.assertIn("part 1", str(self.assertRaises(BackupDamage, self.read, self.parts.file())))

    def sealed(self, body: bytes, version: int = 1) -> bytes:
        seal = sha256(b"ZLBACKUP" + version.to_bytes(4, "little") + len(body).to_bytes(4, "little") + body).digest()
        return _HEAD.pack(b"ZLBACKUP", version, len(body), seal) + body

    def test_intact_headers_that_are_none(self) -> None:
        self.assertIn("format 2", str(self.assertRaises(BackupDamage, self.read, self.sealed(b"", 2))))
        good = {"cluster_id": b"c" * 16, "cluster_name": "n", "application": "kv", "manifest": b""}
        for body in (b"\xff", _cbor.dumps([]), _cbor.dumps({}), _cbor.dumps(good)):
            self.assertRaises(BackupDamage, self.read, self.sealed(body))


class RestoreTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.disk = SimulatedFileSystem()
        self.disk.mkdir("/new")
        self.disk.sync_dir("/")
        self.parts = real_snapshot()
        # Ids of the old cluster may be used again: it is another cluster.
        self.members = [InitialMember(n, f"new-{n}:7001", f"new-{n}:8001") for n in (2, 3, 9)]
        self.origin = encode_members("a name", self.members)
        self.opened: list[FileLogStore | FileStateMachine] = []
        self.addCleanup(self.close)

    def restore(self, disk: SimulatedFileSystem, seed: int = 0) -> bytes:
        places = [
            NewMember(each.node_id, each.peer_address, each.client_address, f"/new/node-{each.node_id}")
            for each in self.members
        ]
        backup = BackupFile(io.BytesIO(self.parts.file()))
        backup.verify()
        return restore_backup(disk, backup, places, self.origin, random.Random(seed).randbytes)

    def start(self, disk: SimulatedFileSystem, node_id: int) -> tuple[Any, FileLogStore, FileStateMachine]:
        directory = f"/new/node-{node_id}"
        executor = InlineExecutor()
        log = FileLogStore(directory, node_id, executor=executor, file_system=disk, segment_bytes=16 << 10)
        machine = FileStateMachine(directory, {}, lambda _state, _command: None, executor=executor, file_system=disk)
        start = result(Deferred.fromCoroutine(recover(node_id, log, machine)))
        self.opened += [log, machine]
        return start, log, machine

    def close(self) -> None:
        while self.opened:
            result(self.opened.pop().close())

    def test_each_directory_opens_with_the_state_and_the_new_members(self) -> None:
        cluster = self.restore(self.disk)
        memberships = []
        for each in self.members:
            start, log, machine = self.start(self.disk.crash("none"), each.node_id)
            self.assertEqual((POINT.last, POINT.last, 70), (start.last, start.purged, start.applied))
            self.assertEqual((HardState(4, 0, 70), 9000), (start.hard_state, start.last_time_ms))
            identity = log.identity
            self.assertEqual(
                (cluster, self.origin, b"", ()), (identity.cluster_id, identity.origin, b"", identity.former)
            )
            membership = start.snapshot.membership
            self.assertEqual(identity.incarnation, membership.members[each.node_id].incarnation)
            self.assertEqual(each.client_address, membership.members[each.node_id].client_address)
            memberships.append(membership)
            reader = machine.reader()
            chunks = []
            while (chunk := result(reader.next_chunk())) is not None:
                chunks.append(chunk)
            reader.close()
            self.assertEqual([bytes([n]) * 300 for n in range(5)], chunks)
        self.assertEqual([memberships[0]] * 3, memberships)
        self.assertEqual((frozenset({2, 3, 9}), frozenset()), (memberships[0].voters, memberships[0].tombstones))

    def test_what_is_made_is_whole(self) -> None:
        self.restore(self.disk)
        for each in self.members:
            self.disk.rename(f"/new/node-{each.node_id}", "/new/log")
            only = SimulatedFileSystem()
            _copy(self.disk, "/new/log", only, "/log")
            self.assertEqual([], damage_of(only))
            self.disk.rename("/new/log", f"/new/done-{each.node_id}")

    def test_another_time_is_another_cluster(self) -> None:
        other = SimulatedFileSystem()
        other.mkdir("/new")
        self.assertNotEqual(self.restore(self.disk), self.restore(other, seed=1))

    def test_nothing_is_overwritten(self) -> None:
        for name in ("node-3", "node-9.tmp"):
            disk = SimulatedFileSystem()
            disk.mkdir("/new")
            disk.mkdir(f"/new/{name}")
            self.assertIn(name, str(self.assertRaises(StorageFailed, self.restore, disk)))
            self.assertEqual([name], disk.list("/new"))

    def test_a_directory_that_has_its_name_is_whole(self) -> None:
        """Whatever a power failure leaves: one that is not whole is called .tmp."""
        trial = self.disk.crash(process_only=True)
        trial.operations.clear()
        self.restore(trial)
        names = [name for name, _ in trial.operations]
        for at in [n for n, name in enumerate(names) if name not in {"read", "list", "open"}]:
            broken = self.disk.crash("all")
            broken.operations.clear()
            fail_power(broken, at)
            self.assertRaises(PowerFailure, self.restore, broken)
            for keep in ("none", "all", "prefix", random.Random(at)):
                left = broken.crash(keep)
                for each in self.members:
                    if left.exists(f"/new/node-{each.node_id}"):
                        self.assertEqual(POINT.last, self.start(left, each.node_id)[0].last)
                self.close()


def _copy(source: SimulatedFileSystem, path: str, target: SimulatedFileSystem, to: str) -> None:
    target.mkdir(to)
    for name, size in source.files():
        if name.startswith(f"{path}/"):
            inside = f"{to}{name.removeprefix(path)}"
            parents = inside.split("/")[1:-1]
            for depth in range(1, len(parents) + 1):
                target.mkdir("/" + "/".join(parents[:depth]))
            file = target.create(inside)
            file.write(0, source.read(name, 0, size))
            file.sync()


class AnswerTests(ApiTestCase):
    """``GET /v1/backup`` of a node that does what the test says."""

    def setUp(self) -> None:
        super().setUp()
        self.parts = Parts(b"a" * 600_000, b"b" * 50)
        self.node.readers = [self.parts]

    def test_a_backup(self) -> None:
        answer = self.ask("GET", "/v1/backup")
        self.assertEqual((200, "application/octet-stream", "70"), (
            answer.status, answer.header("content-type"), answer.header("x-zlayer-index")
        ))  # fmt: skip
        backup = BackupFile(io.BytesIO(answer.body))
        backup.verify()
        self.assertEqual(("fake", "kv"), (backup.header.cluster_name, backup.header.application))
        self.assertEqual((len(answer.body), self.parts.manifest), (backup.size, backup.header.manifest))
        self.assertEqual(1, self.parts.closed)
        self.assertLessEqual(max(size for _, _, size in self.parts.reads), 256 << 10)

    def test_options(self) -> None:
        self.ask("GET", "/v1/backup?timeout=7&forward=no")
        self.assertEqual(("backup", 7.0, False), self.node.calls[-1])
        self.expect_error(self.ask("GET", "/v1/backup?force=yes"), 400, "unknown_option")

    def test_an_application_of_ones_own(self) -> None:
        self.node = FakeNode(MemStateMachine({}, lambda _state, _command: None).machine)
        self.node.readers = [self.parts]
        self.serve()
        kind = type(self.node.machine)
        backup = BackupFile(io.BytesIO(self.ask("GET", "/v1/backup").body))
        self.assertEqual(f"{kind.__module__}:{kind.__qualname__}", backup.header.application)

    def test_what_fails_before_it_begins_is_an_error_like_any_other(self) -> None:
        for failure, status, code in (
            (StorageFull("write", "/snap", "No space left on device"), 503, "storage_full"),
            (NodeStopped(), 503, "node_stopped"),
        ):
            self.node.failure = failure
            self.expect_error(self.ask("GET", "/v1/backup"), status, code)
        self.node.failure = None
        self.node.leader_id = 2
        self.expect_error(self.ask("GET", "/v1/backup?forward=no"), 421, NotLeader.code)

    def test_one_at_a_time(self) -> None:
        self.node.hold = True
        first = self.http.get("http://n1/v1/backup")
        self.http.flush()
        self.expect_error(self.ask("GET", "/v1/backup"), 429, "overloaded")
        self.node.release()
        self.http.flush()
        self.successResultOf(first)
        self.node.hold = False
        self.node.readers = [self.parts]
        self.assertEqual(200, self.ask("GET", "/v1/backup").status)

    def test_a_damaged_part_breaks_it_off(self) -> None:
        """The answer has begun, so the client learns by the connection that it is not whole."""
        self.parts.failure = StorageCorrupt("snap/70-4/1", 0, "a chunk's checksum does not match")
        asked = self.http.get("http://n1/v1/backup")
        self.http.flush()
        waiting = self.successResultOf(asked).content()
        self.http.flush()
        self.failureResultOf(waiting, ResponseFailed)
        self.assertEqual(1, self.parts.closed)
        self.parts.failure = None
        self.node.readers = [self.parts]
        self.assertEqual(200, self.ask("GET", "/v1/backup").status)

    def test_a_client_that_hangs_up_holds_nothing_back(self) -> None:
        self.parts.held = []
        channel: Any = Site(self.resource).buildProtocol(None)
        channel.makeConnection(StringTransport())
        channel.dataReceived(b"GET /v1/backup HTTP/1.1\r\nHost: a\r\n\r\n")
        self.assertEqual((1, 0), (len(self.parts.held), self.parts.closed))
        channel.connectionLost(Failure(ConnectionError()))
        self.assertEqual(1, self.parts.closed)
        self.node.readers = [Parts(b"x")]
        self.assertEqual(200, self.ask("GET", "/v1/backup").status)


class Buffer:
    """A request whose connection takes bytes when the test says so."""

    def __init__(self) -> None:
        self.channel: Any = self
        self.transport = self
        self.written: list[bytes] = []
        self.producer: Any = None
        self.aborted = False

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        verifyObject(IPushProducer, producer)
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.producer.pauseProducing()


class OutflowTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.buffer, self.clock = Buffer(), Clock()
        self.outflow = _Outflow(self.buffer, self.clock)

    def write(self, data: bytes) -> Deferred[None]:
        return Deferred.fromCoroutine(self.outflow.write(data))

    def test_nothing_is_written_while_the_buffer_is_full(self) -> None:
        self.successResultOf(self.write(b"1"))
        waiting = self.write(b"2")
        self.clock.advance(59)
        self.assertNoResult(waiting)
        self.assertEqual([b"1"], self.buffer.written)
        self.buffer.producer.resumeProducing()
        self.successResultOf(waiting)
        self.assertEqual([b"1", b"2"], self.buffer.written)
        self.buffer.producer.resumeProducing()
        self.successResultOf(self.write(b"3"))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_client_that_takes_nothing_is_given_up(self) -> None:
        self.successResultOf(self.write(b"1"))
        waiting = self.write(b"2")
        self.clock.advance(61)
        self.failureResultOf(waiting, TimeoutError)
        self.buffer.producer.resumeProducing()
        self.outflow.close()
        self.assertIsNone(self.buffer.producer)

    def test_after_the_connection_is_lost(self) -> None:
        self.buffer.channel = None
        self.outflow.close()
        self.outflow.stopProducing()


class NodeBackupTests(NodeTestCase):
    def test_it_has_everything_that_was_acknowledged_before(self) -> None:
        """At a follower, too; and what comes later is not in it."""
        for node in (self.lead, self.follower):
            self.cluster.result(self.lead.propose(["set", "key", node.node_id]))
            before = self.lead.metrics().commit
            reader = self.cluster.result(node.backup())
            self.assertGreaterEqual(reader.manifest.point.last.index, before)
            self.assertEqual(frozenset({1, 2, 3}), reader.manifest.point.membership.voters)
            self.cluster.result(self.lead.propose(["set", "key", 0]))
            restored: Any = MemStateMachine({}, lambda _state, _command: None)
            chunks = []
            while (chunk := self.cluster.result(reader.next_chunk())) is not None:
                chunks.append(chunk)
            reader.close()
            sink = restored.machine.restore()
            for chunk in chunks[-1:]:
                sink.write(chunk)
            sink.finish()
            self.assertEqual(node.node_id, restored.machine.state["key"])

    def test_without_a_leader_there_is_none(self) -> None:
        cluster = self.cluster
        for node in list(cluster.nodes.values()):
            if node is not self.lead:
                cluster.crash(node.node_id)
        cluster.run(10.0)
        self.assertEqual("deadline_exceeded", cluster.error(self.lead.backup(1.0)).code)
        self.assertEqual("not_leader", cluster.error(self.lead.backup(1.0, forward=False)).code)

    def test_over_http(self) -> None:
        """The real node behind the real resource."""
        http: Any = StubTreq(client_resource(self.lead, self.lead.machine, self.cluster.clock))
        asked = http.get("http://n1/v1/backup")
        body: Any = asked.addCallback(lambda response: response.content())
        self.cluster.until(lambda: http.flush() or bool(body.called and not body.paused))
        backup = BackupFile(io.BytesIO(self.successResultOf(body)))
        backup.verify()
        self.assertEqual(self.lead.metrics().cluster_id, backup.header.cluster_id)
        self.assertEqual(self.lead.cluster_name, backup.header.cluster_name)
