"""What members say to each other. Immutable values; the wire form is the network's business.

Every request gets exactly one reply. Replies echo what identifies their request, since a reply may arrive late,
after the requester's term, campaign or stream has moved on (J-03, J-25, J-30).
"""

from __future__ import annotations

from dataclasses import dataclass

from ._types import Entry, LogId

__all__ = [
    "AppendReply",
    "AppendRequest",
    "HeartbeatReply",
    "HeartbeatRequest",
    "ReadIndexReply",
    "ReadIndexRequest",
    "Reply",
    "Request",
    "TimeoutNowReply",
    "TimeoutNowRequest",
    "VoteReply",
    "VoteRequest",
]


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """RequestVote (§5.2), or its dry run (dissertation §9.6) with ``pre_vote``.

    :param term: the term campaigned for; with ``pre_vote`` the one that *would* be campaigned for.
    :param last: the candidate's last log position.
    :param campaign: the candidate's own number of this attempt, echoed in the reply.
    :param transfer: whether the leader asked for this campaign; then leader stickiness does not apply (H-09).
    """

    term: int
    last: LogId
    campaign: int
    pre_vote: bool = False
    transfer: bool = False


@dataclass(frozen=True, slots=True)
class VoteReply:
    """``term`` is the voter's own term, whether it grants or not."""

    term: int
    campaign: int
    pre_vote: bool
    granted: bool


@dataclass(frozen=True, slots=True)
class HeartbeatRequest:
    """Leadership, the commit index and a round for reads; it never carries entries, so nothing holds it up.

    :param commit: at most what the receiver is known to have, so that it needs no log check.
    :param round: the leader's heartbeat round; the reply echoes it.
    :param repaired: the repair id that the receiver named, once its log is complete again; else empty.
    """

    term: int
    commit: int
    round: int
    repaired: bytes = b""


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """How far the receiver is.

    :param last_index: its last durable index; one below the known match shows a log that fell back (H-29).
    :param commit: its commit index, so that the leader sees who has to be told.
    :param repair: the id of the repair of its log, while that may lack what it acknowledged; else empty.
    :param full: whether its disk is full: it takes no entries but those that it has to (S-10).
    """

    term: int
    round: int
    last_index: int
    commit: int
    repair: bytes = b""
    full: bool = False


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """AppendEntries (§5.3).

    :param stream: changes whenever the leader starts over with this peer.
    :param seq: 0, 1, 2 … within the stream: the order in which the receiver takes them.
    :param prev: the position before the first entry.
    :param commit: the leader's commit index.
    :param reserve: whether a receiver whose disk is full has to take the entries: there is no majority of others.
    """

    term: int
    stream: int
    seq: int
    prev: LogId
    entries: tuple[Entry, ...]
    commit: int
    reserve: bool = False


@dataclass(frozen=True, slots=True)
class AppendReply:
    """Success: everything up to ``match`` is durable and equals the leader's log. Else a hint where to look.

    :param match: on success the last index that this request verified, durable; else 0.
    :param conflict: on failure a position that the receiver does have (term of the entry at that index), at or
        before which the logs may agree; the leader clamps it (H-26).
    :param last_index: the receiver's last index.
    :param repair: as in :class:`HeartbeatReply`.
    :param full: whether the entries were refused because the disk is full; then nothing else counts but the term.
    """

    term: int
    stream: int
    seq: int
    success: bool
    match: int
    conflict: LogId
    last_index: int
    repair: bytes = b""
    full: bool = False


@dataclass(frozen=True, slots=True)
class TimeoutNowRequest:
    """Asks the receiver to campaign at once (dissertation §3.10)."""

    term: int


@dataclass(frozen=True, slots=True)
class TimeoutNowReply:
    """``term`` is the receiver's term when the request arrived."""

    term: int


@dataclass(frozen=True, slots=True)
class ReadIndexRequest:
    """A follower asks for a read index (dissertation §6.4). ``context`` is never used twice (J-51)."""

    term: int
    context: int


@dataclass(frozen=True, slots=True)
class ReadIndexReply:
    """``index`` is 0 when the receiver refuses: it does not lead, or stepped down meanwhile."""

    term: int
    context: int
    index: int


Request = VoteRequest | HeartbeatRequest | AppendRequest | TimeoutNowRequest | ReadIndexRequest
Reply = VoteReply | HeartbeatReply | AppendReply | TimeoutNowReply | ReadIndexReply
