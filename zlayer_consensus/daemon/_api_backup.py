"""Backups over HTTP: a snapshot, streamed as fast as the client takes it."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.web.iweb import IRequest
from zope.interface import implementer

from ..errors import Overloaded
from ..kv import FileKeyValueMachine, KeyValueMachine
from ..storage import ISnapshotReader
from ..storage.backup import BACKUP_DIGEST_BYTES, BackupHeader, encode_backup_head
from ._api_http import Options

__all__ = ["BackupApi"]

_PIECE: Final = 256 << 10
"""Bytes that are read at a time: all that is in memory of a backup, but for what the socket buffers."""
_PATIENCE: Final = 60.0
"""Seconds after which a client that takes nothing is given up: it holds back the removal of a snapshot."""
_OPTIONS: Final = ("forward", "timeout")
_log = Logger()


class BackupApi:
    """Serves backups, one at a time.

    :param node: the :class:`~zlayer_consensus.node.ConsensusNode`.
    :param machine: its application.
    :param clock: monotonic time, to give up clients.
    """

    def __init__(self, node: Any, machine: Any, clock: Any) -> None:
        self._node = node
        self._clock = clock
        kind = type(machine)
        is_store = kind in (KeyValueMachine, FileKeyValueMachine)
        self._application = "kv" if is_store else f"{kind.__module__}:{kind.__qualname__}"
        self._busy = False

    async def backup(self, request: IRequest) -> bytes:
        """Serve ``GET /v1/backup``. What fails before the first byte is an error like any other."""
        options = Options(request, _OPTIONS)
        if self._busy:
            raise Overloaded("backups", 1)
        self._busy = True
        try:
            reader = await self._node.backup(options.timeout, forward=options.forward)
            try:
                await self._send(request, reader)
            finally:
                reader.close()
        finally:
            self._busy = False
        return b""

    async def _send(self, request: IRequest, reader: ISnapshotReader) -> None:
        manifest = reader.manifest
        header = BackupHeader(self._node.metrics().cluster_id, self._node.cluster_name, self._application, manifest)
        head = encode_backup_head(header)
        request.setHeader(b"content-type", b"application/octet-stream")
        request.setHeader(b"content-length", b"%d" % (len(head) + manifest.size + BACKUP_DIGEST_BYTES))
        request.setHeader(b"x-zlayer-index", b"%d" % manifest.point.last.index)
        outflow = _Outflow(request, self._clock)
        try:
            digest = sha256(head)
            await outflow.write(head)
            for part, (size, _) in enumerate(manifest.parts):
                for offset in range(0, size, _PIECE):
                    data = await reader.read(part, offset, min(_PIECE, size - offset))
                    digest.update(data)
                    await outflow.write(data)
            await outflow.write(digest.digest())
        except CancelledError:  # the client has gone
            raise
        except Exception as error:
            # The answer has begun: that it is not whole is all that the client can still be told.
            _log.error("A backup was broken off: {error}", error=error)
            await outflow.abort()
        finally:
            outflow.close()


@implementer(IPushProducer)
class _Outflow:
    """The body of a response, written no faster than it leaves."""

    def __init__(self, request: Any, clock: Any) -> None:
        self._request = request
        self._clock = clock
        self._waiting: Deferred[None] | None = None
        self._paused = False
        request.registerProducer(self, True)

    async def write(self, data: bytes) -> None:
        """Write, once there is room.

        :raises TimeoutError: if the client takes nothing for too long.
        """
        if self._paused:
            self._waiting = Deferred()
            late = TimeoutError(f"the client has taken nothing for {_PATIENCE:g} s")
            await self._waiting.addTimeout(
                _PATIENCE, self._clock, onTimeoutCancel=lambda _result, _seconds: _fail(late)
            )
        self._request.write(data)

    def pauseProducing(self) -> None:
        """The buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The buffer is empty."""
        self._paused = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def stopProducing(self) -> None:
        """The client has gone; whoever awaits is cancelled by the request."""

    async def abort(self) -> None:
        """Cut the connection, and wait until the request is over."""
        gone = self._request.notifyFinish().addErrback(lambda _: None)
        self._request.channel.transport.abortConnection()
        await gone

    def close(self) -> None:
        """Produce no more."""
        if self._request.channel is not None:  # else the connection is lost
            self._request.unregisterProducer()


def _fail(error: Exception) -> None:
    raise error
