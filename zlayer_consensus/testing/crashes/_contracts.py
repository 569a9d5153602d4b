"""The promises about crashes, as tests that any store on a simulated disk can run."""

from __future__ import annotations

from typing import ClassVar

from ...storage import IExecutor, ILogStore, IStateMachineStore
from .._contracts import Base
from .._simfs import SimulatedFileSystem
from ._explore import CrashSubject, Explored, Story, explore_crashes, explore_failures
from ._logs import GatedExecutor, LogSubject, log_story, outcome
from ._nodes import NODE_SCRIPTS, NodeSubject, node_story
from ._scripts import SCRIPTS, random_script
from ._snapshots import SNAPSHOT_STEPS, SnapshotSubject, snapshot_story
from ._survivors import Depth

__all__ = ["LogStoreCrashContract", "NodeCrashContract", "StateMachineStoreCrashContract"]


class _Crashes(Base):
    depth: ClassVar[Depth] = Depth()
    """How much each test looks at."""

    def crash(self, subject: CrashSubject, story: Story, files: SimulatedFileSystem, seed: object) -> Explored:
        """Let the power fail at every operation of a story; see that something was torn on the way."""
        seen = explore_crashes(subject, story, depth=self.depth, files=files, seed=seed)
        self.assertGreater(seen.torn, 0, f"{seed}: nothing was torn: does it write through the file system given?")
        return seen

    def fail_each(self, subject: CrashSubject, story: Story, files: SimulatedFileSystem, seed: object) -> Explored:
        """Let every operation of a story fail."""
        return explore_failures(subject, story, files=lambda: files.crash("all"), seed=seed)


class LogStoreCrashContract(_Crashes):
    """What a log store has to do when the power fails, at every operation, and when an operation fails.

    Mix it into a ``twisted.trial.unittest.SynchronousTestCase``, and say how to make a store on a simulated disk::

        class MyLogStoreCrashTests(LogStoreCrashContract, SynchronousTestCase):
            def make_log(self, files, executor):
                return MyLogStore("/log", node_id=1, file_system=files, executor=executor)

    The store makes its own directory; its parent is there. The smaller its files are, the more happens.
    """

    def make_log(self, files: SimulatedFileSystem, executor: IExecutor) -> ILogStore:
        """Return a store on a disk, which may hold what a store before it has left. It is not open.

        :param executor: where all that touches the disk has to run.
        """
        raise NotImplementedError

    def subject(self) -> CrashSubject:
        """Return what opens the store, and says what may be found."""
        return LogSubject(self.make_log)

    def begun(self) -> SimulatedFileSystem:
        """Return a disk on which a store was opened once, and closed."""
        files = SimulatedFileSystem()
        log = self.make_log(files, GatedExecutor())
        outcome(log.open())
        outcome(log.close())
        return files.crash("all")

    def crash_script(self, name: str) -> None:
        """Crash one of the scripts everywhere."""
        story = log_story(self.make_log, SCRIPTS[name]().steps)
        self.crash(self.subject(), story, self.begun(), name)

    def test_crashes_of_the_first_opening(self) -> None:
        """Also when the node joins its cluster."""
        story = log_story(self.make_log, SCRIPTS["identity"]().steps)
        self.crash(self.subject(), story, SimulatedFileSystem(), "identity")

    def test_crashes_of_appends(self) -> None:
        """Of one entry and of several, with and without term, vote and commit."""
        self.crash_script("append")

    def test_crashes_of_conflicts(self) -> None:
        """What was truncated does not come back."""
        self.crash_script("conflict")

    def test_crashes_of_large_writes(self) -> None:
        """Many sectors are written at once, and any of them may be lost."""
        self.crash_script("large")

    def test_crashes_of_groups(self) -> None:
        """Several writes are under way."""
        self.crash_script("groups")

    def test_crashes_of_file_changes(self) -> None:
        """The log grows through several files, and is truncated across their borders."""
        self.crash_script("rotate")

    def test_crashes_of_purges(self) -> None:
        """The oldest part goes."""
        self.crash_script("purge")

    def test_crashes_of_resets(self) -> None:
        """The log begins anew behind a snapshot."""
        self.crash_script("reset")

    def test_crashes_of_clean_stops(self) -> None:
        """The log is closed and opened again, at every stage."""
        self.crash_script("stops")

    def test_crashes_of_anything(self) -> None:
        """Anything follows anything."""
        for seed in range(2):
            story = log_story(self.make_log, random_script(seed, 12).steps)
            self.crash(self.subject(), story, self.begun(), f"random script {seed}")

    def test_failing_operations(self) -> None:
        """Whatever fails, what was acknowledged is there, and what was not may be."""
        for name in ("conflict", "groups", "rotate", "purge", "reset"):
            story = log_story(self.make_log, SCRIPTS[name]().steps)
            self.fail_each(self.subject(), story, self.begun(), name)


