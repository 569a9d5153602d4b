"""The garbage collector of a process that holds a large state.

A full collection looks at every tracked object: with a million keys it stops the loop for 100 ms and more, which the
other members take for a stall. A node's state is freed by reference counts, not by the collector.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Collections", "calm_collector", "spare_the_state"]

_LONG: Final = 0.01
"""Full collections that take longer are not repeated over the same objects; in seconds."""
_THRESHOLDS: Final = (10_000, 5, 2)
"""Of the three generations. The first is larger than by default, because a batch of entries allocates thousands of
objects that live for milliseconds. The others see to it that no collection comes upon more than some 200 000 objects
that none has seen before, however many are made to stay: that takes about 25 ms."""


class Collections:
    """What the collector has done since :func:`calm_collector`. Times are in seconds.

    A collection holds up everything; a full one (of the oldest generation) looks at all that is not frozen.

    :param clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.full = 0
        """How many were full."""
        self.longest_full = 0.0
        self.longest_young = 0.0
        """The longest of those that were not full."""
        self._clock = clock
        self._began = 0.0

    def note(self, phase: str, info: dict[str, int]) -> None:
        """Take a call of the collector's; see :data:`gc.callbacks`."""
        if phase == "start":
            self._began = self._clock()
            return
        seconds = self._clock() - self._began
        if info["generation"] < 2:
            self.longest_young = max(self.longest_young, seconds)
            return
        self.full += 1
        self.longest_full = max(self.longest_full, seconds)
        if seconds > _LONG:
            gc.freeze()


def calm_collector(collections: Collections) -> None:
    """Set the collector up for a long life with a large state. Call it once, before the node starts: it takes a while.

    What is there is taken out of the collector's sight, and so is later what made a full collection long. Cycles that
    die after that are not found; reference counts still free everything else.

    :param collections: counts from then on.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    gc.callbacks.append(collections.note)


def spare_the_state() -> None:
    """Take what recovery has built out of the collector's sight, too. It takes no time."""
    gc.freeze()
