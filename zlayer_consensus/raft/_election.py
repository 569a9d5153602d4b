"""Elections (§5.2, §5.4.1) with pre-vote and leader stickiness (dissertation §9.6, §4.2.3)."""

from __future__ import annotations

from ._effects import Token
from ._leader import become_leader
from ._messages import TimeoutNowReply, TimeoutNowRequest, VoteReply, VoteRequest
from ._quorum import has_quorum, is_lost
from ._state import State
from ._types import MAX_TERM, Role

__all__ = ["ask_again", "campaign", "on_timeout_now", "on_vote_lost", "on_vote_reply", "on_vote_request"]


def may_campaign(s: State) -> bool:
    """Return whether this member may stand for election now."""
    able = s.is_voter and not s.repair and not s.stalled and not s.stopped
    return able and s.term < MAX_TERM and s.role is not Role.LEADER


def campaign(s: State, *, transfer: bool = False) -> None:
    """Start an election: a pre-vote first, unless it is off or the leader itself asked for this one."""
    if not may_campaign(s):
        return
    s.become_follower(s.term, None)
    s.campaign += 1
    if s.config.enable_prevote and not transfer and s.membership.all_voters != {s.node_id}:
        s.role = Role.PRE_CANDIDATE
        s.granted.add(s.node_id)
        _ask(s, s.membership.all_voters)
        _count(s)
    else:
        _stand(s, transfer)


def _stand(s: State, transfer: bool) -> None:
    """Raise the term and ask for votes, once this member's own vote is durable."""
    s.become_follower(s.term, None)
    s.set_term(s.term + 1, s.node_id)
    s.role = Role.CANDIDATE
    s.campaign += 1
    s.transferred = transfer
    number, term = s.campaign, s.term

    def persisted() -> None:
        if s.role is Role.CANDIDATE and (s.campaign, s.term) == (number, term):
            s.granted.add(s.node_id)
            _ask(s, s.membership.all_voters)
            _count(s)

    s.when_vote_persisted(persisted)


def _ask(s: State, voters: frozenset[int] | set[int]) -> None:
    pre_vote = s.role is Role.PRE_CANDIDATE
    term = s.term + 1 if pre_vote else s.term
    message = VoteRequest(term, s.log.last, s.campaign, pre_vote, s.transferred and not pre_vote)
    for voter in sorted(voters - {s.node_id}):
        s.send(voter, message)


def ask_again(s: State) -> None:
    """Repeat the vote requests that got lost."""
    voters, s.unasked, s.ask_again_at = s.unasked, set(), None
    _ask(s, voters & s.membership.all_voters)


def _count(s: State) -> None:
    if has_quorum(s.membership, s.granted):
        if s.role is Role.PRE_CANDIDATE:
            _stand(s, transfer=False)
        else:
            become_leader(s)
    elif is_lost(s.membership, s.refused):
        s.become_follower(s.term, None)


def on_vote_request(s: State, token: Token, sender: int, message: VoteRequest) -> None:
    """Grant or refuse a vote; a grant leaves only when it is durable (H-01).

    A log that was repaired says nothing about what was committed, nor a term that may be older than the last vote.
    """
    sticky = not message.transfer and _hears_leader(s)
    fit = not s.repair and message.last >= s.log.last
    if message.pre_vote:
        granted = message.term > s.term and not sticky and fit
        s.answer(token, VoteReply(s.term, message.campaign, True, granted))
        return
    if message.term > s.term and not sticky:
        deadline, led = s.election_deadline, s.role is Role.LEADER
        s.become_follower(message.term, None)
        if not led:
            # Only a vote that is granted puts it off (§5.2): else one whose clock is fast and whose log is behind
            # could keep the others from campaigning for ever.
            s.election_deadline = deadline
    granted = (
        message.term == s.term
        and not sticky
        and s.role in (Role.FOLLOWER, Role.LEARNER, Role.PRE_CANDIDATE)
        and s.voted_for in (0, sender)
        and fit
    )
    if granted:
        if s.role is Role.PRE_CANDIDATE:
            s.become_follower(s.term, None)
        s.set_term(s.term, sender)
        s.election_deadline = s.now + s.random_timeout()
    reply = VoteReply(s.term, message.campaign, False, granted)
    s.when_vote_persisted(lambda: s.answer(token, reply))


def _hears_leader(s: State) -> bool:
    """Return whether there is a leader that this member should stay with (H-09)."""
    if s.role is Role.LEADER:
        return True
    return s.leader_id is not None and s.now - s.leader_contact < s.config.election_timeout_min


def on_vote_reply(s: State, peer: int, request: VoteRequest, reply: VoteReply) -> None:
    """Count a vote, if it belongs to the running campaign (J-03, J-07)."""
    running = s.role is (Role.PRE_CANDIDATE if request.pre_vote else Role.CANDIDATE)
    echoed = (reply.campaign, reply.pre_vote) == (request.campaign, request.pre_vote)
    if not running or not echoed or request.campaign != s.campaign:
        return
    if not request.pre_vote and reply.term != s.term:
        return  # who answers a campaign of this term is in it
    (s.granted if reply.granted else s.refused).add(peer)
    _count(s)


def on_vote_lost(s: State, peer: int, request: VoteRequest) -> None:
    """A vote request got no reply: ask once more a little later, while the campaign lasts."""
    running = s.role in (Role.PRE_CANDIDATE, Role.CANDIDATE) and request.campaign == s.campaign
    if running and request.pre_vote == (s.role is Role.PRE_CANDIDATE):
        s.unasked.add(peer)
        if s.ask_again_at is None:
            s.ask_again_at = s.now + s.config.heartbeat_interval


def on_timeout_now(s: State, token: Token, sender: int, message: TimeoutNowRequest) -> None:
    """Campaign at once, if the leader of this very term asks (H-94)."""
    reply = TimeoutNowReply(s.term)
    s.when_vote_persisted(lambda: s.answer(token, reply))
    if message.term == s.term and s.leader_id == sender and s.role is Role.FOLLOWER:
        campaign(s, transfer=True)
