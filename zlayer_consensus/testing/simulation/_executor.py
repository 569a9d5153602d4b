"""An executor whose work takes simulated time: a thread with one disk behind it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from ...storage import IExecutor
from ._time import ProcessClock

__all__ = ["SimulatedExecutor"]

_T = TypeVar("_T")


@implementer(IExecutor)
class SimulatedExecutor:
    """Runs one call after another; each takes a while, at the beginning or at the end of which it does its work.

    A process that dies in between has done the work, or has not, or has done half of it: see :meth:`break_off`.

    :param clock: the process's.
    :param latency: draws how many seconds the next call takes.
    :param late: draws whether a call does its work at the end of that time.
    """

    def __init__(self, clock: ProcessClock, latency: Callable[[], float], late: Callable[[], bool]) -> None:
        self._clock = clock
        self._latency = latency
        self._late = late
        self._jobs: deque[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._busy = False
        self._undone: tuple[Callable[..., Any], tuple[Any, ...]] | None = None

    def run(self, call: Callable[..., _T], *args: Any) -> Deferred[_T]:
        """See :meth:`~zlayer_consensus.storage.IExecutor.run`."""
        done: Deferred[_T] = Deferred()
        self._jobs.append((done, call, args))
        if not self._busy:
            self._next()
        return done

    def stop(self) -> Deferred[None]:
        """See :meth:`~zlayer_consensus.storage.IExecutor.stop`."""
        return self.run(_nothing) if self._busy else succeed(None)

    def _next(self) -> None:
        self._busy = bool(self._jobs)
        if not self._busy:
            return
        done, call, args = self._jobs.popleft()
        delay = self._latency()
        if self._late():
            self._undone = call, args
            self._clock.callLater(delay, self._work_and_finish, done, call, args)
        else:
            self._clock.callLater(delay, self._finish, done, _outcome(call, args))

    def _work_and_finish(self, done: Deferred[Any], call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._undone = None
        self._finish(done, _outcome(call, args))

    def break_off(self) -> None:
        """The process is about to die: do the work of the call under way now, as far as the file system lets it."""
        undone, self._undone = self._undone, None
        if undone is not None:
            _outcome(*undone)

    def _finish(self, done: Deferred[Any], outcome: Any) -> None:
        # Like a thread: it takes the next call before the reactor looks at this one's outcome.
        self._next()
        if done.called:
            return
        if isinstance(outcome, Failure):
            done.errback(outcome)
        else:
            done.callback(outcome)


def _outcome(call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    try:
        return call(*args)
    except Exception:
        return Failure()


def _nothing() -> None:
    return None
