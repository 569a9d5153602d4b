"""What clients are told: at every node, about too large proposals, across the death of a leader, and by a wiped node.

``python -m tests.acceptance.answers``
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from base64 import b64encode
from typing import Any

import attrs

from zlayer_consensus.daemon._local_cluster import ClusterFailed

from ._clients import Client, content, key_path
from ._scene import CALM, Scene, tell, together
from ._watch import Violation
from ._wire import Answer, NoAnswer

__all__ = ["RAFT", "AtEveryNode", "ExactlyOnce", "TooLarge", "Wiped", "main"]

RAFT = CALM
_LIMIT = 1 << 20


def expect(condition: bool, what: str, answer: Answer) -> None:
    """See that an answer is as it must be.

    :raises Violation: if it is not.
    """
    if not condition:
        raise Violation(f"{what}: {answer.code} {answer.headers} {answer.body[:300]!r}")


async def revision(scene: Scene) -> int:
    """Return the store's revision, read linearizably."""
    answer = await scene.caller.call(await scene.leader(), "GET", "/v1/kv?limit=1")
    expect(answer.code == 200, "a range", answer)
    return int(answer.value["revision"])


class AtEveryNode:
    """Reads and writes at every node, with and without ``forward=no``."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._count = 0

    async def run(self) -> None:
        """Tell it."""
        scene = self._scene
        leader = await scene.leader()
        for node_id in scene.cluster.nodes:
            await self._forwarded(node_id)
            if node_id == leader:
                await self._write(node_id, "?forward=no")
                await self._read(node_id, "?forward=no")
            else:
                await self._refused(node_id, leader)
        if await scene.leader() != leader:
            raise ClusterFailed("the machine was so slow that another leader was elected meanwhile")
        scene.say(f"every node serves reads and writes; with forward=no all but node {leader} name it")

    async def _forwarded(self, node_id: int) -> None:
        await self._write(node_id, "")
        for each in self._scene.cluster.nodes:
            await self._read(each, "")
            await self._read(each, "?forward=yes")

    async def _write(self, node_id: int, query: str) -> None:
        self._count += 1
        value = b"%d" % self._count
        answer = await self._scene.caller.call(node_id, "PUT", key_path("every") + query, value)
        expect(answer.code == 200 and answer.value["version"] == self._count, f"PUT{query} at node {node_id}", answer)

    async def _read(self, node_id: int, query: str) -> None:
        answer = await self._scene.caller.call(node_id, "GET", key_path("every") + query)
        expect((answer.code, answer.body) == (200, b"%d" % self._count), f"GET{query} at node {node_id}", answer)

    async def _refused(self, node_id: int, leader: int) -> None:
        scene, path = self._scene, key_path("every") + "?forward=no"
        before = await revision(scene)
        put = {"op": "put", "key": b64encode(b"every").decode(), "value": ""}
        answers = [
            await scene.caller.call(node_id, "PUT", path, b"no"),
            await scene.caller.call(node_id, "GET", path),
            await scene.caller.call(node_id, "DELETE", path),
            await scene.caller.call(node_id, "GET", "/v1/kv?forward=no"),
            await scene.caller.post(node_id, "/v1/txn?forward=no", {"success": [put]}),
            await scene.caller.call(node_id, "POST", "/v1/sessions?forward=no"),
        ]
        address = scene.cluster.nodes[leader].client_address
        for answer in answers:
            named = (answer.headers.get("x-leader-addr"), answer.error) == (address, "not_leader")
            expect(answer.code == 421 and named, f"forward=no at node {node_id}", answer)
        if await revision(scene) != before:
            raise Violation(f"node {node_id} refused what was done all the same")


class TooLarge:
    """Proposals of 5 MB, and of one byte too many, are refused with the limit named; those at the limit are not."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    async def run(self) -> None:
        """Tell it."""
        scene = self._scene
        before = await revision(scene)
        for node_id in scene.cluster.nodes:
            for size in (5_000_000, _LIMIT + 1):
                for query in ("", "?forward=no"):
                    body = bytes(size)
                    answer = await scene.caller.call(node_id, "PUT", key_path("large") + query, body, timeout=30)
                    attributes = answer.value["attributes"] if answer.code == 413 else {}
                    named = attributes.get("limit") == _LIMIT and str(_LIMIT) in answer.value["message"]
                    expect(named, f"{size} bytes at node {node_id}", answer)
            put = {"op": "put", "key": "a2V5", "value": b64encode(bytes(5_000_000)).decode()}
            answer = await scene.caller.post(node_id, "/v1/txn", {"success": [put]}, timeout=30)
            expect(answer.code == 413 and answer.value["attributes"]["limit"] > 0, "a transaction of 5 MB", answer)
        if await revision(scene) != before:
            raise Violation("a proposal was refused, and done all the same")
        answer = await scene.caller.call(
            await scene.leader(), "PUT", key_path("large"), bytes(_LIMIT - 100), timeout=30
        )
        expect(answer.code == 200, "a proposal just below the limit", answer)
        scene.say(f"5 MB are refused at every node, and so is a byte more than {_LIMIT}")


