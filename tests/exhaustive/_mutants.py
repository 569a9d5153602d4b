"""Cores that are wrong on purpose, in one rule each: the exploration has to find out. They change nothing for good."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from zlayer_consensus.errors import MembershipRefused
from zlayer_consensus.raft import (
    ChangeVoters,
    Membership,
    MembershipChange,
    Role,
    VoteRequest,
    _changes,
    _election,
    _leader,
    _log,
    _quorum,
    _repairs,
)
from zlayer_consensus.raft._progress import Progress
from zlayer_consensus.raft._state import State

__all__ = ["MUTANTS", "mutated"]

Patch = tuple[Any, str, Any]


def _without_joint(self: Membership, change: ChangeVoters) -> Membership:
    """The other way to change voters, one by one, which is where H-40 comes from."""
    if len(self.voters ^ change.voters) != 1:
        raise MembershipRefused("invalid", "one voter at a time")
    gone = self.voters - change.voters
    members = {node_id: member for node_id, member in self.members.items() if node_id not in gone}
    return dataclasses.replace(self, voters=change.voters, members=members, tombstones=self.tombstones | gone)


def _checked_without_own_commit(s: State, leader: Any, change: MembershipChange) -> Membership:
    was, leader.ready = leader.ready, True
    try:
        return _CHECKED(s, leader, change)
    finally:
        leader.ready = was


def _checked_without_waiting(s: State, leader: Any, change: MembershipChange) -> Membership:
    return s.membership.after(change)


def _vote_again(s: State, token: Any, sender: int, message: VoteRequest) -> None:
    if message.term == s.term and s.role in (Role.FOLLOWER, Role.LEARNER):
        s.voted_for = 0
    _ON_VOTE_REQUEST(s, token, sender, message)


def _older_log_will_do(s: State, token: Any, sender: int, message: VoteRequest) -> None:
    _ON_VOTE_REQUEST(s, token, sender, dataclasses.replace(message, last=max(message.last, s.log.last)))


def _at_once(s: State, action: Callable[[], None]) -> None:
    action()


def _vote_kept_in_memory(s: State, term: int, voted_for: int = 0) -> None:
    _SET_TERM(s, term, voted_for)
    if s.voted_for:
        s._write.pop("hard_state", None)


def _count_any_term(s: State) -> None:
    term_at = s.log.term_at
    leader = s.leader
    index = 0
    if leader is not None:
        match = {peer: p.counted for peer, p in leader.peers.items()} | {s.node_id: s.log.durable}
        index = _quorum.agreed_index(s.membership, match)
    with mock.patch.object(s.log, "term_at", lambda at: s.term if at == index else term_at(at)):
        _ADVANCE_COMMIT(s)


def _incoming_only(membership: Membership) -> tuple[frozenset[int], ...]:
    return (membership.voters,)


def _leave_at_once(s: State, token: Any, change: MembershipChange, time_ms: int) -> None:
    _CHANGE_MEMBERSHIP(s, token, change, time_ms)
    if s.membership.joint and s.leader is not None:
        _changes._append_config(s, s.membership.left_joint())


def _keep_configs(self: _log.LogView, after: int) -> None:
    kept = self._configs
    self._configs = [*kept]
    _TRUNCATE(self, after)
    self._configs = kept


def _count_own_entries(s: State) -> None:
    durable, s.log.durable = s.log.durable, s.log.last.index
    _ADVANCE_COMMIT(s)
    s.log.durable = min(durable, s.log.last.index)


def _vote_although_repaired(s: State, token: Any, sender: int, message: VoteRequest) -> None:
    repair, s.repair = s.repair, b""
    _ON_VOTE_REQUEST(s, token, sender, message)
    s.repair = repair


def _whole_at_once(s: State, leader: Any, peer: int, p: Any, repair: bytes, last_index: int) -> None:
    _NOTE_REPAIR(s, leader, peer, p, repair, last_index)
    p.repair_until = 0


def _whole_with_what_was_there(s: State, leader: Any, peer: int, p: Any, repair: bytes, last_index: int) -> None:
    known = p.repair
    _NOTE_REPAIR(s, leader, peer, p, repair, last_index)
    if p.repair != known:
        p.repair_until -= 1


_CHECKED = _changes._checked
_NOTE_REPAIR = _repairs.note_repair
_ON_VOTE_REQUEST = _election.on_vote_request
_SET_TERM = State.set_term
_ADVANCE_COMMIT = _leader.advance_commit
_CHANGE_MEMBERSHIP = _changes.change_membership
_TRUNCATE = _log.LogView.truncate

_SINGLE: Patch = (Membership, "_towards", _without_joint)
_AT_COMMIT: Patch = (State, "membership", property(lambda s: s.log.membership_at(max(s.commit, 1))))
_SLOW = (2, 3)
"""Nodes whose state machine has applied nothing but the first entry yet."""
_AT_APPLY: Patch = (
    State,
    "membership",
    property(lambda s: s.log.membership_at(1 if s.node_id in _SLOW else max(s.commit, 1))),
)

_COUNTED: Patch = (Progress, "trusted", property(lambda p: not p.alarmed))

MUTANTS: dict[str, tuple[Patch, ...]] = {
    "single-server changes": (_SINGLE,),
    "single-server changes without a commit of the own term": (
        _SINGLE,
        (_changes, "_checked", _checked_without_own_commit),
    ),
    "several changes at once": (_SINGLE, (_changes, "_checked", _checked_without_waiting)),
    "a second vote in a term": ((_election, "on_vote_request", _vote_again),),
    "a vote for an older log": ((_election, "on_vote_request", _older_log_will_do),),
    "a vote that leaves before it is durable": ((State, "when_vote_persisted", _at_once),),
    "a vote that is not written": ((State, "set_term", _vote_kept_in_memory),),
    "an acknowledgement that leaves before the entries are durable": ((State, "when_persisted", _at_once),),
    "entries that count at the leader before they are durable": ((_leader, "advance_commit", _count_own_entries),),
    "commit of an old term by counting": ((_leader, "advance_commit", _count_any_term),),
    "a majority of the new voters only": ((_quorum, "_halves", _incoming_only),),
    "a joint configuration left before it is committed": ((_changes, "change_membership", _leave_at_once),),
    "a configuration that takes effect at commit": (_AT_COMMIT,),
    "a configuration that takes effect when it is applied": (_AT_APPLY,),
    "a vote of a member whose log was repaired": ((_election, "on_vote_request", _vote_although_repaired),),
    "a member that counts although its log was repaired": (_COUNTED,),
    "a repaired log that is taken for complete at once": ((_leader, "note_repair", _whole_at_once),),
    "a repaired log that is taken for complete with what was there before": (
        (_leader, "note_repair", _whole_with_what_was_there),
    ),
    "a configuration that outlives its entry": (
        _SINGLE,
        (_log.LogView, "truncate", _keep_configs),
    ),
}
"""By name, what is replaced."""


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """Make every core wrong in one way, for a while."""
    with ExitStack() as stack:
        for target, attribute, value in MUTANTS[name]:
            stack.enter_context(mock.patch.object(target, attribute, value))
        yield
