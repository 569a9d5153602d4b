"""What differs from seed to seed: the settings of the core, the shape of the cluster, and which faults there are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from random import Random

import attrs

from zlayer_consensus.config import ConsensusConfig

__all__ = ["Knobs"]


@dataclass(frozen=True)
class Knobs:
    """Times are in simulated seconds, chances from 0 to 1."""

    config: ConsensusConfig
    voters: int
    most_members: int
    duration: float
    delay_min: float
    delay_mean: float
    loss: float
    duplication: float
    stragglers: float
    """Chance of a message that takes so long that leaders may have come and gone."""
    held_back: float
    """Chance of a reply that waits until the member that asked leads again."""
    disk_delay: float
    apply_delay: float
    apply_batch: int
    bulk_timeout: float
    chunks: int
    proposal_every: float
    action_every: float
    outage: float
    """The longest time that a link, a disk or a process is out, in longest election timeouts."""
    payload: int
    actions: dict[str, float]
    """Weights of the actions."""
    keeps_applied: bool
    """Whether the state machine is durable by itself, beyond its snapshots (H-68)."""

    @classmethod
    def draw(cls, random: Random) -> Knobs:
        """Draw everything; small and awkward values on purpose."""
        choice = random.choice
        low = random.randint(100, 400)
        config = ConsensusConfig(
            election_timeout_min_ms=low,
            election_timeout_max_ms=int(low * random.uniform(1.3, 2.5)),
            heartbeat_interval_ms=max(1, low // choice((2, 3, 5, 10))),
            enable_prevote=random.random() < 0.85,
            max_payload_entries=choice((1, 2, 3, 10, 300)),
            max_payload_bytes=choice((1, 100, 400, 1 << 20)),
            max_inflight_appends=choice((1, 2, 4, 8)),
            max_inflight_bytes=choice((1, 200, 1000, 8 << 20)),
            log_cache_bytes=choice((0, 0, 200, 1000, 1 << 20)),
            max_in_snapshot_log_to_keep=choice((0, 0, 1, 5, 30)),
            max_pinned_log_bytes=choice((0, 300, 1 << 30)),
            replication_lag_threshold=choice((0, 1, 10, 1000)),
        )
        timeout = low / 1000
        voters = choice((1, 2, 3, 3, 3, 4, 5, 5))
        weights = {name: weight * (random.random() < 0.7) * random.uniform(0.2, 2) for name, weight in ACTIONS.items()}
        knobs = cls(
            config=config,
            voters=voters,
            most_members=voters + choice((0, 1, 2, 4)),
            duration=timeout * random.uniform(20, 90),
            delay_min=timeout * choice((0, 0.001, 0.01, 0.05)),
            delay_mean=timeout * choice((0.002, 0.01, 0.05, 0.2)),
            loss=choice((0, 0, 0.02, 0.1, 0.3)),
            duplication=choice((0, 0, 0.05, 0.3)),
            stragglers=choice((0, 0.01, 0.1)),
            held_back=choice((0, 0, 0.02)),
            disk_delay=timeout * choice((0, 0.001, 0.01, 0.1, 0.4)),
            apply_delay=timeout * choice((0, 0.01, 0.1)),
            apply_batch=choice((1, 5, 100)),
            bulk_timeout=timeout * choice((0.3, 1, 4, 20)),
            chunks=choice((1, 2, 5)),
            proposal_every=timeout * choice((0.05, 0.2, 1)),
            action_every=timeout * choice((0.3, 1, 3)),
            outage=choice((1.5, 6, 6)),
            payload=choice((0, 10, 200)),
            actions={name: weight for name, weight in weights.items() if weight} or {"read": 1},
            keeps_applied=random.random() < 0.2,
        )
        return knobs._restless(random, timeout) if random.random() < 0.25 else knobs

    def _restless(self, random: Random, timeout: float) -> Knobs:
        """Leaders come and go, and old messages live long: logs diverge and are mended all the time."""
        config = attrs.evolve(
            self.config,
            enable_prevote=random.random() < 0.4,
            heartbeat_interval_ms=self.config.election_timeout_min_ms // 2,
            max_payload_entries=random.choice((1, 3)),
            max_payload_bytes=1 << 20,
            max_inflight_appends=8,
            max_inflight_bytes=8 << 20,
        )
        return dataclasses.replace(
            self,
            config=config,
            voters=random.choice((3, 5, 5)),
            loss=0,
            stragglers=0.1,
            held_back=0.1,
            delay_mean=timeout * random.choice((0.02, 0.1)),
            disk_delay=timeout * random.choice((0, 0.02, 0.2)),
            bulk_timeout=timeout * 20,
            proposal_every=timeout * 0.05,
            action_every=timeout * random.choice((0.2, 0.5)),
            outage=1.5,
            actions={"isolate": 1, "split": 2, "transfer": 3, "campaign": 5, "crash": 0.3, "read": 2, "pause": 0.3},
        )


ACTIONS = {
    "read": 8,
    "cancel_read": 1,
    "crash": 2,
    "crash_all": 0.2,
    "pause": 2,
    "block_one_way": 2,
    "isolate": 1.5,
    "split": 1,
    "unblock": 2,
    "stall_disk": 1,
    "shut_down": 0.5,
    "add_learner": 1.5,
    "change_voters": 3,
    "remove_leader": 0.5,
    "remove_learner": 0.5,
    "change_address": 0.5,
    "transfer": 2,
    "campaign": 0.7,
    "heartbeat": 0.7,
    "early_tick": 1,
    "snapshot": 4,
    "purge": 1,
}
