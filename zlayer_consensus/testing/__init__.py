"""The public test kit."""

from ._memory_network import Link, MemoryNetwork
from ._simfs import SimulatedFileSystem

__all__ = ["Link", "MemoryNetwork", "SimulatedFileSystem"]
