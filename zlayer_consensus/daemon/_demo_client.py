"""What the demo does over HTTP: writes that survive a fail-over, reads, and the progress that it shows meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TextIO
from urllib.parse import quote

from twisted.internet.defer import CancelledError

from ._local_cluster import ClusterFailed, LocalCluster, LocalNode

__all__ = ["AckClock", "Progress", "SessionClient", "key_path"]

# Statuses after which the same request, sent again, may succeed.
_AGAIN = frozenset({421, 429, 503, 504})
# Seconds for a change of the membership, catching up included.
_CHANGE_TIMEOUT = 60.0


def key_path(key: str) -> str:
    """Return the path of a key in the client interface."""
    return "/v1/kv/" + quote(key, safe="")


class AckClock:
    """Knows when writes were acknowledged, and the longest time between two of them."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.last = now()
        self.longest_gap = 0.0

    def acknowledged(self) -> None:
        """Note that one more was."""
        now = self._now()
        self.longest_gap = max(self.longest_gap, now - self.last)
        self.last = now


class SessionClient:
    """One client session: every write carries its sequence, so that a retry is answered, not repeated.

    :param cluster: whose nodes to ask; those that run, one after the other.
    :param deadline: seconds after which a request that nobody answers is given up.
    :param avoid: a node that is not asked.
    """

    def __init__(self, cluster: LocalCluster, deadline: float = 60.0, avoid: int | None = None) -> None:
        self._cluster = cluster
        self._deadline = deadline
        self._avoid = avoid
        self._session = ""
        self._sequence = 0
        self._node_id = 0
        self.retries = 0

    async def open(self) -> None:
        """Register the session.

        :raises ClusterFailed: if it is refused, or nobody answers.
        """
        _, body = await self._ask("POST", "/v1/sessions")
        self._session = str(json.loads(body)["session"])

    async def put(self, key: str, value: bytes) -> None:
        """Store a value, exactly once.

        :raises ClusterFailed: if it is refused, or nobody answers.
        """
        self._sequence += 1
        headers = {"X-ZLayer-Session": self._session, "X-ZLayer-Sequence": str(self._sequence)}
        await self._ask("PUT", key_path(key), value, headers)

    async def voters(self) -> list[int]:
        """Return the ids of the voters, as the node that is asked knows them."""
        _, body = await self._ask("GET", "/v1/members")
        return [member["id"] for member in json.loads(body)["members"] if member["role"] == "voter"]

    async def add_learner(self, node: LocalNode) -> None:
        """Make a node a member without a vote."""
        value = {
            "id": node.node_id,
            "peer_address": node.peer_address,
            "client_address": node.client_address,
            "role": "learner",
        }
        await self._change("POST", "/v1/members", value)

    async def promote(self, node_id: int) -> None:
        """Make a learner a voter; the answer comes when it has caught up and is one."""
        await self._change("POST", f"/v1/members/{node_id}/promote", {})

    async def remove(self, node_id: int) -> None:
        """Remove a member."""
        await self._change("DELETE", f"/v1/members/{node_id}", None)

    async def _change(self, method: str, path: str, value: Any) -> None:
        body = None if value is None else json.dumps(value).encode()
        headers = {"Content-Type": "application/json"}
        await self._ask(method, f"{path}?timeout={_CHANGE_TIMEOUT:g}", body, headers, timeout=_CHANGE_TIMEOUT + 5)

    async def get(self, node_id: int, key: str) -> tuple[bytes, int]:
        """Read a value linearizably from one node; return it and how often it was written.

        :raises ClusterFailed: if it is not there, or the node does not answer.
        """
        headers, body = await self._ask("GET", key_path(key), only=node_id)
        return body, int(headers["x-zlayer-version"])

    async def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        only: int | None = None,
        timeout: float = 8.0,
    ) -> tuple[dict[str, str], bytes]:
        began = time.monotonic()
        while True:
            node_id = self._node_id if only is None else only
            node = self._cluster.nodes.get(node_id)
            if node is not None and node.running:
                try:
                    code, found, answer = await self._cluster.request(
                        node_id, method, path, body=body, headers=headers, timeout=timeout
                    )
                except CancelledError:
                    raise
                except Exception as error:
                    # Killed, not listening yet, or too slow: within a session it is safe to ask again, and elsewhere.
                    problem = f"{type(error).__name__}: {error}"
                else:
                    if code < 400:
                        return found, answer
                    problem = f"{code} {answer.decode(errors='replace')}"
                    if code not in _AGAIN:
                        raise ClusterFailed(f"{method} {path} at node {node_id}: {problem}")
                self.retries += 1
                if time.monotonic() - began > self._deadline:
                    raise ClusterFailed(f"{method} {path} at node {node_id} after {self._deadline:g} s: {problem}")
                await self._cluster.sleep(0.05)
            elif only is not None:
                raise ClusterFailed(f"node {node_id} does not run")
            elif not any(each.running for each in self._cluster.nodes.values()):
                raise ClusterFailed("no node runs any more")
            self._node_id = self._next(node_id)

    def _next(self, node_id: int) -> int:
        nodes = self._cluster.nodes.values()
        running = sorted(each.node_id for each in nodes if each.running and each.node_id != self._avoid)
        return next((each for each in running if each > node_id), running[0] if running else 0)


class Progress:
    """A bar on a terminal; elsewhere one line every few seconds."""

    _WIDTH = 30
    _EVERY = 3.0

    def __init__(self, title: str, total: int, stream: TextIO, now: Callable[[], float]) -> None:
        self._title = title
        self._total = total
        self._stream = stream
        self._now = now
        self._bar = stream.isatty()
        self._began = self._shown = now()
        self._done = self._bytes = 0

    def advance(self, size: int) -> None:
        """One more is done, of ``size`` bytes."""
        self._done += 1
        self._bytes += size
        if self._now() - self._shown >= (0.1 if self._bar else self._EVERY) or self._done == self._total:
            self._show()

    def note(self, text: str) -> None:
        """Print a line of its own."""
        if self._bar:
            self._stream.write("\r\x1b[K")
        self._stream.write(f"  {text}\n")
        if self._bar and self._done < self._total:
            self._show()
        self._stream.flush()

    def _show(self) -> None:
        now = self._now()
        self._shown = now
        rate = self._bytes / 1e6 / max(now - self._began, 1e-9)
        text = f"{self._title} {self._done}/{self._total}, {self._bytes / 1e6:.1f} MB, {rate:.1f} MB/s"
        if self._bar:
            filled = self._WIDTH * self._done // max(self._total, 1)
            end = "\n" if self._done == self._total else ""
            self._stream.write(f"\r\x1b[K  [{'#' * filled}{'.' * (self._WIDTH - filled)}] {text}{end}")
        else:
            self._stream.write(f"  {text}\n")
        self._stream.flush()
