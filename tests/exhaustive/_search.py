"""Breadth-first search: every state once, so the path to a violation is a shortest one."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from ._choices import actions
from ._member import Violation
from ._model import Action, Scenario, State
from ._world import World

__all__ = ["Result", "explore"]


@dataclass
class Result:
    """What came of an exploration.

    :param finished: whether every state within the scenario's bounds was looked at.
    :param depth: actions on the longest of the shortest paths.
    :param seen: what happened, and on how many transitions to new states.
    :param violation: what did not hold; empty if everything did.
    :param path: the actions that lead there, as text.
    """

    scenario: str
    states: int = 0
    transitions: int = 0
    depth: int = 0
    seconds: float = 0.0
    finished: bool = False
    members: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    violation: str = ""
    path: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        end = self.violation or ("finished" if self.finished else "stopped at a limit")
        return (
            f"{self.scenario}: {self.states} states, {self.transitions} transitions, depth {self.depth}, "
            f"{self.seconds:.1f} s: {end}"
        )


def explore(scenario: Scenario, *, depth: int | None = None, limit_states: int | None = None) -> Result:
    """Look at every state of a scenario, or at those within the limits, until an invariant breaks."""
    began = time.perf_counter()
    result = Result(scenario.name)
    world = World(scenario)
    start = world.start()
    parents: dict[State, tuple[State, Action] | None] = {start: None}
    try:
        result.finished = _search(world, start, parents, result, depth, limit_states)
    except _Found as found:
        result.violation = str(found.violation)
        result.path = _path(world, parents, found.state, found.action)
        result.depth = len(result.path)
    result.states, result.members = len(parents), len(world.facts)
    result.seconds = time.perf_counter() - began
    return result


class _Found(Exception):
    def __init__(self, violation: Violation, state: State, action: Action) -> None:
        super().__init__(str(violation))
        self.violation, self.state, self.action = violation, state, action


def _search(
    world: World,
    start: State,
    parents: dict[State, tuple[State, Action] | None],
    result: Result,
    depth: int | None,
    limit_states: int | None,
) -> bool:
    frontier = [start]
    while frontier and (depth is None or result.depth < depth):
        following: list[State] = []
        for state in frontier:
            for action in actions(world, state):
                try:
                    new, seen = world.apply(state, action)
                except Violation as violation:
                    raise _Found(violation, state, action) from violation
                result.transitions += 1
                if new in parents:
                    continue
                parents[new] = (state, action)
                following.append(new)
                result.seen.update(seen)
                if world.two_candidates(new):
                    result.seen["two candidates"] += 1
                if limit_states is not None and len(parents) >= limit_states:
                    return False
        frontier = following
        result.depth += bool(frontier)
    return not frontier


def _path(world: World, parents: dict[State, tuple[State, Action] | None], state: State, action: Action) -> list[str]:
    actions = [action]
    step = parents[state]
    while step is not None:
        state, action = step
        actions.append(action)
        step = parents[state]
    return [world.describe(action) for action in reversed(actions)]
