"""A state machine made of an initial state and a function, and the two ways to give a machine to a store."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from zope.interface import implementer
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from .._codec import Codec, codec_for, is_class_type
from ..errors import ConversionError
from ._state_codec import StateCodec
from .interfaces import ApplyContext, IStateMachine, IStateMachineFiles, IStateSink

__all__ = ["FunctionStateMachine", "as_state_machine"]

_PIECE = 256 << 10
_MAGIC = b"zstate\x00\x01"
_IMMUTABLE = (type(None), bool, int, float, str, bytes, tuple, frozenset)


@implementer(IStateMachine)
class FunctionStateMachine:
    """A state, and a function that changes it in place.

    A snapshot encodes the whole state when it is asked for, on the reactor's thread: 4 to 20 ms per MiB. An
    application with more than a few MiB provides :class:`~zlayer_consensus.storage.IStateMachine` itself. An object
    that the state holds in two places comes back as two.

    :param initial_state: where every replica begins; it is copied. Without ``state_type`` it is an instance of an attrs
        class or a dataclass, or plain: any nesting of None, bool, int, float, str, bytes, list, tuple, dict, set and
        frozenset.
    :param apply: ``apply(state, command)`` or ``apply(state, command, context)`` with an
        :class:`~zlayer_consensus.storage.ApplyContext`; changes ``state`` in place and returns the command's result.
        Deterministic: the same state and command do the same on every replica (H-80).
    :param state_type: the state's type for conversion, for example ``dict[str, Job]``.
    :raises TypeError: if one of them cannot work, at once.
    :raises ConversionError: if the initial state is not of its type.
    """

    def __init__(self, initial_state: Any, apply: Callable[..., Any], *, state_type: Any = None) -> None:
        if isinstance(initial_state, type):
            raise TypeError(f"the initial state is the class {initial_state.__qualname__}; give an instance")
        if isinstance(initial_state, _IMMUTABLE):
            raise TypeError(
                f"apply changes the state in place, and {type(initial_state).__qualname__} cannot be changed: "
                "wrap it in a dict, a list or a class"
            )
        self._takes_context = _takes_context(apply)
        self._function = apply
        self._arguments = (copy.deepcopy(initial_state), apply, state_type)
        self._codec = _state_codec(initial_state, state_type)
        self._codec.encode(initial_state)
        self.state: Any = copy.deepcopy(initial_state)
        """The current state. Only for reading; a restored snapshot replaces the object."""

    def apply(self, command: Any, context: ApplyContext) -> Any:
        """See :meth:`IStateMachine.apply`."""
        if self._takes_context:
            return self._function(self.state, command, context)
        return self._function(self.state, command)

    def fresh(self) -> FunctionStateMachine:
        """Return a new machine in the initial state."""
        initial_state, apply, state_type = self._arguments
        return FunctionStateMachine(initial_state, apply, state_type=state_type)

    def snapshot(self) -> Iterator[bytes]:
        """See :meth:`IStateMachine.snapshot`. The state is encoded before this returns."""
        data = _MAGIC + self._codec.encode(self.state)
        return (data[at : at + _PIECE] for at in range(0, len(data), _PIECE))

    def restore(self) -> IStateSink:
        """See :meth:`IStateMachine.restore`. Pieces are gathered, and decoded in ``finish``."""
        return _Sink(self)

    def _replace(self, data: bytes) -> None:
        if not data.startswith(_MAGIC):
            raise ConversionError("state", "snapshot of a state", "it was written by another kind of state machine")
        self.state = self._codec.decode(data[len(_MAGIC) :])


@implementer(IStateSink)
class _Sink:
    def __init__(self, machine: FunctionStateMachine) -> None:
        self._machine = machine
        self._data: bytearray | None = bytearray()

    def write(self, chunk: bytes) -> None:
        if self._data is None:
            raise RuntimeError("the sink was finished")
        self._data += chunk

    def finish(self) -> None:
        if self._data is None:
            raise RuntimeError("the sink was finished")
        data, self._data = bytes(self._data), None
        self._machine._replace(data)


def _state_codec(initial_state: Any, state_type: Any) -> Codec:
    if state_type is None and is_class_type(type(initial_state)):
        state_type = type(initial_state)
    return StateCodec() if state_type is None else codec_for(state_type, "state", keep_order=True)


def _takes_context(apply: Any) -> bool:
    if not callable(apply):
        raise TypeError(f"apply is a {type(apply).__qualname__}, not a function")
    if inspect.iscoroutinefunction(apply):
        raise TypeError("apply must not be a coroutine function: it runs to its end, without I/O")
    try:
        signature = inspect.signature(apply)
    except ValueError:  # some builtins have none
        return False
    for count in (3, 2):
        try:
            signature.bind(*(None,) * count)
        except TypeError:
            continue
        return count == 3
    raise TypeError(f"apply{signature} must take (state, command) or (state, command, context)")


def as_state_machine(
    machine: Any = None, apply: Any = None, *, initial_state: Any = None, state_type: Any = None
) -> IStateMachine:
    """Return the state machine that a store was given, in either form.

    :param machine: an object that provides :class:`IStateMachine`, or the initial state.
    :param apply: the function of an initial state.
    :raises TypeError: if it is neither form, or incomplete.
    """
    if initial_state is not None:
        if machine is not None:
            raise TypeError("give a state machine, or an initial state and apply, but not both")
        machine = initial_state
        if apply is None:
            raise TypeError("an initial state needs an apply function")
    if apply is not None:
        if IStateMachine.providedBy(machine):
            raise TypeError(f"{type(machine).__qualname__} is a state machine; it has an apply already")
        return FunctionStateMachine(machine, apply, state_type=state_type)
    if state_type is not None:
        raise TypeError("state_type belongs to an initial state and an apply function")
    return _verified(machine)


def _verified(machine: Any) -> IStateMachine:
    if isinstance(machine, type):
        raise TypeError(f"give an instance of {machine.__qualname__}, not the class")
    if not IStateMachine.providedBy(machine):
        raise TypeError(
            f"{type(machine).__qualname__} does not provide IStateMachine: put @implementer(IStateMachine) on its "
            "class, or give an initial state and an apply function"
        )
    contract = IStateMachineFiles if IStateMachineFiles.providedBy(machine) else IStateMachine
    try:
        verifyObject(contract, machine)
    except Invalid as error:
        raise TypeError(f"{type(machine).__qualname__} does not keep {contract.__name__}: {error}") from error
    verified: IStateMachine = machine
    return verified
