"""The application that a node runs: the key-value store, or what a dotted path names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import attrs
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from ..storage import IStateMachine
from ._config import ConfigFileError, NodeConfig

__all__ = ["Application", "load_application"]


@attrs.frozen
class Application:
    """What the node needs of an application.

    :param machine: its state machine.
    :param types: what ``declare_raft_types`` returned, or None for plain values.
    :param resource: called with node and machine, gives the Twisted web resource that is served under ``/app`` on the
        client listener; None if there is none.
    """

    machine: Any
    types: Any = None
    resource: Callable[[Any, Any], Any] | None = None


def load_application(config: NodeConfig) -> Application:
    """Import the application that the configuration names, and make its state machine.

    The attribute is either a class or function whose call gives an ``IStateMachine``, or an object with the attribute
    ``machine`` (an ``IStateMachine``, or what gives one). In both cases ``types`` and ``resource`` are looked for
    beside it.

    :raises ConfigFileError: if it cannot be imported, or is not what it should be.
    """
    if config.application == "kv":
        from ..kv import TYPES, KeyValueMachine

        return Application(KeyValueMachine(), TYPES)

    def refuse(rule: str) -> ConfigFileError:
        return ConfigFileError(config.path, "node.application", config.application, rule)

    module_name, _, attribute = config.application.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        # A module may raise anything while it is imported.
        raise refuse(f"{module_name} cannot be imported ({type(error).__name__}: {error})") from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise refuse(f"{getattr(found, '__name__', found)} has no attribute {name}")
        found = getattr(found, name)
    machine = getattr(found, "machine", found)
    if not IStateMachine.providedBy(machine) and callable(machine):
        try:
            machine = machine()
        except Exception as error:
            raise refuse(f"making the state machine failed ({type(error).__name__}: {error})") from error
    try:
        verifyObject(IStateMachine, machine)
    except Invalid as error:
        raise refuse(f"gives no IStateMachine ({' '.join(str(error).split())})") from None
    # Looked for on what was named first: a class attribute is there before and after the call.
    return Application(
        machine,
        getattr(found, "types", getattr(machine, "types", None)),
        getattr(found, "resource", getattr(machine, "resource", None)),
    )
