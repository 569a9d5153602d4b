"""What many runs found, as text and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ._run import VERDICTS, Outcome

__all__ = ["VACUOUS_SHARE", "Report"]

VACUOUS_SHARE = 0.25
"""If more of the runs than this are vacuous, all of them together prove too little."""

_EXIT_CODES = {"safety": 10, "crash": 12, "liveness": 11}
_VACUOUS_EXIT_CODE = 13
_LISTED = 12


class Report:
    """Adds up what came of many runs.

    :param application: its name, as given on the command line, or empty.
    """

    def __init__(self, application: str = "") -> None:
        self.verdicts: Counter[str] = Counter()
        self.failures: list[Outcome] = []
        self.vacuous: list[int] = []
        self.simulated = 0.0
        self.events = 0
        self.seconds = 0.0
        """Processor time, in seconds."""
        self._digest = 0
        self._counts: Counter[str] = Counter()
        self._seeds: Counter[str] = Counter()
        self._application = application

    def add(self, outcome: Outcome) -> None:
        """Take in what came of one run."""
        self.verdicts[outcome.verdict] += 1
        if outcome.failed:
            self.failures.append(outcome)
        elif outcome.verdict == "vacuous":
            self.vacuous.append(outcome.seed)
        self.simulated += outcome.at
        self.events += outcome.events
        self.seconds += outcome.seconds
        # Whatever the order in which they came.
        self._digest ^= outcome.digest
        self._counts.update(outcome.counts)
        self._seeds.update(outcome.counts.keys())

    @property
    def runs(self) -> int:
        """How many there were."""
        return self.verdicts.total()

    @property
    def exit_code(self) -> int:
        """What the process ends with: the worst that was found."""
        for verdict, code in _EXIT_CODES.items():
            if self.verdicts[verdict]:
                return code
        return _VACUOUS_EXIT_CODE if len(self.vacuous) > VACUOUS_SHARE * self.runs else 0

    def groups(self) -> list[list[Outcome]]:
        """Return the failures by what failed, the worst first, each group by seed."""
        groups: dict[tuple[int, str], list[Outcome]] = {}
        order = list(_EXIT_CODES)
        for outcome in sorted(self.failures, key=lambda each: each.seed):
            groups.setdefault((order.index(outcome.verdict), outcome.invariant), []).append(outcome)
        return [groups[key] for key in sorted(groups)]

    def replay(self, outcome: Outcome) -> str:
        """Return the command that shows a run again."""
        application = f" --application {self._application}" if self._application else ""
        return f"python -m zlayer_consensus.testing.simulate --seed {outcome.seed}{application} --trace"

    def lines(self, elapsed: float) -> list[str]:
        """Return the summary.

        :param elapsed: seconds that all took.
        """
        found = ", ".join(f"{self.verdicts[verdict]} {verdict}" for verdict in VERDICTS if self.verdicts[verdict])
        lines = [f"{self.runs} seeds in {elapsed:.1f} s: {found or 'none'}"]
        if self.seconds:
            lines.append(
                f"{self.simulated:.0f} simulated seconds and {self.events} events; on one core and in one second "
                f"{self.runs / self.seconds:.2f} seeds, {self.events / self.seconds:.0f} events, "
                f"{self.simulated / self.seconds:.1f} simulated seconds"
            )
        if self._counts:
            lines.append("What happened, how often, and in how many seeds:")
            lines += self._table()
        if self.vacuous:
            lines.append(f"Vacuous, and no proof of anything: {_listed(self.vacuous)}")
        for group in self.groups():
            first = group[0]
            seeds = _listed([each.seed for each in group])
            lines.append(f"{first.verdict}: {first.invariant}: {len(group)} of the seeds: {seeds}")
            lines.append(f"  {self.replay(first)}")
        return lines

    def _table(self) -> list[str]:
        width = max(map(len, self._counts))
        rows = [f"  {name:{width}} {self._counts[name]:9} {self._seeds[name]:7}" for name in sorted(self._counts)]
        # In two columns, as long as that fits a terminal.
        half = -(-len(rows) // 2)
        if 2 * (width + 20) > 120:
            return rows
        right = [*rows[half:], *[""] * (2 * half - len(rows))]
        return [f"{one}    {other}".rstrip() for one, other in zip(rows[:half], right, strict=True)]

    def as_json(self, elapsed: float) -> dict[str, Any]:
        """Return the same for programs."""
        return {
            "seeds": self.runs,
            "verdicts": {verdict: self.verdicts[verdict] for verdict in VERDICTS},
            "exit_code": self.exit_code,
            "digest": self._digest,
            "elapsed_seconds": elapsed,
            "cpu_seconds": self.seconds,
            "simulated_seconds": self.simulated,
            "events": self.events,
            "events_per_cpu_second": self.events / self.seconds if self.seconds else 0.0,
            "counts": {
                name: {"total": self._counts[name], "seeds": self._seeds[name]} for name in sorted(self._counts)
            },
            "vacuous": sorted(self.vacuous),
            "failures": [
                {
                    "seed": each.seed,
                    "verdict": each.verdict,
                    "invariant": each.invariant,
                    "text": each.text,
                    "details": each.details,
                    "at": each.at,
                    "replay": self.replay(each),
                }
                for group in self.groups()
                for each in group
            ],
        }


def _listed(seeds: list[int]) -> str:
    shown = ", ".join(map(str, sorted(seeds)[:_LISTED]))
    return shown if len(seeds) <= _LISTED else f"{shown} … ({len(seeds)} in all)"
