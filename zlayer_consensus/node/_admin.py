"""Membership changes and leadership transfer: at the leader, or there on behalf of another node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.error import TimeoutError as DeferredTimeout
from twisted.python.failure import Failure

from ..errors import (
    ConsensusError,
    DeadlineExceeded,
    InvalidMessage,
    MembershipRefused,
    NodeStopped,
    OutcomeUnknown,
    PeerRefused,
)
from ..raft import (
    AddLearner,
    ChangeAddress,
    ChangeVoters,
    Effects,
    Member,
    Membership,
    MembershipChange,
    RemoveLearner,
    Role,
)
from ._bootstrap import identify
from ._deadlines import check_timeout

if TYPE_CHECKING:
    from ._metrics import Metrics
    from ._runtime import Runtime

__all__ = ["Admin"]

_SCHEMAS: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "add_learner": {"node_id": int, "address": str, "client_address": str, "blocking": bool, "auto_promote": bool},
    "add_voter": {"node_id": int, "address": (str, type(None)), "client_address": str},
    "remove_voter": {"node_id": int, "retain": bool, "force": bool},
    "remove_learner": {"node_id": int},
    "change_membership": {"voters": list, "retain": bool, "force": bool},
    "change_address": {"node_id": int, "peer_address": str, "client_address": (str, type(None))},
    "transfer_leadership": {"target": (int, type(None))},
}
"""The operations and their arguments, as they travel."""
_CATCHES_UP = ("add_learner", "add_voter")


class _Budget:
    """The time that an operation has left."""

    def __init__(self, clock: Any, seconds: float) -> None:
        self._clock = clock
        self.seconds = seconds
        self._end = clock.seconds() + seconds

    def left(self) -> float:
        return max(0.001, float(self._end - self._clock.seconds()))

    def limit(self, waiting: Deferred[Any], error: ConsensusError) -> Deferred[Any]:
        """Fail ``waiting`` with ``error`` when the time is over."""

        def over(result: Any, _seconds: float) -> Any:
            return Failure(error) if isinstance(result, Failure) else result

        return waiting.addTimeout(self.left(), self._clock, onTimeoutCancel=over)


class Admin:
    """Carries out one operation at a time per caller; the core refuses what may not overlap."""

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime

    def default_timeout(self, name: str) -> float:
        """Return how long an operation may take if its caller does not say."""
        config = self._rt.config
        waits = config.snapshot_timeout if name in _CATCHES_UP else 0.0
        return config.proposal_timeout + waits

    async def run(self, name: str, arguments: dict[str, Any], timeout: float | None, forward: bool) -> Any:
        """Carry out an operation here, or have the leader do it; return its plain result."""
        rt = self._rt
        check_timeout(timeout)
        rt.check_running()
        seconds = self.default_timeout(name) if timeout is None else timeout
        if rt.core.role is Role.LEADER:
            return await self._local(name, arguments, seconds)
        if not forward or rt.leader_member() is None:
            raise rt.not_leader()
        return await rt.forwarder.operation(name, arguments, seconds)

    async def forwarded(self, name: str, arguments: Any, seconds: float) -> Any:
        """Carry out what another node's caller asked for.

        :raises InvalidMessage: if there is no such operation, or its arguments are wrong.
        """
        schema = _SCHEMAS.get(name)
        if schema is None:
            raise InvalidMessage(f"there is no operation {name!r}")
        if not isinstance(arguments, dict) or set(arguments) != set(schema):
            raise InvalidMessage(f"{name} takes exactly " + ", ".join(schema))
        for key, kind in schema.items():
            value = arguments[key]
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise InvalidMessage(f"{name}: {key} is of the wrong type")
        return await self._local(name, arguments, seconds)

    async def _local(self, name: str, arguments: dict[str, Any], seconds: float) -> Any:
        budget = _Budget(self._rt.clock, seconds)
        if name == "transfer_leadership":
            return await self._transfer(arguments["target"], budget)
        await self._until_ready(budget)
        if name == "add_learner":
            await self._add_learner(budget, **arguments)
        elif name == "add_voter":
            await self._add_voter(budget, **arguments)
        elif name == "remove_voter":
            await self._remove_voter(budget, **arguments)
        elif name == "change_address":
            await self._change_address(budget, **arguments)
        else:
            await self._change(_change_of(name, arguments), budget)
        return self._rt.core.membership.to_plain()

    async def _until_ready(self, budget: _Budget) -> None:
        """Wait for the first commit of this leader's term, before which nothing may change (H-40)."""
        late = MembershipRefused("not_ready", "the leader has not committed an entry of its own term yet")
        found = await budget.limit(self._rt.observers.until(lambda m: m.ready or m.role != "leader"), late)
        if not found.ready:
            raise self._rt.not_leader()

    async def _change(self, change: MembershipChange, budget: _Budget) -> None:
        token: Deferred[Any] = Deferred()
        self._rt.driver.input(self._step, token, change)
        unknown = OutcomeUnknown(f"the change was not committed within {budget.seconds:g} s")
        await budget.limit(token, unknown)

    def _step(self, token: Deferred[Any], change: MembershipChange, now: float) -> Effects:
        return self._rt.core.change_membership(token, change, int(self._rt.wall_clock() * 1000), now)

    async def _transfer(self, target: int | None, budget: _Budget) -> Any:
        token: Deferred[Any] = Deferred()
        self._rt.driver.input(self._rt.core.transfer, token, target)
        return await budget.limit(token, OutcomeUnknown(f"leadership did not pass within {budget.seconds:g} s"))

    # Learners and voters.

    async def _add_learner(
        self, budget: _Budget, node_id: int, address: str, client_address: str, blocking: bool, auto_promote: bool
    ) -> None:
        if not await self._is_added(node_id, address):
            incarnation = await self._incarnation(node_id, address)
            member = Member(node_id, incarnation, address, client_address)
            await self._change(AddLearner(member, auto_promote), budget)
        if blocking:
            await self._until_caught_up(node_id, budget)

    async def _add_voter(self, budget: _Budget, node_id: int, address: str | None, client_address: str) -> None:
        if address is None:
            member = self._member(node_id)
            address, client_address = member.peer_address, member.client_address
        if node_id in self._rt.core.membership.voters and await self._is_added(node_id, address):
            return
        await self._add_learner(budget, node_id, address, client_address, blocking=True, auto_promote=False)
        voters = self._rt.core.membership.voters
        if node_id not in voters:
            await self._change(ChangeVoters(voters | {node_id}), budget)

    async def _remove_voter(self, budget: _Budget, node_id: int, retain: bool, force: bool) -> None:
        voters = self._rt.core.membership.voters
        if node_id not in voters:
            raise MembershipRefused("unknown_member", f"node {node_id} is not a voter")
        await self._change(ChangeVoters(voters - {node_id}, retain, force), budget)

    async def _change_address(
        self, budget: _Budget, node_id: int, peer_address: str, client_address: str | None
    ) -> None:
        if client_address is None:
            client_address = self._member(node_id).client_address
        await self._change(ChangeAddress(node_id, peer_address, client_address), budget)

    def _member(self, node_id: int) -> Member:
        member = self._rt.core.membership.members.get(node_id)
        if member is None:
            raise MembershipRefused("unknown_member", f"node {node_id} is not a member")
        return member

    async def _is_added(self, node_id: int, address: str) -> bool:
        """Whether a member is there already, as it should be; so a caller may try again after an unknown outcome."""
        known = self._rt.core.membership.members.get(node_id)
        if known is None or known.peer_address != address:
            return False  # what is wrong with it, the change itself will say
        return node_id == self._rt.node_id or known.incarnation == await self._incarnation(node_id, address)

    async def _incarnation(self, node_id: int, address: str) -> bytes:
        """Ask a node for its incarnation, and whether it is free."""
        rt = self._rt
        try:
            reply = await identify(rt, address, node_id)
        except PeerRefused as error:
            raise MembershipRefused("invalid", f"node {node_id} at {address} answers: {error.detail}") from error
        except NodeStopped as error:
            raise MembershipRefused("invalid", f"node {node_id} at {address} is not running") from error
        if reply.node_id != node_id:
            raise MembershipRefused("invalid", f"node {reply.node_id} answers at {address}, not node {node_id}")
        if reply.cluster_id not in (b"", rt.identity.cluster_id):
            raise MembershipRefused("invalid", f"node {node_id} at {address} belongs to another cluster")
        return reply.incarnation

    async def _until_caught_up(self, node_id: int, budget: _Budget) -> None:
        threshold = self._rt.config.replication_lag_threshold

        def settled(metrics: Metrics) -> bool:
            peer = metrics.replication.get(node_id)
            if metrics.role != "leader" or node_id == metrics.node_id or node_id not in metrics.membership.members:
                return True
            # A peer that has nothing yet may lack less than the threshold too.
            return peer is not None and peer.state == "replicate" and peer.match > 0 and peer.lag <= threshold

        late = MembershipRefused(
            "not_caught_up",
            f"node {node_id} is a learner now, but has not caught up within {budget.seconds:g} s",
        )
        try:
            metrics = await budget.limit(self._rt.observers.until(settled), late)
        except NodeStopped as error:
            raise OutcomeUnknown(f"the node stopped while node {node_id} was catching up") from error
        if metrics.role != "leader":
            raise OutcomeUnknown(f"leadership was lost while node {node_id} was catching up")


def _change_of(name: str, arguments: dict[str, Any]) -> MembershipChange:
    if name == "remove_learner":
        return RemoveLearner(arguments["node_id"])
    try:
        voters = frozenset(arguments["voters"])
    except TypeError:
        raise MembershipRefused("invalid", "voters must be node ids") from None
    return ChangeVoters(voters, arguments["retain"], arguments["force"])


def membership_of(plain: Any) -> Membership:
    """Read the result of an operation.

    :raises OutcomeUnknown: if the leader sent something else; the change itself was made.
    """
    try:
        return Membership.from_plain(plain)
    except ValueError as error:
        raise OutcomeUnknown(f"the change was made, but the leader's reply cannot be read ({error})") from error


def deadline(waiting: Deferred[Any], clock: Any, seconds: float | None, operation: str) -> Deferred[Any]:
    """Fail ``waiting`` with ``DeadlineExceeded`` after ``seconds``; None waits as long as it takes."""
    if seconds is None:
        return waiting

    def over(result: Any, timeout: float) -> Any:
        if isinstance(result, Failure) and not result.check(DeferredTimeout, ConsensusError):
            return Failure(DeadlineExceeded(operation, timeout))
        return result

    return waiting.addTimeout(seconds, clock, onTimeoutCancel=over)
