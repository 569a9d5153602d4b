"""The contract of a log store, as tests that any backend can run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SkipTest, TestCase

from ..errors import LogCompacted
from ..raft import NO_LOG, Entry, EntryKind, HardState, LogId, LogWrite, Member, Membership, Start
from ..storage import ILogStore

if TYPE_CHECKING:
    from twisted.trial.unittest import SynchronousTestCase

    Base = SynchronousTestCase
else:
    # Mixed into a TestCase or a SynchronousTestCase, so that nothing runs where the suite itself is imported.
    Base = object

__all__ = ["LogStoreContract", "contract_test"]

_C = TypeVar("_C", bound=Base)

_MANY = 1000
"""More steps than a pass over any log here has; a broken store must not hang the suite."""
ROOMY = 1 << 30
"""More bytes than any test here writes."""


def contract_test(method: Callable[[_C], Coroutine[Deferred[Any], Any, None]]) -> Callable[[_C], Any]:
    """Make a test of a coroutine, for both kinds of test case: with the one that has no reactor, the stores must
    complete at once.
    """

    @functools.wraps(method)
    def run(self: _C) -> Any:
        done = Deferred.fromCoroutine(method(self))
        if isinstance(self, TestCase):
            return done
        results: list[Any] = []
        done.addBoth(results.append)  # type: ignore[unused-awaitable]
        if not results:
            self.fail("the store did not complete at once: use twisted.trial.unittest.TestCase")
        if results[0] is not None:
            results[0].raiseException()
        return None

    return run


async def refused(case: Base, kind: type[Exception], waiting: Deferred[Any]) -> Any:
    """Wait for a Deferred that has to fail, and return its error."""
    try:
        result = await waiting
    except kind as error:
        return error
    case.fail(f"{kind.__name__} was expected, got {result!r}")
    return None


def _note(_result: None, order: list[int], index: int) -> None:
    order.append(index)


def membership(*ids: int) -> Membership:
    """Return a configuration in which ``ids`` vote."""
    return Membership.initial(Member(each, bytes([each]) * 16, f"node-{each}:1") for each in ids)


def entries(first: int, *terms: int, size: int = 10, time_ms: int = 0) -> tuple[Entry, ...]:
    """Return entries from index ``first`` on, with these terms."""
    return tuple(
        Entry.make(first + i, term, EntryKind.COMMAND, bytes([term, i % 256]) * (size // 2), time_ms=time_ms + i)
        for i, term in enumerate(terms)
    )


class LogStoreContract(Base):
    """What every :class:`~zlayer_consensus.storage.ILogStore` has to do.

    Mix it into a test case class and say how to make a store::

        class MyLogStoreTests(LogStoreContract, twisted.trial.unittest.TestCase):
            def make_store(self):
                return MyLogStore(self.mktemp(), node_id=self.node_id)

            def reopen(self, store):
                return MyLogStore(store.path, node_id=self.node_id)

    With ``SynchronousTestCase`` the store must complete every call at once.
    """

    durable = True
    """Whether a closed store can be opened again with what it held."""
    node_id = 7
    """The node that the store has to be made for."""

    def make_store(self) -> ILogStore:
        """Return a new, empty store that is not open."""
        raise NotImplementedError

    def reopen(self, store: ILogStore) -> ILogStore:
        """Return a store over what ``store``, which was closed, left. It is not open."""
        raise NotImplementedError

    def crash(self, store: ILogStore) -> ILogStore:
        """Return a store over what is left of ``store``, which is open, after a power failure. It is not open.

        Not every backend can do this in a test; by default the tests that need it are skipped.
        """
        raise SkipTest("this backend has no crash in tests")

    # Helpers

    async def opened(self) -> ILogStore:
        """Return a new, open store; the test closes it at its end."""
        store = self.make_store()
        await store.open()
        self.addCleanup(store.close)
        return store

    async def holding(self, *batches: Iterable[Entry], hard_state: HardState | None = None) -> ILogStore:
        """Return an open store with these entries, one write for each batch."""
        store = await self.opened()
        for batch in batches:
            await store.write(LogWrite(entries=tuple(batch)))
        if hard_state is not None:
            await store.write(LogWrite(hard_state=hard_state))
        return store

    async def reopened(self, store: ILogStore) -> tuple[ILogStore, Start]:
        """Close a store and open it again; return it, and what it found. Skips if the backend keeps nothing."""
        if not self.durable:
            raise SkipTest("this backend does not outlive its process")
        await store.close()
        again = self.reopen(store)
        start = await again.open()
        self.addCleanup(again.close)
        return again, start

    async def assert_log(self, store: ILogStore, expected: Iterable[Entry]) -> None:
        """Check that exactly these entries can be read, in one and in many pieces."""
        wanted = list(expected)
        first, last = wanted[0].index, wanted[-1].index
        self.assertEqual(await store.read(first, last, ROOMY), wanted)
        one_by_one: list[Entry] = []
        while len(one_by_one) < len(wanted):
            some = await store.read(first + len(one_by_one), last, 1)
            self.assertTrue(some, "a read gave no entry at all")
            one_by_one += some
        self.assertEqual(one_by_one, wanted)

    # A new store

    @contract_test
    async def test_new_store_is_empty(self) -> None:
        """Opening a new store finds the first state of §5.1, and no log."""
        store = self.make_store()
        start = await store.open()
        self.addCleanup(store.close)
        self.assertEqual(
            (start.hard_state, start.purged, start.last, start.terms, start.configs, start.tail),
            (HardState(), NO_LOG, NO_LOG, (), (), ()),
        )

    @contract_test
    async def test_identity(self) -> None:
        """A store is a node's, and has an incarnation that no other store has (H-29)."""
        one, other = await self.opened(), self.make_store_of_its_own()
        await other.open()
        self.addCleanup(other.close)
        self.assertEqual(one.identity.node_id, self.node_id)
        self.assertEqual((len(one.identity.incarnation), one.identity.cluster_id), (16, b""))
        self.assertNotEqual(one.identity.incarnation, other.identity.incarnation)

    def make_store_of_its_own(self) -> ILogStore:
        """Return another new store, beside the one that ``make_store`` gave; by default what that gives again."""
        return self.make_store()

    @contract_test
    async def test_identity_stays(self) -> None:
        """Incarnation, cluster and origin are there after a restart (J-11)."""
        store = await self.opened()
        await store.adopt(
            type(store.identity)(self.node_id, store.identity.incarnation, cluster_id=b"c" * 16, origin=b"members")
        )
        identity = store.identity
        self.assertEqual((identity.cluster_id, identity.origin), (b"c" * 16, b"members"))
        again, _ = await self.reopened(store)
        self.assertEqual(again.identity, identity)

    # Reading and appending

    @contract_test
    async def test_append_and_read(self) -> None:
        """What was written is read as it was: every field, and every kind of payload, zeros among them."""
        payloads = [b"", b"\0" * 5000, b"\xff" * 5000, b"x", bytes(range(256)) * 4096]
        written = [
            Entry.make(i, 3, EntryKind.COMMAND, payload, time_ms=i, session=i * 7, sequence=i * 11)
            for i, payload in enumerate(payloads, 1)
        ]
        store = await self.holding(written[:2], written[2:])
        await self.assert_log(store, written)
        again, start = await self.reopened(store)
        self.assertEqual(start.last, LogId(3, len(payloads)))
        await self.assert_log(again, written)

    @contract_test
    async def test_read_a_part(self) -> None:
        """A read begins and ends where it is asked to."""
        log = entries(1, *[1] * 10)
        store = await self.holding(log)
        self.assertEqual(await store.read(4, 6, ROOMY), list(log[3:6]))
        self.assertEqual(await store.read(7, 7, ROOMY), [log[6]])

    @contract_test
    async def test_read_is_bounded_in_bytes(self) -> None:
        """A read gives as many entries as fit, and one at least: an empty answer would stop replication."""
        log = entries(1, *[1] * 10, size=1000)
        store = await self.holding(log)
        self.assertEqual(await store.read(2, 10, 1), [log[1]])
        some = await store.read(2, 10, 4 * len(log[0].raw))
        self.assertEqual(some, list(log[1 : 1 + len(some)]))
        self.assertTrue(1 <= len(some) <= 4, f"{len(some)} entries")

    @contract_test
    async def test_writes_overlap(self) -> None:
        """Writes that were not waited for take effect and complete in their order."""
        store = await self.opened()
        log = entries(1, *[1] * 50)
        order: list[int] = []
        waiting = []
        for entry in log:
            done = store.write(LogWrite(entries=(entry,), hard_state=HardState(1, 2, entry.index - 1)))
            waiting.append(done.addCallback(_note, order, entry.index))
        for each in waiting:
            await each
        self.assertEqual(order, [entry.index for entry in log])
        await self.assert_log(store, log)
        again, start = await self.reopened(store)
        self.assertEqual((start.last, start.hard_state), (LogId(1, 50), HardState(1, 2, 49)))
        await self.assert_log(again, log)

    @contract_test
    async def test_close_finishes_writes(self) -> None:
        """A write that was under way when the store was closed is there afterwards, and closing twice is allowed."""
        store = await self.opened()
        log = entries(1, 1, 1, 1)
        done = store.write(LogWrite(entries=log))
        again, start = await self.reopened(store)
        await done
        await store.close()
        self.assertEqual(start.last, LogId(1, 3))
        await self.assert_log(again, log)

    # Term, vote, commit

    @contract_test
    async def test_vote(self) -> None:
        """Term, vote and commit are there after a restart, the latest of each, and the log beside them (§5.1)."""
        log = entries(1, 1, 2)
        store = await self.holding(log, hard_state=HardState(2, 5, 1))
        await store.write(LogWrite(hard_state=HardState(3, 0, 1)))
        await store.write(LogWrite(hard_state=HardState(3, 9, 2)))
        again, start = await self.reopened(store)
        self.assertEqual((start.hard_state, start.last), (HardState(3, 9, 2), LogId(2, 2)))
        await self.assert_log(again, log)

    @contract_test
    async def test_vote_without_log(self) -> None:
        """A vote counts before there is a log."""
        store = await self.holding(hard_state=HardState(4, 1, 0))
        _, start = await self.reopened(store)
        self.assertEqual((start.hard_state, start.last), (HardState(4, 1, 0), NO_LOG))

    # Truncation

    @contract_test
    async def test_truncate_and_append(self) -> None:
        """A truncated suffix is gone for good, and others take its place; also within one write (§5.3)."""
        store = await self.holding(entries(1, *[1] * 10))
        other = entries(6, 2, 2)
        await store.write(LogWrite(truncate_after=5, entries=other, hard_state=HardState(2)))
        expected = (*entries(1, *[1] * 5), *other)
        await self.assert_log(store, expected)
        again, start = await self.reopened(store)
        self.assertEqual((start.last, start.hard_state.term), (LogId(2, 7), 2))
        self.assertEqual(start.terms, ((1, 1), (6, 2)))
        await self.assert_log(again, expected)

    @contract_test
    async def test_truncate_without_appending(self) -> None:
        """A truncation that nothing follows survives a restart."""
        store = await self.holding(entries(1, *[1] * 10))
        await store.write(LogWrite(truncate_after=3))
        await self.assert_log(store, entries(1, 1, 1, 1))
        again, start = await self.reopened(store)
        self.assertEqual(start.last, LogId(1, 3))
        await again.write(LogWrite(entries=entries(4, 3)))
        await self.assert_log(again, (*entries(1, 1, 1, 1), *entries(4, 3)))

    @contract_test
    async def test_truncate_everything(self) -> None:
        """A log can be truncated to nothing, and begins anew at index 1."""
        store = await self.holding(entries(1, *[1] * 10))
        await store.write(LogWrite(truncate_after=0))
        await store.write(LogWrite(entries=entries(1, 2)))
        again, start = await self.reopened(store)
        self.assertEqual((start.purged, start.last, start.terms), (NO_LOG, LogId(2, 1), ((1, 2),)))
        await self.assert_log(again, entries(1, 2))

    # Purging and resetting

    @contract_test
    async def test_purge_nothing(self) -> None:
        """Purging up to before the first entry changes nothing."""
        log = entries(1, 1, 1)
        store = await self.holding(log)
        await store.purge(NO_LOG)
        await self.assert_log(store, log)

    @contract_test
    async def test_purge_a_prefix(self) -> None:
        """Purged entries cannot be read, and the error names the first one that is left (H-60); the others stay."""
        log = entries(1, 1, 1, 1, 2, 2, 2, 3, 3)
        store = await self.holding(log[:4], log[4:])
        await store.purge(LogId(2, 5))
        error = await refused(self, LogCompacted, store.read(5, 8, ROOMY))
        self.assertEqual(error.first_index, 6)
        await self.assert_log(store, log[5:])
        again, start = await self.reopened(store)
        self.assertLessEqual(start.purged.index, 5)
        self.assertEqual(start.last, LogId(3, 8))
        left = log[start.purged.index :]
        self.assertEqual(start.terms[0], (left[0].index, left[0].term))
        await self.assert_log(again, left)

    @contract_test
    async def test_purge_everything(self) -> None:
        """With the whole log purged, its last position is still known, and the log goes on from there."""
        log = entries(1, 1, 1, 2)
        store = await self.holding(log, hard_state=HardState(2, 1, 3))
        await store.purge(LogId(2, 3))
        error = await refused(self, LogCompacted, store.read(3, 3, ROOMY))
        self.assertEqual(error.first_index, 4)
        more = entries(4, 2, 2)
        await store.write(LogWrite(entries=more))
        await self.assert_log(store, more)
        again, start = await self.reopened(store)
        self.assertEqual((start.last, start.hard_state), (LogId(2, 5), HardState(2, 1, 3)))
        await self.assert_log(again, more)

    @contract_test
    async def test_last_of_a_purged_log(self) -> None:
        """A log that was purged to its end reports the purge point as its last position, never nothing."""
        store = await self.holding(entries(1, 1, 1, 2))
        await store.purge(LogId(2, 3))
        _, start = await self.reopened(store)
        self.assertEqual(start.last, LogId(2, 3))
        self.assertLessEqual(start.purged.index, 3)

    @contract_test
    async def test_reset(self) -> None:
        """After a reset the log is empty, begins behind the given position, and keeps term and vote (S-17, J-81)."""
        store = await self.holding(entries(1, *[1] * 10), hard_state=HardState(4, 2, 10))
        await store.write(LogWrite(reset=LogId(3, 100)))
        error = await refused(self, LogCompacted, store.read(10, 10, ROOMY))
        self.assertEqual(error.first_index, 101)
        again, start = await self.reopened(store)
        self.assertEqual((start.purged, start.last, start.terms), (LogId(3, 100), LogId(3, 100), ()))
        self.assertEqual((start.hard_state.term, start.hard_state.voted_for), (4, 2))
        more = entries(101, 4, 4)
        await again.write(LogWrite(entries=more))
        await self.assert_log(again, more)

    @contract_test
    async def test_reset_and_append(self) -> None:
        """Reset, entries and hard state can be one write."""
        store = await self.holding(entries(1, 1, 1))
        more = entries(51, 5)
        await store.write(LogWrite(reset=LogId(4, 50), entries=more, hard_state=HardState(5, 0, 50)))
        await self.assert_log(store, more)
        again, start = await self.reopened(store)
        self.assertEqual((start.purged, start.last), (LogId(4, 50), LogId(5, 51)))
        self.assertEqual(start.hard_state, HardState(5, 0, 50))
        await self.assert_log(again, more)

    # What opening reports

    @contract_test
    async def test_start_reports_terms(self) -> None:
        """Each run of entries with one term is reported, whatever the writes were that brought it."""
        store = await self.holding(entries(1, 1, 1, 2), entries(4, 2, 5), entries(6, 5, 5, 6))
        _, start = await self.reopened(store)
        self.assertEqual(start.terms, ((1, 1), (3, 2), (5, 5), (8, 6)))

    @contract_test
    async def test_start_reports_configurations(self) -> None:
        """Every configuration in the log is reported in order, and one that was truncated is not (H-41)."""
        configs = [
            Entry.make(index, 1, EntryKind.CONFIG, membership(*range(1, count + 1)).encode())
            for index, count in ((2, 1), (4, 2), (6, 3))
        ]
        log = list(entries(1, *[1] * 6))
        for each in configs:
            log[each.index - 1] = each
        store = await self.holding(log[:3], log[3:])
        store, start = await self.reopened(store)
        self.assertEqual(list(start.configs), configs)
        await store.write(LogWrite(truncate_after=5))
        _, start = await self.reopened(store)
        self.assertEqual(list(start.configs), configs[:2])

    @contract_test
    async def test_start_reports_no_configuration(self) -> None:
        """A log without a configuration reports none."""
        store = await self.holding(entries(1, 1, 1))
        _, start = await self.reopened(store)
        self.assertEqual(start.configs, ())

    @contract_test
    async def test_start_reports_tail(self) -> None:
        """The tail, if there is one, ends with the last entry and has no gap."""
        log = entries(1, *[1] * 20)
        store = await self.holding(log[:10], log[10:])
        _, start = await self.reopened(store)
        self.assertEqual(list(start.tail), list(log[len(log) - len(start.tail) :]))

    @contract_test
    async def test_start_reports_time(self) -> None:
        """No entry is later than the time that is reported: the leader's time must not fall (H-83)."""
        store = await self.holding(entries(1, 1, 1, time_ms=1_000_000), entries(3, 1, time_ms=2_000_000))
        _, start = await self.reopened(store)
        self.assertGreaterEqual(start.last_time_ms, 2_000_000)

    # Scrubbing

    async def scrub(self, store: ILogStore) -> None:
        """Scrub a log that is whole to the end of a pass."""
        for _ in range(_MANY):
            step = await store.scrub(1000)
            self.assertIsNone(step.damage)
            if step.done:
                return
        self.fail("the pass has no end")

    @contract_test
    async def test_scrub(self) -> None:
        """A pass over a log that is whole finds nothing, and ends, whatever is written and purged in between."""
        store = await self.holding(entries(1, *[1] * 20))
        await self.scrub(store)
        await store.scrub(1000)
        more = entries(21, *[1] * 20)
        await store.write(LogWrite(entries=more))
        await store.purge(LogId(1, 30))
        await self.scrub(store)
        await self.assert_log(store, more[10:])

    # Crashes

    @contract_test
    async def test_acknowledged_writes_survive_a_crash(self) -> None:
        """What a fired Deferred promised is there after a power failure, after one more, and can be added to."""
        log = entries(1, 1, 1, 2, 2)
        store = await self.holding(log[:2], log[2:], hard_state=HardState(2, 3, 3))
        for _ in range(2):
            store = self.crash(store)
            start = await store.open()
            self.addCleanup(store.close)
            self.assertEqual((start.last, start.hard_state), (LogId(2, 4), HardState(2, 3, 3)))
            await self.assert_log(store, log)
        await store.write(LogWrite(truncate_after=3, entries=entries(4, 3)))
        store = self.crash(store)
        await store.open()
        self.addCleanup(store.close)
        await self.assert_log(store, (*log[:3], *entries(4, 3)))
