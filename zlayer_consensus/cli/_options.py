"""Options that most commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ._output import Output

__all__ = ["common_options", "output"]

_F = TypeVar("_F", bound=Callable[..., Any])


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
