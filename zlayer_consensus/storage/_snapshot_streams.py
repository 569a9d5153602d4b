"""Writer, reader and receiver of snapshots on the reactor's thread, over halves that block on an executor."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from ..errors import StorageError
from ..raft import SnapshotPoint
from ._executor import IExecutor
from ._snapshot_format import check_chunk, frame
from .interfaces import ISnapshotReader, ISnapshotReceiver, ISnapshotWriter, Manifest, StateFile

__all__ = [
    "BUFFER_BYTES",
    "Reader",
    "ReaderParts",
    "Receiver",
    "ReceiverParts",
    "Writer",
    "WriterParts",
    "uncancelled",
]

_T = TypeVar("_T")
BUFFER_BYTES = 256 << 10

Publish = Callable[[SnapshotPoint, Callable[[], Deferred[Manifest]]], Coroutine[Deferred[Any], Any, Manifest]]
"""The store's part of publishing: takes the position, and what makes it durable."""


class WriterParts(Protocol):
    """The half of a writer that blocks."""

    def append(self, frames: list[bytes]) -> None:
        """Append frames, to as many parts as they need."""

    def publish(self, frames: list[bytes], files: Sequence[StateFile], point: SnapshotPoint) -> Manifest:
        """Append the last frames, give the files their names in it, and make it durable under its own."""

    def discard(self) -> None:
        """Remove what was written."""


class ReaderParts(Protocol):
    """The half of a reader that blocks."""

    @property
    def files(self) -> tuple[StateFile, ...]:
        """The parts that are files of the state machine; does not block."""

    def read(self, part: int, offset: int, size: int) -> bytes:
        """Read raw bytes of a verified part."""

    def chunks(self) -> list[bytes]:
        """Return the next chunks; none at the end."""


class ReceiverParts(Protocol):
    """The half of a receiver that blocks."""

    @property
    def start(self) -> tuple[int, int]:
        """Part and offset of the first byte that was not there from the beginning."""

    def write(self, part: int, offset: int, data: bytes) -> None:
        """Write bytes of a part, and verify it when they finish it.

        :raises ValueError: if the part is not what the manifest says.
        """

    def publish(self, manifest: Manifest) -> Manifest:
        """Make the snapshot durable under its name.

        :raises ValueError: if what was there from the beginning is not what the manifest says.
        """

    def suspend(self) -> None:
        """Release what is open, and keep what can be gone on with."""

    def discard(self) -> None:
        """Remove what was received."""


def uncancelled(work: Coroutine[Deferred[Any], Any, _T]) -> Deferred[_T]:
    """Run ``work`` to its end, whatever happens to the Deferred that is returned: cancelling it gives up waiting."""
    waiting: Deferred[_T] = Deferred()
    Deferred.fromCoroutine(work).chainDeferred(waiting)  # type: ignore[unused-awaitable]
    return waiting


def _check_read(manifest: Manifest, part: int, offset: int, size: int) -> None:
    """Refuse a place that is not in a snapshot.

    :raises ValueError: if it is not.
    """
    if not 0 <= part < len(manifest.parts):
        raise ValueError(f"there is no part {part}; the snapshot has {len(manifest.parts)}")
    if not 0 <= offset <= manifest.parts[part][0] or size < 1:
        raise ValueError(f"{size} bytes from {offset} on are not in part {part} of {manifest.parts[part][0]} bytes")


def _check_receive(manifest: Manifest, position: tuple[int, int], part: int, offset: int, data: bytes) -> None:
    """Refuse bytes that do not come next: overlapping, behind a gap, or too many.

    :raises ValueError: if they do not.
    """
    if (part, offset) != position:
        raise ValueError(f"the next byte wanted is {position[1]} of part {position[0]}, not {offset} of part {part}")
    if part >= len(manifest.parts):
        raise ValueError("the snapshot is complete")
    left = manifest.parts[part][0] - offset
    if not 0 < len(data) <= left:
        raise ValueError(f"{len(data)} bytes came for the {left} that are left of part {part}")


