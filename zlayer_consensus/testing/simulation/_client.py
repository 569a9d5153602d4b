"""A client: what it asks for, at which node, how long it waits, and what it makes of the answers."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from ...errors import DeadlineExceeded
from ._application import Action, Propose, Query

if TYPE_CHECKING:
    from ...node import ConsensusNode
    from ._host import Host, Process
    from ._time import Timer
    from ._workload import Workload

__all__ = ["Attempt", "Client", "Task"]

_OLD = 6
"""How many commands of its session a client remembers, to ask for them again."""


class Task:
    """Something that a client wants, however often it has to ask for it.

    :param client: who wants it.
    :param action: what; None for a session, or for a barrier.
    :param name: what it is counted as.
    """

    __slots__ = (
        "action", "attempt", "barrier", "client", "first", "floor", "handles", "name", "over", "raw", "refused",
        "sent", "sequence", "session", "tries",
    )  # fmt: skip

    def __init__(self, client: Client, action: Action | None, name: str, tries: int) -> None:
        self.client = client
        self.action = action
        self.name = name
        self.tries = tries
        """How often it may still be tried."""
        self.raw = b""
        """The encoded command."""
        self.session = self.sequence = 0
        self.floor = 0
        """The highest index that any client knew of when it began."""
        self.handles: Any = None
        """What it is in the history."""
        self.attempt: Attempt | None = None
        """The one that the client waits for."""
        self.sent = self.refused = 0
        """How many attempts there were, and how many definitely did nothing."""
        self.over = ""
        """How it ended for the client: ``ok``, ``failed`` or ``unknown``."""
        self.first: Any = None
        """Index and encoded outcome of its command, once known to anybody."""
        self.barrier = False

    @property
    def effect(self) -> bool:
        """Whether it may have changed something: what is only read may be asked for again and again."""
        return self.raw != b""

    def send(
        self,
        node: ConsensusNode,
        timeout: float | None,
        forward: bool | None,
        style: float,
        clock: Any,
        patience: float,
    ) -> Deferred[Any]:
        """Ask a node.

        :param style: a number in [0, 1) that decides between ways to say the same.
        :param clock: the node's process's.
        :param patience: how long values may be on their way from the disk.
        """
        action = self.action
        if isinstance(action, Propose):
            propose = node.propose_with_index if style < 0.3 else node.propose
            return propose(
                action.request,
                session=self.session,
                sequence=self.sequence,
                timeout=timeout,
                forward=forward,
                frees_space=action.frees_space,
            )
        if isinstance(action, Query):
            read = action.read
            found = node.read_state(lambda chain: (chain.index, read(chain.inner.inner)), timeout, forward=forward)
            return found.addCallback(_arrived, clock, patience)
        if self.barrier:
            return node.ensure_linearizable(timeout, forward=forward)
        return node.register_session(timeout=timeout, forward=forward)


def _arrived(found: tuple[int, Any], clock: Any, patience: float) -> Any:
    """Return an index and what was read as of it, which may be on its way from the disk."""
    index, value = found
    if not isinstance(value, Deferred):
        return found

    def too_late(_result: object, seconds: float) -> None:
        raise DeadlineExceeded("read", seconds)

    return value.addTimeout(patience, clock, too_late).addCallback(lambda arrived: (index, arrived))


class Attempt:
    """One question to one node: a task, or several that were asked for at once."""

    __slots__ = ("ask", "deadline", "many", "open", "order", "process", "tasks", "timer")

    def __init__(self, tasks: list[Task], process: Process) -> None:
        self.tasks = tasks
        self.process = process
        self.many = False
        """Whether ``propose_many`` is used."""
        self.ask: tuple[float | None, bool | None, float] = (None, None, 0.0)
        """Time-out, forward, style."""
        self.deadline = 0.0
        """When it must have ended, by the process's clock."""
        self.order = 0
        self.open = 0
        """How many Deferreds have not fired."""
        self.timer: Timer | None = None
        """The client's patience."""


