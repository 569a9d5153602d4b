"""The part of ``ConsensusNode`` that shows what it is and does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from ..raft import Member, Role
from ._metrics import Metrics
from ._runtime import Runtime

__all__ = ["NodeViews"]


class NodeViews:
    """What an observer sees of a node. Nothing here waits or changes anything."""

    _runtime: Runtime

    def metrics(self) -> Metrics:
        """Return the node's state at this moment."""
        return self._runtime.metrics()

    @property
    def cluster_name(self) -> str:
        """The cluster's name, as this node is configured."""
        return self._runtime.config.cluster_name

    @property
    def machine(self) -> Any:
        """The application. Read it through :meth:`read_state`, unless old values will do.

        While ``metrics().replacing``, it has no state.
        """
        return self._runtime.store.machine

    @property
    def leader_id(self) -> int | None:
        """The leader as far as this node knows; it may be another one by now."""
        return self._runtime.core.leader_id if self._runtime.has_core else None

    @property
    def is_leader(self) -> bool:
        """Whether this node leads, as far as it knows. Its reads and writes find out for sure."""
        return self._runtime.has_core and self._runtime.core.role is Role.LEADER

    @property
    def voter_ids(self) -> frozenset[int]:
        """The voters of the effective configuration; of both halves while it is joint."""
        return self._runtime.core.membership.all_voters if self._runtime.has_core else frozenset()

    @property
    def learner_ids(self) -> frozenset[int]:
        """The members without a vote."""
        return self._runtime.core.membership.learners if self._runtime.has_core else frozenset()

    def member(self, node_id: int) -> Member | None:
        """Return a member of the effective configuration, with its addresses."""
        return self._runtime.core.membership.members.get(node_id) if self._runtime.has_core else None

    def leader_member(self) -> Member | None:
        """Return the leader with its addresses, if it is known."""
        return self._runtime.leader_member()

    def on_leader_change(self, callback: Callable[[int | None], object]) -> Callable[[], None]:
        """Call ``callback`` with each new leader's id, None while there is none; return how to end that.

        Callbacks run after the step that brought the change, in its order; what they raise is logged.
        """
        return self._runtime.observers.on_leader(callback)

    def on_role_change(self, callback: Callable[[str], object]) -> Callable[[], None]:
        """Call ``callback`` with each new role (see :class:`Metrics`); return how to end that."""
        return self._runtime.observers.on_role(callback)

    def when_stopped(self) -> Deferred[BaseException | None]:
        """Return a new Deferred that fires when the node has stopped: with the cause, or None after an orderly stop.

        It never fails. Causes are, among others, a :class:`~zlayer_consensus.errors.StorageError`, an
        :class:`~zlayer_consensus.errors.ApplyFailed`, a :class:`~zlayer_consensus.errors.StateDiverged`, another broken
        invariant, or :class:`~zlayer_consensus.errors.NodeRemoved`.
        """
        return self._runtime.when_stopped()

    @property
    def stopped(self) -> Deferred[BaseException | None]:
        """A new Deferred of :meth:`when_stopped`, each time that it is looked at."""
        return self._runtime.when_stopped()
