"""Elections, proposals and reads of whole nodes."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.application.service import IService, MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from zlayer_consensus.errors import (
    ConversionError,
    DeadlineExceeded,
    DomainError,
    NodeStopped,
    NotLeader,
    Overloaded,
    ProposalTooLarge,
)
from zlayer_consensus.network import IRaftService
from zlayer_consensus.node import Applied

from .node_cluster import START_OF_TIME, NodeCluster, NodeTestCase


class ProposeTests(NodeTestCase):
    def test_result_of_apply_comes_back(self) -> None:
        """A proposal at the leader is applied everywhere and answered with what apply returned."""
        self.assertIsNone(self.cluster.result(self.lead.propose(["set", "a", 1])))
        self.assertEqual(self.cluster.result(self.lead.propose(["set", "a", 2])), 1)
        self.cluster.settle()
        self.assertEqual(self.cluster.states(), [{"a": 2}] * 3)

    def test_index_comes_with_the_result(self) -> None:
        applied = self.cluster.result(self.lead.propose_with_index(["add", "n", 5]))
        self.assertIsInstance(applied, Applied)
        self.assertEqual(applied.result, 5)
        self.assertEqual(applied.index, self.lead.metrics().applied)

    def test_proposals_of_one_turn_keep_their_order(self) -> None:
        """H-88: what one caller proposes at one leader is applied in that order."""
        waiting = [self.lead.propose(["add", "n", 1]) for _ in range(500)]
        self.assertEqual([self.cluster.result(each) for each in waiting], list(range(1, 501)))

    def test_many_at_once(self) -> None:
        """A list of results, with the errors of those that failed in their places."""
        requests = [["set", "a", 1], ["fail", "no"], ["add", "a", 1]]
        first, failed, last = self.cluster.result(self.lead.propose_many(requests))
        self.assertEqual((first, last), (None, 2))
        self.assertIsInstance(failed, DomainError)
        self.assertEqual(failed.reason, "no")

    def test_domain_error_is_a_result(self) -> None:
        """H-81: the proposer gets it with its attributes, and the node goes on."""
        error = self.cluster.error(self.lead.propose(["fail", "sold_out"]), DomainError)
        self.assertEqual((error.reason, error.message, error.details), ("sold_out", "as asked for", {"key": 1}))
        self.assertIsNone(self.cluster.result(self.lead.propose(["set", "a", 1])))

    def test_apply_sees_the_leaders_time(self) -> None:
        """H-80: index and time come from the entry."""
        index, time_ms = self.cluster.result(self.lead.propose(["time"]))
        self.assertEqual(index, self.lead.metrics().applied)
        self.assertLess(abs(time_ms / 1000 - START_OF_TIME - self.cluster.clock.seconds()), 0.1)

    def test_proposals_at_a_follower_are_forwarded(self) -> None:
        """One hop, and the leader's answer comes back unchanged."""
        self.assertEqual(self.cluster.result(self.follower.propose(["add", "n", 2])), 2)
        applied = self.cluster.result(self.follower.propose_with_index(["add", "n", 2]))
        self.assertEqual(applied, Applied(self.lead.metrics().applied, 4))
        error = self.cluster.error(self.follower.propose(["fail", "sold_out"]), DomainError)
        self.assertEqual((error.reason, error.message, error.details), ("sold_out", "as asked for", {"key": 1}))

    def test_forwarding_can_be_declined(self) -> None:
        """A-29: then the error tells where the leader is, for peers and for clients."""
        error = self.cluster.error(self.follower.propose(["add", "n", 2], forward=False), NotLeader)
        lead = self.lead.node_id
        self.assertEqual(error.leader_id, lead)
        self.assertEqual(error.leader_address, f"node{lead}:7000")
        self.assertEqual(error.leader_client_address, f"client{lead}:8000")
        self.assertEqual(self.lead.machine.state, {})

    def test_large_proposals_are_refused_before_anything(self) -> None:
        """A-28: size and limit are named."""
        error = self.cluster.error(self.lead.propose(["set", "a", "x" * (5 << 20)]), ProposalTooLarge)
        self.assertEqual(error.limit, 1 << 20)
        self.assertGreater(error.size, 5 << 20)

    def test_what_does_not_convert_is_refused_before_anything(self) -> None:
        last = self.lead.metrics().last
        self.cluster.error(self.lead.propose(object()), ConversionError)
        self.assertEqual(self.lead.metrics().last, last)

    def test_impossible_sessions_are_refused(self) -> None:
        for arguments in ({"session": 1}, {"sequence": 1}, {"session": -1, "sequence": 1}, {"session": "1"}):
            with self.subTest(arguments):
                waiting = self.lead.propose(["time"], **arguments)
                self.cluster.error(waiting, ValueError)

    def test_single_entries_and_a_large_batch(self) -> None:
        """More than fits into one append or one batch."""
        waiting = [self.lead.propose(["set", str(n), "x" * 1000]) for n in range(5000)]
        for each in waiting:
            self.cluster.result(each)
        self.cluster.settle()
        self.assertEqual(len(self.follower.machine.state), 5000)


