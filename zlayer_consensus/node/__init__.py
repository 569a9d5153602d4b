"""The node: joins the algorithm, the stores and the network on a reactor."""

from ._bootstrap import InitialMember, encode_members
from ._metrics import DigestMetrics, LoopMetrics, Metrics, PeerMetrics, ScrubMetrics
from ._node import ConsensusNode
from ._proposals import Applied
from ._wait import Metric, Wait

__all__ = [
    "Applied",
    "ConsensusNode",
    "DigestMetrics",
    "InitialMember",
    "LoopMetrics",
    "Metric",
    "Metrics",
    "PeerMetrics",
    "ScrubMetrics",
    "Wait",
    "encode_members",
]
