"""The application's types: what is proposed, and what comes back."""

from __future__ import annotations

from typing import Any

from ._codec import Codec, Configure, codec_for
from .errors import ConversionError

__all__ = ["ConversionError", "RaftTypes", "declare_raft_types"]


class RaftTypes:
    """How an application's requests and responses become bytes. Made by :func:`declare_raft_types`.

    A request is encoded once, where it is proposed; the same bytes go to every log, and each node decodes them once,
    when it applies them. What cannot be decoded there would stop every node: so encoding checks that decoding gives
    back the same value, and refuses it otherwise.
    """

    def __init__(self, request: Any, response: Any, request_codec: Codec, response_codec: Codec) -> None:
        self.request = request
        self.response = response
        self.encode_request = request_codec.encode
        self.decode_request = request_codec.decode
        self.encode_response = response_codec.encode
        self.decode_response = response_codec.decode

    def __repr__(self) -> str:
        return f"RaftTypes(request={self.request!r}, response={self.response!r})"


def declare_raft_types(request: Any = Any, response: Any = Any, *, configure: Configure | None = None) -> RaftTypes:
    """Name the types of an application.

    A type is one of:

    - ``Any``, the default: plain values (None, bool, int of 64 bits, finite float, str, bytes, list, dict with keys of
      str or bytes), at most 16 deep. A tuple may be given and comes back as a list.
    - ``bytes``: passed through as they are, without CBOR. The fastest.
    - an attrs class or a dataclass, with fields of such types, of enums, and of ``list``, ``tuple``, ``dict``, ``set``
      and ``X | None`` of them; a union of classes, which travels with the class's name. Subclasses are not accepted
      for their base.

    Names of classes and fields are part of the log's format: entries that were written must stay readable. Add a field
    with a default, on every node before it is used; do not rename.

    Conversion is strict in both directions: nothing is coerced, unknown fields and missing ones are errors, and both
    raise :class:`~zlayer_consensus.errors.ConversionError` with the field in its text.

    :param request: the type of what is proposed.
    :param response: the type of what ``apply`` returns.
    :param configure: called with each ``cattrs.Converter``, to register hooks for further types.
    :raises TypeError: if a type has no conversion; the text names the field.
    """
    return RaftTypes(
        request,
        response,
        codec_for(request, "request", configure=configure),
        codec_for(response, "response", configure=configure),
    )
