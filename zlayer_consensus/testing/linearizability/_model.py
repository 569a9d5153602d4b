"""What a model is: how one key behaves when one operation comes after the other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import attrs

from ._operation import Operation

__all__ = ["Conflict", "Model"]


@attrs.frozen
class Conflict:
    """Operations, of one key or of several, that contradict each other by themselves.

    :param reason: how, in a sentence.
    """

    operations: tuple[Operation, ...]
    reason: str


class Model:
    """The behaviour of one key. A model of your own defines :attr:`initial` and :meth:`step`.

    The other methods let the checker leave out what cannot matter: unknown writes that nobody saw, and all that is
    beside the point of a counterexample. What they say by default is always right, and leaves nothing out.
    """

    reads: frozenset[str] = frozenset({"read", "get"})
    """The functions that change nothing, whatever they return."""

    initial: Any
    """The state before the first operation; hashable, and not None."""

    def step(self, state: Any, operation: Operation) -> Hashable | None:
        """Return the state after an operation, or None if from this state it cannot have ended as it did.

        It depends on nothing but its arguments, and states are immutable and hashable. If the outcome is unknown
        (``operation.unknown``), it returns the state with the effect; or None if there would be no effect, because
        to do nothing is the same as not to happen.
        """
        raise NotImplementedError

    def observes(self, operation: Operation) -> bool:
        """Whether an operation, with the result it has, changed nothing from whatever state."""
        return operation.function in self.reads

    def blind(self, operation: Operation) -> bool:
        """Whether neither the result nor the state afterwards depends on the state before."""
        return False

    def may_follow(self, operation: Operation, change: Operation) -> bool:
        """Whether an operation can have the result that it has if ``change`` was the last before it.

        Last, that is, of those that are not only observing. An unknown ``change`` is taken to have had its effect.
        """
        return True

    def leaves(self, operation: Operation) -> Hashable | None:
        """Return the state just after a completed operation if its result tells, else None.

        The state may allow for more than the truth (a number that the result does not tell), never for less.
        """
        return None

    def conflict(self, operations: Sequence[Operation]) -> Conflict | None:
        """Look at the operations of all keys together, for rules that hold across keys."""
        return None

    def describe(self, operation: Operation) -> str:
        """Return an operation in few words, without process and key."""
        call = f"{operation.function} {operation.argument!r}" if operation.argument is not None else operation.function
        return f"{call} → unknown" if operation.unknown else f"{call} → {operation.result!r}"

    def describe_state(self, state: Any) -> str:
        """Return a state in few words."""
        return repr(state)
