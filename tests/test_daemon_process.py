"""Real ``twistd`` processes: exit codes, one clear line, nothing changed on disk, an orderly stop (A-35, S-20)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from zlayer_consensus.daemon._local_cluster import TWISTD, child_environment, free_ports

# Seconds within which a process on a busy machine does what takes it a second.
PATIENCE = 30.0
FAST = "[raft]\nelection_timeout_min_ms = 150\nelection_timeout_max_ms = 300\nheartbeat_interval_ms = 50\n"


class Node:
    """The directory of one node that is a cluster of its own, and commands that run on it."""

    def __init__(self, directory: str, node_id: int = 1) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True)
        self.data = self.directory / "data"
        self.peer, self.client = free_ports(2)
        self.write(node_id)

    def write(
        self, node_id: int, extra: str = "", application: str = "kv", data_dir: str = "data", others: str = ""
    ) -> None:
        """Writes the configuration file."""
        (self.directory / "node.toml").write_text(
            f"""
[node]
id = {node_id}
data_dir = "{data_dir}"
application = "{application}"
[listen]
peer = "tcp:{self.peer}:interface=127.0.0.1"
client = "tcp:{self.client}:interface=127.0.0.1"
[cluster]
members = [{{ id = {node_id}, peer = "127.0.0.1:{self.peer}", client = "127.0.0.1:{self.client}" }}{others}]
{FAST}{extra}""",
            encoding="utf-8",
        )

    def twistd(self, *arguments: str, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
        """Runs twistd to its end; with ``largest_file``, the kernel refuses to let a file grow beyond it."""

        command = [*TWISTD]
        if largest_file is not None:
            limits = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file}, {largest_file})); "
            command[-1] = limits + command[-1]
        return subprocess.run(
            [*command, *arguments],
            cwd=self.directory,
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def run(self) -> subprocess.CompletedProcess[str]:
        """Runs the node in the foreground; it is expected to end by itself."""
        return self.twistd("-n", "zconsensus", "--config", "node.toml")

    @contextmanager
    def running(self, path: str = "/ready") -> Iterator[subprocess.Popen[str]]:
        """Runs the node in the foreground, and waits for a 200 at a path; stops it at the end."""
        process = subprocess.Popen(
            [*TWISTD, "-n", "zconsensus", "--config", "node.toml"],
            cwd=self.directory,
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + PATIENCE
            while self.get(path)[0] != 200:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    raise AssertionError(f"the node is not ready: {process.communicate()}")
                time.sleep(0.05)
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                raise

    def get(self, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
        """Asks the client interface; status 0 if nobody answers."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.client}{path}", body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def fingerprint(self) -> dict[str, str]:
        """Everything in the data directory, by name and content, but for who had the lock last."""
        return {
            str(path.relative_to(self.data)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "/"
            for path in sorted(self.data.rglob("*"))
            if path.name != "LOCK"
        }


class ProcessTests(SynchronousTestCase):
    def node(self, node_id: int = 1) -> Node:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        return Node(os.path.join(temporary.name, "node"), node_id)

    def refused(self, done: subprocess.CompletedProcess[str], code: int, *words: str) -> str:
        """Expects an exit code, and one line on standard error that has the words."""
        self.assertEqual(done.returncode, code, f"{done.stdout}\n{done.stderr}")
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertTrue(done.stderr.startswith("zconsensus: "), done.stderr)
        self.assertNotIn("Traceback", done.stdout + done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)
        return done.stderr

    def test_help(self) -> None:
        done = self.node().twistd("zconsensus", "--help")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("Exit codes:", done.stdout)

    def test_plugin_is_listed(self) -> None:
        self.assertIn("zconsensus", self.node().twistd("--help").stdout)

    def test_configuration(self) -> None:
        node = self.node()
        node.write(1, "colour = 3\n")
        self.refused(node.run(), 2, "node.toml: raft.colour = 3: unknown key")
        self.assertEqual(os.listdir(node.directory), ["node.toml"])

    def test_another_reactor(self) -> None:
        """The choice of the reactor is twistd's, also when our modules are what is loaded next."""
        done = self.node().twistd("--reactor=poll", "-n", "zconsensus", "--config", "node.toml", "--check")
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_address_in_use(self) -> None:
        """Whichever listener it is: nothing is written, the log is never opened."""
        for name in ("peer", "client"):
            node = self.node()
            with socket.create_server(("127.0.0.1", getattr(node, name))):
                port = getattr(node, name)
                self.refused(node.run(), 3, f"tcp:{port}:interface=127.0.0.1 (listen.{name}): Address already in use")
            self.assertFalse(node.data.exists())
            self.assertFalse((node.directory / "twistd.pid").exists())

    def test_serves_and_stops(self) -> None:
        """SIGTERM is an orderly stop, after which twistd lets the signal end the process; the data is there again."""
        node = self.node()
        for value in (b"one", b"two"):
            with node.running() as process:
                before = node.get("/v1/kv/key")
                self.assertEqual(before, (200, b"one") if value == b"two" else (before[0], before[1]))
                self.assertIn(node.get("/v1/kv/key", "PUT", value)[0], (200, 201, 204))
            self.assertEqual(process.returncode, -signal.SIGTERM)
        self.assertEqual(os.stat(node.data).st_mode & 0o077, 0, "readable for its owner alone")

    def test_values_on_disk(self) -> None:
        """A node that had all in memory is moved to disk by the setting; there is no way back, and it says so."""
        node = self.node()
        with node.running():
            self.assertEqual(node.get("/v1/kv/before", "PUT", b"memory")[0], 200)
            self.assertEqual(node.get("/v1/snapshot", "POST")[0], 200)
            self.assertEqual(node.get("/v1/kv/between", "PUT", b"log")[0], 200)
        node.write(1, extra='\n[storage]\nvalues = "disk"\n')
        for value in (b"one", b"two"):
            with node.running():
                self.assertEqual(node.get("/v1/kv/before"), (200, b"memory"))
                self.assertEqual(node.get("/v1/kv/between"), (200, b"log"))
                self.assertEqual(node.get("/v1/kv/after", "PUT", value * 1000)[0], 200)
                self.assertEqual(node.get("/v1/kv/after"), (200, value * 1000))
                self.assertEqual(node.get("/v1/snapshot", "POST")[0], 200)
        newest = max(node.data.glob("snap/*-*"), key=lambda path: int(path.name.partition("-")[0]))
        linked = [path for path in newest.iterdir() if path.read_bytes().startswith(b"zvalues")]
        self.assertGreater(max(path.stat().st_nlink for path in linked), 1)
        node.write(1)
        self.refused(node.run(), 2, "values = 'memory'", '[storage] values must be "disk"')

    def test_waiting_for_the_other_members(self) -> None:
        """Live, but not ready; and it can be stopped while it waits, which leaves its log empty."""
        node = self.node()
        peer, client = free_ports(2)
        node.write(1, others=f', {{ id = 2, peer = "127.0.0.1:{peer}", client = "127.0.0.1:{client}" }}')
        for _ in range(2):
            with node.running("/health") as process:
                code, body = node.get("/ready")
                self.assertEqual((code, json.loads(body)["code"]), (503, "not_ready"))
                self.assertEqual(json.loads(node.get("/v1/status")[1])["last"], {"term": 0, "index": 0})
            self.assertEqual(process.returncode, -signal.SIGTERM)

    def test_data_directory_that_is_locked(self) -> None:
        """Another node's configuration that names the same directory changes nothing there (S-20)."""
        node, other = self.node(), self.node()
        with node.running():
            other.data.symlink_to(node.data)
            self.refused(other.run(), 4, "locked")
            self.assertEqual(node.get("/ready")[0], 200)

    def test_data_directory_of_another_node(self) -> None:
        node = self.node()
        with node.running():
            pass
        before = node.fingerprint()
        node.write(2)
        self.refused(node.run(), 4, "another node", "2", "1")
        self.assertEqual(node.fingerprint(), before)

    def test_damage(self) -> None:
        """A flipped byte among durable entries: refused with file and offset, nothing changed (S-02, J-98)."""
        node = self.node()
        with node.running():
            for number in range(20):
                node.get(f"/v1/kv/{number}", "PUT", b"sixteen letters!" * 8)
        [segment] = sorted((node.data / "wal").iterdir())[:1]
        content = bytearray(segment.read_bytes())
        at = content.index(b"sixteen letters!") + 5
        content[at] ^= 0x40
        segment.write_bytes(content)
        before = node.fingerprint()
        self.refused(node.run(), 5, segment.name, "offset")
        self.assertEqual(node.fingerprint(), before)

    def test_daemonised_failure(self) -> None:
        """twistd's starting process does not end with 0 if a port is taken, and the log says why."""
        node = self.node()
        with socket.create_server(("127.0.0.1", node.peer)):
            done = node.twistd("zconsensus", "--config", "node.toml")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("cannot listen on", done.stderr)
        self.assertIn("Address already in use", (node.directory / "twistd.log").read_text(encoding="utf-8"))
        self.assertFalse((node.directory / "twistd.pid").exists())

    def test_daemonised(self) -> None:
        """It runs in the background, logs to twistd's file, and stops in order."""
        node = self.node()
        done = node.twistd("zconsensus", "--config", "node.toml")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        pid = int((node.directory / "twistd.pid").read_text(encoding="ascii"))
        deadline = time.monotonic() + PATIENCE
        try:
            while node.get("/ready")[0] != 200 and time.monotonic() < deadline:
                time.sleep(0.05)
            self.assertEqual(node.get("/ready")[0], 200)
        finally:
            os.kill(pid, signal.SIGTERM)
        while (node.directory / "twistd.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertFalse((node.directory / "twistd.pid").exists())
        self.assertIn("stopping", (node.directory / "twistd.log").read_text(encoding="utf-8"))

    def test_log_level(self) -> None:
        """One line per event, and what is below the level is left out."""
        node = self.node()
        node.write(1, '[log]\nlevel = "error"\n')
        with node.running() as process:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=PATIENCE)
        self.assertEqual((out, err), ("", ""))

    def test_status_names_the_node(self) -> None:
        node = self.node(7)
        with node.running():
            self.assertEqual(json.loads(node.get("/v1/status")[1])["id"], 7)

    def test_disk_that_fails(self) -> None:
        """What the disk refuses is no damage: with room again, the node starts on the same directory (S-12)."""
        node = self.node()
        self.refused(node.twistd("-n", "zconsensus", "--config", "node.toml", largest_file=64 << 10), 6, "data")
        with node.running():
            self.assertEqual(node.get("/ready")[0], 200)

    def test_data_directory_that_cannot_be_made(self) -> None:
        node = self.node()
        node.write(1, data_dir="/proc/none/data")
        self.refused(node.run(), 6, "/proc/none/data")

    def test_application_that_cannot_be_loaded(self) -> None:
        node = self.node()
        node.write(1, application="tests.no_such_module:Application")
        self.refused(node.run(), 2, 'node.toml: node.application = "tests.no_such_module:Application"')

    def test_own_application(self) -> None:
        """It is named by its dotted path, and serves its own interface beside ours."""
        node = self.node()
        node.write(1, application="tests.daemon_application:Counter")
        with node.running():
            self.assertEqual(node.get("/app/add", "POST", b"3"), (200, b"3"))
            self.assertEqual(node.get("/app/add", "POST", b"4"), (200, b"7"))
            self.assertEqual(json.loads(node.get("/v1/status")[1])["id"], 1)
            self.assertEqual(node.get("/v1/kv/key")[0], 404)
        with node.running():
            self.assertEqual(node.get("/app/add", "POST", b"0"), (200, b"7"))

    def test_application_that_raises(self) -> None:
        """An exception in apply ends the process, and again at every start: the entry is committed (H-81, J-102)."""
        node = self.node()
        node.write(1, application="tests.daemon_application:Counter")
        with node.running() as process:
            self.assertNotEqual(node.get("/app/add", "POST", b"13")[0], 200)
            out, err = process.communicate(timeout=PATIENCE)
            self.assertEqual(process.returncode, 7, out + err)
            self.assertIn("unlucky", err)
            self.assertEqual(err.count("\n"), 1, err)
        self.assertEqual(node.run().returncode, 7)
