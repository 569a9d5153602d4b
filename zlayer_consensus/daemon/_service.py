"""One node as a service: ports, stores, node and interfaces, started and stopped in one order.

``MultiService`` starts its children without waiting, and stops them all at once. Here order is what matters: ports are
bound before anything is opened, so that a second start of the same node changes nothing; and leadership is handed over
before the stores close. So one coroutine starts and one stops.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from ..errors import ConsensusError, StorageFailed
from ._application import Application
from ._assembly import build_node, client_root, initial_members, make_sites, peer_root
from ._collector import Collections, calm_collector, spare_the_state
from ._config import NodeConfig
from ._exit import AddressInUse, ProcessExit, explain, say
from ._log import observer_for, shows_on_stderr

__all__ = ["NodeService"]

_log = Logger("zlayer_consensus.daemon")


class NodeService(Service):
    """Runs one node in the daemon's process, which ends with it.

    :param config: the checked configuration.
    :param application: what the node replicates.
    :param reactor: the process's reactor, its clock already monotonic.
    :param process: takes the exit code.
    :param twistd: the options of ``twistd`` itself.
    """

    def __init__(
        self,
        config: NodeConfig,
        application: Application,
        reactor: Any,
        process: ProcessExit,
        twistd: Mapping[str, Any] | None = None,
    ) -> None:
        self.setName("zconsensus")
        self._config = config
        self._application = application
        self._reactor = reactor
        self._process = process
        self._twistd = twistd
        self._sites: dict[str, Any] = {}
        self._binding: list[Deferred[None]] = []
        self._binding_error: AddressInUse | None = None
        self._ports: dict[str, IListeningPort] = {}
        self._node: Any = None
        self._starting: Deferred[None] | None = None
        self._stopping = False

    def setServiceParent(self, parent: Any) -> None:
        """Become the application's service, and bring our log observer along."""
        if isinstance(parent, Componentized):
            observer = observer_for(self._twistd, self._config.log_level)
            if observer is not None:
                parent.setComponent(ILogObserver, observer)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Bind the ports, while the process may still have the privilege to."""
        super().privilegedStartService()
        self._sites = make_sites(self._config, self._reactor)
        for name, site in self._sites.items():
            listening = serverFromString(self._reactor, self._description(name)).listen(site)
            listening.addCallbacks(self._bound, self._not_bound, callbackArgs=(name,), errbackArgs=(name,))
            self._binding.append(listening)
        if self._binding_error is not None and self._twistd is not None and not self._twistd.get("nodaemon"):
            # The process that was started waits for this method: only what is raised in here makes it end with 1.
            self._conclude(self._binding_error)
            raise self._binding_error

    def startService(self) -> None:
        """Start the node. What fails from here on ends the process with its exit code."""
        super().startService()
        self._starting = Deferred.fromCoroutine(self._start())
        _ = self._starting.addErrback(self._start_failed)

    def stopService(self) -> Deferred[None]:
        """Stop in order: no new connections, leadership handed over, stores closed, ports closed."""
        super().stopService()
        self._stopping = True
        return Deferred.fromCoroutine(self._stop())

    def _description(self, name: str) -> str:
        description: str = getattr(self._config, f"{name}_endpoint")
        return description

    def _bound(self, port: IListeningPort, name: str) -> None:
        self._ports[name] = port

    def _not_bound(self, failure: Failure, name: str) -> None:
        cause: Any = failure.value
        if isinstance(cause, CannotListenError):
            cause = cause.socketError
        reason = getattr(cause, "strerror", None) or str(cause)
        self._binding_error = self._binding_error or AddressInUse(f"listen.{name}", self._description(name), reason)

    async def _start(self) -> None:
        for bound in self._binding:
            await bound
        if self._binding_error is not None:
            raise self._binding_error
        config = self._config
        try:
            # Others on this machine have no business in what the cluster stores.
            os.makedirs(config.data_dir, mode=0o700, exist_ok=True)
        except OSError as error:
            raise StorageFailed("making", config.data_dir, error.strerror or str(error)) from None
        node = self._node = build_node(config, self._application, self._reactor)
        _ = node.when_stopped().addBoth(self._node_stopped)
        # Peers may ask from now on: until the node runs, it answers by itself that it does not.
        self._sites["peer"].resource = peer_root(node, self._reactor)
        _log.info("node {id}: recovering from {path}", id=config.node_id, path=config.data_dir)
        collections = Collections()
        # Before the node runs: to import all that takes 0.1 s, and heartbeats must not wait for it.
        client = client_root(node, self._application, config, self._reactor, collections)
        calm_collector(collections)
        await node.start()
        spare_the_state()
        self._sites["client"].resource = client
        _log.info(
            "node {id}: peers at {peer}, clients at {client}",
            id=config.node_id,
            peer=config.peer_address,
            client=config.client_address,
        )
        if config.join:
            await node.join(list(config.join))
        else:
            await node.bootstrap(initial_members(config))

    def _start_failed(self, failure: Failure) -> None:
        if not self._stopping:
            self._fail(failure)

    def _node_stopped(self, result: object) -> None:
        if self._stopping:
            return
        if isinstance(result, BaseException):
            result = Failure(result)
        if isinstance(result, Failure):
            self._fail(result)
        else:
            _log.info("the node has stopped")
            self._leave()

    def _fail(self, failure: Failure) -> None:
        """End the process because of an error; the first one decides."""
        if self._process.code is None:
            self._conclude(failure.value or AssertionError("a failure without an error"), failure)
            self._leave()

    def _conclude(self, error: BaseException, failure: Failure | None = None) -> None:
        self._process.code, line = explain(error)
        if failure is not None and not isinstance(error, ConsensusError | OSError):
            # Nobody foresaw it, so where it came from is needed.
            _log.failure("unexpected error", failure=failure)
        _log.critical("{line} (exit code {code})", line=line, code=int(self._process.code))
        if not shows_on_stderr(self._twistd):
            say(line)

    def _leave(self) -> None:
        def stop() -> None:
            if not self._stopping:
                self._reactor.stop()

        # At once if the reactor runs, else as its first act.
        self._reactor.callWhenRunning(stop)

    async def _stop(self) -> None:
        # New connections only: the answers to requests that are under way still leave.
        await self._close("client")
        if self._starting is not None:
            self._starting.cancel()
        if self._node is not None:
            _log.info("node {id}: stopping", id=self._config.node_id)
            try:
                # It hands leadership over, which needs the peers' listener, and closes the stores.
                await self._node.shutdown()
            except Exception:
                self._fail_while_stopping(Failure())
        await self._close("peer")

    def _fail_while_stopping(self, failure: Failure) -> None:
        if self._process.code is None:
            self._conclude(failure.value or AssertionError("a failure without an error"), failure)

    async def _close(self, name: str) -> None:
        port = self._ports.pop(name, None)
        if port is not None:
            await maybeDeferred(port.stopListening)
