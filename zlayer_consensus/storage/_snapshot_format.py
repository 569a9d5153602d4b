"""What a snapshot looks like in bytes: the manifest, and the parts with their chunks.

Parts travel between nodes as they lie on the disk, so this is a wire format too. The first parts hold the stream of
the state machine: a sequence of frames, one per chunk, which is length (u32), CRC-32 of the length's bytes and the
chunk (u32), both little-endian, and the chunk. A frame lies in one part; a part ends with a frame. The last parts may
be files of the state machine, whose content is its own matter.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Any

from .. import _cbor
from ..raft import MAX_INDEX, MAX_TERM, LogId, Membership, SnapshotPoint
from .interfaces import Manifest

__all__ = [
    "MAX_CHUNK_BYTES",
    "MAX_FILE_BYTES",
    "MAX_MANIFEST_FILE",
    "MAX_PARTS",
    "PART_BYTES",
    "FrameReader",
    "ManifestDamage",
    "check_chunk",
    "check_point",
    "decode_manifest",
    "encode_manifest",
    "frame",
    "seal_manifest",
    "unseal_manifest",
]

PART_BYTES = 16 << 20
"""A part is closed before it would grow beyond this."""
_HEADER = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
MAX_CHUNK_BYTES = PART_BYTES - _HEADER.size
"""The largest chunk that a state machine may yield."""
MAX_FILE_BYTES = 64 << 20
"""The largest file of a state machine that a snapshot can name."""
MAX_PARTS = 1 << 16
"""The most parts that a snapshot can have."""
MAX_MANIFEST_FILE = 16 << 20
"""Bytes of a manifest's file that are looked at."""
_MAX_TIME = (1 << 63) - 1

_FORMAT = 1
_FORMAT_WITH_FILES = 2
"""A snapshot without files is written as it always was, so that versions which know of no files can read it."""
_KEYS = frozenset({"format", "term", "index", "membership", "time_ms", "parts", "installed"})
_KEYS_WITH_FILES = _KEYS | {"files"}
_MAGIC = b"zsnapman"
_SEAL = struct.Struct("<8sII32s")


def check_chunk(chunk: bytes) -> None:
    """Refuse what cannot be a chunk.

    :raises TypeError: if it is not bytes.
    :raises ValueError: if it is too large.
    """
    if not isinstance(chunk, bytes):
        raise TypeError(f"a snapshot consists of bytes, not of {type(chunk).__name__}")
    if len(chunk) > MAX_CHUNK_BYTES:
        raise ValueError(f"a chunk of {len(chunk)} bytes is larger than {MAX_CHUNK_BYTES}")


def frame(chunk: bytes) -> bytes:
    """Return a chunk with its header."""
    return _HEADER.pack(len(chunk), _crc(len(chunk), chunk)) + chunk


def _crc(length: int, chunk: bytes) -> int:
    return zlib.crc32(chunk, zlib.crc32(_LENGTH.pack(length)))


class FrameReader:
    """Takes a part's bytes in pieces, and gives back its chunks.

    :param size: the part's size.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffer = bytearray()
        self.offset = 0
        """Where the next frame begins in the part."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take the part's next bytes, and return the chunks that they complete.

        :raises ValueError: if a frame is damaged; it begins at ``offset``.
        """
        self._buffer += data
        chunks = []
        at = 0
        while len(self._buffer) - at >= _HEADER.size:
            length, crc = _HEADER.unpack_from(self._buffer, at)
            end = at + _HEADER.size + length
            if self.offset + _HEADER.size + length > self._size:
                raise ValueError("a chunk's length reaches beyond the part")
            if end > len(self._buffer):
                break
            chunk = bytes(memoryview(self._buffer)[at + _HEADER.size : end])
            if _crc(length, chunk) != crc:
                raise ValueError("a chunk's checksum does not match")
            chunks.append(chunk)
            self.offset += end - at
            at = end
        del self._buffer[:at]
        return chunks

    def finish(self) -> None:
        """Say that the part has ended.

        :raises ValueError: if it ends within a frame, which begins at ``offset``.
        """
        if self._buffer or self.offset != self._size:
            raise ValueError("the part ends within a chunk")


def check_point(point: SnapshotPoint) -> None:
    """Refuse a position that no snapshot can have.

    :raises ValueError: if it is outside the log.
    """
    if not (0 < point.last.index <= MAX_INDEX and 0 <= point.last.term <= MAX_TERM):
        raise ValueError(f"{point.last} is not a position that a snapshot can have")


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest for the wire; the same manifest always gives the same bytes."""
    point = manifest.point
    plain = {
        "format": _FORMAT,
        "term": point.last.term,
        "index": point.last.index,
        "membership": point.membership.to_plain(),
        "time_ms": point.time_ms,
        "parts": [[size, digest] for size, digest in manifest.parts],
        "installed": manifest.installed,
    }
    if manifest.files:
        plain |= {"format": _FORMAT_WITH_FILES, "files": manifest.files}
    return _cbor.dumps(plain)


