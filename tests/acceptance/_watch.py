"""What all nodes say of themselves over time, and what must never be among it."""

from __future__ import annotations

from typing import Any

from zlayer_consensus.daemon._local_cluster import ClusterFailed, LocalCluster

from ._wire import Caller, NoAnswer

__all__ = ["Violation", "Watch"]


class Violation(ClusterFailed):
    """The cluster did what it must never do."""


class Watch:
    """Remembers every status that it sees, as far as two of them can contradict one another."""

    def __init__(self, caller: Caller, cluster: LocalCluster) -> None:
        self._caller = caller
        self._cluster = cluster
        self._leaders: dict[int, int] = {}
        self._digests: dict[int, tuple[int, str]] = {}
        self._terms: dict[int, int] = {}
        self.statuses = 0

    @property
    def terms(self) -> int:
        """The highest term that was seen."""
        return max(self._terms.values(), default=0)

    async def status(self, node_id: int, timeout: float = 10.0) -> dict[str, Any]:
        """Ask a node, and check its answer against all earlier ones.

        :raises NoAnswer: if it does not say.
        :raises Violation: if it contradicts what was said before.
        """
        # Several may be under way: what was seen before this one was asked is what binds it.
        term = self._terms.get(node_id, 0)
        answer = await self._caller.call(node_id, "GET", "/v1/status", timeout=timeout)
        if answer.code != 200:
            raise NoAnswer(f"node {node_id} answered {answer.code}")
        status: dict[str, Any] = answer.value
        self._observe(status, term)
        return status

    def _observe(self, status: dict[str, Any], term: int) -> None:
        self.statuses += 1
        node_id = status["id"]
        for leader in {status["leader_id"], node_id if status["role"] == "leader" else None} - {None}:
            other = self._leaders.setdefault(status["term"], leader)
            if other != leader:
                raise Violation(f"term {status['term']} has two leaders, {other} and {leader}, says node {node_id}")
        if status["term"] < term:
            raise Violation(f"node {node_id} fell back from term {term} to {status['term']}")
        if not status["applied"] <= status["commit"] <= status["last"]["index"]:
            raise Violation(f"node {node_id}: {status['applied']} applied, {status['commit']} committed, {status}")
        digest = status["digest"]
        if digest is not None:  # else a snapshot is taking the place of its state
            owner, value = self._digests.setdefault(digest["index"], (node_id, digest["value"]))
            if value != digest["value"]:
                raise Violation(f"at index {digest['index']} nodes {owner} and {node_id} have different contents")
        self._terms[node_id] = max(self._terms.get(node_id, 0), status["term"])
