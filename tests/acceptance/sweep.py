"""Every byte that a start reads is damaged, one at a time: it finds the identical state, or refuses. So with values on
disk, which are then read, too. ``zconsensus log verify`` is asked about every byte.

``python -m tests.acceptance.sweep --rounds 3``
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

from tests.sweep_files_kit import FilesDirectory, FilesSweep
from tests.sweep_kit import Directory, Sweep, Verifier, flips, kind_of
from zlayer_consensus.cli._exit import ExitCode
from zlayer_consensus.errors import StorageCorrupt
from zlayer_consensus.testing import SimulatedFileSystem
from zlayer_consensus.testing.crashes import CrashViolation

__all__ = ["main"]

_PATTERNS: tuple[int | None, ...] = (None, 1)
"""All bits, and one bit of each byte."""


def _start(rounds: int, kind: str, share: int, shares: int) -> tuple[Counter[str], Counter[str], int]:
    """Sweep a share of a directory that was stopped, or is of a busy node; return tried, refused and unread.

    That of a node with values on disk was stopped, too, and all bits of each byte are flipped.
    """
    values = kind == "values"
    directory = _made(rounds, kind)
    files = directory.busy() if kind == "busy" else directory.stopped()
    sweep = (FilesSweep if values else Sweep)(directory, files)
    for path, offset, value in islice(sweep.places(), share, None, shares):
        for seed in _PATTERNS[:1] if values else _PATTERNS:
            sweep.flip(path, offset, flips(offset, value, seed))
    return sweep.tried, sweep.refused, sweep.unread


def _made(rounds: int, kind: str) -> Directory:
    return (FilesDirectory if kind == "values" else Directory)(rounds)


def _verify(rounds: int, kind: str, share: int, shares: int) -> tuple[Counter[str], Counter[str], int]:
    """Let the tool verify a share of a stopped directory; return tried, found by kind, and nothing."""
    verifier = Verifier(_made(rounds, kind).stopped())
    tried: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for path, offset, value in islice(verifier.places(), share, None, shares):
        tried[kind_of(path)] += 1
        if verifier.verdict(path, offset, flips(offset, value, 2)) is ExitCode.CLEAN:
            raise CrashViolation(f"{path}, byte {offset}: the tool has not noticed it")
        found[kind_of(path)] += 1
    return tried, found, 0


def _window(directory: Directory, files: SimulatedFileSystem) -> int:
    """Count the sectors that, turned to zeros, take entries with them though the start succeeds."""
    sweep = Sweep(directory, files)
    count = 0
    for path, size in files.files():
        for at in range(0, size if path.endswith(".seg") else 0, 512):
            damaged = files.crash("all")
            damaged.corrupt(path, at, bytes(512))
            try:
                found = directory.subject.recover(damaged)
            except StorageCorrupt:
                continue
            count += found.log.last.index < sweep.pristine.log.last.index
    return count


def _all(
    pool: ProcessPoolExecutor, work: Callable[..., tuple[Counter[str], Counter[str], int]], *args: object, shares: int
) -> tuple[Counter[str], Counter[str], int]:
    tried: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    unread = 0
    for done in [pool.submit(work, *args, share, shares) for share in range(shares)]:
        one = done.result()
        tried += one[0]
        refused += one[1]
        unread = one[2]
    return tried, refused, unread


def _told(tried: Counter[str], refused: Counter[str], word: str) -> str:
    return ", ".join(f"{kind} {refused[kind]} of {tried[kind]}" for kind in sorted(tried)) + f" {word}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep; return 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how large the directory is")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    shares = 8 * options.jobs
    with ProcessPoolExecutor(options.jobs) as pool:
        try:
            for kind in ("stopped", "busy", "values"):
                tried, refused, unread = _all(pool, _start, options.rounds, kind, shares=shares)
                told = _told(tried, refused, "refused")
                print(f"{kind}: {told}, all others identical; {unread} not read", flush=True)
            for kind in ("stopped", "values"):
                tried, found, _ = _all(pool, _verify, options.rounds, kind, shares=shares)
                print(f"verify, {kind}: {_told(tried, found, 'found')}", flush=True)
        except CrashViolation as error:
            print(error, flush=True)
            return 1
    directory = Directory(options.rounds)
    windows = [_window(directory, files) for files in (directory.busy(), directory.stopped())]
    print(f"sectors that turn to zeros unnoticed: {windows[0]} of a busy node, {windows[1]} of a stopped one")
    print(f"in {time.monotonic() - began:.0f} s", flush=True)
    return 1 if windows[1] else 0


if __name__ == "__main__":
    sys.exit(main())
