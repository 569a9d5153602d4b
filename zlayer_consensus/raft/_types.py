"""The nouns of the algorithm: log ids, entries, hard state. Immutable values, no behaviour beyond encoding.

An entry is encoded once, by the leader that appends it. The same bytes then travel to its disk, over the wire and to
the followers' disks; only the fixed header is looked at on the way.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

__all__ = ["MAX_INDEX", "MAX_TERM", "NO_LOG", "Draft", "Entry", "EntryKind", "HardState", "LogId", "Role"]

MAX_TERM = (1 << 62) - 1
"""Largest legal term; what is beyond it is garbage (H-15)."""
MAX_INDEX = (1 << 62) - 1
"""Largest legal log index."""


class Role(enum.Enum):
    """What a member does at the moment.

    A learner is a member without a vote, or a node that is in no configuration yet.
    """

    LEARNER = "learner"
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class EntryKind(enum.IntEnum):
    """What an entry is for. The numbers are part of the wire and disk formats."""

    NOOP = 0
    COMMAND = 1
    CONFIG = 2
    SESSION = 3
    """Registers a client session; the session's id is the entry's index."""


class LogId(NamedTuple):
    """Position in the log, ordered as §5.4.1 orders logs: by term, then by index."""

    term: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here

    def __str__(self) -> str:
        return f"{self.term}-{self.index}"


NO_LOG = LogId(0, 0)
"""The position before the first entry."""


class HardState(NamedTuple):
    """What a member must never forget: §5.1's persistent state, and the commit index as a hint.

    ``commit`` never exceeds what was durable here when it was written.
    """

    term: int = 0
    voted_for: int = 0
    """0 is nobody."""
    commit: int = 0


_HEADER = struct.Struct("<QQQQQB")
_INDEX_TERM = struct.Struct("<QQ")
_KIND_AT = _HEADER.size - 1
_U64 = struct.Struct("<Q")


class Entry(NamedTuple):
    """One log entry and its encoded form.

    ``raw`` is a little-endian header (index, term, time, session, sequence: u64 each; kind: u8) followed by the
    payload. The fields beside it repeat what the core needs without decoding.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    term: int
    kind: int
    raw: bytes

    @classmethod
    def make(
        cls,
        index: int,
        term: int,
        kind: int,
        payload: bytes = b"",
        time_ms: int = 0,
        session: int = 0,
        sequence: int = 0,
    ) -> Entry:
        """Encode an entry."""
        return cls(index, term, kind, _HEADER.pack(index, term, time_ms, session, sequence, kind) + payload)

    @classmethod
    def decode(cls, raw: bytes) -> Entry:
        """Read the header of an encoded entry.

        :raises ValueError: if the header is short or its kind unknown. Index and term are checked by who uses them.
        """
        if len(raw) < _HEADER.size:
            raise ValueError(f"an entry of {len(raw)} bytes has no complete header")
        index, term = _INDEX_TERM.unpack_from(raw)
        kind = raw[_KIND_AT]
        if kind > EntryKind.SESSION:
            raise ValueError(f"entry {index} has the unknown kind {kind}")
        return cls(index, term, kind, raw)

    @property
    def id(self) -> LogId:
        """The entry's position."""
        return LogId(self.term, self.index)

    @property
    def payload(self) -> bytes:
        """The bytes after the header."""
        return self.raw[_HEADER.size :]

    @property
    def time_ms(self) -> int:
        """The leader's wall-clock time in milliseconds; it never falls along the log."""
        return int(_U64.unpack_from(self.raw, 16)[0])

    @property
    def session(self) -> int:
        """The client session, or 0."""
        return int(_U64.unpack_from(self.raw, 24)[0])

    @property
    def sequence(self) -> int:
        """The client's sequence number within the session."""
        return int(_U64.unpack_from(self.raw, 32)[0])

    def command(self) -> tuple[int, int, int, bytes]:
        """Return ``(time_ms, session, sequence, payload)``, read in one go."""
        _, _, time_ms, session, sequence, _ = _HEADER.unpack_from(self.raw)
        return time_ms, session, sequence, self.raw[_HEADER.size :]


ENTRY_OVERHEAD = _HEADER.size
"""Bytes that the header adds to a payload."""


class Draft(NamedTuple):
    """A proposal before it has a place in the log.

    :param frees: whether it leads to more space on the disks, and so is taken when they are full.
    """

    payload: bytes
    kind: int = EntryKind.COMMAND
    session: int = 0
    sequence: int = 0
    frees: bool = False
