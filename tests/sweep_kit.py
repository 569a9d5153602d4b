"""Data directories in which every byte is flipped, one at a time, and what a start of the node makes of each."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any
from unittest import mock

from twisted.logger import ILogObserver, LogEvent, Logger
from zope.interface import implementer

from tests.crash_kit import make_log, make_machine_store
from zlayer_consensus.cli._directory import DataDirectory
from zlayer_consensus.cli._exit import ExitCode
from zlayer_consensus.cli._output import Output
from zlayer_consensus.cli._verify import verify
from zlayer_consensus.errors import StorageCorrupt
from zlayer_consensus.storage import FileLogStore, IExecutor, IFileSystem
from zlayer_consensus.testing import SimulatedFileSystem
from zlayer_consensus.testing._simnodes import Content
from zlayer_consensus.testing.crashes import CrashViolation, NodeScript, NodeSubject, Story, node_story

__all__ = ["Directory", "Sweep", "Verifier", "flips", "kind_of"]

DIRECTORY = "/data"


class Directory:
    """A data directory of a node with several segments and two snapshots, made by the stores themselves.

    It has seen truncations, configurations, votes and purges, and joined a cluster.

    :param rounds: how long its life was.
    """

    def __init__(self, rounds: int = 1, segment_bytes: int = 16 << 10) -> None:
        self._rounds = rounds
        self._segment_bytes = segment_bytes
        self.subject = NodeSubject(self._make_log, make_machine_store)

    def _make_log(self, files: IFileSystem, executor: IExecutor) -> FileLogStore:
        log = make_log(files, executor, self._segment_bytes)
        # So many refusals would fill the log of the tests.
        log.log = Logger(observer=_ignore)
        return log

    def _script(self) -> NodeScript:
        script = NodeScript("sweep").adopt().append(6, 200).append(2, 900, with_state=True)
        for _ in range(self._rounds):
            script.append(2, 100).conflict(1, 4, 300)
            script.snapshot(2)
            script.append(5, 700).elect().append(3, 1500).conflict(2, 2, 100)
            script.snapshot(4)
            script.append(4, 600, with_state=True)
            script.snapshot(6)
            script.append(2, 40).elect().conflict(1, 3, 500)
        # The last record has sectors of all kinds: zeros, single bits among zeros, and none of these.
        return script.append(6, 560, with_state=True)

    def _story(self) -> Story:
        return node_story(self._make_log, make_machine_store, self._script())

    def recover(self, files: SimulatedFileSystem) -> Any:
        """Return what a start of the node finds."""
        return self.subject.recover(files)

    def stopped(self) -> SimulatedFileSystem:
        """Return it after a clean stop."""
        files = SimulatedFileSystem()
        for _ in self._story()(files):
            pass
        return files.crash("all")

    def busy(self) -> SimulatedFileSystem:
        """Return it after a power failure: the last write was acknowledged, and nothing came after it."""
        count = sum(1 for _ in self._story()(SimulatedFileSystem()))
        files = SimulatedFileSystem()
        for _ in islice(self._story()(files), count):
            pass
        return files.crash("none")


@implementer(ILogObserver)
def _ignore(_event: LogEvent) -> None:
    pass


class Sweep:
    """Damages one byte at a time, and starts a node on that.

    A start opens both stores, loads the newest snapshot, and reads every entry that the log says it has. What it never
    reads cannot change what it does: those bytes are counted, and left alone. A file with several names is damaged
    once, by the first of them.

    :param tried: how many bytes were damaged, by kind of file.
    :param refused: for how many of them the start was refused.
    :param unread: how many bytes no start reads.
    """

    def __init__(self, directory: Directory, files: SimulatedFileSystem) -> None:
        self.tried: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.unread = 0
        self._recover = directory.recover
        self._files = files
        start = files.crash("all")
        names: dict[Content, str] = {}
        for path, _ in files.files():
            names.setdefault(start._file("names", path), path)
        self._sizes = {path: files.size(path) for path in names.values()}
        self._read = {path: bytearray(size) for path, size in self._sizes.items()}
        read = start.read

        def noted(path: str, offset: int, size: int) -> bytes:
            found = read(path, offset, size)
            # By whatever name: a start gives the files of a snapshot new ones.
            name = names.get(start._file("names", path))
            if name is not None:
                self._read[name][offset : offset + len(found)] = b"\x01" * len(found)
            return found

        with mock.patch.object(start, "read", noted):
            self.pristine = self._recover(start)

    def places(self) -> Iterator[tuple[str, int, int]]:
        """Yield path, offset and value of each byte that a start reads."""
        self.unread = 0
        for path, size in self._sizes.items():
            for offset, value in enumerate(self._files.read(path, 0, size)):
                if self._read[path][offset]:
                    yield path, offset, value
                else:
                    self.unread += 1

    def damaged(self, path: str, offset: int, value: int) -> SimulatedFileSystem:
        """Return the directory with another byte in one place."""
        files = self._files.crash("all")
        files.corrupt(path, offset, bytes([value]))
        return files

    def flip(self, path: str, offset: int, value: int) -> bool:
        """Start on a directory with one damaged byte; return whether it was refused.

        :raises CrashViolation: if it starts with another state, or does not say what is damaged.
        """
        kind = self.kind(path)
        self.tried[kind] += 1
        what = f"{path}, byte {offset} is {value:#04x}"
        files = self.damaged(path, offset, value)
        try:
            found = self._recover(files)
        except StorageCorrupt as error:
            named = files._file("names", error.path) is files._file("names", path)
            if not named or not self.says_what(error, path, offset):
                raise CrashViolation(f"{what}: it does not say what is damaged: {vars(error)}") from error
            self.refused[kind] += 1
            return True
        if found != self.pristine:
            raise CrashViolation(f"{what}: it starts with another state:\n  {found}\n  instead of\n  {self.pristine}")
        return False

    def kind(self, path: str) -> str:
        """Return what kind of file it is."""
        return kind_of(path)

    def says_what(self, error: StorageCorrupt, path: str, offset: int) -> bool:
        """Whether a refusal, which names the damaged file, says where in it, and which entries are at risk."""
        return 0 <= error.offset <= self._sizes[path] and error.first_index is not None


class Verifier:
    """Damages one byte at a time, and asks ``zconsensus log verify``."""

    def __init__(self, files: SimulatedFileSystem) -> None:
        self._files = files
        self._out = Output(as_json=False, color=False)
        self._out._stream = io.StringIO()

    def verdict(self, path: str, offset: int, value: int) -> ExitCode:
        """Return what it ends with."""
        files = self._files.crash("all")
        files.corrupt(path, offset, bytes([value]))
        return self.verdict_on(files)

    def verdict_on(self, files: SimulatedFileSystem) -> ExitCode:
        """Return what it ends with for a directory."""
        return verify(_SimulatedDirectory(DIRECTORY, files=files, sleep=lambda _seconds: None), self._out)

    def places(self) -> Iterator[tuple[str, int, int]]:
        """Yield path, offset and value of each byte that it claims to check."""
        for path, size in self._files.files():
            if kind_of(path) not in ("LOCK", "reserve") and not path.endswith((".tmp", ".values")):
                for offset, value in enumerate(self._files.read(path, 0, size)):
                    yield path, offset, value


class _SimulatedDirectory(DataDirectory):
    def require(self) -> None:
        """It is there; the operating system knows nothing of it."""


def kind_of(path: str) -> str:
    """Return what kind of file it is: identity, LOCK, segment, manifest or part."""
    name = path.rpartition("/")[2]
    if name.isdigit():
        return "part"
    return "segment" if name.endswith(".seg") else name


def flips(offset: int, value: int, seed: int | None) -> int:
    """Return the damaged byte: all of its bits flipped, or with a seed one of them."""
    if seed is None:
        return value ^ 0xFF
    return value ^ (1 << random.Random(f"{seed} {offset}").randrange(8))
