"""``zconsensus log verify``: everything is read and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..errors import StorageCorrupt, StorageError, StorageFailed, WrongIdentity
from ..raft import Membership
from ..storage import Identity, Manifest
from ..storage.inspection import (
    Findings,
    LogIndex,
    SegmentHeader,
    SnapshotFile,
    check_owner,
    full_replay,
    list_segments,
    list_snapshots,
    log_must_yield,
    scan_records,
    start_of,
    verify_parts,
    walk_entries,
)
from ._directory import DataDirectory
from ._exit import ExitCode
from ._output import Output, amount, describe_parts
from ._verdict import Verdict, judge, refusal, show_finding, show_verdict

__all__ = ["verify"]

_UNREAD = (
    "A start of the node does not read this, and succeeds; the node stops when it reads it. While the others are well, "
    "stop it and run zconsensus log repair, or bring the member back under a new id with an empty directory."
)
_SNAPSHOT_ADVICE = (
    "zconsensus log repair puts the damaged snapshot aside: the node then starts from the one before, if the log "
    "reaches back to it; else it gets one from its leader, and does not vote until then."
)


def verify(directory: DataDirectory, out: Output) -> ExitCode:
    """Check all there is; return the worst that was found.

    :raises NoLog: if there is nothing.
    """
    directory.require()
    return _Verification(directory, out).run()


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment that is to be verified.

    :param following: the next segment's header; None if it is the newest.
    """

    path: str
    header: SegmentHeader
    following: SegmentHeader | None


def _gravity(verdict: Verdict) -> tuple[int, bool]:
    """Return what the worst of several findings is told by."""
    return verdict.exit_code, verdict.opening == "refuses"


