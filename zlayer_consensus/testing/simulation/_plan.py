"""What one seed decides before anything happens: every size and time-out, and what goes wrong when."""

from __future__ import annotations

from random import Random
from typing import Any

import attrs

from ...config import ConsensusConfig

__all__ = ["BUFFER_BYTES", "Fault", "Knobs", "Plan"]

BUFFER_BYTES = 256 << 10
"""As a :class:`~zlayer_consensus.storage.FileStateMachine` has it, where nobody says otherwise."""


@attrs.frozen
class Fault:
    """One thing that goes wrong.

    :param at: when, in simulated seconds.
    :param kind: a name of :data:`~zlayer_consensus.testing.simulation._faults.KINDS`.
    :param seed: decides its details when it happens, whatever happened before.
    """

    at: float
    kind: str
    seed: int


@attrs.frozen(kw_only=True)
class Knobs:
    """The settings of a run."""

    config: ConsensusConfig
    voters: int
    inline_disk: bool
    disk_latency: float
    segment_bytes: int
    reserve_bytes: int
    tail_bytes: int
    part_bytes: int
    snapshots_kept: int
    idle_seconds: float
    drift: float
    wall_clock_jumps: tuple[float, ...]
    delay: tuple[float, float]
    loss: float
    duplicate: float
    reply_loss: float
    straggle: float
    straggle_delay: float
    clients: int
    keys: int
    think_time: float
    duration: float
    early_faults: bool = False
    """Whether things go wrong from the beginning, or only when the cluster has begun."""
    buffer_bytes: int = BUFFER_BYTES
    """How much of a snapshot is gathered before it is written."""

    def clock_rate(self, random: Random) -> float:
        """Draw how fast a machine's clock goes."""
        return 1.0 + random.uniform(-self.drift, self.drift)

    def watched(self, random: Random) -> Knobs:
        """Draw whether the nodes watch over themselves. Most do not, and then nothing of a run is another."""
        often = random.choices((0.0, 0.5, 3.0), (6, 1, 1))[0]
        unit = self.config.election_timeout_min
        rate = random.choices((0, 1, 10_000, 10_000_000), (6, 0.3, 1, 1.5))[0]
        config = attrs.evolve(
            self.config,
            digest_interval=often * unit,
            scrub_bytes_per_second=rate,
            scrub_interval=max(0.001, unit * random.choice((0.1, 3.0))),
        )
        return attrs.evolve(self, config=config)

    def buffered(self, random: Random) -> Knobs:
        """Draw whether snapshots are taken in many pieces, while the node goes on. Most are not, as ever."""
        return attrs.evolve(self, buffer_bytes=random.choices((BUFFER_BYTES, 1, 300), (4, 1, 1))[0])

    @classmethod
    def draw(cls, random: Random) -> Knobs:
        """Draw all settings."""
        choice, uniform = random.choice, random.uniform
        shortest = choice((10, 50, 150, 500, 1500))
        profile = "wan" if random.random() < 0.1 else "lan"
        unit = shortest / 1000 * (4 if profile == "wan" else 1)
        delay, disk = choice((0.002, 0.02, 0.1)), choice((0.0, 0.0002, 0.002, 0.02, 0.1))
        # Where every message takes long, the smallest pieces would only take hours.
        quick = max(delay, disk) < 0.05
        return cls(
            config=_config(random, shortest, profile, quick),
            voters=random.choices((1, 2, 3, 4, 5), (1, 1, 8, 1, 4))[0],
            inline_disk=random.random() < 0.15,
            disk_latency=unit * disk,
            segment_bytes=choice((16 << 10, 16 << 10, 64 << 10)),
            tail_bytes=choice((0, 500, 1 << 20)),
            part_bytes=random.choices((1, 50, 500, 1 << 20), (1 if quick else 0, 2, 4, 4))[0],
            snapshots_kept=choice((1, 2, 3)),
            idle_seconds=choice((unit / 50, 0.1, 1.0)),
            drift=choice((0.0, 0.0, 0.01, 0.1)),
            wall_clock_jumps=random.choices(((0.0,), (0.0, -5.0, 5.0), (-86_400.0, 86_400.0)), (4, 2, 1))[0],
            delay=(0.0, unit * delay),
            loss=choice((0.0, 0.0, 0.01, 0.1)),
            duplicate=choice((0.0, 0.02, 0.3)),
            reply_loss=choice((0.0, 0.02, 0.1)),
            straggle=choice((0.0, 0.01, 0.1)),
            straggle_delay=unit * choice((1.0, 5.0)),
            clients=random.randint(1, 6),
            keys=random.randint(1, 5),
            think_time=unit * uniform(0.02, 0.3),
            duration=unit * uniform(9, 20),
            # To begin takes up to a second, however short the time-outs are.
            early_faults=shortest >= 150 and random.random() < 0.25,
            reserve_bytes=choice((16 << 10, 16 << 10, 64 << 10)),
        )


