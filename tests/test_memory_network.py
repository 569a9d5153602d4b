"""
The in-memory network: what it may do to messages, and that a seed decides it all.
"""

from collections.abc import Callable
from random import Random

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from zlayer_consensus.errors import (
    IncarnationMismatch,
    InvalidMessage,
    NodeStopped,
    PeerUnreachable,
    StorageFailed,
)
from zlayer_consensus.network import Envelope, INetwork, IRaftService, RpcReply, RpcRequest
from zlayer_consensus.raft import HeartbeatReply, HeartbeatRequest, LogId, VoteRequest
from zlayer_consensus.testing import MemoryNetwork

ONE_TO_TWO = Envelope(b"c" * 16, 1, b"1" * 16, 2, b"2" * 16)


@implementer(IRaftService)
class Recorder:
    """Answers heartbeats, and keeps the rounds that it saw."""

    def __init__(self, node_id: int, answer: Callable[[HeartbeatRequest], Deferred[RpcReply]] | None = None) -> None:
        self.node_id = node_id
        self.rounds: list[int] = []
        self.envelopes: list[Envelope] = []
        self._answer = answer

    def handle(self, envelope: Envelope, request: RpcRequest) -> Deferred[RpcReply]:
        assert isinstance(request, HeartbeatRequest)
        self.envelopes.append(envelope)
        self.rounds.append(request.round)
        if self._answer is not None:
            return self._answer(request)
        return succeed(HeartbeatReply(request.term, request.round, 9, 9))


class Case(SynchronousTestCase):
    through_codec = False

    def setUp(self) -> None:
        self.clock = Clock()
        self.network = self.make(1)
        self.service = Recorder(2)
        self.network.attach("two", self.service)
        self.one = self.network.endpoint("one")

    def make(self, seed: int) -> MemoryNetwork:
        return MemoryNetwork(self.clock, Random(seed), through_codec=self.through_codec)

    def beat(self, round: int = 1, timeout: float = 1.0) -> Deferred[RpcReply]:
        return self.one.call("two", ONE_TO_TWO, HeartbeatRequest(3, 0, round), timeout)

    def assert_lost(self, call: Deferred[RpcReply], sent: bool = True) -> PeerUnreachable:
        error = self.failureResultOf(call, PeerUnreachable).value
        self.assertIs(error.sent, sent)
        self.assertEqual(error.address, "two")
        return error  # type: ignore[no-any-return]


