"""Finds a smaller plan that fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import attrs

from ._plan import BUFFER_BYTES, Fault, Knobs, Plan

__all__ = ["Shrunk", "shrink"]

# Settings that make a run simpler, in the order in which they are tried. A calm network first: its troubles are many
# and small, and hide what matters.
_CALMER: tuple[tuple[str, Any], ...] = (
    ("loss", 0.0),
    ("duplicate", 0.0),
    ("reply_loss", 0.0),
    ("straggle", 0.0),
    ("drift", 0.0),
    ("wall_clock_jumps", (0.0,)),
    ("inline_disk", True),
    ("disk_latency", 0.0),
    ("buffer_bytes", BUFFER_BYTES),
)
_FEWER = ("clients", "keys", "voters")
# Seconds. Below it nothing happens at all.
_SHORTEST = 0.01


@attrs.frozen
class Shrunk:
    """What became of a plan.

    :param plan: the smallest that still fails.
    :param runs: how many were tried.
    :param complete: whether nothing was left to try; else there was no time.
    """

    plan: Plan
    runs: int
    complete: bool


class _Exhausted(Exception):
    """No more runs."""


def shrink(plan: Plan, fails: Callable[[Plan], bool], spent: Callable[[int], bool], *, until: float = 0.0) -> Shrunk:
    """Make a failing plan smaller: fewer faults, then a calmer network, fewer clients, less time, fewer voters.

    :param fails: runs a plan, and says whether it fails as the first one did.
    :param spent: told how many runs there were; says whether that is enough.
    :param until: when the failure was seen, in simulated seconds: a plan need not last longer. 0: not known.
    """
    search = _Search(plan, fails, spent)
    complete = True
    try:
        search.all(until)
    except _Exhausted:
        complete = False
    return Shrunk(search.plan, search.runs, complete)


class _Search:
    def __init__(self, plan: Plan, fails: Callable[[Plan], bool], spent: Callable[[int], bool]) -> None:
        self.plan = plan
        self.runs = 0
        self._fails = fails
        self._spent = spent

    def all(self, until: float) -> None:
        """Try everything, and begin again as long as it helps: what one fault needed may go when the fault went."""
        if until:
            self._end(until)
        while True:
            before = self.plan
            self._faults()
            self._knobs()
            if self.plan == before:
                return

    def _try(self, plan: Plan) -> bool:
        if plan == self.plan:
            return False
        if self._spent(self.runs):
            raise _Exhausted
        self.runs += 1
        if self._fails(plan):
            self.plan = plan
            return True
        return False

    def _end(self, until: float) -> None:
        """Leave out what comes after the failure, if that makes no difference, as it should."""
        faults = tuple(fault for fault in self.plan.faults if fault.at <= until)
        shorter = self._with(duration=min(self.plan.knobs.duration, until)) or self.plan
        _ = self._try(self.plan.without(knobs=shorter.knobs, faults=faults)) or self._try(
            self.plan.without(faults=faults)
        )

    def _faults(self) -> None:
        """Zeller's ddmin: leave out halves, quarters, …, single faults."""
        if self.plan.faults and self._try(self.plan.without(faults=())):
            return
        pieces = 2
        while len(self.plan.faults) >= 2:
            count = len(self.plan.faults)
            if any(self._try(self.plan.without(faults=rest)) for rest in _without_each(self.plan.faults, pieces)):
                pieces = max(2, pieces - 1)
            elif pieces >= count:
                return
            else:
                pieces = min(count, 2 * pieces)

    def _knobs(self) -> None:
        for name, value in _CALMER:
            self._change(name, value)
        for name in _FEWER:
            while getattr(self.plan.knobs, name, 0) > 1:
                current = getattr(self.plan.knobs, name)
                if not any(self._change(name, smaller) for smaller in sorted({1, current // 2, current - 1} - {0})):
                    break
        while self.plan.knobs.duration > _SHORTEST and self._change("duration", self.plan.knobs.duration / 2):
            pass

    def _with(self, **changes: Any) -> Plan | None:
        """Return the plan with other settings, or None if there are no such settings."""
        known = attrs.fields_dict(Knobs)
        if any(name not in known for name in changes):
            return None
        return self.plan.without(knobs=attrs.evolve(self.plan.knobs, **changes))

    def _change(self, name: str, value: Any) -> bool:
        changed = self._with(**{name: value})
        return changed is not None and self._try(changed)


def _without_each(faults: Sequence[Fault], pieces: int) -> Iterator[tuple[Fault, ...]]:
    """Yield the faults without the first, the second … of so many pieces."""
    bounds = [round(piece * len(faults) / pieces) for piece in range(pieces + 1)]
    for start, end in pairwise(bounds):
        if start < end:
            yield (*faults[:start], *faults[end:])
