"""What a backup looks like in bytes: a header, a snapshot's manifest and parts, and a digest of it all.

The parts are those of the snapshot, as they lie on the disk; nothing here looks into them.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from .. import _cbor
from ._snapshot_format import decode_manifest, encode_manifest
from .interfaces import Manifest

__all__ = ["BACKUP_DIGEST_BYTES", "BackupDamage", "BackupFile", "BackupHeader", "encode_backup_head"]

BACKUP_DIGEST_BYTES = 32
"""Length of the SHA-256 digest at the end, which is of all that is before."""

_MAGIC = b"ZLBACKUP"
_FORMAT = 1
_HEAD = struct.Struct("<8sII32s")
_MAX_BODY = 32 << 20
_PIECE = 1 << 20
_CLUSTER_BYTES = 16


class BackupDamage(ValueError):
    """A backup is damaged, not whole, or none; the text says which."""


@dataclass(frozen=True, slots=True)
class BackupHeader:
    """What a backup says of itself.

    :param cluster_id: the cluster that it was taken from.
    :param cluster_name: that cluster's name.
    :param application: what kind of state it is: ``kv``, or the class of the state machine.
    :param manifest: the snapshot: position, members, time, parts.
    """

    cluster_id: bytes
    cluster_name: str
    application: str
    manifest: Manifest


def encode_backup_head(header: BackupHeader) -> bytes:
    """Return what stands before the parts."""
    body = _cbor.dumps(
        {
            "cluster_id": header.cluster_id,
            "cluster_name": header.cluster_name,
            "application": header.application,
            "manifest": encode_manifest(header.manifest),
        }
    )
    return _HEAD.pack(_MAGIC, _FORMAT, len(body), _digest(_FORMAT, body)) + body


def _digest(version: int, body: bytes) -> bytes:
    return hashlib.sha256(_MAGIC + struct.pack("<II", version, len(body)) + body).digest()


class BackupFile:
    """A backup that is read from a file.

    :param file: the file, open for reading, at its beginning.
    :raises BackupDamage: if the header is damaged, or it is no backup.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            raise BackupDamage("it does not begin as a backup does")
        _, version, length, digest = _HEAD.unpack(head)
        body = file.read(min(length, _MAX_BODY))
        if len(body) != length or _digest(version, body) != digest:
            raise BackupDamage("the header is damaged")
        if version != _FORMAT:
            raise BackupDamage(f"it is of format {version}, and only {_FORMAT} is known here")
        self.header = _header_of(body)
        """What the backup says of itself."""
        self.size = len(head) + length + self.header.manifest.size + BACKUP_DIGEST_BYTES
        """Bytes of the whole."""
        self._start = len(head) + length
        self._head = head + body

    def verify(self, advance: Callable[[int], None] = lambda _size: None) -> None:
        """Read everything, and compare every digest.

        :param advance: called with the number of bytes that were read.
        :raises BackupDamage: if anything is wrong.
        """
        whole = hashlib.sha256(self._head)
        sha = hashlib.sha256()
        for part, offset, data in self.pieces():
            size, digest = self.header.manifest.parts[part]
            if offset == 0:
                sha = hashlib.sha256()
            sha.update(data)
            whole.update(data)
            advance(len(data))
            if offset + len(data) == size and sha.digest() != digest:
                raise BackupDamage(f"part {part} of the snapshot is damaged")
        end = self._file.read(BACKUP_DIGEST_BYTES + 1)
        if len(end) < BACKUP_DIGEST_BYTES:
            raise BackupDamage("it ends too early")
        if len(end) > BACKUP_DIGEST_BYTES:
            raise BackupDamage("something follows its end")
        if end != whole.digest():
            raise BackupDamage("the checksum of the whole does not match")

    def pieces(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield the parts, piece by piece: part, offset in it, bytes.

        :raises BackupDamage: if the file ends before them.
        """
        self._file.seek(self._start)
        for part, (size, _) in enumerate(self.header.manifest.parts):
            offset = 0
            while offset < size:
                data = self._file.read(min(_PIECE, size - offset))
                if not data:
                    raise BackupDamage("it ends too early")
                yield part, offset, data
                offset += len(data)


def _header_of(body: bytes) -> BackupHeader:
    try:
        fields = _cbor.loads(body)
        header = BackupHeader(
            fields["cluster_id"], fields["cluster_name"], fields["application"], decode_manifest(fields["manifest"])
        )
    except (ValueError, TypeError, KeyError) as error:
        raise BackupDamage(f"the header cannot be read: {error}") from None
    texts: tuple[object, ...] = header.cluster_name, header.application
    known: object = header.cluster_id
    if not isinstance(known, bytes) or len(known) != _CLUSTER_BYTES or not all(isinstance(each, str) for each in texts):
        raise BackupDamage("the header cannot be read")
    return header
