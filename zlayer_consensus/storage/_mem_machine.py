"""Snapshots in memory."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from zope.interface import implementer

from ..raft import LogId, SnapshotPoint
from ._executor import InlineExecutor
from ._machine import FunctionStateMachine, as_state_machine
from ._snapshot_format import PART_BYTES, FrameReader
from ._snapshot_received import Received
from ._snapshot_scrub import Piece
from ._snapshot_store import SnapshotStore
from ._snapshot_streams import ReaderParts, ReceiverParts, WriterParts
from .interfaces import ApplyContext, IStateMachine, IStateMachineFiles, IStateMachineStore, Manifest, StateFile

__all__ = ["MemStateMachine"]

_S = TypeVar("_S")


@implementer(IStateMachineStore)
class MemStateMachine(SnapshotStore):
    """Keeps snapshots of an application in memory: for tests, and for data that may be lost with the process.

    The application is given in one of two forms: ``MemStateMachine(machine)``, or
    ``MemStateMachine(initial_state, apply)``. Every call completes at once. To play a process that stops and starts
    again on the same disk, take :meth:`reopened`.

    :param machine: an object that provides :class:`IStateMachine`.
    :param initial_state: where every replica begins; see :class:`FunctionStateMachine`.
    :param apply: ``apply(state, command)`` or ``apply(state, command, context)``; changes ``state`` in place.
    :param state_type: the state's type for conversion, for example ``dict[str, Job]``.
    :param keep: snapshots kept; what a reader holds is kept beside them.
    :raises TypeError: if neither form is given, or if the machine has files of its own, for which there is no place.
    """

    @overload
    def __init__(self, machine: IStateMachine, *, keep: int = ...) -> None: ...

    @overload
    def __init__(
        self,
        initial_state: _S,
        apply: Callable[[_S, Any], Any] | Callable[[_S, Any, ApplyContext], Any],
        *,
        state_type: Any = ...,
        keep: int = ...,
    ) -> None: ...

    def __init__(self, *application: Any, keep: int = 2, **named: Any) -> None:
        machine = as_state_machine(*application, **named)
        if IStateMachineFiles.providedBy(machine):
            raise TypeError(f"{type(machine).__qualname__} has files of its own: give it to a FileStateMachine")
        super().__init__(machine, InlineExecutor(), True, keep)
        self._snapshots: dict[LogId, _Snapshot] = {}

    def reopened(self, machine: IStateMachine | None = None) -> MemStateMachine:
        """Return a store, not yet open, with this one's snapshots. This one must not be used any more.

        :param machine: the application in its initial state; needed unless this store made its own of a function.
        :raises TypeError: if it is needed and not given.
        """
        if machine is None:
            if not isinstance(self.machine, FunctionStateMachine):
                raise TypeError(f"give a new {type(self.machine).__qualname__}: the old one has the old state")
            machine = self.machine.fresh()
        other = MemStateMachine(machine, keep=self._keep)
        other._snapshots = self._snapshots
        return other

    def _recover(self) -> tuple[Manifest | None, tuple[LogId, ...], Received | None]:
        positions = tuple(sorted(self._snapshots, key=lambda position: position.index))
        return (self._snapshots[positions[-1]].manifest if positions else None), positions, None

    def _writer_parts(self, point: SnapshotPoint, again: bool) -> WriterParts:
        return _Writer(self._snapshots)

    def _reader_parts(self, manifest: Manifest) -> ReaderParts:
        return _Reader(self._snapshots[manifest.point.last])

    def _receiver_parts(self, manifest: Manifest, received: Received | None) -> ReceiverParts:
        return _Receiver(self._snapshots, manifest)

    def _forget_received(self, received: Received) -> None:
        """There never is any."""

    def _remove(self, position: LogId) -> None:
        del self._snapshots[position]

    def _scrub_piece(self, position: LogId, known: Manifest | None) -> Callable[[int], Piece]:
        return lambda max_bytes: Piece(last=True)  # there is nothing that could rot

    def _release(self) -> None:
        """Nothing is held but memory."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    manifest: Manifest
    parts: tuple[bytes, ...]


def _publish(snapshots: dict[LogId, _Snapshot], manifest: Manifest, parts: list[bytes]) -> Manifest:
    return snapshots.setdefault(manifest.point.last, _Snapshot(manifest, tuple(parts))).manifest


class _Writer:
    def __init__(self, snapshots: dict[LogId, _Snapshot]) -> None:
        self._snapshots = snapshots
        self._parts: list[bytes] = []
        self._frames: list[bytes] = []
        self._size = 0

    def append(self, frames: list[bytes]) -> None:
        for each in frames:
            if self._size + len(each) > PART_BYTES:
                self._end_part()
            self._frames.append(each)
            self._size += len(each)

    def _end_part(self) -> None:
        if self._frames:
            self._parts.append(b"".join(self._frames))
            self._frames, self._size = [], 0

    def publish(self, frames: list[bytes], files: Sequence[StateFile], point: SnapshotPoint) -> Manifest:
        if files:
            raise ValueError("a snapshot in memory cannot name files")
        self.append(frames)
        self._end_part()
        manifest = Manifest(point, tuple((len(part), hashlib.sha256(part).digest()) for part in self._parts))
        return _publish(self._snapshots, manifest, self._parts)

    def discard(self) -> None:
        self._parts, self._frames, self._size = [], [], 0


class _Reader:
    files: tuple[StateFile, ...] = ()

    def __init__(self, snapshot: _Snapshot) -> None:
        self._parts = snapshot.parts
        self._left = deque(snapshot.parts[: snapshot.manifest.streams])

    def read(self, part: int, offset: int, size: int) -> bytes:
        return self._parts[part][offset : offset + size]

    def chunks(self) -> list[bytes]:
        if not self._left:
            return []
        part = self._left.popleft()
        return FrameReader(len(part)).feed(part)


class _Receiver:
    start = (0, 0)

    def __init__(self, snapshots: dict[LogId, _Snapshot], manifest: Manifest) -> None:
        self._snapshots = snapshots
        self._manifest = manifest
        self._parts: list[bytes] = []
        self._data = bytearray()

    def write(self, part: int, offset: int, data: bytes) -> None:
        self._data += data
        size, digest = self._manifest.parts[part]
        if len(self._data) < size:
            return
        whole, self._data = bytes(self._data), bytearray()
        try:
            if hashlib.sha256(whole).digest() != digest:
                raise ValueError("its SHA-256 digest is not the manifest's")
            if part < self._manifest.streams:
                frames = FrameReader(size)
                frames.feed(whole)
                frames.finish()
        except ValueError as error:
            raise ValueError(f"part {part} did not arrive as it was announced: {error}") from error
        self._parts.append(whole)

    def publish(self, manifest: Manifest) -> Manifest:
        return _publish(self._snapshots, manifest, self._parts)

    def suspend(self) -> None:
        self.discard()

    def discard(self) -> None:
        self._parts, self._data = [], bytearray()
