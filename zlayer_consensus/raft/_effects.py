"""What the core wants done: one value per input, to be carried out by who drives it.

The order rules are in the fields. Nothing that depends on durable state is ever in an ``Effects`` before that state is
durable: the core itself holds it back, and hands it out in the effects of the ``persisted`` call (H-01).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConsensusError, InvariantBroken
from ._membership import Membership
from ._messages import Reply as ReplyMessage
from ._messages import Request
from ._types import NO_LOG, Entry, HardState, LogId, Role

__all__ = [
    "Answer",
    "Done",
    "Effects",
    "LogRead",
    "LogWrite",
    "PeerAlarm",
    "PeerRepair",
    "Persist",
    "Proposed",
    "ReadReady",
    "Refused",
    "Send",
    "SendSnapshot",
    "SnapshotPoint",
    "Start",
    "StateChange",
    "Token",
]

_FRESH = HardState()

Token = Hashable
"""The driver's own name for something that it waits for; the core hands it back untouched."""


@dataclass(frozen=True, slots=True)
class SnapshotPoint:
    """What a snapshot says of the log: its position, and the configuration and log time as of it."""

    last: LogId
    membership: Membership
    time_ms: int = 0


@dataclass(frozen=True, slots=True)
class Start:
    """What a member finds on its disk when it starts.

    :param hard_state: term, vote and commit as recovered.
    :param purged: position of the last entry that is no longer in the log (:data:`NO_LOG` if none).
    :param last: position of the last entry (equals ``purged`` if the log is empty).
    :param terms: ``(first index, term)`` of each run of entries with one term, ascending, after ``purged``.
    :param configs: the CONFIG entries after the snapshot (or from the first entry on), ascending.
    :param tail: entries up to ``last``, without a gap, as many as are cheap to have; may be empty.
    :param snapshot: the newest snapshot, if there is one.
    :param applied: what the state machine has applied already (the snapshot's index, usually).
    :param last_time_ms: an upper bound of the log's times.
    :param repair: the id of the repair after which this log may lack what this member has acknowledged; else empty.
    """

    hard_state: HardState = _FRESH
    purged: LogId = NO_LOG
    last: LogId = NO_LOG
    terms: tuple[tuple[int, int], ...] = ()
    configs: tuple[Entry, ...] = ()
    tail: tuple[Entry, ...] = ()
    snapshot: SnapshotPoint | None = None
    applied: int = 0
    last_time_ms: int = 0
    repair: bytes = b""


@dataclass(frozen=True, slots=True)
class LogWrite:
    """One atomic, ordered change of the log store. The parts take effect in the order of the fields.

    :param reset: forget the whole log; it starts after this position (a snapshot was installed).
    :param truncate_after: remove every entry with a greater index.
    :param entries: append these; contiguous.
    :param hard_state: replace term, vote and commit.
    """

    reset: LogId | None = None
    truncate_after: int | None = None
    entries: tuple[Entry, ...] = ()
    hard_state: HardState | None = None


@dataclass(frozen=True, slots=True)
class Persist:
    """A write to start now. Writes are made durable in the order of ``seq``.

    When it is durable the driver calls ``core.persisted(seq, last, now)`` with the same ``seq`` and ``last``. A later
    completion stands for all earlier ones.

    :param last: position of the log's last entry after this write.
    """

    seq: int
    last: LogId
    write: LogWrite


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``message`` to ``peer`` now. Exactly one of ``response`` and ``send_failed`` must follow."""

    peer: int
    message: Request


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to the inbound request that came with ``token``."""

    token: Token
    message: ReplyMessage


@dataclass(frozen=True, slots=True)
class LogRead:
    """Read entries from the store for a peer that lags behind the core's memory; answer with ``log_read``.

    At least one entry is expected, and as many as ``max_bytes`` and ``last`` allow.
    """

    peer: int
    term: int
    stream: int
    first: int
    last: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class SendSnapshot:
    """Stream the newest snapshot to ``peer``, then call ``snapshot_sent``. Nothing else is sent to it meanwhile
    but heartbeats.

    :param term: the leader's term, in which it is sent; it ends when the leader steps down.
    """

    peer: int
    term: int
    stream: int


@dataclass(frozen=True, slots=True)
class Proposed:
    """The batch of a ``propose`` call was appended: its drafts have the indexes ``first``, ``first + 1``, …"""

    first: int
    term: int


@dataclass(frozen=True, slots=True)
class ReadReady:
    """The read may be answered once the state machine has applied ``index``."""

    token: Token
    index: int


@dataclass(frozen=True, slots=True)
class Done:
    """What was asked for under ``token`` happened; ``value`` is a :class:`LogId` for membership changes."""

    token: Token
    value: Any = None


@dataclass(frozen=True, slots=True)
class Refused:
    """What was asked for under ``token`` will not happen, or its outcome is unknown: ``error`` tells."""

    token: Token
    error: ConsensusError


@dataclass(frozen=True, slots=True)
class StateChange:
    """Role, term, leader or configuration changed; these are the new ones."""

    role: Role
    term: int
    leader_id: int | None
    membership: Membership


@dataclass(frozen=True, slots=True)
class PeerAlarm:
    """A peer's log fell back behind what it had acknowledged; it counts for nothing from now on (H-29)."""

    peer: int
    match: int
    last_index: int


@dataclass(frozen=True, slots=True)
class PeerRepair:
    """A peer's log was repaired: it counts for nothing until entry ``until`` is committed without it and durable there.

    :param until: 0 when that is so, and the peer counts again.
    """

    peer: int
    repair: bytes
    until: int


@dataclass(slots=True)
class Effects:
    """What follows from one input. The driver carries out every field, in the order in which they stand here.

    :param fatal: stop at once; carry out nothing else.
    :param persist: writes to start, in this order.
    :param send: messages to send at once; they depend on nothing that is not durable.
    :param answers: replies to inbound requests.
    :param log_reads: entries to read for lagging peers.
    :param snapshots: snapshot transfers to start.
    :param commit: if set, the new commit index: entries up to it may be applied, in order.
    :param purge: if set, the log may be purged up to this position.
    :param proposed: the answer to ``propose``.
    :param reads: reads that may be answered.
    :param done: changes and transfers that are complete.
    :param refused: reads, changes, transfers, proposals that failed.
    :param change: what changed for an observer.
    :param alarms: peers that are no longer counted.
    :param repairs: peers whose log was repaired, or is complete again.
    :param repaired: if not empty, this member's log is complete again after that repair: its mark is to be removed
        durably, and then ``repair_cleared`` to be called.
    :param removed: this member is no longer in the committed configuration.
    """

    fatal: InvariantBroken | None = None
    persist: list[Persist] = field(default_factory=list)
    send: list[Send] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    log_reads: list[LogRead] = field(default_factory=list)
    snapshots: list[SendSnapshot] = field(default_factory=list)
    commit: int | None = None
    purge: LogId | None = None
    proposed: Proposed | None = None
    reads: list[ReadReady] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    change: StateChange | None = None
    alarms: list[PeerAlarm] = field(default_factory=list)
    repairs: list[PeerRepair] = field(default_factory=list)
    repaired: bytes = b""
    removed: bool = False
