"""Waiting until a node is in a certain state."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail

from ..raft import NO_LOG, LogId
from ._admin import deadline
from ._deadlines import check_timeout
from ._metrics import Metrics

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["Metric", "Wait"]


class Metric(Enum):
    """What :meth:`Wait.ge` and :meth:`Wait.eq` compare. A member may be given by its value, too.

    ``vote`` is the pair of term and candidate (0 if there was none); ``applied`` and ``snapshot`` are positions,
    :class:`~zlayer_consensus.raft.LogId`; the others are numbers. There is no snapshot before the first, which is
    before every position.
    """

    TERM = "term"
    VOTE = "vote"
    LAST_LOG_INDEX = "last_log_index"
    APPLIED = "applied"
    APPLIED_INDEX = "applied_index"
    SNAPSHOT = "snapshot"
    PURGED = "purged"

    def of(self, metrics: Metrics) -> tuple[int, ...]:
        """Return it as it is compared."""
        match self:
            case Metric.TERM:
                return (metrics.term,)
            case Metric.VOTE:
                return metrics.term, metrics.voted_for or 0
            case Metric.LAST_LOG_INDEX:
                return (metrics.last.index,)
            case Metric.APPLIED:
                return metrics.applied_id
            case Metric.APPLIED_INDEX:
                return (metrics.applied,)
            case Metric.SNAPSHOT:
                return metrics.snapshot or NO_LOG
            case Metric.PURGED:
                return (metrics.purged,)

    def comparable(self, value: object) -> tuple[int, ...]:
        """Return a value as :meth:`of` returns it.

        :raises ValueError: if it is not of this metric's kind.
        """
        numbers: tuple[Any, ...]
        if self in (Metric.VOTE, Metric.APPLIED, Metric.SNAPSHOT):
            wanted, numbers = "a pair of numbers", value if isinstance(value, tuple) and len(value) == 2 else ()
        else:
            wanted, numbers = "a number", (value,)
        if not numbers or not all(type(number) is int for number in numbers):
            raise ValueError(f"{self.value} is compared with {wanted}, not {value!r}")
        return tuple(numbers)


class Wait:
    """``node.wait``: Deferreds that fire with the :class:`Metrics` as soon as a condition holds for them.

    Each takes a ``timeout`` in seconds, a day at most, after which the Deferred fails with
    :class:`~zlayer_consensus.errors.DeadlineExceeded`; without one it waits until the node stops, and fails then with
    :class:`~zlayer_consensus.errors.NodeStopped`.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime

    def metrics(
        self, predicate: Callable[[Metrics], bool], timeout: float | None = None, what: str = "a condition"
    ) -> Deferred[Metrics]:
        """Wait until ``predicate`` holds; it is looked at after every step, so it should be cheap.

        :param what: names the condition in the error of a time-out.
        """
        try:
            check_timeout(timeout)
        except ValueError as error:
            return fail(error)
        waiting = self._rt.observers.until(predicate)
        return deadline(waiting, self._rt.clock, timeout, f"waiting for {what}")

    __call__ = metrics

    def ge(self, metric: Metric | str, value: object, timeout: float | None = None) -> Deferred[Metrics]:
        """Wait until a metric is at least ``value``. What cannot be compared is a ``ValueError``."""
        return self._compare(metric, value, timeout, operator.ge, "reach")

    def eq(self, metric: Metric | str, value: object, timeout: float | None = None) -> Deferred[Metrics]:
        """Wait until a metric is ``value``. What cannot be compared is a ``ValueError``."""
        return self._compare(metric, value, timeout, operator.eq, "be")

    def _compare(
        self,
        metric: Metric | str,
        value: object,
        timeout: float | None,
        compare: Callable[[tuple[int, ...], tuple[int, ...]], bool],
        verb: str,
    ) -> Deferred[Metrics]:
        try:
            which = Metric(metric)
            wanted = which.comparable(value)
        except ValueError as error:
            return fail(error)
        return self.metrics(lambda m: compare(which.of(m), wanted), timeout, f"{which.value} to {verb} {value}")

    def term(self, term: int, timeout: float | None = None) -> Deferred[Metrics]:
        """Wait until the term is ``term`` or later."""
        return self.metrics(lambda m: m.term >= term, timeout, f"term {term}")

    def vote(self, term: int, voted_for: int, timeout: float | None = None) -> Deferred[Metrics]:
        """Wait until this node has voted for ``voted_for`` in ``term``."""
        what = f"a vote for node {voted_for} in term {term}"
        return self.metrics(lambda m: m.term == term and m.voted_for == voted_for, timeout, what)

    def current_leader(self, leader_id: int | None = None, timeout: float | None = None) -> Deferred[Metrics]:
        """Wait until this node knows a leader; with ``leader_id``, until it is that one."""
        if leader_id is None:
            return self.metrics(lambda m: m.leader_id is not None, timeout, "a leader")
        return self.metrics(lambda m: m.leader_id == leader_id, timeout, f"node {leader_id} to lead")

    def log_index(self, index: int, timeout: float | None = None) -> Deferred[Metrics]:
        """Wait until the log ends at ``index``."""
        return self.metrics(lambda m: m.last.index == index, timeout, f"the log to end at {index}")

    def log_index_at_least(self, index: int, timeout: float | None = None) -> Deferred[Metrics]:
        """Wait until the log reaches ``index``."""
        return self.metrics(lambda m: m.last.index >= index, timeout, f"the log to reach {index}")

    def applied_index(self, index: int, timeout: float | None = None) -> Deferred[Metrics]:
        """Wait until ``index`` is the last that was applied."""
        return self.metrics(lambda m: m.applied == index, timeout, f"{index} to be the last applied")

    def applied_index_at_least(self, index: int, timeout: float | None = None) -> Deferred[Metrics]:
        """Wait until ``index`` is applied."""
        return self.metrics(lambda m: m.applied >= index, timeout, f"{index} to be applied")

    def state(self, role: str, timeout: float | None = None) -> Deferred[Metrics]:
        """Wait until the node has this role."""
        return self.metrics(lambda m: m.role == role, timeout, f"the role {role}")

    def voter_ids(self, ids: Iterable[int], timeout: float | None = None) -> Deferred[Metrics]:
        """Wait until exactly these vote, and the configuration is not joint."""
        wanted = frozenset(ids)

        def met(metrics: Metrics) -> bool:
            return metrics.membership.voters == wanted and not metrics.membership.joint

        return self.metrics(met, timeout, f"the voters {sorted(wanted)}")

    def snapshot(self, last: LogId | int, timeout: float | None = None) -> Deferred[Metrics]:
        """Wait until there is a snapshot at or after a position or an index."""
        index = last if isinstance(last, int) else last.index
        return self.metrics(
            lambda m: m.snapshot is not None and m.snapshot.index >= index, timeout, f"a snapshot at {index}"
        )

    def purged(self, index: int, timeout: float | None = None) -> Deferred[Metrics]:
        """Wait until the log is purged up to ``index``."""
        return self.metrics(lambda m: m.purged >= index, timeout, f"{index} to be purged")
