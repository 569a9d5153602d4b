"""A snapshot on its way breaks off, three times: its receiver is stopped for a while, and goes on where it was; it is
killed, and goes on there, too; the sender is killed, and another one begins afresh.

``python -m tests.acceptance.broken_off --keys 200000``
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Coroutine
from typing import Any

from zlayer_consensus.daemon._local_cluster import ClusterFailed

from ._scene import PATIENCE, Scene, tell
from ._watch import Violation
from .snapshot_load import fill, settings, take_snapshot

__all__ = ["RAFT", "BrokenOff", "main"]

RAFT = {**settings(), "max_in_snapshot_log_to_keep": 10, "snapshot_chunk_bytes": 16 << 10}
_SHARE = 0.6
_SENT = re.compile(r"node (\d+) is sent the snapshot at \S+: (\d+) bytes, of which it has (\d+)")


class BrokenOff:
    """The story.

    :param keys: how many the store has in the beginning, and twice as many at the end; the more, the longer a snapshot
        is on its way.
    :param stopped: seconds for which a receiver is stopped. RPCs wait for less.
    """

    def __init__(self, scene: Scene, keys: int, stopped: float = 8.0) -> None:
        self._scene = scene
        self._keys = keys
        self._stopped = stopped
        self._put = 0

    async def run(self) -> None:
        """Tell it."""
        scene = self._scene
        await scene.start()
        await self._fill(self._keys)
        leader = await scene.leader()
        await self._receiver_stopped(leader)
        await self._receiver_killed(leader)
        await self._sender_killed(leader)
        await scene.agree()
        scene.nothing_in_the_logs()

    async def _receiver_stopped(self, leader: int) -> None:
        scene = self._scene
        down = await self._sending(leader)
        scene.pause(down)
        there, told = self._received(down), len(self._sent(leader, down))
        await scene.sleep(self._stopped)
        scene.unpause(down)
        await scene.agree()
        scene.say(f"node {down} was stopped when it had {there} bytes, and got the rest")
        if len(self._sent(leader, down)) > told:
            raise Violation(f"the transfer began again: {self._sent(leader, down)}")

    async def _receiver_killed(self, leader: int) -> None:
        scene = self._scene
        down = await self._sending(leader)
        scene.kill([down])
        there, told = self._received(down), len(self._sent(leader, down))
        scene.restart([down])
        await self._installed(down)
        sent = self._sent(leader, down)[told:]
        scene.say(f"node {down} was killed when it had {there} bytes; it was sent {sent} after that")
        if not sent or not 0 <= there - sent[0][1] <= 1:  # the byte that ends a part is sent again
            raise Violation(f"node {down} had {there} bytes, and was sent {sent}")

    async def _sender_killed(self, leader: int) -> None:
        scene = self._scene
        down = await self._sending(leader)
        scene.kill([leader])
        other = await scene.leader(besides=leader)
        await self._installed(down)
        sent = self._sent(other, down)
        scene.say(f"node {leader} was killed while it sent to node {down}; node {other} sent {sent}")
        if not sent or sent[0][1]:
            raise Violation(f"node {other} did not begin afresh: {sent}")
        scene.restart([leader])

    async def _fill(self, count: int) -> None:
        await fill(self._scene, range(self._put, self._put + count))
        self._put += count

    async def _sending(self, leader: int) -> int:
        """Leave a node behind, and return its id when it has some of the snapshot that it needs."""
        scene = self._scene
        await scene.agree()
        end = time.monotonic() + PATIENCE
        # The log is not purged as long as somebody may need it after a snapshot that was sent just now.
        while {each["state"] for each in (await scene.watch.status(leader))["replication"]} != {"replicate"}:
            if time.monotonic() > end:
                raise ClusterFailed(f"node {leader} does not replicate to all")
            await scene.sleep(0.1)
        down = next(node_id for node_id in scene.running if node_id != leader)
        await scene.stop([down])
        await self._fill(self._keys // 3)
        for node_id in scene.running:  # whoever leads has nothing else to send, and each something of its own
            await self._fill(1)
            await take_snapshot(scene, node_id)
        known = len(self._sent(leader, down))
        scene.restart([down])
        end = time.monotonic() + PATIENCE
        while True:
            sent = self._sent(leader, down)[known:]
            if sent and self._received(down) >= sent[0][0] * _SHARE:
                return down
            scene.all_well()
            if time.monotonic() > end:
                raise ClusterFailed(f"node {down} is not sent a snapshot: {sent}")
            await scene.sleep(0.002)

    async def _installed(self, node_id: int) -> None:
        await self._scene.cluster.wait_live([node_id], timeout=PATIENCE)
        await self._scene.agree()

    def _sent(self, sender: int, peer: int) -> list[tuple[int, int]]:
        """Return sizes and beginnings of the transfers that a node has told of."""
        with open(self._scene.cluster.nodes[sender].log_path, encoding="utf-8") as file:
            found = _SENT.findall(file.read())
        return [(int(size), int(had)) for to, size, had in found if int(to) == peer]

    def _received(self, node_id: int) -> int:
        """Return how many bytes there are of what is being received."""
        directory = os.path.join(self._scene.cluster.nodes[node_id].directory, "data", "snap")
        there = 0
        for path, _, names in os.walk(directory):
            if "announced" in names:
                there += sum(_size(os.path.join(path, name)) for name in names if name != "announced")
        return there


def _size(path: str) -> int:
    """Return the size of a file that may get another name at any time."""
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0


def main() -> int:
    """Run it at full length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    def story(scene: Scene) -> Coroutine[Any, Any, None]:
        return BrokenOff(scene, options.keys).run()

    return tell("broken-off", story, raft=RAFT, seed=options.seed, deadline=600)


if __name__ == "__main__":
    sys.exit(main())
