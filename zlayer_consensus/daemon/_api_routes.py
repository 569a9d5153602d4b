"""The routes that Klein serves. To import this module is to import Klein, and with it a reactor."""

from __future__ import annotations

from typing import Any

from klein import Klein
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from ._api_admin import AdminApi
from ._api_backup import BackupApi
from ._api_errors import error_reply
from ._api_http import ApiError
from ._api_kv import KeyValueApi

__all__ = ["Routes"]


class Routes:
    """Binds paths to what serves them.

    :param store: the key-value interface, or None if the node runs another application.
    """

    app = Klein()

    def __init__(self, node: Any, admin: AdminApi, backup: BackupApi, store: KeyValueApi | None) -> None:
        self._node = node
        self._admin = admin
        self._backup = backup
        self._store = store

    def resource(self) -> IResource:
        """Return the resource."""
        resource: IResource = self.app.resource()
        return resource

    @app.route("/health", methods=["GET"])
    def _health(self, request: IRequest) -> bytes:
        return self._admin.health(request)

    @app.route("/ready", methods=["GET"])
    def _ready(self, request: IRequest) -> bytes:
        return self._admin.ready(request)

    @app.route("/v1/status", methods=["GET"])
    def _status(self, request: IRequest) -> bytes:
        return self._admin.status(request)

    @app.route("/v1/kv", methods=["GET"])
    def _range(self, request: IRequest) -> Deferred[bytes]:
        return self._key_values().range(request)

    @app.route("/v1/txn", methods=["POST"])
    async def _transact(self, request: IRequest) -> bytes:
        return await self._key_values().transact(request)

    @app.route("/v1/compact", methods=["POST"])
    async def _compact(self, request: IRequest) -> bytes:
        return await self._key_values().compact(request)

    @app.route("/v1/sessions", methods=["POST"])
    async def _open_session(self, request: IRequest) -> bytes:
        return await self._admin.open_session(request)

    @app.route("/v1/members", methods=["GET"])
    def _members(self, request: IRequest) -> bytes:
        return self._admin.members(request)

    @app.route("/v1/members", methods=["POST"])
    async def _add_member(self, request: IRequest) -> bytes:
        return await self._admin.add_member(request)

    @app.route("/v1/members/<node_id>", methods=["DELETE"])
    async def _remove_member(self, request: IRequest, node_id: str) -> bytes:
        return await self._admin.remove_member(request, node_id)

    @app.route("/v1/members/<node_id>/promote", methods=["POST"])
    async def _promote(self, request: IRequest, node_id: str) -> bytes:
        return await self._admin.promote(request, node_id)

    @app.route("/v1/members/<node_id>/address", methods=["PUT"])
    async def _change_address(self, request: IRequest, node_id: str) -> bytes:
        return await self._admin.change_address(request, node_id)

    @app.route("/v1/transfer", methods=["POST"])
    async def _transfer(self, request: IRequest) -> bytes:
        return await self._admin.transfer(request)

    @app.route("/v1/snapshot", methods=["POST"])
    async def _snapshot(self, request: IRequest) -> bytes:
        return await self._admin.snapshot(request)

    @app.route("/v1/backup", methods=["GET"])
    async def _save(self, request: IRequest) -> bytes:
        return await self._backup.backup(request)

    def _key_values(self) -> KeyValueApi:
        if self._store is None:
            raise ApiError(404, "not_found", "this node does not run the key-value store")
        return self._store

    @app.handle_errors(HTTPException)
    def _unrouted(self, request: IRequest, failure: Failure) -> bytes:
        error: Any = failure.value
        if isinstance(error, MethodNotAllowed):
            allowed = ", ".join(sorted(error.valid_methods or ())).encode()
            refusal = ApiError(405, "method_not_allowed", "this path is not for that method", {b"allow": allowed})
        else:
            refusal = ApiError(404, "not_found", "there is nothing at this path")
        return error_reply(request, self._node, refusal)

    @app.handle_errors(Exception)
    def _failed(self, request: IRequest, failure: Failure) -> bytes:
        return error_reply(request, self._node, failure.value)
