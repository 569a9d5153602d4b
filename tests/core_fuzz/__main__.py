"""Runs seeds from the command line."""

from __future__ import annotations

import argparse
import sys
import time

from . import Violation, run


def main() -> int:
    """Run the seeds that the command line names; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.core_fuzz", description=__doc__)
    parser.add_argument("--seeds", default="1..100", help="one seed, or a range such as 1..1000")
    parser.add_argument("--verbose", action="store_true", help="show what happens")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    parser.add_argument("--stop-after", type=float, default=0, help="seconds after which no new seed begins")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("..")
    began, events, count, failed = time.monotonic(), 0, 0, 0
    for seed in range(int(first), int(last or first) + 1):
        if options.stop_after and time.monotonic() - began > options.stop_after:
            break
        count += 1
        try:
            events += run(seed, verbose=options.verbose)
        except Violation as violation:
            failed += 1
            print(violation, flush=True)
            if not options.keep_going:
                raise
    seconds = time.monotonic() - began
    print(f"{count} seeds, {failed} failed, {events} events in {seconds:.1f} s ({events / seconds:.0f}/s)")
    return 1 if failed else 0


sys.exit(main())
