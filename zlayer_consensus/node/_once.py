"""A request that the network delivers twice is carried out once."""

from __future__ import annotations

from collections import OrderedDict

from ..raft import HardState

__all__ = ["Once"]

_MAX_STREAMS = 1024
"""Lives of other nodes that are remembered."""
_WINDOW = 1024
"""Numbers of a stream that are remembered; whatever is older was given up long ago."""


class Once:
    """Remembers which forwarded requests were taken in.

    A second copy of one must be told neither that it was done nor that it was not; also if the node has started again
    since the first came: the term in which it was sent tells whether that can be.

    :param node_id: this node.
    :param start: term and vote at its start.
    """

    def __init__(self, node_id: int, start: HardState) -> None:
        led = start.voted_for == node_id
        self._before = start.term if led else start.term - 1
        """The last term in which this node may have led before it started."""
        self._streams: OrderedDict[tuple[int, int], set[int]] = OrderedDict()

    def known(self, term: int, sender: int, stream: int, number: int) -> bool:
        """Say whether a request was taken in, or may have been.

        :param term: the one in which the sender takes this node for the leader.
        :param stream: the sender's own number of its present life.
        :param number: the request's, in the order in which they were sent.
        """
        seen = self._streams.get((sender, stream), ())
        return term <= self._before or number in seen or (len(seen) >= _WINDOW and number < min(seen))

    def take(self, sender: int, stream: int, number: int) -> None:
        """Note that a request is taken in now."""
        key = (sender, stream)
        seen = self._streams.setdefault(key, set())
        self._streams.move_to_end(key)
        if len(self._streams) > _MAX_STREAMS:
            self._streams.popitem(last=False)
        seen.add(number)
        if len(seen) > _WINDOW:
            seen.discard(min(seen))
