"""Linearizable reads: those of one reactor turn share one read index (dissertation §6.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from ..errors import ConsensusError, DeadlineExceeded, NodeStopped, NotLeader, Overloaded
from ..raft import Effects, Role
from ._applier import SLICE_SECONDS

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["Read", "Reads"]

_AGAIN_SECONDS = 0.05
"""How long after a refusal a read asks for a leader again."""


class Read(Deferred[Any]):
    """A read that somebody waits for. Cancelling it gives up waiting."""

    action: Callable[[Any], Any] | None
    forward: bool
    deadline: float
    timeout: float

    def expire(self) -> None:
        """The deadline has passed."""
        self.errback(DeadlineExceeded("read", self.timeout))


class Reads:
    """Gathers reads, asks the core for a read index, and answers once that is applied."""

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime
        self._gathered: list[Read] = []
        self._waiting: dict[Deferred[int], list[Read]] = {}
        self.count = 0
        """Reads that wait here."""
        self._again: list[Read] = []
        """Reads that wait for the next try."""
        self._timer: IDelayedCall | None = None

    def submit(self, action: Callable[[Any], Any] | None, timeout: float | None, forward: bool) -> Read:
        """Take in a read; without ``action`` it fires with the read index. The time-out was checked.

        :raises ConsensusError: if it is refused at once.
        """
        config = self._rt.config
        if self.count >= config.max_pending_reads:
            raise Overloaded("reads", config.max_pending_reads)
        self.count += 1
        read = Read()
        read.action = action
        read.forward = forward
        read.timeout = config.proposal_timeout if timeout is None else timeout
        read.deadline = self._rt.clock.seconds() + read.timeout
        self._rt.deadlines.add(read, timeout is None)
        if not self._gathered:
            self._rt.clock.callLater(0, self._flush)
        self._gathered.append(read)
        return read

    def _flush(self) -> None:
        if self._gathered:
            self._rt.driver.input(self._ask)

    def _ask(self, now: float) -> Effects | None:
        """Ask for a read index. What waits is always in a place where :meth:`stop` finds it."""
        batch, self._gathered = self._gathered, []
        local: list[Read] = []
        if self._rt.core.role is not Role.LEADER:
            local = [read for read in batch if not read.forward]
            batch = [read for read in batch if read.forward]
        token: Deferred[int] = Deferred()
        if batch:
            self._waiting[token] = batch
            _ = token.addCallback(self._await, token)
            _ = token.addErrback(self._failed, token)
        self._refuse(local, self._rt.not_leader())
        return self._rt.core.read(token, now) if batch else None

    def _await(self, index: int, token: Deferred[int]) -> None:
        """The read index is known: wait until it is applied."""
        rt = self._rt
        if rt.space.full and rt.core.last.index < index and token in self._waiting:
            # It takes no entries, or no snapshot, so this may last until somebody makes room (S-10).
            self._refuse(self._waiting.pop(token), rt.not_leader())
            return
        waiting = rt.applier.when_applied(index)
        _ = waiting.addCallbacks(self._ready, self._failed, callbackArgs=(token,), errbackArgs=(token,))

    def _ready(self, index: int, token: Deferred[int]) -> None:
        if self._rt.applier.replacing and token in self._waiting:
            self._await(index, token)
            return
        batch = self._waiting.pop(token, None)
        if batch is not None:
            self._answer(batch, index)

    def _answer(self, batch: list[Read], index: int) -> None:
        clock = self._rt.clock
        end = clock.seconds() + SLICE_SECONDS
        machine = self._rt.store.machine
        for done, read in enumerate(batch, 1):
            self.count -= 1
            if not read.called:
                _answer_one(read, machine, index)
            if done < len(batch) and clock.seconds() >= end:
                # Still linearizable: the state can only be newer when the rest is read.
                rest: Deferred[int] = Deferred()
                self._waiting[rest] = batch[done:]
                clock.callLater(0, self._ready, index, rest)
                return

    def _failed(self, failure: Failure, token: Deferred[int]) -> None:
        batch = self._waiting.pop(token, None)
        if batch is None:
            return
        error = failure.value
        if isinstance(error, NotLeader):
            # A read has no effect, so it may be tried again: the next leader is often a moment away.
            self._again += [read for read in batch if read.forward]
            batch = [read for read in batch if not read.forward]
            if self._again and self._timer is None:
                self._timer = self._rt.clock.callLater(_AGAIN_SECONDS, self._try_again)
        self._refuse(batch, error if isinstance(error, ConsensusError) else NodeStopped(error))

    def _try_again(self) -> None:
        self._timer = None
        batch, self._again = self._again, []
        waiting = [read for read in batch if not read.called]
        self.count -= len(batch) - len(waiting)
        self._gathered = waiting + self._gathered
        self._flush()

    def _refuse(self, batch: list[Read], error: ConsensusError) -> None:
        for read in batch:
            self.count -= 1
            if not read.called:
                read.errback(error)

    def stop(self, cause: BaseException | None) -> None:
        """End every read."""
        waiting, self._waiting = self._waiting, {}
        gathered, self._gathered = self._gathered, []
        again, self._again = self._again, []
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for batch in (gathered, again, *waiting.values()):
            self._refuse(batch, NodeStopped(cause))


def _answer_one(read: Read, machine: Any, index: int) -> None:
    if read.action is None:
        read.callback(index)
        return
    try:
        value = read.action(machine)
    except Exception:
        read.errback(Failure())  # the caller's own function, and so the caller's own exception
    else:
        read.callback(value)
