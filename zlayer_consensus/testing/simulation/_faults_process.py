"""What goes wrong with processes, their clocks, and the power."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from .._simfs import Keep
from ._host import OPERATIONS, Host

if TYPE_CHECKING:
    from ._world import World

__all__ = [
    "clock_rate",
    "crash",
    "crash_at_message",
    "crash_at_operation",
    "crash_while_starting",
    "keep",
    "pause",
    "power_all",
    "power_loss",
    "restart",
    "victim",
    "wall_clock",
]

_SHORT_LISTS = (("write",), ("sync",), ("sync",), ("sync",), ("rename",), ("remove",), ("sync_dir",), ("create",))


def keep(random: Random) -> Keep:
    """Draw what a disk keeps of what was not synced."""
    return random.choice(("none", "all", "prefix", random, random))


def victim(world: World, random: Random) -> Host | None:
    """Choose a host that runs; often the leader's, where most happens."""
    leaders = world.leaders()
    if leaders and random.random() < 0.4:
        return leaders[0]
    return world.any_host(random, alive=True)


def _die(world: World, host: Host, random: Random) -> None:
    """Let a process die: alone, or with its machine, or first the one and then the other."""
    way = random.random()
    world.trace("dies", f"node {host.node_id}")
    if way < 0.25:
        world.harm("crash")
        host.kill()
    elif way < 0.75:
        host.kill(keep(random))
    else:
        world.harm("crash")
        host.kill()
        _machine_follows(world, host, random)
    host.restart(world.span(random))


def _machine_follows(world: World, host: Host, random: Random) -> None:
    """The machine loses its power later: any time, or at one of the first writes after the process starts again."""
    if random.random() < 0.5:
        world.later(world.span(random), _lose_power_too, world, host, random)
    else:
        operations, nth = random.choice((("write",), ("sync",))), random.choice((1, 1, 2, 3))
        host.at_start.append(lambda: host.arm(operations, nth, lambda *_: _lose_power_too(world, host, random)))


def _lose_power_too(world: World, host: Host, random: Random) -> None:
    """The machine follows its process, which may have started again and built on what was never synced."""
    if not host.gone:
        world.trace("power loss", f"node {host.node_id}, after its process")
        host.kill(keep(random))
        host.restart(world.span(random))


def crash(world: World, random: Random) -> None:
    """A process dies, and perhaps its machine loses the power later."""
    host = victim(world, random)
    if host is not None:
        world.trace("crash", f"node {host.node_id}")
        world.harm("crash")
        host.kill()
        if random.random() < 0.3:
            _machine_follows(world, host, random)
        host.restart(world.span(random))


def power_loss(world: World, random: Random) -> None:
    """A machine loses its power, most often while its disk works."""
    host = victim(world, random)
    if host is not None:

        def burn(*_: object) -> None:
            world.trace("power loss", f"node {host.node_id}")
            host.kill(keep(random))
            host.restart(world.span(random))

        _while_it_works(host, random, burn)


def _while_it_works(host: Host, random: Random, burn: Callable[..., object]) -> None:
    if random.random() < 0.15:
        burn()
    else:
        host.arm(("sync",), random.choice((1, 1, 2, 5)), burn)


def power_all(world: World, random: Random) -> None:
    """All machines lose their power, most often while a disk works."""
    host = victim(world, random)
    if host is not None:
        _while_it_works(host, random, lambda *_: _lose_all_power(world, random))


def _lose_all_power(world: World, random: Random) -> None:
    world.harm("power loss of all")
    world.trace("power loss", "all")
    for host in list(world.hosts.values()):
        if not host.gone:
            host.kill(keep(random))
            host.restart(world.span(random))


def _operations(random: Random) -> tuple[str, ...]:
    return random.choice(_SHORT_LISTS) if random.random() < 0.7 else OPERATIONS


def crash_at_operation(world: World, random: Random) -> None:
    """A process or machine dies before its n-th next file operation of certain kinds."""
    host = victim(world, random)
    if host is not None:
        operations = _operations(random)
        nth = random.choice((1, 2, random.randint(1, 12)))

        def burn(operation: str, path: str) -> None:
            world.harm(f"crash at {operation}")
            world.trace("crash at", f"{operation} {path}")
            _die(world, host, random)

        host.arm(operations, nth, burn)


def crash_at_message(world: World, random: Random) -> None:
    """A process or machine dies before its n-th next message leaves."""
    host = victim(world, random)
    if host is not None:

        def burn() -> None:
            if host.process is not None:
                world.harm("crash at message")
                _die(world, host, random)

        world.fuses[host.node_id] = (random.choice((1, 2, random.randint(1, 30))), burn)


def crash_while_starting(world: World, random: Random) -> None:
    """A machine dies again and again while its node recovers (S-24)."""
    host = victim(world, random)
    if host is None:
        return

    def arm() -> None:
        operations = random.choice(
            (OPERATIONS, OPERATIONS, ("write", "create", "rename", "remove", "sync", "sync_dir"))
        )
        host.arm(operations, random.choice((1, 2, 3, random.randint(1, 20))), burn)

    def burn(operation: str, _path: str) -> None:
        world.harm("crash while starting")
        world.trace("crash at", f"{operation}, starting")
        _die(world, host, random)

    host.at_start += [arm] * random.randint(1, 4)
    world.trace("crash", f"node {host.node_id}, and while it starts")
    _die(world, host, random)


def pause(world: World, random: Random) -> None:
    """A process stands still, often for longer than an election timeout."""
    host = victim(world, random)
    if host is not None:
        seconds = world.long_span(random)
        world.harm("pause")
        world.trace("pause", f"node {host.node_id} for {seconds:.3f} s")
        host.pause(seconds, timers_late=random.random() < 0.5)


def restart(world: World, random: Random) -> None:
    """A node is stopped in order, and started again."""
    host = victim(world, random)
    if host is not None and host.node is not None and host.when_down is None:
        world.trace("shutdown", f"node {host.node_id}")
        shut_down(world, host)


def shut_down(world: World, host: Host) -> None:
    """Ask a node to stop in order."""
    process = host.process
    if process is not None:
        # A stalled disk makes it give up.
        host.expects.add("storage_failed")
        process.clock.enter(lambda: world.ask(process, "shutdown", process.node.shutdown()))


def clock_rate(world: World, random: Random) -> None:
    """A machine's clock changes its speed."""
    host = world.any_host(random, alive=True)
    if host is not None:
        drift = world.plan.knobs.drift or 0.05
        world.harm("clock drift")
        host.change_rate(1.0 + random.uniform(-drift, drift))
        world.trace("clock", f"node {host.node_id} goes at {host.rate:.3f}")


def wall_clock(world: World, random: Random) -> None:
    """A machine's time of day jumps."""
    host = world.any_host(random, alive=True)
    if host is not None:
        world.harm("wall clock jump")
        host.wall_offset = random.choice((0.0, random.uniform(-10, 10), random.uniform(-1e5, 1e5)))
        world.trace("wall clock", f"node {host.node_id} is off by {host.wall_offset:.1f} s")
