"""Makes a counterexample small without making it false.

Each step turns a history into one that would be linearizable if the larger one were, and is kept only if a search shows
that the smaller one is *not* linearizable. So what is left proves that the whole is not. The steps:

1. One key. Operations on different keys do not see each other, so a history is linearizable if and only if it is for
   each key (Herlihy and Wing, 1990).
2. The beginning, up to the return that the search could never pass. What was called later is dropped; what was then
   under way has its outcome forgotten, because it may have been explained by what is dropped. A beginning of a
   linearizable history is linearizable.
3. A later start. Some completed operation tells by its result in which state it left the key. Take from any
   linearization what comes after that operation: a linearization that begins in this state. What returned before that
   operation's call is surely not in it and is dropped; what overlaps may be, and has its outcome forgotten.
4. Delta debugging (Zeller's ddmin) over the rest, restricted to closed sets: see :mod:`._closure`. A write that a kept
   read may have seen is never dropped.

To forget an outcome is always allowed: the operation may take effect at the same point, or not at all, and observations
of unknown outcome say nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from ._closure import Closure, settle_unknown
from ._model import Model
from ._operation import Operation
from ._search import BudgetExhausted, Search

__all__ = ["Minimal", "minimize"]

_MAX_STARTS = 256


@attrs.frozen
class Minimal:
    """Operations that are not linearizable from a state.

    :param start: the operation that tells the state; None if it is the state before all operations.
    :param longest: the longest order that explains results, as far as it goes.
    """

    operations: tuple[Operation, ...]
    start: Operation | None
    state: Any
    longest: tuple[Operation, ...]


def minimize(
    operations: Sequence[Operation], model: Model, blocked_at: float, *, max_steps: int, max_states: int
) -> Minimal:
    """Return a small part of one key's operations that is not linearizable, as the operations are not.

    :param blocked_at: the return time that the search which found this out could not pass.
    :param max_steps: steps of search for all that is tried. What cannot be decided with them is not made smaller.
    """
    work = _Minimizer(model, max_steps, max_states)
    rest: list[Operation] = list(operations)
    start, state = None, model.initial
    beginning = _until(rest, blocked_at, model)
    if work.fails(beginning, state):
        rest = beginning
    later = work.later_start(rest)
    if later is not None:
        start, rest = later
        state = model.leaves(start)
    rest = work.reduce(rest, state)
    return Minimal(tuple(rest), start, state, tuple(work.longest(rest, state)))


def _until(operations: Iterable[Operation], time: float, model: Model) -> list[Operation]:
    kept = []
    for each in operations:
        if each.return_time <= time or each.unknown:
            kept += [each] * (each.call_time <= time)
        elif each.call_time <= time and not model.observes(each):
            kept.append(each.opened())
    return kept


def _after(operations: Iterable[Operation], start: Operation, model: Model) -> list[Operation]:
    kept = []
    for each in operations:
        if each is start or each.return_time < start.call_time:
            continue
        if each.unknown or each.call_time > start.return_time:
            kept.append(each)
        elif not model.observes(each):
            kept.append(each.opened())
    return kept


class _Minimizer:
    def __init__(self, model: Model, max_steps: int, max_states: int) -> None:
        self._model = model
        self._steps = max_steps
        self._max_states = max_states

    def _search(self, operations: Sequence[Operation], state: Any, keep_longest: bool = False) -> Search:
        settled, bounds = settle_unknown(list(operations), self._model, state)
        return Search(
            settled,
            self._model,
            state,
            max_steps=max(self._steps, 0),
            max_states=self._max_states,
            bounds=bounds,
            keep_longest=keep_longest,
        )

    def fails(self, operations: Sequence[Operation], state: Any) -> bool:
        """Whether operations are known not to be linearizable; the longer that takes, the less is left for others."""
        search = self._search(operations, state)
        try:
            return search.run() is None
        except BudgetExhausted:
            return False
        finally:
            self._steps -= search.steps + len(operations)

    def later_start(self, operations: Sequence[Operation]) -> tuple[Operation, list[Operation]] | None:
        """Find the latest operation to start at, and what then matters."""
        starts = [each for each in operations if not each.unknown]
        starts.sort(key=lambda each: each.return_time, reverse=True)
        for start in starts[:_MAX_STARTS]:
            state = self._model.leaves(start)
            if state is not None and self._steps > 0:
                rest = _after(operations, start, self._model)
                if self.fails(rest, state):
                    return start, rest
        return None

    def reduce(self, operations: list[Operation], state: Any) -> list[Operation]:
        """Leave out what can be left out, in pieces that become smaller."""
        closure = Closure(operations, self._model)
        kept = list(range(len(operations)))
        size = len(kept) // 2
        while size:
            smaller = False
            at = 0
            while at < len(kept) and self._steps > 0:
                fewer = closure.largest(kept[:at] + kept[at + size :])
                if fewer and self.fails([operations[i] for i in fewer], state):
                    kept, smaller = fewer, True
                else:
                    at += size
            if not smaller or size > 1:
                size //= 2
        return [operations[i] for i in kept]

    def longest(self, operations: Sequence[Operation], state: Any) -> list[Operation]:
        """Search once more, for the longest order."""
        self._steps = max(self._steps, 100_000)
        search = self._search(operations, state, keep_longest=True)
        with contextlib.suppress(BudgetExhausted):
            search.run()
        return [search.operations[i] for i in search.longest]
