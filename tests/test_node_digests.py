"""J-92, H-80: members whose states went apart are found; who is known to be wrong stops, and nobody else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar
from unittest.mock import Mock

from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from zlayer_consensus.errors import NodeStopped, StateDiverged
from zlayer_consensus.kv import KeyValueMachine
from zlayer_consensus.network import DigestAt, DigestReply, DigestRequest
from zlayer_consensus.node import ConsensusNode
from zlayer_consensus.node._agreement import Findings, Verdict, compare
from zlayer_consensus.raft import Member, Membership
from zlayer_consensus.storage import ApplyContext, IStateDigest, IStateMachine, IStateSink, MemStateMachine

from .node_cluster import NodeCluster, NodeTestCase


@implementer(IStateMachine, IStateDigest)
class Sum:
    """Adds up what it is given; a test makes it wrong by changing the sum."""

    digest_kind = "sum 1"

    def __init__(self) -> None:
        self.total = 0

    def apply(self, command: int, context: ApplyContext) -> int:
        self.total += command
        return self.total

    def state_digest(self) -> bytes:
        return b"%d" % self.total

    def snapshot(self) -> Iterator[bytes]:
        return iter([b"%d" % self.total])

    def restore(self) -> IStateSink:
        return _Sink(self)


@implementer(IStateSink)
class _Sink:
    def __init__(self, machine: Sum) -> None:
        self._machine = machine
        self._chunks: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def finish(self) -> None:
        self._machine.total = int(self._chunks[0])


def members(*voters: int, learners: Iterable[int] = (), outgoing: Iterable[int] = ()) -> Membership:
    everybody = {*voters, *learners, *outgoing}
    return Membership(
        voters=frozenset(voters),
        outgoing=frozenset(outgoing),
        members={each: Member(each, bytes([each]) * 16, f"n{each}:1") for each in everybody},
    )


def report(*digests: tuple[int, bytes], kind: str = "k") -> DigestReply:
    return DigestReply(kind, tuple(DigestAt(*each) for each in digests))


class CompareTests(SynchronousTestCase):
    """J-92: who agrees, who is contradicted, and where nobody knows."""

    def test_all_agree(self) -> None:
        """The verdict is the latest that a majority has; who lags is not against it."""
        reports = {1: report((64, b"a"), (128, b"b")), 2: report((64, b"a"), (128, b"b")), 3: report((64, b"a"))}
        self.assertEqual(compare(members(1, 2, 3), reports), Findings({"k": Verdict("k", 128, b"b")}, {}, None))

    def test_nothing_in_common(self) -> None:
        reports = {1: report((64, b"a")), 2: report((128, b"b")), 3: report()}
        self.assertEqual(compare(members(1, 2, 3), reports), Findings())

    def test_one_is_contradicted(self) -> None:
        """With the latest index at which that is known, and what it has there."""
        reports = {
            1: report((64, b"a"), (128, b"b"), (192, b"c")),
            2: report((64, b"a"), (128, b"b")),
            3: report((64, b"x"), (128, b"y"), (192, b"z")),
        }
        found = compare(members(1, 2, 3), reports)
        self.assertEqual(found.contradicted, {3: (Verdict("k", 128, b"b"), b"y")})
        self.assertIsNone(found.disputed, "it is known to be wrong, so that nobody else is in doubt")

    def test_that_it_agrees_later_is_no_excuse(self) -> None:
        """It has answered wrongly in between."""
        same = (128, b"same")
        reports = {1: report((64, b"a"), same), 2: report((64, b"a"), same), 3: report((64, b"x"), same)}
        self.assertEqual(set(compare(members(1, 2, 3), reports).contradicted), {3})

    def test_no_majority(self) -> None:
        reports = {1: report((64, b"a")), 3: report((64, b"x"))}
        found = compare(members(1, 2, 3), reports)
        self.assertEqual(found, Findings({}, {}, (64, {1: b"a", 3: b"x"})))
        split = {1: report((64, b"a")), 2: report((64, b"b")), 3: report((64, b"c"))}
        self.assertEqual(compare(members(1, 2, 3), split).contradicted, {})
        halves = {each: report((64, b"ab"[each % 2 :][:1])) for each in (1, 2, 3, 4)}
        self.assertEqual(compare(members(1, 2, 3, 4), halves).contradicted, {})

    def test_learners_are_compared_and_have_no_vote(self) -> None:
        reports = {1: report((64, b"a")), 2: report((64, b"b")), 3: report((64, b"b")), 4: report((64, b"b"))}
        found = compare(members(1, 2, learners=[3, 4]), reports)
        self.assertEqual((found.agreed, found.contradicted), ({}, {}))
        found = compare(members(1, 2, 5, learners=[3, 4]), {**reports, 5: report((64, b"a"))})
        self.assertEqual(set(found.contradicted), {2, 3, 4})

    def test_joint_configuration(self) -> None:
        """A majority of each half, or none."""
        joint = members(1, 2, 3, outgoing=[3, 4, 5])
        new_half = {each: report((64, b"a")) for each in (1, 2, 3)}
        rest = {4: report((64, b"b")), 5: report((64, b"b"))}
        found = compare(joint, {**new_half, **rest})
        self.assertEqual((found.agreed, found.contradicted), ({}, {}))
        self.assertIsNotNone(found.disputed)
        found = compare(joint, {**new_half, 4: report((64, b"a")), 5: report((64, b"b"))})
        self.assertEqual(set(found.contradicted), {5})

    def test_other_kinds_are_not_compared(self) -> None:
        """During an upgrade; two halves of a majority of different kinds are none, either."""
        reports = {1: report((64, b"a")), 2: report((64, b"a")), 3: report((64, b"x"), kind="other")}
        found = compare(members(1, 2, 3), reports)
        self.assertEqual((set(found.agreed), found.contradicted, found.disputed), ({"k"}, {}, None))
        reports = {1: report((64, b"a")), 2: report((64, b"a"), kind="other"), 3: report((64, b"x"))}
        self.assertEqual(compare(members(1, 2, 3), reports).agreed, {})

    def test_who_is_no_member(self) -> None:
        reports = {each: report((64, b"a")) for each in (3, 4, 5)}
        self.assertEqual(compare(members(1, 2, 3), reports), Findings())


class DigestCase(NodeTestCase):
    settings: ClassVar[dict[str, Any]] = {"snapshot_policy": "never"}

    def setUp(self) -> None:
        self.cluster = NodeCluster(self, **self.settings)
        self.cluster.make_machine = lambda: MemStateMachine(Sum())
        self.lead = self.cluster.begin(*self.ids)
        self.asked: list[tuple[str, DigestRequest]] = []
        self.said: list[str] = []
        self.cluster.network.watch = self.see
        for node in self.cluster.nodes.values():
            self.listen(node)

    def see(self, kind: str, source: str, target: str, message: Any) -> None:
        if kind == "request" and isinstance(message, DigestRequest):
            self.asked.append((target, message))

    def listen(self, node: ConsensusNode) -> None:
        """Keep the critical lines that a node logs."""

        def critical(text: str, /, **fields: Any) -> None:
            self.said.append(text.format(**fields))

        self.patch(node._runtime.log, "critical", critical)

    def work(self, count: int = 70, node: ConsensusNode | None = None) -> None:
        self.cluster.result((node or self.lead).propose_many([1] * count))
        self.cluster.run(1.0)

    def compare(self) -> None:
        """Let a comparison take place."""
        self.cluster.run(self.lead._runtime.config.digest_interval + 1.0)

    def cause(self, node: ConsensusNode) -> Any:
        return self.cluster.result(node.when_stopped())


class ComparisonTests(DigestCase):
    """J-92: whole nodes, one of which goes wrong."""

    def test_members_that_agree(self) -> None:
        """They know it, and up to where."""
        self.work(200)
        self.compare()
        applied = self.lead.metrics().applied
        self.compare()
        for node in self.cluster.nodes.values():
            digest: Any = node.metrics().digest
            self.assertEqual((digest.kind, digest.index, digest.agreed), ("sum 1", applied // 64 * 64, applied))
            self.assertEqual((digest.alarm, digest.contradicted), ("", ()))
        self.assertEqual(self.said, [])

    def test_follower_that_diverged(self) -> None:
        """It stops and says why; the others go on."""
        wrong = self.follower
        self.work()
        wrong.machine.total += 1
        self.work()
        self.compare()
        error = self.cause(wrong)
        self.assertIsInstance(error, StateDiverged)
        self.assertNotEqual(error.own, error.agreed)
        self.assertIn(f"after entry {error.index} the state of this node has the digest {error.own}", str(error))
        self.assertEqual((self.lead.is_leader, self.lead.metrics().stopped), (True, False))
        del self.cluster.nodes[wrong.node_id]
        self.work()
        self.assertEqual(len({node.machine.total for node in self.cluster.nodes.values()}), 1)
        self.assertEqual(len(self.said), 2, self.said)
        self.assertIn(f"node {wrong.node_id} is told to stop", self.said[0])

    def test_while_all_stand_at_one_index(self) -> None:
        """A cluster that is written to once an hour is compared where it is, not at the next round index alone."""
        self.work(5)
        wrong = self.follower
        wrong.machine.total += 1
        self.compare()
        self.assertIsInstance(self.cause(wrong), StateDiverged)

    def test_leader_that_diverged(self) -> None:
        """It finds that out by itself, and stops like any other."""
        wrong = self.lead
        wrong.machine.total += 1
        self.work()
        self.compare()
        self.assertIsInstance(self.cause(wrong), StateDiverged)
        del self.cluster.nodes[wrong.node_id]
        self.lead = self.cluster.leader()
        self.work()
        self.compare()
        self.assertEqual([node.metrics().stopped for node in self.cluster.nodes.values()], [False, False])

    def test_no_majority_is_an_alarm_alone(self) -> None:
        """All three differ: nobody stops, it is said once, and shown as long as it is so."""
        for number, node in enumerate(self.cluster.nodes.values()):
            node.machine.total += number
        self.work()
        self.compare()
        self.compare()
        digest: Any = self.lead.metrics().digest
        self.assertIn("different digests: node 1", digest.alarm)
        self.assertEqual(len(self.said), 1, self.said)
        self.assertIn("no majority says which is right", self.said[0])
        self.assertEqual([node.metrics().stopped for node in self.cluster.nodes.values()], [False] * 3)
        self.cluster.result(self.lead.propose(1))

    def test_the_third_decides(self) -> None:
        """An alarm while one is away; when it is back, it is known who is wrong."""
        wrong, away = self.cluster.followers()
        others = [self.cluster.address(i) for i in self.ids if i != away.node_id]
        self.cluster.network.partition([away.address], others)
        wrong.machine.total += 1
        self.work()
        self.compare()
        self.assertIn("different digests", self.lead.metrics().digest.alarm)  # type: ignore[union-attr]
        self.assertFalse(wrong.metrics().stopped)
        self.cluster.network.heal()
        self.compare()
        self.compare()
        self.assertIsInstance(self.cause(wrong), StateDiverged)
        self.assertEqual(self.lead.metrics().digest.alarm, "")  # type: ignore[union-attr]
        self.assertFalse(away.metrics().stopped)

    def test_learner_that_diverged(self) -> None:
        """It is compared like a voter."""
        learner = self.cluster.make(4)
        self.cluster.result(self.lead.add_learner(4, learner.address))
        self.work()
        learner.machine.total += 1
        self.work()
        self.compare()
        self.assertIsInstance(self.cause(learner), StateDiverged)
        self.assertEqual([self.cluster.nodes[i].metrics().stopped for i in self.ids], [False] * 3)

    def test_verdict_that_is_lost_comes_again(self) -> None:
        """With the next request, which need not find out anew."""
        wrong, network = self.follower, self.cluster.network
        wrong.machine.total += 1
        self.work()
        self.cluster.until(lambda: bool(self.said), seconds=11.0)
        network.link(self.lead.address, wrong.address).cut = True
        self.cluster.run(0.2)
        self.assertFalse(wrong.metrics().stopped)
        self.asked.clear()
        self.cluster.run(9.0)
        network.usual(self.lead.address, wrong.address)
        self.cluster.until(lambda: wrong.metrics().stopped, seconds=2.0)
        told = [request for target, request in self.asked if target == wrong.address]
        self.assertEqual(len(told), 1)
        self.assertEqual(self.cause(wrong).index, told[0].index)

    def test_lost_and_doubled_messages(self) -> None:
        """Nobody is condemned who is right, and who is wrong does not get away."""
        self.cluster.network.default.loss = self.cluster.network.default.duplicate = 0.2
        for _ in range(5):
            self.work(40, self.cluster.leader())
            self.cluster.run(11.0)
        self.assertEqual([node.metrics().stopped for node in self.cluster.nodes.values()], [False] * 3)
        wrong = self.follower
        wrong.machine.total += 1
        self.cluster.until(lambda: wrong.metrics().stopped, seconds=120.0)
        self.assertIsInstance(wrong._runtime.cause, StateDiverged)

    def test_a_leader_that_is_deposed_meanwhile_judges_nobody(self) -> None:
        """What it was told stays true, but it is not its business any more."""
        judged: list[Findings] = []
        self.patch(self.lead._runtime.digests, "_judge", judged.append)
        self.work()
        for peer in self.cluster.followers():
            self.cluster.network.clog(peer.address, self.lead.address)
        self.cluster.until(lambda: bool(self.asked), seconds=11.0)
        self.cluster.until(lambda: not self.lead.is_leader)
        self.cluster.network.restore()
        self.cluster.run(2.0)
        self.assertEqual(judged, [])


class MessageTests(DigestCase):
    """J-92: what comes late, again, or from another time."""

    def ask(self, node: ConsensusNode, kind: str, index: int, digest: bytes) -> Any:
        envelope = self.lead._runtime.peers.envelope(self.lead.metrics().membership.members[node.node_id])
        return node.handle(envelope, DigestRequest(kind, index, digest))

    def test_late_verdicts(self) -> None:
        """One of long ago that is right for this node, one of an index that is forgotten or not reached yet."""
        self.work(70)
        node = self.follower
        before = self.cluster.result(self.ask(node, "", 0, b""))
        self.assertEqual(before.kind, "sum 1")
        self.assertEqual([each.index for each in before.digests], [64, node.metrics().applied])
        old = before.digests[0]
        for kind, index, digest in (
            ("sum 1", old.index, old.digest),
            ("sum 1", 63, b"1000"),
            ("sum 1", 1 << 20, b"1000"),
            ("sum 2", old.index, b"1000"),
        ):
            self.assertEqual(self.cluster.result(self.ask(node, kind, index, digest)), before)
        self.cluster.error(self.ask(node, "sum 1", old.index, b"1000"), NodeStopped)
        self.assertIsInstance(self.cause(node), StateDiverged)

    def test_a_state_that_was_replaced(self) -> None:
        """What a snapshot has put right is not held against the node, however late the verdict comes."""
        self.work(70)
        node = self.follower
        node.machine.total += 1
        self.work(70)
        wrong = {each.index: each.digest for each in self.cluster.result(self.ask(node, "", 0, b"")).digests}
        others = [self.cluster.address(i) for i in self.ids if i != node.node_id]
        self.cluster.network.partition([node.address], others)
        self.work(70)
        for each in self.cluster.nodes.values():
            if each is not node:
                self.cluster.result(each.trigger("snapshot"))
                self.cluster.result(each.trigger("purge"))
        self.cluster.network.heal()
        self.cluster.until(lambda: node.metrics().snapshot is not None)
        self.cluster.settle()
        self.assertEqual(node.machine.total, self.lead.machine.total)
        for index in wrong:
            self.cluster.result(self.ask(node, "sum 1", index, b"1000"))
        self.compare()
        self.assertEqual([each.metrics().stopped for each in self.cluster.nodes.values()], [False] * 3)
        self.assertEqual([line for line in self.said if "digest" in line], [])

    def test_what_is_kept_is_bounded(self) -> None:
        """The latest of each step, and both steps; what lags far behind still has something in common."""
        for _ in range(10):
            self.cluster.result(self.lead.propose_many([1] * 1000))
        self.cluster.settle()
        kept = [each.index for each in self.cluster.result(self.ask(self.follower, "", 0, b"")).digests]
        self.assertLessEqual(len(kept), 129)
        self.assertIn(4096, kept)
        self.assertIn(8192, kept)
        self.assertIn(9984, kept)
        self.assertNotIn(64, kept)


class TwoNodesTests(DigestCase):
    """J-92: of two, nobody can say who is right."""

    ids = (1, 2)

    def test_alarm_only(self) -> None:
        """Two that differ: nobody knows who is right. It ends when they agree again."""
        self.follower.machine.total += 1
        self.work()
        self.compare()
        digest: Any = self.lead.metrics().digest
        self.assertIn("node 1", digest.alarm)
        self.assertIn("node 2", digest.alarm)
        self.assertEqual(len(self.said), 1)
        self.assertEqual([node.metrics().stopped for node in self.cluster.nodes.values()], [False, False])
        self.follower.machine.total -= 1
        self.work(64 * 65)
        self.compare()
        self.compare()
        self.assertEqual(self.lead.metrics().digest.alarm, "")  # type: ignore[union-attr]

    def test_learner_cannot_decide(self) -> None:
        learner = self.cluster.make(3)
        self.cluster.result(self.lead.add_learner(3, learner.address))
        self.work()
        self.follower.machine.total += 1
        self.work()
        self.compare()
        self.assertIn("node 2", self.lead.metrics().digest.alarm)  # type: ignore[union-attr]
        self.assertEqual([node.metrics().stopped for node in self.cluster.nodes.values()], [False] * 3)


class OtherApplicationsTests(DigestCase):
    def test_without_digest(self) -> None:
        """Nothing is asked, and nothing is shown."""
        cluster = NodeCluster(self)
        cluster.network.watch = self.see
        lead = cluster.begin(1, 2, 3)
        cluster.result(lead.propose_many([["time"]] * 70))
        cluster.run(25.0)
        self.assertEqual(self.asked, [])
        self.assertIsNone(lead.metrics().digest)

    def test_another_version_of_the_digest(self) -> None:
        """A member in an upgrade: its digests are others by right."""
        node = self.follower

        class Newer(Sum):
            digest_kind = "sum 2"

            def state_digest(self) -> bytes:
                return b"new " + super().state_digest()

        self.cluster.crash(node.node_id)
        self.cluster.network.heal()
        self.cluster.make(node.node_id, self.cluster.logs[node.node_id].reopened(), MemStateMachine(Newer()))
        self.work(200)
        self.compare()
        self.compare()
        self.assertEqual([each.metrics().stopped for each in self.cluster.nodes.values()], [False] * 3)
        self.assertEqual([line for line in self.said if "digest" in line], [])
        kinds = {node_id: each.metrics().digest for node_id, each in self.cluster.nodes.items()}
        self.assertEqual(kinds[node.node_id].kind, "sum 2")  # type: ignore[union-attr]

    def test_digest_that_fails(self) -> None:
        """It says nothing of the state: told once, and the node goes on without it."""
        node = self.follower
        failing = {"error": ZeroDivisionError("a bug")}

        def digest() -> bytes:
            raise failing["error"]

        self.patch(node.machine, "state_digest", digest)
        self.work(200)
        self.compare()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsNone(node.metrics().digest)
        self.assertEqual([each.metrics().stopped for each in self.cluster.nodes.values()], [False] * 3)

    def test_digest_that_is_none(self) -> None:
        for wrong in (b"", b"x" * 65, "text", None):
            with self.subTest(wrong):
                cluster = NodeCluster(self)
                machine = Sum()
                self.patch(machine, "state_digest", Mock(return_value=wrong))
                store = MemStateMachine(machine)
                cluster.make_machine = Mock(return_value=store)
                lead = cluster.begin(1)
                cluster.result(lead.propose_many([1] * 70))
                self.assertIsNone(lead.metrics().digest)
                self.assertFalse(lead.metrics().stopped)

    def test_kind_that_is_none(self) -> None:
        """A mistake of who wrote the application, told when the node is made."""
        for wrong in ("", "x" * 65, "two\nlines", 1):
            machine = Sum()
            machine.digest_kind = wrong  # type: ignore[assignment]
            with self.assertRaises(TypeError):
                NodeCluster(self).make(9, machine=MemStateMachine(machine))

    def test_off(self) -> None:
        cluster = NodeCluster(self, digest_interval=0)
        cluster.make_machine = lambda: MemStateMachine(Sum())
        cluster.network.watch = self.see
        lead = cluster.begin(1, 2, 3)
        cluster.result(lead.propose_many([1] * 70))
        cluster.run(25.0)
        self.assertEqual(self.asked, [])
        self.assertEqual(lead.metrics().digest.index, 64)  # type: ignore[union-attr]

    def test_key_value_store(self) -> None:
        self.assertTrue(verifyObject(IStateDigest, KeyValueMachine()))