class _Verification:
    def __init__(self, directory: DataDirectory, out: Output) -> None:
        self._directory = directory
        self._out = out
        self._seen: set[tuple[str, int]] = set()
        self._worst: Verdict | None = None
        self._checked = 0
        self._refused = False
        self._broken_snapshots = False

    def run(self) -> ExitCode:
        """Check the log, then the snapshots, then whether they fit each other."""
        identity, found, opening = judge(self._directory)
        if identity is not None:
            self._good(
                "identity", "identity", f"node {identity.node_id}, cluster {identity.cluster_id.hex() or 'none'}"
            )
        self._refused = found is None
        if opening.exit_code is not ExitCode.CLEAN:
            self._finding(opening)
        else:
            self._good("opening", "wal", "a start of the node would succeed")
        intact = self._segments(self._parts(found))
        if found is not None and intact:
            with self._directory.purging(self._out.note):
                self._configurations(found.index)
        self._snapshots()
        if found is not None and identity is not None and not self._broken_snapshots:
            self._fit(identity)
        verdict = self._worst or opening
        show_verdict(self._out, verdict, findings=len(self._seen), checked=self._checked)
        return verdict.exit_code

    def _good(self, what: str, file: str, detail: str) -> None:
        self._checked += 1
        fields = {"what": what, "file": file, "ok": True, "detail": detail}
        self._out.put("check", fields, lambda: f"{self._out.good('OK ')} {file}  {detail}")

    def _finding(self, verdict: Verdict) -> None:
        """Report something that is wrong, once."""
        place = verdict.file, -1 if verdict.offset is None else verdict.offset
        if place in self._seen:
            return
        self._seen.add(place)
        if self._worst is None or _gravity(verdict) > _gravity(self._worst):
            self._worst = verdict
        show_finding(self._out, verdict)

    # The log

    def _parts(self, found: Findings | None) -> list[_Part]:
        """Return the segments that an opening does not read in full; all, if it would refuse."""
        if found is None:
            listed = [each for each in list_segments(self._directory.files, self._directory.path) if each.header]
            headers = [(each.path, each.header) for each in listed if each.header is not None]
        else:
            headers = [(each.path, each.header) for each in found.index.segments]
        parts = []
        for at, (path, header) in enumerate(headers):
            following = headers[at + 1][1] if at + 1 < len(headers) else None
            if following is not None and following.seq != header.seq + 1:
                following = None
            if found is None and following is not None and self._awaits_seal(headers, at):
                following = None
            parts.append(_Part(path, header, following))
        if found is not None:
            # The opening replays the newest, and one that has yet to get its seal.
            unsealed = found.unsealed[0].path if found.unsealed is not None else ""
            for part in parts:
                if part.following is None or part.path == unsealed:
                    self._good("segment", self._directory.name(part.path), "read by the opening, all records")
            parts = [part for part in parts if part.following is not None and part.path != unsealed]
        return parts

    def _awaits_seal(self, headers: list[tuple[str, SegmentHeader]], at: int) -> bool:
        """Say whether a segment may legally lack its seal: its successor, the newest, was never written to."""
        path, header = headers[at + 1]
        return at + 2 == len(headers) and next(scan_records(self._directory.files, path, header), None) is None

    def _segments(self, parts: list[_Part]) -> bool:
        before: LogIndex | None = None
        intact = True
        with self._out.progress(sum(part.header.size for part in parts), "verifying segments") as advance:
            for part in parts:
                before = self._segment(part, before)
                intact = intact and before is not None
                advance(part.header.size)
        return intact

    def _segment(self, part: _Part, before: LogIndex | None) -> LogIndex | None:
        name = self._directory.name(part.path)
        try:
            index, tail = full_replay(self._directory.files, part.path, part.header, part.following, before)
        except StorageCorrupt as error:
            verdict = refusal(self._directory, error)
            self._finding(verdict if self._refused else replace(verdict, opening="opens", advice=_UNREAD))
            return None
        except StorageFailed:
            if not self._directory.is_gone(part.path):
                raise
            self._out.note(f"{name} was purged meanwhile")
            return None
        if not tail.torn_end:
            self._good("segment", name, f"all records, log ends at {index.last.index}")
        return index

    def _configurations(self, index: LogIndex) -> None:
        """Decode every configuration: the node does when it starts."""
        count = 0
        for at in index.configs():
            for entry in walk_entries(self._directory.files, index, at, at):
                try:
                    Membership.decode(entry.payload)
                except ValueError as error:
                    segment = index.find(at)
                    path = segment.path if segment is not None else self._directory.layout.wal
                    reason = f"the configuration in entry {at} is none: {error}"
                    self._finding(refusal(self._directory, StorageCorrupt(path, 0, reason, at, at)))
                else:
                    count += 1
        self._good("configurations", "wal", f"{amount(count, 'configuration')} decoded")

    # Snapshots

    def _snapshots(self) -> None:
        """Verify all snapshots."""
        snapshots, _ = list_snapshots(self._directory.files, self._directory.snapshots)
        for at, each in enumerate(snapshots):
            is_newest = at == len(snapshots) - 1
            damage = each.damage or self._read_parts(each)
            if damage is None:
                continue
            verdict = refusal(self._directory, damage)
            if each.damage is None and each.in_file(damage):
                self._finding(replace(verdict, opening="opens", advice=_UNREAD))
                continue
            self._broken_snapshots = self._broken_snapshots or is_newest
            verdict = replace(verdict, advice=_SNAPSHOT_ADVICE)
            # Only the newest is opened; but a name that is none may be a snapshot's.
            self._finding(verdict if is_newest or each.position is None else replace(verdict, opening="opens"))

    def _read_parts(self, each: SnapshotFile) -> StorageCorrupt | None:
        assert each.manifest is not None
        try:
            with self._out.progress(each.manifest.size, "verifying snapshot") as advance:
                self._drain(verify_parts(self._directory.files, each), advance)
        except StorageError as error:
            if self._directory.is_gone(each.path):
                self._out.note(f"{self._directory.name(each.path)} was removed meanwhile")
                return None
            if isinstance(error, StorageCorrupt):
                return error
            raise
        detail = f"manifest and {describe_parts(each.manifest)}, {each.manifest.size:,} bytes"
        self._good("snapshot", self._directory.name(each.path), detail)
        return None

    @staticmethod
    def _drain(sizes: Iterator[int], advance: Callable[[int], None]) -> None:
        for size in sizes:
            advance(size)

    def _fit(self, identity: Identity) -> None:
        """See whether the log continues the newest snapshot, and that is of the same member."""
        try:
            # A running node may snapshot and purge between a look at the one and at the other.
            yields, manifest = self._directory.again(self._look_at_both, contradicts=True)
            check_owner(identity, manifest)
        except (StorageCorrupt, WrongIdentity) as error:
            self._finding(refusal(self._directory, error))
            return
        if manifest is None:
            detail = "no snapshot, and the log begins with entry 1"
        elif yields:
            detail = f"the log ends before the installed snapshot {manifest.point.last}; a start resets it to that"
        else:
            detail = f"the log continues the snapshot at {manifest.point.last.index}"
        self._good("log and snapshot", "snap", detail)

    def _look_at_both(self) -> tuple[bool, Manifest | None]:
        snapshots, _ = list_snapshots(self._directory.files, self._directory.snapshots)
        manifest = snapshots[-1].manifest if snapshots else None
        start = start_of(self._directory.examine()[1].index)
        return log_must_yield(start, manifest, f"{self._directory.path}/wal"), manifest
