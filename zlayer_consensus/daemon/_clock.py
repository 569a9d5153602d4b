"""A clock that only moves forward, for the process that the daemon owns.

``reactor.seconds`` is the wall clock: when an administrator or NTP sets the system's time back, every ``callLater``
waits that much longer, elections and heartbeats among them. A library must not change that for the application that
embeds it; a daemon may.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["install_monotonic_clock", "monotonic_source"]


def monotonic_source() -> Callable[[], float]:
    """Return a function that gives monotonic seconds, of a clock that counts suspended time where there is one.

    After a suspension a node must know that its leadership is long over; ``CLOCK_MONOTONIC`` stands still meanwhile.
    """
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    if boot_time is not None:
        try:
            time.clock_gettime(boot_time)
        except OSError:
            # The name is known to libc but not to this kernel.
            return time.monotonic
        return lambda: time.clock_gettime(boot_time)
    return time.monotonic


def install_monotonic_clock(reactor: Any) -> None:
    """Make a reactor count monotonic seconds, from now on and in everything that it schedules.

    :raises RuntimeError: if something is scheduled already: its time was reckoned by the other clock.
    """
    if reactor.getDelayedCalls():
        raise RuntimeError("the clock must be installed before anything is scheduled")
    reactor.seconds = monotonic_source()