class StateMachineStoreCrashContract(_Crashes):
    """What a store of snapshots has to do when the power fails; used like :class:`LogStoreCrashContract`."""

    def make_machine_store(self, files: SimulatedFileSystem, executor: IExecutor) -> IStateMachineStore:
        """Return a store on a disk, not open. What application it has does not matter.

        :param executor: where all that touches the disk has to run.
        """
        raise NotImplementedError

    def subject(self) -> CrashSubject:
        """Return what opens the store, and says what may be found."""
        return SnapshotSubject(self.make_machine_store)

    def crash_steps(self, name: str) -> None:
        """Crash one of the scripts everywhere."""
        story = snapshot_story(self.make_machine_store, SNAPSHOT_STEPS[name])
        self.crash(self.subject(), story, SimulatedFileSystem(), name)

    def test_crashes_of_own_snapshots(self) -> None:
        """There is the old one or the new one, whole."""
        self.crash_steps("take")

    def test_crashes_of_received_snapshots(self) -> None:
        """The same with what a leader sends."""
        self.crash_steps("receive")

    def test_crashes_of_transfers_that_go_on(self) -> None:
        """The store is closed and opened again in the middle of what a leader sends."""
        self.crash_steps("resume")

    def test_crashes_of_snapshots_of_one_position(self) -> None:
        """The one that is there stays."""
        self.crash_steps("twice")

    def test_crashes_of_snapshots_that_are_given_up(self) -> None:
        """They leave nothing."""
        self.crash_steps("give up")

    def test_crashes_of_clean_stops(self) -> None:
        """The store is closed and opened again."""
        self.crash_steps("stops")

    def test_failing_operations(self) -> None:
        """Whatever fails, a published snapshot is there."""
        for name in ("take", "resume", "give up"):
            story = snapshot_story(self.make_machine_store, SNAPSHOT_STEPS[name])
            self.fail_each(self.subject(), story, SimulatedFileSystem(), name)


class NodeCrashContract(_Crashes):
    """What a node has to find in both of its stores when the power failed, whichever of them wrote last."""

    # Each store by itself is looked at more closely in the contracts above.
    depth = Depth(exhaustive=2, samples=1, subsets=1)

    def make_log(self, files: SimulatedFileSystem, executor: IExecutor) -> ILogStore:
        """See :meth:`LogStoreCrashContract.make_log`. It has to be node 1's."""
        raise NotImplementedError

    def make_machine_store(self, files: SimulatedFileSystem, executor: IExecutor) -> IStateMachineStore:
        """See :meth:`StateMachineStoreCrashContract.make_machine_store`."""
        raise NotImplementedError

    def begun(self) -> SimulatedFileSystem:
        """Return a disk on which both were opened once, and closed."""
        files = SimulatedFileSystem()
        log, store = self.make_log(files, GatedExecutor()), self.make_machine_store(files, GatedExecutor())
        outcome(log.open())
        outcome(store.open())
        outcome(log.close())
        outcome(store.close())
        return files.crash("all")

    def subject(self) -> CrashSubject:
        """Return what opens both, and says what may be found."""
        return NodeSubject(self.make_log, self.make_machine_store)

    def node_script(self, name: str) -> tuple[CrashSubject, Story]:
        """Return one of the scripts, and what it is about."""
        return self.subject(), node_story(self.make_log, self.make_machine_store, NODE_SCRIPTS[name]())

    def test_crashes_of_snapshots_and_purges(self) -> None:
        """The log never begins behind the newest snapshot."""
        self.crash(*self.node_script("snapshots"), self.begun(), "snapshots")

    def test_crashes_of_installations(self) -> None:
        """A start resets the log to a leader's snapshot, if the node did not come to it."""
        self.crash(*self.node_script("install"), self.begun(), "install")

    def test_crashes_of_both(self) -> None:
        """Own snapshots and a leader's in turn, with stops between."""
        self.crash(*self.node_script("both"), self.begun(), "both")

    def test_failing_operations(self) -> None:
        """Whatever fails, the two belong together."""
        self.fail_each(*self.node_script("both"), self.begun(), "both")
