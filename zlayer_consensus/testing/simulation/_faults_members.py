"""What administrators do meanwhile: members come, go and move, leadership is handed over, snapshots are taken."""

from __future__ import annotations

import functools
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ...errors import MembershipRefused, NotLeader, TransferInProgress
from ...node import ConsensusNode
from ._faults_process import keep, shut_down
from ._host import Host
from ._quorums import Change

if TYPE_CHECKING:
    from ._world import World

__all__ = [
    "add_learner",
    "add_voter",
    "change_voters",
    "move",
    "purge",
    "remove_learner",
    "remove_voter",
    "replace",
    "snapshot",
    "transfer",
    "transfer_to",
    "trigger_election",
]

_MOST_HOSTS = 9


def _ask(
    world: World,
    random: Random,
    what: str,
    call: Callable[[ConsensusNode], Deferred[Any]],
    then: Callable[[BaseException | None], object] = lambda _: None,
) -> None:
    """Ask a node that is awake, the leader's most often.

    :param then: called with the error, or None.
    """
    hosts = [
        host
        for host in world.hosts.values()
        if host.awake and host.process is not None and host.process.ready and not host.process.stopped
    ]
    if not hosts:
        return
    leaders = [host for host in world.leaders() if host in hosts]
    host = leaders[0] if leaders and random.random() < 0.85 else random.choice(hosts)
    process = host.process
    assert process is not None

    def ended(result: Any) -> Any:
        then(result.value if isinstance(result, Failure) else None)
        return result

    world.trace("ask", f"node {host.node_id}: {what}")
    process.clock.enter(lambda: world.ask(process, what, call(process.node).addBoth(ended)))


def _patience(world: World, random: Random) -> float:
    return world.plan.knobs.config.election_timeout_max * random.choice((1.0, 3.0, 6.0))


def _operate(
    world: World,
    random: Random,
    what: str,
    change: Change,
    call: Callable[[ConsensusNode, float], Deferred[Any]],
    tries: int = 4,
) -> None:
    """Ask for a change that leaves a quorum of intact disks, whatever comes of it and of those under way."""
    quorums = world.quorums
    if not quorums.committed().voters or quorums.busy() or not quorums.stand(set(quorums.lost), change):
        return
    seconds = _patience(world, random)
    # Each try is a change of its own, though it is the same.
    mine = functools.partial(change)
    # Forwarded late, by a clock that is slow, it may begin late.
    quorums.changing(mine, 2 * seconds + 2 * world.plan.knobs.straggle_delay)

    def ended(error: BaseException | None) -> None:
        if error is None or isinstance(error, NotLeader | MembershipRefused | TransferInProgress):
            quorums.changed(mine)
        if error is not None and tries > 1:
            world.later(world.span(random), _operate, world, random, what, change, call, tries - 1)

    _ask(world, random, what, lambda node: call(node, seconds), ended)


def _newcomer(world: World, random: Random) -> Host | None:
    """A machine that is no member yet: one that waits for it, or a new one."""
    committed = world.quorums.committed()
    waiting = [
        host
        for host in world.hosts.values()
        if not host.founder
        and not host.gone
        and host.attic is None
        and host.node_id not in committed.members
        and host.node_id not in committed.tombstones
    ]
    if waiting and random.random() < 0.7:
        return random.choice(waiting)
    if len(world.hosts) >= _MOST_HOSTS:
        return None
    host = world.add_host(founder=False)
    host.start()
    return host


def _adding(node_id: int) -> Change:
    return lambda voters: voters | {node_id}


def _removing(node_id: int) -> Change:
    return lambda voters: voters - {node_id}


def add_voter(world: World, random: Random) -> None:
    """A new machine becomes a voter, or a learner does."""
    learners = sorted(world.quorums.committed().learners - set(world.quorums.lost))
    if learners and random.random() < 0.5:
        node_id, address = random.choice(learners), None
    else:
        host = _newcomer(world, random)
        if host is None:
            return
        node_id, address = host.node_id, host.address
    _operate(
        world,
        random,
        "voter added",
        _adding(node_id),
        lambda node, seconds: node.add_voter(node_id, address, timeout=seconds),
    )


def add_learner(world: World, random: Random) -> None:
    """A new machine becomes a learner, and perhaps a voter by itself."""
    host = _newcomer(world, random)
    if host is None:
        return
    promote, blocking = random.random() < 0.5, random.random() < 0.5
    _operate(
        world,
        random,
        "learner added",
        _adding(host.node_id) if promote else (lambda voters: voters),
        lambda node, seconds: node.add_learner(
            host.node_id, host.address, blocking=blocking, auto_promote=promote, timeout=seconds
        ),
    )


