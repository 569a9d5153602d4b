"""A log store of the simplest kind, as somebody else might write one: each write replaces a file that holds it all.

It shows that the promises about crashes can be kept in another way than ours; and, with one of its steps left out, that
the exploration finds out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from zlayer_consensus import _cbor
from zlayer_consensus.errors import LogCompacted
from zlayer_consensus.raft import NO_LOG, Entry, EntryKind, HardState, LogId, LogWrite, Start
from zlayer_consensus.storage import Identity, IExecutor, IFileSystem, ILogStore, ScrubStep

__all__ = ["RewritingLogStore"]

_HOME = "/simple"
_FILE, _NEW = f"{_HOME}/log", f"{_HOME}/log.new"


@implementer(ILogStore)
class RewritingLogStore:
    """Keeps the log in one file.

    :param without: the step that is left out: ``sync``, ``sync_dir``, ``replace``, ``truncate`` or ``wait``.
    """

    full = False

    def __init__(self, files: IFileSystem, executor: IExecutor, without: str = "") -> None:
        self.identity = Identity(1, b"i" * 16)
        self._files = files
        self._executor = executor
        self._without = without
        self._entries: dict[int, Entry] = {}
        self._state = HardState()
        self._purged = NO_LOG
        self._failure: BaseException | None = None

    def open(self) -> Deferred[Start]:
        """See ILogStore."""
        return self._executor.run(self._open)

    def _open(self) -> Start:
        files = self._files
        files.mkdir(_HOME)
        files.sync_dir("/")
        if files.exists(_FILE):
            plain = _cbor.loads(files.read(_FILE, 0, files.size(_FILE)))
            self._entries = {entry.index: entry for entry in map(Entry.decode, plain["entries"])}
            self._state, self._purged = HardState(*plain["state"]), LogId(*plain["purged"])
            self.identity = Identity(1, b"i" * 16, plain["cluster"], plain["origin"])
        # What is there may be in the cache alone.
        self._save()
        return self._start()

    def _start(self) -> Start:
        entries = list(self._entries.values())
        runs: list[tuple[int, int]] = []
        for entry in entries:
            if not runs or runs[-1][1] != entry.term:
                runs.append((entry.index, entry.term))
        return Start(
            self._state,
            self._purged,
            entries[-1].id if entries else self._purged,
            tuple(runs),
            tuple(entry for entry in entries if entry.kind == EntryKind.CONFIG),
            last_time_ms=max((entry.time_ms for entry in entries), default=0),
        )

    def _save(self) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            self._replace()
        except BaseException as error:
            self._failure = error
            raise

    def _replace(self) -> None:
        files = self._files
        plain = {
            "entries": [entry.raw for entry in self._entries.values()],
            "state": list(self._state),
            "purged": list(self._purged),
            "cluster": self.identity.cluster_id,
            "origin": self.identity.origin,
        }
        if self._without == "replace" and files.exists(_FILE):
            file = files.open(_FILE)
        else:
            if files.exists(_NEW):
                files.remove(_NEW)
            file = files.create(_NEW)
        file.write(0, _cbor.dumps(plain))
        if self._without != "sync":
            file.sync()
        file.close()
        if files.exists(_NEW):
            files.rename(_NEW, _FILE)
        if self._without != "sync_dir":
            files.sync_dir(_HOME)

    def adopt(self, identity: Identity) -> Deferred[None]:
        """See ILogStore."""
        self.identity = Identity(1, b"i" * 16, identity.cluster_id, identity.origin)
        return self._executor.run(self._save)

    def write(self, write: LogWrite) -> Deferred[None]:
        """See ILogStore."""

        def change() -> None:
            if write.reset is not None:
                self._entries, self._purged = {}, write.reset
            if write.truncate_after is not None and self._without != "truncate":
                self._keep(lambda index: index <= (write.truncate_after or 0))
            self._entries.update({entry.index: entry for entry in write.entries})
            self._state = write.hard_state or self._state
            self._save()

        return self._run(change)

    def clear_repair(self) -> Deferred[None]:
        """See ILogStore. Nobody repairs it."""
        return self._executor.run(lambda: None)

    def space(self, keep: int) -> Deferred[int]:
        """See ILogStore. It does not look, and fails when there is none."""
        return self._executor.run(self._files.free, _HOME)

    def purge(self, upto: LogId) -> Deferred[None]:
        """See ILogStore."""

        def change() -> None:
            self._purged = upto
            self._keep(lambda index: index > upto.index)
            self._save()

        return self._run(change)

    def _keep(self, wanted: Callable[[int], bool]) -> None:
        self._entries = {index: entry for index, entry in self._entries.items() if wanted(index)}

    def _run(self, change: Callable[[], None]) -> Deferred[Any]:
        done = self._executor.run(change)
        if self._without == "wait":
            # Nobody waits for the disk: the write is called durable at once.
            early: Deferred[None] = Deferred()
            early.callback(None)
            return early
        return done

    def read(self, first: int, last: int, max_bytes: int) -> Deferred[list[Entry]]:
        """See ILogStore."""

        def entries() -> list[Entry]:
            if first <= self._purged.index:
                raise LogCompacted(self._purged.index + 1)
            return [self._entries[index] for index in range(first, last + 1)]

        return self._executor.run(entries)

    def scrub(self, max_bytes: int) -> Deferred[ScrubStep]:
        """See ILogStore. There is nothing that is not written to any more."""
        return self._executor.run(lambda: ScrubStep(done=True))

    def close(self) -> Deferred[None]:
        """See ILogStore."""
        return self._executor.run(lambda: None)
