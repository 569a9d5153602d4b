"""Deadlines of many waiting things, with one timer for all of them."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from itertools import count
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall

__all__ = ["MAX_TIMEOUT", "Deadlines", "Expiring", "check_timeout"]

MAX_TIMEOUT = 86_400
"""The longest time-out that a caller may ask for, in seconds."""
_COMPACT_AT = 256


def check_timeout(seconds: object) -> None:
    """Refuse what cannot be a time-out, before a timer or a message is made of it. None, for the usual one, is fine.

    :raises ValueError: unless it is a number of seconds above 0 and up to :data:`MAX_TIMEOUT`.
    """
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= MAX_TIMEOUT:
        raise ValueError(f"a time-out must be a number of seconds above 0 and up to {MAX_TIMEOUT}, not {seconds!r}")


class Expiring(Protocol):
    """Something that is over at a certain time, unless it was ``called`` before. A kind of Deferred."""

    deadline: float

    @property
    def called(self) -> Any:
        """Whether nothing waits any more."""

    def expire(self) -> None:
        """The deadline has passed."""


class Deadlines:
    """Expires what was added. What is done by then costs nothing more than its place in a queue.

    :param clock: monotonic time.
    """

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._usual: deque[Expiring] = deque()
        self._odd: list[tuple[float, int, Expiring]] = []
        self._numbers = count()
        self._compact_at = _COMPACT_AT
        self._timer: IDelayedCall | None = None
        self._timer_at = 0.0
        self._stopped = False

    def add(self, item: Expiring, usual: bool) -> None:
        """Watch ``item``. With ``usual`` its deadline is not before that of any usual one before it."""
        if usual:
            queue = self._usual
            while queue and queue[0].called:
                queue.popleft()
            queue.append(item)
        else:
            if len(self._odd) >= self._compact_at:
                self._odd = sorted(row for row in self._odd if not row[2].called)
                self._compact_at = max(_COMPACT_AT, 2 * len(self._odd))
            heappush(self._odd, (item.deadline, next(self._numbers), item))
        if self._timer is None or item.deadline < self._timer_at:
            self._arm(item.deadline)

    def _arm(self, at: float) -> None:
        if self._stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._clock.callLater(max(0.0, at - self._clock.seconds()), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        due: list[Expiring] = []
        while self._usual and (self._usual[0].called or self._usual[0].deadline <= now):
            due.append(self._usual.popleft())
        while self._odd and (self._odd[0][2].called or self._odd[0][0] <= now):
            due.append(heappop(self._odd)[2])
        heads = [item.deadline for item in _heads(self._usual, self._odd)]
        if heads:
            self._arm(min(heads))
        for item in due:
            if not item.called:
                item.expire()

    def stop(self) -> None:
        """Expire nothing any more."""
        self._stopped = True
        self._usual.clear()
        self._odd.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _heads(usual: deque[Expiring], odd: list[tuple[float, int, Expiring]]) -> list[Expiring]:
    heads = [usual[0]] if usual else []
    if odd:
        heads.append(odd[0][2])
    return heads
