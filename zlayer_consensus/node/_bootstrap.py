"""How a node comes to its cluster: by bootstrapping it together with others, or by joining one.

Nobody writes the initial configuration before every listed member has answered with its incarnation, the same list, and
an empty log or that very configuration. The cluster's id follows from list and incarnations, so all members compute the
same one, and a member whose disk was replaced computes another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from .. import _cbor
from ..errors import (
    BootstrapMismatch,
    ClusterMismatch,
    ConsensusError,
    IncarnationMismatch,
    MembershipRefused,
    NodeRemoved,
    NodeStopped,
    Overloaded,
    PeerRefused,
    PeerUnreachable,
    TargetMismatch,
)
from ..network import Envelope, IdentifyReply, IdentifyRequest
from ..raft import NO_LOG, AddLearner, Member, Membership
from ..storage.interfaces import Identity

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["InitialMember", "bootstrap", "cluster_id_of", "encode_members", "identify", "join"]

_RETRY_FROM = 0.1
_RETRY_TO = 1.0
_CLUSTER_ID_BYTES = 16


@dataclass(frozen=True, slots=True, order=True)
class InitialMember:
    """A member of the list that a cluster begins with.

    :param node_id: a positive number that no other node ever had or will have.
    :param peer_address: where the other nodes reach it.
    :param client_address: where clients reach it, if that is known.
    """

    node_id: int
    peer_address: str
    client_address: str = ""


def encode_members(cluster_name: str, members: Iterable[InitialMember]) -> bytes:
    """Return the list in its canonical form: the same for every order."""
    return _cbor.dumps([cluster_name, [[m.node_id, m.peer_address, m.client_address] for m in sorted(members)]])


def cluster_id_of(cluster_name: str, members: Iterable[Member]) -> bytes:
    """Derive the id of the cluster that begins with these members."""
    rows = [
        [m.node_id, m.incarnation, m.peer_address, m.client_address]
        for m in sorted(members, key=lambda member: member.node_id)
    ]
    return sha256(_cbor.dumps([cluster_name, rows])).digest()[:_CLUSTER_ID_BYTES]


async def identify(runtime: Runtime, address: str, node_id: int, members: bytes = b"") -> IdentifyReply:
    """Ask who is at ``address``; ``node_id`` 0 is whoever it is.

    :raises ConsensusError: what the network raises.
    """
    mine = runtime.identity
    envelope = Envelope(mine.cluster_id, mine.node_id, mine.incarnation, node_id, b"")
    reply = await runtime.network.call(address, envelope, IdentifyRequest(members), runtime.config.control_timeout)
    if not isinstance(reply, IdentifyReply):
        raise PeerUnreachable(address, "it answered with the wrong message", sent=True)
    return reply


# Bootstrap.


async def bootstrap(runtime: Runtime, members: Sequence[InitialMember] | None) -> None:
    """Carry out :meth:`ConsensusNode.bootstrap <zlayer_consensus.node.ConsensusNode.bootstrap>`."""
    runtime.check_running()
    alone = InitialMember(runtime.node_id, runtime.address, runtime.client_address)
    chosen = [alone] if members is None else list(members)
    _check_list(runtime, chosen)
    listed = encode_members(runtime.config.cluster_name, chosen)
    while runtime.initial_members == listed:  # somebody else has asked for the same
        await runtime.sleep(_RETRY_FROM)
    if runtime.initial_members:
        raise BootstrapMismatch("another bootstrap is under way here, with another list")
    if _is_no_op(runtime, chosen, listed):
        return
    runtime.initial_members = listed
    try:
        found = await _agree(runtime, chosen, listed)
        await _begin(runtime, found, listed)
    finally:
        runtime.initial_members = b""


def _check_list(runtime: Runtime, members: list[InitialMember]) -> None:
    own = next((m for m in members if m.node_id == runtime.node_id), None)
    if own is None:
        raise BootstrapMismatch(f"node {runtime.node_id} is not in the list of members")
    if own.peer_address != runtime.address:
        raise BootstrapMismatch(
            f"node {own.node_id} stands in the list with the address {own.peer_address}, but has {runtime.address}"
        )
    try:
        # What cannot stand in a configuration entry must not get into one.
        probe = Membership()
        for m in members:
            probe = probe.after(AddLearner(Member(m.node_id, bytes(16), m.peer_address, m.client_address)))
    except MembershipRefused as error:
        raise BootstrapMismatch(error.detail) from error


def _is_no_op(runtime: Runtime, members: list[InitialMember], listed: bytes) -> bool:
    """Whether this was done before; a store that has a log and does not agree is refused."""
    core, identity = runtime.core, runtime.identity
    if identity.origin and _name_in(identity.origin) != _name_in(listed):
        raise BootstrapMismatch(
            f"this node belongs to a cluster with the name {_name_in(identity.origin)!r}, not {_name_in(listed)!r}"
        )
    if core.last == NO_LOG and core.snapshot is None:
        if identity.repair and identity.cluster_id:
            return True  # a repair found nothing that could be kept; the leader sends what there is
        if identity.cluster_id and identity.origin != listed:
            raise BootstrapMismatch(
                f"this node belongs to cluster {identity.cluster_id.hex()} already"
                + (", which it was to begin with another list of members" if identity.origin else ", which it joined")
            )
        return False
    if identity.origin == listed:
        return True
    membership = core.membership
    voters = {(m.node_id, m.peer_address) for m in membership.members.values() if m.node_id in membership.voters}
    wanted = {(m.node_id, m.peer_address) for m in members}
    if voters == wanted:
        return True
    if not identity.origin and (runtime.node_id in membership.members or voters & wanted):
        # How it came to its cluster is not known: it joined, or its identity had to be made anew. It may be removed by
        # what is not committed.
        return True
    raise BootstrapMismatch(
        f"the log of node {runtime.node_id} is of a cluster with other members: it was begun with another list, and "
        f"its voters now are {_names(voters)}"
    )


def _name_in(listed: bytes) -> object:
    return _cbor.loads(listed)[0]


def _names(members: Iterable[tuple[int, str]]) -> str:
    return ", ".join(f"{node_id} at {address}" for node_id, address in sorted(members))


async def _agree(runtime: Runtime, members: list[InitialMember], listed: bytes) -> Membership | IdentifyReply:
    """Ask until every member has answered; return the configuration, or a reply that knows the running cluster."""
    found = {runtime.node_id: runtime.identity.incarnation}
    delay = _RETRY_FROM
    awaited: list[InitialMember] = []
    while True:
        for member in members:
            if member.node_id == runtime.node_id:
                continue
            reply = await _ask(runtime, member, listed)
            if reply is None:
                found.pop(member.node_id, None)
                continue
            if reply.cluster_id and reply.membership:
                return _existing(runtime, member, reply, members, listed)
            found[member.node_id] = reply.incarnation
        if len(found) == len(members):
            return Membership.initial(
                Member(m.node_id, found[m.node_id], m.peer_address, m.client_address) for m in members
            )
        missing = [m for m in members if m.node_id not in found]
        if delay >= _RETRY_TO and missing != awaited:  # members that start together need a moment
            awaited = missing
            names = _names((m.node_id, m.peer_address) for m in missing)
            runtime.log.info("waiting for node {names}, to begin the cluster together", names=names)
        await runtime.sleep(delay)
        delay = min(2 * delay, _RETRY_TO)


async def _ask(runtime: Runtime, member: InitialMember, listed: bytes) -> IdentifyReply | None:
    """Return a member's answer, None if it has to be asked again."""
    where = f"node {member.node_id} at {member.peer_address}"
    try:
        reply = await identify(runtime, member.peer_address, member.node_id, listed)
    except (PeerUnreachable, NodeStopped, Overloaded):
        return None
    except (TargetMismatch, ClusterMismatch) as error:
        raise BootstrapMismatch(f"{where} answers: {error.detail}") from error
    except PeerRefused as error:
        runtime.log.warn("{where} does not answer: {error}", where=where, error=error)
        return None
    if reply.node_id != member.node_id:
        raise BootstrapMismatch(f"node {reply.node_id} answers at {member.peer_address}, not node {member.node_id}")
    if not reply.members and not reply.membership:
        if reply.cluster_id:  # its identity had to be made anew, or it has joined, and its log is empty
            runtime.log.warn(
                "{where} belongs to cluster {cluster}, and does not know with which members",
                where=where,
                cluster=reply.cluster_id.hex(),
            )
        return None
    if reply.members != listed and not reply.membership:
        raise BootstrapMismatch(f"{where} was given another list of members: {_listed(reply.members)}")
    return reply