class DeliveryTests(Case):
    def test_provides_the_contract(self) -> None:
        verifyObject(INetwork, self.one)

    def test_reply_comes_back(self) -> None:
        """Nothing happens inside of ``call`` itself: a node may call while it is in the middle of a step."""
        call = self.beat()
        self.assertEqual(self.service.rounds, [])
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(call), HeartbeatReply(3, 1, 9, 9))
        self.assertEqual(self.service.envelopes, [ONE_TO_TWO])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_delay_is_drawn_per_message_and_direction(self) -> None:
        self.network.link("one", "two").delay = (0.25, 0.25)
        self.network.link("two", "one").delay = (0.5, 0.5)
        call = self.beat()
        self.clock.advance(0.25)
        self.assertEqual(self.service.rounds, [1])
        self.clock.advance(0.25)
        self.assertNoResult(call)
        self.clock.advance(0.25)
        self.successResultOf(call)

    def test_it_says_until_when_what_was_sent_is_on_its_way(self) -> None:
        self.network.link("one", "two").delay = (0.25, 0.25)
        self.network.link("two", "one").delay = (0.5, 0.5)
        self.assertEqual(self.network.latest, 0.0)
        first = self.beat()
        self.clock.advance(0.1)
        self.assertEqual(self.network.latest, 0.25)
        self.clock.advance(0.2)
        self.assertAlmostEqual(self.network.latest, 0.8)
        self.network.clog("one", "two")
        second = self.beat(timeout=5.0)
        self.clock.advance(1.0)
        self.network.unclog("one", "two")
        self.assertAlmostEqual(self.network.latest, 1.55)
        self.clock.pump([0.25, 0.5])
        self.successResultOf(first)
        self.successResultOf(second)

    def test_messages_overtake_each_other(self) -> None:
        self.network.default.delay = (0.0, 0.5)
        calls = [self.beat(n) for n in range(20)]
        self.clock.pump([0.01] * 200)
        self.assertEqual(sorted(self.service.rounds), list(range(20)))
        self.assertNotEqual(self.service.rounds, list(range(20)))
        self.assertEqual(
            [self.successResultOf(call) for call in calls], [HeartbeatReply(3, n, 9, 9) for n in range(20)]
        )

    def test_seed_decides_everything(self) -> None:
        def run(seed: int) -> list[object]:
            network, service = self.make(seed), Recorder(2)
            network.attach("two", service)
            network.default.delay = (0.0, 0.5)
            network.default.loss = network.default.duplicate = 0.3
            outcomes: list[object] = []
            one = network.endpoint("one")
            for n in range(30):
                call = one.call("two", ONE_TO_TWO, HeartbeatRequest(3, 0, n), 1.0)
                _ = call.addBoth(lambda result: outcomes.append(getattr(result, "round", type(result))))
            self.clock.pump([0.01] * 200)
            self.assertEqual(len(outcomes), 30)
            return [service.rounds, outcomes]

        self.assertEqual(run(5), run(5))
        self.assertNotEqual(run(5), run(6))

    def test_errors_of_the_service_come_back(self) -> None:
        error = IncarnationMismatch(1, "aa", "bb")
        self.network.attach("two", Recorder(2, lambda _: fail_with(error)))
        call = self.beat()
        self.clock.pump([0, 0, 0])
        got = self.failureResultOf(call, IncarnationMismatch).value
        self.assertEqual((got.node_id, got.expected, got.found), (1, "aa", "bb"))

    def test_defects_of_the_service_come_back_at_once(self) -> None:
        """A test shall see the exception, not a time-out."""
        self.network.attach("two", Recorder(2, broken))
        self.network.cut("two", "one")
        call = self.beat()
        self.clock.advance(0)
        self.failureResultOf(call, KeyError)


class CodecDeliveryTests(DeliveryTests):
    """The same through the wire codec."""

    through_codec = True

    def test_message_that_breaks_the_schema_is_a_defect_of_the_sender(self) -> None:
        _ = self.one.call("two", ONE_TO_TWO, VoteRequest(0, LogId(0, 0), 1), 1.0)
        error = self.assertRaises(InvalidMessage, self.clock.advance, 0)
        self.assertIn("vote_request.term", str(error))

    def test_error_without_a_wire_form_is_an_unknown_outcome(self) -> None:
        self.network.attach("two", Recorder(2, lambda _: fail_with(StorageFailed("write", "log", "EIO"))))
        call = self.beat()
        self.clock.pump([0, 0, 0])
        self.assert_lost(call)

    def test_cause_of_a_stop_arrives_as_text(self) -> None:
        self.network.attach("two", Recorder(2, lambda _: fail_with(NodeStopped(OSError("disk\ngone")))))
        call = self.beat()
        self.clock.pump([0, 0, 0])
        self.assertEqual(str(self.failureResultOf(call, NodeStopped).value.cause), "disk\ufffdgone")


