"""What a client did, when, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import attrs

__all__ = ["Operation"]


@attrs.define(eq=False)
class Operation:
    """One operation of one client: an interval of time within which it took effect, if it did.

    Intervals are closed: of two operations, one was before the other only if its return is *earlier* than the other's
    call. Times are on any one clock, in any unit.

    :param process: who called. A process does one thing at a time.
    :param call_time: not later than the moment at which the request was sent.
    :param return_time: not earlier than the moment at which the reply came; ``math.inf`` if none came. Such an
        operation may have taken effect at any time since its call, may yet do so, or never does.
    :param function: what was called, in the model's words.
    :param key: what it was called on. Operations on different keys do not see each other.
    :param argument: what was handed over; immutable and hashable.
    :param result: what came back; immutable and hashable. It means nothing where the outcome is unknown.
    :param index: as a witness, the index of the write's log entry, or the index up to which the log was applied when
        the read was served; None if it is not known. A wrong one costs time, and never changes a verdict.
    """

    process: Hashable
    call_time: float
    return_time: float
    function: str
    key: Hashable
    argument: Any = None
    result: Any = None
    index: int | None = None

    @property
    def unknown(self) -> bool:
        """Whether nobody knows what came of it."""
        return self.return_time == math.inf

    def opened(self) -> Operation:
        """Return the same operation with its outcome forgotten."""
        return Operation(
            self.process, self.call_time, math.inf, self.function, self.key, self.argument, None, self.index
        )
