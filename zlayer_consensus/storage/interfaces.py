"""The storage contracts. What a method promises about durability, order and errors stands in its docstring.

Everything here runs on the reactor's thread; blocking work goes through an executor that a backend owns. A Deferred
that these methods return is not cancellable: cancelling it gives up waiting and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from ..errors import ConsensusError, StorageCorrupt
from ..raft import Entry, LogId, LogWrite, SnapshotPoint, Start

__all__ = [
    "ApplyContext",
    "ILogStore",
    "IReplaceableFiles",
    "IReplaceableState",
    "ISnapshotReader",
    "ISnapshotReceiver",
    "ISnapshotWriter",
    "IStateDigest",
    "IStateMachine",
    "IStateMachineFiles",
    "IStateMachineStore",
    "IStateSink",
    "Identity",
    "Manifest",
    "ScrubStep",
    "StateFile",
]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a data directory belongs to.

    :param node_id: the node's id.
    :param incarnation: 16 random bytes, made once with the directory (memory stores: at every start).
    :param cluster_id: 16 bytes, or empty until the node belongs to a cluster.
    :param origin: how it came to its cluster: the encoded initial member list it bootstrapped with, or empty.
    :param repair: 16 random bytes if its log was repaired and may lack what this member has acknowledged: until the
        leader has found it complete again, it does not vote and is not counted. Else empty.
    :param former: the clusters to which the older part of its log belongs, if its cluster began by a recovery from the
        loss of a majority.
    """

    node_id: int
    incarnation: bytes
    cluster_id: bytes = b""
    origin: bytes = b""
    repair: bytes = b""
    former: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot's table of contents, small enough to travel in one message.

    :param point: position, configuration and log time.
    :param parts: ``(size in bytes, SHA-256 digest)`` of each part, in order.
    :param installed: whether it came from a leader (then the log may legally end before it, S-17).
    :param files: how many of the parts, the last ones, are files of the state machine. The others hold its stream.
    """

    point: SnapshotPoint
    parts: tuple[tuple[int, bytes], ...]
    installed: bool = False
    files: int = 0

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(size for size, _ in self.parts)

    @property
    def streams(self) -> int:
        """How many of the parts, the first ones, hold the stream."""
        return len(self.parts) - self.files

    @property
    def stream_size(self) -> int:
        """Bytes of the parts that hold the stream: what a snapshot takes, where the files are there already."""
        return sum(size for size, _ in self.parts[: self.streams])


@dataclass(frozen=True, slots=True)
class StateFile:
    """A file of a state machine that is complete and synced, and never changes again.

    :param path: where it is.
    :param size: its bytes: at least 1, and at most 64 MiB.
    :param digest: SHA-256 of all of them.
    """

    path: str
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class ScrubStep:
    """What one step of a scrub has looked at.

    :param size: bytes that were read.
    :param path: the file; empty if there was nothing to look at.
    :param done: whether this was the last step of the pass; the next one begins another.
    :param damage: what is damaged, if nothing depends on it.
    """

    size: int = 0
    path: str = ""
    done: bool = False
    damage: StorageCorrupt | None = None


@dataclass(frozen=True, slots=True)
class ApplyContext:
    """What ``apply`` may know beside the command. There is no other clock (H-80).

    :param index: the entry's log index.
    :param time_ms: the leader's wall-clock time in the entry; it never falls along the log.
    """

    index: int
    time_ms: int


class ILogStore(Interface):
    """The log with term, vote and commit.

    Life cycle: ``open`` once, then the others, ``close`` last. After any failure that is not
    :class:`~zlayer_consensus.errors.LogCompacted`, the store has failed: every later call fails with the same error,
    and the node stops. So it is with :class:`~zlayer_consensus.errors.StorageFull`, which comes when the reserve is
    used up, too: before that the store is ``full``, and whoever uses it has the time to write less.
    """

    identity: Identity = Attribute("The :class:`Identity`; known once ``open`` has fired.")
    full: bool = Attribute(
        """Whether there was no space when some was needed, or less than ``space`` was told to keep (S-10). The store
        then goes on, on a reserve. Changes while ``open``, a write or ``space`` is under way."""
    )

    def open() -> Deferred[Start]:
        """Recover, and fire with what was found; ``Start.snapshot`` and ``Start.applied`` are left to the caller.

        What it reports is durable: a tail that was found, but perhaps never synced, is synced first.

        :raises StorageCorrupt: if durable data is damaged. Nothing was changed.
        :raises StorageLocked: if another process has it open.
        :raises WrongIdentity: if it belongs to another node.
        """

    def adopt(identity: Identity) -> Deferred[None]:
        """Set ``cluster_id`` and ``origin`` durably. Only once, before the first write; node and incarnation stay."""

    def clear_repair() -> Deferred[None]:
        """Remove the identity's mark of a repair durably; nothing happens if there is none."""

    def write(write: LogWrite) -> Deferred[None]:
        """Start a write. Fires when it, and every earlier one, is durable.

        Calls may overlap; they take effect and fire in call order, and waiting ones may share one sync. The write
        is atomic in a crash only towards the end: a prefix of its entries may survive, none was acknowledged.

        :raises StorageFull: if there is no space, and no reserve is left.
        :raises StorageFailed: if the disk failed.
        """

    def space(keep: int) -> Deferred[int]:
        """Return how many bytes are free. If they are too few, become ``full``; if enough, make the reserve again.

        :param keep: bytes that have to stay free, for snapshots.
        """

    def read(first: int, last: int, max_bytes: int) -> Deferred[list[Entry]]:
        """Read durable entries from ``first`` on: at least one, then as many as ``last`` and ``max_bytes`` allow.

        :raises LogCompacted: if ``first`` was purged.
        :raises StorageCorrupt: if what was read is damaged.
        """

    def purge(upto: LogId) -> Deferred[None]:
        """Allow entries up to ``upto`` to be removed. Space comes back later; reading them fails from now on.

        The position becomes durable at the latest with the removal of the first file.
        """

    def scrub(max_bytes: int) -> Deferred[ScrubStep]:
        """Verify the next piece of what lies on the disk and will not be written to any more, and say where that was.

        A pass goes from the oldest to the newest; what is purged meanwhile is left out. A step takes its turn among the
        writes, and reads about ``max_bytes``, or one record if that is larger. One step at a time.

        :raises StorageCorrupt: if it is damaged; the error names file, offset and entries.
        """

    def close() -> Deferred[None]:
        """Finish the writes under way, mark a clean stop, release lock and threads. Idempotent."""


