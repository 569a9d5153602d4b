"""The contract of a store of snapshots, as tests that any backend can run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from twisted.trial.unittest import SkipTest
from zope.interface.verify import verifyObject

from ..raft import LogId, SnapshotPoint
from ..storage import ISnapshotReader, IStateMachineStore, Manifest
from ._contracts import Base, contract_test, membership, refused

__all__ = ["StateMachineStoreContract"]

_MANY = 100
"""More chunks and messages than any test here has; a broken store must not hang the suite."""
_CHUNKS = (b"sessions", b"", b"\0" * 3000, b"x", bytes(range(256)) * 4096, b"\xff")


def point(index: int, term: int = 1, voters: Iterable[int] = (1, 2, 3)) -> SnapshotPoint:
    """Return what a snapshot says of the log."""
    return SnapshotPoint(LogId(term, index), membership(*voters), 1000 + index)


async def save(store: IStateMachineStore, at: SnapshotPoint, chunks: Iterable[bytes] = _CHUNKS) -> Manifest:
    """Write and publish a snapshot."""
    writer = store.writer(at)
    for chunk in chunks:
        await writer.write(chunk)
    return await writer.publish()


async def load(reader: ISnapshotReader) -> list[bytes]:
    """Read every chunk of a snapshot."""
    chunks: list[bytes] = []
    while (chunk := await reader.next_chunk()) is not None:
        chunks.append(chunk)
        if len(chunks) > _MANY:
            raise AssertionError("the snapshot has no end")
    return chunks


async def raw_parts(store: IStateMachineStore, step: int = 100_003) -> list[bytes]:
    """Read the parts of the newest snapshot as a transfer does."""
    reader = store.reader()
    parts = [await raw_part(reader, part, step) for part in range(len(reader.manifest.parts))]
    reader.close()
    return parts


async def raw_part(reader: ISnapshotReader, part: int, step: int) -> bytes:
    """Read one part to its end."""
    data = b""
    while piece := await reader.read(part, len(data), step):
        data += piece
        if len(data) > reader.manifest.size:
            raise AssertionError(f"part {part} has no end")
    return data


class StateMachineStoreContract(Base):
    """What every :class:`~zlayer_consensus.storage.IStateMachineStore` has to do.

    Mix it into a test case class and say how to make a store::

        class MyStoreTests(StateMachineStoreContract, twisted.trial.unittest.TestCase):
            def make_store(self):
                return MyStore(self.mktemp(), MyMachine())

            def reopen(self, store):
                return MyStore(store.path, MyMachine())

    With ``SynchronousTestCase`` the store must complete every call at once. The machine is not used here; its own
    contract is :class:`~zlayer_consensus.testing.StateMachineContract`.
    """

    durable = True
    """Whether a closed store can be opened again with what it held."""

    def make_store(self) -> IStateMachineStore:
        """Return a new, empty store that is not open; every call gives another."""
        raise NotImplementedError

    def reopen(self, store: IStateMachineStore) -> IStateMachineStore:
        """Return a store over what ``store``, which was closed, left. It is not open."""
        raise NotImplementedError

    # Helpers

    async def opened(self) -> IStateMachineStore:
        """Return a new, open store; the test closes it at its end."""
        store = self.make_store()
        await store.open()
        self.addCleanup(store.close)
        return store

    async def reopened(self, store: IStateMachineStore) -> IStateMachineStore:
        """Close a store and open it again. Skips if the backend keeps nothing."""
        if not self.durable:
            raise SkipTest("this backend does not outlive its process")
        await store.close()
        again = self.reopen(store)
        self.assertEqual(await again.open(), again.newest())
        self.addCleanup(again.close)
        return again

    async def assert_newest(self, store: IStateMachineStore, at: SnapshotPoint, chunks: Iterable[bytes]) -> None:
        """Check what the newest snapshot is and holds."""
        newest = store.newest()
        assert newest is not None
        self.assertEqual(newest.point, at)
        reader = store.reader()
        self.assertEqual(reader.manifest, newest)
        self.assertEqual(await load(reader), list(chunks))
        reader.close()

    # Writing and reading

    @contract_test
    async def test_new_store_is_empty(self) -> None:
        """A new store has no snapshot, says so, and gives no reader."""
        store = self.make_store()
        verifyObject(IStateMachineStore, store)
        self.assertIsNone(await store.open())
        self.addCleanup(store.close)
        self.assertIsNone(store.newest())
        self.assertRaises(LookupError, store.reader)

    @contract_test
    async def test_publish(self) -> None:
        """A snapshot carries position, configuration with tombstones, and time, and is found again (H-67)."""
        store = await self.opened()
        at = point(5, 2)
        manifest = await save(store, at)
        self.assertEqual((manifest.point, manifest.installed), (at, False))
        self.assertEqual(store.newest(), manifest)
        store = await self.reopened(store)
        self.assertEqual(store.newest(), manifest)
        await self.assert_newest(store, at, _CHUNKS)

    @contract_test
    async def test_chunks_keep_their_boundaries(self) -> None:
        """Every chunk comes back as it was written, whatever its size: a state machine may rely on it."""
        store = await self.opened()
        await save(store, point(5))
        await self.assert_newest(store, point(5), _CHUNKS)

    @contract_test
    async def test_empty_snapshot(self) -> None:
        """A state of no bytes at all is a state."""
        store = await self.opened()
        await save(store, point(5), ())
        await self.assert_newest(store, point(5), ())

    @contract_test
    async def test_parts_are_what_the_manifest_says(self) -> None:
        """Raw reads give as many bytes as announced, with the announced digests."""
        store = await self.opened()
        manifest = await save(store, point(5))
        parts = await raw_parts(store)
        self.assertEqual(tuple((len(part), hashlib.sha256(part).digest()) for part in parts), manifest.parts)
        self.assertEqual(sum(map(len, parts)), manifest.size)

    @contract_test
    async def test_abort(self) -> None:
        """An aborted snapshot leaves no trace, aborting twice is allowed, and the next can begin."""
        store = await self.opened()
        await save(store, point(5))
        writer = store.writer(point(6))
        await writer.write(b"half")
        await writer.abort()
        await writer.abort()
        await self.assert_newest(store, point(5), _CHUNKS)
        await save(store, point(7), [b"whole"])
        store = await self.reopened(store)
        await self.assert_newest(store, point(7), [b"whole"])

    @contract_test
    async def test_abort_after_publish(self) -> None:
        """Aborting what was published does nothing."""
        store = await self.opened()
        writer = store.writer(point(5))
        await writer.write(b"state")
        await writer.publish()
        await writer.abort()
        await self.assert_newest(store, point(5), [b"state"])

    @contract_test
    async def test_unpublished_is_gone_after_reopening(self) -> None:
        """What was never published does not exist after a restart (S-15)."""
        store = await self.opened()
        await save(store, point(5))
        await store.writer(point(6)).write(b"half")
        store = await self.reopened(store)
        await self.assert_newest(store, point(5), _CHUNKS)
        await save(store, point(6), [b"whole"])

    @contract_test
    async def test_one_writer_at_a_time(self) -> None:
        """A second writer is refused while the first is at work."""
        store = await self.opened()
        writer = store.writer(point(5))
        self.assertRaises(RuntimeError, store.writer, point(6))
        await writer.abort()
        await save(store, point(6))

    @contract_test
    async def test_older_is_refused(self) -> None:
        """A snapshot never goes back, and one index has one term (H-61, J-82, J-86)."""
        store = await self.opened()
        manifest = await save(store, point(5, 2))
        for other in (point(4, 2), point(4, 3), point(5, 3), point(5, 1)):
            self.assertRaises(ValueError, store.writer, other)
            self.assertRaises(ValueError, store.receiver, Manifest(other, manifest.parts))
        self.assertEqual(store.newest(), manifest)

    @contract_test
    async def test_same_position_again(self) -> None:
        """A second snapshot of one position, built or received, changes nothing (J-85, J-87)."""
        store, other = await self.opened(), await self.opened()
        await save(store, point(5), [b"state"])
        await save(store, point(5), [b"state"])
        await self.transfer(store, other)
        await self.transfer(store, other)
        for each in (store, other):
            await self.assert_newest(await self.reopened(each) if self.durable else each, point(5), [b"state"])

    @contract_test
    async def test_reader_outlives_its_snapshot(self) -> None:
        """A snapshot that is being read stays readable while newer ones come (H-65)."""
        store = await self.opened()
        await save(store, point(5))
        reader = store.reader()
        self.assertEqual(await reader.next_chunk(), _CHUNKS[0])
        for index in range(6, 10):
            await save(store, point(index), [b"newer"])
        self.assertEqual(await load(reader), list(_CHUNKS[1:]))
        size, digest = reader.manifest.parts[0]
        data = await raw_part(reader, 0, size)
        self.assertEqual(hashlib.sha256(data).digest(), digest)
        reader.close()
        reader.close()
        await self.assert_newest(store, point(9), [b"newer"])

    async def scrub(self, store: IStateMachineStore) -> None:
        """Scrub snapshots that are whole to the end of a pass."""
        for _ in range(_MANY):
            step = await store.scrub(100_003)
            self.assertIsNone(step.damage)
            if step.done:
                return
        self.fail("the pass has no end")

    @contract_test
    async def test_scrub(self) -> None:
        """A pass over snapshots that are whole finds nothing, and ends, whichever come and go in between."""
        store = await self.opened()
        await self.scrub(store)
        for index in (5, 6):
            await save(store, point(index))
        await self.scrub(store)
        await store.scrub(1000)
        for index in (7, 8, 9):
            await save(store, point(index), [b"newer"])
        await self.scrub(store)
        await self.assert_newest(store, point(9), [b"newer"])

    @contract_test
    async def test_closed_store(self) -> None:
        """Closing twice is allowed; a closed store begins nothing."""
        store = await self.opened()
        await store.close()
        await store.close()
        self.assertRaises(RuntimeError, store.writer, point(5))

    # Receiving

    async def transfer(self, source: IStateMachineStore, target: IStateMachineStore, step: int = 700_001) -> Manifest:
        """Send the newest snapshot of one store to another."""
        parts = await raw_parts(source)
        newest = source.newest()
        assert newest is not None
        receiver = target.receiver(newest)
        for _ in range(_MANY):
            if receiver.complete:
                break
            part, offset = receiver.position
            await receiver.write(part, offset, parts[part][offset : offset + step])
        return await receiver.publish()

    @contract_test
    async def test_transfer(self) -> None:
        """A received snapshot is the sender's in everything, and marked as installed, also later (S-17)."""
        source, target = await self.opened(), await self.opened()
        sent = await save(source, point(5))
        await save(target, point(2), [b"old"])
        manifest = await self.transfer(source, target)
        self.assertEqual((manifest.point, manifest.parts, manifest.installed), (sent.point, sent.parts, True))
        await self.assert_newest(target, point(5), _CHUNKS)
        target = await self.reopened(target)
        self.assertEqual(target.newest(), manifest)
        await self.assert_newest(target, point(5), _CHUNKS)

    @contract_test
    async def test_receiver_refuses_other_bytes(self) -> None:
        """Bytes that overlap, leave a gap or are too many are refused and change nothing."""
        source, target = await self.opened(), await self.opened()
        await save(source, point(5))
        [data], manifest = await raw_parts(source), source.newest()
        assert manifest is not None
        receiver = target.receiver(manifest)
        self.assertEqual((receiver.position, receiver.complete), ((0, 0), False))
        await receiver.write(0, 0, data[:100])
        for part, offset, piece in (
            (0, 50, data[50:100]),
            (0, 0, data[:100]),
            (0, 150, data[150:200]),
            (1, 0, data[:10]),
            (-1, 100, data[:10]),
            (0, 100, data[100:] + b"more"),
        ):
            await refused(self, ValueError, receiver.write(part, offset, piece))
        await refused(self, ValueError, receiver.publish())
        self.assertEqual((receiver.position, target.newest()), ((0, 100), None))
        await receiver.write(0, 100, data[100:])
        self.assertTrue(receiver.complete)
        await receiver.publish()
        await self.assert_newest(target, point(5), _CHUNKS)

    @contract_test
    async def test_receiver_refuses_a_damaged_part(self) -> None:
        """A part that arrives damaged is refused when it is complete, and starts over (S-16)."""
        source, target = await self.opened(), await self.opened()
        await save(source, point(5))
        [data], manifest = await raw_parts(source), source.newest()
        assert manifest is not None
        receiver = target.receiver(manifest)
        await receiver.write(0, 0, data[:100])
        await refused(self, ValueError, receiver.write(0, 100, data[100:-1] + bytes([data[-1] ^ 1])))
        self.assertEqual((receiver.position, receiver.complete), ((0, 0), False))
        await receiver.write(0, 0, data)
        await receiver.publish()
        await self.assert_newest(target, point(5), _CHUNKS)

    @contract_test
    async def test_receiver_resumes(self) -> None:
        """Asking again for the same snapshot goes on where the transfer broke off."""
        source, target = await self.opened(), await self.opened()
        await save(source, point(5))
        [data], manifest = await raw_parts(source), source.newest()
        assert manifest is not None
        await target.receiver(manifest).write(0, 0, data[:1000])
        receiver = target.receiver(Manifest(manifest.point, manifest.parts, manifest.installed))
        self.assertEqual(receiver.position, (0, 1000))
        await receiver.write(0, 1000, data[1000:])
        await receiver.publish()
        await self.assert_newest(target, point(5), _CHUNKS)

    @contract_test
    async def test_receiver_of_another_snapshot(self) -> None:
        """Another leader's snapshot starts at its beginning, and what is left of the first is refused (H-64)."""
        source, other, target = await self.opened(), await self.opened(), await self.opened()
        await save(source, point(5))
        await save(other, point(6), [b"other"])
        [data], [other_data] = await raw_parts(source), await raw_parts(other)
        manifest, other_manifest = source.newest(), other.newest()
        assert manifest is not None and other_manifest is not None
        first = target.receiver(manifest)
        await first.write(0, 0, data[:1000])
        second = target.receiver(other_manifest)
        self.assertEqual(second.position, (0, 0))
        await refused(self, ValueError, first.write(0, 1000, data[1000:]))
        await first.abort()
        await second.write(0, 0, other_data)
        await second.publish()
        await self.assert_newest(target, point(6), [b"other"])

    @contract_test
    async def test_receiver_aborts(self) -> None:
        """An aborted transfer leaves the old snapshot alone, and begins anew when it is asked for (H-66)."""
        source, target = await self.opened(), await self.opened()
        await save(source, point(5))
        await save(target, point(2), [b"old"])
        [data], manifest = await raw_parts(source), source.newest()
        assert manifest is not None
        receiver = target.receiver(manifest)
        await receiver.write(0, 0, data[:1000])
        await receiver.abort()
        await receiver.abort()
        await self.assert_newest(target, point(2), [b"old"])
        self.assertEqual(target.receiver(manifest).position, (0, 0))
        await self.transfer(source, target)
        await self.assert_newest(target, point(5), _CHUNKS)

    @contract_test
    async def test_half_received_is_no_snapshot_after_reopening(self) -> None:
        """A transfer that a restart cut off goes on, or begins anew; the old snapshot is there (H-66, S-15)."""
        source, target = await self.opened(), await self.opened()
        await save(source, point(5))
        await save(target, point(2), [b"old"])
        [data], manifest = await raw_parts(source), source.newest()
        assert manifest is not None
        await target.receiver(manifest).write(0, 0, data[:1000])
        target = await self.reopened(target)
        await self.assert_newest(target, point(2), [b"old"])
        self.assertIn(target.receiver(manifest).position, [(0, 0), (0, 1000)])
        await self.transfer(source, target)
        await self.assert_newest(target, point(5), _CHUNKS)
