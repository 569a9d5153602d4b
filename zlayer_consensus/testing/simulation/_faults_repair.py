"""What an operator does about damaged disks: the log is repaired, and the node comes back with a mark (J-98)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import StorageCorrupt, StorageFailed
from ...storage.inspection import NoLog, examine_log, start_of
from ...storage.offline import CannotRepair, carry_out, finish_interrupted, interrupted, locked, plan_repair
from .._simfs import Interrupted, SimulatedFileSystem
from ._fuse import Fuse

if TYPE_CHECKING:
    from ._host import Host

__all__ = ["LOG", "STATE", "repair"]

LOG, STATE = "/log", "/state"
_CHANGES = ("write", "sync", "rename", "link", "remove", "sync_dir", "create")


def repair(host: Host) -> bool:
    """Repair what the node refused to start with; return whether that was possible.

    The power may fail in the middle. What the tool would ask the operator is answered with yes.
    """
    world, random = host.world, host.random
    try:
        if random.random() < 0.3:
            host.files.before = Fuse(_CHANGES, random.randint(1, 25), _power_fails)
            try:
                _repair(host.files, host)
            except StorageFailed:
                world.count("repair interrupted")
            host.files = host.files.crash(random.choice(("none", "all", "prefix", random)))
        host.files.capacity = None  # the operator makes room, if there is too little
        if not _repair(host.files, host):
            return False
        identity, found = examine_log(host.files, LOG)
    except (CannotRepair, NoLog):
        return False
    except StorageCorrupt as error:
        raise world.checker.violated("repair", f"node {host.node_id} is damaged after its repair: {error}") from error
    world.checker.repaired(host.node_id, start_of(found.index))
    world.count("repair")
    if not identity.repair:
        world.quorums.found(host.node_id)  # it was found that nothing is missing
    world.trace("repair", f"node {host.node_id}, up to {found.index.last}")
    return True


def _repair(files: SimulatedFileSystem, host: Host) -> bool:
    with locked(files, LOG, STATE):
        if interrupted(files, LOG):
            finish_interrupted(files, LOG)
        plan = plan_repair(files, LOG, STATE, _cluster_id(host))
        if plan.sole_voter:
            return False  # its mark could never be removed
        carry_out(files, LOG, STATE, plan, host.random.randbytes)
    return True


def _cluster_id(host: Host) -> bytes:
    """Return what the status of any other member shows."""
    others = [other.process for other in host.world.hosts.values() if other is not host and other.process is not None]
    known = [other.log_store.identity.cluster_id for other in others if other.ready and not other.impostor]
    return known[0] if known else b""


def _power_fails(operation: str, path: str) -> None:
    raise Interrupted(operation, path, "the power fails")
