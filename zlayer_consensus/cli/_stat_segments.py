"""The segments, as ``zconsensus log stat`` shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from ..storage.inspection import Findings, list_segments
from ._directory import DataDirectory
from ._dump import segment_fields, segment_text
from ._output import Output, amount
from ._reading import Reading, Stretch, read_segments

__all__ = ["read_found", "show_bare_segments", "show_segments"]


def read_found(directory: DataDirectory, out: Output, found: Findings) -> dict[str, Reading]:
    """Read all segments that an opening finds in full."""
    stretches = []
    for each in found.index.segments:
        is_active = each is found.index.active
        torn = found.tail.torn_end if is_active else 0
        if found.unsealed is not None and each is found.unsealed[0]:
            torn = found.unsealed[1].torn_end
        # Behind a seal there must be nothing.
        stretches.append(Stretch(each.path, each.header, None if each.sealed else each.end, torn != 0))
    return read_segments(directory, out, stretches)


def show_segments(directory: DataDirectory, out: Output, found: Findings, readings: Mapping[str, Reading]) -> None:
    """Print the segments of a log that can be opened, one per line.

    :param readings: of those that were read in full.
    """
    segments = found.index.segments
    gaps = dict(_gaps([each.header.seq for each in segments]))
    out.text(f"{out.heading('segments')}  {amount(len(segments), 'file')}{'' if gaps else ', no gap between them'}")
    out.text(f"  {'file':<46} {'first':>9} {'last':>9} {'entries':>9} {'used':>11} {'allocated':>11}")
    for each in segments:
        _show_gap(out, gaps.get(each.header.seq))
        first, last, used = each.first, each.last, each.end + each.seal_bytes
        count = max(0, last - first + 1)
        name, reading = directory.name(each.path), readings.get(each.path)
        fields = {
            "file": name,
            "seq": each.header.seq,
            "first": first if count else None,
            "last": last if count else None,
            "entries": count,
            "used": used,
            "allocated": each.header.size,
            "sealed": each.sealed,
            "chain": f"{each.header.chain:08x}",
            "chain_end": f"{each.chain:08x}",
            "crc": reading.crc if reading is not None else None,
        }
        shown = (first, last) if count else ("-", "-")
        sealed = "sealed" if each.sealed else "active" if each is found.index.active else "seal missing"
        line = f"  {name:<46} {shown[0]:>9} {shown[1]:>9} {count:>9} {used:>11} {each.header.size:>11}  {sealed}"
        out.put("segment", fields, f"{line}{_crc_text(out, reading)}")


def show_bare_segments(directory: DataDirectory, out: Output, full: bool) -> None:
    """Print what the files say of themselves, where an opening would refuse.

    :param full: read them.
    """
    segments = list_segments(directory.files, directory.path)
    gaps = dict(_gaps([each.seq for each in segments]))
    stretches = [Stretch(each.path, each.header) for each in segments if each.header is not None] if full else []
    readings = read_segments(directory, out, stretches)
    for each in segments:
        _show_gap(out, gaps.get(each.seq))
        name, reading = directory.name(each.path), readings.get(each.path)
        crc = reading.crc if reading is not None else "bad" if full and each.header is None else None
        fields = {**segment_fields(each, name), "problem": each.problem, "crc": crc}
        problem = f"  {out.bad(each.problem)}" if each.problem else ""
        out.put("segment_file", fields, f"{segment_text(out, each, name)}{_crc_text(out, reading)}{problem}")


def _gaps(numbers: Sequence[int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield the number behind a gap, and the first and the last that are missing."""
    for before, behind in pairwise(numbers):
        if behind > before + 1:
            yield behind, (before + 1, behind - 1)


def _show_gap(out: Output, gap: tuple[int, int] | None) -> None:
    if gap is None:
        return
    first, last = gap
    text = f"segment {first} is missing" if first == last else f"segments {first} to {last} are missing"
    out.put("gap", {"first_seq": first, "last_seq": last}, f"  {out.bad('GAP')}  {text}")


def _crc_text(out: Output, reading: Reading | None) -> str:
    if reading is None:
        return ""
    style = {"ok": out.good, "torn": out.warning}.get(reading.crc, out.bad)
    return f", CRC {style(reading.crc.upper())}"
