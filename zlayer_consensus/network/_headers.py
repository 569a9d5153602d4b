"""The HTTP headers of RPCs, as the client writes them and the service checks them."""

from __future__ import annotations

import re

from .interfaces import Envelope

__all__ = [
    "CBOR",
    "CLUSTER_HEADER",
    "FROM_HEADER",
    "PROTOCOL_HEADER",
    "TO_HEADER",
    "format_versions",
    "identity_headers",
    "parse_versions",
]

CBOR = b"application/cbor"
PROTOCOL_HEADER = b"X-ZLayer-Raft-Protocol"
CLUSTER_HEADER = b"X-ZLayer-Cluster"
FROM_HEADER = b"X-ZLayer-From"
TO_HEADER = b"X-ZLayer-To"

_NONE = "-"
_VERSIONS = re.compile(rb"([1-9][0-9]{0,3})-([1-9][0-9]{0,3})")


def identity_headers(envelope: Envelope) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that name cluster, sender and target.

    There is one way to write an envelope, so the receiver compares the headers with the body's as bytes: the cluster id
    as 32 lower-case hexadecimal digits, a node as ``id:incarnation`` with the incarnation in the same form, and ``-``
    for what an envelope may leave empty.
    """
    return (
        (CLUSTER_HEADER, (envelope.cluster_id.hex() or _NONE).encode("ascii")),
        (FROM_HEADER, _node(envelope.sender_id, envelope.sender_incarnation)),
        (TO_HEADER, _node(envelope.target_id, envelope.target_incarnation)),
    )


def _node(node_id: int, incarnation: bytes) -> bytes:
    return f"{node_id}:{incarnation.hex() or _NONE}".encode("ascii")


def format_versions(versions: range) -> bytes:
    """Return what a refusal says in :data:`PROTOCOL_HEADER`: first and last version that are understood."""
    return b"%d-%d" % (versions[0], versions[-1])


def parse_versions(value: bytes) -> range:
    """Read what :func:`format_versions` wrote; empty if it is anything else."""
    match = _VERSIONS.fullmatch(value)
    return range(int(match[1]), int(match[2]) + 1) if match else range(0)
