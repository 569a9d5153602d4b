"""Following: appends in their order, heartbeats, snapshots offered and installed (§5.3, §7)."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InvalidMessage
from ._changes import note_removal
from ._effects import SnapshotPoint, Token
from ._membership import Membership
from ._messages import AppendRequest, HeartbeatReply, HeartbeatRequest
from ._state import State
from ._types import MAX_INDEX, Entry, EntryKind, Role

__all__ = [
    "check_append",
    "follow_commit",
    "install",
    "on_append",
    "on_heartbeat",
    "release_held",
    "snapshot_offered",
    "will_install",
]


def check_append(message: AppendRequest) -> None:
    """Refuse what no correct leader sends, before anything changes (H-27, A-22)."""
    index, term = message.prev.index, message.prev.term
    if index < 0 or not 0 <= term <= message.term:
        raise InvalidMessage(f"append: {message.prev} is no position before entries of term {message.term}")
    for entry in message.entries:
        index += 1
        if entry.index != index:
            raise InvalidMessage(f"append: entry {entry.index} stands where {index} belongs")
        if entry.term < term or entry.term > message.term:
            raise InvalidMessage(f"append: entry {index} of term {entry.term} follows term {term}")
        term = entry.term
        if entry.kind == EntryKind.CONFIG:
            try:
                Membership.decode(entry.payload)
            except ValueError as error:
                raise InvalidMessage(f"append: entry {index} is not a configuration: {error}") from None
    if index > MAX_INDEX:
        raise InvalidMessage("append: an index is out of range")


def _follow(s: State, sender: int, term: int) -> None:
    """Accept ``sender`` as the leader of ``term``, which is not an old one."""
    if term == s.term and (s.role is Role.LEADER or s.leader_id not in (None, sender)):
        raise s.broken(f"nodes {s.leader_id} and {sender} both lead in term {term}")  # H-05
    if term > s.term or s.leader_id != sender or s.role not in (Role.FOLLOWER, Role.LEARNER):
        s.become_follower(term, sender)
    s.leader_contact = s.now
    s.election_deadline = s.now + s.random_timeout()


def on_heartbeat(s: State, token: Token, sender: int, message: HeartbeatRequest) -> None:
    """Note that the leader is there, and what it has committed; its entries do not matter here (S-21)."""
    if message.term >= s.term:
        _follow(s, sender, message.term)
        follow_commit(s, message.commit)
        if s.repair and message.repaired == s.repair != s.clearing:
            s.out.repaired = s.clearing = s.repair

    def answer() -> None:
        s.answer(token, HeartbeatReply(s.term, message.round, s.log.durable, s.commit, s.repair, s.full))

    s.when_vote_persisted(answer)


def on_append(s: State, token: Token, sender: int, message: AppendRequest) -> None:
    """Take appends of a stream in their order; hold what came too early, within a bound and for a while."""
    if message.term < s.term:
        s.when_vote_persisted(lambda: s.answer(token, s.append_reply(message, success=False, conflict=s.log.last)))
        return
    _follow(s, sender, message.term)
    inbox = s.inbox
    stream = (message.term, message.stream)
    if stream > inbox.stream:
        release_held(s)
        inbox.stream, inbox.next_seq = stream, 0
    early = stream == inbox.stream and message.seq > inbox.next_seq
    if early and message.seq not in inbox.held and len(inbox.held) < 2 * s.config.max_inflight_appends:
        inbox.held[message.seq] = (token, sender, message)
        if inbox.deadline is None:
            inbox.deadline = s.now + s.config.heartbeat_interval
        return
    _take(s, token, message)
    if stream == inbox.stream:
        inbox.next_seq = max(inbox.next_seq, message.seq + 1)
        while inbox.next_seq in inbox.held:
            token, _, message = inbox.held.pop(inbox.next_seq)
            inbox.next_seq += 1
            _take(s, token, message)
        if not inbox.held:
            inbox.deadline = None


def release_held(s: State) -> None:
    """Take what was held although something before it is missing; the leader learns of the gap."""
    inbox = s.inbox
    held, inbox.held, inbox.deadline = inbox.held, {}, None
    for seq in sorted(held):
        token, _, message = held[seq]
        inbox.next_seq = max(inbox.next_seq, seq + 1)
        _take(s, token, message)


def _take(s: State, token: Token, message: AppendRequest) -> None:
    if not _matches(s, message):
        hint = s.log.agreement(message.prev.index, message.prev.term)
        if hint.index < s.commit:
            hint = s.log.id_at(s.commit) or s.log.purged
        reply = s.append_reply(message, success=False, conflict=hint)
        s.when_vote_persisted(lambda: s.answer(token, reply))
        return
    if s.full and not message.reserve and _is_news(s, message):
        refusal = s.append_reply(message, success=False, full=True)
        s.when_vote_persisted(lambda: s.answer(token, refusal))
        return
    _merge(s, message.entries)
    match = message.prev.index + len(message.entries)
    s.verified = max(s.verified, match)
    follow_commit(s, message.commit)
    reply = s.append_reply(message, success=True, match=match)
    s.when_persisted(lambda: s.answer(token, reply))


def _matches(s: State, message: AppendRequest) -> bool:
    """Return whether the log has ``prev``. What is committed matches, or an invariant is broken (J-28, H-25)."""
    prev = message.prev
    term = s.log.term_at(prev.index)
    if prev.index <= s.commit and term not in (None, prev.term):
        raise s.broken(f"the leader's entry {prev.index} has term {prev.term}, the committed one has {term}")
    return prev.index <= s.commit or term == prev.term


def _is_news(s: State, message: AppendRequest) -> bool:
    """Return whether an append has an entry that is not in the log."""
    entries = message.entries
    return bool(entries) and s.log.term_at(entries[-1].index) != entries[-1].term and entries[-1].index > s.commit


def _merge(s: State, entries: Sequence[Entry]) -> None:
    """Append what is new; remove what conflicts, and only that (H-22)."""
    if not entries or entries[-1].index < s.log.purged.index:
        return
    new = 0
    if entries[0].index <= s.log.last.index:
        for new, entry in enumerate(entries):  # noqa: B007 - the position is used after the loop
            term = s.log.term_at(entry.index)
            if term == entry.term or entry.index <= s.log.purged.index:
                continue
            if term is not None:
                s.truncate(entry.index - 1)
            break
        else:
            return
    s.append(tuple(entries[new:]))


def follow_commit(s: State, leader_commit: int) -> None:
    """Advance the commit index as far as the log is known to equal the leader's (H-24, S-23)."""
    index = min(leader_commit, s.verified)
    if index > s.commit:
        s.commit = s.out.commit = index
        note_removal(s)


