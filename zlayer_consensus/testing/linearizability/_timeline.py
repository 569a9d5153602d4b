"""Draws counterexamples: a page that needs nothing but a browser."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from ._counterexample import Counterexample, in_words
from ._operation import Operation

__all__ = ["timeline"]

# Pixels: between two events, of a row, of a bar, and of the column with the processes' names.
_STEP = 96
_ROW = 64
_BAR = 30
_LEFT = 130
_TOP = 28
# About so wide is a character of a label.
_CHARACTER = 6.7

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --faint: #8a929c; --rule: #e3e6ea; --ok: #cfe3f7;
  --ok-edge: #3f7fbf; --open: #eceef1; --bad: #fbd3cf; --bad-edge: #c4302b; --start: #ddeeda; --start-edge: #4d8b45 }
@media (prefers-color-scheme: dark) { :root { --paper: #16191d; --ink: #e6e8eb; --faint: #7f8893; --rule: #2b3036;
  --ok: #1d3a57; --ok-edge: #6aa5de; --open: #262b31; --bad: #5a1f1c; --bad-edge: #ff7b72; --start: #21391e;
  --start-edge: #7cc070 } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2em }
h1 { font-size: 1.3em } h2 { font-size: 1.05em; margin: 2em 0 .2em; overflow-wrap: anywhere }
p { margin: .2em 0 .8em; overflow-wrap: anywhere } .faint { color: var(--faint) }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px }
svg { display: block; font: 12px ui-monospace, monospace } svg text { fill: var(--ink) }
svg .who { font-weight: 600 }
.rule { stroke: var(--rule) } .bar { stroke-width: 1.5; fill: var(--ok); stroke: var(--ok-edge) }
.open .bar { fill: var(--open); stroke: var(--faint); stroke-dasharray: 5 3 }
.bad .bar { fill: var(--bad); stroke: var(--bad-edge); stroke-width: 2.5 }
.start .bar { fill: var(--start); stroke: var(--start-edge) }
g.op:hover .bar { stroke-width: 3.5 } .point circle { fill: var(--ok-edge) }
.open .point circle { fill: var(--faint) } svg .point text { fill: var(--paper); font-weight: 700; font-size: 11px }
table { border-collapse: collapse; margin-top: .8em } td, th { text-align: left; padding: .15em .9em .15em 0;
  border-bottom: 1px solid var(--rule); vertical-align: top } td { overflow-wrap: anywhere }
td.number { text-align: right } tr.bad td { color: var(--bad-edge); font-weight: 600 }
"""


def timeline(counterexamples: Iterable[tuple[str, Counterexample]], title: str = "Not linearizable") -> str:
    """Return an HTML page with a drawing of each counterexample, one row for each process.

    Time runs from left to right, in even steps from event to event. Bars are operations, open to the right if nobody
    knows their outcome. The numbers are the longest order that explains results; what cannot follow it is red.

    :param counterexamples: each with a heading, such as the name of the file it comes from.
    """
    sections = "\n".join(_section(heading, each) for heading, each in counterexamples)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{_LEGEND}\n{sections}\n</body>\n</html>\n"
    )


_LEGEND = (
    '<p class="faint">One row for each process; time runs from left to right, a step for each call or return. '
    "A bar is an operation, and took effect somewhere within it. Dashed and open to the right: nobody knows whether "
    "and when, or its outcome does not matter here. Numbers: the longest order that explains what clients saw. Red: "
    "cannot follow in any order. Green: tells the state in which the others begin.</p>"
)


def _section(heading: str, counterexample: Counterexample) -> str:
    beginning = counterexample.beginning()
    parts = [f"<section>\n<h2>{escape(heading)}</h2>", f"<p>{escape(counterexample.headline)}</p>"]
    if beginning:
        parts.append(f"<p>{escape(beginning)}</p>")
    parts += [f'<div class="scroll">{_drawing(counterexample)}</div>', _table(counterexample), "</section>"]
    return "\n".join(parts)


class _Scale:
    """Where events stand: in even steps, in the order of time, calls before returns."""

    def __init__(self, operations: list[Operation]) -> None:
        events = {(each.call_time, 0) for each in operations}
        events |= {(each.return_time, 1) for each in operations if not each.unknown}
        self._ranks = {event: rank for rank, event in enumerate(sorted(events))}
        self.end = len(events)
        self.width = _LEFT + (self.end + 1) * _STEP

    def call(self, operation: Operation) -> int:
        return self._ranks[operation.call_time, 0]

    def back(self, operation: Operation) -> int:
        return self.end if operation.unknown else self._ranks[operation.return_time, 1]

    def points(self, order: Iterable[Operation], start: Operation | None) -> dict[int, float]:
        """Return where each operation takes effect, as early as order and start allow, by its place from 1."""
        slots: dict[int, list[int]] = {}
        slot = 0 if start is None else self.back(start)
        for place, each in enumerate(order, 1):
            slot = max(slot, self.call(each))
            slots.setdefault(slot, []).append(place)
        return {
            place: slot + (number + 1) / (len(places) + 1)
            for slot, places in slots.items()
            for number, place in enumerate(places)
        }


