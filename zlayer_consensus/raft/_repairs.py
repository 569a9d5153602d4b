"""Peers whose log was repaired: it may lack what they acknowledged, and its term may be older than their last vote.

Until the leader has found it complete again, the peer counts for nothing and does not vote. It is complete once it has,
durably, an entry of this term that was appended after it named the repair and was committed without it. Then it has all
that was ever committed; and no candidate that it voted for before the damage can still win: each majority has a member
that acknowledged this entry, and so either had left that candidate's term behind or will not vote for its shorter log.
"""

from __future__ import annotations

from ._effects import PeerRepair
from ._progress import LeaderState, Progress
from ._replication import append_local
from ._state import State
from ._types import Draft, EntryKind

__all__ = ["is_stale", "note_repair", "note_repaired"]


def note_repair(s: State, leader: LeaderState, peer: int, p: Progress, repair: bytes, last_index: int) -> None:
    """A reply names a repair, or none: if it is news, forget what the peer has acknowledged."""
    if not repair or repair in (p.repair, p.repaired):
        return
    p.repair = repair
    p.alarmed = False
    p.match = 0
    p.match_round = leader.round
    p.start_over(min(last_index, s.log.last.index) + 1)
    p.repair_until = s.log.last.index + 1
    s.out.repairs.append(PeerRepair(peer, repair, p.repair_until))
    # Nobody may propose anything for hours; this is the entry that it has to get.
    append_local(s, [Draft(b"", EntryKind.NOOP)], 0)


def note_repaired(s: State, peer: int, p: Progress, told: bytes, repair: bytes) -> bool:
    """A heartbeat was answered: if it told that the log is complete, and the peer names no repair now, it counts again.

    :return: whether it does so from now on.
    """
    if not p.repair or told != p.repair or repair:
        return False
    s.out.repairs.append(PeerRepair(peer, p.repair, 0))
    p.repair, p.repaired, p.repair_until = b"", p.repair, 0
    return True


def is_stale(p: Progress, repair: bytes) -> bool:
    """Return whether a reply comes from before the repair, and its match is worth nothing."""
    return bool(p.repair) and repair != p.repair