class BoundedQueueTests(NodeTestCase):
    settings: ClassVar[dict[str, Any]] = {"max_pending_proposals": 10, "max_pending_reads": 5}

    def test_proposals_beyond_the_bound_are_refused_at_once(self) -> None:
        """A-28: the caller gets Overloaded at once; those that were taken in are carried out."""
        waiting = [self.lead.propose(["add", "n", 1]) for _ in range(12)]
        for late in waiting[10:]:
            error = self.failureResultOf(late, Overloaded).value
            self.assertEqual((error.queue, error.limit), ("proposals", 10))
        self.assertEqual([self.cluster.result(each) for each in waiting[:10]], list(range(1, 11)))
        self.assertEqual(self.cluster.result(self.lead.propose(["add", "n", 1])), 11)
        self.assertEqual(self.lead.metrics().pending_proposals, 0)

    def test_reads_beyond_the_bound_are_refused_at_once(self) -> None:
        waiting = [self.lead.read_state(lambda machine: len(machine.state)) for _ in range(6)]
        self.failureResultOf(waiting[5], Overloaded)
        self.assertEqual([self.cluster.result(each) for each in waiting[:5]], [0] * 5)
        self.assertEqual(self.lead.metrics().pending_reads, 0)

    def test_forwarded_proposals_count_where_they_come_from(self) -> None:
        waiting = [self.follower.propose(["add", "n", 1]) for _ in range(11)]
        self.failureResultOf(waiting[10], Overloaded)
        self.assertEqual(sorted(self.cluster.result(each) for each in waiting[:10]), list(range(1, 11)))
        self.assertEqual(self.follower.metrics().pending_proposals, 0)

    def test_bytes_are_bounded_too(self) -> None:
        cluster = NodeCluster(self, max_pending_bytes=2000, max_proposal_bytes=1500)
        lead = cluster.begin(1)
        first, second = (lead.propose(["set", "a", "x" * 1200]) for _ in range(2))
        self.failureResultOf(second, Overloaded)
        cluster.result(first)


class ReadTests(NodeTestCase):
    def read(self, machine: Any) -> Any:
        return dict(machine.state)

    def test_reads_see_what_was_acknowledged(self) -> None:
        """At the leader and, through it, at a follower (H-73, H-75)."""
        for n in range(20):
            self.cluster.result(self.lead.propose(["set", "n", n]))
            for node in self.cluster.nodes.values():
                self.assertEqual(self.cluster.result(node.read_state(self.read)), {"n": n})

    def test_a_new_leader_answers_with_what_its_predecessor_committed(self) -> None:
        """J-48: leading is not enough; its own first entry is applied before it answers the first read."""
        self.cluster.result(self.lead.propose(["set", "n", 1]))
        old = self.lead.node_id
        self.cluster.crash(old)
        new = self.cluster.leader([node_id for node_id in self.ids if node_id != old])
        read = new.read_state(lambda machine: (dict(machine.state), new.metrics().applied))
        state, applied = self.cluster.result(read)
        self.assertEqual(state, {"n": 1})
        position = self.cluster.result(new.propose_with_index(["set", "n", 2])).index
        self.assertEqual(applied, position - 1)

    def test_a_read_index_is_applied(self) -> None:
        applied = self.cluster.result(self.lead.propose_with_index(["set", "n", 1]))
        for node in self.cluster.nodes.values():
            index = self.cluster.result(node.ensure_linearizable())
            self.assertGreaterEqual(index, applied.index)
            self.assertGreaterEqual(node.metrics().applied, index)

    def test_a_follower_may_be_told_not_to_ask(self) -> None:
        error = self.cluster.error(self.follower.read_state(self.read, forward=False), NotLeader)
        self.assertEqual(error.leader_id, self.lead.node_id)
        self.cluster.error(self.follower.ensure_linearizable(forward=False), NotLeader)

    def test_stale_reads_happen_at_once(self) -> None:
        self.cluster.result(self.lead.propose(["set", "n", 1]))
        self.cluster.settle()
        waiting = self.follower.read_state(self.read, linearizable=False)
        self.assertEqual(self.successResultOf(waiting), {"n": 1})

    def test_what_the_caller_raises_is_the_callers(self) -> None:
        def broken(_machine: Any) -> None:
            raise ZeroDivisionError

        self.cluster.error(self.lead.read_state(broken), ZeroDivisionError)
        self.cluster.result(self.lead.propose(["set", "n", 1]))

    def test_deposed_leader_does_not_answer(self) -> None:
        """H-71, J-53: cut off from the others, an old leader never answers from its old state."""
        old = self.lead
        address = self.cluster.address(old.node_id)
        others = [self.cluster.address(each.node_id) for each in self.cluster.followers()]
        self.cluster.network.partition([address], others)
        waiting = old.read_state(self.read, deadline=10.0)
        here_only = old.read_state(self.read, deadline=10.0, forward=False)
        patient = old.read_state(self.read, deadline=60.0)
        new = self.cluster.leader([node.node_id for node in self.cluster.followers()])
        self.cluster.result(new.propose(["set", "n", 1]))
        self.cluster.error(here_only, NotLeader)
        self.cluster.error(waiting, DeadlineExceeded)
        self.cluster.network.heal()
        self.assertEqual(self.cluster.result(patient), {"n": 1})
        self.cluster.until(lambda: old.leader_id == new.node_id)
        self.assertEqual(self.cluster.result(old.read_state(self.read)), {"n": 1})

    def test_deadline_of_a_read(self) -> None:
        """J-47: it ends although nobody answers."""
        self.cluster.network.partition(*[[self.cluster.address(node_id)] for node_id in self.ids])
        waiting = self.lead.read_state(self.read, deadline=0.3)
        error = self.cluster.error(waiting, DeadlineExceeded, seconds=0.4)
        self.assertEqual((error.operation, error.seconds), ("read", 0.3))

    def test_cancelling_a_read_gives_up_waiting(self) -> None:
        calls: list[Any] = []
        waiting = self.lead.read_state(calls.append)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.cluster.run(1.0)
        self.assertEqual((calls, self.lead.metrics().pending_reads), ([], 0))


