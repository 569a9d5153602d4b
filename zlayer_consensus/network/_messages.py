"""RPCs between nodes that are not the algorithm's own: bootstrap and join, snapshots, forwarding, digests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..raft import LogId

__all__ = [
    "MAX_DIGESTS",
    "MAX_DIGEST_BYTES",
    "MAX_DIGEST_KIND",
    "MAX_FORWARDED",
    "MAX_OUTCOME_BYTES",
    "MAX_TIMEOUT_MS",
    "DigestAt",
    "DigestReply",
    "DigestRequest",
    "ForwardedOutcome",
    "ForwardedProposal",
    "IdentifyReply",
    "IdentifyRequest",
    "OperateReply",
    "OperateRequest",
    "ProposeReply",
    "ProposeRequest",
    "SnapshotChunk",
    "SnapshotChunkReply",
]

MAX_DIGEST_KIND = 64
"""Most characters of the kind of a digest."""
MAX_DIGEST_BYTES = 64
"""Most bytes of a digest."""
MAX_DIGESTS = 256
"""Most digests in one message."""
MAX_FORWARDED = 256
"""Most proposals in one message."""
MAX_OUTCOME_BYTES = 32 << 20
"""Most bytes that the payloads of all outcomes in one message have together."""
MAX_TIMEOUT_MS = 86_400_000
"""Longest time-out that travels: a day."""


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
    :param needed: in the first message, whether the sender has no entries that would do instead.
    """

    term: int
    last: LogId
    digest: bytes
    manifest: bytes
    part: int
    offset: int
    data: bytes
    done: bool
    needed: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotChunkReply:
    """Where a transfer stands.

    :param term: the receiver's term.
    :param status: ``continue`` (send from ``part``/``offset`` on), ``busy`` (all is in and being installed, or another
        transfer is under way: ask again), ``installed`` (the receiver has everything up to ``last``, durable; also said
        when it had so before), ``restart`` (announce the manifest again), ``stale`` (the term is old), ``full`` (its
        disk has no room for it: ask again).
    """

    term: int
    status: str
    part: int = 0
    offset: int = 0


class ForwardedProposal(NamedTuple):
    """A proposal on behalf of another node's client.

    :param payload: the encoded request.
    :param kind: the entry kind.
    :param timeout_ms: how long the caller will still wait.
    :param frees: whether it frees space.
    """

    payload: bytes
    kind: int
    session: int
    sequence: int
    timeout_ms: int
    frees: bool = False


class ForwardedOutcome(NamedTuple):
    """What became of a forwarded proposal.

    :param error: an error's code, or empty.
    :param payload: the encoded result, or the error's CBOR attributes.
    :param index: the log index, 0 if there is none.
    """

    error: str
    payload: bytes
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


@dataclass(frozen=True, slots=True)
class ProposeRequest:
    """Proposals on behalf of another node's clients, to be appended in this order. They make one hop at most.

    :param term: the term in which the receiver leads, as far as the sender knows. In any other it refuses them, so that
        what was sent later, to a later leader, cannot come before them (H-88).
    :param stream: a random number that the sender drew when it started.
    :param number: counts the sender's forwarded requests since then: one that arrives twice is carried out once.
    :param proposals: from 1 to :data:`MAX_FORWARDED`.
    """

    term: int
    stream: int
    number: int
    proposals: tuple[ForwardedProposal, ...]


@dataclass(frozen=True, slots=True)
class ProposeReply:
    """The outcome of each proposal, in the order of the request."""

    outcomes: tuple[ForwardedOutcome, ...]


@dataclass(frozen=True, slots=True)
class OperateRequest:
    """An administrative operation on behalf of another node's client. It makes one hop at most.

    :param term, stream, number: as in :class:`ProposeRequest`.
    :param operation: its name.
    :param arguments: CBOR.
    :param timeout_ms: how long the caller will wait.
    """

    term: int
    stream: int
    number: int
    operation: str
    arguments: bytes
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class OperateReply:
    """The outcome of an administrative operation.

    :param error: an error's code, or empty.
    :param payload: the result as CBOR, or the error's attributes.
    """

    error: str
    payload: bytes


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


class DigestAt(NamedTuple):
    """A digest of the state after an entry.

    :param index: the entry's.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    digest: bytes


@dataclass(frozen=True, slots=True)
class DigestRequest:
    """What were the digests of your state? And what a majority of the voters agrees on (J-92).

    Both are facts about the one log that the cluster has: they are true for ever, whoever says them, and whenever the
    message arrives.

    :param kind: the kind of the digest that was agreed on; see :class:`~zlayer_consensus.storage.IStateDigest`.
    :param index: where, or 0 if nothing is known to be agreed on.
    :param digest: what was agreed on.
    """

    kind: str
    index: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class DigestReply:
    """The digests that a node remembers of its state.

    :param kind: their kind; empty if there are none.
    :param digests: at most :data:`MAX_DIGESTS`.
    """

    kind: str
    digests: tuple[DigestAt, ...]
