"""Snapshots to and from peers: streamed in chunks, resumed after a break, never whole in memory (§7)."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, succeed

from ..errors import ConsensusError, InvalidMessage, NodeRemoved, StorageError, StorageFull
from ..network import SnapshotChunk, SnapshotChunkReply
from ..raft import Effects, LogId, Role, SendSnapshot
from ..storage import decode_manifest, encode_manifest
from ..storage.interfaces import ISnapshotReader, ISnapshotReceiver

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["Receiver", "Senders"]

_BACK_OFF_FROM = 0.1
_BACK_OFF_TO = 2.0
_ANNOUNCED_FOR = 10 * _BACK_OFF_TO
"""Seconds for which an announcement counts: a sender that still waits for room repeats it."""
_STATUSES = ("continue", "busy", "installed", "restart", "stale", "full")


class Senders:
    """The transfers under way from this leader, at most one per peer."""

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime
        self._tasks: dict[int, Deferred[None]] = {}

    def start(self, request: SendSnapshot) -> None:
        """Send the newest snapshot; the core hears how that ends."""
        old = self._tasks.pop(request.peer, None)
        if old is not None:
            old.cancel()
        task = self._tasks[request.peer] = Deferred.fromCoroutine(self._run(request))
        _ = task.addBoth(self._ended, request.peer, task)

    def _ended(self, result: Any, peer: int, task: Deferred[None]) -> Any:
        if self._tasks.get(peer) is task:
            del self._tasks[peer]
        return result

    async def _run(self, request: SendSnapshot) -> None:
        rt = self._rt
        last: LogId | None = None
        try:
            sender = _Sender(rt, request.peer, rt.store.reader())
            try:
                last = await sender.run()
            finally:
                sender.reader.close()
        except CancelledError:
            pass
        except LookupError:
            rt.log.warn("There is no snapshot to send to node {peer}", peer=request.peer)
        except StorageError as error:
            # A damaged snapshot: this node cannot know what else is (J-27).
            rt.fail(error)
        except Exception:
            rt.log.failure("Sending a snapshot to node {peer} failed", peer=request.peer)
        rt.driver.input(rt.core.snapshot_sent, request, last)

    def stop(self) -> None:
        """Give up all of them."""
        tasks, self._tasks = self._tasks, {}
        for task in tasks.values():
            task.cancel()


class _Sender:
    """One transfer: the manifest first, then chunk by chunk, from where the receiver says."""

    def __init__(self, runtime: Runtime, peer: int, reader: ISnapshotReader) -> None:
        self._rt = runtime
        self._peer = peer
        self.reader = reader
        self._term = runtime.core.term
        self._last = reader.manifest.point.last
        self._sizes = [size for size, _ in reader.manifest.parts]
        self._manifest = encode_manifest(reader.manifest)
        self._digest = sha256(self._manifest).digest()
        self._position = (0, 0)
        self._announced = False
        self._back_off = _BACK_OFF_FROM

    async def run(self) -> LogId | None:
        """Return the position that the peer now has, None if it was given up."""
        rt = self._rt
        furthest = (-1, 0)
        progress_at = rt.clock.seconds()
        while rt.core.role is Role.LEADER and rt.core.term == self._term:
            before = self._position if self._announced else (-1, 0)
            status = await self._exchange()
            now = rt.clock.seconds()
            if status == "installed":
                return self._last
            if status == "stale" or (status == "full" and self._superseded()):
                return None
            if status == "restart":
                furthest = (-1, 0)
                continue
            # A part that was spoiled is sent again at full speed, and is no progress: it may go on like that for ever.
            moved = status == "continue" and self._position > before
            if status == "continue" and self._position > furthest:
                furthest, progress_at, self._back_off = self._position, now, _BACK_OFF_FROM
            elif now - progress_at >= rt.config.snapshot_timeout:
                rt.log.warn("The snapshot for node {peer} makes no progress", peer=self._peer)
                return None
            if not moved:
                await rt.sleep(self._back_off)
                self._back_off = min(2 * self._back_off, _BACK_OFF_TO)
        return None

    def _is_needed(self) -> bool:
        """Return whether the peer needs entries that are purged here; a full one is offered snapshots anyway."""
        core = self._rt.core
        progress = core.progress().get(self._peer)
        return progress is not None and progress.next <= core.purged.index

    def _superseded(self) -> bool:
        """Return whether there is a newer snapshot, or another take of this one: there may be room for that."""
        return self._rt.store.newest() != self.reader.manifest

    async def _exchange(self) -> str:
        """Send one chunk; return the reply's status, or ``lost``."""
        rt = self._rt
        try:
            reply = await rt.peers.call(self._peer, await self._chunk(), rt.config.bulk_timeout)
        except (CancelledError, StorageError):
            raise
        except NodeRemoved:
            return "stale"
        except ConsensusError:
            return "lost"
        if not isinstance(reply, SnapshotChunkReply) or reply.status not in _STATUSES:
            return "lost"
        if reply.status == "restart":
            if not self._announced:
                return "lost"  # it was told just now
            self._announced = False
        if reply.status == "full":
            self._announced = False  # it looks for room whenever a snapshot is announced
        if reply.status == "continue":
            self._position = self._normal(reply.part, reply.offset)
            if not self._announced:
                self._announced = True
                self._tell()
        return reply.status

    def _tell(self) -> None:
        """Say what is sent, and from where on: after a break not from the beginning."""
        part, offset = self._position
        self._rt.log.info(
            "node {peer} is sent the snapshot at {position}: {size} bytes, of which it has {there}",
            peer=self._peer,
            position=str(self._last),
            size=sum(self._sizes),
            there=sum(self._sizes[:part]) + offset,
        )

    def _normal(self, part: int, offset: int) -> tuple[int, int]:
        while part < len(self._sizes) and offset >= self._sizes[part]:
            part, offset = part + 1, 0
        return part, offset

    async def _chunk(self) -> SnapshotChunk:
        part, offset = self._position
        if not self._announced:
            return SnapshotChunk(
                self._term, self._last, self._digest, self._manifest, 0, 0, b"", False, self._is_needed()
            )
        if part >= len(self._sizes):
            return SnapshotChunk(self._term, self._last, self._digest, b"", part, offset, b"", True)
        data = await self.reader.read(part, offset, self._rt.config.snapshot_chunk_bytes)
        return SnapshotChunk(self._term, self._last, self._digest, b"", part, offset, data, False)


