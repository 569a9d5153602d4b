"""Which parts a node of the daemon is made of."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from typing import Any

from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource

from ..network import (
    HttpNetwork,
    LimitedSite,
    SiteLimits,
    limited_site,
    raft_body_limit,
    raft_service_resource,
    request_limits,
)
from ..node import ConsensusNode, InitialMember
from ..storage import FileLogStore, FileStateMachine
from ._api_http import MAX_JSON_BYTES
from ._application import Application
from ._collector import Collections
from ._config import NodeConfig

__all__ = ["Recovering", "build_node", "client_root", "initial_members", "make_sites", "peer_root"]


def build_node(config: NodeConfig, application: Application, reactor: Any) -> ConsensusNode:
    """Put a node together. Nothing is opened yet.

    Both stores live in the data directory, whose lock and identity file are the log's.
    """
    keywords = {} if application.types is None else {"types": application.types}
    return ConsensusNode(
        node_id=config.node_id,
        address=config.peer_address,
        client_address=config.client_address,
        config=config.consensus,
        log_store=FileLogStore(
            config.data_dir,
            node_id=config.node_id,
            reactor=reactor,
            segment_bytes=config.storage.segment_bytes,
            reserve_bytes=config.storage.reserve_bytes,
        ),
        state_machine=FileStateMachine(config.data_dir, application.machine, reactor=reactor),
        network=HttpNetwork(reactor),
        clock=reactor,
        wall_clock=time.time,
        random=random.SystemRandom(),
        # The reactor's clock goes on while the machine is suspended, which is no delay of the loop.
        loop_clock=time.perf_counter,
        loop_work=time.thread_time,
        **keywords,
    )


def initial_members(config: NodeConfig) -> list[InitialMember]:
    """Return the members that begin the cluster."""
    return [InitialMember(each.node_id, each.peer_address, each.client_address) for each in config.members]


def make_sites(config: NodeConfig, reactor: Any) -> dict[str, LimitedSite]:
    """Return the sites of both listeners, which answer 503 until they are given their resources."""
    largest = config.consensus.max_proposal_bytes

    def client_body_limit(method: bytes, _path: bytes) -> int:
        # A body that is put is the larger part of a proposal; other bodies are JSON or the application's.
        return largest if method == b"PUT" else max(largest, MAX_JSON_BYTES)

    limits = {
        "peer": SiteLimits(body=raft_body_limit(request_limits())),
        # Without a body many clients send no length.
        "client": SiteLimits(body=client_body_limit, require_length=False, refusal=_client_refusal),
    }
    sites = {name: limited_site(Recovering(), limits=each, reactor=reactor) for name, each in limits.items()}
    for site in sites.values():
        # Twisted would report that a factory starts and stops; the service's own lines say more.
        site.noisy = False
    return sites


def peer_root(node: ConsensusNode, reactor: Any) -> IResource:
    """Return what the peers' listener serves."""
    root = Resource()
    root.putChild(b"raft", raft_service_resource(node, clock=reactor))
    resource: IResource = root
    return resource


def client_root(
    node: ConsensusNode, application: Application, config: NodeConfig, reactor: Any, collections: Collections
) -> IResource:
    """Return what the clients' listener serves: the client interface, and the application's own under ``/app``."""
    from ._api import client_resource

    interface: IResource = client_resource(
        node, application.machine, reactor, collections, read_timeout=config.consensus.proposal_timeout
    )
    if application.resource is None:
        return interface
    return _Root(interface, application.resource(node, application.machine))


def _error_body(code: str, message: str, attributes: Mapping[str, int]) -> bytes:
    value = {"code": code, "message": message, "attributes": dict(attributes)}
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _client_refusal(status: int, message: str, limits: Mapping[str, int]) -> tuple[bytes, bytes]:
    code = {408: "request_timeout", 413: "body_too_large", 431: "header_too_large"}.get(status, "invalid_http")
    return b"application/json", _error_body(code, message, limits)


class Recovering(Resource):
    """Answers everything until recovery is done."""

    isLeaf = True
    _BODY = _error_body("recovering", "the node is recovering its data", {})

    def render(self, request: IRequest) -> bytes:
        """Answer 503, whatever was asked."""
        request.setResponseCode(503)
        request.setHeader(b"content-type", b"application/json")
        request.setHeader(b"content-length", b"%d" % len(self._BODY))
        request.setHeader(b"retry-after", b"1")
        return b"" if request.method == b"HEAD" else self._BODY


class _Root(Resource):
    """Sends ``/app`` to one resource and all else, path untouched, to another."""

    def __init__(self, interface: IResource, application: IResource) -> None:
        super().__init__()
        self._interface = interface
        self._application = application

    def getChildWithDefault(self, path: bytes, request: IRequest) -> IResource:
        """Choose by the first segment of the path."""
        if path == b"app":
            return self._application
        request.postpath.insert(0, request.prepath.pop())
        return self._interface
