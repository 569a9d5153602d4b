"""Something that happens at a certain file operation."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Fuse"]


class Fuse:
    """Waits for the n-th of certain file operations, and burns before it is carried out.

    :param operations: which ones count.
    :param nth: the how manieth.
    :param burn: called with the operation and the path; it may raise.
    """

    def __init__(self, operations: tuple[str, ...], nth: int, burn: Callable[[str, str], object]) -> None:
        self._operations = operations
        self._left = nth
        self._burn = burn

    def __call__(self, operation: str, path: str) -> None:
        if operation in self._operations and self._left:
            self._left -= 1
            if not self._left:
                self._burn(operation, path)
