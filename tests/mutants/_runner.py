"""Runs the simulator over a copy of the package that has a bug in it, and judges what came out.

A mutant counts as caught only if the same seed passes without the bug.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ._patch import Mutant

__all__ = ["CAUGHT", "ROOT", "Result", "RunFailed", "end_all", "replay", "run"]

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = "zlayer_consensus"
SIMULATE = f"{PACKAGE}.testing.simulate"
CAUGHT = {10: "safety", 11: "liveness", 12: "crash"}
"""The simulator's exit codes that mean that a seed failed."""
_PASSED, _VACUOUS = 0, 13
_FAILED_SEED = re.compile(r"^seed (\d+): (safety|liveness|crash): (.+?)(?:: (.*))?$", re.MULTILINE)
_TAIL = 2000
_processes: set[subprocess.Popen[str]] = set()
"""The simulators that run. They have process groups of their own, so that an interrupt does not reach them."""


class RunFailed(Exception):
    """The simulator could not be run, or said something that nobody understands. No verdict on the mutant."""


@dataclass(frozen=True)
class Result:
    """What became of one mutant.

    ``verdict`` is ``safety``, ``liveness`` or ``crash`` if it was caught; else ``survived``, ``vacuous``, ``hung``, or
    ``not its doing`` if the seed that failed fails without the bug as well.
    """

    mutant: Mutant
    verdict: str
    seconds: float
    seeds: int
    """How many seeds it took; without a catch, how many were tried."""
    seed: int = 0
    """The seed that failed."""
    invariant: str = ""
    text: str = ""

    @property
    def caught(self) -> bool:
        """Whether the simulator has found the bug."""
        return self.verdict in CAUGHT.values()


def run(
    mutant: Mutant, *, first: int = 1, last: int = 500, jobs: int = 1, timeout: float = 3600, root: Path = ROOT
) -> Result:
    """Look for a mutant, until a seed fails or there are no more.

    :param first: the first seed.
    :param last: the last one.
    :param jobs: processes of the simulator. With one, the seed that is found is the lowest that fails.
    :param timeout: seconds after which a run counts as hung.
    :param root: the project that is copied.
    :raises BadPatch: if the patch does not fit the code.
    :raises RunFailed: if there is no verdict.
    """
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
        copy = _copy(root, Path(directory) / "mutated")
        mutant.apply(copy)
        _check_imported(copy, mutant)
        options = ["--seeds", f"{first}..{last}", "--first", "--no-shrink", "--jobs", str(jobs)]
        code, output = _simulate(copy, options, timeout)
        seconds = time.monotonic() - begin
        tried = last - first + 1
        if code is None:
            return Result(mutant, "hung", seconds, tried)
        if code in (_PASSED, _VACUOUS):
            return Result(mutant, "survived" if code == _PASSED else "vacuous", seconds, tried)
        # With several processes more than one seed may have failed; the exit code is that of the worst.
        found = next((each for each in _FAILED_SEED.finditer(output) if each[2] == CAUGHT.get(code)), None)
        if found is None:
            raise RunFailed(f"{mutant.name}: the simulator ended with {code}:\n{output[-_TAIL:]}")
        seed, verdict = int(found[1]), found[2]
        if not _passes(_copy(root, Path(directory) / "shipped"), seed, timeout):
            verdict = "not its doing"
        return Result(mutant, verdict, seconds, seed - first + 1, seed, found[3], found[4] or "")


def replay(mutant: Mutant, plan: Path, *, timeout: float = 600, root: Path = ROOT) -> str:
    """Run a saved plan over a mutant; return its verdict: one of ``CAUGHT``, or ``survived``, ``vacuous`` or ``hung``.

    :raises BadPatch: if the patch does not fit the code.
    :raises RunFailed: if there is no verdict.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
        copy = _copy(root, Path(directory))
        mutant.apply(copy)
        code, output = _simulate(copy, ["--plan", str(plan), "--no-shrink"], timeout)
    if code is None:
        return "hung"
    verdicts = {**CAUGHT, _PASSED: "survived", _VACUOUS: "vacuous"}
    if code not in verdicts:
        raise RunFailed(f"{mutant.name}: the simulator ended with {code}:\n{output[-_TAIL:]}")
    return verdicts[code]


def _copy(root: Path, target: Path) -> Path:
    """Copy what a run needs. Compiled files are left behind: they could be taken for those of the mutated source."""
    ignore = shutil.ignore_patterns("__pycache__", "dropin.cache")
    shutil.copytree(root / PACKAGE, target / PACKAGE, ignore=ignore)
    plugins = root / "twisted" / "plugins"
    if plugins.is_dir():
        shutil.copytree(plugins, target / "twisted" / "plugins", ignore=ignore)
    return target


def _environment(copy: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return environment | {"PYTHONPATH": str(copy), "PYTHONHASHSEED": "0"}


def _check_imported(copy: Path, mutant: Mutant) -> None:
    """See that the copy is what a run imports, and not the package that is installed.

    :raises RunFailed: if it is not.
    """
    names = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in mutant.paths]
    program = "import importlib, sys\nfor name in sys.argv[1:]: print(importlib.import_module(name).__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program, PACKAGE, *names],
        cwd=copy,
        env=_environment(copy),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise RunFailed(f"{mutant.name}: the mutated package cannot be imported:\n{done.stderr[-_TAIL:]}")
    for line in done.stdout.splitlines():
        if not Path(line).resolve().is_relative_to(copy.resolve()):
            raise RunFailed(f"{mutant.name}: {line} was imported instead of the copy")


def _simulate(copy: Path, options: list[str], timeout: float) -> tuple[int | None, str]:
    """Run the simulator; return its exit code, None if it hung, and what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", SIMULATE, *options],
        cwd=copy,
        env=_environment(copy),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that it can be killed together with its own processes
    )
    _processes.add(process)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.communicate()
        return None, ""
    finally:
        _processes.discard(process)
    return process.returncode, output


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a simulator and the processes that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def end_all() -> None:
    """Kill every simulator that this process has started; their runs fail."""
    for process in list(_processes):
        _kill(process)


def _passes(copy: Path, seed: int, timeout: float) -> bool:
    code, output = _simulate(copy, ["--seeds", f"{seed}..{seed}", "--no-shrink", "--jobs", "1"], timeout)
    if code not in (_PASSED, _VACUOUS, None, *CAUGHT):
        raise RunFailed(f"seed {seed} without a bug: the simulator ended with {code}:\n{output[-_TAIL:]}")
    return code in (_PASSED, _VACUOUS)
