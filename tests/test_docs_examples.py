"""The examples of the documentation do what the documentation says."""

from __future__ import annotations

import contextlib
import io
import runpy
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"


class ThreeCoresTests(SynchronousTestCase):
    def test_a_leader_is_elected_and_an_entry_is_committed(self) -> None:
        """§5.2, §5.3: three cores, driven by a loop, agree on a log with the proposed entry."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            names = runpy.run_path(str(EXAMPLES / "three_cores.py"))
        states = names["states"]
        self.assertEqual(set(states), {1, 2, 3})
        for state in states.values():
            self.assertEqual(state, [None, None, b"hello"])
        leaders = [core for core in names["cores"].values() if core.ready]
        self.assertEqual(len(leaders), 1)
        self.assertEqual({core.leader_id for core in names["cores"].values()}, {leaders[0].leader_id})
        self.assertIn(f"node {leaders[0].leader_id} leads in term 1", printed.getvalue())

    def test_the_documentation_shows_it(self) -> None:
        page = (EXAMPLES.parent / "core.rst").read_text(encoding="utf-8")
        self.assertIn(".. literalinclude:: examples/three_cores.py", page)


class SimulationTests(SynchronousTestCase):
    def test_the_seats_are_right(self) -> None:
        """The application passes, and something happens to it."""
        names = runpy.run_path(str(EXAMPLES / "simulation.py"))
        report = names["simulate"](names["application"], seeds=range(1, 5))
        self.assertGreaterEqual(report.verdicts["passed"], 3)

    def test_the_documentation_shows_it(self) -> None:
        page = (EXAMPLES.parent / "simulation.rst").read_text(encoding="utf-8")
        self.assertIn(".. literalinclude:: examples/simulation.py", page)
