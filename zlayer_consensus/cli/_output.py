"""What the commands print: text for people, or one JSON object per line."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

import click

from ..storage import Manifest

__all__ = ["Output", "amount", "at_time", "describe_parts", "printable"]

_LAST_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, which is as far as datetime goes."""


def printable(text: str) -> str:
    """Return text that cannot move a cursor or begin a line of its own (A-34)."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def amount(number: int, noun: str) -> str:
    """Return a number with its noun in singular or plural."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1] + 'ies' if noun.endswith('ry') else noun + 's'}"


def describe_parts(manifest: Manifest) -> str:
    """Return how many parts a snapshot has, and how many of them are files."""
    files = f" ({amount(manifest.files, 'file')} of the state machine among them)" if manifest.files else ""
    return amount(len(manifest.parts), "part") + files


def at_time(time_ms: int) -> str:
    """Return the log's time as people write it, in UTC."""
    if not 0 < time_ms <= _LAST_MS:
        return f"time {time_ms}"
    moment = datetime.fromtimestamp(time_ms // 1000, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{time_ms % 1000:03d}Z"


class Output:
    """Where a command's lines go.

    :param as_json: JSON lines instead of text.
    :param color: True, False, or None: on a terminal, unless NO_COLOR is set.
    """

    def __init__(self, as_json: bool, color: bool | None) -> None:
        self.as_json = as_json
        # Without a file descriptor for it, Python has none.
        self._stream: TextIO = io.StringIO() if sys.stdout is None else sys.stdout
        self._bar = False
        if color is None:
            color = self._stream.isatty() and not os.environ.get("NO_COLOR")
        self._color = color and not as_json

    @classmethod
    def silent(cls) -> Output:
        """Return an output that shows nothing but progress."""
        made = cls(False, False)
        made._stream = io.StringIO()
        return made

    def put(self, kind: str, fields: Mapping[str, Any], text: str | Callable[[], str] = "") -> None:
        """Print one thing.

        :param kind, fields: the JSON object.
        :param text: the line for people, or what makes it; none if it is empty.
        """
        if self.as_json:
            self._write(json.dumps({"kind": kind, **fields}, separators=(",", ":")))
            return
        line = text if isinstance(text, str) else text()
        if line:
            self._write(line)

    def text(self, line: str = "") -> None:
        """Print a line for people alone."""
        if not self.as_json:
            self._write(line)

    def _write(self, line: str) -> None:
        if self._bar and self._stream.isatty():
            # The line takes the place of the bar, which comes again below it.
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        try:
            self._stream.write(line + "\n")
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")

    def style(self, text: str, **style: Any) -> str:
        """Return text in a colour, if there are colours."""
        return click.style(text, **style) if self._color else text

    def heading(self, text: str) -> str:
        """Return text that begins a section."""
        return self.style(text, bold=True)

    def good(self, text: str) -> str:
        """Return text that says that all is well."""
        return self.style(text, fg="green")

    def warning(self, text: str) -> str:
        """Return text that wants to be seen."""
        return self.style(text, fg="yellow")

    def bad(self, text: str) -> str:
        """Return text that says that something is wrong."""
        return self.style(text, fg="red", bold=True)

    def faint(self, text: str) -> str:
        """Return text of minor interest."""
        return self.style(text, dim=True)

    def note(self, text: str) -> None:
        """Say something on stderr that is no result."""
        click.echo(f"note: {printable(text)}", err=True)

    @contextmanager
    def progress(self, length: int, label: str) -> Iterator[Callable[[int], None]]:
        """Show a bar on stderr while the block runs, if that is a terminal; yields what counts it up."""
        if sys.stderr is None or not sys.stderr.isatty():
            yield lambda _steps: None
            return
        with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
            self._bar = True
            try:
                yield bar.update
            finally:
                self._bar = False
