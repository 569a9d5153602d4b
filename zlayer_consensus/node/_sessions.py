"""Client sessions: a retried command is answered, not repeated (dissertation §6.3; H-82 to H-87).

Every replica keeps the same table, because all that changes it comes from the log: the commands, their times, and the
settings, which travel in the entry that registers a session. No local clock and no local configuration has a say.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from .. import _cbor
from ..config import ConsensusConfig
from ..errors import ConsensusError, SessionExpired, SessionSequenceReused, SessionSequenceStale

__all__ = ["SessionLoader", "SessionSettings", "SessionTable"]

_CHUNK_BYTES = 64 << 10
_ROW_OVERHEAD = 48
_DIGEST_BYTES = 16
_VERSION = 1


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What decides expiry. The same on every replica, since the newest SESSION entry carries it.

    :param ttl_ms: idle time, by the log's clock, after which a session expires.
    :param max_sessions: sessions kept; the least recently used goes first.
    :param window: replies kept per session, counted in sequence numbers.
    """

    ttl_ms: int
    max_sessions: int
    window: int

    @classmethod
    def of(cls, config: ConsensusConfig) -> SessionSettings:
        """Return the settings that a leader with this configuration writes into the log."""
        return cls(config.session_ttl_ms, config.max_sessions, config.session_window)

    def encode(self) -> bytes:
        """Return the payload of a SESSION entry."""
        return _cbor.dumps([self.ttl_ms, self.max_sessions, self.window])

    @classmethod
    def decode(cls, payload: bytes) -> SessionSettings:
        """Read the payload of a SESSION entry.

        :raises ValueError: if it is not one.
        """
        return cls.from_plain(_cbor.loads(payload))

    @classmethod
    def from_plain(cls, plain: Any) -> SessionSettings:
        """Check three plain values.

        :raises ValueError: if they are not three positive integers.
        """
        if not isinstance(plain, list) or len(plain) != 3 or not all(type(v) is int and v > 0 for v in plain):
            raise ValueError("session settings are three positive integers")
        return cls(*plain)


class _Session:
    """One session: its last use by the log's clock, and the replies in its window.

    ``floor`` is the last sequence before the window. It only grows, also when the window is made larger: what was
    forgotten must not be taken for new.
    """

    __slots__ = ("epoch", "floor", "last_ms", "replies")

    def __init__(self, last_ms: int, floor: int, replies: dict[int, tuple[bytes, bytes]], epoch: int) -> None:
        self.last_ms = last_ms
        self.floor = floor
        self.replies = replies
        self.epoch = epoch


