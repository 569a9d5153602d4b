"""Checks recorded histories for linearizability: ``python -m zlayer_consensus.testing.check_history --help``.

Exit codes: 0 if every history is linearizable; 1 if one is not; 2 if a file cannot be read or is not a history, or the
command line is wrong; 3 if one is unknown, because the budget was exhausted. The smallest of 1, 2 and 3 counts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click

from .linearizability import CasRegister, Counterexample, Model, Outcome, StringRegister, Verdict, check, timeline
from .linearizability._edn import EdnError, read_forms
from .linearizability._formats import Format, FormatError, read_history

__all__ = ["main"]

_NOT_LINEARIZABLE, _WRONG, _UNKNOWN = 1, 2, 3
_COLOURS = {Outcome.LINEARIZABLE: "green", Outcome.NOT_LINEARIZABLE: "red", Outcome.UNKNOWN: "yellow"}


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(get_args(Format)),
    required=True,
    help="jepsen: the log of a Jepsen test of a register. knossos: EDN, a register with cas. "
    "kv: EDN, strings with get, put and append.",
)
@click.option(
    "--initial",
    metavar="VALUE",
    help="The value before the first write, in EDN; for kv any text. Without it, there is none; for kv it is empty.",
)
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=5_000_000,
    show_default=True,
    metavar="STEPS",
    help="Steps of search for each key. About a million take a second.",
)
@click.option(
    "--states",
    type=click.IntRange(min=1),
    default=2_000_000,
    show_default=True,
    help="Intermediate results to keep in memory for each key. A million take about 150 MB.",
)
@click.option("--explain/--no-explain", default=True, help="Whether to show why a history is not linearizable.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write a page that draws what is not linearizable. Without that, nothing is written.",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
def main(
    form: Format,
    initial: str | None,
    budget: int,
    states: int,
    explain: bool,
    html: Path | None,
    files: tuple[Path, ...],
) -> None:
    """Tell of each FILE whether the history in it is linearizable.

    The exit code is 0 if all are, 1 if one is not, 2 if one cannot be read, and 3 if one is unknown because the budget
    was exhausted; the smallest of 1, 2 and 3 counts.
    """
    model = _model(form, initial)
    codes = {0}
    drawn: list[tuple[str, Counterexample]] = []
    for path in files:
        verdict = _check(path, form, model, budget, states, explain or html is not None)
        if verdict is None:
            codes.add(_WRONG)
            continue
        click.echo(f"{path}: " + click.style(verdict.outcome.value, fg=_COLOURS[verdict.outcome]))
        if verdict.outcome is Outcome.UNKNOWN:
            codes.add(_UNKNOWN)
            click.echo(f"{path}: {verdict.text()}", err=True)
        elif verdict.counterexample is not None:
            codes.add(_NOT_LINEARIZABLE)
            drawn.append((str(path), verdict.counterexample))
            if explain:
                click.echo(verdict.text(), err=True)
    if html is not None and drawn:
        codes.add(_write(html, timeline(drawn)))
    codes.discard(0)
    sys.exit(min(codes, default=0))


def _model(form: Format, initial: str | None) -> Model:
    if form == "kv":
        return StringRegister(initial or "")
    if initial is None:
        return CasRegister()
    try:
        forms = list(read_forms(initial))
    except EdnError as error:
        raise click.BadParameter(error.problem, param_hint="--initial") from None
    if len(forms) != 1:
        raise click.BadParameter("one value is needed", param_hint="--initial")
    value: Any = forms[0][1]
    try:
        hash(value)
    except TypeError:
        raise click.BadParameter("a map cannot be the value of a register", param_hint="--initial") from None
    return CasRegister(value)


def _check(path: Path, form: Format, model: Model, budget: int, states: int, minimize: bool) -> Verdict | None:
    """Return the verdict on a file, or say what is wrong with it."""
    try:
        history = read_history(form, path.read_bytes(), str(path))
    except OSError as error:
        click.echo(f"{path}: {error.strerror or error}", err=True)
    except FormatError as error:
        click.echo(str(error), err=True)
    else:
        return check(history, model, budget=budget, max_states=states, minimize=minimize)
    return None


def _write(path: Path, page: str) -> int:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        click.echo(f"{path}: {error.strerror or error}", err=True)
        return _WRONG
    click.echo(f"wrote {path}", err=True)
    return 0


if __name__ == "__main__":
    main()
