"""
S-02, S-16, J-89, J-98: every byte of a data directory is damaged once. A node starts on it as if nothing had happened,
or it refuses, and says what is damaged; it never starts with less.
"""

from __future__ import annotations

from itertools import islice

from twisted.trial.unittest import SynchronousTestCase

from tests.sweep_files_kit import FilesDirectory, FilesSweep
from tests.sweep_kit import Directory, Sweep, Verifier, flips, kind_of
from zlayer_consensus.cli._exit import ExitCode
from zlayer_consensus.errors import StorageCorrupt
from zlayer_consensus.testing import SimulatedFileSystem

SECTOR = 512


class DirectoryTests(SynchronousTestCase):
    def test_it_holds_all_that_a_directory_can_hold(self) -> None:
        """Sealed segments, one that is written to, two snapshots, a purged part, truncated entries, configurations."""
        directory = Directory()
        files = directory.stopped()
        paths = [path for path, _ in files.files()]
        self.assertGreater(sum(path.endswith(".seg") for path in paths), 2)
        self.assertEqual(2, sum(path.endswith("manifest") for path in paths))
        start = directory.subject.recover(files)
        self.assertGreater(start.log.purged.index, 10)
        self.assertGreater(len(start.log.entries), 10)
        self.assertGreater(len({entry.kind for entry in start.log.entries.values()}), 2)
        self.assertGreater(start.log.hard_state.term, 4)
        self.assertNotEqual(b"", start.log.cluster_id)


