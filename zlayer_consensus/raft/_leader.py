"""Leading: taking office, replies, commit, heartbeats, the quorum and disk checks (§5.3, §5.4, dissertation §6.2)."""

from __future__ import annotations

from collections.abc import Sequence

from . import _changes, _reads
from ._changes import note_removal
from ._effects import LogRead, PeerAlarm, SendSnapshot
from ._messages import AppendReply, AppendRequest, HeartbeatReply, HeartbeatRequest
from ._progress import LeaderState, Progress, ProgressState
from ._quorum import agreed_index, has_quorum
from ._repairs import is_stale, note_repair, note_repaired
from ._replication import (
    append_local,
    live_peers,
    quorum_without_self,
    replicate,
    replicate_all,
    send_append,
    send_heartbeat,
    send_round,
    sync_peers,
)
from ._state import State
from ._types import Draft, Entry, EntryKind, LogId, Role

__all__ = [
    "advance_commit",
    "become_leader",
    "on_append_lost",
    "on_append_reply",
    "on_heartbeat_lost",
    "on_heartbeat_reply",
    "on_log_read",
    "on_snapshot_sent",
    "tick_leader",
]


def become_leader(s: State) -> None:
    """Take office: the clocks of the quorum check start now (J-14), and a no-op of this term is appended (H-21)."""
    s.role = Role.LEADER
    s.leader_id = s.node_id
    s.leader = LeaderState(first_index=s.log.last.index + 1, heartbeat_due=s.now + s.config.heartbeat_interval)
    s.unasked.clear()
    s.ask_again_at = None
    s.transferred = False
    s.settle_transfer()
    sync_peers(s)
    send_round(s, s.leader)
    append_local(s, [Draft(b"", EntryKind.NOOP)], 0)


def tick_leader(s: State, leader: LeaderState) -> None:
    """Do what is due: heartbeats, checks, commit notices, transfer."""
    _changes.tick_transfer(s, leader)
    if leader.flush_due is not None and s.now >= leader.flush_due:
        leader.flush_due = None
        replicate_all(s)
    if leader.commit_notice_due is not None and s.now >= leader.commit_notice_due:
        leader.commit_notice_due = None
        for peer, p in leader.peers.items():
            if p.commit_sent < min(p.match, s.commit):
                send_heartbeat(s, leader, peer, p)
    if s.now < leader.heartbeat_due:
        return
    leader.heartbeat_due = s.now + s.config.heartbeat_interval
    live = live_peers(s, leader) | {s.node_id}
    if not has_quorum(s.membership, live) and not _sole_voter(s):
        s.become_follower(s.term, None)
        return
    if s.oldest_write_age() > s.config.election_timeout_max and quorum_without_self(s, leader):
        s.stalled = True
        s.become_follower(s.term, None)
        return
    _changes.drop_departed(s, leader)
    send_round(s, leader)
    _reads.assign(s, leader)
    _changes.promote_ready(s, leader)
    _changes.hand_over_if_full(s, leader)


def _sole_voter(s: State) -> bool:
    return s.membership.all_voters == {s.node_id}


def on_heartbeat_reply(s: State, peer: int, request: HeartbeatRequest, reply: HeartbeatReply) -> None:
    """Note the contact, the read round and what the peer lacks."""
    leader = s.leader
    p = leader.peers.get(peer) if leader else None
    if leader is None or p is None or request.term != s.term:
        return
    p.heartbeats = max(0, p.heartbeats - 1)
    if reply.term != s.term:
        return
    p.heard(s.now)
    note_repair(s, leader, peer, p, reply.repair, reply.last_index)
    whole = note_repaired(s, peer, p, request.repaired, reply.repair)
    p.full = reply.full
    if reply.round == request.round:
        p.round_acked = max(p.round_acked, reply.round)
        _check_fall_back(s, leader, peer, p, reply)
    if reply.commit < min(request.commit, p.match):
        p.owes_append = True
    if p.owes_round:
        send_heartbeat(s, leader, peer, p)
    replicate(s, peer, p)
    if whole:
        advance_commit(s)
    if s.leader is leader:
        _reads.confirm(s, leader)


def _check_fall_back(s: State, leader: LeaderState, peer: int, p: Progress, reply: HeartbeatReply) -> None:
    """See whether the peer's durable log is shorter than what it acknowledged before this heartbeat left."""
    if reply.round > p.match_round and reply.last_index < p.match and not p.alarmed:
        _distrust(s, peer, p, reply.last_index)


def on_heartbeat_lost(s: State, peer: int, request: HeartbeatRequest) -> None:
    """A heartbeat got no reply: its slot is free again."""
    p = s.leader.peers.get(peer) if s.leader else None
    if s.leader is not None and p is not None and request.term == s.term:
        p.heartbeats = max(0, p.heartbeats - 1)
        p.owes_round = False
        p.missed = True


