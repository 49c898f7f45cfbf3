"""Where a call names its user and its interaction, in the order in which the places count.

Both orders are made of the configuration's words once, and followed for each call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from fairserve.engine.requests import BodyField

_PREVIOUS_RESPONSE: Final = "previous_response_id"
#: W3C Trace Context: version, trace id, parent id, flags. Version ff and the zero id are invalid.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)


class UserOrder:
    """Where a tenant's users are named, made of the configuration's words. Equal where those are: what a
    tenant's identities stand for is made anew only where it is another.
    """

    def __init__(self, sources: tuple[str, ...]) -> None:
        self._sources = sources
        split = [source.partition(":") for source in sources]
        #: A header, or else a field of the body.
        self._steps: tuple[tuple[bytes | None, BodyField], ...] = tuple(
            (name.encode(), ()) if kind == "header" else (None, tuple(name.split(".")))
            for kind, _, name in split
        )
        self.headers = tuple(header for header, _ in self._steps if header is not None)
        self.body_fields = tuple(field for header, field in self._steps if header is None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UserOrder) and self._sources == other._sources

    def __hash__(self) -> int:
        return hash(self._sources)

    def find(
        self, pinned: str | None, named: Mapping[bytes, bytes], said: Mapping[BodyField, str], trusted: bool
    ) -> str:
        """The user whom the first of them names; empty where none does. Over one who is `pinned` only a
        trusted hop's header counts.
        """
        for header, field in self._steps:
            if header is not None:
                value = named.get(header)
                if value and (trusted or pinned is None):
                    return value.decode("latin-1")
            elif pinned is None:
                name = said.get(field)
                if name:
                    return name
        return pinned or ""


class InteractionOrder:
    """Where an interaction's name is looked for, made of the configuration's words."""

    def __init__(self, sources: tuple[str, ...]) -> None:
        split = [source.partition(":") for source in sources]
        #: A header, or else a field of the body, or else the trace.
        self._steps = tuple(
            (name.encode() if kind == "header" else None, name if kind == "body" else None)
            for kind, _, name in split
        )
        self._headers = frozenset(
            name.encode() if kind == "header" else kind.encode() for kind, _, name in split if kind != "body"
        )

    def find(self, named: Mapping[bytes, bytes], said: Mapping[str, str]) -> tuple[str | None, bool]:
        """The first name in the headers or in what the body said, and whether it is a previous answer's."""
        if not said and self._headers.isdisjoint(named):
            return None, False
        for header, field in self._steps:
            if header is not None:
                value = named.get(header)
                name = value.decode("latin-1") if value else None
            else:
                name = _trace(named) if field is None else said.get(field)
            if name:
                return name, field == _PREVIOUS_RESPONSE
        return None, False


def _trace(named: Mapping[bytes, bytes]) -> str | None:
    """The trace that a call is part of: its `traceparent`'s trace id."""
    value = named.get(b"traceparent")
    match = None if value is None else _TRACEPARENT.fullmatch(value.strip())
    return None if match is None else match[1].decode()
