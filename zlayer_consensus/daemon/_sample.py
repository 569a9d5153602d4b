"""A configuration file to start from: every key, with its default where it has one."""

from __future__ import annotations

import json

import attrs

from ..config import ConsensusConfig
from ._config import StorageConfig

__all__ = ["sample"]

_HEAD = """\
# One node of a Raft cluster. Run it with: twistd -n --pidfile= zconsensus --config node.toml
# A line that begins with "#" and a key shows the default.

[node]
# Positive, and never used by another member of this cluster, not even by one that is gone.
id = 1
# Relative to this file. A node's whole memory: never copy, share or restore it.
data_dir = "data"
# A name for people; all members have the same.
# cluster_name = "zlayer"
# "kv", or "package.module:attribute" for an application of your own.
# application = "kv"

[listen]
# Twisted endpoints: where this node listens. Peers must be able to trust the network between them.
peer = "tcp:7001:interface=127.0.0.1"
client = "tcp:8001:interface=127.0.0.1"

# [advertise]
# "host:port" where others reach this node. Needed with join; else this node's entry in members says it.
# peer = "127.0.0.1:7001"
# client = "127.0.0.1:8001"

[cluster]
# The members that begin the cluster together, the same list in each one's file. One is enough: others can join later.
members = [
    { id = 1, peer = "127.0.0.1:7001", client = "127.0.0.1:8001" },
]
# Or, for a node that comes later: peer addresses of running members (and no members above).
# join = ["127.0.0.1:7001"]
"""


def sample() -> str:
    """Return the text. It is valid as it stands, and describes a cluster of one."""
    lines = [_HEAD, "[raft]"]
    for field in attrs.fields(ConsensusConfig):
        if field.name != "cluster_name":
            lines.append(f"# {field.name} = {json.dumps(field.default)}")
    lines += ["", "[storage]"]
    lines += [f"# {field.name} = {json.dumps(field.default)}" for field in attrs.fields(StorageConfig)]
    lines += ["", "[log]", "# debug, info, warn, error or critical.", '# level = "info"', ""]
    return "\n".join(lines)
