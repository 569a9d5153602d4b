"""Requests and responses of the client interface: parameters read strictly, responses with their length."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.server import NOT_DONE_YET

__all__ = [
    "MAX_JSON_BYTES",
    "ApiError",
    "Headers",
    "Options",
    "answer",
    "has_broken_escape",
    "read_json",
    "reply",
    "reply_json",
    "text_of",
]

Headers = Mapping[bytes, bytes]

MAX_JSON_BYTES: Final = 2 << 20
"""Longest JSON body: 1 MiB of values in base64 fits. Parsing much more would hold up the event loop."""
_MAX_TIMEOUT: Final = 300.0
_MAX_INT: Final = (1 << 63) - 1
_NUMBER: Final = re.compile(rb"[0-9]{1,19}", re.ASCII)
_SECONDS: Final = re.compile(rb"[0-9]{1,9}(\.[0-9]{0,9})?(e-?[0-9]{1,2})?", re.ASCII | re.IGNORECASE)
_BROKEN_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class ApiError(Exception):
    """A request that was refused before it reached the node, so nothing has happened.

    :param code: stable, for programs.
    :param message: one sentence, for people.
    """

    def __init__(self, status: int, code: str, message: str, headers: Headers | None = None, **attributes: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})
        self.attributes = attributes


def reply(request: IRequest, status: int, body: bytes, content_type: bytes, headers: Headers | None = None) -> bytes:
    """Set status and headers of a response, and return its body."""
    request.setResponseCode(status)
    request.setHeader(b"content-type", content_type)
    request.setHeader(b"content-length", b"%d" % len(body))
    if headers:
        for name, value in headers.items():
            request.setHeader(name, value)
    return body


def reply_json(request: IRequest, value: Any, status: int = 200, headers: Headers | None = None) -> bytes:
    """Set up a JSON response, and return its body. It ends with a newline, for people with terminals."""
    body = json.dumps(value, separators=(",", ":"), allow_nan=False, default=_plain).encode() + b"\n"
    return reply(request, status, body, b"application/json", headers)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def answer(
    request: Any,
    waiting: Any,
    show: Callable[[Any], bytes],
    show_error: Callable[[BaseException | None], bytes],
) -> Any:
    """Finish a request when the Deferred ``waiting`` has fired; return what ``render`` has to return.

    A client that hangs up gives up waiting, nothing else: to cancel what a node returned does not take it back (A-17).
    """
    hung_up: list[Failure] = []

    def gone(reason: Failure) -> None:
        hung_up.append(reason)
        waiting.cancel()

    def failed(failure: Failure) -> bytes | None:
        if hung_up and failure.check(CancelledError):
            return None
        return show_error(failure.value)

    def finish(body: bytes | None) -> None:
        if body is not None and not hung_up:
            request.write(body)
            request.finish()

    request.notifyFinish().addErrback(gone)
    waiting.addCallback(show).addErrback(failed).addCallback(finish)
    return NOT_DONE_YET


class Options:
    """The query of a request, with a closed list of names: a misspelt option must not be ignored in silence.

    :raises ApiError: 400, if a name is unknown, comes twice or has no value, or if the percent-encoding is broken.
    """

    def __init__(self, request: IRequest, allowed: Iterable[str]) -> None:
        self._values: dict[str, bytes] = {}
        names = frozenset(allowed)
        query = request.uri.partition(b"?")[2]
        if has_broken_escape(query):
            raise bad("query", "the query has a % that two hexadecimal digits do not follow")
        # Twisted leaves out what has no "=", so that ?retain would be as good as no option at all.
        parts = query.replace(b";", b"&").split(b"&")
        bare: list[tuple[bytes, list[bytes]]] = [(part, []) for part in parts if part and b"=" not in part]
        for raw, values in (*request.args.items(), *bare):
            name = raw.decode("ascii", "backslashreplace")
            if name not in names:
                known = ", ".join(sorted(names)) or "none"
                raise bad(name, f"there is no option {text_of(raw)} here; the options are: {known}", "unknown_option")
            if not values:
                raise bad(name, f"the option {name} needs a value, {name}=...")
            if len(values) != 1:
                raise bad(name, f"the option {name} is given {len(values)} times")
            self._values[name] = values[0]

    def raw(self, name: str) -> bytes | None:
        """Return the bytes of an option, or None."""
        return self._values.get(name)

    def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        """Return one of ``choices``, or None if the option is not given."""
        value = self._values.get(name)
        if value is None:
            return None
        text = value.decode("ascii", "backslashreplace")
        if text not in choices:
            raise bad(name, f"{name} is {' or '.join(choices)}, not {text_of(value)}")
        return text

    def number(self, name: str) -> int:
        """Return a number that is not negative; 0 if the option is not given."""
        value = self._values.get(name)
        if value is None:
            return 0
        if not _NUMBER.fullmatch(value) or int(value) > _MAX_INT:
            raise bad(name, f"{name} is a number from 0 to 2^63 - 1, not {text_of(value)}")
        return int(value)

    @property
    def timeout(self) -> float | None:
        """Seconds to wait, or None for the node's own default."""
        value = self._values.get("timeout")
        if value is None:
            return None
        seconds = float(value) if _SECONDS.fullmatch(value) else math.nan
        if not 0 < seconds <= _MAX_TIMEOUT:
            raise bad("timeout", f"timeout is a number of seconds up to {_MAX_TIMEOUT:g}, not {text_of(value)}")
        return seconds

    @property
    def forward(self) -> bool | None:
        """Whether a node that does not lead may turn to the leader; None is as the node is configured."""
        value = self.choice("forward", ("yes", "no"))
        return None if value is None else value == "yes"


def bad(field: str, message: str, code: str = "invalid_option") -> ApiError:
    """Return the error for a query option, header or JSON field."""
    return ApiError(400, code, message, field=field)


def text_of(value: bytes) -> str:
    """Return bytes from outside as one short printable line, in quotes (A-34)."""
    return repr(value[:80] + (b"..." if len(value) > 80 else b""))[1:]


def has_broken_escape(raw: bytes) -> bool:
    """Return whether a raw path or query has a ``%`` that is not part of an escape."""
    return b"%" in raw and _BROKEN_ESCAPE.search(raw) is not None


def read_json(request: IRequest, *, optional: bool = False) -> dict[str, Any]:
    """Read the body as one JSON object. With ``optional``, no body is an empty object.

    :raises ApiError: 400, 413 or 415.
    """
    body: bytes = request.content.read(MAX_JSON_BYTES + 1)
    if not body and optional:
        return {}
    if len(body) > MAX_JSON_BYTES:
        message = f"a JSON body has at most {MAX_JSON_BYTES} bytes"
        raise ApiError(413, "body_too_large", message, limit=MAX_JSON_BYTES)
    kind = (request.getHeader(b"content-type") or b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise ApiError(415, "unsupported_media_type", "the body must have the content type application/json")
    try:
        value = json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "invalid_json", "the body must be a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
