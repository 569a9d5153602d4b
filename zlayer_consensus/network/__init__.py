"""Network contracts, the wire codec, the HTTP client and the HTTP service."""

from ._client import HttpNetwork
from ._codec import PROTOCOL_VERSION
from ._messages import (
    MAX_DIGEST_BYTES,
    MAX_DIGEST_KIND,
    MAX_DIGESTS,
    MAX_FORWARDED,
    MAX_OUTCOME_BYTES,
    MAX_TIMEOUT_MS,
    DigestAt,
    DigestReply,
    DigestRequest,
    ForwardedOutcome,
    ForwardedProposal,
    IdentifyReply,
    IdentifyRequest,
    OperateReply,
    OperateRequest,
    ProposeReply,
    ProposeRequest,
    SnapshotChunk,
    SnapshotChunkReply,
)
from ._schema import request_limits
from ._service import raft_body_limit, raft_service_resource
from ._site import LimitedSite, SiteLimits, limited_site
from .interfaces import Envelope, INetwork, IRaftService, RpcReply, RpcRequest

__all__ = [
    "MAX_DIGESTS",
    "MAX_DIGEST_BYTES",
    "MAX_DIGEST_KIND",
    "MAX_FORWARDED",
    "MAX_OUTCOME_BYTES",
    "MAX_TIMEOUT_MS",
    "PROTOCOL_VERSION",
    "DigestAt",
    "DigestReply",
    "DigestRequest",
    "Envelope",
    "ForwardedOutcome",
    "ForwardedProposal",
    "HttpNetwork",
    "INetwork",
    "IRaftService",
    "IdentifyReply",
    "IdentifyRequest",
    "LimitedSite",
    "OperateReply",
    "OperateRequest",
    "ProposeReply",
    "ProposeRequest",
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
