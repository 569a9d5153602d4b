"""Members that come and go while everything else goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zlayer_consensus.daemon._local_cluster import ClusterFailed

from ._clients import AGAIN
from ._wire import Answer, NoAnswer

if TYPE_CHECKING:
    from ._scene import Scene

__all__ = ["Members"]

Roles = dict[int, str]

_FEWEST, _MOST = 3, 5
# Seconds within which a change has to be made, however often it takes.
_DEADLINE = 180.0
# The cluster may be about to be whole again: nodes that just started do not count as reachable yet.
_NOT_NOW = frozenset({"in_progress", "not_ready", "not_caught_up", "quorum_at_risk"})


class Members:
    """The voters of a cluster, as they are meant to be.

    :param count: how many there are at first.
    """

    def __init__(self, scene: Scene, count: int) -> None:
        self._scene = scene
        self.ids = list(range(1, count + 1))
        self.removed: list[int] = []

    async def grow(self) -> int:
        """Start a node, make it a voter, and return its id."""
        scene = self._scene
        node = scene.cluster.add_node()
        await scene.cluster.wait_live([node.node_id], timeout=_DEADLINE)
        value: dict[str, Any] = {
            "id": node.node_id,
            "peer_address": node.peer_address,
            "client_address": node.client_address,
        }
        by_itself = scene.random.random() < 0.3
        if by_itself:
            value["auto_promote"] = True

        def is_voter(roles: Roles) -> bool:
            return roles.get(node.node_id) == "voter"

        await self._change("POST", "/v1/members", value, lambda roles: node.node_id in roles)
        if not by_itself:
            await self._change("POST", f"/v1/members/{node.node_id}/promote", {}, is_voter)
        end = time.monotonic() + _DEADLINE
        while not await self._holds(is_voter):
            if time.monotonic() > end:
                raise ClusterFailed(f"node {node.node_id} did not become a voter within {_DEADLINE:g} s")
            await scene.sleep(0.2)
        self.ids.append(node.node_id)
        return node.node_id

    async def shrink(self, node_id: int) -> None:
        """Remove a node, which then ends by itself."""
        scene = self._scene
        scene.expect_end(node_id)
        self.ids.remove(node_id)
        self.removed.append(node_id)
        await self._change("DELETE", f"/v1/members/{node_id}", None, lambda roles: node_id not in roles)
        code = await scene.ended(node_id)
        if code != 8:
            words = scene.cluster.nodes[node_id].last_words()
            raise ClusterFailed(f"node {node_id} was removed, and ended with exit code {code}: {words}")

    @property
    def may_grow(self) -> bool:
        """Whether there are few."""
        return len(self.ids) < _MOST

    @property
    def may_shrink(self) -> bool:
        """Whether there are many."""
        return len(self.ids) > _FEWEST

    async def _change(self, method: str, path: str, value: Any, made: Callable[[Roles], bool]) -> None:
        """Ask for a change until it is made; some answers leave open whether it was."""
        scene = self._scene
        end = time.monotonic() + _DEADLINE
        body = None if value is None else json.dumps(value).encode()
        while True:
            problem = await self._ask(method, f"{path}?timeout=20", body)
            if not problem:
                return
            scene.all_well()
            if await self._holds(made):
                return
            if time.monotonic() > end:
                raise ClusterFailed(f"{method} {path} was not done within {_DEADLINE:g} s; last, {problem}")
            await scene.sleep(0.2)

    async def _holds(self, made: Callable[[Roles], bool]) -> bool:
        """Ask the members for the roles of all; return whether any of them says what is wanted."""
        scene = self._scene
        for node_id in set(scene.running) & set(self.ids):
            try:
                answer = await scene.caller.call(node_id, "GET", "/v1/members", timeout=5)
            except NoAnswer:
                continue
            if answer.code == 200 and made({each["id"]: each["role"] for each in answer.value["members"]}):
                return True
        return False

    async def _ask(self, method: str, path: str, body: bytes | None) -> str:
        """Ask once; return what is in the way."""
        scene = self._scene
        asked = sorted(set(scene.running) & set(self.ids))
        if not asked:
            return "no node runs"
        node_id = scene.random.choice(asked)
        headers = {"Content-Type": "application/json"}
        try:
            answer = await scene.caller.call(node_id, method, path, body, headers, 25)
        except NoAnswer as error:
            return str(error)
        if answer.code == 200:
            return ""
        if answer.code in AGAIN or (answer.code == 409 and _reason(answer) in _NOT_NOW):
            return f"{answer.code} {answer.body!r}"
        if answer.code == 409 and _reason(answer) in ("duplicate", "unknown_member", "tombstoned"):
            return f"it seems to be done: {answer.body!r}"
        raise ClusterFailed(f"{method} {path} at node {node_id}: {answer.code} {answer.body!r}")


def _reason(answer: Answer) -> str:
    return str(answer.value["attributes"].get("reason", ""))