def decode_manifest(data: bytes) -> Manifest:
    """Decode what :func:`encode_manifest` made.

    :raises ValueError: if anything in it is unknown, missing, of the wrong type or out of range, or if it is not in
        its canonical form.
    """
    plain = _cbor.loads(data)
    if not isinstance(plain, dict) or "format" not in plain:
        raise ValueError("a manifest is a map with a format")
    if plain["format"] not in (_FORMAT, _FORMAT_WITH_FILES) or type(plain["format"]) is not int:
        known = f"known: {_FORMAT} and {_FORMAT_WITH_FILES}"
        raise ValueError(f"manifest format {plain['format']!r} is not known here ({known})")
    keys = _KEYS if plain["format"] == _FORMAT else _KEYS_WITH_FILES
    if set(plain) != keys:
        raise ValueError("a manifest has exactly the keys " + ", ".join(sorted(keys)))
    term, index, time_ms = (
        _number(plain, name, limit)
        for name, limit in (("term", MAX_TERM), ("index", MAX_INDEX), ("time_ms", _MAX_TIME))
    )
    if type(plain["installed"]) is not bool:
        raise ValueError("installed is not true or false")
    point = SnapshotPoint(LogId(term, index), Membership.from_plain(plain["membership"]), time_ms)
    check_point(point)
    rows = plain["parts"]
    if not isinstance(rows, list) or len(rows) > MAX_PARTS:
        raise ValueError(f"parts is not a list of at most {MAX_PARTS}")
    files = _number(plain, "files", len(rows)) if "files" in plain else 0
    manifest = Manifest(point, _parts(rows, len(rows) - files), plain["installed"], files)
    if encode_manifest(manifest) != data:
        raise ValueError("the manifest is not in its canonical form")
    return manifest


def _number(plain: dict[str, Any], name: str, limit: int) -> int:
    value = plain[name]
    if type(value) is not int or not 0 <= value <= limit:
        raise ValueError(f"{name} is not a number from 0 to {limit}")
    return value


def _parts(rows: list[Any], streams: int) -> tuple[tuple[int, bytes], ...]:
    parts = []
    for part, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 2:
            raise ValueError("a part is a size and a digest")
        size, digest = row
        least = _HEADER.size if part < streams else 1
        if type(size) is not int or not least <= size <= MAX_FILE_BYTES:
            raise ValueError(f"the size of a part is not between {least} and {MAX_FILE_BYTES}")
        if type(digest) is not bytes or len(digest) != hashlib.sha256().digest_size:
            raise ValueError("the digest of a part is not a SHA-256 digest")
        parts.append((size, digest))
    return tuple(parts)


class ManifestDamage(ValueError):
    """A manifest file is damaged at ``offset``."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(reason)
        self.offset = offset


def seal_manifest(manifest: Manifest) -> bytes:
    """Return the content of a manifest file: magic, format, length, SHA-256 of all the rest, encoded manifest."""
    body = encode_manifest(manifest)
    return _SEAL.pack(_MAGIC, _FORMAT, len(body), _seal_digest(_FORMAT, body)) + body


def _seal_digest(version: int, body: bytes) -> bytes:
    return hashlib.sha256(_MAGIC + struct.pack("<II", version, len(body)) + body).digest()


def unseal_manifest(data: bytes) -> Manifest:
    """Read a manifest file.

    :raises ManifestDamage: if it is damaged, or of a format that is not known.
    """
    if len(data) < _SEAL.size:
        raise ManifestDamage(len(data), f"{len(data)} bytes are too few for a manifest")
    magic, version, length, digest = _SEAL.unpack_from(data)
    body = data[_SEAL.size :]
    if magic != _MAGIC:
        raise ManifestDamage(0, "it does not begin as a manifest does")
    if len(body) != length:
        raise ManifestDamage(8, f"{length} bytes were announced, and {len(body)} are there")
    if _seal_digest(version, body) != digest:
        raise ManifestDamage(_SEAL.size, "the manifest's checksum does not match")
    if version != _FORMAT:
        raise ManifestDamage(8, f"format {version} is not known here (known: {_FORMAT})")
    try:
        return decode_manifest(body)
    except ValueError as error:
        raise ManifestDamage(_SEAL.size, str(error)) from error
