"""What goes wrong, by name. Each is a function of the world and of a random source of its own."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from . import _faults_changes as changes
from . import _faults_disk as disk
from . import _faults_members as members
from . import _faults_network as network
from . import _faults_process as process

if TYPE_CHECKING:
    from ._plan import Fault
    from ._world import World

__all__ = ["KINDS", "happen"]

_FAULTS: dict[str, tuple[float, Callable[[World, Random], None]]] = {
    "crash": (2.0, process.crash),
    "crash at message": (2.0, process.crash_at_message),
    "crash at operation": (6.0, process.crash_at_operation),
    "crash while starting": (2.0, process.crash_while_starting),
    "power loss": (4.0, process.power_loss),
    "power loss of all": (2.0, process.power_all),
    "pause": (2.0, process.pause),
    "restart": (1.0, process.restart),
    "clock rate": (0.5, process.clock_rate),
    "wall clock": (0.5, process.wall_clock),
    "partition": (2.0, network.partition),
    "isolate": (2.0, network.isolate),
    "deposed leader": (5.0, network.depose),
    "one-way cut": (2.0, network.one_way),
    "bridge": (1.0, network.bridge),
    "ring": (0.5, network.ring),
    "clog": (2.0, network.clog),
    "bad links": (1.0, network.degrade),
    "slow disk": (1.0, disk.slow),
    "stalled disk": (1.5, disk.stall),
    "disk full": (1.0, disk.disk_full),
    "disks full": (0.7, disk.disks_full),
    "disk error": (1.0, disk.failure),
    "bit rot": (2.0, disk.rot),
    "bit rot while running": (2.0, disk.rot_while_running),
    "lost tail": (3.0, disk.lost_tail),
    "wipe": (1.0, disk.wipe),
    "add voter": (2.0, members.add_voter),
    "add learner": (1.5, members.add_learner),
    "remove voter": (1.5, members.remove_voter),
    "interrupted change": (4.0, changes.interrupt),
    "interrupted transfer": (2.0, changes.interrupt_transfer),
    "remove learner": (0.7, members.remove_learner),
    "change voters": (1.5, members.change_voters),
    "replace": (1.0, members.replace),
    "move": (1.0, members.move),
    "transfer": (1.5, members.transfer),
    "elect": (0.7, members.trigger_election),
    "snapshot": (1.0, members.snapshot),
    "purge": (0.7, members.purge),
}

KINDS: dict[str, float] = {name: weight for name, (weight, _) in _FAULTS.items()}
"""Every kind, and how often it happens."""


def happen(world: World, fault: Fault) -> None:
    """Let it happen."""
    _FAULTS[fault.kind][1](world, Random(fault.seed))
