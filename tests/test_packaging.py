"""
The shape of the project: what twistd needs to find the plugin, and the rules for files that no tool checks.
"""

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "zlayer_consensus"
PLUGINS = ROOT / "twisted" / "plugins"
PLUGIN = PLUGINS / "zlayer_consensus_plugin.py"

# A module that is longer holds more than one thing.
MAX_MODULE_LINES = 500

# Printed on one line of its own, whatever else a module may print when it is imported.
REPORT_REACTOR_MODULES = """
import sys
print("loaded:", *sorted({"klein", "twisted.internet.reactor"} & set(sys.modules)))
"""


def modules(directory: Path) -> Iterator[tuple[str, str, ast.Module]]:
    """Yields path in the project, source and syntax tree of every module under a directory."""
    for path in sorted(directory.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        yield str(path.relative_to(ROOT)), source, ast.parse(source, str(path))


def imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields line and full name of everything that a module imports, inside functions too."""
    packages = Path(path).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the package of the module itself, and each further dot is one package up.
            start = packages[: len(packages) - node.level + 1] if node.level else ()
            origin = ".".join([*start, node.module] if node.module else start)
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def is_inside(name: str, package: str) -> bool:
    """Says whether a dotted name is a package or something in it."""
    return name == package or name.startswith(package + ".")


def run_python(program: str) -> str:
    """Runs a program in a new interpreter that finds the project, and returns what it printed."""
    preamble = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", preamble + program], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode}: {done.stderr}")
    return done.stdout


class PluginTests(SynchronousTestCase):
    def test_plugin_directories_are_not_packages(self) -> None:
        """Twisted silently skips a plugin directory that has an ``__init__.py``, or whose parent has one."""
        self.assertEqual(list((ROOT / "twisted").rglob("__init__.py")), [])

    def test_plugin_directory_holds_the_plugin_alone(self) -> None:
        found = [path.name for path in PLUGINS.glob("*.py")]
        self.assertEqual(found, [PLUGIN.name])

    def test_plugin_is_one_service_maker_and_nothing_else(self) -> None:
        """An import of anything of ours would run in every ``twistd`` of the environment."""
        docstring, imported, assigned = ast.parse(PLUGIN.read_text(encoding="utf-8")).body
        self.assertIsInstance(docstring, ast.Expr)
        self.assertEqual(ast.unparse(imported), "from twisted.application.service import ServiceMaker")
        assert isinstance(assigned, ast.Assign) and isinstance(assigned.value, ast.Call)
        self.assertEqual(ast.unparse(assigned.value.func), "ServiceMaker")
        arguments = [ast.literal_eval(argument) for argument in assigned.value.args]
        self.assertEqual(arguments[1], "zlayer_consensus.daemon.service")
        self.assertEqual(arguments[3], "zconsensus")

    def test_plugin_leaves_the_reactor_to_twistd(self) -> None:
        """With a reactor in place, ``twistd --reactor`` fails; and an import of Klein installs one."""
        printed = run_python("import twisted.plugins.zlayer_consensus_plugin" + REPORT_REACTOR_MODULES)
        self.assertEqual(printed.strip(), "loaded:")

    def test_package_leaves_the_reactor_to_the_application(self) -> None:
        """An application that embeds a node may install the reactor of its choice after it imported us."""
        self.assertEqual(run_python("import zlayer_consensus" + REPORT_REACTOR_MODULES).strip(), "loaded:")

    def test_twistd_finds_the_plugin(self) -> None:
        printed = run_python(
            "from twisted.application.service import IServiceMaker\n"
            "from twisted.plugin import getPlugins\n"
            "print([maker.module for maker in getPlugins(IServiceMaker) if maker.tapname == 'zconsensus'])\n"
        )
        self.assertEqual(printed.strip(), "['zlayer_consensus.daemon.service']")


class TidyTests(SynchronousTestCase):
    def test_modules_are_short(self) -> None:
        lengths = {path: source.count("\n") for path, source, _ in modules(PACKAGE)}
        too_long = {path: lines for path, lines in lengths.items() if lines >= MAX_MODULE_LINES}
        self.assertEqual(too_long, {})

    def test_public_things_have_docstrings(self) -> None:
        """Private modules included: what is public in them is re-exported by their package."""
        missing = []
        for path, _, tree in modules(PACKAGE):
            if not ast.get_docstring(tree):
                missing.append(path)
            for node in tree.body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not (
                    node.name.startswith("_") or ast.get_docstring(node) or is_overload(node)
                ):
                    missing.append(f"{path}:{node.lineno} {node.name}")
        self.assertEqual(missing, [])

    def test_packages_say_what_is_public(self) -> None:
        """Every package that exports something lists it in ``__all__``, and everything listed is there."""
        wrong = []
        for path, _, tree in modules(PACKAGE):
            if not path.endswith("__init__.py"):
                continue
            name = ".".join(Path(path).parent.parts)
            package = importlib.import_module(name)
            exported = getattr(package, "__all__", None)
            if exported is None:
                if any(public_names(node) for node in tree.body):
                    wrong.append(f"{name} has no __all__")
            else:
                wrong += [f"{name}.{each} is missing" for each in exported if not hasattr(package, each)]
        self.assertEqual(wrong, [])


class RoomTests(SynchronousTestCase):
    """What one room may know of others, where the import contract in ``pyproject.toml`` does not reach."""

    def test_algorithm_has_no_access_to_the_world(self) -> None:
        """The same list as in the contract; here the package's ``__init__`` and lazy imports are seen too."""
        settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        [contract] = [each for each in settings["tool"]["importlinter"]["contracts"] if each["id"] == "raft"]
        forbidden = contract["forbidden_modules"]
        self.assertIn("twisted", forbidden)
        found = [
            f"{path}:{line} {name}"
            for path, _, tree in modules(PACKAGE / "raft")
            for line, name in imports(path, tree)
            if any(is_inside(name, each) for each in forbidden)
        ]
        self.assertEqual(found, [])

    def test_key_value_application_uses_public_names_alone(self) -> None:
        hidden = [f"{PACKAGE.name}.{room}" for room in ("raft", "network")]
        found = [
            f"{path}:{line} {name}"
            for path, _, tree in modules(PACKAGE / "kv")
            for line, name in imports(path, tree)
            if is_inside(name, PACKAGE.name) and not is_inside(name, f"{PACKAGE.name}.kv")
            if any(is_inside(name, each) for each in hidden) or "._" in name
        ]
        self.assertEqual(found, [])

    def test_nothing_imports_the_test_kit(self) -> None:
        kit = f"{PACKAGE.name}.testing"
        found = [
            f"{path}:{line} {name}"
            for path, _, tree in modules(PACKAGE)
            if not is_inside(".".join(Path(path).parts), kit)
            for line, name in imports(path, tree)
            if is_inside(name, kit)
        ]
        self.assertEqual(found, [])

    def test_node_does_not_know_http(self) -> None:
        found = [
            f"{path}:{line} {name}"
            for path, _, tree in modules(PACKAGE)
            if is_inside(".".join(Path(path).with_suffix("").parts), f"{PACKAGE.name}.node")
            for line, name in imports(path, tree)
            if is_inside(name, "klein") or is_inside(name, "treq")
        ]
        self.assertEqual(found, [])


def is_overload(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Says whether a function is one of several signatures, whose docstring is on the implementation."""
    return any(ast.unparse(each).split(".")[-1] == "overload" for each in node.decorator_list)


def public_names(node: ast.stmt) -> list[str]:
    """Lists the public names that a statement of a package's ``__init__`` brings into it from the project."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        names = [node.name]
    elif isinstance(node, ast.ImportFrom) and (node.level or is_inside(node.module or "", PACKAGE.name)):
        names = [alias.asname or alias.name for alias in node.names]
    elif isinstance(node, ast.Assign):
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
    else:
        names = []
    return [name for name in names if not name.startswith("_")]
