"""Carries out committed entries, in order, in slices that do not hold up the reactor."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from .. import _cbor
from ..errors import (
    ApplyFailed,
    ConfigError,
    ConsensusError,
    DomainError,
    InvariantBroken,
    LogCompacted,
    NodeStopped,
    StorageCorrupt,
)
from ..raft import Entry, EntryKind, LogId, SnapshotPoint
from ..storage.interfaces import (
    ApplyContext,
    IReplaceableFiles,
    IReplaceableState,
    ISnapshotReader,
    IStateMachineFiles,
    IStateSink,
)
from ._digests import DIGEST_EVERY
from ._failures import error_in
from ._sessions import SessionLoader, SessionTable

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["REST_SECONDS", "SLICE_SECONDS", "Applier", "KeptReply"]

SLICE_SECONDS = 0.01
"""How long work that can be divided holds the reactor at once."""
_MOMENT_SECONDS = 0.001
"""Of many that ask for a slice in one turn of the reactor, as RPCs that arrive together do, one that takes longer is
the last: the others' entries wait for the next turn."""
REST_SECONDS = SLICE_SECONDS / 2
"""How long work for which nobody waits rests between two slices. The loop is free for others then; and the scheduler
gives the processor at once to a process that sleeps now and then, and lets one wait that never does."""
_FETCH_BYTES = 256 << 10
_LOOK_AT_CLOCK = 4096
"""The clock is read after as many units of work: the bytes of the entries, and 256 for each entry."""
_ENTRY_WORK = 256
_COMMAND = int(EntryKind.COMMAND)
_OK, _DOMAIN = b"\x00", b"\x01"


class KeptReply(bytes):
    """What a command that was carried out before has returned, as :meth:`Applier.decode_reply` takes it."""


