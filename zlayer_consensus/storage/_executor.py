"""Where blocking work runs: one call after another, in the order in which it was handed over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from zope.interface import Interface, implementer

__all__ = ["IExecutor", "InlineExecutor", "ThreadExecutor"]

_T = TypeVar("_T")


class IExecutor(Interface):
    """Runs blocking calls strictly in order, never two at once."""

    def run(call: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Run ``call(*args)``; fires on the reactor's thread with its result or its exception.

        Cancelling the Deferred gives up waiting; the call runs all the same.
        """

    def stop() -> Deferred[None]:
        """Fire when everything that was handed over has ended, and release the thread. Idempotent."""


@implementer(IExecutor)
class InlineExecutor:
    """Runs each call at once, where it is asked for: for memory, simulated file systems and tests."""

    def run(self, call: Callable[..., _T], *args: Any) -> Deferred[_T]:
        """See :meth:`IExecutor.run`; the Deferred has fired already."""
        return maybeDeferred(call, *args)

    def stop(self) -> Deferred[None]:
        """See :meth:`IExecutor.stop`."""
        return succeed(None)


@implementer(IExecutor)
class ThreadExecutor:
    """Runs the calls on one thread of its own.

    Not the reactor's pool: its ten threads would reorder writes, and share a stalled disk with name lookups.

    :param reactor: provides ``IReactorFromThreads`` and ``IReactorCore``.
    :param name: the thread's name.
    """

    def __init__(self, reactor: Any, name: str) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(1, 1, name)
        self._trigger: Any = None
        self._stopped = False

    def run(self, call: Callable[..., _T], *args: Any) -> Deferred[_T]:
        """See :meth:`IExecutor.run`. The first call starts the thread.

        :raises RuntimeError: after ``stop``.
        """
        if self._stopped:
            raise RuntimeError("the executor was stopped")
        if self._trigger is None:
            self._pool.start()
            # The thread would keep the process from ending, should nobody call stop().
            self._trigger = self._reactor.addSystemEventTrigger("during", "shutdown", self._abandon)
        return deferToThreadPool(self._reactor, self._pool, call, *args)

    def stop(self) -> Deferred[None]:
        """See :meth:`IExecutor.stop`."""
        if self._stopped or self._trigger is None:
            self._stopped = True
            return succeed(None)
        # Behind everything else in the only thread: joining it then takes no time.
        last = self.run(_nothing)
        self._stopped = True
        return last.addCallback(self._join)

    def _abandon(self) -> None:
        self._stopped, self._trigger = True, None
        self._pool.stop()

    def _join(self, _result: None) -> None:
        if self._trigger is None:
            return
        trigger, self._trigger = self._trigger, None
        self._reactor.removeSystemEventTrigger(trigger)
        self._pool.stop()


def _nothing() -> None:
    return None
