"""Asking before something is changed."""

from __future__ import annotations

import sys

import click

__all__ = ["confirmed", "typed"]


def _require_terminal() -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on; --yes does it without asking")


def confirmed(question: str, yes: bool) -> bool:
    """Return whether somebody says yes, or has said it already.

    :raises click.UsageError: if there is nobody to ask.
    """
    if yes:
        return True
    _require_terminal()
    return click.confirm(question, err=True)


def typed(question: str, expected: str, yes: bool) -> bool:
    """Return whether somebody types just what is expected, or has said yes already.

    :raises click.UsageError: if there is nobody to ask.
    """
    if yes:
        return True
    _require_terminal()
    answer: str = click.prompt(question, err=True, default="", show_default=False)
    return answer.replace(" ", "") == expected
