"""
The wire codec: what goes in comes out, and nothing but what the schema allows comes in.
"""

import dataclasses
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.config import ConsensusConfig
from zlayer_consensus.errors import (
    ClusterMismatch,
    ConsensusError,
    IncarnationMismatch,
    InvalidMessage,
    NodeRemoved,
    NodeStopped,
    NotLeader,
    Overloaded,
    PeerRefused,
    PeerUnreachable,
    ProposalTooLarge,
    TargetMismatch,
)
from zlayer_consensus.network import (
    MAX_FORWARDED,
    MAX_OUTCOME_BYTES,
    MAX_TIMEOUT_MS,
    PROTOCOL_VERSION,
    DigestAt,
    DigestReply,
    DigestRequest,
    Envelope,
    ForwardedOutcome,
    ForwardedProposal,
    IdentifyReply,
    IdentifyRequest,
    OperateReply,
    OperateRequest,
    ProposeReply,
    ProposeRequest,
    SnapshotChunk,
    SnapshotChunkReply,
    request_limits,
)
from zlayer_consensus.network._codec import decode_reply, decode_request, encode_reply, encode_request
from zlayer_consensus.network._errors import decode_error, encode_error, error_body
from zlayer_consensus.network._headers import identity_headers
from zlayer_consensus.network._schema import ENDPOINTS
from zlayer_consensus.raft import (
    ENTRY_OVERHEAD,
    MAX_INDEX,
    MAX_TERM,
    NO_LOG,
    AppendReply,
    AppendRequest,
    Entry,
    EntryKind,
    HeartbeatReply,
    HeartbeatRequest,
    LogId,
    ReadIndexReply,
    ReadIndexRequest,
    TimeoutNowReply,
    TimeoutNowRequest,
    VoteReply,
    VoteRequest,
)

ENVELOPE = Envelope(b"c" * 16, 1, b"1" * 16, 2, b"2" * 16)
MAX_U64 = (1 << 64) - 1
AFTER_10 = LogId(4, 10)

REQUESTS: dict[str, Any] = {
    "vote": VoteRequest(5, LogId(4, 10), 3, True, False),
    "heartbeat": HeartbeatRequest(5, 7, 9),
    "append": AppendRequest(
        5, 2, 3, LogId(4, 10), (Entry.make(11, 4, EntryKind.COMMAND, b"x" * 9), Entry.make(12, 5, 0)), 11
    ),
    "snapshot": SnapshotChunk(5, LogId(4, 10), b"d" * 32, b"", 1, 2, b"data", False),
    "timeout-now": TimeoutNowRequest(5),
    "read-index": ReadIndexRequest(5, 77),
    "propose": ProposeRequest(
        5, 6, 7, (ForwardedProposal(b"payload", 1, 8, 9, 5000), ForwardedProposal(b"", 3, 0, 0, 1))
    ),
    "operate": OperateRequest(8, 9, 10, "remove_learner", b"arguments", 5000),
    "identify": IdentifyRequest(b"members"),
    "digest": DigestRequest("store 1", 64, b"d" * 16),
}
REPLIES: dict[str, Any] = {
    "vote": VoteReply(5, 3, True, False),
    "heartbeat": HeartbeatReply(5, 9, 10, 7),
    "append": AppendReply(5, 2, 3, False, 0, LogId(4, 9), 12),
    "snapshot": SnapshotChunkReply(5, "continue", 1, 6),
    "timeout-now": TimeoutNowReply(5),
    "read-index": ReadIndexReply(5, 77, 7),
    "propose": ProposeReply((ForwardedOutcome("", b"result", 12), ForwardedOutcome("not_leader", b"attributes", 0))),
    "operate": OperateReply("", b"result"),
    "identify": IdentifyReply(2, b"2" * 16, b"c" * 16, b"m", b"ms", 1),
    "digest": DigestReply("store 1", (DigestAt(64, b"d" * 16), DigestAt(70, b"e"))),
}

