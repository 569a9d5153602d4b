"""What tools need that change the data directory of a stopped node.

Whoever calls these holds the directory's locks; :func:`locked` takes them. Every step may be interrupted, and what it
belongs to be done again.
"""

from ._offline import locked
from ._repair import RepairOutcome, carry_out, finish_interrupted, interrupted
from ._repair_plan import CannotRepair, RepairPlan, plan_repair
from ._repair_runs import Traces

__all__ = [
    "CannotRepair",
    "RepairOutcome",
    "RepairPlan",
    "Traces",
    "carry_out",
    "finish_interrupted",
    "interrupted",
    "locked",
    "plan_repair",
]