def on_append_reply(s: State, peer: int, request: AppendRequest, reply: AppendReply) -> None:
    """Move the peer's match index forward, or look further back in its log."""
    leader = s.leader
    p = leader.peers.get(peer) if leader else None
    if leader is None or p is None or request.term != s.term or reply.term != s.term:
        return
    p.heard(s.now)
    note_repair(s, leader, peer, p, reply.repair, reply.last_index)
    current = request.stream == p.stream and reply.seq == request.seq
    if current:
        _settle(p, request.seq)
    if reply.success and reply.match > request.prev.index + len(request.entries):
        # It acknowledges what it was never sent: the fault is the peer's, and nothing that it says counts.
        _distrust(s, peer, p, reply.last_index)
    elif reply.full:
        p.full = True  # until a heartbeat says otherwise
        if current and p.state is not ProgressState.SNAPSHOT:
            p.start_over(request.prev.index + 1)  # it has what is before them, though a new leader may not know of more
    elif reply.success and is_stale(p, reply.repair):
        if current and p.state is not ProgressState.SNAPSHOT:
            # The mark is gone, and the next heartbeat will say so. By then this has to be asked for again.
            p.start_over(p.match + 1)
            p.paused = True
        return
    elif reply.success:
        _matched(s, leader, peer, p, reply.match, current)
    elif current and p.state is not ProgressState.SNAPSHOT:
        upper = min(reply.conflict.index, request.prev.index - 1)
        if upper < s.log.purged.index:
            p.start_over(upper + 1)  # nothing can be compared behind the purge point: only a snapshot helps
        else:
            p.start_over(s.log.agreement(upper, reply.conflict.term).index + 1)
        # It denies what it acknowledged: asking again will not help, the next heartbeat shows what it has (H-29).
        p.paused = request.prev.index <= p.match
    if s.leader is leader:  # else what was committed just now has removed this member, and it leads no longer
        replicate(s, peer, p)
        _changes.tick_transfer(s, leader)


def _distrust(s: State, peer: int, p: Progress, last_index: int) -> None:
    """Count a peer for nothing from now on, and say so."""
    if not p.alarmed:
        p.alarmed = True
        s.out.alarms.append(PeerAlarm(peer, p.match, last_index))
    p.match = 0
    p.start_over(min(last_index, s.log.last.index) + 1)


def _settle(p: Progress, seq: int) -> None:
    """Remove an append from what is under way; later ones may be answered first."""
    for at, (sent, size) in enumerate(p.inflight):
        if sent == seq:
            del p.inflight[at]
            p.inflight_bytes -= size
            return


def _matched(s: State, leader: LeaderState, peer: int, p: Progress, match: int, current: bool) -> None:
    if match > p.match:
        p.match = match
        p.match_round = leader.round
        p.next = max(p.next, match + 1)
    if current and p.state is ProgressState.PROBE:
        p.state = ProgressState.REPLICATE
        p.next = p.match + 1
    advance_commit(s)


def on_append_lost(s: State, peer: int, request: AppendRequest) -> None:
    """An append got no reply: it may or may not have arrived. Start over once the peer answers again."""
    p = s.leader.peers.get(peer) if s.leader else None
    if p is None or request.term != s.term or request.stream != p.stream:
        return
    if p.state is not ProgressState.SNAPSHOT:
        # A probe is repeated as it was: the match index of a new leader says nothing yet.
        p.start_over(p.next if p.state is ProgressState.PROBE else p.match + 1)
        p.paused = p.missed = True


def on_log_read(s: State, request: LogRead, entries: Sequence[Entry] | None) -> None:
    """Entries for a lagging peer came from the store; without them it needs a snapshot."""
    p = s.leader.peers.get(request.peer) if s.leader else None
    if p is None or (request.term, request.stream) != (s.term, p.stream) or not p.reading:
        return
    p.reading = False
    prev = s.log.id_at(request.first - 1)
    if entries and prev is not None and p.next == request.first and not p.paused:
        last = request.first + len(entries) - 1
        if (entries[0].index, entries[-1].index) != (request.first, last) or s.log.term_at(last) != entries[-1].term:
            raise s.broken(f"the store's entries {request.first} to {last} are not those in the log")
        send_append(s, request.peer, p, prev, entries)
    elif entries is None and prev is not None:
        # The store purged further than this log view knows; a snapshot covers it.
        p.next = min(p.next, s.log.purged.index)
    replicate(s, request.peer, p)


def on_snapshot_sent(s: State, request: SendSnapshot, last: LogId | None) -> None:
    """A snapshot transfer ended; go on behind it, or try again after the next sign of life."""
    leader = s.leader
    p = leader.peers.get(request.peer) if leader else None
    if leader is None or p is None or (request.term, request.stream) != (s.term, p.stream):
        return
    if p.state is not ProgressState.SNAPSHOT:
        return
    if last is None:
        p.start_over(p.next)  # what it lacked then may be in the log
        p.paused = True
        return
    p.start_over(p.match + 1)
    if last.index > s.commit or s.log.term_at(last.index) not in (None, last.term):
        raise s.broken(f"node {request.peer} installed a snapshot at {last} that is not in the log")
    p.heard(s.now)
    _matched(s, leader, request.peer, p, last.index, current=False)
    p.next = p.match + 1
    if s.leader is leader:
        replicate(s, request.peer, p)


def advance_commit(s: State) -> None:
    """Commit what a majority has, if it is of this term (§5.4.2, H-20); the leader counts what is durable here."""
    leader = s.leader
    if leader is None:
        return
    peers = leader.peers

    def match(node_id: int) -> int:
        if node_id == s.node_id:
            return s.log.durable
        progress = peers.get(node_id)
        return progress.counted if progress else 0

    index = agreed_index(s.membership, match)
    if index <= s.commit or s.log.term_at(index) != s.term:
        return
    s.commit = s.out.commit = index
    if leader.commit_notice_due is None:
        leader.commit_notice_due = s.now + s.config.heartbeat_interval / 10
    if not leader.ready and index >= leader.first_index:
        leader.ready = True
        _reads.open_waiting(s, leader)
    _changes.on_commit(s, leader)
    note_removal(s)
