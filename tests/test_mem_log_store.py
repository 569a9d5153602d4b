"""
The log store in memory: the same rules as the one on files, and what a restart keeps.
"""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.log_store_kit import append, content, entries, entry, opened, result
from zlayer_consensus.errors import InvariantBroken, LogCompacted, StorageFailed, WrongIdentity
from zlayer_consensus.raft import EntryKind, HardState, LogId, LogWrite, Start
from zlayer_consensus.storage import Identity, ILogStore, MemLogStore
from zlayer_consensus.testing import SimulatedFileSystem


class MemLogStoreTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.log = MemLogStore(1)
        self.assertEqual(Start(), result(self.log.open()))

    def test_it_provides_the_contract(self) -> None:
        verifyObject(ILogStore, self.log)

    def test_each_is_a_new_incarnation(self) -> None:
        """H-29, J-11: what forgets is a stranger; reopened, it is the same."""
        rng = random.Random(1).randbytes
        first, second = MemLogStore(1, random_bytes=rng), MemLogStore(1, random_bytes=rng)
        self.assertNotEqual(first.identity, second.identity)
        self.assertEqual(first.identity, first.reopened().identity)

    def test_reopened_it_holds_what_was_written(self) -> None:
        config = entry(4, 2, kind=EntryKind.CONFIG)
        result(self.log.write(LogWrite(entries=(*entries(1, 3), config), hard_state=HardState(2, 1, 3))))
        result(self.log.purge(LogId(1, 2)))
        again = self.log.reopened()
        self.assertRaises(StorageFailed, result, self.log.write(LogWrite()))
        start = result(again.open())
        self.assertEqual(
            Start(
                HardState(2, 1, 3), LogId(1, 2), LogId(2, 4), ((3, 1), (4, 2)), (config,), (entry(3), config),
                last_time_ms=1004,
            ),
            start,
        )  # fmt: skip

    def test_it_is_used_while_it_is_open(self) -> None:
        closed = MemLogStore(1)
        self.assertRaises(StorageFailed, result, closed.write(LogWrite()))
        self.assertRaises(StorageFailed, result, self.log.open())
        result(self.log.close())
        result(self.log.close())
        self.assertRaises(StorageFailed, result, self.log.read(1, 1, 1))

    def test_reads_are_bounded(self) -> None:
        append(self.log, 1, 9)
        result(self.log.purge(LogId(1, 3)))
        self.assertEqual(3 + 1, self.assertRaises(LogCompacted, result, self.log.read(3, 9, 100)).first_index)
        self.assertEqual(list(entries(5, 7)), result(self.log.read(5, 7, 1 << 20)))
        self.assertEqual([entry(5)], result(self.log.read(5, 7, 0)))
        self.assertRaises(ValueError, result, self.log.read(10, 10, 1))
        append(self.log, 10, 10)

    def test_the_cluster_is_adopted_once(self) -> None:
        """H-30."""
        result(self.log.adopt(Identity(5, b"", b"c" * 16, b"origin")))
        self.assertEqual((1, b"c" * 16, b"origin"), (self.log.identity.node_id, *self.cluster()))
        result(self.log.adopt(Identity(5, b"", b"c" * 16, b"origin")))
        self.assertRaises(WrongIdentity, result, self.log.adopt(Identity(5, b"", b"d" * 16)))

    def cluster(self) -> tuple[bytes, bytes]:
        return self.log.identity.cluster_id, self.log.identity.origin

    def test_truncation_below_the_commit_is_refused(self) -> None:
        """H-25: and everything after it."""
        result(self.log.write(LogWrite(entries=entries(1, 9), hard_state=HardState(1, 0, 5))))
        self.assertRaises(InvariantBroken, result, self.log.write(LogWrite(truncate_after=4)))
        self.assertRaises(InvariantBroken, result, self.log.write(LogWrite(entries=entries(10, 10))))

    def test_it_behaves_as_the_store_on_files(self) -> None:
        """Random legal writes: after each of them both hold the same."""
        rng = random.Random(4)
        file_log, _ = opened(SimulatedFileSystem())
        last = commit = 0
        term = 1
        for _ in range(200):
            write = LogWrite(hard_state=HardState(term, 0, commit))
            choice = rng.random()
            if choice < 0.1:
                last = commit = last + rng.randint(1, 9)
                write = LogWrite(reset=LogId(term, last), hard_state=HardState(term, 0, commit))
            elif choice < 0.3:
                term += 1
                truncate = rng.randint(commit, last)
                last = truncate + rng.randint(1, 5)
                write = LogWrite(None, truncate, entries(truncate + 1, last, term), None)
            elif choice < 0.8:
                added = entries(last + 1, last + rng.randint(1, 20), term)
                last += len(added)
                commit = rng.randint(commit, last)
                write = LogWrite(entries=added, hard_state=HardState(term, 0, commit))
            for log in (self.log, file_log):
                result(log.write(write))
        memory, files = self.log.reopened(), file_log
        start = result(memory.open())
        self.assertEqual(content(memory, start), content(files, start))
