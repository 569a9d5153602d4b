"""A node whose log is much larger than its memory: how soon it starts, how much memory it takes, and that it works.

``python -m tests.acceptance.large_log --entries 10000000``
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from random import Random
from typing import Any

from tests.total_application import Total
from zlayer_consensus import _cbor
from zlayer_consensus.daemon._local_cluster import ClusterFailed
from zlayer_consensus.node._sessions import SessionTable
from zlayer_consensus.raft import Entry, EntryKind, HardState, LogWrite, Membership, SnapshotPoint, Start
from zlayer_consensus.storage import FileLogStore, FileStateMachine, InlineExecutor
from zlayer_consensus.testing.crashes import outcome

from ._scene import PATIENCE, QUICK, Scene, tell
from ._watch import Violation

__all__ = ["APPLICATION", "RAFT", "STORAGE", "LargeLog", "fill", "main", "open_unsealed"]

APPLICATION = "tests.total_application:Total"
RAFT = {**QUICK, "snapshot_policy": "never", "max_in_snapshot_log_to_keep": 1 << 40}
STORAGE = {"segment_bytes": 16 << 20}
ENTRY_BYTES = 128
"""Of a command as it is encoded."""
MEGABYTES = 150
"""What the process of a node may take at the most, as the design says."""
UNSEALED_SECONDS = 2.0
"""Within which a million entries that no seal describes have to be opened."""
_BATCH = 10_000
_RECORD = 300
"""Entries of one write, as many as travel in one message."""


def fill(log: FileLogStore, start: Start, entries: int, batch: int = _BATCH) -> Total:
    """Append commands to a log that is open, all of them committed; return the application that has applied them.

    Memory does not grow with their number.
    """
    chance = Random(1)
    payload = _cbor.dumps(chance.randbytes(ENTRY_BYTES - 2))
    assert len(payload) == ENTRY_BYTES
    total = Total()
    term, index = start.hard_state.term, start.last.index
    last = index + entries
    command = int(EntryKind.COMMAND)
    while index < last:
        count = min(batch, last - index)
        made = [Entry.make(index + n, term, command, payload, start.last_time_ms + 1) for n in range(1, count + 1)]
        index += count
        outcome(log.write(LogWrite(entries=tuple(made), hard_state=HardState(term, start.hard_state.voted_for, index))))
    total.count, total.length = entries, entries * (ENTRY_BYTES - 2)
    return total


def open_unsealed(directory: str, entries: int) -> float:
    """Make a log of one segment that is never sealed, and return how many seconds its opening takes, at best."""

    def store() -> FileLogStore:
        return FileLogStore(directory, 1, executor=InlineExecutor(), segment_bytes=max(1 << 20, 256 * entries))

    log = store()
    start = outcome(log.open())
    outcome(log.write(LogWrite(hard_state=HardState(1, 1, 0))))
    fill(log, Start(HardState(1, 1, 0), last_time_ms=start.last_time_ms), entries, batch=_RECORD)
    outcome(log.close())
    seconds = []
    for _ in range(3):
        log = store()
        began = time.perf_counter()
        found = outcome(log.open())
        seconds.append(time.perf_counter() - began)
        outcome(log.close())
        if found.last.index != entries:
            raise Violation(f"the log has {found.last.index} entries instead of {entries}")
    return min(seconds)


class LargeLog:
    """The story.

    :param entries: commands in the log.
    :param segment_bytes: as the node is told.
    """

    def __init__(self, scene: Scene, entries: int, segment_bytes: int = STORAGE["segment_bytes"]) -> None:
        self._scene = scene
        self._entries = entries
        self._segment_bytes = segment_bytes
        self.peak = 0.0
        """Megabytes that the node took at the most."""

    async def run(self) -> None:
        """Tell it."""
        scene = self._scene
        await scene.start(1)
        await scene.stop([1])
        count, length = self._fill(os.path.join(scene.cluster.nodes[1].directory, "data"))
        for number in range(1, 3):
            began = time.monotonic()
            scene.restart([1])
            await scene.cluster.wait_ready([1], timeout=PATIENCE)
            ready = time.monotonic() - began
            if await self._total("POST", bytes(10)) != count + number:
                raise Violation("a command was not carried out on what was there")
            if await self._total("GET") != [count + number, length + 10 * number]:
                raise Violation("the state is not what was there")
            status = (await scene.caller.call(1, "GET", "/v1/status")).value
            if status["purged"] or status["last"]["index"] < self._entries:
                raise Violation(f"the log is from {status['purged']} to {status['last']}")
            self.peak = max(self.peak, self._peak())
            began = time.monotonic()
            await scene.stop([1])
            scene.say(
                f"start {number}: ready after {ready:.1f} s with {status['last']['index']} entries, at most "
                f"{self.peak:.0f} MB of memory, stopped within {time.monotonic() - began:.1f} s"
            )
        scene.nothing_in_the_logs()
        if self.peak > MEGABYTES:
            raise Violation(f"the node took {self.peak:.0f} MB, and {MEGABYTES} are allowed")

    def _fill(self, directory: str) -> tuple[int, int]:
        """Append to the log of a node that was stopped, and take a snapshot; return what the application then has."""
        began = time.monotonic()
        executor = InlineExecutor()
        log = FileLogStore(directory, 1, executor=executor, segment_bytes=self._segment_bytes)
        start = outcome(log.open())
        total = fill(log, start, self._entries)
        outcome(log.close())
        store = FileStateMachine(directory, total, executor=executor)
        outcome(store.open())
        last = Entry.make(start.last.index + self._entries, start.hard_state.term, EntryKind.COMMAND).id
        point = SnapshotPoint(last, Membership.decode(start.configs[-1].payload), start.last_time_ms + 1)
        writer = store.writer(point)
        for chunk in [*SessionTable().snapshot(), *total.snapshot()]:
            outcome(writer.write(chunk))
        outcome(writer.publish())
        outcome(store.close())
        size = sum(os.path.getsize(os.path.join(directory, "wal", name)) for name in os.listdir(f"{directory}/wal"))
        self._scene.say(
            f"{self._entries} entries of {ENTRY_BYTES} bytes, {size / 1e6:.0f} MB, written in "
            f"{time.monotonic() - began:.0f} s"
        )
        return total.count, total.length

    async def _total(self, method: str, body: bytes | None = None) -> Any:
        answer = await self._scene.caller.call(1, method, "/app/total", body, timeout=60)
        if answer.code != 200:
            raise ClusterFailed(f"{method} /app/total: {answer.code} {answer.body!r}")
        return answer.value

    def _peak(self) -> float:
        process = self._scene.cluster.nodes[1].process
        assert process is not None
        with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
            [line] = [line for line in file if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024 / 1e6


def main() -> int:
    """Run it at full length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--unsealed", type=int, default=1_000_000, help="entries of a log that is not sealed")
    options = parser.parse_args()
    needed = 200 * (options.entries + options.unsealed) + (2 << 30)
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < needed:
        print(f"{needed >> 20} MiB are needed in {tempfile.gettempdir()}, and {free >> 20} are free", file=sys.stderr)
        return 1

    async def story(scene: Scene) -> None:
        await LargeLog(scene, options.entries).run()
        directory = os.path.join(scene.cluster.directory, "unsealed")
        seconds = open_unsealed(directory, options.unsealed)
        scene.say(f"a log of {options.unsealed} entries that is not sealed was opened in {seconds:.2f} s")
        if seconds > UNSEALED_SECONDS * options.unsealed / 1_000_000:
            raise Violation(f"that is more than {UNSEALED_SECONDS:g} s for a million")

    deadline = 600 + options.entries / 2000
    return tell("large-log", story, raft=RAFT, storage=STORAGE, application=APPLICATION, deadline=deadline)


if __name__ == "__main__":
    sys.exit(main())
