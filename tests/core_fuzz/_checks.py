"""What must be true of all members together, over the whole run. Knows nothing of how the core works."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

from zlayer_consensus.raft import (
    NO_LOG,
    AppendReply,
    AppendRequest,
    Entry,
    EntryKind,
    HeartbeatReply,
    LogId,
    Membership,
    ReadIndexRequest,
    Reply,
    Request,
    VoteReply,
    VoteRequest,
)

from ._disk import Disk, Log

__all__ = ["Checker", "Violation", "chain"]


class Violation(AssertionError):
    """An invariant does not hold."""


def chain(digest: int, entry: Entry) -> int:
    """Return the state after an entry: any loss, doubling or change of order shows in it."""
    return zlib.crc32(entry.raw, digest)


def require(condition: bool, *what: object) -> None:
    """Raise :class:`Violation` unless ``condition``."""
    if not condition:
        raise Violation(" ".join(map(str, what)))


def is_quorum(membership: Membership, ids: Iterable[int]) -> bool:
    """Decide by the definition: more than half of the voters, and of the outgoing ones if there are any."""
    have = set(ids)
    halves = [half for half in (membership.voters, membership.outgoing) if half]
    return bool(membership.voters) and all(2 * len(half & have) > len(half) for half in halves)


class Checker:
    """The history of the cluster, as seen from above."""

    def __init__(self) -> None:
        self.entries: dict[LogId, tuple[bytes, int | None]] = {}
        self.committed: dict[int, Entry] = {}
        self.commit_terms: dict[int, int] = {}
        self.states: dict[int, int] = {0: 0}
        self.leaders: dict[int, tuple[int, int]] = {}
        self.votes: dict[tuple[int, int], int] = {}
        self.promised: dict[int, int] = {}
        self.configs: list[tuple[int, Membership]] = [(0, Membership())]
        self.commit = 0
        """The greatest index that any leader has committed."""

    # -- the log

    def appended(self, entries: Iterable[Entry], prev_term: int | None) -> None:
        """Log matching: one index and term means one entry, and the same one before it."""
        for entry in entries:
            known = self.entries.setdefault(entry.id, (entry.raw, prev_term))
            require(known == (entry.raw, prev_term), "log matching: entry", entry.id, "is not everywhere the same")
            prev_term = entry.term

    def own_config(self, node: int, before: int, commit: int, ready: bool) -> None:
        """One configuration change at a time, and only after a commit of the leader's own term (H-40)."""
        require(ready, "node", node, "appended a configuration before it committed an entry of its term")
        require(before <= commit, "node", node, "appended a configuration while", before, "is not committed")

    def leads(self, node: int, epoch: int, term: int, mirror: Log) -> None:
        """Election safety, and leader completeness."""
        holder = self.leaders.setdefault(term, (node, epoch))
        require(holder == (node, epoch), "election safety: term", term, "has two leaders:", holder, (node, epoch))
        index = self.commit
        while index > 0 and self.commit_terms[index] >= term:
            index -= 1
        if index > mirror.purged.index:
            have, want = mirror.term_at(index), self.committed[index].term
            require(have == want, "leader completeness: node", node, "of term", term, "lacks entry", index)

    def commits(
        self, node: int, term: int, entry: Entry, membership: Membership | None, disks: Mapping[int, Disk]
    ) -> None:
        """Committed entries are immutable; a leader (``membership`` given) commits what a quorum has on disk."""
        index = entry.index
        known = self.committed.get(index)
        if known is not None:
            require(known.raw == entry.raw, "committed entry", index, "was", known.id, "and is", entry.id, "at", node)
            return
        require(membership is not None, "node", node, "committed", index, "before any leader did")
        assert membership is not None
        holders = [other for other, disk in disks.items() if disk.holds(index, entry.term)]
        require(is_quorum(membership, holders), "entry", entry.id, "is committed at", node, "but only on", holders)
        require(index == len(self.committed) + 1, "entry", index, "is committed out of order")
        before = self.committed.get(index - 1)
        require(before is None or before.time_ms <= entry.time_ms, "the log's time falls at entry", index)
        self.committed[index], self.commit_terms[index] = entry, term
        self.states[index] = chain(self.states[index - 1], entry)
        self.commit = index
        if entry.kind == EntryKind.CONFIG:
            self._config(index, Membership.decode(entry.payload))

    def _config(self, index: int, new: Membership) -> None:
        old = self.configs[-1][1]
        self.configs.append((index, new))
        if not old.members:
            return
        require(old.tombstones <= new.tombstones, "entry", index, "forgets tombstones")
        require(not new.tombstones & set(new.members), "entry", index, "brings back a tombstoned member")
        if old.joint:
            require(not new.joint and new.voters == old.voters, "entry", index, "does not end the joint configuration")
        elif new.joint:
            require(new.outgoing == old.voters, "entry", index, "begins a joint configuration from other voters")
        else:
            require(new.voters == old.voters, "entry", index, "changes voters without a joint configuration")

    def config_at(self, index: int) -> Membership:
        """Return the committed configuration in force at an index."""
        return next(membership for at, membership in reversed(self.configs) if at <= index)

    def applied(self, node: int, entry: Entry, digest: int) -> int:
        """State machine safety; return the new digest."""
        known = self.committed.get(entry.index)
        require(known is not None and known.raw == entry.raw, "node", node, "applies another entry", entry.id)
        digest = chain(digest, entry)
        require(digest == self.states[entry.index], "node", node, "has another state after entry", entry.index)
        return digest

    # -- messages

    def sends(self, node: int, message: Request, image: Log) -> None:
        """Nothing leaves that depends on what is not durable."""
        if isinstance(message, ReadIndexRequest) or (isinstance(message, VoteRequest) and message.pre_vote):
            return  # questions, which promise nothing
        if isinstance(message, VoteRequest):
            self._votes(node, message.term, node, image)
        require(message.term <= image.hard.term, "node", node, "sends", message, "its disk has", image.hard)
        self.promised[node] = max(message.term, self.promised.get(node, 0))

    def answers(self, node: int, sender: int, request: Request, reply: Reply, disk: Disk) -> None:
        """Nothing is promised that is not durable."""
        image, snapshot = disk.image, disk.snapshot.point.last.index if disk.snapshot else 0
        if isinstance(reply, VoteReply):
            if reply.pre_vote or not reply.granted:
                return
            self._votes(node, reply.term, sender, image)
        elif isinstance(reply, AppendReply) and isinstance(request, AppendRequest):
            if not reply.success:
                return
            last = request.entries[-1].id if request.entries else request.prev
            # The writes of a newer leader may be durable already, too: then the reply is late, but not wrong.
            durable = last.index <= max(snapshot, image.purged.index) or last in disk.synced or last == NO_LOG
            require(reply.match == last.index and durable, "node", node, "answers", reply, "its disk has", image.last)
        elif isinstance(reply, HeartbeatReply) and reply.term == request.term:
            require(reply.last_index <= max(snapshot, image.last.index), "node", node, "answers", reply)
        else:
            return
        require(reply.term <= image.hard.term, "node", node, "answers", reply, "its disk has", image.hard)
        self.promised[node] = max(reply.term, self.promised.get(node, 0))

    def _votes(self, node: int, term: int, candidate: int, image: Log) -> None:
        hard = image.hard
        require(hard.term > term or (hard.term, hard.voted_for) == (term, candidate), "node", node, "votes", hard)
        known = self.votes.setdefault((node, term), candidate)
        require(known == candidate, "node", node, "voted twice in term", term, ":", known, candidate)

    def restarts(self, node: int, image: Log, snapshot: int) -> None:
        """What was promised survives, and nothing is remembered that is not there."""
        require(image.hard.commit <= max(image.last.index, snapshot), "node", node, "remembers", image.hard)
        require(image.hard.term >= self.promised.get(node, 0), "node", node, "forgot its term", image.hard)
        vote = self.votes.get((node, image.hard.term))
        require(vote in (None, image.hard.voted_for), "node", node, "forgot its vote", image.hard)
