"""The leader's sending side: its own appends, appends to peers, heartbeats (§5.3)."""

from __future__ import annotations

from collections.abc import Sequence

from ._effects import LogRead, SendSnapshot
from ._messages import AppendRequest, HeartbeatRequest
from ._progress import LeaderState, Progress, ProgressState
from ._quorum import has_quorum
from ._space import full_members
from ._state import State
from ._types import Draft, Entry, LogId

__all__ = [
    "append_local",
    "is_live",
    "live_peers",
    "replicate",
    "replicate_all",
    "send_heartbeat",
    "send_round",
    "sync_peers",
]

_PACE = 0.005
"""Seconds between appends that are not full, while others are under way: what arrives meanwhile joins the next one."""


def append_local(s: State, drafts: Sequence[Draft], time_ms: int) -> int:
    """Append to the leader's own log, and send on; return the first index."""
    term, index = s.term, s.log.last.index
    time_ms = max(time_ms, s.log.last_time_ms)
    make = Entry.make
    s.append(
        [
            make(at, term, draft.kind, draft.payload, time_ms, draft.session, draft.sequence)
            for at, draft in enumerate(drafts, index + 1)
        ]
    )
    sync_peers(s)
    replicate_all(s)
    return index + 1


def sync_peers(s: State) -> None:
    """Make the set of peers follow the configuration; who left is kept until its removal is committed (H-42)."""
    leader = s.leader
    if leader is None:
        return
    members = s.membership.members
    for node_id in members:
        if node_id != s.node_id and node_id not in leader.peers:
            leader.peers[node_id] = Progress(next=s.log.last.index + 1, last_ack=s.now)
        leader.departing.pop(node_id, None)
    for node_id in leader.peers:
        if node_id not in members and node_id not in leader.departing:
            leader.departing[node_id] = LogId(s.term, s.log.membership_index)


def replicate_all(s: State) -> None:
    """Send every peer what it may get now."""
    if s.leader is not None:
        for peer, progress in s.leader.peers.items():
            replicate(s, peer, progress)


def replicate(s: State, peer: int, p: Progress) -> None:
    """Send a peer as many appends as its window allows."""
    if p.paused or p.reading:
        return
    reserve = s.leader is not None and bool(full_members(s, s.leader))
    if p.state is ProgressState.SNAPSHOT:
        if not (p.full and reserve and s.log.id_at(p.next - 1)):
            return
        p.start_over(p.next)  # it has to take entries now, and may have no room for the snapshot
    if p.full and p.next <= s.log.last.index and not reserve:
        # A majority has room without it; a heartbeat tells when it has, too. What frees space may be among the entries
        # that it does not get: it looks for itself whether it has room for a snapshot.
        if s.snapshot is not None and s.snapshot.last.index >= p.next:
            _start_snapshot(s, peer, p)
        return
    config = s.config
    while _has_room(s, p):
        prev = s.log.id_at(p.next - 1)
        if prev is None:
            _start_snapshot(s, peer, p)
            return
        entries: Sequence[Entry] | None = ()
        if p.next <= s.log.last.index:
            entries = s.log.entries(p.next, s.log.last.index, config.max_payload_entries, config.max_payload_bytes)
        if entries is None:
            p.reading = True
            last = min(s.log.last.index, p.next + config.max_payload_entries - 1)
            s.out.log_reads.append(LogRead(peer, s.term, p.stream, p.next, last, config.max_payload_bytes))
            return
        send_append(s, peer, p, prev, entries)


def _has_room(s: State, p: Progress) -> bool:
    """Return whether the peer should get another append now."""
    under_way = len(p.inflight)
    if p.state is ProgressState.PROBE:
        return under_way == 0
    config = s.config
    pending = s.log.last.index + 1 - p.next
    if pending <= 0:
        return p.owes_append and under_way == 0
    if under_way >= config.max_inflight_appends or p.inflight_bytes >= config.max_inflight_bytes:
        return False
    if under_way == 0 or pending >= config.max_payload_entries:
        return True
    due = p.last_append + _PACE
    if s.now >= due:
        return True
    if s.leader is not None and (s.leader.flush_due is None or due < s.leader.flush_due):
        s.leader.flush_due = due
    return False


def send_append(s: State, peer: int, p: Progress, prev: LogId, entries: Sequence[Entry]) -> None:
    """Send one append and account for it."""
    size = sum(len(entry.raw) for entry in entries)
    reserve = s.leader is not None and bool(full_members(s, s.leader))
    s.send(peer, AppendRequest(s.term, p.stream, p.seq, prev, tuple(entries), s.commit, reserve))
    p.inflight.append((p.seq, size))
    p.inflight_bytes += size
    p.seq += 1
    p.owes_append = False
    p.last_append = s.now
    p.commit_sent = max(p.commit_sent, min(s.commit, prev.index + len(entries)))
    if p.state is ProgressState.REPLICATE:
        p.next = prev.index + len(entries) + 1


def _start_snapshot(s: State, peer: int, p: Progress) -> None:
    """What the peer lacks does not come from the log: it gets a snapshot (H-60). The log behind that stays (H-65)."""
    if s.snapshot is None or s.snapshot.last.index < p.next - 1:
        raise s.broken(f"entry {p.next - 1} was purged, but there is no snapshot that covers it")
    p.start_over(p.next)
    p.state = ProgressState.SNAPSHOT
    p.pinned = s.snapshot.last.index
    s.out.snapshots.append(SendSnapshot(peer, s.term, p.stream))


def send_round(s: State, leader: LeaderState) -> int:
    """Begin a new heartbeat round with every peer that has a free slot; return its number."""
    leader.round += 1
    leader.commit_notice_due = None
    for peer, progress in leader.peers.items():
        send_heartbeat(s, leader, peer, progress)
    return leader.round


def send_heartbeat(s: State, leader: LeaderState, peer: int, p: Progress) -> None:
    """Send the newest round to a peer; with two heartbeats under way it waits for one of them."""
    if p.heartbeats >= 2:
        p.owes_round = True
        return
    p.owes_round = False
    p.heartbeats += 1
    commit = min(p.match, s.commit)
    p.commit_sent = max(p.commit_sent, commit)
    # Only now: what was counted without it may since be durable there.
    done = p.repair if p.repair and min(p.match, s.commit) >= p.repair_until else b""
    s.send(peer, HeartbeatRequest(s.term, commit, leader.round, done))


def is_live(s: State, p: Progress) -> bool:
    """Return whether a peer counts as reachable for the quorum check."""
    return p.trusted and s.now - p.last_ack <= s.config.election_timeout_max


def live_peers(s: State, leader: LeaderState) -> set[int]:
    """Return the peers that answered within an election timeout."""
    return {peer for peer, progress in leader.peers.items() if is_live(s, progress)}


def quorum_without_self(s: State, leader: LeaderState) -> bool:
    """Return whether a majority of others is live and has durable progress that this member lacks."""
    ahead = {peer for peer in live_peers(s, leader) if leader.peers[peer].counted > s.log.durable}
    return has_quorum(s.membership, ahead - {s.node_id})
