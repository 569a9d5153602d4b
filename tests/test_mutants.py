"""The mutants fit the present code, and their runner tells a bug that was found from all else."""

from __future__ import annotations

import ast
import contextlib
import io
import tempfile
from pathlib import Path
from unittest import skipIf

from twisted.trial.unittest import SynchronousTestCase

from tests.mutants.__main__ import main
from tests.mutants._patch import PATCHES, BadPatch, Mutant, load, load_all
from tests.mutants._report import DOCUMENT, MARKER, line, write_table
from tests.mutants._runner import ROOT, SIMULATE, Result, RunFailed, run

# A simulator whose seed 3 fails when the bug is there.
STAND_IN = """
import sys
from zlayer_consensus import rule
first, last = map(int, sys.argv[sys.argv.index("--seeds") + 1].split(".."))
for seed in range(first, last + 1):
    if seed == {seed} and {condition}:
        print(f"seed {{seed}}: {verdict}: the limit holds: it is {{rule.LIMIT}}: too much")
        sys.exit({code})
sys.exit(0)
"""
PATCH = """# name: limit
# hazards: H-01, J-102
# breaks: The limit is too great.
--- a/zlayer_consensus/rule.py
+++ b/zlayer_consensus/rule.py
@@ -1,3 +1,3 @@
 # A rule.

-LIMIT = 1
+LIMIT = 2
"""


class _OwnTree(SynchronousTestCase):
    """A patch and a package of the test's own."""

    def _mutant(self, patch: str) -> Mutant:
        path = Path(self.mktemp())
        path.mkdir(parents=True)
        path /= "limit.patch"
        path.write_text(patch)
        return load(path)

    def _root(self, rule: str, simulator: str = "") -> Path:
        root = Path(self.mktemp())
        testing = root / "zlayer_consensus" / "testing"
        testing.mkdir(parents=True)
        for package in (testing.parent, testing):
            (package / "__init__.py").touch()
        (testing.parent / "rule.py").write_text(rule)
        (testing / "simulate.py").write_text(simulator)
        return root


class PatchTests(_OwnTree):
    def test_there_are_enough_and_each_has_its_own_name_and_hazards(self) -> None:
        mutants = load_all()
        self.assertGreaterEqual(len(mutants), 30)
        self.assertEqual(len({mutant.hunks for mutant in mutants.values()}), len(mutants))
        known = {mutant.name for mutant in mutants.values() if mutant.hazards and mutant.breaks.endswith(".")}
        self.assertEqual(known, set(mutants))

    def test_each_changes_one_line_or_two_places(self) -> None:
        """A hunk is one line; a second one is there only where one bug has two checks against it."""
        large = {
            name: [hunk.changed for hunk in mutant.hunks]
            for name, mutant in load_all().items()
            if len(mutant.hunks) > 2 or any(hunk.changed != 1 for hunk in mutant.hunks)
        }
        self.assertEqual(large, {})

    def test_each_fits_the_present_code_and_changes_what_it_does(self) -> None:
        for mutant in load_all().values():
            with tempfile.TemporaryDirectory() as directory:
                for path in mutant.paths:
                    copy = Path(directory) / path
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes((ROOT / path).read_bytes())
                mutant.apply(Path(directory))
                for path in mutant.paths:
                    shipped, mutated = (ast.parse((root / path).read_bytes()) for root in (ROOT, Path(directory)))
                    self.assertNotEqual(ast.dump(shipped), ast.dump(mutated), mutant.name)
                    compile(mutated, path, "exec")

    def test_what_no_longer_fits_is_refused_and_nothing_is_changed(self) -> None:
        mutant = self._mutant(PATCH)
        for content, said in (
            ("# A rule.\n\nLIMIT = 7\n", "does not stand"),
            ("# A rule.\n\nLIMIT = 1\n" * 2, "2 times"),
        ):
            root = self._root(content)
            error = self.assertRaises(BadPatch, mutant.apply, root)
            self.assertIn(said, str(error))
            self.assertEqual((root / "zlayer_consensus" / "rule.py").read_text(), content)

    def test_a_patch_that_is_none_is_refused(self) -> None:
        for wrong in (
            PATCH.replace("# hazards: H-01, J-102\n", ""),
            PATCH.replace("J-102", "K-1"),
            PATCH.replace("# name: limit", "# name: other"),
            PATCH.replace("+++ b/zlayer_consensus/rule.py", "+++ b/zlayer_consensus/other.py"),
            PATCH.split("@@", maxsplit=1)[0],
            PATCH + "some text\n",
        ):
            self.assertRaises(BadPatch, self._mutant, wrong)


