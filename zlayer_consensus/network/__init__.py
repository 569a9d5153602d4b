"""Network contracts, the wire codec, the HTTP client and the HTTP service."""

from ._codec import PROTOCOL_VERSION
from ._messages import (
    ForwardReply,
    ForwardRequest,
    IdentifyReply,
    IdentifyRequest,
    SnapshotChunk,
    SnapshotChunkReply,
)
from .interfaces import Envelope, INetwork, IRaftService, RpcReply, RpcRequest

__all__ = [
    "PROTOCOL_VERSION",
    "Envelope",
    "ForwardReply",
    "ForwardRequest",
    "INetwork",
    "IRaftService",
    "IdentifyReply",
    "IdentifyRequest",
    "RpcReply",
    "RpcRequest",
    "SnapshotChunk",
    "SnapshotChunkReply",
]
