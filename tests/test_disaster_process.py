"""Real nodes that lost something: a log that is repaired, a majority that is gone for good, a cluster from a backup."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.cli_kit import flip, records, segments
from zlayer_consensus.cli import program
from zlayer_consensus.daemon._local_cluster import LocalCluster, child_environment
from zlayer_consensus.errors import ClusterMismatch
from zlayer_consensus.network import Envelope, HttpNetwork
from zlayer_consensus.raft import LogId, VoteRequest

FAST = {"election_timeout_min_ms": 400, "election_timeout_max_ms": 800, "heartbeat_interval_ms": 100}
STORAGE = {"segment_bytes": 1 << 20}
# Seconds for what takes a few on an idle machine.
PATIENCE = 60.0


class DisasterTestCase(TestCase):
    timeout = 300

    def new_cluster(self, **raft: Any) -> LocalCluster:
        """Makes a cluster that has no nodes yet."""
        from twisted.internet import reactor

        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        cluster = LocalCluster(directory, reactor, raft={**FAST, **raft}, storage=STORAGE)
        self.addCleanup(cluster.close)
        self.addCleanup(cluster.stop)
        return cluster

    async def cluster(self, count: int) -> LocalCluster:
        """Starts nodes, and waits until they are ready."""
        cluster = self.new_cluster()
        cluster.start(count)
        await cluster.wait_ready(timeout=PATIENCE)
        return cluster

    @staticmethod
    def data(cluster: LocalCluster, node_id: int) -> Path:
        return Path(cluster.nodes[node_id].directory) / "data"

    async def put(self, cluster: LocalCluster, node_id: int, keys: Iterable[str]) -> int:
        """Puts keys, each with itself as its value; returns the last revision."""
        revision = 0
        for key in keys:
            code, _, body = await cluster.request(node_id, "PUT", f"/v1/kv/{key}", body=key.encode())
            self.assertEqual(200, code, body)
            revision = json.loads(body)["revision"]
        return revision

    async def missing(self, cluster: LocalCluster, node_id: int, keys: Iterable[str]) -> list[str]:
        """Names the keys that a linearizable read does not find."""
        gone = []
        for key in keys:
            code, _, body = await cluster.request(node_id, "GET", f"/v1/kv/{key}")
            if code == 404:
                gone.append(key)
            else:
                self.assertEqual((200, key.encode()), (code, body))
        return gone

    async def agree(self, cluster: LocalCluster, node_ids: Iterable[int]) -> dict[str, Any]:
        """Waits until nodes have applied the same, and returns one's status."""
        end = time.monotonic() + PATIENCE
        while True:
            seen = [await cluster.status(node_id) for node_id in node_ids]
            if len({(each["applied"], each["last"]["index"]) for each in seen}) == 1:
                self.assertEqual(1, len({each["digest"]["value"] for each in seen}))
                return seen[0]
            self.assertLess(time.monotonic(), end, seen)
            await cluster.sleep(0.05)

    def run_cli(self, *arguments: object, exit_code: int = 0) -> list[dict[str, Any]]:
        """Runs ``zconsensus`` with ``--json``, and returns its objects."""
        found = CliRunner().invoke(program, [*map(str, arguments), "--json"])
        self.assertEqual(exit_code, found.exit_code, found.output)
        return [json.loads(line) for line in found.stdout.splitlines()]

    async def logged(self, cluster: LocalCluster, node_id: int, text: str) -> None:
        """Waits until a node has logged something."""
        end = time.monotonic() + PATIENCE
        while text not in Path(cluster.nodes[node_id].log_path).read_text(errors="replace"):
            self.assertLess(time.monotonic(), end, f"node {node_id} has not logged {text!r}")
            await cluster.sleep(0.05)


