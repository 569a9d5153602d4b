"""``ConsensusNode``: one member of a cluster, as an application holds it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import SystemRandom
from typing import Any, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, fail, maybeDeferred
from zope.interface import implementer

from ..config import ConsensusConfig
from ..errors import ConsensusError
from ..network.interfaces import Envelope, INetwork, IRaftService, RpcReply, RpcRequest
from ..raft import EntryKind, Role
from ..storage.interfaces import ILogStore, IStateMachineStore
from ..types import RaftTypes, declare_raft_types
from ._administration import NodeAdministration
from ._bootstrap import InitialMember, bootstrap, join
from ._deadlines import check_timeout
from ._proposals import Applied, Proposal, check_session
from ._runtime import Runtime
from ._sessions import SessionSettings
from ._views import NodeViews
from ._wait import Wait

__all__ = ["ConsensusNode"]

T = TypeVar("T")


class _Random(Protocol):
    def random(self) -> float:
        """Return a number in [0, 1)."""


@implementer(IRaftService)
class ConsensusNode(NodeAdministration, NodeViews, Service):
    """One member of a Raft cluster. It runs on the reactor's thread, and is called from there only.

    Every Deferred that it returns fires: with a result; with a *definite* failure, after which the operation has not
    happened and will not; or with :class:`~zlayer_consensus.errors.OutcomeUnknown`. Cancelling one gives up waiting,
    not the operation. A node cannot be started again after it has stopped: make a new one.

    It is a Twisted service, too: ``startService`` starts it and ``stopService`` shuts it down.

    :param node_id: a positive number that no other node of the cluster ever had or will have.
    :param address: where the other nodes reach this one (advertised, not the listener's).
    :param client_address: where clients reach it; given to clients of other nodes as the leader's.
    :param config: the settings.
    :param log_store: keeps log, term and vote; the node opens and closes it.
    :param state_machine: keeps the application's snapshots, and has the application; the node opens and closes it.
    :param network: how it calls its peers; the node stops it. How it is called is up to who makes the node: by
        whatever hands RPCs to :meth:`handle`.
    :param clock: monotonic time: ``seconds()`` and ``callLater``. A reactor's ``seconds`` is the wall clock.
    :param types: the application's types; by default any plain values.
    :param wall_clock: seconds since 1970, for the time in the entries.
    :param random: ``random()`` gives numbers in [0, 1); by default the operating system's.
    :param loop_clock: monotonic seconds that the delays of the event loop are measured by; by default the clock's.
        For a clock whose ``seconds`` is the wall clock, give ``time.monotonic``.
    :param loop_work: processor seconds of the loop's thread, ``time.thread_time``, to tell its own work from what the
        machine does to it.
    :param name: the service's name.
    """

    def __init__(
        self,
        *,
        node_id: int,
        address: str,
        client_address: str = "",
        config: ConsensusConfig | None = None,
        log_store: ILogStore,
        state_machine: IStateMachineStore,
        network: INetwork,
        clock: Any,
        types: RaftTypes | None = None,
        wall_clock: Callable[[], float] = time.time,
        random: _Random | None = None,
        loop_clock: Callable[[], float] | None = None,
        loop_work: Callable[[], float] | None = None,
        name: str | None = None,
    ) -> None:
        if isinstance(node_id, bool) or not 0 < node_id < 1 << 63:
            raise ValueError(f"node_id must be a positive number below 2**63, not {node_id!r}")
        if not 0 < len(address) <= 255:
            raise ValueError(f"address must be text of 1 to 255 characters, not {address!r}")
        self.node_id = node_id
        self.address = address
        self.client_address = client_address
        self.name = name
        self._runtime = Runtime(
            node_id=node_id,
            address=address,
            client_address=client_address,
            config=config or ConsensusConfig(),
            log_store=log_store,
            state_machine=state_machine,
            network=network,
            clock=clock,
            types=types or declare_raft_types(),
            wall_clock=wall_clock,
            random=(random if random is not None else SystemRandom()).random,
            loop_clock=clock.seconds if loop_clock is None else loop_clock,
            loop_work=loop_work,
        )
        self._encode = self._runtime.types.encode_request
        self._forward = self._runtime.config.forward_proposals
        self.wait = Wait(self._runtime)

    # Life.

    def start(self) -> Deferred[None]:
        """Open the stores, load the newest snapshot, and take part where the node belongs to a cluster.

        A node that belongs to none is passive then, until :meth:`bootstrap`, :meth:`join`, or a leader that was told
        of it. May be called again; every call fires when the start is done.

        :raises StorageError: if the stores cannot be opened, are damaged, or belong to another node. The node has then
            stopped.
        :raises NodeRemoved: if this node was removed from its cluster. It has stopped, too (H-47).
        """
        return self._runtime.start()

    def shutdown(self) -> Deferred[None]:
        """Stop: hand leadership over (for two election timeouts at most), end what waits, close the stores.

        What was proposed and not applied has an unknown outcome then. Idempotent. What does not close within
        ``rpc_timeout`` is left behind; if that is a store, ``stopped`` fires with a
        :class:`~zlayer_consensus.errors.StorageFailed`.
        """
        return self._runtime.shutdown()

    def startService(self) -> None:
        """Start with the service's parent. A failure stops the node; ``stopped`` tells."""
        super().startService()
        # Without an errback here the failure would be reported as one that nobody looked at.
        _ = self.start().addErrback(lambda _: None)

    def stopService(self) -> Deferred[None]:
        """Shut down with the service's parent, which waits."""
        super().stopService()
        return self.shutdown()

    def bootstrap(self, members: Sequence[InitialMember] | None = None) -> Deferred[None]:
        """Begin a cluster with these members, of which this node is one; None is this node alone.

        Every listed member has to do so, with the same list in any order. It fires when this node has written the
        initial configuration, which it does when all of them have answered; it waits for that as long as it takes. On
        a store that has a log it does nothing if the members agree, so it may be called at every start.

        :raises BootstrapMismatch: if the members do not agree, or the store is of another cluster.
        :raises IncarnationMismatch: if the cluster knows this id with another data directory (H-29).
        :raises NodeRemoved: if this id was removed from the cluster.
        """
        return self._runtime.task(bootstrap(self._runtime, members))

    def join(self, addresses: Sequence[str]) -> Deferred[None]:
        """Belong to the cluster of the first of these addresses that belongs to one; fires when it has added this node.

        Adding it is done there, with :meth:`add_learner` or :meth:`add_voter`. On a node that is a member already it
        fires at once, so it may be called at every start.

        :raises ClusterMismatch: if this node belongs to another cluster.
        :raises IncarnationMismatch: if the cluster knows this id with another data directory (H-29).
        :raises NodeRemoved: if this id was removed from the cluster.
        """
        return self._runtime.task(join(self._runtime, addresses))

    def handle(self, envelope: Envelope, request: RpcRequest) -> Deferred[RpcReply]:
        """Take one RPC from a peer: see :class:`~zlayer_consensus.network.IRaftService`."""
        return self._runtime.peers.handle(envelope, request)

    # Writing.

    def propose(
        self,
        request: Any,
        *,
        session: int = 0,
        sequence: int = 0,
        timeout: float | None = None,
        forward: bool | None = None,
        frees_space: bool = False,
    ) -> Deferred[Any]:
        """Have a command carried out by every member; fires with what ``apply`` returned, here or at the leader.

        It is durable on a majority then. Commands that one caller proposes at one leader are applied in that order.

        :param session: a session from :meth:`register_session`; the same ``sequence`` is then executed once, however
            often it is proposed.
        :param sequence: counts the session's commands, from 1 on, without gaps.
        :param timeout: seconds, a day at most; by default ``proposal_timeout``.
        :param forward: whether a follower sends it to the leader; by default ``forward_proposals``.
        :param frees_space: whether the state becomes smaller by it. When the disks of a majority are full, such
            commands alone are taken, and others end with ``OutOfSpace``.
        :raises DomainError: if ``apply`` raised it: that is a result, too.
        :raises NotLeader: definitely not done; so are ``Overloaded``, ``OutOfSpace``, ``ProposalTooLarge``,
            ``TransferInProgress``, ``ConversionError``, ``SessionExpired`` and ``SessionSequenceReused``.
        :raises SessionSequenceStale: too old to tell; it was not done again.
        :raises NodeStopped: not done.
        :raises OutcomeUnknown: it may have been done, or may still be.
        """
        try:
            runtime = self._runtime
            runtime.check_running()
            if timeout is not None:
                check_timeout(timeout)
            if session or sequence:
                check_session(session, sequence)
            payload = self._encode(request)
            proposal = runtime.proposals.submit(payload, EntryKind.COMMAND, session, sequence, timeout, frees_space)
            if not (self._forward if forward is None else forward):
                proposal.forward = False
            return proposal
        except (ConsensusError, ValueError) as error:
            return fail(error)

    def propose_with_index(
        self,
        request: Any,
        *,
        session: int = 0,
        sequence: int = 0,
        timeout: float | None = None,
        forward: bool | None = None,
        frees_space: bool = False,
    ) -> Deferred[Applied]:
        """Like :meth:`propose`; fires with the result and the entry's index."""
        waiting = self.propose(
            request, session=session, sequence=sequence, timeout=timeout, forward=forward, frees_space=frees_space
        )
        if isinstance(waiting, Proposal):  # else it was refused
            waiting.indexed = True
        return waiting

    def propose_many(
        self, requests: Sequence[Any], *, timeout: float | None = None, forward: bool | None = None
    ) -> Deferred[list[Any]]:
        """Propose several commands at once, in order; fires with a list of their results, or errors, one for each.

        They are not a transaction: some may be done and others not.
        """
        try:
            check_timeout(timeout)
        except ValueError as error:
            return fail(error)
        proposals = [self.propose(request, timeout=timeout, forward=forward) for request in requests]
        return DeferredList(proposals, consumeErrors=True).addCallback(
            lambda outcomes: [value if ok else value.value for ok, value in outcomes]
        )

    def register_session(self, *, timeout: float | None = None, forward: bool | None = None) -> Deferred[int]:
        """Register a client session through the log; fires with its id (H-82).

        A session ends after ``session_ttl_ms`` without a command, or when ``max_sessions`` are used more recently. If
        the outcome is unknown, register another one: an unused session does no harm.
        """
        runtime = self._runtime
        try:
            runtime.check_running()
            check_timeout(timeout)
            payload = SessionSettings.of(runtime.config).encode()
            proposal = runtime.proposals.submit(payload, EntryKind.SESSION, 0, 0, timeout)
            proposal.forward = self._forward if forward is None else forward
            return proposal
        except (ConsensusError, ValueError) as error:
            return fail(error)

    # Reading.

    def read_state(
        self,
        read: Callable[[Any], T],
        deadline: float | None = None,
        *,
        linearizable: bool = True,
        forward: bool | None = None,
    ) -> Deferred[T]:
        """Call ``read(machine)`` on a state that has everything that was acknowledged before this call (§6.4).

        Works at followers, too, which ask the leader for the read index, and wait for the next leader while there is
        none. ``read`` must not change the state; what it raises becomes the Deferred's failure.

        :param deadline: seconds, a day at most; by default ``proposal_timeout``.
        :param linearizable: with False, read what is applied here, at once; it may be old. (While a leader's snapshot
            is installed, an application that provides :class:`~zlayer_consensus.storage.IReplaceableState` has no
            state, and every read waits for the new one.)
        :param forward: with False, only the leader reads.
        :raises NotLeader: without forwarding, if this node does not lead or stops leading; also if it lacks entries
            because its disk is full.
        :raises DeadlineExceeded: it was not read in time; with ``Overloaded`` and ``NodeStopped`` it was not read, too.
        """
        if not linearizable:
            return maybeDeferred(self._read_here, read)
        return self._read(read, deadline, forward)

    def _read_here(self, read: Callable[[Any], T]) -> Deferred[T]:
        runtime = self._runtime
        runtime.check_running()
        return runtime.applier.when_applied(0).addCallback(lambda _: read(runtime.store.machine))

    def ensure_linearizable(self, deadline: float | None = None, *, forward: bool | None = None) -> Deferred[int]:
        """Wait until everything that was acknowledged before this call is applied here; fires with the read index."""
        return self._read(None, deadline, forward)

    def _read(self, action: Callable[[Any], Any] | None, deadline: float | None, forward: bool | None) -> Deferred[Any]:
        runtime = self._runtime
        try:
            runtime.check_running()
            check_timeout(deadline)
            if forward is False and runtime.core.role is not Role.LEADER:
                raise runtime.not_leader()
            return runtime.reads.submit(action, deadline, forward is not False)
        except (ConsensusError, ValueError) as error:
            return fail(error)
