"""The worked example of docs/snapshot-format.rst: the shipped code makes those bytes, and reads them."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

from tests.snapshot_kit import Case
from zlayer_consensus.kv import KeyValueMachine, Put, encode
from zlayer_consensus.node._sessions import SessionLoader, SessionSettings, SessionTable
from zlayer_consensus.raft import LogId, Member, Membership, SnapshotPoint
from zlayer_consensus.storage import ApplyContext, FileStateMachine, InlineExecutor
from zlayer_consensus.testing import SimulatedFileSystem
from zlayer_consensus.types import declare_raft_types

PAGE = Path(__file__).resolve().parent.parent / "docs" / "snapshot-format.rst"
HEX = re.compile(r"^ +((?:(?:[0-9a-f]{2})+ ?)+)", re.MULTILINE)


class ExampleTests(Case):
    """A node with one session, which has put one key."""

    def setUp(self) -> None:
        machine, types = KeyValueMachine(), declare_raft_types()
        sessions = SessionTable()
        sessions.register(2, 1000, SessionSettings(60_000, 100, 16).encode())
        put = encode(Put(b"k", b"hi"))
        request = types.encode_request(put)
        self.assertIsNone(sessions.look_up(2, 1, 1000, request))
        reply = machine.apply(put, ApplyContext(3, 1000))
        sessions.keep(2, 1, request, b"\0" + types.encode_response(reply))
        members = Membership.initial([Member(1, bytes(range(16)), "a:1")])
        self.files = SimulatedFileSystem()
        self.made = FileStateMachine("/data", machine, executor=InlineExecutor(), file_system=self.files)
        self.done(self.made.open())
        chunks = tuple(chain(sessions.snapshot(), machine.snapshot()))
        self.save(self.made, SnapshotPoint(LogId(1, 3), members, 1000), chunks)
        self.machine = machine

    def test_the_bytes_are_those_of_the_page(self) -> None:
        """Whoever changes a format changes its version, and the example."""
        example = PAGE.read_text().split("\nAn example\n", 1)[1].split("\nAssumptions\n", 1)[0]
        for name, block in zip(("0", "manifest"), example.split("::\n\n")[1:], strict=True):
            shown = bytes.fromhex("".join(HEX.findall(block)))
            self.assertEqual(self.files.read(f"/data/snap/3-1/{name}", 0, 10_000).hex(" "), shown.hex(" "), name)

    def test_they_are_read(self) -> None:
        reader, loader, found = self.made.reader(), SessionLoader(), KeyValueMachine()
        sink = found.restore()
        for chunk in self.load(reader):
            if loader.done:
                sink.write(chunk)
            else:
                loader.feed(chunk)
        sink.finish()
        self.assertEqual(found.state_digest(), self.machine.state_digest())
        assert loader.table is not None
        self.assertEqual(1, len(loader.table))
