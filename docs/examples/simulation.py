"""Puts a state machine under the simulator: seats that are sold, each of them once."""

import json

from zope.interface import implementer

import zlayer_consensus as zc
from zlayer_consensus.testing.simulation import Application, simulate


@implementer(zc.IStateMachine)
class Seats:
    def __init__(self):
        self.owners = {}
        self.refused = 0

    def apply(self, command, context):
        seat, customer = command
        if seat in self.owners:
            self.refused += 1
            raise zc.DomainError("taken", f"seat {seat} is taken", {"refusals": self.refused})
        self.owners[seat] = customer
        return len(self.owners)

    def snapshot(self):
        return iter([json.dumps([self.owners, self.refused]).encode()])

    def restore(self):
        return Restored(self)


@implementer(zc.IStateSink)
class Restored:
    def __init__(self, seats):
        self.seats = seats
        self.pieces = []

    def write(self, chunk):
        self.pieces.append(chunk)

    def finish(self):
        self.seats.owners, self.seats.refused = json.loads(b"".join(self.pieces))


def buy(random, client):
    """What the clients propose: any seat, and a customer whom nobody else has."""
    return [f"seat {random.randint(1, 200)}", f"{client}/{random.getrandbits(32)}"]


def owners(machine):
    """What the clients read."""
    return dict(machine.owners)


application = Application(Seats, commands=buy, read=owners)

if __name__ == "__main__":
    report = simulate(application, seeds=range(20))
    print(*report.lines(0.0), sep="\n")
