"""How late the event loop turns: what holds it up holds up every heartbeat, whoever does it, the collector included."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ._metrics import LoopMetrics

__all__ = ["STALL_SECONDS", "LoopProbe"]

STALL_SECONDS = 0.05
"""A turn that comes so late counts as a stall; nothing may hold up the loop for longer."""
_PERIOD_SECONDS = 5
_PERIODS = 12


class LoopProbe:
    """Asks for a call at regular intervals, and notes how much later than asked for it comes.

    What holds up the loop for a while is seen as at most that long, and as at least that long less the interval.

    :param clock: calls it.
    :param seconds: monotonic seconds, by which the delay is measured.
    :param work: seconds of processor time that the loop's thread has had, to tell its own work from what the machine
        and other threads do to it; None: that is not told.
    :param interval: seconds from one call to the next; 0: never, and nothing is measured.
    """

    def __init__(
        self, clock: IReactorTime, seconds: Callable[[], float], work: Callable[[], float] | None, interval: float
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._work = work
        self._interval = interval
        self._due = 0.0
        self._call: IDelayedCall | None = None
        self._longest = 0.0
        self._longest_work = 0.0
        self._worked = 0.0
        self._stalls = 0
        self._recent: deque[tuple[int, float]] = deque(maxlen=_PERIODS)
        """The longest delay of each period in which there was a call, oldest first."""

    def start(self) -> None:
        """Begin to measure."""
        if self._interval > 0 and self._call is None:
            if self._work is not None:
                self._worked = self._work()
            self._ask()

    def stop(self) -> None:
        """Measure no more. What was measured stays."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def metrics(self) -> LoopMetrics | None:
        """Return what was measured, None if nothing is."""
        if self._interval <= 0:
            return None
        first = self._seconds() // _PERIOD_SECONDS - _PERIODS
        recent = max((late for period, late in self._recent if period > first), default=0.0)
        return LoopMetrics(self._interval, self._longest, recent, self._stalls, self._longest_work)

    def _ask(self) -> None:
        self._due = self._seconds() + self._interval
        self._call = self._clock.callLater(self._interval, self._turn)

    def _turn(self) -> None:
        now = self._seconds()
        # Never negative: the two clocks need not agree to the microsecond.
        late = max(0.0, now - self._due)
        if late > self._longest:
            self._longest = late
        if late > STALL_SECONDS:
            self._stalls += 1
        if self._work is not None:
            worked = self._work()
            self._longest_work = max(self._longest_work, worked - self._worked)
            self._worked = worked
        period, recent = int(now // _PERIOD_SECONDS), self._recent
        if not recent or recent[-1][0] != period:
            recent.append((period, late))
        elif late > recent[-1][1]:
            recent[-1] = (period, late)
        self._ask()
