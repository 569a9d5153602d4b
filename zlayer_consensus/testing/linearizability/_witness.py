"""Checks an order that the system itself claims: that of its log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ._model import Model
from ._operation import Operation

__all__ = ["follow_witness"]


def follow_witness(operations: Sequence[Operation], model: Model, initial: Any) -> list[Operation] | None:
    """Put one key's operations in the order of the log, and check that it is a linearization.

    Changes stand at their index, and observations after the change of the index that they saw. An operation of unknown
    outcome is put in where another one cannot be explained without it. Nothing is taken on trust: the order that is
    returned respects real time and the model, so it proves that the operations are linearizable.

    :return: the linearization; None if there is an operation without an index, or if the order is not one. That
        proves nothing: the indices may be wrong, or an unknown operation was put in too late.
    """
    placed: list[tuple[int, bool, float, Operation]] = []
    loose: list[Operation] = []
    for each in operations:
        if each.index is not None:
            placed.append((each.index, model.observes(each), each.call_time, each))
        elif each.unknown:
            loose.append(each)
        else:
            return None
    placed.sort(key=lambda entry: entry[:3])
    order: list[Operation] = []
    state, latest_call = initial, -math.inf
    for _, _, _, each in placed:
        following = model.step(state, each)
        if following is None:
            if each.unknown:
                continue
            helper = _helper(loose, model, state, each)
            if helper is None:
                return None
            loose.remove(helper)
            order.append(helper)
            latest_call = max(latest_call, helper.call_time)
            following = model.step(model.step(state, helper), each)
        if each.return_time < latest_call:
            return None
        latest_call = max(latest_call, each.call_time)
        order.append(each)
        state = following
    return order


def _helper(loose: Sequence[Operation], model: Model, state: Any, operation: Operation) -> Operation | None:
    """Find an unknown operation which, when done just before, explains the result of another."""
    for each in loose:
        if each.call_time <= operation.return_time:
            between = model.step(state, each)
            if between is not None and model.step(between, operation) is not None:
                return each
    return None
