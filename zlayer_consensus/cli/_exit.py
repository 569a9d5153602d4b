"""Exit codes, and how errors become them."""

from __future__ import annotations

import enum
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ..errors import ConfigError, ConsensusError
from ..storage.inspection import NoLog
from ._output import printable

__all__ = ["CannotOpen", "ExitCode", "exit_codes"]


class ExitCode(enum.IntEnum):
    """What ``zconsensus`` ends with. Click's own 1 and 2 are not used: here they are findings."""

    CLEAN = 0
    """Nothing is wrong; for ``diff``: equal as far as both reach."""
    TORN = 1
    """A write was cut short and never acknowledged; for ``diff``: the difference is legal, an uncommitted tail."""
    ROT = 2
    """Durable data is damaged, missing or another's; for ``diff``: the logs diverge."""
    CANNOT_OPEN = 3
    """There is no log, it cannot be read, or it is of a later format; for ``diff``: there is nothing to compare."""
    USAGE = 64
    """The command line is wrong."""
    DEFECT = 70
    """A defect of this program; a traceback tells where."""
    INTERRUPTED = 130
    """Ctrl-C."""
    PIPE = 141
    """Whoever read the output stopped reading."""


class CannotOpen(ConsensusError):
    """A directory cannot be worked with; the text says which and why."""


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn what a command raises into an exit with the right code and one line on stderr."""
    try:
        yield
    except click.exceptions.Exit:
        raise
    except click.ClickException as error:
        error.show()
        usage = isinstance(error, click.UsageError)
        raise click.exceptions.Exit(ExitCode.USAGE if usage else ExitCode.CANNOT_OPEN) from None
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None
    except BrokenPipeError:
        # The interpreter flushes stdout when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(ExitCode.PIPE) from None
    except ConfigError as error:
        _say(error)
        raise click.exceptions.Exit(ExitCode.USAGE) from None
    except (ConsensusError, NoLog, OSError) as error:
        _say(error)
        raise click.exceptions.Exit(ExitCode.CANNOT_OPEN) from None
    except Exception:
        traceback.print_exc()
        raise click.exceptions.Exit(ExitCode.DEFECT) from None


def _say(error: Exception) -> None:
    # Some say what is wrong in several lines; a file's name is in many.
    click.echo("\n".join(map(printable, f"error: {error}".split("\n"))), err=True)
