"""``make cluster``: three nodes on this machine, until Ctrl-C."""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.defer import Deferred

from ._local_cluster import LocalCluster
from ._program import run_with_cluster

__all__ = ["main"]


async def _keep(cluster: LocalCluster, _reactor: Any) -> None:
    print("Starting three nodes ...", flush=True)
    cluster.start(3)
    await cluster.wait_ready()
    leader = await cluster.leader()
    for node in cluster.nodes.values():
        leads = ", leads" if node.node_id == leader else ""
        print(f"  node {node.node_id}: clients {node.url}, peers {node.peer_address}, log {node.log_path}{leads}")
    url = cluster.nodes[leader].url
    print("Try, at any of the nodes:")
    print(f"  curl -X PUT --data-binary hello {url}/v1/kv/greeting")
    print(f"  curl {url}/v1/kv/greeting")
    print(f"  curl {url}/v1/status")
    print("Ctrl-C stops the nodes and removes their data.", flush=True)
    await Deferred()


def main() -> int:
    """Run the cluster, and return the exit code."""
    return run_with_cluster("cluster", _keep, until_interrupted=True)


if __name__ == "__main__":
    sys.exit(main())
