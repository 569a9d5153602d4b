"""The key-value store over HTTP: single keys with raw bodies, ranges and transactions as JSON."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.web.iweb import IRequest

from ..errors import DeadlineExceeded, DomainError
from ..kv import (
    Compact,
    Delete,
    FileKeyValueMachine,
    KeyValue,
    KeyValueMachine,
    Put,
    decode_result,
    encode,
    frees_space,
    prefix_end,
)
from ..kv import RangeResult as _RangeResult
from ._api_errors import error_reply
from ._api_http import ApiError, Options, answer, bad, has_broken_escape, read_json, reply, reply_json
from ._api_txn import fields, integer, parse_txn, plain_pair, plain_result

__all__ = ["KeyValueApi", "write_options"]

_ALLOWED: Final = b"GET, HEAD, PUT, DELETE"
_BINARY: Final = b"application/octet-stream"
_WRITE_OPTIONS: Final = ("forward", "timeout")
_READ_OPTIONS: Final = ("consistency", "forward", "revision", "timeout")
_SEQUENCE: Final = re.compile(rb"[0-9]{1,19}", re.ASCII)


def write_options(request: IRequest) -> dict[str, Any]:
    """Return the keyword arguments for a proposal: session, sequence, timeout, forward.

    :raises ApiError: 400.
    """
    options = Options(request, _WRITE_OPTIONS) if b"?" in request.uri else None
    keywords: dict[str, Any] = {}
    if options is not None:
        keywords = {"timeout": options.timeout, "forward": options.forward}
    session = request.requestHeaders.getRawHeaders(b"x-zlayer-session")
    sequence = request.requestHeaders.getRawHeaders(b"x-zlayer-sequence")
    if session is not None or sequence is not None:
        keywords["session"] = _header_number("X-ZLayer-Session", session)
        keywords["sequence"] = _header_number("X-ZLayer-Sequence", sequence)
    return keywords


def _header_number(name: str, values: Sequence[bytes] | None) -> int:
    if values is None:
        raise bad(name, "X-ZLayer-Session and X-ZLayer-Sequence go together", "invalid_header")
    if len(values) != 1:
        raise bad(name, f"{name} is given {len(values)} times", "invalid_header")
    value = values[0]
    if not _SEQUENCE.fullmatch(value) or not 0 < int(value) < 1 << 63:
        raise bad(name, f"{name} is a number from 1 to 2^63 - 1", "invalid_header")
    return int(value)


class KeyValueApi:
    """Serves the store of one node.

    :param node: the :class:`~zlayer_consensus.node.ConsensusNode`.
    :param machine: its application.
    :param clock: an ``IReactorTime``; for values that are read from the disk.
    :param read_timeout: seconds that this may take, unless the request says otherwise.
    """

    def __init__(
        self, node: Any, machine: KeyValueMachine | FileKeyValueMachine, clock: Any, read_timeout: float
    ) -> None:
        self._node = node
        self._machine = machine
        self._clock = clock
        self._read_timeout = read_timeout

    # --- single keys: not routed by Klein, which refuses paths that are not UTF-8 and merges slashes

    def render_key(self, request: IRequest, key: bytes) -> Any:
        """Serve ``/v1/kv/{key}``; ``key`` with its percent-encoding undone."""

        def show_error(error: BaseException | None) -> bytes:
            return error_reply(request, self._node, error)

        try:
            if has_broken_escape(request.uri.partition(b"?")[0]):
                raise ApiError(400, "invalid_path", "the path has a % that two hexadecimal digits do not follow")
            method = request.method
            if method == b"PUT":
                return self._put(request, key, show_error)
            if method in (b"GET", b"HEAD"):
                return self._get(request, key, show_error)
            if method == b"DELETE":
                return self._delete(request, key, show_error)
            raise ApiError(405, "method_not_allowed", "a key is read, put or deleted", {b"allow": _ALLOWED})
        except Exception as error:  # whatever it is, the client gets an answer, and a defect is logged
            return show_error(error)

    def _put(self, request: IRequest, key: bytes, show_error: Any) -> Any:
        command = encode(Put(key, request.content.read()))
        waiting = self._node.propose_with_index(command, **write_options(request))

        def show(applied: Any) -> bytes:
            put: Any = decode_result(applied.result)
            body = b'{"revision":%d,"create_revision":%d,"version":%d}\n' % (
                put.revision,
                put.create_revision,
                put.version,
            )
            headers = {
                b"x-zlayer-revision": b"%d" % put.revision,
                b"x-zlayer-create-revision": b"%d" % put.create_revision,
                b"x-zlayer-mod-revision": b"%d" % put.revision,
                b"x-zlayer-version": b"%d" % put.version,
                b"x-zlayer-index": b"%d" % applied.index,
            }
            return reply(request, 200, body, b"application/json", headers)

        return answer(request, waiting, show, show_error)

    def _delete(self, request: IRequest, key: bytes, show_error: Any) -> Any:
        waiting = self._node.propose_with_index(encode(Delete(key)), **write_options(request), frees_space=True)

        def show(applied: Any) -> bytes:
            result: Any = decode_result(applied.result)
            headers = {
                b"x-zlayer-revision": b"%d" % result.revision,
                b"x-zlayer-index": b"%d" % applied.index,
            }
            value = {"deleted": bool(result.deleted), "revision": result.revision}
            return reply_json(request, value, headers=headers)

        return answer(request, waiting, show, show_error)

    def _get(self, request: IRequest, key: bytes, show_error: Any) -> Any:
        if not key:
            raise DomainError("empty_key", "a key has at least one byte")
        options = Options(request, _READ_OPTIONS) if b"?" in request.uri else None
        revision = options.number("revision") if options else 0

        def read(_machine: Any) -> tuple[Any, int, int]:
            machine = self._machine
            return machine.get(key, revision), revision or machine.revision, machine.index

        def show(found: tuple[KeyValue | None, int, int]) -> bytes:
            return _show_key(request, *found)

        return answer(request, self._read(options, read), show, show_error)

    def _read(self, options: Options | None, read: Any) -> Deferred[Any]:
        """Return what ``read`` returns of the state: a tuple, whose first item may be on its way from the disk."""
        waiting = self._begin_read(options, read)
        if isinstance(self._machine, FileKeyValueMachine):
            seconds = (options.timeout if options else None) or self._read_timeout
            return waiting.addCallback(self._wait_for_disk, seconds)
        return waiting

    def _wait_for_disk(self, found: tuple[Any, ...], seconds: float) -> Deferred[Any]:
        values, *rest = found

        def too_late(_result: object, _timeout: float) -> None:
            raise DeadlineExceeded("read", seconds)

        waiting: Deferred[Any] = values.addTimeout(seconds, self._clock, too_late)
        return waiting.addCallback(lambda values: (values, *rest))

    def _begin_read(self, options: Options | None, read: Any) -> Deferred[Any]:
        waiting: Deferred[Any]
        consistency = options.raw("consistency") if options else None
        if options is None or consistency in (None, b"linearizable"):
            timeout, forward = (options.timeout, options.forward) if options else (None, None)
            waiting = self._node.read_state(read, timeout, forward=forward)
            return waiting
        if consistency == b"stale":
            waiting = self._node.read_state(read, linearizable=False)
            return waiting
        if consistency == b"lease":
            raise bad("consistency", "lease reads are not offered; use linearizable or stale", "lease_reads_refused")
        options.choice("consistency", ("linearizable", "stale"))
        raise AssertionError("choice refuses what is not a choice")

    # --- ranges and transactions: routed by Klein

    def range(self, request: IRequest) -> Deferred[bytes]:
        """Serve ``GET /v1/kv``."""
        options = Options(request, (*_READ_OPTIONS, "prefix", "start", "end", "limit"))
        start, end = _bounds(options)
        limit, revision = options.number("limit"), options.number("revision")

        def read(_machine: Any) -> tuple[Any, int]:
            machine = self._machine
            return machine.range(start, end, limit=limit, revision=revision), machine.index

        def show(found: tuple[_RangeResult, int]) -> bytes:
            page, index = found
            value = {
                "revision": page.revision,
                "kvs": [plain_pair(kv) for kv in page.kvs],
                "more": page.more,
                "next": None if page.next_key is None else b64encode(page.next_key).decode(),
            }
            headers = {b"x-zlayer-revision": b"%d" % page.revision, b"x-zlayer-index": b"%d" % index}
            return reply_json(request, value, headers=headers)

        return self._read(options, read).addCallback(show)

    async def transact(self, request: IRequest) -> bytes:
        """Serve ``POST /v1/txn``."""
        keywords = write_options(request)
        txn = parse_txn(read_json(request))
        applied = await self._node.propose_with_index(encode(txn), **keywords, frees_space=frees_space(txn))
        result: Any = decode_result(applied.result)
        headers = {
            b"x-zlayer-revision": b"%d" % result.revision,
            b"x-zlayer-index": b"%d" % applied.index,
        }
        return reply_json(request, plain_result(result), headers=headers)

    async def compact(self, request: IRequest) -> bytes:
        """Serve ``POST /v1/compact``."""
        keywords = write_options(request)
        body = fields(read_json(request), "the body", ("revision",))
        command = Compact(integer(body["revision"], "revision", 1))
        applied = await self._node.propose_with_index(encode(command), **keywords, frees_space=True)
        result: Any = decode_result(applied.result)
        value = {"revision": result.revision, "compacted_revision": result.compacted}
        return reply_json(request, value, headers={b"x-zlayer-index": b"%d" % applied.index})


def _show_key(request: IRequest, kv: KeyValue | None, revision: int, index: int) -> bytes:
    headers = {b"x-zlayer-revision": b"%d" % revision, b"x-zlayer-index": b"%d" % index}
    if kv is None:
        value = {"code": "key_not_found", "message": "there is no such key", "attributes": {}}
        return reply_json(request, value, 404, headers)
    headers[b"x-zlayer-create-revision"] = b"%d" % kv.create_revision
    headers[b"x-zlayer-mod-revision"] = b"%d" % kv.mod_revision
    headers[b"x-zlayer-version"] = b"%d" % kv.version
    return reply(request, 200, kv.value, _BINARY, headers)


def _bounds(options: Options) -> tuple[bytes, bytes | None]:
    prefix, start, end = options.raw("prefix"), options.raw("start"), options.raw("end")
    if prefix is not None:
        if end is not None:
            raise bad("end", "end and prefix exclude one another")
        if start is not None and not start.startswith(prefix):
            raise bad("start", "start does not have the prefix")
        bound = prefix_end(prefix)
        return start or prefix, None if bound == b"\0" else bound
    return start or b"", end or None
