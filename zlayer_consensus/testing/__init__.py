"""The public test kit."""

from ._simfs import SimulatedFileSystem

__all__ = ["SimulatedFileSystem"]
