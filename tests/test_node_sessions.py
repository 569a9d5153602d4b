"""Client sessions: a retried command is answered, not repeated."""

from __future__ import annotations

from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.errors import (
    ConsensusError,
    DomainError,
    OutcomeUnknown,
    SessionExpired,
    SessionSequenceReused,
    SessionSequenceStale,
)
from zlayer_consensus.node._sessions import SessionLoader, SessionSettings, SessionTable

from .node_cluster import NodeCluster, NodeTestCase


def loaded(pieces: list[bytes]) -> SessionTable:
    loader = SessionLoader()
    for piece in pieces:
        assert not loader.done
        loader.feed(piece)
    assert loader.done and loader.table is not None
    return loader.table


class SessionTableTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.table = SessionTable()
        self.settings = SessionSettings(ttl_ms=1000, max_sessions=3, window=4)

    def register(self, session: int, time_ms: int = 0) -> None:
        self.table.register(session, time_ms, self.settings.encode())

    def command(self, session: int, sequence: int, time_ms: int = 0, payload: bytes = b"p") -> Any:
        """Execute a command as the applier does; return ``"new"``, the kept reply, or the error's type."""
        known = self.table.look_up(session, sequence, time_ms, payload)
        if known is None:
            self.table.keep(session, sequence, payload, b"reply to %d" % sequence)
            return "new"
        return type(known) if isinstance(known, ConsensusError) else known

    def test_a_retry_gets_the_kept_reply(self) -> None:
        """H-82."""
        self.register(7)
        self.assertEqual(self.command(7, 1), "new")
        self.assertEqual(self.command(7, 1), b"reply to 1")

    def test_unknown_sessions_are_refused(self) -> None:
        """H-83: the command is not executed."""
        self.assertIs(self.command(7, 1), SessionExpired)
        self.register(7)
        self.assertIs(self.command(8, 1), SessionExpired)

    def test_idle_sessions_expire_by_the_logs_time(self) -> None:
        """H-83: only times in entries count, and use prolongs."""
        self.register(7, 0)
        self.register(8, 0)
        self.assertEqual(self.command(8, 1, 600), "new")
        self.assertEqual(self.command(8, 2, 1001), "new")
        self.assertIs(self.command(7, 1, 1001), SessionExpired)
        self.assertEqual(self.command(8, 3, 2001), "new")
        self.assertIs(self.command(8, 4, 3002), SessionExpired)

    def test_the_least_recently_used_goes_first(self) -> None:
        """H-83."""
        for session in (1, 2, 3):
            self.register(session)
        self.assertEqual(self.command(1, 1), "new")
        self.register(4)
        self.assertIs(self.command(2, 1), SessionExpired)
        self.assertEqual([self.command(session, 2) for session in (1, 3, 4)], ["new"] * 3)
        self.assertEqual(len(self.table), 3)

    def test_a_session_that_was_registered_twice_costs_nothing_but_time(self) -> None:
        """H-86: a retried registration leaves a session that nobody uses; it expires, the used one stays."""
        self.register(7, 0)
        self.register(8, 0)
        self.assertEqual([self.command(8, n, 500 * n) for n in range(1, 4)], ["new"] * 3)
        self.assertEqual(len(self.table), 1)
        self.assertIs(self.command(7, 1, 1500), SessionExpired)

    def test_concurrent_commands_come_in_any_order(self) -> None:
        """H-84: within the window."""
        self.register(7)
        self.assertEqual([self.command(7, n) for n in (3, 1, 4, 2)], ["new"] * 4)
        self.assertEqual([self.command(7, n) for n in (1, 2, 3, 4)], [b"reply to %d" % n for n in (1, 2, 3, 4)])

    def test_what_left_the_window_is_stale(self) -> None:
        """H-84: its reply is gone, and it is not executed a second time."""
        self.register(7)
        for n in range(1, 7):
            self.assertEqual(self.command(7, n), "new")
        self.assertIs(self.command(7, 2), SessionSequenceStale)
        self.assertEqual(self.command(7, 3), b"reply to 3")
        error = self.table.look_up(7, 1, 0, b"p")
        assert isinstance(error, SessionSequenceStale)
        self.assertEqual(error.oldest, 3)
        self.assertEqual(self.command(7, 1000), "new")
        self.assertIs(self.command(7, 6), SessionSequenceStale)

    def test_a_larger_window_does_not_forget_what_was_forgotten(self) -> None:
        """H-84: settings from a newer leader must not make an old command new."""
        self.register(7)
        for n in range(1, 7):
            self.command(7, n)
        self.settings = SessionSettings(1000, 3, 100)
        self.register(8)
        self.assertIs(self.command(7, 2), SessionSequenceStale)
        self.assertEqual(self.command(7, 7), "new")

    def test_another_payload_under_the_same_sequence_is_refused(self) -> None:
        """H-85."""
        self.register(7)
        self.command(7, 1, payload=b"one")
        self.assertIs(self.command(7, 1, payload=b"other"), SessionSequenceReused)
        self.assertEqual(self.command(7, 1, payload=b"one"), b"reply to 1")

    def test_a_snapshot_is_as_of_its_call(self) -> None:
        """H-82: whatever is applied while it is written, it shows the table as it was."""
        self.register(1)
        self.register(2)
        self.command(1, 1)
        pieces = self.table.snapshot()
        first = next(pieces)
        self.command(1, 2)
        self.register(3)
        self.register(4)
        copy = loaded([first, *pieces])
        self.assertEqual(len(copy), 2)
        self.assertEqual(copy.look_up(1, 1, 0, b"p"), b"reply to 1")
        self.assertIsNone(copy.look_up(1, 2, 0, b"p"))
        self.assertEqual(self.command(1, 2), b"reply to 2")

    def test_a_snapshot_keeps_everything(self) -> None:
        """H-82, H-84: order of use, floors and settings included; large replies come in bounded pieces."""
        self.settings = SessionSettings(1000, 1000, 50)
        for session in range(1, 400):
            self.register(session, session)
        for n in range(1, 61):
            self.table.look_up(5, n, 500, b"p")
            self.table.keep(5, n, b"p", bytes(20_000))
        pieces = list(self.table.snapshot())
        self.assertGreater(len(pieces), 10)
        self.assertLess(max(map(len, pieces)), 100_000)
        copy = loaded(pieces)
        self.assertEqual(list(copy.snapshot()), pieces)
        self.assertIsInstance(copy.look_up(5, 10, 500, b"p"), SessionSequenceStale)
        self.assertEqual(copy.look_up(5, 11, 500, b"p"), bytes(20_000))

    def test_damaged_pieces_are_refused(self) -> None:
        """A-37: only ValueError."""
        self.register(1)
        self.command(1, 1)
        head, rows, end = self.table.snapshot()
        for pieces in ([b"\xff"], [rows], [head, b"\xa0"], [head, b"\x81\x01"], [head, rows[:-1]], [end]):
            with self.subTest(pieces), self.assertRaises(ValueError):
                loaded(pieces)

    def test_settings_are_checked(self) -> None:
        for payload in (b"", b"\x80", b"\x83\x01\x02\x00", b"\x83\x01\x02\xf5"):
            with self.subTest(payload), self.assertRaises(ValueError):
                SessionSettings.decode(payload)


