"""Why a history is not linearizable, for people: as text and as a page."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import attrs

from ._model import Model
from ._operation import Operation

__all__ = ["Counterexample"]


@attrs.frozen(kw_only=True)
class Counterexample:
    """A few operations that no order explains.

    :param key: their key.
    :param operations: the operations, in the order of their calls. Outcomes that do not matter are forgotten: such
        an operation is shown as open.
    :param total: how many operations they were taken from.
    :param start: the operation before them that tells the state; None if the operations begin at the beginning.
    :param state: the state before them; None if it does not matter.
    :param order: the longest order of some of them that explains their results.
    :param stuck: the completed operations that cannot follow.
    :param reason: what is wrong, if it is not the order.
    """

    model: Model
    key: Hashable
    operations: tuple[Operation, ...]
    total: int
    start: Operation | None = None
    state: Any = None
    order: tuple[Operation, ...] = ()
    stuck: tuple[Operation, ...] = ()
    reason: str = ""

    @property
    def headline(self) -> str:
        """One sentence."""
        if self.reason:
            return f"not linearizable: {self.reason}"
        count = len(self.operations)
        shown = "one operation" if count == 1 else f"{count} operations"
        where = "" if self.key is None else f"key {self.key!r}: "
        return f"not linearizable: {where}no order explains {shown} of {self.total}"

    def beginning(self) -> str:
        """Return in words from which state the operations begin, or the empty string."""
        if self.state is None:
            return ""
        state = self.model.describe_state(self.state)
        if self.start is None:
            return f"at first: {state}"
        shown = f"{self.model.describe(self.start)}, process {self.start.process}"
        return f"at first: {state} ({shown}, {in_words(self.start.call_time)} to {in_words(self.start.return_time)})"

    def rows(self) -> list[tuple[Operation, int, bool]]:
        """Return the operations with their place in :attr:`order` (0: none), and whether they are stuck."""
        places = {id(each): place for place, each in enumerate(self.order, 1)}
        stuck = set(map(id, self.stuck))
        ordered = sorted(self.operations, key=lambda each: each.call_time)
        return [(each, places.get(id(each), 0), id(each) in stuck) for each in ordered]

    def text(self) -> str:
        """Return it as a table; the numbers are the longest order that explains results."""
        table = [("", "process", "called", "returned", "operation", "")]
        for each, place, stuck in self.rows():
            what = self.model.describe(each)
            table.append(
                (
                    str(place or ""),
                    str(each.process),
                    in_words(each.call_time),
                    in_words(each.return_time),
                    f"{each.key!r}: {what}" if self.reason else what,
                    "(contradiction)" if self.reason else "(cannot be placed)" if stuck else "",
                )
            )
        widths = [max(len(row[column]) for row in table) for column in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in table]
        beginning = self.beginning()
        head = [self.headline, f"  {beginning}"] if beginning else [self.headline]
        return "\n".join([*head, *(f"  {line}".rstrip() for line in lines)])


def in_words(time: float) -> str:
    """Return a time as people write it, without the last digits that only keep events apart."""
    return "never" if time == math.inf else f"{round(time, 9):g}"
