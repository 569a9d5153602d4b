"""``zconsensus log stat``: what a directory holds, from headers and seals alone unless all is to be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

from ..errors import StorageCorrupt, StorageError, StorageFailed
from ..raft import ENTRY_OVERHEAD, Entry, EntryKind, LogId
from ..storage import Identity
from ..storage.inspection import (
    FORMAT_VERSION,
    IDENTITY_NAME,
    Findings,
    LogIndex,
    Segment,
    SetState,
    SnapshotFile,
    list_snapshots,
    read_identity,
    scan_records,
    verify_parts,
    walk_entries,
    walk_payload,
)
from ._directory import DataDirectory
from ._exit import CannotOpen, ExitCode
from ._output import Output, amount, at_time, describe_parts, printable
from ._payload import describe_membership, kind_name, plain_membership
from ._reading import Reading
from ._stat_segments import read_found, show_bare_segments, show_segments
from ._verdict import Verdict, judge, refusal, show_verdict

__all__ = ["stat"]

_HARD_STATE_AT = 120
"""Where the copy of term, vote and commit stands in a segment's header."""
_RUNS_SHOWN = 8
_REPORT_EVERY = 4096


def stat(directory: DataDirectory, out: Output, full: bool, upto: int | None = None) -> ExitCode:
    """Print what there is; return what an opening, or the full reading, makes of it.

    :param full: read every entry and snapshot.
    :param upto: of the entries, those up to here.
    :raises NoLog: if there is nothing.
    """
    directory.require()
    identity, found, verdict = judge(directory)
    _identity(directory, out, identity)
    if found is not None:
        damage = _contents(directory, out, found, full, upto)
        if damage is not None:
            # A start does not read it.
            verdict = replace(refusal(directory, damage), opening=verdict.opening)
    else:
        show_bare_segments(directory, out, full)
    broken = _snapshots(directory, out, full)
    if broken is not None and verdict.exit_code in (ExitCode.CLEAN, ExitCode.TORN):
        verdict = broken
    _other_files(directory, out, found)
    show_verdict(out, verdict)
    return verdict.exit_code


def _contents(
    directory: DataDirectory, out: Output, found: Findings, full: bool, upto: int | None
) -> StorageCorrupt | None:
    """Print what is in a log that can be opened; return the first damage that reading it finds."""
    with directory.purging(out.note):
        _hard_state(directory, out, found.index)
    damage = _log(directory, out, found.index)
    readings = read_found(directory, out, found) if full else {}
    show_segments(directory, out, found, readings)
    damage = damage or next((each.damage for each in readings.values() if each.damage is not None), None)
    if full:
        try:
            # The oldest entries are read first, and purged first.
            directory.again(lambda: _totals(directory, out, directory.examine()[1].index, upto, readings))
        except StorageCorrupt as error:
            damage = damage or error
    return damage


def _identity(directory: DataDirectory, out: Output, identity: Identity | None) -> None:
    state = "bad"
    if identity is None:
        try:
            identity = read_identity(directory.files, directory.path, None)
        except StorageFailed:
            state = "unreadable"
        except StorageError:
            pass
    fields: dict[str, Any] = {"directory": directory.path, "running": directory.running}
    running = {True: "running", False: "stopped", None: "not known whether it runs"}[directory.running]
    if identity is None:
        told = out.bad("BAD" if state == "bad" else "not readable")
        out.put("identity", {**fields, "identity": state}, f"{out.heading('identity')}  {told}, {running}")
        return
    cluster, incarnation = identity.cluster_id.hex(), identity.incarnation.hex()
    former, mark = [each.hex() for each in identity.former], identity.repair.hex()
    fields |= {"identity": "ok", "node_id": identity.node_id, "incarnation": incarnation, "cluster_id": cluster}
    lines = [
        f"{out.heading('identity')}  node {identity.node_id}, {running}",
        f"  cluster      {cluster or 'none yet'}",
        *(f"  before       {each}, until a recovery" for each in reversed(former)),
        f"  incarnation  {incarnation}",
        f"  format       {FORMAT_VERSION}",
    ]
    if mark:
        waits = "it does not vote until it has everything again"
        lines.append(f"  repaired     {out.warning(f'repair id {mark}: {waits}')}")
    out.put(
        "identity", {**fields, "format": FORMAT_VERSION, "former": former, "repair_id": mark or None}, "\n".join(lines)
    )


