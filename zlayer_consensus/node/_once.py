"""A request that the network delivers twice is carried out once."""

from __future__ import annotations

from collections import OrderedDict

from ..errors import OutcomeUnknown

__all__ = ["Once"]

_MAX_STREAMS = 1024
"""Lives of other nodes that are remembered: far more than can forward anything within one term."""
_WINDOW = 1024
"""Numbers below the highest one of a stream that are remembered; whatever is older was given up long ago."""


class Once:
    """Remembers which requests were taken in, within one term of ours.

    A request names its term, so that what is older than this memory is refused for that reason.
    """

    def __init__(self) -> None:
        self._term = 0
        self._streams: OrderedDict[tuple[int, int], set[int]] = OrderedDict()

    def take(self, term: int, sender: int, stream: int, number: int) -> None:
        """Take a request in.

        :param term: the present term, in which this node leads.
        :param stream: the sender's own number of its present life.
        :param number: the request's, in the order in which they were sent.
        :raises OutcomeUnknown: if it was taken before, or may have been.
        """
        if term != self._term:
            self._term = term
            self._streams.clear()
        key = (sender, stream)
        seen = self._streams.get(key)
        if seen is None:
            seen = self._streams[key] = set()
            if len(self._streams) > _MAX_STREAMS:
                self._streams.popitem(last=False)
        else:
            self._streams.move_to_end(key)
        if number in seen or (len(seen) >= _WINDOW and number < min(seen)):
            raise OutcomeUnknown("the request arrived twice, or too late to tell")
        seen.add(number)
        if len(seen) > _WINDOW:
            seen.discard(min(seen))
