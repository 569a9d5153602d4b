"""Which operations of one key can be left out without making a false failure, or hiding a true one.

Take any linearization L of a history H, and a set K of its operations. Delete from L all that is not in K. What is left
still respects real time. It respects the model if every operation of K finds the state that it found in L; and that is
so if each one that is not blind finds the *same last change* before it. So K may stand alone if for every operation of
K that is not blind, all changes of H are in K that in any linearization of H can be the last before it: called not
after its return, compatible with its result (:meth:`Model.may_follow`), and not surely overwritten, that is, no
completed change lies wholly between the two. Such a K is called *closed*. By induction along L, the states are then
the same, because the last change before an operation of K is in K and leaves the same state (where it is not blind, it
found the same state itself), and before the first change there is the initial state in both.

From that follow both uses. If H is linearizable, so is a closed part; hence a closed part that is *not* linearizable
proves that H is not: it is a counterexample, not an artefact. And where only operations of unknown outcome are left
out, which need not have happened, the rest is linearizable if and only if H is.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

from ._model import Model
from ._operation import Operation

__all__ = ["Closure", "settle_unknown"]

# To look at all pairs of more operations than this takes longer than the search that it is to make faster.
_MAX_SETTLED = 4000


class Closure:
    """The relation "can be the last change before" among the operations of one key."""

    def __init__(self, operations: Sequence[Operation], model: Model) -> None:
        self._operations = operations
        self._model = model
        self._changes = [i for i, each in enumerate(operations) if not model.observes(each)]
        self._needs: dict[int, frozenset[int]] = {}
        # By return, the completed changes; with the latest call among those so far.
        done = sorted((operations[i].return_time, operations[i].call_time) for i in self._changes)
        self._returns = [time for time, _ in done if time < math.inf]
        self._latest_calls: list[float] = []
        latest = -math.inf
        for _, call in done[: len(self._returns)]:
            latest = max(latest, call)
            self._latest_calls.append(latest)

    def needs(self, i: int) -> frozenset[int]:
        """Return the changes that can be the last before an operation; none if it is blind."""
        found = self._needs.get(i)
        if found is None:
            found = self._needs[i] = self._find(i)
        return found

    def _find(self, i: int) -> frozenset[int]:
        operation = self._operations[i]
        if self._model.blind(operation):
            return frozenset()
        earlier = bisect.bisect_left(self._returns, operation.call_time)
        # What returned before this is surely overwritten.
        overwritten = self._latest_calls[earlier - 1] if earlier else -math.inf
        return frozenset(
            j
            for j in self._changes
            if j != i
            and self._operations[j].call_time <= operation.return_time
            and self._operations[j].return_time >= overwritten
            and self._model.may_follow(operation, self._operations[j])
        )

    def largest(self, among: Sequence[int]) -> list[int]:
        """Return the largest closed part of a set of operations."""
        kept = set(among)
        while True:
            torn = [i for i in kept if not self.needs(i) <= kept]
            if not torn:
                return sorted(kept)
            kept.difference_update(torn)


def settle_unknown(
    operations: list[Operation], model: Model, initial: object
) -> tuple[list[Operation], dict[int, float]]:
    """Leave out operations of unknown outcome that nobody can have seen, and bound those that somebody saw.

    An operation that must have been last before a completed one took effect by the return of that one: there is no
    other change that can have been last before it, and it does not fit the initial state.

    :return: the operations that are left, and the bounds by their positions.
    """
    while True:
        unknown = {i for i, each in enumerate(operations) if each.unknown}
        if not unknown or len(operations) > _MAX_SETTLED:
            return operations, {}
        closure = Closure(operations, model)
        needs = [closure.needs(i) for i in range(len(operations))]
        seen = frozenset().union(*needs)
        if unknown <= seen:
            break
        # Each of these is in no need at all, so what is left is closed.
        operations = [each for i, each in enumerate(operations) if i not in unknown or i in seen]
    bounds: dict[int, float] = {}
    for i, each in enumerate(operations):
        if each.unknown or len(needs[i]) != 1 or model.step(initial, each) is not None:
            continue
        [only] = needs[i]
        if only in unknown and each.return_time < bounds.get(only, math.inf):
            bounds[only] = each.return_time
    return operations, bounds
