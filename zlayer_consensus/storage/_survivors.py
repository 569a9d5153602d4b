"""What a member still has, as far as it matters when a majority is lost. Nothing is changed here."""

from __future__ import annotations

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

__all__ = ["Holdings", "survey"]

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
                plain["node_id"],
                bytes.fromhex(plain["incarnation"]),
                bytes.fromhex(plain["cluster_id"]),
                bytes.fromhex(plain["origin"]),
                bytes.fromhex(plain["repair"]),
                tuple(bytes.fromhex(each) for each in plain["former"]),
            )
            return cls(
                identity,
                LogId(*plain["last"]),
                LogId(*plain["purged"]),
                HardState(*plain["state"]),
                plain["committed"],
                plain["snapshot"],
                tuple((first, term) for first, term in plain["terms"]),
                plain["time_ms"],
                membership_of(plain["membership"]),
                frozenset(plain["ids"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is not what a survivor has: {error!r}") from error


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
