"""How late the loop of a process turns that does nothing: what the machine itself adds to every delay.

``python -m tests.acceptance._noise`` writes a line a second until it is killed: the longest delay of that second, in
milliseconds, by the very probe that the nodes have.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from zlayer_consensus.node._probe import LoopProbe

__all__ = ["Noise"]

_INTERVAL = 0.005


class Noise:
    """Such a process.

    :param path: where its lines go.
    """

    def __init__(self, path: str, environment: dict[str, str]) -> None:
        self._path = path
        with open(path, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                cwd=os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
            )

    def lines(self) -> int:
        """Return how many seconds it has seen."""
        return len(self._read())

    def longest(self, since: int) -> float:
        """Return the longest delay, in milliseconds, after so many seconds that it had seen before."""
        return max(self._read()[since:], default=0.0)

    def _read(self) -> list[float]:
        with open(self._path, encoding="ascii") as file:
            return [float(line) for line in file.read().split("\n")[:-1]]

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Measure."""
    from twisted.internet import reactor
    from twisted.internet.task import LoopingCall

    clock: Any = reactor
    probes: list[LoopProbe] = []

    def tell() -> None:
        if probes:
            last = probes.pop()
            last.stop()
            found = last.metrics()
            assert found is not None
            print(f"{found.longest * 1000:.1f}", flush=True)
        probe = LoopProbe(clock, time.perf_counter, None, _INTERVAL)
        probe.start()
        probes.append(probe)

    _ = LoopingCall(tell).start(1.0)
    clock.run()


if __name__ == "__main__":
    main()
