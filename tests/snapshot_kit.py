"""What the tests of snapshots in files share: a store on a simulated disk, and power failures."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.raft import AddLearner, LogId, Member, Membership, RemoveLearner, SnapshotPoint
from zlayer_consensus.storage import FileStateMachine, InlineExecutor, ISnapshotReader, Manifest
from zlayer_consensus.testing import SimulatedFileSystem

ROOT = "/data/snap"
OLD = (b"old", b"", b"o" * 300)
NEW = (b"new", b"n" * 700, b"\x00" * 90, b"end")


class PowerFailure(BaseException):
    """Ends whatever runs; nothing of ours may catch it."""


def fail_power(files: SimulatedFileSystem, nth: int) -> None:
    """Let the power fail before the ``nth`` operation from now on, and before all that follow."""
    count = 0

    def before(_operation: str, _path: str) -> None:
        nonlocal count
        count += 1
        if count >= nth:
            raise PowerFailure

    files.before = before


def member(node_id: int) -> Member:
    return Member(node_id, bytes([node_id]) * 16, f"host-{node_id}:7001", f"host-{node_id}:80")


MEMBERSHIP = (
    Membership.initial([member(1), member(2)]).after(AddLearner(member(3), auto_promote=True)).after(RemoveLearner(3))
)


def point(index: int, term: int = 2) -> SnapshotPoint:
    return SnapshotPoint(LogId(term, index), MEMBERSHIP, 1_700_000_000_000)


def ignore(state: Any, command: Any) -> None:
    pass


class Case(SynchronousTestCase):
    stride = 1
    """Of the places that can be damaged, every so many are."""

    def make_files(self) -> SimulatedFileSystem:
        return SimulatedFileSystem()

    def store(self, files: SimulatedFileSystem, part_bytes: int = 400, keep: int = 2) -> FileStateMachine:
        return FileStateMachine(
            "/data", {}, ignore, executor=InlineExecutor(), file_system=files, part_bytes=part_bytes, keep=keep
        )

    def opened(self, files: SimulatedFileSystem, **settings: int) -> FileStateMachine:
        store = self.store(files, **settings)
        self.done(store.open())
        return store

    def settled(self, waiting: Deferred[Any]) -> Any:
        """Return what a Deferred has fired with, which may be a Failure. A power failure ends the test's program."""
        results: list[Any] = []
        waiting.addBoth(results.append)  # type: ignore[unused-awaitable]
        [result] = results
        if isinstance(result, Failure) and result.check(PowerFailure):
            result.raiseException()
        return result

    def done(self, waiting: Deferred[Any]) -> Any:
        """Return what a Deferred has fired with, or raise its error."""
        result = self.settled(waiting)
        if isinstance(result, Failure):
            result.raiseException()
        return result

    def save(self, store: Any, at: SnapshotPoint, chunks: tuple[bytes, ...]) -> Manifest:
        writer = store.writer(at)
        for chunk in chunks:
            self.done(writer.write(chunk))
        manifest: Manifest = self.done(writer.publish())
        return manifest

    def load(self, reader: ISnapshotReader) -> tuple[bytes, ...]:
        chunks = []
        while (chunk := self.done(reader.next_chunk())) is not None:
            chunks.append(chunk)
        reader.close()
        return tuple(chunks)

    def raw(self, store: Any) -> list[bytes]:
        reader = store.reader()
        return [
            self.successResultOf(reader.read(part, 0, size)) for part, (size, _) in enumerate(reader.manifest.parts)
        ]

    def content(self, files: SimulatedFileSystem) -> tuple[Manifest, tuple[bytes, ...]] | None:
        """Open, load and close, as a node does when it starts."""
        store = self.opened(files)
        newest = store.newest()
        content = None if newest is None else (newest, self.load(store.reader()))
        self.successResultOf(store.close())
        return content
