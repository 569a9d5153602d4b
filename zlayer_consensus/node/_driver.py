"""The step loop: one input at a time goes into the core, and what it wants is carried out before the next.

Stores and networks may complete at once; what they report then becomes a further input, never one inside a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from ..errors import ConsensusError, LogCompacted, NodeStopped, NotLeader
from ..raft import Effects, Entry, LogId, LogRead, PeerAlarm, PeerRepair, Persist, RaftCore
from ._failures import error_in

if TYPE_CHECKING:
    from ._runtime import Runtime

__all__ = ["Driver"]


class Driver:
    """Feeds the core and carries out its effects, in the order in which they stand.

    A step is a callable that takes its arguments and then ``now``, and returns the effects, or None.
    """

    def __init__(self, runtime: Runtime, core: RaftCore) -> None:
        self._rt = runtime
        self._core = core
        self._queue: deque[tuple[Callable[..., Effects | None], tuple[Any, ...]]] = deque()
        self._running = False
        self._dead = False
        self._dropped: list[tuple[Any, ...]] = []
        """The arguments of steps that were not made, or not to their end."""
        self._half_done: Effects | None = None
        self._ended = False
        self._timer: IDelayedCall | None = None
        self._timer_at = 0.0

    def begin(self) -> None:
        """Apply what may be applied already, and wait for what comes."""
        self._afterwards()

    def input(self, step: Callable[..., Effects | None], *args: Any) -> None:
        """Make a step, now or as soon as the present one has ended.

        Each Deferred among the arguments is a token: if the node stops before the step is made, it fails with
        :class:`~zlayer_consensus.errors.NodeStopped`.
        """
        if self._dead:
            self._dropped.append(args)
            if self._ended:
                self._end_dropped()
            return
        self._queue.append((step, args))
        if not self._running:
            self._drain()

    def _drain(self) -> None:
        self._running = True
        queue, seconds = self._queue, self._rt.clock.seconds
        args: tuple[Any, ...] = ()
        effects: Effects | None = None
        try:
            while queue:
                step, args = queue.popleft()
                effects = None
                effects = step(*args, seconds())
                if effects is not None:
                    self._carry_out(effects)
        except Exception as error:
            self._dropped.append(args)
            self._half_done = effects
            self._rt.broke("A step", error)
        finally:
            self._running = False
        if not self._dead:
            self._afterwards()

    def _afterwards(self) -> None:
        self._rt.applier.pump()
        self._rt.observers.notify()
        wake = None if self._dead else self._core.next_wake
        if wake is not None and (self._timer is None or wake < self._timer_at):
            self._arm(wake)

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._rt.clock.callLater(max(0.0, at - self._rt.clock.seconds()), self._wake)

    def _wake(self) -> None:
        self._timer = None
        wake = self._core.next_wake
        if wake is None:
            return
        if wake > self._rt.clock.seconds():  # it was put off since the timer was set
            self._arm(wake)
        else:
            self.input(self._core.tick)

    def _carry_out(self, effects: Effects) -> None:
        rt = self._rt
        if effects.fatal is not None:
            rt.fail(effects.fatal)
            return
        for persist in effects.persist:
            self._persist(persist)
        for send in effects.send:
            rt.peers.send(send)
        for answer in effects.answers:
            rt.peers.answer(answer)
        for request in effects.log_reads:
            self._read(request)
        for transfer in effects.snapshots:
            rt.senders.start(transfer)
        if effects.commit is not None:
            rt.applier.commit = effects.commit
        if effects.purge is not None:
            self._purge(effects.purge)
        self._settle(effects)
        if effects.change is not None:
            rt.peers.members_changed(effects.change.membership)
            rt.observers.changed(effects.change)
            rt.forwarder.leader_changed()
        for alarm in effects.alarms:
            self._alarm(alarm)
        for repair in effects.repairs:
            self._repair(repair)
        if effects.repaired:
            rt.clear_repair()
        if effects.removed:
            rt.removed()

    def _settle(self, effects: Effects) -> None:
        """Tell the tokens, each of which is a Deferred. One that was told before was so by half of a step."""
        for read in effects.reads:
            if not (token := _waiting(read.token)).called:
                token.callback(read.index)
        for done in effects.done:
            if not (token := _waiting(done.token)).called:
                token.callback(done.value)
        for refused in effects.refused:
            # A batch of proposals has no token; the step itself has told it.
            if refused.token is not None and not (token := _waiting(refused.token)).called:
                token.errback(self._complete(refused.error))

    def _complete(self, error: ConsensusError) -> ConsensusError:
        """Add the addresses to what the core knows of the leader."""
        return self._rt.not_leader(error.leader_id) if isinstance(error, NotLeader) else error

    def _persist(self, persist: Persist) -> None:
        write = persist.write
        if write.reset is not None:
            self._rt.proposals.truncated(write.reset.index)
        elif write.truncate_after is not None:
            self._rt.proposals.truncated(write.truncate_after)
        _ = self._rt.log_store.write(write).addCallbacks(
            self._persisted, self._storage_failed, callbackArgs=(persist.seq, persist.last)
        )

    def _persisted(self, _: None, seq: int, last: LogId) -> None:
        self.input(self._core.persisted, seq, last)
        self._rt.durability.moved()
        if self._rt.log_store.full:
            self._rt.space.store_changed()

    def _storage_failed(self, failure: Failure) -> None:
        self._rt.fail(error_in(failure))

    def _read(self, request: LogRead) -> None:
        def read(entries: list[Entry]) -> None:
            self.input(self._core.log_read, request, entries)

        def failed(failure: Failure) -> None:
            if failure.check(LogCompacted):
                self.input(self._core.log_read, request, None)
            else:
                self._storage_failed(failure)

        _ = self._rt.log_store.read(request.first, request.last, request.max_bytes).addCallbacks(read, failed)

    def _purge(self, upto: LogId) -> None:
        _ = self._rt.log_store.purge(upto).addErrback(self._storage_failed)

    def _alarm(self, alarm: PeerAlarm) -> None:
        self._rt.log.critical(
            "Node {peer} had entries up to {match} and now ends at {last}: its log fell back, and it counts for "
            "nothing from now on. Remove it from the cluster, and let it come back under a new id.",
            peer=alarm.peer,
            match=alarm.match,
            last=alarm.last_index,
        )

    def _repair(self, repair: PeerRepair) -> None:
        if repair.until:
            self._rt.log.warn(
                "The log of node {peer} was repaired (repair {repair}): it counts for nothing until it has entry "
                "{until}, and that is committed without it.",
                peer=repair.peer,
                repair=repair.repair.hex(),
                until=repair.until,
            )
        else:
            self._rt.log.info("The log of node {peer} is complete again, and counts.", peer=repair.peer)

    def kill(self) -> None:
        """Make no further step."""
        self._dead = True
        self._dropped += [args for _, args in self._queue]
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        """Let the core end what waits for it. Nothing is written or sent any more."""
        self._ended = True
        if self._half_done is not None:  # what the core has settled is so, whatever broke afterwards
            self._settle(self._half_done)
        try:
            effects = self._core.stop(self._rt.clock.seconds())
        except Exception:
            self._rt.log.failure("The core did not stop in order")
        else:
            for answer in effects.answers:
                self._rt.peers.answer(answer)
            self._settle(effects)
        self._end_dropped()

    def _end_dropped(self) -> None:
        dropped, self._dropped = self._dropped, []
        for token in [each for args in dropped for each in args if isinstance(each, Deferred)]:
            if not token.called:
                token.errback(NodeStopped(self._rt.cause))


def _waiting(token: object) -> Deferred[Any]:
    assert isinstance(token, Deferred)
    return token
