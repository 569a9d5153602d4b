"""What every story needs: a cluster of processes, calls, chance from one seed, and eyes on all nodes."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, FirstError, gatherResults

from zlayer_consensus.daemon._local_cluster import ClusterFailed, LocalCluster
from zlayer_consensus.daemon._program import run_with_cluster

from ._watch import Watch
from ._wire import Caller, NoAnswer

__all__ = ["CALM", "PATIENCE", "QUICK", "STORAGE", "Scene", "tell", "together"]

# For stories in which elections have to come soon.
QUICK = {"election_timeout_min_ms": 500, "election_timeout_max_ms": 1000, "heartbeat_interval_ms": 100}
# For stories in which none may come, on a machine that is busy with other things, too.
CALM = {"election_timeout_min_ms": 2000, "election_timeout_max_ms": 3000, "heartbeat_interval_ms": 200}
# The smallest segments, so that the log has many, and loses some.
STORAGE = {"segment_bytes": 1 << 20}
# Seconds for what takes a few on an idle machine.
PATIENCE = 120.0


class Scene:
    """One story's cluster.

    :param cluster: nothing started yet.
    :param seed: of all that the story leaves to chance.
    :param say: takes what is worth telling.
    """

    def __init__(self, cluster: LocalCluster, reactor: Any, seed: int, say: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.reactor = reactor
        self.random = Random(seed)
        self.say = say
        self.caller = Caller(self.cluster, reactor)
        self.watch = Watch(self.caller, self.cluster)
        self.paused: set[int] = set()
        """Nodes that are stopped by a signal."""
        self._down: set[int] = set()
        self.over = False
        """Set when whoever works in the background has to come to an end."""

    async def start(self, count: int = 3) -> None:
        """Start the first nodes, and wait until they are ready."""
        self.cluster.start(count)
        await self.cluster.wait_ready(timeout=PATIENCE)

    async def close(self) -> None:
        """End what is left of the story: processes by force, and connections."""
        self.over = True
        self.kill([node.node_id for node in self.cluster.nodes.values() if node.running])
        await self.caller.close()

    async def stop(self, nodes: Collection[int]) -> None:
        """Stop nodes in order.

        :raises ClusterFailed: if one does not end in time, or not as it was told to.
        """
        self._down.update(nodes)
        for node_id in nodes:
            self.cluster.kill(node_id, signal.SIGTERM)
        for node_id in nodes:
            code = await self.ended(node_id)
            if code != -signal.SIGTERM:
                words = self.cluster.nodes[node_id].last_words()
                raise ClusterFailed(f"node {node_id} was told to stop, and ended with exit code {code}: {words}")

    @property
    def running(self) -> list[int]:
        """The nodes that have a process which is not stopped."""
        return [
            node.node_id for node in self.cluster.nodes.values() if node.running and node.node_id not in self.paused
        ]

    def sleep(self, seconds: float) -> Deferred[None]:
        """Return a Deferred that fires after a while."""
        return self.cluster.sleep(seconds)

    async def until(self, condition: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
        """Wait until something holds.

        :raises ClusterFailed: if it does not in time.
        """
        end = time.monotonic() + timeout
        while not condition():
            self.all_well()
            if time.monotonic() > end:
                raise ClusterFailed(f"after {timeout:g} s there was still not: {what}")
            await self.sleep(0.02)

    def all_well(self) -> None:
        """See that no node has ended that was not killed.

        :raises ClusterFailed: if one has.
        """
        for node in self.cluster.nodes.values():
            if node.process is not None and not node.running and node.node_id not in self._down:
                code = node.process.returncode
                raise ClusterFailed(f"node {node.node_id} ended with exit code {code}: {node.last_words()}")

    def expect_end(self, node_id: int) -> None:
        """Let a node end by itself from now on."""
        self._down.add(node_id)

    # What is done to nodes.

    def kill(self, nodes: Collection[int]) -> None:
        """Kill nodes at once, none given time to see the others go."""
        self._down.update(nodes)
        processes = [self.cluster.nodes[node_id].process for node_id in nodes]
        for process in processes:
            assert process is not None
            process.send_signal(signal.SIGKILL)
        for process in processes:
            assert process is not None
            process.wait()
        self.paused.difference_update(nodes)

    def restart(self, nodes: Collection[int]) -> None:
        """Start nodes again, on the data that they have."""
        for node_id in nodes:
            self.cluster.restart(node_id)
        self._down.difference_update(nodes)

    def pause(self, node_id: int) -> None:
        """Stop a node's process; the kernel keeps its connections, and takes new ones."""
        self.cluster.kill(node_id, signal.SIGSTOP)
        self.paused.add(node_id)

    def unpause(self, node_id: int) -> None:
        """Let a stopped process go on."""
        self.cluster.kill(node_id, signal.SIGCONT)
        self.paused.discard(node_id)

    async def ended(self, node_id: int) -> int:
        """Wait until a node has ended by itself, and return its exit code."""
        node = self.cluster.nodes[node_id]
        self.expect_end(node_id)
        await self.until(lambda: not node.running, f"the end of node {node_id}")
        assert node.process is not None
        return int(node.process.returncode)

    async def leader(self, besides: int | None = None) -> int:
        """Wait for a leader, and return its id."""
        return await self.cluster.leader(PATIENCE, besides)

    # What must hold at the end.

    async def agree(self, nodes: Collection[int] | None = None) -> tuple[int, str]:
        """Wait until nodes have applied the same, and compare their digests; return index and digest."""
        end = time.monotonic() + PATIENCE
        while True:
            found = {}
            for node_id in self.running if nodes is None else nodes:
                try:
                    digest = (await self.watch.status(node_id))["digest"] or {"index": -node_id, "value": "replaced"}
                except NoAnswer as error:
                    digest = {"index": -node_id, "value": str(error)}
                found[node_id] = (digest["index"], digest["value"])
            if len({index for index, _ in found.values()}) == 1:
                break
            if time.monotonic() > end:
                raise ClusterFailed(f"the nodes did not come to an equal index: {found}")
            await self.sleep(0.1)
        if len(set(found.values())) != 1:
            raise ClusterFailed(f"the nodes' contents differ: {found}")
        return next(iter(found.values()))

    def nothing_in_the_logs(self, besides: Collection[int] = ()) -> None:
        """See that no node has logged a defect.

        :raises ClusterFailed: if one has.
        """
        for node in self.cluster.nodes.values():
            with open(node.log_path, encoding="utf-8", errors="replace") as file:
                for number, line in enumerate(file, 1):
                    bad = "Traceback" in line or "Unhandled" in line
                    if bad or ("#critical]" in line and node.node_id not in besides):
                        raise ClusterFailed(f"{node.log_path}:{number}: {line.strip()}")


