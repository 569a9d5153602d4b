"""Proposals at a follower: in order, bounded, and each with an outcome of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure
from zope.interface import implementer

from zlayer_consensus.errors import (
    DeadlineExceeded,
    DomainError,
    InvalidMessage,
    NodeRemoved,
    NodeStopped,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    TargetMismatch,
)
from zlayer_consensus.network import (
    MAX_FORWARDED,
    MAX_OUTCOME_BYTES,
    Envelope,
    ForwardedOutcome,
    ForwardedProposal,
    IRaftService,
    OperateRequest,
    ProposeReply,
    ProposeRequest,
    RpcReply,
    RpcRequest,
)
from zlayer_consensus.node import ConsensusNode
from zlayer_consensus.storage import MemStateMachine

from .node_cluster import NodeCluster, NodeTestCase


@implementer(IRaftService)
class Watched:
    """A node whose forwarded requests are counted, and held back if the test wants."""

    def __init__(self, cluster: NodeCluster, node: ConsensusNode) -> None:
        self.node = node
        self.sizes: list[int] = []
        self.bytes: list[int] = []
        self.now = self.peak = 0
        self.answer: Callable[[ProposeRequest], Deferred[RpcReply]] | None = None
        cluster.network.attach(node.address, self)
        self.node_id = node.node_id

    def handle(self, envelope: Envelope, request: RpcRequest) -> Deferred[RpcReply]:
        if not isinstance(request, ProposeRequest):
            return self.node.handle(envelope, request)
        self.sizes.append(len(request.proposals))
        self.bytes.append(sum(len(each.payload) for each in request.proposals))
        self.now += 1
        self.peak = max(self.peak, self.now)

        def ended(result: Any) -> Any:
            self.now -= 1
            return result

        answer: Callable[[Any], Deferred[RpcReply]] = self.answer or (lambda each: self.node.handle(envelope, each))
        return answer(request).addBoth(ended)


def outcomes(cluster: NodeCluster, waiting: list[Deferred[Any]], seconds: float = 30.0) -> list[Any]:
    """Let time pass until all have ended; return results and errors."""
    found: list[Any] = [None] * len(waiting)
    left = Counter(waiting=len(waiting))

    def ended(result: Any, position: int) -> None:
        found[position] = result.value if isinstance(result, Failure) else result
        left["waiting"] -= 1

    for position, each in enumerate(waiting):
        _ = each.addBoth(ended, position)
    cluster.until(lambda: not left["waiting"], seconds)
    return found


class ForwardingTests(NodeTestCase):
    def watch(self) -> Watched:
        return Watched(self.cluster, self.lead)

    def hold(self, watched: Watched) -> Deferred[RpcReply]:
        """Let the next forwarded request get no answer before the test gives one."""
        held: Deferred[RpcReply] = Deferred()

        def once(_: ProposeRequest) -> Deferred[RpcReply]:
            watched.answer = None
            return held

        watched.answer = once
        return held

    def test_thousands_at_once(self) -> None:
        """H-88, A-28: all are done, in order, in full batches of which one is under way at a time."""
        watched, node = self.watch(), self.follower
        waiting = [node.propose_with_index(["set", "x", n]) for n in range(3000)]
        results = outcomes(self.cluster, waiting)
        self.assertEqual([result for _, result in results], [None, *range(2999)])
        indexes = [index for index, _ in results]
        self.assertEqual(indexes, sorted(indexes))
        self.assertEqual(watched.peak, 1)
        self.assertEqual(sum(watched.sizes), 3000)
        self.assertLessEqual(max(watched.sizes), MAX_FORWARDED)
        self.assertLess(len(watched.sizes), 20)
        self.assertTrue(self.lead.is_leader)
        self.assertEqual(node.metrics().pending_proposals, 0)
        self.assertEqual(self.lead.metrics().pending_proposals, 0)

    def test_propose_many_keeps_order(self) -> None:
        """H-88: a turn's proposals travel together."""
        watched = self.watch()
        results = self.cluster.result(self.follower.propose_many([["set", "x", n] for n in range(50)]))
        self.assertEqual(results, [None, *range(49)])
        self.assertEqual(watched.sizes, [50])

    def test_what_comes_later_stays_behind(self) -> None:
        """H-88: also across turns, while the network delays some messages more than others."""
        self.cluster.network.default.delay = (0.001, 0.2)
        node, waiting = self.follower, []
        for n in range(40):
            waiting.append(node.propose(["set", "x", n], timeout=60.0))
            self.cluster.clock.advance(0.004)
        self.assertEqual(outcomes(self.cluster, waiting, 60.0), [None, *range(39)])

    def test_each_has_its_own_outcome(self) -> None:
        """An error of one is not the others'."""
        many = self.follower.propose_many([["set", "x", 1], ["fail", "why"], ["set", "x", 2]])
        first, second, third = self.cluster.result(many)
        self.assertEqual((first, third), (None, 1))
        self.assertIsInstance(second, DomainError)
        self.assertEqual((second.reason, second.details), ("why", {"key": 1}))

    def test_batches_are_bounded_in_bytes(self) -> None:
        watched, node = self.watch(), self.follower
        limit = node._runtime.config.max_payload_bytes
        text = "x" * (limit // 3 - 100)
        results = self.cluster.result(node.propose_many([["set", "x", text]] * 9))
        self.assertEqual(results, [None] + [text] * 8)
        self.assertEqual(watched.sizes, [3, 3, 3])
        self.assertLessEqual(max(watched.bytes), limit)

    def test_full_queue_refuses_at_once(self) -> None:
        """A-28: what waits for the leader counts like everything that waits."""
        _ = self.hold(self.watch())
        node = self.follower
        node._runtime.proposals._max_count = 300
        waiting = [node.propose(["set", "x", n], timeout=1.0) for n in range(310)]
        for late in waiting[300:]:
            self.failureResultOf(late, Overloaded)
        found = Counter(type(each) for each in outcomes(self.cluster, waiting[:300]))
        self.assertEqual(found, {OutcomeUnknown: MAX_FORWARDED, DeadlineExceeded: 300 - MAX_FORWARDED})
        self.cluster.until(lambda: node.metrics().pending_proposals == 0)

    def test_deadlines_in_the_queue_and_on_the_way(self) -> None:
        """J-44: what was not sent is definite, what was sent is unknown; each at its own time."""
        held, node = self.hold(self.watch()), self.follower
        sent = node.propose(["set", "x", 1], timeout=20.0)
        short = node.propose(["set", "x", 1], timeout=0.5)
        self.cluster.run(0.1)
        queued = node.propose(["set", "x", 2], timeout=0.3)
        patient = node.propose(["set", "x", 3], timeout=20.0)
        self.cluster.error(queued, DeadlineExceeded, 0.4)
        self.cluster.error(short, OutcomeUnknown, 0.4)
        self.assertNoResult(patient)
        held.errback(Overloaded("a queue", 5))
        self.cluster.error(sent, Overloaded)
        self.assertIsNone(self.cluster.result(patient))
        self.assertEqual(node.metrics().pending_proposals, 0)
        self.cluster.settle()
        self.assertEqual(self.cluster.states(), [{"x": 3}] * 3)

    def test_leader_dies_with_a_batch(self) -> None:
        """J-42, J-44: what was sent is unknown, the rest goes to the next leader or is definitely refused."""
        node, dead = self.follower, self.lead
        waiting = [node.propose(["add", "n", 1], timeout=10.0) for _ in range(1000)]
        self.cluster.clock.pump([0.001] * 3)
        self.cluster.crash(dead.node_id)
        found = outcomes(self.cluster, waiting, 12.0)
        kinds = Counter(type(each) for each in found)
        self.assertLessEqual(set(kinds), {int, OutcomeUnknown, NotLeader})
        self.assertLessEqual(kinds[OutcomeUnknown], MAX_FORWARDED)
        self.cluster.leader()
        self.cluster.settle()
        done = node.machine.state.get("n", 0)
        self.assertGreaterEqual(done, kinds[int])
        self.assertLessEqual(done, kinds[int] + kinds[OutcomeUnknown])
        self.assertEqual(node.metrics().pending_proposals, 0)

    def test_next_leader_gets_what_waits(self) -> None:
        """A leader that never answers holds back nobody once there is another."""
        old, node = self.lead, self.follower
        held = self.hold(self.watch())
        stuck = node.propose(["set", "x", 1], timeout=60.0)
        self.cluster.run(0.1)
        queued = node.propose(["set", "x", 2], timeout=60.0)
        target = next(each for each in self.cluster.followers() if each is not node)
        self.cluster.result(old.transfer_leadership(target.node_id))
        self.assertIsNone(self.cluster.result(queued))
        self.assertNoResult(stuck)
        held.errback(InvalidMessage("it was held"))
        self.cluster.error(stuck, InvalidMessage)

    def test_batch_of_another_term_is_refused(self) -> None:
        """H-88: a request that was delayed until the same node leads again must not come after later ones."""
        peers = self.follower._runtime.peers
        member = peers.member(self.lead.node_id)
        assert member is not None
        proposals = (ForwardedProposal(b"\x01", 1, 0, 0, 1000),) * 2
        for term in (self.lead.metrics().term - 1, self.lead.metrics().term + 1):
            waiting = self.lead.handle(peers.envelope(member), ProposeRequest(term, 1, 1, proposals))
            reply: Any = self.cluster.result(waiting)
            self.assertEqual([each.error for each in reply.outcomes], ["not_leader"] * 2)

    def test_delivered_twice(self) -> None:
        """J-42, J-43: a network that delivers every request twice, late, does nothing twice."""
        self.cluster.network.default.duplicate = 1.0
        self.cluster.network.default.delay = (0.001, 0.1)
        node = self.follower
        done = []
        for _ in range(20):
            found = outcomes(self.cluster, [node.propose(["add", "n", 1], timeout=5.0)])[0]
            if isinstance(found, int):
                done.append(found)
            else:
                self.assertIsInstance(found, OutcomeUnknown)
        self.assertGreater(len(done), 5)
        self.assertEqual(done, sorted(set(done)))
        self.cluster.settle()
        self.assertLessEqual(self.cluster.states()[0]["n"], 20)

    def test_leader_that_starts_again(self) -> None:
        """J-44: it says that it does not run, and may have taken another copy of the request when it did."""
        self.watch().answer = lambda _: fail(NodeStopped())
        self.cluster.error(self.follower.propose(["set", "a", 1]), OutcomeUnknown)

    def test_sender_that_is_removed_meanwhile(self) -> None:
        """J-42, J-44: it is told so, and another copy of the request may have come before it was removed."""
        node = self.follower
        self.watch().answer = lambda _: fail(NodeRemoved(node.node_id))
        self.cluster.error(node.propose(["set", "a", 1]), OutcomeUnknown)
        self.assertIsInstance(self.cluster.result(node.when_stopped()), NodeRemoved)

    def test_second_copy_after_a_restart(self) -> None:
        """J-42, J-44: whoever may have taken the first copy in before it started again does not call it undone."""
        old = self.lead
        term = old.metrics().term
        peers = self.follower._runtime.peers
        member = peers.member(old.node_id)
        assert member is not None
        envelope = peers.envelope(member)
        self.cluster.crash(old.node_id)
        again = self.cluster.make(old.node_id, log=self.cluster.logs[old.node_id].reopened())
        proposals = (ForwardedProposal(b"\x01", 1, 0, 0, 1000),)
        for asked, error in ((term, "outcome_unknown"), (term + 1, "not_leader")):
            reply: Any = self.cluster.result(again.handle(envelope, ProposeRequest(asked, 1, 1, proposals)))
            self.assertEqual([each.error for each in reply.outcomes], [error])

    def test_follower_stops(self) -> None:
        """J-45: what was sent is unknown, what waited did not happen; all end."""
        _ = self.hold(self.watch())
        node = self.follower
        waiting = [node.propose(["add", "n", 1]) for _ in range(1000)]
        self.cluster.clock.advance(0)
        stopping = node.shutdown()
        found = outcomes(self.cluster, waiting, 0.1)
        self.cluster.result(stopping)
        self.assertEqual(
            [type(each) for each in found], [OutcomeUnknown] * MAX_FORWARDED + [NodeStopped] * (1000 - MAX_FORWARDED)
        )

    def test_leader_stops(self) -> None:
        """J-44: each ends, and the node that forwarded goes on."""
        node = self.follower
        waiting = [node.propose(["add", "n", 1], timeout=8.0) for _ in range(1000)]
        self.cluster.clock.advance(0)
        self.cluster.result(self.lead.shutdown())
        del self.cluster.nodes[self.lead.node_id]
        found = Counter(type(each) for each in outcomes(self.cluster, waiting, 10.0))
        self.assertEqual(found.total(), 1000)
        self.cluster.leader()
        self.cluster.settle()
        self.assertGreaterEqual(node.machine.state.get("n", 0), found[int])
        self.assertLessEqual(node.machine.state.get("n", 0), found[int] + found[OutcomeUnknown])

    def test_refusals_keep_their_meaning(self) -> None:
        """What is wrong with the envelope or the message is told as it is, not as a change of leaders."""
        watched, node = self.watch(), self.follower
        for error in (InvalidMessage("no"), TargetMismatch(1, 2)):
            self.hold(watched).errback(error)
            self.cluster.error(node.propose(["set", "x", 1]), type(error))

    def test_wrong_reply_is_an_unknown_outcome(self) -> None:
        held = self.hold(self.watch())
        waiting = [self.follower.propose(["set", "x", n]) for n in range(2)]
        held.callback(ProposeReply((ForwardedOutcome("", b"\xf6", 9),)))
        self.assertEqual({type(each) for each in outcomes(self.cluster, waiting)}, {OutcomeUnknown})

    def test_strange_conversion_concerns_one_proposal(self) -> None:
        """An exception that nobody foresaw refuses one of them, and stops no node."""
        types = self.lead._runtime.types
        decode = types.decode_request

        def strange(payload: bytes) -> Any:
            command = decode(payload)
            if command == ["set", "x", "bad"]:
                raise RuntimeError("strange")
            return command

        self.patch(types, "decode_request", strange)
        first, second, third = self.cluster.result(
            self.follower.propose_many([["set", "x", 1], ["set", "x", "bad"], ["set", "x", 2]])
        )
        self.assertEqual((first, third), (None, 1))
        self.assertIsInstance(second, InvalidMessage)
        self.assertIn("strange", second.detail)
        self.assertTrue(self.lead.is_leader)

    def test_results_that_exceed_a_reply(self) -> None:
        """A-28: what does not fit is reported as unknown, with what did fit beside it."""
        size = MAX_OUTCOME_BYTES // 3

        def big(state: dict[str, Any], command: Any) -> str:
            state["n"] = state.get("n", 0) + 1
            return "x" * size

        cluster = NodeCluster(self)
        cluster.make_machine = lambda: MemStateMachine({}, big)
        cluster.begin(1, 2, 3)
        found = cluster.result(cluster.followers()[0].propose_many([1, 2, 3, 4]))
        self.assertEqual([type(each) for each in found], [str, str, OutcomeUnknown, OutcomeUnknown])
        cluster.settle()
        self.assertEqual(cluster.states(), [{"n": 4}] * 3)

    def test_forwarded_operations_are_bounded(self) -> None:
        """A-28: a leader carries out 64 at a time for others."""
        peers = self.follower._runtime.peers
        member = peers.member(self.lead.node_id)
        assert member is not None
        forever: list[Deferred[Any]] = []

        async def stuck(*_: object) -> Any:
            forever.append(Deferred())
            return await forever[-1]

        self.patch(self.lead._runtime.admin, "forwarded", stuck)
        term = self.follower.metrics().term
        requests = [OperateRequest(term, 1, n, "remove_learner", b"\xa1gnode_id\x09", 1000) for n in range(66)]
        waiting: list[Deferred[Any]] = [self.lead.handle(peers.envelope(member), each) for each in requests[:65]]
        self.failureResultOf(waiting[-1], Overloaded)
        for each in forever:
            each.callback(None)
        for each in waiting[:-1]:
            self.assertEqual(self.successResultOf(each).error, "")
        again: Deferred[Any] = self.lead.handle(peers.envelope(member), requests[65])
        forever[-1].callback(None)
        self.assertEqual(self.successResultOf(again).error, "")
