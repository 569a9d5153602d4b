"""Options that most commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ._output import Output

__all__ = ["DIRECTORY", "NEW_FILE", "common_options", "output"]

_F = TypeVar("_F", bound=Callable[..., Any])


class _Named(click.Path):
    """A path that has a name: an empty one, as of a shell variable that is not set, means none of our files."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See :meth:`click.Path.convert`."""
        if not value:
            self.fail("it is empty", param, ctx)
        return super().convert(value, param, ctx)


# That it cannot be read is found out, and said, by what reads it: the command line is not wrong.
DIRECTORY = _Named(readable=False)
NEW_FILE = _Named(dir_okay=False, readable=False)


def common_options(command: _F) -> _F:
    """Add ``--json`` and ``--color``."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One JSON object per line."),
        click.option(
            "--color",
            type=click.Choice(["auto", "always", "never"]),
            default="auto",
            help="Colours; auto: on a terminal, unless NO_COLOR is set.",
        ),
    ):
        command = option(command)
    return command


def output(as_json: bool, color: str) -> Output:
    """Return where the lines go, as those options say."""
    return Output(as_json, None if color == "auto" else color == "always")
