"""All clients of a run, and what they must never be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.python.failure import Failure

from ...errors import (
    ConsensusError,
    DeadlineExceeded,
    DomainError,
    NodeRemoved,
    NodeStopped,
    NotLeader,
    OutcomeUnknown,
    OutOfSpace,
    Overloaded,
    PeerRefused,
    ProposalTooLarge,
    SessionExpired,
    SessionSequenceReused,
    SessionSequenceStale,
    StorageError,
    TransferInProgress,
)
from ...node import Applied
from ...storage import IStateMachine
from ._application import Query
from ._client import Attempt, Client, Task
from ._history import RunHistory
from ._ledger import Ledger, WatchedMachine

if TYPE_CHECKING:
    from ._host import Process
    from ._world import World

__all__ = ["Workload"]

_DEFINITE = (
    NotLeader,
    OutOfSpace,
    Overloaded,
    ProposalTooLarge,
    TransferInProgress,
    SessionExpired,
    SessionSequenceReused,
    NodeStopped,
    NodeRemoved,
    DeadlineExceeded,
    PeerRefused,
)
"""What was so refused has not happened and will not; a read was not done."""
_UNKNOWN = (OutcomeUnknown, SessionSequenceStale)
LEAST_DONE = 10
LEAST_WRITTEN = 4
"""A run in which clients have fewer results, and fewer of commands, is vacuous."""
LEAST_SHARE = 0.05
"""So is one in which clients have the results of a smaller part of what they asked for."""


class Workload:
    """The clients, and the accounts of what they asked and what they were told.

    :param world: where they live.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        plan, application = world.plan, world.application
        self.running = False
        self.usual_timeout = plan.knobs.config.proposal_timeout
        self.ledger = Ledger(application, world.checker)
        self.history = RunHistory(application.model)
        self.actions = application.actions(plan.knobs.keys)
        self.encode = application.types.encode_request
        self.clients = [Client(self, number) for number in range(1, plan.knobs.clients + 1)]
        self.done = self.written = self.ended = 0
        """Operations, and commands among them, whose result a client has."""
        self._waiting: dict[Attempt, None] = {}
        self._order = 0

    def watched(self, machine: IStateMachine, node_id: int) -> WatchedMachine:
        """Return what a node is to run instead of the application's machine."""
        return self.ledger.watched(machine, node_id)

    # Their course

    def start(self) -> None:
        """Let the clients begin."""
        self.running = True
        for client in self.clients:
            self._tick_later(client)
        self.world.timeline.later(self.usual_timeout, self._sweep)

    def stop(self) -> None:
        """Let them finish what they have begun, without a further try."""
        self.running = False

    @property
    def busy(self) -> int:
        """How many operations are under way."""
        return sum(len(client.flight) for client in self.clients)

    @property
    def acknowledged(self) -> int:
        """The highest index that any client knows of."""
        return self.ledger.highest

    def _tick_later(self, client: Client) -> None:
        delay = client.random.expovariate(1 / self.world.plan.knobs.think_time)
        self.world.timeline.later(delay, self._tick, client)

    def _tick(self, client: Client) -> None:
        if self.running:
            client.tick()
            self._tick_later(client)

    # One operation

    def begin(self, task: Task, *, misuse: bool = False) -> None:
        """A client begins to want something.

        :param misuse: it must never happen.
        """
        task.floor = self.ledger.highest
        if task.effect:
            self.ledger.proposed(task.raw)
            if misuse:
                self.ledger.refused(task.raw)
        if task.action is not None and not misuse:
            task.handles = self.history.begin(task.client, task.action.records, self.world.timeline.now)

    def hand_over(self, attempt: Attempt) -> None:
        """The question arrives at the node: this happens in the life of its process."""
        process, (timeout, forward, style) = attempt.process, attempt.ask
        limit = self.usual_timeout if timeout is None else timeout
        # What is read may have to come from the disk, which may take as long again.
        queries = any(isinstance(task.action, Query) for task in attempt.tasks)
        attempt.deadline = process.clock.seconds() + (limit * 2 if queries else limit) * 1.01 + 0.002
        self._order += 1
        attempt.order = self._order
        self._waiting[attempt] = None
        node, tasks = process.node, attempt.tasks
        if attempt.many:
            attempt.open = 1
            requests = [task.action.request for task in tasks]  # type: ignore[union-attr]
            _ = node.propose_many(requests, timeout=timeout, forward=forward).addBoth(self._answered_many, attempt)
            return
        attempt.open = len(tasks)
        for task in tasks:
            self.world.trace("client", task.client.number, "asks", process.host.node_id, task.name)
            _ = task.send(node, timeout, forward, style, process.clock, limit).addBoth(self._answered, task, attempt)

    def _answered_many(self, results: Any, attempt: Attempt) -> None:
        if isinstance(results, Failure):
            self.world.broken(results)
            return
        attempt.open += len(results) - 1
        for task, result in zip(attempt.tasks, results, strict=True):
            self._answered(Failure(result) if isinstance(result, Exception) else result, task, attempt)

    def _answered(self, result: Any, task: Task, attempt: Attempt) -> None:
        attempt.open -= 1
        if not attempt.open:
            self._waiting.pop(attempt, None)
        if not attempt.process.alive:
            return  # the client hears nothing of it, until it loses its patience
        # Where answers get lost on their way, patience is still needed.
        if not attempt.open and not task.client.loses and attempt.timer is not None and attempt.timer.active():
            attempt.timer.cancel()
        try:
            self._judge(result, task, attempt)
        except Exception:
            self.world.broken(Failure())

    def _judge(self, result: Any, task: Task, attempt: Attempt) -> None:
        kind, code, leader = "ok", "", None
        if isinstance(result, Failure):
            error = result.value
            assert error is not None
            if isinstance(error, DomainError) and task.effect:
                self._carried_out(task, attempt, None, error)
            else:
                kind, code = self._classify(error, task, attempt.process)
                if kind == "refused":
                    self._refused(task)
                if isinstance(error, NotLeader):
                    leader = error.leader_id
        elif task.effect:
            index, value = result.result if isinstance(result, Applied) else result
            self._carried_out(task, attempt, index, value)
        heard = task.client.hears(task, attempt, kind, code, leader)
        if kind == "ok" and heard:
            self._succeeded(task, result)

    def _classify(self, error: BaseException, task: Task, process: Process) -> tuple[str, str]:
        if isinstance(error, _UNKNOWN):
            if not task.effect and task.name != "register":
                raise self.world.checker.violated("answers", f"a {task.name} has the outcome {error!r}")
            return "unknown", error.code
        if isinstance(error, _DEFINITE):
            if isinstance(error, SessionSequenceReused) and task.name != "misuse":
                raise self.world.checker.violated("sessions", f"{task.name} of a session of its own: {error}")
            return "refused", error.code
        if isinstance(error, StorageError) and not task.effect and error.code in process.host.expects:
            return "refused", error.code  # what it was to read is damaged, or the disk failed
        if isinstance(error, ConsensusError):
            raise self.world.checker.violated("answers", f"{task.name} failed with {type(error).__name__}: {error}")
        raise error

    def _carried_out(self, task: Task, attempt: Attempt, index: int | None, value: Any) -> None:
        """A node says that a command was carried out: true, and the same whenever it is asked (H-82)."""
        place = self.ledger.acknowledged(task.raw, task.floor, index, value)
        outcome = (place, self.ledger.outcome(value))
        if task.first is None:
            task.first = outcome
            if task.sent == 1:
                self.ledger.replies.append((attempt.process, self._place(task, attempt), place, task.name))
        elif task.session and task.first != outcome:
            what = f"{task.name} {task.sequence} of session {task.session}"
            text = f"{what} had {self._show(task.first)}, and has {self._show(outcome)} when it is asked again"
            raise self.world.checker.violated("sessions", text)

    def _show(self, outcome: tuple[int, bytes]) -> str:
        return f"{self.ledger.show_outcome(outcome[1])} at {outcome[0]}"

    @staticmethod
    def _place(task: Task, attempt: Attempt) -> int:
        return attempt.order * 100 + attempt.tasks.index(task)

    def _refused(self, task: Task) -> None:
        task.refused += 1
        if task.effect and task.over == "unknown" and task.refused == task.sent and task.name != "misuse":
            self.ledger.refused(task.raw)  # the client does not know, but we do

    def _succeeded(self, task: Task, result: Any) -> None:
        value, index = result, None
        action = task.action
        if action is None:
            if task.barrier:
                if result < task.floor:
                    text = f"a barrier fired with {result}, and {task.floor} was known when it began"
                    raise self.world.checker.violated("real time", text)
            else:
                task.client.registered(result)
        elif isinstance(action, Query):
            index, value = result
            self.ledger.has_read(task.floor, index, action.read, value)
        elif isinstance(result, Failure):
            index, value = None, result.value
        else:
            index, value = result.result if isinstance(result, Applied) else result
        self.end(task, "ok", "", index, value)
        if action is not None and action.seen is not None and not isinstance(value, DomainError):
            action.seen(value)

    def end(self, task: Task, kind: str, code: str, index: int | None = None, value: Any = None) -> None:
        """An operation is over as far as its client can tell.

        :param kind: ``ok``, ``failed`` (it did not happen, for sure) or ``unknown``.
        """
        world = self.world
        task.over, task.attempt = kind, None
        self.ended += 1
        if kind == "ok":
            self.done += 1
            self.written += task.effect
            world.count(f"ok {task.name}")
        else:
            world.count(f"{kind} {task.name}")
            world.count(f"{kind}: {code}")
            if kind == "failed" and task.effect and task.name != "misuse":
                self.ledger.refused(task.raw)
        world.trace("client", task.client.number, kind, task.name, code)
        if task.handles is not None:
            refused = isinstance(value, DomainError)
            results = task.action.results(value) if kind == "ok" and not refused else None  # type: ignore[union-attr]
            self.history.end(task, "failed" if refused else kind, results, index, world.timeline.now)
        task.client.ended(task)

    # What must hold

    def _sweep(self) -> None:
        """Every operation ends: nothing may still be open at a node long after its time-out."""
        now = self.world.timeline.now
        for attempt in list(self._waiting):
            clock = attempt.process.clock
            if not attempt.process.alive:
                del self._waiting[attempt]
            elif clock.seconds() > attempt.deadline and now > clock.timers_from + 0.001:
                names = ", ".join(task.name for task in attempt.tasks)
                node_id = attempt.process.host.node_id
                late = clock.seconds() - attempt.deadline
                text = f"node {node_id} has not answered {names}, {late:.3f} s after the time-out"
                raise self.world.checker.violated("every operation ends", text)
        self.world.timeline.later(self.usual_timeout, self._sweep)

    def stopped(self, process: Process) -> None:
        """A node has stopped by itself: nothing may be open there any more."""
        for attempt in self._waiting:
            if attempt.process is process:
                names = ", ".join(task.name for task in attempt.tasks)
                text = f"node {process.host.node_id} has stopped without an answer to {names}"
                raise self.world.checker.violated("every operation ends", text)

    def check(self) -> None:
        """See, when all is over, that the whole of it is right.

        :raises Violation: if it is not.
        """
        alive = [host.process for host in self.world.hosts.values() if host.process is not None]
        reached = max((process.machine.index for process in alive), default=0)
        # Where no quorum was left, nobody can be asked how far it had come.
        self.ledger.check(max(reached, self.acknowledged) if self.world.counts["unrecoverable"] else reached)
        wrong = self.history.check(self.ledger.place)
        self.world.count(f"history {self.history.verdict}", bool(self.history.verdict))
        if wrong:
            raise self.world.checker.violated("linearizability", wrong)

    def enough(self) -> bool:
        """Whether the run says anything: clients were served often enough, and their history is known to be right."""
        return not self.shortage()

    def shortage(self) -> str:
        """Return why the run says too little; empty if it says enough."""
        if self.world.counts["unrecoverable"]:
            return "no quorum was left that could come to rest"
        if self.history.verdict == "unknown":
            return "the checker of the history has used up its budget"
        if self.done < LEAST_DONE or self.written < LEAST_WRITTEN or self.done < LEAST_SHARE * self.ended:
            return f"clients have the results of {self.done} of {self.ended} operations, {self.written} are commands"
        if not self.world.harmed and not self.world.network.troubles:
            return "nothing went wrong: no process, disk, clock, link or message came to harm"
        return ""
