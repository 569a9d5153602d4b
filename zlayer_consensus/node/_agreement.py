"""Which members' digests agree: a pure function of what each of them reports (J-92)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..network import DigestReply
from ..raft import Membership
from ..raft._quorum import has_quorum

__all__ = ["Findings", "Verdict", "compare"]

_At = dict[int, dict[bytes, set[int]]]
"""By index: who has which digest."""


class Verdict(NamedTuple):
    """A digest that a majority of the voters agrees on, in a joint configuration one of each half.

    :param index: the entry after which the state has it.
    """

    kind: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    digest: bytes


@dataclass(frozen=True, slots=True)
class Findings:
    """What a comparison found.

    :param agreed: by kind, the verdict of the greatest index.
    :param contradicted: the members that have another digest than a majority, each with the verdict of the greatest
        index where that is so, and what it has there.
    :param disputed: index and members' digests where the others differ, and no majority says who is right.
    """

    agreed: dict[str, Verdict] = field(default_factory=dict)
    contradicted: dict[int, tuple[Verdict, bytes]] = field(default_factory=dict)
    disputed: tuple[int, dict[int, bytes]] | None = None


def compare(membership: Membership, reports: Mapping[int, DigestReply]) -> Findings:
    """Compare what members report. Learners are compared, and no part of a majority; who is no member is left out.

    Digests of different kinds are not compared, nor do they add up to a majority.
    """
    findings = Findings()
    members = {node: report for node, report in reports.items() if node in membership.members}
    kinds = sorted({report.kind for report in members.values() if report.kind})
    tables = {kind: _table(kind, members) for kind in kinds}
    for kind, table in tables.items():
        for index in sorted(table, reverse=True):
            agreed = next((digest for digest, nodes in table[index].items() if has_quorum(membership, nodes)), None)
            if agreed is None:
                continue
            verdict = Verdict(kind, index, agreed)
            findings.agreed.setdefault(kind, verdict)
            for digest, nodes in table[index].items():
                if digest != agreed:
                    for node in nodes:
                        findings.contradicted.setdefault(node, (verdict, digest))
    return Findings(findings.agreed, findings.contradicted, _dispute(tables, findings.contradicted))


def _table(kind: str, members: Mapping[int, DigestReply]) -> _At:
    table: _At = {}
    for node, report in members.items():
        if report.kind == kind:
            for index, digest in report.digests:
                table.setdefault(index, {}).setdefault(digest, set()).add(node)
    return table


def _dispute(tables: Mapping[str, _At], settled: Mapping[int, object]) -> tuple[int, dict[int, bytes]] | None:
    """Return the greatest index at which members differ of whom none is known to be wrong."""
    found: tuple[int, dict[int, bytes]] | None = None
    for table in tables.values():
        for index in sorted(table, reverse=True):
            differing = {digest: nodes - settled.keys() for digest, nodes in table[index].items()}
            if sum(1 for nodes in differing.values() if nodes) > 1 and (found is None or index > found[0]):
                found = index, {node: digest for digest, nodes in differing.items() for node in sorted(nodes)}
    return found
