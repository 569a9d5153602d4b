"""The routes of the RPCs, in Klein.

Importing Klein installs the default reactor, so only functions import this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from klein import Klein
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from zope.interface import implementer

from ._schema import ENDPOINTS
from ._service import Refused, RpcServer

__all__ = ["RpcResource"]

_LABEL = rb"[A-Za-z0-9_-]{1,63}"
_HOST = re.compile(rb"(?:" + _LABEL + rb"(?:\." + _LABEL + rb")*\.?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_MAX_HOST = 260


@implementer(IResource)
class RpcResource:
    """Stands in front of Klein and keeps from it what makes it answer 500 or log tracebacks.

    Klein answers a Host header with a long label, and a path that is not UTF-8, before any of its error handlers.
    """

    isLeaf = True
    server = None

    def __init__(self, server: RpcServer) -> None:
        self._server = server
        self._klein = _app(server).resource()

    def getChildWithDefault(self, name: bytes, request: IRequest) -> IResource:
        """Return this resource: it is a leaf, and its routes are Klein's."""
        return self

    def putChild(self, path: bytes, child: IResource) -> None:
        """Refuse: the paths below belong to the protocol."""
        raise TypeError("the RPC resource takes no children")

    def render(self, request: IRequest) -> bytes | int:
        """Route one request."""
        try:
            _check_host(request)
            _check_path(request)
        except Refused as error:
            request.write(self._server.refuse(request, error))
            request.finish()
            return NOT_DONE_YET
        return self._klein.render(request)  # type: ignore[return-value]  # Klein's word for NOT_DONE_YET is wider


def _check_host(request: IRequest) -> None:
    hosts = request.requestHeaders.getRawHeaders(b"Host", [])
    if len(hosts) > 1 or any(len(host) > _MAX_HOST or not _HOST.fullmatch(host) for host in hosts):
        raise Refused(400, "bad_header", "the header Host is not a host name")


def _check_path(request: IRequest) -> None:
    if len(request.postpath) != 1 or request.postpath[0].decode("ascii", "replace") not in ENDPOINTS:
        raise Refused(404, "not_found", "there is no such RPC")


def _app(server: RpcServer) -> Klein:
    app = Klein()
    for name in ENDPOINTS:
        app.route("/" + name, methods=["POST"], endpoint=name)(_route(server, name))

    @app.handle_errors(HTTPException)
    def refuse(request: IRequest, failure: Failure) -> bytes:
        error = failure.value
        assert isinstance(error, HTTPException)
        if isinstance(error, MethodNotAllowed):
            allow = ", ".join(sorted(error.valid_methods or ())).encode("ascii")
            return server.refuse(
                request, Refused(405, "method_not_allowed", "the method must be POST", {b"Allow": allow})
            )
        return server.refuse(request, Refused(404, "not_found", "there is no such RPC"))

    return app


def _route(server: RpcServer, name: str) -> Callable[[IRequest], Deferred[bytes]]:
    def route(request: IRequest) -> Deferred[bytes]:
        return server.answer(name, request)

    route.__name__ = name.replace("-", "_")
    return route
