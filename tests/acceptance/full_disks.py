"""Three nodes, each on a small file system of its own, written to until nothing goes any more; then cleared (S-10).

In the end somebody else takes all that is left, at once, and the nodes are killed and started on that.

``python -m tests.acceptance.full_disks --megabytes 24``; only who may mount file systems can tell it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from zlayer_consensus.daemon._local_cluster import ClusterFailed

from ._scene import PATIENCE, QUICK, STORAGE, Scene, tell, together
from ._watch import Violation
from ._wire import Answer, NoAnswer

__all__ = ["RAFT", "FullDisks", "SmallDisks", "main"]

RAFT = {
    **QUICK,
    "snapshot_logs_since_last": 500,
    "max_in_snapshot_log_to_keep": 50,
    "low_space_bytes": 4 << 20,
}
_VALUE_BYTES = 4000
_WRITERS = 8


class SmallDisks:
    """File systems in memory, each of a fixed size, that are mounted where nodes are about to live.

    :param directory: the cluster's.
    :raises PermissionError: if this process may not mount.
    """

    def __init__(self, directory: str, nodes: int, size: int) -> None:
        self._mounted: list[str] = []
        for node_id in range(1, nodes + 1):
            path = os.path.join(directory, f"node{node_id}")
            os.makedirs(path)
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", path], capture_output=True, check=False
            )
            if done.returncode:
                self.unmount()
                raise PermissionError(f"cannot mount a tmpfs: {done.stderr.decode(errors='replace').strip()}")
            self._mounted.append(path)

    def unmount(self) -> None:
        """Give them back. The processes that use them have ended."""
        while self._mounted:
            subprocess.run(["umount", self._mounted.pop()], check=True)


class FullDisks:
    """The story."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._there: dict[str, bytes] = {}
        """What was acknowledged."""
        self._perhaps: set[str] = set()
        """Keys whose last write or deletion has an unknown outcome."""
        self._count = 0

    async def run(self) -> None:
        """Tell it."""
        scene = self._scene
        await scene.start()
        pids = self._pids()
        for round_number in range(2):
            await self._fill()
            await self._read_everything("full")
            deleted, seconds = await self._delete()
            scene.say(f"after {deleted} deletions, {seconds:.1f} s later, writes go on")
            await self._put_one(f"again{round_number}", scene.running[0])
        await self._read_everything("again")
        await self._clear()
        await scene.agree()
        if self._pids() != pids:
            raise Violation("a node was started again")
        await self._suddenly()
        await scene.agree()
        scene.nothing_in_the_logs(besides=scene.running)  # that a disk is full is worth a critical line

    def _pids(self) -> list[int]:
        processes = [node.process for node in self._scene.cluster.nodes.values()]
        return [process.pid for process in processes if process is not None and process.poll() is None]

    async def _call(
        self, node_id: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer | None:
        self._scene.all_well()
        try:
            return await self._scene.caller.call(node_id, method, path, body, headers, timeout=20)
        except NoAnswer:
            return None

    async def _fill(self) -> None:
        """Write until every writer has been refused for several seconds."""
        scene = self._scene
        began = time.monotonic()
        last_success = time.monotonic()
        refused = 0

        async def write(writer: int) -> None:
            nonlocal last_success, refused
            while time.monotonic() - last_success < 8.0:
                self._count += 1
                key = f"key{self._count}"
                code = await self._put_one(key, scene.running[writer % len(scene.running)])
                if code == 200:
                    last_success = time.monotonic()
                else:
                    refused += code == 507
                    await scene.sleep(0.2)
                if time.monotonic() - began > 4 * PATIENCE:
                    raise ClusterFailed("the disks never filled up")

        await together(map(write, range(_WRITERS)))
        status = [await scene.watch.status(node_id) for node_id in scene.running]
        full = [each["id"] for each in status if each["full"]]
        if len(full) < 2 or not refused:
            raise Violation(f"writes are refused ({refused} with 507), and only the disks of {full} are full")
        megabytes = sum(map(len, self._there.values())) / 1e6
        scene.say(f"{len(self._there)} values, {megabytes:.1f} MB, until nodes {full} were full; {refused} refusals")

    async def _put_one(self, key: str, node_id: int) -> int:
        """Put a new key; return the status, 0 if there is none."""
        value = key.encode().ljust(_VALUE_BYTES, b".")
        answer = await self._call(node_id, "PUT", f"/v1/kv/{key}", value)
        if answer is not None and answer.code == 200:
            self._there[key] = value
        elif answer is None or answer.code == 504:
            self._perhaps.add(key)
        return 0 if answer is None else answer.code

    async def _read_everything(self, when: str) -> None:
        """Read every key at some node, linearizably; at the leader, where a full one says that it lacks entries."""
        scene = self._scene
        keys = list(self._there)

        async def read(reader: int) -> None:
            for at in range(reader, len(keys), _WRITERS):
                key = keys[at]
                node_id = scene.running[at % len(scene.running)]
                end = time.monotonic() + PATIENCE
                while (answer := await self._call(node_id, "GET", f"/v1/kv/{key}")) is None or answer.code >= 421:
                    if answer is not None and answer.code == 421:
                        node_id = await scene.leader()
                    if time.monotonic() > end:
                        raise Violation(f"{when}: node {node_id} answers no read: {answer}")
                    await scene.sleep(0.2)
                if answer.code != 200 or answer.body != self._there[key]:
                    raise Violation(f"{when}: {key} was acknowledged, and node {node_id} says {answer.code}")

        await together(map(read, range(_WRITERS)))

    async def _compact(self) -> None:
        """Forget the past: the values that were deleted are in the history until then."""
        node_id = await self._scene.leader()
        revision = (await self._scene.watch.status(node_id))["store"]["revision"]
        body = json.dumps({"revision": revision}).encode()
        answer = await self._call(node_id, "POST", "/v1/compact", body, {"Content-Type": "application/json"})
        if answer is not None and answer.code not in (200, 410, 421, 503, 504):
            raise Violation(f"a compaction was refused: {answer.code} {answer.body!r}")

    async def _delete(self) -> tuple[int, float]:
        """Delete, oldest first, until writes are taken again; return how much it took."""
        scene = self._scene
        began, deleted = time.monotonic(), 0
        while True:
            for key in list(self._there)[:50]:
                node_id = scene.running[deleted % len(scene.running)]
                answer = await self._call(node_id, "DELETE", f"/v1/kv/{key}")
                if answer is not None and answer.code == 507:
                    raise Violation(f"a deletion was refused for lack of space: {answer.body!r}")
                del self._there[key]
                if answer is None or answer.code != 200:
                    self._perhaps.add(key)
                deleted += 1
            await self._compact()
            await scene.sleep(0.5)
            self._count += 1
            if await self._put_one(f"key{self._count}", await scene.leader()) == 200:
                return deleted, time.monotonic() - began
            if time.monotonic() - began > 2 * PATIENCE:
                raise Violation(f"after {deleted} deletions there still is no space")

    async def _clear(self) -> None:
        """Delete most of it, and go on until no disk is full and nobody lags: one that was full needs more space.

        With just enough, the next snapshot may fill it again.
        """
        scene, end, most = self._scene, time.monotonic() + 2 * PATIENCE, len(self._there) // 4
        while True:
            found = [await scene.watch.status(node_id) for node_id in scene.running]
            agree = not any(each["full"] for each in found) and len({each["applied"] for each in found}) == 1
            if agree and len(self._there) <= most:
                return
            for key in list(self._there)[:50]:
                answer = await self._call(await scene.leader(), "DELETE", f"/v1/kv/{key}")
                del self._there[key]
                if answer is None or answer.code != 200:
                    self._perhaps.add(key)
            await self._compact()
            await scene.sleep(0.5)
            if time.monotonic() > end:
                raise Violation("a disk stays full though next to nothing is left")

    async def _suddenly(self) -> None:
        """Take all space while the nodes write, kill and start them: nothing is lost, and no start needs space."""
        scene = self._scene
        taken = [os.path.join(node.directory, "taken") for node in scene.cluster.nodes.values()]

        async def write(writer: int) -> None:
            for _ in range(40):
                self._count += 1
                await self._put_one(f"key{self._count}", scene.running[writer % len(scene.running)])

        async def take() -> None:
            for _ in range(4):
                for path in taken:
                    _take_all(path)
                await scene.sleep(0.5)

        await together([*map(write, range(_WRITERS)), take()])
        for path in taken:
            _take_all(path)
        nodes = scene.running
        scene.kill(nodes)
        scene.restart(nodes)
        await scene.cluster.wait_ready(timeout=PATIENCE)
        await self._read_everything("started on a full disk")
        key = next(iter(self._there))
        answer = await self._call(await scene.leader(), "DELETE", f"/v1/kv/{key}")
        if answer is None or answer.code != 200:
            raise Violation(f"a deletion on full disks was answered with {answer}")
        del self._there[key]
        for path in taken:
            os.remove(path)
        end = time.monotonic() + PATIENCE
        while await self._put_one(f"key{self._count}", await scene.leader()) != 200:
            if time.monotonic() > end:
                raise Violation("with space again there still are no writes")
            await scene.sleep(0.2)
        scene.say("all space was taken at once; with some again, writes go on")


def _take_all(path: str) -> None:
    """Write to a file until there is no space."""
    with open(path, "ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def main() -> int:
    """Run it at full length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=48, help="size of each node's file system")
    parser.add_argument("--values", choices=("memory", "disk"), default="memory", help="where the values are")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    def story(scene: Scene) -> Coroutine[Any, Any, None]:
        return _on_small_disks(scene, options.megabytes << 20)

    storage = {**STORAGE, "values": options.values}
    return tell("full disks", story, raft=RAFT, storage=storage, seed=options.seed, deadline=1800)


async def _on_small_disks(scene: Scene, size: int) -> None:
    try:
        disks = SmallDisks(scene.cluster.directory, 3, size)
    except PermissionError as error:
        scene.say(f"not told: {error}")
        return
    try:
        await FullDisks(scene).run()
    finally:
        scene.kill(scene.running)
        disks.unmount()


if __name__ == "__main__":
    sys.exit(main())