def _config(random: Random, shortest: int, profile: str, quick: bool) -> ConsensusConfig:
    choice = random.choice
    bulk = shortest / 1000 * choice((0.5, 1, 3))
    unit_ms = shortest * (4 if profile == "wan" else 1)
    largest = random.choices((1, 60, 200, 1 << 20), (0.01, 0.1, 1, 5))[0]
    return ConsensusConfig(
        profile=profile,
        enable_prevote=random.random() < 0.9,
        election_timeout_min_ms=shortest,
        election_timeout_max_ms=int(shortest * choice((1.1, 1.2, 2, 3))),
        heartbeat_interval_ms=max(1, int(shortest * random.choices((0.1, 0.2, 0.3, 0.45), (1, 2, 3, 3))[0])),
        snapshot_policy=choice(("logs", "logs", "logs", "never")),
        snapshot_logs_since_last=choice((1, 5, 30, 100)),
        snapshot_bytes_since_last=choice((1, 2000, 256 << 20, 256 << 20)),
        max_in_snapshot_log_to_keep=choice((0, 1, 10, 1000)),
        max_pinned_log_bytes=choice((0, 1000, 1 << 20)),
        max_payload_entries=choice((1, 2, 10, 300)) if quick else choice((10, 300)),
        max_payload_bytes=choice((1, 200, 1 << 20)) if quick else 1 << 20,
        max_inflight_appends=choice((1, 2, 8)),
        max_inflight_bytes=choice((1, 500, 8 << 20)),
        replication_lag_threshold=choice((0, 3, 1000)),
        rpc_timeout=max(0.001, bulk),
        snapshot_timeout=bulk * choice((1, 5)) * (4 if profile == "wan" else 1),
        snapshot_chunk_bytes=(
            random.choices((1, 20, 300, 1 << 18), (0.02, 0.5, 2, 3))[0] if quick else choice((300, 1 << 18))
        ),
        proposal_timeout=unit_ms / 1000 * random.choices((0.1, 1, 4), (0.1, 1, 1))[0],
        max_proposal_bytes=largest,
        max_pending_proposals=random.choices((1, 3, 20_000), (1, 2, 4))[0],
        max_pending_bytes=choice((largest, 64 << 20)),
        max_pending_reads=random.choices((1, 3, 20_000), (1, 2, 4))[0],
        forward_proposals=random.random() < 0.8,
        session_ttl_ms=random.choices((1, 10 * unit_ms, 3_600_000), (0.05, 1, 6))[0],
        session_window=choice((1, 2, 64)),
        max_sessions=random.choices((1, 2, 10_000), (0.5, 1, 4))[0],
        log_cache_bytes=choice((0, 1000, 8 << 20)),
        low_space_bytes=choice((0, 1000, 30_000)),
        # Simulated time has no delays to be measured, and the calls would be most of the events.
        loop_probe_interval_ms=0,
        # Both are drawn in `watched`.
        digest_interval=0.0,
        scrub_bytes_per_second=0,
    )


@attrs.frozen
class Plan:
    """A whole run.

    :param seed: decides everything that is not written here.
    """

    seed: int
    knobs: Knobs
    faults: tuple[Fault, ...]

    @classmethod
    def draw(cls, seed: int) -> Plan:
        """Draw a run."""
        from ._faults import KINDS

        knobs = Knobs.draw(Random(f"{seed} knobs")).watched(Random(f"{seed} watch"))
        knobs = knobs.buffered(Random(f"{seed} buffer"))
        random = Random(f"{seed} faults")
        kinds = {name: weight * random.choice((0, 0, 0.3, 1, 3)) for name, weight in KINDS.items()}
        if not any(kinds.values()):
            kinds = dict(KINDS)
        most = max(4, min(25, int(knobs.duration / knobs.config.election_timeout_max)))
        names, weights = list(kinds), list(kinds.values())
        times = _times(random, knobs.duration, random.randint(3, most))
        faults = [Fault(at, random.choices(names, weights)[0], random.getrandbits(32)) for at in times]
        return cls(seed, knobs, tuple(faults))

    def without(self, **changes: Any) -> Plan:
        """Return a changed copy."""
        return attrs.evolve(self, **changes)


def _times(random: Random, duration: float, count: int) -> list[float]:
    """Draw when things go wrong: scattered, or in bursts with quiet between them."""
    if random.random() < 0.5:
        return sorted(random.uniform(0.0, duration) for _ in range(count))
    bursts = [random.uniform(0.0, 0.9 * duration) for _ in range(random.randint(1, 4))]
    width = 0.1 * duration
    return sorted(random.choice(bursts) + random.uniform(0.0, width) for _ in range(count))
