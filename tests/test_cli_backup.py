"""
``zconsensus backup`` and ``restore`` against a server that answers as the test says; real nodes are elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from click.testing import CliRunner, Result

from tests.cli_kit import CliTestCase
from tests.test_backup import Parts, real_snapshot
from zlayer_consensus import _cbor
from zlayer_consensus.cli import program


class Answer(BaseHTTPRequestHandler):
    """Gives the one answer that the test has chosen."""

    status: ClassVar[int] = 200
    body: ClassVar[bytes] = b""
    announced: ClassVar[int] = 0
    paths: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        Answer.paths.append(self.path)
        self.send_response(self.status)
        self.send_header("Content-Length", str(self.announced))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_args: Any) -> None:
        pass


class BackupCommandTests(CliTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.server = HTTPServer(("127.0.0.1", 0), Answer)
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(self.server.shutdown)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.path = self.root / "state.backup"
        self.good = real_snapshot().file()
        self.answer(self.good)

    def answer(self, body: bytes, status: int = 200, announced: int | None = None) -> None:
        Answer.status, Answer.body, Answer.paths = status, body, []
        Answer.announced = len(body) if announced is None else announced

    def run_program(self, *arguments: object, exit_code: int = 0) -> Result:
        found = CliRunner().invoke(program, [*map(str, arguments)])
        self.assertEqual(exit_code, found.exit_code, found.output)
        return found

    def take(self, exit_code: int = 0, url: str = "") -> Result:
        return self.run_program("backup", "--url", url or self.url, self.path, exit_code=exit_code)

    def test_what_came_whole_is_kept(self) -> None:
        text = self.take().stdout
        self.assertIn("as of entry 70 (term 4)", text)
        self.assertIn("voters 1,2,3", text)
        self.assertEqual(self.good, self.path.read_bytes())
        self.assertEqual(0o600, os.stat(self.path).st_mode & 0o777)
        self.assertEqual(["/v1/backup"], Answer.paths)
        self.assertIn("whole", self.run_program("backup", "--verify", self.path).stdout)
        self.assertEqual(["state.backup"], os.listdir(self.root))

    def test_below_a_prefix(self) -> None:
        self.take(url=f"{self.url}/node/")
        self.assertEqual(["/node/v1/backup"], Answer.paths)

    def fails(self, text: str, url: str = "") -> None:
        self.assertIn(text, self.take(exit_code=3, url=url).output)
        self.assertEqual([], os.listdir(self.root))

    def test_what_did_not_leaves_nothing_behind(self) -> None:
        self.answer(self.good[:-40], announced=len(self.good))
        self.fails("broke off after")
        self.answer(self.good[:-1] + b"x")
        self.fails("checksum of the whole")
        self.answer(b"<html>")
        self.fails("does not begin as a backup does")
        self.answer(b'{"code": "overloaded", "message": "too many", "attributes": {}}', 429)
        self.fails("429 overloaded: too many")
        self.answer(b"gone", 502)
        self.fails("502")
        self.answer(b"[" * 60_000, 500)
        self.fails("500")
        self.server.server_close()
        self.fails("refused", url="http://127.0.0.1:1")

    def test_a_file_that_is_there_is_left_alone(self) -> None:
        self.path.write_text("precious")
        self.assertIn("exists already", self.take(exit_code=3).output)
        self.assertEqual("precious", self.path.read_text())
        self.assertEqual([], Answer.paths)

    def test_wrong_usage(self) -> None:
        for url in ("127.0.0.1:8001", "ftp://a", "http://a:b", "http://", "http://[::1", "http://a b", "http://\u00e9"):
            self.take(exit_code=64, url=url)
        for url in ("http://a:1/b c", "http://a:1/?x", "http://a\n:1"):
            self.take(exit_code=64, url=url)
        for timeout in ("0", "nan", "inf", "1e300"):
            self.run_program("backup", "--url", self.url, "--timeout", timeout, self.path, exit_code=64)
        self.run_program("backup", "--url", self.url, "", exit_code=64)
        self.run_program("backup", self.path, exit_code=64)
        self.run_program("backup", "--verify", "--url", self.url, self.path, exit_code=64)
        self.run_program("backup", "--verify", self.path, exit_code=3)

    def test_a_password_in_the_url_is_refused_and_not_shown(self) -> None:
        found = self.take(exit_code=64, url=self.url.replace("//", "//me:secret@"))
        self.assertNotIn("secret", found.output)

    def test_answers_that_are_no_http_are_no_defect(self) -> None:
        Answer.announced = "many"  # type: ignore[assignment]
        self.fails("many")

    def test_what_an_earlier_one_left_is_written_over(self) -> None:
        Path(f"{self.path}.tmp").write_bytes(b"x" * (len(self.good) + 1))
        self.take()
        self.assertEqual(self.good, self.path.read_bytes())
        self.assertEqual(["state.backup"], os.listdir(self.root))

    def test_two_at_once_do_not_write_to_one_file(self) -> None:
        """The other may still be writing, or just have given its file the name."""
        temporary = f"{self.path}.tmp"
        with open(temporary, "wb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            other.write(b"half of it")
            other.flush()
            self.assertIn("another backup", self.take(exit_code=3).output)
            self.assertEqual(b"half of it", Path(temporary).read_bytes())
        opened = os.open

        def late(path: str, *arguments: Any, **options: Any) -> int:
            fd = opened(path, *arguments, **options)
            if path == temporary:
                os.rename(temporary, self.path)
            return fd

        with mock.patch("os.open", late):
            self.assertIn("another backup", self.take(exit_code=3).output)
        self.assertEqual(b"half of it", self.path.read_bytes())

    def test_names_in_a_backup_cannot_move_the_cursor(self) -> None:
        """A-34."""
        self.path.write_bytes(real_snapshot().file("\x1b[1m", "\x1b[2m"))
        self.assertNotIn("\x1b", self.run_program("backup", "--verify", self.path).output)

    def test_a_damaged_backup(self) -> None:
        self.path.write_bytes(self.good[:-1])
        found = self.run_program("backup", "--verify", self.path, "--json", exit_code=2)
        self.assertEqual("rot", json.loads(found.stdout)["verdict"])


class RestoreCommandTests(CliTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = self.root / "state.backup"
        self.path.write_bytes(real_snapshot().file())
        self.out = self.root / "new"

    def restore(self, *arguments: str, exit_code: int = 0) -> Result:
        found = CliRunner().invoke(program, ["restore", str(self.path), "--out", str(self.out), *arguments])
        self.assertEqual(exit_code, found.exit_code, found.output)
        return found

    def test_directories_and_their_configuration(self) -> None:
        text = self.restore("--member", "1=a:7001,a:8001", "--member", "4=b:7001,b:8001").stdout
        self.assertIn('{ id = 4, peer = "b:7001", client = "b:8001" },', text)
        self.assertIn('cluster_name = "a name"', text)
        for node_id in (1, 4):
            directory = self.out / f"node-{node_id}"
            self.assertEqual("clean", self.lines("verify", directory)[-1]["verdict"])
            [snapshot] = self.of_kind("snapshot", "stat", directory, "--full")
            self.assertEqual(("ok", 70), (snapshot["digest"], snapshot["index"]))
            self.assertEqual([1, 4], snapshot["membership"]["voters"])
        self.assertEqual(["node-1", "node-4"], sorted(os.listdir(self.out)))

    def test_another_name(self) -> None:
        self.restore("--member", "1=a:7001,a:8001", "--cluster-name", "another")
        origin = _cbor.loads(_identity_of(self.out / "node-1")["origin"])
        self.assertEqual(["another", [[1, "a:7001", "a:8001"]]], origin)

    def test_a_name_that_a_node_would_refuse(self) -> None:
        for name in ("", "a\nb", "\udcff", "\x7f"):
            self.restore("--member", "1=a:7001,a:8001", "--cluster-name", name, exit_code=64)
        self.assertFalse(self.out.exists())

    def test_an_old_name_that_a_node_would_refuse(self) -> None:
        """Who embeds a node may have called the cluster anything."""
        self.path.write_bytes(real_snapshot().file("a\nb"))
        self.assertIn("--cluster-name", self.restore("--member", "1=a:7001,a:8001", exit_code=3).output)
        self.assertFalse(self.out.exists())
        self.restore("--member", "1=a:7001,a:8001", "--cluster-name", "ab")

    def test_a_directory_without_a_name(self) -> None:
        """A shell variable that is not set must not mean the root."""
        arguments = ["restore", str(self.path), "--out", "", "--member", "1=a:1,a:2"]
        self.assertEqual(64, CliRunner().invoke(program, arguments).exit_code)

    def test_the_configuration_is_toml_whatever_the_name(self) -> None:
        name = 'k\u00f6ln \U0001f600 "1" \\'
        text = self.restore("--member", "1=a:7001,a:8001", "--cluster-name", name).stdout
        shown = tomllib.loads(text[text.index("[node]") :])
        self.assertEqual(name, shown["node"]["cluster_name"])
        self.assertEqual([{"id": 1, "peer": "a:7001", "client": "a:8001"}], shown["cluster"]["members"])

    def test_wrong_members(self) -> None:
        for members in (
            (),
            ("1",),
            ("0=a:1,a:2",),
            ("1=a:1",),
            ("1=a:1,a",),
            ("1=0.0.0.0:1,a:2",),
            ("1=a:1,a:1",),
            ("1=a:1,a:2", "1=b:1,b:2"),
            ("1=a:1,a:2", "2=a:1,b:2"),
            (f"{1 << 63}=a:1,a:2",),
        ):
            self.restore(*(f"--member={each}" for each in members), exit_code=64)
        self.assertFalse(self.out.exists())

    def test_what_is_there_is_left_alone(self) -> None:
        (self.out / "node-1").mkdir(parents=True)
        self.assertIn("exists already", self.restore("--member", "1=a:1,a:2", exit_code=3).output)

    def test_a_damaged_backup_makes_nothing(self) -> None:
        self.path.write_bytes(Parts(b"x").file()[:-3])
        self.restore("--member", "1=a:1,a:2", exit_code=3)
        self.assertFalse(self.out.exists())


def _identity_of(directory: Path) -> dict[str, Any]:
    fields: dict[str, Any] = _cbor.loads((directory / "identity").read_bytes()[20:])
    return fields
