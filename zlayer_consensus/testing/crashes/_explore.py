"""Crashes at every operation of a story, and of the openings that follow."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import StorageError
from .._simfs import SimulatedFileSystem
from ._survivors import Depth, survivors

__all__ = ["CrashSubject", "CrashViolation", "Explored", "Story", "explore_crashes", "explore_failures"]

Story = Callable[[SimulatedFileSystem], Iterator[Sequence[Any]]]
"""Works on a disk. Before it touches anything, and whenever that changes, it yields the states of which one must be
found if the power fails from now on; a single one when nothing is under way."""

_SHOWN = 2000
"""Characters of a state that a message shows."""


class CrashSubject:
    """Opens what a crash has left. To be subclassed.

    States are values that can be compared: all that a program must find again, and nothing else.
    """

    def recover(self, files: SimulatedFileSystem) -> Any:
        """Open what is on the disk, completely, as a program does when it starts; return the state.

        Whatever it raises is a violation: a crash leaves nothing that cannot be opened.
        """
        raise NotImplementedError

    def admits(self, expected: Any, found: Any) -> bool:
        """Say whether a state may be found where the story expected another; here, whether they are equal."""
        return bool(expected == found)

    def go_on(self, files: SimulatedFileSystem) -> Any:
        """Open what is on the disk, make a durable change, and return the state that is now to be found."""
        raise NotImplementedError


class CrashViolation(AssertionError):
    """A crash cost something, or left what cannot be opened. Its text says when the power failed, and what is wrong."""


@dataclass
class Explored:
    """What an exploration has seen.

    :param moments: at which the power failed, the openings that were cut off included.
    :param states: of the disk that were opened.
    :param torn: how many of them had a file of which a part was lost, and another part was not.
    :param openings: every opening.
    """

    moments: int = 0
    states: int = 0
    torn: int = 0
    openings: int = 0

    def __add__(self, other: Explored) -> Explored:
        """Add up two explorations."""
        return Explored(
            self.moments + other.moments,
            self.states + other.states,
            self.torn + other.torn,
            self.openings + other.openings,
        )


@dataclass(frozen=True)
class _Moment:
    """The disk at a moment at which the power may fail, and what must then be found."""

    files: SimulatedFileSystem
    expected: Sequence[Any]
    when: str


class _Watch:
    """Keeps the disk of each moment at which it, or what is expected of it, is another than before."""

    def __init__(self, files: SimulatedFileSystem) -> None:
        self.moments: list[_Moment] = []
        self.expected: Sequence[Any] = ()
        self.what = ""
        self._files = files
        self._last = -1
        self._count = 0
        files.before = self._before

    def expect(self, expected: Sequence[Any]) -> None:
        if any(each not in expected for each in self.expected) or not self.expected:
            self._last = -1
        self.expected = expected

    def keep(self, when: str) -> None:
        if self._files.changes == self._last:
            return
        self._last = self._files.changes
        self.moments.append(_Moment(self._files.crash(process_only=True), self.expected, self.what + when))

    def taken(self) -> list[_Moment]:
        moments, self.moments = self.moments, []
        return moments

    def _before(self, operation: str, path: str) -> None:
        self._count += 1
        self.keep(f"before operation {self._count}, {operation} of {path}")


class _Explorer:
    def __init__(self, subject: CrashSubject, depth: Depth, seed: object) -> None:
        self.seen = Explored()
        self._subject = subject
        self._depth = depth
        self._seed = seed

    def explore(self, files: SimulatedFileSystem, story: Story) -> None:
        watch = _Watch(files)
        for step, expected in enumerate(story(files)):
            self._look(watch.taken())
            watch.expect(expected)
            watch.what = f"step {step}, "
            if len(expected) == 1:
                watch.keep("between the operations")
        watch.keep("at the end")
        files.before = None
        self._look(watch.taken())

    def _look(self, moments: Sequence[_Moment]) -> None:
        for moment in moments:
            self._fail_power(moment, self._depth)

    def _fail_power(self, moment: _Moment, depth: Depth) -> None:
        """Let the power fail at a moment, in all ways; and let the process alone die."""
        self.seen.moments += 1
        rng = random.Random(f"{self._seed} {moment.when}")
        ways = [(name, moment.files.crash(kept)) for name, kept in survivors(moment.files, depth, rng)]
        ways.append(("the process alone dies", moment.files.crash(process_only=True)))
        further = set(rng.sample(range(len(ways)), min(depth.further, len(ways)))) if depth.levels else set()
        for at, (name, files) in enumerate(ways):
            self.seen.states += 1
            self.seen.torn += bool(files.torn_files)
            self._open(files, moment.expected, f"{moment.when}: {name}", depth if at in further else None)

    def _open(self, files: SimulatedFileSystem, expected: Sequence[Any], when: str, depth: Depth | None) -> None:
        watch = None
        if depth is not None:
            watch = _Watch(files)
            watch.expect(expected)
            watch.what = f"{when}; then, in the opening, "
        found = self._recover(files, when)
        if not any(self._subject.admits(each, found) for each in expected):
            raise CrashViolation(f"{when}: {_found(found, expected)}")
        files.before = None
        # What an opening reports must outlive the next power failure, though nobody has closed anything.
        self._is(files.crash("none"), found, f"{when}; then the power fails after the opening")
        if watch is None or depth is None:
            return
        after = files.crash(process_only=True)
        wanted = self._subject.go_on(after)
        self._is(after.crash("none"), wanted, f"{when}; then the work goes on, and the power fails")
        for moment in watch.taken():
            self._fail_power(moment, depth.below())

    def _is(self, files: SimulatedFileSystem, wanted: Any, when: str) -> None:
        found = self._recover(files, when)
        if found != wanted:
            raise CrashViolation(f"{when}: {_found(found, [wanted])}")

    def _recover(self, files: SimulatedFileSystem, when: str) -> Any:
        self.seen.openings += 1
        try:
            return self._subject.recover(files)
        except Exception as error:
            raise CrashViolation(f"{when}: it does not open: {type(error).__name__}: {error}") from error


def _found(found: Any, expected: Sequence[Any]) -> str:
    wanted = "\n    or ".join(_shown(each) for each in expected)
    return f"what is found is not what was left\n  found\n       {_shown(found)}\n  expected\n       {wanted}"


def _shown(state: Any) -> str:
    text = str(state)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def explore_crashes(
    subject: CrashSubject,
    story: Story,
    *,
    depth: Depth | None = None,
    files: SimulatedFileSystem | None = None,
    seed: object = 1,
) -> Explored:
    """Play a story once, and let the power fail before each of its operations, in every class of ways.

    What each leaves is opened; that opening is cut off at each of its operations, too, and what it reports is looked
    for after another power failure. A moment is left out only if neither the disk nor what is expected has changed.

    :param depth: how much is looked at.
    :param files: the disk on which the story begins; by default an empty one.
    :param seed: chooses where a class has too many members; any value that has a text.
    :raises CrashViolation: at the first state that does not open, or is none that was expected.
    """
    explorer = _Explorer(subject, depth or Depth(), seed)
    explorer.explore(files or SimulatedFileSystem(), story)
    return explorer.seen


def explore_failures(
    subject: CrashSubject,
    story: Story,
    *,
    operations: Sequence[str] = ("write", "sync", "sync_dir", "create", "rename", "remove", "mkdir", "open", "read"),
    depth: Depth | None = None,
    files: Callable[[], SimulatedFileSystem] = SimulatedFileSystem,
    seed: object = 1,
) -> Explored:
    """Play a story again and again, and let one operation fail each time; then the process ends, or the power fails.

    The story's call must fail with a ``StorageError``, or succeed without what has failed.

    :raises CrashViolation: as :func:`explore_crashes` does.
    """
    explorer = _Explorer(subject, depth or Depth(levels=0), seed)
    for operation in operations:
        nth = 0
        failed = True
        while failed:
            nth += 1
            failed = _play_with_failure(explorer, story, files(), operation, nth)
    return explorer.seen


def _play_with_failure(explorer: _Explorer, story: Story, files: SimulatedFileSystem, operation: str, nth: int) -> bool:
    expected: Sequence[Any] = ()
    files.fail(operation, nth)
    try:
        for now in story(files):
            expected = now
    except StorageError:
        pass
    failed = not files.failing
    explorer._fail_power(_Moment(files, expected, f"{operation} {nth} failed"), explorer._depth)
    return failed