class ElectionTests(NodeTestCase):
    def test_subscriptions_tell_of_leader_and_role(self) -> None:
        node = self.follower
        leaders: list[int | None] = []
        roles: list[str] = []
        node.on_leader_change(leaders.append)
        node.on_role_change(roles.append)
        gone: list[str] = []
        node.on_role_change(gone.append)()

        def broken(_role: str) -> None:
            raise ZeroDivisionError

        end = node.on_role_change(broken)
        self.cluster.result(self.lead.transfer_leadership(node.node_id))
        self.cluster.until(lambda: node.is_leader)
        self.assertEqual(leaders[-1], node.node_id)
        self.assertEqual((roles[-1], gone), ("leader", []))
        self.assertGreaterEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        end()
        end()

    def test_a_new_leader_is_elected_when_the_old_one_dies(self) -> None:
        """What was acknowledged before is there, and writes go on."""
        self.cluster.result(self.lead.propose(["set", "a", 1]))
        self.cluster.crash(self.lead.node_id)
        new = self.cluster.leader()
        self.assertEqual(self.cluster.result(new.read_state(lambda m: dict(m.state))), {"a": 1})
        self.assertEqual(self.cluster.result(new.propose(["set", "a", 2])), 1)

    def test_an_election_can_be_triggered(self) -> None:
        node = self.follower
        self.cluster.run(3.0)
        term = node.metrics().term
        self.cluster.crash(self.lead.node_id)
        self.cluster.run(1.6)  # nobody is loyal to the old leader any more
        self.cluster.result(node.trigger("elect"))
        self.cluster.until(lambda: self.cluster.leader().metrics().term > term)

    def test_heartbeats_can_be_triggered(self) -> None:
        """Contact is fresher than the interval would make it."""
        self.cluster.run(1.0)
        self.cluster.until(lambda: min(p.last_contact for p in self.lead.metrics().replication.values()) > 0.1)
        self.cluster.result(self.lead.trigger("heartbeat"))
        self.cluster.run(0.02, step=0.005)
        self.assertLess(max(p.last_contact for p in self.lead.metrics().replication.values()), 0.03)
        with self.assertRaises(ValueError):
            _ = self.lead.trigger("nonsense")

    def test_views(self) -> None:
        for node in self.cluster.nodes.values():
            self.assertEqual(node.voter_ids, {1, 2, 3})
            self.assertEqual(node.learner_ids, frozenset())
            self.assertEqual(node.leader_id, self.lead.node_id)
            leader = node.leader_member()
            assert leader is not None
            self.assertEqual(leader.peer_address, self.lead.address)
        self.assertEqual(self.lead.metrics().replication.keys(), {1, 2, 3} - {self.lead.node_id})
        self.assertTrue(self.lead.metrics().recovered)
        self.assertEqual(self.follower.metrics().replication, {})


class ServiceTests(SynchronousTestCase):
    def test_a_node_is_a_service(self) -> None:
        """It starts and stops with its parent, which waits for it."""
        cluster = NodeCluster(self)
        node = cluster.make(1)
        self.assertTrue(verifyObject(IService, node))
        self.assertTrue(verifyObject(IRaftService, node))
        parent = MultiService()
        node.setServiceParent(parent)
        parent.startService()
        self.assertTrue(node.running)
        cluster.result(node.bootstrap())
        cluster.leader()
        stopping = parent.stopService()
        self.assertIsInstance(stopping, Deferred)
        cluster.result(stopping)
        self.assertTrue(node.metrics().stopped)
        self.assertIsNone(self.successResultOf(node.when_stopped()))
        self.failureResultOf(node.start(), NodeStopped)

    def test_a_node_that_never_ran_can_be_shut_down(self) -> None:
        cluster = NodeCluster(self)
        node = cluster.make(1)
        self.successResultOf(node.start())
        cluster.result(node.shutdown())
        cluster.result(node.shutdown())

    def test_impossible_arguments_are_refused(self) -> None:
        cluster = NodeCluster(self)
        for node_id in (0, -1, True):
            with self.assertRaises(ValueError):
                cluster.make(node_id)
