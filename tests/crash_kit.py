"""Our file backends on a simulated disk, with files so small that much happens, and the power that fails there."""

from __future__ import annotations

import random

from zlayer_consensus.storage import FileLogStore, FileStateMachine, IExecutor, IFileSystem
from zlayer_consensus.testing import SimulatedFileSystem

__all__ = ["PowerFailure", "fail_power", "make_log", "make_machine_store"]


def make_log(files: IFileSystem, executor: IExecutor, segment_bytes: int = 16 << 10) -> FileLogStore:
    return FileLogStore(
        "/data",
        1,
        file_system=files,
        executor=executor,
        segment_bytes=segment_bytes,
        reserve_bytes=16 << 10,
        tail_bytes=2000,
        random_bytes=random.Random("salts").randbytes,
    )


def make_machine_store(files: IFileSystem, executor: IExecutor) -> FileStateMachine:
    return FileStateMachine(
        "/data", {}, lambda state, command: None, file_system=files, executor=executor, part_bytes=1200
    )


class PowerFailure(Exception):
    """The simulated machine stops before an operation."""


def fail_power(disk: SimulatedFileSystem, operations: int) -> None:
    """Lets the power fail at the operation after so many, and at all that follow."""

    def before(_operation: str, _path: str) -> None:
        if len(disk.operations) > operations:
            raise PowerFailure

    disk.before = before
