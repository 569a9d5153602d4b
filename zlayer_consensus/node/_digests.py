"""Digests of the state: kept at indexes that every member knows, and compared by the leader (J-92, H-80).

A member that a majority of the voters contradicts stops. Where members differ and no majority agrees, nobody knows who
is right: that is an alarm and nothing more.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.interfaces import IDelayedCall

from ..errors import NodeStopped, StateDiverged
from ..network import MAX_DIGEST_BYTES, MAX_DIGEST_KIND, DigestAt, DigestReply, DigestRequest
from ..raft import Role
from ..storage.interfaces import IStateDigest
from ._agreement import Findings, Verdict, compare
from ._metrics import DigestMetrics

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["DIGEST_EVERY", "Digests"]

DIGEST_EVERY = 64
"""A digest is taken after the entries whose index this divides."""
_STEPS = (DIGEST_EVERY, 64 * DIGEST_EVERY)
_KEPT = 64
"""Digests kept of each step: the small one for clusters that write little, the large one for members that lag."""


class Digests:
    """The digests of this node's state, and at the leader the comparison with the others'."""

    def __init__(self, runtime: Runtime) -> None:
        self._rt = runtime
        self._machine: Any = runtime.store.machine
        self._kind = _checked_kind(self._machine.digest_kind) if IStateDigest.providedBy(self._machine) else ""
        self._ladders = tuple((step, deque[DigestAt](maxlen=_KEPT)) for step in _STEPS)
        self._timer: IDelayedCall | None = None
        self._comparing: Deferred[None] | None = None
        self._verdicts: dict[int, Verdict] = {}
        """What members are told with the next request, if it is not the latest verdict."""
        self._latest = Verdict("", 0, b"")
        self._agreed = 0
        self._alarm = ""
        self.alarms = 0
        """How often members began to differ without a majority."""
        self._contradicted: tuple[int, ...] = ()

    # What this node has.

    def note(self, index: int) -> None:
        """Keep the digest of the state, which is that after entry ``index``, if it is one of those that are kept."""
        if self._kind and index % DIGEST_EVERY == 0:
            digest = self._digest()
            if digest:
                for step, ladder in self._ladders:
                    if index % step == 0:
                        ladder.append(DigestAt(index, digest))

    def _digest(self) -> bytes:
        """Return the digest of the state, nothing if the application cannot tell it: that says nothing of the state."""
        try:
            digest: Any = self._machine.state_digest()
        except Exception:
            self._rt.log.failure("The application's digest failed; the state is not compared any more")
        else:
            if isinstance(digest, bytes) and 0 < len(digest) <= MAX_DIGEST_BYTES:
                return digest
            self._rt.log.error(
                "The application's digest is not 1 to {limit} bytes; the state is not compared any more",
                limit=MAX_DIGEST_BYTES,
            )
        self._kind = ""
        self.forget()
        return b""

    def forget(self) -> None:
        """The state was replaced: what the old one was at some index is not this one's past."""
        for _, ladder in self._ladders:
            ladder.clear()

    def report(self) -> DigestReply:
        """Return all that is kept, and the digest of the present state: an idle cluster is at the same index."""
        kept = {at.index: at.digest for _, ladder in self._ladders for at in ladder}
        applied = self._rt.applier.applied
        present = applied > 0 and not self._rt.applier.replacing
        if self._kind and present and applied not in kept and (digest := self._digest()):
            kept[applied] = digest
        return DigestReply(self._kind, tuple(DigestAt(*each) for each in kept.items()) if self._kind else ())

    def answer(self, request: DigestRequest) -> Deferred[DigestReply]:
        """Take what a leader says, and tell what this node has.

        It may be an old leader, and an old message: what a majority had applied at an index is true for ever.
        """
        if request.index and self._convicted(Verdict(request.kind, request.index, request.digest)):
            return fail(NodeStopped(self._rt.cause))
        return succeed(self.report())

    def _convicted(self, verdict: Verdict) -> bool:
        """Stop if a verdict contradicts what is kept here; return whether it does."""
        if verdict.kind != self._kind:
            return False
        own = next((at.digest for at in self.report().digests if at.index == verdict.index), None)
        if own is None:
            return False
        if own == verdict.digest:
            self._agreed = max(self._agreed, verdict.index)
            return False
        self._rt.fail(StateDiverged(verdict.index, own, verdict.digest))
        return True

    # What the others have.

    def start(self) -> None:
        """Compare from now on, whenever this node leads."""
        interval = self._rt.config.digest_interval
        if interval and self._kind and self._timer is None:
            self._timer = self._rt.clock.callLater(interval, self._tick)

    def stop(self) -> None:
        """Compare no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._comparing is not None:
            self._comparing.cancel()

    def _tick(self) -> None:
        self._timer = None
        self.start()
        if self._rt.core.role is not Role.LEADER:
            self._alarm, self._contradicted = "", ()
            self._verdicts.clear()
        elif self._comparing is None:
            self._comparing = Deferred.fromCoroutine(self._compare())
            _ = self._comparing.addBoth(self._compared)

    def _compared(self, result: Any) -> None:
        self._comparing = None
        if result is not None and self._rt.serving:
            # It says nothing of anybody's state.
            self._rt.log.failure("Comparing digests failed", result)

    async def _compare(self) -> None:
        rt, core = self._rt, self._rt.core
        term = core.term
        members = [node_id for node_id in core.membership.members if node_id != rt.node_id]
        replies = await DeferredList([self._ask(node_id) for node_id in members], consumeErrors=True)
        if core.role is not Role.LEADER or core.term != term or not rt.serving:
            return
        reports = {node: reply for node, (ok, reply) in zip(members, replies, strict=True) if ok}
        reports = {node: reply for node, reply in reports.items() if isinstance(reply, DigestReply)}
        reports[rt.node_id] = self.report()
        self._judge(compare(core.membership, reports))

    def _ask(self, node_id: int) -> Deferred[Any]:
        verdict = self._verdicts.get(node_id, self._latest)
        return self._rt.peers.call(node_id, DigestRequest(*verdict), self._rt.config.control_timeout)

    def _judge(self, findings: Findings) -> None:
        rt = self._rt
        self._latest = findings.agreed.get(self._kind, self._latest)
        self._verdicts = {node: verdict for node, (verdict, _) in findings.contradicted.items()}
        for node, (verdict, digest) in sorted(findings.contradicted.items()):
            if node not in self._contradicted:
                rt.log.critical(
                    "After entry {index} the state of node {peer} has the digest {digest}, and a majority agrees on "
                    "{agreed}: node {peer} is told to stop",
                    index=verdict.index,
                    peer=node,
                    digest=digest.hex(),
                    agreed=verdict.digest.hex(),
                )
            if node != rt.node_id:
                _ = self._ask(node).addErrback(lambda _: None)  # it is told again with each comparison
        self._contradicted = tuple(sorted(findings.contradicted))
        self._sound(findings.disputed)
        if rt.node_id in findings.contradicted:
            self._convicted(findings.contradicted[rt.node_id][0])
        elif findings.agreed:
            self._convicted(self._latest)

    def _sound(self, disputed: tuple[int, dict[int, bytes]] | None) -> None:
        """Raise an alarm, once for the same members, or end it."""
        if disputed is None:
            self._alarm = ""
            return
        index, digests = disputed
        told = bool(self._alarm)
        each = ", ".join(f"node {node} {digest.hex()}" for node, digest in sorted(digests.items()))
        self._alarm = f"after entry {index} the members' states have different digests: {each}"
        if not told:
            self.alarms += 1
            self._rt.log.critical("{alarm}; no majority says which is right", alarm=self._alarm)

    def metrics(self) -> DigestMetrics | None:
        """Return what is known of agreement, None without a digest."""
        if not self._kind:
            return None
        index = max((at.index for _, ladder in self._ladders for at in ladder), default=0)
        return DigestMetrics(self._kind, index, self._agreed, self._alarm, self.alarms, self._contradicted)


def _checked_kind(kind: object) -> str:
    if not isinstance(kind, str) or not 0 < len(kind) <= MAX_DIGEST_KIND or not kind.isprintable():
        raise TypeError(f"digest_kind must be 1 to {MAX_DIGEST_KIND} printable characters, not {kind!r}")
    return kind
