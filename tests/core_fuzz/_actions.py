"""What happens to the members: clients, operators, and faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zlayer_consensus.raft import AddLearner, ChangeAddress, ChangeVoters, Draft, MembershipChange, RemoveLearner, Role

if TYPE_CHECKING:
    from ._member import Member
    from ._world import World

__all__ = ["Actions"]


class Actions:
    """Each method that the knobs name is one action; it may find nothing to do."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        self._names = list(world.knobs.actions)
        self._weights = list(world.knobs.actions.values())
        self._next_id = world.knobs.voters + 1

    def begin(self) -> None:
        """Start the clients and the faults."""
        self._proposals()
        self._next()

    def _proposals(self) -> None:
        world, random = self.world, self.random
        if not world.faults:
            return
        member = self._somebody(0.8)
        if member is not None:
            drafts = [
                Draft(b"%d." % world.next_number() + bytes(random.randint(0, world.knobs.payload)))
                for _ in range(random.choice((1, 1, 2, 7)))
            ]
            member.propose(drafts)
        world.at(random.expovariate(1 / world.knobs.proposal_every), self._proposals)

    def _next(self) -> None:
        world, random = self.world, self.random
        if not world.faults:
            return
        [name] = random.choices(self._names, self._weights)
        run: Callable[[], None] = getattr(self, name)
        run()
        world.at(random.expovariate(1 / world.knobs.action_every), self._next)

    def _somebody(self, leader: float = 0.0) -> Member | None:
        """Return a process that runs; with the chance ``leader``, one that leads if there is any."""
        awake = [member for member in self.world.alive() if member.paused_until <= self.world.now]
        leading = [member for member in awake if member.role is Role.LEADER]
        if leading and self.random.random() < leader:
            return self.random.choice(leading)
        return self.random.choice(awake) if awake else None

    def _timeouts(self, low: float) -> float:
        knobs = self.world.knobs
        return knobs.config.election_timeout_max * self.random.uniform(low, knobs.outage)

    # -- clients

    def read(self) -> None:
        """Read, here or there; a paused process finds the request when it goes on, among what else came."""
        member = self.random.choice(self.world.alive() or [None])
        if self.random.random() < 0.5:
            member = self._somebody(1.0)
        if member is not None:
            self.world.later(member, 0.0, lambda: self._read(member))

    def _read(self, member: Member) -> None:
        if member.core is not None:
            token = member.wait("read")
            member.step(member.core.read(token, self.world.now))

    def cancel_read(self) -> None:
        """Give a read up."""
        member = self._somebody()
        if member is not None and member.core is not None:
            for token, waiting in list(member.waiting.items()):
                if waiting.kind == "read":
                    member.core.cancel_read(token)
                    del member.waiting[token]
                    return

    # -- faults

    def crash(self) -> None:
        """Crash a process, and start it again some time later."""
        self._crash(self._somebody(0.3))

    def crash_all(self) -> None:
        """Crash every process at once."""
        for member in self.world.alive():
            self._crash(member)

    def _crash(self, member: Member | None) -> None:
        if member is not None:
            member.crash()
            self.world.at(self._timeouts(0), lambda: self.world.restart(member))

    def shut_down(self) -> None:
        """Stop a process in order."""
        member = self._somebody(0.3)
        if member is not None:
            member.shut_down()
            self.world.at(self._timeouts(0), lambda: self.world.restart(member))

    def pause(self) -> None:
        """Stop a process like SIGSTOP does."""
        member = self._somebody(0.5)
        if member is not None:
            self.world.trace("pause", member.node_id)
            member.paused_until = self.world.now + self._timeouts(0.1)

    def stall_disk(self) -> None:
        """Let a disk hang."""
        member = self._somebody(0.5)
        if member is not None:
            self.world.trace("stall", member.node_id)
            member.stalled_until = self.world.now + self._timeouts(0.1)

    def block_one_way(self) -> None:
        """Break one direction of one link."""
        members = list(self.world.members)
        self._block({(self.random.choice(members), self.random.choice(members))})

    def isolate(self) -> None:
        """Cut one member off, one or both ways; often the leader."""
        member = self._somebody(0.5)
        if member is None:
            return
        lonely = member.node_id
        inward = {(other, lonely) for other in self.world.members}
        outward = {(lonely, other) for other in self.world.members}
        self._block(self.random.choice((inward, outward, inward | outward)))

    def split(self) -> None:
        """Cut the cluster in two."""
        half = {node_id for node_id in self.world.members if self.random.random() < 0.5}
        others = set(self.world.members) - half
        self._block({(a, b) for a in half for b in others} | {(b, a) for a in half for b in others})

    def _block(self, links: set[tuple[int, int]]) -> None:
        world = self.world
        world.trace("block", sorted(links))
        world.blocked |= links

        def mend() -> None:
            world.trace("mend", sorted(links))
            world.blocked -= links

        world.at(self._timeouts(0.3), mend)

    def unblock(self) -> None:
        """Mend all links."""
        self.world.trace("unblock")
        self.world.blocked.clear()

    # -- operators

    def _change(self, member: Member | None, change: MembershipChange) -> None:
        if member is not None and member.core is not None:
            self.world.trace("change", member.node_id, change)
            token = member.wait("change")
            member.step(member.core.change_membership(token, change, self.world.wall_clock_ms(), self.world.now))

    def add_learner(self) -> None:
        """Start a new, empty member and add it."""
        from ._world import seat

        if (
            len(self.world.members) - sum(m.removed for m in self.world.members.values())
            < self.world.knobs.most_members
        ):
            member = self._somebody(0.9)
            node_id, self._next_id = self._next_id, self._next_id + 1
            self.world.add(node_id)
            self._change(member, AddLearner(seat(node_id), auto_promote=self.random.random() < 0.5))

    def change_voters(self) -> None:
        """Choose any voters among the members."""
        member = self._somebody(0.9)
        if member is None or member.core is None:
            return
        known = list(member.core.membership.members)
        voters = frozenset(self.random.sample(known, self.random.randint(min(1, len(known)), len(known))))
        retain, force = self.random.random() < 0.6, self.random.random() < 0.3
        self._change(member, ChangeVoters(voters, retain=retain, force=force))

    def remove_leader(self) -> None:
        """Remove the leader from the voters."""
        member = self._somebody(1.0)
        if member is not None and member.core is not None:
            voters = member.core.membership.voters - {member.node_id}
            self._change(member, ChangeVoters(voters, retain=self.random.random() < 0.3, force=True))

    def remove_learner(self) -> None:
        """Remove a member without a vote, or try with one that has it."""
        member = self._somebody(0.9)
        if member is not None and member.core is not None and member.core.membership.members:
            known = member.core.membership
            node_id = self.random.choice(list(known.learners) or list(known.members))
            self._change(member, RemoveLearner(node_id))

    def change_address(self) -> None:
        """Move a member."""
        member = self._somebody(0.9)
        if member is not None and member.core is not None and member.core.membership.members:
            node_id = self.random.choice(list(member.core.membership.members))
            self._change(member, ChangeAddress(node_id, f"moved{self.world.next_number()}:1", ""))

    def transfer(self) -> None:
        """Hand leadership over, to anybody."""
        member = self._somebody(0.9)
        if member is not None and member.core is not None:
            target = self.random.choice([None, *self.world.members])
            self.world.trace("transfer", member.node_id, "to", target)
            token = member.wait("transfer")
            member.step(member.core.transfer(token, target, self.world.now))

    def campaign(self) -> None:
        """Trigger an election."""
        member = self._somebody()
        if member is not None and member.core is not None:
            member.step(member.core.campaign(self.world.now))

    def heartbeat(self) -> None:
        """Trigger heartbeats."""
        member = self._somebody(0.9)
        if member is not None and member.core is not None:
            member.step(member.core.heartbeat(self.world.now))

    def early_tick(self) -> None:
        """Wake a core that did not ask for it."""
        member = self._somebody()
        if member is not None and member.core is not None:
            member.step(member.core.tick(self.world.now))

    def snapshot(self) -> None:
        """Take a snapshot."""
        member = self._somebody(0.4)
        if member is not None and member.core is not None:
            member.take_snapshot()

    def purge(self) -> None:
        """Purge as far as it may."""
        member = self._somebody(0.4)
        if member is not None and member.core is not None:
            member.step(member.core.purge(self.random.randint(0, member.core.last.index + 5), self.world.now))