def _hard_state(directory: DataDirectory, out: Output, index: LogIndex) -> None:
    path, offset, origin = _origin(directory, index.active)
    term, vote, commit = index.state
    file = directory.name(path)
    fields = {"term": term, "vote": vote, "commit": commit, "file": file, "offset": offset, "from": origin}
    out.put(
        "hard_state",
        fields,
        f"{out.heading('hard state')}  term {term}, vote {vote or 'none'}, commit {commit}\n"
        f"  from {'the segment header' if origin == 'header' else 'the record'} at offset {offset} of {file}",
    )


def _origin(directory: DataDirectory, active: Segment) -> tuple[str, int, str]:
    """Return where term, vote and commit were written last."""
    place = active.path, _HARD_STATE_AT, "header"
    for record in scan_records(directory.files, active.path, active.header, again=directory.look_again):
        # What a running node has appended since the log was looked at does not count.
        if record.offset >= active.end or record.header is None or record.payload is None:
            break
        if record.payload and any(isinstance(each, SetState) for each in walk_payload(record.payload)):
            place = active.path, record.offset, "record"
    return place


def _log(directory: DataDirectory, out: Output, index: LogIndex) -> StorageCorrupt | None:
    """Print what the log is; return damage of its oldest entry."""
    first, last, runs = index.purged.index + 1, index.last, index.terms()
    count = last.index - index.purged.index
    oldest: Entry | None = None
    damage: StorageCorrupt | None = None
    try:
        with directory.purging(out.note):
            oldest = next(walk_entries(directory.files, index, first, first), None) if count else None
    except StorageCorrupt as error:
        damage = error
    newest = index.time_ms
    fields = {
        "first": first if count else None,
        "last": _position(last),
        "purged": _position(index.purged),
        "entries": count,
        "configs": len(index.configs()),
        "committed": index.committed,
        "terms": [list(run) for run in runs],
        "first_time_ms": oldest.time_ms if oldest else None,
        "last_time_ms": newest,
    }
    if out.as_json:
        out.put("log", fields)
        return damage
    held = f"{amount(count, 'entry')}, {first} to {last.index}" if count else f"no entries after {last.index}"
    out.text(f"{out.heading('log')}  {held}; ends in term {last.term}")
    out.text(f"  purged     up to {index.purged.index} (term {index.purged.term})")
    if oldest:
        out.text(f"  time       {at_time(oldest.time_ms)} to {at_time(newest)}")
    shown = ", ".join(f"{term} from {begin}" for begin, term in runs[-_RUNS_SHOWN:])
    if shown:
        earlier = f" (and {len(runs) - _RUNS_SHOWN} earlier)" if len(runs) > _RUNS_SHOWN else ""
        out.text(f"  terms      {shown}{earlier}")
    out.text(f"  configs    {len(index.configs())}")
    return damage


def _position(position: LogId) -> dict[str, int]:
    return {"term": position.term, "index": position.index}


def _totals(
    directory: DataDirectory, out: Output, index: LogIndex, upto: int | None, readings: Mapping[str, Reading]
) -> None:
    first, last = index.purged.index + 1, index.last.index
    if upto is not None:
        if not first <= upto <= last:
            raise CannotOpen(f"entry {upto} is not in the log, which has entries {first} to {last}")
        last = upto
    kinds: Counter[str] = Counter()
    payload_bytes = largest = sessions = 0
    digest = sha256()
    with out.progress(max(0, last - first + 1), "reading entries") as advance:
        entry: Entry
        for number, entry in enumerate(walk_entries(directory.files, index, first, last), 1):
            kinds[kind_name(entry)] += 1
            size = len(entry.raw) - ENTRY_OVERHEAD
            payload_bytes += size
            largest = max(largest, size)
            sessions += entry.session != 0
            digest.update(len(entry.raw).to_bytes(4, "little") + entry.raw)
            if number % _REPORT_EVERY == 0:
                advance(_REPORT_EVERY)
    removals = {
        "truncations": sum(each.truncations for each in readings.values()),
        "resets": sum(each.resets for each in readings.values()),
    }
    by_type = {kind.name.lower(): kinds[kind.name.lower()] for kind in EntryKind}
    fields = {
        **by_type,
        "in_sessions": sessions,
        "payload_bytes": payload_bytes,
        "largest_payload": largest,
        **removals,
        "first": first,
        "last": last,
        "sha256": digest.hexdigest(),
    }
    listed = ", ".join(f"{count:,} {kind}" for kind, count in by_type.items())
    out.put(
        "totals",
        fields,
        f"{out.heading('totals')}  {listed}\n  payload    {payload_bytes:,} bytes, the largest {largest:,}; "
        f"{sessions:,} entries in client sessions\n"
        f"  removed    {amount(removals['truncations'], 'truncation')}, {amount(removals['resets'], 'reset')}\n"
        f"  SHA-256    of entries {first} to {last}: {digest.hexdigest()}",
    )


