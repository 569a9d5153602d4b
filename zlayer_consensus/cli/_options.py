"""Options that most commands have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from ._directory import DataDirectory
from ._output import Output

__all__ = ["DIRECTORY", "NEW_FILE", "SNAPSHOTS", "SNAPSHOTS_OF_EACH", "common_options", "output", "with_snapshots"]

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

SNAPSHOTS = click.option(
    "--snapshots",
    type=DIRECTORY,
    metavar="DIRECTORY",
    help="Where the snapshots are, if not in the log's directory.",
)
SNAPSHOTS_OF_EACH = click.option(
    "--snapshots",
    type=DIRECTORY,
    multiple=True,
    metavar="DIRECTORY",
    help="Where the snapshots are, if not in the logs' directories: once for each of these, in their order.",
)


def with_snapshots(directories: Sequence[str], snapshots: Sequence[str]) -> list[DataDirectory]:
    """Return directories, each with the place of its snapshots.

    :raises click.UsageError: if such places are named, but not one for each.
    """
    if not snapshots:
        return [DataDirectory(each) for each in directories]
    if len(snapshots) != len(directories):
        raise click.UsageError(
            f"--snapshots is given {len(snapshots)} times, and there are {len(directories)} directories: each needs one"
        )
    return [DataDirectory(*each) for each in zip(directories, snapshots, strict=True)]


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
