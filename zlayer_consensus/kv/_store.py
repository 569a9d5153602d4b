"""The ordered, versioned map, on the data model of etcd v3.

Every command that changes something makes one revision; a key knows the revisions that created and last changed it,
and counts its changes. Where values are is none of its business: see ``_records``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import merge
from operator import itemgetter
from typing import Final

from ..errors import DomainError
from ._commands import MAX_DELETED_KEYS, MAX_RANGE_KEYS, MAX_RESULT_BYTES, RECORD_HEAD
from ._history import Event, History
from ._ordered import OrderedMap
from ._records import InlineValues, Values, make_head, share_of

__all__ = ["FIRST_REVISION", "HISTORY_BYTES", "HISTORY_CHANGES", "Page", "Store"]

FIRST_REVISION: Final = 1
"""The revision of the empty store, as in etcd; 0 stands for no revision."""
HISTORY_CHANGES: Final = 1 << 15
HISTORY_BYTES: Final = 16 << 20

_MAX_SCANNED: Final = 10_000
"""Most keys that a page looks at, for reads of the past, where few of them may have been there."""
_SUM_MASK: Final = (1 << 128) - 1

Page = tuple[list[tuple[bytes, bytes]], bytes | None]
"""Keys with their records, and the key where the range goes on, or None."""


class Store:
    """The map and its history.

    Changes are made one by one and then committed, or rolled back, together; both at the end of one command. Nothing
    reads in between but the command itself.

    :param history_changes: changes that the history keeps.
    :param history_bytes: bytes that the history keeps.
    :param values: where the values are; by default, in the records.
    """

    def __init__(
        self,
        history_changes: int = HISTORY_CHANGES,
        history_bytes: int = HISTORY_BYTES,
        values: Values | None = None,
    ) -> None:
        self.revision = FIRST_REVISION
        self.values: Values = InlineValues() if values is None else values
        self._size = self.values.size
        self.history = History(history_changes, history_bytes, self.values)
        self._records = OrderedMap()
        self._sum = 0
        self._pending = 0
        self._observers: list[Callable[[bytes, bytes | None], None]] = []

    def __len__(self) -> int:
        return len(self._records)

    @property
    def compacted(self) -> int:
        """The oldest revision that can be read."""
        return self.history.compacted

    def digest(self) -> bytes:
        """Return 16 bytes that depend on keys and records alone: the sum of their shares, modulo 2^128."""
        return self._sum.to_bytes(16, "little")

    @property
    def revision_so_far(self) -> int:
        """The revision that includes what is pending."""
        return self.revision + (1 if self._pending else 0)

    # --- reading

    def get(self, key: bytes, revision: int = 0) -> bytes | None:
        """Return a key's record, now or as of a revision.

        :raises DomainError: ``compacted`` or ``future_revision``.
        """
        record = self._records.get(key)
        if not revision:
            return record
        self._check_revision(revision)
        return self.history.at(key, revision, record)

    def page(
        self, start: bytes, end: bytes | None, limit: int = 0, revision: int = 0, max_bytes: int = MAX_RESULT_BYTES
    ) -> Page:
        """Return keys of [start, end) in order, at most ``MAX_RANGE_KEYS`` and, but for the first, ``max_bytes``.

        :param limit: most keys; 0 is that bound.
        :param revision: the revision to show; 0 is the present.
        :raises DomainError: ``compacted`` or ``future_revision``.
        """
        if revision:
            self._check_revision(revision)
        limit = min(limit or MAX_RANGE_KEYS, MAX_RANGE_KEYS)
        past = revision not in (0, self.revision)
        found: list[tuple[bytes, bytes]] = []
        size = 0
        for scanned, (key, now) in enumerate(self._present_and_gone(start, end) if past else self.items(start, end)):
            if scanned >= _MAX_SCANNED:
                return found, key
            record = self.history.at(key, revision, now) if past else now
            if record is None:
                continue
            size += len(key) + self._size(record)
            if len(found) >= limit or (found and size > max_bytes):
                return found, key
            found.append((key, record))
        return found, None

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, after: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over keys and records from ``start`` (``after``: behind it) on; nothing may change meanwhile."""
        return self._records.items(start, end, after=after)

    def _present_and_gone(self, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes | None]]:
        gone: Iterator[tuple[bytes, None]] = ((key, None) for key in self.history.gone(start, end))
        return merge(self.items(start, end), gone, key=itemgetter(0))

    def _check_revision(self, revision: int) -> None:
        if revision > self.revision:
            raise DomainError(
                "future_revision",
                f"revision {revision} is not reached yet, the current one is {self.revision}",
                {"revision": self.revision},
            )
        if revision < self.compacted:
            raise DomainError(
                "compacted",
                f"revision {revision} was compacted, the oldest that can be read is {self.compacted}",
                {"oldest": self.compacted},
            )

    # --- changing

    def put(self, key: bytes, value: bytes) -> tuple[int, int]:
        """Set a key; return its create_revision and version."""
        old = self._records.get(key)
        revision = self.revision + 1
        if old is None:
            create, version = revision, 1
        else:
            create, _, version, *_ = RECORD_HEAD.unpack_from(old)
            version += 1
        head = make_head(key, create, revision, version, value)
        self._change(key, old, self.values.keep(key, head, value))
        return create, version

    def delete(self, key: bytes) -> int:
        """Delete a key; return how many that was."""
        old = self.get(key)
        if old is None:
            return 0
        self._change(key, old, None)
        return 1

    def delete_range(self, start: bytes, end: bytes | None) -> int:
        """Delete the keys of [start, end); return how many.

        :raises DomainError: ``too_many_keys``; then nothing has changed, but for what is pending.
        """
        doomed: list[bytes] = []
        for key, _ in self.items(start, end):
            if len(doomed) + self._pending >= MAX_DELETED_KEYS:
                raise DomainError(
                    "too_many_keys",
                    f"one command deletes at most {MAX_DELETED_KEYS} keys; delete the range in parts",
                    {"limit": MAX_DELETED_KEYS},
                )
            doomed.append(key)
        for key in doomed:
            self.delete(key)
        return len(doomed)

    def commit(self) -> None:
        """End a command: what it changed becomes one revision."""
        if self._pending:
            self._pending = 0
            self.revision += 1
            self.history.trim()

    def rollback(self) -> None:
        """End a command that failed: what it changed is as before."""
        for _ in range(self._pending):
            _, key, before, after = self.history.undo()
            self._replace(key, after, before)
            if after is not None:
                self.values.drop(key, after)
        self._pending = 0

    def compact(self, revision: int) -> None:
        """Forget the history up to a revision, which is then the oldest that can be read. It is no change of its own.

        :raises DomainError: ``future_revision``, or ``compacted`` if it was done before.
        """
        self._check_revision(revision)
        self.history.compact(revision)

    def _change(self, key: bytes, old: bytes | None, new: bytes | None) -> None:
        for observer in self._observers:
            observer(key, old)
        self._replace(key, old, new)
        self.history.add((self.revision + 1, key, old, new))
        self._pending += 1

    def _replace(self, key: bytes, old: bytes | None, new: bytes | None) -> None:
        change = 0
        if old is not None:
            change = -share_of(old)
        if new is None:
            self._records.remove(key)
        else:
            change += share_of(new)
            self._records.set(key, new)
        self._sum = (self._sum + change) & _SUM_MASK

    # --- snapshots

    def observe(self, observer: Callable[[bytes, bytes | None], None]) -> None:
        """Call ``observer(key, record)`` before each change of a key, with what it is about to lose."""
        self._observers.append(observer)

    def unobserve(self, observer: Callable[[bytes, bytes | None], None]) -> None:
        """End :meth:`observe`; idempotent."""
        if observer in self._observers:
            self._observers.remove(observer)

    def load(self, key: bytes, record: bytes) -> None:
        """Add a key of a snapshot.

        :raises ValueError: if the key is there already.
        """
        if self.get(key) is not None:
            raise ValueError("a key stands in the snapshot twice")
        self._replace(key, None, record)

    def load_event(self, revision: int, key: bytes, before: bytes | None) -> None:
        """Add an event of a snapshot, newest first, after all keys."""
        later = self.history.oldest(key)
        event: Event = (revision, key, before, self.get(key) if later is None else later[2])
        self.history.prepend(event)

    def loaded(self, revision: int, compacted: int) -> None:
        """End the loading of a snapshot."""
        self.revision = revision
        self.history.compacted = compacted
        self.history.loaded()
        self.history.trim()

    # --- values that are moved

    def holding(self, key: bytes) -> Iterator[bytes]:
        """Iterate over all records of a key: that of the present, and what the history has of the past."""
        record = self._records.get(key)
        if record is not None:
            yield record
        yield from self.history.befores(key)

    def move(self, key: bytes, old: bytes, new: bytes) -> None:
        """Let ``new`` stand where ``old`` does: the same in everything but the place of its value.

        ``old`` is dropped. Only between commands.
        """
        if self._records.get(key) == old:
            # Whoever copies the store goes on with what it was.
            for observer in self._observers:
                observer(key, old)
            self._records.set(key, new)
        self.history.move(key, old, new)
        self.values.drop(key, old)

    def dismantle(self) -> Iterator[None]:
        """Release everything in small steps; the store must not be used any more."""
        yield from self._records.dismantle()
