"""What must be true of all members together. Knows nothing of how the core works."""

from __future__ import annotations

from typing import Any

from zlayer_consensus.raft import Entry, EntryKind, Membership, Role

from ._member import Committed, Violation, latest_config
from ._model import Facts

__all__ = ["History", "is_quorum"]

_Log = tuple[Entry, ...]


def is_quorum(config: Membership, ids: set[int]) -> bool:
    """Decide by the definition: there is no equally large set of the others, in either half."""
    halves = [config.voters, *([config.outgoing] if config.outgoing else [])]
    return bool(config.voters) and all(len(half & ids) > len(half - ids) for half in halves)


class History:
    """Logs and committed logs by number, and the checks of them, each made once.

    A committed log is the entries, and for each the term of the leader that committed it first.

    :param direct: whether a commit must be on the disks of a quorum at that very moment.
    """

    def __init__(self, *, direct: bool = True) -> None:
        self._direct = direct
        self._logs: list[_Log] = [()]
        self._log_numbers: dict[_Log, int] = {(): 0}
        self._committed: list[tuple[_Log, tuple[int, ...]]] = [((), ())]
        self._committed_numbers: dict[Any, int] = {((), ()): 0}
        self._matching: set[tuple[int, int]] = set()
        self._complete: set[tuple[Any, ...]] = set()

    def number(self, log: _Log) -> int:
        """Intern a log."""
        number = self._log_numbers.get(log)
        if number is None:
            number = self._log_numbers[log] = len(self._logs)
            self._logs.append(log)
        return number

    # -- commit

    def commit(self, known: int, node_id: int, new: Committed, disks: dict[int, int]) -> tuple[int, list[str]]:
        """Return the committed log after a commit index moved, and what was seen of it.

        :param known: the committed log until now.
        :param disks: the log on the disk of each member.
        """
        log, terms = self._committed[known]
        for before, after in zip(log, new.log, strict=False):
            if before != after:
                raise Violation(f"node {node_id} commits {after.id} where {before.id} was committed")
        fresh = new.log[len(log) :]
        if not fresh:
            return known, []
        if new.config is None:
            raise Violation(f"node {node_id} has entry {fresh[-1].id} as committed before any leader committed it")
        holders = {at for at, disk in disks.items() if self._logs[disk][: len(new.log)] == new.log}
        if self._direct and not is_quorum(new.config, holders):
            voters = sorted(new.config.voters), sorted(new.config.outgoing)
            raise Violation(f"node {node_id} commits {fresh[-1].id}, durable on {sorted(holders)} of {voters}")
        key = (new.log, (*terms, *(new.term for _ in fresh)))
        number = self._committed_numbers.get(key)
        if number is None:
            number = self._committed_numbers[key] = len(self._committed)
            self._committed.append(key)
        return number, _seen(log, fresh)

    # -- members

    def check(self, one: Facts, others: list[Facts], committed: int) -> None:
        """Check a member against the others and against what is committed."""
        key = (one.log, one.commit, one.term if one.role is Role.LEADER else 0, committed)
        if key not in self._complete:
            self._check_committed(one, committed)
            self._complete.add(key)
        for other in others:
            if other.node_id == one.node_id:
                continue
            if one.led & other.led:
                terms = ", ".join(map(str, sorted(one.led & other.led)))
                raise Violation(f"election safety: nodes {one.node_id} and {other.node_id} both led in term {terms}")
            pair = (one.log, other.log)
            if one.log != other.log and pair not in self._matching:
                self._check_matching(one.node_id, other.node_id, *pair)
                self._matching |= {pair, (other.log, one.log)}

    def _check_committed(self, one: Facts, committed: int) -> None:
        log, terms = self._committed[committed]
        own = self._logs[one.log]
        if own[: one.commit] != log[: one.commit] or len(own) < one.commit:
            raise Violation(f"node {one.node_id} no longer has what it knows to be committed")
        if one.role is not Role.LEADER:
            return
        for at, (entry, term) in enumerate(zip(log, terms, strict=True)):
            if term <= one.term and own[at : at + 1] != (entry,):
                raise Violation(
                    f"leader completeness: node {one.node_id} leads in term {one.term} and lacks entry {entry.id}, "
                    f"committed in term {term}"
                )

    def _check_matching(self, one: int, other: int, one_log: int, other_log: int) -> None:
        a, b = self._logs[one_log], self._logs[other_log]
        for at in range(min(len(a), len(b)), 0, -1):
            if a[at - 1].term == b[at - 1].term:
                if a[:at] != b[:at]:
                    raise Violation(f"log matching: nodes {one} and {other} differ up to their entry {a[at - 1].id}")
                return


def _seen(before: _Log, fresh: _Log) -> list[str]:
    seen = ["entry committed"]
    log = before
    for entry in fresh:
        previous, log = latest_config(log), (*log, entry)
        if entry.kind == EntryKind.COMMAND:
            seen.append("command committed")
        if entry.kind != EntryKind.CONFIG or not previous.members:
            continue
        new = Membership.decode(entry.payload)
        if new.joint:
            seen.append("joint configuration committed")
        else:
            seen.append("final configuration committed")
            began = next(e for e in reversed(log[:-1]) if e.kind == EntryKind.CONFIG)
            if previous.joint and began.term != entry.term:
                seen.append("joint configuration left by a later leader")
    return seen
