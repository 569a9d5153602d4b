"""``zconsensus log dump``: every record and what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from ..errors import StorageCorrupt, StorageFailed
from ..raft import Entry, LogId
from ..storage.inspection import (
    BATCH,
    MARK,
    SEAL,
    SEGMENT_HEADER,
    Batch,
    Purge,
    RecordHeader,
    Reset,
    ScannedRecord,
    Segment,
    SegmentFile,
    SetState,
    Truncate,
    decode_seal,
    list_segments,
    scan_records,
    walk_payload,
)
from ._directory import DataDirectory
from ._exit import ExitCode
from ._output import Output, amount, at_time
from ._payload import Payloads, kind_name
from ._reading import counted
from ._verdict import Verdict, judge, refusal, show_verdict

__all__ = ["ENTRY_TYPES", "TYPES", "Selection", "dump"]

ENTRY_TYPES = ("noop", "command", "config", "session")
TYPES = (*ENTRY_TYPES, "state", "truncate", "reset", "purge", "mark", "seal")
_RECORDS = {BATCH: "batch", MARK: "mark", SEAL: "seal"}
_STRIPED = 1
_LONG = 16 << 20
"""Bytes that it takes a moment to read."""

Item = tuple[str, dict[str, Any], Callable[[], str]]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which things are shown. Damage always is, of what is read; segments that no wanted entry can be in are not.

    :param first, last: bounds of the entries' indexes, and of what else records of such entries hold; None is open.
    :param terms: terms of the entries; empty is all.
    :param types: of :data:`TYPES`; empty is all, or all entries if any of the others is given.
    """

    first: int | None = None
    last: int | None = None
    terms: frozenset[int] = frozenset()
    types: frozenset[str] = frozenset()

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self == Selection()

    def wants(self, kind: str, record: RecordHeader) -> bool:
        """Say whether a thing that is no entry is shown, of a record that stands for these entries, or behind them."""
        if not self.types:
            return self.is_all
        return (
            kind in self.types
            and (self.first is None or record.last >= self.first)
            and (self.last is None or min(record.first, record.last) <= self.last)
        )

    def wants_entry(self, entry: Entry) -> bool:
        """Say whether an entry is shown."""
        return (
            (self.first is None or entry.index >= self.first)
            and (self.last is None or entry.index <= self.last)
            and (not self.terms or entry.term in self.terms)
            and (not self.types or kind_name(entry) in self.types)
        )

    def start_in(self, each: SegmentFile) -> int | None:
        """Return where to begin to read a segment; None if no wanted entry can be in it, by what its seal says."""
        if each.seal is None or each.header is None or (self.types - set(ENTRY_TYPES)):
            return SEGMENT_HEADER
        if self.last is not None and each.seal.floor >= self.last:
            return None
        if self.first is None:
            return SEGMENT_HEADER
        if each.seal.last < self.first:
            return None
        if each.seal.first > self.first:
            return SEGMENT_HEADER
        segment = Segment(each.path, each.header)
        segment.apply_seal(each.seal)
        return segment.locate(self.first)[0]


def dump(directory: DataDirectory, out: Output, payloads: Payloads, selection: Selection) -> ExitCode:
    """Print the records of all segments; return what a start of the node makes of the log, or worse.

    What the selection leaves out is not read. A start looks at the whole log, but by headers and seals where it can.

    :raises NoLog: if there is nothing to print.
    """
    directory.require()
    damage = _Dump(directory, out, payloads, selection).run(list_segments(directory.files, directory.path))
    _, _, verdict = judge(directory)
    unread = [each for each in damage if not _is_in_tail(directory, verdict, each)]
    if unread and verdict.exit_code < ExitCode.ROT:
        # An opening does not read sealed segments in full.
        out.note("the damage lies in what a start of the node does not read; zconsensus log verify says more")
        verdict = replace(refusal(directory, unread[0]), opening=verdict.opening)
    if verdict.exit_code is not ExitCode.CLEAN:
        show_verdict(out, verdict)
    return verdict.exit_code


def _is_in_tail(directory: DataDirectory, verdict: Verdict, damage: StorageCorrupt) -> bool:
    """Say whether damage is the torn tail that a verdict names."""
    return (
        directory.name(damage.path) == verdict.file and verdict.offset is not None and damage.offset >= verdict.offset
    )


