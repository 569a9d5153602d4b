"""Loading an application by its dotted path, for tools beside the daemon."""

from ._application import Application, application_named

__all__ = ["Application", "application_named"]
