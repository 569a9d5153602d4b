"""Beginnings that several scripts of the core share."""

from __future__ import annotations

from typing import Any

from tests.core_cluster import Cluster, Node, member
from zlayer_consensus.raft import AddLearner, ChangeVoters

__all__ = ["add_learners", "led", "numbers", "voters"]


def numbers(count: int) -> list[bytes]:
    """Return that many different commands."""
    return [b"%d" % number for number in range(count)]


def voters(*ids: int, retain: bool = False, force: bool = False) -> ChangeVoters:
    """Return the change that makes these the voters."""
    return ChangeVoters(frozenset(ids), retain, force)


def add_learners(c: Cluster, *ids: int) -> None:
    """Start blank nodes, and add them as learners."""
    for node_id in ids:
        if node_id not in c.nodes:
            c.add_blank(node_id)
        c.leader().change(f"add {node_id}", AddLearner(member(node_id)))
        c.advance(0.5)
        assert f"add {node_id}" in c.leader().done, c.leader().refused


def led(size: int, *learners: int, **settings: Any) -> tuple[Cluster, Node]:
    """Return a cluster led by node 1 that has come to rest, with learners."""
    c = Cluster(size, **settings)
    leader = c.elect(1)
    c.advance(0.5)
    add_learners(c, *learners)
    return c, leader
