"""``make demo``: a cluster of real processes takes in the standard library, loses its leader, and loses nothing else.

Ends with 0 if every check held; else with 1 and the reason, and keeps the nodes' directories for a look.
"""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred, FirstError, gatherResults

from ..config import ConsensusConfig
from ._demo_client import AckClock, Progress, SessionClient
from ._local_cluster import ClusterFailed, LocalCluster
from ._program import run_with_cluster

__all__ = ["main"]

_NODES = 3
_WRITERS = 8
_READERS = 8
# Seconds for everything.
_DEADLINE = 300.0
# Seconds in which a node must have heard that it was removed.
_FAREWELL = 20.0


def standard_library(limit: int) -> tuple[dict[str, str], int]:
    """Return every ``.py`` file of the standard library by its path in it, and how many were larger than ``limit``.

    Links are not followed, and what was installed beside the library is left out.
    """
    root = sysconfig.get_path("stdlib")
    found, skipped = {}, 0
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in {"site-packages", "dist-packages", "__pycache__"})
        for name in sorted(files):
            path = os.path.join(directory, name)
            if not name.endswith(".py") or os.path.islink(path):
                continue
            if os.path.getsize(path) > limit:
                skipped += 1
            else:
                found[os.path.relpath(path, root)] = path
    return found, skipped


