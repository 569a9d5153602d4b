"""Explores scenarios from the command line."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext

from . import MUTANTS, SCENARIOS, WIDE, explore, mutated


def main() -> int:
    """Explore what the command line names; return 1 if an invariant broke, 3 if a limit cut an exploration short."""
    parser = argparse.ArgumentParser(prog="python -m tests.exhaustive", description=__doc__)
    parser.add_argument("--scenario", action="append", choices=[*SCENARIOS], help="which; repeatable (default: all)")
    parser.add_argument("--wide", action="store_true", help="within wider bounds, which takes minutes to hours")
    parser.add_argument("--depth", type=int, metavar="N", help="stop after paths of N actions")
    parser.add_argument("--limit-states", type=int, metavar="N", help="stop at N states (about 1 kB of memory each)")
    parser.add_argument("--mutant", choices=[*MUTANTS], help="explore a core that is wrong on purpose")
    options = parser.parse_args()
    code = 0
    for name in options.scenario or SCENARIOS:
        scenario = (WIDE if options.wide else SCENARIOS)[name]
        with mutated(options.mutant) if options.mutant else nullcontext():
            result = explore(scenario, depth=options.depth, limit_states=options.limit_states)
        print(result, flush=True)
        for what, count in sorted(result.seen.items()):
            print(f"    {count:8} {what}")
        for line in result.path:
            print("   ", line)
        missing = [what for what in scenario.wanted if not result.seen[what]]
        if missing and not result.violation:
            print("    never seen:", ", ".join(missing), flush=True)
        if result.violation:
            code = 1
        elif not result.finished:
            code = code or 3
    return code


sys.exit(main())
