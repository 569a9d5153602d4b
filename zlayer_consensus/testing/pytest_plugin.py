"""A pytest fixture that puts a state machine under the simulator. Nothing is imported before a test asks for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from .simulation import Report

__all__ = ["ConsensusSimulation", "consensus_simulation"]


class ConsensusSimulation(Protocol):
    """What the fixture is."""

    def __call__(
        self,
        machine: Any = None,
        *,
        seeds: Iterable[int] = ...,
        plan: str | Path | None = ...,
        shrink_seconds: float = ...,
        **application: Any,
    ) -> Report:
        """Run a state machine in simulated clusters under faults, one for each seed.

        :param machine: makes the state machine, as for :class:`~zlayer_consensus.testing.simulation.Application`; or
            an application. None: the key-value store.
        :param seeds: 20 by default; about half a second each.
        :param plan: a file with a plan to run instead.
        :param shrink_seconds: how long to look for a smaller plan, when one has failed.
        :param application: ``commands``, ``types``, ``read`` and what else an application takes.
        :returns: what happened how often.
        :raises AssertionError: if something does not hold: with the seed, the invariant, the smallest plan that was
            found, the end of its trace, and how to run it again.
        """


@pytest.fixture
def consensus_simulation(tmp_path: Path) -> ConsensusSimulation:
    """Put a state machine under the simulator: ``consensus_simulation(MyMachine, commands=...)``."""

    def run(
        machine: Any = None,
        *,
        seeds: Iterable[int] = range(20),
        plan: str | Path | None = None,
        shrink_seconds: float = 20.0,
        **application: Any,
    ) -> Report:
        from .simulation import Application, load_plan, simulate

        whole = machine if isinstance(machine, Application) else Application(machine, **application)
        loaded = load_plan(Path(plan).read_text(encoding="utf-8")) if plan is not None else None
        return simulate(
            whole, seeds=seeds, plan=loaded, shrink_seconds=shrink_seconds, save_plan=tmp_path / "plan.json"
        )

    return run
