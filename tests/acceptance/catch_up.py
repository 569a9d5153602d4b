"""A follower that was down, and a node that is new, catch up by snapshot: the log that they would need is purged.

``python -m tests.acceptance.catch_up --entries 50000``
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Coroutine
from typing import Any

from zlayer_consensus.daemon._local_cluster import ClusterFailed

from ._clients import Client, Register
from ._scene import CALM, Scene, tell, together
from ._watch import Violation

__all__ = ["CatchUp", "main", "settings"]


def settings(entries: int) -> dict[str, Any]:
    """Return settings with which a log of so many entries is purged several times, in small chunks sent."""
    return {
        **CALM,
        "snapshot_logs_since_last": max(100, entries // 10),
        "max_in_snapshot_log_to_keep": 50,
        "snapshot_chunk_bytes": 65536,
    }


class CatchUp:
    """The story.

    :param entries: commands that the cluster has at the end, at least.
    :param writers: clients that write at the same time.
    :param keys: how many keys each has.
    """

    def __init__(self, scene: Scene, entries: int, writers: int = 48, keys: int = 100) -> None:
        self._scene = scene
        self._entries = entries
        self._clients = [Client(scene, patience=30) for _ in range(writers)]
        self._keys = [[Register(f"{name}/{key}") for key in range(keys)] for name in range(writers)]
        self._left = 0

    async def run(self) -> None:
        """Tell it."""
        scene = self._scene
        await scene.start()
        await together([client.open() for client in self._clients])
        await self._write(self._entries // 10)
        leader = await scene.leader()
        down = next(node_id for node_id in scene.running if node_id != leader)
        await scene.agree()
        missed = (await scene.watch.status(down))["last"]["index"]
        scene.kill([down])
        began = time.monotonic()
        await self._write(self._entries - self._entries // 10)
        rate = (self._entries - self._entries // 10) / (time.monotonic() - began)
        purged = await self._purged(missed)
        scene.say(
            f"{self._entries} entries, {rate:.0f}/s while node {down} was down since index {missed}; "
            f"the leader's log begins after {purged}"
        )
        scene.restart([down])
        await self._caught_up(down, purged, "was down")
        new = scene.cluster.add_node().node_id
        await scene.cluster.wait_live([new], timeout=60)
        await self._join(new)
        await self._caught_up(new, purged, "is new")
        await self._read_everything()
        scene.nothing_in_the_logs()

    async def _write(self, number: int) -> None:
        self._left = number

        async def write(client: Client, registers: list[Register]) -> None:
            while self._left > 0:
                self._left -= 1
                await client.put(self._scene.random.choice(registers))

        await together(map(write, self._clients, self._keys))

    async def _purged(self, missed: int) -> int:
        """Wait until the leader has purged what the node that is down would need next; return up to where."""
        scene = self._scene
        end = time.monotonic() + 60
        while True:
            status = await scene.watch.status(await scene.leader())
            if status["purged"] > missed:
                return int(status["purged"])
            if time.monotonic() > end:
                raise ClusterFailed(f"the leader's log has index {missed + 1} still: {status['purged']}")
            await scene.sleep(0.1)

    async def _join(self, node_id: int) -> None:
        node = self._scene.cluster.nodes[node_id]
        value = {"id": node_id, "peer_address": node.peer_address, "client_address": node.client_address}
        leader = await self._scene.leader()
        answer = await self._scene.caller.post(leader, "/v1/members", value)
        if answer.code != 200:
            raise ClusterFailed(f"node {node_id} was not added: {answer.body!r}")

    async def _caught_up(self, node_id: int, purged: int, why: str) -> None:
        """Wait until a node has everything, while writing goes on; see that it has not got it entry by entry."""
        scene = self._scene
        began = time.monotonic()
        goal = 0
        states = set()
        status: dict[str, Any] = {}
        while True:
            leading = await scene.watch.status(await scene.leader())
            goal = goal or leading["commit"]
            states |= {peer["state"] for peer in leading["replication"] if peer["id"] == node_id}
            await self._write(10)
            scene.all_well()
            try:
                status = await scene.watch.status(node_id)
            except Exception as error:
                problem = str(error)
            else:
                problem = f"{status['applied']} applied"
                if status["applied"] >= goal:
                    break
            if time.monotonic() - began > 300:
                raise ClusterFailed(f"node {node_id} has not caught up with index {goal} within 300 s: {problem}")
        took = time.monotonic() - began
        if status["snapshot"] is None or status["snapshot"]["index"] < purged or status["purged"] < purged:
            raise Violation(f"node {node_id} has a log after {status['purged']}, which nobody could send it")
        index, digest = await scene.agree()
        scene.say(
            f"node {node_id}, which {why}, had everything after {took:.1f} s ({', '.join(sorted(states))}): "
            f"snapshot at {status['snapshot']['index']}; {digest} at index {index} on all"
        )

    async def _read_everything(self) -> None:
        registers = [register for keys in self._keys for register in keys]

        async def read(client: Client, at: int) -> None:
            for register in registers[at :: len(self._clients)]:
                for node_id in self._scene.running:
                    await client.read(register, node_id)

        await together(read(client, at) for at, client in enumerate(self._clients))


def main() -> int:
    """Run it at full length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    def story(scene: Scene) -> Coroutine[Any, Any, None]:
        return CatchUp(scene, options.entries).run()

    deadline = 600 + options.entries / 25
    return tell("catch-up", story, raft=settings(options.entries), seed=options.seed, deadline=deadline)


if __name__ == "__main__":
    sys.exit(main())
