"""Runs many seeds on several cores."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection, wait

from ._run import Outcome

__all__ = ["run_many"]

Run = Callable[[int], Outcome]

PATIENCE = 300.0
"""Seconds of real time after which a run counts as hung. Most take a fraction of one."""


def run_many(
    seeds: Iterator[int], run: Run, jobs: int, stop: Callable[[], bool], *, patience: float = PATIENCE
) -> Generator[Outcome, None, None]:
    """Run one seed after the other, and yield what came of each, as it comes.

    :param run: runs a seed. With several jobs, it must be possible to pickle it.
    :param jobs: how many processes; with one, everything happens in this one.
    :param stop: asked before each seed begins; those that have begun are waited for.
    :param patience: seconds; with several jobs, a run that takes longer is a crash.
    """
    if jobs == 1:
        for seed in seeds:
            if stop():
                return
            yield run(seed)
    else:
        pool = _Pool(run, jobs, patience)
        try:
            yield from pool.run(seeds, stop)
        finally:
            pool.end()


class _Pool:
    # Not concurrent.futures: when one of its processes dies, it does not say which of its tasks killed it.
    def __init__(self, run: Run, jobs: int, patience: float) -> None:
        # A fork of a process with threads may hang, and copies what the run must not depend on.
        self._context = multiprocessing.get_context("spawn")
        self._run = run
        self._patience = patience
        self._jobs = jobs
        self._workers: list[_Worker] = []

    def run(self, seeds: Iterator[int], stop: Callable[[], bool]) -> Iterator[Outcome]:
        while True:
            self._hand_out(seeds, stop)
            busy = {worker.connection: worker for worker in self._workers if worker.seed is not None}
            if not busy:
                return
            earliest = min(worker.deadline(self._patience) for worker in busy.values())
            ready = wait(list(busy), timeout=max(0.0, earliest - time.monotonic()))
            for worker in busy.values():
                if worker.connection in ready:
                    outcome = self._outcome(worker)
                    if outcome is not None:
                        yield outcome
                elif time.monotonic() >= worker.deadline(self._patience):
                    yield self._lost(worker, f"it took longer than {self._patience:g} s of real time")

    def _hand_out(self, seeds: Iterator[int], stop: Callable[[], bool]) -> None:
        while not stop():
            idle = next((worker for worker in self._workers if worker.seed is None), None)
            if idle is None and len(self._workers) == self._jobs:
                return
            seed = next(seeds, None)
            if seed is None:
                return
            if idle is None:
                idle = _Worker(self._context, self._run)
                self._workers.append(idle)
            idle.begin(seed)

    def _outcome(self, worker: _Worker) -> Outcome | None:
        """Return what a worker has found; None if it says that it has started."""
        try:
            outcome: Outcome | None = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(1.0)
            return self._lost(worker, f"its process ended with exit code {worker.process.exitcode}")
        if outcome is None:
            worker.started, worker.since = True, time.monotonic()
        else:
            worker.seed = None
        return outcome

    def _lost(self, worker: _Worker, why: str) -> Outcome:
        seed = worker.seed
        assert seed is not None
        self._workers.remove(worker)
        worker.end()
        return Outcome(seed=seed, verdict="crash", invariant="process", text=why)

    def end(self) -> None:
        for worker in self._workers:
            worker.end()


class _Worker:
    """A process that runs one seed after the other."""

    def __init__(self, context: multiprocessing.context.SpawnContext, run: Run) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, run), daemon=True)
        self.process.start()
        theirs.close()
        self.seed: int | None = None
        self.since = 0.0
        self.started = False

    def deadline(self, patience: float) -> float:
        """Return when its run counts as hung. To start a process takes a while on a busy machine."""
        return self.since + (patience if self.started else max(patience, PATIENCE))

    def begin(self, seed: int) -> None:
        self.seed, self.since = seed, time.monotonic()
        try:
            self.connection.send(seed)
        except OSError:
            # It is dead already; reading from it will tell.
            return

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _work(connection: Connection, run: Run) -> None:
    # What the keyboard interrupts is the parent, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send(None)
    while True:
        try:
            seed = connection.recv()
        except EOFError:
            return
        connection.send(run(seed))
