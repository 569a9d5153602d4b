"""All members and the messages under way: one immutable state, the actions that are possible in it, where each leads.

A state is ``(members, net, committed, budget)``, all by number. Members are interned, and what an input does to one is
computed once, whatever the others are doing; that is what makes the exploration fast.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, combinations
from typing import Any

from zlayer_consensus.config import ConsensusConfig
from zlayer_consensus.raft import (
    AppendReply,
    AppendRequest,
    HeartbeatReply,
    HeartbeatRequest,
    Membership,
    Role,
    TimeoutNowRequest,
    VoteReply,
    VoteRequest,
)

from ._fork import NOW
from ._history import History, is_quorum
from ._member import NOBODY, Envelope, Member
from ._model import Action, Facts, Outcome, Scenario, State, Work

__all__ = ["World"]

_FOLLOWING = (Role.FOLLOWER, Role.LEARNER)
_CAMPAIGNING = (Role.CANDIDATE, Role.PRE_CANDIDATE)


def _majorities(node_id: int, config: Membership) -> tuple[tuple[int, ...], ...]:
    """Return the least sets of others that make a quorum with a node."""
    others = sorted((config.voters | config.outgoing) - {node_id})
    found: list[tuple[int, ...]] = []
    for some in chain.from_iterable(combinations(others, count) for count in range(len(others) + 1)):
        if is_quorum(config, {node_id, *some}) and not any(set(less) <= set(some) for less in found):
            found.append(some)
    return tuple(found)


class World:
    """The members of a scenario, and everything that was found out about them."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.history = History(direct=scenario.direct)
        self.config = ConsensusConfig(**{"enable_prevote": False, **scenario.settings})
        self.ids = sorted(scenario.disks)
        self._place = {node_id: at for at, node_id in enumerate(self.ids)}
        self._members: list[Member] = []
        self.facts: list[Facts] = []
        self._numbers: dict[Any, int] = {}
        self.envelopes: list[Envelope] = []
        self._envelope_numbers: dict[Envelope, int] = {}
        self._outcomes: dict[tuple[Any, ...], Outcome] = {}
        self._heartbeats = True
        self._links: dict[int, set[int]] = {}

    def start(self) -> State:
        """Return the state after the prologue."""
        scenario = self.scenario
        self._heartbeats, self._links = True, {}
        members = [
            self._intern(Member.start(at, self.config, disk, sync=scenario.sync, direct=scenario.direct))
            for at, disk in sorted(scenario.disks.items())
        ]
        state = State(tuple(members), (), 0, scenario.budget._replace(beats=1))
        for action in scenario.prologue:
            if action == ("settle",):
                while state.net:
                    state, _ = self.apply(state, ("deliver", state.net[0]))
            else:
                state, _ = self.apply(state, action)
        self._heartbeats, self._links = scenario.heartbeats, scenario.links
        return state._replace(budget=scenario.budget)

    # -- members

    def _intern(self, member: Member) -> int:
        key = (member.node_id, member.key())
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._members)
            member.sent, member.commits, member.seen = [], [], []
            self._members.append(member)
            self.facts.append(self._look(member))
        return number

    def _look(self, member: Member) -> Facts:
        core = member.core
        s = core._s
        following = core.role in _FOLLOWING
        write = member.pending[0].write if member.pending else None
        return Facts(
            node_id=member.node_id,
            role=core.role,
            term=core.term,
            campaign=s.campaign,
            epoch=member.epoch,
            log=self.history.number(member.log),
            durable=self.history.number(member.disk.log),
            commit=core.commit,
            led=member.led,
            majorities=_majorities(member.node_id, core.membership) if self.scenario.whole_elections else (),
            may_campaign=s.is_voter and not s.stalled and not s.repair,
            sticky=following and core.leader_id is not None and s.leader_contact == NOW,
            early=bool(s.inbox.held),
            pending=len(member.pending),
            entries=len(member.disk.log),
            tearable=write is not None and write.hard_state is not None and write.entries != (),
        )

    def _outcome(self, number: int, name: str, *args: Any) -> Outcome:
        key = (number, name, *args)
        known = self._outcomes.get(key)
        if known is not None:
            return known
        member = self._members[number].forked()
        _INPUTS[name](self, member, *args)
        sent = tuple(self._envelope(envelope) for envelope in member.sent)
        commits, seen = tuple(member.commits), tuple(member.seen)
        outcome = self._outcomes[key] = Outcome(self._intern(member), sent, commits, seen)
        return outcome

    def _envelope(self, envelope: Envelope) -> int:
        number = self._envelope_numbers.get(envelope)
        if number is None:
            number = self._envelope_numbers[envelope] = len(self.envelopes)
            self.envelopes.append(envelope)
        return number

    def of(self, state: State | Work, node_id: int) -> Facts:
        """Return what is known of a member in a state."""
        return self.facts[state.members[self._place[node_id]]]

    # -- what they lead to

    def apply(self, state: State, action: Action) -> tuple[State, list[str]]:
        """Return where an action leads (to ``state`` itself, if to nothing new), and what was seen on the way.

        :raises Violation: if an invariant does not hold there.
        """
        work = Work(list(state.members), list(state.net), state.committed, state.budget)
        if _ACTIONS[action[0]](self, work, *action[1:]) is False:
            return state, []
        net = tuple(sorted(number for number in work.net if not self._is_dead(work, self.envelopes[number])))
        new = State(tuple(work.members), net, work.committed, work.budget)
        changed = [number for number, old in zip(work.members, state.members, strict=True) if number != old]
        if work.committed != state.committed:
            changed = work.members
        for number in changed:
            self.history.check(self.facts[number], [self.facts[other] for other in work.members], work.committed)
        return new, work.seen

    def _input(self, work: Work, node_id: int, name: str, *args: Any) -> tuple[int, ...]:
        """Give an input to a member; return the messages that left."""
        at = self._place[node_id]
        outcome = self._outcome(work.members[at], name, *args)
        work.members[at] = outcome.member
        work.seen += outcome.seen
        for commit in outcome.commits:
            disks = {self.facts[number].node_id: self.facts[number].durable for number in work.members}
            work.committed, seen = self.history.commit(work.committed, node_id, commit, disks)
            work.seen += seen
        sent = tuple(number for number in outcome.sent if self._may_arrive(work, self.envelopes[number]))
        work.net += sent
        return sent

    def _may_arrive(self, work: Work, envelope: Envelope) -> bool:
        if envelope.reply is not None:
            return envelope.epoch == self.of(work, envelope.source).epoch
        if isinstance(envelope.request, HeartbeatRequest) and not self._heartbeats:
            return False
        if isinstance(envelope.request, AppendRequest | HeartbeatRequest):
            return envelope.target in self._links.get(envelope.source, self._place)
        return envelope.target in self._place

    def _is_dead(self, work: Work, envelope: Envelope) -> bool:
        """Return whether a message can do nothing any more, because of terms and campaigns, which only grow."""
        source, target, request, reply = (
            self.of(work, envelope.source),
            self.of(work, envelope.target),
            envelope.request,
            envelope.reply,
        )
        if reply is None:
            if isinstance(request, TimeoutNowRequest) and target.term >= self.scenario.max_term:
                return True
            leads = source.role is Role.LEADER and source.term == request.term
            if not self.scenario.late and not leads and isinstance(request, AppendRequest | HeartbeatRequest):
                return True
            # All that could come of it is a reply with a newer term, to a member that is in a newer one itself.
            return request.term < target.term and (envelope.epoch != source.epoch or source.term > request.term)
        if envelope.epoch != source.epoch:
            return True
        if reply.term > source.term:
            return False
        if isinstance(reply, VoteReply) and isinstance(request, VoteRequest):
            return request.campaign != source.campaign or source.role not in _CAMPAIGNING
        leading = source.role is Role.LEADER and source.term == request.term
        return not leading if isinstance(reply, AppendReply | HeartbeatReply) else True

    # -- the actions, one by one

    def _resign(self, work: Work, node_id: int) -> None:
        self._input(work, node_id, "time out")

    def _time_out(self, work: Work, node_id: int) -> None:
        if work.budget.campaigns > 0:
            work.budget = work.budget.less("campaigns")
        self._input(work, node_id, "time out")

    def _elect(self, work: Work, node_id: int, reached: tuple[int, ...]) -> bool:
        if self.of(work, node_id).role is Role.LEADER:
            self._input(work, node_id, "time out")
        for number in self._input(work, node_id, "time out"):
            envelope = self.envelopes[number]
            if isinstance(envelope.request, VoteRequest):
                if envelope.target in reached:
                    self._call(work, number)
                else:
                    work.net.remove(number)
        return self.of(work, node_id).role is Role.LEADER

    def _write(self, work: Work, node_id: int) -> None:
        self._input(work, node_id, "write")

    def _release(self, work: Work, node_id: int) -> None:
        self._input(work, node_id, "release")

    def _crash(self, work: Work, node_id: int, torn: bool) -> None:
        work.budget = work.budget.less("crashes")
        self._input(work, node_id, "crash", torn)
        work.seen.append("crash")
        for at, number in enumerate(work.net):
            envelope = self.envelopes[number]
            if envelope.reply is None and envelope.source == node_id:
                work.net[at] = self._envelope(envelope._replace(epoch=NOBODY))

    def _damage(self, work: Work, node_id: int, keep: int) -> None:
        work.budget = work.budget.less("damages")
        self._input(work, node_id, "damage", keep)
        for at, number in enumerate(work.net):
            envelope = self.envelopes[number]
            if envelope.reply is None and envelope.source == node_id:
                work.net[at] = self._envelope(envelope._replace(epoch=NOBODY))

    def _propose(self, work: Work, node_id: int) -> None:
        work.budget = work.budget.less("proposals")
        self._input(work, node_id, "propose")

    def _change(self, work: Work, node_id: int, at: int) -> None:
        before = list(work.members)
        self._input(work, node_id, "change", at)
        if work.members != before:
            work.budget = work.budget.less("changes")

    def _beat(self, work: Work, node_id: int) -> None:
        work.budget = work.budget.less("beats")
        self._input(work, node_id, "beat")

    def _deliver(self, work: Work, number: int, *, late: bool = True) -> tuple[int, ...]:
        work.net.remove(number)
        envelope = self.envelopes[number]
        if envelope.reply is not None:
            return self._input(work, envelope.source, "reply", number)
        return self._take(work, number, envelope, late=late)

    def _take(self, work: Work, number: int, envelope: Envelope, *, late: bool) -> tuple[int, ...]:
        answered = envelope.epoch == self.of(work, envelope.source).epoch
        late = late and isinstance(envelope.request, VoteRequest) and self.of(work, envelope.target).sticky
        return self._input(work, envelope.target, "request", number, answered, late)

    def _refuse(self, work: Work, number: int) -> None:
        self._deliver(work, number, late=False)

    def _call(self, work: Work, number: int) -> None:
        for reply in self._deliver(work, number):
            if self.envelopes[reply].reply is not None:
                self._deliver(work, reply)

    def _execute(self, work: Work, number: int) -> None:
        work.net.remove(number)
        self._take(work, number, self.envelopes[number]._replace(epoch=NOBODY), late=True)

    def _repeat(self, work: Work, number: int) -> None:
        work.budget = work.budget.less("repeats")
        self._take(work, number, self.envelopes[number]._replace(epoch=NOBODY), late=True)

    def _give_up(self, work: Work, number: int) -> None:
        work.budget = work.budget.less("losses")
        envelope = self.envelopes[number]
        work.net[work.net.index(number)] = self._envelope(envelope._replace(epoch=NOBODY))
        self._input(work, envelope.source, "give up", number)

    # -- looking

    def describe(self, action: Action) -> str:
        """Return an action as a line of text."""
        name, what, *more = action
        if name in _ON_MESSAGES:
            return f"{name:8} {self.envelopes[what]}"
        if name == "change":
            return f"{name:8} node {what}: {self.scenario.changes[what][more[0]]}"
        return f"{name:8} node {what}" + "".join(f" {value}" for value in more)

    def two_candidates(self, state: State) -> bool:
        """Return whether two members campaign for one term."""
        terms = [self.facts[n].term for n in state.members if self.facts[n].role is Role.CANDIDATE]
        return len(terms) != len(set(terms))

    def member(self, number: int) -> Member:
        """Return a member, to be looked at only."""
        return self._members[number]


