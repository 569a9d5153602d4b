"""Reads EDN, as far as recorded histories use it, and tells the line of every form.

The one library on PyPI (edn_format) gives no line numbers, and stands on a parser generator that is not maintained.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["EdnError", "Keyword", "Map", "read_forms"]


class EdnError(ValueError):
    """The text is not EDN.

    :param line: where, counted from 1.
    """

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem


class Keyword(str):
    """A keyword, without its colon."""

    __slots__ = ()

    def __repr__(self) -> str:
        return ":" + self


class Map(dict[Any, Any]):
    """A map that knows the line where it begins."""

    line = 0


_TOKEN: Final = re.compile(
    r"""(?P<space>[\s,]+|;[^\n]*) | (?P<discard>\#_) | (?P<open>\#?\{|\[|\() | (?P<close>[\])}])
    | (?P<string>"(?:[^"\\]|\\.)*") | (?P<tag>\#[A-Za-z][^\s,;"()\[\]{}]*)
    | (?P<atom>[^\s,;"()\[\]{}\#][^\s,;"()\[\]{}]*)
    """,
    re.VERBOSE | re.DOTALL,
)
_CLOSES: Final = {"{": "}", "#{": "}", "[": "]", "(": ")"}
_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "b": "\b", "f": "\f"}
_WORDS: Final[dict[str, Any]] = {"nil": None, "true": True, "false": False}
_INTEGER: Final = re.compile(r"[+-]?[0-9]+N?")
_FLOAT: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?M?")
# Deeper nesting than this is no history; without a bound, it would exhaust the stack.
_MAX_DEPTH: Final = 100
_END: Final = object()


def read_forms(text: str) -> Iterator[tuple[int, Any]]:
    """Yield each form at the top level with the line where it begins.

    Maps become :class:`Map`; vectors, lists and sets become tuples; keywords and symbols :class:`Keyword` and str.
    Tags are ignored: what is tagged counts.

    :raises EdnError: where the text cannot be read.
    """
    reader = _Reader(text)
    while True:
        line, form = reader.form(0)
        if form is _END:
            return
        yield line, form


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1

    def _token(self) -> tuple[str, str, int]:
        """Return kind, text and line of the next token that means something; at the end, the kind is empty."""
        while self._at < len(self._text):
            line = self._line
            match = _TOKEN.match(self._text, self._at)
            if match is None:
                raise EdnError(line, f"unexpected {self._text[self._at]!r}")
            self._at = match.end()
            token = match.group()
            self._line += token.count("\n")
            kind = match.lastgroup
            if kind != "space" and kind is not None:
                return kind, token, line
        return "", "", self._line

    def form(self, depth: int, closes: str = "") -> tuple[int, Any]:
        """Return the next form and its line; ``_END`` before ``closes``, or at the end if that is empty."""
        if depth > _MAX_DEPTH:
            raise EdnError(self._line, f"more than {_MAX_DEPTH} levels of nesting")
        while True:
            kind, token, line = self._token()
            if kind in ("discard", "tag"):
                what = self.form(depth + 1)[1]
                if what is _END:
                    raise EdnError(line, f"nothing follows {token}")
                if kind == "tag":
                    return line, what
                continue
            if kind == "open":
                return line, self._collection(token, line, depth)
            if kind == "close" or not kind:
                if token != closes:
                    raise EdnError(line, f"unexpected {token!r}" if token else f"the text ends before {closes!r}")
                return line, _END
            return line, self._string(token, line) if kind == "string" else self._atom(token, line)

    def _collection(self, opens: str, line: int, depth: int) -> Any:
        items = []
        while (item := self.form(depth + 1, _CLOSES[opens])[1]) is not _END:
            items.append(item)
        if opens != "{":
            return tuple(items)
        if len(items) % 2:
            raise EdnError(line, "a map has a key without a value")
        try:
            found = Map(zip(items[::2], items[1::2], strict=True))
        except TypeError:
            raise EdnError(line, "a map is the key of a map") from None
        if 2 * len(found) < len(items):
            raise EdnError(line, "a map has a key twice")
        found.line = line
        return found

    def _string(self, token: str, line: int) -> str:
        def plain(match: re.Match[str]) -> str:
            escape = match.group(1)
            if len(escape) == 5:
                return chr(int(escape[1:], 16))
            if escape not in _ESCAPES:
                raise EdnError(line, f"unknown escape \\{escape}")
            return _ESCAPES[escape]

        return _ESCAPE.sub(plain, token[1:-1])

    def _atom(self, token: str, line: int) -> Any:
        if token[0] == ":" and len(token) > 1:
            return Keyword(token[1:])
        if token in _WORDS:
            return _WORDS[token]
        try:
            if _INTEGER.fullmatch(token):
                return int(token.rstrip("N"))
            if _FLOAT.fullmatch(token):
                return float(token.rstrip("M"))
        except ValueError:
            raise EdnError(line, f"an integer of {len(token)} digits") from None
        if token[0].isdigit() or token[0] == "\\":
            raise EdnError(line, f"cannot read {token!r}")
        return token