def _snapshots(directory: DataDirectory, out: Output, full: bool) -> Verdict | None:
    """Print the snapshots; return what damage of one comes to."""
    snapshots, _ = list_snapshots(directory.files, directory.snapshots)
    out.text(f"{out.heading('snapshots')}  {len(snapshots) or 'none'}")
    worst: Verdict | None = None
    for each in snapshots:
        damage, checked = each.damage, False
        if full and each.manifest is not None:
            damage, checked = _verified(directory, out, each), True
        if damage is not None:
            worst = refusal(directory, damage)
        _snapshot(directory, out, each, damage, checked)
    return worst


def _verified(directory: DataDirectory, out: Output, each: SnapshotFile) -> StorageCorrupt | None:
    assert each.manifest is not None
    try:
        with out.progress(each.manifest.size, "reading snapshot") as advance:
            for size in verify_parts(directory.files, each):
                advance(size)
    except StorageCorrupt as error:
        return None if directory.is_gone(each.path) else error
    return None


def _snapshot(
    directory: DataDirectory, out: Output, each: SnapshotFile, damage: StorageCorrupt | None, checked: bool
) -> None:
    digest = "bad" if damage is not None else "ok" if checked else "unverified"
    fields: dict[str, Any] = {"directory": directory.name(each.path), "digest": digest}
    if damage is not None:
        fields["problem"] = str(damage)
    if each.position is not None:
        fields |= {"index": each.position.index, "term": each.position.term}
    line = f"  {printable(directory.name(each.path))}"
    if each.manifest is not None:
        manifest, point = each.manifest, each.manifest.point
        fields |= {
            "bytes": manifest.size,
            "parts": len(manifest.parts),
            "files": manifest.files,
            "time_ms": point.time_ms,
            "installed": manifest.installed,
            "membership": plain_membership(point.membership),
        }
        line += f"  {manifest.size:,} bytes in {describe_parts(manifest)}, {at_time(point.time_ms)}"
        line += ", from a leader" if manifest.installed else ""
    shown = (
        out.bad(f"BAD: {printable(str(damage))}") if damage is not None else out.good("OK") if checked else "unverified"
    )
    line += f"; digest {shown}"
    if each.manifest is not None:
        line += f"\n    {describe_membership(each.manifest.point.membership)}"
    out.put("snapshot", fields, line)


def _other_files(directory: DataDirectory, out: Output, found: Findings | None) -> None:
    files, layout = directory.files, directory.layout
    reserve = files.size(layout.reserve) if files.exists(layout.reserve) else 0
    out.put(
        "reserve",
        {"bytes": reserve},
        f"{out.heading('reserve')}  {amount(reserve, 'byte') if reserve else out.warning('none: the disk was full')}",
    )
    for path in _files_below(directory, layout.quarantine):
        size, name = files.size(path), directory.name(path)
        out.put("quarantine", {"file": name, "bytes": size}, f"  {printable(name)}  {size:,} bytes")
    for path in (layout.repaired, layout.replaced):
        if files.exists(path):
            text = f"  {directory.name(path)}: left by a repair that was interrupted; repair once more"
            out.put("leftover", {"file": directory.name(path)}, out.warning(text))
    leftovers = [*(found.leftovers if found is not None else ()), *list_snapshots(files, directory.snapshots)[1]]
    if files.exists(f"{layout.directory}/{IDENTITY_NAME}.tmp"):
        leftovers.append(f"{layout.directory}/{IDENTITY_NAME}.tmp")
    for path in leftovers:
        name = directory.name(path)
        out.put("leftover", {"file": name}, out.faint(f"  {printable(name)}: in the making, or left by a crash"))


def _files_below(directory: DataDirectory, path: str) -> Iterator[str]:
    """Yield a file, or every file in a directory and in those in it; nothing if there is none."""
    files = directory.files
    if not files.exists(path):
        return
    try:
        names = files.list(path)
    except StorageFailed:
        if not directory.is_gone(path):
            yield path
        return
    for name in names:
        yield from _files_below(directory, f"{path}/{name}")
