"""The application that a node runs: the key-value store, or what a dotted path names."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import attrs
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from ..storage import IStateMachine
from ._config import ConfigFileError, NodeConfig

__all__ = ["Application", "application_named", "load_application"]


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


def load_application(config: NodeConfig, reactor: Any = None) -> Application:
    """Import the application that the configuration names; see :func:`application_named`.

    :param reactor: for one that does work of its own; None: the application is only looked at, not run.
    """
    if reactor is not None and config.storage.values == "disk":
        from ..kv import TYPES, FileKeyValueMachine

        return Application(FileKeyValueMachine(os.path.join(config.data_dir, "values"), reactor=reactor), TYPES)
    return application_named(config.application, config.path)


def application_named(name: str, source: str) -> Application:
    """Import an application, and make its state machine.

    The attribute is either a class or function whose call gives an ``IStateMachine``, or an object with the attribute
    ``machine`` (an ``IStateMachine``, or what gives one). In both cases ``types`` and ``resource`` are looked for
    beside it.

    :param name: ``kv``, or ``package.module:attribute``.
    :param source: where the name stands, for the error.
    :raises ConfigFileError: if it cannot be imported, or is not what it should be.
    """
    if name == "kv":
        from ..kv import TYPES, KeyValueMachine

        return Application(KeyValueMachine(), TYPES)

    def refuse(rule: str) -> ConfigFileError:
        return ConfigFileError(source, "node.application", name, rule)

    module_name, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        # A module may raise anything while it is imported.
        raise refuse(f"{module_name} cannot be imported ({type(error).__name__}: {error})") from error
    for step in attribute.split("."):
        if not hasattr(found, step):
            raise refuse(f"{getattr(found, '__name__', found)} has no attribute {step}")
        found = getattr(found, step)
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
