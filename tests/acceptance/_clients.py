"""Clients that know what they may see: each key has one writer, which counts, so that every answer can be judged."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import attrs

from zlayer_consensus.daemon._local_cluster import ClusterFailed

from ._watch import Violation
from ._wire import Answer, NoAnswer

if TYPE_CHECKING:
    from ._scene import Scene

__all__ = ["AGAIN", "Client", "Register", "content", "key_path", "number_in"]

# Statuses after which the same write, sent again in its session, may succeed.
AGAIN = frozenset({421, 429, 502, 503, 504})
# Seconds within which a write has to be acknowledged, however often it takes.
_DEADLINE = 180.0


def key_path(key: str) -> str:
    """Return where a key is."""
    return "/v1/kv/" + quote(key, safe="")


def content(key: str, number: int, size: int = 100) -> bytes:
    """Return the one value that belongs to a key and a number."""
    head = b"%d %s " % (number, key.encode())
    seed = sha256(head).digest()
    return head + (seed * (size // len(seed) + 1))[: max(0, size - len(head))]


@attrs.define(eq=False)
class Register:
    """One key. Its writer sets it to the contents 1, 2, 3 and so on; so its version is the number that it holds.

    :param issued: the last number that was sent.
    :param acknowledged: the last number that was acknowledged.
    :param seen: the greatest number that any linearizable read has shown, at whichever node.
    """

    key: str
    issued: int = 0
    acknowledged: int = 0
    seen: int = 0

    @property
    def floor(self) -> int:
        """The least that a linearizable read which begins now may show."""
        return max(self.acknowledged, self.seen)

    def judge(self, number: int, version: int, value: bytes, floor: int, where: str) -> None:
        """Judge what a linearizable read showed that began when ``floor`` was the floor.

        :raises Violation: if it shows what it must not.
        """
        if number < floor:
            raise Violation(f"{where}: {self.key} is {number}, when {floor} had been acknowledged or seen before")
        self.judge_stale(number, version, value, where)
        self.seen = max(self.seen, number)

    def judge_stale(self, number: int, version: int, value: bytes, where: str) -> None:
        """Judge what a read showed that may be old.

        :raises Violation: if it was never so.
        """
        if number > self.issued:
            raise Violation(f"{where}: {self.key} is {number}, but {self.issued} is the last that was sent")
        if version != number:
            raise Violation(f"{where}: {self.key} was set {version} times to get to {number}")
        if number and value != content(self.key, number, len(value)):
            raise Violation(f"{where}: {self.key} holds what nobody wrote: {value[:80]!r}")


def number_in(value: bytes) -> int:
    """Return the number in a content; -1 if it is none."""
    number = value.partition(b" ")[0]
    return int(number) if number.isdigit() else -1


class Client:
    """One session: writes that are sent until they are acknowledged, and reads that are judged.

    :param avoid: nodes that are not asked.
    :param patience: seconds after which an answer is not waited for any more.
    """

    def __init__(self, scene: Scene, avoid: Collection[int] = (), patience: float = 8.0) -> None:
        self._scene = scene
        self._avoid = frozenset(avoid)
        self._patience = patience
        self._session = 0
        self.sequence = 0
        self.retries = 0
        self.refusal = ""
        """The status and code with which the last read was refused."""

    async def open(self) -> None:
        """Open the session."""
        answer = await self.insist("POST", "/v1/sessions", None, {})
        self._session = answer.value["session"]

    def headers(self) -> dict[str, str]:
        """The headers of the present write."""
        return {"X-ZLayer-Session": str(self._session), "X-ZLayer-Sequence": str(self.sequence)}

    async def write(self, method: str, path: str, body: bytes, **headers: str) -> Answer:
        """Make a write, once, however often it has to be sent and to whom."""
        self.sequence += 1
        return await self.insist(method, path, body, {**headers, **self.headers()})

    async def post(self, path: str, value: Any) -> Answer:
        """Make a write that is JSON."""
        return await self.write("POST", path, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    async def put(self, register: Register, size: int = 100) -> None:
        """Set a key to its next content."""
        number = register.issued = register.issued + 1
        answer = await self.write("PUT", key_path(register.key), content(register.key, number, size))
        if answer.value["version"] != number:
            raise Violation(f"{register.key} was set to {number}, and that was its change {answer.value['version']}")
        register.acknowledged = number

    async def insist(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        only: Collection[int] | None = None,
    ) -> Answer:
        """Send a request until it is answered; what may be done twice needs the headers of a session.

        :param only: the nodes that are asked; by default any that runs.
        """
        end = time.monotonic() + _DEADLINE
        while True:
            problem = "no node runs"
            nodes = [each for each in self._scene.running if each not in self._avoid and (not only or each in only)]
            if nodes:
                node_id = self._scene.random.choice(nodes)
                try:
                    answer = await self._scene.caller.call(node_id, method, path, body, headers, self._patience)
                except NoAnswer as error:
                    problem = f"node {node_id}: {error}"
                else:
                    if answer.code < 400:
                        return answer
                    problem = f"node {node_id}: {answer.code} {answer.body.decode(errors='replace').strip()}"
                    if answer.code not in AGAIN:
                        raise ClusterFailed(f"{method} {path} of session {self._session}: {problem}")
            self._scene.all_well()
            self.retries += 1
            if time.monotonic() > end:
                raise ClusterFailed(f"{method} {path} was not done within {_DEADLINE:g} s; last, {problem}")
            await self._scene.sleep(0.05)

    async def read(self, register: Register, node_id: int) -> None:
        """Read a key linearizably from one node, however often it has to be asked, and judge what it says."""
        end = time.monotonic() + _DEADLINE
        while True:
            try:
                if await self.get(register, node_id, timeout=30):
                    return
                problem = self.refusal
            except NoAnswer as error:
                problem = str(error)
            self._scene.all_well()
            if time.monotonic() > end:
                raise ClusterFailed(f"node {node_id} did not read {register.key} for {_DEADLINE:g} s; last, {problem}")
            await self._scene.sleep(0.1)

    async def get(self, register: Register, node_id: int, query: str = "", timeout: float = 8.0) -> bool:
        """Read a key from one node, once, and judge what it says; return whether it said something.

        :raises NoAnswer: if it does not answer.
        """
        floor = register.floor
        answer = await self._scene.caller.call(node_id, "GET", key_path(register.key) + query, timeout=timeout)
        where = f"node {node_id}, GET{query}"
        if answer.code == 200:
            version = int(answer.headers["x-zlayer-version"])
        elif answer.code == 404:
            version = 0
        elif answer.code in AGAIN - {504}:
            self.refusal = f"{answer.code} {answer.error}"
            return False
        else:
            raise ClusterFailed(f"{where}: {register.key}: {answer.code} {answer.body.decode(errors='replace')}")
        value = answer.body if version else b"0"
        if "stale" in query:
            register.judge_stale(number_in(value), version, value, where)
        else:
            register.judge(number_in(value), version, value, floor, where)
        return True
