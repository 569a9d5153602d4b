"""What is replicated in a simulation."""
from __future__ import annotations

from ...kv import TYPES, KeyValueMachine
from ...storage import IStateMachine
from ...types import RaftTypes


class Application:
    types: RaftTypes = TYPES

    def machine(self) -> IStateMachine:
        return KeyValueMachine()