def _nowhere(_steps: int) -> None:
    pass


class _Dump:
    def __init__(self, directory: DataDirectory, out: Output, payloads: Payloads, selection: Selection) -> None:
        self._directory = directory
        self._out = out
        self._payloads = payloads
        self._selection = selection
        self._damaged: list[StorageCorrupt] = []

    def run(self, segments: list[SegmentFile]) -> list[StorageCorrupt]:
        """Print them; return what was damaged."""
        starts = [self._selection.start_in(each) if each.header is not None else None for each in segments]
        total = sum(each.size - at for each, at in zip(segments, starts, strict=True) if at is not None)
        # Without a filter, the lines themselves are the progress; and a bar would stand in what a pager shows.
        is_quiet = total >= _LONG and not self._selection.is_all
        with self._out.progress(total, "reading segments") if is_quiet else nullcontext(_nowhere) as advance:
            for each, start in zip(segments, starts, strict=True):
                self._segment(each, start, advance)
        return self._damaged

    def _segment(self, each: SegmentFile, start: int | None, advance: Callable[[int], None]) -> None:
        name = self._directory.name(each.path)
        shown = False

        def head() -> None:
            nonlocal shown
            if not shown:
                shown = True
                self._out.put("segment", segment_fields(each, name), lambda: segment_text(self._out, each, name))

        if self._selection.is_all or each.problem:
            head()
        if each.problem:
            self._damage(name, 0, each.size, each.problem)
        if each.header is None or start is None:
            return
        files, again = self._directory.files, self._directory.look_again
        records = scan_records(files, each.path, each.header, start, again)
        try:
            for record in counted(records, start, each.size, advance):
                self._record(name, record, head)
        except StorageFailed:
            if not self._directory.is_gone(each.path):
                raise
            self._out.note(f"{name} was purged while it was read")

    def _record(self, name: str, record: ScannedRecord, head: Callable[[], None]) -> None:
        if record.payload is None or record.header is None:
            head()
            if record.header is not None:
                self._put_record(name, record)
            self._damage(name, record.offset, record.size, record.problem)
            return
        begun = False
        for kind, fields, text in self._items(record):
            if not begun:
                begun = True
                head()
                self._put_record(name, record)
            self._out.put(kind, {"file": name, "offset": record.offset, **fields}, text)
        if not begun and self._selection.wants(_RECORDS[record.header.type], record.header):
            head()
            self._put_record(name, record)

    def _put_record(self, name: str, record: ScannedRecord) -> None:
        self._out.put("record", record_fields(name, record), lambda: record_text(self._out, record))

    def _damage(self, name: str, offset: int, size: int, problem: str) -> None:
        self._damaged.append(StorageCorrupt(f"{self._directory.path}/{name}", offset, problem))
        fields = {"file": name, "offset": offset, "size": size, "problem": problem}
        self._out.put("damage", fields, lambda: self._out.bad(f"  @{offset:<9} BAD    {size} bytes: {problem}"))

    def _items(self, record: ScannedRecord) -> Iterator[Item]:
        assert record.header is not None and record.payload is not None
        if record.header.type == SEAL:
            if self._selection.wants("seal", record.header):
                yield _seal(record.payload)
            return
        for each in walk_payload(record.payload):
            if isinstance(each, Entry):
                if self._selection.wants_entry(each):
                    yield self._entry(each)
            elif not isinstance(each, Batch):
                item = _operation(each)
                if self._selection.wants(item[0], record.header):
                    yield item

    def _entry(self, entry: Entry) -> Item:
        fields, shown = entry_fields(entry, self._payloads)
        return "entry", fields, lambda: f"      {entry_text(entry, shown)}"


def entry_fields(entry: Entry, payloads: Payloads) -> tuple[dict[str, Any], str]:
    """Return an entry as JSON has it, and its payload as text."""
    time_ms, session, sequence, payload = entry.command()
    fields, shown = payloads.show(entry)
    return {
        "index": entry.index,
        "term": entry.term,
        "type": kind_name(entry),
        "time_ms": time_ms,
        "session": session,
        "sequence": sequence,
        "payload_bytes": len(payload),
        **fields,
    }, shown


