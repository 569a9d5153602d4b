"""What the tests of the command line share: data directories on the real file system, and running the program."""

from __future__ import annotations

import json
import os
import random
from hashlib import sha256
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from twisted.logger import ILogObserver, LogEvent, Logger
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.log_store_kit import result
from zlayer_consensus.cli import program
from zlayer_consensus.kv import Put, encode
from zlayer_consensus.raft import Entry, EntryKind, HardState, LogId, LogWrite, Member, Membership, SnapshotPoint
from zlayer_consensus.storage import FileLogStore, FileStateMachine, Identity, InlineExecutor, StateFile
from zlayer_consensus.storage._record import RecordHeader, mark_position, parse_header
from zlayer_consensus.storage._segment import SEGMENT_HEADER, decode_header

CLUSTER = b"c" * 16
SECTOR = 512
START_MS = 1_700_000_000_000


def incarnation(node_id: int) -> bytes:
    """Returns the incarnation that :func:`open_log` gives a node."""
    return random.Random(f"node {node_id}").randbytes(16)


MEMBERSHIP = Membership.initial([Member(n, incarnation(n), f"host-{n}:7001", f"host-{n}:8001") for n in (1, 2, 3)])


def put(index: int, term: int = 1, value: bytes = b"") -> Entry:
    """Makes an entry that puts a key, in client session 2."""
    payload = encode(Put(b"key-%d" % index, value or b"value-%d" % index))
    return Entry.make(index, term, EntryKind.COMMAND, payload, START_MS + index, 2, index)


def config(index: int, term: int = 1) -> Entry:
    """Makes a configuration entry."""
    return Entry.make(index, term, EntryKind.CONFIG, MEMBERSHIP.encode(), START_MS + index)


def noop(index: int, term: int = 1) -> Entry:
    """Makes a no-op."""
    return Entry.make(index, term, EntryKind.NOOP, b"", START_MS + index)


def open_log(directory: Path, node_id: int = 1, cluster: bytes = CLUSTER, size: int = 16 << 10) -> FileLogStore:
    """Opens a log on the real file system; a new one joins the cluster, if there is one. Calls complete at once.

    ``size`` is the segments'.
    """
    made = not (directory / "identity").exists()
    log = FileLogStore(
        directory,
        node_id,
        executor=InlineExecutor(),
        segment_bytes=size,
        random_bytes=random.Random(f"node {node_id}").randbytes,
    )
    # What an opening warns of has a field that trial's own observer takes for a warning of Python's.
    log.log = Logger(observer=_ignore)
    result(log.open())
    if made and cluster:
        result(log.adopt(Identity(node_id, b"", cluster)))
    return log


@implementer(ILogObserver)
def _ignore(_event: LogEvent) -> None:
    pass


def write(log: FileLogStore, *entries: Entry, commit: int = 0, term: int = 0, after: int | None = None) -> None:
    """Appends entries, durably; ``after`` truncates before."""
    state = HardState(term or (entries[-1].term if entries else 1), 1, commit)
    result(log.write(LogWrite(truncate_after=after, entries=entries, hard_state=state)))


def make_log(directory: Path, last: int = 60, node_id: int = 1) -> None:
    """Makes a log and closes it: a configuration, a no-op, then puts, one record each."""
    log = open_log(directory, node_id)
    write(log, config(1), noop(2))
    for index in range(3, last + 1):
        write(log, put(index), commit=index - 1)
    result(log.close())


def save_snapshot(
    directory: Path,
    index: int,
    term: int = 1,
    chunks: tuple[bytes, ...] = (b"state" * 100,),
    files: tuple[Path, ...] = (),
) -> None:
    """Saves a snapshot, which may name files, and closes the store."""
    store = FileStateMachine(directory, {}, lambda state, command: None, executor=InlineExecutor(), part_bytes=400)
    result(store.open())
    writer = store.writer(SnapshotPoint(LogId(term, index), MEMBERSHIP, START_MS + index))
    for chunk in chunks:
        result(writer.write(chunk))
    result(writer.publish([state_file(path) for path in files]))
    result(store.close())


def state_file(path: Path) -> StateFile:
    """Makes a file of a state machine of what lies there."""
    data = path.read_bytes()
    return StateFile(str(path), len(data), sha256(data).digest())


def segments(directory: Path) -> list[Path]:
    """Lists the segment files, oldest first."""
    return sorted((directory / "wal").glob("*.seg"))


def records(path: Path) -> list[RecordHeader]:
    """Lists the headers of a segment's records."""
    data = path.read_bytes()
    salt = decode_header(data[:SEGMENT_HEADER]).salt
    found, at = [], SEGMENT_HEADER
    while at < len(data):
        sector = data[at : at + SECTOR]
        if any(sector):
            found.append(parse_header(sector, at, salt))
            at += found[-1].size
        elif at == mark_position(at):
            break
        else:
            at = mark_position(at)
    return found


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Damages a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(path: Path, offset: int) -> None:
    """Flips one bit."""
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 1]))


def tear_last_record(directory: Path) -> int:
    """Takes the MARK and the first sector of the record before it back; returns where that record was.

    The rest of it stays: so the record has to be of several sectors.
    """
    path = segments(directory)[-1]
    last, mark = records(path)[-2:]
    overwrite(path, mark.position, bytes(SECTOR))
    overwrite(path, last.position, bytes(SECTOR))
    return last.position


def fingerprint(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    """Returns content, time of change and mode of everything below a directory."""
    found = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        status = os.stat(path)
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (content, status.st_mtime_ns, status.st_mode)
    return found


class CliTestCase(SynchronousTestCase):
    """Runs the program on a directory of the test's own, and sees that it changes nothing."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.root.mkdir(parents=True)
        self.data = self.root / "node-1"

    def run_log(self, *arguments: object, exit_code: int = 0, **options: Any) -> Result:
        """Runs ``zconsensus log``, and checks exit code and that nothing was written."""
        before = fingerprint(self.root)
        found = CliRunner().invoke(program, ["log", *map(str, arguments)], **options)
        self.assertEqual(before, fingerprint(self.root))
        self.assertEqual(exit_code, found.exit_code, found.output)
        return found

    def lines(self, *arguments: object, exit_code: int = 0) -> list[dict[str, Any]]:
        """Runs a command with ``--json`` and returns its objects."""
        found = self.run_log(*arguments, "--json", exit_code=exit_code)
        return [json.loads(line) for line in found.stdout.splitlines()]

    def of_kind(self, kind: str, *arguments: object, exit_code: int = 0) -> list[dict[str, Any]]:
        """Returns the objects of one kind."""
        return [line for line in self.lines(*arguments, exit_code=exit_code) if line["kind"] == kind]

    def verdict(self, command: str, *arguments: object, exit_code: int = 0) -> dict[str, Any]:
        """Returns the verdict, which is the last line."""
        last = self.lines(command, self.data, *arguments, exit_code=exit_code)[-1]
        self.assertEqual("verdict", last["kind"])
        self.assertEqual(exit_code, last["exit_code"])
        return last