@attrs.define
class Sent:
    """One write of one session."""

    key: str
    headers: dict[str, str]
    answer: Answer | None


class ExactlyOnce:
    """The leader is killed with writes of many sessions on their way; all of them are repeated elsewhere."""

    def __init__(self, scene: Scene, clients: int = 24) -> None:
        self._scene = scene
        self._clients = [Client(scene) for _ in range(clients)]
        self._sent: list[Sent] = []

    async def run(self) -> None:
        """Tell it."""
        scene = self._scene
        await together(client.open() for client in self._clients)
        leader = await scene.leader()
        await together([self._kill(leader), *(self._send(name, leader) for name in range(len(self._clients)))])
        open_ = sum(sent.answer is None for sent in self._sent)
        await together(self._repeat(sent, scene.running) for sent in self._sent)
        scene.restart([leader])
        await scene.cluster.wait_ready([leader], timeout=60)
        await together(self._repeat(sent, [leader]) for sent in self._sent)
        scene.say(
            f"of {len(self._sent)} writes {open_} were on their way when node {leader} was killed; "
            "all were repeated at the others and at it, and all were done once"
        )

    async def _kill(self, leader: int) -> None:
        scene = self._scene
        await scene.until(lambda: len(self._sent) > 5 * len(self._clients), "some writes")
        scene.kill([leader])

    async def _send(self, name: int, leader: int) -> None:
        """Write at the leader until it is dead. Within the window of a session all can be repeated."""
        client = self._clients[name]
        for number in range(1, 61):
            client.sequence = number
            sent = Sent(f"once/{name}/{number}", client.headers(), None)
            self._sent.append(sent)
            body = content(sent.key, 1)
            try:
                answer = await self._scene.caller.call(leader, "PUT", key_path(sent.key), body, sent.headers)
            except NoAnswer:
                return
            expect(answer.code == 200, f"PUT {sent.key}", answer)
            sent.answer = answer
            if number > 20:
                await self._scene.sleep(0.05)

    async def _repeat(self, sent: Sent, nodes: list[int]) -> None:
        body = content(sent.key, 1)
        answer = await self._clients[0].insist("PUT", key_path(sent.key), body, sent.headers, nodes)
        expect(answer.value["version"] == 1, f"{sent.key} again", answer)
        first = sent.answer or answer
        same = all(first.headers[name] == answer.headers[name] for name in ("x-zlayer-revision", "x-zlayer-version"))
        expect(same and first.body == answer.body, f"{sent.key} again, which was answered with {first}", answer)
        sent.answer = first


class Wiped:
    """A node whose data directory is gone is refused and says what to do; nothing of the cluster changes."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    async def run(self) -> None:
        """Tell it."""
        scene = self._scene
        leader = await scene.leader()
        wiped = next(node_id for node_id in scene.running if node_id != leader)
        node = scene.cluster.nodes[wiped]
        scene.kill([wiped])
        shutil.rmtree(os.path.join(node.directory, "data"))
        before = await self._cluster(leader)
        for _ in range(2):
            with open(node.log_path, encoding="utf-8") as file:
                told = len(file.readlines())
            scene.cluster.restart(wiped)
            code = await scene.ended(wiped)
            with open(node.log_path, encoding="utf-8") as file:
                lines = [line.strip() for line in file.readlines()[told:]]
            reasons = [line for line in lines if "#critical]" in line]
            if code != 4 or len(reasons) != 1 or "new id" not in reasons[0] or "Traceback" in " ".join(lines):
                raise Violation(f"wiped node {wiped} ended with exit code {code}, and said {lines}")
            after = await self._cluster(leader)
            if after != before:
                raise Violation(f"wiped node {wiped} changed the cluster from {before} to {after}")
            scene.say(f"exit code {code}: {reasons[0].partition('] ')[2]}")

    async def _cluster(self, leader: int) -> dict[str, Any]:
        status = await self._scene.watch.status(leader)
        return {name: status[name] for name in ("role", "term", "members", "joint", "last", "commit", "digest")}


async def run(scene: Scene) -> None:
    """Tell all of it, on one cluster."""
    await scene.start()
    for story in (AtEveryNode, TooLarge, ExactlyOnce):
        await story(scene).run()
    await scene.agree()
    scene.nothing_in_the_logs()
    await Wiped(scene).run()


def main() -> int:
    """Run it by itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    return tell("answers", run, raft=RAFT, seed=options.seed, deadline=600)


if __name__ == "__main__":
    sys.exit(main())