class Client:
    """One client, or several that share a connection: up to ``bound`` tasks are under way.

    :param number: its number, from 1 on.
    """

    def __init__(self, workload: Workload, number: int) -> None:
        self.workload = workload
        self.number = number
        plan = workload.world.plan
        self.random = random = Random(f"{plan.seed} client {number}")
        choice = random.choice
        self.bound = choice((1, 1, 2, 4, 8))
        self.uses_session = random.random() < 0.45
        self.patience = choice((0.3, 1.2, 1.2, 3.0))
        """How long it waits, in the node's own time-outs."""
        self.timeout = choice((None, None, 0.4, 2.0))
        """What it gives a node as time-out, in the same unit."""
        self.forward = choice((None, None, None, True, False))
        self.faithful = random.random() < 0.8
        """Whether it goes where it was served, or told to go."""
        self.batch = choice((0.0, 0.0, 0.1, 0.5))
        """How often it asks for several things at once."""
        self.rude = random.random() < 0.1
        """Whether it goes beyond its session's window."""
        self.loses = choice((0.0, 0.0, 0.05))
        """How often an answer does not reach it."""
        self.home: Host | None = None
        self.session = 0
        self.sequence = 0
        self.registering = False
        self.flight: dict[Task, None] = {}
        self.old: list[Task] = []
        self._window = plan.knobs.config.session_window
        self._lanes: list[int] = []

    # What it wants

    def tick(self) -> None:
        """Ask for something, if not too much is under way."""
        if len(self.flight) >= self.bound:
            return
        if self.uses_session and not self.session:
            if not self.registering:
                self.registering = True
                self._begin([Task(self, None, "register", 3)])
            return
        random = self.random
        if self.uses_session and self.old and random.random() < 0.15:
            self._ask_again(random.choice(self.old))
        elif random.random() < 0.03:
            task = Task(self, None, "barrier", 3)
            task.barrier = True
            self._begin([task])
        else:
            count = 1
            if random.random() < self.batch and self.bound > 1:
                count = min(random.randint(2, 5), self.bound - len(self.flight))
            tasks = [each for _ in range(count) if (each := self._next()) is not None]
            if tasks:
                self._begin(tasks)

    def _next(self) -> Task | None:
        action = self.workload.actions(self.random, self.number)
        task = Task(self, action, action.name, self.random.choice((1, 2, 4)))
        if isinstance(action, Query):
            return task
        task.raw = self.workload.encode(action.request)
        if self.uses_session:
            lowest = min((each.sequence for each in self.flight if each.session == self.session), default=0)
            if lowest and self.sequence + 1 - lowest >= self._window and not self.rude:
                return None
            self.sequence += 1
            task.session, task.sequence = self.session, self.sequence
        return task

    def _begin(self, tasks: list[Task]) -> None:
        for task in tasks:
            self.flight[task] = None
            self.workload.begin(task)
        self._try(tasks)

    def _ask_again(self, old: Task) -> None:
        """Ask for a command that was done: the answer must be the same. Or misuse its sequence for another one."""
        host = self._choose()
        if host is None or host.process is None:
            return
        if self.random.random() < 0.2:
            other = self._next()
            if other is None or not other.effect or other.raw == old.raw:
                return
            other.name, other.tries = "misuse", 1
            other.session, other.sequence = old.session, old.sequence
            self.flight[other] = None
            self.workload.begin(other, misuse=True)
            self._send([other], host.process)
        else:
            self._send([old], host.process)

    # Where it asks

    def _choose(self) -> Host | None:
        old = self.workload.world.leaders()[1:]
        if old and self.random.random() < 0.3:
            return self.random.choice(old)  # one that may not know yet that it leads no longer
        home = self.home
        if self.faithful and home is not None and home.process is not None and self.random.random() < 0.9:
            return home
        return self.workload.world.any_host(self.random, alive=True)

    def _try(self, tasks: list[Task]) -> None:
        host = self._choose()
        if host is None or host.process is None:
            for task in tasks:
                self._again_or(task, "unreachable")
            return
        self.home = host
        self._send(tasks, host.process)

    def _send(self, tasks: list[Task], process: Process) -> None:
        workload, random = self.workload, self.random
        usual = workload.usual_timeout
        attempt = Attempt(tasks, process)
        forward = self.forward if random.random() < 0.9 else None
        timeout = None if self.timeout is None else self.timeout * usual
        attempt.ask = (timeout, forward, random.random())
        attempt.many = len(tasks) > 1 and not self.uses_session and all(task.effect for task in tasks)
        attempt.timer = workload.world.timeline.later(self.patience * usual, self._impatient, attempt)
        for task in tasks:
            task.sent += 1
            if not task.over:
                task.attempt = attempt
        process.clock.enter(workload.hand_over, attempt)

    # What it makes of the answers

    def hears(self, task: Task, attempt: Attempt, kind: str, code: str, leader: int | None) -> bool:
        """Take an answer; return whether the client gets it, and waited for it.

        :param kind: ``ok``, ``refused`` or ``unknown``.
        """
        if task.over or task.attempt is not attempt:
            return False
        if self.loses and self.random.random() < self.loses:
            return False
        task.attempt = None
        if leader is not None:
            self.home = self.workload.world.hosts.get(leader)
        elif kind != "ok":
            self.home = None
        if kind == "ok":
            return True
        if code == "session_expired" and task.session == self.session:
            self.session = 0
        if code == "session_sequence_stale":
            task.tries = 0
        if kind == "refused" or task.session or not task.effect:
            self._again_or(task, code)
        else:
            self._give_up(task, code)
        return False

    def _impatient(self, attempt: Attempt) -> None:
        """No answer came in its time."""
        for task in attempt.tasks:
            if task.attempt is attempt and not task.over:
                task.attempt = None
                self.home = None
                if task.session or not task.effect:
                    self._again_or(task, "impatient")
                else:
                    self._give_up(task, "impatient")

    def _again_or(self, task: Task, code: str) -> None:
        """Try once more after a while, elsewhere perhaps; or give up."""
        task.tries -= 1
        if task.tries <= 0 or not self.workload.running or code == "session_expired":
            self._give_up(task, code)
        else:
            delay = self.random.expovariate(1.0) * self.workload.world.plan.knobs.config.election_timeout_min * 0.3
            self.workload.world.timeline.later(delay, self._try_again, task)

    def _try_again(self, task: Task) -> None:
        if self.workload.running:
            self._try([task])
        else:
            self._give_up(task, "stopped")

    def _give_up(self, task: Task, code: str) -> None:
        kind = "failed" if task.refused == task.sent or not task.effect else "unknown"
        self.workload.end(task, kind, code)

    def ended(self, task: Task) -> None:
        """A task is over."""
        del self.flight[task]
        if task.name == "register":
            self.registering = False
        elif task.session and task.over == "ok":
            self.old.append(task)
            del self.old[:-_OLD]

    def registered(self, session: int) -> None:
        """It has a session."""
        self.session, self.sequence = session, 0

    # Its processes in the history: each has one operation at a time, and none after one whose outcome is unknown

    def lane(self, fresh: Callable[[], int]) -> int:
        """Return a process that is free."""
        return self._lanes.pop() if self._lanes else fresh()

    def free(self, lane: int) -> None:
        """A process may be used again."""
        self._lanes.append(lane)
