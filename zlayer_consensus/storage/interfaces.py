"""The storage contracts. What a method promises about durability, order and errors stands in its docstring.

Everything here runs on the reactor's thread; blocking work goes through an executor that a backend owns. A Deferred
that these methods return is not cancellable: cancelling it gives up waiting and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from ..errors import StorageCorrupt
from ..raft import Entry, LogId, LogWrite, SnapshotPoint, Start

__all__ = [
    "ApplyContext",
    "ILogStore",
    "IReplaceableState",
    "ISnapshotReader",
    "ISnapshotReceiver",
    "ISnapshotWriter",
    "IStateDigest",
    "IStateMachine",
    "IStateMachineStore",
    "IStateSink",
    "Identity",
    "Manifest",
    "ScrubStep",
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
    """

    point: SnapshotPoint
    parts: tuple[tuple[int, bytes], ...]
    installed: bool = False

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(size for size, _ in self.parts)


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


class IReplaceableState(Interface):
    """What an application with a large state may provide beside :class:`IStateMachine`, so that memory need not hold
    two states while a leader's snapshot is installed.
    """

    def replace() -> IStateSink:
        """Begin to replace the state by a snapshot's; the old one is given up, and goes as the new one comes.

        Until the sink's ``finish`` has returned, nothing is applied and nobody reads; whoever wants to read waits. If
        it does not get there, the machine is not used any more: the node stops.
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

    def publish() -> Deferred[Manifest]:
        """Make it durable and the newest snapshot; older ones beyond the number kept are removed.

        If a snapshot of the same position was published meanwhile, that one stays and is what this fires with (J-87).

        :raises ValueError: if a newer one was published meanwhile. Then, and after any other failure: ``abort``.
        :raises StorageFull: if there is no space. Earlier snapshots are untouched.
        """

    def abort() -> Deferred[None]:
        """Remove what was written. Idempotent, and allowed after a failure."""


class ISnapshotReader(Interface):
    """Reads a published snapshot, which stays readable until ``close``, also if it is superseded."""

    manifest: Manifest = Attribute("Its :class:`Manifest`.")

    def read(part: int, offset: int, size: int) -> Deferred[bytes]:
        """Read up to ``size`` raw bytes of a part, for a transfer; empty only at its end.

        :raises StorageCorrupt: at the latest when the last byte of a damaged part was read.
        """

    def next_chunk() -> Deferred[bytes | None]:
        """Return the next piece as it was written, None at the end, for loading.

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

        Whole parts of a snapshot that was being received may stay, for :meth:`receiver` to go on with.

        :raises StorageCorrupt: if the newest published snapshot is damaged as far as its manifest shows.
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

        :raises ValueError: if there is a newer snapshot, or one of the same index and another term (J-86).
        :raises RuntimeError: if the writer before is neither published nor aborted.
        """

    def receiver(manifest: Manifest) -> ISnapshotReceiver:
        """Begin to receive a snapshot, or go on with the one under way if it has the same manifest.

        So a transfer goes on after a break; if the store keeps them, with the parts that were whole when an earlier
        process ended. One under way with another manifest is given up (H-64), and its receiver refuses further writes.

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
        """Finish and release. Idempotent."""
