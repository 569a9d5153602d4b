"""Reads recorded histories: the logs of Jepsen's etcd tests, Knossos' EDN, and Porcupine's key-value logs.

None of them has trustworthy times: the order of the lines is the order of the events.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final, Literal

import attrs

from ._edn import EdnError, Keyword, Map, read_forms
from ._history import History, HistoryError

__all__ = ["FORMATS", "Format", "FormatError", "read_history"]

Format = Literal["jepsen", "knossos", "kv"]


class FormatError(ValueError):
    """A file does not hold a history.

    :param name: the file.
    :param line: where, counted from 1; None if it is about the whole file.
    """

    def __init__(self, name: str, line: int | None, problem: str) -> None:
        where = name if line is None else f"{name}:{line}"
        super().__init__(f"{where}: {problem}")
        self.name = name
        self.line = line
        self.problem = problem


@attrs.frozen
class _Event:
    """One line: a process begins or ends something. The kind is invoke, ok, fail or info."""

    process: Hashable
    kind: str
    function: str
    key: Hashable
    value: Any
    # A reply, not a failure: the compare-and-swap found another value.
    refused: bool = False


class _Problem(ValueError):
    """What is wrong with a line; whoever knows the file's name adds it."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


_Events = Iterator[tuple[int, _Event]]

_LINE: Final = re.compile(r"INFO\s+jepsen\.util - (\S+)\s+:(\w+)\s+:(\S+)\s+(.+?)\s*")
_PAIR: Final = re.compile(r"\[(-?\d+|nil) (-?\d+|nil)\]")
_KINDS: Final = frozenset({"invoke", "ok", "fail", "info"})
_REGISTER: Final = frozenset({"read", "write", "cas"})
_STRINGS: Final = frozenset({"get", "put", "append"})


