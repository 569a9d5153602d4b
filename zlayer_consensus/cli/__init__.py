"""The ``zconsensus`` command."""

from ._program import ExitCode, program

__all__ = ["ExitCode", "program"]
