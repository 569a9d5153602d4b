"""A cluster of real ``twistd`` processes on this machine, for the demo, for trying things out, and for tests.

Everything listens on 127.0.0.1. Only processes that were started here are ever signalled.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import attrs
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers

__all__ = ["TWISTD", "ClusterFailed", "LocalCluster", "LocalNode", "child_environment", "free_ports"]

_HOST = "127.0.0.1"
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# The twistd command, whatever the environment's scripts are called.
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]


class ClusterFailed(Exception):
    """A node did not do what it should; the text says which and what."""


@attrs.define
class LocalNode:
    """One node: its place, its addresses, and its process while it has one."""

    node_id: int
    directory: str
    peer_address: str
    client_address: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where its client interface is."""
        return f"http://{self.client_address}"

    @property
    def running(self) -> bool:
        """Whether its process is there (it may be stopped by a signal)."""
        return self.process is not None and self.process.poll() is None

    @property
    def log_path(self) -> str:
        """Where its output goes."""
        return os.path.join(self.directory, "log.txt")

    def last_words(self) -> str:
        """Return the line of its output that says why it ended; without one, the last line."""
        try:
            with open(self.log_path, encoding="utf-8", errors="replace") as file:
                lines = file.read().split("\n")
        except OSError:
            return ""
        told = [line for line in lines if line.strip()]
        reasons = [line for line in told if "#critical]" in line]
        return (reasons or told or [""])[-1]


