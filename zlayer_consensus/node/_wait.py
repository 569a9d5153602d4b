"""Waiting until a node is in a certain state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, fail

from ..raft import LogId
from ._admin import deadline
from ._deadlines import check_timeout
from ._metrics import Metrics

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["Wait"]


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