class Applier:
    """The applied state: the machine, the session table beside it, and the position of both.

    :param runtime: the node's parts.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime
        self._machine = runtime.store.machine
        machine: Any = self._machine
        self._files = machine if IStateMachineFiles.providedBy(machine) else None
        """The machine, if part of its state lies in files of its own."""
        self.sessions = SessionTable()
        self.applied = 0
        """Index of the last applied entry."""
        self._term = 0
        self.time_ms = 0
        """Its time."""
        self.commit = 0
        """Entries up to here may be applied."""
        self.applying = False
        """Whether the machine is at work."""
        self.replacing = False
        """Whether the old state is gone, and the new one not there yet: then nobody may look at the machine."""
        self._counted_from = 0
        self.bytes_since_snapshot = 0
        self.bytes_applied = 0
        """Bytes of all entries that were applied since the start."""
        self.bytes_covered = 0
        """How many of those the newest snapshot has."""
        self._pumping = False
        self._halted = True
        self._reading = False
        self._preparing: Deferred[None] | None = None
        """What the machine waits for before the next command can be applied."""
        self._later: IDelayedCall | None = None
        self._waiters: list[tuple[int, int, Deferred[int]]] = []
        self._numbers = count()

    @property
    def last(self) -> LogId:
        """Position of the last applied entry."""
        return LogId(self._term, self.applied)

    @property
    def files_full(self) -> bool:
        """Whether files of the machine wait for space."""
        return self._files is not None and self._files.full

    @property
    def entries_since_snapshot(self) -> int:
        """Entries applied since a snapshot was last begun."""
        return self.applied - self._counted_from

    def when_applied(self, index: int) -> Deferred[int]:
        """Return a Deferred that fires with ``index`` once it is applied, and the state can be read."""
        if self.applied >= index and not self.replacing:
            return succeed(index)
        waiter: Deferred[int] = Deferred()
        heappush(self._waiters, (index, next(self._numbers), waiter))
        return waiter

    def pump(self) -> None:
        """Apply what may be applied, for one slice; more follows in later turns of the reactor."""
        if self._pumping or self._halted or self._reading or self._later or self.applied >= self.commit:
            return
        if self._preparing is not None:
            return
        self._pumping = True
        try:
            self._slice()
        except Exception as error:
            self._halted = True
            self._rt.broke("Applying", error)
        finally:
            self._pumping = False
            self.applying = False

    def _slice(self) -> None:
        clock = self._rt.clock
        began = clock.seconds()
        end = began + SLICE_SECONDS
        in_time = True
        while in_time and self.applied < self.commit and not self._halted:
            entries = self._rt.core.entries(self.applied + 1, self.commit, _FETCH_BYTES)
            if not entries:
                self._read()
                break
            in_time = self._apply_some(entries, end)
        self._progress()
        if not self._halted and self._later is None and (not in_time or clock.seconds() > began + _MOMENT_SECONDS):
            self._later = clock.callLater(0, self._go_on)

    def _apply_some(self, entries: Iterable[Entry], end: float) -> bool:
        """Apply entries until the time is over; return whether there is time left."""
        proposals, machine, files = self._rt.proposals, self._machine, self._files
        digests = self._rt.digests
        decode, seconds = self._rt.types.decode_request, self._rt.clock.seconds
        work = 0
        for entry in entries:
            index, term, kind, raw = entry
            if index != self.applied + 1:
                raise InvariantBroken(f"entry {index} was to be applied after {self.applied}")
            if files is not None and kind == _COMMAND and not self._ready(files, entry):
                return False
            time_ms, session, sequence, payload = entry.command()
            if time_ms > self.time_ms:
                self.time_ms = time_ms
            failed = False
            value: Any
            if kind == _COMMAND and not session:
                self.applying = True
                try:
                    value = machine.apply(decode(payload), ApplyContext(index, self.time_ms))
                except DomainError as error:
                    value, failed = error, True  # a result like any other
                except Exception as error:
                    raise self._failed(index, term, error) from error
                self.applying = False
            else:
                value, failed = self._apply_special(entry, session, sequence, payload)
            self.applied, self._term = index, term
            if index % DIGEST_EVERY == 0:
                digests.note(index)
            self.bytes_since_snapshot += len(raw)
            self.bytes_applied += len(raw)
            if proposals.waits:
                proposals.settle(index, term, value, failed)
                if self._halted:
                    return False
            work += len(raw) + _ENTRY_WORK
            if work >= _LOOK_AT_CLOCK:
                work = 0
                if seconds() >= end:
                    return False
        return bool(seconds() < end)

    def _apply_special(self, entry: Entry, session: int, sequence: int, payload: bytes) -> tuple[Any, bool]:
        """Return the result of an entry that is not just a command, and whether it is an error or a kept reply."""
        if entry.kind == EntryKind.COMMAND:
            return self._apply_once(entry, session, sequence, payload)
        if entry.kind == EntryKind.SESSION:
            try:
                self.sessions.register(entry.index, self.time_ms, payload)
            except ValueError as error:
                raise ApplyFailed(entry.index, entry.term, str(error)) from error
            return entry.index, False
        return None, False

    def _ready(self, files: Any, entry: Entry) -> bool:
        """Say whether the machine can apply a command without waiting for its disk; if not, go on when it can."""
        try:
            command = self._rt.types.decode_request(entry.command()[3])
        except Exception:
            return True  # applying it says what is wrong with it
        waiting: Deferred[None] | None = files.prepare(command)
        if waiting is None:
            return True
        self._preparing = waiting
        _ = waiting.addCallbacks(self._prepared, self._prepare_failed, callbackArgs=(waiting,))
        return False

    def _prepared(self, _: None, waiting: Deferred[None]) -> None:
        if self._preparing is waiting:
            self._preparing = None
            self.pump()

    def _prepare_failed(self, failure: Failure) -> None:
        self._rt.fail(error_in(failure))

    def _execute(self, entry: Entry, payload: bytes) -> tuple[Any, bool]:
        self.applying = True
        try:
            command = self._rt.types.decode_request(payload)
            return self._machine.apply(command, ApplyContext(entry.index, self.time_ms)), False
        except DomainError as error:
            return error, True
        except Exception as error:
            raise self._failed(entry.index, entry.term, error) from error
        finally:
            self.applying = False

    def _failed(self, index: int, term: int, error: Exception) -> ApplyFailed:
        """Not a result, but a bug: the applied index does not move (H-81)."""
        self._rt.log.failure("The application failed at entry {index}", index=index)
        return ApplyFailed(index, term, f"{type(error).__name__}: {error}")

    def _apply_once(self, entry: Entry, session: int, sequence: int, payload: bytes) -> tuple[Any, bool]:
        known = self.sessions.look_up(session, sequence, self.time_ms, payload)
        if known is None:
            value, failed = self._execute(entry, payload)
            try:
                reply = self.encode_reply(value, failed)
            except Exception as error:  # whatever a strange result does to its conversion
                raise ApplyFailed(entry.index, entry.term, f"its result cannot be kept: {error}") from error
            self.sessions.keep(session, sequence, payload, reply)
            return value, failed
        if isinstance(known, ConsensusError):
            return known, True
        # Decoded only where somebody waits: one that this version cannot read must not stop every replica.
        return KeptReply(known), True

    def encode_reply(self, value: Any, failed: bool) -> bytes:
        """Encode a result for the session table.

        Raises whatever the conversion raises if it cannot be encoded.
        """
        if failed:
            return _DOMAIN + _cbor.dumps([value.reason, value.message, value.details])
        return _OK + self._rt.types.encode_response(value)

    def decode_reply(self, reply: bytes) -> tuple[Any, bool]:
        """Return what :meth:`encode_reply` got.

        Raises whatever the conversion raises if it cannot be decoded, as after a change of the response's type.
        """
        if reply[:1] == _OK:
            return self._rt.types.decode_response(reply[1:]), False
        return DomainError(*_cbor.loads(reply[1:])), True

    def _go_on(self) -> None:
        self._later = None
        self.pump()

    def _progress(self) -> None:
        """Tell everybody who waits for the applied index."""
        applied = self.applied
        self._rt.driver.input(self._rt.core.applied, applied)
        while self._waiters and self._waiters[0][0] <= applied:
            index, _, waiter = heappop(self._waiters)
            if not waiter.called:
                waiter.callback(index)
        self._rt.observers.notify()
        self._rt.builder.consider()
        self._rt.space.applied()

    # Entries that the core has no longer in memory.

    def _read(self) -> None:
        self._reading = True
        wanted = self.applied + 1
        durable = min(self.commit, self._rt.core.durable)
        if wanted > durable:
            self._rt.fail(InvariantBroken(f"entry {wanted} is committed, but neither in memory nor on disk"))
            return
        _ = self._rt.log_store.read(wanted, durable, _FETCH_BYTES).addCallbacks(self._were_read, self._read_failed)

    def _were_read(self, entries: list[Entry]) -> None:
        self._reading = False
        if self._halted:
            return
        self._pumping = True
        try:
            fresh = [entry for entry in entries if entry.index > self.applied]
            self._apply_some(fresh, self._rt.clock.seconds() + SLICE_SECONDS)
            self._progress()
        except Exception as error:
            self._halted = True
            self._rt.broke("Applying", error)
        finally:
            self._pumping = False
        if not self._halted and self._later is None:
            self._later = self._rt.clock.callLater(0, self._go_on)

    def _read_failed(self, failure: Failure) -> None:
        self._reading = False
        if self._halted:
            return
        if failure.check(LogCompacted):
            self._rt.fail(InvariantBroken(f"entry {self.applied + 1} was purged before it was applied"))
        else:
            self._rt.fail(error_in(failure))

    # Snapshots.

    def halt(self) -> None:
        """Apply nothing until :meth:`resume`."""
        self._halted = True
        self._preparing = None
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def resume(self) -> None:
        """Go on."""
        self._halted = False

    async def load(self) -> SnapshotPoint:
        """Replace the state by the newest snapshot; return its position. Nothing may be applied meanwhile.

        :raises StorageCorrupt: if the snapshot is damaged, or not one of ours.
        :raises ConfigError: if it has files, and the machine has no use for any.
        """
        rt = self._rt
        reader = rt.store.reader()
        try:
            loader, sink = SessionLoader(), await self._sink(reader)
            end = rt.clock.seconds() + SLICE_SECONDS
            while (chunk := await reader.next_chunk()) is not None:
                if loader.done:
                    if self._files is not None:
                        while (room := self._files.room()) is not None:
                            await room
                    sink.write(chunk)
                else:
                    loader.feed(chunk)
                if rt.clock.seconds() >= end:
                    await rt.sleep(REST_SECONDS if rt.serving else 0)
                    end = rt.clock.seconds() + SLICE_SECONDS
            if loader.table is None or not loader.done:
                raise ValueError("it ends within the session table")
            self._check_files(reader)
            sink.finish()
        except (CancelledError, ConsensusError, OSError):
            raise
        except Exception as error:
            rt.log.failure("The newest snapshot could not be loaded")
            last = reader.manifest.point.last
            reason = f"it could not be loaded: {type(error).__name__}: {error}"
            raise StorageCorrupt(f"snap/{last.index}-{last.term}", 0, reason, 1, last.index) from error
        finally:
            reader.close()
        self.replacing = False
        point = reader.manifest.point
        self.sessions = loader.table
        self._term, self.applied = point.last
        self.time_ms = max(self.time_ms, point.time_ms)
        self.commit = max(self.commit, point.last.index)
        self.count_anew()
        self.bytes_covered = self.bytes_applied
        rt.digests.forget()
        rt.digests.note(self.applied)
        return point

    async def _sink(self, reader: ISnapshotReader) -> IStateSink:
        """Begin to replace the state by a snapshot's."""
        machine: Any = self._machine
        sink: IStateSink
        if self._files is not None and reader.files:
            self.replacing = IReplaceableFiles.providedBy(machine)
            begin = machine.replace_files if self.replacing else machine.restore_files
            sink = await begin(reader.files)
        elif IReplaceableState.providedBy(machine):
            self.replacing = True
            sink = machine.replace()
        else:
            sink = machine.restore()
        return sink

    def _check_files(self, reader: ISnapshotReader) -> None:
        """See that the files of a snapshot were not left out. A machine may have told from the stream, and said more.

        :raises ConfigError: if they were.
        """
        if reader.manifest.files and (self._files is None or not reader.files):
            machine = type(self._machine).__qualname__
            rule = f"cannot load the snapshot {reader.manifest.point.last}: it has files, which another machine made"
            raise ConfigError("state_machine", machine, rule)

    def count_anew(self) -> None:
        """A snapshot of what is applied now is begun, or was loaded."""
        self._counted_from, self.bytes_since_snapshot = self.applied, 0

    def restored(self) -> None:
        """Tell everybody that the state was replaced."""
        self._rt.proposals.superseded(self.applied)
        self._progress()

    def watch_files(self) -> None:
        """Stop the node if the machine's files fail."""
        if self._files is not None:
            _ = self._files.failed().addCallback(self._rt.fail)

    def stop(self, cause: BaseException | None) -> None:
        """Apply nothing any more, and end every wait."""
        self.halt()
        waiters, self._waiters = self._waiters, []
        for _, _, waiter in waiters:
            if not waiter.called:
                waiter.errback(NodeStopped(cause))
