"""Processes that write are killed, at any moment, and what they were acknowledged is compared with what is there.

``python -m tests.acceptance.kill_writer --rounds 1000`` kills so many that use the stores, and so many nodes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence

from tests.kill_kit import NodeKiller, StoreKiller
from zlayer_consensus.testing.crashes import CrashViolation

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill them; return 1 if something was lost, and keep the directory then."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000, help="processes of each kind that are killed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", help="where the files are; by default a temporary directory")
    options = parser.parse_args(arguments)
    place = tempfile.mkdtemp(prefix="kill-writer-", dir=options.directory)
    stores, node = StoreKiller(place, options.seed), NodeKiller(os.path.join(place, "node"), options.seed)
    began = time.monotonic()
    number = 0
    try:
        for number in range(1, options.rounds + 1):
            stores.round()
            node.round()
            if number % 100 == 0 or number == options.rounds:
                print(
                    f"[{time.monotonic() - began:7.2f}] {number} rounds: {stores.kills} processes with stores killed, "
                    f"after {stores.steps} steps, {stores.finished} had ended; {node.kills} nodes killed, after "
                    f"{node.acknowledged} acknowledged commands; nothing is missing",
                    flush=True,
                )
    except CrashViolation as error:
        print(f"round {number}: {error}\nThe files are in {place}", flush=True)
        return 1
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