def entry_text(entry: Entry, shown: str) -> str:
    """Return an entry as one line."""
    time_ms, session, sequence, payload = entry.command()
    client = f"  session {session} #{sequence}" if session else ""
    size = f"  {len(payload)} bytes" if payload else ""
    kind = f"{entry.index:<9} term {entry.term:<4} {kind_name(entry):<8}"
    return f"{kind}{at_time(time_ms)}{client}{size}  {shown}".rstrip()


def _position(position: LogId) -> dict[str, int]:
    return {"term": position.term, "index": position.index}


def _operation(operation: SetState | Truncate | Reset | Purge) -> Item:
    if isinstance(operation, SetState):
        term, vote, commit = operation.state
        text = f"term {term}, vote {vote or 'none'}, commit {commit}"
        return "state", {"term": term, "vote": vote, "commit": commit}, lambda: f"      STATE     {text}"
    if isinstance(operation, Truncate):
        last = operation.last
        return "truncate", {"last": last}, lambda: f"      TRUNCATE  entries after {last} are removed"
    if isinstance(operation, Reset):
        to = operation.position
        text = f"the log is empty and starts after {to.index} (term {to.term})"
        return "reset", _position(to), lambda: f"      RESET     {text}"
    upto = operation.upto
    return "purge", _position(upto), lambda: f"      PURGE     up to {upto.index} (term {upto.term})"


def _seal(payload: bytes) -> Item:
    seal = decode_seal(payload)
    fields = {
        "next_seq": seal.next_seq,
        "floor": seal.floor,
        "first": seal.first,
        "last": seal.last,
        "last_term": seal.last_term,
        "time_ms": seal.time_ms,
        "points": len(seal.points),
        "terms": [list(run) for run in seal.terms],
        "configs": list(seal.configs),
    }
    held = f"entries {seal.first} to {seal.last}" if seal.first <= seal.last else "no entries"
    return "seal", fields, lambda: f"      SEAL      {held}; segment {seal.next_seq} follows"


def segment_fields(each: SegmentFile, name: str) -> dict[str, Any]:
    """Return a segment's header as JSON has it."""
    fields: dict[str, Any] = {"file": name, "seq": each.seq, "base": each.base, "size": each.size}
    header = each.header
    if header is None:
        return {**fields, "header": "bad"}
    return {
        **fields,
        "header": "ok",
        "sealed": each.seal is not None,
        "cluster_id": header.cluster_id.hex(),
        "node_id": header.node_id,
        "incarnation": header.incarnation.hex(),
        "last": _position(header.last),
        "purged": _position(header.purged),
        "term": header.state.term,
        "vote": header.state.voted_for,
        "commit": header.state.commit,
        "committed": header.committed,
        "time_ms": header.time_ms,
        "chain": f"{header.chain:08x}",
    }


def segment_text(out: Output, each: SegmentFile, name: str) -> str:
    """Return a segment's header as one line."""
    header = each.header
    if header is None:
        return f"{out.heading(name)}  {out.bad('header BAD')}"
    state = header.state
    return (
        f"{out.heading(name)}  after entry {header.last.index} (term {header.last.term}), purged to "
        f"{header.purged.index}; term {state.term}, vote {state.voted_for or 'none'}, commit {state.commit}"
        f"{'; sealed' if each.seal is not None else ''}"
    )


def record_fields(name: str, record: ScannedRecord) -> dict[str, Any]:
    """Return a record's header as JSON has it."""
    header = record.header
    assert header is not None
    return {
        "file": name,
        "offset": record.offset,
        "size": record.size,
        "type": _RECORDS[header.type],
        "striped": bool(header.flags & _STRIPED),
        "payload_bytes": header.length,
        "entries": header.entries,
        "first": header.first if header.entries else None,
        "last": header.last,
        "chain": f"{header.chain:08x}",
        "crc": "ok" if record.payload is not None else "bad",
    }


def record_text(out: Output, record: ScannedRecord) -> str:
    """Return a record's header as one line."""
    header = record.header
    assert header is not None
    good = record.payload is not None
    held = f"{amount(header.entries, 'entry')} from {header.first}, " if header.entries else ""
    striped = ", striped" if header.flags & _STRIPED else ""
    check = out.good("OK") if good else out.bad("BAD")
    return (
        f"  @{record.offset:<9} {_RECORDS[header.type]:<6} {record.size} bytes{striped}, {held}"
        f"log ends at {header.last}, chain {header.chain:08x}, CRC {check}"
    )
