"""Who is a member, and the changes from one configuration to the next (§6, dissertation §4).

Values only: whether a change may be made *now* is decided by the leader (``_changes``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import _cbor
from ..errors import MembershipRefused

__all__ = [
    "AddLearner",
    "ChangeAddress",
    "ChangeVoters",
    "Member",
    "Membership",
    "MembershipChange",
    "RemoveLearner",
]


@dataclass(frozen=True, slots=True)
class Member:
    """One member. ``incarnation`` is random and made once with the data directory (16 bytes)."""

    node_id: int
    incarnation: bytes
    peer_address: str
    client_address: str = ""


@dataclass(frozen=True, slots=True)
class AddLearner:
    """Add a member without a vote; with ``auto_promote`` the leader makes it a voter when it has caught up."""

    member: Member
    auto_promote: bool = False


@dataclass(frozen=True, slots=True)
class RemoveLearner:
    """Remove a member that has no vote. Its id is tombstoned."""

    node_id: int


@dataclass(frozen=True, slots=True)
class ChangeVoters:
    """Make ``voters`` the voters, through a joint configuration.

    Voters that are left out become learners with ``retain``, else they are removed and their ids tombstoned.
    ``force`` allows a change that leaves fewer live voters than a quorum (H-45).
    """

    voters: frozenset[int]
    retain: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class ChangeAddress:
    """Change where a member is reached."""

    node_id: int
    peer_address: str
    client_address: str


MembershipChange = AddLearner | RemoveLearner | ChangeVoters | ChangeAddress


@dataclass(frozen=True, slots=True)
class Membership:
    """A configuration. Invariant: voters and outgoing are members, and no member is tombstoned.

    :param voters: the voters; in a joint configuration the incoming ones.
    :param outgoing: the old voters while the configuration is joint, else empty.
    :param members: every voter and learner by id.
    :param auto_promote: learners that become voters by themselves.
    :param retain: outgoing voters that stay as learners when the joint configuration is left.
    :param tombstones: ids that were members once and can never be again (H-49, J-11).
    """

    voters: frozenset[int] = frozenset()
    outgoing: frozenset[int] = frozenset()
    members: Mapping[int, Member] = field(default_factory=dict)
    auto_promote: frozenset[int] = frozenset()
    retain: frozenset[int] = frozenset()
    tombstones: frozenset[int] = frozenset()

    @classmethod
    def initial(cls, members: Iterable[Member]) -> Membership:
        """Return the configuration in which all of ``members`` vote."""
        by_id = {member.node_id: member for member in members}
        return cls(voters=frozenset(by_id), members=by_id)

    @property
    def joint(self) -> bool:
        """Whether two majorities are needed."""
        return bool(self.outgoing)

    @property
    def all_voters(self) -> frozenset[int]:
        """The voters of both halves."""
        return self.voters | self.outgoing

    @property
    def learners(self) -> frozenset[int]:
        """The members without a vote."""
        return frozenset(self.members) - self.all_voters

    def after(self, change: MembershipChange) -> Membership:
        """Return the configuration that follows from ``change``; joint if voters change.

        :raises MembershipRefused: if the change makes no sense in this configuration.
        """
        if self.joint:
            raise MembershipRefused("in_progress", "the configuration is joint")
        if isinstance(change, AddLearner):
            return self._with_learner(change)
        if isinstance(change, RemoveLearner):
            return self._without_learner(change.node_id)
        if isinstance(change, ChangeAddress):
            return self._with_address(change)
        return self._towards(change)

    def _with_learner(self, change: AddLearner) -> Membership:
        member = change.member
        _check_member(member)
        if member.node_id in self.tombstones:
            raise MembershipRefused("tombstoned", f"node id {member.node_id} was removed and can never be used again")
        if member.node_id in self.members:
            raise MembershipRefused("duplicate", f"node {member.node_id} is a member already")
        self._check_address_free(member.node_id, member.peer_address)
        promoted = {member.node_id} if change.auto_promote else set()
        return dataclasses.replace(
            self, members={**self.members, member.node_id: member}, auto_promote=self.auto_promote | promoted
        )

    def _without_learner(self, node_id: int) -> Membership:
        self._check_known({node_id})
        if node_id in self.voters:
            raise MembershipRefused("invalid", f"node {node_id} is a voter; change the voters first")
        return dataclasses.replace(
            self,
            members={k: v for k, v in self.members.items() if k != node_id},
            auto_promote=self.auto_promote - {node_id},
            tombstones=self.tombstones | {node_id},
        )

    def _with_address(self, change: ChangeAddress) -> Membership:
        self._check_known({change.node_id})
        old = self.members[change.node_id]
        new = dataclasses.replace(old, peer_address=change.peer_address, client_address=change.client_address)
        _check_member(new)
        self._check_address_free(change.node_id, new.peer_address)
        return dataclasses.replace(self, members={**self.members, change.node_id: new})

    def _towards(self, change: ChangeVoters) -> Membership:
        if not change.voters:
            raise MembershipRefused("empty", "a cluster needs at least one voter")
        self._check_known(change.voters)
        if change.voters == self.voters:
            raise MembershipRefused("invalid", "these are the voters already")
        retain = self.voters - change.voters if change.retain else frozenset[int]()
        return dataclasses.replace(
            self,
            voters=change.voters,
            outgoing=self.voters,
            auto_promote=self.auto_promote - change.voters,
            retain=retain,
        )

    def left_joint(self) -> Membership:
        """Return the configuration that ends this joint one."""
        gone = self.outgoing - self.voters - self.retain
        return dataclasses.replace(
            self,
            outgoing=frozenset(),
            retain=frozenset(),
            members={k: v for k, v in self.members.items() if k not in gone},
            tombstones=self.tombstones | gone,
        )

    def _check_known(self, ids: Iterable[int]) -> None:
        unknown = sorted(set(ids) - set(self.members))
        if unknown:
            raise MembershipRefused("unknown_member", f"not a member: node {', '.join(map(str, unknown))}")

    def _check_address_free(self, node_id: int, address: str) -> None:
        for other in self.members.values():
            if other.node_id != node_id and other.peer_address == address:
                raise MembershipRefused("duplicate", f"node {other.node_id} has the address {address} already")

    def encode(self) -> bytes:
        """Return the payload of a CONFIG entry."""
        return _cbor.dumps(self.to_plain())

    def to_plain(self) -> dict[str, Any]:
        """Return the configuration as plain values, in one canonical order."""
        return {
            "voters": sorted(self.voters),
            "outgoing": sorted(self.outgoing),
            "members": [
                [m.node_id, m.incarnation, m.peer_address, m.client_address] for _, m in sorted(self.members.items())
            ],
            "auto_promote": sorted(self.auto_promote),
            "retain": sorted(self.retain),
            "tombstones": sorted(self.tombstones),
        }

    @classmethod
    def decode(cls, payload: bytes) -> Membership:
        """Read the payload of a CONFIG entry.

        :raises ValueError: if it is not one.
        """
        return cls.from_plain(_cbor.loads(payload))

    @classmethod
    def from_plain(cls, plain: Any) -> Membership:
        """Read what :meth:`to_plain` made, with a closed schema.

        :raises ValueError: if a key, a type or a rule does not hold.
        """
        names = {"voters", "outgoing", "members", "auto_promote", "retain", "tombstones"}
        if not isinstance(plain, dict) or set(plain) != names:
            raise ValueError("a configuration has exactly the keys " + ", ".join(sorted(names)))
        members: dict[int, Member] = {}
        for row in _list(plain["members"], "members"):
            if not isinstance(row, list) or len(row) != 4:
                raise ValueError("a member is a list of four values")
            member = Member(*row)
            try:
                _check_member(member)
            except MembershipRefused as error:
                raise ValueError(error.detail) from None
            if member.node_id in members:
                raise ValueError(f"node {member.node_id} stands in the configuration twice")
            members[member.node_id] = member
        sets = {name: _ids(plain[name], name) for name in names - {"members"}}
        if not (sets["voters"] | sets["outgoing"] | sets["auto_promote"] | sets["retain"]) <= set(members):
            raise ValueError("a voter or learner is not among the members")
        if sets["tombstones"] & set(members):
            raise ValueError("a member is tombstoned")
        return cls(members=members, **sets)


def _is_id(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 63


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    return value


def _ids(value: Any, name: str) -> frozenset[int]:
    ids = _list(value, name)
    if not all(_is_id(node_id) for node_id in ids):
        raise ValueError(f"{name} holds something that is not a node id")
    return frozenset(ids)


def _check_member(member: Member) -> None:
    if not _is_id(member.node_id):
        raise MembershipRefused("invalid", f"{member.node_id!r} is not a node id (a positive integer)")
    incarnation: object = member.incarnation
    if not isinstance(incarnation, bytes) or len(incarnation) != 16:
        raise MembershipRefused("invalid", f"node {member.node_id}: an incarnation has 16 bytes")
    for name in ("peer_address", "client_address"):
        address = getattr(member, name)
        if not isinstance(address, str) or len(address) > 255 or (name == "peer_address" and not address):
            raise MembershipRefused("invalid", f"node {member.node_id}: {name} must be text of at most 255 characters")
