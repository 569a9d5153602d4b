"""Values on disk, many times as large as what a node may take of memory: written, read, restarted, sent, overwritten.

``python -m tests.acceptance.larger_than_memory --megabytes 1024 --limit 300``
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Coroutine, Sequence
from hashlib import shake_128
from typing import Any

from zlayer_consensus.daemon._local_cluster import ClusterFailed

from ._scene import CALM, PATIENCE, STORAGE, Scene, tell, together
from ._watch import Violation

__all__ = ["RAFT", "STORAGE_ON_DISK", "LargerThanMemory", "main"]

# Snapshots are taken when the story says so, and once in between.
RAFT = {
    **CALM,
    "snapshot_bytes_since_last": 512 << 20,
    "snapshot_logs_since_last": 1 << 30,
    "max_in_snapshot_log_to_keep": 50,
}
STORAGE_ON_DISK = {**STORAGE, "segment_bytes": 16 << 20, "values": "disk"}
_VALUE_BYTES = 64 << 10
_CLIENTS = 8


class LargerThanMemory:
    """The story.

    :param megabytes: of values.
    :param limit: MB of memory that a node's process may ever have resident.
    """

    def __init__(self, scene: Scene, megabytes: int, limit: int) -> None:
        self._scene = scene
        self._count = (megabytes << 20) // _VALUE_BYTES
        self._limit = limit
        self._version = [0] * self._count
        self._most = 0

    async def run(self) -> None:
        """Tell it."""
        scene = self._scene
        await scene.start(1)
        await self._write("written", range(self._count))
        await self._read("read", 1, range(0, self._count, 4))
        await self._snapshot()
        await scene.stop([1])
        await self._restart()
        await self._read("read after a restart", 1, range(1, self._count, 8))
        await self._join()
        await self._read("read at the second node", 2, range(2, self._count, 8))
        await self._write("overwritten", [at for at in range(self._count) if at % 3])
        await self._room()
        await self._read("read in the end", 2, range(3, self._count, 4))
        await scene.agree()
        scene.nothing_in_the_logs()
        scene.say(f"no process ever had more than {self._most} MB of memory")

    def _value(self, at: int) -> bytes:
        """The value that a key has at present; no two are alike, and none can be compressed."""
        return shake_128(b"%d %d" % (at, self._version[at])).digest(_VALUE_BYTES)

    async def _each(self, what: str, chosen: Sequence[int], do: Any) -> None:
        """Do something with each of some keys, several at a time."""
        began, todo = time.monotonic(), iter(chosen)

        async def work() -> None:
            for at in todo:
                await do(at)

        await together(work() for _ in range(_CLIENTS))
        seconds, megabytes = time.monotonic() - began, len(chosen) * _VALUE_BYTES / 1e6
        self._look()
        self._scene.say(f"{megabytes:.0f} MB {what} in {seconds:.1f} s; {self._sizes()}")

    async def _write(self, what: str, chosen: Sequence[int]) -> None:
        async def put(at: int) -> None:
            self._version[at] += 1
            answer = await self._scene.caller.call(1, "PUT", f"/v1/kv/{at}?timeout=60", self._value(at), timeout=70)
            if answer.code != 200:
                raise Violation(f"key {at} was not written: {answer.code} {answer.body[:200]!r}")

        await self._each(what, chosen, put)

    async def _read(self, what: str, node_id: int, chosen: Sequence[int]) -> None:
        async def get(at: int) -> None:
            answer = await self._scene.caller.call(node_id, "GET", f"/v1/kv/{at}?timeout=60", timeout=130)
            if answer.code != 200 or answer.body != self._value(at):
                raise Violation(f"key {at} is {answer.code} {answer.body[:50]!r} at node {node_id}")

        await self._each(what, chosen, get)

    async def _snapshot(self) -> None:
        """Take a snapshot, and see that it takes no room for the values."""
        before, began = self._used(1), time.monotonic()
        answer = await self._scene.caller.call(1, "POST", "/v1/snapshot", timeout=70)
        if answer.code != 200:
            raise Violation(f"no snapshot: {answer.code} {answer.body!r}")
        seconds = time.monotonic() - began
        taken = self._used(1) - before
        if taken > self._count * 1000:
            raise Violation(f"the snapshot takes {taken} bytes of disk")
        self._scene.say(f"a snapshot in {seconds:.1f} s, which takes {taken / 1e6:+.1f} MB of disk; {self._sizes()}")

    async def _restart(self) -> None:
        began = time.monotonic()
        self._scene.restart([1])
        await self._scene.cluster.wait_ready(timeout=PATIENCE)
        self._scene.say(f"started again in {time.monotonic() - began:.1f} s; {self._sizes()}")

    async def _join(self) -> None:
        """Let another node come, which gets all of it as a snapshot."""
        scene, began = self._scene, time.monotonic()
        node = scene.cluster.add_node()
        await scene.cluster.wait_live([2], timeout=PATIENCE)
        value = {"id": 2, "peer_address": node.peer_address, "client_address": node.client_address}
        answer = await scene.caller.post(1, "/v1/members", value, 60.0)
        if answer.code != 200:
            raise ClusterFailed(f"node 2 was not added: {answer.body!r}")
        await scene.agree()
        status = await scene.watch.status(2)
        if not status["purged"]:
            raise Violation("node 2 got the log, not a snapshot")
        scene.say(f"a second node has everything after {time.monotonic() - began:.1f} s; {self._sizes()}")

    async def _room(self) -> None:
        """Wait until compaction and snapshots have brought back the room of what was overwritten."""
        scene, began = self._scene, time.monotonic()
        values = self._count * _VALUE_BYTES
        while True:
            for node_id in (1, 2):
                await scene.caller.call(node_id, "POST", "/v1/snapshot", timeout=70)
                await self._touch()
            used = [self._used(node_id) for node_id in (1, 2)]
            # Beside the values: what the history can still show, the log, and a third of garbage or so.
            if max(used) < 1.4 * values + (100 << 20):
                break
            if time.monotonic() - began > PATIENCE:
                raise Violation(f"{values} bytes of values take {used} bytes of disk")
            await scene.sleep(1.0)
            self._look()
        ratio = max(used) / values
        scene.say(f"{ratio:.1f} times the values on disk, {time.monotonic() - began:.1f} s later; {self._sizes()}")

    async def _touch(self) -> None:
        """Change something: there is no second snapshot of the same state."""
        await self._scene.caller.call(1, "PUT", "/v1/kv/touched?timeout=60", b"", timeout=70)

    # What is measured

    def _used(self, node_id: int) -> int:
        """Bytes of disk that a node's directory takes; a file with several names once."""
        blocks: dict[int, int] = {}
        for directory, _, names in os.walk(self._scene.cluster.nodes[node_id].directory):
            for name in names:
                try:
                    found = os.stat(os.path.join(directory, name))
                except FileNotFoundError:
                    continue  # it was removed meanwhile
                blocks[found.st_ino] = found.st_blocks * 512
        return sum(blocks.values())

    def _look(self) -> None:
        """See that no process takes, or has ever taken, more memory than it may."""
        self._scene.all_well()
        for node_id in self._scene.running:
            most = self._resident(node_id)
            self._most = max(self._most, most)
            if most > self._limit:
                raise Violation(f"node {node_id} had {most} MB of memory, and may have {self._limit}")

    def _resident(self, node_id: int) -> int:
        """The most memory that a node's process ever had resident, in MB."""
        process = self._scene.cluster.nodes[node_id].process
        assert process is not None
        with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
            [line] = [line for line in file if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024 // 1_000_000

    def _sizes(self) -> str:
        self._look()
        each = [f"node {i} at most {self._resident(i)} MB of memory" for i in self._scene.running]
        return ", ".join(each)


def main() -> int:
    """Run it at full length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--limit", type=int, default=300, help="MB of memory of a node")
    options = parser.parse_args()

    def story(scene: Scene) -> Coroutine[Any, Any, None]:
        return LargerThanMemory(scene, options.megabytes, options.limit).run()

    deadline = 300 + options.megabytes
    return tell("larger than memory", story, raft=RAFT, storage=STORAGE_ON_DISK, deadline=deadline)


if __name__ == "__main__":
    sys.exit(main())
