"""Membership changes through joint consensus (§6, dissertation §4.3), and leadership transfer (dissertation §3.10).

A configuration takes effect when it is appended (H-53). The leader appends one only when it has committed an entry of
its own term and the last configuration is committed (H-40); it leaves a joint configuration by itself, also when it
inherited it (H-43), but only once that is committed (J-67).
"""

from __future__ import annotations

from ..errors import MembershipRefused, TransferFailed, TransferInProgress
from ._effects import Done, Refused, Token
from ._membership import ChangeVoters, Membership, MembershipChange
from ._messages import TimeoutNowRequest
from ._progress import LeaderState, PendingChange, Progress, ProgressState, Transfer
from ._quorum import majority
from ._replication import append_local, is_live, live_peers, send_heartbeat, send_round
from ._state import State
from ._types import Draft, EntryKind

__all__ = [
    "change_membership",
    "drop_departed",
    "hand_over_if_full",
    "note_removal",
    "on_commit",
    "on_timeout_now_lost",
    "promote_ready",
    "tick_transfer",
    "transfer",
]


def change_membership(s: State, token: Token, change: MembershipChange, time_ms: int) -> None:
    """Begin a change, or refuse it."""
    leader = s.leader
    if leader is None:
        s.out.refused.append(Refused(token, s.not_leader()))
        return
    if leader.transfer is not None:
        s.out.refused.append(Refused(token, TransferInProgress(leader.transfer.target)))
        return
    try:
        after = _checked(s, leader, change)
    except MembershipRefused as error:
        s.out.refused.append(Refused(token, error))
        return
    leader.change = PendingChange(token, s.log.last.index + 1)
    _append_config(s, after, time_ms)


def _append_config(s: State, membership: Membership, time_ms: int = 0) -> int:
    return append_local(s, [Draft(membership.encode(), EntryKind.CONFIG)], time_ms)


def _checked(s: State, leader: LeaderState, change: MembershipChange) -> Membership:
    if not leader.ready:
        raise MembershipRefused("not_ready", "the leader has not committed an entry of its own term yet")
    if s.membership.joint or s.log.membership_index > s.commit:
        raise MembershipRefused("in_progress", "the last membership change is not committed yet")
    after = s.membership.after(change)
    if isinstance(change, ChangeVoters):
        for node_id in sorted(change.voters - s.membership.voters):
            if not _caught_up(s, leader, node_id):
                detail = f"node {node_id} lacks too much of the log, or does not answer"
                raise MembershipRefused("not_caught_up", detail)
        answering = {peer for peer in live_peers(s, leader) if not leader.peers[peer].missed}
        live = (answering | {s.node_id}) & change.voters
        if not change.force and len(live) < majority(len(change.voters)):
            raise MembershipRefused(
                "quorum_at_risk", f"only {len(live)} of the {len(change.voters)} new voters are reachable"
            )
    return after


def _caught_up(s: State, leader: LeaderState, node_id: int) -> bool:
    p = leader.peers.get(node_id)
    return (
        p is not None
        and is_live(s, p)
        and not p.missed
        and p.state is ProgressState.REPLICATE
        and p.match + s.config.replication_lag_threshold >= s.log.last.index
    )


def promote_ready(s: State, leader: LeaderState) -> None:
    """Make voters of the learners that were added for it and have caught up."""
    settled = leader.ready and leader.transfer is None and s.log.membership_index <= s.commit
    if not settled or s.membership.joint or not s.membership.auto_promote:
        return
    ready = frozenset(node_id for node_id in s.membership.auto_promote if _caught_up(s, leader, node_id))
    if ready:
        _append_config(s, s.membership.after(ChangeVoters(s.membership.voters | ready)))


def on_commit(s: State, leader: LeaderState) -> None:
    """The commit index moved: finish a joint configuration, tell who waits, say good-bye to who left."""
    if s.log.membership_index > s.commit:
        return
    if s.membership.joint:
        index = _append_config(s, s.membership.left_joint())
        if leader.change is not None:
            leader.change.index = index
        return
    if leader.change is not None and leader.change.index <= s.commit:
        s.out.done.append(Done(leader.change.token, s.log.id_at(leader.change.index)))
        leader.change = None
    for peer, position in leader.departing.items():
        p = leader.peers[peer]
        if p.match >= position.index and p.commit_sent < position.index:
            send_heartbeat(s, leader, peer, p)
    if not s.is_voter:
        _resign(s, leader)


