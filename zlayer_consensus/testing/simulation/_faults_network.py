"""What goes wrong on the network."""

from __future__ import annotations

import functools
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._world import World

__all__ = ["bridge", "clog", "degrade", "depose", "isolate", "one_way", "partition", "ring"]

Pair = tuple[str, str]


def _addresses(world: World, random: Random) -> list[str]:
    addresses = [host.address for host in world.hosts.values() if not host.gone]
    random.shuffle(addresses)
    return addresses


def _cut(world: World, random: Random, what: str, pairs: list[Pair]) -> None:
    """Cut these links, at once or one after the other, and mend them some time."""
    if not pairs:
        return
    world.harm(what)
    world.trace(what, ", ".join(f"{a}>{b}" for a, b in pairs) if len(pairs) < 7 else f"{len(pairs)} links")
    span = world.long_span(random)
    slow = random.random() < 0.2
    for pair in pairs:
        world.later(random.random() * span / 3 if slow else 0.0, world.network.cut, *pair)
    if slow:  # one by one, in another order
        for pair in pairs:
            world.later(span * (0.4 + 0.6 * random.random()), world.network.mend, [pair])
    else:
        world.later(span, world.network.mend, pairs)


def partition(world: World, random: Random) -> None:
    """Split the hosts into two groups, of any sizes."""
    addresses = _addresses(world, random)
    size = random.randint(1, max(1, len(addresses) - 1))
    left, right = addresses[:size], addresses[size:]
    _cut(world, random, "partition", [pair for a in left for b in right for pair in ((a, b), (b, a))])


def isolate(world: World, random: Random) -> None:
    """Cut one host off; most often the leader."""
    addresses = _addresses(world, random)
    leaders = [host.address for host in world.leaders()]
    if leaders and random.random() < 0.6:
        addresses.remove(leaders[0])
        addresses.insert(0, leaders[0])
    one = addresses[0]
    _cut(world, random, "isolation", [pair for b in addresses[1:] for pair in ((one, b), (b, one))])


def depose(world: World, random: Random) -> None:
    """Cut the leader off until the others have another one, and for longer; it may stand still till then.

    Clients reach it all the while, and it must not tell them what is no longer so (H-71). Followers that are cut off
    together with it, too few for a majority, take in what will never be committed.
    """
    leaders = world.leaders()
    if not leaders:
        return
    one = leaders[0].address
    others = [address for address in _addresses(world, random) if address != one]
    company = max(0, len(others) // 2 - 1) if random.random() < 0.8 else 0
    here, there = [one, *others[:company]], others[company:]
    world.harm("deposed leader")
    world.trace("deposed leader", f"node {leaders[0].node_id}, with {company} others")
    pairs = [pair for a in here for b in there for pair in ((a, b), (b, a))]
    for pair in pairs:
        world.network.cut(*pair)
    timeout = world.plan.knobs.config.election_timeout_max
    span = timeout * (1.5 + 1.5 * random.random())
    if random.random() < 0.5:
        begin = random.choice((0.0, 0.7)) * timeout * random.random()
        pause = functools.partial(leaders[0].pause, 0.9 * span - begin, timers_late=random.random() < 0.7)
        world.later(begin, pause)
    world.later(span, world.network.mend, pairs)


def one_way(world: World, random: Random) -> None:
    """Let a host, or some, send but not receive, or the reverse."""
    addresses = _addresses(world, random)
    size = random.randint(1, max(1, len(addresses) - 1)) if random.random() < 0.3 else 1
    pairs = [(a, b) for a in addresses[:size] for b in addresses[size:]]
    if random.random() < 0.5:
        pairs = [(b, a) for a, b in pairs]
    _cut(world, random, "one-way cut", pairs)


def bridge(world: World, random: Random) -> None:
    """Two groups that only one host reaches both of."""
    addresses = _addresses(world, random)
    middle = len(addresses) // 2
    left, right = addresses[:middle], addresses[middle + 1 :]
    _cut(world, random, "bridge", [pair for a in left for b in right for pair in ((a, b), (b, a))])


def ring(world: World, random: Random) -> None:
    """Every host reaches its two neighbours only."""
    addresses = _addresses(world, random)
    count = len(addresses)
    pairs = [
        (a, b)
        for i, a in enumerate(addresses)
        for j, b in enumerate(addresses)
        if i != j and (i - j) % count not in (1, count - 1)
    ]
    _cut(world, random, "ring", pairs)


def clog(world: World, random: Random) -> None:
    """Clog some links one by one, and unclog them in another order (hazards §1.2)."""
    addresses = _addresses(world, random)
    pairs = [(a, b) for a in addresses for b in addresses if a != b and random.random() < 0.5]
    random.shuffle(pairs)
    if not pairs:
        return
    world.harm("clog")
    world.trace("clog", f"{len(pairs)} links")
    span = world.long_span(random)
    for number, pair in enumerate(pairs):
        world.later(span / 2 * number / len(pairs), world.network.clog, *pair)
    random.shuffle(pairs)
    for number, pair in enumerate(pairs):
        world.later(span / 2 * (1 + (number + 1) / len(pairs)), world.network.usual, *pair)


def degrade(world: World, random: Random) -> None:
    """Make some links slow or lossy for a while."""
    addresses = _addresses(world, random)
    pairs = [(a, b) for a in addresses for b in addresses if a != b and random.random() < 0.4]
    if not pairs:
        return
    world.harm("bad link")
    world.trace("bad links", f"{len(pairs)}")
    timeout = world.plan.knobs.config.election_timeout_min
    for pair in pairs:
        link = world.network.link(*pair)
        what = random.randrange(4)
        if what == 0:
            link.loss = random.choice((0.2, 0.5, 0.9))
        elif what == 1:
            link.delay = (0.0, timeout * random.choice((0.3, 1.0, 2.0)))
        elif what == 2:
            link.straggle, link.straggle_delay = 0.5, 3 * timeout
        else:
            link.duplicate = link.reply_loss = 0.5
    span = world.long_span(random)
    for pair in pairs:
        world.later(span, world.network.usual, *pair)
