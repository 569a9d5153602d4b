"""What a leader knows about each peer, and what it is busy with. Gone when it steps down.

A peer is *probed* until one append matched, then *replicated* to with several appends under way, or it needs what was
purged and gets a *snapshot* (after etcd's progress states; H-32).
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

from ._effects import Token
from ._types import LogId

__all__ = ["LeaderState", "PeerProgress", "PendingChange", "PendingRead", "Progress", "ProgressState", "Transfer"]


class ProgressState(enum.Enum):
    """How a peer is being brought up to date."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


@dataclass(slots=True)
class Progress:
    """One peer as its leader sees it. Invariant: 0 <= match < next; ``match`` only grows (H-23)."""

    next: int
    last_ack: float
    match: int = 0
    state: ProgressState = ProgressState.PROBE
    stream: int = 0
    seq: int = 0
    inflight: deque[tuple[int, int]] = field(default_factory=deque)
    """``(seq, bytes)`` of the appends under way."""
    inflight_bytes: int = 0
    last_append: float = 0.0
    """When the last append left."""
    reading: bool = False
    """Whether entries for it are being read from the store."""
    paused: bool = False
    """Whether an append went unanswered; until the peer answers something, nothing more is sent (J-33)."""
    owes_append: bool = False
    """Whether it should get an append although there may be no entries: its commit index lags behind."""
    missed: bool = False
    """Whether the last message to it went unanswered."""
    heartbeats: int = 0
    """Heartbeats under way, at most two."""
    owes_round: bool = False
    """Whether a newer heartbeat round waits for one of those."""
    round_acked: int = 0
    match_round: int = 0
    """The newest heartbeat round when ``match`` last grew; only younger replies can show a fall-back (H-29)."""
    commit_sent: int = 0
    pinned: int = 0
    """While a snapshot is sent: the position behind which the log must stay."""
    alarmed: bool = False
    """Whether its log fell back; then it is counted for nothing."""
    full: bool = False
    """Whether its disk is full: it gets entries only if there is no majority of others (S-10)."""
    repair: bytes = b""
    """The repair that it names: it may lack what it acknowledged before, and is counted for nothing."""
    repair_until: int = 0
    """It is complete again once this entry, appended after it named the repair, is committed without it and durable
    there."""
    repaired: bytes = b""
    """The last repair that is over; late replies may still name it."""

    @property
    def trusted(self) -> bool:
        """Whether it counts for anything."""
        return not self.alarmed and not self.repair

    @property
    def counted(self) -> int:
        """The match index as far as it counts towards commit."""
        return self.match if self.trusted else 0

    def heard(self, now: float) -> None:
        """Note that the peer answered in this term."""
        self.last_ack = now
        self.missed = False
        self.paused = False

    def start_over(self, next_index: int) -> None:
        """Probe from ``next_index`` on; replies to what is under way no longer count as progress."""
        self.state = ProgressState.PROBE
        self.next = max(next_index, self.match + 1)
        self.stream += 1
        self.seq = 0
        self.inflight.clear()
        self.inflight_bytes = 0
        self.reading = False
        self.pinned = 0


@dataclass(frozen=True, slots=True)
class PeerProgress:
    """A copy of a peer's progress for an observer; ``lag`` is in entries, ``last_contact`` in the clock's seconds."""

    match: int
    next: int
    state: str
    lag: int
    last_contact: float
    alarmed: bool
    repair: bytes = b""
    full: bool = False


@dataclass(slots=True)
class PendingRead:
    """A read that waits for a quorum; a remote one is answered with a message instead of a read index."""

    token: Token
    remote_context: int | None = None


@dataclass(slots=True)
class PendingChange:
    """A membership change that somebody waits for; ``index`` is that of its newest configuration entry."""

    token: Token
    index: int


@dataclass(slots=True)
class Transfer:
    """A leadership transfer under way (dissertation §3.10)."""

    target: int
    deadline: float
    tokens: list[Token]
    sent: bool = False


@dataclass(slots=True)
class LeaderState:
    """Everything that exists only while leading.

    :param first_index: index of the no-op of this term; once it is committed the leader is *ready*.
    :param round: number of the newest heartbeat round.
    """

    first_index: int
    heartbeat_due: float
    peers: dict[int, Progress] = field(default_factory=dict)
    departing: dict[int, LogId] = field(default_factory=dict)
    ready: bool = False
    round: int = 0
    commit_notice_due: float | None = None
    flush_due: float | None = None
    """When entries that wait for more company have to leave."""
    waiting_reads: list[PendingRead] = field(default_factory=list)
    """Reads that no heartbeat round was sent for yet."""
    open_reads: deque[tuple[int, int, list[PendingRead]]] = field(default_factory=deque)
    """``(round, read index, reads)`` that wait for a quorum's acknowledgement of that round."""
    change: PendingChange | None = None
    transfer: Transfer | None = None
    hand_over_at: float = 0.0
    """When a leader whose disk is full may try again to find an heir."""
