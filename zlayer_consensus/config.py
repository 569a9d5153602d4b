"""The settings of one Raft member, checked when they are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from .errors import ConfigError

__all__ = ["ConsensusConfig"]

_WAN_FACTOR = 4


def _number(low: float, high: float) -> Callable[[Any, Any, Any], None]:
    def check(_instance: object, field: Any, value: object) -> None:
        # Its name, until somebody resolves the annotations of the class, as cattrs does.
        wanted: type | tuple[type, ...] = int if field.type in ("int", int) else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise ConfigError(field.name, value, "must be an integer" if wanted is int else "must be a number")
        if not low <= value <= high:  # type: ignore[operator]
            raise ConfigError(field.name, value, f"must be between {low} and {high}")

    return check


def _instance(kind: type) -> Callable[[Any, Any, Any], None]:
    def check(_instance: object, field: Any, value: object) -> None:
        if not isinstance(value, kind):
            raise ConfigError(field.name, value, f"must be a {kind.__name__}")

    return check


def _one_of(*choices: str) -> Callable[[Any, Any, Any], None]:
    def check(_instance: object, field: Any, value: object) -> None:
        if value not in choices:
            raise ConfigError(field.name, value, "must be one of " + ", ".join(choices))

    return check


_GIB = 1 << 30


@attrs.frozen(kw_only=True)
class ConsensusConfig:
    """The settings of one Raft member. Times end in their unit; sizes are bytes.

    :param cluster_name: a name for people; it is part of the cluster id.
    :param profile: ``lan``, or ``wan`` which multiplies every timeout by 4.
    :param election_timeout_min_ms: shortest election timeout; also how long a follower stays with its leader.
    :param election_timeout_max_ms: longest election timeout; each election draws anew between the two.
    :param heartbeat_interval_ms: the leader's heartbeat.
    :param enable_prevote: ask before raising the term (dissertation §9.6).
    :param snapshot_policy: ``logs`` (by ``snapshot_logs_since_last`` or ``snapshot_bytes_since_last``,
        whichever comes first) or ``never``.
    :param snapshot_logs_since_last: entries applied since the last snapshot that make a new one due.
    :param snapshot_bytes_since_last: bytes of log applied since the last snapshot that make a new one due.
    :param max_in_snapshot_log_to_keep: entries kept behind a snapshot, so that slow followers need no snapshot.
    :param max_pinned_log_bytes: cap of the log that a running snapshot transfer may hold back from purging.
    :param max_payload_entries: most entries in one append message.
    :param max_payload_bytes: most bytes of entries in one append message (one larger entry travels alone).
    :param max_inflight_appends: append messages under way to one peer.
    :param max_inflight_bytes: bytes of entries under way to one peer.
    :param replication_lag_threshold: entries that a learner may lack and still count as caught up.
    :param rpc_timeout: seconds for bulk RPCs; votes and heartbeats expire within half the shortest election timeout.
    :param snapshot_timeout: seconds without progress after which a snapshot transfer is given up.
    :param snapshot_chunk_bytes: bytes of a snapshot in one message.
    :param proposal_timeout: seconds after which a proposal's outcome is unknown, unless the caller says otherwise.
    :param max_proposal_bytes: largest encoded request.
    :param max_pending_proposals: proposals waiting at this node; beyond it, ``Overloaded``.
    :param max_pending_bytes: bytes of the same.
    :param max_pending_reads: reads waiting at this node; beyond it, ``Overloaded``.
    :param forward_proposals: whether a follower forwards proposals (one hop) or refuses with the leader's address.
    :param session_ttl_ms: idle time, by the log's clock, after which a session expires.
    :param max_sessions: sessions kept; the least recently used goes first.
    :param session_window: replies kept per session, for retries of concurrent commands.
    :param low_space_bytes: the disk counts as full when less is free than this and another snapshot take. It should be
        twice ``max_pending_bytes`` or more: what was admitted before is still written.
    :param log_cache_bytes: memory for recent entries, their objects included; older ones are read from the store.
    :param scrub_bytes_per_second: how fast log and snapshots are read again in the background; 0 is not at all.
    :param scrub_interval: seconds between two passes of that.
    :param digest_interval: seconds between two comparisons of the members' states by the leader; 0 is never.
    :param loop_probe_interval_ms: how often the delay of the event loop is measured; 0 is never.
    """

    cluster_name: str = attrs.field(default="zlayer", validator=_instance(str))
    profile: str = attrs.field(default="lan", validator=_one_of("lan", "wan"))
    election_timeout_min_ms: int = attrs.field(default=1500, validator=_number(10, 3_600_000))
    election_timeout_max_ms: int = attrs.field(default=3000, validator=_number(10, 3_600_000))
    heartbeat_interval_ms: int = attrs.field(default=200, validator=_number(1, 3_600_000))
    enable_prevote: bool = attrs.field(default=True, validator=_instance(bool))
    snapshot_policy: str = attrs.field(default="logs", validator=_one_of("logs", "never"))
    snapshot_logs_since_last: int = attrs.field(default=10_000, validator=_number(1, 1 << 40))
    snapshot_bytes_since_last: int = attrs.field(default=256 << 20, validator=_number(1, 1 << 50))
    max_in_snapshot_log_to_keep: int = attrs.field(default=1000, validator=_number(0, 1 << 40))
    max_pinned_log_bytes: int = attrs.field(default=_GIB, validator=_number(0, 1 << 50))
    max_payload_entries: int = attrs.field(default=300, validator=_number(1, 100_000))
    max_payload_bytes: int = attrs.field(default=1 << 20, validator=_number(1, 16 << 20))
    max_inflight_appends: int = attrs.field(default=8, validator=_number(1, 1024))
    max_inflight_bytes: int = attrs.field(default=8 << 20, validator=_number(1, _GIB))
    replication_lag_threshold: int = attrs.field(default=1000, validator=_number(0, 1 << 40))
    rpc_timeout: float = attrs.field(default=5.0, validator=_number(0.001, 3600))
    snapshot_timeout: float = attrs.field(default=60.0, validator=_number(0.001, 86_400))
    snapshot_chunk_bytes: int = attrs.field(default=256 << 10, validator=_number(1, 1 << 20))
    proposal_timeout: float = attrs.field(default=5.0, validator=_number(0.001, 3600))
    max_proposal_bytes: int = attrs.field(default=1 << 20, validator=_number(1, 16 << 20))
    max_pending_proposals: int = attrs.field(default=20_000, validator=_number(1, 10_000_000))
    max_pending_bytes: int = attrs.field(default=64 << 20, validator=_number(1, 1 << 40))
    max_pending_reads: int = attrs.field(default=20_000, validator=_number(1, 10_000_000))
    forward_proposals: bool = attrs.field(default=True, validator=_instance(bool))
    session_ttl_ms: int = attrs.field(default=3_600_000, validator=_number(1, 1 << 50))
    max_sessions: int = attrs.field(default=10_000, validator=_number(1, 10_000_000))
    session_window: int = attrs.field(default=64, validator=_number(1, 65_536))
    low_space_bytes: int = attrs.field(default=128 << 20, validator=_number(0, 1 << 50))
    log_cache_bytes: int = attrs.field(default=8 << 20, validator=_number(0, _GIB))
    scrub_bytes_per_second: int = attrs.field(default=4 << 20, validator=_number(0, 1 << 40))
    scrub_interval: float = attrs.field(default=86_400.0, validator=_number(0.001, 31_536_000))
    digest_interval: float = attrs.field(default=10.0, validator=_number(0, 86_400))
    loop_probe_interval_ms: int = attrs.field(default=20, validator=_number(0, 60_000))

    def __attrs_post_init__(self) -> None:
        """Refuse combinations that cannot work, naming the field, the value and the rule."""
        if self.election_timeout_max_ms <= self.election_timeout_min_ms:
            raise ConfigError(
                "election_timeout_max_ms",
                self.election_timeout_max_ms,
                f"must be greater than election_timeout_min_ms ({self.election_timeout_min_ms})",
            )
        if self.heartbeat_interval_ms * 2 > self.election_timeout_min_ms:
            raise ConfigError(
                "heartbeat_interval_ms",
                self.heartbeat_interval_ms,
                f"must be at most half of election_timeout_min_ms ({self.election_timeout_min_ms})",
            )
        if self.max_pending_bytes < self.max_proposal_bytes:
            raise ConfigError(
                "max_pending_bytes",
                self.max_pending_bytes,
                f"must be at least max_proposal_bytes ({self.max_proposal_bytes})",
            )

    @property
    def _factor(self) -> int:
        return _WAN_FACTOR if self.profile == "wan" else 1

    @property
    def election_timeout_min(self) -> float:
        """Shortest election timeout in seconds, the profile applied."""
        return self.election_timeout_min_ms * self._factor / 1000

    @property
    def election_timeout_max(self) -> float:
        """Longest election timeout in seconds, the profile applied."""
        return self.election_timeout_max_ms * self._factor / 1000

    @property
    def heartbeat_interval(self) -> float:
        """Heartbeat interval in seconds, the profile applied."""
        return self.heartbeat_interval_ms * self._factor / 1000

    @property
    def control_timeout(self) -> float:
        """Seconds after which a vote or heartbeat expires: half the shortest election timeout."""
        return self.election_timeout_min / 2

    @property
    def bulk_timeout(self) -> float:
        """Seconds after which an append or a forwarded proposal expires, the profile applied."""
        return self.rpc_timeout * self._factor
