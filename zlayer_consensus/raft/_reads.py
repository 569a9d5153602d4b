"""Linearizable reads by ReadIndex (dissertation §6.4): batched at the leader, and asked for by followers.

A read is served at the commit index of a heartbeat round that began after the read arrived and that a quorum
acknowledged; rounds are never reused (H-72, J-51). A leader that has not committed an entry of its own term holds reads
back (H-70, J-50).
"""

from __future__ import annotations

from ._effects import ReadReady, Refused, Token
from ._follower import follow_commit
from ._messages import ReadIndexReply, ReadIndexRequest
from ._progress import LeaderState, PendingRead
from ._quorum import has_quorum
from ._replication import send_round
from ._state import State

__all__ = ["assign", "cancel", "confirm", "on_read_index_lost", "on_read_index_reply", "open_waiting", "read"]

_OPEN_ROUNDS = 2


def read(s: State, token: Token) -> None:
    """Begin a read here; at a follower its leader is asked."""
    if s.leader is not None:
        add(s, s.leader, PendingRead(token))
    elif s.leader_id is not None:
        s.follower_reads.append(token)
        _ask(s)
    else:
        s.out.refused.append(Refused(token, s.not_leader()))


def cancel(s: State, token: Token) -> None:
    """Forget a read that nobody waits for any more."""
    s.follower_reads = [other for other in s.follower_reads if other != token]
    if s.asked_reads is not None:
        s.asked_reads = (s.asked_reads[0], [other for other in s.asked_reads[1] if other != token])
    if s.leader is not None:
        batches = [s.leader.waiting_reads, *(reads for _, _, reads in s.leader.open_reads)]
        for batch in batches:
            batch[:] = [pending for pending in batch if pending.remote_context is not None or pending.token != token]


def add(s: State, leader: LeaderState, pending: PendingRead) -> None:
    """Queue a read at the leader."""
    leader.waiting_reads.append(pending)
    open_waiting(s, leader)


def open_waiting(s: State, leader: LeaderState) -> None:
    """Begin a heartbeat round for the reads that wait, unless enough rounds are open."""
    if leader.ready and leader.waiting_reads and len(leader.open_reads) < _OPEN_ROUNDS:
        send_round(s, leader)
        assign(s, leader)


def assign(s: State, leader: LeaderState) -> None:
    """Let the waiting reads depend on the round that just began."""
    if leader.ready and leader.waiting_reads:
        leader.open_reads.append((leader.round, s.commit, leader.waiting_reads))
        leader.waiting_reads = []
    confirm(s, leader)


def confirm(s: State, leader: LeaderState) -> None:
    """Release the reads whose round a quorum has acknowledged."""
    while leader.open_reads:
        number, index, reads = leader.open_reads[0]
        acked = {peer for peer, p in leader.peers.items() if p.round_acked >= number and p.trusted}
        if not has_quorum(s.membership, acked | {s.node_id}):
            return
        leader.open_reads.popleft()
        for pending in reads:
            if pending.remote_context is None:
                s.out.reads.append(ReadReady(pending.token, index))
            else:
                s.answer(pending.token, ReadIndexReply(s.term, pending.remote_context, index))
        open_waiting(s, leader)


def on_read_index(s: State, token: Token, message: ReadIndexRequest) -> None:
    """A follower asks for a read index (H-75)."""
    if s.leader is None or message.term > s.term:
        s.answer(token, ReadIndexReply(s.term, message.context, 0))
    else:
        add(s, s.leader, PendingRead(token, message.context))


def _ask(s: State) -> None:
    if s.asked_reads is None and s.follower_reads and s.leader_id is not None:
        s.read_context += 1
        s.asked_reads, s.follower_reads = (s.read_context, s.follower_reads), []
        s.send(s.leader_id, ReadIndexRequest(s.term, s.read_context))


def on_read_index_reply(s: State, request: ReadIndexRequest, reply: ReadIndexReply) -> None:
    """The leader answered; its commit index is ours too, as far as our log is known to equal its."""
    if s.asked_reads is None or s.asked_reads[0] != request.context or reply.context != request.context:
        return
    tokens, s.asked_reads = s.asked_reads[1], None
    if reply.index == 0 or reply.term != s.term:
        s.out.refused.extend(Refused(token, s.not_leader()) for token in tokens)
    else:
        follow_commit(s, reply.index)
        s.out.reads.extend(ReadReady(token, reply.index) for token in tokens)
    _ask(s)


def on_read_index_lost(s: State, request: ReadIndexRequest) -> None:
    """No reply: the reads fail, and may be tried again."""
    if s.asked_reads is not None and s.asked_reads[0] == request.context:
        tokens, s.asked_reads = s.asked_reads[1], None
        s.out.refused.extend(Refused(token, s.not_leader()) for token in tokens)
        _ask(s)
