"""State machines with files under the simulator: the key-value store with its values on disk, right and wrong."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from zlayer_consensus.kv import FileKeyValueMachine
from zlayer_consensus.kv._compaction import Compactor
from zlayer_consensus.kv._value_files import _Open
from zlayer_consensus.kv._value_log import NamedFiles, ValueLog
from zlayer_consensus.storage import IStateMachineFiles, StateFile
from zlayer_consensus.testing import SimulatedFileSystem
from zlayer_consensus.testing.simulation import Application, Disk, run_seed, values_on_disk
from zlayer_consensus.testing.simulation._chain import chained
from zlayer_consensus.testing.simulation._checker import Checker
from zlayer_consensus.testing.simulation._ledger import Ledger


class SimulatedFilesTests(SynchronousTestCase):
    def count(self, kind: type, name: str, counts: dict[str, int]) -> None:
        method = getattr(kind, name)
        counts[name] = 0

        def counted(*args: Any, **keywords: Any) -> Any:
            counts[name] += 1
            return method(*args, **keywords)

        self.patch(kind, name, counted)

    def test_all_of_it_happens_and_passes(self) -> None:
        counts: dict[str, int] = {}
        for kind, name in (
            (ValueLog, "load"),
            (ValueLog, "take"),
            (NamedFiles, "sealed"),
            (Compactor, "_move"),
            (FileKeyValueMachine, "restore_files"),
        ):
            self.count(kind, name, counts)
        outcomes = [run_seed(seed, values_on_disk()) for seed in range(1, 11)]
        self.assertEqual([str(outcome) for outcome in outcomes if outcome.failed], [])
        self.assertGreater(sum(outcome.verdict == "passed" for outcome in outcomes), 7)
        self.assertGreater(min(counts.values()), 5, counts)

    def test_runs_are_equal(self) -> None:
        """Two runs of a seed are, event by event."""
        for seed in (3, 4):
            self.assertEqual(run_seed(seed, values_on_disk()), run_seed(seed, values_on_disk()))

    def found(self, place: str = "") -> str:
        """Return the first failure, or the first at a ``place``; each must be of a file of values."""
        for seed in range(1, 40):
            outcome = run_seed(seed, values_on_disk())
            if outcome.failed:
                self.assertRegex(str(outcome), r"\.values|/snap/")
                if place in str(outcome):
                    return str(outcome)
        return "nothing"

    def test_files_that_are_not_synced_are_found(self) -> None:
        """J-99, S-15: a manifest that names what a power loss takes."""

        def unsynced(file: Any) -> StateFile:
            file.flush()
            file.file.close()
            return StateFile(file.file.path, file._written, file._sha.digest())

        self.patch(_Open, "seal", unsynced)
        self.assertIn("is damaged", self.found())

    def test_files_that_go_too_early_are_found(self) -> None:
        """The snapshot that is being taken needs them still."""
        self.patch(NamedFiles, "release", lambda names: None)
        pins = NamedFiles.__init__

        def unpinned(names: Any, log: Any, files: Any) -> None:
            pins(names, log, files)
            for file in files:
                file.pins -= 1

        self.patch(NamedFiles, "__init__", unpinned)
        self.assertIn("/state/files/", self.found("/state/files/"))


class MachinesAroundTests(SynchronousTestCase):
    def test_files_are_passed_on(self) -> None:
        """What stands around a machine has files if it has some, and none if not."""
        with_files = values_on_disk().replica(SimulatedFileSystem(), "/files")
        ledger = Ledger(Application(), Checker())
        application = Application()
        without = application.replica(SimulatedFileSystem(), "/files")
        for inner, has in ((with_files, True), (without, False)):
            watched = ledger.watched(inner, 1)
            around = chained(watched, application.types, lambda *_: None)
            for each in (watched, around):
                self.assertEqual(IStateMachineFiles.providedBy(each), has)
                if has:
                    self.assertTrue(verifyObject(IStateMachineFiles, each))

    def test_one_kind_or_the_other(self) -> None:
        def make(disk: Disk) -> Any:
            raise NotImplementedError

        self.assertRaises(TypeError, Application, dict, files_machine=make, commands=lambda *_: None)
