"""Our file backends under crashes at every operation, with more ways to crash than the tests of every day look at.

``python -m tests.acceptance.crashes --seeds 20``
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.crash_kit import make_log, make_machine_store
from zlayer_consensus.storage import IExecutor, IFileSystem, ILogStore
from zlayer_consensus.testing import SimulatedFileSystem
from zlayer_consensus.testing.crashes import (
    NODE_SCRIPTS,
    SCRIPTS,
    SNAPSHOT_STEPS,
    CrashViolation,
    Depth,
    Explored,
    GatedExecutor,
    LogSubject,
    NodeSubject,
    SnapshotSubject,
    explore_crashes,
    log_story,
    node_story,
    random_script,
    snapshot_story,
)

__all__ = ["main"]

_SIZES = (16 << 10, 64 << 10)
"""Of segments."""


def _begun(*makers: Callable[[SimulatedFileSystem, IExecutor], ILogStore]) -> SimulatedFileSystem:
    files = SimulatedFileSystem()
    files.mkdir("/data")
    files.sync_dir("/")
    for make in makers:
        log = make(files, GatedExecutor())
        _ = log.open()
        _ = log.close()
    return files.crash("all")


def _explore(kind: str, name: str, depth: Depth) -> Explored:
    """Explore one script: ``log/<segment size>``, ``snapshots`` or ``node``."""
    seed = f"{kind} {name}"
    if kind == "snapshots":
        story = snapshot_story(make_machine_store, SNAPSHOT_STEPS[name])
        return explore_crashes(SnapshotSubject(make_machine_store), story, depth=depth, files=_begun(), seed=seed)
    if kind == "node":
        story = node_story(make_log, make_machine_store, NODE_SCRIPTS[name]())
        subject = NodeSubject(make_log, make_machine_store)
        return explore_crashes(subject, story, depth=depth, files=_begun(make_log), seed=seed)
    size = int(kind.partition("/")[2])

    def make(files: IFileSystem, executor: IExecutor) -> ILogStore:
        return make_log(files, executor, size)

    steps = SCRIPTS[name]().steps if name in SCRIPTS else random_script(name, 30).steps
    files = _begun() if name == "identity" else _begun(make)
    return explore_crashes(LogSubject(make), log_story(make, steps), depth=depth, files=files, seed=seed)


def _tasks(seeds: int) -> list[tuple[str, str]]:
    found = [("node", name) for name in NODE_SCRIPTS]
    found += [(f"log/{size}", name) for size in _SIZES for name in SCRIPTS]
    found += [("snapshots", name) for name in SNAPSHOT_STEPS]
    return found + [(f"log/{_SIZES[0]}", str(seed)) for seed in range(1, seeds + 1)]


def main() -> int:
    """Explore everything; return 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="random scripts beside the written ones")
    parser.add_argument("--levels", type=int, default=1, help="openings that are cut off, one after the other")
    parser.add_argument("--further", type=int, default=4, help="ways of each crash whose opening is cut off")
    parser.add_argument("--samples", type=int, default=6, help="ways of each class")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    depth = Depth(5, options.samples, options.samples, options.further, options.levels)
    total, found = Explored(), 0
    began = time.monotonic()
    with ProcessPoolExecutor(options.jobs) as pool:
        running = {pool.submit(_explore, kind, name, depth): (kind, name) for kind, name in _tasks(options.seeds)}
        for done in as_completed(running):
            kind, name = running[done]
            try:
                seen = done.result()
            except CrashViolation as error:
                found += 1
                print(f"{kind} {name}: {error}", flush=True)
            else:
                total += seen
                print(f"{kind} {name}: {_told(seen)}", flush=True)
    print(f"{_told(total)}, in {time.monotonic() - began:.0f} s; {found or 'no'} violations", flush=True)
    return 1 if found else 0


def _told(seen: Explored) -> str:
    return f"{seen.moments} moments, {seen.states} states ({seen.torn} torn), {seen.openings} openings"


if __name__ == "__main__":
    sys.exit(main())
