"""Puts an application under the simulator, from a test."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from ._application import Application
from ._plan import Plan
from ._plan_file import describe, dump_plan
from ._report import VACUOUS_SHARE, Report
from ._run import Outcome, run_plan
from ._shrink import shrink
from ._trace import Line

__all__ = ["SimulationFailed", "simulate"]

_TRACE_LINES = 40


class SimulationFailed(AssertionError):
    """Something does not hold.

    :param outcome: what came of the run; None if no run failed, and too many were vacuous.
    :param plan: the smallest plan that was found to fail in this way.
    """

    def __init__(self, text: str, outcome: Outcome | None = None, plan: Plan | None = None) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.plan = plan


def simulate(
    application: Application | None = None,
    *,
    seeds: Iterable[int] = range(20),
    plan: Plan | None = None,
    shrink_seconds: float = 20.0,
    save_plan: str | Path | None = None,
) -> Report:
    """Run clusters of an application under faults, one for each seed, in this process and without its reactor.

    :param application: what is replicated; by default the key-value store.
    :param seeds: each decides a whole run: sizes, time-outs, faults, what the clients do, and the course of time.
    :param plan: a plan to run instead, as :func:`~zlayer_consensus.testing.simulation.load_plan` reads it.
    :param shrink_seconds: how long to look for a smaller plan, when one has failed.
    :param save_plan: a file to write that plan to.
    :returns: what happened how often.
    :raises SimulationFailed: at the first run that fails; or if in more than a quarter of them, and in more than one,
        too little happened to prove anything.
    """
    application = application or Application()
    report = Report()
    for each in [plan] if plan is not None else map(Plan.draw, seeds):
        outcome = run_plan(each, application)
        report.add(outcome)
        if outcome.failed:
            raise _explain(application, each, outcome, shrink_seconds, save_plan)
    vacuous = report.verdicts["vacuous"]
    if vacuous > max(1, VACUOUS_SHARE * report.runs):
        text = f"in {vacuous} of {report.runs} runs too little happened: seeds {', '.join(map(str, report.vacuous))}"
        raise SimulationFailed(text)
    return report


def _explain(
    application: Application, plan: Plan, outcome: Outcome, seconds: float, path: str | Path | None
) -> SimulationFailed:
    """Find a smaller plan that fails in the same way, and show what happens in it."""
    began = time.monotonic()
    lines = [str(outcome), *outcome.details.splitlines()[-12:]]

    def fails(smaller: Plan) -> bool:
        return run_plan(smaller, application).same_failure(outcome)

    if not fails(plan):
        lines.append("It does not come again: the run depends on more than its seed, or the state machine does.")
    elif seconds > 0:
        shrunk = shrink(plan, fails, lambda _: time.monotonic() - began >= seconds, until=outcome.at)
        lines.append(f"The same comes of a plan with {len(shrunk.plan.faults)} of its {len(plan.faults)} faults:")
        plan = shrunk.plan
    lines += [f"    {line}" for line in describe(plan)]
    trace: deque[str] = deque(maxlen=_TRACE_LINES)

    def show(line: Line) -> None:
        if line.category != "message":
            trace.append(str(line))

    again = run_plan(plan, application, show)
    lines.append(f"The end of its trace, of {again.at:.3f} simulated seconds, without the messages:")
    lines += [f"    {line}" for line in trace]
    if again.failed and again.text != outcome.text:
        lines.append(f"    {again}")
    lines.append(f"Again: the same test with seeds=[{outcome.seed}]")
    if path is not None:
        Path(path).write_text(dump_plan(plan, reason=str(outcome)), encoding="utf-8")
        lines[-1] += f", or with plan={str(path)!r}"
    return SimulationFailed("\n".join(lines), outcome, plan)
