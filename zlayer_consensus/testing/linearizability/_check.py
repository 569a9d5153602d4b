"""Tells whether a history is linearizable."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Hashable, Iterable
from typing import Any

import attrs

from ._closure import settle_unknown
from ._counterexample import Counterexample
from ._history import History, HistoryError
from ._minimize import minimize as _minimize
from ._model import Model
from ._operation import Operation
from ._search import BudgetExhausted, Search
from ._witness import follow_witness

__all__ = ["Outcome", "Verdict", "check"]

_MINIMIZING_STEPS = 2_000_000
# All keys are tried with so few steps before one is tried with all: a bad key is seldom a hard one.
_FIRST_STEPS = 100_000


class Outcome(enum.Enum):
    """What a check found out. The values are words for people."""

    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    UNKNOWN = "unknown"


@attrs.frozen
class Verdict:
    """The result of a check.

    :param outcome: :attr:`Outcome.UNKNOWN` if the budget was exhausted, for some key, and no other is wrong. It is not
        a pass.
    :param operations: how many operations were looked at.
    :param keys: how many keys they are on.
    :param orders: for each key that is linearizable, the proof: an order that explains all results.
    :param witnessed: the keys of which the log indices gave the order.
    :param misled: the keys of which every completed operation has a log index and the order of the indices explains
        nothing, although another order does: either an unknown operation came late, or indices are wrong.
    :param unknown: the keys for which the budget was exhausted.
    :param steps: steps of search.
    :param counterexample: why it is not linearizable.
    """

    outcome: Outcome
    operations: int
    keys: int
    orders: dict[Hashable, list[Operation]]
    witnessed: tuple[Hashable, ...]
    misled: tuple[Hashable, ...]
    unknown: tuple[Hashable, ...]
    steps: int
    counterexample: Counterexample | None = None

    @property
    def linearizable(self) -> bool:
        """Whether the history was proved to be linearizable."""
        return self.outcome is Outcome.LINEARIZABLE

    def text(self) -> str:
        """Return the verdict for people, with the counterexample if there is one."""
        if self.counterexample is not None:
            return self.counterexample.text()
        if self.outcome is Outcome.UNKNOWN:
            names = ", ".join(f"key {key!r}" for key in self.unknown if key is not None)
            return f"unknown: the budget was exhausted after {self.steps} steps" + (f" ({names})" if names else "")
        return f"linearizable: {self.operations} operations on {self.keys} keys"


def check(
    history: History | Iterable[Operation],
    model: Model,
    *,
    budget: int = 5_000_000,
    max_states: int = 2_000_000,
    minimize: bool = True,
) -> Verdict:
    """Tell whether a history is linearizable.

    Each key is looked at by itself. If the operations carry log indices, their order is tried first; if it does not
    explain the results, or there are none, all orders are searched.

    :param budget: steps of search for each key; about a million take a second.
    :param max_states: what the search may remember of each key; a million take about 150 MB.
    :param minimize: whether to make the counterexample small, which takes up to 2 million steps more.
    :raises HistoryError: if an operation returned before it was called.
    :raises ValueError: if the model does not know a function.
    """
    operations = history.operations() if isinstance(history, History) else list(history)
    keys: dict[Hashable, list[Operation]] = {}
    for each in operations:
        if not each.call_time <= each.return_time:
            raise HistoryError(f"process {each.process!r} has an operation that returned before it was called")
        if not (each.unknown and each.function in model.reads):
            keys.setdefault(each.key, []).append(each)
    work = _Work(model, budget, max_states, minimize)
    conflict = model.conflict(list(itertools.chain.from_iterable(keys.values())))
    if conflict is not None:
        work.counterexample = Counterexample(
            model=model,
            key=conflict.operations[0].key,
            operations=conflict.operations,
            total=len(operations),
            stuck=conflict.operations,
            reason=conflict.reason,
        )
    else:
        work.check_keys(keys)
    return work.verdict(len(operations), len(keys))


class _Work:
    def __init__(self, model: Model, budget: int, max_states: int, minimize: bool) -> None:
        self._model = model
        self._budget = budget
        self._max_states = max_states
        self._minimize = minimize
        self._orders: dict[Hashable, list[Operation]] = {}
        self._witnessed: list[Hashable] = []
        self._misled: list[Hashable] = []
        self._unknown: list[Hashable] = []
        self._steps = 0
        self.counterexample: Counterexample | None = None

    def verdict(self, operations: int, keys: int) -> Verdict:
        outcome = Outcome.UNKNOWN if self._unknown else Outcome.LINEARIZABLE
        if self.counterexample is not None:
            outcome = Outcome.NOT_LINEARIZABLE
        return Verdict(
            outcome,
            operations,
            keys,
            self._orders,
            tuple(self._witnessed),
            tuple(self._misled),
            tuple(self._unknown),
            self._steps,
            self.counterexample,
        )

    def check_keys(self, keys: dict[Hashable, list[Operation]]) -> None:
        left: list[Hashable] = []
        for key, operations in keys.items():
            order = follow_witness(operations, self._model, self._model.initial)
            if order is None:
                left.append(key)
            else:
                self._orders[key] = order
                self._witnessed.append(key)
        first = [_FIRST_STEPS] if len(left) > 1 and self._budget > _FIRST_STEPS else []
        for max_steps in (*first, self._budget):
            hard = []
            for key in left:
                if not self._search(key, keys[key], max_steps):
                    hard.append(key)
                if self.counterexample is not None:
                    return
            left = hard
        self._unknown = left

    def _search(self, key: Hashable, operations: list[Operation], max_steps: int) -> bool:
        """Search all orders of one key's operations, and say whether that was enough to tell."""
        initial = self._model.initial
        settled, bounds = settle_unknown(operations, self._model, initial)
        search = Search(settled, self._model, initial, max_steps=max_steps, max_states=self._max_states, bounds=bounds)
        try:
            found = search.run()
        except BudgetExhausted:
            return False
        finally:
            self._steps += search.steps
        if found is None:
            self.counterexample = self._explain(key, operations, search.blocked_at)
        else:
            self._orders[key] = [settled[i] for i in found]
            if all(each.index is not None or each.unknown for each in operations):
                self._misled.append(key)
        return True

    def _explain(self, key: Hashable, operations: list[Operation], blocked_at: float) -> Counterexample:
        model = self._model
        if not self._minimize:
            return Counterexample(
                model=model, key=key, operations=tuple(operations), total=len(operations), state=model.initial
            )
        steps = _MINIMIZING_STEPS
        minimal = _minimize(operations, model, blocked_at, max_steps=steps, max_states=self._max_states)
        placed = set(map(id, minimal.longest))
        state: Any = minimal.state
        return Counterexample(
            model=model,
            key=key,
            operations=minimal.operations,
            total=len(operations),
            start=minimal.start,
            state=state,
            order=minimal.longest,
            stuck=tuple(each for each in minimal.operations if not each.unknown and id(each) not in placed),
        )
