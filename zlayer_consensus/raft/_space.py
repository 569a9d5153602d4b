"""Full disks (S-10): who gets entries, and what is taken.

A member whose disk is full takes no new entries while a majority has room without it. When there is no such majority,
the leader takes nothing but what frees space, and sends that, and what it had taken before, to everybody: it goes to
the reserves. So what the reserves must hold is bounded by what was under way. One that is full alone gets snapshots:
what frees space elsewhere would never reach it otherwise.
"""

from __future__ import annotations

from ._progress import LeaderState
from ._quorum import has_quorum
from ._state import State

__all__ = ["full_members"]


def full_members(s: State, leader: LeaderState) -> tuple[int, ...]:
    """Return the voters whose full disks keep the leader from taking ordinary entries; none if it takes them."""
    full = {peer for peer, p in leader.peers.items() if p.full}
    if s.full:
        full.add(s.node_id)
    if not full:
        return ()
    voters = s.membership.all_voters
    if not s.full and has_quorum(s.membership, voters - full):
        return ()
    return tuple(sorted(full & voters))
