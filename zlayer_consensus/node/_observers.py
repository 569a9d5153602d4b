"""Who wants to know: subscriptions to leader and role, and waits for a condition."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from ..errors import NodeStopped
from ..raft import StateChange

if TYPE_CHECKING:
    from ._metrics import Metrics
    from ._runtime import Runtime

__all__ = ["Observers"]

_HUGE_JUMP = 1_000_000
"""More terms at once than elections can have passed; legal, but somebody may be lying (H-15)."""

LeaderCallback = Callable[[int | None], object]
RoleCallback = Callable[[str], object]


class Observers:
    """Tells after each step, never in the middle of one, and everything in order."""

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime
        self._leader_callbacks: list[LeaderCallback] = []
        self._role_callbacks: list[RoleCallback] = []
        self._changes: deque[StateChange] = deque()
        self._waits: list[tuple[Callable[[Metrics], bool], Deferred[Metrics]]] = []
        self._notifying = False
        self.leader_id: int | None = None
        self.role = ""
        self.term: int | None = None
        self.term_jumps = 0
        """How often the term rose by more than any number of elections explains."""

    def changed(self, change: StateChange) -> None:
        """Note a change, to be told by :meth:`notify`."""
        self._changes.append(change)

    def notify(self) -> None:
        """Tell of noted changes, and look at what is waited for."""
        if self._notifying or not (self._changes or self._waits):
            return
        self._notifying = True
        try:
            while self._changes:
                self._tell(self._changes.popleft())
            if self._waits:
                self._look()
        finally:
            self._notifying = False

    def _tell(self, change: StateChange) -> None:
        if self.term is not None and change.term - self.term > _HUGE_JUMP:
            self.term_jumps += 1
            self._rt.log.warn("the term jumped from {old} to {new}", old=self.term, new=change.term)
        self.term = change.term
        role = change.role.value
        if role != self.role:
            self.role = role
            self._rt.log.info(
                "node {node} is {role} in term {term}", node=self._rt.node_id, role=role, term=change.term
            )
            for on_role in list(self._role_callbacks):
                self._call(on_role, role)
        if change.leader_id != self.leader_id:
            self.leader_id = change.leader_id
            if change.leader_id not in (None, self._rt.node_id):
                self._rt.log.info(
                    "node {node} follows node {leader} in term {term}",
                    node=self._rt.node_id,
                    leader=change.leader_id,
                    term=change.term,
                )
            for on_leader in list(self._leader_callbacks):
                self._call(on_leader, change.leader_id)

    def _call(self, callback: Callable[..., object], value: object) -> None:
        try:
            callback(value)
        except Exception:
            self._rt.log.failure("A callback raised")

    def _look(self) -> None:
        metrics = self._rt.metrics()
        waits, self._waits = self._waits, []
        for predicate, waiter in waits:
            if waiter.called:
                continue
            try:
                met = predicate(metrics)
            except Exception:
                waiter.errback()
                continue
            if met:
                waiter.callback(metrics)
            else:
                self._waits.append((predicate, waiter))

    def until(self, predicate: Callable[[Metrics], bool]) -> Deferred[Metrics]:
        """Return a Deferred that fires with the metrics as soon as ``predicate`` holds for them."""
        waiter: Deferred[Metrics] = Deferred()
        metrics = self._rt.metrics()
        try:
            met = predicate(metrics)
        except Exception:
            waiter.errback()
            return waiter
        if met:
            waiter.callback(metrics)
        elif metrics.stopped:
            waiter.errback(NodeStopped(self._rt.cause))
        else:
            self._waits.append((predicate, waiter))
        return waiter

    def on_leader(self, callback: LeaderCallback) -> Callable[[], None]:
        """Call ``callback`` with each new leader; return how to end that."""
        return _subscribe(self._leader_callbacks, callback)

    def on_role(self, callback: RoleCallback) -> Callable[[], None]:
        """Call ``callback`` with each new role; return how to end that."""
        return _subscribe(self._role_callbacks, callback)

    def stop(self, cause: BaseException | None) -> None:
        """End every wait."""
        waits, self._waits = self._waits, []
        self._changes.clear()
        for _, waiter in waits:
            if not waiter.called:
                waiter.errback(NodeStopped(cause))


def _subscribe(callbacks: list[Callable[..., object]], callback: Callable[..., object]) -> Callable[[], None]:
    callbacks.append(callback)

    subscribed = True

    def unsubscribe() -> None:
        nonlocal subscribed
        if subscribed:  # the same function may be subscribed twice, and this called twice
            callbacks.remove(callback)
            subscribed = False

    return unsubscribe
