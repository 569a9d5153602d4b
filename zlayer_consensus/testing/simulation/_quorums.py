"""Which losses a cluster can stand: what is done to it for ever leaves a quorum, whatever configuration will hold."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import TYPE_CHECKING

from ...raft import Membership

if TYPE_CHECKING:
    from ._world import World

__all__ = ["Change", "Quorums"]

Voters = frozenset[int]
Change = Callable[[Voters], Voters]
"""What an operation under way makes of the voters."""


class Quorums:
    """Knows the configurations that are committed, or may be, and the disks that are lost."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.lost: dict[int, str] = {}
        """Hosts whose disk is lost, or may be: of what they said is durable nothing can be relied on."""
        self.moving = 0
        """The host whose new address is not committed yet, or 0."""
        self._changes: list[tuple[float, Change]] = []

    # Configurations

    def committed(self) -> Membership:
        """Return the newest configuration that is committed; an empty one before the first."""
        checker = self._world.checker
        log = checker.committed
        found = [(i, at) for at in checker.configs if (i := at.index) <= len(log) and log[i - 1][0] == at.term]
        return checker.configs[max(found)[1]] if found else Membership()

    def removed(self, node_id: int) -> bool:
        """Say whether a node was removed for ever."""
        return node_id in self.committed().tombstones

    def changing(self, change: Change, seconds: float) -> None:
        """Take note of an operation that may be carried out within so many seconds."""
        self._changes.append((self._world.timeline.now + seconds, change))

    def changed(self, change: Change) -> None:
        """It is done, or never will be."""
        self._changes = [each for each in self._changes if each[1] is not change]

    def busy(self) -> bool:
        """Say whether so many operations may be under way that one more would be too many to think through."""
        now = self._world.timeline.now
        self._changes = [each for each in self._changes if each[0] > now]
        return len(self._changes) >= 2

    def possible(self) -> list[Membership]:
        """Return every configuration that a leader may have: the committed one, and all that were appended after it."""
        checker = self._world.checker
        return [
            self.committed(),
            *(config for at, config in checker.configs.items() if at.index > len(checker.committed)),
        ]

    def _voters(self, missing: Set[int], changes: list[Change]) -> list[Voters]:
        """Return all sets of voters that may have to agree, now or after the operations that are under way."""
        found: dict[Voters, None] = {}
        for config in self.possible():
            for half in (config.voters, config.outgoing, config.voters | (config.auto_promote & missing)):
                found[half] = None
        for first in changes:
            for voters in list(found):
                found[first(voters)] = None
                for second in changes:
                    found[second(first(voters))] = None
        return [voters for voters in found if voters]

    def stand(self, missing: Set[int], *more: Change) -> bool:
        """Say whether the cluster can do without these hosts, also if this change is made, too."""
        self.busy()
        changes = [*(change for _, change in self._changes), *more]
        return all(2 * len(voters - missing) > len(voters) for voters in self._voters(missing, changes))

    # Losses

    def can_lose(self, node_id: int) -> bool:
        """Say whether a disk may be lost now. Before the cluster has begun, none may."""
        return bool(self.committed().voters) and self.stand({*self.lost, node_id})

    def lose(self, node_id: int, why: str) -> None:
        """A disk is lost."""
        self.lost[node_id] = why

    def found(self, node_id: int) -> None:
        """It is back."""
        self.lost.pop(node_id, None)
