"""What a node makes of its disk when it starts: the newest snapshot, and the log behind it."""

from __future__ import annotations

import dataclasses

from ..errors import WrongIdentity
from ..raft import HardState, LogId, LogWrite, SnapshotPoint, Start
from ..storage.inspection import check_owner, log_must_yield
from ..storage.interfaces import ILogStore, IStateMachineStore

__all__ = ["recover"]


async def recover(node_id: int, log_store: ILogStore, store: IStateMachineStore) -> Start:
    """Open both stores, and see that they belong together. Reads no state yet.

    :raises StorageError: if they cannot be opened, are of another node, or do not fit each other.
    """
    start = dataclasses.replace(await log_store.open(), repair=log_store.identity.repair)
    if log_store.identity.node_id != node_id:
        raise WrongIdentity("the log", "node", str(node_id), str(log_store.identity.node_id))
    manifest = await store.open()
    must_yield = log_must_yield(start, manifest)
    check_owner(log_store.identity, manifest)
    if manifest is None:
        return start
    if must_yield:
        start = await _reset(start, manifest.point, log_store)
    point = manifest.point
    return dataclasses.replace(
        start, snapshot=point, applied=point.last.index, last_time_ms=max(start.last_time_ms, point.time_ms)
    )


async def _reset(start: Start, point: SnapshotPoint, log_store: ILogStore) -> Start:
    last: LogId = point.last
    old = start.hard_state
    # A term that is not durable cannot have been voted in.
    voted_for = old.voted_for if old.term >= last.term else 0
    hard_state = HardState(max(old.term, last.term), voted_for, last.index)
    await log_store.write(LogWrite(reset=last, hard_state=hard_state))
    return dataclasses.replace(start, hard_state=hard_state, purged=last, last=last, terms=(), configs=(), tail=())
