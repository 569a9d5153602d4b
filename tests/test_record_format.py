"""
The formats of records, segment headers and seals: docs/storage-format.rst.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from zlib import crc32

from twisted.trial.unittest import SynchronousTestCase

from tests.log_store_kit import entries, entry
from zlayer_consensus.raft import Entry, EntryKind, HardState, LogId
from zlayer_consensus.storage._record import (
    BATCH,
    MARK,
    RECORD_HEADER,
    SECTOR,
    BadRecord,
    Batch,
    Purge,
    Reset,
    SetState,
    Truncate,
    check_record,
    decode_entries,
    decode_operations,
    encode_batch,
    encode_operation,
    encode_record,
    parse_header,
    record_size,
    stored_length,
)
from zlayer_consensus.storage._segment import (
    SEGMENT_HEADER,
    BadSegment,
    NewerFormat,
    Seal,
    SegmentHeader,
    decode_header,
    decode_seal,
    encode_header,
    encode_seal,
    parse_name,
    seal_bound,
    segment_name,
)

SALT, CHAIN, POSITION = 0x1234ABCD, 0x89, 4096


def encoded(payload: bytes) -> tuple[bytes, int]:
    return encode_record(BATCH, payload, 3, 7, 9, POSITION, SALT, CHAIN)


def decoded(record: bytes, salt: int = SALT, chain: int | None = CHAIN, position: int = POSITION) -> bytes:
    header = parse_header(record[:SECTOR], position, salt)
    return check_record(header, record[: header.size], salt, chain)


def joined(pieces: list[bytes]) -> bytes:
    return b"".join(pieces)


class RecordTests(SynchronousTestCase):
    def payloads(self) -> list[bytes]:
        rng = random.Random(7)
        sizes = [0, 1, 446, 447, 448, 449, 510, 511, 512, 958, 959, 960, 961, 1023, 1024, 5000]
        made = [bytes(size) for size in sizes]
        made += [rng.randbytes(size) for size in sizes]
        made += [b"x" + bytes(3000) + b"y", bytes(600) + rng.randbytes(600), rng.randbytes(600) + bytes(600)]
        return made

    def test_what_is_encoded_can_be_decoded(self) -> None:
        for payload in self.payloads():
            record, chain = encoded(payload)
            self.assertEqual(payload, decoded(record))
            header = parse_header(record[:SECTOR], POSITION, SALT)
            self.assertEqual((BATCH, 3, 7, 9, POSITION, chain), (*header[:1], *header[3:7], header.chain))
            self.assertEqual(len(record), header.size)
            self.assertLessEqual(len(record), record_size(stored_length(len(payload))))

    def test_no_sector_of_a_record_looks_unwritten(self) -> None:
        """S-01: a sector of zeros in a record was never written, also when the payload is all zeros."""
        for payload in self.payloads():
            record, _ = encoded(payload)
            self.assertEqual(0, len(record) % SECTOR)
            for at in range(0, len(record), SECTOR):
                self.assertTrue(any(record[at : at + SECTOR]), f"{len(payload)} bytes, sector at {at}")

    def test_no_sector_is_one_flipped_bit_from_unwritten(self) -> None:
        """S-02: else a flipped bit in the last record of a busy log would pass for a write that a crash cut short."""
        single = [bytes(n) + bit + bytes(1200) for n in range(440, 1000, 7) for bit in (b"\x01", b"\x80")]
        sparse = [(bytes(gap) + b"\x04") * (3000 // gap) for gap in range(200, 600, 5)]
        for payload in [*self.payloads(), *single, *sparse]:
            record, _ = encoded(payload)
            self.assertEqual(payload, decoded(record))
            for at in range(0, len(record), SECTOR):
                bits = int.from_bytes(record[at : at + SECTOR], "little").bit_count()
                self.assertGreater(bits, 1, f"{len(payload)} bytes, sector at {at}")

    def test_every_damaged_byte_is_noticed(self) -> None:
        """S-02, S-03, S-04: header, length, payload and padding, each bit of each byte."""
        for payload in (b"", b"some payload", bytes(1200)):
            record, _ = encoded(payload)
            for at in range(len(record)):
                for bit in (1, 0x10, 0x80):
                    damaged = bytearray(record)
                    damaged[at] ^= bit
                    self.assertRaises(BadRecord, decoded, bytes(damaged))

    def test_a_record_elsewhere_is_noticed(self) -> None:
        """S-05, S-06: a valid record at another offset, of another segment, or out of order."""
        record, _ = encoded(b"payload")
        self.assertRaises(BadRecord, decoded, record, position=POSITION + SECTOR)
        self.assertRaises(BadRecord, decoded, record, salt=SALT + 1)
        self.assertRaises(BadRecord, decoded, record, chain=CHAIN + 1)

    def test_the_chain_covers_empty_records(self) -> None:
        _, first = encode_record(MARK, b"", 0, 1, 0, POSITION, SALT, CHAIN)
        _, second = encode_record(MARK, b"", 0, 1, 0, POSITION + SECTOR, SALT, first)
        self.assertEqual(3, len({CHAIN, first, second}))

    def test_the_format_is_pinned(self) -> None:
        """Whoever changes the format changes the version, this, and the worked example of docs/storage-format.rst."""
        batch, pieces = encode_batch([Entry.make(1, 1, EntryKind.COMMAND, b"hi", time_ms=1000)])
        payload = joined([*pieces, encode_operation(SetState(HardState(1, 2, 0)))])
        record, chain = encode_record(BATCH, payload, 1, batch.first, batch.last, 4096, 0xC0FFEE, 0)
        self.assertEqual(SECTOR, len(record))
        self.assertEqual(
            "5a4c7263010000005700000001000000010000000000000001000000000000000010000000000000",
            record[:40].hex(),
        )
        self.assertEqual(
            "0200000001000000" "2b000000"
            "0100000000000000" "0100000000000000" "e803000000000000" "0000000000000000" "0000000000000000" "01" "6869"
            "0300000000000000" "0100000000000000" "0200000000000000" "0000000000000000" "a5",
            record[RECORD_HEADER : RECORD_HEADER + len(payload) + 1].hex(),
        )  # fmt: skip
        self.assertEqual(crc32(payload), int.from_bytes(record[40:44], "little"))
        self.assertEqual(crc32(record[:44], 0xC0FFEE), chain)
        self.assertEqual(chain, int.from_bytes(record[44:48], "little"))
        self.assertEqual(crc32(record[:48], 0xC0FFEE), int.from_bytes(record[48:52], "little"))
        self.assertFalse(any(record[52:64]))
        page = (Path(__file__).parent.parent / "docs" / "storage-format.rst").read_text()
        example = page.split("\nAn example\n", 1)[1].split("::\n\n", 1)[1].split("\n\nWhat an opening", 1)[0]
        shown = "".join(re.findall(r"^ +((?:(?:[0-9a-f]{2})+ ?)+)", example, re.MULTILINE))
        self.assertEqual(record, bytes.fromhex(shown).ljust(SECTOR, b"\0"))


class OperationTests(SynchronousTestCase):
    def test_a_batch_describes_its_entries(self) -> None:
        mixed = (entry(5, 1), entry(6, 1, kind=EntryKind.CONFIG), entry(7, 3), entry(8, 3, b""), entry(9, 4))
        batch, pieces = encode_batch(mixed)
        self.assertEqual(Batch(5, 9, ((5, 1), (7, 3), (9, 4)), (6,), 1009), batch)
        self.assertEqual([batch], decode_operations(joined(pieces)))
        self.assertEqual(list(mixed), decode_entries(joined(pieces)))

    def test_operations_keep_their_order(self) -> None:
        """Several writes of one group: each takes effect after the one before it."""
        first, first_pieces = encode_batch(entries(1, 4))
        second, second_pieces = encode_batch(entries(3, 5, term=2))
        cut, state, reset, purge = Truncate(2), SetState(HardState(2, 1, 2)), Reset(LogId(3, 9)), Purge(LogId(3, 9))
        third, third_pieces = encode_batch(entries(10, 11, term=3))
        until_reset = joined([*first_pieces, encode_operation(cut), *second_pieces, encode_operation(state)])
        payload = joined([until_reset, encode_operation(reset), encode_operation(purge), *third_pieces])
        self.assertEqual([first, cut, second, state, reset, purge, third], decode_operations(payload))
        self.assertEqual(list(entries(10, 11, term=3)), decode_entries(payload))
        self.assertEqual([*entries(1, 2), *entries(3, 5, term=2)], decode_entries(until_reset))

    def test_entries_that_contradict_themselves_are_not_encoded(self) -> None:
        """What could not be recovered is never written."""
        one, two, three = entries(1, 3)
        for broken in (
            (one, three),
            (two, one),
            (one._replace(term=2), two, three),
            (Entry(1, 1, one.kind, two.raw),),
            (one, two, Entry(3, 1, one.kind, two.raw)),
        ):
            self.assertRaises(ValueError, encode_batch, broken)

    def test_payloads_that_break_the_grammar_are_refused(self) -> None:
        _, pieces = encode_batch(entries(1, 3))
        batch = joined(pieces)
        gap = joined(encode_batch(entries(1, 1))[1])[:12] + entry(1).raw
        falling = entry(1, 2).raw + entry(2, 1).raw
        unknown = Entry(1, 1, 9, entry(1).raw[:40] + b"\x09")
        for payload in (
            batch[:-1],
            batch[:20],
            batch + b"\x01",
            b"\x09" + bytes(15),
            b"\x02" + bytes(7),
            b"\x02\0\0\0" + (1 << 30).to_bytes(4, "little") + bytes(64),
            encode_operation(Truncate(5))[:-1],
            b"\x02\0\0\0\x02\0\0\0" + len(entry(1).raw).to_bytes(4, "little") * 2 + entry(1).raw + entry(1).raw,
            b"\x02\0\0\0\x02\0\0\0" + len(entry(1).raw).to_bytes(4, "little") * 2 + falling,
            b"\x02\0\0\0\x01\0\0\0" + len(unknown.raw).to_bytes(4, "little") + unknown.raw,
            gap[:-1],
        ):
            self.assertRaises(BadRecord, decode_operations, payload)


HEADER = SegmentHeader(
    b"c" * 16, 7, b"i" * 16, 3, 1 << 20, 0xABCDEF01, 0x10203040, 65536,
    LogId(4, 90), LogId(2, 40), HardState(5, 2, 80), 85, 123456,
)  # fmt: skip


class SegmentHeaderTests(SynchronousTestCase):
    def test_what_is_encoded_can_be_decoded(self) -> None:
        for header in (HEADER, HEADER._replace(cluster_id=b"")):
            data = encode_header(header)
            self.assertEqual(SEGMENT_HEADER, len(data))
            self.assertEqual(header, decode_header(data))

    def test_every_damaged_byte_is_noticed(self) -> None:
        """S-02, S-18: the header holds term and vote."""
        data = encode_header(HEADER)
        for at in range(len(data)):
            damaged = bytearray(data)
            damaged[at] ^= 1
            self.assertRaises(BadSegment, decode_header, bytes(damaged))
        self.assertRaises(BadSegment, decode_header, data[:-1])
        self.assertRaises(BadSegment, decode_header, bytes(SEGMENT_HEADER))

    def test_a_later_format_is_told_from_damage(self) -> None:
        """S-25: an intact header of a later version."""
        data = bytearray(encode_header(HEADER))
        data[8:10] = (2).to_bytes(2, "little")
        data[12:16] = bytes(4)
        check = crc32(bytes(data[16:]), crc32(bytes(data[:16])))
        data[12:16] = check.to_bytes(4, "little")
        self.assertRaises(NewerFormat, decode_header, bytes(data))

    def test_names_sort_as_the_segments_follow(self) -> None:
        names = [segment_name(seq, base) for seq, base in ((1, 1), (2, 900), (10, 100), (4096, 5))]
        self.assertEqual(names, sorted(names))
        self.assertEqual((10, 100), parse_name(names[2]))
        for name in ("0000000000000001.tmp", "x" + names[0], names[0] + "~", names[0].upper()):
            self.assertIsNone(parse_name(name))


class SealTests(SynchronousTestCase):
    SEAL = Seal(8, 90, 91, 120, 6, 99, ((91, 4096), (100, 70000)), ((91, 5), (110, 6)), (95, 96))

    def test_what_is_encoded_can_be_decoded(self) -> None:
        empty = Seal(8, 90, 91, 90, 6, 99, (), (), ())
        for seal in (self.SEAL, empty):
            payload = encode_seal(seal)
            self.assertEqual(seal, decode_seal(payload))
            size = record_size(stored_length(len(payload)))
            self.assertEqual(size, seal_bound(len(seal.points), len(seal.terms), len(seal.configs)))

    def test_a_seal_that_contradicts_itself_is_refused(self) -> None:
        """J-100: a closed segment with the wrong count of entries."""
        payload = encode_seal(self.SEAL)
        wrong_count = payload[:8] + (29).to_bytes(8, "little") + payload[16:]
        for damaged in (wrong_count, payload[:-8], payload + bytes(8), payload[:30]):
            self.assertRaises(BadSegment, decode_seal, damaged)
