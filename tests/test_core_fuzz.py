"""Random faults against the core alone, by seed: J-31, J-69 and the invariants of the whole catalogue.

``python -m tests.core_fuzz --seeds 1..1000`` runs more of them.
"""

from __future__ import annotations

import unittest

from tests.core_fuzz import run

SEEDS = range(1, 21)


class CoreFuzzTests(unittest.TestCase):
    """One leader a term, equal logs, nothing committed lost, every token ended, and rest once the faults are over."""

    def test_random_faults(self) -> None:
        """J-31, J-69: the committed prefix never changes, through crashes, partitions and membership changes."""
        events = sum(run(seed) for seed in SEEDS)
        self.assertGreater(events, 1000 * len(SEEDS))
