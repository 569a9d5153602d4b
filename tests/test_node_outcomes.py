"""Every operation ends: result, definite failure, or unknown outcome."""

from __future__ import annotations

from collections import Counter
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.errors import (
    ApplyFailed,
    ConsensusError,
    DeadlineExceeded,
    InvariantBroken,
    NodeStopped,
    NotLeader,
    OutcomeUnknown,
    StorageFailed,
    TransferInProgress,
)
from zlayer_consensus.node import ConsensusNode
from zlayer_consensus.raft import LogWrite
from zlayer_consensus.storage import MemLogStore, MemStateMachine

from .node_cluster import NodeCluster, NodeTestCase


class HeldLogStore(MemLogStore):
    """A log store whose writes complete when the test wants."""

    held: list[Deferred[None]] | None = None
    broken: Exception | None = None

    def write(self, write: LogWrite) -> Deferred[None]:
        if self.broken is not None:
            failed: Deferred[None] = Deferred()
            failed.errback(self.broken)
            return failed
        done = super().write(write)
        if self.held is None:
            return done
        waiting: Deferred[None] = Deferred()
        self.held.append(waiting)
        return waiting

    def release(self) -> None:
        held, self.held = self.held or [], None
        for waiting in held:
            waiting.callback(None)


class UnknownOutcomeTests(NodeTestCase):
    def isolate(self, node: ConsensusNode) -> None:
        others = [self.cluster.address(other) for other in self.ids if other != node.node_id]
        self.cluster.network.partition([self.cluster.address(node.node_id)], others)

    def test_deadline_after_append(self) -> None:
        """H-87, J-44: the entry is in the log and may still be committed."""
        self.isolate(self.lead)
        waiting = self.lead.propose(["set", "a", 1], timeout=0.5)
        self.cluster.error(waiting, OutcomeUnknown, seconds=0.6)
        self.assertEqual(self.lead.metrics().pending_proposals, 1)
        self.cluster.network.heal()
        self.cluster.settle()
        self.assertEqual(self.cluster.states(), [{"a": 1}] * 3)
        self.assertEqual(self.lead.metrics().pending_proposals, 0)

    def test_overwritten_proposal_is_definitely_not_done(self) -> None:
        """J-44, J-45: another leader's entry applied in its place is a definite refusal."""
        old = self.lead
        self.isolate(old)
        waiting = old.propose(["set", "a", "lost"], timeout=60.0)
        new = self.cluster.leader([node.node_id for node in self.cluster.followers()])
        self.cluster.result(new.propose(["set", "b", 1]))
        self.cluster.network.heal()
        error = self.cluster.error(waiting, NotLeader)
        self.assertEqual(error.leader_id, new.node_id)
        self.cluster.settle()
        self.assertEqual(self.cluster.states(), [{"b": 1}] * 3)

    def test_truncated_proposals_give_their_place_back(self) -> None:
        """J-45: entries that are gone from the log hold no place any more once nobody waits for them."""
        old = self.lead
        self.isolate(old)
        waiting = [old.propose(["set", "a", n], timeout=timeout) for n, timeout in enumerate([0.5, 0.5, 20.0])]
        outcomes = [self.cluster.outcome(each) for each in waiting[:2]]
        self.cluster.leader([node.node_id for node in self.cluster.followers()])
        self.cluster.network.heal()
        self.cluster.settle()
        for outcome in outcomes:
            self.assertIsInstance(outcome.value, OutcomeUnknown)
        self.assertEqual(old.metrics().pending_proposals, 1)
        self.cluster.error(waiting[2], OutcomeUnknown)
        self.assertEqual(old.metrics().pending_proposals, 0)
        self.assertIsNone(self.cluster.result(old.propose(["set", "b", 1])))
        self.assertEqual(old.metrics().pending_proposals, 0)

    def test_proposal_that_a_successor_commits_succeeds(self) -> None:
        """The old leader lost its office but not the entry: the result comes all the same."""
        old = self.lead
        follower = self.follower
        third = next(i for i in self.ids if i not in (old.node_id, follower.node_id))
        self.cluster.network.partition([self.cluster.address(third)], [old.address, follower.address])
        self.cluster.network.cut(follower.address, old.address)  # it gets the entry, its reply is lost
        waiting = old.propose(["add", "n", 1], timeout=60.0)
        self.cluster.clock.advance(0)
        self.cluster.until(lambda: follower.metrics().last == old.metrics().last)
        self.cluster.network.heal()
        self.cluster.network.partition([old.address], [self.cluster.address(third), follower.address])
        self.cluster.until(lambda: follower.is_leader and follower.metrics().ready)
        self.cluster.network.heal()
        self.assertEqual(self.cluster.result(waiting), 1)

    def test_cancelling_gives_up_waiting_not_the_proposal(self) -> None:
        waiting = self.lead.propose(["set", "a", 1])
        self.cluster.clock.advance(0)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.cluster.settle()
        self.assertEqual(self.cluster.states(), [{"a": 1}] * 3)
        self.assertEqual(self.lead.metrics().pending_proposals, 0)

    def test_cancelled_before_it_went_anywhere(self) -> None:
        waiting = self.lead.propose(["set", "a", 1])
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.cluster.run(0.5)
        self.assertEqual(self.lead.metrics().pending_proposals, 0)

    def test_no_leader_is_a_definite_refusal(self) -> None:
        """J-42: nothing was sent, nothing happened."""
        self.cluster.crash(self.lead.node_id)
        node = self.follower
        self.cluster.until(lambda: node.leader_id is None)
        error = self.cluster.error(node.propose(["set", "a", 1]), NotLeader)
        self.assertIsNone(error.leader_id)

    def test_forwarded_and_not_answered_is_unknown(self) -> None:
        """J-42: the request arrived, the reply got lost; it is not sent again."""
        node = self.follower
        self.cluster.network.cut(self.lead.address, node.address)
        waiting = node.propose(["add", "n", 1], timeout=1.0)
        self.cluster.error(waiting, OutcomeUnknown)
        self.cluster.network.heal()
        self.cluster.settle()
        self.assertEqual(self.lead.machine.state, {"n": 1})
        self.assertEqual(node.metrics().pending_proposals, 0)

    def test_forwarded_to_a_closed_port_is_refused(self) -> None:
        """J-42: certainly not executed, so a definite failure."""
        node = self.follower
        self.cluster.network.detach(self.lead.address)
        self.cluster.error(node.propose(["add", "n", 1]), NotLeader)
        self.cluster.network.attach(self.lead.address, self.lead)

    def test_a_forwarded_proposal_makes_one_hop(self) -> None:
        """A node that no longer leads refuses it, and does not pass it on."""
        old = self.lead
        node, other = self.cluster.followers()
        self.cluster.network.cut(other.address, node.address)  # it hears nothing of the new leader
        self.cluster.result(old.transfer_leadership(other.node_id))
        self.assertEqual(node.leader_id, old.node_id)
        error = self.cluster.error(node.propose(["add", "n", 1]), NotLeader)
        self.assertEqual(error.leader_id, other.node_id)
        self.assertEqual(other.machine.state, {})

    def test_transfer_refuses_proposals_definitely(self) -> None:
        """H-95: nothing is appended meanwhile; H-90: and afterwards all is as before."""
        target = self.follower
        self.cluster.network.cut(self.lead.address, target.address)
        self.cluster.run(0.1)
        moving = self.lead.transfer_leadership(target.node_id)
        last = self.lead.metrics().last
        self.cluster.error(self.lead.propose(["set", "a", 1]), TransferInProgress)
        self.assertEqual(self.lead.metrics().last, last)
        self.cluster.error(moving, ConsensusError)
        self.cluster.network.heal()
        self.cluster.result(self.cluster.leader().propose(["set", "a", 1]))