def _x(rank: float) -> float:
    return round(_LEFT + rank * _STEP + _STEP / 4, 1)


def _drawing(counterexample: Counterexample) -> str:
    operations = list(counterexample.operations)
    if counterexample.start is not None:
        operations.append(counterexample.start)
    scale = _Scale(operations)
    processes = {each.process: 0 for each in sorted(operations, key=lambda each: each.call_time)}
    rows = {process: row for row, process in enumerate(sorted(processes, key=_natural))}
    height = _TOP + len(rows) * _ROW + 8
    points = scale.points(counterexample.order, counterexample.start)
    parts = [
        f'<svg role="img" aria-label="{escape(counterexample.headline)}" width="{scale.width}" height="{height}" '
        f'viewBox="0 0 {scale.width} {height}" xmlns="http://www.w3.org/2000/svg">'
    ]
    for process, row in rows.items():
        top = _TOP + row * _ROW
        y = top + _BAR + 9
        name = f"<title>{escape(str(process))}</title>{escape(_cut(f'process {process}', _LEFT - 20))}"
        parts.append(f'<line class="rule" x1="0" x2="{scale.width}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="who" x="10" y="{top + _BAR / 2 + 4}">{name}</text>')
    if counterexample.start is not None:
        parts.append(
            _bar(counterexample, counterexample.start, scale, rows[counterexample.start.process], "start", None)
        )
    for each, place, stuck in counterexample.rows():
        kind = "bad" if stuck else "open" if each.unknown else "done"
        parts.append(
            _bar(counterexample, each, scale, rows[each.process], kind, (place, points[place]) if place else None)
        )
    return "\n".join([*parts, "</svg>"])


def _bar(
    counterexample: Counterexample,
    operation: Operation,
    scale: _Scale,
    row: int,
    kind: str,
    point: tuple[int, float] | None,
) -> str:
    left, right = _x(scale.call(operation)), _x(scale.back(operation))
    top = _TOP + row * _ROW
    what = counterexample.model.describe(operation)
    if counterexample.reason:
        what = f"{operation.key!r}: {what}"
    span = f"called {in_words(operation.call_time)}, returned {in_words(operation.return_time)}"
    tip = f"process {operation.process}: {what}\n{span}"
    if point is not None:
        tip += f"\nplace {point[0]} in the longest order"
    elif kind == "bad":
        tip += "\ncannot be placed"
    shape = f'<rect class="bar" x="{left}" y="{top}" width="{right - left}" height="{_BAR}" rx="5"/>'
    if operation.unknown:
        right = scale.width
        shape = f'<path class="bar" d="M{right} {top}H{left}V{top + _BAR}H{right}"/>'
    parts = [f'<g class="op {kind}"><title>{escape(tip)}</title>{shape}']
    parts.append(f'<text x="{left + 4}" y="{top - 5}">{escape(_cut(what, right - left + _STEP / 2))}</text>')
    middle = top + _BAR / 2
    if point is not None:
        x = _x(point[1])
        parts.append(f'<g class="point"><circle cx="{x}" cy="{middle}" r="10"/>')
        parts.append(f'<text x="{x}" y="{middle + 4}" text-anchor="middle">{point[0]}</text></g>')
    return "".join([*parts, "</g>"])


def _table(counterexample: Counterexample) -> str:
    lines = ["<table><tr><th></th><th>process</th><th>called</th><th>returned</th><th>operation</th></tr>"]
    for each, place, stuck in counterexample.rows():
        what = counterexample.model.describe(each)
        if counterexample.reason:
            what = f"{each.key!r}: {what}"
        cells = "".join(
            f"<td>{escape(cell)}</td>"
            for cell in (str(each.process), in_words(each.call_time), in_words(each.return_time), what)
        )
        lines.append(f'<tr class="{"bad" if stuck else ""}"><td class="number">{place or ""}</td>{cells}</tr>')
    return "\n".join([*lines, "</table>"])


def _natural(process: object) -> tuple[int, float, str]:
    """Numbers by value, all else by name."""
    return (0, process, "") if isinstance(process, int | float) else (1, 0, str(process))


def _cut(text: str, width: float) -> str:
    fits = max(3, math.floor(width / _CHARACTER))
    return text if len(text) <= fits else text[: fits - 1] + "…"
