"""State machines with files: where these are, and what passes the machine's files on."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from ...errors import ConsensusError
from ...storage import IExecutor, IFileSystem, InlineExecutor, IReplaceableFiles, IStateSink, StateFile

__all__ = ["Disk", "ForwardsFiles"]


@attrs.frozen(kw_only=True)
class Disk:
    """Where a state machine has its files, and what works on them.

    :param file_system: where they are.
    :param directory: the machine's own; its parent is there. Snapshots are beside it.
    :param executor: runs what writes.
    :param read_executor: runs what somebody waits for.
    :param clock: an ``IReactorTime``.
    :param random: for sizes and the like, which differ between processes. What commands do must not depend on it.
    """

    file_system: IFileSystem
    directory: str
    executor: IExecutor
    read_executor: IExecutor
    clock: Any
    random: Random

    @classmethod
    def at_once(cls, file_system: IFileSystem, directory: str) -> Disk:
        """Return one that works at once, for a machine that is in no cluster. Its time stands still."""
        inline = InlineExecutor()
        return cls(
            file_system=file_system,
            directory=directory,
            executor=inline,
            read_executor=inline,
            clock=Clock(),
            random=Random(0),
        )


class ForwardsFiles:
    """What a machine around another one passes on of :class:`~zlayer_consensus.storage.IStateMachineFiles`."""

    inner: Any

    @property
    def directory(self) -> str:
        """See :class:`~zlayer_consensus.storage.IStateMachineFiles`."""
        found: str = self.inner.directory
        return found

    @directory.setter
    def directory(self, value: str) -> None:
        raise AttributeError("directory")

    @property
    def full(self) -> bool:
        """See :attr:`~zlayer_consensus.storage.IStateMachineFiles.full`."""
        found: bool = self.inner.full
        return found

    @full.setter
    def full(self, value: bool) -> None:
        raise AttributeError("full")

    def open(self) -> Deferred[None]:
        """See :meth:`~zlayer_consensus.storage.IStateMachineFiles.open`."""
        waiting: Deferred[None] = self.inner.open()
        return waiting

    def failed(self) -> Deferred[ConsensusError]:
        """See :meth:`~zlayer_consensus.storage.IStateMachineFiles.failed`."""
        waiting: Deferred[ConsensusError] = self.inner.failed()
        return waiting

    def prepare(self, command: Any) -> Deferred[None] | None:
        """See :meth:`~zlayer_consensus.storage.IStateMachineFiles.prepare`."""
        waiting: Deferred[None] | None = self.inner.prepare(command)
        return waiting

    def room(self) -> Deferred[None] | None:
        """See :meth:`~zlayer_consensus.storage.IStateMachineFiles.room`."""
        waiting: Deferred[None] | None = self.inner.room()
        return waiting

    def sealed(self) -> Deferred[Sequence[StateFile]]:
        """See :meth:`~zlayer_consensus.storage.IStateMachineFiles.sealed`."""
        waiting: Deferred[Sequence[StateFile]] = self.inner.sealed()
        return waiting

    def restore_files(self, files: Sequence[StateFile]) -> Deferred[IStateSink]:
        """See :meth:`~zlayer_consensus.storage.IStateMachineFiles.restore_files`."""
        waiting: Deferred[IStateSink] = self.inner.restore_files(files)
        return waiting.addCallback(self.sink)

    def replace_files(self, files: Sequence[StateFile]) -> Deferred[IStateSink]:
        """See :meth:`~zlayer_consensus.storage.IReplaceableFiles.replace_files`, or what a node would do instead."""
        inner = self.inner
        begin = inner.replace_files if IReplaceableFiles.providedBy(inner) else inner.restore_files
        waiting: Deferred[IStateSink] = begin(files)
        return waiting.addCallback(self.sink)

    def sink(self, inner: IStateSink) -> IStateSink:
        """Return the sink around the one of the machine within."""
        raise NotImplementedError

    def close(self) -> Deferred[None]:
        """See :meth:`~zlayer_consensus.storage.IStateMachineFiles.close`."""
        waiting: Deferred[None] = self.inner.close()
        return waiting
