"""Clients."""
from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from twisted.python.failure import Failure

from ...kv import Put, encode
from ...errors import ConsensusError

if TYPE_CHECKING:
    from ._world import World


class Workload:
    def __init__(self, world: World) -> None:
        self.world = world
        self.random = Random(f"{world.plan.seed} clients")
        self.running = False
        self.busy = 0

    def start(self) -> None:
        self.running = True
        for c in range(self.world.plan.knobs.clients):
            self._next(c)

    def stop(self) -> None:
        self.running = False

    def _next(self, c: int) -> None:
        if self.running:
            self.world.timeline.later(self.random.expovariate(1 / self.world.plan.knobs.think_time), self._op, c)

    def _op(self, c: int) -> None:
        host = self.world.any_host(self.random, alive=True)
        if host is None or not self.running:
            return self._next(c)
        process = host.process

        def go() -> None:
            d = process.node.propose(encode(Put(b"k%d" % self.random.randrange(self.world.plan.knobs.keys), b"v%d" % self.random.getrandbits(30))))
            d.addBoth(done)

        def done(r: Any) -> None:
            if isinstance(r, Failure):
                if not r.check(ConsensusError):
                    self.world.broken(r)
                self.world.count("op " + type(r.value).__name__)
            else:
                self.world.count("op ok")
        process.clock.enter(go)
        self._next(c)
