"""A simulator of whole clusters: the shipped node, stores and codecs in a world that one seed decides.

Time, network, disks and processes are simulated, and fail; see the documentation, "Simulation"::

    simulate(Application(MyMachine, commands=lambda random, client: ["add", random.randint(1, 9)]))
"""

from __future__ import annotations

from ._application import Action, Application, Propose, Query, Record
from ._checker import Violation
from ._plan import Fault, Knobs, Plan
from ._plan_file import PlanFileError, dump_plan, load_plan
from ._report import Report
from ._run import Outcome, run_plan, run_seed
from ._simulate import SimulationFailed, simulate
from ._store import values_on_disk
from ._with_files import Disk

__all__ = [
    "Action",
    "Application",
    "Disk",
    "Fault",
    "Knobs",
    "Outcome",
    "Plan",
    "PlanFileError",
    "Propose",
    "Query",
    "Record",
    "Report",
    "SimulationFailed",
    "Violation",
    "dump_plan",
    "load_plan",
    "run_plan",
    "run_seed",
    "simulate",
    "values_on_disk",
]