def _resign(s: State, leader: LeaderState) -> None:
    """A leader that is no longer a voter makes its removal known, and lets somebody else campaign (H-42)."""
    send_round(s, leader)
    heirs = [(p.match, -peer) for peer, p in leader.peers.items() if peer in s.membership.voters and is_live(s, p)]
    if heirs:
        s.send(-max(heirs)[1], TimeoutNowRequest(s.term))
    s.become_follower(s.term, None)


def drop_departed(s: State, leader: LeaderState) -> None:
    """Forget peers that left, once they know it or cannot be reached."""
    for peer, position in list(leader.departing.items()):
        p = leader.peers[peer]
        if position.index <= s.commit and (p.commit_sent >= position.index or not is_live(s, p)):
            del leader.peers[peer], leader.departing[peer]


def note_removal(s: State) -> None:
    """See whether the committed configuration has removed this member for good (H-47)."""
    if not s.removed and s.node_id in s.log.membership_at(s.commit).tombstones:
        s.removed = s.out.removed = True


def transfer(s: State, token: Token, target: int | None) -> None:
    """Begin to hand leadership over; proposals are refused until it has happened or timed out (H-90 to H-95)."""
    leader = s.leader
    if leader is None:
        s.out.refused.append(Refused(token, s.not_leader()))
        return
    if target is None:
        target = _best_heir(s, leader)
    if target == s.node_id:
        s.out.done.append(Done(token, target))
        return
    p = leader.peers.get(target) if target else None
    if target is None or p is None or target not in s.membership.voters:
        reason = "there is no other voter that answers" if target is None else "it is not a voter"
        s.out.refused.append(Refused(token, TransferFailed(target or 0, reason)))
    elif leader.transfer is not None and leader.transfer.target != target:
        s.out.refused.append(Refused(token, TransferInProgress(leader.transfer.target)))
    elif leader.transfer is not None:
        leader.transfer.tokens.append(token)
    elif p.repair:
        reason = "its log was repaired, and is not known to be complete yet"
        s.out.refused.append(Refused(token, TransferFailed(target, reason)))
    elif not is_live(s, p):
        s.out.refused.append(Refused(token, TransferFailed(target, "it does not answer")))
    else:
        leader.transfer = Transfer(target, s.now + s.config.election_timeout_max, [token])
        tick_transfer(s, leader)


def _best_heir(s: State, leader: LeaderState, *, roomy: bool = False) -> int | None:
    """Return the voter that lacks least; those whose disks are full come last, or (``roomy``) not at all."""

    def key(item: tuple[int, Progress]) -> tuple[bool, int, int]:
        return (not item[1].full, item[1].match, -item[0])

    live = [(peer, p) for peer, p in leader.peers.items() if peer in s.membership.voters and is_live(s, p)]
    fit = [(peer, p) for peer, p in live if not (roomy and p.full)]
    return max(fit, key=key)[0] if fit else None


def hand_over_if_full(s: State, leader: LeaderState) -> None:
    """Let a voter whose disk has room lead, if this member's has none (S-10)."""
    if not s.full or not leader.ready or leader.transfer is not None or s.now < leader.hand_over_at:
        return
    heir = _best_heir(s, leader, roomy=True)
    if heir is not None:
        limit = s.config.election_timeout_max
        leader.hand_over_at = s.now + 2 * limit
        leader.transfer = Transfer(heir, s.now + limit, [])
        tick_transfer(s, leader)


def tick_transfer(s: State, leader: LeaderState) -> None:
    """Send TimeoutNow once the target has everything that is durable here (H-91), or give up in time (H-90)."""
    if leader.transfer is None:
        return
    running = leader.transfer
    p = leader.peers.get(running.target)
    if s.now >= running.deadline or p is None:
        leader.transfer = None
        failed = TransferFailed(running.target, "it did not take over in time")
        s.out.refused.extend(Refused(token, failed) for token in running.tokens)
    elif not running.sent and p.match == s.log.last.index == s.log.durable:
        running.sent = True
        s.send(running.target, TimeoutNowRequest(s.term))


def on_timeout_now_lost(s: State, peer: int, request: TimeoutNowRequest) -> None:
    """TimeoutNow got no reply: it is sent again while the transfer lasts."""
    leader = s.leader
    if leader is not None and request.term == s.term and leader.transfer is not None and leader.transfer.target == peer:
        leader.transfer.sent = False
