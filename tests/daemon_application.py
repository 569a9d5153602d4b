"""An application of one's own, as a configuration file names it by its dotted path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from zlayer_consensus.storage import ApplyContext, IStateMachine, IStateSink

__all__ = ["Counter"]


@implementer(IStateMachine)
class Counter:
    """Adds numbers up. It has a defect: it cannot take 13."""

    def __init__(self) -> None:
        self.value = 0

    def apply(self, command: int, context: ApplyContext) -> int:
        """Add a number; return the sum."""
        if command == 13:
            raise ArithmeticError("unlucky")
        self.value += command
        return self.value

    def snapshot(self) -> Iterator[bytes]:
        """Yield the sum."""
        return iter([b"%d" % self.value])

    def restore(self) -> IStateSink:
        """Begin to take one in."""
        raise NotImplementedError("no test takes a snapshot of it")

    @staticmethod
    def resource(node: Any, machine: Counter) -> Resource:
        """Return what is served under /app."""
        root = Resource()
        root.putChild(b"add", _Add(node))
        return root


class _Add(Resource):
    isLeaf = True

    def __init__(self, node: Any) -> None:
        super().__init__()
        self._node = node

    def render_POST(self, request: IRequest) -> int:
        proposed: Deferred[int] = self._node.propose(int(request.content.read()))

        def show(value: int) -> None:
            request.write(b"%d" % value)
            request.finish()

        def refuse(_failure: object) -> None:
            request.setResponseCode(500)
            request.finish()

        _ = proposed.addCallbacks(show, refuse)
        return NOT_DONE_YET
