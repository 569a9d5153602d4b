"""What a power failure may leave: which of the things that were not synced survive, class by class."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from .._simfs import SimulatedFileSystem
from .._simnodes import Unsynced

__all__ = ["Depth", "survivors"]

_T = TypeVar("_T")
_PAGE = 8
"""Sectors of a page: kernels write whole ones."""


@dataclass(frozen=True)
class Depth:
    """How much is looked at. The defaults are for every day.

    :param exhaustive: up to so many things that are not synced, every subset of them survives in turn.
    :param samples: of more, so many of each class: the older ones survive, the newer ones, all but one, one alone, all
        but a page.
    :param subsets: random subsets beside these.
    :param further: how many of the states that one moment leaves have their opening itself cut off, at each of its
        operations; the others are opened twice.
    :param levels: how often one after the other an opening is cut off.
    """

    exhaustive: int = 3
    samples: int = 2
    subsets: int = 2
    further: int = 1
    levels: int = 1

    def below(self) -> Depth:
        """Return how much is looked at when an opening is cut off: the number grows with each level."""
        return Depth(min(2, self.exhaustive), 1, 1, 1, self.levels - 1)


def survivors(
    files: SimulatedFileSystem, depth: Depth, rng: random.Random
) -> Iterator[tuple[str, frozenset[Unsynced]]]:
    """Yield what may survive, each set once, with the name of its class: what ``SimulatedFileSystem.crash`` takes."""
    units = files.unsynced()
    seen: set[frozenset[Unsynced]] = set()
    for name, kept in _classes(units, depth, rng):
        chosen = frozenset(kept)
        if chosen not in seen:
            seen.add(chosen)
            yield name, chosen


def _classes(units: Sequence[Unsynced], depth: Depth, rng: random.Random) -> Iterator[tuple[str, Sequence[Unsynced]]]:
    yield "nothing survives", ()
    if not units:
        return
    yield "everything survives", units
    if len(units) <= depth.exhaustive:
        for count in range(1, len(units)):
            for kept in combinations(units, count):
                yield _listing(kept), kept
        return
    yield "names survive", _of_kind(units, "name")
    yield "names and sizes survive", _of_kind(units, "name", "size")
    yield "contents survive", _of_kind(units, "sector", "size")
    yield from _ordered(units, depth, rng)
    yield from _pages(units, depth, rng)
    for _ in range(depth.subsets):
        chosen = [unit for unit in units if rng.random() < 0.5]
        yield _listing(chosen), chosen


def _of_kind(units: Sequence[Unsynced], *kinds: str) -> list[Unsynced]:
    return [unit for unit in units if unit.kind in kinds]


def _ordered(units: Sequence[Unsynced], depth: Depth, rng: random.Random) -> Iterator[tuple[str, Sequence[Unsynced]]]:
    count = len(units)

    def some() -> list[int]:
        return _sample(range(count), depth.samples, rng)

    for at in some():
        yield f"the {at} oldest of {count} survive", units[:at]
    for at in some():
        yield f"the {count - at} newest of {count} survive", units[at:]
    for at in some():
        yield f"{units[at]} is lost", [*units[:at], *units[at + 1 :]]
    for at in some():
        yield f"{units[at]} alone survives", units[at : at + 1]


def _pages(units: Sequence[Unsynced], depth: Depth, rng: random.Random) -> Iterator[tuple[str, Sequence[Unsynced]]]:
    pages: dict[tuple[int, int], str] = {}
    for unit in units:
        if unit.kind == "sector":
            pages[_page(unit)] = f"page {unit.number // _PAGE} of {unit.path}"
    for page in _sample(list(pages), depth.samples, rng) if len(pages) > 1 else ():
        yield f"{pages[page]} is lost", [unit for unit in units if unit.kind != "sector" or _page(unit) != page]
        yield f"{pages[page]} alone survives", [unit for unit in units if unit.kind != "sector" or _page(unit) == page]


def _page(unit: Unsynced) -> tuple[int, int]:
    return id(unit.node), unit.number // _PAGE


def _sample(items: Sequence[_T], count: int, rng: random.Random) -> list[_T]:
    return list(items) if len(items) <= count else rng.sample(items, count)


def _listing(kept: Sequence[Unsynced]) -> str:
    return f"survivors: {', '.join(map(str, kept))}" if kept else "nothing survives"