class IStateSink(Interface):
    """Takes a snapshot back in, piece by piece."""

    def write(chunk: bytes) -> None:
        """Take the next piece, exactly as the snapshot's iterator yielded it. Should return within a few ms."""

    def finish() -> None:
        """All pieces are in: replace the state, in one step. Before this call the old state stands."""


class IStateMachine(Interface):
    """An application: deterministic, without I/O, on the reactor's thread."""

    def apply(command: Any, context: ApplyContext) -> Any:
        """Carry out one committed command and return its result.

        Called once per entry in log order. A :class:`~zlayer_consensus.errors.DomainError` is a result; the state must
        then be as every other replica's. Any other exception stops the node before the applied index moves (H-81).
        """

    def snapshot() -> Iterator[bytes]:
        """Return an iterator over the state as of this call, in pieces of at most a few hundred KiB.

        It is drained in slices while ``apply`` goes on: what it yields must not show later changes. It is closed
        (``close()``, if it has one) when it is given up.
        """

    def restore() -> IStateSink:
        """Begin to replace the state by a snapshot's."""


class IStateMachineFiles(IStateMachine):
    """A state machine part of whose state lies in files of its own, so that the state may be larger than memory.

    The files add nothing to what is durable: after a restart the state is the newest snapshot, files included, and the
    log behind it. A snapshot names files, and costs no copy of them: the store gives each a second name (a hard link).
    So a file that a snapshot names must be complete and synced, and must never be modified again; removing it is
    allowed when the store has its own name for it. A file that is damaged is damaged in every snapshot that names it.

    It is the store, which must be a :class:`FileStateMachine` or another that takes files, that opens and closes the
    machine. ``apply`` still runs on the reactor's thread, and must not wait for a disk: see ``prepare``.
    """

    directory: str = Attribute(
        "The directory of the live files, in the same file system as the snapshots. The store tries there, when it is "
        "opened, whether files can be linked; what it makes for that has a name that ends in ``.tmp``."
    )

    full: bool = Attribute(
        "Whether something waits because there is no space for it (S-10). The node asks once a second, and takes its "
        "disk for full then."
    )

    def open() -> Deferred[None]:
        """Begin, in the initial state: make the directory, and remove the files that an earlier process has left.

        Called once, before everything else, by the store, which holds a lock by then.

        :raises StorageError: if that fails. It may be called again then.
        """

    def failed() -> Deferred[ConsensusError]:
        """Return a new Deferred that fires with what makes the files useless: a write, sync or read that failed.

        A :class:`~zlayer_consensus.errors.StorageError`, as a rule. The node stops then. Nothing is retried.
        """

    def prepare(command: Any) -> Deferred[None] | None:
        """Say whether ``apply`` of a command can go without waiting for a disk: None if so.

        Else a Deferred after which the question is asked again. Until then nothing is applied, and so nothing changes
        but by a restored snapshot. What was read for a command must be kept until it is applied. It is also the way
        to hold back the node while the disk cannot keep up, so that memory stays bounded.

        It changes nothing that anybody can see. A command that ``apply`` will refuse is no error here. ``apply`` must
        work without it, too; it may block then.
        """

    def room() -> Deferred[None] | None:
        """Say whether a sink may take the next chunk: None if so, else a Deferred after which it may."""

    def snapshot() -> Iterator[bytes]:
        """See :meth:`IStateMachine.snapshot`; the iterator has a ``close``.

        ``close`` is called when the snapshot was published or given up, and not before: until then the files that it
        names stay under their paths. It may be called while the iterator is not at its end, and again.
        """

    def sealed() -> Deferred[Sequence[StateFile]]:
        """Return the files that a snapshot names, in the order in which ``restore_files`` gets them.

        Called right after ``snapshot``, in the same step, for that snapshot. Fires when all of them are complete and
        synced. Their number and their order are fixed in this call: the stream may refer to them.

        :raises StorageError: as a failure, if they cannot be.
        """

    def restore_files(files: Sequence[StateFile]) -> Deferred[IStateSink]:
        """Begin to replace the state by that of a snapshot with these files; ``restore`` is for one without.

        The paths are the snapshot's own and may be gone later: before it fires, the machine has given each file that it
        needs another name. It must not modify them. They were not read: what is damaged in them shows when it is used.
        """

    def close() -> Deferred[None]:
        """Release everything; what is under way may end. Idempotent. The files stay; the next ``open`` removes them."""


