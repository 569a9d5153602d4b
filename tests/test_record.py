"""docs/record.rst and the tests agree: each row names tests that are there and are about it, and a command for them."""

from __future__ import annotations

import ast
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "record.rst"
PYTHON = ".venv/bin/python"
ID = re.compile(r"\b([JHS])-(\d{2,3})\b")
IN_NAME = re.compile(r"(?<![a-z0-9])([jhs])(\d{2,3})(?=_)")
LITERAL = re.compile(r"``([^`]+)``")
PROPERTY = re.compile(r"(?<![*\w])\*([^*]+)\*(?!\*)")
CELL = re.compile(r"^     -(?: |$)", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One row of the page."""

    id: str
    hazard: str
    tests: str
    simulator: str
    command: str

    def named_tests(self) -> list[str]:
        return LITERAL.findall(self.tests)

    def mutants(self) -> list[str]:
        return LITERAL.findall(self.simulator)

    def properties(self) -> list[str]:
        return PROPERTY.findall(self.simulator)


@dataclass
class Suite:
    """The test methods of one file, with the ids that each carries."""

    path: Path
    methods: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        source = self.path.read_text()
        lines = source.splitlines()
        here: dict[str, dict[str, set[str]]] = {}
        for found in ast.parse(source).body:
            if isinstance(found, ast.ClassDef):
                of_class = ids(ast.get_docstring(found) or "")
                for base in map(ast.unparse, found.bases):
                    for name, carried in (contracts() | here).get(base, {}).items():
                        self.methods[f"{found.name}.{name}"] = of_class | carried
                for method in test_methods(found):
                    text = "\n".join(lines[method.lineno - 1 : method.end_lineno])
                    self.methods[f"{found.name}.{method.name}"] = of_class | ids(text) | ids_in_name(method.name)
                mine = {name.partition(".")[2]: name for name in self.having(found.name)}
                here[found.name] = {method: self.methods[name] for method, name in mine.items()}

    def having(self, name: str) -> list[str]:
        """The methods that a name stands for: one, or all of a class."""
        return [method for method in self.methods if name in (method, method.partition(".")[0])]

    def chosen(self, expression: str) -> set[str]:
        """The methods that pytest would choose with ``-k``."""
        return {method for method in self.methods if self._matches(expression, method)}

    def _matches(self, expression: str, method: str) -> bool:
        names = [self.path.name.lower(), *method.lower().split(".")]
        value = ""
        for word in re.findall(r"\w+|[()]", expression):
            known = word in ("and", "or", "not", "(", ")")
            value += f" {word} " if known else f" {any(word.lower() in name for name in names)} "
        return bool(eval(value))


Method = ast.FunctionDef | ast.AsyncFunctionDef


def test_methods(of_class: ast.ClassDef) -> list[Method]:
    return [each for each in of_class.body if isinstance(each, Method) and each.name.startswith("test_")]


# Else pytest takes it for a test.
test_methods.__test__ = False  # type: ignore[attr-defined]


@cache
def contracts() -> dict[str, dict[str, set[str]]]:
    """The tests that a class inherits from a contract of the test kit, with the ids that each carries."""
    found = {}
    for path in (ROOT / "zlayer_consensus" / "testing").rglob("*.py"):
        for each in ast.parse(path.read_text()).body:
            if isinstance(each, ast.ClassDef) and each.name.endswith("Contract"):
                found[each.name] = {method.name: ids(ast.get_docstring(method) or "") for method in test_methods(each)}
    return found


@cache
def suites() -> dict[Path, Suite]:
    files = [*(ROOT / "tests").glob("test_*.py"), ROOT / "tests" / "acceptance" / "test_stories.py"]
    return {path: Suite(path) for path in sorted(files)}


def ids(text: str) -> set[str]:
    return {f"{letter}-{number}" for letter, number in ID.findall(text)}


def ids_in_name(name: str) -> set[str]:
    return {f"{letter.upper()}-{number}" for letter, number in IN_NAME.findall(name)}


def place(row_id: str) -> tuple[int, int]:
    return "JHS".index(row_id[0]), int(row_id[2:])


def rows(page: str) -> Iterator[Row]:
    for block in re.split(r"^   \* - ", page, flags=re.MULTILINE)[1:]:
        row = re.split(r"\n(?=\S)", block, maxsplit=1)[0]
        cells = [cell.strip() for cell in CELL.split(row)]
        if cells[0] != "Id":
            yield Row(*cells)


class RecordTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.page = PAGE.read_text()
        self.rows = list(rows(self.page))
        self.suites = suites()

    def parsed(self, row: Row) -> tuple[list[Suite], str]:
        """The files and the expression of a row's command."""
        [command] = LITERAL.findall(row.command)
        python, module, runner, *rest = shlex.split(command)
        self.assertEqual((python, module, runner, rest[-2]), (PYTHON, "-m", "pytest", "-k"), row.id)
        return [self.suites[ROOT / path] for path in rest[:-2]], rest[-1]

    def does_not_apply(self) -> list[str]:
        section = self.page.partition("What does not apply")[2]
        return re.findall(r"^([JHS]-\d+)$", section, re.MULTILINE)

    def test_every_id_is_there_once_and_in_order(self) -> None:
        found = [row.id for row in self.rows]
        self.assertGreater(len(found), 150)
        self.assertEqual([row_id for row_id in found if not ID.fullmatch(row_id)], [])
        self.assertEqual(found, sorted(found, key=place))
        again = {row_id: count for row_id, count in Counter(found + self.does_not_apply()).items() if count > 1}
        self.assertEqual(again, {})

    def test_every_row_says_what_goes_wrong(self) -> None:
        self.assertEqual([row.id for row in self.rows if len(row.hazard) < 15 or not row.named_tests()], [])

    def test_named_tests_are_there_and_carry_the_id(self) -> None:
        for row in self.rows:
            files, _ = self.parsed(row)
            for name in row.named_tests():
                carried = [suite.methods[method] for suite in files for method in suite.having(name)]
                self.assertTrue(carried, f"{row.id}: there is no {name}")
                self.assertTrue(any(row.id in each for each in carried), f"{name} is not about {row.id}")

    def test_commands_run_the_named_tests(self) -> None:
        for row in self.rows:
            files, expression = self.parsed(row)
            chosen = {suite.path: suite.chosen(expression) for suite in files}
            self.assertTrue(all(chosen.values()), f"{row.id}: nothing of {chosen}")
            for name in row.named_tests():
                meant = [(suite.path, method) for suite in files for method in suite.having(name)]
                meant = [each for each in meant if row.id in self.suites[each[0]].methods[each[1]]]
                missed = [method for path, method in meant if method not in chosen[path]]
                self.assertTrue(len(missed) < len(meant) if "." in name else not missed, f"{row.id}: not run: {missed}")

    def test_every_id_that_a_test_carries_has_a_row(self) -> None:
        known = {row.id for row in self.rows}
        for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "tests" / "mutants" / "patches").glob("*.patch")]:
            if path != Path(__file__).resolve():
                text = path.read_text()
                named = set().union(*(ids_in_name(name) for name in re.findall(r"def (test_\w+)", text)))
                self.assertLessEqual(ids(text) | named, known, path.name)

    def test_mutants_are_those_that_carry_the_id(self) -> None:
        carrying: dict[str, list[str]] = {}
        for path in sorted((ROOT / "tests" / "mutants" / "patches").glob("*.patch")):
            head = path.read_text().partition("\n--- ")[0]
            for row_id in ids(head):
                carrying.setdefault(row_id, []).append(path.stem)
        found = {row.id: row.mutants() for row in self.rows if row.mutants()}
        self.assertEqual(found, carrying)

    def test_properties_are_those_of_the_simulator(self) -> None:
        folder = ROOT / "zlayer_consensus" / "testing" / "simulation"
        source = "".join(path.read_text() for path in folder.glob("*.py"))
        named = {name for row in self.rows for name in row.properties()}
        self.assertGreater(len(named), 10)
        self.assertEqual({name for name in named if f'"{name}"' not in source}, set())

    def test_what_the_introduction_names_is_there(self) -> None:
        introduction = self.page.partition(".. list-table::")[0]
        modules = re.findall(rf"``{re.escape(PYTHON)} -m ([\w.]+)", introduction)
        stories = [f"tests.acceptance.{name}" for name in ("kill_writer", "crashes", "sweep")]
        others = ["zlayer_consensus.testing.simulate", "tests.mutants"]
        self.assertEqual(modules, ["tests.exhaustive", *stories, *others])
        for module in modules:
            self.assertIsNotNone(find_spec(module), module)
        targets = set(re.findall(r"``make (\w+)", introduction))
        self.assertLessEqual(targets, set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)))

    def test_what_is_open_is_said_at_the_top(self) -> None:
        introduction = self.page.partition(".. list-table::")[0]
        told = ids(re.split(r"Open (?:is|are) ", introduction)[-1])
        self.assertEqual(told, {row.id for row in self.rows if "**Open" in row.tests})
