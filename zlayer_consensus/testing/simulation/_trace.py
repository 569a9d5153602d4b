"""What a run tells of itself: a check sum always, and lines for people when somebody looks."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from enum import Enum
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.python.failure import Failure

from ...network import SnapshotChunk
from ...raft import AppendReply, AppendRequest, Entry, LogId, VoteReply

if TYPE_CHECKING:
    from .._simfs import SimulatedFileSystem
    from ._host import Process
    from ._world import World

__all__ = ["Line", "Recorder"]

_EVENT = Struct("<dII")
_MESSAGE = Struct("<dIII")
_ARROWS = {"request": "->", "execute": "<-", "reply": "=>", "error": "=>"}
# Fields that say nothing to a person who reads one line after the other.
_DULL = {"campaign", "stream", "context", "digest", "incarnation", "cluster_id"}


class Line(NamedTuple):
    """One line of a trace.

    :param time: simulated seconds.
    :param node: the id of the node in whose life it happens, or 0.
    :param category: ``message``, ``state``, ``disk``, ``log`` or ``event``.
    :param text: what happens.
    """

    time: float
    node: int
    category: str
    text: str

    def __str__(self) -> str:
        """Return it with aligned columns."""
        return f"{self.time:12.6f}  {self.node or '-':>2}  {self.text}"


class Recorder:
    """Keeps the check sum of a run, and writes its trace.

    :param world: whose run it is.
    :param write: takes each line; None: nobody looks, and no line is made.
    :param disk: whether disk operations are shown, too.
    """

    def __init__(self, world: World, write: Callable[[Line], object] | None, *, disk: bool) -> None:
        self.digest = 0
        """Equal for equal runs: over the time and the place of every event, all messages, and what was applied."""
        self.write = write
        self._world = world
        self._timeline = world.timeline
        self._disk = disk
        self._codes: dict[tuple[str, type], int] = {}
        self._states: dict[Process, tuple[Any, ...]] = {}
        self._files: dict[SimulatedFileSystem, int] = {}

    def event(self, what: str, fields: tuple[object, ...]) -> None:
        """Something happened that is worth a line."""
        text = f"{what} {' '.join(map(str, fields))}" if fields else what
        self.digest = zlib.crc32(text.encode(), self.digest)
        if self.write is not None:
            process = self._world.processes.get(self._timeline.current)  # type: ignore[arg-type]  # None is no key
            self._line(process.host.node_id if process is not None else 0, "event", text)

    def step(self, process: Process) -> None:
        """An event in the life of a process is over."""
        timeline = self._timeline
        data = _EVENT.pack(timeline.now, process.host.node_id, timeline.events)
        self.digest = zlib.crc32(data, self.digest)
        if self.write is not None:
            if self._disk:
                self._operations(process)
            self._state(process)

    def message(self, kind: str, sender: int, target: int, message: Any) -> None:
        """A request leaves or arrives, or its outcome leaves."""
        key = (kind, type(message))
        code = self._codes.get(key)
        if code is None:
            code = self._codes[key] = zlib.crc32(f"{kind} {type(message).__name__}".encode())
        self.digest = zlib.crc32(_MESSAGE.pack(self._timeline.now, sender, target, code), self.digest)
        if self.write is not None:
            here, there = (sender, target) if kind == "request" else (target, sender)
            self._line(here, "message", f"{_ARROWS[kind]} {there}  {brief(message)}")

    def said(self, level: str, text: str) -> None:
        """A process logs something. No part of the check sum: texts may have addresses of objects in them."""
        process = self._world.processes.get(self._timeline.current)  # type: ignore[arg-type]  # None is no key
        self._line(process.host.node_id if process is not None else 0, "log", f"says {level}: {text}")

    def finish(self) -> None:
        """The run is over: cover the contents, too."""
        world, digest = self._world, self.digest
        digest = zlib.crc32(repr((world.checker.committed, sorted(world.counts.items()))).encode(), digest)
        for host in world.hosts.values():
            machine = host.process.machine.digest if host.process is not None else None
            text = repr((host.node_id, host.starts, host.gone, len(host.files.operations), machine))
            digest = zlib.crc32(text.encode(), digest)
        self.digest = digest

    def _line(self, node: int, category: str, text: str) -> None:
        assert self.write is not None
        self.write(Line(self._timeline.now, node, category, text))

    def _operations(self, process: Process) -> None:
        files = process.host.files
        seen = self._files.setdefault(files, 0)
        for operation, path in files.operations[seen:]:
            self._line(process.host.node_id, "disk", f"{operation} {path}")
        self._files[files] = len(files.operations)

    def _state(self, process: Process) -> None:
        runtime = process.node._runtime
        if not runtime.has_core:
            return
        core = runtime.core
        applied = runtime.applier.applied
        state = (core.role.value, core.term, core.leader_id, core.last, core.durable, core.commit, applied)
        if self._states.get(process) == state:
            return
        before = self._states.get(process, (None,) * len(state))
        self._states[process] = state
        role, term, leader = state[:3]
        if state[:3] != before[:3]:
            led = "" if role == "leader" else f", led by {leader}" if leader else ", without a leader"
            self._line(process.host.node_id, "state", f"is {role} in term {term}{led}")
        if state[3:] != before[3:]:
            text = f"last {brief(core.last)}, durable {core.durable}, commit {core.commit}, applied {applied}"
            self._line(process.host.node_id, "state", text)


def brief(value: Any) -> str:
    """Say in few words what a message holds."""
    if isinstance(value, LogId):
        return f"{value.index}@{value.term}"
    if isinstance(value, Enum):
        return str(value.name).lower()
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, Failure):
        return f"{value.type.__name__ if value.type else '?'}: {value.getErrorMessage()}"
    if isinstance(value, AppendRequest):
        return (
            f"AppendRequest term={value.term} seq={value.seq} prev={brief(value.prev)} "
            f"entries={_span(value.entries)} commit={value.commit}"
        )
    if isinstance(value, AppendReply):
        found = f"match={value.match}" if value.success else f"refused conflict={brief(value.conflict)}"
        return f"AppendReply term={value.term} seq={value.seq} {found} last={value.last_index}"
    if isinstance(value, VoteReply):
        answer = "granted" if value.granted else "refused"
        return f"VoteReply term={value.term}{' pre-vote' if value.pre_vote else ''} {answer}"
    if isinstance(value, SnapshotChunk):
        what = f"manifest={len(value.manifest)}b" if value.manifest else f"part={value.part}+{value.offset}"
        done = " done" if value.done else ""
        return f"SnapshotChunk term={value.term} last={brief(value.last)} {what} data={len(value.data)}b{done}"
    return _fields(value)


def _fields(value: Any) -> str:
    names = getattr(type(value), "__dataclass_fields__", None)
    if names is None:
        return str(value)
    parts = [type(value).__name__]
    for name in names:
        field = getattr(value, name)
        if name in _DULL or field is False:
            continue
        if field is True:
            parts.append(name)
        elif isinstance(field, tuple) and not isinstance(field, LogId):
            parts.append(f"{name}={len(field)}")
        else:
            parts.append(f"{name}={brief(field)}")
    return " ".join(parts)


def _span(entries: tuple[Entry, ...]) -> str:
    if not entries:
        return "none"
    first, last = entries[0].index, entries[-1].index
    return brief(entries[0].id) if first == last else f"{first}..{brief(entries[-1].id)}"
