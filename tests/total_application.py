"""An application of constant size, as a configuration file names it: it counts commands, and adds up their lengths."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from zlayer_consensus.storage import ApplyContext, IStateMachine, IStateSink

__all__ = ["Total"]


@implementer(IStateMachine)
class Total:
    """Commands are bytes."""

    def __init__(self) -> None:
        self.count = self.length = 0

    def apply(self, command: bytes, context: ApplyContext) -> int:
        """Count a command; return how many there have been."""
        self.count += 1
        self.length += len(command)
        return self.count

    def snapshot(self) -> Iterator[bytes]:
        """Yield both numbers."""
        return iter([json.dumps([self.count, self.length]).encode()])

    def restore(self) -> IStateSink:
        """Begin to take them in."""
        return _Sink(self)

    @staticmethod
    def resource(node: Any, machine: Total) -> Resource:
        """Return what is served under ``/app``: POST adds a command, GET shows both numbers."""
        root = Resource()
        root.putChild(b"total", _Resource(node))
        return root


@implementer(IStateSink)
class _Sink:
    def __init__(self, machine: Total) -> None:
        self._machine = machine
        self._data = b""

    def write(self, chunk: bytes) -> None:
        self._data += chunk

    def finish(self) -> None:
        self._machine.count, self._machine.length = json.loads(self._data)


class _Resource(Resource):
    isLeaf = True

    def __init__(self, node: Any) -> None:
        super().__init__()
        self._node = node

    def render_POST(self, request: IRequest) -> int:
        return self._answer(request, self._node.propose(request.content.read()))

    def render_GET(self, request: IRequest) -> int:
        return self._answer(request, self._node.read_state(lambda machine: [machine.count, machine.length]))

    @staticmethod
    def _answer(request: IRequest, waiting: Deferred[Any]) -> int:
        def show(value: Any, code: int = 200) -> None:
            body = json.dumps(value).encode()
            request.setResponseCode(code)
            request.setHeader(b"content-length", b"%d" % len(body))
            request.write(body)
            request.finish()

        _ = waiting.addCallbacks(show, lambda failure: show(str(failure.value), 500))
        return NOT_DONE_YET
