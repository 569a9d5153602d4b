"""The part of ``ConsensusNode`` that changes the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred

from ..raft import Membership
from ..storage.interfaces import ISnapshotReader
from ._admin import membership_of
from ._runtime import Runtime

__all__ = ["NodeAdministration"]


class NodeAdministration:
    """Membership, leadership, and what one may trigger by hand.

    The operations work at every node: a follower forwards them to the leader, unless ``forward`` is False (then
    :class:`~zlayer_consensus.errors.NotLeader`). They fire with the new configuration once it is committed. Each fails
    with :class:`~zlayer_consensus.errors.MembershipRefused` and a ``reason`` if it is not possible, and with
    :class:`~zlayer_consensus.errors.OutcomeUnknown` if it is not known whether it happened; then it may be tried again.
    """

    _runtime: Runtime
    ensure_linearizable: Callable[..., Deferred[int]]

    def _operate(
        self, name: str, arguments: dict[str, Any], timeout: float | None, forward: bool | None
    ) -> Deferred[Any]:
        runtime = self._runtime
        hop = runtime.config.forward_proposals if forward is None else forward
        return runtime.task(runtime.admin.run(name, arguments, timeout, hop))

    def _change(
        self, name: str, arguments: dict[str, Any], timeout: float | None, forward: bool | None
    ) -> Deferred[Membership]:
        return self._operate(name, arguments, timeout, forward).addCallback(membership_of)

    def add_learner(
        self,
        node_id: int,
        address: str,
        client_address: str = "",
        *,
        blocking: bool = True,
        auto_promote: bool = False,
        timeout: float | None = None,
        forward: bool | None = None,
    ) -> Deferred[Membership]:
        """Add a member without a vote. The new node must be running: the leader asks it for its incarnation.

        :param blocking: wait until it has caught up, too.
        :param auto_promote: the leader makes it a voter as soon as it has caught up, whoever leads by then.
        :param timeout: seconds; by default ``proposal_timeout`` and ``snapshot_timeout`` together.
        """
        arguments = {
            "node_id": node_id,
            "address": address,
            "client_address": client_address,
            "blocking": blocking,
            "auto_promote": auto_promote,
        }
        return self._change("add_learner", arguments, timeout, forward)

    def add_voter(
        self,
        node_id: int,
        address: str | None = None,
        client_address: str = "",
        *,
        timeout: float | None = None,
        forward: bool | None = None,
    ) -> Deferred[Membership]:
        """Add a voter: as a learner first, then, when it has caught up, through a joint configuration (H-44).

        :param address: None for a node that is a member already: it stays where the leader knows it to be.
        """
        arguments = {"node_id": node_id, "address": address, "client_address": client_address}
        return self._change("add_voter", arguments, timeout, forward)

    def remove_voter(
        self,
        node_id: int,
        *,
        retain: bool = False,
        force: bool = False,
        timeout: float | None = None,
        forward: bool | None = None,
    ) -> Deferred[Membership]:
        """Remove a voter, the leader itself perhaps. Its id is never used again, unless it stays as a learner.

        :param retain: keep it as a learner.
        :param force: also if fewer than a quorum of the remaining voters are reachable (H-45).
        """
        arguments = {"node_id": node_id, "retain": retain, "force": force}
        return self._change("remove_voter", arguments, timeout, forward)

    def remove_learner(
        self, node_id: int, *, timeout: float | None = None, forward: bool | None = None
    ) -> Deferred[Membership]:
        """Remove a member without a vote. Its id is never used again."""
        return self._change("remove_learner", {"node_id": node_id}, timeout, forward)

    def change_membership(
        self,
        voters: Iterable[int],
        retain: bool = False,
        force: bool = False,
        *,
        timeout: float | None = None,
        forward: bool | None = None,
    ) -> Deferred[Membership]:
        """Make these members the voters, through a joint configuration.

        :param retain: voters that are left out stay as learners; else they are removed for ever.
        :param force: also if fewer than a quorum of the new voters are reachable (H-45).
        """
        arguments = {"voters": sorted(set(voters)), "retain": retain, "force": force}
        return self._change("change_membership", arguments, timeout, forward)

    def change_address(
        self,
        node_id: int,
        peer_address: str,
        client_address: str | None = None,
        *,
        timeout: float | None = None,
        forward: bool | None = None,
    ) -> Deferred[Membership]:
        """Change where a member is reached.

        :param client_address: None leaves it as it is.
        """
        arguments = {"node_id": node_id, "peer_address": peer_address, "client_address": client_address}
        return self._change("change_address", arguments, timeout, forward)

    def transfer_leadership(
        self, target: int | None = None, *, timeout: float | None = None, forward: bool | None = None
    ) -> Deferred[int]:
        """Hand leadership to a voter, by default the one that lacks least; fires with its id.

        Proposals are refused meanwhile, with :class:`~zlayer_consensus.errors.TransferInProgress`.

        :raises TransferFailed: if it did not take over; the old leader goes on.
        """
        return self._operate("transfer_leadership", {"target": target}, timeout, forward)

    def trigger(self, what: str, upto: int | None = None) -> Deferred[None]:
        """Do by hand what otherwise follows by itself, at this node.

        ``elect`` begins an election (pre-vote included), ``heartbeat`` sends heartbeats; both do nothing where they
        make no sense, and fire at once. ``snapshot`` takes a snapshot and fires when it is published. ``purge`` purges
        the log up to ``upto`` (by default as far as possible), as far as snapshot and running transfers allow.

        :raises ValueError: if ``what`` is something else.
        """
        if what not in ("elect", "heartbeat", "snapshot", "purge"):
            raise ValueError(f"{what!r} cannot be triggered; elect, heartbeat, snapshot and purge can")
        return self._runtime.task(self._trigger(what, upto))

    def backup(self, deadline: float | None = None, *, forward: bool | None = None) -> Deferred[ISnapshotReader]:
        """Save the state, with everything that was acknowledged before this call.

        Fires with a reader of a snapshot here, which the caller closes; until then the snapshot stays.

        :param deadline: seconds for finding out what was acknowledged; the snapshot takes as long as it takes.
        :raises DeadlineExceeded: as :meth:`ensure_linearizable` does, with ``NotLeader`` and ``Overloaded``.
        :raises StorageFull: if there is no space for a snapshot.
        """
        return self._runtime.task(self._backup(deadline, forward))

    async def _backup(self, deadline: float | None, forward: bool | None) -> ISnapshotReader:
        runtime = self._runtime
        # It waits until the read index is applied here; a snapshot of what is applied then has it all.
        await self.ensure_linearizable(deadline, forward=forward)
        await runtime.builder.request()
        return runtime.store.reader()

    async def _trigger(self, what: str, upto: int | None) -> None:
        runtime = self._runtime
        runtime.check_running()
        core, driver = runtime.core, runtime.driver
        if what == "elect":
            driver.input(core.campaign)
        elif what == "heartbeat":
            driver.input(core.heartbeat)
        elif what == "purge":
            driver.input(core.purge, core.last.index if upto is None else upto)
        else:
            await runtime.builder.request()
