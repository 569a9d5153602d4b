"""Crashes at every operation: what a store has to survive, and what shows that it does."""

from ._contracts import LogStoreCrashContract, NodeCrashContract, StateMachineStoreCrashContract
from ._explore import CrashSubject, CrashViolation, Explored, Story, explore_crashes, explore_failures
from ._logs import GatedExecutor, LogContent, LogStep, LogSubject, MakeLog, log_story, outcome
from ._nodes import NODE_SCRIPTS, NodeContent, NodeScript, NodeStep, NodeSubject, node_story
from ._scripts import SCRIPTS, Script, random_script
from ._snapshots import (
    SNAPSHOT_STEPS,
    MakeMachineStore,
    SnapshotContent,
    SnapshotStep,
    SnapshotSubject,
    read_newest,
    receive,
    snapshot_story,
)
from ._survivors import Depth, survivors

__all__ = [
    "NODE_SCRIPTS",
    "SCRIPTS",
    "SNAPSHOT_STEPS",
    "CrashSubject",
    "CrashViolation",
    "Depth",
    "Explored",
    "GatedExecutor",
    "LogContent",
    "LogStep",
    "LogStoreCrashContract",
    "LogSubject",
    "MakeLog",
    "MakeMachineStore",
    "NodeContent",
    "NodeCrashContract",
    "NodeScript",
    "NodeStep",
    "NodeSubject",
    "Script",
    "SnapshotContent",
    "SnapshotStep",
    "SnapshotSubject",
    "StateMachineStoreCrashContract",
    "Story",
    "explore_crashes",
    "explore_failures",
    "log_story",
    "node_story",
    "outcome",
    "random_script",
    "read_newest",
    "receive",
    "snapshot_story",
    "survivors",
]
