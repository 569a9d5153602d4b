"""A large state, writes going on: a snapshot is taken, sent to a node whose log was purged past, and installed there.

Meanwhile no loop stands still for longer than 50 ms, no node takes more than a few chunks of memory, and nobody else
leads. How late loops are is measured by the nodes' own probes. What a loop itself does in one turn is never longer. A
delay can also be the machine's doing, and beside the nodes there is a process that does nothing, for comparison. So the
story is told several times: what is the nodes' own doing shows in each, and one round without is asked for.

``python -m tests.acceptance.snapshot_load --keys 1000000``
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import Coroutine
from typing import Any

import attrs

from zlayer_consensus.daemon._local_cluster import ClusterFailed, child_environment

from ._clients import content
from ._noise import Noise
from ._scene import CALM, STORAGE, Scene, tell, together
from ._watch import Violation
from ._wire import NoAnswer

__all__ = ["SnapshotLoad", "fill", "main", "settings", "take_snapshot"]

_BATCH = 100
"""Keys in one transaction while the store is filled."""
_LIMIT_MS = 50.0
_KEPT = 100


def settings() -> dict[str, Any]:
    """Return settings under which a node that was away for a while needs a snapshot."""
    return {
        **CALM,
        "snapshot_policy": "never",
        "max_in_snapshot_log_to_keep": _KEPT,
        # What is held up for longer than 50 ms is late by more than 45.
        "loop_probe_interval_ms": 5,
    }


@attrs.define
class Phase:
    """What one node did while something was going on.

    :param stalls: how often its loop was late by more than the limit.
    :param longest_ms: the longest delay since its process started.
    :param work_ms: the most processor time of its loop from one look to the next.
    :param before, peak: memory in MiB when it began, and the most.
    """

    node_id: int
    stalls: int = 0
    longest_ms: float = 0.0
    work_ms: float = 0.0
    before: float = 0.0
    peak: float = 0.0

    def __str__(self) -> str:
        """Return it in a few words."""
        return (
            f"node {self.node_id}: late by more than 50 ms {self.stalls} times (since its start at the most "
            f"{self.longest_ms} ms; own work in one turn at the most {self.work_ms} ms); memory {self.before:.0f} MiB, "
            f"and up to {self.peak - self.before:.0f} more"
        )


class SnapshotLoad:
    """The story.

    :param keys: how many the store has.
    :param rounds: how often a node is left behind.
    :param rate: writes in a second that go on all the time.
    :param strict: whether a round in which no loop was late is asked for. A machine that has other things to do cannot
        give it.
    :param growth: MiB that a node may take more while something goes on.
    """

    def __init__(
        self, scene: Scene, keys: int, rounds: int, rate: int = 200, strict: bool = True, growth: float = 16.0
    ) -> None:
        self._scene = scene
        self._keys = keys
        self._rounds = rounds
        self._rate = rate
        self._strict = strict
        self._growth = growth
        self._clean: dict[str, bool] = defaultdict(bool)
        self._phases: dict[int, Phase] = {}
        self._written = 0
        self._over = False
        self._noise = Noise(os.path.join(scene.cluster.directory, "noise.txt"), child_environment())

    async def run(self) -> None:
        """Tell it."""
        scene = self._scene
        try:
            await scene.start()
            began = time.monotonic()
            await fill(scene, range(self._keys))
            await scene.agree()
            scene.say(f"{self._keys} keys, {self._keys / (time.monotonic() - began):.0f}/s")
            await together([self._measure(), self._write(), self._tell()])
        finally:
            self._noise.stop()
        scene.nothing_in_the_logs()

    # What goes on all the time.

    async def _write(self) -> None:
        """Change keys all over the store, at an even rate."""
        scene = self._scene
        due = time.monotonic()
        leader = await scene.leader()
        while not self._over:
            due += 1 / self._rate
            number = scene.random.randrange(self._keys)
            body = content(str(number), 2 + self._written)
            answer = await scene.caller.call(leader, "PUT", "/v1/kv/" + _key(number).decode(), body, timeout=30)
            if answer.code != 200:
                raise Violation(f"node {leader} does not take a write any more: {answer.code} {answer.body!r}")
            self._written += 1
            if (wait := due - time.monotonic()) > 0:
                await scene.sleep(wait)
            else:
                due = max(due, time.monotonic() - 0.5)

    async def _measure(self) -> None:
        """Look at the memory of all nodes."""
        while not self._over:
            for phase in list(self._phases.values()):
                phase.peak = max(phase.peak, self._memory(phase.node_id))
            await self._scene.sleep(0.05)

    def _memory(self, node_id: int) -> float:
        process = self._scene.cluster.nodes[node_id].process
        if process is None or process.poll() is not None:
            return 0.0
        with open(f"/proc/{process.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    async def _begin(self, nodes: list[int]) -> None:
        """Count from now on."""
        self._phases.clear()
        for node_id in nodes:
            loop = (await self._scene.watch.status(node_id))["loop"]
            memory = self._memory(node_id)
            self._phases[node_id] = Phase(node_id, -loop["stalls"], before=memory, peak=memory)

    async def _end(self, what: str, began: float, noise: int) -> None:
        """Tell what was counted, and judge it."""
        clean = True
        for phase in self._phases.values():
            loop = (await self._scene.watch.status(phase.node_id))["loop"]
            phase.stalls += loop["stalls"]
            phase.longest_ms, phase.work_ms = loop["longest_ms"], loop["longest_work_ms"]
            clean = clean and not phase.stalls
        seconds, idle = time.monotonic() - began, self._noise.longest(noise)
        self._scene.say(f"{what} in {seconds:.1f} s; an idle process was late by up to {idle} ms")
        for phase in self._phases.values():
            self._scene.say(f"    {phase}")
            if phase.work_ms > _LIMIT_MS:
                raise Violation(f"node {phase.node_id} worked for {phase.work_ms} ms without a pause")
            if phase.peak - phase.before > self._growth:
                raise Violation(f"node {phase.node_id} took {phase.peak - phase.before:.0f} MiB of memory more")
        self._clean[what.partition(", ")[2]] |= clean

    # What happens.

    async def _tell(self) -> None:
        scene = self._scene
        leader = await scene.leader()
        term = (await scene.watch.status(leader))["term"]
        for number in range(1, self._rounds + 1):
            down = [node_id for node_id in scene.running if node_id != leader][number % 2]
            await self._taken(f"round {number}, taken by all", scene.running)
            await self._taken(f"round {number}, taken by the leader", [leader])
            await self._sent(f"round {number}, sent and installed", leader, down)
            status = await scene.watch.status(leader)
            if (status["role"], status["term"]) != ("leader", term):
                raise Violation(f"node {leader} led term {term}; now it is {status['role']} in term {status['term']}")
        self._over = True
        scene.say(f"{self._written} writes meanwhile; node {leader} still leads term {term}")
        # That all take one at once, on one machine, is more than it may have processors for.
        for what in ("taken by the leader", "sent and installed"):
            if self._strict and not self._clean[what]:
                raise Violation(f"{what}: in every round a loop was late by more than {_LIMIT_MS:g} ms")

    async def _taken(self, what: str, nodes: list[int]) -> None:
        """Nodes take a snapshot, at the same time."""
        index = self._written
        await self._scene.until(lambda: self._written > index + 10, "something new to be taken")
        noise, began = self._noise.lines(), time.monotonic()
        await self._begin(self._scene.running)
        await together([take_snapshot(self._scene, node_id) for node_id in nodes])
        await self._end(what, began, noise)

    async def _sent(self, what: str, leader: int, down: int) -> None:
        """A node comes back that needs a snapshot, and gets it."""
        scene = self._scene
        missed = (await scene.watch.status(down))["last"]["index"]
        await scene.stop([down])
        goal = self._written + 3 * _KEPT
        await scene.until(lambda: self._written >= goal, "writes while a node is down")
        index = await take_snapshot(scene, leader)
        purged = (await scene.watch.status(leader))["purged"]
        if purged <= missed:
            raise ClusterFailed(f"the leader has entry {missed + 1} still, it purged up to {purged}")
        noise, began = self._noise.lines(), time.monotonic()
        await self._begin([node_id for node_id in scene.running if node_id != down])
        scene.restart([down])
        await self._installed(down, index)
        await self._end(what, began, noise)

    async def _installed(self, down: int, index: int) -> None:
        """Wait until a node has the snapshot of this index, or a later one; it is counted from when it answers on."""
        scene, end = self._scene, time.monotonic() + 300
        while time.monotonic() < end:
            scene.all_well()
            try:
                status = await scene.watch.status(down)
            except NoAnswer:
                await scene.sleep(0.05)
                continue
            if down not in self._phases:
                memory = self._memory(down)
                self._phases[down] = Phase(down, before=memory, peak=memory)
            if status["snapshot"] is not None and status["snapshot"]["index"] >= index and status["applied"] >= index:
                return
            await scene.sleep(0.1)
        raise ClusterFailed(f"node {down} has not installed the snapshot of index {index}")


async def fill(scene: Scene, numbers: range) -> None:
    """Put keys with these numbers, many in a transaction."""
    leader = await scene.leader()
    starts = iter(range(numbers.start, numbers.stop, _BATCH))

    async def work() -> None:
        for first in starts:
            puts = [
                {"op": "put", "key": _b64(_key(number)), "value": _b64(content(str(number), 1))}
                for number in range(first, min(first + _BATCH, numbers.stop))
            ]
            answer = await scene.caller.post(leader, "/v1/txn", {"success": puts}, timeout=30)
            if answer.code != 200:
                raise ClusterFailed(f"filling: {answer.code} {answer.body!r}")

    await together([work() for _ in range(4)])


async def take_snapshot(scene: Scene, node_id: int) -> int:
    """Have a node take a snapshot, and return the index of it."""
    answer = await scene.caller.post(node_id, "/v1/snapshot", {}, timeout=300)
    if answer.code != 200:
        raise ClusterFailed(f"node {node_id} took no snapshot: {answer.code} {answer.body!r}")
    return int(answer.value["snapshot"]["index"])


def _key(number: int) -> bytes:
    return b"key-%08d" % number


def _b64(data: bytes) -> str:
    return b64encode(data).decode()


def main() -> int:
    """Run it at full length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--values", choices=("memory", "disk"), default="memory", help="where the values are")
    parser.add_argument("--lenient", action="store_true", help="do not ask for a round in which no loop was late")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    def story(scene: Scene) -> Coroutine[Any, Any, None]:
        return SnapshotLoad(scene, options.keys, options.rounds, options.rate, not options.lenient).run()

    storage, deadline = {**STORAGE, "values": options.values}, 600 + options.keys / 1000
    return tell("snapshot-load", story, raft=settings(), storage=storage, seed=options.seed, deadline=deadline)


if __name__ == "__main__":
    sys.exit(main())
