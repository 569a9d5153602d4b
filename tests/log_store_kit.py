"""What the tests of the log stores share: stores on a simulated disk, entries, and looking at results."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from zlayer_consensus.raft import Entry, EntryKind, LogWrite, Start
from zlayer_consensus.storage import FileLogStore, IFileSystem, ILogStore, InlineExecutor

T = TypeVar("T")

DIRECTORY = "/log"
WAL = f"{DIRECTORY}/wal"
SMALL = 16 << 10
"""Segments so small that a few writes fill one."""


def result(deferred: Deferred[T]) -> T:
    """Returns what a fired Deferred holds, or raises it."""
    found: list[Any] = []
    _ = deferred.addBoth(found.append)
    if not found:
        raise AssertionError("the Deferred has not fired")
    if isinstance(found[0], Failure):
        found[0].raiseException()
    return cast(T, found[0])


class HeldExecutor:
    """An executor whose calls wait until they are released: a disk that is as slow as the test wants."""

    def __init__(self) -> None:
        self.held: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def run(self, call: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Keeps the call."""
        done: Deferred[Any] = Deferred()
        self.held.append((done, call, args))
        return done

    def stop(self) -> Deferred[None]:
        """Has nothing to stop."""
        return self.run(lambda: None)

    def release(self) -> None:
        """Runs the oldest call."""
        done, call, args = self.held.pop(0)
        try:
            value = call(*args)
        except Exception:
            done.errback(Failure())
        else:
            done.callback(value)

    def release_all(self) -> None:
        """Runs every call, those that come up meanwhile too."""
        while self.held:
            self.release()


def store(file_system: IFileSystem, node_id: int = 1, **options: Any) -> FileLogStore:
    """Makes a file store on a simulated disk, with small segments, whose calls complete at once."""
    options.setdefault("executor", InlineExecutor())
    options.setdefault("segment_bytes", SMALL)
    options.setdefault("random_bytes", random.Random(f"salts of {node_id}").randbytes)
    return FileLogStore(DIRECTORY, node_id, file_system=file_system, **options)


def opened(file_system: IFileSystem, **options: Any) -> tuple[FileLogStore, Start]:
    """Makes a file store and opens it."""
    made = store(file_system, **options)
    return made, result(made.open())


def entry(index: int, term: int = 1, payload: bytes = b"", kind: int = EntryKind.COMMAND, time_ms: int = 0) -> Entry:
    """Makes an entry whose payload tells it from any other of its index."""
    return Entry.make(index, term, kind, payload or f"{term}-{index};".encode() * 20, time_ms or 1000 + index)


def entries(first: int, last: int, term: int = 1) -> tuple[Entry, ...]:
    """Makes entries first to last."""
    return tuple(entry(index, term) for index in range(first, last + 1))


def append(log: ILogStore, first: int, last: int, term: int = 1) -> None:
    """Appends entries, durably."""
    result(log.write(LogWrite(entries=entries(first, last, term))))


def content(log: ILogStore, start: Start) -> list[Entry]:
    """Reads every entry that a store says it has."""
    first = start.purged.index + 1
    if start.last.index < first:
        return []
    return result(log.read(first, start.last.index, 1 << 62))
