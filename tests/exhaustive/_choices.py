"""What can happen in a state, within the scenario's bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from zlayer_consensus.raft import Role, VoteRequest

from ._model import Action, Facts, State

if TYPE_CHECKING:
    from ._world import World

__all__ = ["actions"]


def actions(world: World, state: State) -> Iterator[Action]:
    """Return what can happen in a state."""
    for number in state.members:
        yield from _node_actions(world, state, world.facts[number])
    previous = None
    for number in state.net:
        if number != previous:
            yield from _message_actions(world, state, number)
        previous = number


def _node_actions(world: World, state: State, facts: Facts) -> Iterator[Action]:
    scenario, budget, node_id = world.scenario, state.budget, facts.node_id
    may_campaign = budget.campaigns != 0 and _may_campaign(world, facts)
    if scenario.whole_elections and may_campaign:
        yield from (("elect", node_id, voters) for voters in facts.majorities)
    if facts.role is Role.LEADER:
        if scenario.resign and not scenario.whole_elections and facts.term < scenario.max_term:
            yield ("resign", node_id)
        if budget.proposals:
            yield ("propose", node_id)
        if budget.changes:
            for at in range(len(scenario.changes.get(node_id, ()))):
                yield ("change", node_id, at)
        if budget.beats:
            yield ("beat", node_id)
    elif may_campaign and not scenario.whole_elections:
        yield ("time out", node_id)
    if facts.pending:
        yield ("write", node_id)
    if facts.early:
        yield ("release", node_id)
    if budget.damages and node_id in scenario.damaged:
        yield from (("damage", node_id, keep) for keep in range(1, facts.entries + 1))
    if budget.crashes:
        yield ("crash", node_id, False)
        if facts.tearable:
            yield ("crash", node_id, True)


def _may_campaign(world: World, facts: Facts) -> bool:
    scenario = world.scenario
    if not facts.may_campaign or facts.term >= scenario.max_term:
        return False
    return facts.node_id in scenario.campaigners.get(facts.term + 1, world.ids)


def _message_actions(world: World, state: State, number: int) -> Iterator[Action]:
    envelope = world.envelopes[number]
    if envelope.reply is not None:
        yield ("deliver", number)
        return
    waits = envelope.epoch == world.of(state, envelope.source).epoch
    sticky = isinstance(envelope.request, VoteRequest) and world.of(state, envelope.target).sticky
    apart = world.scenario.slow_votes and isinstance(envelope.request, VoteRequest)
    if not waits or not world.scenario.calls or apart:
        yield ("deliver", number)
    else:
        yield ("call", number)
        if world.scenario.lost_replies:
            yield ("execute", number)
    if sticky and world.scenario.sticky:
        yield ("refuse", number)
    if state.budget.repeats:
        yield ("repeat", number)
    if state.budget.losses and waits and world.of(state, envelope.source).role is Role.LEADER:
        yield ("give up", number)
