"""The hash chain: a state machine around the one under test, whose state tells its whole history."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from struct import Struct
from typing import Any

from zope.interface import implementer

from ...errors import DomainError
from ...storage import (
    ApplyContext,
    IReplaceableFiles,
    IReplaceableState,
    IStateDigest,
    IStateMachine,
    IStateMachineFiles,
    IStateSink,
)
from ...types import RaftTypes
from ._with_files import ForwardsFiles

__all__ = ["ChainMachine", "ChainTypes", "begin_to_replace", "chained"]

_HEAD = Struct("<QQI")
_INDEX = Struct("<Q")
_NOTHING = (0, 0, 0)


class ChainTypes(RaftTypes):
    """The types of a :class:`ChainMachine`: the application's requests, and its responses with an index each."""

    def __init__(self, types: RaftTypes) -> None:
        self.request = types.request
        self.response = types.response
        self.encode_request = types.encode_request
        self.decode_request = types.decode_request
        self.encode_response = lambda value: _INDEX.pack(value[0]) + types.encode_response(value[1])
        self.decode_response = lambda data: [*_INDEX.unpack_from(data), types.decode_response(data[_INDEX.size :])]


@implementer(IStateMachine, IStateDigest, IReplaceableState)
class ChainMachine:
    """Counts the commands and hashes them and their results, so that any divergence shows at once.

    Its result is ``[index, result]`` with the entry's index; a domain error passes through.

    :param inner: the application.
    :param types: the application's types; what they encode is what is hashed.
    :param probe: called with ``(index, count, digest, restored)`` after each command and each restored snapshot.
    """

    digest_kind = "chain"
    """See :class:`~zlayer_consensus.storage.IStateDigest`."""

    def __init__(self, inner: IStateMachine, types: RaftTypes, probe: Callable[[int, int, int, bool], object]) -> None:
        self.inner = inner
        self.index, self.count, self.digest = _NOTHING
        self._types = types
        self._probe = probe

    def apply(self, command: Any, context: ApplyContext) -> list[Any]:
        """See :meth:`~zlayer_consensus.storage.IStateMachine.apply`."""
        digest = zlib.crc32(self._types.encode_request(command), self.digest)
        digest = zlib.crc32(_HEAD.pack(context.index, context.time_ms, 0), digest)
        try:
            result = self.inner.apply(command, context)
        except DomainError as error:
            self._step(context.index, zlib.crc32(repr((error.reason, str(error))).encode(), digest))
            raise
        self._step(context.index, zlib.crc32(self._types.encode_response(result), digest))
        return [context.index, result]

    def _step(self, index: int, digest: int) -> None:
        self.index, self.count, self.digest = index, self.count + 1, digest
        self._probe(index, self.count, digest, False)

    def state_digest(self) -> bytes:
        """See :class:`~zlayer_consensus.storage.IStateDigest`. What the application has is not looked at."""
        return _HEAD.pack(self.index, self.count, self.digest)

    def snapshot(self) -> Iterator[bytes]:
        """See :meth:`~zlayer_consensus.storage.IStateMachine.snapshot`."""
        head = _HEAD.pack(self.index, self.count, self.digest)
        return _Pieces(head, self.inner.snapshot())

    def restore(self) -> IStateSink:
        """See :meth:`~zlayer_consensus.storage.IStateMachine.restore`."""
        return self.sink(self.inner.restore())

    def sink(self, inner: IStateSink) -> IStateSink:
        """Return the sink around the application's."""
        return _Sink(self, inner)

    def replace(self) -> IStateSink:
        """See :meth:`~zlayer_consensus.storage.IReplaceableState.replace`."""
        return self.sink(begin_to_replace(self.inner))

    def _restored(self, head: bytes) -> None:
        self.index, self.count, self.digest = _HEAD.unpack(head)
        self._probe(self.index, self.count, self.digest, True)


def begin_to_replace(machine: Any) -> IStateSink:
    """Begin to replace a machine's state, in the way that a node would choose."""
    sink: IStateSink = machine.replace() if IReplaceableState.providedBy(machine) else machine.restore()
    return sink


@implementer(IStateMachineFiles, IReplaceableFiles)
class _ChainMachineFiles(ChainMachine, ForwardsFiles):
    """The same around a machine with files."""


def chained(inner: IStateMachine, types: RaftTypes, probe: Callable[[int, int, int, bool], object]) -> ChainMachine:
    """Return a :class:`ChainMachine`, with files if the machine within has some."""
    return (_ChainMachineFiles if IStateMachineFiles.providedBy(inner) else ChainMachine)(inner, types, probe)


class _Pieces(Iterator[bytes]):
    """A snapshot: our own piece, then the application's."""

    def __init__(self, head: bytes, inner: Iterator[bytes]) -> None:
        self._pieces = chain((head,), inner)
        self._inner = inner

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        close = getattr(self._inner, "close", None)
        if close is not None:
            close()


@implementer(IStateSink)
class _Sink:
    def __init__(self, machine: ChainMachine, inner: IStateSink) -> None:
        self._machine = machine
        self._inner = inner
        self._head: bytes | None = None

    def write(self, chunk: bytes) -> None:
        if self._head is None:
            self._head = chunk
        else:
            self._inner.write(chunk)

    def finish(self) -> None:
        assert self._head is not None
        self._inner.finish()
        self._machine._restored(self._head)
