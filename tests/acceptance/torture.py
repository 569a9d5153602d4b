"""Nodes are killed, frozen, stopped, restarted, added and removed at random, and leadership is handed around.

Clients work meanwhile. Every key has one writer, which counts it up within a session. So each linearizable read has a
least value that it may show, the last that was acknowledged or shown to anybody before the read was asked for, and a
greatest, the last that was sent; and a key's version says whether a write was ever doubled. Pairs of keys are written
in transactions, and must be equal in every range. All statuses together must show one leader per term, and one content
per index.

``python -m tests.acceptance.torture --seconds 120 --seed 1``
"""

from __future__ import annotations

import argparse
import sys
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from zlayer_consensus.daemon._local_cluster import ClusterFailed

from ._clients import AGAIN, Client, Register, content, number_in
from ._members import Members
from ._scene import PATIENCE, QUICK, STORAGE, Scene, tell, together
from ._watch import Violation
from ._wire import NoAnswer

__all__ = ["RAFT", "Torture", "main"]

# Snapshots, purges and catching up by snapshot are part of it.
RAFT = {**QUICK, "snapshot_logs_since_last": 300, "max_in_snapshot_log_to_keep": 30, "snapshot_chunk_bytes": 65536}
_QUERIES = ("", "", "?forward=no", "?timeout=2", "?consistency=stale")


