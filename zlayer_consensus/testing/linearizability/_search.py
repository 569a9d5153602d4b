"""Searches for an order of one key's operations that explains their results.

The algorithm is that of Wing and Gong with the cache of Lowe ("Testing for linearizability", 2017), as Porcupine has
it: take the first operation that can come next, remember the set of operations taken together with the state, and step
back where an operation ought to have taken effect before its return and cannot.

The list of calls and returns is linked by arrays of integers, the set of operations taken is one integer, and states
are numbered, so that the model is asked once for each state and kind of operation. Where nothing is under way, the
history is cut: each part has its own small sets, and the parts before are searched again only for another final state.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from ._model import Model
from ._operation import Operation

__all__ = ["BudgetExhausted", "Search"]


class BudgetExhausted(Exception):
    """The search was given up: nothing is known."""


class _Part(NamedTuple):
    """A part of the history, linked. A search that has ended leaves the links as it found them."""

    operations: list[int]
    after: list[int]
    before: list[int]
    whose: list[int]
    returns: list[int]
    twins: list[int]
    answers: list[dict[int, int]]
    left: int


class Search:
    """One search.

    :param operations: those of one key. Of these, the ones in ``bounds`` must have taken effect by then, although
        their outcome is unknown; the others of unknown outcome need not have taken effect at all.
    :param initial: the state before all of them.
    :param max_steps: steps after which to give up.
    :param max_states: pairs of set and state, and answers of the model, to remember at most.
    :param keep_longest: whether to keep the longest order that was found; it slows the search down.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        model: Model,
        initial: Any,
        *,
        max_steps: int,
        max_states: int,
        bounds: dict[int, float] | None = None,
        keep_longest: bool = False,
    ) -> None:
        self.operations = operations
        self.max_steps = max_steps
        self.max_states = max_states
        self.steps = 0
        self.cached = 0
        # The last return that the search could not pass: what comes after it plays no part in the failure.
        self.blocked_at = -math.inf
        self.longest: list[int] = []
        self._keep_longest = keep_longest
        self._model = model
        self._returns = [(bounds or {}).get(i, each.return_time) for i, each in enumerate(operations)]
        self._states: list[Any] = [initial]
        self._numbers: dict[Any, int] = {initial: 0}
        self._answers = self._make_answers()

    def run(self) -> list[int] | None:
        """Return the operations' positions in an order that explains all results; None if there is none.

        Operations of unknown outcome that the order does not need are not in it.

        :raises BudgetExhausted: if there was not enough time or memory to tell.
        """
        parts = [self._prepare(part) for part in self._parts()]
        orders: list[list[int]] = []
        searches: list[Iterator[tuple[int, list[int]]]] = []
        seen: list[set[int]] = [set() for _ in parts]
        state = 0
        while len(searches) < len(parts):
            at = len(searches)
            searches.append(self._part(parts[at], state, seen[at], orders))
            while True:
                found = next(searches[-1], None)
                if found is not None:
                    break
                searches.pop()
                if not searches:
                    return None
                orders.pop()
            state, order = found
            orders.append(order)
        return [i for order in orders for i in order]

    def _prepare(self, part: list[int]) -> _Part:
        after, before, whose, returns = self._link(part)
        left = sum(self._returns[i] < math.inf for i in part)
        return _Part(part, after, before, whose, returns, self._twins(part), [self._answers[i] for i in part], left)

    def _make_answers(self) -> list[dict[int, int]]:
        """Return for each operation the states that the model answered with; those of one kind share them."""
        kinds: dict[Hashable, dict[int, int]] = {}
        answers: list[dict[int, int]] = []
        for each in self.operations:
            result = None if each.unknown else each.result
            kind = (each.function, each.unknown, type(each.argument), each.argument, type(result), result)
            try:
                answers.append(kinds.setdefault(kind, {}))
            except TypeError:
                # An argument or a result that cannot be hashed has no equal.
                answers.append({})
        return answers

    def _parts(self) -> Iterator[list[int]]:
        """Cut where every operation so far has returned and none has been called since."""
        part: list[int] = []
        latest = -math.inf
        for i in sorted(range(len(self.operations)), key=lambda i: self.operations[i].call_time):
            if part and latest < self.operations[i].call_time:
                yield part
                part = []
            part.append(i)
            latest = max(latest, self._returns[i])
        if part:
            yield part

    def _twins(self, part: list[int]) -> list[int]:
        """Return for each operation what must be taken before it: of equals that stay open, the one called before.

        Open operations of one kind are exchangeable, so it is enough to take them in one order.
        """
        before: dict[int, int] = {}
        twins = []
        for position, i in enumerate(part):
            bit = 0
            if self._returns[i] == math.inf:
                kind = id(self._answers[i])
                bit = before.get(kind, 0)
                before[kind] = 1 << position
            twins.append(bit)
        return twins

    def _link(self, part: list[int]) -> tuple[list[int], list[int], list[int], list[int]]:
        """Return the list of calls and returns: next, previous, operation, and the return of each call.

        Node 0 is head and tail. The return of a return is 0, that of an operation that stays open is -1.
        """
        events = []
        for position, i in enumerate(part):
            events.append((self.operations[i].call_time, 0, position))
            if self._returns[i] < math.inf:
                events.append((self._returns[i], 1, position))
        events.sort()
        count = len(events) + 1
        after = [*range(1, count), 0]
        before = [count - 1, *range(count - 1)]
        whose = [-1, *(position for _, _, position in events)]
        returns = [0] * count
        calls: dict[int, int] = {}
        for node, (_, is_return, position) in enumerate(events, 1):
            if is_return:
                returns[calls[position]] = node
            else:
                calls[position] = node
                returns[node] = -1
        return after, before, whose, returns

    def _part(
        self, prepared: _Part, state: int, seen: set[int], earlier: list[list[int]]
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield each state in which one part can end, with an order that ends so.

        ``seen`` outlives this search: what another beginning of the part led to was already tried.
        All is in one function and in local names: it runs a million times a second.
        """
        part, after, before, whose, returns, twins, answers, left = prepared
        stack: list[tuple[int, int]] = []
        taken = 0
        steps, max_steps = self.steps, self.max_steps
        node = after[0]
        while True:
            back = returns[node]
            if back and left:
                steps += 1
                if steps > max_steps:
                    self.steps = steps
                    raise BudgetExhausted
                position = whose[node]
                # All bits of `twins` are taken, or there are none.
                if twins[position] & ~taken:
                    node = after[node]
                    continue
                following = answers[position].get(state)
                if following is None:
                    following = self._ask(part[position], state)
                if following >= 0:
                    with_it = taken | 1 << position
                    # One integer, because millions of tuples or of small sets would keep the garbage collector busy.
                    both = with_it << 32 | following
                    if both not in seen:
                        seen.add(both)
                        self.cached += 1
                        if self.cached > self.max_states:
                            self.steps = steps
                            raise BudgetExhausted
                        stack.append((node, state))
                        state, taken = following, with_it
                        after[before[node]] = after[node]
                        before[after[node]] = before[node]
                        if back > 0:
                            after[before[back]] = after[back]
                            before[after[back]] = before[back]
                            left -= 1
                        node = after[0]
                        continue
                node = after[node]
                continue
            order = [part[whose[each]] for each, _ in stack] if not left or self._keep_longest else []
            if not left:
                self.steps = steps
                yield state, order
                steps = self.steps
            else:
                self._blocked(part[whose[node]], earlier, order)
            if not stack:
                self.steps = steps
                return
            node, state = stack.pop()
            taken ^= 1 << whose[node]
            back = returns[node]
            if back > 0:
                after[before[back]] = before[after[back]] = back
                left += 1
            after[before[node]] = before[after[node]] = node
            node = after[node]

    def _ask(self, i: int, state: int) -> int:
        following = self._model.step(self._states[state], self.operations[i])
        number = -1
        if following is not None:
            number = self._numbers.setdefault(following, len(self._states))
            if number == len(self._states):
                self._states.append(following)
        self._answers[i][state] = number
        self.cached += 1
        return number

    def _blocked(self, i: int, earlier: list[list[int]], order: list[int]) -> None:
        if self._returns[i] > self.blocked_at:
            self.blocked_at = self._returns[i]
        if self._keep_longest:
            length = sum(map(len, earlier)) + len(order)
            if length > len(self.longest):
                self.longest = [each for part in earlier for each in part] + order