class RepairedNodeTests(DisasterTestCase):
    """A node that refuses to start, is repaired, starts, and gets back from the others what was cut."""

    async def damaged(self, cluster: LocalCluster, keys: list[str], damage: Callable[[Path], None]) -> int:
        """Writes, kills a follower, damages its data, and sees that it refuses to start; returns which it is."""
        await self.put(cluster, 1, keys)
        await self.agree(cluster, cluster.nodes)
        leader = await cluster.leader()
        victim = next(node_id for node_id in cluster.nodes if node_id != leader)
        cluster.kill(victim)
        damage(self.data(cluster, victim))
        cluster.restart(victim)
        process = cluster.nodes[victim].process
        assert process is not None
        while process.poll() is None:
            await cluster.sleep(0.05)
        self.assertEqual(5, process.returncode)
        self.assertIn("zconsensus log repair", cluster.nodes[victim].last_words())
        return victim

    async def comes_back(self, cluster: LocalCluster, victim: int, keys: list[str]) -> None:
        """Repairs and starts it; it has everything again then, and its mark goes."""
        data = self.data(cluster, victim)
        self.assertEqual("rot", self.run_cli("log", "verify", data, exit_code=2)[-1]["verdict"])
        done = self.run_cli("log", "repair", data, "--yes")[-1]
        self.assertEqual(32, len(done["repair_id"]))
        self.assertEqual("clean", self.run_cli("log", "verify", data)[-1]["verdict"])
        self.assertEqual(done["repair_id"], self.run_cli("log", "stat", data)[0]["repair_id"])
        cluster.restart(victim)
        await cluster.wait_ready(timeout=PATIENCE)
        end = time.monotonic() + PATIENCE
        while (await cluster.status(victim))["repair"]:
            self.assertLess(time.monotonic(), end)
            await cluster.sleep(0.1)
        told = Path(cluster.nodes[victim].log_path).read_text(encoding="utf-8")
        self.assertIn(f"was repaired (repair {done['repair_id']}): it does not vote", told)
        self.assertIn(f"the log of node {victim} is complete again", told)
        await self.put(cluster, await cluster.leader(), ["after"])
        await self.agree(cluster, cluster.nodes)
        self.assertEqual([], await self.missing(cluster, victim, [*keys, "after"]))
        self.assertIsNone(self.run_cli("log", "stat", data)[0]["repair_id"])
        # It counts again: with it alone, the leader has its majority.
        leader = await cluster.leader()
        cluster.kill(next(node_id for node_id in cluster.nodes if node_id not in (victim, leader)))
        await self.put(cluster, leader, ["counted"])

    async def test_a_damaged_log(self) -> None:
        """S-02."""

        def flipped(data: Path) -> None:
            newest = segments(data)[-1]
            record = [each for each in records(newest) if each.entries][5]
            flip(newest, record.position + 80)

        cluster, keys = await self.cluster(3), [f"key-{n}" for n in range(60)]
        await self.comes_back(cluster, await self.damaged(cluster, keys, flipped), keys)

    async def test_a_log_that_is_lost(self) -> None:
        """S-08: nothing is kept but who the node is."""

        def lost(data: Path) -> None:
            for path in segments(data):
                path.unlink()

        cluster, keys = await self.cluster(3), [f"key-{n}" for n in range(20)]
        await self.comes_back(cluster, await self.damaged(cluster, keys, lost), keys)

    async def test_a_damaged_snapshot(self) -> None:
        """S-16: the log does not reach back to another."""

        def flipped(data: Path) -> None:
            [newest] = [each for each in (data / "snap").iterdir() if each.name != "LOCK"]
            flip(newest / "manifest", 60)

        cluster = self.new_cluster(snapshot_logs_since_last=20, max_in_snapshot_log_to_keep=1)
        cluster.start(3)
        await cluster.wait_ready(timeout=PATIENCE)
        keys = [f"key-{n}" for n in range(35)]
        await self.comes_back(cluster, await self.damaged(cluster, keys, flipped), keys)


