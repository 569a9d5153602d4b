"""The network contracts: how a node calls its peers and how it is called.

A transport carries *envelopes* (who speaks to whom, in which cluster) and *messages*. It checks form; the node checks
that the envelope fits (``IRaftService``), so that every transport refuses alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from ..raft import Reply, Request
from ._messages import (
    DigestReply,
    DigestRequest,
    IdentifyReply,
    IdentifyRequest,
    OperateReply,
    OperateRequest,
    ProposeReply,
    ProposeRequest,
    SnapshotChunk,
    SnapshotChunkReply,
)

__all__ = ["Envelope", "INetwork", "IRaftService", "RpcReply", "RpcRequest"]

RpcRequest = Request | SnapshotChunk | ProposeRequest | OperateRequest | IdentifyRequest | DigestRequest
RpcReply = Reply | SnapshotChunkReply | ProposeReply | OperateReply | IdentifyReply | DigestReply


@dataclass(frozen=True, slots=True)
class Envelope:
    """Who speaks to whom.

    Only an :class:`IdentifyRequest` may leave the cluster id or the target's incarnation empty, and its target id 0:
    it asks for them.

    :param cluster_id: 16 bytes.
    :param sender_id, sender_incarnation: the caller.
    :param target_id, target_incarnation: whom the caller means.
    """

    cluster_id: bytes
    sender_id: int
    sender_incarnation: bytes
    target_id: int
    target_incarnation: bytes


class IRaftService(Interface):
    """What a node offers to its transport's server side."""

    node_id: int = Attribute("This node's id.")

    def handle(envelope: Envelope, request: RpcRequest) -> Deferred[RpcReply]:
        """Take one inbound RPC; the Deferred fires with the reply, or fails.

        :raises PeerRefused: if the envelope does not fit or the request breaks a rule; nothing has changed.
        :raises NodeRemoved: if the *sender* is tombstoned in the committed configuration.
        :raises NodeStopped: if this node is not running (also: not yet).
        :raises Overloaded: if too much is under way.
        """


class INetwork(Interface):
    """How a node calls its peers."""

    def call(address: str, envelope: Envelope, request: RpcRequest, timeout: float) -> Deferred[RpcReply]:
        """Send one RPC. Returns at once; fires exactly once, within ``timeout`` seconds and a little.

        Votes, heartbeats, timeout-now and read-index are not held up by appends, those not by snapshots or
        forwarded proposals. Nothing is retried. The caller bounds what is under way.

        :raises PeerUnreachable: if there is no reply; ``sent`` is False only if it cannot have been executed.
        :raises PeerRefused: if the peer refused it (the subclass that the peer raised, where it is known).
        :raises NodeRemoved: if the peer says that *this* node is tombstoned.
        :raises NodeStopped: if the peer says that it is not running.
        :raises Overloaded: if the peer says that it is overloaded.
        """

    def stop() -> Deferred[None]:
        """Close the connections; calls under way fail. Idempotent."""