def _listed(members: bytes) -> str:
    try:
        name, rows = _cbor.loads(members)
        return _names((row[0], row[1]) for row in rows) + f" (cluster name {name!r})"
    except (ValueError, TypeError, LookupError):
        return "one that cannot be read" if members else "none, it joined another cluster"


def _existing(
    runtime: Runtime, member: InitialMember, reply: IdentifyReply, members: list[InitialMember], listed: bytes
) -> Membership | IdentifyReply:
    """A member belongs to a cluster that has begun: it must be ours, and know this very node."""
    membership = known_as(runtime, reply)
    # Without a list it has joined, or its identity had to be made anew; that it knows this very node says enough.
    if reply.members != listed and (reply.members or runtime.node_id not in membership.members):
        raise BootstrapMismatch(
            f"node {member.node_id} at {member.peer_address} belongs to a cluster that was begun with another list: "
            f"{_listed(reply.members)}"
        )
    if runtime.node_id not in membership.members:
        raise BootstrapMismatch(
            f"node {member.node_id} at {member.peer_address} belongs to cluster {reply.cluster_id.hex()}, which does "
            f"not have node {runtime.node_id}"
        )
    same = Membership.initial(membership.members.values())
    addresses = {(m.node_id, m.peer_address, m.client_address) for m in same.members.values()}
    if same == membership and addresses == {(m.node_id, m.peer_address, m.client_address) for m in members}:
        return same
    return reply


