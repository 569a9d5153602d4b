"""What must be true of all nodes together, after every step (hazards §2). Knows nothing of how the node works."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any

from ...network import SnapshotChunkReply
from ...raft import (
    AppendReply,
    AppendRequest,
    Entry,
    EntryKind,
    HeartbeatReply,
    LogId,
    LogWrite,
    Membership,
    RaftCore,
    Role,
    SnapshotPoint,
    Start,
    VoteReply,
    VoteRequest,
)
from ._mirror import Copy, Mark, Mirror, mark, positions

if TYPE_CHECKING:
    from ._host import Process

__all__ = ["Checker", "Violation", "quorum"]


class Violation(Exception):
    """An invariant does not hold.

    :param invariant: its name.
    """

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
        self.text = text


def quorum(membership: Membership, having: set[int]) -> bool:
    """Say whether these nodes are a majority, of both halves of a joint configuration."""
    halves = [half for half in (membership.voters, membership.outgoing) if half]
    return bool(halves) and all(2 * len(half & having) > len(half) for half in halves)


class _Life:
    """What was last seen of a process."""

    __slots__ = (
        "applied",
        "commit",
        "configured",
        "machine",
        "membership",
        "newest",
        "purging",
        "role",
        "snapshot",
        "term",
    )

    def __init__(self) -> None:
        self.role: Role | None = None
        self.term = 0
        self.commit = 0
        self.applied = 0
        self.machine = 0
        self.membership: Membership | None = None
        """The configuration in effect, and where the newest one of the log stands."""
        self.newest: list[LogId] = []
        self.snapshot: SnapshotPoint | None = None
        self.purging: LogId | None = None
        self.configured: LogId | None = None
        """A configuration that nobody had before, appended in the present step."""


class Checker:
    """Sees every write, every message and every state, and compares."""

    def __init__(self) -> None:
        self.committed: list[Mark] = []
        """The one log: what is committed at index 1, 2, 3 …"""
        self.mirrors: dict[int, Mirror] = {}
        self.configs: dict[LogId, Membership] = {}
        """Every configuration that was ever appended anywhere."""
        self._committed_in: list[int] = []
        """The term in which each entry was committed."""
        self._committed_configs: list[LogId] = []
        self.on_configuration: Callable[[int], object] | None = None
        """Called with the node that has just appended a configuration that nobody had before."""
        self.on_whole: Callable[[int], object] | None = None
        """Called with a node whose repaired log is complete again."""
        self.elections = 0
        self.snapshots = 0
        """How often a node got a newer snapshot than it had: one that it took, or received."""
        self.received = 0
        """How often a node replaced its state by a snapshot that it received."""
        self.violation: Violation | None = None
        """The first one. The code under test may have swallowed the exception."""
        self._lives: dict[int, _Life] = {}
        self._taken: dict[int, int] = {}
        """How far the newest snapshot of each node goes, also when it starts again."""
        self._leaders: dict[int, int] = {}
        self._campaigns: dict[tuple[int, int], LogId] = {}
        """(term, candidate): where its log ended."""
        self._votes: dict[tuple[int, int], int] = {}
        self._known: dict[tuple[int, int], tuple[int, int | None]] = {}
        """(index, term) of every entry that ever was: its check sum and the term before it."""
        self._machines: dict[int, tuple[int, int]] = {}
        self._ghosts: dict[int, Copy] = {}
        """What was durable on disks that were repaired since, as long as their logs are marked."""

    def violated(self, invariant: str, text: str) -> Violation:
        """Return the exception to raise."""
        violation = Violation(invariant, text)
        if self.violation is None:
            self.violation = violation
        return violation

    # A host

    def forget(self, node_id: int) -> None:
        """Its disk was wiped or damaged: nothing is expected of it any more."""
        self._taken.pop(node_id, None)
        self.mirrors[node_id] = Mirror()

    def started(self, node_id: int) -> None:
        """A process begins."""
        self._lives[node_id] = _Life()
        self.mirrors.setdefault(node_id, Mirror())

    def died(self, node_id: int) -> None:
        """A process ended, perhaps in the middle of a step."""
        life, mirror = self._lives.get(node_id), self.mirrors.get(node_id)
        if life is not None and mirror is not None and life.purging is not None:
            # It was about to let go what it had committed in this very step. When it starts again, that is gone.
            latest = mirror.latest
            memberships = [self.configs[position] for position in latest.configs[-1:]]
            memberships += [life.membership] if life.membership is not None else []
            self._commit(node_id, life.commit, life.purging.index, latest.state.term, tuple(memberships))
        self._lives.pop(node_id, None)

    def repaired(self, node_id: int, start: Start) -> None:
        """Its damaged log was cut and repaired: what is gone is not expected of it, and it may have forgotten votes.

        What was cut off may have been the truncation of an older end, which then stands there again.
        What it has acknowledged before counts on for a leader that has not heard of the repair: a majority that elects
        another one includes all who hold that but for this node, which does not vote.
        """
        self._taken.pop(node_id, None)
        self._ghosts[node_id] = self.mirrors[node_id].durable
        left = list(positions(start))
        unknown = [each for each in left if (each.index, each.term) not in self._known]
        self._require("repair", f"left are {unknown}, which nobody ever had" if unknown else "", f"node {node_id}")
        marks = [(each.term, self._known[each.index, each.term][0]) for each in left]
        configs = [each for each in left if each in self.configs]
        self.mirrors[node_id] = Mirror.repaired(start, marks, configs)
        self._votes = {key: candidate for key, candidate in self._votes.items() if key[1] != node_id}

    def whole(self, node_id: int) -> None:
        """The leader has found its log complete, and the mark of its repair is gone."""
        self._ghosts.pop(node_id, None)
        if self.on_whole is not None:
            self.on_whole(node_id)

    # The log stores

    def opened(self, node_id: int, start: Start) -> None:
        """A log was recovered."""
        self._require("durability", self.mirrors[node_id].opened(start), f"node {node_id}")

    def written(self, node_id: int, write: LogWrite) -> LogWrite:
        """A node asks for a write."""
        if node_id not in self._lives:  # it died in the middle of what it does, and nothing gets to its disk any more
            return write
        mirror = self.mirrors[node_id]
        latest = mirror.latest
        if write.truncate_after is not None and write.truncate_after < self._own_commit(node_id):
            raise self.violated("commit is final", f"node {node_id} truncates after {write.truncate_after}")
        if write.hard_state is not None:
            old, new = latest.state, write.hard_state
            if new.term < old.term or (new.term == old.term and old.voted_for not in (0, new.voted_for)):
                raise self.violated("term and vote", f"node {node_id} goes from {old} to {new}")
        mirror.written(write)
        news = False
        for entry in write.entries:
            if entry.kind == EntryKind.CONFIG and entry.id not in self.configs:
                self.configs[entry.id] = Membership.decode(entry.payload)
                self._lives[node_id].configured = entry.id
                news = news or bool(entry.term)
            self._match(node_id, entry, latest.term_at(entry.index - 1))
        if news and self.on_configuration is not None:
            self.on_configuration(node_id)
        return write

    def _match(self, node_id: int, entry: Entry, before: int | None) -> None:
        """Log Matching: one index and term, one entry, one predecessor; by induction, one log up to there."""
        key, value = (entry.index, entry.term), (mark(entry)[1], before)
        known = self._known.setdefault(key, value)
        if known[0] != value[0] or (None not in (known[1], before) and known[1] != before):
            raise self.violated("log matching", f"node {node_id} has another entry {entry.id}: {value}, not {known}")

    def durable(self, node_id: int, write: LogWrite) -> None:
        """A write was acknowledged."""
        if node_id in self._lives:
            self._require("durability", self.mirrors[node_id].completed(write), f"node {node_id}")

    def read(self, node_id: int, first: int, entries: list[Entry]) -> None:
        """Entries were read."""
        mirror = self.mirrors[node_id]
        for number, entry in enumerate(entries):
            # A truncation may wait behind the read.
            right = (mirror.latest.mark_at(entry.index), mirror.durable.mark_at(entry.index))
            if entry.index != first + number or (mark(entry) not in right and None not in right):
                raise self.violated("durability", f"node {node_id} read another entry {entry.id} at {first + number}")

    def purged(self, node_id: int, upto: LogId) -> None:
        """A node lets entries go."""
        self._lives[node_id].purging = upto  # in the same step it may have been committed

    # The messages

    def message(self, kind: str, sender: int, target: int, message: Any, request: Any = None) -> None:
        """A request leaves its sender, or a reply its target: what it promises must be durable (H-01, J-21, J-22).

        :param request: what the reply is one to.
        """
        if kind == "request":
            self._request(sender, message)
        elif kind == "reply":
            self._reply(sender, target, message, request)

    def _request(self, sender: int, message: Any) -> None:
        if isinstance(message, VoteRequest) and not message.pre_vote:
            self._campaigns[message.term, sender] = message.last
            state = self.mirrors[sender].durable.state
            if (state.term, state.voted_for) != (message.term, sender) and state.term <= message.term:
                raise self.violated(
                    "persist before send", f"node {sender} asks for votes of {message.term} with {state}"
                )
        elif isinstance(message, AppendRequest) and self.mirrors[sender].durable.state.term < message.term:
            raise self.violated("persist before send", f"node {sender} leads term {message.term}, which is not durable")

    def _reply(self, sender: int, target: int, message: Any, request: Any) -> None:
        """``target`` answers ``sender``."""
        durable = self.mirrors[target].durable
        wrong = ""
        if isinstance(message, VoteReply):
            if message.granted and not message.pre_vote:
                self._granted(message.term, target, sender)
        elif isinstance(message, AppendReply):
            if message.success:
                wrong = self._acknowledged(durable, message.match, request)
        elif isinstance(message, HeartbeatReply):
            if message.last_index > durable.last:
                wrong = f"tells of {message.last_index}, durable is {durable.last}"
        elif isinstance(message, SnapshotChunkReply) and message.status == "installed":
            last = request.last
            if durable.last < last.index:
                wrong = f"has installed the snapshot at {last}, durable is {durable.last}"
        if wrong:
            raise self.violated("persist before send", f"node {target} {wrong}")

    @staticmethod
    def _acknowledged(durable: Copy, match: int, request: AppendRequest) -> str:
        """Say what is wrong with an acknowledgement: all up to there is durable, and is what was sent."""
        if match > durable.last:
            return f"acknowledges {match}, durable is {durable.last}"
        if durable.state.term < request.term:
            return f"acknowledges {match} in term {request.term}, durable is {durable.state}"
        if durable.state.term > request.term:
            return ""  # of a former leader: what it sent may be gone by now
        for entry in request.entries:
            if entry.index <= match and not durable.covers(entry.index, mark(entry)):
                return f"acknowledges {entry.id}, durable is {durable.mark_at(entry.index)}"
        return ""

    def _granted(self, term: int, voter: int, candidate: int) -> None:
        state = self.mirrors[voter].durable.state
        if state.term <= term and (state.term, state.voted_for) != (term, candidate):
            raise self.violated("persist before send", f"node {voter} votes for {candidate} in {term} with {state}")
        last, mine = self._campaigns.get((term, candidate)), self.mirrors[voter].latest
        ends = LogId(mine.term_at(mine.last) or 0, mine.last)
        # What is of this term came from the candidate, which others have elected meanwhile.
        if last is not None and state.term == term > ends.term and ends > last:
            text = f"node {voter}, whose log ends at {ends}, votes in {term} for {candidate}, whose ends at {last}"
            raise self.violated("vote for the newer log", text)
        if self._votes.setdefault((term, voter), candidate) != candidate:
            raise self.violated("one vote", f"node {voter} votes for {candidate} in term {term}, too")

    # The state machines

    def applied(self, node_id: int, index: int, count: int, digest: int, restored: bool) -> None:
        """A state machine carried out a command, or took over a snapshot (State Machine Safety)."""
        life = self._lives[node_id]
        if not restored and index <= life.machine:
            raise self.violated("apply order", f"node {node_id} applies {index} after {life.machine}")
        life.machine = index
        self.received += restored and life.role is not None
        if self._machines.setdefault(index, (count, digest)) != (count, digest):
            text = f"node {node_id} after entry {index}: {(count, digest)}, not {self._machines[index]}"
            raise self.violated("state machine safety", text)

    # The nodes

    def _own_commit(self, node_id: int) -> int:
        life = self._lives.get(node_id)
        return life.commit if life else 0

    def observe(self, process: Process) -> None:
        """Look at a node after a step."""
        runtime = process.node._runtime
        if not runtime.has_core or runtime.state != "running":
            return  # a core that is stopped writes and sends nothing of what it still takes in
        core, life, node_id = runtime.core, self._lives[process.host.node_id], process.host.node_id
        if runtime.digests.alarms:
            raise self.violated("digests", f"node {node_id} says that the members' states differ, and they do not")
        term, commit, applied, role = core.term, core.commit, runtime.applier.applied, core.role
        if term < life.term or commit < life.commit or applied < life.applied:
            before = (life.term, life.commit, life.applied)
            raise self.violated("monotone", f"node {node_id} fell from {before} to {(term, commit, applied)}")
        if commit > life.commit:
            if role is Role.LEADER and core.term_at(commit) not in (term, None):
                text = (
                    f"node {node_id} leads term {term} and commits {commit} of term {core.term_at(commit)} by counting"
                )
                raise self.violated("commit of its own term", text)
            # In the same step it may have appended the next configuration.
            memberships = (core.membership, life.membership or core.membership)
            known = {peer for peer, each in core.progress().items() if each.repair} if self._ghosts else set()
            self._commit(node_id, life.commit, commit, term, memberships, known)
        self._configuration(node_id, life, core)
        if role is Role.LEADER and (life.role is not Role.LEADER or term != life.term):
            self._elected(node_id, term)
        if life.purging is not None:
            if life.purging.index > commit:
                text = f"node {node_id} purges up to {life.purging}, and commits up to {commit}"
                raise self.violated("purge", text)
            self.mirrors[node_id].purged(life.purging)
            life.purging = None
        life.term, life.commit, life.applied, life.role = term, commit, applied, role
        self._order(process.host.node_id, runtime)

    def _order(self, node_id: int, runtime: Any) -> None:
        """purged <= snapshot <= applied <= commit <= last; and no snapshot is lost."""
        core, applied = runtime.core, runtime.applier.applied
        snapshot = core.snapshot
        taken = snapshot.last.index if snapshot is not None else 0
        hint, last = self.mirrors[node_id].latest.state.commit, core.last.index
        former = self._taken.get(node_id, 0)
        ordered = core.purged.index <= taken <= core.commit <= last and applied <= core.commit
        # While a leader's snapshot is installed, the application is behind it.
        loaded = taken <= applied or runtime.receiver._installing is not None
        if not (ordered and loaded and former <= taken and hint <= core.commit and core.durable <= last):
            text = (
                f"node {node_id}: purged {core.purged.index}, snapshot {taken} (it had {former}), "
                f"applied {applied}, commit {core.commit} ({hint} in its log), durable {core.durable}, last {last}"
            )
            raise self.violated("order of indexes", text)
        self._taken[node_id] = taken

    def _configuration(self, node_id: int, life: _Life, core: RaftCore) -> None:
        """The configuration in effect is the newest of the log, committed or not; a snapshot's is that of its index."""
        if life.configured is not None:
            configured, life.configured = life.configured, None
            wrong = self._change(configured, self.mirrors[node_id].latest.configs, core) if configured.term else ""
            self._require("membership change", wrong, f"node {node_id} appends configuration {configured}")
        newest = self.mirrors[node_id].latest.configs[-1:]
        if core.membership is not life.membership or newest != life.newest:
            life.membership, life.newest = core.membership, newest
            if newest and core.membership != self.configs[newest[0]]:
                text = f"node {node_id} goes by {core.membership}, and {newest[0]} is {self.configs[newest[0]]}"
                raise self.violated("configuration in effect", text)
        snapshot = core.snapshot
        if snapshot is not life.snapshot and snapshot is not None:
            self.snapshots += life.role is not None  # else it has only just been started
            life.snapshot = snapshot
            found = [each for each in self._committed_configs if each.index <= snapshot.last.index]
            if found and snapshot.membership != self.configs[found[-1]]:
                text = f"node {node_id} has {snapshot.membership} at {snapshot.last}, and {found[-1]} is another one"
                raise self.violated("configuration in a snapshot", text)

    def _change(self, configured: LogId, positions: list[LogId], core: RaftCore) -> str:
        """Say what is wrong with a configuration that a leader has just appended (H-40, J-60, J-67)."""
        if core.term_at(core.commit) not in (configured.term, None):
            return "nothing of its term is committed"
        before = [position for position in positions if position.index < configured.index]
        if not before:
            return ""
        old, new = self.configs[before[-1]], self.configs[configured]
        if before[-1].index > core.commit:
            return f"{before[-1]} is not committed"
        if old.outgoing:
            return "" if new.voters == old.voters and not new.outgoing else f"{old} was joint, and {new} follows"
        right = new.outgoing == (old.voters if new.voters != old.voters else frozenset())
        return "" if right else f"voters go from {sorted(old.voters)} to {new}"

    def _commit(
        self,
        node_id: int,
        seen: int,
        commit: int,
        term: int,
        memberships: tuple[Membership, ...],
        repaired: Set[int] = frozenset(),
    ) -> None:
        """Entries are committed by a node that knows of these repairs."""
        latest, committed = self.mirrors[node_id].latest, self.committed
        for index in range(max(seen, latest.base.index) + 1, commit + 1):
            found = latest.mark_at(index)
            if found is None:
                raise self.violated("commit", f"node {node_id} commits {index}, and ends at {latest.last}")
            if index <= len(committed):
                if committed[index - 1] != found:
                    text = f"node {node_id} commits {found} at {index}, where {committed[index - 1]} was committed"
                    raise self.violated("commit is final", text)
                continue
            having = {i for i in self.mirrors if self._has(i, index, found, i not in repaired)}
            if not any(quorum(membership, having) for membership in memberships):
                voters = [(sorted(each.voters), sorted(each.outgoing)) for each in memberships]
                text = (
                    f"node {node_id} commits {index}, which only {sorted(having)} have; voters and outgoing: {voters}"
                )
                raise self.violated("commit on a quorum", text)
            if index != len(committed) + 1:
                raise self.violated("commit", f"node {node_id} commits {index} after {len(committed)}")
            committed.append(found)
            self._committed_in.append(term)
            position = LogId(found[0], index)
            if position in self.configs:
                self._committed_configs.append(position)
        if commit > len(committed):
            raise self.violated("commit", f"node {node_id} says {commit} is committed, known is {len(committed)}")

    def _has(self, node_id: int, index: int, found: Mark, before: bool) -> bool:
        """Say whether a node has an entry; or had it before its log was repaired, if that counts."""
        mirror, ghost = self.mirrors.get(node_id), self._ghosts.get(node_id)
        if before and ghost is not None and ghost.covers(index, found):
            return True
        return mirror is not None and mirror.durable.covers(index, found)

    def _elected(self, node_id: int, term: int) -> None:
        self.elections += 1
        other = self._leaders.setdefault(term, node_id)
        if other != node_id:
            raise self.violated("election safety", f"nodes {other} and {node_id} lead term {term}")
        latest = self.mirrors[node_id].latest
        for index in range(latest.base.index + 1, len(self.committed) + 1):
            # A candidate that was paused may learn late that it was elected, when later terms have their own leaders.
            if self._committed_in[index - 1] < term and latest.mark_at(index) != self.committed[index - 1]:
                text = f"node {node_id} leads term {term} without the committed entry {index}"
                raise self.violated("leader completeness", text)

    def _require(self, invariant: str, wrong: str, whom: str) -> None:
        if wrong:
            raise self.violated(invariant, f"{whom}: {wrong}")
