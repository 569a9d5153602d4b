"""The public test kit."""

from ._contracts import LogStoreContract
from ._machine_contracts import StateMachineContract
from ._machine_files_contracts import StateMachineFilesContract
from ._memory_network import Link, MemoryNetwork
from ._simfs import SimulatedFileSystem
from ._snapshot_contracts import StateMachineStoreContract

__all__ = [
    "Link",
    "LogStoreContract",
    "MemoryNetwork",
    "SimulatedFileSystem",
    "StateMachineContract",
    "StateMachineFilesContract",
    "StateMachineStoreContract",
]
