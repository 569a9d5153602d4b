"""The log store in memory: the same rules as the one on files, and nothing survives the process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from ..errors import ConsensusError, InvariantBroken, LogCompacted, StorageFailed, WrongIdentity
from ..raft import NO_LOG, Entry, HardState, LogId, LogWrite, Start
from ._drafts import drafts
from ._log_index import LogIndex, Summary
from ._record import Purge, Reset, Truncate
from ._segment import Segment, SegmentHeader
from .interfaces import Identity, ILogStore, ScrubStep

__all__ = ["MemLogStore"]

_UNBOUNDED = 1 << 62
_FRESH = Summary(NO_LOG, NO_LOG, HardState(), 0, 0)


@implementer(ILogStore)
class MemLogStore:
    """A log in memory, for tests and for members that may forget: each new one is a new incarnation.

    Every Deferred has fired when it is returned. To play a process that stops and starts again on the same disk, take
    :meth:`reopened`; to play one whose disk was lost, make a new store.

    :param node_id: whose log it is.
    :param random_bytes: makes the incarnation.
    """

    def __init__(self, node_id: int, *, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self.identity = Identity(node_id, random_bytes(16))
        self._index = LogIndex(_FRESH)
        self._index.segments.append(Segment("memory", _header(self.identity)))
        self._entries: list[Entry] = []
        self._opened = False
        self._failure: ConsensusError | None = None

    def reopened(self) -> MemLogStore:
        """Return a store, not yet open, with this one's identity and content. This one is closed."""
        other = MemLogStore(self.identity.node_id, random_bytes=bytes)
        other.identity, other._index, other._entries = self.identity, self._index, self._entries
        self._opened, self._failure = True, StorageFailed("use", "memory", "the store was reopened")
        return other

    def open(self) -> Deferred[Start]:
        """See :meth:`ILogStore.open`."""
        if self._opened:
            return fail(self._failure or StorageFailed("open", "memory", "it was opened before"))
        self._opened = True
        index = self._index
        configs = set(index.configs())
        return succeed(
            Start(
                hard_state=index.state,
                purged=index.purged,
                last=index.last,
                terms=index.terms(),
                configs=tuple(entry for entry in self._entries if entry.index in configs),
                tail=tuple(self._entries),
                last_time_ms=index.time_ms,
            )
        )

    def adopt(self, identity: Identity) -> Deferred[None]:
        """See :meth:`ILogStore.adopt`."""
        refusal = self._refusal("adopt")
        if refusal is not None:
            return fail(refusal)
        mine = self.identity
        adopted = replace(mine, cluster_id=identity.cluster_id, origin=identity.origin)
        if adopted == mine:
            return succeed(None)
        if mine.cluster_id:
            return self._fail(WrongIdentity("memory", "cluster", identity.cluster_id.hex(), mine.cluster_id.hex()))
        if len(identity.cluster_id) != 16:
            return self._fail(InvariantBroken(f"a cluster id has 16 bytes, not {len(identity.cluster_id)}"))
        if self._index.summary != _FRESH:
            return self._fail(InvariantBroken("a log that was written to cannot join a cluster"))
        self.identity = adopted
        return succeed(None)

    def clear_repair(self) -> Deferred[None]:
        """See :meth:`ILogStore.clear_repair`."""
        refusal = self._refusal("clear_repair")
        if refusal is not None:
            return fail(refusal)
        self.identity = replace(self.identity, repair=b"")
        return succeed(None)

    def write(self, write: LogWrite) -> Deferred[None]:
        """See :meth:`ILogStore.write`; "durable" is "done" here."""
        return self._apply(write)

    def purge(self, upto: LogId) -> Deferred[None]:
        """See :meth:`ILogStore.purge`.

        :raises InvariantBroken: if ``upto`` is no position of the log.
        """
        done = self._apply(Purge(upto))
        gone = self._index.purged.index - self._entries[0].index + 1 if self._entries else 0
        del self._entries[: max(gone, 0)]
        return done

    def read(self, first: int, last: int, max_bytes: int) -> Deferred[list[Entry]]:
        """See :meth:`ILogStore.read`.

        :raises ValueError: if ``first`` lies behind the last entry; the store goes on.
        """
        refusal = self._refusal("read")
        if refusal is not None:
            return fail(refusal)
        start = self._index.purged.index + 1
        if first < start:
            return fail(LogCompacted(start))
        end = self._index.last.index
        if first > end or last < first:
            return fail(ValueError(f"entries {first} to {last} are not in the log, which ends with {end}"))
        found: list[Entry] = []
        for entry in self._entries[first - start : last - start + 1]:
            max_bytes -= len(entry.raw)
            if max_bytes < 0 and found:
                break
            found.append(entry)
        return succeed(found)

    @property
    def full(self) -> bool:
        """See :attr:`ILogStore.full`."""
        return False

    def space(self, keep: int) -> Deferred[int]:
        """See :meth:`ILogStore.space`: memory has no end here."""
        refusal = self._refusal("space")
        return fail(refusal) if refusal is not None else succeed(1 << 60)

    def scrub(self, max_bytes: int) -> Deferred[ScrubStep]:
        """See :meth:`ILogStore.scrub`; there is nothing that could rot."""
        refusal = self._refusal("scrub")
        return fail(refusal) if refusal is not None else succeed(ScrubStep(done=True))

    def close(self) -> Deferred[None]:
        """See :meth:`ILogStore.close`."""
        if self._failure is None:
            self._opened, self._failure = True, StorageFailed("use", "memory", "the store is closed")
        return succeed(None)

    def _apply(self, item: LogWrite | Purge) -> Deferred[None]:
        refusal = self._refusal("write")
        if refusal is not None:
            return fail(refusal)
        try:
            for draft in drafts([item], self._index, _UNBOUNDED):
                self._index.apply(draft.operations, 0)
                for operation in draft.operations:
                    if isinstance(operation, Reset):
                        self._entries.clear()
                    elif isinstance(operation, Truncate) and self._entries:
                        del self._entries[max(0, operation.last - self._entries[0].index + 1) :]
        except ValueError as error:
            return self._fail(InvariantBroken(str(error)))
        if isinstance(item, LogWrite):
            self._entries.extend(item.entries)
        return succeed(None)

    def _refusal(self, operation: str) -> ConsensusError | None:
        if self._failure is None and not self._opened:
            return StorageFailed(operation, "memory", "the store is not open")
        return self._failure

    def _fail(self, error: ConsensusError) -> Deferred[None]:
        self._failure = error
        return fail(error)


def _header(identity: Identity) -> SegmentHeader:
    """Return a header for the one segment that the rules of the log are checked on."""
    return SegmentHeader(b"", identity.node_id, identity.incarnation, 1, 0, 0, 0, 0, *_FRESH)
