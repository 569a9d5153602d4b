"""Whether a log and the newest snapshot beside it belong together. Pure: what both say is given."""

from __future__ import annotations

from bisect import bisect_right

from ..errors import StorageCorrupt, WrongIdentity
from ..raft import Start
from .interfaces import Identity, Manifest

__all__ = ["check_owner", "log_must_yield"]


def log_must_yield(start: Start, manifest: Manifest | None, log: str = "the log") -> bool:
    """Say whether the log has to be reset to the snapshot.

    It has to if a crash came between receiving the snapshot and resetting the log (S-17).

    :param start: the log; of its fields ``purged``, ``last`` and ``terms`` count.
    :param manifest: the newest snapshot, or None if there is none.
    :param log: the log's path, for errors.
    :raises StorageCorrupt: if they do not fit each other (J-81): something between them is lost.
    """
    if manifest is None:
        if start.purged.index:
            reason = f"it begins after {start.purged}, and there is no snapshot of what was before"
            raise StorageCorrupt(log, 0, reason, 1, start.purged.index)
        return False
    last = manifest.point.last
    if start.purged.index > last.index:
        reason = f"it begins after {start.purged}, but the newest snapshot ends at {last} (J-81)"
        raise StorageCorrupt(log, 0, reason, last.index + 1, start.purged.index)
    if start.last.index < last.index:
        problem = f"it ends at {start.last}, before the node's own snapshot at {last}"
    elif _term_at(start, last.index) != last.term:
        problem = f"its entry {last.index} is of term {_term_at(start, last.index)}, the snapshot's is of {last.term}"
    else:
        return False
    if not manifest.installed:
        raise StorageCorrupt(log, 0, problem, start.purged.index + 1, max(start.last.index, last.index))
    return True


def check_owner(identity: Identity, manifest: Manifest | None) -> None:
    """See that a snapshot is of the cluster that the log belongs to: that it knows this member as the one it is (S-09).

    One that does not know the member at all may be older than its membership.

    :param manifest: the newest snapshot, or None if there is none.
    :raises WrongIdentity: if it is of another cluster, or the log of another member.
    """
    if manifest is None:
        return
    member = manifest.point.membership.members.get(identity.node_id)
    if member is not None and member.incarnation != identity.incarnation:
        last = manifest.point.last
        path, found = f"snap/{last.index}-{last.term}", member.incarnation.hex()
        raise WrongIdentity(path, "incarnation", identity.incarnation.hex(), found)


def _term_at(start: Start, index: int) -> int:
    if index == start.purged.index:
        return start.purged.term
    firsts = [first for first, _ in start.terms]
    return start.terms[bisect_right(firsts, index) - 1][1]
