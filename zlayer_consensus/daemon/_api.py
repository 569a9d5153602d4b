"""The client and admin interface of a node: one resource for the client listener."""

from __future__ import annotations

from typing import Any

from twisted.web.iweb import IRequest
from twisted.web.resource import IResource, Resource

from ..kv import FileKeyValueMachine, KeyValueMachine
from ._api_admin import AdminApi
from ._api_backup import BackupApi
from ._api_errors import error_reply
from ._api_http import ApiError
from ._api_kv import KeyValueApi
from ._collector import Collections

__all__ = ["client_resource"]


def client_resource(
    node: Any,
    machine: Any,
    clock: Any = None,
    collections: Collections | None = None,
    *,
    read_timeout: float = 5.0,
) -> IResource:
    """Return what the client listener serves; it is described in the documentation, "HTTP interface".

    :param node: the :class:`~zlayer_consensus.node.ConsensusNode`.
    :param machine: its application. Unless it is a :class:`~zlayer_consensus.kv.KeyValueMachine` or a
        :class:`~zlayer_consensus.kv.FileKeyValueMachine`, there is nothing under ``/v1/kv`` and ``/v1/txn``.
    :param clock: monotonic time, by default the reactor.
    :param collections: what is known of the process's garbage collector.
    :param read_timeout: seconds that values may be on their way from the disk, unless a request says otherwise.
    """
    # Klein imports the reactor, which a program that only imports this package may not have chosen yet.
    from ._api_routes import Routes

    if clock is None:
        from twisted.internet import reactor as clock

    store = None
    if isinstance(machine, KeyValueMachine | FileKeyValueMachine):
        store = KeyValueApi(node, machine, clock, read_timeout)
    routes = Routes(node, AdminApi(node, machine, collections), BackupApi(node, machine, clock), store)
    return _Front(node, store, routes.resource())


class _Front(Resource):
    """Takes what Klein cannot: keys are any bytes, and hostile hosts and paths make it fail with a traceback."""

    isLeaf = True

    def __init__(self, node: Any, store: KeyValueApi | None, routes: IResource) -> None:
        super().__init__()
        self._node = node
        self._store = store
        self._routes = routes

    def render(self, request: IRequest) -> Any:
        """Serve a request."""
        path = request.postpath
        if self._store is not None and len(path) > 2 and path[0] == b"v1" and path[1] == b"kv":
            # Twisted splits the raw path, then undoes the percent-encoding of the parts: to join them undoes the split.
            return self._store.render_key(request, b"/".join(path[2:]))
        if not all(path) or not _is_utf8(b"".join(path)):
            return error_reply(request, self._node, ApiError(404, "not_found", "there is nothing at this path"))
        # Nothing here depends on it, and Werkzeug fails when a label is too long or not to its liking.
        request.requestHeaders.setRawHeaders(b"host", [b"localhost"])
        return self._routes.render(request)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
