"""Plans that failed once do not fail any more, and do again when a patch takes back what has mended it."""

import json

from twisted.trial.unittest import SynchronousTestCase

from tests.mutants._patch import load_all
from tests.mutants._runner import CAUGHT, ROOT, replay
from zlayer_consensus.testing.simulation._plan_file import load_plan
from zlayer_consensus.testing.simulation._run import run_plan

DIRECTORY = ROOT / "tests" / "simulation_regressions"
PLANS = {path.stem: path for path in sorted(DIRECTORY.glob("*.json"))}
PATCHES = load_all(DIRECTORY)
"""Those of bugs; the other plans show what was wrong with the simulator itself."""


class RegressionTests(SynchronousTestCase):
    def test_each_says_what_it_has_found(self) -> None:
        reasons = {name: json.loads(path.read_text(encoding="utf-8")).get("reason") for name, path in PLANS.items()}
        self.assertEqual([name for name, reason in reasons.items() if not reason], [])

    def test_what_failed_once_does_not_fail_again(self) -> None:
        """Nor is one vacuous whose patch is to fail."""
        outcomes = {name: run_plan(load_plan(path.read_text(encoding="utf-8"))) for name, path in PLANS.items()}
        wrong = {name for name, outcome in outcomes.items() if outcome.failed}
        wrong |= {name for name in PATCHES if outcomes[name].verdict != "passed"}
        self.assertEqual({name: str(outcomes[name]) for name in wrong}, {})

    def test_each_patch_has_a_plan(self) -> None:
        self.assertEqual(set(PATCHES) - set(PLANS), set())
        self.assertGreaterEqual(len(PATCHES), 15)

    def test_what_was_mended_fails_without_that(self) -> None:
        """Else a plan has become inert: something else happens in it by now, and it needs another seed."""
        verdicts = {name: replay(mutant, PLANS[name]) for name, mutant in PATCHES.items()}
        self.assertEqual({name: each for name, each in verdicts.items() if each not in CAUGHT.values()}, {})
