"""Waiting until the log is durable as far as it has to be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, succeed

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["Durability"]


class Durability:
    """Tells who waits for the durable index. Who gives up cancels its Deferred."""

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime
        self._waits: list[tuple[int, Deferred[None]]] = []

    def until(self, index: int) -> Deferred[None]:
        """Return a Deferred that fires once the log is durable up to ``index``."""
        if self._rt.core.durable >= index:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._waits.append((index, waiter))
        return waiter

    def moved(self) -> None:
        """The durable index may have moved."""
        if not self._waits:
            return
        durable = self._rt.core.durable
        met = [waiter for index, waiter in self._waits if index <= durable]
        self._waits = [wait for wait in self._waits if wait[0] > durable and not wait[1].called]
        for waiter in met:
            if not waiter.called:
                waiter.callback(None)
