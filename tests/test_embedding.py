"""The embedding example of the documentation, run on real sockets: three nodes in one process."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

import treq
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, HTTPConnectionPool

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "embedding.py"


def load_example() -> ModuleType:
    """Import the example from its file."""
    spec = importlib.util.spec_from_file_location("embedding_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_ports(count: int) -> dict[int, int]:
    """Return loopback ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = {number: one.getsockname()[1] for number, one in enumerate(sockets, 1)}
    for one in sockets:
        one.close()
    return ports


class EmbeddingTests(TestCase):
    """What the example promises."""

    timeout = 60

    def test_it_is_short(self) -> None:
        """An application of less than 60 lines."""
        self.assertLess(len(EXAMPLE.read_text().splitlines()), 60)

    def test_the_front_page_shows_it(self) -> None:
        """The README's first program is the example, to the letter."""
        self.assertIn(f"```python\n{EXAMPLE.read_text()}```", (EXAMPLE.parents[2] / "README.md").read_text())

    async def test_counts_anywhere_and_reads_elsewhere(self) -> None:
        """Increments at any node are seen by a read at any other."""
        make_service: Any = load_example().make_service
        ports = free_ports(3)
        services, started = [], []
        for number in ports:
            service, joined = make_service(reactor, number, ports, f"{self.mktemp()}-{number}")
            service.startService()
            self.addCleanup(service.stopService)
            services.append(service)
            started.append(joined)
        await gatherResults(started, consumeErrors=True)
        pool = HTTPConnectionPool(reactor, persistent=False)
        http = treq.client.HTTPClient(Agent(reactor, pool=pool))
        urls = [f"http://127.0.0.1:{port}/counter/" for port in ports.values()]

        async def ask(method: str, url: str) -> str:
            while True:  # until there is a leader; the test's own time-out bounds it
                response = await http.request(method, url)
                text: str = await response.text()
                if response.code == 200:
                    return text.strip()
                await deferLater(reactor, 0.05)

        for expected, url in enumerate(urls, 1):
            self.assertEqual(await ask("POST", url), str(expected))
        for url in urls:
            self.assertEqual(await ask("GET", url), "3")
