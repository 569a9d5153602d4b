"""The parts of a running node, and its life: start, stop, and stopping because it cannot go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..config import ConsensusConfig
from ..errors import ConsensusError, InvariantBroken, NodeRemoved, NodeStopped, NotLeader, StorageFailed
from ..network.interfaces import INetwork
from ..raft import Member, RaftCore, Role
from ..storage.interfaces import Identity, ILogStore, IStateMachineStore
from ..types import RaftTypes
from ._admin import Admin
from ._applier import Applier
from ._deadlines import Deadlines
from ._digests import Digests
from ._driver import Driver
from ._durability import Durability
from ._failures import error_in
from ._forward import Forwarder
from ._metrics import Metrics, measure
from ._observers import Observers
from ._once import Once
from ._peers import Peers
from ._probe import LoopProbe
from ._proposals import Proposals
from ._reads import Reads
from ._recovery import recover
from ._scrub import Scrubber
from ._snapshots import SnapshotBuilder
from ._space import Space
from ._transfers import Receiver, Senders

__all__ = ["Runtime"]


class Runtime:
    """Everything that one node consists of. The parts find each other here.

    ``state`` is ``new``, ``starting``, ``running``, ``stopping`` or ``stopped``.
    """

    core: RaftCore
    driver: Driver

    def __init__(
        self,
        *,
        node_id: int,
        address: str,
        client_address: str,
        config: ConsensusConfig,
        log_store: ILogStore,
        state_machine: IStateMachineStore,
        network: INetwork,
        clock: Any,
        types: RaftTypes,
        wall_clock: Callable[[], float],
        random: Callable[[], float],
        loop_clock: Callable[[], float],
        loop_work: Callable[[], float] | None,
    ) -> None:
        self.node_id = node_id
        self.address = address
        self.client_address = client_address
        self.config = config
        self.log_store = log_store
        self.store = state_machine
        self.network = network
        self.clock = clock
        self.types = types
        self.wall_clock = wall_clock
        self.random = random
        self.log = Logger(namespace="zlayer_consensus.node")
        self.state = "new"
        self.cause: BaseException | None = None
        self.identity = Identity(node_id, b"")
        self.initial_members = b""
        """The list that this node was told to bootstrap with, encoded, while it does."""
        self.commit_at_start = 0
        self.has_core = False
        self._started: list[Deferred[None]] = []
        self._stopped: list[Deferred[BaseException | None]] = []
        self._leaving: Deferred[None] | None = None
        self._removal: IDelayedCall | None = None
        self._opened = False
        self._tasks: set[Deferred[Any]] = set()
        self.deadlines = Deadlines(clock)
        self.peers = Peers(self)
        self.forwarder = Forwarder(self)
        self.proposals = Proposals(self, self.forwarder.proposal)
        self.reads = Reads(self)
        self.applier = Applier(self)
        self.durability = Durability(self)
        self.builder = SnapshotBuilder(self)
        self.senders = Senders(self)
        self.receiver = Receiver(self)
        self.space = Space(self)
        self.observers = Observers(self)
        self.admin = Admin(self)
        self.digests = Digests(self)
        self.scrubber = Scrubber(self)
        self.probe = LoopProbe(clock, loop_clock, loop_work, config.loop_probe_interval_ms / 1000)

    @property
    def serving(self) -> bool:
        """Whether RPCs and requests are taken."""
        return self.state == "running"

    def check_running(self) -> None:
        """Refuse what only a running node can do.

        :raises NodeStopped: if this one does not run.
        """
        if self.state != "running":
            raise NodeStopped(self.cause)

    def sleep(self, seconds: float) -> Deferred[None]:
        """Return a Deferred that fires after a while, in another turn of the reactor."""
        return deferLater(self.clock, seconds, lambda: None)

    def task(self, coroutine: Any) -> Deferred[Any]:
        """Run a coroutine on behalf of a caller; when the node stops, it is cancelled, and fails with NodeStopped."""
        work = Deferred.fromCoroutine(coroutine)
        if work.called:
            return work
        outer: Deferred[Any] = Deferred(lambda _: work.cancel())
        self._tasks.add(outer)

        def ended(result: Any) -> None:
            self._tasks.discard(outer)
            if isinstance(result, Failure) and result.check(CancelledError) and self.state != "running":
                result = Failure(NodeStopped(self.cause))
            if not outer.called:
                outer.callback(result)

        _ = work.addBoth(ended)
        return outer

    # What the node knows of others.

    def leader_member(self) -> Member | None:
        """Return the leader, if it is known, and known where it is."""
        leader_id = self.core.leader_id if self.has_core else None
        return None if leader_id is None else self.peers.member(leader_id)

    def not_leader(self, leader_id: int | None = None) -> NotLeader:
        """Return the error that tells where the leader is. Addresses come from the configuration only (A-30)."""
        leader_id = leader_id or (self.core.leader_id if self.has_core else None)
        if leader_id is None or leader_id == self.node_id:
            return NotLeader()
        member = self.peers.member(leader_id)
        return NotLeader(leader_id, *((member.peer_address, member.client_address) if member else ()))

    def metrics(self) -> Metrics:
        """Look at the node."""
        return measure(self)

    # Start.

    def start(self) -> Deferred[None]:
        """Start, once; each call fires when that is done."""
        if self.state in ("stopping", "stopped"):
            done: Deferred[None] = Deferred()
            done.errback(self.cause or NodeStopped())
            return done
        if self.state == "running":
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._started.append(waiter)
        if self.state == "new":
            self.state = "starting"
            _ = Deferred.fromCoroutine(self._start()).addErrback(self._start_failed)
        return waiter

    async def _start(self) -> None:
        self._opened = True
        self.probe.start()
        start = await recover(self.node_id, self.log_store, self.store)
        self.identity = self.log_store.identity
        if start.snapshot is not None:
            await self.applier.load()
        now = self.clock.seconds()
        core = RaftCore(node_id=self.node_id, config=self.config, start=start, random=self.random, now=now)
        if self.node_id in core.committed_membership.tombstones:
            raise NodeRemoved(self.node_id)  # nobody would ever tell it again (H-47)
        self.core, self.has_core = core, True
        self.driver = Driver(self, core)
        self.forwarder.once = Once(self.node_id, start.hard_state)
        self.commit_at_start = self.applier.commit = core.commit
        self.peers.members_changed(core.membership)
        self.observers.role = core.role.value
        self.applier.resume()
        self.state = "running"
        self.log.info(
            "node {node} started in term {term}: log up to {last}, {applied} applied, {commit} committed",
            node=self.node_id,
            term=core.term,
            last=str(core.last),
            applied=self.applier.applied,
            commit=core.commit,
        )
        if core.repair:
            self.log.warn(
                "the log of node {node} was repaired (repair {repair}): it does not vote, and counts for nothing, "
                "until the leader has found it complete",
                node=self.node_id,
                repair=core.repair.hex(),
            )
        self.driver.begin()
        self.space.look()
        self.digests.start()
        self.scrubber.start()
        self.applier.watch_files()
        started, self._started = self._started, []
        for waiter in started:
            if not waiter.called:
                waiter.callback(None)

    def _start_failed(self, failure: Failure) -> None:
        error = failure.value
        if not isinstance(error, ConsensusError):
            self.log.failure("Starting node {node} failed", failure, node=self.node_id)
        self.cause = error
        self.state = "stopping"
        started, self._started = self._started, []
        _ = self._close().addBoth(self._tell_start_failed, started, failure)

    def _tell_start_failed(self, _: object, started: list[Deferred[None]], failure: Failure) -> None:
        for waiter in started:
            if not waiter.called:
                waiter.errback(failure)

    def adopt(self, cluster_id: bytes, origin: bytes) -> Deferred[None]:
        """Belong to a cluster from now on, durably."""
        mine = replace(self.identity, cluster_id=cluster_id, origin=origin)

        def adopted(_: None) -> None:
            self.identity = mine
            self.peers.members_changed(self.core.membership)  # envelopes name the cluster
            self.log.info("node {node} belongs to cluster {cluster}", node=self.node_id, cluster=cluster_id.hex())

        def failed(failure: Failure) -> Failure:
            self.fail(error_in(failure))
            return failure

        return self.log_store.adopt(mine).addCallbacks(adopted, failed)

    def clear_repair(self) -> None:
        """The leader has found this member's log complete again: remove the mark of the repair."""

        def cleared(_: None) -> None:
            self.identity = self.log_store.identity
            self.log.info("the log of node {node} is complete again; it votes and counts", node=self.node_id)
            self.driver.input(self.core.repair_cleared)

        _ = self.log_store.clear_repair().addCallbacks(cleared, lambda failure: self.fail(error_in(failure)))

    # Stop.

    def fail(self, error: BaseException) -> None:
        """Stop because of an error. What waits is told in a later turn of the reactor; nothing new is taken."""
        if self.state in ("stopping", "stopped", "new"):
            return
        if self.state == "starting":
            raise error
        self.cause = error
        self.state = "stopping"
        text = str(error) if isinstance(error, ConsensusError) else f"{type(error).__name__}: {error}"
        self.log.critical("node {node} stops: {text}", node=self.node_id, text=text)
        self.driver.kill()
        self.applier.halt()
        self.clock.callLater(0, self._close)

    def broke(self, what: str, error: Exception) -> None:
        """Stop because of an exception; one that nobody foresaw is logged, and is a broken invariant."""
        if not isinstance(error, ConsensusError):
            self.log.failure("{what} failed", what=what)
            error = InvariantBroken(f"{what} failed: {type(error).__name__}: {error}")
        self.fail(error)

    def removed(self) -> None:
        """The committed configuration has no place for this node (H-47). Others may still wait for its answers."""
        if self._removal is None:
            grace = 2 * self.config.heartbeat_interval
            self._removal = self.clock.callLater(grace, self.fail, NodeRemoved(self.node_id))

    def shutdown(self) -> Deferred[None]:
        """Stop in order: leadership is handed over first, in bounded time."""
        done: Deferred[None] = Deferred()
        _ = self.when_stopped().addCallback(lambda _: done.callback(None) if not done.called else None)
        if self.state == "new":
            self.state = "stopping"
            _ = self._close()
        elif self.state == "starting":
            started: Deferred[None] = Deferred()
            self._started.append(started)
            _ = started.addCallbacks(lambda _: self._leave(), lambda _: None)
        elif self.state == "running":
            self._leave()
        return done

    def _leave(self) -> None:
        if self._leaving is None:
            self._leaving = Deferred.fromCoroutine(self._hand_over())
            _ = self._leaving.addBoth(self._left)

    def _left(self, result: Any) -> None:
        if isinstance(result, Failure):
            self.log.failure("Handing leadership over failed", result)
        if self.state == "running":
            self.state = "stopping"
            self.driver.kill()
            _ = self._close()

    async def _hand_over(self) -> None:
        """Let another voter lead, and wait for what was proposed here; both together at most two election timeouts."""
        core, limit = self.core, self.config.election_timeout_max
        if core.role is not Role.LEADER or core.membership.all_voters <= {self.node_id}:
            return
        end = self.clock.seconds() + 2 * limit
        self.proposals.flush()  # what came before is still taken
        token: Deferred[int] = Deferred()
        _ = token.addTimeout(2 * limit, self.clock)
        self.driver.input(core.transfer, token, None)
        try:
            target = await token
        except Exception as error:
            self.log.info("leadership was not handed over: {error}", error=error)
            return
        self.log.info("leadership went to node {target}", target=target)
        while self.proposals.waits and self.clock.seconds() < end and self.state == "running":
            await self.sleep(self.config.heartbeat_interval / 4)

    def when_stopped(self) -> Deferred[BaseException | None]:
        """Return a new Deferred that fires with what stopped the node, None after an orderly stop."""
        if self.state == "stopped":
            return succeed(self.cause)
        waiter: Deferred[BaseException | None] = Deferred()
        self._stopped.append(waiter)
        return waiter

    def _finish(self, what: str, closing: Deferred[Any]) -> Deferred[None]:
        """Return a Deferred that fires when this is closed, or has not been for too long: a disk may hang for ever."""
        limit = self.config.bulk_timeout
        done: Deferred[None] = Deferred()

        def late() -> None:
            self.log.critical(
                "node {node} stops without {what}, which has not closed within {limit:g} s",
                node=self.node_id,
                what=what,
                limit=limit,
            )
            if self.cause is None and what != "the network":
                self.cause = StorageFailed("close", what, f"it has not answered within {limit:g} s")
            done.callback(None)

        timer = self.clock.callLater(limit, late)

        def closed(result: Any) -> None:
            if isinstance(result, Failure) and result.value is not self.cause:
                self.log.failure("Closing {what} failed", result, what=what)
            if timer.active():
                timer.cancel()
                done.callback(None)

        _ = closing.addBoth(closed)
        return done

    def _close(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._end()).addErrback(
            lambda failure: self.log.failure("Stopping node {node} failed", failure, node=self.node_id)
        )

    async def _end(self) -> None:
        cause = self.cause
        if self._removal is not None and self._removal.active():
            self._removal.cancel()
        self.space.stop()
        self.digests.stop()
        self.scrubber.stop()
        self.builder.stop()
        self.senders.stop()
        self.receiver.stop()
        if self.has_core:
            self.driver.kill()
            self.driver.end()
        self.proposals.stop(cause)
        self.forwarder.stop(cause)
        self.reads.stop(cause)
        self.peers.stop(cause)
        self.applier.stop(cause)
        self.observers.stop(cause)
        self.deadlines.stop()
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        closing = [("the network", self.network.stop)]
        if self._opened:
            closing += [("the log store", self.log_store.close), ("the state machine's store", self.store.close)]
        for what, close in closing:
            await self._finish(what, maybeDeferred(close))
        self.probe.stop()
        cause = self.cause
        self.state = "stopped"
        self.log.info("node {node} has stopped", node=self.node_id)
        stopped, self._stopped = self._stopped, []
        for waiter in stopped:
            if not waiter.called:
                waiter.callback(cause)