class SessionTests(NodeTestCase):
    settings: ClassVar[dict[str, Any]] = {"session_ttl_ms": 60_000, "session_window": 8}

    def test_a_retry_at_the_next_leader_is_answered(self) -> None:
        """H-82, J-43: executed once, whoever leads when it is retried."""
        session = self.cluster.result(self.lead.register_session())
        self.assertEqual(self.cluster.result(self.lead.propose(["add", "n", 1], session=session, sequence=1)), 1)
        self.cluster.crash(self.lead.node_id)
        new = self.cluster.leader()
        self.assertEqual(self.cluster.result(new.propose(["add", "n", 1], session=session, sequence=1)), 1)
        self.assertEqual(self.cluster.result(new.propose(["add", "n", 1], session=session, sequence=2)), 2)
        self.cluster.settle()
        self.assertEqual(self.cluster.states(), [{"n": 2}] * 2)

    def test_a_session_can_be_registered_at_a_follower(self) -> None:
        session = self.cluster.result(self.follower.register_session())
        for _ in range(2):
            waiting = self.follower.propose(["add", "n", 1], session=session, sequence=1)
            self.assertEqual(self.cluster.result(waiting), 1)

    def test_the_same_command_twice_at_once(self) -> None:
        """Both are in the log; the second gets the first one's reply."""
        session = self.cluster.result(self.lead.register_session())
        waiting = [self.lead.propose(["add", "n", 1], session=session, sequence=1) for _ in range(2)]
        self.assertEqual([self.cluster.result(each) for each in waiting], [1, 1])

    def test_domain_errors_are_kept_too(self) -> None:
        """H-81, H-82: the retry gets the same error, with its attributes."""
        session = self.cluster.result(self.lead.register_session())
        for _ in range(2):
            waiting = self.lead.propose(["fail", "sold_out"], session=session, sequence=1)
            error = self.cluster.error(waiting, DomainError)
            self.assertEqual((error.reason, error.details), ("sold_out", {"key": 1}))

    def test_errors_have_their_types_at_followers_too(self) -> None:
        """A-31: definite errors, with attributes, over the wire as well."""
        session = self.cluster.result(self.lead.register_session())
        for node in (self.lead, self.follower):
            self.cluster.outcome(node.propose(["add", "n", 1], session=session, sequence=1))
            waiting = node.propose(["add", "n", 2], session=session, sequence=1)
            reused = self.cluster.error(waiting, SessionSequenceReused)
            self.assertEqual((reused.session, reused.sequence), (session, 1))
            waiting = node.propose(["add", "n", 2], session=999, sequence=1)
            self.assertEqual(self.cluster.error(waiting, SessionExpired).session, 999)
        self.cluster.result(self.lead.propose(["add", "n", 1], session=session, sequence=20))
        stale = self.cluster.error(self.follower.propose(["time"], session=session, sequence=2), SessionSequenceStale)
        self.assertEqual(stale.oldest, 13)

    def test_reply_that_cannot_be_decoded_any_more(self) -> None:
        """After a change of the response's type: one caller is told, and no replica stops."""
        follower = self.follower
        session = self.cluster.result(self.lead.register_session())
        self.cluster.result(self.lead.propose(["add", "a", 1], session=session, sequence=1))
        self.cluster.settle()

        def renamed(_reply: bytes) -> Any:
            raise ValueError("the class was renamed")

        for node in self.cluster.nodes.values():
            self.patch(node._runtime.types, "decode_response", renamed)
        for node in (self.lead, follower):
            waiting = node.propose(["add", "a", 1], session=session, sequence=1)
            self.assertIn("was applied", str(self.cluster.error(waiting, OutcomeUnknown)))
        self.cluster.settle()
        self.assertEqual([node.metrics().stopped for node in self.cluster.nodes.values()], [False] * 3)
        self.assertEqual(self.cluster.states(), [{"a": 1}] * 3)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_expiry_follows_the_log(self) -> None:
        """H-83: an idle session's command is refused, at every replica alike."""
        session = self.cluster.result(self.lead.register_session())
        self.cluster.run(61.0, step=0.05)
        lead = self.cluster.leader()
        self.cluster.error(lead.propose(["add", "n", 1], session=session, sequence=1), SessionExpired)
        self.cluster.settle()
        self.assertEqual(self.cluster.states(), [{}] * 3)

    def test_the_log_decides_not_the_configuration(self) -> None:
        """H-83: replicas with other settings of their own expire the same sessions."""
        cluster = NodeCluster(self, session_ttl_ms=60_000)
        members = [cluster.member(node_id) for node_id in (1, 2, 3)]
        for node_id in (1, 2, 3):
            cluster.make(node_id, max_sessions=node_id, session_window=node_id)
        for each in [node.bootstrap(members) for node in cluster.nodes.values()]:
            cluster.result(each)
        lead = cluster.leader()
        for _ in range(5):
            session = cluster.result(lead.register_session())
            cluster.result(lead.propose(["add", "n", 1], session=session, sequence=1))
        cluster.settle()
        tables = {tuple(node._runtime.applier.sessions.snapshot()) for node in cluster.nodes.values()}
        self.assertEqual(len(tables), 1)