class LocalCluster:
    """Starts, kills and watches nodes.

    :param directory: where the nodes live, each in a directory of its own; it must exist.
    :param reactor: for the calls of the client interface; they need it to run, the others do not.
    :param raft: settings for every node's ``[raft]`` table.
    :param storage: settings for every node's ``[storage]`` table.
    :param application: what the nodes run.
    """

    def __init__(
        self,
        directory: str,
        reactor: Any,
        *,
        raft: Mapping[str, Any] | None = None,
        storage: Mapping[str, Any] | None = None,
        application: str = "kv",
    ) -> None:
        self.nodes: dict[int, LocalNode] = {}
        self.directory = directory
        self._reactor = reactor
        self._tables = {"raft": dict(raft or {}), "storage": dict(storage or {})}
        self._application = application
        self._pool = HTTPConnectionPool(reactor)
        # Below the idle timeout of the nodes' sites, so that no request meets a connection that is being closed.
        self._pool.cachedConnectionTimeout = 20
        self._pool.retryAutomatically = False
        self._pool.maxPersistentPerHost = 64
        self.http = HTTPClient(Agent(reactor, pool=self._pool, connectTimeout=5))

    def start(self, count: int) -> None:
        """Start the first ``count`` nodes, which begin a cluster together."""
        self.prepare(count)
        for node_id in self.nodes:
            self.restart(node_id)

    def prepare(self, count: int) -> None:
        """Give the first ``count`` nodes their places, addresses and configurations, and start none."""
        ports = free_ports(2 * count)
        for at in range(count):
            self._make(at + 1, ports[2 * at], ports[2 * at + 1])
        rows = [
            f'    {{ id = {node.node_id}, peer = "{node.peer_address}", client = "{node.client_address}" }},'
            for node in self.nodes.values()
        ]
        for node in self.nodes.values():
            self._write_config(node, "\n".join(["members = [", *rows, "]"]))

    def add_node(self) -> LocalNode:
        """Start one more node, which asks the running ones for their cluster. The caller makes it a member."""
        peer, client = free_ports(2)
        join = [node.peer_address for node in self.nodes.values() if node.running]
        node = self._make(max(self.nodes) + 1, peer, client)
        self._write_config(node, f"join = {json.dumps(join)}")
        self.restart(node.node_id)
        return node

    def restart(self, node_id: int) -> None:
        """Start a node's process, on the data that it has."""
        node = self.nodes[node_id]
        if node.running:
            raise ClusterFailed(f"node {node_id} runs already")
        arguments = ["-n", "--pidfile=", "zconsensus", "--config", "node.toml"]
        with open(node.log_path, "ab") as output:
            node.process = subprocess.Popen(
                [*TWISTD, *arguments],
                cwd=node.directory,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us, who then stop the nodes in order.
                start_new_session=True,
            )

    def kill(self, node_id: int, sig: int = signal.SIGKILL) -> None:
        """Send a signal to a node's process; after SIGKILL, wait until it is gone."""
        process = self.nodes[node_id].process
        if process is None or process.poll() is not None:
            raise ClusterFailed(f"node {node_id} does not run")
        process.send_signal(sig)
        if sig == signal.SIGKILL:
            process.wait()

    def stop(self, timeout: float = 20.0) -> dict[int, int]:
        """Stop every node: SIGTERM, and SIGKILL for who is not gone in time. Return the exit codes.

        It blocks, so that it also works while the interpreter exits.
        """
        processes = {node.node_id: node.process for node in self.nodes.values() if node.process is not None}
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                # Without effect on a process that is not stopped.
                process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + timeout
        codes = {}
        for node_id, process in processes.items():
            try:
                codes[node_id] = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                codes[node_id] = process.wait()
        return codes

    def close(self) -> Deferred[None]:
        """Close the connections of the client."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    async def request(
        self,
        node_id: int,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one request to a node's client interface; return status, headers and body.

        :raises Exception: whatever treq raises if there is no answer.
        """
        # Not treq's own timeout: what that raises cannot be told from a cancellation by our caller.
        asked = self.http.request(
            method,
            self.nodes[node_id].url + path,
            data=body,
            headers=Headers({name: [value] for name, value in (headers or {}).items()}),
            reactor=self._reactor,
            allow_redirects=False,
            unbuffered=True,
        )
        response = await asked.addTimeout(timeout, self._reactor)
        names = {name.decode().lower(): values[0].decode() for name, values in response.headers.getAllRawHeaders()}
        return response.code, names, await response.content().addTimeout(timeout, self._reactor)

    async def status(self, node_id: int, timeout: float = 5.0) -> dict[str, Any]:
        """Return what a node says of itself.

        :raises ClusterFailed: if it answers with an error.
        """
        code, _, body = await self.request(node_id, "GET", "/v1/status", timeout=timeout)
        if code != 200:
            raise ClusterFailed(f"node {node_id} answered {code}: {body.decode(errors='replace')}")
        status: dict[str, Any] = json.loads(body)
        return status

    async def wait_ready(self, node_ids: Iterable[int] | None = None, timeout: float = 30.0) -> None:
        """Wait until nodes are ready: each has a leader, and has applied what it knew when it started.

        :raises ClusterFailed: if one is not in time, or its process ends.
        """
        await self._wait_for("/ready", node_ids, timeout)

    async def wait_live(self, node_ids: Iterable[int], timeout: float = 30.0) -> None:
        """Wait until nodes have recovered their data; they need not belong to a cluster yet.

        :raises ClusterFailed: if one is not in time, or its process ends.
        """
        await self._wait_for("/health", node_ids, timeout)

    async def _wait_for(self, path: str, node_ids: Iterable[int] | None, timeout: float) -> None:
        deadline = self._reactor.seconds() + timeout
        for node_id in list(self.nodes if node_ids is None else node_ids):
            answer = "nothing"
            while True:
                self._expect_running(node_id)
                try:
                    code, _, body = await self.request(node_id, "GET", path, timeout=5)
                except CancelledError:
                    raise
                except Exception as error:
                    # Not listening yet, or anything else that a starting process does to a connection.
                    answer = type(error).__name__
                else:
                    if code == 200:
                        break
                    answer = f"{code} {body.decode(errors='replace')}"
                if self._reactor.seconds() > deadline:
                    raise ClusterFailed(f"node {node_id}: no 200 at {path} within {timeout:g} s; last: {answer}")
                await self.sleep(0.1)

    async def leader(self, timeout: float = 30.0, besides: int | None = None) -> int:
        """Wait until a running node leads, and return its id.

        :param besides: a node that is not meant: a leader of before may not know yet that it is none any more.
        :raises ClusterFailed: if there is none in time.
        """
        deadline = self._reactor.seconds() + timeout
        while True:
            leading: list[tuple[int, int]] = []
            for node in self.nodes.values():
                if not node.running or node.node_id == besides:
                    continue
                try:
                    status = await self.status(node.node_id, timeout=2)
                except CancelledError:
                    raise
                except Exception:
                    # Starting, stopping or stalled: then it does not count as the leader.
                    continue
                if status["role"] == "leader":
                    leading.append((status["term"], node.node_id))
            if leading:
                return max(leading)[1]
            if self._reactor.seconds() > deadline:
                raise ClusterFailed(f"no node leads after {timeout:g} s")
            await self.sleep(0.1)

    def sleep(self, seconds: float) -> Deferred[None]:
        """Return a Deferred that fires after some time."""
        return deferLater(self._reactor, seconds)

    def _expect_running(self, node_id: int) -> None:
        node = self.nodes[node_id]
        if not node.running:
            code = node.process.poll() if node.process else None
            raise ClusterFailed(f"node {node_id} ended with exit code {code}; its last line: {node.last_words()}")

    def _make(self, node_id: int, peer: int, client: int) -> LocalNode:
        directory = os.path.join(self.directory, f"node{node_id}")
        os.makedirs(directory, exist_ok=True)  # it may be a file system of its own
        node = self.nodes[node_id] = LocalNode(node_id, directory, f"{_HOST}:{peer}", f"{_HOST}:{client}")
        return node

    def _write_config(self, node: LocalNode, cluster: str) -> None:
        ports = [address.rpartition(":")[2] for address in (node.peer_address, node.client_address)]
        lines = [
            "[node]",
            f"id = {node.node_id}",
            'data_dir = "data"',
            f"application = {json.dumps(self._application)}",
            "[listen]",
            f'peer = "tcp:{ports[0]}:interface={_HOST}"',
            f'client = "tcp:{ports[1]}:interface={_HOST}"',
            "[advertise]",
            f'peer = "{node.peer_address}"',
            f'client = "{node.client_address}"',
            "[cluster]",
            cluster,
        ]
        for name, table in self._tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        with open(os.path.join(node.directory, "node.toml"), "w", encoding="utf-8") as file:
            file.write("\n".join([*lines, ""]))


def child_environment() -> dict[str, str]:
    """Return an environment in which a child finds this very package, and thereby the plugin."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))}


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on.

    They lie below the range from which the kernel takes the ports of outgoing connections: a node that is killed and
    started again would else sometimes find its port taken by a client's connection.
    """
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
            below = int(file.read().split()[0])
    except OSError:
        below = 32768
    candidates = range(max(1024, below - 12_000), below) if below > 2048 else range(1)
    found: list[int] = []
    sockets = []
    try:
        for _ in range(1000):
            if len(found) == count:
                return found
            port = random.choice(candidates)
            sockets.append(probe := socket.socket())
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
            found.append(probe.getsockname()[1])
    finally:
        for probe in sockets:
            probe.close()
    raise ClusterFailed(f"no {count} free ports on {_HOST}")