class IReplaceableState(Interface):
    """What an application with a large state may provide beside :class:`IStateMachine`, so that memory need not hold
    two states while a leader's snapshot is installed.
    """

    def replace() -> IStateSink:
        """Begin to replace the state by a snapshot's; the old one is given up, and goes as the new one comes.

        Until the sink's ``finish`` has returned, nothing is applied and nobody reads; whoever wants to read waits. If
        it does not get there, the machine is not used any more: the node stops.
        """


class IReplaceableFiles(IReplaceableState):
    """The same beside :class:`IStateMachineFiles`."""

    def replace_files(files: Sequence[StateFile]) -> Deferred[IStateSink]:
        """Begin to replace the state by that of a snapshot with these files; ``replace`` is for one without.

        The old one is given up, and its files go. For the others holds what holds for ``restore_files``.
        """


class IStateDigest(Interface):
    """What an application may provide beside :class:`IStateMachine`, so that replicas that went apart are found (J-92).

    Nodes compare the digests that they had at the same index; one that a majority contradicts stops.
    """

    digest_kind: str = Attribute(
        "What the digest is of and how it is made, in 1 to 64 printable characters. Digests of different kinds are not "
        "compared: a version of the application that gives the same state another digest has another kind."
    )

    def state_digest() -> bytes:
        """Return 1 to 64 bytes that are equal wherever the same entries were applied, or a snapshot of that state was
        restored, and else as good as never.

        Called between two entries, every 64 of them: it should take microseconds, so it is kept up to date by
        ``apply``, not made here. An exception, or another value, ends the comparison of this node; nothing more.
        """


class ISnapshotWriter(Interface):
    """Writes a snapshot of the local state machine."""

    def write(chunk: bytes) -> Deferred[None]:
        """Append one piece; its boundaries are kept. Fires when the next may come."""

    def publish(files: Sequence[StateFile] = ()) -> Deferred[Manifest]:
        """Make it durable and the newest snapshot; older ones beyond the number kept are removed.

        :param files: what a machine with files of its own has :meth:`~IStateMachineFiles.sealed`. They become parts
            behind the stream, by second names, and nothing is copied. They must stay under their paths meanwhile.

        If a snapshot of the same position was published meanwhile, that one stays and is what this fires with (J-87);
        one that this writer was to take again does not.

        :raises ValueError: if a newer one was published meanwhile. Then, and after any other failure: ``abort``.
        :raises StorageCorrupt: if a file is not there in its size.
        :raises StorageFull: if there is no space. Earlier snapshots are untouched.
        """

    def abort() -> Deferred[None]:
        """Remove what was written. Idempotent, and allowed after a failure."""