class SweepTests(SynchronousTestCase):
    """S-02, S-16, J-89, J-98."""

    def check(self, sweep: Sweep) -> None:
        """Of each kind of file, damage was refused; where it was not, nothing had changed."""
        self.assertEqual({"identity", "segment", "manifest", "part"}, set(sweep.tried))
        for kind, tried in sweep.tried.items():
            self.assertGreater(sweep.refused[kind], tried // 5, kind)
        for kind in ("identity", "manifest", "part"):
            self.assertEqual(sweep.tried[kind], sweep.refused[kind], kind)
        self.assertGreater(sweep.unread, 16 << 10)

    def test_every_byte_after_a_clean_stop(self) -> None:
        """All bits of it are flipped."""
        directory = Directory()
        sweep = Sweep(directory, directory.stopped())
        for path, offset, value in sweep.places():
            sweep.flip(path, offset, flips(offset, value, None))
        self.check(sweep)

    def test_a_bit_of_some_bytes_after_a_clean_stop(self) -> None:
        """``python -m tests.acceptance.sweep`` does it with every byte, and with every bit."""
        directory = Directory()
        sweep = Sweep(directory, directory.stopped())
        for path, offset, value in islice(sweep.places(), 3, None, 7):
            sweep.flip(path, offset, flips(offset, value, 1))
        self.check(sweep)

    def test_every_byte_of_the_last_record_of_a_busy_node(self) -> None:
        """The power failed, and no empty record follows; a flipped bit does not pass for a write that was cut short."""
        directory = Directory()
        files = directory.busy()
        sweep = Sweep(directory, files)
        newest = max(path for path, _ in files.files() if path.endswith(".seg"))
        used = len(files.read(newest, 0, 1 << 20).rstrip(b"\0"))
        there = range(used - 10 * SECTOR, used + SECTOR)
        places = [place for place in sweep.places() if place[0] == newest and place[1] in there]
        for path, offset, value in places:
            sweep.flip(path, offset, flips(offset, value, None))
            sweep.flip(path, offset, flips(offset, value, 1))
        self.assertGreater(sweep.refused["segment"], 9 * SECTOR)

    def test_the_window_of_a_busy_node(self) -> None:
        """A sector of its last record that turns to zeros as a whole passes for one that was never written. The
        documentation says so; nothing else does.
        """
        directory = Directory()
        files = directory.busy()
        pristine = directory.subject.recover(files.crash("all"))
        lost = []
        for path, size in files.files():
            data = files.read(path, 0, size)
            for at in range(0, size if path.endswith(".seg") else 0, SECTOR):
                if any(data[at : at + SECTOR]):
                    damaged = files.crash("all")
                    damaged.corrupt(path, at, bytes(SECTOR))
                    if self.fewer(directory, damaged, pristine.log.last.index):
                        lost.append((path, at))
        newest = max(path for path, _ in files.files() if path.endswith(".seg"))
        data = files.read(newest, 0, 1 << 20)
        end = -(-len(data.rstrip(b"\0")) // SECTOR) * SECTOR
        self.assertEqual([(newest, at) for at in range(lost[0][1], end, SECTOR)], lost)
        self.assertGreater(len(lost), 5)
        # The same after a clean stop: there is no such sector.
        files = directory.stopped()
        for path, at in lost:
            files.corrupt(path, at, bytes(SECTOR))
            self.assertFalse(self.fewer(directory, files.crash("all"), pristine.log.last.index))

    def fewer(self, directory: Directory, files: SimulatedFileSystem, last: int) -> bool:
        """Whether a start succeeds with a shorter log."""
        try:
            return directory.subject.recover(files).log.last.index < last
        except StorageCorrupt:
            return False


class ValuesTests(SynchronousTestCase):
    """S-02, S-16, J-89, J-90: the same with the values of the key-value store in files. A damaged one is named by its
    key when it is read; there are never fewer.
    """

    def setUp(self) -> None:
        self.directory = FilesDirectory()
        self.files = self.directory.stopped()

    def test_it_holds_what_such_a_directory_can_hold(self) -> None:
        """Several segments, two snapshots that share files of values, a log behind them, and values of the past."""
        sizes = dict(self.files.files())
        self.assertGreater(sum(path.endswith(".seg") for path in sizes), 2)
        older, newer = (set(self.files.list(f"/data/snap/{name}")) for name in ("20-2", "28-2"))
        shared = {
            (old, new)
            for old in older
            for new in newer
            if self.files._file("", f"/data/snap/20-2/{old}") is self.files._file("", f"/data/snap/28-2/{new}")
        }
        self.assertGreater(len(shared), 1)
        start = self.directory.recover(self.files)
        assert start.manifest is not None
        self.assertGreater(start.manifest.streams, 1)
        self.assertGreater(start.log.last.index, start.manifest.point.last.index + 5)
        self.assertGreater(len(start.values), 20)
        self.assertGreater(len({each for shown in start.values for each in shown}), 20)

    def test_a_byte_here_and_there(self) -> None:
        """``python -m tests.acceptance.sweep`` does it with every byte."""
        sweep = FilesSweep(self.directory, self.files)
        for number, (path, offset, value) in enumerate(sweep.places()):
            if number % (61 if path.endswith(".seg") else 5) == 0:
                sweep.flip(path, offset, flips(offset, value, None))
        self.assertEqual({"identity", "segment", "manifest", "part", "values"}, set(sweep.tried))
        for kind in ("identity", "manifest", "part", "values"):
            self.assertEqual(sweep.tried[kind], sweep.refused[kind], kind)
        self.assertGreater(sweep.tried["values"], 300)
        self.assertGreater(sweep.refused["segment"], sweep.tried["segment"] // 5)

    def test_the_tool_finds_what_a_start_does_not_read(self) -> None:
        verifier = Verifier(self.files)
        self.assertEqual(ExitCode.CLEAN, verifier.verdict_on(self.files))
        for path, offset, value in islice(verifier.places(), 3, None, 131):
            code = verifier.verdict(path, offset, flips(offset, value, None))
            self.assertIn(code, (ExitCode.TORN, ExitCode.ROT), f"{path}, byte {offset}")


class VerifierTests(SynchronousTestCase):
    """S-02, S-16: the tool reads what a start does not, older snapshots and full segments, and misses nothing."""

    def test_a_byte_here_and_there(self) -> None:
        files = Directory().stopped()
        verifier = Verifier(files)
        self.assertEqual(ExitCode.CLEAN, verifier.verdict_on(files))
        kinds = set()
        for path, offset, value in islice(verifier.places(), 5, None, 43):
            kinds.add(kind_of(path))
            code = verifier.verdict(path, offset, flips(offset, value, 2))
            self.assertIn(code, (ExitCode.TORN, ExitCode.ROT), f"{path}, byte {offset}")
        self.assertEqual({"identity", "segment", "manifest", "part"}, kinds)

    def test_behind_a_seal(self) -> None:
        """What nobody wrote is zeros."""
        files = Directory().stopped()
        path = sorted(path for path, _ in files.files() if path.endswith(".seg"))[0]
        used = len(files.read(path, 0, 1 << 20).rstrip(b"\0"))
        verifier = Verifier(files)
        for offset in (used + SECTOR, files.size(path) - 1):
            self.assertEqual(ExitCode.ROT, verifier.verdict(path, offset, 1))
