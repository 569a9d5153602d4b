"""The changes of the latest revisions: what a key was, and what became of it.

It answers reads at a past revision, and holds what a watch from a past revision needs. What falls out of the window
is forgotten, oldest first and whole revisions at a time; the window is a matter of counts and sizes alone, so every
replica forgets the same.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Final

from ._ordered import OrderedMap
from ._records import Values

__all__ = ["Event", "History"]

Event = tuple[int, bytes, bytes | None, bytes | None]
"""Revision, key, record before, record after; None where the key did not exist. A plain tuple, for the collector."""

_SLACK: Final = 128
"""Events beyond the window that are left until there are so many: dropping them together is cheaper."""
_EVENT_OVERHEAD: Final = 200
"""Bytes that an event costs beside its key and the record before it, roughly."""


class History:
    """The events of a window, in order.

    :param changes: events that are kept.
    :param size: bytes that are kept.
    :param values: where the values of the records are.
    """

    def __init__(self, changes: int, size: int, values: Values) -> None:
        self.compacted = 1
        """The oldest revision that can be read. Events have greater revisions."""
        self._changes = changes
        self._size = size
        self._values = values
        self._events: deque[Event] = deque()
        self._of_key: dict[bytes, list[Event]] = {}
        self._gone = OrderedMap()  # keys whose last event deleted them; they map to nothing
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._events)

    def _cost(self, event: Event) -> int:
        before = event[2]
        return _EVENT_OVERHEAD + len(event[1]) + (0 if before is None else self._values.size(before))

    def add(self, event: Event) -> None:
        """Add the newest event."""
        key = event[1]
        self._events.append(event)
        self._bytes += self._cost(event)
        events = self._of_key.get(key)
        if events is None:
            self._of_key[key] = [event]
        else:
            if event[2] is None:
                self._gone.remove(key)
            events.append(event)
        if event[3] is None:
            self._gone.set(key, b"")

    def undo(self) -> Event:
        """Take back the newest event."""
        event = self._events.pop()
        key = event[1]
        self._bytes -= self._cost(event)
        if event[3] is None:
            self._gone.remove(key)
        events = self._of_key[key]
        events.pop()
        if not events:
            del self._of_key[key]
        elif event[2] is None:
            self._gone.set(key, b"")
        return event

    def trim(self) -> None:
        """Forget what is beyond the window. Only between commands: the events of one command stay together."""
        if len(self._events) <= self._changes + _SLACK and self._bytes <= self._size:
            return
        dropped: dict[bytes, int] = {}
        while self._events and (len(self._events) > self._changes or self._bytes > self._size):
            self._drop_oldest(dropped)
        self._forget(dropped)

    def compact(self, revision: int) -> None:
        """Forget the events up to a revision. Only between commands."""
        dropped: dict[bytes, int] = {}
        while self._events and self._events[0][0] <= revision:
            self._drop_oldest(dropped)
        self.compacted = max(self.compacted, revision)
        self._forget(dropped)

    def _drop_oldest(self, dropped: dict[bytes, int]) -> None:
        """Drop the events of the oldest revision, and count them by key."""
        events = self._events
        revision = events[0][0]
        while events and events[0][0] == revision:
            event = events.popleft()
            self._bytes -= self._cost(event)
            dropped[event[1]] = dropped.get(event[1], 0) + 1
            if event[2] is not None:
                self._values.drop(event[1], event[2])
        self.compacted = revision

    def _forget(self, dropped: dict[bytes, int]) -> None:
        for key, count in dropped.items():
            left = self._of_key[key]
            if count < len(left):
                del left[:count]
                continue
            del self._of_key[key]
            if left[-1][3] is None:
                self._gone.remove(key)

    def at(self, key: bytes, revision: int, now: bytes | None) -> bytes | None:
        """Return the key's record as of a revision; ``now`` is its record at present."""
        events = self._of_key.get(key)
        if events is None:
            return now
        place = bisect_right(events, revision, key=_revision)
        return events[place][2] if place < len(events) else now

    def gone(self, start: bytes, end: bytes | None) -> Iterator[bytes]:
        """Iterate over the keys that have events and do not exist any more."""
        return (key for key, _ in self._gone.items(start, end))

    def since(self, revision: int) -> Iterator[Event]:
        """Iterate over the events of ``revision`` and later ones; nothing may be added meanwhile.

        :raises LookupError: if some of them were forgotten.
        """
        if revision <= self.compacted:
            raise LookupError(f"the events up to revision {self.compacted} were forgotten")
        place = bisect_right(self._events, revision - 1, key=_revision)
        return islice(self._events, place, None)

    def all(self) -> list[Event]:
        """Return the events of the window, oldest first."""
        return list(self._events)

    def befores(self, key: bytes) -> Iterator[bytes]:
        """Iterate over the records that a key had, and that are forgotten with their events."""
        return (event[2] for event in self._of_key.get(key, ()) if event[2] is not None)

    def move(self, key: bytes, old: bytes, new: bytes) -> None:
        """Let ``new`` stand where ``old`` does in the events of a key."""
        events = self._of_key.get(key, [])
        for number, event in enumerate(events):
            if old in event[2:]:
                revision, _, before, after = event
                moved = (revision, key, new if before == old else before, new if after == old else after)
                events[number] = self._events[self._place(event)] = moved

    def _place(self, event: Event) -> int:
        place = bisect_left(self._events, event[0], key=_revision)
        while self._events[place] is not event:
            place += 1
        return place

    def prepend(self, event: Event) -> None:
        """Add an event that is older than all others, while a snapshot is loaded. :meth:`loaded` must follow."""
        key = event[1]
        self._events.appendleft(event)
        self._bytes += self._cost(event)
        events = self._of_key.setdefault(key, [])
        events.append(event)
        if event[3] is None and len(events) == 1:
            self._gone.set(key, b"")

    def oldest(self, key: bytes) -> Event | None:
        """Return the key's oldest event so far, while a snapshot is loaded."""
        events = self._of_key.get(key)
        return events[-1] if events else None

    def loaded(self) -> None:
        """End a series of :meth:`prepend`."""
        for events in self._of_key.values():
            events.reverse()


def _revision(event: Event) -> int:
    return event[0]
