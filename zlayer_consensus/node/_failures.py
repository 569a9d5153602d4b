"""What is in a Failure."""

from __future__ import annotations

from twisted.python.failure import Failure

__all__ = ["error_in"]


def error_in(failure: Failure) -> BaseException:
    """Return the exception, which a Failure always has although its type says otherwise."""
    return failure.value if failure.value is not None else RuntimeError(str(failure))
