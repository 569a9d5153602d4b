"""What the tests of the key-value store with values on disk share."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from zlayer_consensus.errors import DomainError
from zlayer_consensus.kv import (
    TO_THE_END,
    Command,
    Compact,
    Compare,
    Comparison,
    Delete,
    FileKeyValueMachine,
    Put,
    Range,
    Target,
    Txn,
    encode,
    prefix_end,
)
from zlayer_consensus.storage import ApplyContext, IExecutor, InlineExecutor, IStateSink, StateFile
from zlayer_consensus.testing import SimulatedFileSystem
from zlayer_consensus.testing.crashes import outcome

VALUES = "/values"
SNAPSHOTS = "/snap"


@implementer(IExecutor)
class ManualExecutor:
    """Runs a call when it is told to, and fires its Deferred when it is told to, later."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._done: deque[tuple[Deferred[Any], Any]] = deque()

    def run(self, call: Callable[..., Any], *args: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.jobs.append((done, call, args))
        return done

    def stop(self) -> Deferred[None]:
        self.settle()
        return succeed(None)

    @property
    def idle(self) -> bool:
        return not self.jobs and not self._done

    def work(self) -> None:
        """Do the next job; nobody hears of it yet."""
        done, call, args = self.jobs.popleft()
        try:
            self._done.append((done, call(*args)))
        except Exception:
            self._done.append((done, Failure()))

    def tell(self) -> None:
        """Fire the Deferred of the oldest job that was done."""
        done, result = self._done.popleft()
        if done.called:
            return
        if isinstance(result, Failure):
            done.errback(result)
        else:
            done.callback(result)

    def step(self, draw: random.Random) -> None:
        """Do one of both."""
        if self._done and (not self.jobs or draw.random() < 0.5):
            self.tell()
        elif self.jobs:
            self.work()

    def settle(self) -> None:
        """Go on until there is nothing to do."""
        while not self.idle:
            if self.jobs:
                self.work()
            else:
                self.tell()


def make_machine(
    files: SimulatedFileSystem,
    clock: Clock | None = None,
    executor: IExecutor | None = None,
    read_executor: IExecutor | None = None,
    directory: str = VALUES,
    **settings: Any,
) -> FileKeyValueMachine:
    """Return a machine, not open."""
    return FileKeyValueMachine(
        directory,
        executor=executor or InlineExecutor(),
        read_executor=read_executor or executor or InlineExecutor(),
        clock=clock or Clock(),
        file_system=files,
        **settings,
    )


def opened(files: SimulatedFileSystem, *args: Any, **settings: Any) -> FileKeyValueMachine:
    """Return an open machine whose calls complete at once."""
    machine = make_machine(files, *args, **settings)
    outcome(machine.open())
    return machine


def apply(machine: Any, command: Command | bytes, index: int) -> Any:
    """Apply a command; a domain error is a result."""
    data = command if isinstance(command, bytes) else encode(command)
    try:
        return machine.apply(data, ApplyContext(index, 1000 + index))
    except DomainError as error:
        return error.reason, str(error), error.details


def link(files: SimulatedFileSystem, named: Sequence[StateFile], directory: str = SNAPSHOTS) -> list[StateFile]:
    """Give files further names, as a store of snapshots does."""
    files.mkdir(directory)
    kept = []
    for number, file in enumerate(named):
        path = f"{directory}/{number}"
        files.link(file.path, path)
        kept.append(StateFile(path, file.size, file.digest))
    return kept


def take(machine: FileKeyValueMachine) -> tuple[list[bytes], list[StateFile]]:
    """Return a snapshot: stream and files, which stay as long as the machine needs them."""
    pieces = machine.snapshot()
    files = [*outcome(machine.sealed())]
    return list(pieces), files


def restore(machine: FileKeyValueMachine, chunks: Iterable[bytes], files: Sequence[StateFile] = ()) -> None:
    """Restore a snapshot as a node does."""
    sink: IStateSink = outcome(machine.restore_files(files)) if files else machine.restore()
    for chunk in chunks:
        sink.write(chunk)
    sink.finish()


class Commands:
    """Draws commands on a few keys, most of which do something, with values of all sizes."""

    def __init__(self, seed: object, keys: int = 12, largest: int = 900) -> None:
        self.draw = random.Random(f"commands {seed}")
        self.keys = [b"key/%02d" % number for number in range(keys)]
        self._largest = largest
        self._values = [b"", b"a", b"b" * 40]
        self._count = 0

    def value(self) -> bytes:
        draw = self.draw
        if draw.random() < 0.3:
            return draw.choice(self._values)
        value = draw.randbytes(draw.choice((3, 30, 200, self._largest)))
        self._values[draw.randrange(len(self._values))] = value
        return value

    def key(self) -> bytes:
        return self.draw.choice(self.keys)

    def operation(self) -> Any:
        draw = self.draw
        kind = draw.random()
        if kind < 0.45:
            return Put(self.key(), self.value())
        if kind < 0.6:
            return Delete(self.key())
        if kind < 0.65:
            return Delete(self.key(), self.key())
        if kind < 0.8:
            return Range(self.key())
        return draw.choice((Range(b"", TO_THE_END, draw.randrange(5)), Range(b"key/0", prefix_end(b"key/0"))))

    def compare(self) -> Compare:
        draw = self.draw
        target = draw.choice((Target.VALUE, Target.VALUE, Target.VALUE, Target.VERSION, Target.MOD_REVISION))
        comparison = draw.choice(list(Comparison))
        operand: Any = draw.randrange(4)
        if target is Target.VALUE:
            operand = self.value()
            operand = operand[: draw.randrange(len(operand) + 1)] if draw.random() < 0.5 else operand
        return Compare(self.key(), target, comparison, operand)

    def next(self) -> bytes:
        draw = self.draw
        self._count += 1
        kind = draw.random()
        try:
            if kind < 0.01:
                return b"\x00 this is no command"
            if kind < 0.02:
                return encode(Compact(draw.randrange(1, self._count + 2)))
            if kind < 0.6:
                return encode(self.operation())
            return encode(
                Txn(
                    tuple(self.compare() for _ in range(draw.randrange(4))),
                    tuple(self.operation() for _ in range(draw.randrange(5))),
                    tuple(self.operation() for _ in range(draw.randrange(5))),
                )
            )
        except DomainError:
            return self.next()
