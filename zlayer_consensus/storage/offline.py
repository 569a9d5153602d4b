"""What tools need that change the data directory of a stopped node.

Whoever repairs holds the directory's locks; :func:`locked` takes them. Every step may be interrupted, and what it
belongs to be done again.
"""

from ._new_cluster import CannotRecover, RecoveryPlan, join_new_cluster, plan_recovery
from ._offline import locked
from ._repair import RepairOutcome, carry_out, finish_interrupted, interrupted
from ._repair_plan import CannotRepair, RepairPlan, plan_repair
from ._survivors import Holdings, survey

__all__ = [
    "CannotRecover",
    "CannotRepair",
    "Holdings",
    "RecoveryPlan",
    "RepairOutcome",
    "RepairPlan",
    "carry_out",
    "finish_interrupted",
    "interrupted",
    "join_new_cluster",
    "locked",
    "plan_recovery",
    "plan_repair",
    "survey",
]
