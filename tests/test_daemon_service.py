"""The options of ``twistd zconsensus``, its help, and how errors become exit codes; no reactor runs."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import sys
import tempfile
import time
from itertools import count
from typing import Any
from unittest import mock

from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, PredicateResult
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyRequest

from zlayer_consensus import errors
from zlayer_consensus.daemon._assembly import Recovering
from zlayer_consensus.daemon._clock import install_monotonic_clock, monotonic_source
from zlayer_consensus.daemon._collector import Collections, calm_collector, spare_the_state
from zlayer_consensus.daemon._config import ConfigFileError
from zlayer_consensus.daemon._exit import AddressInUse, explain
from zlayer_consensus.daemon._log import level_filter
from zlayer_consensus.daemon.service import Options

CONFIG = """
[node]
id = 1
data_dir = "data"
application = "{application}"
[listen]
peer = "tcp:7001:interface=127.0.0.1"
client = "tcp:8001:interface=127.0.0.1"
[cluster]
members = [{{ id = 1, peer = "127.0.0.1:7001", client = "127.0.0.1:8001" }}]
"""


class OptionsTests(SynchronousTestCase):
    def write(self, text: str = CONFIG, application: str = "kv") -> str:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        path = os.path.join(temporary.name, "node.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text.format(application=application) if "{application}" in text else text)
        return path

    def run_options(self, *arguments: str) -> tuple[int | None, str, str, Options]:
        """Parses a command line; returns exit code (None if it goes on), standard output and standard error."""
        options, out, err, code = Options(), io.StringIO(), io.StringIO(), None
        with contextlib.redirect_stdout(out), mock.patch.object(sys, "__stderr__", err):
            try:
                options.parseOptions(list(arguments))
            except SystemExit as leaving:
                code = leaving.code
        assert code is None or isinstance(code, int)
        return code, out.getvalue(), err.getvalue(), options

    def refused(self, *arguments: str) -> str:
        """Expects exit code 2 and one line, which it returns."""
        code, out, err, _ = self.run_options(*arguments)
        self.assertEqual((code, out), (2, ""))
        self.assertTrue(err.startswith("zconsensus: ") and err.endswith("\n") and err.count("\n") == 1, repr(err))
        return err

    def test_config(self) -> None:
        for option in ("--config", "-c"):
            code, out, err, options = self.run_options(option, self.write())
            self.assertEqual((code, out, err), (None, "", ""))
            self.assertEqual(options.settings.node_id, 1)
            self.assertTrue(os.path.isabs(options.settings.data_dir))

    def test_nothing_is_made(self) -> None:
        """Looking at a configuration leaves the disk as it was."""
        path = self.write()
        self.run_options("--config", path, "--check")
        self.assertEqual(os.listdir(os.path.dirname(path)), ["node.toml"])

    def test_check(self) -> None:
        path = self.write()
        code, out, err, _ = self.run_options("--config", path, "--check")
        self.assertEqual((code, err), (0, ""))
        self.assertIn(f"{path}: node 1", out)

    def test_check_loads_the_application(self) -> None:
        line = self.refused("--config", self.write(application="no_such_module:App"), "--check")
        self.assertIn('node.application = "no_such_module:App"', line)
        self.assertIn("no_such_module cannot be imported", line)

    def test_application_without_the_attribute(self) -> None:
        self.assertIn("has no attribute App", self.refused("--config", self.write(application="os:App"), "--check"))

    def test_application_that_is_no_state_machine(self) -> None:
        line = self.refused("--config", self.write(application="collections:OrderedDict"), "--check")
        self.assertIn("gives no IStateMachine", line)

    def test_no_config(self) -> None:
        self.assertIn("--config FILE", self.refused())

    def test_absent_config(self) -> None:
        self.assertIn("No such file", self.refused("--config", self.write() + ".absent"))

    def test_bad_config(self) -> None:
        path = self.write(CONFIG.replace("id = 1\n", "id = 0\n"))
        self.assertIn(f"{path}: node.id = 0: must be between", self.refused("--config", path))

    def test_unknown_option(self) -> None:
        self.assertIn("--colour", self.refused("--colour"))

    def test_superfluous_argument(self) -> None:
        self.assertIn("unexpected argument more", self.refused("--config", self.write(), "more"))

    def test_sample(self) -> None:
        code, out, err, _ = self.run_options("--sample")
        self.assertEqual((code, err), (0, ""))
        self.assertEqual(self.run_options("--config", self.write(out))[0], None)

    def test_version_is_ours(self) -> None:
        code, out, _, _ = self.run_options("--version")
        self.assertEqual(code, 0)
        self.assertRegex(out, r"\Azlayer-consensus \d")

    def test_help(self) -> None:
        """It shows the options, an example that keeps its lines, and every exit code."""
        code, out, _, _ = self.run_options("--help")
        self.assertEqual(code, 0)
        for text in ("--config=", "--check", "--sample", "\n    curl http://127.0.0.1:8001/v1/kv/greeting\n"):
            self.assertIn(text, out)
        for exit_code in (2, 3, 4, 5, 6, 7, 8):
            self.assertRegex(out, rf"\n +{exit_code}   \w")
        self.assertLessEqual(max(map(len, out.splitlines())), 120)

    def test_usage_errors_stay_one_line(self) -> None:
        with self.assertRaises(UsageError):
            Options().parseArgs("more")


class ExitCodeTests(SynchronousTestCase):
    def test_codes(self) -> None:
        """The table of design.md, "The daemon"."""
        expected: list[tuple[BaseException, int]] = [
            (ConfigFileError("f", "k", 1, "rule"), 2),
            (AddressInUse("listen.peer", "tcp:1", "in use"), 3),
            (CannotListenError("127.0.0.1", 1, OSError(98, "in use")), 3),
            (errors.StorageLocked("d", "process 1"), 4),
            (errors.WrongIdentity("d", "node", "1", "2"), 4),
            (errors.IncarnationMismatch(1, "aa", "bb"), 4),
            (errors.BootstrapMismatch("no"), 4),
            (errors.ClusterMismatch("aa", "bb"), 4),
            (errors.StorageCorrupt("f", 12, "checksum", 3, 4), 5),
            (errors.StorageFailed("fdatasync", "f", "EIO"), 6),
            (errors.StorageFull("write", "f", "ENOSPC"), 6),
            (PermissionError(13, "Permission denied", "d"), 6),
            (errors.InvariantBroken("commit fell"), 7),
            (ZeroDivisionError("in apply"), 7),
            (errors.NodeRemoved(3), 8),
        ]
        for error, code in expected:
            self.assertEqual(explain(error)[0], code, repr(error))

    def test_cause_of_a_stopped_node(self) -> None:
        self.assertEqual(explain(errors.NodeStopped(errors.StorageFull("write", "f", "ENOSPC")))[0], 6)

    def test_one_line(self) -> None:
        for error in (ValueError("two\nlines"), errors.StorageCorrupt("f", 1, "a\nb"), errors.NodeStopped()):
            self.assertNotIn("\n", explain(error)[1])

    def test_says_what_to_do(self) -> None:
        self.assertIn("new id", explain(errors.IncarnationMismatch(1, "aa", "bb"))[1])
        self.assertIn("new id", explain(errors.NodeRemoved(1))[1])
        self.assertIn("nothing was changed", explain(errors.StorageCorrupt("f", 1, "x"))[1])
        self.assertIn("make room", explain(errors.StorageFull("write", "f", "ENOSPC"))[1])


class ClockTests(SynchronousTestCase):
    def test_source_does_not_follow_the_wall_clock(self) -> None:
        """H-14: nothing is scheduled by the time of day."""
        source = monotonic_source()
        with mock.patch.object(time, "time", return_value=0.0):
            first, second = source(), source()
        self.assertGreater(first, 0)
        self.assertGreaterEqual(second, first)

    def test_kernel_without_boot_time(self) -> None:
        with mock.patch.object(time, "clock_gettime", side_effect=OSError(22, "Invalid argument")):
            self.assertIs(monotonic_source(), time.monotonic)

    def test_reactor_schedules_by_it(self) -> None:
        clock = Clock()
        install_monotonic_clock(clock)
        self.assertApproximates(clock.seconds(), monotonic_source()(), 5)

    def test_not_under_what_is_scheduled(self) -> None:
        """Its time was reckoned by the other clock: it would come decades late."""
        clock = Clock()
        clock.callLater(1, lambda: None)
        self.assertRaises(RuntimeError, install_monotonic_clock, clock)


class LogLevelTests(SynchronousTestCase):
    def passes(self, level: str, event_level: LogLevel, namespace: str) -> bool:
        event: dict[str, Any] = {"log_level": event_level, "log_namespace": namespace}
        return level_filter(level)(event) is not PredicateResult.no

    def test_level(self) -> None:
        self.assertTrue(self.passes("warn", LogLevel.error, "zlayer_consensus.node"))
        self.assertFalse(self.passes("warn", LogLevel.info, "zlayer_consensus.node"))

    def test_twisted_is_quieter(self) -> None:
        """Unless somebody debugs, Twisted's reports on sockets and factories are noise; its warnings are not."""
        self.assertFalse(self.passes("info", LogLevel.info, "twisted.web.server"))
        self.assertTrue(self.passes("info", LogLevel.warn, "twisted.web.server"))
        self.assertTrue(self.passes("debug", LogLevel.debug, "twisted.web.server"))

    def test_others_are_not(self) -> None:
        self.assertTrue(self.passes("info", LogLevel.info, Logger("shop.app").namespace))