def remove_voter(world: World, random: Random) -> None:
    """A voter is removed; one whose disk is lost, if there is one."""
    voters = sorted(world.quorums.committed().voters)
    lost = [node_id for node_id in voters if node_id in world.quorums.lost]
    if not voters or (len(voters) < 3 and random.random() < 0.7):
        return
    node_id = random.choice(lost or voters)
    retain = not lost and random.random() < 0.3
    _operate(
        world,
        random,
        "voter removed",
        _removing(node_id),
        lambda node, seconds: node.remove_voter(node_id, retain=retain, timeout=seconds),
    )


def remove_learner(world: World, random: Random) -> None:
    """A learner is removed."""
    learners = sorted(world.quorums.committed().learners)
    if learners:
        node_id = random.choice(learners)
        _operate(
            world,
            random,
            "learner removed",
            _removing(node_id),
            lambda node, seconds: node.remove_learner(node_id, timeout=seconds),
        )


def change_voters(world: World, random: Random) -> None:
    """Several voters come and go at once."""
    committed = world.quorums.committed()
    known = sorted(committed.members)
    if len(known) < 2:
        return
    chosen = frozenset(
        random.sample(known, random.randint(1 if random.random() < 0.2 else (len(known) + 1) // 2, len(known)))
    )
    retain, force = random.random() < 0.6, random.random() < 0.3
    _operate(
        world,
        random,
        "voters changed",
        lambda _voters: chosen,
        lambda node, seconds: node.change_membership(chosen, retain, force, timeout=seconds),
    )


def replace(world: World, random: Random) -> None:
    """A new machine comes, and an old voter goes: one whose disk is lost, if there is one."""
    add_voter(world, random)
    world.later(world.long_span(random), remove_voter, world, random)


def move(world: World, random: Random) -> None:
    """A member's machine gets another address, and an administrator says so."""
    quorums, members = world.quorums, world.quorums.committed().members
    moved = world.hosts.get(quorums.moving)
    known = members.get(quorums.moving)
    if moved is not None and not moved.gone and known is not None and known.peer_address != moved.address:
        _announce(world, random, moved)
        return
    hosts = [
        host
        for host in world.hosts.values()
        if host.process is not None and host.process.ready and host.attic is None and host.node_id in members
        if host.when_down is None and len(host.addresses) < 5
    ]
    if not hosts:
        return
    host = random.choice(hosts)
    quorums.moving = host.node_id

    def moves(_orderly: bool) -> None:
        host.move(f"node{host.node_id}:{len(host.addresses) + 1}")
        world.count("address changed")
        world.trace("moves", f"node {host.node_id} to {host.address}")
        host.restart(world.span(random))
        for _ in range(3):
            world.later(world.long_span(random), _announce, world, random, host)

    if random.random() < 0.5:
        host.when_down = moves
        shut_down(world, host)
    else:
        host.kill(keep(random))
        moves(False)


def _announce(world: World, random: Random, host: Host) -> None:
    member = world.quorums.committed().members.get(host.node_id)
    if member is not None and member.peer_address != host.address:
        seconds, address = _patience(world, random), host.address
        _ask(world, random, "address", lambda node: node.change_address(host.node_id, address, timeout=seconds))


def transfer(world: World, random: Random) -> None:
    """Leadership is handed to somebody, or to anybody."""
    voters = sorted(world.quorums.committed().voters)
    transfer_to(world, random, random.choice(voters) if voters and random.random() < 0.5 else None)


def transfer_to(world: World, random: Random, target: int | None) -> None:
    """Leadership is handed to this node, or to any."""
    seconds = _patience(world, random)
    _ask(world, random, "transfer", lambda node: node.transfer_leadership(target, timeout=seconds))


def trigger_election(world: World, random: Random) -> None:
    """A node is told to campaign."""
    _ask(world, random, "election by hand", lambda node: node.trigger("elect"))


def snapshot(world: World, random: Random) -> None:
    """A node is told to take a snapshot."""
    _ask(world, random, "snapshot by hand", lambda node: node.trigger("snapshot"))


def purge(world: World, random: Random) -> None:
    """A node is told to purge its log."""
    _ask(world, random, "purge by hand", lambda node: node.trigger("purge"))
