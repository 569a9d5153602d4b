"""The file that says whose a data directory is. It is written last when a log is made, so it also says that one was."""

from __future__ import annotations

import struct
from typing import Any
from zlib import crc32

from .._cbor import CborError, dumps, loads
from ..errors import StorageCorrupt, WrongIdentity
from ._files import IFileSystem
from ._segment import FORMAT_VERSION
from .interfaces import Identity

__all__ = ["IDENTITY_NAME", "read_identity", "write_identity"]

IDENTITY_NAME = "identity"

_MAGIC = b"ZLIDENT1"
_HEAD = struct.Struct("<8sHHII")
_MAX_SIZE = 1 << 20
_INCARNATION_BYTES = 16
_CLUSTER_BYTES = 16
_REPAIR_BYTES = 16


def write_identity(file_system: IFileSystem, directory: str, identity: Identity) -> None:
    """Write the file durably, in one step: after a crash there is the old one or the new one."""
    body = dumps(
        {
            "node_id": identity.node_id,
            "incarnation": identity.incarnation,
            "cluster_id": identity.cluster_id,
            "origin": identity.origin,
            "repair": identity.repair,
            "former": list(identity.former),
        }
    )
    head = _HEAD.pack(_MAGIC, FORMAT_VERSION, 0, len(body), crc32(body, FORMAT_VERSION))
    path, temporary = f"{directory}/{IDENTITY_NAME}", f"{directory}/{IDENTITY_NAME}.tmp"
    if file_system.exists(temporary):
        file_system.remove(temporary)
    file = file_system.create(temporary)
    try:
        file.write(0, head + body)
        file.sync()
    finally:
        file.close()
    file_system.rename(temporary, path)
    file_system.sync_dir(directory)


def read_identity(file_system: IFileSystem, directory: str, node_id: int | None) -> Identity | None:
    """Read the file; None if there is none. With a ``node_id``, it must be that node's.

    :raises StorageCorrupt: if it is damaged.
    :raises WrongIdentity: if it is another node's, or of a later format (S-25).
    """
    path = f"{directory}/{IDENTITY_NAME}"
    if not file_system.exists(path):
        return None
    data = file_system.read(path, 0, _MAX_SIZE)
    if len(data) < _HEAD.size:
        raise StorageCorrupt(path, 0, "the file is too short", 1)
    magic, version, reserved, length, check = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if magic != _MAGIC or reserved or length != len(body) or crc32(body, version) != check:
        raise StorageCorrupt(path, 0, "the checksum does not match", 1)
    if version > FORMAT_VERSION:
        raise WrongIdentity(path, "format version", str(FORMAT_VERSION), str(version))
    identity = _decode(path, version, body)
    if node_id is not None and identity.node_id != node_id:
        raise WrongIdentity(path, "node", str(node_id), str(identity.node_id))
    return identity


def _decode(path: str, version: int, body: bytes) -> Identity:
    try:
        fields: Any = loads(body)
        # An older file has no former clusters, and no mark.
        fields["former"] = tuple(fields.get("former", ()))
        identity = Identity(**fields)
        sizes = len(identity.incarnation), len(identity.cluster_id), len(identity.origin), len(identity.repair)
        former = {len(each) for each in identity.former}
    except (CborError, TypeError, AttributeError) as error:
        raise StorageCorrupt(path, _HEAD.size, f"the content is not an identity: {error}", 1) from None
    wrong = sizes[0] != _INCARNATION_BYTES or sizes[1] not in (0, _CLUSTER_BYTES) or sizes[3] not in (0, _REPAIR_BYTES)
    if version != FORMAT_VERSION or wrong or former - {_CLUSTER_BYTES}:
        raise StorageCorrupt(path, _HEAD.size, "the content is not an identity", 1)
    return identity
