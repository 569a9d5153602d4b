"""Snapshots in files."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, overload

from zope.interface import implementer

from ..errors import ConfigError
from ..raft import LogId, SnapshotPoint
from ._executor import IExecutor, ThreadExecutor
from ._files import IFileSystem, RealFileSystem
from ._machine import as_state_machine
from ._snapshot_files import PartsReceiver, PartsWriter, SnapshotDirectory
from ._snapshot_format import PART_BYTES
from ._snapshot_parts import PartsReader
from ._snapshot_received import Received
from ._snapshot_scrub import Piece, SnapshotScrub
from ._snapshot_store import SnapshotStore
from ._snapshot_streams import BUFFER_BYTES, ReaderParts, ReceiverParts, WriterParts
from .interfaces import ApplyContext, IStateMachine, IStateMachineStore, Manifest

__all__ = ["FileStateMachine"]

_S = TypeVar("_S")


@implementer(IStateMachineStore)
class FileStateMachine(SnapshotStore):
    """Keeps snapshots of an application in files: ``<directory>/snap/<index>-<term>/``.

    The application is given in one of two forms::

        FileStateMachine(directory, machine, reactor=reactor)
        FileStateMachine(directory, initial_state, apply, reactor=reactor)

    A damaged snapshot is refused, and never passed over for an older one (J-89): whether the log still reaches back to
    that one, the store cannot know. An operator who moves the damaged directory away lets the node try; it refuses to
    start if the log has a gap (S-16).

    Nothing but the snapshots is written: applying costs no disk access here, and after a restart the state is the
    newest snapshot and the log behind it (H-68, J-91). A machine that provides :class:`IStateMachineFiles` has files
    beside them; a snapshot links those that it names.

    :param directory: made if needed; its parent must exist. It can be the log store's.
    :param machine: an object that provides :class:`IStateMachine`.
    :param initial_state: where every replica begins; see :class:`FunctionStateMachine`.
    :param apply: ``apply(state, command)`` or ``apply(state, command, context)``; changes ``state`` in place.
    :param state_type: the state's type for conversion, for example ``dict[str, Job]``.
    :param reactor: for a thread of the store's own, unless ``executor`` is given.
    :param executor: runs what blocks; it must keep the order, and stays the caller's.
    :param file_system: the real one, unless a test has another.
    :param keep: snapshots kept; a reader can hold back the removal of more.
    :param part_bytes: a part is closed before it would grow beyond this.
    :param buffer_bytes: so much of a snapshot is gathered in memory before it goes to the disk.
    :raises TypeError: if neither form is given.
    :raises ConfigError: if a setting cannot be.
    """

    @overload
    def __init__(
        self,
        directory: str | os.PathLike[str],
        machine: IStateMachine,
        *,
        reactor: Any = ...,
        executor: IExecutor | None = ...,
        file_system: IFileSystem | None = ...,
        keep: int = ...,
        part_bytes: int = ...,
        buffer_bytes: int = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        directory: str | os.PathLike[str],
        initial_state: _S,
        apply: Callable[[_S, Any], Any] | Callable[[_S, Any, ApplyContext], Any],
        *,
        state_type: Any = ...,
        reactor: Any = ...,
        executor: IExecutor | None = ...,
        file_system: IFileSystem | None = ...,
        keep: int = ...,
        part_bytes: int = ...,
        buffer_bytes: int = ...,
    ) -> None: ...

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *application: Any,
        reactor: Any = None,
        executor: IExecutor | None = None,
        file_system: IFileSystem | None = None,
        keep: int = 2,
        part_bytes: int = PART_BYTES,
        buffer_bytes: int = BUFFER_BYTES,
        **named: Any,
    ) -> None:
        machine = as_state_machine(*application, **named)
        if not 1 <= part_bytes <= PART_BYTES:
            raise ConfigError("part_bytes", part_bytes, f"must be between 1 and {PART_BYTES}")
        own = executor is None
        if executor is None:
            if reactor is None:
                raise ConfigError("executor", None, "is needed where there is no reactor")
            executor = ThreadExecutor(reactor, "snapshots")
        super().__init__(machine, executor, own, keep, buffer_bytes)
        self._directory = SnapshotDirectory(file_system or RealFileSystem(), os.fspath(directory).rstrip("/") or "/")
        self._scrubbing = SnapshotScrub(self._directory)
        self._part_bytes = part_bytes

    def _recover(self) -> tuple[Manifest | None, tuple[LogId, ...], Received | None]:
        return self._directory.open(self._keep)

    def _writer_parts(self, point: SnapshotPoint, again: bool) -> WriterParts:
        return PartsWriter(self._directory, point.last, self._part_bytes, again)

    def _reader_parts(self, manifest: Manifest) -> ReaderParts:
        return PartsReader(self._directory.files, self._directory.path_of(manifest.point.last), manifest)

    def _receiver_parts(self, manifest: Manifest, received: Received | None) -> ReceiverParts:
        return PartsReceiver(self._directory, manifest, received)

    def _forget_received(self, received: Received) -> None:
        self._directory.discard(received.path)

    def _remove(self, position: LogId) -> None:
        self._directory.remove(position)

    def _switch(self, position: LogId) -> str:
        return self._directory.switch(position)

    def _remove_former(self, path: str) -> None:
        self._directory.remove_path(path)

    def _scrub_piece(self, position: LogId, known: Manifest | None) -> Callable[[int], Piece]:
        # Where it is now: when the step runs, there may be another take.
        return partial(self._scrubbing.step, position, self._directory.path_of(position), known)

    def _release(self) -> None:
        self._directory.release()

    def _try_links(self, directory: str) -> None:
        self._directory.try_links(directory)
