"""Elects a leader among three cores and commits an entry, with nothing but a loop."""

from collections import deque
from random import Random

from zlayer_consensus.config import ConsensusConfig
from zlayer_consensus.raft import Draft, EntryKind, Member, Membership, RaftCore, Start

now = 0.0
random = Random(2026).random
config = ConsensusConfig()
seats = [Member(node, node.to_bytes(16, "big"), f"node{node}.example:7000") for node in (1, 2, 3)]
cores = {
    seat.node_id: RaftCore(node_id=seat.node_id, config=config, start=Start(), random=random, now=now) for seat in seats
}
logs = {node: [] for node in cores}  # what would be on disk
states = {node: [] for node in cores}  # the state machine: a list of commands
inputs = deque()  # (node, method of its core, arguments): what will happen next


def carry_out(node, effects):
    """Do what a core wants done. Whatever follows from that becomes an input of its own."""
    core = cores[node]
    if effects.fatal:
        raise effects.fatal
    for persist in effects.persist:
        logs[node].append(persist.write)
        inputs.append((node, core.persisted, (persist.seq, persist.last)))
    for send in effects.send:
        token = (node, send)  # so that the answer finds its way back
        inputs.append((send.peer, cores[send.peer].request, (token, node, send.message)))
    for answer in effects.answers:
        asker, send = answer.token
        inputs.append((asker, cores[asker].response, (send.peer, send.message, answer.message)))
    if effects.commit is not None:
        for entry in core.entries(len(states[node]) + 1, effects.commit, 1 << 20):
            states[node].append(entry.payload if entry.kind == EntryKind.COMMAND else None)
        inputs.append((node, core.applied, (effects.commit,)))


for node, core in cores.items():
    carry_out(node, core.bootstrap(Membership.initial(seats), now))

proposed = False
while not all(b"hello" in state for state in states.values()):
    if inputs:
        node, method, arguments = inputs.popleft()
        carry_out(node, method(*arguments, now))
    else:  # nothing to do: let time pass until a core wants to be woken
        node = min(cores, key=lambda node: cores[node].next_wake)
        now = cores[node].next_wake
        carry_out(node, cores[node].tick(now))
    if cores[node].ready and not proposed:
        proposed = True
        carry_out(node, cores[node].propose([Draft(b"hello")], int(now * 1000), now))
        print(f"node {node} leads in term {cores[node].term}")

for node, state in states.items():
    print(f"node {node} has applied {len(state)} entries: {state}")
