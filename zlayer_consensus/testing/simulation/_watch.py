"""What stands between the shipped node and its seams, and tells the checker what passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from ...raft import Entry, LogId, LogWrite, Start
from ...storage import FileLogStore, Identity, ILogStore, ScrubStep

if TYPE_CHECKING:
    from ._checker import Checker

__all__ = ["WatchedLogStore"]


@implementer(ILogStore)
class WatchedLogStore:
    """A log store whose writes the checker sees, when they are asked for and when they are said to be durable."""

    def __init__(self, inner: FileLogStore, checker: Checker, node_id: int) -> None:
        self._inner = inner
        self._checker = checker
        self._node_id = node_id

    @property
    def identity(self) -> Identity:
        """See :class:`~zlayer_consensus.storage.ILogStore`."""
        return self._inner.identity

    @identity.setter
    def identity(self, value: Identity) -> None:
        self._inner.identity = value

    def open(self) -> Deferred[Start]:
        """See :meth:`~zlayer_consensus.storage.ILogStore.open`."""

        def opened(start: Start) -> Start:
            self._checker.opened(self._node_id, start)
            return start

        return self._inner.open().addCallback(opened)

    def adopt(self, identity: Identity) -> Deferred[None]:
        """See :meth:`~zlayer_consensus.storage.ILogStore.adopt`."""
        return self._inner.adopt(identity)

    def clear_repair(self) -> Deferred[None]:
        """See :meth:`~zlayer_consensus.storage.ILogStore.clear_repair`."""

        def cleared(_: None) -> None:
            self._checker.whole(self._node_id)

        return self._inner.clear_repair().addCallback(cleared)

    def write(self, write: LogWrite) -> Deferred[None]:
        """See :meth:`~zlayer_consensus.storage.ILogStore.write`."""
        ticket = self._checker.written(self._node_id, write)

        def durable(result: Any) -> Any:
            self._checker.durable(self._node_id, ticket)
            return result

        return self._inner.write(write).addCallback(durable)

    def read(self, first: int, last: int, max_bytes: int) -> Deferred[list[Entry]]:
        """See :meth:`~zlayer_consensus.storage.ILogStore.read`."""

        def read(entries: list[Entry]) -> list[Entry]:
            self._checker.read(self._node_id, first, entries)
            return entries

        return self._inner.read(first, last, max_bytes).addCallback(read)

    def purge(self, upto: LogId) -> Deferred[None]:
        """See :meth:`~zlayer_consensus.storage.ILogStore.purge`."""
        self._checker.purged(self._node_id, upto)
        return self._inner.purge(upto)

    @property
    def full(self) -> bool:
        """See :class:`~zlayer_consensus.storage.ILogStore`."""
        return self._inner.full

    def space(self, keep: int) -> Deferred[int]:
        """See :meth:`~zlayer_consensus.storage.ILogStore.space`."""
        return self._inner.space(keep)

    def scrub(self, max_bytes: int) -> Deferred[ScrubStep]:
        """See :meth:`~zlayer_consensus.storage.ILogStore.scrub`."""
        return self._inner.scrub(max_bytes)

    def close(self) -> Deferred[None]:
        """See :meth:`~zlayer_consensus.storage.ILogStore.close`."""
        return self._inner.close()
