"""``zconsensus log diff``: the first index at which two nodes' logs differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from ..errors import StorageError
from ..raft import Entry
from ..storage import Identity
from ..storage.inspection import LogIndex, list_snapshots, walk_entries
from ._directory import DataDirectory
from ._dump import entry_fields, entry_text
from ._exit import CannotOpen, ExitCode
from ._output import Output, amount
from ._payload import Payloads

__all__ = ["diff"]

_REPORT_EVERY = 4096


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two.

    :param committed: entries up to here are committed, as far as this node's disk knows.
    """

    name: str
    directory: DataDirectory
    identity: Identity
    index: LogIndex
    committed: int

    @property
    def first(self) -> int:
        """The first entry that is there."""
        return self.index.purged.index + 1

    @property
    def last(self) -> int:
        """The last one."""
        return self.index.last.index

    def entries(self, first: int, last: int) -> Iterator[Entry]:
        """Yield entries."""
        return walk_entries(self.directory.files, self.index, first, last)


def diff(a: DataDirectory, b: DataDirectory, out: Output, payloads: Payloads) -> ExitCode:
    """Compare two logs as far as both reach.

    :raises NoLog: if one of them is none.
    :raises StorageError: if one of them is damaged.
    """
    for each in (a, b):
        each.require()
    sides, found = (a if a.running else b).again(lambda: _compared(out, a, b))
    for side in sides:
        _show_side(out, side)
    one, other = sides
    if _are_strangers(one, other):
        return _nothing(out, "A and B are of different clusters")
    first, last = max(one.first, other.first), min(one.last, other.last)
    boundary = first - 1
    terms = [side.index.term_at(boundary) if boundary else 0 for side in sides]
    if None not in terms and terms[0] != terms[1]:
        return _purged_differently(out, sides, boundary)
    if first > last:
        if one.last == other.last:
            return _equal(out, sides, first, last, boundary)
        return _nothing(out, f"no entry is in both: {_gap(one, other)}")
    if found is None:
        return _equal(out, sides, first, last, boundary)
    return _difference(out, sides, payloads, *found)


def _compared(
    out: Output, a: DataDirectory, b: DataDirectory
) -> tuple[tuple[_Side, _Side], tuple[Entry, Entry] | None]:
    """Return both sides and the first pair of entries that differ. Running nodes may purge what is compared."""
    one, other = _side("A", a), _side("B", b)
    first, last = max(one.first, other.first), min(one.last, other.last)
    comparable = first <= last and not _are_strangers(one, other)
    return (one, other), _first_difference(out, one, other, first, last) if comparable else None


def _are_strangers(one: _Side, other: _Side) -> bool:
    """Say whether the two are of different clusters.

    One that has not joined any may be of this one; after a recovery, a lost member has the log up to then.
    """
    mine, theirs = one.identity, other.identity
    if not mine.cluster_id or not theirs.cluster_id:
        return False
    return mine.cluster_id not in (theirs.cluster_id, *theirs.former) and theirs.cluster_id not in mine.former


def _side(name: str, directory: DataDirectory) -> _Side:
    try:
        identity, found = directory.examine()
        snapshots, _ = list_snapshots(directory.files, directory.snapshots)
    except StorageError as error:
        raise CannotOpen(f"{name} cannot be compared: {error}; zconsensus log verify says more") from error
    taken = max((each.position.index for each in snapshots if each.position is not None and each.manifest), default=0)
    return _Side(name, directory, identity, found.index, max(found.index.committed, taken))


def _show_side(out: Output, side: _Side) -> None:
    identity, index = side.identity, side.index
    fields = {
        "side": side.name,
        "directory": side.directory.path,
        "node_id": identity.node_id,
        "cluster_id": identity.cluster_id.hex(),
        "first": side.first,
        "last": {"term": index.last.term, "index": side.last},
        "purged": {"term": index.purged.term, "index": index.purged.index},
        "term": index.state.term,
        "committed": side.committed,
    }
    held = f"entries {side.first} to {side.last}" if side.first <= side.last else f"no entries after {side.last}"
    purged = f", purged to {index.purged.index}" if index.purged.index else ""
    text = f"{out.heading(side.name)}  node {identity.node_id}: {held}{purged}, committed to {side.committed}"
    out.put("side", fields, f"{text}, term {index.state.term}")


