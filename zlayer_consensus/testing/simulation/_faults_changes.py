"""What is cut short: changes of the membership just after their first entry, and transfers of leadership."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from . import _faults_members as members
from ._faults_process import keep

if TYPE_CHECKING:
    from ._host import Host
    from ._world import World

__all__ = ["interrupt", "interrupt_transfer"]

_CHANGES = (
    members.add_voter,
    members.add_voter,
    members.add_learner,
    members.remove_voter,
    members.remove_voter,
    members.change_voters,
    members.replace,
)


def interrupt(world: World, random: Random) -> None:
    """Ask for a change; something befalls the leader that appends its first configuration, or a later one."""
    left = random.choice((1, 1, 1, 2, 3))

    def appended(node_id: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            world.checker.on_configuration = None
            host = world.hosts.get(node_id)
            if host is not None and host.process is not None and not world.calm:
                _befall(world, random, host)

    world.checker.on_configuration = appended
    random.choice(_CHANGES)(world, random)


def interrupt_transfer(world: World, random: Random) -> None:
    """Leadership is handed to a node which something befalls."""
    leaders = world.leaders()
    voters = world.quorums.committed().voters
    targets = [host for host in world.hosts.values() if host.awake and host.node_id in voters and host not in leaders]
    if not leaders or not targets:
        return
    target = random.choice(targets)
    members.transfer_to(world, random, target.node_id)
    delay = random.choice((0.0, 1.0, 2.0)) * world.plan.knobs.delay[1]
    world.later(delay, lambda: _befall(world, random, target) if target.process is not None else None)


def _befall(world: World, random: Random, host: Host) -> None:
    span = world.long_span(random)
    way = random.choice(("cut off", "cut off", "cut off with another", "crash", "power loss", "pause"))
    world.count("interrupted")
    world.trace("interrupted", f"node {host.node_id}: {way}")
    if way == "crash":
        world.harm("crash")
        host.kill()
        host.restart(span)
    elif way == "power loss":
        host.kill(keep(random))
        host.restart(span)
    elif way == "pause":
        host.pause(span, timers_late=random.random() < 0.5)
    else:
        others = [each.address for each in world.hosts.values() if each is not host and not each.gone]
        random.shuffle(others)
        here = [host.address, *(others[:1] if way.endswith("another") else ())]
        pairs = [pair for a in here for b in others if b not in here for pair in ((a, b), (b, a))]
        for pair in pairs:
            world.network.cut(*pair)
        world.later(span, world.network.mend, pairs)
