"""What tools need that look at a data directory: its formats, its rules and the reading half of a file system.

Nothing here locks or writes. :func:`examine_log` decides as ``FileLogStore.open`` does, with the same code;
:func:`scan_records` shows what stands in a segment, also behind damage; :func:`full_replay` verifies a segment that an
opening knows by its seal alone; :func:`log_must_yield` and :func:`check_owner` are the rules for the log and the
snapshot beside it. ``docs/storage-format.rst`` and ``docs/snapshot-format.rst`` describe the bytes. The names follow
the format: they can change with it.
"""

from ._fit import check_owner, log_must_yield
from ._identity import IDENTITY_NAME, read_identity
from ._inspect import (
    NoLog,
    ReadOnlyFileSystem,
    ScannedRecord,
    SegmentFile,
    examine_log,
    full_replay,
    list_segments,
    scan_records,
    start_of,
)
from ._inspect_snapshots import SnapshotFile, list_snapshots, verify_parts
from ._log_index import LogIndex
from ._record import (
    BATCH,
    MARK,
    SEAL,
    BadRecord,
    Batch,
    Operation,
    Purge,
    RecordHeader,
    Reset,
    SetState,
    Truncate,
    walk_payload,
)
from ._recovery import Findings, Layout
from ._scan import Tail, walk_entries
from ._segment import FORMAT_VERSION, SEGMENT_HEADER, Seal, Segment, SegmentHeader, decode_seal

__all__ = [
    "BATCH",
    "FORMAT_VERSION",
    "IDENTITY_NAME",
    "MARK",
    "SEAL",
    "SEGMENT_HEADER",
    "BadRecord",
    "Batch",
    "Findings",
    "Layout",
    "LogIndex",
    "NoLog",
    "Operation",
    "Purge",
    "ReadOnlyFileSystem",
    "RecordHeader",
    "Reset",
    "ScannedRecord",
    "Seal",
    "Segment",
    "SegmentFile",
    "SegmentHeader",
    "SetState",
    "SnapshotFile",
    "Tail",
    "Truncate",
    "check_owner",
    "decode_seal",
    "examine_log",
    "full_replay",
    "list_segments",
    "list_snapshots",
    "log_must_yield",
    "read_identity",
    "scan_records",
    "start_of",
    "verify_parts",
    "walk_entries",
    "walk_payload",
]