class Receiver:
    """Takes in a leader's snapshot and installs it. One at a time; a newer leader's supersedes (H-64, J-85)."""

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime
        self._key: tuple[int, LogId, bytes] | None = None
        self._needed = False
        self._announced_at = 0.0
        self._told: LogId | None = None
        self._receiver: ISnapshotReceiver | None = None
        self._writing = False
        self._installing: Deferred[None] | None = None

    @property
    def lacks_room(self) -> bool:
        """Whether a leader's snapshot waits for room that has no entries instead, and nobody else has sent any."""
        return (
            self._key is not None
            and self._needed
            and self._key[1].index > self._rt.core.last.index
            and self._rt.clock.seconds() < self._announced_at + _ANNOUNCED_FOR
            and not self._fits()
        )

    def _fits(self) -> bool:
        """Return whether the disk can take what is still to come, as far as that is known (A-26)."""
        free = self._rt.space.free
        return free is None or free >= self._to_come()

    def _to_come(self) -> int:
        """Return how many bytes of the snapshot under way are still to come."""
        if self._receiver is None:
            return 0
        part, offset = self._receiver.position
        return sum(size for size, _ in self._receiver.manifest.parts[part:]) - offset

    def chunk(self, sender: int, chunk: SnapshotChunk) -> Deferred[SnapshotChunkReply]:
        """Take one chunk of a transfer; see :class:`~zlayer_consensus.network.SnapshotChunkReply`."""
        verdict: Deferred[str] = Deferred()
        self._rt.driver.input(self._offer, verdict, sender, chunk)
        return verdict.addCallback(self._judged, chunk)

    def _offer(self, verdict: Deferred[str], sender: int, chunk: SnapshotChunk, now: float) -> Effects | None:
        core = self._rt.core
        try:
            result, effects = core.snapshot_offered(sender, chunk.term, chunk.last, now)
        except InvalidMessage as error:
            verdict.errback(error)
            return None
        verdict.callback(result)
        return effects

    def _judged(self, verdict: str, chunk: SnapshotChunk) -> Any:
        if self._installing is not None:
            return self._reply("busy")
        if verdict == "covered":
            self._forget(chunk)
            return self._reply("installed")
        if verdict != "accept":
            return self._reply(verdict)
        return Deferred.fromCoroutine(self._take(chunk))

    def _reply(self, status: str) -> SnapshotChunkReply:
        part, offset = self._receiver.position if self._receiver is not None else (0, 0)
        return SnapshotChunkReply(self._rt.core.term, status, part, offset)

    def _forget(self, chunk: SnapshotChunk) -> None:
        """What this transfer was bringing has come by another way."""
        if self._receiver is not None and not self._writing and self._key is not None and self._key[1] <= chunk.last:
            _ = self._drop().addErrback(self._failed)

    async def _take(self, chunk: SnapshotChunk) -> SnapshotChunkReply:
        key = (chunk.term, chunk.last, chunk.digest)
        if self._writing:
            return self._reply("busy")
        self._writing = True
        try:
            if chunk.manifest:
                await self._announced(key, chunk)
                if not self._fits():
                    self._wait_for_room(chunk.last)
                    return self._reply("full")
            elif key != self._key or self._receiver is None:
                return self._reply("restart")
            receiver = self._receiver
            assert receiver is not None
            if chunk.data and receiver.position == (chunk.part, chunk.offset):
                await self._write(receiver, chunk)
                if self._receiver is None:
                    return self._reply("full")
        finally:
            self._writing = False
        self._rt.check_running()  # else its stores are about to close, and nothing would call off the installation
        if self._receiver is None or not self._receiver.complete:
            return self._reply("continue")
        self._installing = Deferred.fromCoroutine(self._install(self._receiver))
        _ = self._installing.addBoth(self._installed)
        return self._reply("busy")

    async def _announced(self, key: tuple[int, LogId, bytes], chunk: SnapshotChunk) -> None:
        if sha256(chunk.manifest).digest() != chunk.digest:
            raise InvalidMessage("snapshot: the digest is not that of the manifest")
        try:
            manifest = decode_manifest(chunk.manifest)
        except ValueError as error:
            raise InvalidMessage(f"snapshot: {error}") from error
        if manifest.point.last != chunk.last:
            raise InvalidMessage(f"snapshot: the manifest is for {manifest.point.last}, the message for {chunk.last}")
        if self._receiver is not None and key[1:] != (self._key or key)[1:]:
            await self._drop()
            self._rt.check_running()
        self._receiver = self._rt.store.receiver(manifest)
        self._key = key
        self._needed, self._announced_at = chunk.needed, self._rt.clock.seconds()

    def _wait_for_room(self, position: LogId) -> None:
        """Say that the snapshot of ``position`` does not fit; if it is needed, the disk is full until it does."""
        if position != self._told:
            self._told = position
            self._rt.log.error(
                "A leader's snapshot waits for room: {needed} bytes of it are to come, and {free} are free",
                needed=self._to_come(),
                free=self._rt.space.free,
            )
        if self.lacks_room and not self._rt.space.full:
            self._rt.space.look()

    async def _write(self, receiver: ISnapshotReceiver, chunk: SnapshotChunk) -> None:
        try:
            await receiver.write(chunk.part, chunk.offset, chunk.data)
        except ValueError as error:
            # The reply says where it goes on: a part whose digest is wrong starts over.
            self._rt.log.warn("A chunk of a snapshot does not fit: {error}", error=error)
        except StorageFull as error:
            self._rt.log.error("A leader's snapshot was not received: {error}", error=error)
            self._rt.space.look()
            await self._drop()
        except StorageError as error:
            self._rt.fail(error)
            raise

    def _drop(self) -> Deferred[None]:
        receiver, self._receiver, self._key = self._receiver, None, None
        return receiver.abort() if receiver is not None else succeed(None)

    # Installing.

    async def _install(self, receiver: ISnapshotReceiver) -> None:
        rt = self._rt
        self._receiver = self._key = None
        await rt.sleep(0)  # a step of the core may be under way
        rt.builder.abandon()
        try:
            manifest = await receiver.publish()
        except StorageFull as error:
            rt.log.error("A leader's snapshot was not kept: {error}", error=error)
            rt.space.look()
            await receiver.abort()
            return
        except ValueError as error:
            rt.log.error("A leader's snapshot has to be sent again: {error}", error=error)
            await receiver.abort()
            return
        point = manifest.point
        rt.applier.halt()  # from here on the log that it reads may go
        if not rt.core.needs_install(point):
            rt.applier.resume()
            if rt.applier.applied <= point.last.index:
                rt.applier.bytes_covered = rt.applier.bytes_applied
            rt.driver.input(rt.core.install, point)
            return
        rt.driver.input(rt.core.install, point)
        await rt.applier.load()
        rt.applier.commit = max(rt.applier.commit, rt.core.commit)
        rt.applier.resume()
        rt.applier.restored()
        rt.peers.members_changed(rt.core.membership)
        await rt.durability.until(point.last.index)
        rt.log.info("installed the leader's snapshot at {position}", position=str(point.last))

    def _installed(self, result: Any) -> None:
        self._installing = None
        error = getattr(result, "value", None)
        if error is not None and not isinstance(error, CancelledError):
            self._failed(result)

    def _failed(self, failure: Any) -> None:
        if not isinstance(failure.value, ConsensusError):  # else the line that says why the node stops says it all
            self._rt.log.failure("Installing a snapshot failed", failure)
        self._rt.fail(failure.value)

    def stop(self) -> None:
        """Give up."""
        if self._installing is not None:
            self._installing.cancel()
