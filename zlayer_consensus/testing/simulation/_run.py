"""One run from beginning to end, and what came of it."""

from __future__ import annotations

import functools
import gc
import importlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from ...errors import StorageError
from ._application import Application
from ._checker import Violation
from ._plan import Plan
from ._time import ProcessClock
from ._trace import Line
from ._world import World

__all__ = ["VERDICTS", "Outcome", "load_application", "run_named", "run_plan", "run_seed"]

VERDICTS = ("passed", "safety", "liveness", "crash", "vacuous")
"""How a run can end: well; with an invariant that does not hold; with a cluster that does not come to rest after the
faults; with an exception that nobody foresaw; or with so little done that it proves nothing."""

_TRACEBACK_LINES = 40


class Crash(Exception):
    """A failure was logged."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of one run.

    :param seed: the plan's.
    :param verdict: one of :data:`VERDICTS`.
    :param invariant: what does not hold: the name of an invariant, or an exception's type; empty if all is well.
    :param text: what is wrong, for people.
    :param details: a traceback, or empty.
    :param at: simulated seconds after which the run ended.
    :param events: how many events there were.
    :param digest: equal for equal runs.
    :param counts: how often what happened.
    :param seconds: processor time that it took, in seconds; equal runs may differ in it.
    """

    seed: int
    verdict: str
    invariant: str = ""
    text: str = ""
    details: str = ""
    at: float = 0.0
    events: int = 0
    digest: int = 0
    counts: dict[str, int] = attrs.field(factory=dict)
    seconds: float = attrs.field(default=0.0, eq=False)

    @property
    def failed(self) -> bool:
        """Whether something is wrong. A vacuous run did not fail, and did not pass."""
        return self.verdict not in ("passed", "vacuous")

    def same_failure(self, other: Outcome) -> bool:
        """Say whether both found the same thing."""
        return self.failed and (self.verdict, self.invariant) == (other.verdict, other.invariant)

    def __str__(self) -> str:
        """Return one line."""
        parts = [f"seed {self.seed}", self.verdict, self.invariant, " ".join(self.text.split())]
        return ": ".join(part for part in parts if part)


def run_seed(
    seed: int, application: Application | None = None, trace: Callable[[Line], object] | None = None
) -> Outcome:
    """Run the plan that a seed draws."""
    return run_plan(Plan.draw(seed), application, trace)


def run_plan(
    plan: Plan,
    application: Application | None = None,
    trace: Callable[[Line], object] | None = None,
    *,
    trace_disk: bool = False,
) -> Outcome:
    """Run a plan.

    Nothing is logged meanwhile; a failure that would be is a crash. The garbage collector does not run either,
    so that objects end when the program says so; it clears up at the end.

    :param application: what is replicated; by default the key-value store.
    :param trace: takes each line of a trace.
    :param trace_disk: whether that has the operations of the disks, too.
    """
    before = globalLogPublisher._observers
    enabled = gc.isenabled()
    gc.disable()
    # What is older than the run is not looked at when its remains are collected.
    gc.freeze()
    leftovers: list[str] = []
    hook, sys.unraisablehook = sys.unraisablehook, functools.partial(_unraisable, leftovers)
    try:
        outcome = _run(plan, application or Application(), trace, trace_disk)
        # Other observers must not see what a simulated node logs: trial's would fail the test that runs the
        # simulation, the default one prints. The publisher has no other way to set them aside.
        globalLogPublisher._observers = [_Leftovers(leftovers)]
        gc.collect()
        # Once more, for what the end of a suspended coroutine has kept alive: no later collection would look at it.
        gc.collect()
    finally:
        globalLogPublisher._observers = before
        sys.unraisablehook = hook
        gc.unfreeze()
        if enabled:
            gc.enable()
    if leftovers and not outcome.failed:
        text = "a failure was found that nobody waited for, when all was over"
        return attrs.evolve(outcome, verdict="crash", invariant="unhandled", text=text, details="\n".join(leftovers))
    return outcome


def _unraisable(found: list[str], unraisable: sys.UnraisableHookArgs) -> None:
    """Keep what was raised where nobody could catch it: a defect, like a failure that nobody waited for."""
    error = unraisable.exc_value
    # A coroutine that would wait once more when it is cut off: its process is dead, and nothing of that goes on.
    if error is None or (isinstance(error, RuntimeError) and str(error) == "coroutine ignored GeneratorExit"):
        return
    found.append(f"in {unraisable.object!r}:\n{''.join(traceback.format_exception(error))}")


