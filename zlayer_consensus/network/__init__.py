"""Network contracts, the wire codec, the HTTP client and the HTTP service."""

from ._client import HttpNetwork
from ._codec import PROTOCOL_VERSION
from ._messages import (
    ForwardReply,
    ForwardRequest,
    IdentifyReply,
    IdentifyRequest,
    SnapshotChunk,
    SnapshotChunkReply,
)
from ._schema import request_limits
from ._service import raft_body_limit, raft_service_resource
from ._site import LimitedSite, SiteLimits, limited_site
from .interfaces import Envelope, INetwork, IRaftService, RpcReply, RpcRequest

__all__ = [
    "PROTOCOL_VERSION",
    "Envelope",
    "ForwardReply",
    "ForwardRequest",
    "HttpNetwork",
    "INetwork",
    "IRaftService",
    "IdentifyReply",
    "IdentifyRequest",
    "LimitedSite",
    "RpcReply",
    "RpcRequest",
    "SiteLimits",
    "SnapshotChunk",
    "SnapshotChunkReply",
    "limited_site",
    "raft_body_limit",
    "raft_service_resource",
    "request_limits",
]
