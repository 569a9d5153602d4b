"""What goes wrong with disks."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from ...errors import StorageFailed
from .._simfs import SimulatedFileSystem
from ._faults_process import shut_down, victim
from ._host import Host

if TYPE_CHECKING:
    from ._world import World

__all__ = ["disk_full", "disks_full", "failure", "lost_tail", "rot", "rot_while_running", "slow", "stall", "wipe"]


def slow(world: World, random: Random) -> None:
    """A disk becomes slow for a while."""
    host = victim(world, random)
    if host is not None:
        world.harm("slow disk")
        host.sluggish = random.choice((3.0, 20.0, 100.0))
        world.trace("slow disk", f"node {host.node_id}, {host.sluggish:g} times")
        world.later(world.long_span(random), setattr, host, "sluggish", 1.0)


def stall(world: World, random: Random) -> None:
    """A disk does nothing for a while, often for longer than an election timeout (S-21)."""
    host = victim(world, random)
    if host is not None:
        seconds = world.long_span(random)
        world.harm("stall")
        world.trace("stalled disk", f"node {host.node_id} for {seconds:.3f} s")
        host.stalled_until = max(host.stalled_until, world.timeline.now + seconds)


def disk_full(world: World, random: Random) -> None:
    """A disk has little or no room left, until somebody makes some (S-10)."""
    host = victim(world, random)
    if host is not None:
        _fill(world, host, random)
        world.later(world.long_span(random), _make_room, host)


def disks_full(world: World, random: Random) -> None:
    """All disks run full at about the same time."""
    for host in list(world.hosts.values()):
        if host.process is not None and not host.gone:
            world.later(world.span(random), _fill, world, host, random)
            world.later(2 * world.long_span(random), _make_room, host)


def _fill(world: World, host: Host, random: Random) -> None:
    if host.gone or world.calm:
        return
    world.harm("disk full")
    # When the reserve is used up, too.
    host.expects.add("storage_full")
    host.files.capacity = host.files.used() + random.choice((0, 100, 2000, 20_000))
    world.trace("disk full", f"node {host.node_id}")


def _make_room(host: Host) -> None:
    host.files.capacity = None


def failure(world: World, random: Random) -> None:
    """One operation of a disk fails. The node must stop (S-12), and is started again."""
    host = victim(world, random)
    if host is None:
        return
    operation = random.choice(("write", "sync", "sync", "rename", "sync_dir", "create", "read", "remove"))
    process = host.process

    def burn(operation: str, path: str) -> None:
        world.harm(f"{operation} error")
        world.trace("disk error", f"{operation} {path}")
        host.expects.add("storage_failed")
        patience = 2 * world.plan.knobs.config.bulk_timeout + 10 * world.plan.knobs.config.election_timeout_max
        # An old snapshot that cannot be removed is no reason to stop: that is tried again.
        if not (path.startswith("/state/") and operation in ("rename", "sync_dir", "remove")):
            world.later(patience, must_have_stopped, operation, path)
        raise StorageFailed(operation, path, "Input/output error")

    def must_have_stopped(operation: str, path: str) -> None:
        if host.process is process and process is not None and not process.stopped and host.awake:
            text = f"node {host.node_id} goes on after {operation} of {path} failed"
            raise world.checker.violated("stop", text)

    host.arm((operation,), random.choice((1, 1, random.randint(1, 8))), burn)


def lost_tail(world: World, random: Random) -> None:
    """The end of a voter's log is damaged, what it acknowledged last; and when it is back, the leader dies (J-98).

    Often as many voters as the leader can do without get nothing before that: nobody else has what was lost then.
    """
    host = _lossy(world, random)
    if host is None or host.when_down is not None or host.process is None:
        return
    world.quorums.lose(host.node_id, "damaged")
    late = _fall_behind(world, random, host) if random.random() < 0.7 else []

    def flip(orderly: bool) -> None:
        logs = [path for path, _ in host.files.files() if path.endswith(".seg")]
        if not orderly or not logs:
            world.quorums.found(host.node_id)
            world.network.mend(late)
            return
        path = max(logs)
        used = len(host.files.peek(path, 0, 1 << 30).rstrip(b"\0"))
        offset = max(0, used - random.choice((1, 500, 2000, 8000)))
        byte = host.files.peek(path, offset, 1)[0]
        host.files.corrupt(path, offset, bytes([byte ^ (1 << random.randrange(8))]))
        world.harm("lost tail")
        world.trace("lost tail", f"node {host.node_id}, {path} at {offset}")
        host.expects.add("storage_corrupt")
        host.restart(0.1 * world.span(random))
        world.later(0.0 if late else random.choice((0.1, 1.0)) * world.span(random), strike)

    def strike() -> None:
        for leader in world.leaders()[:1]:
            if leader is not host:
                leader.kill()
                leader.restart(world.long_span(random))
        world.network.mend(late)

    host.when_down = flip
    world.later(random.random() * world.long_span(random) if late else 0.0, shut_down, world, host)


def _fall_behind(world: World, random: Random, host: Host) -> list[tuple[str, str]]:
    """Cut off as many voters as the leader and this one can do without; return the links."""
    voters = world.quorums.committed().voters
    running = [each for each in world.hosts.values() if each.process is not None and each.node_id in voters]
    others = [each.address for each in running if each is not host and each not in world.leaders()]
    random.shuffle(others)
    late = others[: (len(voters) - 1) // 2]
    rest = [each.address for each in world.hosts.values() if each.address not in late]
    pairs = [pair for a in late for b in rest for pair in ((a, b), (b, a))]
    for pair in pairs:
        world.network.cut(*pair)
    world.later(4 * world.long_span(random), world.network.mend, pairs)  # whatever comes in between
    return pairs


def _begun(world: World, host: Host) -> bool:
    return host.attic is None and host.node_id in world.quorums.committed().members


def rot(world: World, random: Random) -> None:
    """A bit of what is durable flips while a node is down: it is refused, or does no harm (S-02 to S-04)."""
    host = _lossy(world, random)
    if host is None or host.when_down is not None or host.process is None:
        return
    world.quorums.lose(host.node_id, "damaged")

    def flip(orderly: bool) -> None:
        _flip_a_bit(world, host, random, "bit rot", whole=orderly)
        if orderly:
            host.restart(world.span(random))

    host.when_down = flip
    shut_down(world, host)


def rot_while_running(world: World, random: Random) -> None:
    """A bit flips under a running node: whatever reads it notices, the scrub at the latest (S-02, S-13)."""
    host = _lossy(world, random)
    if host is not None and host.when_down is None:
        world.quorums.lose(host.node_id, "damaged")
        _flip_a_bit(world, host, random, "bit rot while running", whole=False)


def _flip_a_bit(world: World, host: Host, random: Random, what: str, *, whole: bool) -> None:
    """Damage one of a node's files.

    :param whole: whether all of it is durable. Else the segment that is written to is left alone: what a crash can
        leave of its last record is not always told from damage (docs/storage-format.rst), and so is what is unfinished.
    """
    files = [(path, size) for path, size in host.files.files() if size]
    logs = [file for file in files if file[0].endswith(".seg")]
    if not whole:
        logs = logs[:-1]
        files = logs + [file for file in files if "/snap/" in file[0] and ".tmp" not in file[0]]
    if not files:
        world.quorums.found(host.node_id)
        return
    path, size = random.choice(logs if logs and random.random() < 0.5 else files)
    # Most bytes are zeros that nobody has written to yet.
    tries = [random.randrange(size) for _ in range(random.choice((1, 50)))]
    offset = next((each for each in tries if host.files.peek(path, each, 1) != b"\0"), tries[0])
    byte = host.files.peek(path, offset, 1)[0]
    host.files.corrupt(path, offset, bytes([byte ^ (1 << random.randrange(8))]))
    world.harm(what)
    world.trace(what, f"node {host.node_id}, {path} at {offset}")
    host.expects.add("storage_corrupt")


def _lossy(world: World, random: Random) -> Host | None:
    """Choose a member that runs, and whose disk may be lost now."""
    hosts = [
        host
        for host in world.hosts.values()
        if host.process is not None and host.process.ready and not host.gone and _begun(world, host)
        if world.quorums.can_lose(host.node_id) and host.node_id not in world.quorums.lost
    ]
    return random.choice(hosts) if hosts else None


def wipe(world: World, random: Random) -> None:
    """A machine comes back with an empty disk; its node must not be let in (H-29). The old disk may come back later."""
    host = _lossy(world, random)
    if host is None:
        return
    world.quorums.lose(host.node_id, "wiped")
    world.harm("wipe")
    world.trace("wipe", f"node {host.node_id}")
    host.kill()
    host.attic, host.files = host.files, SimulatedFileSystem()
    host.at_start.clear()
    host.restart(world.span(random))
    again: Callable[[], object] = random.choice((lambda: _restore(world, host, random), lambda: _bury(world, host)))
    world.later(world.long_span(random) * 2, again)


def _restore(world: World, host: Host, random: Random) -> None:
    """The old disk comes back."""
    if host.attic is None or host.gone:
        return
    host.kill()
    host.files, host.attic = host.attic, None
    world.quorums.found(host.node_id)
    world.count("old disk back")
    world.trace("old disk", f"node {host.node_id}")
    host.restart(world.span(random))


def _bury(world: World, host: Host) -> None:
    """The old disk is lost for good."""
    if host.attic is not None:
        host.kill()
        host.gone = host.gone or "wiped"
        world.trace("gone", f"node {host.node_id}")
