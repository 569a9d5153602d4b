"""Stores of snapshots under crashes: the newest snapshot, whole, or the one before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Literal

from ...raft import LogId, Member, Membership, SnapshotPoint
from ...storage import (
    FileStateMachine,
    FunctionStateMachine,
    IExecutor,
    InlineExecutor,
    IStateMachineStore,
    Manifest,
)
from .._simfs import SimulatedFileSystem
from ._explore import CrashSubject, Story
from ._logs import GatedExecutor, outcome

__all__ = [
    "SNAPSHOT_STEPS",
    "MakeMachineStore",
    "SnapshotContent",
    "SnapshotStep",
    "SnapshotSubject",
    "read_newest",
    "receive",
    "snapshot_story",
    "write",
]

MakeMachineStore = Callable[[SimulatedFileSystem, IExecutor], IStateMachineStore]
"""Makes a store, not open, whose blocking work runs on the executor. Its application is not used."""

_PIECE, _PART = 400, 900
"""Bytes of a message of a transfer, and of a part of what is sent."""


@dataclass(frozen=True)
class SnapshotContent:
    """A snapshot: its position, what it consists of, and whether it came from a leader."""

    point: SnapshotPoint
    chunks: tuple[bytes, ...]
    installed: bool = False

    def __str__(self) -> str:
        """Show it, its content by a digest."""
        came = ", installed" if self.installed else ""
        digest = sha256(b"".join(self.chunks)).hexdigest()[:16]
        return f"snapshot at {self.point.last}, {len(self.chunks)} chunks, {digest}{came}"


Kind = Literal["take", "receive", "resume", "abort", "break off"]


@dataclass(frozen=True)
class SnapshotStep:
    """Something that a node does with snapshots.

    :param kind: ``take`` one; ``receive`` one, also with a restart of the store in the middle (``resume``); give up one
        that is written (``abort``) or received (``break off``).
    """

    kind: Kind
    content: SnapshotContent


def content(index: int, term: int = 2, chunks: int = 4, size: int = 300) -> SnapshotContent:
    """Make a snapshot's content, which tells it from any other."""
    # None of them is the node that the stores are of: its incarnation is not known here.
    members = Membership.initial(Member(each, bytes([each]) * 16, f"host-{each}:7001") for each in (101, 102, 103))
    point = SnapshotPoint(LogId(term, index), members, 1000 + index)
    seed = sha256(b"%d %d" % (index, term)).digest()
    # Empty ones, and zeros, are chunks too.
    made = (b"", bytes(size), *(seed * (size // 32 + 1) for _ in range(chunks)))
    return SnapshotContent(point, made)


def _steps(*kinds: tuple[Kind, int]) -> tuple[SnapshotStep, ...]:
    return tuple(SnapshotStep(kind, content(index, chunks=2 + index % 3, size=100 * index)) for kind, index in kinds)


SNAPSHOT_STEPS: dict[str, tuple[SnapshotStep | Literal["reopen"], ...]] = {
    "take": _steps(("take", 1), ("take", 5), ("take", 9), ("take", 12)),
    "receive": _steps(("receive", 2), ("receive", 7), ("take", 8), ("receive", 15)),
    "resume": _steps(("take", 3), ("resume", 8), ("break off", 10), ("resume", 12), ("take", 14)),
    "twice": _steps(("take", 3), ("take", 3), ("receive", 3)),
    "give up": _steps(("abort", 1), ("take", 2), ("abort", 6), ("break off", 7), ("break off", 9), ("receive", 11)),
    "stops": (
        "reopen",
        *_steps(("take", 2)),
        "reopen",
        *_steps(("take", 5), ("receive", 6)),
        "reopen",
        "reopen",
        *_steps(("take", 20)),
    ),
}
"""Scripts by name. A step whose position has a snapshot already changes nothing."""


class SnapshotSubject(CrashSubject):
    """A store of snapshots under crashes; its states are the newest snapshot, or None.

    :param make: makes the store.
    """

    def __init__(self, make: MakeMachineStore) -> None:
        self._make = make

    def recover(self, files: SimulatedFileSystem) -> SnapshotContent | None:
        """Open the store, and load the newest snapshot."""
        store = self._make(files, GatedExecutor())
        outcome(store.open())
        return read_newest(store)

    def go_on(self, files: SimulatedFileSystem) -> SnapshotContent:
        """Take another snapshot."""
        store = self._make(files, GatedExecutor())
        newest = outcome(store.open())
        more = content(newest.point.last.index + 1 if newest is not None else 1)
        write(store, more)
        return more


def read_newest(store: IStateMachineStore) -> SnapshotContent | None:
    """Load the newest snapshot of an open store; None if there is none."""
    newest = store.newest()
    if newest is None:
        return None
    reader = store.reader()
    chunks: list[bytes] = []
    while (chunk := outcome(reader.next_chunk())) is not None:
        chunks.append(chunk)
    reader.close()
    return SnapshotContent(newest.point, tuple(chunks), newest.installed)


def write(store: IStateMachineStore, made: SnapshotContent, publish: bool = True) -> None:
    """Take a snapshot, or give it up before it is published."""
    writer = store.writer(made.point)
    for chunk in made.chunks:
        outcome(writer.write(chunk))
    if publish:
        outcome(writer.publish())
    else:
        outcome(writer.abort())


def receive(
    store: IStateMachineStore, made: SnapshotContent, then: Literal["publish", "abort", "stop"] = "publish"
) -> None:
    """Take in a snapshot piece by piece, as from a leader, from where an earlier transfer of it was cut off.

    :param then: what follows; before an ``abort`` or a ``stop`` two thirds of it come.
    """
    manifest, parts = _source(made)
    receiver = store.receiver(manifest)
    size = sum(map(len, parts))
    upto = size if then == "publish" else 2 * size // 3
    taken_over = receiver.position
    while not receiver.complete:
        part, at = receiver.position
        if sum(map(len, parts[:part])) + at >= upto:
            break
        try:
            outcome(receiver.write(part, at, parts[part][at : at + _PIECE]))
        except ValueError:
            # The power may have failed while an earlier process wrote the beginning of this part: it comes again, once.
            if part != taken_over[0] or not taken_over[1]:
                raise
            taken_over = (part, 0)
    if then == "publish":
        outcome(receiver.publish())
    elif then == "abort":
        outcome(receiver.abort())


def _source(made: SnapshotContent) -> tuple[Manifest, list[bytes]]:
    """Return a snapshot as a leader sends it, in several parts."""
    files, nothing = SimulatedFileSystem(), FunctionStateMachine({}, lambda state, command: None)
    store = FileStateMachine("/leader", nothing, file_system=files, executor=InlineExecutor(), part_bytes=_PART)
    outcome(store.open())
    write(store, made)
    reader = store.reader()
    return reader.manifest, [
        outcome(reader.read(part, 0, size)) for part, (size, _) in enumerate(reader.manifest.parts)
    ]


def snapshot_story(make: MakeMachineStore, steps: Iterable[SnapshotStep | Literal["reopen"]]) -> Story:
    """Return a story in which a store of snapshots is opened, does these steps, and is closed."""

    def play(files: SimulatedFileSystem) -> Iterator[Sequence[SnapshotContent | None]]:
        newest: SnapshotContent | None = None
        yield [newest]
        store = make(files, GatedExecutor())
        outcome(store.open())
        for step in steps:
            if isinstance(step, str):
                outcome(store.close())
                store = make(files, GatedExecutor())
                outcome(store.open())
                continue
            after = _after(newest, step)
            yield [newest] if after == newest else [newest, after]
            if step.kind in ("take", "abort"):
                write(store, step.content, step.kind == "take")
            elif step.kind == "break off":
                receive(store, step.content, "abort")
            else:
                if step.kind == "resume":
                    receive(store, step.content, "stop")
                    outcome(store.close())
                    store = make(files, GatedExecutor())
                    outcome(store.open())
                receive(store, step.content)
            newest = after
            yield [newest]
        outcome(store.close())

    return play


def _after(newest: SnapshotContent | None, step: SnapshotStep) -> SnapshotContent | None:
    if step.kind in ("abort", "break off"):
        return newest
    if newest is not None and newest.point.last == step.content.point.last:
        return newest
    return replace(step.content, installed=step.kind != "take")
