"""Log stores under crashes: what a log holds, what may be found of it, and stories of writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface import implementer

from ...errors import StorageError
from ...raft import NO_LOG, Entry, EntryKind, HardState, LogId, LogWrite, Start
from ...storage import Identity, IExecutor, ILogStore
from .._simfs import SimulatedFileSystem
from ._explore import CrashSubject, Story

__all__ = [
    "GatedExecutor",
    "LogContent",
    "LogStep",
    "LogSubject",
    "MakeLog",
    "foresee",
    "log_story",
    "outcome",
    "parts_of",
    "work",
]

_T = TypeVar("_T")

LogStep = LogWrite | LogId | Identity | tuple[LogWrite, ...] | Literal["reopen"]
"""A write; a purge up to a position; the adoption of an identity; writes that are under way together; or a clean stop
and a new opening."""

MakeLog = Callable[[SimulatedFileSystem, IExecutor], ILogStore]
"""Makes a store, not open, whose blocking work runs on the executor: there it is done at once, or when a group of
writes has been handed over."""


@implementer(IExecutor)
class GatedExecutor:
    """Runs calls at once, or holds them back while it is closed."""

    def __init__(self) -> None:
        self._held: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []
        self._closed = False

    def run(self, call: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """See :meth:`~zlayer_consensus.storage.IExecutor.run`."""
        done: Deferred[Any] = Deferred()
        self._held.append((done, call, args))
        if not self._closed:
            self.open()
        return done

    def stop(self) -> Deferred[None]:
        """See :meth:`~zlayer_consensus.storage.IExecutor.stop`."""
        return self.run(lambda: None)

    def close(self) -> None:
        """Hold back what comes, until :meth:`step` or :meth:`open`."""
        self._closed = True

    def step(self) -> bool:
        """Do the oldest call that is held back; say whether there was one."""
        if not self._held:
            return False
        done, call, args = self._held.pop(0)
        try:
            value = call(*args)
        except Exception:
            done.errback(Failure())
        else:
            done.callback(value)
        return True

    def open(self) -> None:
        """Do what was held back, in order, and what comes at once from now on."""
        self._closed = True
        while self.step():
            pass
        self._closed = False


def outcome(waiting: Deferred[_T]) -> _T:
    """Return what a Deferred has fired with, or raise it.

    :raises AssertionError: if it has not fired.
    """
    found: list[Any] = []
    _ = waiting.addBoth(found.append)
    if not found:
        raise AssertionError("the store has not completed a call, though everything that it waits for has ended")
    if isinstance(found[0], Failure):
        found[0].raiseException()
    return cast(_T, found[0])


_FRESH = HardState()


@dataclass(frozen=True)
class LogContent:
    """What a log holds.

    :param entries: those that are in it, or were purged, by index.
    :param start: after which position it begins: where it was reset, else 0.
    :param purged: up to where it may have been purged.
    """

    entries: dict[int, Entry] = field(default_factory=dict)
    hard_state: HardState = _FRESH
    start: LogId = NO_LOG
    purged: LogId = NO_LOG
    cluster_id: bytes = b""
    origin: bytes = b""

    @property
    def last(self) -> LogId:
        """Its last position."""
        return self.entries[max(self.entries)].id if self.entries else max(self.start, self.purged, key=_index)

    def position(self, index: int) -> LogId | None:
        """Return a position of it, None if there is none."""
        if index == self.start.index:
            return self.start
        return self.entries[index].id if index in self.entries else None

    def after(self, step: LogWrite | LogId | Identity) -> LogContent:
        """Return what it holds once a step is done."""
        if isinstance(step, LogId):
            return replace(self, purged=max(self.purged, step, key=_index))
        if isinstance(step, Identity):
            return replace(self, cluster_id=step.cluster_id, origin=step.origin)
        entries, content = self.entries, self
        if step.reset is not None:
            entries, content = {}, replace(content, start=step.reset, purged=step.reset)
        if step.truncate_after is not None:
            entries = {index: entry for index, entry in entries.items() if index <= step.truncate_after}
        if step.entries:
            entries = {**entries, **{entry.index: entry for entry in step.entries}}
        return replace(content, entries=entries, hard_state=step.hard_state or self.hard_state)

    def during(self, step: LogWrite | LogId | Identity) -> list[LogContent]:
        """Return what may be found after a crash while a step is under way: also a prefix of its entries.

        A write that is split may begin with its term and vote.
        """
        found = [self]
        if isinstance(step, LogWrite):
            for count in range(len(step.entries)):
                part = self.after(LogWrite(step.reset, step.truncate_after, step.entries[:count]))
                found.append(part)
                if step.hard_state is not None:
                    found.append(replace(part, hard_state=step.hard_state._replace(commit=self.hard_state.commit)))
        return [*found, self.after(step)]

    def next_write(self) -> LogWrite:
        """Return what a leader of the next term would append."""
        term = max(self.last.term, self.hard_state.term) + 1
        time_ms = max((entry.time_ms for entry in self.entries.values()), default=0)
        added = Entry.make(self.last.index + 1, term, EntryKind.NOOP, b"", time_ms)
        return LogWrite(entries=(added,), hard_state=HardState(term, 0, self.hard_state.commit))

    def __str__(self) -> str:
        """Show it, of the entries first and last only."""
        runs: list[str] = []
        for index, entry in sorted(self.entries.items()):
            runs.append(f"{index}@{entry.term}" if index > self.purged.index else "")
        kept = [run for run in runs if run]
        ends = f"{kept[0]} … {kept[-1]}" if len(kept) > 6 else " ".join(kept)
        return f"{self.hard_state}, purged to {self.purged}, last {self.last}, {len(kept)} entries: {ends}"


def _index(position: LogId) -> int:
    return position.index


class LogSubject(CrashSubject):
    """A log store under crashes; its states are of :class:`LogContent`.

    :param make: makes the store.
    """

    def __init__(self, make: MakeLog) -> None:
        self._make = make

    def recover(self, files: SimulatedFileSystem) -> LogContent:
        """Open the log, read all of it, and see that what the opening reports is so."""
        return self.read(*self.opened(files))

    def opened(self, files: SimulatedFileSystem) -> tuple[ILogStore, Start]:
        """Open the log."""
        log = self._make(files, GatedExecutor())
        return log, outcome(log.open())

    def read(self, log: ILogStore, start: Start) -> LogContent:
        """Read all that is in an open log.

        :raises AssertionError: if what its opening reported is not so.
        """
        first, last = start.purged.index + 1, start.last.index
        entries = outcome(log.read(first, last, 1 << 62)) if last >= first else []
        if [entry.index for entry in entries] != list(range(first, last + 1)):
            raise AssertionError(f"entries {first} to {last} were to be read, and {len(entries)} came")
        _check_report(start, entries)
        identity = log.identity
        return LogContent(
            {entry.index: entry for entry in entries},
            start.hard_state,
            start.purged,
            start.purged,
            identity.cluster_id,
            identity.origin,
        )

    def admits(self, expected: LogContent, found: LogContent) -> bool:
        """Compare. A purge is durable at the latest when space comes back: until then, more may be found."""
        same = (expected.hard_state, expected.cluster_id, expected.origin, expected.last) == (
            found.hard_state,
            found.cluster_id,
            found.origin,
            found.last,
        )
        if not same or not expected.start.index <= found.purged.index <= expected.purged.index:
            return False
        if found.purged not in (expected.position(found.purged.index), expected.purged):
            return False
        return found.entries == {i: e for i, e in expected.entries.items() if i > found.purged.index}

    def go_on(self, files: SimulatedFileSystem) -> LogContent:
        """Append an entry of the next term, with that term."""
        log, start = self.opened(files)
        content = self.read(log, start)
        write = content.next_write()
        outcome(log.write(write))
        return content.after(write)


def _check_report(start: Start, entries: Sequence[Entry]) -> None:
    """See that what an opening says of entries is so.

    :raises AssertionError: if it is not.
    """
    runs: list[tuple[int, int]] = []
    for entry in entries:
        if not runs or runs[-1][1] != entry.term:
            runs.append((entry.index, entry.term))
    if tuple(runs) != start.terms:
        raise AssertionError(f"the opening reports the terms {start.terms}, and they are {runs}")
    configs = tuple(entry for entry in entries if entry.kind == EntryKind.CONFIG)
    if configs != start.configs:
        raise AssertionError(f"the opening reports {len(start.configs)} configurations, and there are {len(configs)}")
    if start.tail and list(start.tail) != list(entries[-len(start.tail) :]):
        raise AssertionError("the tail that the opening reports is not the log's")
    if start.last_time_ms < max((entry.time_ms for entry in entries), default=0):
        raise AssertionError(f"the log has times beyond {start.last_time_ms}")


def log_story(make: MakeLog, steps: Iterable[LogStep]) -> Story:
    """Return a story in which a log store is opened, does these steps, and is closed."""

    def play(files: SimulatedFileSystem) -> Iterator[Sequence[LogContent]]:
        content = LogContent()
        yield [content]
        executor = GatedExecutor()
        log = make(files, executor)
        outcome(log.open())
        for step in steps:
            if step == "reopen":
                outcome(log.close())
                log = make(files, executor)
                outcome(log.open())
                continue
            parts = parts_of(step)
            yield from work(log, executor, content, parts)
            content = foresee(content, parts)[1]
            yield [content]
        outcome(log.close())

    return play


Part = LogWrite | LogId | Identity


def parts_of(step: LogStep) -> Sequence[Part]:
    """Return the calls that a step consists of."""
    assert not isinstance(step, str)
    return step if isinstance(step, tuple) and not isinstance(step, LogId) else (step,)


def foresee(content: LogContent, parts: Sequence[Part]) -> tuple[list[LogContent], LogContent]:
    """Return what a crash may leave while calls are under way, and what the log holds when they are done."""
    possible = [content]
    for part in parts:
        possible += content.during(part)[1:]
        content = content.after(part)
    return possible, content


def work(
    log: ILogStore, executor: GatedExecutor, content: LogContent, parts: Sequence[Part]
) -> Iterator[list[LogContent]]:
    """Make all calls, then let the store work, call by call; yield what a crash may leave whenever that changes.

    What has been acknowledged is there from then on, at whatever time that was.
    """
    executor.close()
    acknowledged: list[int] = []
    waiting = [_begin(log, part).addCallback(_note, acknowledged, at) for at, part in enumerate(parts)]
    while True:
        done = len(acknowledged)
        if acknowledged != list(range(done)):
            raise AssertionError(f"write {acknowledged[-1]} of {len(parts)} is durable before an earlier one")
        _, base = foresee(content, parts[:done])
        yield foresee(base, parts[done:])[0]
        if not executor.step():
            break
    executor.open()
    # All of them fail if one does, and each failure has to be taken.
    errors = []
    for each in waiting:
        try:
            outcome(each)
        except StorageError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _note(_durable: None, acknowledged: list[int], at: int) -> None:
    acknowledged.append(at)


def _begin(log: ILogStore, part: Part) -> Deferred[None]:
    if isinstance(part, LogId):
        return log.purge(part)
    if isinstance(part, Identity):
        return log.adopt(part)
    return log.write(part)
