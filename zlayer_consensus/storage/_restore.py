"""New data directories out of a backup: the members of a new cluster, which begins with the state that was saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..errors import StorageFailed
from ..raft import HardState, Member, Membership, SnapshotPoint
from ._backup import BackupFile
from ._executor import InlineExecutor
from ._file_machine import FileStateMachine
from ._files import IFileSystem
from ._identity import write_identity
from ._recovery import Layout
from ._segment import SegmentHeader
from ._segment_files import SegmentFiles
from .interfaces import Identity

__all__ = ["NewMember", "restore_backup"]

_T = TypeVar("_T")
_SEGMENT_BYTES = 64 << 10
"""Size of the segment that the log begins with; the node's next one has the configured size."""
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class NewMember:
    """A member of the new cluster.

    :param node_id: its id; that an old cluster used it does not matter.
    :param peer_address: where the other nodes reach it.
    :param client_address: where clients reach it.
    :param directory: its data directory, which must not exist; its parent must.
    """

    node_id: int
    peer_address: str
    client_address: str
    directory: str


def restore_backup(
    files: IFileSystem,
    backup: BackupFile,
    members: Sequence[NewMember],
    origin: bytes,
    random_bytes: Callable[[int], bytes],
    advance: Callable[[int], None] = lambda _size: None,
) -> bytes:
    """Make the data directories of a new cluster's members, and return its id.

    Each has the snapshot, with just these members as voters, and an empty log that begins behind it. It is made under
    a name with ``.tmp`` at the end, and gets its own when all of it is durable.

    :param backup: one that was verified.
    :param origin: the member list in its encoded form, as the configuration of the daemon will name it.
    :param random_bytes: makes the cluster's id and the incarnations.
    :param advance: called with the bytes that were written, of all members.
    :raises StorageFailed: if a directory exists, or the disk refuses.
    """
    for each in members:
        for path, why in ((each.directory, "it exists already"), (_temporary(each.directory), "a restore left it")):
            if files.exists(path):
                raise StorageFailed("mkdir", path, f"{why}; remove it, or choose another place")
    cluster_id = random_bytes(_ID_BYTES)
    incarnations = {each.node_id: random_bytes(_ID_BYTES) for each in members}
    membership = Membership.initial(
        Member(each.node_id, incarnations[each.node_id], each.peer_address, each.client_address) for each in members
    )
    for each in members:
        identity = Identity(each.node_id, incarnations[each.node_id], cluster_id, origin)
        _make(files, each.directory, identity, membership, backup, random_bytes, advance)
    return cluster_id


def _temporary(directory: str) -> str:
    return f"{directory}.tmp"


def _make(
    files: IFileSystem,
    directory: str,
    identity: Identity,
    membership: Membership,
    backup: BackupFile,
    random_bytes: Callable[[int], bytes],
    advance: Callable[[int], None],
) -> None:
    temporary = _temporary(directory)
    files.mkdir(temporary)
    point = replace(backup.header.manifest.point, membership=membership)
    _save_snapshot(files, temporary, point, backup, advance)
    _begin_log(files, temporary, identity, point, random_bytes)
    files.sync_dir(temporary)
    files.rename(temporary, directory)
    files.sync_dir(directory.rpartition("/")[0] or ("/" if directory.startswith("/") else "."))


def _save_snapshot(
    files: IFileSystem, directory: str, point: SnapshotPoint, backup: BackupFile, advance: Callable[[int], None]
) -> None:
    store = FileStateMachine(directory, {}, _no_command, executor=InlineExecutor(), file_system=files)
    _done(store.open())
    try:
        receiver = store.receiver(replace(backup.header.manifest, point=point))
        for part, offset, data in backup.pieces():
            _done(receiver.write(part, offset, data))
            advance(len(data))
        _done(receiver.publish())
    finally:
        _done(store.close())


def _no_command(_state: object, _command: object) -> None:
    raise AssertionError("no command is carried out here")


def _begin_log(
    files: IFileSystem, directory: str, identity: Identity, point: SnapshotPoint, random_bytes: Callable[[int], bytes]
) -> None:
    """Make a log that is empty, and starts where the snapshot ends; the identity comes last, as always."""
    layout, last = Layout(directory), point.last
    files.mkdir(layout.wal)
    files.sync_dir(directory)
    state = HardState(last.term, 0, last.index)
    salt = int.from_bytes(random_bytes(4), "little")
    header = SegmentHeader(
        identity.cluster_id, identity.node_id, identity.incarnation, 1, _SEGMENT_BYTES, salt, 0, 0,
        last, last, state, last.index, point.time_ms,
    )  # fmt: skip
    _, file = SegmentFiles(files, layout.wal, layout.reserve, _SEGMENT_BYTES, 0).create(header, _SEGMENT_BYTES)
    file.close()
    write_identity(files, directory, identity)


def _done(waiting: Deferred[_T]) -> _T:
    """Return what a Deferred holds that has fired: calls complete at once here."""
    found: list[_T | Failure] = []
    _ = waiting.addBoth(found.append)
    [value] = found
    if isinstance(value, Failure):
        value.raiseException()
    return value