class SessionTable:
    """The sessions of one replica, as of its applied index."""

    def __init__(self, settings: SessionSettings | None = None) -> None:
        self._settings = settings
        self._sessions: OrderedDict[int, _Session] = OrderedDict()
        """By last use, oldest first: times never fall along the log."""
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def register(self, session: int, time_ms: int, payload: bytes) -> None:
        """Take up a new session (the id is the entry's index), and the settings that its entry carries.

        :raises ValueError: if the payload is not what a SESSION entry carries.
        """
        settings = self._settings = SessionSettings.decode(payload)
        self._expire(time_ms)
        self._sessions[session] = _Session(time_ms, 0, {}, self._epoch)
        while len(self._sessions) > settings.max_sessions:
            self._sessions.popitem(last=False)

    def look_up(self, session: int, sequence: int, time_ms: int, payload: bytes) -> bytes | ConsensusError | None:
        """Say what to do with a command: None is carry it out, bytes are the reply that it had.

        An error is the result: the command must not be carried out.
        """
        self._expire(time_ms)
        known = self._sessions.get(session)
        if known is None or self._settings is None:
            return SessionExpired(session)
        known = self._writable(session, known)
        known.last_ms = time_ms
        self._sessions.move_to_end(session)
        seen = known.replies.get(sequence)
        if seen is not None:
            return seen[1] if seen[0] == _digest(payload) else SessionSequenceReused(session, sequence)
        if sequence <= known.floor:
            return SessionSequenceStale(session, sequence, known.floor + 1)
        return None

    def keep(self, session: int, sequence: int, payload: bytes, reply: bytes) -> None:
        """Remember the reply of a command that :meth:`look_up` has just let pass."""
        settings, known = self._settings, self._sessions[session]
        assert settings is not None  # look_up saw them
        known.replies[sequence] = (_digest(payload), reply)
        floor = sequence - settings.window
        if floor > known.floor:
            _forget(known.replies, known.floor, floor)
            known.floor = floor

    def _expire(self, time_ms: int) -> None:
        if self._settings is None:
            return
        ttl = self._settings.ttl_ms
        while self._sessions:
            session, oldest = next(iter(self._sessions.items()))
            if oldest.last_ms + ttl >= time_ms:
                return
            del self._sessions[session]

    def _writable(self, session: int, known: _Session) -> _Session:
        """Copy a session that a snapshot under way still refers to."""
        if known.epoch == self._epoch:
            return known
        copy = _Session(known.last_ms, known.floor, dict(known.replies), self._epoch)
        self._sessions[session] = copy
        return copy

    def snapshot(self) -> Iterator[bytes]:
        """Return an iterator over the table as of this call, in bounded pieces; the last one marks the end."""
        self._epoch += 1
        return self._pieces(list(self._sessions.items()), self._settings)

    @staticmethod
    def _pieces(sessions: list[tuple[int, _Session]], settings: SessionSettings | None) -> Iterator[bytes]:
        plain = None if settings is None else [settings.ttl_ms, settings.max_sessions, settings.window]
        yield _cbor.dumps([_VERSION, plain])
        rows: list[Any] = []
        size = 0
        for session, known in sessions:
            replies: list[Any] = []
            row = [session, known.last_ms, known.floor, replies]
            rows.append(row)
            size += _ROW_OVERHEAD
            for sequence, (digest, reply) in known.replies.items():
                if size >= _CHUNK_BYTES:
                    yield _cbor.dumps(rows)
                    replies = []
                    rows, size = [[session, known.last_ms, known.floor, replies]], 0
                replies.append([sequence, digest, reply])
                size += len(reply) + _ROW_OVERHEAD
            if size >= _CHUNK_BYTES:
                yield _cbor.dumps(rows)
                rows, size = [], 0
        if rows:
            yield _cbor.dumps(rows)
        yield _cbor.dumps([])


class SessionLoader:
    """Reads back what :meth:`SessionTable.snapshot` gave out, piece by piece."""

    def __init__(self) -> None:
        self.table: SessionTable | None = None
        self.done = False

    def feed(self, chunk: bytes) -> None:
        """Take the next piece; ``done`` tells whether it was the last.

        :raises ValueError: if it is not one.
        """
        plain = _cbor.loads(chunk)
        if not isinstance(plain, list):
            raise ValueError("a piece of the session table is not a list")
        if self.table is None:
            self.table = _empty_table(plain)
        elif not plain:
            self.done = True
        else:
            for row in plain:
                self._add(self.table, row)

    @staticmethod
    def _add(table: SessionTable, row: Any) -> None:
        if not isinstance(row, list) or len(row) != 4 or not _are_counts(row[:3]) or not isinstance(row[3], list):
            raise ValueError("a session is not (id, last use, floor, replies)")
        session, last_ms, floor, replies = row
        known = table._sessions.setdefault(session, _Session(last_ms, floor, {}, 0))
        for reply in replies:
            if not isinstance(reply, list) or len(reply) != 3 or not _are_counts(reply[:1]):
                raise ValueError("a kept reply is not (sequence, digest, reply)")
            if not isinstance(reply[1], bytes) or not isinstance(reply[2], bytes):
                raise ValueError("a kept reply is not bytes")
            known.replies[reply[0]] = (reply[1], reply[2])


def _empty_table(head: list[Any]) -> SessionTable:
    if len(head) != 2 or head[0] != _VERSION:
        raise ValueError(f"the session table is not of version {_VERSION}")
    return SessionTable(None if head[1] is None else SessionSettings.from_plain(head[1]))


def _are_counts(values: list[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _digest(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=_DIGEST_BYTES).digest()


def _forget(replies: dict[int, tuple[bytes, bytes]], old_floor: int, floor: int) -> None:
    """Drop the replies up to ``floor``; those up to ``old_floor`` are gone already."""
    if floor - old_floor > len(replies):
        for sequence in [s for s in replies if s <= floor]:
            del replies[sequence]
    else:
        for sequence in range(old_floor + 1, floor + 1):
            replies.pop(sequence, None)
