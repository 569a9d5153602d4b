"""Simulated time: one queue of events for the world, and a clock of its own for each process."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

__all__ = ["ProcessClock", "Timeline", "Timer"]


@implementer(IDelayedCall)
class Timer:
    """A call that is due at a moment of the world's time, in the life of one process or of none."""

    __slots__ = ("_call", "_clock", "_due", "_state", "_timeline")

    def __init__(
        self, timeline: Timeline, clock: ProcessClock | None, due: float, call: Callable[[], object] | None
    ) -> None:
        self._timeline = timeline
        self._clock = clock
        self._due = due
        self._call = call
        self._state = "active"

    def active(self) -> bool:
        """See ``IDelayedCall``."""
        return self._state == "active"

    def cancel(self) -> None:
        """See ``IDelayedCall``."""
        self._check()
        self._state, self._call = "cancelled", None

    def getTime(self) -> float:
        """Return when it is due, by the clock that it was set on."""
        return self._due if self._clock is None else self._clock.local(self._due)

    def delay(self, secondsLater: float) -> None:
        """See ``IDelayedCall``."""
        self._move(self._due + self._world(secondsLater))

    def reset(self, secondsFromNow: float) -> None:
        """See ``IDelayedCall``."""
        self._move(self._timeline.now + self._world(secondsFromNow))

    def _world(self, seconds: float) -> float:
        return seconds if self._clock is None else seconds / self._clock.rate

    def _move(self, due: float) -> None:
        self._check()
        self._due = due
        self._timeline.push(due, self)

    def _check(self) -> None:
        if self._state == "called":
            raise AlreadyCalled
        if self._state == "cancelled":
            raise AlreadyCancelled


class Timeline:
    """The world's time, in seconds, and everything that is due. Equal times keep the order in which they were asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        """How many events have happened."""
        self.current: ProcessClock | None = None
        """In whose life the present event happens."""
        self.interrupted = False
        """Whether somebody wants it to end: then the next event does not happen."""
        self.after: Callable[[ProcessClock], object] = lambda _: None
        """Called after each event in the life of a process."""
        self._heap: list[tuple[float, int, Timer]] = []
        self._number = 0

    def later(self, delay: float, call: Callable[..., object], *args: Any) -> Timer:
        """Call something after ``delay`` seconds, whoever lives then."""
        due = self.now + delay
        timer = Timer(self, None, due, (lambda: call(*args)) if args else call)
        self.push(due, timer)
        return timer

    def push(self, due: float, timer: Timer) -> None:
        """Let a timer be looked at at this time."""
        self._number += 1
        heapq.heappush(self._heap, (due, self._number, timer))

    def run(self, end: float, until: Callable[[], bool] | None = None, every: float = 0.1) -> bool:
        """Let time pass up to ``end``; return whether ``until`` held, which is asked ``every`` so many seconds."""
        heap = self._heap
        ask_at = self.now
        while heap:
            if self.interrupted:
                raise KeyboardInterrupt
            due, _, timer = heap[0]
            if due > end:
                break
            if until is not None and due >= ask_at:
                self.now = max(self.now, min(due, ask_at))
                if until():
                    return True
                ask_at = self.now + every
            heapq.heappop(heap)
            if timer._state != "active" or timer._due > due:
                continue
            self.now = max(self.now, due)
            self._fire(timer)
        self.now = max(self.now, end)
        return until is not None and until()

    def _fire(self, timer: Timer) -> None:
        call, clock = timer._call, timer._clock
        assert call is not None
        if clock is None:
            timer._state, timer._call = "called", None
            self.events += 1
            call()
        elif clock.dead:
            timer._state, timer._call = "cancelled", None
        elif clock.timers_from > self.now:
            timer._due = clock.timers_from
            self.push(timer._due, timer)
        else:
            timer._state, timer._call = "called", None
            clock.enter(call)


@implementer(IReactorTime)
class ProcessClock:
    """One process's monotonic clock: it may drift, and nothing is called on it while the process is paused or dead.

    :param rate: its seconds in one of the world's.
    :param start: what it shows at first.
    :param jitter: draws by how many seconds what arrives during a pause is late after it: it meets the process in any
        order.
    """

    def __init__(
        self, timeline: Timeline, *, rate: float = 1.0, start: float = 0.0, jitter: Callable[[], float] = float
    ) -> None:
        self.rate = rate
        self.dead = False
        self.paused_until = self.timers_from = 0.0
        self._timeline = timeline
        self._jitter = jitter
        self._start = start
        self._birth = timeline.now

    def local(self, world: float) -> float:
        """Return what this clock shows at a time of the world."""
        return self._start + (world - self._birth) * self.rate

    def seconds(self) -> float:
        """See ``IReactorTime``."""
        return self._start + (self._timeline.now - self._birth) * self.rate

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kw: object) -> Timer:
        """See ``IReactorTime``."""
        timeline = self._timeline
        due = timeline.now + delay / self.rate
        timer = Timer(timeline, self, due, (lambda: callable(*args, **kw)) if args or kw else callable)
        if not self.dead:
            timeline.push(due, timer)
        return timer

    def pause(self, until: float, timers_late: float = 0.0) -> None:
        """Let the process stand still until a time of the world, unless it does so for longer already.

        :param timers_late: by how many seconds what was due in the pause comes after it. A reactor that stood still
            while it waited for its sockets looks at them before it looks at the clock.
        """
        if until > self.paused_until:
            self.paused_until, self.timers_from = until, until + timers_late

    def change_rate(self, rate: float) -> None:
        """Go faster or slower from now on. What it shows now stays, and what is due by it stays due then."""
        timeline, now = self._timeline, self._timeline.now
        for timer in dict.fromkeys(timer for _, _, timer in timeline._heap if timer._clock is self and timer.active()):
            left = timer._due - now
            # Only a timer's last place in the queue counts; one that waits for the end of a pause was due before.
            if left > 0 and timer._due != self.timers_from:
                timer._due = now + left * self.rate / rate
                timeline.push(timer._due, timer)
        self._start, self._birth, self.rate = self.seconds(), now, rate

    def getDelayedCalls(self) -> list[IDelayedCall]:
        """See ``IReactorTime``."""
        return [timer for _, _, timer in self._timeline._heap if timer._clock is self and timer.active()]

    def enter(self, call: Callable[..., object], *args: Any) -> None:
        """Let something happen in the life of this process now, after its pause, or never if it is dead."""
        timeline = self._timeline
        if self.dead:
            return
        if self.paused_until > timeline.now:
            timeline.later(self.paused_until - timeline.now + self._jitter(), self.enter, call, *args)
            return
        before, timeline.current = timeline.current, self
        timeline.events += 1
        try:
            call(*args)
        finally:
            timeline.current = before
        timeline.after(self)