def read_history(format: Format, data: bytes, name: str) -> History:
    """Return the history that a file holds, with the numbers of its lines as times.

    ``jepsen`` and ``knossos`` are for :class:`CasRegister`, ``kv`` is for :class:`StringRegister`. In ``jepsen`` a
    failed compare-and-swap has found another value; in ``knossos``, as there, nothing that failed has happened. What
    ended with ``:info`` stays open for ever. Lines of the nemesis are left out.

    :param name: the file's name, for errors.
    :raises FormatError: if it is not a history, or has no operations.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FormatError(name, line, "not UTF-8") from None
    history = History(("read", "get"))
    open_: dict[Hashable, tuple[int, _Event]] = {}
    line = 1
    empty = True
    try:
        for line, event in FORMATS[format](text):
            _record(history, open_, line, event)
            empty = False
    except EdnError as error:
        raise FormatError(name, error.line, error.problem) from None
    except _Problem as error:
        raise FormatError(name, error.line, str(error)) from None
    except HistoryError as error:
        raise FormatError(name, line, str(error)) from None
    if empty:
        raise FormatError(name, None, "holds no operations")
    return history


def _record(history: History, open_: dict[Hashable, tuple[int, _Event]], line: int, event: _Event) -> None:
    if event.kind == "invoke":
        argument = None if event.function in ("read", "get") else event.value
        handle = history.invoke(event.process, event.function, event.key, argument, line)
        open_[event.process] = handle, event
        return
    handle, begun = open_.pop(event.process, (-1, event))
    if handle < 0:
        raise _Problem(line, f"process {event.process} ends what it has not begun")
    if (event.function, event.key) != (begun.function, begun.key):
        ends, does = (f"{each.function}{'' if each.key is None else f' of {each.key!r}'}" for each in (event, begun))
        raise _Problem(line, f"process {event.process} ends {ends} while it does {does}")
    if event.kind == "info":
        history.unknown(handle)
    elif event.kind == "fail" and not event.refused:
        history.fail(handle)
    else:
        if begun.function not in ("read", "get") and event.value != begun.value:
            raise _Problem(
                line, f"process {event.process} ends with {event.value!r} what it began with {begun.value!r}"
            )
        result: Any = event.value if begun.function in ("read", "get") else None
        history.ok(handle, event.kind == "ok" if begun.function == "cas" else result, line)


def _jepsen(text: str) -> _Events:
    for line, entry in enumerate(text.splitlines(), 1):
        if not entry.strip():
            continue
        match = _LINE.fullmatch(entry)
        if match is None:
            raise _Problem(line, "not a line of a Jepsen log: INFO jepsen.util - PROCESS :TYPE :FUNCTION VALUE")
        process, kind, function, value = match.groups()
        if process == ":nemesis":
            continue
        who = int(process) if process.isdecimal() else process
        _expect(line, kind, function, _REGISTER)
        lost = value == ":timed-out"
        refused = kind == "fail" and function == "cas" and not lost
        if kind == "fail" and lost and function != "read":
            kind = "info"
        told = kind in ("invoke", "ok") or refused
        yield (
            line,
            _Event(who, kind, function, None, _jepsen_value(line, function, value) if told else None, refused),
        )


def _jepsen_value(line: int, function: str, value: str) -> Any:
    if function == "cas":
        pair = _PAIR.fullmatch(value)
        if pair is None:
            raise _Problem(line, f"a compare-and-swap has a value like [1 2], not {value}")
        return tuple(_number(line, each) for each in pair.groups())
    return _number(line, value)


def _number(line: int, value: str) -> int | None:
    if value == "nil":
        return None
    try:
        return int(value)
    except ValueError:
        raise _Problem(line, f"not an integer: {value}") from None


def _knossos(text: str) -> _Events:
    for line, form in _entries(text):
        process = form.get("process")
        if process == "nemesis":
            continue
        if type(process) not in (int, str, Keyword):
            raise _Problem(line, f":process is {process!r}")
        kind, function = _expect(line, form.get("type"), form.get("f"), _REGISTER)
        value = form.get("value")
        if kind in ("invoke", "ok"):
            if function == "cas" and not (isinstance(value, tuple) and len(value) == 2):
                raise _Problem(line, f"a compare-and-swap has a value like [1 2], not {value!r}")
            if not _plain(value):
                raise _Problem(line, "a map in :value")
        yield line, _Event(process, kind, function, None, value)


def _plain(value: Any) -> bool:
    return all(map(_plain, value)) if isinstance(value, tuple) else not isinstance(value, Map)


def _kv(text: str) -> _Events:
    for line, form in _entries(text):
        process, key = form.get("process"), form.get("key")
        if type(process) not in (int, str, Keyword):
            raise _Problem(line, f":process is {process!r}")
        kind, function = _expect(line, form.get("type"), form.get("f"), _STRINGS)
        if type(key) is not str:
            raise _Problem(line, f":key is not a string: {key!r}")
        value = form.get("value")
        told = kind == "ok" or (kind == "invoke" and function != "get")
        if told and type(value) is not str:
            raise _Problem(line, f":value is not a string: {value!r}")
        yield line, _Event(process, kind, function, key, value)


def _entries(text: str) -> Iterator[tuple[int, Map]]:
    """Yield the maps of a text with their lines: one after the other, or all in one vector."""
    for line, form in read_forms(text):
        for each in form if isinstance(form, tuple) else (form,):
            if not isinstance(each, Map):
                raise _Problem(line, f"not a map: {each!r}")
            yield each.line, each


def _expect(line: int, kind: object, function: object, functions: frozenset[str]) -> tuple[str, str]:
    """Return type and function if they are what they must be."""
    if kind not in _KINDS:
        raise _Problem(line, f":type is {kind!r}, not :invoke, :ok, :fail or :info")
    if function not in functions:
        names = ", ".join(f":{each}" for each in sorted(functions))
        raise _Problem(line, f"the function {function!r} is none of {names}")
    return str(kind), str(function)


FORMATS: Final[dict[str, Callable[[str], _Events]]] = {"jepsen": _jepsen, "knossos": _knossos, "kv": _kv}