class FaultTests(Case):
    def test_nobody_there(self) -> None:
        """The one case in which a request certainly was not executed."""
        self.network.detach("two")
        call = self.beat()
        self.clock.pump([0, 0])
        self.assert_lost(call, sent=False)

    def test_lost_request(self) -> None:
        self.network.link("one", "two").loss = 1.0
        call = self.beat(timeout=1.0)
        self.clock.advance(0.9)
        self.assertNoResult(call)
        self.clock.advance(0.1)
        self.assert_lost(call)
        self.assertEqual(self.service.rounds, [])

    def test_executed_but_reply_lost(self) -> None:
        self.network.link("one", "two").reply_loss = 1.0
        call = self.beat()
        self.clock.pump([0.5, 0.5])
        self.assert_lost(call)
        self.assertEqual(self.service.rounds, [1])

    def test_one_way_cut_loses_the_replies_of_the_other_direction(self) -> None:
        self.network.cut("two", "one")
        call = self.beat()
        self.clock.pump([0.5, 0.5])
        self.assert_lost(call)
        self.assertEqual(self.service.rounds, [1])

    def test_partition_and_heal(self) -> None:
        self.network.partition(["one", "three"], ["two"])
        calls = [self.beat(1)]
        self.clock.advance(1)
        self.network.heal("three")
        calls.append(self.beat(2))
        self.clock.advance(1)
        self.network.heal()
        calls.append(self.beat(3))
        self.clock.pump([0, 0])
        self.assert_lost(calls[0])
        self.assert_lost(calls[1])
        self.successResultOf(calls[2])
        self.assertEqual(self.service.rounds, [3])

    def test_what_is_on_its_way_when_the_link_is_cut_is_lost(self) -> None:
        self.network.default.delay = (0.5, 0.5)
        call = self.beat()
        self.clock.advance(0.25)
        self.network.cut("one", "two")
        self.clock.pump([0.25, 0.5])
        self.assert_lost(call)
        self.assertEqual(self.service.rounds, [])

    def test_request_that_timed_out_is_still_executed(self) -> None:
        self.network.default.delay = (2.0, 2.0)
        call = self.beat(timeout=1.0)
        self.clock.advance(1)
        self.assert_lost(call)
        self.clock.advance(1)
        self.assertEqual(self.service.rounds, [1])
        self.clock.advance(2)

    def test_duplicate_is_executed_twice_and_answered_once(self) -> None:
        self.network.link("one", "two").duplicate = 1.0
        call = self.beat()
        self.clock.pump([0, 0])
        self.successResultOf(call)
        self.assertEqual(self.service.rounds, [1, 1])

    def test_node_that_dies_fails_the_calls_it_had_taken(self) -> None:
        waiting: Deferred[RpcReply] = Deferred()
        self.network.attach("two", Recorder(2, lambda _: waiting))
        call = self.beat()
        self.clock.advance(0)
        self.network.detach("two")
        self.assert_lost(call)
        waiting.callback(HeartbeatReply(3, 1, 9, 9))
        self.clock.pump([0, 0])

    def test_reply_of_a_former_node_is_dropped(self) -> None:
        """A new node at the same address does not answer for the old one (J-12)."""
        waiting: Deferred[RpcReply] = Deferred()
        self.network.attach("two", Recorder(2, lambda _: waiting))
        call = self.beat()
        self.clock.advance(0)
        self.network.attach("two", self.service)
        waiting.callback(HeartbeatReply(3, 1, 7, 7))
        self.clock.pump([0, 0])
        self.assert_lost(call)


class StopTests(Case):
    def test_stop_fails_what_is_under_way_and_what_comes(self) -> None:
        call = self.beat()
        self.successResultOf(self.one.stop())
        self.assert_lost(call)
        self.assert_lost(self.beat(), sent=False)
        self.successResultOf(self.one.stop())
        self.clock.pump([0, 0])
        self.one = self.network.endpoint("one")
        again = self.beat(2)
        self.clock.pump([0, 0])
        self.successResultOf(again)

    def test_cancelled_call_leaves_nothing_behind(self) -> None:
        call = self.beat()
        call.cancel()
        self.failureResultOf(call)
        self.clock.pump([0, 0])
        self.assertEqual(self.clock.getDelayedCalls(), [])


def broken(request: HeartbeatRequest) -> Deferred[RpcReply]:
    raise KeyError(request)


def fail_with(error: Exception) -> Deferred[RpcReply]:
    """Return a failed Deferred."""
    result: Deferred[RpcReply] = Deferred()
    result.errback(error)
    return result
