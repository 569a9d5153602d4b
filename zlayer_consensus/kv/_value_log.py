"""The values of one store, in files: which file has how much that is needed, and who holds it.

A record of such a store has a locator in the place of the value: file, offset and size. A value is needed as long as
the map or the history has its record. A file goes when none of its values is needed, no read is under way in it, and no
snapshot that is being taken names it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from ..storage import StateFile
from ._commands import RECORD_HEAD
from ._value_files import MAGIC, Append, Place, record_bytes
from ._value_storage import ValueStorage

__all__ = ["NamedFiles", "ValueFile", "ValueLog", "revision_of"]

_LOCATOR: Final = struct.Struct("<III")  # number of the file, offset of the record in it, size of the value
_NUMBER: Final = struct.Struct("<I")
_SIZE: Final = struct.Struct("<I")
_SIZE_AT: Final = RECORD_HEAD.size + 8
_RECORD: Final = RECORD_HEAD.size + _LOCATOR.size
_REVISION: Final = struct.Struct("<8xQ")
_NOWHERE: Final = (1 << 32) - 1
"""The number of the file for values that are not kept: those of a trial."""


def revision_of(record: bytes) -> int:
    """Return the revision that a record is of."""
    revision: int = _REVISION.unpack_from(record)[0]
    return revision


class ValueFile:
    """A file, as its store knows it."""

    __slots__ = ("count", "live", "number", "path", "pins", "removed", "sealed", "size", "waiting")

    def __init__(self, number: int, path: str, size: int) -> None:
        self.number = number
        self.path = path
        self.size = size
        """Bytes, also those that are still on their way to it."""
        self.count = 0
        """Values in it that are needed."""
        self.live = 0
        """Bytes of these."""
        self.pins = 0
        """Reads and snapshots that hold it."""
        self.sealed: StateFile | None = None
        """Set when it is complete and synced."""
        self.waiting: list[Callable[[Failure | None], object]] = []
        """Told when it is sealed, or cannot be."""
        self.removed = False


class ValueLog:
    """Where a store's values go. It provides :class:`~zlayer_consensus.kv._records.Values`.

    :param file_bytes: a file is closed before it would grow beyond this, unless one value is larger.
    """

    def __init__(self, storage: ValueStorage, file_bytes: int) -> None:
        self.storage = storage
        self.file_bytes = file_bytes
        self.trial = False
        """While it is set, values are not kept. What is done meanwhile must be rolled back."""
        self.files: dict[int, ValueFile] = {}
        self.on_garbage: Callable[[], object] = lambda: None
        """Called when a complete file has less in it that is needed, or has just become complete."""
        self._active: ValueFile | None = None

    # Values

    def keep(self, key: bytes, head: bytes, value: bytes) -> bytes:
        """Take a value, which is written later, and return its record."""
        if self.trial:
            return head + _LOCATOR.pack(_NOWHERE, 0, len(value))
        size = record_bytes(key, len(value))
        file = self._active
        if file is None or (file.size + size > self.file_bytes and file.size > len(MAGIC)):
            file = self._roll()
        offset = file.size
        file.size += size
        file.count += 1
        file.live += size
        locator = _LOCATOR.pack(file.number, offset, len(value))
        revision = revision_of(head)
        self.storage.writes.append(Append(file.number, file.path, offset, key, revision, value, locator))
        return head + locator

    @staticmethod
    def size(record: bytes) -> int:
        """Return how long the record would be with its value in it."""
        size: int = _SIZE.unpack_from(record, _SIZE_AT)[0]
        return RECORD_HEAD.size + size

    def drop(self, key: bytes, record: bytes) -> None:
        """A value is not needed any more."""
        if not self.is_kept(record):
            return
        number, _, size = _LOCATOR.unpack_from(record, RECORD_HEAD.size)
        file = self.files[number]
        file.count -= 1
        file.live -= record_bytes(key, size)
        if file is not self._active:
            self._maybe_remove(file)
            self.on_garbage()

    def take(self, key: bytes, record: bytes, files: Sequence[ValueFile]) -> bytes:
        """Return the record to keep for one of a snapshot, which counts the snapshot's files.

        :param files: these.
        :raises ValueError: if it cannot be right.
        """
        if len(record) != _RECORD:
            raise ValueError(f"the record of the key {key!r} in the snapshot is damaged")
        slot, offset, size = _LOCATOR.unpack_from(record, RECORD_HEAD.size)
        length = record_bytes(key, size)
        if slot >= len(files) or offset < len(MAGIC) or offset + length > files[slot].size:
            raise ValueError(f"the value of the key {key!r} is not in the files of the snapshot")
        file = files[slot]
        file.count += 1
        file.live += length
        return record[: RECORD_HEAD.size] + _LOCATOR.pack(file.number, offset, size)

    @staticmethod
    def is_kept(record: bytes) -> bool:
        """Say whether a value is in a file; that of a trial is not."""
        number: int = _NUMBER.unpack_from(record, RECORD_HEAD.size)[0]
        return number != _NOWHERE

    def find(self, records: Iterable[bytes], file: ValueFile, offset: int) -> bytes | None:
        """Return the one of some records whose value is there."""
        place = _LOCATOR.pack(file.number, offset, 0)[:8]
        for record in records:
            if record[RECORD_HEAD.size : _SIZE_AT] == place:
                return record
        return None

    # Reading

    def waiting(self, record: bytes) -> bytes | None:
        """Return a value that is not on the disk yet."""
        return self.storage.writes.waiting.get(record[RECORD_HEAD.size :])

    def place(self, key: bytes, record: bytes, keep: int | None = None) -> Place:
        """Return where a value is.

        :param keep: how many of its first bytes are wanted; None: all.
        """
        number, offset, size = _LOCATOR.unpack_from(record, RECORD_HEAD.size)
        wanted = size if keep is None else min(keep, size)
        return Place(self.files[number].path, offset, key, revision_of(record), size, wanted)

    def load(self, pairs: Sequence[tuple[bytes, bytes]], keep: Sequence[int] = ()) -> Deferred[list[bytes]]:
        """Return the values of some keys with their records. Their files stay until they are read.

        :param keep: of each, how many of its first bytes are enough.
        """
        found: list[bytes | None] = [self.waiting(record) for _, record in pairs]
        missing = [at for at, value in enumerate(found) if value is None]
        if not missing:
            return succeed(found)  # type: ignore[arg-type]
        files = [self.files[_LOCATOR.unpack_from(pairs[at][1], RECORD_HEAD.size)[0]] for at in missing]
        for file in files:
            file.pins += 1

        def read(result: Any) -> Any:
            for file in files:
                self.unpin(file)
            if isinstance(result, Failure):
                return result
            for at, value in zip(missing, result, strict=True):
                found[at] = value
            return found

        reading = self.storage.read([self.place(*pairs[at], keep[at] if keep else None) for at in missing])
        outcome: Deferred[list[bytes]] = Deferred()
        # Not the one that is returned: who gives up waiting does not end the read.
        _ = reading.addBoth(read).chainDeferred(outcome)
        return outcome

    # Files

    def adopt(self, files: Sequence[StateFile]) -> tuple[list[ValueFile], Deferred[None]]:
        """Take over the files of a snapshot, under names of our own; the Deferred fires when they have them."""
        adopted = []
        for each in files:
            number, path = self.storage.new_path()
            file = self.files[number] = ValueFile(number, path, each.size)
            file.sealed = StateFile(path, each.size, each.digest)
            adopted.append(file)
        return adopted, self.storage.link(files, [file.path for file in adopted])

    def _roll(self) -> ValueFile:
        """Begin the next file, and complete the one before."""
        self.complete()
        number, path = self.storage.new_path()
        file = self._active = self.files[number] = ValueFile(number, path, len(MAGIC))
        return file

    def complete(self) -> None:
        """Append nothing to the present file any more."""
        file, self._active = self._active, None
        if file is not None:
            _ = self.storage.writes.seal(file.number).addBoth(self._sealed, file)
            self._maybe_remove(file)

    def _sealed(self, sealed: StateFile | Failure, file: ValueFile) -> None:
        failure = sealed if isinstance(sealed, Failure) else None
        if not isinstance(sealed, Failure):
            file.sealed = sealed
        waiting, file.waiting = file.waiting, []
        for tell in waiting:
            tell(failure)
        self.on_garbage()

    def unpin(self, file: ValueFile) -> None:
        """A read or a snapshot needs a file no longer."""
        file.pins -= 1
        self._maybe_remove(file)

    def _maybe_remove(self, file: ValueFile) -> None:
        if not (file.count or file.pins or file.removed or file is self._active):
            file.removed = True
            del self.files[file.number]
            self.storage.writes.remove(file.number, file.path)

    def clear(self) -> None:
        """Nothing is needed any more; the store of these values is not used again."""
        self._active = None
        for file in list(self.files.values()):
            file.count = file.live = 0
            self._maybe_remove(file)

    def sweep(self, files: Iterable[ValueFile]) -> None:
        """Remove those of some files that are not needed."""
        for file in files:
            self._maybe_remove(file)

    def name_files(self) -> NamedFiles:
        """Complete the present file, and return all that have anything that is needed, for a snapshot."""
        if self._active is not None and self._active.count:
            self.complete()
        return NamedFiles(self, [file for file in self.files.values() if file.count])


class NamedFiles:
    """The files that a snapshot names; they stay until :meth:`release`."""

    def __init__(self, log: ValueLog, files: list[ValueFile]) -> None:
        self.count = len(files)
        self._log = log
        self._files = files
        self._slots = {file.number: slot for slot, file in enumerate(files)}
        for file in files:
            file.pins += 1

    def written(self, record: bytes) -> bytes:
        """Return a record as it stands in the snapshot: with the file's place among these, for its number."""
        number, offset, size = _LOCATOR.unpack_from(record, RECORD_HEAD.size)
        return record[: RECORD_HEAD.size] + _LOCATOR.pack(self._slots[number], offset, size)

    def sealed(self) -> Deferred[Sequence[StateFile]]:
        """Return the files, once all are complete and synced."""
        done: Deferred[Sequence[StateFile]] = Deferred()
        files = self._files
        missing = [file for file in files if file.sealed is None]

        def told(failure: Failure | None) -> None:
            nonlocal missing
            missing = [file for file in missing if file.sealed is None]
            if failure is not None and not done.called:
                done.errback(failure)
            elif not missing and not done.called:
                done.callback([file.sealed for file in files if file.sealed is not None])

        for file in missing:
            file.waiting.append(told)
        told(None)
        return done

    def release(self) -> None:
        """Hold them no longer. Idempotent."""
        files, self._files = self._files, []
        for file in files:
            self._log.unpin(file)
