"""All nodes killed at once under load, and started again: every acknowledged write is there, and none is doubled.

``python -m tests.acceptance.kill_all --rounds 10``
"""

from __future__ import annotations

import argparse
import sys
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Coroutine
from typing import Any
from urllib.parse import quote

from zlayer_consensus.daemon._local_cluster import ClusterFailed

from ._clients import AGAIN, Client, Register, number_in
from ._scene import PATIENCE, QUICK, STORAGE, Scene, tell, together
from ._watch import Violation
from ._wire import NoAnswer

__all__ = ["RAFT", "KillAll", "main"]

# Snapshots and purges happen between the kills, too.
RAFT = {**QUICK, "snapshot_logs_since_last": 500, "max_in_snapshot_log_to_keep": 100}


class KillAll:
    """The story. Every client writes keys of its own, each of them once.

    :param rounds: how often all nodes are killed, on the same data directories.
    :param writers: clients that write at the same time.
    :param acks: writes that are acknowledged from one round to the next, at least.
    """

    def __init__(self, scene: Scene, rounds: int, writers: int = 16, acks: int = 300) -> None:
        self._scene = scene
        self._rounds = rounds
        self._writers = [Client(scene) for _ in range(writers)]
        self._acks = acks
        self._registers: dict[str, Register] = {}
        self._acknowledged = 0
        self.recoveries: list[float] = []

    async def run(self) -> None:
        """Tell it."""
        scene = self._scene
        await scene.start()
        await together([writer.open() for writer in self._writers])
        began = time.monotonic()
        await together([self._go(), *(self._write(number, each) for number, each in enumerate(self._writers))])
        duration = time.monotonic() - began
        for node_id in scene.running:
            await self._read_all(node_id)
        index, digest = await scene.agree()
        status = await scene.watch.status(scene.running[0])
        if status["store"]["revision"] != 1 + len(self._registers) or status["store"]["keys"] != len(self._registers):
            raise Violation(f"{len(self._registers)} keys were written once each, but the store is {status['store']}")
        scene.nothing_in_the_logs()
        retries = sum(writer.retries for writer in self._writers)
        scene.say(f"{self._acknowledged} writes in {duration:.0f} s, {retries} retries; {digest} at index {index}")

    async def _write(self, name: int, client: Client) -> None:
        number = 0
        while not self._scene.over:
            number += 1
            register = Register(f"client {name}/{number:06d}")
            self._registers[register.key] = register
            await client.put(register)
            self._acknowledged += 1

    async def _go(self) -> None:
        scene = self._scene
        for round_ in range(1, self._rounds + 1):
            await self._progress(self._acks)
            await scene.sleep(scene.random.uniform(0, 0.3))
            before = self._acknowledged
            scene.kill(list(scene.cluster.nodes))
            began = time.monotonic()
            scene.restart(list(scene.cluster.nodes))
            # Of each writer one acknowledgement may have been on its way to us when the nodes were killed.
            await self._progress(len(self._writers) + 1)
            self.recoveries.append(time.monotonic() - began)
            await scene.cluster.wait_ready(timeout=PATIENCE)
            for node_id in scene.running:
                await self._read_all(node_id)
            scene.say(
                f"round {round_}: killed all after {before} acknowledged writes; writing again "
                f"{self.recoveries[-1]:.2f} s after the restart; every one is there at every node"
            )
        scene.over = True

    async def _progress(self, more: int) -> None:
        wanted = self._acknowledged + more
        await self._scene.until(lambda: self._acknowledged >= wanted, f"{wanted} acknowledged writes")

    async def _read_all(self, node_id: int) -> None:
        """Read everything linearizably from one node, and judge it."""
        expected = {key for key, register in self._registers.items() if register.acknowledged}
        found: Counter[str] = Counter()
        start: bytes | None = b""
        while start is not None:
            page = await self._page(node_id, start)
            for kv in page["kvs"]:
                key = b64decode(kv["key"]).decode()
                register = self._registers.get(key)
                if register is None:
                    raise Violation(f"node {node_id} has a key that nobody wrote: {key}")
                value = b64decode(kv["value"])
                register.judge(number_in(value), kv["version"], value, 1, f"node {node_id}")
                found[key] += 1
            start = b64decode(page["next"]) if page["more"] else None
        missing = sorted(expected - set(found))
        if missing:
            raise Violation(f"node {node_id} lost {len(missing)} acknowledged writes, among them {missing[:5]}")
        if found and max(found.values()) > 1:
            raise Violation(f"node {node_id} lists {found.most_common(1)[0]} times")

    async def _page(self, node_id: int, start: bytes) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while True:
            path = f"/v1/kv?limit=1000&start={quote(start)}"
            try:
                answer = await self._scene.caller.call(node_id, "GET", path, timeout=20)
            except NoAnswer as error:
                problem = str(error)
            else:
                if answer.code == 200:
                    return dict(answer.value)
                problem = f"{answer.code} {answer.body!r}"
                if answer.code not in AGAIN:
                    raise ClusterFailed(f"node {node_id}, {path}: {problem}")
            if time.monotonic() > end:
                raise ClusterFailed(f"node {node_id}, {path}: {problem}, for {PATIENCE:g} s")
            await self._scene.sleep(0.1)


def main() -> int:
    """Run it at full length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--acks", type=int, default=1000, help="acknowledged writes between two kills")
    parser.add_argument("--values", choices=("memory", "disk"), default="memory", help="where the values are")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    def story(scene: Scene) -> Coroutine[Any, Any, None]:
        return KillAll(scene, options.rounds, options.writers, options.acks).run()

    storage = {**STORAGE, "values": options.values}
    deadline = 300 + 120 * options.rounds
    return tell("kill-all", story, raft=RAFT, storage=storage, seed=options.seed, deadline=deadline)


if __name__ == "__main__":
    sys.exit(main())