def load_application(name: str) -> Application:
    """Return what ``package.module:name`` names: an application, or what makes one when called. Empty: the default.

    :raises ValueError: if it is nothing of that kind.
    """
    if not name:
        return Application()
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"{name!r} is not of the form package.module:name")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: {error}") from error
    if not isinstance(found, Application) and callable(found):
        found = found()
    if not isinstance(found, Application):
        raise ValueError(f"{name} is a {type(found).__name__}, not an Application")
    return found


def run_named(application: str, seed: int) -> Outcome:
    """Run a seed with an application that :func:`load_application` finds, and measure it."""
    began = time.process_time()
    outcome = run_seed(seed, load_application(application))
    return attrs.evolve(outcome, seconds=time.process_time() - began)


def _run(plan: Plan, application: Application, trace: Callable[[Line], object] | None, trace_disk: bool) -> Outcome:
    seen: dict[str, Any] = {"verdict": "passed"}
    # Made outside: what is left of a world whose plan cannot even begin is worth nothing.
    world = World(plan, application, trace, trace_disk=trace_disk)
    globalLogPublisher._observers = [_Observer(world)]
    try:
        with _interruptible(world):
            world.run()
            world.check()
    except Violation as violation:
        verdict = "liveness" if violation.invariant == "liveness" else "safety"
        seen = {"verdict": verdict, "invariant": violation.invariant, "text": violation.text}
    except Exception as error:
        seen = _crashed(error)
    else:
        shortage = _shortage(world)
        if shortage:
            seen = {"verdict": "vacuous", "text": shortage}
    checker = world.checker
    world.count("election", checker.elections)
    world.count("snapshot taken", max(0, checker.snapshots - checker.received))
    world.count("snapshot received", checker.received)
    counts = {name: number for name, number in sorted(world.counts.items()) if number}
    world.recorder.finish()
    digest, timeline = world.recorder.digest, world.timeline
    return Outcome(seed=plan.seed, at=timeline.now, events=timeline.events, digest=digest, counts=counts, **seen)


@contextmanager
def _interruptible(world: World) -> Iterator[None]:
    """Let an interrupt end the run between two events: raised within one, it may only fail somebody's Deferred."""

    def interrupt(number: int, frame: Any) -> None:
        if world.timeline.interrupted:  # nothing has come of it
            signal.default_int_handler(number, frame)
        world.timeline.interrupted = True

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if world.timeline.interrupted:  # perhaps in the last event
            raise KeyboardInterrupt


def _shortage(world: World) -> str:
    """Return why a run proves too little, or nothing."""
    return world.workload.shortage()


def _crashed(error: Exception) -> dict[str, Any]:
    if isinstance(error, Crash):
        cause, text, details = error.args
        return {"verdict": "crash", "invariant": cause, "text": text, "details": details}
    details = "".join(traceback.format_exception(error, limit=-_TRACEBACK_LINES))
    return {"verdict": "crash", "invariant": type(error).__name__, "text": str(error), "details": details}


@implementer(ILogObserver)
class _Observer:
    """Takes a failure that is logged for a crash.

    A line without a failure is none: a node says so what has happened to it, and who watches it judges that. Nor is a
    failure of a disk that was made to fail, nor what a process says that is dead already.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self, event: LogEvent) -> None:
        world = self._world
        current = world.timeline.current
        if current is not None and current.dead:
            return
        failure = event.get("log_failure")
        if world.recorder.write is not None:
            world.recorder.said(event["log_level"].name, formatEvent(event))
        if failure is None or event.get("log_level") is not LogLevel.critical:
            return
        if isinstance(failure.value, Violation):
            world.broken(failure)
        elif not self._foreseen(failure.value, current):
            text = f"{formatEvent(event)}: {failure.getErrorMessage()}"
            world.broken(Failure(Crash(failure.type.__name__, text, failure.getTraceback())))

    def _foreseen(self, error: BaseException, current: ProcessClock | None) -> bool:
        process = self._world.processes.get(current) if current is not None else None
        return isinstance(error, StorageError) and process is not None and error.code in process.host.expects


@implementer(ILogObserver)
class _Leftovers:
    """Keeps the tracebacks of failures in Deferreds that are collected."""

    def __init__(self, found: list[str]) -> None:
        self._found = found

    def __call__(self, event: LogEvent) -> None:
        failure = event.get("log_failure")
        if event.get("log_level") is LogLevel.critical and failure is not None:
            self._found.append(failure.getTraceback())
