"""The client interface with values on disk: as with all in memory, but that reads may take a while."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Site

from tests import test_client_api as memory
from tests.fake_node import FakeNode
from tests.kv_files_kit import VALUES, ManualExecutor, make_machine, opened
from tests.node_cluster import NodeCluster
from zlayer_consensus.daemon._api import client_resource
from zlayer_consensus.storage import FileStateMachine, InlineExecutor
from zlayer_consensus.testing import SimulatedFileSystem
from zlayer_consensus.testing.crashes import outcome


class _InFiles:
    """Makes the tests of the interface those of one with values on disk."""

    clock: Any

    def make_machine(self) -> Any:
        return opened(SimulatedFileSystem(), self.clock)


class KeyTests(_InFiles, memory.KeyTests):
    pass


class ConsistencyTests(_InFiles, memory.ConsistencyTests):
    pass


class OptionTests(_InFiles, memory.OptionTests):
    pass


class RangeTests(_InFiles, memory.RangeTests):
    pass


class TxnTests(_InFiles, memory.TxnTests):
    pass


class StatusTests(_InFiles, memory.StatusTests):
    pass


class ClusterTests(memory.ClusterTests):
    """On real nodes, each with a disk of its own."""

    def make_cluster(self) -> NodeCluster:
        cluster = NodeCluster(self)

        def store() -> FileStateMachine:
            files = SimulatedFileSystem()
            files.mkdir("/data")
            machine = make_machine(files, cluster.clock, directory="/data/values")
            return FileStateMachine("/data", machine, executor=InlineExecutor(), file_system=files)

        cluster.make_machine = store
        return cluster


class SlowDiskTests(memory.ApiTestCase):
    def make_machine(self) -> Any:
        self.files = SimulatedFileSystem()
        self.writer, self.reader = ManualExecutor(), ManualExecutor()
        machine = make_machine(self.files, self.clock, self.writer, self.reader)
        opening = machine.open()
        self.writer.settle()
        outcome(opening)
        return machine

    def setUp(self) -> None:
        super().setUp()
        for number in range(5):
            self.put(b"k%d" % number, b"value %d" % number)
        self.writer.settle()

    def begin(self, path: str) -> Any:
        asked = self.http.request("GET", "http://n1" + path)
        self.http.flush()
        self.assertNoResult(asked)
        return asked

    def end(self, asked: Any) -> memory.Answer:
        self.http.flush()
        response = self.successResultOf(asked)
        return memory.Answer(response, self.successResultOf(response.content()))

    def test_answer_comes_with_the_value(self) -> None:
        """It is of the moment at which it was read, whatever is written before the disk has answered."""
        asked = self.begin("/v1/kv/k3")
        self.put(b"k3", b"newer")
        self.reader.settle()
        answer = self.end(asked)
        self.assertEqual((answer.status, answer.body), (200, b"value 3"))
        self.assertEqual((answer.header("X-ZLayer-Revision"), answer.header("X-ZLayer-Index")), ("6", "5"))
        self.assertEqual(self.ask("GET", "/v1/kv/k3").body, b"newer")  # not yet on the disk

    def test_range(self) -> None:
        asked = self.begin("/v1/kv?prefix=k&limit=3")
        self.put(b"k1", b"newer")
        self.reader.settle()
        values = [b64decode(kv["value"]) for kv in self.end(asked).json["kvs"]]
        self.assertEqual(values, [b"value 0", b"value 1", b"value 2"])

    def test_missing_key_needs_no_disk(self) -> None:
        self.expect_error(self.ask("GET", "/v1/kv/none"), 404, "key_not_found")

    def test_disk_that_does_not_answer(self) -> None:
        """Every request ends: after its own time, or the node's."""
        for path, seconds in (("/v1/kv/k1", 5.0), ("/v1/kv/k1?timeout=0.5", 0.5), ("/v1/kv?prefix=k&timeout=60", 60.0)):
            asked = self.begin(path)
            self.clock.advance(seconds - 0.1)
            self.http.flush()
            self.assertNoResult(asked)
            self.clock.advance(0.2)
            attributes = self.expect_error(self.end(asked), 503, "deadline_exceeded")
            self.assertEqual(attributes["seconds"], seconds)
        self.reader.settle()
        asked = self.begin("/v1/kv/k1")
        self.reader.settle()
        self.assertEqual(self.end(asked).body, b"value 1")

    def test_damaged_value(self) -> None:
        """The client hears that it is damaged, and never sees another value."""
        self.files.corrupt(f"{VALUES}/1.values", 40, b"?")
        asked = self.begin("/v1/kv/k1")
        self.reader.settle()
        attributes = self.expect_error(self.end(asked), 503, "storage_corrupt")
        self.assertEqual(attributes["path"], f"{VALUES}/1.values")
        self.assertEqual(self.flushLoggedErrors(), [])


class HangUpTests(SynchronousTestCase):
    def test_client_that_hangs_up(self) -> None:
        """A-17: the read goes on without it, and nothing is logged; what it needed stays until it has ended."""
        files, reader = SimulatedFileSystem(), ManualExecutor()
        machine = opened(files, read_executor=reader, file_bytes=1, history_changes=0, history_bytes=0)
        node = FakeNode(machine)
        site = Site(client_resource(node, machine, clock=Clock()))

        def send(request: bytes) -> Any:
            channel: Any = site.buildProtocol(None)
            channel.makeConnection(StringTransport())
            channel.dataReceived(request)
            return channel

        for key in (b"one", b"two"):
            done = send(b"PUT /v1/kv/%b HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx" % key)
            done.connectionLost(Failure(ConnectionError()))
        channel = send(b"GET /v1/kv/one HTTP/1.1\r\nHost: a\r\n\r\n")
        channel.connectionLost(Failure(ConnectionError()))
        send(b"DELETE /v1/kv/one HTTP/1.1\r\nHost: a\r\n\r\n").connectionLost(Failure(ConnectionError()))
        self.assertEqual(files.list(VALUES), ["1.values", "2.values"])
        reader.settle()
        self.assertEqual(files.list(VALUES), ["2.values"])
        self.assertNoResult(machine.failed())
        self.assertEqual(self.flushLoggedErrors(), [])
