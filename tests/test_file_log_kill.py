"""
The file log store in a process of its own, killed again and again.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.log_store_kit import content, entry, result
from zlayer_consensus.raft import NO_LOG
from zlayer_consensus.storage import FileLogStore, InlineExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROUNDS = 4

# Writes without end, several writes at a time, and prints the last index that was acknowledged.
WRITER = """
import sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from tests.log_store_kit import entries
from zlayer_consensus.raft import HardState, LogWrite
from zlayer_consensus.storage import FileLogStore

async def work():
    log = FileLogStore(sys.argv[1], 1, reactor=reactor, segment_bytes=64 << 10)
    last = (await log.open()).last.index
    while True:
        writing = []
        for count in (1, 3, 40, 2):
            write = LogWrite(entries=entries(last + 1, last + count), hard_state=HardState(1, 1, last))
            writing.append(log.write(write))
            last += count
        for done in writing:
            await done
        print(last, flush=True)

def failed(failure):
    failure.printTraceback()
    reactor.stop()

reactor.callWhenRunning(lambda: Deferred.fromCoroutine(work()).addErrback(failed))
reactor.run()
"""


class KillTests(SynchronousTestCase):
    def test_a_killed_process_loses_nothing_that_it_acknowledged(self) -> None:
        """J-101: SIGKILL at any time, on the real file system, and the log goes on from there."""
        directory = os.path.abspath(self.mktemp())
        rng = random.Random(5)
        acknowledged = 0
        for _ in range(ROUNDS):
            acknowledged = self.write_and_kill(directory, rng.randint(1, 60))
            log = FileLogStore(directory, 1, executor=InlineExecutor(), segment_bytes=64 << 10)
            start = result(log.open())
            self.assertGreaterEqual(start.last.index, acknowledged)
            self.assertEqual((NO_LOG, 1, 1), (start.purged, *start.hard_state[:2]))
            expected = [entry(index) for index in range(1, start.last.index + 1)]
            self.assertEqual(expected, content(log, start))
            result(log.close())
        self.assertGreater(acknowledged, 46 * ROUNDS)

    def write_and_kill(self, directory: str, lines: int) -> int:
        """Lets a process write until it has acknowledged some; returns the last index that it did."""
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, directory],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        assert writer.stdout is not None and writer.stderr is not None
        last = 0
        for _ in range(lines):
            line = writer.stdout.readline()
            if not line:
                break
            last = int(line)
        writer.kill()
        rest, errors = writer.communicate()
        self.assertNotIn("Traceback", errors)
        return max([last, *map(int, rest.split("\n")[:-1])])
