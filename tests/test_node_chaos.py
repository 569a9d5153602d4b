"""Whole nodes on files under random faults: nothing acknowledged is lost, nothing is done twice, everything ends."""

from __future__ import annotations

import os
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.errors import ConsensusError, OutcomeUnknown, SessionExpired
from zlayer_consensus.node import ConsensusNode
from zlayer_consensus.storage import FileLogStore, FileStateMachine, InlineExecutor
from zlayer_consensus.testing import SimulatedFileSystem

from .node_cluster import NodeCluster, apply

IDS = (1, 2, 3)
FAULTY_SECONDS = 20.0


class Client:
    """Adds 1 to its own key, again and again, and tries each command until it knows how it ended (H-82, H-87)."""

    def __init__(self, chaos: Chaos, name: str) -> None:
        self.chaos = chaos
        self.name = name
        self.session = 0
        self.sequence = 0
        self.done = 0
        self.unknown = 0
        self.running = False
        self.ended = False

    def start(self) -> None:
        self.running = True
        _ = Deferred.fromCoroutine(self.loop()).addErrback(self.chaos.broken.append)

    async def loop(self) -> None:
        while self.running or self.sequence > self.done:
            await self.chaos.pause()
            node = self.chaos.any_node()
            if node is None:
                continue
            try:
                await self.step(node)
            except SessionExpired:
                raise
            except OutcomeUnknown:
                self.unknown += 1
            except ConsensusError:
                continue  # definitely not done, or only read
        self.ended = True

    async def step(self, node: ConsensusNode) -> None:
        if not self.session:
            self.session = await node.register_session(timeout=2.0)
        if self.sequence == self.done:
            self.sequence += 1
        count = await node.propose(["add", self.name, 1], session=self.session, sequence=self.sequence, timeout=2.0)
        if count != self.sequence:
            raise AssertionError(f"{self.name}: command {self.sequence} gave {count}")
        self.done = self.sequence
        reader = self.chaos.any_node()
        if reader is not None:
            seen = await reader.read_state(lambda machine: machine.state.get(self.name, 0), deadline=2.0)
            if seen != self.done:
                raise AssertionError(f"{self.name}: {self.done} acknowledged, a read saw {seen}")


class Chaos:
    """Three nodes, and what goes wrong with them."""

    def __init__(self, test: SynchronousTestCase, seed: int) -> None:
        self.random = Random(seed)
        self.cluster = NodeCluster(
            test,
            seed,
            snapshot_logs_since_last=self.random.choice([5, 30, 1000]),
            max_in_snapshot_log_to_keep=self.random.choice([0, 5]),
            max_payload_entries=self.random.choice([1, 3, 300]),
            max_inflight_appends=self.random.choice([1, 8]),
            snapshot_chunk_bytes=self.random.choice([50, 1000]),
            log_cache_bytes=self.random.choice([0, 2000, 1 << 20]),
        )
        self.files = {node_id: SimulatedFileSystem() for node_id in IDS}
        self.broken: list[Any] = []
        self.clients = [Client(self, f"c{n}") for n in range(4)]

    def pause(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self.cluster.clock.callLater(self.random.uniform(0.0, 0.05), waiting.callback, None)
        return waiting

    def any_node(self) -> ConsensusNode | None:
        return self.random.choice(list(self.cluster.nodes.values()) or [None])

    def up(self, node_id: int) -> ConsensusNode:
        files = self.files[node_id]
        log = FileLogStore(
            "/log",
            node_id,
            reactor=self.cluster.clock,
            executor=InlineExecutor(),
            file_system=files,
            segment_bytes=64 << 10,
            tail_bytes=self.random.choice([0, 1000, 1 << 20]),
            random_bytes=self.random.randbytes,
        )
        machine = FileStateMachine("/data", {}, apply, executor=InlineExecutor(), file_system=files, part_bytes=200)
        return self.cluster.make(node_id, log=log, machine=machine)

    def down(self, node_id: int) -> None:
        self.files[node_id] = self.files[node_id].crash(self.random.choice(["none", "all"]))
        self.cluster.crash(node_id)

    def fault(self) -> None:
        """Make something go wrong, or right again."""
        network, down = self.cluster.network, [node_id for node_id in IDS if node_id not in self.cluster.nodes]
        match self.random.randrange(8):
            case 0 if not down:
                self.down(self.random.choice(IDS))
            case 1 | 2 if down:
                self.up(down[0])
            case 3:
                one = self.cluster.address(self.random.choice(IDS))
                network.partition([one], [self.cluster.address(i) for i in IDS if self.cluster.address(i) != one])
            case 4:
                network.cut(*(self.cluster.address(i) for i in self.random.sample(IDS, 2)))
            case 5 | 7:
                network.heal()
            case 6:
                node = self.any_node()
                if node is not None:
                    for waiting in (node.transfer_leadership(), node.trigger("snapshot")):
                        _ = waiting.addErrback(lambda failure: failure.trap(ConsensusError))

    def run(self) -> None:
        for node_id in IDS:
            self.up(node_id)
        members = [self.cluster.member(node_id) for node_id in IDS]
        for each in [node.bootstrap(members) for node in self.cluster.nodes.values()]:
            self.cluster.result(each)
        link = self.cluster.network.default
        link.loss, link.duplicate, link.reply_loss, link.delay = 0.02, 0.05, 0.02, (0.0005, 0.02)
        for client in self.clients:
            client.start()
        end = self.cluster.clock.seconds() + FAULTY_SECONDS
        while self.cluster.clock.seconds() < end and not self.broken:
            self.fault()
            self.cluster.run(self.random.uniform(0.0, 1.5), step=0.005)
        self.mend()

    def mend(self) -> None:
        link = self.cluster.network.default
        link.loss = link.duplicate = link.reply_loss = 0.0
        self.cluster.network.heal()
        for node_id in IDS:
            if node_id not in self.cluster.nodes:
                self.up(node_id)
        self.cluster.leader()
        self.cluster.run(2.0)
        for client in self.clients:
            client.running = False
        self.cluster.until(lambda: bool(self.broken) or all(client.ended for client in self.clients), seconds=60.0)


class ChaosTests(SynchronousTestCase):
    def check(self, seed: int) -> None:
        chaos = Chaos(self, seed)
        chaos.run()
        for failure in chaos.broken:
            failure.raiseException()
        chaos.cluster.settle()
        expected = {client.name: client.done for client in chaos.clients if client.done}
        self.assertEqual(chaos.cluster.states(), [expected] * 3, f"seed {seed}")
        self.assertGreater(sum(expected.values()), 10, f"seed {seed} proves nothing")
        for node in [*chaos.cluster.nodes.values(), *chaos.cluster.dead]:
            self.assertIsNone(node._runtime.cause, f"seed {seed}")

    def test_some_seeds(self) -> None:
        """H-82, H-87, J-43, J-44, J-45, J-47, J-80: sessions make every command happen once, through all faults."""
        first = int(os.environ.get("CHAOS_SEED", "1"))
        for seed in range(first, first + int(os.environ.get("CHAOS_RUNS", "3"))):
            self.check(seed)