class LostMajorityTests(DisasterTestCase):
    async def test_two_of_five(self) -> None:
        """
        What the survivors had goes on, what only the lost members had is lost, and one of those that comes back can
        talk to nobody.
        """
        cluster = await self.cluster(5)
        known = [f"known-{n}" for n in range(30)]
        await self.put(cluster, 1, known)
        status = await self.agree(cluster, cluster.nodes)
        leader = await cluster.leader()
        survivors = [node_id for node_id in cluster.nodes if node_id != leader][:2]
        lost = [node_id for node_id in cluster.nodes if node_id not in survivors]
        for node_id in survivors:
            cluster.kill(node_id, signal.SIGSTOP)
        unknown = [f"unknown-{n}" for n in range(5)]
        await self.put(cluster, leader, unknown)
        for node_id in lost:
            cluster.kill(node_id)
        for node_id in survivors:
            cluster.kill(node_id)
        plan_path = os.path.join(cluster.nodes[1].directory, "plan.json")
        command = ["recover", *(self.data(cluster, each) for each in survivors), "--plan", plan_path]
        ids = ",".join(map(str, lost))
        self.run_cli(*command, "--lost", ",".join(map(str, lost[:2])), "--yes", exit_code=3)
        shown = self.run_cli(*command, "--lost", ids, "--yes")
        [plan] = [line for line in shown if line["kind"] == "recovery_plan"]
        self.assertEqual((survivors, lost), (plan["survivors"], plan["lost"]))
        self.assertEqual(2, sum(line["kind"] == "recovered" and line["changed"] for line in shown))
        for node_id in survivors:
            self.assertEqual("clean", self.run_cli("log", "verify", self.data(cluster, node_id))[-1]["verdict"])
            again = self.run_cli("recover", "apply", plan_path, self.data(cluster, node_id), "--yes")
            self.assertEqual([False], [line["changed"] for line in again])
            identity = self.run_cli("log", "stat", self.data(cluster, node_id))[0]
            self.assertEqual([status["cluster_id"]], identity["former"])
            cluster.restart(node_id)
        await cluster.wait_ready(survivors, timeout=PATIENCE)
        one = survivors[0]
        self.assertEqual([], await self.missing(cluster, one, known))
        self.assertEqual(unknown, await self.missing(cluster, one, unknown))
        revision = await self.put(cluster, one, ["after"])
        self.assertEqual(status["store"]["revision"] + 1, revision)
        after = await self.agree(cluster, survivors)
        self.assertEqual(
            (plan["new_cluster"], survivors), (after["cluster_id"], [each["id"] for each in after["members"]])
        )
        base = self.data(cluster, plan["base"])
        noops = self.run_cli("log", "dump", base, "--type", "noop")
        [note] = [line["recovery"] for line in noops if line["kind"] == "entry" and "recovery" in line]
        self.assertEqual((status["cluster_id"], lost), (note["old_cluster"], note["lost"]))
        await self.shut_out(cluster, lost[-1], one)

    async def shut_out(self, cluster: LocalCluster, back: int, survivor: int) -> None:
        """A lost member that comes back is told that it is of another cluster, and changes nothing."""
        before = await cluster.status(survivor)
        cluster.restart(back)
        await cluster.wait_live([back], timeout=PATIENCE)
        await self.logged(cluster, back, "cluster")
        await self.logged(cluster, back, "refuses what we send")
        await self.put(cluster, survivor, ["still"])
        after = await cluster.status(survivor)
        self.assertEqual((before["term"], before["members"]), (after["term"], after["members"]))
        stranger = await cluster.status(back)
        self.assertIsNone(stranger["leader_id"])
        self.assertNotEqual(after["cluster_id"], stranger["cluster_id"])
        code, _, _ = await cluster.request(back, "PUT", "/v1/kv/never?timeout=1", body=b"x")
        self.assertIn(code, (421, 503, 504))
        self.assertEqual(["never"], await self.missing(cluster, survivor, ["never"]))

    async def test_across_machines(self) -> None:
        """Survey, plan and apply, one of three being left; the others' ids are gone for ever."""
        cluster = await self.cluster(3)
        keys = [f"key-{n}" for n in range(10)]
        await self.put(cluster, 1, keys)
        await self.agree(cluster, cluster.nodes)
        for node_id in cluster.nodes:
            cluster.kill(node_id)
        directory = Path(cluster.nodes[2].directory)
        runner = CliRunner()
        surveyed = runner.invoke(program, ["recover", "survey", str(directory / "data")])
        self.assertEqual(0, surveyed.exit_code, surveyed.output)
        (directory / "n2.json").write_text(surveyed.stdout)
        self.run_cli(
            "recover", "plan", directory / "n2.json", "--lost", "1,3", "--out", directory / "plan.json", "--yes"
        )
        self.run_cli("recover", "apply", directory / "plan.json", directory / "data", "--yes")
        cluster.restart(2)
        await cluster.wait_ready([2], timeout=PATIENCE)
        self.assertEqual([], await self.missing(cluster, 2, keys))
        await self.put(cluster, 2, ["after"])
        added = cluster.add_node()
        await cluster.wait_live([added.node_id], timeout=PATIENCE)
        body = {"id": 3, "peer_address": added.peer_address, "client_address": added.client_address, "role": "voter"}
        headers = {"Content-Type": "application/json"}
        code, _, answer = await cluster.request(
            2, "POST", "/v1/members", body=json.dumps(body).encode(), headers=headers
        )
        self.assertEqual(409, code, answer)
        body["id"] = added.node_id
        code, _, answer = await cluster.request(
            2, "POST", "/v1/members", body=json.dumps(body).encode(), headers=headers
        )
        self.assertEqual(200, code, answer)
        self.assertEqual([], await self.missing(cluster, added.node_id, [*keys, "after"]))


