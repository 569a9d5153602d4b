"""Clusters of real ``twistd`` processes: what happens to a node that the cluster does not know, or knows no more."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from zlayer_consensus.daemon._demo_client import SessionClient
from zlayer_consensus.daemon._local_cluster import ClusterFailed, LocalCluster, LocalNode

FAST = {"election_timeout_min_ms": 400, "election_timeout_max_ms": 800, "heartbeat_interval_ms": 100}
# Seconds for what takes a few on an idle machine.
PATIENCE = 60.0


class ClusterTests(TestCase):
    timeout = 180

    async def cluster(self) -> LocalCluster:
        """Starts three nodes, and waits until they are ready."""
        from twisted.internet import reactor

        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        cluster = LocalCluster(directory, reactor, raft=FAST)
        self.addCleanup(cluster.close)
        self.addCleanup(cluster.stop)
        cluster.start(3)
        await cluster.wait_ready(timeout=PATIENCE)
        return cluster

    async def ended(self, cluster: LocalCluster, node: LocalNode) -> int | None:
        """Waits until a node's process has ended by itself; returns its exit code."""
        for _ in range(int(PATIENCE * 20)):
            if not node.running:
                break
            await cluster.sleep(0.05)
        return node.process.returncode if node.process is not None else None

    async def follower(self, cluster: LocalCluster) -> LocalNode:
        leader = await cluster.leader()
        return next(node for node in cluster.nodes.values() if node.node_id != leader)

    async def test_wiped_node(self) -> None:
        """It is refused, says what to do, and can come back under a new id (H-29, J-11)."""
        cluster = await self.cluster()
        client = SessionClient(cluster)
        await client.open()
        await client.put("key", b"value")
        wiped = await self.follower(cluster)
        cluster.kill(wiped.node_id)
        shutil.rmtree(os.path.join(wiped.directory, "data"))
        cluster.restart(wiped.node_id)
        self.assertEqual(await self.ended(cluster, wiped), 4, wiped.last_words())
        self.assertIn("new id", wiped.last_words())

        await client.remove(wiped.node_id)
        added = cluster.add_node()
        await cluster.wait_live([added.node_id], timeout=PATIENCE)
        await client.add_learner(added)
        await client.promote(added.node_id)
        self.assertEqual(await client.get(added.node_id, "key"), (b"value", 1))

    async def test_removed_node(self) -> None:
        """It hears of it, and ends with the exit code that tells a supervisor not to start it again (J-65)."""
        cluster = await self.cluster()
        removed = await self.follower(cluster)
        await SessionClient(cluster).remove(removed.node_id)
        self.assertEqual(await self.ended(cluster, removed), 8, removed.last_words())
        cluster.restart(removed.node_id)
        self.assertEqual(await self.ended(cluster, removed), 8, removed.last_words())

    async def test_stopped_follower(self) -> None:
        """It was away for many election timeouts, and does not unseat the leader when it is back (H-10)."""
        cluster = await self.cluster()
        leader = await cluster.leader()
        term = (await cluster.status(leader))["term"]
        follower = await self.follower(cluster)
        cluster.kill(follower.node_id, signal.SIGSTOP)
        await cluster.sleep(3)
        cluster.kill(follower.node_id, signal.SIGCONT)
        await cluster.sleep(1.5)
        for node_id in cluster.nodes:
            status = await cluster.status(node_id)
            self.assertEqual((status["term"], status["leader_id"]), (term, leader))

    async def test_stopped_leader(self) -> None:
        """It believes that it leads when it is back, and yet never answers a read with an old value."""
        cluster = await self.cluster()
        client = SessionClient(cluster)
        await client.open()
        await client.put("key", b"old")
        leader = await cluster.leader()
        cluster.kill(leader, signal.SIGSTOP)
        # Asked before it is awake: its first act is to read, with what it believes.
        reads = [Deferred.fromCoroutine(cluster.request(leader, "GET", "/v1/kv/key", timeout=40)) for _ in range(8)]
        await cluster.leader(besides=leader)
        other = SessionClient(cluster, avoid=leader)
        await other.open()
        await other.put("key", b"new")
        cluster.kill(leader, signal.SIGCONT)
        for read in reads:
            code, _, body = await read
            self.assertTrue(code in (421, 503) or (code, body) == (200, b"new"), (code, body))

    async def test_every_node_killed(self) -> None:
        """What was acknowledged is there after all of them were killed at once, under load."""
        cluster = await self.cluster()
        acknowledged: dict[str, bytes] = {}
        running = [True]

        async def write(name: int) -> None:
            client = SessionClient(cluster)
            await client.open()
            number = 0
            while running:
                number += 1
                key, value = f"{name}/{number}", os.urandom(100)
                try:
                    await client.put(key, value)
                except ClusterFailed:
                    return
                acknowledged[key] = value

        writers: list[Any] = [Deferred.fromCoroutine(write(name)) for name in range(8)]
        while len(acknowledged) < 300:
            await cluster.sleep(0.05)
        for node_id in cluster.nodes:
            cluster.kill(node_id, signal.SIGKILL)
        running.clear()
        for writer in writers:
            await writer
        for node_id in cluster.nodes:
            cluster.restart(node_id)
        await cluster.wait_ready(timeout=PATIENCE)
        client = SessionClient(cluster)
        for key, value in acknowledged.items():
            self.assertEqual(await client.get(1, key), (value, 1))