def snapshot_offered(s: State, sender: int, term: int, point_index: int, point_term: int) -> str:
    """Judge a chunk of a leader's snapshot; see :meth:`RaftCore.snapshot_offered`."""
    if term < s.term:
        return "stale"
    _follow(s, sender, term)
    known = s.log.term_at(point_index)
    if point_index <= s.commit and known not in (None, point_term):
        raise s.broken(f"the leader's snapshot ends at {point_term}-{point_index}, committed is term {known}")  # J-86
    if known == point_term and point_index > s.commit:
        s.verified = max(s.verified, point_index)
        follow_commit(s, point_index)  # the log has it all; keep what follows (H-62)
    if point_index <= s.commit:
        return "covered" if point_index <= s.log.durable else "busy"
    return "accept"


def will_install(s: State, point: SnapshotPoint) -> bool:
    """Return whether a received snapshot tells this member something new (H-61)."""
    return point.last.index > s.commit and s.log.term_at(point.last.index) != point.last.term


def install(s: State, point: SnapshotPoint) -> None:
    """Replace the log by a snapshot that is durable; entries that conflict with it go too (H-63, J-84)."""
    if not will_install(s, point):
        if point.last.index > s.commit:
            s.verified = max(s.verified, point.last.index)
            follow_commit(s, point.last.index)
        return
    s.reset_log(point)
    s.snapshot = point
    s.commit = point.last.index
    note_removal(s)