@implementer(ISnapshotWriter)
class Writer:
    """See :class:`ISnapshotWriter`. Small chunks are gathered before they go to the disk.

    :param buffer_bytes: how much is gathered.
    :param publish: the store's part of publishing.
    :param ended: called once when it was published or aborted.
    """

    def __init__(
        self,
        executor: IExecutor,
        parts: WriterParts,
        point: SnapshotPoint,
        publish: Publish,
        ended: Callable[[], None],
        buffer_bytes: int,
    ) -> None:
        self._executor = executor
        self._buffer_bytes = buffer_bytes
        self._parts = parts
        self._point = point
        self._publish = publish
        self._ended = ended
        self._frames: list[bytes] = []
        self._size = 0
        self._state = "open"
        self._failure: Exception | None = None

    def write(self, chunk: bytes) -> Deferred[None]:
        """See :meth:`ISnapshotWriter.write`."""
        try:
            check_chunk(chunk)
            self._check_usable()
        except Exception as error:
            return fail(error)
        self._frames.append(frame(chunk))
        self._size += len(chunk)
        if self._size < self._buffer_bytes:
            return succeed(None)
        frames, self._frames, self._size = self._frames, [], 0
        return uncancelled(self._run(self._parts.append, frames))

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._state != "open":
            raise RuntimeError(f"the snapshot writer is {self._state}")

    async def _run(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return await self._executor.run(call, *args)
        except Exception as error:
            self._failure = error
            raise

    def publish(self, files: Sequence[StateFile] = ()) -> Deferred[Manifest]:
        """See :meth:`ISnapshotWriter.publish`."""
        try:
            self._check_usable()
        except Exception as error:
            return fail(error)
        self._state = "published"
        return uncancelled(self._publish_all(files))

    async def _publish_all(self, files: Sequence[StateFile]) -> Manifest:
        frames, self._frames = self._frames, []

        def durable() -> Deferred[Manifest]:
            return Deferred.fromCoroutine(self._run(self._publish_parts, frames, files))

        try:
            manifest = await self._publish(self._point, durable)
        except Exception as error:
            self._failure = error
            raise
        self._end()
        return manifest

    def _publish_parts(self, frames: list[bytes], files: Sequence[StateFile]) -> Manifest:
        if self._failure is not None:
            raise self._failure
        return self._parts.publish(frames, files, self._point)

    def _discard(self) -> Deferred[None]:
        return self._executor.run(self._parts.discard)

    def abort(self) -> Deferred[None]:
        """See :meth:`ISnapshotWriter.abort`. After ``publish`` has succeeded it does nothing."""
        if self._state == "ended":
            return succeed(None)
        self._state = "aborted"
        self._frames = []
        return uncancelled(self._abort())

    async def _abort(self) -> None:
        try:
            await self._discard()
        finally:  # what could not be removed goes at the next opening, and is in nobody's way
            self._end()

    def _end(self) -> None:
        if self._state != "ended":
            self._state = "ended"
            self._ended()


@implementer(ISnapshotReader)
class Reader:
    """See :class:`ISnapshotReader`.

    :param closed: called once when it is closed.
    """

    def __init__(self, executor: IExecutor, parts: ReaderParts, manifest: Manifest, closed: Callable[[], None]) -> None:
        self.manifest = manifest
        self.files = parts.files
        self._executor = executor
        self._parts = parts
        self._closed: Callable[[], None] | None = closed
        self._chunks: deque[bytes] = deque()

    def read(self, part: int, offset: int, size: int) -> Deferred[bytes]:
        """See :meth:`ISnapshotReader.read`."""
        try:
            self._check_open()
            _check_read(self.manifest, part, offset, size)
        except Exception as error:
            return fail(error)
        return uncancelled(self._read(part, offset, size))

    async def _read(self, part: int, offset: int, size: int) -> bytes:
        data: bytes = await self._executor.run(self._parts.read, part, offset, size)
        return data

    def next_chunk(self) -> Deferred[bytes | None]:
        """See :meth:`ISnapshotReader.next_chunk`."""
        try:
            self._check_open()
        except Exception as error:
            return fail(error)
        if self._chunks:
            return succeed(self._chunks.popleft())
        return uncancelled(self._fetch())

    async def _fetch(self) -> bytes | None:
        chunks: list[bytes] = await self._executor.run(self._parts.chunks)
        self._chunks += chunks
        return self._chunks.popleft() if self._chunks else None

    def _check_open(self) -> None:
        if self._closed is None:
            raise RuntimeError("the snapshot reader was closed")

    def close(self) -> None:
        """See :meth:`ISnapshotReader.close`."""
        if self._closed is not None:
            closed, self._closed = self._closed, None
            self._chunks.clear()
            closed()


@implementer(ISnapshotReceiver)
class Receiver:
    """See :class:`ISnapshotReceiver`. One call at a time.

    :param publish: the store's part of publishing.
    :param ended: called once when it was published or aborted.
    """

    def __init__(
        self, executor: IExecutor, parts: ReceiverParts, manifest: Manifest, publish: Publish, ended: Callable[[], None]
    ) -> None:
        self.manifest = manifest
        self.position = parts.start
        self.failed = False
        """Whether the store failed under it; then it cannot go on."""
        self._executor = executor
        self._parts = parts
        self._publish = publish
        self._ended = ended
        self._state = "open"
        self._busy = False

    @property
    def complete(self) -> bool:
        """See :attr:`ISnapshotReceiver.complete`."""
        return self.position[0] == len(self.manifest.parts)

    def write(self, part: int, offset: int, data: bytes) -> Deferred[None]:
        """See :meth:`ISnapshotReceiver.write`."""
        try:
            self._check_usable()
            _check_receive(self.manifest, self.position, part, offset, data)
        except Exception as error:
            return fail(error)
        return uncancelled(self._write(part, offset, data))

    def _check_usable(self) -> None:
        if self._state != "open":
            raise ValueError(f"this receiver is {self._state}; begin again")
        if self._busy:
            raise ValueError("the bytes before these are still being written")

    async def _write(self, part: int, offset: int, data: bytes) -> None:
        self._busy = True
        try:
            await self._executor.run(self._parts.write, part, offset, data)
        except StorageError:
            self.failed, self._state = True, "failed"
            raise
        except ValueError:
            self.position = (part, 0)
            raise
        finally:
            self._busy = False
        end = offset + len(data)
        self.position = (part, end) if end < self.manifest.parts[part][0] else (part + 1, 0)

    def publish(self) -> Deferred[Manifest]:
        """See :meth:`ISnapshotReceiver.publish`."""
        try:
            self._check_usable()
            if not self.complete:
                raise ValueError(f"the snapshot is not complete: part {self.position[0]} is wanted")
        except Exception as error:
            return fail(error)
        self._state = "published"
        return uncancelled(self._publish_all())

    async def _publish_all(self) -> Manifest:
        installed = dataclasses.replace(self.manifest, installed=True)

        def durable() -> Deferred[Manifest]:
            return self._executor.run(self._parts.publish, installed)

        try:
            manifest = await self._publish(installed.point, durable)
        except Exception:
            self.failed, self._state = True, "failed"
            raise
        self._end()
        return manifest

    def _discard(self) -> Deferred[None]:
        return self._executor.run(self._parts.discard)

    def suspend(self) -> Deferred[None]:
        """End, and leave to a later process what it can go on with. After ``publish`` or ``abort`` it does nothing."""
        if self._state in ("ended", "aborted"):
            return succeed(None)
        self._state = "suspended"
        return uncancelled(self._suspend())

    async def _suspend(self) -> None:
        await self._executor.run(self._parts.suspend)
        self._end()

    def abort(self) -> Deferred[None]:
        """See :meth:`ISnapshotReceiver.abort`. After ``publish`` has succeeded it does nothing."""
        if self._state == "ended":
            return succeed(None)
        self._state = "aborted"
        return uncancelled(self._abort())

    async def _abort(self) -> None:
        try:
            await self._discard()
        finally:  # what could not be removed goes at the next opening, and is in nobody's way
            self._end()

    def _end(self) -> None:
        if self._state != "ended":
            self._state = "ended"
            self._ended()
