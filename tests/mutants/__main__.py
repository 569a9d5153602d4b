"""``python -m tests.mutants [NAME ...] [--seeds N] [--jobs N] [--rst]``: whether the simulator finds every bug."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from ._patch import BadPatch, Mutant, load_all
from ._report import line, summary, write_table
from ._runner import Result, RunFailed, end_all, run

_NOT_CAUGHT, _USAGE = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutants; return 1 if one survives, 2 if there is no verdict on one."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a mutant; without any, all of them")
    parser.add_argument("--seeds", type=_positive, default=500, help="seeds for each (default: 500)")
    parser.add_argument("--jobs", type=_positive, default=1, help="processes (default: 1)")
    parser.add_argument("--timeout", type=_positive, default=3600, help="seconds for each (default: 3600)")
    parser.add_argument("--rst", action="store_true", help="write the results into docs/mutants.rst")
    parser.add_argument("--list", action="store_true", help="only show what there is")
    options = parser.parse_args(arguments)
    try:
        mutants = load_all()
    except BadPatch as error:
        print(error, file=sys.stderr)
        return _USAGE
    unknown = sorted(set(options.names) - set(mutants))
    if unknown:
        parser.error(f"no such mutant: {', '.join(unknown)}")
    if options.rst and options.names:
        parser.error("--rst writes the results of all mutants; give no names")
    chosen = [mutants[name] for name in options.names or mutants]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name:<26} {', '.join(mutant.hazards):<18} {mutant.breaks}")
        return 0
    results, failures = _run_all(chosen, options)
    print(summary(results), flush=True)
    if failures:
        return _USAGE
    if options.rst:
        write_table(results)
    return 0 if all(result.caught for result in results) else _NOT_CAUGHT


def _run_all(mutants: list[Mutant], options: argparse.Namespace) -> tuple[list[Result], int]:
    """Run them, as many at once as there are jobs: so each takes its seeds in order, and finds the lowest."""
    inner = max(1, options.jobs // len(mutants))
    results: list[Result] = []
    failures = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [pool.submit(run, each, last=options.seeds, jobs=inner, timeout=options.timeout) for each in mutants]
        try:
            for done in as_completed(runs):
                try:
                    result = done.result()
                except (BadPatch, RunFailed) as error:
                    failures += 1
                    print(error, file=sys.stderr, flush=True)
                else:
                    results.append(result)
                    print(line(result), flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise
    return results, failures


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    sys.exit(main())