class Demo:
    """The story, chapter by chapter. Every chapter raises ``ClusterFailed`` if something is not as it must be."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._now = time.monotonic
        # An entry holds the key and some framing beside the content.
        self._files, self._skipped = standard_library(ConsensusConfig().max_proposal_bytes - 4096)
        self._admin = SessionClient(cluster)
        self._acks = AckClock(self._now)

    async def run(self) -> None:
        """Tell it."""
        await self._begin()
        await self._store()
        added = await self._grow()
        await self._shrink(besides=added)
        await self._read_back()
        await self._compare_digests()

    async def _begin(self) -> None:
        with _chapter(f"Starting {_NODES} nodes"):
            self._cluster.start(_NODES)
            await self._cluster.wait_ready()
            leader = await self._cluster.leader()
        for node in self._cluster.nodes.values():
            print(f"  node {node.node_id}: clients at {node.url}, log in {node.log_path}")
        print(f"  node {leader} leads")

    async def _store(self) -> None:
        sizes = sum(map(os.path.getsize, self._files.values()))
        print(f"Storing {len(self._files)} files of the standard library, {sizes / 1e6:.1f} MB, by {_WRITERS} writers")
        if self._skipped:
            print(f"  {self._skipped} larger than a proposal may be are left out")
        progress = Progress("stored", len(self._files), sys.stdout, self._now)
        waiting = iter(self._files.items())
        half = Countdown(len(self._files) // 2)
        writers = [SessionClient(self._cluster) for _ in range(_WRITERS)]
        await _all([writer.open() for writer in writers])
        self._acks = AckClock(self._now)

        async def write(writer: SessionClient) -> None:
            for key, path in waiting:
                content = _content(path)
                await writer.put(key, content)
                self._acks.acknowledged()
                progress.advance(len(content))
                half.count()

        await _all([*map(write, writers), self._fail_over(half, progress)])
        retries = sum(writer.retries for writer in writers)
        print(f"  all acknowledged; {retries} requests had to be sent again")

    async def _fail_over(self, half: Countdown, progress: Progress) -> None:
        await half.reached
        leader = await self._cluster.leader()
        self._acks.longest_gap = 0.0
        self._cluster.kill(leader, signal.SIGKILL)
        progress.note(f"killed node {leader}, the leader, with SIGKILL")
        successor = await self._cluster.leader(besides=leader)
        progress.note(f"node {successor} leads")
        killed = self._acks.last
        while self._acks.last == killed:
            await self._cluster.sleep(0.05)
        progress.note(f"writes stood still for {self._acks.longest_gap:.2f} s")
        self._cluster.restart(leader)
        await self._cluster.wait_ready([leader])
        progress.note(f"node {leader} is back, on the data that it had")

    async def _grow(self) -> int:
        with _chapter("Adding a fourth node as learner, and promoting it"):
            node = self._cluster.add_node()
            await self._cluster.wait_live([node.node_id])
            await self._admin.add_learner(node)
            await self._cluster.wait_ready([node.node_id])
            await self._admin.promote(node.node_id)
        print(f"  voters are now {await self._admin.voters()}")
        return node.node_id

    async def _shrink(self, besides: int) -> None:
        leader = await self._cluster.leader()
        removed = next(each for each in self._cluster.nodes if each not in (leader, besides))
        with _chapter(f"Removing node {removed}"):
            await self._admin.remove(removed)
        print(f"  voters are now {await self._admin.voters()}")
        node = self._cluster.nodes[removed]
        deadline = self._now() + _FAREWELL
        while node.running and self._now() < deadline:
            await self._cluster.sleep(0.1)
        if node.running or node.process is None or node.process.returncode != 8:
            raise ClusterFailed(f"node {removed} was removed, but did not end with exit code 8: {node.last_words()}")
        print(f"  it ended by itself, with exit code 8: {node.last_words().partition('] ')[2]}")

    def _remaining(self) -> list[int]:
        return [node.node_id for node in self._cluster.nodes.values() if node.running]

    async def _read_back(self) -> None:
        remaining = self._remaining()
        print(f"Reading every key back, linearizably, from each of the nodes {', '.join(map(str, remaining))}")
        for node_id in remaining:
            progress = Progress(f"node {node_id}: read", len(self._files), sys.stdout, self._now)
            waiting = iter(self._files.items())

            async def read(
                node_id: int = node_id, progress: Progress = progress, waiting: Iterator[tuple[str, str]] = waiting
            ) -> None:
                client = SessionClient(self._cluster)
                for key, path in waiting:
                    content, version = await client.get(node_id, key)
                    if content != _content(path):
                        raise ClusterFailed(f"node {node_id} has another content for {key}")
                    if version != 1:
                        raise ClusterFailed(f"at node {node_id}, {key} was written {version} times")
                    progress.advance(len(content))

            await _all([read() for _ in range(_READERS)])
        print("  every file is there, is what was stored, and was written once")

    async def _compare_digests(self) -> None:
        """Compare what the nodes say of their whole content, at an equal index."""
        deadline = self._now() + 30
        while True:
            digests = {}
            for node_id in self._remaining():
                digest = (await self._cluster.status(node_id))["digest"]
                digests[node_id] = (digest["index"], digest["value"])
            if len({index for index, _ in digests.values()}) == 1:
                break
            if self._now() > deadline:
                raise ClusterFailed(f"the nodes did not come to an equal index: {digests}")
            await self._cluster.sleep(0.2)
        if len(set(digests.values())) != 1:
            raise ClusterFailed(f"the nodes' contents differ: {digests}")
        index, value = next(iter(digests.values()))
        print(f"Equal digests on all of them at index {index}: {value}")


class Countdown:
    """A Deferred, ``reached``, that fires after a number of counts."""

    def __init__(self, number: int) -> None:
        self.reached: Deferred[None] = Deferred()
        self._left = number

    def count(self) -> None:
        """Count one."""
        self._left -= 1
        if self._left == 0:
            self.reached.callback(None)


@contextmanager
def _chapter(title: str) -> Iterator[None]:
    print(title, "...", flush=True)
    began = time.monotonic()
    yield
    print(f"  done in {time.monotonic() - began:.1f} s")


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


async def _all(coroutines: list[Any]) -> None:
    """Wait for all; the first failure gives the others up, and is raised."""
    running = [Deferred.fromCoroutine(each) for each in coroutines]
    try:
        await gatherResults(running, consumeErrors=True)
    except FirstError as first:
        for each in running:
            each.cancel()
        first.subFailure.raiseException()


async def _tell(cluster: LocalCluster, reactor: Any) -> None:
    began = time.monotonic()
    await Demo(cluster).run()
    cluster.stop()
    print(f"Stopped the nodes. Nothing was lost; it took {time.monotonic() - began:.0f} s.", flush=True)


def main() -> int:
    """Run the demo, and return the exit code."""
    return run_with_cluster("demo", _tell, deadline=_DEADLINE)


if __name__ == "__main__":
    sys.exit(main())
