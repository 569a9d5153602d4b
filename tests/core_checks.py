"""What must hold after every step of every scripted cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zlayer_consensus.raft import (
    AppendReply,
    AppendRequest,
    Entry,
    HeartbeatReply,
    HeartbeatRequest,
    Role,
    TimeoutNowRequest,
    VoteReply,
    VoteRequest,
)

if TYPE_CHECKING:
    from tests.core_cluster import Envelope, Node

__all__ = ["Checks"]


class Checks:
    """The history of a cluster, and the checks against it.

    :ivar committed: every entry that anybody has applied, by index.
    :ivar leaders: who led, by term.
    :ivar check_durability: whether a committed entry has to be durable on a quorum; off where a test destroys disks.
    """

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.committed: dict[int, Entry] = {}
        self.leaders: dict[int, int] = {}
        self.check_durability = True

    def check(self, node: Node) -> None:
        """Check one leader per term, leader completeness, the order of the indexes, and what counts as durable."""
        core = node.core
        snapshot = core.snapshot.last.index if core.snapshot else 0
        assert core.purged.index <= max(snapshot, 0) <= core.commit <= core.last.index, "the indexes are out of order"
        assert core.durable <= node.disk.safe(), f"node {node.id} takes entry {core.durable} for durable"
        if core.role is not Role.LEADER:
            return
        if core.term not in self.leaders:
            self._check_leader_complete(node)
        known = self.leaders.setdefault(core.term, node.id)
        assert known == node.id, f"nodes {known} and {node.id} both led in term {core.term} (J-05)"
        if node.commit > max(self.committed, default=0) and self.check_durability:
            self._check_on_quorum(node)

    def _check_leader_complete(self, node: Node) -> None:
        for index, entry in self.committed.items():
            if index > node.disk.written.purged.index and entry.term < node.core.term:
                assert node.disk.written.term_at(index) == entry.term, f"leader {node.id} lacks entry {index}"

    def _check_on_quorum(self, leader: Node) -> None:
        have = {
            node.id
            for node in self.nodes.values()
            if node.disk.safe() >= leader.commit
            and node.disk.durable.term_at(leader.commit) in (None, leader.core.term_at(leader.commit))
        }
        for voters in (leader.core.membership.voters, leader.core.membership.outgoing):
            assert len(have & voters) * 2 > len(voters) or not voters, f"entry {leader.commit} is only on {have}"

    def check_committed(self, node: Node, entry: Entry) -> None:
        """Check that nobody applies anything else at the same index."""
        known = self.committed.setdefault(entry.index, entry)
        assert known == entry, f"node {node.id} applied {entry.id} where {known.id} was committed"

    def check_send(self, node: Node, message: Any) -> None:
        """Check that term and vote behind a message are durable (H-01)."""
        if isinstance(message, VoteRequest) and message.pre_vote:
            return
        if isinstance(message, VoteRequest | AppendRequest | HeartbeatRequest | TimeoutNowRequest):
            state = node.disk.durable.hard_state
            assert state.term >= message.term, f"node {node.id} sent {message} before its term was durable"
            assert state.term > message.term or state.voted_for == node.id, f"node {node.id} did not vote for itself"

    def check_backed(self, node: Node, request: Envelope | None, message: Any) -> None:
        """Check that a node which crashed right after this answer would find what the answer says (H-01)."""
        found = node.disk.durable
        if not isinstance(message, VoteReply | AppendReply | HeartbeatReply) or getattr(message, "pre_vote", False):
            return
        assert found.hard_state.term >= message.term, f"node {node.id} answered {message} in a term it may forget"
        if found.hard_state.term > message.term or request is None:
            return  # as good as an answer that was under way while the term moved on
        if isinstance(message, VoteReply) and message.granted:
            assert found.hard_state.voted_for == request.source, "the vote is not durable"
        if isinstance(message, AppendReply) and message.success and message.match > found.purged.index:
            sent = request.message
            terms = {sent.prev.index: sent.prev.term} | {entry.index: entry.term for entry in sent.entries}
            assert found.term_at(message.match) == terms[message.match], f"entry {message.match} is not durable"
            # A newer leader may overwrite it by now; then this is an answer that was under way as well.
            assert message.match <= node.disk.safe() or node.core.term > message.term, "a crash may lose the entry"
