"""The log store on files: group commit, and the life cycle. docs/storage-format.rst describes the files."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import ConfigError, LogCompacted, StorageFailed
from ..raft import Entry, LogId, LogWrite, Start
from ._executor import IExecutor, ThreadExecutor
from ._files import IFileSystem, RealFileSystem
from ._log_writer import LogWriter
from ._record import SECTOR, Purge
from .interfaces import Identity, ILogStore, ScrubStep

__all__ = ["FileLogStore"]

_T = TypeVar("_T")
_Item = tuple[LogWrite | Purge, Deferred[None]]
_MIN_SEGMENT_BYTES = 16 << 10
_MAX_SEGMENT_BYTES = 1 << 30
_MAX_RECORD_BYTES = 4 << 20
_SLOW_SECONDS = 1.0
"""A write that takes longer is worth a warning (S-21)."""


def _detach(_deferred: Deferred[Any]) -> None:
    """Nobody waits for it: its callbacks do all that is to be done, and report failures."""


@implementer(ILogStore)
class FileLogStore:
    """A log in append-only segments, with term and vote in the same stream.

    Everything that is written while one sync runs goes into the next record, with one sync for all of it. Memory use
    does not grow with the number of entries.

    :param directory: the log's own directory. It is made if missing; its parent must exist.
    :param node_id: whose log it is; a directory of another node is refused.
    :param reactor: provides ``IReactorTime``, and threads unless ``executor`` is given. Without one there is no idle
        time, and an empty record is written at ``close`` only.
    :param executor: where the blocking work runs; it must keep the order, and stays the caller's. By default a thread
        of the store's own.
    :param file_system: the files.
    :param random_bytes: makes the incarnation of a new directory, and the salts of segments.
    :param segment_bytes: size of a segment file. Purging frees whole segments.
    :param reserve_bytes: size of the file that is written to when the disk is full (S-10).
    :param tail_bytes: about how many bytes of the newest entries ``open`` hands out.
    :param idle_seconds: after so long without a write an empty record is written, which tells a later opening that
        damage before it is no torn write.
    """

    log = Logger()

    def __init__(
        self,
        directory: str | os.PathLike[str],
        node_id: int,
        *,
        reactor: Any = None,
        executor: IExecutor | None = None,
        file_system: IFileSystem | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        segment_bytes: int = 16 << 20,
        reserve_bytes: int = 4 << 20,
        tail_bytes: int = 4 << 20,
        idle_seconds: float = 0.1,
    ) -> None:
        if not _MIN_SEGMENT_BYTES <= segment_bytes <= _MAX_SEGMENT_BYTES:
            rule = f"must be between {_MIN_SEGMENT_BYTES} and {_MAX_SEGMENT_BYTES}"
            raise ConfigError("segment_bytes", segment_bytes, rule)
        if not _MIN_SEGMENT_BYTES <= reserve_bytes <= _MAX_SEGMENT_BYTES or reserve_bytes % SECTOR:
            rule = f"must be a multiple of {SECTOR} between {_MIN_SEGMENT_BYTES} and {_MAX_SEGMENT_BYTES}"
            raise ConfigError("reserve_bytes", reserve_bytes, rule)
        if not idle_seconds > 0:
            raise ConfigError("idle_seconds", idle_seconds, "must be greater than 0")
        if executor is None and reactor is None:
            raise ConfigError("executor", None, "is needed where there is no reactor")
        self.identity: Identity
        self._directory = os.fspath(directory).rstrip("/") or "/"
        self._reactor = reactor
        self._idle_seconds = idle_seconds
        self._owned = ThreadExecutor(reactor, f"log-{node_id}") if executor is None else None
        self._executor: IExecutor = executor if self._owned is None else self._owned  # type: ignore[assignment]
        self._writer = LogWriter(
            RealFileSystem() if file_system is None else file_system,
            self._directory,
            node_id,
            random_bytes,
            segment_bytes,
            reserve_bytes,
            min(_MAX_RECORD_BYTES, segment_bytes // 4),
            tail_bytes,
        )
        self._opened = False
        self._recovered = False
        self._failure: BaseException | None = None
        self._pending: list[_Item] = []
        self._durable: deque[Deferred[None]] = deque()
        self._firing = False
        self._writing = False
        self._housekeeping = False
        self._closing = False
        self._closed = False
        self._close_waiters: list[Deferred[None]] = []
        self._purged = 0
        self._marked = True
        self._started_at = 0.0
        self._idle_call: Any = None

    # ILogStore

    def open(self) -> Deferred[Start]:
        """See :meth:`ILogStore.open`."""
        if self._opened or self._closing:
            return fail(StorageFailed("open", self._directory, "it was opened before"))
        self._opened = True
        if self._reactor is not None:
            self._started_at = self._reactor.seconds()
        return self._run(self._writer.open).addCallback(self._found)

    def _found(self, result: tuple[Identity, Start]) -> Start:
        self._recovered = True
        self.identity, start = result
        self._purged = start.purged.index
        self._warn()
        return start

    def adopt(self, identity: Identity) -> Deferred[None]:
        """See :meth:`ILogStore.adopt`."""
        refusal = self._refusal("adopt")
        if refusal is not None:
            return fail(refusal)
        return self._run(self._writer.adopt, identity).addCallback(self._adopted)

    def _adopted(self, identity: Identity) -> None:
        self.identity = identity

    def clear_repair(self) -> Deferred[None]:
        """See :meth:`ILogStore.clear_repair`."""
        refusal = self._refusal("clear_repair")
        if refusal is not None:
            return fail(refusal)
        return self._run(self._writer.clear_repair).addCallback(self._adopted)

    def write(self, write: LogWrite) -> Deferred[None]:
        """See :meth:`ILogStore.write`."""
        return self._submit(write)

    def purge(self, upto: LogId) -> Deferred[None]:
        """See :meth:`ILogStore.purge`. Space comes back in whole segments.

        :raises InvariantBroken: if ``upto`` is no position of the log.
        """
        if upto.index <= self._purged:
            return self._submit(LogWrite())
        done = self._submit(Purge(upto))
        self._purged = upto.index
        return done

    def read(self, first: int, last: int, max_bytes: int) -> Deferred[list[Entry]]:
        """See :meth:`ILogStore.read`.

        :raises ValueError: if ``first`` lies behind the last durable entry; the store goes on.
        """
        refusal = self._refusal("read")
        if refusal is None and first <= self._purged:
            refusal = LogCompacted(self._purged + 1)
        if refusal is not None:
            return fail(refusal)
        return self._run(self._writer.read, first, last, max_bytes)

    @property
    def full(self) -> bool:
        """See :attr:`ILogStore.full`."""
        return self._writer.full

    def space(self, keep: int) -> Deferred[int]:
        """See :meth:`ILogStore.space`."""
        refusal = self._refusal("space")
        if refusal is not None:
            return fail(refusal)
        return self._run(self._writer.space, keep)

    def scrub(self, max_bytes: int) -> Deferred[ScrubStep]:
        """See :meth:`ILogStore.scrub`: header, records and seal of each segment that is sealed."""
        refusal = self._refusal("scrub")
        if refusal is not None:
            return fail(refusal)
        return self._run(self._writer.scrub, max_bytes)

    def close(self) -> Deferred[None]:
        """See :meth:`ILogStore.close`."""
        if self._closed:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._close_waiters.append(waiter)
        if not self._closing:
            self._closing = True
            if not self._writing:
                self._finish()
        return waiter

    # Running things on the executor

    def _refusal(self, operation: str) -> BaseException | None:
        """Return the error that every call gets from now on, or None while the store works."""
        if self._failure is not None:
            return self._failure
        if self._closing or not self._opened:
            return StorageFailed(operation, self._directory, "the store is not open")
        return None

    def _run(self, call: Callable[..., _T], *args: Any) -> Deferred[_T]:
        """Run a call whose failure fails the store. Cancelling the result gives up waiting for it."""
        result: Deferred[_T] = Deferred()

        def failed(failure: Failure) -> None:
            if not failure.check(LogCompacted, ValueError):
                self._fail(failure)
            result.errback(failure)

        _detach(maybeDeferred(self._executor.run, call, *args).addCallbacks(result.callback, failed))
        return result

    def _fail(self, failure: Failure) -> None:
        """From now on everything fails with this: what the disk holds is unknown, and nothing is retried."""
        error = failure.value
        if self._failure is not None or error is None:
            return
        self._failure = error
        if self._recovered:
            self.log.critical("the log in {directory} failed: {error}", directory=self._directory, error=error)
        pending, self._pending = self._pending, []
        for _, done in pending:
            done.errback(error)

    # Writing in groups

    def _submit(self, item: LogWrite | Purge) -> Deferred[None]:
        refusal = self._refusal("write")
        if refusal is not None:
            return fail(refusal)
        done: Deferred[None] = Deferred()
        self._pending.append((item, done))
        if not self._writing:
            self._write_group()
        return done

    def _write_group(self) -> None:
        group, self._pending = self._pending, []
        self._writing = True
        if self._reactor is not None:
            self._started_at = self._reactor.seconds()
        items = [item for item, _ in group]
        _detach(
            maybeDeferred(self._executor.run, self._commit, items).addCallbacks(
                self._group_durable, self._group_failed, callbackArgs=(group,), errbackArgs=(group,)
            )
        )

    def _commit(self, items: list[LogWrite | Purge]) -> bool:
        # On the executor's thread, so that the reactor's never looks at what the writer owns.
        self._writer.commit(items)
        return self._writer.has_work

    def _group_durable(self, has_work: bool, group: list[_Item]) -> None:
        self._marked = False
        self._durable.extend([done for _, done in group])
        self._warn()
        if self._pending:
            # Before the callbacks, so that the disk does not wait for what they do.
            self._write_group()
        else:
            self._writing = False
            if self._closing:
                self._finish()
        if has_work:
            self._keep_house(True)
        self._watch_idle()
        self._fire()

    def _fire(self) -> None:
        """Fire what is durable, in call order, also when a callback writes and that completes at once."""
        if self._firing:
            return
        self._firing = True
        try:
            while self._durable:
                self._durable.popleft().callback(None)
        finally:
            self._firing = False

    def _group_failed(self, failure: Failure, group: list[_Item]) -> None:
        self._writing = False
        self._fail(failure)
        for _, done in group:
            done.errback(failure)
        if self._closing:
            self._finish()

    def _warn(self) -> None:
        if self._reactor is not None:
            seconds = self._reactor.seconds() - self._started_at
            if seconds > _SLOW_SECONDS:
                self.log.warn("a write to {directory} took {seconds:.1f} s", directory=self._directory, seconds=seconds)
        while self._writer.warnings:
            self.log.warn("{text}", text=self._writer.warnings.pop(0))

    # Between the writes

    def _keep_house(self, has_work: bool) -> None:
        """Remove purged segments and prepare the next one, one step at a time, so that writes come in between."""
        if has_work and not self._housekeeping and not self._closing and self._failure is None:
            self._housekeeping = True
            _detach(self._run(self._writer.do_work).addCallbacks(self._kept_house, self._house_failed))

    def _kept_house(self, has_work: bool) -> None:
        self._housekeeping = False
        self._keep_house(has_work)

    def _house_failed(self, _failure: Failure) -> None:
        # The store has failed with it; whoever writes next is told.
        self._housekeeping = False

    def _watch_idle(self) -> None:
        if self._reactor is not None and self._idle_call is None and not self._closing:
            self._idle_call = self._reactor.callLater(self._idle_seconds, self._idle)

    def _idle(self) -> None:
        self._idle_call = None
        if self._marked or self._closing or self._failure is not None or self._writer.full:
            return
        left = self._started_at + self._idle_seconds - self._reactor.seconds()
        if self._writing or left > 0:
            delay = min(max(left, 0.001), self._idle_seconds) if not self._writing else self._idle_seconds
            self._idle_call = self._reactor.callLater(delay, self._idle)
            return
        self._marked = True
        _detach(self._run(self._writer.mark).addErrback(self._house_failed))

    def _finish(self) -> None:
        if self._idle_call is not None:
            self._idle_call.cancel()
            self._idle_call = None
        _detach(Deferred.fromCoroutine(self._close_all()).addBoth(self._report_closed))

    async def _close_all(self) -> None:
        failure: Exception | None = None
        try:
            await self._executor.run(self._writer.close, self._failure is None)
        except Exception as error:  # whatever it is, the thread must end, too
            failure = error
        if self._owned is not None:
            await self._owned.stop()
        if failure is not None:
            raise failure

    def _report_closed(self, result: Failure | None) -> None:
        self._closed = True
        waiters, self._close_waiters = self._close_waiters, []
        for waiter in waiters:
            waiter.callback(result)
