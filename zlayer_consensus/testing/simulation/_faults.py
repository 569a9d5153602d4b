"""What goes wrong, by name. Each is a function of the world and of a random source of its own."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._plan import Fault
    from ._world import World

__all__ = ["KINDS", "happen"]


def _crash(world: World, random: Random) -> None:
    host = world.any_host(random, alive=True)
    if host is not None:
        host.kill()
        world.later(world.span(random), host.start)


def _power(world: World, random: Random) -> None:
    host = world.any_host(random, alive=True)
    if host is not None:
        host.kill(random.choice(("none", "all", "prefix", random)))
        world.later(world.span(random), host.start)


def _power_all(world: World, random: Random) -> None:
    for host in list(world.hosts.values()):
        host.kill(random.choice(("none", "all", "prefix", random)))
        world.later(world.span(random), host.start)


def _pause(world: World, random: Random) -> None:
    host = world.any_host(random, alive=True)
    if host is not None:
        host.pause(world.span(random))


def _partition(world: World, random: Random) -> None:
    addresses = [host.address for host in world.hosts.values()]
    random.shuffle(addresses)
    cut = random.randrange(len(addresses))
    world.network.partition(addresses[:cut], addresses[cut:])
    world.later(world.span(random), world.network.heal)


def _transfer(world: World, random: Random) -> None:
    host = world.any_host(random, alive=True)
    if host is not None and host.node is not None:
        world.ask(host, "transfer", host.node.transfer_leadership())


_FAULTS: dict[str, tuple[float, Callable[[World, Random], None]]] = {
    "crash": (3.0, _crash),
    "power": (3.0, _power),
    "power_all": (1.0, _power_all),
    "pause": (2.0, _pause),
    "partition": (3.0, _partition),
    "transfer": (1.0, _transfer),
}

KINDS: dict[str, float] = {name: weight for name, (weight, _) in _FAULTS.items()}
"""Every kind, and how often it happens."""


def happen(world: World, fault: Fault) -> None:
    """Let it happen."""
    _FAULTS[fault.kind][1](world, Random(fault.seed))
