"""What the programs that start a local cluster share: its directory, its end, and the exit code."""

from __future__ import annotations

import atexit
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from ._local_cluster import ClusterFailed, LocalCluster

__all__ = ["run_with_cluster"]

# Exit code of a program that Ctrl-C ended, as shells count it.
_INTERRUPTED = 130


def run_with_cluster(
    name: str,
    story: Callable[[LocalCluster, Any], Coroutine[Any, Any, None]],
    *,
    raft: Mapping[str, Any] | None = None,
    storage: Mapping[str, Any] | None = None,
    application: str = "kv",
    deadline: float | None = None,
    until_interrupted: bool = False,
) -> int:
    """Run a coroutine with a cluster whose processes do not outlive it, and return the exit code.

    The directory is removed, unless the coroutine failed: then it is named.

    :param name: part of the directory's name.
    :param story: called with the cluster, nothing started yet, and the reactor.
    :param raft, storage: settings for every node's tables of these names.
    :param application: what the nodes run.
    :param deadline: seconds after which it is given up.
    :param until_interrupted: whether Ctrl-C is the way that it should end.
    """
    directory = tempfile.mkdtemp(prefix=f"zconsensus-{name}-")
    told: list[str] = []

    async def run(reactor: Any) -> None:
        cluster = LocalCluster(directory, reactor, raft=raft, storage=storage, application=application)
        # Whatever ends the program, the nodes end with it.
        atexit.register(cluster.stop)
        reactor.addSystemEventTrigger("before", "shutdown", cluster.stop)
        signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(reactor.stop))
        try:
            await _within(deadline, Deferred.fromCoroutine(story(cluster, reactor)), reactor)
        except Exception as error:
            told.append(str(error) if isinstance(error, ClusterFailed) else f"{type(error).__name__}: {error}")
        else:
            told.append("")
        await cluster.close()

    try:
        react(run)
    except SystemExit as leaving:
        if leaving.code not in (0, None) and not told:
            told.append(f"exit code {leaving.code}")
    if told and told[0]:
        print(f"FAILED: {told[0]}\nThe nodes are stopped, their directories are in {directory}", file=sys.stderr)
        return 1
    shutil.rmtree(directory)
    if not told and not until_interrupted:
        print("interrupted; the nodes are stopped", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _within(seconds: float | None, story: Deferred[None], reactor: Any) -> Deferred[None]:
    """Return what fires with the story's end, or fails after some time, whatever the story makes of being cancelled."""
    ended: Deferred[None] = Deferred()
    timer = None

    def late() -> None:
        ended.errback(ClusterFailed(f"not done after {seconds:g} s"))
        story.cancel()

    def told(result: Any) -> None:
        if not ended.called:
            if timer is not None:
                timer.cancel()
            ended.callback(result)

    if seconds is not None:
        timer = reactor.callLater(seconds, late)
    _ = story.addBoth(told)
    return ended