class ISnapshotReader(Interface):
    """Reads a published snapshot, which stays readable until ``close``, also if it is superseded."""

    manifest: Manifest = Attribute("Its :class:`Manifest`.")
    files: Sequence[StateFile] = Attribute(
        "The parts that are files of the state machine, in order, for :meth:`IStateMachineFiles.restore_files`. Empty "
        "if the store has no paths for them. Nothing was read: they are there, in their sizes."
    )

    def read(part: int, offset: int, size: int) -> Deferred[bytes]:
        """Read up to ``size`` raw bytes of a part, for a transfer; empty only at its end.

        :raises StorageCorrupt: at the latest when the last byte of a damaged part was read.
        """

    def next_chunk() -> Deferred[bytes | None]:
        """Return the next piece of the stream as it was written, None at the end, for loading.

        :raises StorageCorrupt: if the part it lies in is damaged.
        """

    def close() -> None:
        """Release it. Idempotent."""


class ISnapshotReceiver(Interface):
    """Takes in a leader's snapshot, part by part, in order."""

    manifest: Manifest = Attribute("What was announced.")
    position: tuple[int, int] = Attribute("``(part, offset)`` of the next byte that is wanted.")
    complete: bool = Attribute("Whether every part is in.")

    def write(part: int, offset: int, data: bytes) -> Deferred[None]:
        """Append raw bytes at ``position``.

        :raises ValueError: if they belong elsewhere, are too many, or finish a part whose digest is wrong; the part
            then starts over. Nothing else has changed.
        """

    def publish() -> Deferred[Manifest]:
        """Make it durable and the newest snapshot, marked as installed.

        :raises ValueError: if it is not complete, or what an earlier process received of it has rotted since. Then:
            ``abort``, and receive it again.
        """

    def abort() -> Deferred[None]:
        """Remove what was received. Idempotent."""


class IStateMachineStore(Interface):
    """Keeps an application's snapshots. After a restart the state is the newest snapshot and the log behind it."""

    machine: IStateMachine = Attribute("The application.")

    def open() -> Deferred[Manifest | None]:
        """Find the newest snapshot, and remove leftovers of unfinished ones. Reads no state yet.

        What was received of a snapshot may stay, for :meth:`receiver` to go on with. A machine that provides
        :class:`IStateMachineFiles` is opened, too, if the store takes files; else the store refuses it when it is made.

        :raises StorageCorrupt: if the newest published snapshot is damaged as far as its manifest shows.
        :raises ConfigError: if the machine's files cannot be linked into a snapshot.
        """

    def newest() -> Manifest | None:
        """Return the newest published snapshot's manifest."""

    def reader() -> ISnapshotReader:
        """Open the newest snapshot.

        :raises LookupError: if there is none.
        """

    def reclaim() -> Deferred[None]:
        """Free space: remove every snapshot but the newest, and those that are being read."""

    def writer(point: SnapshotPoint) -> ISnapshotWriter:
        """Begin a snapshot of the state as of ``point``. One writer at a time.

        If the newest snapshot is of this point already, and the machine has files, it is taken again: what is published
        is the newest then, and the space of files that only the former take named comes back when nobody reads it.

        :raises ValueError: if there is a newer snapshot, or one of the same index and another term (J-86).
        :raises RuntimeError: if the writer before is neither published nor aborted.
        """

    def receiver(manifest: Manifest) -> ISnapshotReceiver:
        """Begin to receive a snapshot, or go on with the one under way if it has the same manifest.

        So a transfer goes on after a break; if the store keeps it, with what there was when an earlier process ended.
        One under way with another manifest is given up (H-64), and its receiver refuses further writes.

        :raises ValueError: if there is a newer snapshot, or one of the same index and another term (J-86).
        """

    def scrub(max_bytes: int) -> Deferred[ScrubStep]:
        """Verify the next piece of the published snapshots, and say where that was.

        A pass goes from the oldest to the newest; one that is removed meanwhile is left out. A step reads about
        ``max_bytes``. One step at a time. Damage in a snapshot that is not the newest stands in the step, and the pass
        goes on with the next snapshot: nothing but an operator's hand would ever fall back to it. If several snapshots
        share what is damaged, each is reported.

        :raises StorageCorrupt: if the newest snapshot is damaged; the error names file and offset.
        """

    def close() -> Deferred[None]:
        """Finish and release; the machine, too, if it has files. Idempotent."""