def known_as(runtime: Runtime, reply: IdentifyReply) -> Membership:
    """Return the configuration in a reply.

    :raises NodeRemoved: if it has this node's id among its tombstones.
    :raises IncarnationMismatch: if it has this node's id with another incarnation (J-11).
    """
    try:
        membership = Membership.decode(reply.membership)
    except ValueError as error:
        raise BootstrapMismatch(f"node {reply.node_id} sent a configuration that cannot be read: {error}") from error
    if runtime.node_id in membership.tombstones:
        raise NodeRemoved(runtime.node_id)
    own = membership.members.get(runtime.node_id)
    if own is not None and own.incarnation != runtime.identity.incarnation:
        raise IncarnationMismatch(runtime.node_id, own.incarnation.hex(), runtime.identity.incarnation.hex())
    return membership


async def _begin(runtime: Runtime, found: Membership | IdentifyReply, listed: bytes) -> None:
    """Adopt the cluster, durably, before the first entry; the initial configuration is that entry."""
    if isinstance(found, IdentifyReply):
        await _adopt(runtime, found.cluster_id, listed)
        return  # the leader sends what has happened since
    cluster_id = cluster_id_of(runtime.config.cluster_name, found.members.values())
    await _adopt(runtime, cluster_id, listed)
    if runtime.core.last == NO_LOG and not runtime.core.membership.members:
        runtime.driver.input(runtime.core.bootstrap, found)
        await runtime.observers.until(lambda metrics: metrics.durable > 0)


async def _adopt(runtime: Runtime, cluster_id: bytes, listed: bytes) -> None:
    identity: Identity = runtime.identity
    if not identity.cluster_id:
        await runtime.adopt(cluster_id, listed)
    elif identity.cluster_id != cluster_id:
        raise BootstrapMismatch(
            f"this node was to begin cluster {identity.cluster_id.hex()} before, but the members now make up "
            f"{cluster_id.hex()}: the data directory of one of them was replaced since"
        )


# Join.


async def join(runtime: Runtime, addresses: Sequence[str]) -> None:
    """Carry out :meth:`ConsensusNode.join <zlayer_consensus.node.ConsensusNode.join>`."""
    runtime.check_running()
    delay = _RETRY_FROM
    told: dict[str, str] = {}
    while not runtime.core.membership.members and not await _pin(runtime, addresses, told):
        await runtime.sleep(delay)
        delay = min(2 * delay, _RETRY_TO)
    if runtime.node_id not in runtime.core.membership.members:
        runtime.log.info("node {node} waits until the cluster makes it a member", node=runtime.node_id)
    await runtime.observers.until(lambda metrics: runtime.node_id in metrics.membership.members)


async def _pin(runtime: Runtime, addresses: Sequence[str], told: dict[str, str]) -> bool:
    """Ask each address once; return whether one of them belongs to a cluster, which is then ours.

    :param told: what was logged last of each address; it is not said again.
    """
    for address in addresses:
        try:
            reply = await identify(runtime, address, 0)
        except ClusterMismatch:
            raise
        except ConsensusError as error:
            if told.get(address) != str(error):
                told[address] = str(error)
                runtime.log.info("cannot join through {address} yet: {error}", address=address, error=error)
            continue
        if not reply.cluster_id:
            continue
        if reply.membership:
            known_as(runtime, reply)
        if not runtime.identity.cluster_id:
            await runtime.adopt(reply.cluster_id, b"")
        elif runtime.identity.cluster_id != reply.cluster_id:
            raise ClusterMismatch(runtime.identity.cluster_id.hex(), reply.cluster_id.hex())
        return True
    return False
