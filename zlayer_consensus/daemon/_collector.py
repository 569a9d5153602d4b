"""The garbage collector of a process that holds a large state.

A full collection looks at every tracked object: with a million keys it stops the loop for 100 ms and more, which the
other members take for a stall. A node's state is freed by reference counts, not by the collector.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

__all__ = ["calm_collector"]

# Full collections that take longer are not repeated over the same objects.
_LONG = 0.02


def calm_collector(clock: Callable[[], float] = time.perf_counter) -> None:
    """Set the collector up for a long life with a large state. Call it once, after recovery.

    What recovery has built is taken out of the collector's sight, and so is later what made a full collection long.
    Cycles that die after that are not found; reference counts still free everything else. The young generation is
    made larger, because a batch of entries allocates thousands of objects that live for milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)
    began = 0.0

    def watch(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if info["generation"] != 2:
            return
        if phase == "start":
            began = clock()
        elif clock() - began > _LONG:
            gc.freeze()

    gc.callbacks.append(watch)
