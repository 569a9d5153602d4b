"""RPCs between nodes that are not the algorithm's own: bootstrap and join, snapshots, forwarding."""

from __future__ import annotations

from dataclasses import dataclass

from ..raft import LogId

__all__ = [
    "ForwardReply",
    "ForwardRequest",
    "IdentifyReply",
    "IdentifyRequest",
    "SnapshotChunk",
    "SnapshotChunkReply",
]


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """A piece of InstallSnapshot (§7).

    The first message of a transfer carries ``manifest`` and no data; the reply says where to go on. A transfer is
    known by (term, last, digest of the manifest); the receiver resumes it within the same term.

    :param last: the snapshot's position.
    :param manifest: the encoded manifest, only in the first message.
    :param digest: SHA-256 of the encoded manifest, in every message.
    :param part, offset: where ``data`` belongs.
    :param done: whether everything was sent; the reply tells how the installation goes.
    """

    term: int
    last: LogId
    digest: bytes
    manifest: bytes
    part: int
    offset: int
    data: bytes
    done: bool


@dataclass(frozen=True, slots=True)
class SnapshotChunkReply:
    """Where a transfer stands.

    :param term: the receiver's term.
    :param status: ``continue`` (send from ``part``/``offset`` on), ``busy`` (all is in and being installed, or another
        transfer is under way: ask again), ``installed`` (the receiver has everything up to ``last``, durable; also said
        when it had so before), ``restart`` (announce the manifest again), ``stale`` (the term is old).
    """

    term: int
    status: str
    part: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """A proposal or membership request on behalf of another node's client. It makes one hop at most.

    :param operation: ``propose``, or an administrative operation's name.
    :param payload: the encoded request; for other operations their CBOR arguments.
    :param kind: the entry kind of a proposal.
    :param timeout_ms: how long the caller will wait.
    """

    operation: str
    payload: bytes
    kind: int
    session: int
    sequence: int
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class ForwardReply:
    """The outcome at the leader.

    :param error: an error's code, or empty.
    :param payload: the encoded result, or the error's CBOR attributes.
    :param index: the log index, 0 if there is none.
    """

    error: str
    payload: bytes
    index: int


@dataclass(frozen=True, slots=True)
class IdentifyRequest:
    """Who are you, and what do you have? Used before there is a cluster, and to join one.

    :param members: the initial member list as its sender has it (encoded, canonical), or empty.
    """

    members: bytes


@dataclass(frozen=True, slots=True)
class IdentifyReply:
    """Who the receiver is.

    :param node_id, incarnation: its identity.
    :param cluster_id: empty while it belongs to none.
    :param members: its own initial member list, empty if it has none.
    :param membership: the committed configuration's plain encoding; empty while its log is empty.
    :param leader_id: the leader it knows, or 0.
    """

    node_id: int
    incarnation: bytes
    cluster_id: bytes
    members: bytes
    membership: bytes
    leader_id: int
