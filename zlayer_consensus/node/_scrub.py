"""Reads again, in the background and slowly, what lies on the disk: rot is found while others still have the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred

from ..errors import ConsensusError, StorageCorrupt
from ..storage.interfaces import ILogStore, IStateMachineStore, ScrubStep
from ._metrics import ScrubMetrics

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["Scrubber"]

_PIECE = 256 << 10
"""Bytes that are asked for at once: what is written meanwhile waits for no more than that."""
_FIRST_PASS_AFTER = 60.0
"""Seconds after the start when the first pass begins at the latest; the start itself has enough to read."""


class Scrubber:
    """Makes passes over the log and the snapshots, at a bounded rate, with a pause between two passes.

    Damage in the log or in the newest snapshot stops the node. An older snapshot is what nothing here falls back to:
    that it is damaged is told, and shown, and the node goes on.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime
        config = runtime.config
        self._rate = config.scrub_bytes_per_second
        self._piece = min(_PIECE, max(1, self._rate))
        self._pause = config.scrub_interval
        self._task: Deferred[None] | None = None
        self._passes = 0
        self._bytes = 0
        self._path = ""
        self._finished_ms = 0
        self._damaged: dict[str, str] = {}
        """What the last whole pass and the present one have found, by path."""

    def start(self) -> None:
        """Begin, unless it is off."""
        if self._rate and self._task is None:
            self._task = Deferred.fromCoroutine(self._run())
            _ = self._task.addErrback(self._ended)

    def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()

    def _ended(self, failure: Any) -> None:
        if not self._rt.serving or failure.check(CancelledError):
            return
        if not isinstance(failure.value, ConsensusError):
            self._rt.log.failure("Scrubbing failed", failure)
        self._rt.fail(failure.value)

    async def _run(self) -> None:
        rt = self._rt
        await rt.sleep(min(self._pause, _FIRST_PASS_AFTER))
        while True:
            before, self._damaged = self._damaged, {}
            for store in (rt.log_store, rt.store):
                await self._scrub(store, before)
            self._path = ""
            self._passes += 1
            self._finished_ms = int(rt.wall_clock() * 1000)
            await rt.sleep(self._pause)

    async def _scrub(self, store: ILogStore | IStateMachineStore, before: dict[str, str]) -> None:
        done = False
        while not done:
            step: ScrubStep = await store.scrub(self._piece)
            done = step.done
            self._bytes += step.size
            self._path = step.path
            if step.damage is not None:
                self._report(step.damage, before)
            await self._rt.sleep(step.size / self._rate)

    def _report(self, damage: StorageCorrupt, before: dict[str, str]) -> None:
        self._damaged[damage.path] = str(damage)
        if before.get(damage.path) != str(damage):
            self._rt.log.critical("{damage}; it is part of an older snapshot, which nothing needs", damage=damage)

    def metrics(self) -> ScrubMetrics | None:
        """Return how far it is and what it found; None if it is off."""
        if not self._rate:
            return None
        damaged = tuple(self._damaged.values())
        return ScrubMetrics(self._passes, self._bytes, self._path, self._finished_ms, damaged)
