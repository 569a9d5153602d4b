"""What is explored: each scenario in a small form, which the tests finish, and in a wide one for the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from zlayer_consensus.raft import ChangeVoters, Entry, EntryKind, HardState, Member, Membership

from ._member import Disk
from ._model import Action, Budget, Scenario

__all__ = ["SCENARIOS", "WIDE"]


def _membership(voters: Iterable[int], learners: Iterable[int] = ()) -> Membership:
    members = Membership.initial(_member(node_id) for node_id in (*voters, *learners)).members
    return Membership(voters=frozenset(voters), members=members)


def _member(node_id: int) -> Member:
    return Member(node_id, bytes([node_id]) * 16, f"n{node_id}")


def _disks(membership: Membership, logs: dict[int, list[int]] | None = None, term: int = 0) -> dict[int, Disk]:
    """Return disks with the configuration and, by node, commands of these terms."""
    first = Entry.make(1, 0, EntryKind.CONFIG, membership.encode())
    disks = {}
    for node_id in membership.members:
        terms = (logs or {}).get(node_id, [])
        commands = [Entry.make(at, of, EntryKind.COMMAND, b"%d" % of) for at, of in enumerate(terms, 2)]
        disks[node_id] = Disk(HardState(term), (first, *commands))
    return disks


def _to(*voters: int) -> ChangeVoters:
    return ChangeVoters(frozenset(voters), force=True)


def _led_by_1(others: Iterable[int]) -> tuple[Action, ...]:
    """Node 1 leads in term 1; its first entry is everywhere, and everybody knows that it is committed."""
    return (("elect", 1, tuple(others)), ("settle",), ("beat", 1), ("settle",))


def _crossed(name: str, change: ChangeVoters, other: ChangeVoters, learners: tuple[int, ...], **more: Any) -> Scenario:
    """Node 1 begins a change in term 1, node 2 another in term 2, and node 1 comes back in term 3 (H-40)."""
    return Scenario(
        name,
        "H-40: two leaders change the voters 1 to 4 without knowing of each other; the first comes back.",
        _disks(_membership((1, 2, 3, 4), learners)),
        max_term=3,
        budget=Budget(changes=2),
        campaigners={2: {2}, 3: {1}},
        changes={1: (change,), 2: (other,)},
        whole_elections=True,
        calls=True,
        late=False,
        lost_replies=False,
        prologue=_led_by_1((2, 3, 4, *learners)),
        wanted=(*_CHANGED, "joint configuration rolled back", "joint configuration left by a later leader"),
        **more,
    )


def _one_change(name: str, intent: str, **more: Any) -> Scenario:
    """Node 1 changes the voters 1 to 3 in term 1, and others take over in term 2."""
    return Scenario(
        name,
        intent,
        _disks(_membership((1, 2, 3), (4, 5))),
        max_term=2,
        whole_elections=True,
        calls=True,
        late=False,
        lost_replies=False,
        prologue=_led_by_1((2, 3, 4, 5)),
        **more,
    )


_CHANGED = ("leader elected", "joint configuration committed", "final configuration committed")
_INHERITED = (
    *_CHANGED,
    "leader elected in a joint configuration",
    "joint configuration rolled back",
    "joint configuration left by a later leader",
)
_SMALL = (
    Scenario(
        "votes",
        "H-02, J-05: two candidates of one term, message by message and write by write, with a crash.",
        _disks(_membership((1, 2, 3))),
        max_term=1,
        budget=Budget(crashes=1),
        campaigners={1: {1, 2}},
        sync=False,
        resign=False,
        wanted=("two candidates", "leader elected", "crash", "entry committed"),
    ),
    Scenario(
        "repeats",
        "H-02, J-05: two candidates of one term, and a request that arrives twice.",
        _disks(_membership((1, 2, 3))),
        max_term=1,
        budget=Budget(repeats=1),
        campaigners={1: {1, 2}},
        sync=False,
        resign=False,
        wanted=("two candidates", "leader elected", "entry committed"),
    ),
    Scenario(
        "prevote",
        "H-09, J-05: two campaigns with pre-vote, message by message, also to who has just heard the leader.",
        _disks(_membership((1, 2, 3))),
        max_term=1,
        budget=Budget(campaigns=2),
        settings={"enable_prevote": True},
        sticky=True,
        campaigners={1: {1, 2}},
        wanted=("two candidates", "leader elected", "entry committed"),
    ),
    Scenario(
        "election",
        "J-05: leaders of two terms, message by message.",
        _disks(_membership((1, 2, 3))),
        max_term=2,
        campaigners={1: {1}, 2: {2}},
        wanted=("leader elected", "leader stepped down", "entry committed", "entry overwritten"),
    ),
    Scenario(
        "retries",
        "J-05: an append that is given up and sent again, and heartbeats; then another leader.",
        _disks(_membership((1, 2, 3))),
        max_term=2,
        budget=Budget(proposals=1, losses=1, beats=1),
        campaigners={2: {2}},
        whole_elections=True,
        calls=True,
        lost_replies=False,
        heartbeats=True,
        links={1: {2}, 2: {1}},
        prologue=_led_by_1((2, 3)),
        wanted=("leader elected", "command committed", "entry overwritten", "leader stepped down"),
    ),
    Scenario(
        "durability",
        "J-05: leaders of two terms, write by write, with a crash.",
        _disks(_membership((1, 2, 3))),
        max_term=2,
        budget=Budget(crashes=1),
        campaigners={1: {1}, 2: {3}},
        sync=False,
        resign=False,
        links={1: {2}, 3: {2}},
        wanted=("leader elected", "leader stepped down", "entry committed", "entry overwritten", "crash"),
    ),
    Scenario(
        "figure8",
        "H-20: entries of old terms, each on one node, and two terms in which they may be overwritten.",
        _disks(_membership((1, 2, 3)), {1: [1], 2: [2]}, term=2),
        max_term=4,
        settings={"max_payload_entries": 1},
        campaigners={3: {1}, 4: {2}},
        calls=True,
        lost_replies=False,
        wanted=("leader elected", "entry overwritten", "command committed"),
    ),
    Scenario(
        "repair",
        "J-98: at any moment a voter's log is cut and repaired, its acknowledgements and votes forgotten.",
        _disks(_membership((1, 2, 3))),
        max_term=2,
        budget=Budget(damages=1, beats=1),
        campaigners={2: {1, 2}},
        links={1: {2, 3}, 2: {3}},
        damaged=(3,),
        calls=True,
        slow_votes=True,
        late=False,
        # What it acknowledged, and then lost, was durable on a quorum before.
        direct=False,
        heartbeats=True,
        lost_replies=False,
        prologue=_led_by_1((2, 3)),
        wanted=("log repaired", "repair cleared", "two candidates", "leader elected", "entry committed"),
    ),
    Scenario(
        "repair-term",
        "J-98: a voter's log is cut and repaired, and with it the term of a leader of whom another has not heard.",
        _disks(_membership((1, 2, 3))),
        max_term=3,
        budget=Budget(damages=1, beats=2),
        links={1: {2, 3}, 2: {3}},
        campaigners={2: {2}, 3: {1}},
        damaged=(3,),
        direct=False,
        whole_elections=True,
        calls=True,
        late=False,
        lost_replies=False,
        heartbeats=True,
        prologue=_led_by_1((2, 3)),
        wanted=("log repaired", "repair cleared", "leader elected", "leader stepped down", "entry committed"),
    ),
    _crossed("remove-remove", _to(1, 2, 3), _to(2, 3, 4), (), links={1: {2, 3}, 2: {1, 3, 4}}),
    _crossed("add-remove", _to(1, 2, 3, 4, 5), _to(2, 3, 4), (5,), links={1: {2, 5}, 2: {1, 3, 4}}),
    _crossed("add-add", _to(1, 2, 3, 4, 5), _to(1, 2, 3, 4, 6), (5, 6), links={1: {2, 5}, 2: {1, 3, 6}}),
    _one_change(
        "grow",
        "J-70: three voters become five, and a second leader is elected at any moment of it.",
        budget=Budget(changes=1),
        changes={1: (_to(1, 2, 3, 4, 5),)},
        campaigners={2: {1, 2}},
        links={1: {2, 4, 5}, 2: {1, 3}},
        wanted=_INHERITED,
    ),
    _one_change(
        "queue",
        "J-60: a leader is asked for the next change before the last is committed.",
        budget=Budget(changes=2),
        changes={1: (_to(1, 2, 3, 4), _to(1, 2, 3, 4, 5))},
        campaigners={2: {2}},
        links={1: {2, 4, 5}, 2: {1, 3}},
        wanted=_INHERITED,
    ),
    _one_change(
        "replace",
        "H-43, J-67: most voters are replaced; whoever is elected meanwhile finishes the change, or it is rolled back.",
        budget=Budget(changes=1),
        changes={1: (_to(1, 4, 5),)},
        campaigners={2: {2, 4}},
        links={1: {2, 4, 5}, 2: {1, 3, 4}, 4: {1, 5}},
        wanted=_INHERITED,
    ),
)
SCENARIOS = {scenario.name: scenario for scenario in _SMALL}

_WIDER: dict[str, dict[str, Any]] = {
    "votes": {"budget": Budget(crashes=2)},
    "repeats": {"budget": Budget(repeats=3)},
    "prevote": {"budget": Budget(campaigns=3)},
    "election": {"campaigners": {1: {1}}},
    "retries": {"links": {}, "lost_replies": True},
    "durability": {"links": {}, "budget": Budget(crashes=1, proposals=1)},
    "figure8": {"campaigners": {}, "lost_replies": True},
    "repair": {"links": {}},
    "repair-term": {"links": {}},
    "remove-remove": {"links": {}, "lost_replies": True},
    "add-remove": {"links": {}},
    "add-add": {"links": {}},
    "grow": {"links": {}, "campaigners": {}},
    "queue": {"links": {}},
    "replace": {"links": {}, "lost_replies": True},
}
WIDE = {name: dataclasses.replace(SCENARIOS[name], **changed) for name, changed in _WIDER.items()}