async def together(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Wait for all; the first failure ends the others, and is raised."""
    running = [Deferred.fromCoroutine(each) for each in coroutines]
    try:
        results: list[Any] = await gatherResults(running, consumeErrors=True)
    except FirstError as first:
        first.subFailure.raiseException()
        raise
    finally:
        for each in running:
            each.cancel()
    return results


def tell(
    name: str,
    story: Callable[[Scene], Coroutine[Any, Any, None]],
    *,
    raft: Mapping[str, Any],
    deadline: float,
    seed: int = 1,
    storage: Mapping[str, Any] = STORAGE,
    application: str = "kv",
) -> int:
    """Run a story as a program of its own, and return the exit code; after a failure the directories are kept.

    :param deadline: seconds after which it is given up.
    """
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:7.2f}] {text}", flush=True)

    async def run(cluster: LocalCluster, reactor: Any) -> None:
        scene = Scene(cluster, reactor, seed, say)
        try:
            await story(scene)
        except Exception as error:
            if not isinstance(error, ClusterFailed):
                traceback.print_exc()
            raise
        finally:
            await scene.close()
        say("all of it held")

    print(f"{name}: seed {seed}", flush=True)
    return run_with_cluster(name, run, raft=raft, storage=storage, application=application, deadline=deadline)
