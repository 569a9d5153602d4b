"""An exhaustive exploration of the core: every order of events within bounds, each state once.

``python -m tests.exhaustive`` explores all scenarios in their small form, ``--wide`` in their wide one.
"""

from ._mutants import MUTANTS, mutated
from ._scenarios import SCENARIOS, WIDE
from ._search import Result, explore

__all__ = ["MUTANTS", "SCENARIOS", "WIDE", "Result", "explore", "mutated"]
