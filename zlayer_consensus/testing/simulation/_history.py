"""The history of a run: what every client asked and was told, for the linearizability checker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..linearizability import History, Model, Outcome, check
from ._application import Record

if TYPE_CHECKING:
    from ._client import Client, Task

__all__ = ["RunHistory"]

_BUDGET = 400_000
"""Steps that the checker may take; a run has a few hundred operations, and most need a step each."""


class RunHistory:
    """Records the operations of a run, if its application has a model.

    Times are the world's, not those of some process's clock.

    :param model: see :class:`~zlayer_consensus.testing.simulation.Application`.
    """

    def __init__(self, model: Model | None) -> None:
        self.model = model
        self.verdict = ""
        """``linearizable``, ``not linearizable`` or ``unknown``, once it was checked; empty without a model."""
        self.operations = 0
        self._processes = 0
        self._open: list[tuple[Task, Sequence[int]]] = []
        if model is not None:
            self._history = History(model.reads)

    def _fresh(self) -> int:
        self._processes += 1
        return self._processes

    def begin(self, client: Client, records: Sequence[Record], time: float) -> Any:
        """A client calls; return what :meth:`end` takes."""
        if self.model is None or not records:
            return None
        lanes = [client.lane(self._fresh) for _ in records]
        invoke = self._history.invoke
        return [(lane, invoke(lane, r.f, r.key, r.argument, time)) for lane, r in zip(lanes, records, strict=True)]

    def end(self, task: Task, kind: str, results: Sequence[Any] | None, index: int | None, time: float) -> None:
        """It knows more, or gives up.

        :param kind: ``ok``, ``failed`` or ``unknown``.
        :param results: one for each record, if there are any.
        """
        if kind == "unknown":
            # Where it was carried out, if it was, is looked up in the end. Its processes are not used again.
            self._open.append((task, [handle for _, handle in task.handles]))
            return
        for number, (lane, handle) in enumerate(task.handles):
            if kind == "ok" and results is not None:
                self._history.ok(handle, results[number], time, index)
            else:
                self._history.fail(handle)
            task.client.free(lane)

    def check(self, place: Callable[[bytes], int | None]) -> str:
        """Have the history checked; return nothing if it is linearizable or nobody can tell, else the proof that not.

        :param place: returns the index at which a command was carried out, if that is known and it was but once.
        """
        if self.model is None:
            return ""
        for task, handles in self._open:
            for handle in handles:
                self._history.unknown(handle, place(task.raw))
        self._open.clear()
        verdict = check(self._history, self.model, budget=_BUDGET, max_states=_BUDGET)
        self.verdict, self.operations = verdict.outcome.value, verdict.operations
        return verdict.text() if verdict.outcome is Outcome.NOT_LINEARIZABLE else ""
