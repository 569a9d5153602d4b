"""What a node makes of its disk when it starts: the newest snapshot, and the log behind it."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right

from ..errors import StorageCorrupt, WrongIdentity
from ..raft import HardState, LogId, LogWrite, SnapshotPoint, Start
from ..storage.interfaces import ILogStore, IStateMachineStore, Manifest

__all__ = ["recover"]


async def recover(node_id: int, log_store: ILogStore, store: IStateMachineStore) -> Start:
    """Open both stores, and see that they belong together. Reads no state yet.

    :raises StorageError: if they cannot be opened, are of another node, or do not fit each other.
    """
    start = await log_store.open()
    if log_store.identity.node_id != node_id:
        raise WrongIdentity("the log", "node", str(node_id), str(log_store.identity.node_id))
    manifest = await store.open()
    if manifest is None:
        if start.purged.index:
            raise _damaged(f"it begins after {start.purged}, and there is no snapshot of what was before", start)
        return start
    if _needs_reset(start, manifest):
        start = await _reset(start, manifest.point, log_store)
    point = manifest.point
    return dataclasses.replace(
        start, snapshot=point, applied=point.last.index, last_time_ms=max(start.last_time_ms, point.time_ms)
    )


def _needs_reset(start: Start, manifest: Manifest) -> bool:
    """Whether the log must yield to the snapshot: a crash came between receiving it and resetting the log (S-17)."""
    last = manifest.point.last
    if start.purged.index > last.index:
        raise _damaged(f"it begins after {start.purged}, but the newest snapshot ends at {last} (J-81)", start)
    if start.last.index < last.index:
        problem = f"it ends at {start.last}, before the node's own snapshot at {last}"
    elif _term_at(start, last.index) != last.term:
        problem = f"its entry {last.index} is of term {_term_at(start, last.index)}, the snapshot's is of {last.term}"
    else:
        return False
    if not manifest.installed:
        raise _damaged(problem, start)
    return True


def _term_at(start: Start, index: int) -> int:
    if index == start.purged.index:
        return start.purged.term
    firsts = [first for first, _ in start.terms]
    return start.terms[bisect_right(firsts, index) - 1][1]


async def _reset(start: Start, point: SnapshotPoint, log_store: ILogStore) -> Start:
    last: LogId = point.last
    old = start.hard_state
    # A term that is not durable cannot have been voted in.
    voted_for = old.voted_for if old.term >= last.term else 0
    hard_state = HardState(max(old.term, last.term), voted_for, last.index)
    await log_store.write(LogWrite(reset=last, hard_state=hard_state))
    return dataclasses.replace(start, hard_state=hard_state, purged=last, last=last, terms=(), configs=(), tail=())


def _damaged(reason: str, start: Start) -> StorageCorrupt:
    return StorageCorrupt("the log", 0, reason, start.purged.index + 1, start.last.index)
