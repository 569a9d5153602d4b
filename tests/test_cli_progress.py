"""
What ``zconsensus`` shows while it works. Bars are for terminals, which :mod:`tests.test_cli_diff` sees to.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, NamedTuple
from unittest import mock

from click.testing import CliRunner

from tests.cli_kit import CliTestCase, flip, make_log, records, segments
from zlayer_consensus.cli import program
from zlayer_consensus.cli._output import Output


class Bar(NamedTuple):
    """A bar, and how it moved."""

    label: str
    length: int
    steps: list[int]


@contextmanager
def watched() -> Iterator[list[Bar]]:
    """Collects the bars that there would be on a terminal."""
    bars: list[Bar] = []

    @contextmanager
    def progress(_out: Output, length: int, label: str) -> Iterator[Callable[[int], None]]:
        bars.append(Bar(label, length, []))
        yield bars[-1].steps.append

    with mock.patch.object(Output, "progress", progress):
        yield bars


class LogTests(CliTestCase):
    def setUp(self) -> None:
        super().setUp()
        make_log(self.data, 60)

    def bars(self, *arguments: object, exit_code: int = 0) -> list[Bar]:
        with watched() as bars:
            self.run_log(*arguments, exit_code=exit_code)
        for bar in bars:
            self.assertLessEqual(sum(bar.steps), bar.length, bar.label)
        return bars

    def test_a_dump_that_shows_little_of_much_has_a_bar(self) -> None:
        filters = ("--term", 7), ("--type", "session"), ("--from", 40, "--term", 7)
        for some in filters:
            self.assertEqual([], self.bars("dump", self.data, *some))
        with mock.patch("zlayer_consensus.cli._dump._LONG", 0):
            found = [bar for some in filters for bar in self.bars("dump", self.data, *some)]
            self.assertEqual(3, len(found))
            self.assertEqual([bar.length for bar in found], [sum(bar.steps) for bar in found])
            # It counts what is read, and not what is skipped.
            self.assertLess(found[2].length, found[0].length)
            self.assertEqual([], self.bars("dump", self.data))

    def test_the_full_reading_has_bars(self) -> None:
        labels = ["reading segments", "reading entries"]
        bars = self.bars("stat", self.data, "--full")
        self.assertEqual(labels, [bar.label for bar in bars])
        self.assertGreater(len(bars[0].steps), 1)
        self.assertEqual([], self.bars("stat", self.data))
        path = segments(self.data)[-1]
        flip(path, records(path)[1].position + 80)
        self.assertEqual(labels[:1], [bar.label for bar in self.bars("stat", self.data, "--full", exit_code=2)])


class BackupTests(CliTestCase):
    def test_waiting_for_the_snapshot_has_a_bar(self) -> None:
        moved = threading.Event()

        class Slow(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                moved.wait(60)
                self.send_error(503)

            def log_message(self, *_args: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Slow)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.addCleanup(server.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        steps: list[int] = []

        @contextmanager
        def progress(_out: Output, length: int, label: str) -> Iterator[Callable[[int], None]]:
            steps.append(length)
            self.assertIn("waiting", label)

            def advance(count: int) -> None:
                steps.append(count)
                moved.set()

            yield advance

        arguments = ["backup", "--url", f"http://127.0.0.1:{server.server_port}", "--timeout", "30"]
        before = threading.active_count()
        with mock.patch.object(Output, "progress", progress), mock.patch("zlayer_consensus.cli._backup._TICK", 0.01):
            found = CliRunner().invoke(program, [*arguments, str(self.root / "state.backup")])
        self.assertEqual(3, found.exit_code, found.output)
        self.assertEqual((3000, 1), tuple(steps[:2]))
        self.assertEqual(before, threading.active_count())
