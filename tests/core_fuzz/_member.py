"""One member: a core, its disk, its state machine, and the driver between them, as somebody might write it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from zlayer_consensus.raft import (
    NO_LOG,
    Answer,
    Draft,
    Effects,
    Entry,
    EntryKind,
    LogId,
    LogRead,
    Membership,
    Persist,
    RaftCore,
    Reply,
    Role,
    Send,
    SnapshotPoint,
)

from ._checks import Checker, require
from ._disk import Disk, Snapshot
from ._transfer import Chunk, Incoming, Outgoing

if TYPE_CHECKING:
    from ._world import Rpc, World

__all__ = ["Member", "Waiting"]


@dataclass(slots=True)
class Waiting:
    """A client's request that must end."""

    kind: str
    since: float
    floor: int = 0
    """A read must not be served before this index: it was committed when the read began."""


@dataclass
class Member:
    """A simulated process. ``core`` is None while it is down; ``epoch`` counts its starts."""

    world: World
    node_id: int
    disk: Disk = field(default_factory=Disk)
    core: RaftCore | None = None
    epoch: int = 0
    paused_until: float = 0.0
    stalled_until: float = 0.0
    removed: bool = False

    def __post_init__(self) -> None:
        self.checker: Checker = self.world.checker
        self.random: Random = self.world.random
        self._forget()

    def _forget(self) -> None:
        self.tokens: dict[Hashable, tuple[Rpc, float]] = {}
        self.waiting: dict[Hashable, Waiting] = {}
        self.proposed: dict[int, int] = {}
        self.applied = 0
        self.digest = 0
        self.commit = 0
        self.term = 0
        self.role = Role.LEARNER
        self.wake_at = float("inf")
        self.syncing = self.applying = self.capturing = False
        self.loading: Snapshot | None = None
        self.incoming = Incoming(self)
        self.held_back: list[tuple[Rpc, Reply]] = []

    # -- life

    def start(self) -> None:
        """Start from what the disk holds; an initial member without a log writes the initial configuration."""
        disk, world = self.disk, self.world
        start = disk.recover(self.random)
        self.checker.restarts(self.node_id, disk.image, disk.snapshot.point.last.index if disk.snapshot else 0)
        self.epoch += 1
        self._forget()
        self.core = RaftCore(
            node_id=self.node_id,
            config=world.knobs.config,
            start=start,
            random=Random(self.random.random()).random,
            now=world.now,
        )
        self.applied = start.applied
        self.digest = self.checker.states[start.applied]
        self.commit = self.core.commit
        self.term = self.core.term
        world.trace("start", self.node_id, start.hard_state, start.purged, start.last, "applied", start.applied)
        if self.core.last == NO_LOG and self.core.snapshot is None and self.node_id in world.first.members:
            self.step(self.core.bootstrap(world.first, world.now))
        else:
            self.step(self.core.applied(self.applied, world.now))
            self._apply_later()

    def crash(self) -> None:
        """Stop without a word."""
        self.world.trace("crash", self.node_id)
        self.core = None
        self.epoch += 1
        self.disk.crash(self.random)
        self._forget()

    def shut_down(self) -> None:
        """Stop in order: everything that waits here is told."""
        assert self.core is not None
        self.world.trace("stop", self.node_id)
        self.step(self.core.stop(self.world.now))
        require(not self.waiting, "node", self.node_id, "stopped without a word to", self.waiting)
        self.step(self.core.tick(self.world.now))
        self.crash()

    # -- one step

    def step(self, effects: Effects) -> None:
        """Carry out effects in their order, then look whether all is well."""
        core, world, node = self.core, self.world, self.node_id
        assert core is not None
        require(effects.fatal is None, "node", node, "stops itself:", effects.fatal)
        membership = self.membership
        for persist in effects.persist:
            self._persist(core, persist)
        for send in effects.send:
            self._send(send)
        for answer in effects.answers:
            self._answer(answer)
        for read in effects.log_reads:
            self._log_read(read)
        for request in effects.snapshots:
            Outgoing(self, request, core.term).begin()
        self._commit(core, membership)
        if effects.purge is not None:
            self.disk.purge(effects.purge)
            world.later(self, world.disk_delay(self), self.disk.settle_purge)
        self._results(effects)
        require(not effects.alarms, "node", node, "sounds a false alarm:", effects.alarms)
        if effects.removed:
            require(node in self.checker.configs[-1][1].tombstones, "node", node, "believes that it was removed")
            world.later(self, world.delay() * 5, lambda: world.remove(self))
        self._look(core)
        wake = core.next_wake
        if wake is not None and wake < self.wake_at:
            self.wake_at = wake
            world.later(self, max(0.0, wake - world.now), lambda: self._wake(wake))
        self.incoming.settle()

    @property
    def membership(self) -> Membership:
        """The configuration before the step that is carried out."""
        return self._membership

    def _look(self, core: RaftCore) -> None:
        node, mirror = self.node_id, self.disk.mirror
        snapshot = core.snapshot.last.index if core.snapshot else 0
        last = core.last
        require(last == mirror.last and core.purged == mirror.purged, "node", node, "and its disk differ")
        require(core.purged.index <= snapshot <= core.commit <= last.index, "node", node, "has its indexes in disorder")
        require(self.applied <= core.commit and (self.loading is not None or snapshot <= self.applied), node, "applied")
        on_disk = max(self.disk.image.last.index, self.disk.snapshot.point.last.index if self.disk.snapshot else 0)
        require(core.durable <= last.index and core.durable <= on_disk, "node", node, "believes in", core.durable)
        require(core.term >= self.term, "node", node, "went back to term", core.term)
        probe = self.random.randint(mirror.purged.index, last.index)
        require(core.term_at(probe) == mirror.term_at(probe), "node", node, "errs on the term of", probe)
        if core.role is Role.LEADER and (self.role is not Role.LEADER or core.term != self.term):
            self.world.trace("leads", node, "term", core.term)
            self.checker.leads(node, self.epoch, core.term, mirror)
            self.world.let_go(self)
        if core.role is Role.LEADER and core.term == max(self.checker.leaders) and self.random.random() < 0.1:
            self._look_at_progress(core)
        self.role, self.term, self._membership = core.role, core.term, core.membership

    def _look_at_progress(self, core: RaftCore) -> None:
        """What the newest leader believes to be on a peer's disk is there."""
        for peer, progress in core.progress().items():
            term = core.term_at(progress.match)
            if progress.match and term is not None:
                there = self.world.disks[peer].holds(progress.match, term)
                require(there, "node", self.node_id, "believes that node", peer, "has", progress.match)

    _membership = Membership()

    def _wake(self, at: float) -> None:
        core = self.core
        if at != self.wake_at or core is None:
            return
        self.wake_at = float("inf")
        effects = core.tick(self.world.now)
        wake = core.next_wake
        require(wake is None or wake > self.world.now, "node", self.node_id, "wants to be woken for ever")
        self.step(effects)

    # -- disk

    def _persist(self, core: RaftCore, persist: Persist) -> None:
        write, mirror, checker = persist.write, self.disk.mirror, self.checker
        if write.truncate_after is not None:
            require(write.truncate_after >= self.commit, "node", self.node_id, "truncates what is committed")
        owned = core.role is Role.LEADER and bool(write.entries) and write.entries[0].term == core.term
        if owned and any(entry.kind == EntryKind.CONFIG for entry in write.entries):
            earlier = max((e.index for e in mirror.entries if e.kind == EntryKind.CONFIG), default=0)
            checker.own_config(self.node_id, earlier, core.commit, core.ready)
        self.disk.issue(persist)
        if write.reset is not None:
            snapshot = self.disk.snapshot
            assert snapshot is not None
            require(snapshot.point.last == write.reset, "node", self.node_id, "resets to", write.reset)
            self._load(snapshot)
        if write.entries:
            checker.appended(write.entries, mirror.term_at(write.entries[0].index - 1))
        if not self.syncing:
            self.syncing = True
            self.world.later(self, self.world.disk_delay(self), self._synced)

    def _synced(self) -> None:
        pending = self.disk.pending
        done = self.disk.sync(self.random.randint(1, len(pending)))
        if self.random.random() < 0.5:
            done = done[-1:]
        self.syncing = bool(pending)
        if pending:
            self.world.later(self, self.world.disk_delay(self), self._synced)
        for persist in done:
            assert self.core is not None
            self.step(self.core.persisted(persist.seq, persist.last, self.world.now))

    def _log_read(self, request: LogRead) -> None:
        early = self.random.random() < 0.5
        found = self._read(request) if early else None

        def complete() -> None:
            assert self.core is not None
            entries = found if early else self._read(request)
            self.step(self.core.log_read(request, entries or None, self.world.now))

        self.world.later(self, self.world.disk_delay(self), complete)

    def _read(self, request: LogRead) -> list[Entry] | None:
        image = self.disk.image
        if request.first <= image.purged.index:
            return None
        entries: list[Entry] = []
        size = 0
        for entry in image.read(request.first, request.last):
            size += len(entry.raw)
            if entries and size > request.max_bytes:
                break
            entries.append(entry)
        return entries

    # -- network

    def _send(self, send: Send) -> None:
        self.checker.sends(self.node_id, send.message, self.disk.image)
        self.world.send(self, send.peer, send.message)

    def _answer(self, answer: Answer) -> None:
        require(answer.token in self.tokens, "node", self.node_id, "answers twice:", answer)
        rpc, _ = self.tokens.pop(answer.token)
        assert not isinstance(rpc.message, Chunk)
        self.checker.answers(self.node_id, rpc.sender.node_id, rpc.message, answer.message, self.disk)
        self.world.reply(rpc, self, answer.message)

    # -- results

    def _results(self, effects: Effects) -> None:
        for ready in effects.reads:
            waiting = self.waiting.pop(ready.token, None)
            require(waiting is not None, "node", self.node_id, "ends a read twice or after it was cancelled", ready)
            assert waiting is not None
            require(ready.index >= waiting.floor, "stale read at node", self.node_id, ready, waiting)
            require(ready.index <= self.checker.commit, "read of what is not committed", ready)
        for done in effects.done:
            waiting = self.waiting.pop(done.token, None)
            require(waiting is not None, "node", self.node_id, "ends twice:", done)
            assert waiting is not None
            if waiting.kind == "change":
                self._changed(done.value)
        for refused in effects.refused:
            if refused.token is not None:
                waiting = self.waiting.pop(refused.token, None)
                require(waiting is not None, "node", self.node_id, "ends twice:", refused)

    def _changed(self, position: LogId) -> None:
        entry = self.checker.committed.get(position.index)
        require(entry is not None and entry.id == position, "a change is done, but not committed:", position)
        assert entry is not None
        final = entry.kind == EntryKind.CONFIG and not Membership.decode(entry.payload).joint
        require(final, "a change ends with entry", position)

    # -- the state machine

    def _commit(self, core: RaftCore, membership: Membership) -> None:
        if core.commit == self.commit:
            return
        require(core.commit > self.commit, "node", self.node_id, "takes back commit", self.commit, core.commit)
        leads = core.role is Role.LEADER or self.role is Role.LEADER
        first = max(self.commit, self.disk.mirror.purged.index) + 1
        for entry in self.disk.mirror.read(first, core.commit):
            self.checker.commits(self.node_id, core.term, entry, membership if leads else None, self.world.disks)
        self.commit = core.commit
        self._apply_later()

    def _apply_later(self) -> None:
        if not self.applying and self.loading is None:
            self.applying = True
            self.world.later(self, self.world.apply_delay(), self._apply)

    def _apply(self) -> None:
        self.applying = False
        core = self.core
        assert core is not None
        if self.loading is not None or self.applied >= core.commit:
            return
        first = self.applied + 1
        upto = min(core.commit, self.applied + self.random.randint(1, self.world.knobs.apply_batch))
        entries = core.entries(first, upto, 1 << 20)
        if entries is None:
            # Not beyond ``durable``: the disk may still hold what the core has truncated.
            require(self.disk.image.purged.index < first <= core.durable, "node", self.node_id, "has nowhere", first)
            entries = self.disk.image.read(first, min(upto, core.durable))
        require(bool(entries) and entries[0].index == first, "node", self.node_id, "cannot read", first)
        for entry in entries:
            self.digest = self.checker.applied(self.node_id, entry, self.digest)
            self.applied = entry.index
            if self.proposed.pop(entry.index, None) == entry.term:
                self.world.acknowledged.append(entry.id)
        self._keep_applied()
        self.step(core.applied(self.applied, self.world.now))
        if self.applied < core.commit:
            self._apply_later()

    def _keep_applied(self) -> None:
        assert self.core is not None
        if self.world.knobs.keeps_applied and self.applied <= self.core.durable:
            self.disk.applied = self.applied

    def _load(self, snapshot: Snapshot) -> None:
        self.loading = snapshot

        def loaded() -> None:
            if self.loading is not snapshot:
                return
            assert self.core is not None
            self.loading = None
            self.applied, self.digest = snapshot.point.last.index, snapshot.digest
            self._keep_applied()
            self.step(self.core.applied(self.applied, self.world.now))
            self._apply_later()

        self.world.later(self, self.world.apply_delay(), loaded)

    def take_snapshot(self) -> None:
        """Capture the state if it may be: it must be durable here as log; publish it a little later."""
        core = self.core
        assert core is not None
        have = self.disk.snapshot.point.last.index if self.disk.snapshot else 0
        if self.capturing or self.loading or not have < self.applied <= core.durable:
            return
        term = core.term_at(self.applied)
        assert term is not None
        membership = core.membership_at(self.applied)
        require(membership == self.checker.config_at(self.applied), "node", self.node_id, "errs on the configuration")
        time_ms = self.checker.committed[self.applied].time_ms
        snapshot = Snapshot(SnapshotPoint(LogId(term, self.applied), membership, time_ms), self.digest)
        self.capturing = True

        def publish() -> None:
            assert self.core is not None
            self.capturing = False
            self.disk.publish(snapshot)
            self.step(self.core.snapshot_taken(snapshot.point, self.world.now))

        self.world.later(self, self.world.disk_delay(self), publish)

    # -- clients

    def propose(self, drafts: list[Draft]) -> None:
        """Propose a batch; the acknowledgements are noted when it is applied."""
        core = self.core
        assert core is not None
        before = core.last
        effects = core.propose(drafts, self.world.wall_clock_ms(), self.world.now)
        if effects.proposed is None:
            require(len(effects.refused) == 1 and core.last == before, "node", self.node_id, "half refused a proposal")
        else:
            for index in range(effects.proposed.first, effects.proposed.first + len(drafts)):
                self.proposed[index] = effects.proposed.term
        self.step(effects)

    def wait(self, kind: str) -> Hashable:
        """Return a token for something that must end."""
        token = (kind, self.world.next_number())
        self.waiting[token] = Waiting(kind, self.world.now, self.checker.commit)
        return token