_ON_MESSAGES = {"deliver", "call", "execute", "refuse", "repeat", "give up"}
_ACTIONS: dict[str, Callable[..., Any]] = {
    "time out": World._time_out,
    "resign": World._resign,
    "elect": World._elect,
    "write": World._write,
    "release": World._release,
    "crash": World._crash,
    "damage": World._damage,
    "propose": World._propose,
    "change": World._change,
    "beat": World._beat,
    "deliver": World._deliver,
    "refuse": World._refuse,
    "call": World._call,
    "execute": World._execute,
    "repeat": World._repeat,
    "give up": World._give_up,
}
_INPUTS: dict[str, Callable[..., None]] = {
    "time out": lambda world, member: member.time_out(),
    "write": lambda world, member: member.complete(),
    "release": lambda world, member: member.release(),
    "crash": lambda world, member, torn: member.crash(torn=torn),
    "damage": lambda world, member, keep: member.damage(keep),
    "propose": lambda world, member: member.propose(),
    "change": lambda world, member, at: member.change(world.scenario.changes[member.node_id][at]),
    "beat": lambda world, member: member.beat(),
    "reply": lambda world, member, number: member.take_reply(world.envelopes[number]),
    "request": lambda world, member, number, answered, late: member.take_request(
        world.envelopes[number], answered=answered, late=late
    ),
    "give up": lambda world, member, number: member.give_up(world.envelopes[number]),
}
