"""
A new cluster of the survivors: what it keeps, what is refused, and power failures at every step.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from twisted.trial.unittest import SynchronousTestCase

from tests.crash_kit import PowerFailure, fail_power
from tests.log_store_kit import DIRECTORY, entry, opened, result
from tests.repair_kit import damage_of, save_snapshot, start_node
from tests.test_file_log_recovery import records, segments
from zlayer_consensus import _cbor
from zlayer_consensus.errors import StorageCorrupt, StorageLocked
from zlayer_consensus.raft import (
    AddLearner,
    Entry,
    EntryKind,
    HardState,
    LogId,
    LogWrite,
    Member,
    Membership,
    Start,
)
from zlayer_consensus.storage import Identity
from zlayer_consensus.storage._identity import read_identity, write_identity
from zlayer_consensus.storage._segment import SEGMENT_HEADER, decode_header
from zlayer_consensus.storage._survivors import digest_of
from zlayer_consensus.storage.inspection import NoLog
from zlayer_consensus.storage.offline import (
    CannotRecover,
    Holdings,
    RecoveryPlan,
    join_new_cluster,
    plan_recovery,
    survey,
)
from zlayer_consensus.testing import SimulatedFileSystem

OLD, NEW = b"o" * 16, b"n" * 16
IDS = (1, 2, 3, 4, 5)


def incarnation(node_id: int) -> bytes:
    """The incarnation that the test kit's stores get."""
    return random.Random(f"salts of {node_id}").randbytes(16)


def members(*ids: int) -> Membership:
    return Membership.initial(Member(n, incarnation(n), f"host-{n}:7001", f"host-{n}:8001") for n in ids)


@dataclass
class Node:
    """One member's directory, closed."""

    node_id: int
    disk: SimulatedFileSystem = field(default_factory=SimulatedFileSystem)

    def survey(self) -> Holdings:
        return survey(self.disk, DIRECTORY, DIRECTORY)

    def join(self, plan: RecoveryPlan, seed: object = 0) -> bool:
        randbytes = random.Random(f"join {seed}").randbytes
        return join_new_cluster(self.disk, DIRECTORY, DIRECTORY, plan, randbytes)

    def start(self) -> tuple[Start, list[Entry], Identity]:
        """Opens everything as a node does when it starts."""
        start, found, identity = start_node(self.disk, self.node_id)
        return start, list(found.values()), identity

    def copy(self) -> Node:
        return Node(self.node_id, self.disk.crash(process_only=True))


def make(node_id: int, *runs: tuple[int, int], commit: int, term: int = 0, config: Membership | None = None) -> Node:
    """Makes a directory whose log begins with the configuration and goes on with runs of (term, last index)."""
    node = Node(node_id)
    log, _ = opened(node.disk, node_id=node_id)
    result(log.adopt(Identity(node_id, b"", OLD, b"origin")))
    first = Entry.make(1, 0, EntryKind.CONFIG, (config or members(*IDS)).encode(), 1001)
    result(log.write(LogWrite(entries=(first,))))
    at = 2
    for run_term, last in runs:
        for index in range(at, last + 1):
            result(log.write(LogWrite(entries=(entry(index, run_term),), hard_state=HardState(run_term, 2, 0))))
        at = last + 1
    term = term or runs[-1][0]
    result(log.write(LogWrite(hard_state=HardState(term, 3 if term > runs[-1][0] else 2, commit))))
    result(log.close())
    return node


def plan_for(*nodes: Node, lost: tuple[int, ...] = (3, 4, 5), repaired: bool = False) -> RecoveryPlan:
    return plan_recovery(
        [each.survey() for each in nodes],
        frozenset(lost),
        new_cluster=NEW,
        time_ms=5000,
        tool="a test",
        repaired=repaired,
    )


