"""Processes that write to real files and are killed, at any moment, while they do.

Nothing here may import a reactor at the top: the processes are forks of one that has none.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, NoReturn

from twisted.internet.defer import Deferred, gatherResults

from tests.crash_kit import make_log, make_machine_store
from tests.real_disk import RealDisk
from zlayer_consensus.config import ConsensusConfig
from zlayer_consensus.node import ConsensusNode
from zlayer_consensus.storage import FileLogStore, FileStateMachine, IFileSystem, RealFileSystem
from zlayer_consensus.testing import MemoryNetwork, SimulatedFileSystem
from zlayer_consensus.testing.crashes import (
    CrashSubject,
    CrashViolation,
    LogSubject,
    NodeScript,
    NodeSubject,
    Story,
    log_story,
    node_story,
    random_script,
)

__all__ = ["NodeKiller", "StoreKiller", "chain", "make_node"]

_PATIENCE = 120.0
"""Seconds that a process may be silent for, on a machine that has other things to do."""


class Victim:
    """A forked process, and what it says before it is killed.

    :param work: what it does; it is given a function that says a word.
    """

    def __init__(self, work: Callable[[Callable[[bytes], None]], None]) -> None:
        self.said = b""
        self._reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            _run(work, writer)
        os.close(writer)

    def listen(self, wanted: Callable[[bytes], bool], seconds: float = _PATIENCE) -> bool:
        """Take in what it says until that is enough; return whether it was, before time was up or it had ended."""
        end = time.monotonic() + seconds
        while not wanted(self.said):
            ready, _, _ = select.select([self._reader], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._reader, 1 << 16) if ready else b""
            if not data:
                return False
            self.said += data
        return True

    def kill(self) -> int:
        """Kill it, take in all that it had said, and return how it ended: the number of the signal, or 0."""
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        while data := os.read(self._reader, 1 << 16):
            self.said += data
        os.close(self._reader)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise CrashViolation(f"the process failed: {self.said.decode(errors='replace')}")
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _run(work: Callable[[Callable[[bytes], None]], None], writer: int) -> NoReturn:
    # Whatever happens, this process must not go on as a copy of the one that made it.
    code = 1
    try:
        work(lambda word: _say(writer, word))
        code = 0
    except BaseException:
        _say(writer, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _say(writer: int, word: bytes) -> None:
    while word:
        word = word[os.write(writer, word) :]


class StoreKiller:
    """Kills processes that write through the stores themselves, each on a directory of its own.

    A process plays a story on real files, and says each time that the story goes on. What is found afterwards has to be
    what the story allows at that moment. Half of the openings that follow are killed, too.

    :param place: an empty directory.
    """

    def __init__(self, place: str, seed: object) -> None:
        self.kills = self.steps = self.finished = 0
        self._place = place
        self._random = random.Random(f"store killer {seed}")

    def round(self) -> None:
        """Let one process write, and kill it.

        :raises CrashViolation: if what is found afterwards is not what was left.
        """
        subject, story = self._choose()
        expected = list(story(SimulatedFileSystem()))
        place = tempfile.mkdtemp(dir=self._place)
        disk = RealDisk.make(place)
        steps = self._play(disk, story, self._random.randrange(len(expected) + 1))
        self.steps += steps
        self.finished += steps == len(expected)
        # It may have gone on from the last step that it has told of.
        allowed = [each for possible in expected[max(0, steps - 1) : steps + 1] for each in possible]
        what = f"killed after step {steps} of {len(expected)}"
        if self._random.random() < 0.5:
            self._kill(Victim(lambda say: _recover(subject, disk)), 0.0, self._random.expovariate(200))
            what += ", and again in the opening"
        self._judge(subject, disk, allowed, what)
        shutil.rmtree(place)

    def _choose(self) -> tuple[CrashSubject, Story]:
        seed = self._random.random()
        if self._random.random() < 0.5:
            return LogSubject(make_log), log_story(make_log, random_script(seed, 25).steps)
        script = NodeScript(seed)
        for _ in range(self._random.randint(1, 4)):
            script.append(self._random.randint(1, 9), self._random.choice((30, 300, 900)), with_state=True)
            script.conflict(2, 3, 200) if self._random.random() < 0.4 else script.elect()
            script.snapshot(self._random.choice((None, 0, 3))) if self._random.random() < 0.6 else script.install(5)
        return NodeSubject(make_log, make_machine_store), node_story(make_log, make_machine_store, script)

    def _play(self, disk: RealDisk, story: Story, enough: int) -> int:
        """Let a process play the story for so many steps and a little; return how many it has told of."""

        def work(say: Callable[[bytes], None]) -> None:
            for _ in story(disk):
                say(b".")

        victim = Victim(work)
        victim.listen(lambda said: len(said) >= enough)
        self._kill(victim, 0.0, self._random.choice((0.0, self._random.expovariate(1000))))
        return len(victim.said)

    def _kill(self, victim: Victim, least: float, more: float) -> None:
        victim.listen(lambda said: False, least + more)
        self.kills += victim.kill() == signal.SIGKILL

    def _judge(self, subject: CrashSubject, disk: RealDisk, allowed: Sequence[Any], what: str) -> None:
        try:
            found = subject.recover(disk)
        except Exception as error:
            raise CrashViolation(f"{disk.root}: {what}: it does not open: {error}") from error
        if not any(subject.admits(each, found) for each in allowed):
            shown = "\n  or ".join(map(str, allowed))
            raise CrashViolation(f"{disk.root}: {what}: found\n  {found}\ninstead of\n  {shown}")
        disk.die()
        wanted = subject.go_on(disk)
        disk.die()
        again = subject.recover(disk)
        disk.die()
        if again != wanted:
            raise CrashViolation(f"{disk.root}: {what}, then it went on: found\n  {again}\ninstead of\n  {wanted}")


def _recover(subject: CrashSubject, disk: RealDisk) -> None:
    subject.recover(disk)


def chain(state: dict[str, Any], command: Any) -> int:
    """Append a command to a chain of hashes: whatever is lost, doubled or in another order changes the last one."""
    count: int = state.get("count", 0) + 1
    state["count"] = count
    state["hash"] = sha256(state.get("hash", b"") + command.encode()).digest()
    return count


def make_node(directory: str, reactor: Any, files: IFileSystem | None = None) -> ConsensusNode:
    """Make a node that is a cluster by itself, on real files, with the chain as its application.

    Segments are small, and snapshots come soon, so that there is much that can be under way.
    """
    files = files or RealFileSystem()
    network = MemoryNetwork(reactor, random.Random(1))
    node = ConsensusNode(
        node_id=1,
        address="node1:7000",
        config=ConsensusConfig(
            election_timeout_min_ms=20,
            election_timeout_max_ms=40,
            heartbeat_interval_ms=5,
            snapshot_logs_since_last=40,
            max_in_snapshot_log_to_keep=7,
        ),
        log_store=FileLogStore(
            directory,
            1,
            reactor=reactor,
            file_system=files,
            segment_bytes=16 << 10,
            reserve_bytes=16 << 10,
            idle_seconds=0.002,
            tail_bytes=1000,
        ),
        state_machine=FileStateMachine(directory, {}, chain, reactor=reactor, file_system=files, part_bytes=200),
        network=network.endpoint("node1:7000"),
        clock=reactor,
    )
    network.attach("node1:7000", node)
    return node


class NodeKiller:
    """Kills a node, again and again, on one and the same directory: a reactor, threads, groups of writes, snapshots.

    Each process tells first what it has found, then of each command that was acknowledged.

    :param directory: of the node; its parent exists.
    """

    def __init__(self, directory: str, seed: object) -> None:
        self.kills = self.acknowledged = 0
        self._directory = directory
        self._random = random.Random(f"node killer {seed}")
        self._state: dict[str, Any] = {}
        self._told = 0

    def round(self) -> None:
        """Let one process write, and kill it.

        :raises CrashViolation: if it finds less than what those before it were acknowledged, or something else.
        """
        victim = Victim(lambda say: _write_as_node(self._directory, say))
        enough = 1 + self._random.choice((0, 1, self._random.randrange(200)))
        if not victim.listen(lambda said: said.count(b"\n") >= enough):
            victim.kill()
            raise CrashViolation(f"{self._directory}: the node stopped: {victim.said.decode(errors='replace')}")
        victim.listen(lambda said: False, self._random.choice((0.0, self._random.expovariate(500))))
        self.kills += victim.kill() == signal.SIGKILL
        first, *later = victim.said.split(b"\n")[:-1]
        self._judge(json.loads(first))
        # They are acknowledged in order.
        numbers = [int(line) for line in later]
        if numbers != list(range(self._count + 1, self._count + 1 + len(numbers))):
            raise CrashViolation(f"{self._directory}: acknowledged were {numbers} after {self._count}")
        self._told = self._count + len(numbers)
        self.acknowledged += len(numbers)

    @property
    def _count(self) -> int:
        return int(self._state.get("count", 0))

    def _judge(self, found: dict[str, Any]) -> None:
        """See that what a process has found is a prefix of what was proposed, with all that was acknowledged."""
        while self._count < found["count"]:
            chain(self._state, f"command {self._count + 1}")
        if found["count"] < self._told or found["hash"] != self._state.get("hash", b"").hex():
            raise CrashViolation(f"{self._directory}: {self._told} commands were acknowledged, and found is {found}")


def _write_as_node(directory: str, say: Callable[[bytes], None]) -> None:
    from twisted.internet import reactor

    async def work() -> None:
        node = make_node(directory, reactor)
        await node.start()
        await node.bootstrap()
        state = await node.read_state(lambda machine: dict(machine.state), 60.0)
        count = state.get("count", 0)
        say(json.dumps({"count": count, "hash": state.get("hash", b"").hex()}).encode() + b"\n")

        async def write(number: int) -> None:
            result = await node.propose(f"command {number}")
            if result != number:
                raise AssertionError(f"command {number} was carried out as number {result}")
            say(b"%d\n" % number)

        chance = random.Random(count)
        while True:
            group = chance.choice((1, 2, 30))
            writing = [Deferred.fromCoroutine(write(count + each)) for each in range(1, group + 1)]
            await gatherResults(writing, consumeErrors=True)
            count += group

    def failed(failure: Any) -> None:
        say(failure.getTraceback().encode())
        os._exit(1)

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(work()).addErrback(failed))
    reactor.run()
