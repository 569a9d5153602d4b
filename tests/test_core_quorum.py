"""Quorum arithmetic against its definition, for every configuration of up to five nodes, joint ones included."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations, permutations, product
from unittest import TestCase

from zlayer_consensus.raft import Member, Membership
from zlayer_consensus.raft._quorum import agreed_index, has_quorum, is_lost, majority

IDS = (1, 2, 3, 4, 5)
MEMBERS = {node_id: Member(node_id, bytes(16), f"n{node_id}:1") for node_id in IDS}


def subsets(of: tuple[int, ...]) -> Iterator[frozenset[int]]:
    return map(frozenset, chain.from_iterable(combinations(of, size) for size in range(len(of) + 1)))


SETS = list(subsets(IDS))
CONFIGURATIONS = [
    Membership(voters=voters, outgoing=outgoing, members=MEMBERS) for voters in SETS if voters for outgoing in SETS
]


def more_than_half(ids: frozenset[int], voters: frozenset[int]) -> bool:
    return 2 * len(ids & voters) > len(voters)


def decides(membership: Membership, ids: frozenset[int]) -> bool:
    """The definition: more than half of the voters, and of the outgoing voters if there are any (§6)."""
    return more_than_half(ids, membership.voters) and (
        not membership.outgoing or more_than_half(ids, membership.outgoing)
    )


class QuorumTests(TestCase):
    def test_majority_is_more_than_half(self) -> None:
        self.assertEqual([majority(count) for count in range(1, 8)], [1, 2, 2, 3, 3, 4, 4])

    def test_j64_has_quorum_in_every_configuration(self) -> None:
        """J-64: a set decides exactly if it has a majority of each half."""
        for membership in CONFIGURATIONS:
            for ids in SETS:
                self.assertIs(has_quorum(membership, ids), decides(membership, ids), (membership, ids))

    def test_j64_a_vote_is_lost_exactly_when_the_rest_is_no_quorum(self) -> None:
        """J-64: a candidate gives up when those who have not refused cannot decide any more, and not before."""
        for membership in CONFIGURATIONS:
            for refused in SETS:
                rest = frozenset(IDS) - refused
                self.assertIs(is_lost(membership, refused), not decides(membership, rest), (membership, refused))

    def test_j64_any_two_quorums_share_a_node(self) -> None:
        """§6: two disjoint sets never both decide, also when one of them is the joint configuration's half."""
        for membership in CONFIGURATIONS:
            deciding = [ids for ids in SETS if has_quorum(membership, ids)]
            self.assertTrue(all(a & b for a, b in combinations(deciding, 2)), membership)

    def test_joint_quorums_meet_those_of_both_sides(self) -> None:
        """§6: what a joint configuration decides cannot be contradicted by the old or by the new one alone."""
        for membership in CONFIGURATIONS:
            if not membership.joint:
                continue
            joint = [ids for ids in SETS if has_quorum(membership, ids)]
            for side in (membership.voters, membership.outgoing):
                alone = [ids for ids in SETS if has_quorum(Membership(voters=side, members=MEMBERS), ids)]
                self.assertTrue(all(a & b for a in joint for b in alone), membership)

    def test_j64_the_agreed_index_in_every_configuration(self) -> None:
        """J-64: the agreed index is the greatest one that a deciding set has reached."""
        reached = {(), *permutations((1, 2, 3, 4, 5)), *product((0, 3, 9), repeat=5)} - {()}
        for membership in CONFIGURATIONS:
            quorums = [ids for ids in SETS if decides(membership, ids)]
            minimal = [ids for ids in quorums if not any(other < ids for other in quorums)]
            for indexes in reached:
                expected = max(min(indexes[node_id - 1] for node_id in ids) for ids in minimal)
                match = dict(zip(IDS, indexes, strict=True))
                if agreed_index(membership, match) != expected:
                    self.fail(f"{membership}: {match}")

    def test_j66_only_voters_count(self) -> None:
        """J-66: a learner adds nothing to any decision."""
        membership = Membership(voters=frozenset({1, 2, 3}), members=MEMBERS)
        self.assertFalse(has_quorum(membership, {1, 4, 5}))
        self.assertEqual(agreed_index(membership, {1: 9, 4: 9, 5: 9}), 0)

    def test_without_voters_nothing_is_decided(self) -> None:
        """A node that is in no configuration yet can never believe that it has a majority."""
        self.assertFalse(has_quorum(Membership(), set(IDS)))
        self.assertTrue(is_lost(Membership(), set()))
        self.assertEqual(agreed_index(Membership(), dict.fromkeys(IDS, 7)), 0)