def _turn(clock: Clock) -> None:
    """Make the calls that are due, as a reactor does: what they ask for at once is for the next turn."""
    for call in [call for call in clock.calls if call.getTime() <= clock.seconds()]:
        clock.calls.remove(call)
        call.called = 1
        call.func(*call.args, **call.kw)


class SliceTests(SynchronousTestCase):
    def test_applying_lets_the_reactor_go_on(self) -> None:
        """Entries that take their time are applied in slices; timers, and so heartbeats, run in between."""
        cluster = NodeCluster(self)
        turns = 0
        groups: Counter[int] = Counter()

        def slow(state: dict[str, Any], command: Any) -> None:
            cluster.clock.rightNow += 0.001
            groups[turns] += 1

        def turn() -> None:
            nonlocal turns
            turns += 1
            if turns < 100:
                cluster.clock.callLater(0, turn)

        cluster.make_machine = lambda: MemStateMachine({}, slow)
        lead = cluster.begin(1)
        waiting = lead.propose_many([None] * 500)
        turn()
        cluster.result(waiting)
        self.assertEqual(sum(groups.values()), 500)
        self.assertLessEqual(max(groups.values()), 16)

    def slices(self, requests: list[Any], seconds: float, **settings: Any) -> Counter[int]:
        """Have a sole voter apply all of this at once; return how many entries it applied in each turn."""
        cluster = NodeCluster(self, **settings)
        groups: Counter[int] = Counter()
        turns = 0

        def slow(state: dict[str, Any], command: Any) -> None:
            cluster.clock.rightNow += seconds
            groups[turns] += 1

        def turn() -> None:
            nonlocal turns
            turns += 1
            if sum(groups.values()) < len(requests):
                cluster.clock.callLater(0, turn)

        cluster.make_machine = lambda: MemStateMachine({}, slow)
        lead = cluster.begin(1)
        waiting = lead.propose_many(requests)
        turn()
        cluster.result(waiting)
        self.assertEqual(sum(groups.values()), len(requests))
        return groups

    def test_rpcs_that_arrive_together_share_a_slice(self) -> None:
        """Each brings an entry that may be applied; all of them hold up the reactor no longer than one would."""
        cluster = NodeCluster(self)
        cluster.network.default.delay = (0.01, 0.01)
        applied: list[list[str]] = []

        def make_machine() -> MemStateMachine:
            commands: list[str] = []
            applied.append(commands)

            def slow(state: dict[str, Any], command: Any) -> None:
                commands.append(command)
                if commands is applied[lagging - 1]:
                    cluster.clock.rightNow += 0.004

            return MemStateMachine({}, slow)

        lagging = 0
        cluster.make_machine = make_machine
        lead = cluster.begin(1, 2, 3)
        lagging = next(node_id for node_id, node in cluster.nodes.items() if node is not lead)
        commands, path = applied[lagging - 1], (lead.address, cluster.address(lagging))
        cluster.network.clog(*path)
        for number in range(6):
            cluster.result(lead.propose(str(number)))
        cluster.network.unclog(*path)
        cluster.clock.rightNow += 0.01
        _turn(cluster.clock)
        self.assertTrue(commands)
        self.assertLessEqual(len(commands), 3)
        cluster.until(lambda: len(commands) == 6)

    def test_large_entries_are_applied_in_small_slices(self) -> None:
        """One slice is over after its time, however few entries that is, and however they are fetched."""
        groups = self.slices([bytes(60_000)] * 100, 0.003)
        self.assertLessEqual(max(groups.values()), 4)

    def test_slices_hold_over_many_fetches(self) -> None:
        """A fetch has few of the largest entries; the time goes on counting in the next."""
        groups = self.slices([bytes(250_000)] * 20, 0.006)
        self.assertLessEqual(max(groups.values()), 2)

    def test_many_reads_let_the_reactor_go_on(self) -> None:
        cluster = NodeCluster(self)
        lead = cluster.begin(1)
        turns = 0
        groups: Counter[int] = Counter()

        def slow(_machine: Any) -> None:
            cluster.clock.rightNow += 0.004
            groups[turns] += 1

        def turn() -> None:
            nonlocal turns
            turns += 1
            if turns < 100:
                cluster.clock.callLater(0, turn)

        waiting = [lead.read_state(slow) for _ in range(50)]
        turn()
        for each in waiting:
            cluster.result(each)
        self.assertLessEqual(max(groups.values()), 3)


class StopTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.cluster = NodeCluster(self)

    def held_leader(self) -> ConsensusNode:
        """A sole voter whose disk never answers."""
        node = self.cluster.make(1, log=HeldLogStore(1))
        self.cluster.result(node.bootstrap())
        self.cluster.leader()
        self.cluster.logs[1].held = []
        return node

    def test_acknowledged_only_after_the_own_disk(self) -> None:
        """J-21, H-34: a sole voter answers when its own write is durable, not before."""
        node = self.held_leader()
        waiting = node.propose(["set", "a", 1])
        self.cluster.run(1.0)
        self.assertNoResult(waiting)
        self.assertEqual(node.machine.state, {})
        self.cluster.logs[1].release()
        self.cluster.result(waiting)
        self.assertEqual(node.machine.state, {"a": 1})

    def test_everything_that_waits_ends_at_a_stop(self) -> None:
        """J-45: proposals, reads, waits, changes; what was not appended did not happen."""
        node = self.held_leader()
        appended = node.propose(["set", "a", 1], timeout=600.0)
        self.cluster.clock.advance(0)
        reading = node.read_state(lambda machine: machine.state, deadline=600.0)
        index = node.ensure_linearizable(deadline=600.0)
        adding = node.add_learner(2, self.cluster.address(2))
        waiting = node.wait.applied_index_at_least(1000)
        sleeping = node.wait(lambda metrics: False, timeout=600.0)
        many = node.propose_many([["set", "b", 1], ["set", "c", 1]])
        moving = node.trigger("snapshot")
        fresh = node.propose(["set", "b", 1])
        stopping = node.shutdown()
        self.cluster.result(stopping)
        self.failureResultOf(appended, OutcomeUnknown)
        self.failureResultOf(fresh, NodeStopped)
        for each in (reading, index):
            self.assertIn(type(self.outcome(each)), (NodeStopped, NotLeader, dict, int))
        self.failureResultOf(waiting, NodeStopped)
        self.failureResultOf(sleeping, NodeStopped)
        self.assertIsInstance(self.outcome(adding), ConsensusError)
        self.assertEqual([type(each) for each in self.successResultOf(many)], [NodeStopped, NodeStopped])
        self.outcome(moving)
        self.assertIsNone(self.successResultOf(node.when_stopped()))

    def test_forwarded_operations_are_unknown_after_a_stop(self) -> None:
        """J-44: what was sent to the leader may have happened, whether or not this node lives to hear of it."""
        cluster = NodeCluster(self)
        lead = cluster.begin(1, 2, 3)
        node, other = cluster.followers()
        cluster.network.cut(lead.address, node.address)
        removing = node.remove_voter(other.node_id)
        adding = node.propose(["add", "n", 1])
        cluster.clock.advance(0)
        cluster.result(node.shutdown())
        self.failureResultOf(removing, OutcomeUnknown)
        self.failureResultOf(adding, OutcomeUnknown)

    def outcome(self, waiting: Deferred[Any]) -> Any:
        results: list[Any] = []
        _ = waiting.addBoth(results.append)
        self.assertEqual(len(results), 1, "it did not end")
        return results[0].value if isinstance(results[0], Failure) else results[0]

    def test_a_stopped_node_refuses_everything(self) -> None:
        node = self.cluster.begin(1)
        self.cluster.result(node.shutdown())
        for waiting in (
            node.propose(["time"]),
            node.propose_with_index(["time"]),
            node.register_session(),
            node.read_state(lambda machine: None),
            node.read_state(lambda machine: None, linearizable=False),
            node.ensure_linearizable(),
            node.add_voter(2, "x"),
            node.bootstrap(),
            node.join(["x"]),
            node.transfer_leadership(),
            node.trigger("elect"),
            node.wait.applied_index_at_least(1000),
        ):
            self.failureResultOf(waiting, NodeStopped)

    def test_a_node_that_was_not_started_refuses_everything(self) -> None:
        node = self.cluster.begin(1)
        other = ConsensusNode(
            node_id=2,
            address="x",
            log_store=MemLogStore(2),
            state_machine=self.cluster.make_machine(),
            network=self.cluster.network.endpoint("x"),
            clock=self.cluster.clock,
        )
        self.failureResultOf(other.propose(["time"]), NodeStopped)
        self.failureResultOf(other.bootstrap(), NodeStopped)
        self.assertFalse(other.is_leader)
        self.assertEqual(other.metrics().applied, 0)
        self.cluster.result(other.shutdown())
        self.assertTrue(node.is_leader)

    def test_storage_failure_stops_the_node(self) -> None:
        """S-12: the cause is told, what waits ends, nothing ends the process."""
        node = self.cluster.make(1, log=HeldLogStore(1))
        self.cluster.result(node.bootstrap())
        self.cluster.leader()
        told = node.when_stopped()
        also = node.stopped
        self.cluster.logs[1].broken = StorageFailed("write", "wal", "Input/output error")
        waiting = node.propose(["set", "a", 1])
        error = self.cluster.error(waiting, OutcomeUnknown)
        self.assertNotIsInstance(error, NodeStopped)
        self.cluster.run(0.1)
        self.assertIsInstance(self.successResultOf(told), StorageFailed)
        self.assertIsInstance(self.successResultOf(also), StorageFailed)
        refused = self.failureResultOf(node.propose(["set", "a", 1]), NodeStopped).value
        self.assertIsInstance(refused.cause, StorageFailed)

    def test_failing_apply_stops_before_the_applied_index_moves(self) -> None:
        """H-81, J-102: every replica stops alike, and the error names the entry."""
        cluster = NodeCluster(self)
        lead = cluster.begin(1, 2, 3)
        cluster.settle()
        applied = lead.metrics().applied
        told = {node_id: node.when_stopped() for node_id, node in cluster.nodes.items()}
        waiting = lead.propose(["raise", "a bug"])
        cluster.error(waiting, OutcomeUnknown)
        cluster.run(3.0)
        # The third can only learn that the entry is committed from one of those that have stopped.
        stopped = [node_id for node_id, each in told.items() if each.called]
        self.assertGreaterEqual(len(stopped), 2)
        for node_id in stopped:
            cause = self.successResultOf(told[node_id])
            self.assertIsInstance(cause, ApplyFailed)
            self.assertIsInstance(cause, InvariantBroken)
            self.assertIn(f"entry {applied + 1} of term", str(cause))
            self.assertEqual(cluster.nodes[node_id].metrics().applied, applied)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), len(stopped))

    def test_apply_has_no_path_to_propose(self) -> None:
        """J-40: an application that proposes from apply is stopped, not looped."""
        nodes: list[ConsensusNode] = []

        def apply(state: dict[str, Any], command: Any) -> None:
            waiting = nodes[0].propose(command)
            failure = self.failureResultOf(waiting)
            failure.raiseException()

        node = self.cluster.make(1, machine=MemStateMachine({}, apply))
        nodes.append(node)
        self.cluster.result(node.bootstrap())
        self.cluster.leader()
        self.cluster.error(node.propose("x"), OutcomeUnknown)
        self.assertIsInstance(self.cluster.result(node.when_stopped()), ApplyFailed)
        self.assertEqual(len(self.flushLoggedErrors(InvariantBroken)), 1)

    def test_shutdown_hands_leadership_over_first(self) -> None:
        """And what was proposed before is answered."""
        cluster = NodeCluster(self)
        lead = cluster.begin(1, 2, 3)
        waiting = lead.propose(["set", "a", 1])
        began = cluster.clock.seconds()
        cluster.result(lead.shutdown())
        self.assertIsNone(self.successResultOf(waiting))
        self.assertLess(cluster.clock.seconds() - began, 1.0)
        rest = [node_id for node_id in cluster.nodes if node_id != lead.node_id]
        new = cluster.leader(rest)
        self.assertLess(cluster.clock.seconds() - began, 1.5)
        self.assertEqual(new.machine.state, {"a": 1})

    def test_shutdown_ends_although_nobody_takes_over(self) -> None:
        cluster = NodeCluster(self)
        lead = cluster.begin(1, 2, 3)
        for node_id in (1, 2, 3):
            if node_id != lead.node_id:
                cluster.crash(node_id)
        cluster.result(lead.shutdown(), seconds=7.0)

    def test_deadline_of_a_wait(self) -> None:
        node = self.cluster.begin(1)
        error = self.cluster.error(node.wait.applied_index(1000, timeout=0.5), DeadlineExceeded, seconds=0.6)
        self.assertEqual(error.seconds, 0.5)
        self.assertIn("1000", error.operation)