class PlanTests(SynchronousTestCase):
    def test_the_best_log_is_the_base(self) -> None:
        """As in an election: the greater last term, then the greater last index (§5.4.1)."""
        one, two = make(1, (1, 40), commit=20), make(2, (1, 30), (2, 33), commit=30)
        self.assertEqual(2, plan_for(one, two).base)
        self.assertEqual(1, plan_for(one, make(2, (1, 39), commit=39)).base)
        self.assertEqual(2, plan_for(one, make(2, (1, 40), commit=25)).base)

    def test_the_base_has_all_that_is_known_as_committed(self) -> None:
        """Figure 8: a later term can be that of a leader whom no majority has followed since (H-20)."""
        knows = make(1, (1, 20), (2, 30), commit=30)
        later = make(2, (1, 20), (3, 40), commit=20)
        plan = plan_for(knows, later)
        self.assertEqual((1, (21, 40)), (plan.base, plan.replaced(2)))
        self.assertEqual(1, plan_for(make(1, (1, 20), (2, 30), commit=21), later).base)
        self.assertEqual(2, plan_for(make(1, (1, 20), (2, 30), commit=20), later).base)
        self.assertEqual(2, plan_for(knows, make(2, (1, 20), (2, 31), (3, 32), commit=5)).base)

    def test_a_snapshot_tells_what_is_committed(self) -> None:
        """Also where the log behind it was purged."""
        knows = make(1, (1, 20), (2, 30), commit=10)
        save_snapshot(knows.disk, LogId(2, 25), membership=members(*IDS))
        log, _ = opened(knows.disk, node_id=1)
        result(log.purge(LogId(2, 25)))
        result(log.close())
        self.assertEqual(1, plan_for(knows, make(2, (1, 20), (3, 40), commit=20)).base)

    def test_what_will_be_replaced_is_known(self) -> None:
        one, two = make(1, (1, 20), (2, 40), commit=18), make(2, (1, 25), (3, 27), commit=20)
        plan = plan_for(one, two)
        self.assertEqual((2, (21, 40), None), (plan.base, plan.replaced(1), plan.replaced(2)))
        plan = plan_for(one, make(2, (1, 20), (2, 30), commit=19))
        self.assertEqual((1, None), (plan.base, plan.replaced(2)))

    def test_the_term_is_greater_than_any(self) -> None:
        plan = plan_for(make(1, (1, 20), commit=10), make(2, (1, 19), commit=10, term=8))
        self.assertEqual((1, 9), (plan.base, plan.term))
        self.assertEqual([(21, 9), (22, 9)], [(each.index, each.term) for each in plan.entries])

    def test_the_new_configuration(self) -> None:
        """The survivors vote; everybody else that any of them knows is gone for ever (H-49)."""
        old = replace(members(*IDS), tombstones=frozenset({9}))
        later = old.after(AddLearner(Member(6, b"6" * 16, "host-6:7001")))
        plan = plan_for(
            make(1, (1, 20), commit=10, config=old), make(2, (1, 19), commit=10, config=later), lost=(3, 4, 5, 6)
        )
        self.assertEqual(frozenset({1, 2}), plan.membership.voters)
        self.assertEqual({1: members(1).members[1], 2: members(2).members[2]}, plan.membership.members)
        self.assertEqual(frozenset({3, 4, 5, 6, 9}), plan.membership.tombstones)
        self.assertFalse(plan.membership.joint)

    def test_the_audit_entry(self) -> None:
        plan = plan_for(make(1, (1, 20), commit=10), make(2, (1, 19), commit=12))
        audit = plan.entries[0]
        self.assertEqual((EntryKind.NOOP, 5000), (audit.kind, audit.time_ms))
        note = _cbor.loads(audit.payload)
        self.assertEqual(
            (OLD, NEW, 1, [3, 4, 5]), tuple(note[k] for k in ("old_cluster", "new_cluster", "base", "lost"))
        )
        self.assertEqual([(1, 20, 10), (2, 19, 12)], [(s["id"], s["index"], s["committed"]) for s in note["survivors"]])

    def test_it_survives_a_file(self) -> None:
        plan = plan_for(make(1, (1, 20), commit=10), make(2, (1, 19), commit=12))
        text = plan.to_json()
        self.assertEqual(plan, RecoveryPlan.from_json(text))
        for changed in (text.replace('"term": 2', '"term": 3'), "{}", "[]", "nothing", text[:-20]):
            self.assertRaises(ValueError, RecoveryPlan.from_json, changed)

    def refused(self, *nodes: Node, lost: tuple[int, ...] = (3, 4, 5)) -> str:
        return str(self.assertRaises(CannotRecover, plan_for, *nodes, lost=lost))

    def test_a_majority_needs_no_recovery(self) -> None:
        trio = [make(n, (1, 20), commit=10) for n in (1, 2, 3)]
        self.assertIn("nothing is lost", self.refused(*trio, lost=(4, 5)))

    def test_every_lost_member_is_named_and_no_other(self) -> None:
        pair = [make(n, (1, 20), commit=10) for n in (1, 2)]
        for lost in ((3, 4), (3, 4, 5, 6), (2, 3, 4, 5)):
            self.refused(*pair, lost=lost)

    def test_strangers(self) -> None:
        """Another cluster, a replaced disk, a node that is no member, one node twice (H-29, J-11)."""
        one, two = make(1, (1, 20), commit=10), make(2, (1, 20), commit=10)
        self.assertIn("more than one of the directories is of node 1", self.refused(one, two, one.copy()))
        seven = make(7, (1, 20), commit=10)
        self.assertIn("no member", self.refused(one, seven))
        other = replace(
            members(*IDS), members={**members(*IDS).members, 2: replace(members(2).members[2], incarnation=b"x" * 16)}
        )
        self.assertIn("replaced", self.refused(make(1, (1, 21), commit=10, config=other), two))
        identity = read_identity(two.disk, DIRECTORY, 2)
        assert identity is not None
        write_identity(two.disk, DIRECTORY, replace(identity, cluster_id=b"z" * 16, former=(OLD,)))
        self.assertIn("not finished", self.refused(one, two))
        write_identity(two.disk, DIRECTORY, replace(identity, cluster_id=b"z" * 16, former=(b"y" * 16, OLD)))
        self.assertIn("not finished", self.refused(one, two))

    def test_a_repaired_survivor_has_to_be_allowed(self) -> None:
        """What it lacks is unknown; and its mark, which cannot clear any more, goes."""
        one, two = make(1, (1, 20), commit=10), make(2, (1, 20), commit=10)
        identity = read_identity(two.disk, DIRECTORY, 2)
        assert identity is not None
        write_identity(two.disk, DIRECTORY, replace(identity, repair=b"r" * 16))
        self.assertIn("repaired", self.refused(one, two))
        plan = plan_for(one, two, repaired=True)
        self.assertEqual(b"", plan.identity_of(2).repair)
        self.assertEqual(b"r" * 16, _cbor.loads(plan.entries[0].payload)["survivors"][1]["repair"])

    def test_the_others_must_not_be_a_majority_by_what_they_know(self) -> None:
        """They go by the old configuration until the base has told them the new one."""
        nodes = [make(n, (1, 20 - n), commit=10) for n in IDS]
        for node in nodes[2:]:
            identity = read_identity(node.disk, DIRECTORY, node.node_id)
            assert identity is not None
            write_identity(node.disk, DIRECTORY, replace(identity, repair=b"r" * 16))
        surveys = [each.survey() for each in nodes]
        keywords = {"new_cluster": NEW, "time_ms": 1, "tool": "", "repaired": True}
        self.assertRaises(CannotRecover, plan_recovery, surveys, frozenset(), **keywords)
        plan = plan_recovery(surveys[:3], frozenset({4, 5}), **keywords)  # type: ignore[arg-type]
        self.assertEqual(1, plan.base)
        self.assertRaises(CannotRecover, plan_recovery, surveys[:4], frozenset({5}), **keywords)