class Torture:
    """The story.

    :param seconds: how long the nodes have to suffer.
    :param writers: clients with keys of their own, and as many with pairs.
    :param readers: clients that read anything anywhere.
    :param nodes: how many nodes there are at first.
    :param churn: whether members come and go.
    """

    def __init__(
        self,
        scene: Scene,
        seconds: float,
        *,
        writers: int = 6,
        readers: int = 8,
        nodes: int = 3,
        churn: bool = False,
    ) -> None:
        self._scene = scene
        self._seconds = seconds
        self._members = Members(scene, nodes)
        self._churn = churn
        self._keys = [[Register(f"key/{name}/{number}") for number in range(5)] for name in range(writers)]
        self._pairs = [(Register(f"pair/{name}/a"), Register(f"pair/{name}/b")) for name in range(writers)]
        self._readers = readers
        self._done: Counter[str] = Counter()
        self._last_ack = 0.0
        self._longest = 0.0

    async def run(self) -> None:
        """Tell it."""
        scene = self._scene
        await scene.start(len(self._members.ids))
        self._last_ack = time.monotonic()
        await together(
            [
                self._suffer(),
                self._look(),
                *map(self._write, self._keys),
                *map(self._write_pairs, self._pairs),
                *(self._read() for _ in range(self._readers)),
            ]
        )
        await scene.cluster.wait_ready(self._members.ids, timeout=PATIENCE)
        registers = [register for keys in (*self._keys, *self._pairs) for register in keys]
        for node_id in scene.running:
            for register in registers:
                await Client(scene).read(register, node_id)
        index, digest = await scene.agree()
        await scene.stop(scene.running)
        scene.nothing_in_the_logs(besides=self._members.removed)
        scene.say(
            f"{dict(self._done)}; {scene.watch.statuses} statuses up to term {scene.watch.terms}; longest time without "
            f"an acknowledged write {self._longest:.1f} s; {digest} at index {index}"
        )

    # Clients.

    def _acknowledged(self) -> None:
        now = time.monotonic()
        self._longest = max(self._longest, now - self._last_ack)
        self._last_ack = now
        self._done["write"] += 1

    def _size(self) -> int:
        return self._scene.random.choice([50, 500, 5_000, 20_000])

    async def _write(self, registers: list[Register]) -> None:
        client = Client(self._scene, patience=3)
        await client.open()
        while not self._scene.over:
            await client.put(self._scene.random.choice(registers), self._size())
            self._acknowledged()
        self._done["write again"] += client.retries

    async def _write_pairs(self, pair: tuple[Register, Register]) -> None:
        client = Client(self._scene, patience=3)
        await client.open()
        while not self._scene.over:
            puts, size = [], self._size()
            for register in pair:
                register.issued += 1
                value = content(register.key, register.issued, size)
                puts.append({"op": "put", "key": _text(register.key.encode()), "value": _text(value)})
            answer = await client.post("/v1/txn", {"success": puts})
            versions = [result["version"] for result in answer.value["results"]]
            if versions != [register.issued for register in pair]:
                raise Violation(f"{pair[0].key} and its other were set to {pair[0].issued}, and are {versions}")
            for register in pair:
                register.acknowledged = register.issued
            self._acknowledged()
        self._done["write again"] += client.retries

    async def _read(self) -> None:
        scene, client = self._scene, Client(self._scene)
        while not scene.over:
            node_id = scene.random.choice(self._members.ids)
            register = scene.random.choice(scene.random.choice(self._keys))
            query = scene.random.choice(_QUERIES)
            try:
                if scene.random.random() < 0.3:
                    told = await self._read_pair(client, node_id, query)
                else:
                    # Longer than a node is stopped: what it says when it goes on is what is of interest.
                    told = await client.get(register, node_id, query, timeout=8)
            except NoAnswer:
                self._done["no answer"] += 1
                await scene.sleep(0.05)
            else:
                self._done["read" if told else f"read refused {client.refusal}"] += 1
                await scene.sleep(0.005 if told else 0.05)

    async def _read_pair(self, client: Client, node_id: int, query: str) -> bool:
        pair = self._scene.random.choice(self._pairs)
        floors = [register.floor for register in pair]
        path = f"/v1/kv{query}{'&' if query else '?'}prefix={pair[0].key[:-1]}"
        answer = await self._scene.caller.call(node_id, "GET", path, timeout=8)
        where = f"node {node_id}, {path}"
        if answer.code in AGAIN - {504}:
            client.refusal = f"{answer.code} {answer.error}"
            return False
        if answer.code != 200:
            raise ClusterFailed(f"{where}: {answer.code} {answer.body!r}")
        found = {b64decode(kv["key"]).decode(): kv for kv in answer.value["kvs"]}
        numbers = set()
        for register, floor in zip(pair, floors, strict=True):
            kv = found.get(register.key)
            value, version = (b64decode(kv["value"]), kv["version"]) if kv else (b"0", 0)
            if "stale" in query:
                register.judge_stale(number_in(value), version, value, where)
            else:
                register.judge(number_in(value), version, value, floor, where)
            numbers.add(number_in(value))
        if len(numbers) != 1:
            raise Violation(f"{where}: a transaction was seen in part: {numbers}")
        return True

    # Whoever looks on.

    async def _look(self) -> None:
        scene = self._scene
        while not scene.over:
            for node_id in scene.running:
                try:
                    await scene.watch.status(node_id, timeout=2)
                except NoAnswer:
                    self._done["no status"] += 1
            await scene.sleep(0.05)

    # What is done to the nodes.

    async def _suffer(self) -> None:
        scene = self._scene
        end = time.monotonic() + self._seconds
        await scene.until(lambda: self._done["write"] > 20, "the first writes")
        actions = {
            self._kill_one: 4,
            self._kill_some: 1,
            self._pause_one: 4,
            self._pause_some: 1,
            self._stop_one: 2,
            self._transfer: 4,
            self._rest: 2,
        }
        if self._churn:
            actions[self._come_or_go] = 4
        while time.monotonic() < end:
            (action,) = scene.random.choices(list(actions), list(actions.values()))
            await action()
            scene.all_well()
        # What waits for the first acknowledgement after all this must get it.
        done = self._done["write"]
        await scene.until(lambda: self._done["write"] > done + 20, "writes when it was over")
        scene.over = True

    def _some(self, number: int) -> list[int]:
        return self._scene.random.sample(self._members.ids, number)

    async def _target(self) -> int:
        """The leader as often as not, else any node."""
        scene = self._scene
        if scene.random.random() < 0.5:
            for node_id in scene.running:
                try:
                    status = await scene.watch.status(node_id, timeout=2)
                except NoAnswer:
                    continue
                # It may believe in one that was removed just now.
                if status["leader_id"] in self._members.ids:
                    return int(status["leader_id"])
        return self._some(1)[0]

    async def _down(self, nodes: list[int]) -> None:
        scene = self._scene
        self._tell(f"kill {nodes}")
        scene.kill(nodes)
        await scene.sleep(scene.random.choice([0, 0.3, 1, 3]))
        scene.restart(nodes)
        # Not always until they are there: the next blow may come while they recover.
        if scene.random.random() < 0.7:
            await scene.cluster.wait_ready(nodes, timeout=PATIENCE)

    async def _kill_one(self) -> None:
        await self._down([await self._target()])

    async def _kill_some(self) -> None:
        await self._down(self._some(self._scene.random.randint(2, len(self._members.ids))))

    async def _stop_one(self) -> None:
        node_id = await self._target()
        self._tell(f"stop {node_id} in order")
        await self._scene.stop([node_id])
        self._scene.restart([node_id])

    async def _asleep(self, nodes: list[int]) -> None:
        scene = self._scene
        self._tell(f"freeze {nodes}")
        for node_id in nodes:
            scene.pause(node_id)
        await scene.sleep(scene.random.choice([0.2, 0.8, 2, 5]))
        for node_id in nodes:
            scene.unpause(node_id)
            await scene.sleep(scene.random.choice([0, 0, 0.3]))

    async def _pause_one(self) -> None:
        await self._asleep([await self._target()])

    async def _pause_some(self) -> None:
        await self._asleep(self._some(self._scene.random.randint(2, len(self._members.ids))))

    async def _transfer(self) -> None:
        scene = self._scene
        body = scene.random.choice([{}, {"target": self._some(1)[0]}])
        self._tell(f"transfer {body}")
        try:
            answer = await scene.caller.post(self._some(1)[0], "/v1/transfer", body, timeout=10)
        except NoAnswer:
            return
        self._done[f"transfer {answer.code}"] += 1
        if answer.code not in AGAIN | {200, 409}:
            raise ClusterFailed(f"transfer {body}: {answer.code} {answer.body!r}")

    async def _come_or_go(self) -> None:
        members = self._members
        if members.may_grow and (not members.may_shrink or self._scene.random.random() < 0.5):
            self._tell(f"add a node to {members.ids}")
            await members.grow()
        else:
            node_id = await self._target()
            self._tell(f"remove {node_id} of {members.ids}")
            await members.shrink(node_id)

    async def _rest(self) -> None:
        await self._scene.sleep(self._scene.random.uniform(0.2, 2))

    def _tell(self, text: str) -> None:
        self._scene.say(f"{text} (term {self._scene.watch.terms}, {self._done['write']} writes)")


def _text(value: bytes) -> str:
    return b64encode(value).decode()


def main() -> int:
    """Run it at full length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--churn", action="store_true", help="members come and go, too")
    parser.add_argument("--values", choices=("memory", "disk"), default="memory", help="where the values are")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    def story(scene: Scene) -> Coroutine[Any, Any, None]:
        return Torture(scene, options.seconds, nodes=options.nodes, churn=options.churn).run()

    storage, deadline = {**STORAGE, "values": options.values}, 900 + 3 * options.seconds
    return tell("torture", story, raft=RAFT, storage=storage, seed=options.seed, deadline=deadline)


if __name__ == "__main__":
    sys.exit(main())
