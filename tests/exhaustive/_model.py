"""The words of the exploration: what a scenario is, what a state is, and what is known of a member in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from zlayer_consensus.raft import MembershipChange, Role

from ._member import Committed, Disk

__all__ = ["Action", "Budget", "Facts", "Outcome", "Scenario", "State", "Work"]

Action = tuple[Any, ...]
"""A name, and what it is done to: a node, or an envelope by number."""


class Budget(NamedTuple):
    """How often each of these may happen on the way to a state."""

    proposals: int = 0
    changes: int = 0
    crashes: int = 0
    repeats: int = 0
    losses: int = 0
    beats: int = 0
    damages: int = 0
    campaigns: int = -1
    """Negative: as many as the terms allow. With pre-vote that is no bound."""

    def less(self, name: str) -> Budget:
        """Return what is left after one more of these."""
        return self._replace(**{name: getattr(self, name) - 1})


class State(NamedTuple):
    """Numbers of members (in the order of their ids), of envelopes (ascending) and of the committed log."""

    members: tuple[int, ...]
    net: tuple[int, ...]
    committed: int
    budget: Budget


@dataclass(frozen=True)
class Scenario:
    """What to explore, and within which bounds.

    :param disks: what each member starts with.
    :param max_term: nobody campaigns beyond it.
    :param settings: of the core; without pre-vote by default, since a pre-vote can only prevent campaigns.
    :param campaigners: who may campaign, by the term campaigned for; anybody for terms that are not there.
    :param changes: the membership changes that each leader may ask for, by node.
    :param damaged: whose logs may be damaged and repaired: cut anywhere behind the first entry, votes forgotten.
    :param sync: writes are durable at once; else each completion is an action, and a crash loses what is under way.
    :param whole_elections: a campaign happens at once, also at a leader, with any least set of voters that wins it.
    :param calls: a request and its reply are delivered at once.
    :param slow_votes: with ``calls``, a vote and its reply are delivered apart all the same.
    :param lost_replies: with ``calls``, a reply may also get lost.
    :param late: messages of a leader may also arrive after it stepped down.
    :param links: which members hear the leader that a node is, after the prologue; everybody, for nodes that are not
        there.
    :param sticky: a vote request may also arrive where the leader was heard just now.
    :param heartbeats: heartbeats are delivered; else they all get lost, after the prologue.
    :param resign: a leader may find that it has lost its quorum.
    :param prologue: what happens first, always: actions by node, and ``("settle",)``.
    :param direct: quorums and disks are looked at directly; without, a fault only shows in what follows from it.
    :param wanted: what must have been seen for the exploration to mean something.
    """

    name: str
    intent: str
    disks: dict[int, Disk]
    max_term: int
    budget: Budget = field(default_factory=Budget)
    settings: dict[str, Any] = field(default_factory=dict)
    campaigners: dict[int, set[int]] = field(default_factory=dict)
    changes: dict[int, tuple[MembershipChange, ...]] = field(default_factory=dict)
    damaged: tuple[int, ...] = ()
    sync: bool = True
    whole_elections: bool = False
    calls: bool = False
    slow_votes: bool = False
    lost_replies: bool = True
    late: bool = True
    links: dict[int, set[int]] = field(default_factory=dict)
    sticky: bool = False
    heartbeats: bool = False
    resign: bool = True
    prologue: tuple[Action, ...] = ()
    direct: bool = True
    wanted: tuple[str, ...] = ()


class Facts(NamedTuple):
    """What the others have to know of a member."""

    node_id: int
    role: Role
    term: int
    campaign: int
    epoch: int
    log: int
    durable: int
    commit: int
    led: frozenset[int]
    majorities: tuple[tuple[int, ...], ...]
    may_campaign: bool
    sticky: bool
    early: bool
    pending: int
    entries: int
    tearable: bool


class Outcome(NamedTuple):
    """What an input did to a member."""

    member: int
    sent: tuple[int, ...]
    commits: tuple[Committed, ...]
    seen: tuple[str, ...]


@dataclass
class Work:
    """A state in the making."""

    members: list[int]
    net: list[int]
    committed: int
    budget: Budget
    seen: list[str] = field(default_factory=list)