def _gap(one: _Side, other: _Side) -> str:
    behind, ahead = (one, other) if one.last < other.last else (other, one)
    return f"{behind.name} ends at {behind.last}, and {ahead.name} was purged to {ahead.index.purged.index}"


def _first_difference(out: Output, one: _Side, other: _Side, first: int, last: int) -> tuple[Entry, Entry] | None:
    with out.progress(last - first + 1, "comparing") as advance:
        pairs = zip(one.entries(first, last), other.entries(first, last), strict=True)
        for number, (mine, theirs) in enumerate(pairs, 1):
            # The same bytes travel to every node.
            if mine.raw != theirs.raw:
                return mine, theirs
            if number % _REPORT_EVERY == 0:
                advance(_REPORT_EVERY)
    return None


def _result(out: Output, code: ExitCode, result: str, text: str, fields: dict[str, Any]) -> ExitCode:
    style = {ExitCode.CLEAN: out.good, ExitCode.TORN: out.warning}.get(code, out.bad)
    line = f"{out.heading('result')}  {style(result)}: {text}"
    out.put("result", {"result": result, "exit_code": int(code), **fields, "detail": text}, line)
    return code


def _nothing(out: Output, why: str) -> ExitCode:
    return _result(out, ExitCode.CANNOT_OPEN, "incomparable", why, {})


def _equal(out: Output, sides: tuple[_Side, _Side], first: int, last: int, boundary: int) -> ExitCode:
    one, other = sides
    count = max(0, last - first + 1)
    text = f"{amount(count, 'entry')} compared, all equal" if count else f"both end at {boundary}"
    if one.last != other.last:
        ahead = one if one.last > other.last else other
        text += f"; {ahead.name} has {amount(abs(one.last - other.last), 'entry')} more"
    if boundary:
        text += f"; nothing up to {boundary} can be compared, as it was purged"
    return _result(out, ExitCode.CLEAN, "equal", text, {"first": first, "last": last, "compared": count})


def _purged_differently(out: Output, sides: tuple[_Side, _Side], boundary: int) -> ExitCode:
    terms = [side.index.term_at(boundary) for side in sides]
    text = f"entry {boundary} is of term {terms[0]} at A and of term {terms[1]} at B; its content was purged"
    return _judged(out, sides, boundary, text, same_term=False)


def _difference(out: Output, sides: tuple[_Side, _Side], payloads: Payloads, mine: Entry, theirs: Entry) -> ExitCode:
    for side, entry in zip(sides, (mine, theirs), strict=True):
        fields, shown = entry_fields(entry, payloads)
        fields["payload_crc32"] = f"{crc32(entry.payload):08x}"
        out.put("entry", {"side": side.name, **fields}, f"  {side.name} has {entry_text(entry, shown)}")
    text = f"the first difference is entry {mine.index}"
    return _judged(out, sides, mine.index, text, same_term=mine.term == theirs.term)


def _judged(out: Output, sides: tuple[_Side, _Side], index: int, text: str, *, same_term: bool) -> ExitCode:
    """Say what a difference means.

    A node that does not know an entry as committed may have another in its place: its leader replaces it. Two nodes
    that know it as committed must have the same; and one leader never makes two entries of one index (§5.3).
    """
    committed = [side.name for side in sides if index <= side.committed]
    fields = {"index": index, "committed_at": committed, "same_term": same_term}
    if len(committed) == 2:
        return _result(out, ExitCode.ROT, "divergence", f"{text}, which both know as committed", fields)
    if same_term:
        why = "both entries are of one term, and no leader makes two entries of one index"
        return _result(out, ExitCode.ROT, "divergence", f"{text}; {why}", fields)
    if committed:
        rest = "B" if committed == ["A"] else "A"
        why = f"committed at {committed[0]}; at {rest} it is part of a tail that {rest} does not know as committed"
        return _result(out, ExitCode.TORN, "uncommitted", f"{text}, {why}, and a leader may replace", fields)
    return _result(out, ExitCode.TORN, "uncommitted", f"{text}, in a tail that neither knows as committed", fields)
