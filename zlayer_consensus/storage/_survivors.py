"""What a member still has, as far as it matters when a majority is lost. Nothing is changed here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import StorageCorrupt
from ..raft import HardState, LogId, Membership
from ._files import IFileSystem
from ._fit import log_must_yield
from ._inspect import start_of
from ._log_index import LogIndex
from ._repair_plan import plan_repair
from ._scan import walk_entries
from .interfaces import Identity

__all__ = ["Holdings", "digest_of", "survey"]

_Counter = Callable[[int], None]


@dataclass(frozen=True)
class Holdings:
    """One survivor.

    :param identity: who it is.
    :param last: where its log ends.
    :param purged: up to where its log was purged.
    :param state: its term, vote and commit index.
    :param committed: up to here it knows entries as committed, by commit index or snapshot.
    :param snapshot: position of its newest snapshot, as an index; 0 is none.
    :param terms: ``(first index, term)`` of each run of entries behind ``purged``.
    :param time_ms: its log's time.
    :param membership: the configuration in effect.
    :param ids: every id that is or was a member by any configuration that it has.
    """

    identity: Identity
    last: LogId
    purged: LogId
    state: HardState
    committed: int
    snapshot: int
    terms: tuple[tuple[int, int], ...]
    time_ms: int
    membership: Membership
    ids: frozenset[int]

    @property
    def node_id(self) -> int:
        """The survivor's id."""
        return self.identity.node_id

    def term_at(self, index: int) -> int | None:
        """Return the term of an entry; None if it was purged, or is not there."""
        if index == self.purged.index:
            return self.purged.term
        if not self.purged.index < index <= self.last.index:
            return None
        return next(term for first, term in reversed(self.terms) if first <= index)

    def to_json(self) -> str:
        """Return it as a line that travels to where the plan is made."""
        body = self.to_plain()
        return json.dumps({"survey": body, "sha256": digest_of(body)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Holdings:
        """Read what :meth:`to_json` made.

        :raises ValueError: if it is something else, or was changed.
        """
        try:
            document = json.loads(text)
            body = document["survey"]
            if document["sha256"] != digest_of(body):
                raise ValueError("it was changed, or is of another version")
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"it is not what a survivor has: {error!r}") from error
        return cls.from_plain(body)

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        mine = self.identity
        return {
            "node_id": mine.node_id,
            "incarnation": mine.incarnation.hex(),
            "cluster_id": mine.cluster_id.hex(),
            "origin": mine.origin.hex(),
            "repair": mine.repair.hex(),
            "former": [each.hex() for each in mine.former],
            "last": list(self.last),
            "purged": list(self.purged),
            "state": list(self.state),
            "committed": self.committed,
            "snapshot": self.snapshot,
            "terms": [list(run) for run in self.terms],
            "time_ms": self.time_ms,
            "membership": plain_membership(self.membership),
            "ids": sorted(self.ids),
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Holdings:
        """Read what :meth:`to_plain` made.

        :raises ValueError: if it is something else.
        """
        try:
            identity = Identity(
                _number(plain["node_id"]),
                bytes.fromhex(plain["incarnation"]),
                bytes.fromhex(plain["cluster_id"]),
                bytes.fromhex(plain["origin"]),
                bytes.fromhex(plain["repair"]),
                tuple(bytes.fromhex(each) for each in plain["former"]),
            )
            found = cls(
                identity,
                LogId(*map(_number, plain["last"])),
                LogId(*map(_number, plain["purged"])),
                HardState(*map(_number, plain["state"])),
                _number(plain["committed"]),
                _number(plain["snapshot"]),
                tuple((_number(first), _number(term)) for first, term in plain["terms"]),
                _number(plain["time_ms"]),
                membership_of(plain["membership"]),
                frozenset(map(_number, plain["ids"])),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"it is not what a survivor has: {error!r}") from error
        begins = found.terms[0][0] if found.terms else found.last.index + 1
        if found.last.index > found.purged.index and begins != found.purged.index + 1:
            raise ValueError("it is not what a survivor has: the terms do not begin where the log does")
        return found


def digest_of(body: dict[str, Any]) -> str:
    """Return the SHA-256 by which a document of a recovery shows that it is as it was made."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise TypeError(f"{value!r} is no number that a log has")
    return value


def plain_membership(membership: Membership) -> dict[str, Any]:
    """Return a configuration as plain values for JSON."""
    plain = membership.to_plain()
    plain["members"] = [[node_id, incarnation.hex(), *rest] for node_id, incarnation, *rest in plain["members"]]
    return plain


def membership_of(plain: dict[str, Any]) -> Membership:
    """Read what :func:`plain_membership` made.

    :raises ValueError: if it is something else.
    """
    members = [[node_id, bytes.fromhex(incarnation), *rest] for node_id, incarnation, *rest in plain["members"]]
    return Membership.from_plain({**plain, "members": members})


def survey(files: IFileSystem, directory: str, snapshots: str, advance: _Counter = lambda _size: None) -> Holdings:
    """Read and check everything that a stopped member has.

    :param snapshots: the state machine's directory.
    :param advance: called with the sizes of the files that were read.
    :raises StorageError: if something is damaged: what is to be the new cluster's must be whole.
    :raises NoLog: if there is no log.
    """
    found = plan_repair(files, directory, snapshots, advance=advance)
    if found.needed:
        raise found.damage[0]
    assert found.run is not None
    index, point = found.run.index, found.point
    start = start_of(index)
    manifest = None if found.snapshot is None else found.snapshot.manifest
    ids: set[int] = set()
    for each in _memberships(files, found.run.index):
        ids |= set(each.members) | each.tombstones
    if point is not None:
        ids |= set(point.membership.members) | point.membership.tombstones
    membership = found.membership or Membership()
    last, purged, terms, state = start.last, start.purged, start.terms, start.hard_state
    committed, time_ms = index.committed, index.time_ms
    if point is not None:
        committed, time_ms = max(committed, point.last.index), max(time_ms, point.time_ms)
        if log_must_yield(start, manifest):
            # What the next start does: the log is replaced by the snapshot.
            membership, last, purged, terms = point.membership, point.last, point.last, ()
    return Holdings(
        found.identity, last, purged, state, committed, 0 if point is None else point.last.index, terms, time_ms,
        membership, frozenset(ids),
    )  # fmt: skip


def _memberships(files: IFileSystem, index: LogIndex) -> list[Membership]:
    found = []
    for at in index.configs():
        [entry] = walk_entries(files, index, at, at)
        try:
            found.append(Membership.decode(entry.payload))
        except ValueError as error:
            segment = index.find(at)
            path = "" if segment is None else segment.path
            raise StorageCorrupt(path, 0, f"the configuration in entry {at} is none: {error}", at, at) from None
    return found