terms = st.integers(1, MAX_TERM)
indexes = st.integers(0, MAX_INDEX)
u64 = st.integers(0, MAX_U64)
i63 = st.integers(0, (1 << 63) - 1)
log_ids = st.one_of(st.just(NO_LOG), st.builds(LogId, st.integers(1, MAX_TERM), st.integers(1, MAX_INDEX)))


@st.composite
def appends(draw: st.DrawFn) -> AppendRequest:
    """A legal append request."""
    term = draw(st.integers(1, MAX_TERM))
    prev = draw(st.one_of(st.just(NO_LOG), st.builds(LogId, st.integers(1, term), st.integers(1, MAX_INDEX - 10))))
    steps = sorted(draw(st.lists(st.integers(max(prev.term, 1), term), max_size=6)))
    entries = tuple(
        Entry.make(
            prev.index + 1 + n, entry_term, draw(st.sampled_from(EntryKind)), draw(st.binary(max_size=40)), draw(u64)
        )
        for n, entry_term in enumerate(steps)
    )
    return AppendRequest(term, draw(u64), draw(u64), prev, entries, draw(indexes))


@st.composite
def of_one_term(draw: st.DrawFn, build: Callable[[int, LogId], Any]) -> Any:
    """A message whose log position is of no later term than itself."""
    last = draw(log_ids)
    return build(draw(st.integers(max(last.term, 1), MAX_TERM)), last)


messages = st.one_of(
    appends(),
    of_one_term(lambda term, last: VoteRequest(term, last, 3, True, False)),
    st.builds(HeartbeatRequest, terms, indexes, u64),
    st.builds(TimeoutNowRequest, terms),
    st.builds(ReadIndexRequest, terms, u64),
    st.builds(
        ProposeRequest,
        terms,
        u64,
        u64,
        st.lists(
            st.builds(
                ForwardedProposal, st.binary(max_size=99), st.integers(0, 3), i63, i63, st.integers(1, 86_400_000)
            ),
            min_size=1,
            max_size=9,
        ).map(tuple),
    ),
    st.builds(
        OperateRequest,
        terms,
        u64,
        u64,
        st.text("abcxyz_", max_size=64),
        st.binary(max_size=99),
        st.integers(1, 86_400_000),
    ),
    st.builds(IdentifyRequest, st.binary(max_size=99)),
)
quick = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def plain_request(name: str) -> dict[str, Any]:
    """Return a legal request as plain values."""
    plain = cbor2.loads(encode_request(ENVELOPE, REQUESTS[name], 1)[1])
    assert isinstance(plain, dict)
    return plain


