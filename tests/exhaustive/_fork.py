"""Copies of a core, and a value that two cores share only if they behave alike from now on.

Both walk everything that a core holds, by type, so that a field that is added later is copied and compared too; a type
that is not known here is an error. What is left out of the comparison is in ``_LEFT_OUT`` and ``_state_key``, and why.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from types import CellType, FunctionType, MethodType
from typing import Any

from zlayer_consensus.raft import Effects, Entry, EntryKind, HardState, LogId, Membership, RaftCore, Role
from zlayer_consensus.raft._log import LogView
from zlayer_consensus.raft._state import Inbox, State

__all__ = ["NOW", "core_key", "fork"]

NOW = 0.0
"""The only time there is: that a timer is due is said by setting it to this moment."""

_SCALARS = frozenset({type(None), bool, int, float, str, bytes, Entry, EntryKind, HardState, LogId})
_SHAREABLE: set[type] = {*_SCALARS, frozenset}
"""Types of which the values never change; frozen dataclasses join when they are met."""
_SHARED = {"config", "random"}
_LEFT_OUT: dict[type, set[str]] = {
    # The same in all states, or between two inputs a function of the rest.
    State: {*_SHARED, "now", "out", "_reported"},
    # Counts of bytes, which matter to snapshots and to the trimming of a memory that is never full here.
    LogView: {"_appended_bytes", "_marks", "_tail_bytes", "_cache_bytes"},
}
_CAMPAIGNS = (Role.CANDIDATE, Role.PRE_CANDIDATE)


def fork(core: RaftCore) -> RaftCore:
    """Return a core that is independent of ``core`` and equal to it."""
    new = object.__new__(RaftCore)
    new._s = state = State.__new__(State)
    for name, value in core._s.__dict__.items():
        state.__dict__[name] = value if name in _SHARED else _copy(value, state)
    state.out = Effects()
    return new


def _copy(value: Any, state: State) -> Any:
    kind = type(value)
    if kind in _SHAREABLE:
        return value
    if kind in (list, set, deque):
        return kind([_copy(item, state) for item in value])
    if kind is dict:
        return {key: _copy(item, state) for key, item in value.items()}
    if kind is tuple:
        return tuple([_copy(item, state) for item in value])
    if kind is State:
        return state
    if kind is FunctionType:
        cells = tuple(CellType(_copy(cell.cell_contents, state)) for cell in value.__closure__ or ())
        return FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
    if kind is MethodType:
        return MethodType(value.__func__, _copy(value.__self__, state))
    if kind is partial:
        return partial(_copy(value.func, state), *(_copy(item, state) for item in value.args))
    if _is_frozen(value):
        _SHAREABLE.add(kind)
        return value
    if dataclasses.is_dataclass(value) or kind in (Inbox, LogView):
        new = object.__new__(kind)
        for name in _names(value):
            setattr(new, name, _copy(getattr(value, name), state))
        return new
    raise TypeError(f"a core holds a {kind.__name__}, and how to copy it is not known")


def _is_frozen(value: Any) -> bool:
    """Return whether it is a value; so are the named tuples that a core holds, tokens included."""
    return isinstance(value, enum.Enum | tuple) or (
        dataclasses.is_dataclass(value) and bool(value.__dataclass_params__.frozen)  # type: ignore[union-attr]
    )


@cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _names(value: Any) -> tuple[str, ...]:
    kind: type = type(value)
    return _fields(kind) if dataclasses.is_dataclass(kind) else tuple(value.__dict__)


def core_key(core: RaftCore) -> Any:
    """Return a hashable value that stands for everything that decides how ``core`` goes on."""
    return _state_key(core._s)


def _state_key(s: State) -> Any:
    """Return the fields of a state, with what cannot matter made equal.

    Numbers of writes are only compared with each other, so they are counted back from the next one; votes are only
    looked at in the campaign that they belong to.
    """
    if s.now != NOW:
        raise ValueError(f"time has passed in a core: {s.now}")
    left_out = _LEFT_OUT[State] | {"_next_seq", "_issued", "_gated"}
    if s.role not in _CAMPAIGNS:
        left_out |= {"granted", "refused"}
    fields = [(name, _key(value)) for name, value in s.__dict__.items() if name not in left_out]
    issued = tuple((w.seq - s._next_seq, w.last, w.at, w.hard_state, w.keeps) for w in s._issued)
    gated = tuple((seq - s._next_seq, _key(action)) for seq, action in s._gated)
    return (*sorted(fields), issued, gated)


def _key(value: Any) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if isinstance(value, enum.Enum):
        return value.value
    if kind is Membership:
        return _membership_key(value)
    if kind in (set, frozenset):
        return ("set", *sorted(value))
    if kind is dict:
        return tuple((_key(key), _key(item)) for key, item in value.items())
    if kind in (tuple, list, deque) or isinstance(value, tuple):
        return tuple([_key(item) for item in value])
    if kind is State:
        return "this member"
    if isinstance(value, FunctionType | MethodType | partial):
        return _call_key(value)
    if _is_frozen(value):
        return (kind.__name__, *(_key(getattr(value, name)) for name in _names(value)))
    if dataclasses.is_dataclass(value) or kind in (Inbox, LogView):
        return tuple(
            (name, _key(getattr(value, name))) for name in _names(value) if name not in _LEFT_OUT.get(kind, ())
        )
    raise TypeError(f"a core holds a {kind.__name__}, and how to compare it is not known")


def _membership_key(value: Membership) -> bytes:
    known = _MEMBERSHIPS.get(id(value))
    if known is None:
        if len(_MEMBERSHIPS) > 50_000:
            _MEMBERSHIPS.clear()
        known = _MEMBERSHIPS[id(value)] = (value, value.encode())
    return known[1]


_MEMBERSHIPS: dict[int, tuple[Membership, bytes]] = {}
"""Encoded forms by identity; the value is kept, so that its identity is not used again."""


def _call_key(call: Callable[..., Any]) -> Any:
    if isinstance(call, partial):
        return (_key(call.func), *(_key(item) for item in call.args))
    if isinstance(call, MethodType):
        return (call.__func__.__qualname__, _key(call.__self__))
    assert isinstance(call, FunctionType)
    return (call.__code__, *(_key(cell.cell_contents) for cell in call.__closure__ or ()))