class BackupTests(DisasterTestCase):
    """A backup of a cluster that is written to, and a new cluster out of it."""

    async def run_process(self, cluster: LocalCluster, *arguments: object) -> list[dict[str, Any]]:
        """Runs ``zconsensus`` in a process of its own, so that writes go on meanwhile."""
        command = [sys.executable, "-m", "zlayer_consensus.cli", *map(str, arguments), "--json"]
        process = subprocess.Popen(
            command, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None:
            await cluster.sleep(0.05)
        output, errors = process.communicate()
        self.assertEqual((0, ""), (process.returncode, errors), output)
        return [json.loads(line) for line in output.splitlines()]

    async def write_on(self, cluster: LocalCluster, node_id: int) -> None:
        """Puts one key after the other, until it is enough."""
        while not self.enough:
            await self.put(cluster, node_id, [f"later-{self.later}"])
            self.later += 1

    async def test_a_new_cluster_from_a_backup(self) -> None:
        """Everything that was acknowledged before is in it; revisions go on; the old nodes cannot talk to it."""
        old = await self.cluster(3)
        before = [f"before-{n}" for n in range(40)]
        await self.put(old, 1, before[:20])
        await old.request(1, "DELETE", f"/v1/kv/{before[0]}")
        leader = await old.leader()
        follower = next(node_id for node_id in old.nodes if node_id != leader)
        revision = await self.put(old, leader, before[20:])
        self.later, self.enough = 0, False
        writing = Deferred.fromCoroutine(self.write_on(old, leader))
        path = os.path.join(old.nodes[1].directory, "state.backup")
        [taken] = await self.run_process(old, "backup", "--url", old.nodes[follower].url, path)
        self.enough = True
        await writing
        self.assertEqual(self.run_cli("backup", "--verify", path), [taken])
        self.assertEqual([1, 2, 3], [each["id"] for each in taken["membership"]["members"]])

        new = self.new_cluster()
        new.prepare(3)
        out = os.path.join(os.path.dirname(new.nodes[1].directory), "restored")
        members = [f"--member={n.node_id}={n.peer_address},{n.client_address}" for n in new.nodes.values()]
        restored = self.run_cli("restore", path, "--out", out, *members)
        for line in restored:
            self.assertEqual("clean", self.run_cli("log", "verify", line["directory"])[-1]["verdict"])
            os.rename(line["directory"], self.data(new, line["node_id"]))
            new.restart(line["node_id"])
        await new.wait_ready(timeout=PATIENCE)
        status = await self.agree(new, new.nodes)
        self.assertEqual(restored[0]["cluster_id"], status["cluster_id"])
        self.assertNotEqual(taken["cluster_id"], status["cluster_id"])
        self.assertEqual([before[0]], await self.missing(new, 2, before))
        self.assertGreaterEqual(status["store"]["revision"], revision)
        # What was written meanwhile is in it up to some write, without a hole.
        in_it = status["store"]["revision"] - revision
        self.assertLessEqual(in_it, self.later + 1)
        self.assertEqual([], await self.missing(new, 3, [f"later-{n}" for n in range(in_it)]))
        self.assertEqual(status["store"]["revision"] + 1, await self.put(new, 1, ["after"]))
        await self.strangers(old, new)

    async def strangers(self, old: LocalCluster, new: LocalCluster) -> None:
        """A node of the old cluster, even with the same id, is refused by the new one and changes nothing."""
        from twisted.internet import reactor

        was = await old.status(2)
        target = await new.status(1)
        network = HttpNetwork(reactor)
        self.addCleanup(network.stop)
        envelope = Envelope(
            bytes.fromhex(was["cluster_id"]),
            2,
            bytes.fromhex(was["incarnation"]),
            1,
            bytes.fromhex(target["incarnation"]),
        )
        request = VoteRequest(target["term"] + 100, LogId(target["term"] + 99, 10**6), 1, False, True)
        with self.assertRaises(ClusterMismatch):
            await network.call(new.nodes[1].peer_address, envelope, request, 5)
        self.assertEqual(target["term"], (await new.status(1))["term"])
        self.assertEqual("rot", self.damaged_backup(old)["verdict"])

    def damaged_backup(self, cluster: LocalCluster) -> dict[str, Any]:
        """Damages the backup; it must be refused by both who read it."""
        path = os.path.join(cluster.nodes[1].directory, "state.backup")
        with open(path, "r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(b"damage")
        self.run_cli("restore", path, "--out", f"{path}.out", "--member=1=a:1,a:2", exit_code=3)
        self.assertFalse(os.path.exists(f"{path}.out"))
        return self.run_cli("backup", "--verify", path, exit_code=2)[-1]