class CollectorTests(SynchronousTestCase):
    def setUp(self) -> None:
        thresholds, callbacks = gc.get_threshold(), list(gc.callbacks)
        self.addCleanup(gc.set_threshold, *thresholds)
        self.addCleanup(gc.unfreeze)
        self.addCleanup(gc.callbacks.__setitem__, slice(None), callbacks)

    def test_no_collection_comes_upon_many_new_objects(self) -> None:
        seconds = count()  # so that each collection is a long one
        calm_collector(Collections(lambda: next(seconds)))
        looked_at = [0, 0, 0]

        def note(phase: str, info: dict[str, int]) -> None:
            if phase == "start":
                oldest = info["generation"]
                objects = sum(len(gc.get_objects(generation)) for generation in range(oldest + 1))
                looked_at[oldest] = max(looked_at[oldest], objects)

        gc.callbacks.append(note)
        state = [[number] for number in range(500_000)]
        self.assertGreater(looked_at[2], 0, "of so many objects some are looked at by a full collection")
        self.assertLess(looked_at[1], 100_000)
        self.assertLess(looked_at[2], len(state) / 2)

    def test_recovered_state_is_not_looked_at_again(self) -> None:
        before = [[number] for number in range(1000)]
        times = iter([0.0, 0.001, 1.0, 2.0, 3.0, 3.5])
        collections = Collections(lambda: next(times))
        calm_collector(collections)
        self.assertGreaterEqual(gc.get_freeze_count(), len(before))
        state = [[number] for number in range(1000)]
        spare_the_state()
        frozen = gc.get_freeze_count()
        self.assertGreaterEqual(frozen, len(before) + len(state))
        more = [[number] for number in range(1000)]
        gc.collect()
        self.assertLessEqual(gc.get_freeze_count(), frozen, "a short collection freezes nothing")
        gc.collect()
        self.assertGreaterEqual(gc.get_freeze_count(), frozen + len(more), "a long one freezes what survived it")
        self.assertEqual((collections.full, collections.longest_full, collections.longest_young), (2, 1.0, 0.0))
        gc.collect(0)
        self.assertEqual((collections.full, collections.longest_full, collections.longest_young), (2, 1.0, 0.5))


class RecoveringTests(SynchronousTestCase):
    def test_answers_503(self) -> None:
        """Whatever is asked, until the data is there: a balancer then looks elsewhere, a client tries again."""
        for method in (b"GET", b"PUT", b"DELETE"):
            request: Any = DummyRequest([b"v1", b"kv", b"key"])
            request.method = method
            body = Recovering().render(request)
            self.assertEqual(request.responseCode, 503)
            self.assertEqual(json.loads(body)["code"], "recovering")
            self.assertEqual(request.responseHeaders.getRawHeaders(b"content-length"), [b"%d" % len(body)])
            self.assertEqual(request.responseHeaders.getRawHeaders(b"retry-after"), [b"1"])
