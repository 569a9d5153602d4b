"""Storage contracts, and the memory and file backends."""

from ._executor import IExecutor, InlineExecutor, ThreadExecutor
from ._files import IFile, IFileLock, IFileSystem, RealFileSystem

__all__ = [
    "IExecutor",
    "IFile",
    "IFileLock",
    "IFileSystem",
    "InlineExecutor",
    "RealFileSystem",
    "ThreadExecutor",
]