def put(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Return a change of a plain request's body."""
    return lambda plain: plain["body"].update({key: value})


def put_outside(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Return a change of the frame around a body."""
    return lambda plain: plain.update({key: value})


def remove(key: str) -> Callable[[dict[str, Any]], object]:
    """Return a change that takes a key out of the frame."""
    return lambda plain: plain.pop(key)


def remove_inside(key: str) -> Callable[[dict[str, Any]], object]:
    """Return a change that takes a key out of the body."""
    return lambda plain: plain["body"].pop(key)


class RoundTripTests(SynchronousTestCase):
    def test_every_rpc_has_an_example_here(self) -> None:
        self.assertEqual(set(REQUESTS), set(ENDPOINTS))
        self.assertEqual(set(REPLIES), set(ENDPOINTS))

    def test_examples(self) -> None:
        for name, request in REQUESTS.items():
            endpoint, body = encode_request(ENVELOPE, request, 7)
            self.assertEqual(endpoint, name)
            frame = decode_request(name, body)
            self.assertEqual(frame, (PROTOCOL_VERSION, ENVELOPE, 7, request))
            self.assertIs(type(frame.message), type(request))
        for name, reply in REPLIES.items():
            endpoint, body = encode_reply(ENVELOPE, reply, 7)
            self.assertEqual(endpoint, name)
            self.assertEqual(decode_reply(name, body, 1, ENVELOPE, 7), (PROTOCOL_VERSION, ENVELOPE, 7, reply))

    @quick
    @given(messages, u64)
    def test_whatever_is_legal(self, request: Any, rpc: int) -> None:
        name, body = encode_request(ENVELOPE, request, rpc)
        frame = decode_request(name, body)
        self.assertEqual(frame.message, request)
        self.assertEqual(frame.rpc, rpc)

    def test_entries_keep_their_bytes(self) -> None:
        """The same bytes go to the disk of every replica."""
        request = REQUESTS["append"]
        frame = decode_request("append", encode_request(ENVELOPE, request, 1)[1])
        self.assertEqual([each.raw for each in frame.message.entries], [each.raw for each in request.entries])
        self.assertTrue(all(type(each) is Entry and type(each.raw) is bytes for each in frame.message.entries))

    def test_identify_may_leave_out_what_it_asks_for(self) -> None:
        unknown = Envelope(b"", 1, b"1" * 16, 0, b"")
        name, body = encode_request(unknown, REQUESTS["identify"], 1)
        self.assertEqual(decode_request(name, body).envelope, unknown)

    def test_largest_messages_fit_their_limits(self) -> None:
        """What any legal configuration allows a sender to send is what every receiver reads (A-28)."""
        config = ConsensusConfig(max_proposal_bytes=16 << 20, max_payload_bytes=16 << 20, max_payload_entries=100_000)
        limits = request_limits()
        size = config.max_payload_bytes // config.max_payload_entries - ENTRY_OVERHEAD
        full = tuple(Entry.make(n + 1, 1, 1, b"x" * size) for n in range(config.max_payload_entries))
        single = (Entry.make(1, 1, 1, b"x" * config.max_proposal_bytes),)
        for entries in (full, single):
            body = encode_request(ENVELOPE, AppendRequest(MAX_TERM, MAX_U64, MAX_U64, NO_LOG, entries, MAX_INDEX), 1)[1]
            self.assertLess(len(body), limits["append"])
            self.assertEqual(decode_request("append", body).message.entries, entries)
        huge = (MAX_TERM, LogId(MAX_TERM, MAX_INDEX), b"d" * 32)
        for chunk in (SnapshotChunk(*huge, b"m" * (1 << 20), 0, 0, b"", False),
                      SnapshotChunk(*huge, b"", MAX_INDEX, MAX_INDEX, b"x" * (1 << 20), True)):  # fmt: skip
            self.assertLess(len(encode_request(ENVELOPE, chunk, MAX_U64)[1]), limits["snapshot"])
        payload = b"x" * (config.max_payload_bytes // MAX_FORWARDED)
        many = (ForwardedProposal(payload, 3, (1 << 63) - 1, (1 << 63) - 1, MAX_TIMEOUT_MS),) * MAX_FORWARDED
        one = (ForwardedProposal(b"x" * config.max_proposal_bytes, 3, 0, 0, 1),)
        for proposals in (many, one):
            body = encode_request(ENVELOPE, ProposeRequest(MAX_TERM, MAX_U64, MAX_U64, proposals), MAX_U64)[1]
            self.assertLess(len(body), limits["propose"])
            self.assertEqual(decode_request("propose", body).message.proposals, proposals)

    def test_largest_outcomes_fit_their_limit(self) -> None:
        payload = b"x" * (MAX_OUTCOME_BYTES // MAX_FORWARDED)
        many = (ForwardedOutcome("z" * 64, payload, MAX_INDEX),) * MAX_FORWARDED
        one = (ForwardedOutcome("", b"x" * MAX_OUTCOME_BYTES, MAX_INDEX),)
        for outcomes in (many, one):
            body = encode_reply(ENVELOPE, ProposeReply(outcomes), MAX_U64)[1]
            self.assertLess(len(body), ENDPOINTS["propose"].reply_limit)
            self.assertEqual(decode_reply("propose", body).message.outcomes, outcomes)
        body = encode_reply(ENVELOPE, ProposeReply((*one, ForwardedOutcome("", b"x", 1))), MAX_U64)[1]
        self.assertRaises(InvalidMessage, decode_reply, "propose", body)


class StrictTests(SynchronousTestCase):
    """A-18 to A-24: everything else is one error, which names what is wrong."""

    def assert_invalid(self, name: str, body: bytes, said: str = "", reply: bool = False) -> None:
        decode = decode_reply if reply else decode_request
        started = time.perf_counter()
        error = self.assertRaises(InvalidMessage, decode, name, body)
        self.assertLess(time.perf_counter() - started, 0.5)
        self.assertIn(said, error.detail)
        self.assertTrue(error.detail.isprintable() and len(error.detail) < 300, error.detail)

    def assert_refuses(self, name: str, said: str, change: Callable[[dict[str, Any]], object]) -> None:
        plain = plain_request(name)
        change(plain)
        self.assert_invalid(name, cbor2.dumps(plain), said)

    def test_not_one_item(self) -> None:
        """A-18: empty, cut off at every byte, followed by a byte, followed by an item."""
        body = encode_request(ENVELOPE, REQUESTS["append"], 1)[1]
        for end in range(len(body)):
            self.assert_invalid("append", body[:end], "append_request")
        self.assert_invalid("append", body + b"\x00")
        self.assert_invalid("append", body + body)

    def test_dangerous_cbor(self) -> None:
        """A-19: depth, lengths, indefinite lengths, tags, NaN, undefined, simple values, bad UTF-8."""
        tags = [
            b"\xc0\x60",
            b"\xc2\x41\x01",
            b"\xd8\x23\x61a",
            b"\xd8\x1c\x80",
            b"\xd9\xd9\xf7\x00",
            b"\xda\x00\x12\x34\x56\x00",
        ]
        for bad in [
            b"\x81" * 10_000 + b"\x00",
            b"\x5b" + b"\x7f" + b"\xff" * 7,
            b"\x9b" + b"\x7f" + b"\xff" * 7,
            b"\xbf\xff",
            b"\x9f\xff",
            b"\x5f\x41a\xff",
            b"\xa2\x61a\x00\x61a\x00",
            b"\xa1\x00\x00",
            b"\xf9\x7e\x00",
            b"\xf9\x7c\x00",
            b"\xf7",
            b"\xe0",
            b"\x62\xff\xfe",
            *tags,
        ]:
            self.assert_invalid("vote", bad, "vote_request")

    def test_dangerous_values_inside_of_a_good_frame(self) -> None:
        """A-19 where a field is: the body's decoder sees them before the schema does."""
        good = encode_request(ENVELOPE, TimeoutNowRequest(5), 1)[1]
        at = good.index(b"\x64term\x05") + 5
        for bad in (b"\xf9\x7e\x00", b"\xf7", b"\xe0", b"\xc1\x05", b"\xc2\x41\x05", b"\xfa\x40\xa0\x00\x00", b"\xf5"):
            self.assert_invalid("timeout-now", good[:at] + bad + good[at + 1 :], "timeout_now_request")

    def test_bombs(self) -> None:
        """A-20: nested shared references, and 20 000 keys with one hash."""
        bomb = b"\xd8\x1c\x80"
        for _ in range(26):
            bomb = b"\xd8\x1c\x82" + bomb + b"\xd8\x1d\x00"
        self.assert_invalid("vote", bomb)
        modulus = (1 << 61) - 1
        keys = b"".join(cbor2.dumps(n * modulus) + b"\x00" for n in range(8))
        self.assert_invalid("vote", b"\xa8" + keys)
        colliding = b"".join(b"\x1b" + struct.pack(">Q", n) + b"\x00" for n in range(20_000))
        self.assert_invalid("vote", b"\xb9\x4e\x20" + colliding)

    def test_keys_are_exact(self) -> None:
        """A-21, A-27: a missing key, an unknown one, another type of map."""
        for name in REQUESTS:
            for key in plain_request(name):
                self.assert_refuses(name, f".{key}", remove(key))
            for key in plain_request(name)["body"]:
                self.assert_refuses(name, f".{key}", remove_inside(key))
            self.assert_refuses(name, "unknown", put_outside("path", "../../etc/passwd"))
            self.assert_refuses(name, "unknown", put("name\n", 1))
            self.assert_refuses(name, "map", put_outside("body", [1]))
        self.assert_invalid("vote", cbor2.dumps([1]), "map")

    def test_types_are_exact(self) -> None:
        """A-21: for every field of every message a value of each other type, True for an integer among them."""
        samples: list[Any] = [True, False, None, -1, 1.0, "text", b"bytes", [], [1], [True, True], {}, MAX_U64, 1 << 63]
        for name, request in REQUESTS.items():
            for field in dataclasses.fields(request):
                legal = plain_request(name)["body"][field.name]
                for sample in samples:
                    plain = plain_request(name)
                    plain["body"][field.name] = sample
                    body = cbor2.dumps(plain)
                    try:
                        decoded = decode_request(name, body).message
                    except InvalidMessage as error:
                        self.assertIn(f".{field.name}", error.detail)
                    else:
                        self.assertIs(type(sample), type(legal), f"{name}.{field.name} = {sample!r}")
                        self.assertEqual(
                            cbor2.loads(encode_request(ENVELOPE, decoded, 1)[1])["body"][field.name], sample
                        )

    def test_ranges(self) -> None:
        """A-21, A-24: terms and indexes end at 2^62-1, and a term of a request is not 0."""
        for name in ("vote", "heartbeat", "append", "timeout-now", "snapshot"):
            for term in (0, MAX_TERM + 1, MAX_U64):
                self.assert_refuses(name, ".term", put("term", term))
        for index in (MAX_INDEX + 1, MAX_U64):
            self.assert_refuses("heartbeat", ".commit", put("commit", index))
        for last in ([0, 2], [1, 0], [1], [1, 1, 1], [MAX_TERM + 1, 1], [True, True]):
            self.assert_refuses("vote", ".last", put("last", last))
        for size in (0, 31, 33):
            self.assert_refuses("snapshot", ".digest", put("digest", b"d" * size))
        self.assert_refuses("operate", ".operation", put("operation", "rm -rf"))
        self.assert_refuses("operate", ".timeout_ms", put("timeout_ms", 0))
        good = [b"", 1, 1, 1, 1]
        for at, value in ((1, 4), (2, 1 << 63), (3, 1 << 63), (4, 0), (4, MAX_TIMEOUT_MS + 1), (0, ""), (2, True)):
            row = [*good]
            row[at] = value
            self.assert_refuses("propose", ".proposals", put("proposals", [good, row]))
        for rows in ([], [good] * (MAX_FORWARDED + 1), [good[:-1]], [[*good, 1]], [None]):
            self.assert_refuses("propose", ".proposals", put("proposals", rows))
        for node_id in (1 << 63, MAX_U64):
            self.assert_refuses("vote", "id", put_outside("from", [node_id, b"1" * 16]))

    def test_rules_between_fields(self) -> None:
        self.assert_refuses("vote", ".last", put("last", [6, 10]))
        probe = AppendRequest(5, 2, 3, LogId(6, 10), (), 11)
        self.assert_invalid("append", encode_request(ENVELOPE, probe, 1)[1], ".prev")
        self.assert_refuses("snapshot", ".manifest", put("manifest", b"m"))
        self.assert_refuses("snapshot", ".last", put("last", [0, 0]))
        success = dataclasses.replace(REPLIES["append"], match=9)
        self.assert_invalid("append", encode_reply(ENVELOPE, success, 1)[1], ".match", reply=True)

    def test_frame(self) -> None:
        """The body names protocol, type and both ends, and may leave out none of it (A-08)."""
        self.assert_refuses("vote", ".protocol", put_outside("protocol", 2))
        self.assert_refuses("vote", ".protocol", put_outside("protocol", True))
        self.assert_refuses("vote", ".type", put_outside("type", "heartbeat_request"))
        self.assert_refuses("vote", ".rpc", put_outside("rpc", -1))
        self.assert_refuses("vote", ".cluster", put_outside("cluster", b"c" * 15))
        self.assert_refuses("vote", ".cluster", put_outside("cluster", b""))
        for end in ("from", "to"):
            bad: Any
            for bad in ([1], [1, b"1" * 15], [1, b""], [0, b"1" * 16], [-1, b"1" * 16], [True, b"1" * 16], 1, {}):
                self.assert_refuses("vote", f".{end}", put_outside(end, bad))
        self.assert_refuses("vote", ".from", put_outside("from", [2, b"2" * 16]))
        self.assert_refuses("identify", ".from", put_outside("from", [0, b"1" * 16]))
        self.assert_refuses("identify", ".from", put_outside("from", [1, b""]))

    def test_request_is_no_reply_and_of_one_rpc(self) -> None:
        for name, request in REQUESTS.items():
            self.assert_invalid(name, encode_request(ENVELOPE, request, 1)[1], ".type", reply=True)
            self.assert_invalid(
                "vote" if name != "vote" else "append", encode_request(ENVELOPE, request, 1)[1], ".type"
            )

    @quick
    @given(st.sampled_from(sorted(REQUESTS)), st.data())
    def test_mutated_bytes(self, name: str, data: st.DataObject) -> None:
        """A-37: whatever a byte turns into, it is a message or the one error."""
        body = bytearray(encode_request(ENVELOPE, REQUESTS[name], 1)[1])
        for _ in range(data.draw(st.integers(1, 4))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(body)))
            body[at:at] = data.draw(st.binary(max_size=8))
        try:
            frame = decode_request(name, bytes(body))
        except InvalidMessage as error:
            self.assertIn(ENDPOINTS[name].request.name, error.detail)
        else:
            self.assertEqual(decode_request(*encode_request(frame.envelope, frame.message, frame.rpc)), frame)


class EntriesTests(SynchronousTestCase):
    """A-22: the entries of an append message."""

    def assert_invalid(self, entries: bytes, said: str, prev: LogId = AFTER_10, term: int = 5) -> None:
        plain = plain_request("append")
        plain["body"].update(entries=entries, prev=list(prev), term=term)
        error = self.assertRaises(InvalidMessage, decode_request, "append", cbor2.dumps(plain))
        self.assertIn("append_request.entries", error.detail)
        self.assertIn(said, error.detail)

    def pack(self, *entries: Entry) -> bytes:
        raws = [entry.raw for entry in entries]
        return struct.pack(f"<I{len(raws)}I", len(raws), *map(len, raws)) + b"".join(raws)

    def test_gap_overlap_and_doubles(self) -> None:
        self.assert_invalid(self.pack(Entry.make(12, 5, 1)), "index 12 where 11")
        self.assert_invalid(self.pack(Entry.make(10, 5, 1)), "index 10 where 11")
        self.assert_invalid(self.pack(Entry.make(11, 5, 1), Entry.make(11, 5, 1)), "index 11 where 12")
        self.assert_invalid(self.pack(Entry.make(0, 5, 1)), "index 0 where 1", NO_LOG)

    def test_terms(self) -> None:
        self.assert_invalid(self.pack(Entry.make(11, 3, 1)), "term 3 after 4")
        self.assert_invalid(self.pack(Entry.make(11, 5, 1), Entry.make(12, 4, 1)), "term 4 after 5")
        self.assert_invalid(self.pack(Entry.make(11, 6, 1)), "term 6 exceeds")
        self.assert_invalid(self.pack(Entry.make(1, 0, 1)), "term 0", NO_LOG)
        self.assert_invalid(self.pack(Entry.make(1, 5, 1), Entry.make(2, 0, 1)), "term 0", NO_LOG)

    def test_initial_configuration_alone_has_term_0(self) -> None:
        """No leader wrote it; who joins later gets it over the wire like every entry."""
        first = Entry.make(1, 0, EntryKind.CONFIG, b"members")
        request = AppendRequest(5, 2, 3, NO_LOG, (first, Entry.make(2, 5, 0)), 2)
        self.assertEqual(decode_request(*encode_request(ENVELOPE, request, 1)).message, request)
        self.assert_invalid(self.pack(first, Entry.make(2, 0, EntryKind.CONFIG)), "term 0", NO_LOG)
        after = AppendRequest(5, 2, 4, LogId(0, 1), (Entry.make(2, 5, 0),), 2)
        self.assertEqual(decode_request(*encode_request(ENVELOPE, after, 1)).message, after)

    def test_kind_and_range(self) -> None:
        self.assert_invalid(self.pack(Entry.make(11, 5, 4)), "kind 4")
        self.assert_invalid(self.pack(Entry.make(MAX_INDEX + 1, 5, 1)), "too large", LogId(4, MAX_INDEX))

    def test_packing(self) -> None:
        one = self.pack(Entry.make(11, 5, 1, b"payload"))
        self.assert_invalid(b"", "count")
        self.assert_invalid(b"\x01\x00\x00", "count")
        self.assert_invalid(struct.pack("<I", 1), "lengths are cut off")
        self.assert_invalid(one[:-1], "add up")
        self.assert_invalid(one + b"\0", "add up")
        self.assert_invalid(struct.pack("<II", 1, 40) + b"x" * 40, "complete header")
        self.assert_invalid(struct.pack("<III", 2, 0, 48) + b"x" * 48, "complete header")
        self.assert_invalid(struct.pack("<II", 1, 0xFFFFFFFF) + b"x" * 48, "add up")
        self.assert_invalid(struct.pack("<I", 0xFFFFFFFF), "too many")
        self.assert_invalid(struct.pack("<I", 100_001) + b"\0" * 400_004, "too many")

    def test_commit_may_be_ahead_of_the_entries(self) -> None:
        """The leader's commit index is beyond what a follower that catches up gets in one message."""
        request = dataclasses.replace(REQUESTS["append"], commit=MAX_INDEX)
        self.assertEqual(decode_request(*encode_request(ENVELOPE, request, 1)).message, request)


class ReplyTests(SynchronousTestCase):
    def test_answer_to_another_question(self) -> None:
        """J-41: crossed wires are noticed."""
        _, body = encode_reply(ENVELOPE, REPLIES["propose"], 7)
        decode_reply("propose", body, 1, ENVELOPE, 7)
        self.assertRaises(InvalidMessage, decode_reply, "propose", body, 1, ENVELOPE, 8)
        for change in (
            {"cluster_id": b"x" * 16},
            {"sender_id": 3},
            {"target_id": 3},
            {"sender_incarnation": b"x" * 16},
            {"target_incarnation": b"x" * 16},
        ):
            other = dataclasses.replace(ENVELOPE, **change)
            self.assertRaises(InvalidMessage, decode_reply, "propose", body, 1, other, 7)


class ErrorTests(SynchronousTestCase):
    def back(self, error: BaseException) -> ConsensusError:
        return decode_error(*encode_error(error), "peer:1", ENVELOPE)

    def test_errors_that_a_peer_tells(self) -> None:
        """A-08: each with its type, its attributes and its status."""
        for error, status in (
            (InvalidMessage("vote_request.term: must be an integer"), 400),
            (ClusterMismatch("aa", "bb"), 412),
            (TargetMismatch(2, 3), 412),
            (IncarnationMismatch(2, "aa", "bb"), 412),
            (PeerRefused("not before bootstrap", "not_ready"), 412),
            (NodeRemoved(1), 410),
            (NodeStopped(), 503),
            (Overloaded("appends", 8), 429),
            (ProposalTooLarge(5, 4), 413),
        ):
            found = self.back(error)
            self.assertIs(type(found), type(error))
            self.assertEqual(found.attributes(), error.attributes())
            self.assertEqual(str(found), str(error))
            self.assertEqual(encode_error(error)[0], status)

    def test_subclass_of_a_refusal_that_has_no_form(self) -> None:
        class Odd(PeerRefused):
            code = "odd"

        found = self.back(Odd("detail", "odd"))
        self.assertEqual(found.attributes(), {"detail": "detail", "refusal": "odd"})

    def test_other_errors_are_not_told(self) -> None:
        for error in (NotLeader(3, "a:1"), ValueError("secret")):
            status, body = encode_error(error)
            self.assertEqual(status, 500)
            self.assertNotIn(b"secret", body)
            found = self.back(error)
            assert isinstance(found, PeerUnreachable)
            self.assertTrue(found.sent)

    def test_text_cannot_write_lines_into_a_log(self) -> None:
        """A-34: neither ours, when we tell, nor a peer's, when it lies."""
        found = self.back(InvalidMessage("first\nsecond\x1b[31m" + "x" * 5000))
        assert isinstance(found, InvalidMessage)
        self.assertTrue(found.detail.isprintable())
        self.assertLess(len(found.detail), 1025)
        lie = cbor2.dumps({"code": "invalid_message", "message": "m", "attributes": {"detail": "a\nb"}})
        self.assertNotIn("\n", str(decode_error(400, lie, "peer:1", ENVELOPE)))

    def test_removal_of_another_node_is_not_ours(self) -> None:
        """A forged or misdirected 410 does not take this node out of service."""
        self.assertIsInstance(self.back(NodeRemoved(2)), PeerUnreachable)
        self.assertIsInstance(decode_error(410, b"gone", "peer:1", ENVELOPE), PeerUnreachable)

    def test_status_without_a_body_of_ours(self) -> None:
        for body in (b"", b"<html>", error_body("", "text"), cbor2.dumps({"code": 1, "message": "", "attributes": {}})):
            for status, kind in (
                (404, InvalidMessage),
                (400, InvalidMessage),
                (426, InvalidMessage),
                (403, PeerRefused),
            ):
                self.assertIsInstance(decode_error(status, body, "peer:1", ENVELOPE), kind)
            for status in (301, 408, 429, 500, 502, 503, 504):
                error = decode_error(status, body, "peer:1", ENVELOPE)
                assert isinstance(error, PeerUnreachable)
                self.assertTrue(error.sent)

    def test_form_must_be_exact(self) -> None:
        attributes: Any
        for attributes in ({}, {"detail": 1}, {"detail": "x", "more": 1}, [], {"detail": "x" * 2000}):
            body = cbor2.dumps({"code": "cluster_mismatch", "message": "m", "attributes": attributes})
            self.assertNotIsInstance(decode_error(412, body, "peer:1", ENVELOPE), ClusterMismatch)
        _, body = encode_error(NodeStopped())
        self.assertNotIsInstance(decode_error(500, body, "peer:1", ENVELOPE), NodeStopped)


class DocumentationTests(SynchronousTestCase):
    """The page on the wire protocol describes what is here, not what was."""

    def setUp(self) -> None:
        self.page = (Path(__file__).resolve().parent.parent / "docs" / "wire-protocol.rst").read_text(encoding="utf-8")

    def test_every_message_is_described(self) -> None:
        for endpoint in ENDPOINTS.values():
            self.assertIn(f"``POST /raft/{endpoint.name}``\n~~~", self.page)
            row = f"""   * - ``/raft/{endpoint.name}``
     - {endpoint.lane}
     - {endpoint.request_limit:,} bytes
     - {endpoint.reply_limit:,} bytes
"""
            self.assertIn(row.replace(",", " "), self.page)
            for schema in (endpoint.request, endpoint.reply):
                rows = "".join(f"   * - ``{name}``\n     - {field.form}\n" for name, field in schema.fields)
                head = "   :header-rows: 1\n   :widths: 20 80\n\n   * - Field\n     - Must be\n"
                self.assertIn(f"``{schema.name}``\n\n.. list-table::\n{head}{rows}", self.page)

    def test_example(self) -> None:
        node_1, node_2 = bytes.fromhex("00112233445566778899aabbccddeeff"), bytes(range(0xFF, -1, -0x11))
        envelope = Envelope(bytes.fromhex("6a1f0c7e53d84b0e9b1d2f60c4a89e11"), 1, node_1, 2, node_2)
        for _, body in (
            encode_request(envelope, HeartbeatRequest(3, 17, 42), 7),
            encode_reply(envelope, HeartbeatReply(3, 42, 17, 16), 7),
        ):
            self.assertIn(body.hex(), self.page.replace("\n   ", ""))
            self.assertIn(f" {len(body)}", self.page)
        for name, value in identity_headers(envelope):
            self.assertIn(f"   {name.decode()}: {value.decode()}\n", self.page)