class RunnerTests(_OwnTree):
    """With a stand-in for the simulator, which looks at nothing but the line that the patch changes."""

    def _caught_by(self, condition: str = "rule.LIMIT == 2", verdict: str = "safety", code: int = 10) -> Result:
        simulator = STAND_IN.format(seed=3, condition=condition, verdict=verdict, code=code)
        return run(self._mutant(PATCH), last=5, root=self._root("# A rule.\n\nLIMIT = 1\n", simulator), timeout=60)

    def test_a_bug_is_caught_in_the_copy_and_the_seed_passes_without_it(self) -> None:
        result = self._caught_by()
        self.assertEqual((result.verdict, result.seed, result.seeds), ("safety", 3, 3))
        self.assertEqual((result.invariant, result.text), ("the limit holds", "it is 2: too much"))
        self.assertTrue(result.caught)

    def test_each_class_of_failure_counts(self) -> None:
        for verdict, code in (("liveness", 11), ("crash", 12)):
            self.assertEqual(self._caught_by(verdict=verdict, code=code).verdict, verdict)

    def test_a_bug_that_no_seed_shows_survives(self) -> None:
        result = self._caught_by("rule.LIMIT == 9")
        self.assertEqual((result.verdict, result.seeds, result.caught), ("survived", 5, False))

    def test_seeds_in_which_nothing_happened_catch_nothing(self) -> None:
        result = self._caught_by(code=13)
        self.assertEqual((result.verdict, result.caught), ("vacuous", False))

    def test_a_seed_that_fails_without_the_bug_catches_nothing(self) -> None:
        result = self._caught_by("rule.LIMIT < 9")
        self.assertEqual((result.verdict, result.caught), ("not its doing", False))

    def test_a_simulator_that_breaks_gives_no_verdict(self) -> None:
        """An exit code that is not one of the simulator's, or one that it does not explain."""
        for code, verdict in ((1, "safety"), (2, "safety"), (10, "liveness"), (11, "nothing")):
            error = self.assertRaises(RunFailed, self._caught_by, verdict=verdict, code=code)
            self.assertIn(str(code), str(error))

    def test_a_simulator_that_hangs_is_killed(self) -> None:
        root = self._root("# A rule.\n\nLIMIT = 1\n", "import threading\nthreading.Event().wait()\n")
        result = run(self._mutant(PATCH), last=5, root=root, timeout=2)
        self.assertEqual((result.verdict, result.caught), ("hung", False))

    def test_a_package_that_cannot_be_imported_gives_no_verdict(self) -> None:
        error = self.assertRaises(RunFailed, self._broken)
        self.assertIn("NameError", str(error))

    def _broken(self) -> Result:
        patch = self._mutant(PATCH.replace("+LIMIT = 2", "+LIMIT = two"))
        return run(patch, last=5, root=self._root("# A rule.\n\nLIMIT = 1\n"), timeout=60)

    def test_the_table_replaces_what_stood_behind_the_marker(self) -> None:
        document = Path(self.mktemp())
        document.write_text(f"Before.\n\n{MARKER}\nold\n")
        results = [
            Result(self._mutant(PATCH), "safety", 1.0, 3, 3, "one_leader"),
            Result(self._mutant(PATCH), "survived", 1.0, 5),
        ]
        write_table(results, document)
        text = document.read_text()
        self.assertTrue(text.startswith(f"Before.\n\n{MARKER}\n1 of 2 mutants"))
        self.assertIn("safety: one\\_leader", text)
        self.assertIn("**survived**", text)
        self.assertNotIn("old", text)
        self.assertIn("seed 3", line(results[0]))

    def test_the_document_has_the_place_for_the_table(self) -> None:
        self.assertEqual(DOCUMENT.read_text(encoding="utf-8").count(MARKER), 1)

    def test_wrong_usage_is_told(self) -> None:
        for arguments in (["no-such-mutant"], ["--seeds", "0"], ["--rst", "truncate-always"]):
            with contextlib.redirect_stderr(io.StringIO()):
                error = self.assertRaises(SystemExit, main, arguments)
            self.assertEqual(error.code, 2)


@skipIf(not (ROOT / f"{SIMULATE.replace('.', '/')}.py").exists(), "there is no simulator here")
class SimulatorTests(SynchronousTestCase):
    """Bugs that show in the first few seeds. All the others: ``make mutants``."""

    def test_truncating_without_a_conflict_is_caught(self) -> None:
        """H-22."""
        self._caught("truncate-always")

    def test_a_log_that_is_not_synced_is_caught(self) -> None:
        """J-22."""
        self._caught("log-not-synced")

    def _caught(self, name: str) -> None:
        result = run(load(PATCHES / f"{name}.patch"), last=20, timeout=300)
        self.assertTrue(result.caught, line(result))