class SurveyTests(SynchronousTestCase):
    def test_what_a_survivor_has(self) -> None:
        node = make(1, (1, 30), (2, 40), commit=25, term=7)
        save_snapshot(node.disk, LogId(1, 28))
        log, _ = opened(node.disk, node_id=1)
        result(log.purge(LogId(1, 10)))
        result(log.close())
        found = node.survey()
        self.assertEqual((LogId(2, 40), LogId(1, 10), HardState(7, 3, 25)), (found.last, found.purged, found.state))
        self.assertEqual((28, 28, frozenset(IDS)), (found.committed, found.snapshot, found.ids | frozenset(IDS)))
        self.assertEqual([1, 1, 2, None, None], [found.term_at(at) for at in (10, 30, 31, 9, 41)])
        self.assertEqual(found, Holdings.from_plain(found.to_plain()))
        self.assertRaises(ValueError, Holdings.from_plain, {"node_id": 1})

    def test_a_log_that_yields_to_a_received_snapshot(self) -> None:
        """S-17: what counts is the snapshot."""
        node = make(1, (1, 30), commit=25)
        save_snapshot(node.disk, LogId(3, 100), installed=True)
        found = node.survey()
        self.assertEqual((LogId(3, 100), LogId(3, 100), 100), (found.last, found.purged, found.committed))
        self.assertEqual(frozenset({1, 2, 3}), found.membership.voters)

    def test_what_is_no_survey(self) -> None:
        """Also if the digest fits: only a :exc:`ValueError` comes of it."""
        whole = make(1, (1, 20), commit=10).survey()
        plain = whole.to_plain()
        self.assertEqual(whole, Holdings.from_json(whole.to_json()))
        wrong: tuple[Any, ...] = (None, -1, 1 << 70, "x", [], {}, [None], [[1]], [[1, 2, 3]], 7)
        for key, value in itertools.product(plain, wrong):
            body = {**plain, key: value}
            with contextlib.suppress(ValueError):
                Holdings.from_json(json.dumps({"survey": body, "sha256": digest_of(body)})).term_at(10)
        for key in plain:
            body = {name: value for name, value in plain.items() if name != key}
            with self.assertRaises(ValueError):
                Holdings.from_plain(body)
        for text in ("", "7", "[]", "{}", '{"survey": {}}'):
            with self.assertRaises(ValueError):
                Holdings.from_json(text)

    def test_damage_is_refused(self) -> None:
        node = make(1, (1, 200), commit=25)
        path = segments(node.disk)[1]
        node.disk.corrupt(path, records(node.disk, path)[1].position + 70, b"\xee")
        self.assertRaises(StorageCorrupt, node.survey)

    def test_there_has_to_be_a_log(self) -> None:
        self.assertRaises(NoLog, Node(1).survey)


class JoinTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.one, self.two = make(1, (1, 150), (3, 160), commit=140), make(2, (1, 155), commit=150)
        self.plan = plan_for(self.one, self.two)
        self.assertEqual(1, self.plan.base)

    def test_the_base_gets_the_new_configuration(self) -> None:
        before = self.one.start()[1]
        self.assertTrue(self.one.join(self.plan))
        start, found, identity = self.one.start()
        self.assertEqual([*before, *self.plan.entries], found)
        self.assertEqual(HardState(4, 1, 162), start.hard_state)
        self.assertEqual((NEW, (OLD,), b"origin"), (identity.cluster_id, identity.former, identity.origin))
        self.assertEqual([], damage_of(self.one.disk))

    def test_the_others_keep_their_logs(self) -> None:
        before, found, _ = self.two.start()
        self.assertTrue(self.two.join(self.plan))
        start, after, identity = self.two.start()
        self.assertEqual((found, before.hard_state), (after, start.hard_state))
        self.assertEqual((NEW, (OLD,)), (identity.cluster_id, identity.former))
        self.assertEqual([], damage_of(self.two.disk))

    def test_the_log_goes_on_in_a_segment_of_the_new_cluster(self) -> None:
        """From there a lost identity can be read."""
        for node in (self.one, self.two):
            node.join(self.plan)
            header = decode_header(node.disk.read(segments(node.disk)[-1], 0, SEGMENT_HEADER))
            self.assertEqual(NEW, header.cluster_id)

    def test_again_is_no_change(self) -> None:
        """Also once the node has run."""
        for node in (self.one, self.two):
            node.join(self.plan)
            disk = node.disk.files()
            self.assertFalse(node.join(self.plan, seed=2))
            self.assertEqual(disk, node.disk.files())
            log, start = opened(node.disk, node_id=node.node_id)
            more = entry(start.last.index + 1, 9)
            result(log.write(LogWrite(entries=(more,), hard_state=HardState(9, 0, 0))))
            result(log.close())
            self.assertFalse(node.join(self.plan))
            self.assertEqual(more, node.start()[1][-1])

    def test_only_what_the_plan_knows_becomes_part_of_it(self) -> None:
        three = make(3, (1, 20), commit=10)
        self.assertRaises(CannotRecover, three.join, self.plan)
        self.assertRaises(NoLog, Node(1).join, self.plan)
        for node in (self.one, self.two):
            log, start = opened(node.disk, node_id=node.node_id)
            result(log.write(LogWrite(hard_state=HardState(start.hard_state.term + 1, 0, start.hard_state.commit))))
            result(log.close())
            before = node.disk.files()
            self.assertIn("has run since", str(self.assertRaises(CannotRecover, node.join, self.plan)))
            self.assertEqual(before, node.disk.files())
        other = make(1, (1, 150), (3, 160), commit=140)
        identity = read_identity(other.disk, DIRECTORY, 1)
        assert identity is not None
        write_identity(other.disk, DIRECTORY, replace(identity, origin=b"another"))
        self.assertRaises(CannotRecover, other.join, self.plan)

    def test_a_running_node_is_left_alone(self) -> None:
        log, _ = opened(self.one.disk, node_id=1)
        self.assertRaises(StorageLocked, self.one.join, self.plan)
        result(log.close())

    def test_a_log_that_yields_to_a_received_snapshot(self) -> None:
        """S-17: it is reset, as the next start would have done, and goes on behind the snapshot."""
        node = make(1, (1, 30), commit=25)
        save_snapshot(node.disk, LogId(3, 100), installed=True, membership=members(*IDS))
        plan = plan_for(node, make(2, (1, 20), commit=10))
        node.join(plan)
        start, found, _ = node.start()
        self.assertEqual((LogId(3, 100), LogId(4, 102)), (start.purged, start.last))
        self.assertEqual(list(plan.entries), found)

    def test_power_failures(self) -> None:
        """S-24: at any operation, with any part of what was not synced; done again, it gives the same."""
        for node in (self.one, self.two):
            whole = node.copy()
            whole.join(self.plan)
            expected = self.look(whole)
            trial = node.copy()
            trial.disk.operations.clear()
            trial.join(self.plan)
            names = [name for name, _ in trial.disk.operations]
            for at in range(len(names)):
                if names[at] in {"read", "list", "open"}:
                    continue
                broken = node.copy()
                broken.disk.operations.clear()
                fail_power(broken.disk, at)
                self.assertRaises(PowerFailure, broken.join, self.plan)
                keeps: tuple[Literal["none", "all", "prefix"] | random.Random, ...]
                keeps = ("none", "all", "prefix", random.Random(at))
                for keep in keeps:
                    again = Node(node.node_id, broken.disk.crash(keep))
                    what = f"node {node.node_id}, operation {at}, keep {keep}"
                    self.harmless(again.copy(), what)
                    again.join(self.plan)
                    self.assertEqual(expected, self.look(again), what)
                    self.assertEqual([], damage_of(again.disk), what)

    def look(self, node: Node) -> tuple[object, ...]:
        start, found, identity = node.start()
        return start.last, start.hard_state, found, identity

    def harmless(self, node: Node, what: str) -> None:
        """In between, a node of the old cluster has nothing of the new one (it would tell the old members)."""
        start, _, identity = node.start()
        if identity.cluster_id == OLD:
            self.assertLess(start.last.index, self.plan.entries[0].index, what)
