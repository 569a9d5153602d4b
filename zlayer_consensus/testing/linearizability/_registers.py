"""Registers: a value that is read, written, swapped on a condition, or appended to."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from ._model import Model
from ._operation import Operation

__all__ = ["CasRegister", "StringRegister"]


class CasRegister(Model):
    """A register with ``read``, ``write`` and ``cas``.

    ``read`` returns the value, or None if there is none. ``write`` takes the value. ``cas`` takes ``(old, new)``, and
    returns True, or False if the value was another one. States are tuples of one value.

    :param initial: the value before the first write.
    """

    def __init__(self, initial: Hashable = None) -> None:
        self.initial = (initial,)

    def step(self, state: Any, operation: Operation) -> Hashable | None:
        """See :meth:`Model.step`."""
        function, argument = operation.function, operation.argument
        if function == "read":
            return state if operation.unknown or state[0] == operation.result else None
        if function == "write":
            return (argument,)
        if function == "cas":
            old, new = argument
            if operation.unknown or operation.result:
                return (new,) if state[0] == old else None
            return state if state[0] != old else None
        raise ValueError(f"a register has no function {function!r}")

    def observes(self, operation: Operation) -> bool:
        """Reads do, and compare-and-swap that was refused."""
        function = operation.function
        return function == "read" or (function == "cas" and not operation.unknown and not operation.result)

    def blind(self, operation: Operation) -> bool:
        """Writes are."""
        return operation.function == "write"

    def may_follow(self, operation: Operation, change: Operation) -> bool:
        """The value that the change left is known."""
        value = change.argument if change.function == "write" else change.argument[1]
        return operation.function == "write" or self.step((value,), operation) is not None

    def leaves(self, operation: Operation) -> Hashable | None:
        """All but a refused compare-and-swap tell."""
        if operation.function == "read":
            return (operation.result,)
        if operation.function == "write":
            return (operation.argument,)
        return (operation.argument[1],) if operation.result else None

    def describe(self, operation: Operation) -> str:
        """See :meth:`Model.describe`."""
        function, argument = operation.function, operation.argument
        if function == "read":
            return f"read → {operation.result!r}"
        if function == "write":
            return f"write {argument!r}" + (" → unknown" if operation.unknown else "")
        end = "unknown" if operation.unknown else "done" if operation.result else "refused"
        return f"cas {argument[0]!r} to {argument[1]!r} → {end}"

    def describe_state(self, state: Any) -> str:
        """See :meth:`Model.describe_state`."""
        return repr(state[0])


class StringRegister(Model):
    """A string with ``get``, ``put`` and ``append``; the latter two take a string, and their result means nothing.

    :param initial: the string before the first change.
    """

    def __init__(self, initial: str = "") -> None:
        self.initial = initial

    def step(self, state: Any, operation: Operation) -> Hashable | None:
        """See :meth:`Model.step`."""
        function = operation.function
        if function == "get":
            return state if operation.unknown or state == operation.result else None
        if function == "append":
            return state + operation.argument  # type: ignore[no-any-return]
        if function == "put":
            return operation.argument  # type: ignore[no-any-return]
        raise ValueError(f"a string register has no function {function!r}")

    def blind(self, operation: Operation) -> bool:
        """Puts are."""
        return operation.function == "put"

    def may_follow(self, operation: Operation, change: Operation) -> bool:
        """What a get returns ends with what was changed last."""
        if operation.function != "get":
            return True
        result: str = operation.result
        return result == change.argument if change.function == "put" else result.endswith(change.argument)

    def leaves(self, operation: Operation) -> Hashable | None:
        """Gets and puts tell."""
        if operation.function == "get":
            return operation.result  # type: ignore[no-any-return]
        return operation.argument if operation.function == "put" else None

    def describe(self, operation: Operation) -> str:
        """See :meth:`Model.describe`."""
        if operation.function == "get":
            return f"get → {operation.result!r}"
        return f"{operation.function} {operation.argument!r}" + (" → unknown" if operation.unknown else "")
