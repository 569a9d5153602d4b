"""Snapshots on their way: the sender's and the receiver's side of the driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zlayer_consensus.raft import LogId, SendSnapshot

from ._checks import require
from ._disk import Snapshot

if TYPE_CHECKING:
    from ._member import Member
    from ._world import Rpc

__all__ = ["Chunk", "Incoming", "Outgoing"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a snapshot."""

    term: int
    snapshot: Snapshot
    number: int
    total: int


class Outgoing:
    """Sends the newest snapshot, piece by piece, and tells the core how it ended, exactly once."""

    def __init__(self, member: Member, request: SendSnapshot, term: int) -> None:
        self.member = member
        self.request = request
        self.term = term
        self.number = 0
        self.failures = 0

    def begin(self) -> None:
        """Send the first piece."""
        snapshot = self.member.disk.snapshot
        assert snapshot is not None
        self.snapshot = snapshot
        self._send()

    def _send(self) -> None:
        total = self.member.world.knobs.chunks
        chunk = Chunk(self.term, self.snapshot, min(self.number, total - 1), total)
        self.member.world.send_chunk(self.member, self.request.peer, chunk, self.answered)

    def answered(self, verdict: str | None) -> None:
        """Go on after the reply to a piece; None means that none came."""
        core, world = self.member.core, self.member.world
        assert core is not None
        if verdict == "installed":
            self.member.step(core.snapshot_sent(self.request, self.snapshot.point.last, world.now))
        elif verdict == "accept":
            self.number += 1
            self._send()
        elif verdict == "stale" or self.failures > 3:
            self.member.step(core.snapshot_sent(self.request, None, world.now))
        else:
            self.failures += 1
            world.later(self.member, world.delay(), self._send)


class Incoming:
    """Takes pieces in, publishes what is complete, and answers ``installed`` when that is true."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.pieces: dict[LogId, set[int]] = {}
        self.held: list[tuple[Snapshot, Rpc]] = []

    def take(self, rpc: Rpc, chunk: Chunk) -> None:
        """Judge a piece before it is looked at."""
        member, world = self.member, self.member.world
        assert member.core is not None
        snapshot = chunk.snapshot
        verdict, effects = member.core.snapshot_offered(rpc.sender.node_id, chunk.term, snapshot.point.last, world.now)
        if verdict != "accept":
            if verdict == "covered":
                require(member.core.durable >= snapshot.point.last.index, "covered, but not durable")
            world.chunk_reply(rpc, member, {"covered": "installed"}.get(verdict, verdict))
            member.step(effects)
            return
        member.step(effects)
        pieces = self.pieces.setdefault(snapshot.point.last, set())
        if chunk.number > len(pieces):
            world.chunk_reply(rpc, member, "busy")
            return
        pieces.add(chunk.number)
        if len(pieces) < chunk.total:
            world.chunk_reply(rpc, member, "accept")
            return
        self.held.append((snapshot, rpc))
        if len(pieces) == chunk.total:
            pieces.add(chunk.total)  # so that a duplicate of the last piece publishes only once
            world.later(member, world.disk_delay(member), lambda: self._publish(snapshot))

    def _publish(self, snapshot: Snapshot) -> None:
        member = self.member
        core = member.core
        assert core is not None
        self.pieces.pop(snapshot.point.last, None)
        needed = core.needs_install(snapshot.point)
        if needed:
            member.disk.publish(snapshot)
        effects = core.install(snapshot.point, member.world.now)
        resets = any(persist.write.reset is not None for persist in effects.persist)
        require(resets == needed and core.commit >= snapshot.point.last.index, "install of", snapshot.point.last)
        member.step(effects)

    def settle(self) -> None:
        """Answer for what is installed by now."""
        core = self.member.core
        if core is None or not self.held:
            return
        waiting, self.held = self.held, []
        for snapshot, rpc in waiting:
            index = snapshot.point.last.index
            if core.durable >= index and core.commit >= index and self.member.loading is None:
                self.member.world.chunk_reply(rpc, self.member, "installed")
            else:
                self.held.append((snapshot, rpc))
