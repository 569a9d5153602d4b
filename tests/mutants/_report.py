"""What the runs have shown, as lines and as the table in docs/mutants.rst."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ._runner import ROOT, Result

__all__ = ["DOCUMENT", "MARKER", "line", "summary", "write_table"]

DOCUMENT = ROOT / "docs" / "mutants.rst"
MARKER = ".. What follows is written by ``python -m tests.mutants --rst``.\n"


def line(result: Result) -> str:
    """Return one result as a line."""
    what = f"{result.verdict:<9}"
    if result.seed:
        what += f" seed {result.seed}, after {result.seeds}: {result.invariant}"
    else:
        what += f" {result.seeds} seeds"
    return f"{result.mutant.name:<26} {what} ({result.seconds:.0f} s)"


def summary(results: Sequence[Result]) -> str:
    """Return how many were caught, and which were not."""
    missed = [result.mutant.name for result in results if not result.caught]
    text = f"{len(results) - len(missed)} of {len(results)} mutants were caught"
    return f"{text}; not caught: {', '.join(missed)}" if missed else text


def write_table(results: Sequence[Result], document: Path = DOCUMENT) -> None:
    """Replace everything behind the marker of the document by the results.

    :raises ValueError: if the document has no marker.
    """
    text = document.read_text(encoding="utf-8")
    before, marker, _ = text.partition(MARKER)
    if not marker:
        raise ValueError(f"{document} has no line {MARKER!r}")
    document.write_text(f"{before}{marker}\n{_table(results)}", encoding="utf-8")


def _table(results: Sequence[Result]) -> str:
    lines = [
        f"{summary(results)}.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 22 12 38 8 20",
        "",
        *_row("Mutant", "Hazards", "What it breaks", "Seeds", "Caught by"),
    ]
    for result in sorted(results, key=lambda each: each.mutant.name):
        mutant = result.mutant
        by = f"{result.verdict}: {_plain(result.invariant)}" if result.caught else f"**{result.verdict}**"
        lines += _row(f"``{mutant.name}``", ", ".join(mutant.hazards), _plain(mutant.breaks), str(result.seeds), by)
    return "\n".join(lines) + "\n"


def _row(first: str, *rest: str) -> list[str]:
    return [f"   * - {first}", *(f"     - {each}" for each in rest)]


def _plain(text: str) -> str:
    """Return text in which nothing is markup."""
    return "".join(f"\\{each}" if each in "\\`*_|" else each for each in text)
