"""Processes that are stopped by a signal for a while, and go on without knowing it.

A follower that was away leaves the term as it was (H-10). A leader that was away, while the others elected another one
and wrote new values, never answers a linearizable read with an old one.

``python -m tests.acceptance.stopped follower --seconds 10``
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from zlayer_consensus.daemon._local_cluster import ClusterFailed

from ._clients import Client, Register
from ._scene import CALM, PATIENCE, QUICK, Scene, tell, together
from ._watch import Violation
from ._wire import NoAnswer

__all__ = ["StoppedFollower", "StoppedLeader", "main"]

# How often a story is begun anew if the machine was too slow to keep the leader that it began with.
_TRIES = 5
# The node with endless election timeouts.
_PATIENT = 1


async def write_on(scene: Scene, client: Client, register: Register) -> None:
    """Count a key up, until the story is over."""
    while not scene.over:
        await client.put(register)
        await scene.sleep(0.005)


class StoppedFollower:
    """The story, with writes going on all the time.

    :param seconds: how long it is stopped.
    """

    def __init__(self, scene: Scene, seconds: float) -> None:
        self._scene = scene
        self._seconds = seconds
        self._register = Register("count")

    async def run(self) -> None:
        """Tell it."""
        scene = self._scene
        await scene.start()
        client = Client(scene)
        await client.open()
        await together([self._go(), write_on(scene, client, self._register)])
        for node_id in scene.running:
            await client.read(self._register, node_id)
        await scene.agree()
        scene.nothing_in_the_logs()

    async def _go(self) -> None:
        scene = self._scene
        for _ in range(_TRIES):
            leader = await scene.leader()
            term = (await scene.watch.status(leader))["term"]
            before = self._register.acknowledged
            follower = next(node_id for node_id in scene.running if node_id != leader)
            scene.pause(follower)
            await scene.sleep(self._seconds)
            # If the others lost their leader meanwhile, that was not the doing of the one that could not do anything.
            alone = (await scene.watch.status(leader))["term"] == term
            during = self._register.acknowledged
            scene.unpause(follower)
            if not alone:
                scene.say("the machine was so slow that another leader was elected meanwhile; once more")
                continue
            await self._stays(follower, leader, term)
            scene.say(
                f"follower {follower} was stopped for {self._seconds:g} s: {during - before} writes meanwhile, "
                f"{self._register.acknowledged - during} after; node {leader} leads in term {term} as before"
            )
            break
        else:
            raise ClusterFailed(f"in {_TRIES} tries no leader stayed for {self._seconds:g} s: the machine is too busy")
        scene.over = True

    async def _stays(self, follower: int, leader: int, term: int) -> None:
        """See that nothing changes, while the longest election time-out passes."""
        scene = self._scene
        end = time.monotonic() + 1.5 * CALM["election_timeout_max_ms"] / 1000
        while time.monotonic() < end:
            for node_id in scene.running:
                status = await scene.watch.status(node_id)
                if status["term"] != term or status["leader_id"] not in (leader, None):
                    raise Violation(
                        f"node {follower} was stopped for {self._seconds:g} s in term {term} of node {leader}, then "
                        f"node {node_id} is in term {status['term']} of node {status['leader_id']}"
                    )
            await scene.sleep(0.1)


class StoppedLeader:
    """The story. Readers ask that one node all the time; every answer is judged by what was known when it was asked.

    The leader has such long timeouts that no clock makes it step down when it goes on; with those of the others it
    would do that before anything else. What it answers must be right all the same.

    :param seconds: how long it is stopped, and longer if the others need it to elect another leader.
    :param rounds: how often.
    :param readers: reads of each kind that are on their way at the same time.
    """

    def __init__(self, scene: Scene, seconds: float, rounds: int = 1, readers: int = 20) -> None:
        self._scene = scene
        self._seconds = seconds
        self._rounds = rounds
        self._readers = readers
        self._register = Register("count")
        self._told: Counter[str] = Counter()
        self._awake = Counter[str]()

    async def run(self) -> None:
        """Tell it."""
        scene = self._scene
        await scene.start()
        await self._make_patient(_PATIENT)
        for round_ in range(1, self._rounds + 1):
            await self._round(round_)
        for node_id in scene.running:
            await Client(scene).read(self._register, node_id)
        await scene.agree()
        scene.nothing_in_the_logs()

    async def _round(self, round_: int) -> None:
        scene = self._scene
        leader = await self._lead(_PATIENT)
        writer = Client(scene, avoid=[leader])
        await writer.open()
        self._told.clear()
        self._awake.clear()
        over: list[bool] = []
        try:
            await together([self._go(leader, over), self._write(writer, over), *self._reads(leader, over)])
        finally:
            over.append(True)
        if not self._awake["value"] + self._awake["refused"]:
            raise ClusterFailed(f"node {leader} answered no read that was asked while it was stopped: nothing is shown")
        scene.say(f"round {round_}: of node {leader}: {dict(self._told)}; of those asked asleep: {dict(self._awake)}")

    async def _make_patient(self, node_id: int) -> None:
        """Let one node's election timeouts be as good as endless."""
        scene = self._scene
        path = os.path.join(scene.cluster.nodes[node_id].directory, "node.toml")
        with open(path, encoding="utf-8") as file:
            text = file.read()
        for name in ("election_timeout_min_ms", "election_timeout_max_ms"):
            text = text.replace(f"{name} = {QUICK[name]}\n", f"{name} = {1000 * QUICK[name]}\n")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        scene.kill([node_id])
        scene.restart([node_id])
        await scene.cluster.wait_ready([node_id], timeout=PATIENCE)

    async def _lead(self, node_id: int) -> int:
        """Make a node the leader."""
        scene = self._scene
        end = time.monotonic() + PATIENCE
        while (leader := await scene.leader()) != node_id:
            answer = await scene.caller.post(leader, "/v1/transfer", {"target": node_id})
            if time.monotonic() > end:
                raise ClusterFailed(f"leadership was not handed to node {node_id}: {answer.code} {answer.body!r}")
            await scene.sleep(0.1)
        return node_id

    async def _go(self, leader: int, over: list[bool]) -> None:
        scene, register = self._scene, self._register
        await scene.until(lambda: self._told["value"] >= 2 * self._readers, "reads before")
        began = time.monotonic()
        scene.pause(leader)
        # Once more than one is acknowledged, others did it: at most one was under way.
        before = register.acknowledged
        await scene.until(lambda: register.acknowledged > before + 1, "a write after the leader was stopped")
        stood = time.monotonic() - began
        await scene.sleep(max(0.0, began + self._seconds - time.monotonic()))
        during = register.acknowledged
        scene.unpause(leader)
        await scene.until(lambda: register.acknowledged > during + 1, "a write after it went on")
        await scene.cluster.wait_ready([leader], timeout=60)
        told = self._told["value"]
        await scene.until(lambda: self._told["value"] > told + self._readers, "reads after")
        scene.say(f"node {leader} was stopped for {self._seconds:g} s; writes stood still for {stood:.2f} s")
        over.append(True)

    async def _write(self, writer: Client, over: list[bool]) -> None:
        while not over:
            await writer.put(self._register)
            await self._scene.sleep(0.005)

    def _reads(self, leader: int, over: list[bool]) -> list[Coroutine[Any, Any, None]]:
        queries = ["", "?forward=no", "?timeout=60", "?timeout=60&forward=no"]
        return [self._read(leader, query, over) for query in queries for _ in range(self._readers // 2)]

    async def _read(self, leader: int, query: str, over: list[bool]) -> None:
        """Ask the one node again and again. While it is stopped, connections are kept in its kernel's queue."""
        scene = self._scene
        client = Client(scene)
        while not over:
            asleep = leader in scene.paused
            try:
                told = await client.get(self._register, leader, query, timeout=60)
            except NoAnswer:
                outcome = "none"
            else:
                outcome = "value" if told else "refused"
            self._told[outcome] += 1
            if asleep:
                self._awake[outcome] += 1
            # So many ask that some have just asked when it is stopped, and others ask while it is.
            await scene.sleep(scene.random.uniform(0, 0.5 * self._seconds) if asleep else scene.random.uniform(0, 0.1))


def main() -> int:
    """Run one of the two at full length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("who", choices=("follower", "leader"))
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="how many leaders are stopped")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    def follower(scene: Scene) -> Coroutine[Any, Any, None]:
        return StoppedFollower(scene, options.seconds).run()

    def leader(scene: Scene) -> Coroutine[Any, Any, None]:
        return StoppedLeader(scene, options.seconds, options.rounds).run()

    deadline = 600 + (300 + options.seconds) * options.rounds
    if options.who == "follower":
        return tell("stopped-follower", follower, raft=CALM, seed=options.seed, deadline=deadline)
    return tell("stopped-leader", leader, raft=QUICK, seed=options.seed, deadline=deadline)


if __name__ == "__main__":
    sys.exit(main())
