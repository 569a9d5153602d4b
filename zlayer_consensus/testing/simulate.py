"""``python -m zlayer_consensus.testing.simulate``: whole clusters under faults, one for each seed.

Exit codes, the worst first: 10 an invariant did not hold (safety); 12 an exception that nobody foresaw (crash); 11 the
cluster did not come to rest after the faults (liveness); 13 too many of the runs were vacuous, that is, too little
happened in them to prove anything; 2 wrong usage; 130 interrupted; 0 none of these.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import attrs
import click

from .simulation._application import Application
from .simulation._plan import Plan
from .simulation._plan_file import PlanFileError, describe, dump_plan, load_plan
from .simulation._pool import run_many
from .simulation._report import VACUOUS_SHARE, Report
from .simulation._run import Outcome, load_application, run_named, run_plan
from .simulation._shrink import Shrunk, shrink
from .simulation._trace import Line

__all__ = ["main"]

_INTERRUPTED = 130
_RANGE = re.compile(r"(\d+)(\.\.(\d*))?")
_COLOURS = {"state": "green", "disk": "bright_black", "log": "magenta", "event": "yellow"}
# Of each traceback, in a summary.
_DETAIL_LINES = 12
# Kinds of failure that are shrunk.
_SHRUNK_GROUPS = 3


def _seeds(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, int | None] | None:
    """Return the first seed, and the last or None."""
    if value is None:
        return None
    match = _RANGE.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a seed, nor a range like 1..100 or 1..")
    first = int(match[1])
    last = first if match[2] is None else int(match[3]) if match[3] else None
    if last is not None and last < first:
        raise click.BadParameter(f"{value!r} ends before it begins")
    return first, last


@attrs.frozen(kw_only=True)
class _Options:
    application: str
    shrinking: bool
    shrink_seconds: float
    save_plan: str | None
    as_json: bool

    def say(self, text: str, *, colour: str | None = None) -> None:
        """Print a line: to the standard output, unless that is for JSON alone."""
        click.secho(text, fg=colour, err=self.as_json)


@click.command(epilog="Exit codes: 0 well, 10 safety, 12 crash, 11 liveness, 13 vacuous, 2 usage, 130 interrupted.")
@click.option(
    "--seeds", metavar="A..B", callback=_seeds, help="A seed, or a range of seeds: 1..1000, or 1.. without an end."
)
@click.option("--seed", type=click.IntRange(min=0), help="Run this seed alone.")
@click.option("--plan", "plan_file", type=click.Path(exists=True, dir_okay=False), help="Run a plan that was saved.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=os.cpu_count() or 1, help="Processes; by default one for each core."
)
@click.option("--first", is_flag=True, help="End at the first seed that fails.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Begin no seed later than this.")
@click.option("--application", default="", metavar="MODULE:NAME", help="What is replicated, instead of the default.")
@click.option("--trace", is_flag=True, help="Show what happens; with --seed or --plan.")
@click.option("--trace-disk", is_flag=True, help="Show the operations of the disks, too.")
@click.option("--shrink/--no-shrink", "shrinking", default=True, help="Look for smaller plans that still fail.")
@click.option("--shrink-seconds", type=click.FloatRange(min=0), default=60.0, help="For each kind of failure.")
@click.option("--save-plan", type=click.Path(dir_okay=False), help="Write the (first failing, shrunk) plan to a file.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON; all else goes to stderr.")
def main(
    *,
    seeds: tuple[int, int | None] | None,
    seed: int | None,
    plan_file: str | None,
    jobs: int,
    first: bool,
    minutes: float | None,
    application: str,
    trace: bool,
    trace_disk: bool,
    **rest: Any,
) -> None:
    """Run whole clusters under faults, one for each seed, and look for violations.

    Each seed decides everything: sizes, time-outs, faults, what clients do, and the course of time.
    """
    if sum(given is not None for given in (seeds, seed, plan_file)) > 1:
        raise click.UsageError("--seeds, --seed and --plan exclude each other")
    if (trace or trace_disk) and seed is None and plan_file is None:
        raise click.UsageError("--trace needs --seed or --plan")
    options = _Options(application=application, **rest)
    try:
        machine = load_application(application)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--application") from error
    try:
        if seed is None and plan_file is None:
            if seeds is None:
                seeds = (1, None if minutes else 100)
            sys.exit(_many(seeds, jobs, first, minutes, machine, options))
        plan = Plan.draw(seed) if seed is not None else _load(plan_file or "")
        sys.exit(_one(plan, machine, trace or trace_disk, trace_disk, options))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _load(path: str) -> Plan:
    try:
        return load_plan(Path(path).read_text(encoding="utf-8"))
    except (PlanFileError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path}: {error}", param_hint="--plan") from error


def _one(plan: Plan, application: Application, trace: bool, trace_disk: bool, options: _Options) -> int:
    def show(line: Line) -> None:
        options.say(str(line), colour=_COLOURS.get(line.category))

    if trace:
        for line in describe(plan):
            options.say(line)
    began = time.monotonic()
    outcome = run_plan(plan, application, show if trace else None, trace_disk=trace_disk)
    report = Report(options.application)
    report.add(attrs.evolve(outcome, seconds=time.monotonic() - began))
    options.say(str(outcome), colour=_colour(outcome))
    if outcome.details:
        options.say(outcome.details.rstrip())
    plans = {}
    if outcome.failed and options.shrinking and not trace:
        plans[outcome.seed] = plan = _shrink(plan, outcome, application, options)
    _save(plan, outcome, options)
    if options.as_json:
        _print_json(report, time.monotonic() - began, plans)
    return report.exit_code


def _many(
    seeds: tuple[int, int | None],
    jobs: int,
    first: bool,
    minutes: float | None,
    application: Application,
    options: _Options,
) -> int:
    report = Report(options.application)
    began = time.monotonic()

    def stop() -> bool:
        late = minutes is not None and time.monotonic() - began >= 60 * minutes
        return late or (first and bool(report.failures))

    wanted = count(seeds[0]) if seeds[1] is None else range(seeds[0], seeds[1] + 1)
    outcomes = run_many(iter(wanted), partial(run_named, options.application), jobs, stop)
    progress = _Progress(report, None if seeds[1] is None else len(wanted), minutes)  # type: ignore[arg-type]
    interrupted = False
    try:
        for outcome in outcomes:
            report.add(outcome)
            if outcome.failed:
                progress.clear()
                options.say(str(outcome), colour="red")
            progress.show()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.clear()
        outcomes.close()
    elapsed = time.monotonic() - began
    for line in report.lines(elapsed):
        options.say(line)
    plans = {} if interrupted else _explain(report, application, options)
    if options.as_json:
        _print_json(report, elapsed, plans)
    if report.exit_code == 13:
        options.say(f"More than {VACUOUS_SHARE:.0%} of the seeds are vacuous.", colour="red")
    return _INTERRUPTED if interrupted else report.exit_code


def _explain(report: Report, application: Application, options: _Options) -> dict[int, Plan]:
    """Show for each kind of failure where it comes from; return the plans that show it."""
    plans: dict[int, Plan] = {}
    for group in report.groups()[:_SHRUNK_GROUPS]:
        outcome = group[0]
        options.say("")
        options.say(str(outcome), colour="red")
        for line in outcome.details.splitlines()[-_DETAIL_LINES:]:
            options.say(f"    {line}")
        # What kills or hangs a process would do so to this one.
        if outcome.invariant == "process" and outcome.verdict == "crash":
            continue
        plan = Plan.draw(outcome.seed)
        if options.shrinking:
            plan = _shrink(plan, outcome, application, options)
        if not plans:
            _save(plan, outcome, options)
        plans[outcome.seed] = plan
    return plans


def _shrink(plan: Plan, outcome: Outcome, application: Application, options: _Options) -> Plan:
    """Look for a smaller plan, and show it."""
    began = time.monotonic()

    def fails(smaller: Plan) -> bool:
        return run_plan(smaller, application).same_failure(outcome)

    def spent(_runs: int) -> bool:
        return time.monotonic() - began >= options.shrink_seconds

    # Once more as it is: what does not come again cannot be shrunk.
    if not fails(plan):
        options.say("It does not come again: the run depends on more than its seed.", colour="red")
        return plan
    shrunk: Shrunk = shrink(plan, fails, spent, until=outcome.at)
    unfinished = "" if shrunk.complete else ", when the time was over"
    options.say(f"Shrunk in {shrunk.runs} runs from {len(plan.faults)} faults{unfinished}:")
    for line in describe(shrunk.plan):
        options.say(f"  {line}")
    return shrunk.plan


def _save(plan: Plan, outcome: Outcome, options: _Options) -> None:
    if options.save_plan is not None:
        try:
            Path(options.save_plan).write_text(dump_plan(plan, reason=str(outcome)), encoding="utf-8")
        except OSError as error:
            options.say(f"The plan was not saved: {options.save_plan}: {error.strerror}", colour="red")
            return
        again = f"--plan {shlex.quote(options.save_plan)}"
        again += f" --application {options.application}" if options.application else ""
        options.say(f"Saved; again: python -m zlayer_consensus.testing.simulate {again} --trace")


def _print_json(report: Report, elapsed: float, plans: dict[int, Plan]) -> None:
    data = report.as_json(elapsed)
    data["plans"] = {str(seed): json.loads(dump_plan(plan)) for seed, plan in plans.items()}
    click.echo(json.dumps(data, indent=1, ensure_ascii=False))


def _colour(outcome: Outcome) -> str:
    return "red" if outcome.failed else "green" if outcome.verdict == "passed" else "yellow"


class _Progress:
    """A line on a terminal, and nothing elsewhere."""

    def __init__(self, report: Report, wanted: int | None, minutes: float | None) -> None:
        self._report = report
        self._wanted = wanted
        self._seconds = None if minutes is None else 60 * minutes
        self._visible = sys.stderr.isatty()
        self._began = time.monotonic()
        self._shown = 0.0
        self._now: Callable[[], float] = time.monotonic

    def show(self) -> None:
        """Show how far it is, ten times a second at most."""
        now = self._now()
        if not self._visible or now - self._shown < 0.1:
            return
        self._shown = now
        click.echo(f"\r\x1b[K{self.text(now - self._began)}", err=True, nl=False)

    def text(self, elapsed: float) -> str:
        """Return the line."""
        report = self._report
        shares = [elapsed / self._seconds] if self._seconds else []
        shares += [report.runs / self._wanted] if self._wanted else []
        bar = ""
        if shares:
            share = min(1.0, max(shares))
            left = elapsed / share - elapsed if share else 0.0
            bar = f"[{'#' * int(30 * share):30}] {share:4.0%}, {left / 60:.0f}:{left % 60:02.0f} left, "
        failed = f"{len(report.failures)} failed" if report.failures else "none failed"
        return f"{bar}{report.runs} seeds, {report.runs / max(elapsed, 1e-9):.1f} a second, {failed}"

    def clear(self) -> None:
        """Take the line away."""
        if self._visible:
            click.echo("\r\x1b[K", err=True, nl=False)


if __name__ == "__main__":
    main()
