"""Storage contracts, and the memory and file backends."""

from ._executor import IExecutor, InlineExecutor, ThreadExecutor
from ._file_machine import FileStateMachine
from ._files import IFile, IFileLock, IFileSystem, RealFileSystem
from ._log_file import FileLogStore
from ._machine import FunctionStateMachine
from ._mem_log import MemLogStore
from ._mem_machine import MemStateMachine
from ._snapshot_format import decode_manifest, encode_manifest
from .interfaces import (
    ApplyContext,
    Identity,
    ILogStore,
    IReplaceableFiles,
    IReplaceableState,
    ISnapshotReader,
    ISnapshotReceiver,
    ISnapshotWriter,
    IStateDigest,
    IStateMachine,
    IStateMachineFiles,
    IStateMachineStore,
    IStateSink,
    Manifest,
    ScrubStep,
    StateFile,
)

__all__ = [
    "ApplyContext",
    "FileLogStore",
    "FileStateMachine",
    "FunctionStateMachine",
    "IExecutor",
    "IFile",
    "IFileLock",
    "IFileSystem",
    "ILogStore",
    "IReplaceableFiles",
    "IReplaceableState",
    "ISnapshotReader",
    "ISnapshotReceiver",
    "ISnapshotWriter",
    "IStateDigest",
    "IStateMachine",
    "IStateMachineFiles",
    "IStateMachineStore",
    "IStateSink",
    "Identity",
    "InlineExecutor",
    "Manifest",
    "MemLogStore",
    "MemStateMachine",
    "RealFileSystem",
    "ScrubStep",
    "StateFile",
    "ThreadExecutor",
    "decode_manifest",
    "encode_manifest",
]
