"""Majority arithmetic, in one place (§5.3, §5.4.2; joint configurations §6, J-64).

A decision in a joint configuration needs a majority of the incoming *and* of the outgoing voters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from ._membership import Membership

__all__ = ["agreed_index", "has_quorum", "is_lost", "majority"]


def majority(count: int) -> int:
    """Return how many of ``count`` voters are more than half."""
    return count // 2 + 1


def _halves(membership: Membership) -> tuple[frozenset[int], ...]:
    return (membership.voters, membership.outgoing) if membership.outgoing else (membership.voters,)


def has_quorum(membership: Membership, ids: Collection[int]) -> bool:
    """Return whether ``ids`` hold a majority of each half; never, without voters."""
    return bool(membership.voters) and all(
        sum(1 for voter in half if voter in ids) >= majority(len(half)) for half in _halves(membership)
    )


def is_lost(membership: Membership, refused: Collection[int]) -> bool:
    """Return whether a majority can no longer be had, given who ``refused``."""
    return any(sum(1 for voter in half if voter not in refused) < majority(len(half)) for half in _halves(membership))


def agreed_index(membership: Membership, match: Callable[[int], int] | Mapping[int, int]) -> int:
    """Return the greatest index that a majority of each half has reached; 0 without voters."""
    if not membership.voters:
        return 0
    of = match if callable(match) else lambda voter: match.get(voter, 0)
    lowest = None
    for half in _halves(membership):
        reached = sorted((of(voter) for voter in half), reverse=True)[majority(len(half)) - 1]
        lowest = reached if lowest is None else min(lowest, reached)
    return lowest or 0
