"""A document in pieces of canonical JSON, so that one changed Tenant costs one piece.

`Renderer` keeps the pieces of what it rendered last. Hash, bytes and differences are put together from pieces
and are byte for byte those of `SchedulerConfig.content_hash`, `SchedulerConfig.to_bytes` and, after
parsing, `fairserve.difference.diff`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from pydantic import BaseModel

from fairserve.config import SchedulerConfig, canonical_json

#: Of lists whose entries change one by one: entries by name, in the document's order.
_Entries: TypeAlias = Mapping[str, bytes]

_INSIDE = "identity"  #: the section whose fields are taken one by one


@dataclass(frozen=True, slots=True, eq=False)
class Rendering:
    """A document but for its generation. Fields and lists go by their paths, such as `identity.salt`."""

    content_hash: str
    length: int  #: of the document in bytes
    fields: Mapping[str, bytes] = field(repr=False)
    lists: Mapping[str, _Entries] = field(repr=False)

    def document(self, generation: int) -> bytes:
        """The document under this generation."""
        return _document(self.fields, self.lists, generation)


class Renderer:
    """Renders the documents of one pool, one after the other."""

    def __init__(self) -> None:
        #: By the identity of a model, which is frozen; the model beside it keeps the identity its own.
        self._known: dict[int, tuple[BaseModel, bytes]] = {}

    def render(self, config: SchedulerConfig) -> Rendering:
        """Take a document apart. Models that were in the last one are not looked at again."""
        used: dict[int, tuple[BaseModel, bytes]] = {}
        identity = config.identity
        lists: dict[str, _Entries] = {
            "tenants": self._entries(((t.name, t) for t in config.tenants), used),
            "applications": self._entries(((a.name, a) for a in config.applications), used),
            "identity.api_keys": self._entries(((k.digest, k) for k in identity.api_keys), used),
            "identity.headers": self._entries(((f"{h.name}: {h.value}", h) for h in identity.headers), used),
        }
        self._known = used
        own = config.model_dump(mode="json", exclude={"generation", "tenants", "applications", _INSIDE})
        inside = identity.model_dump(mode="json", exclude={"api_keys", "headers"})
        own |= {f"{_INSIDE}.{name}": value for name, value in inside.items()}
        fields = {path: canonical_json(value) for path, value in own.items()}
        content = _document(fields, lists, None)
        return Rendering(hashlib.sha256(content).hexdigest(), len(content), fields, lists)

    def _entries(
        self, models: Iterable[tuple[str, BaseModel]], used: dict[int, tuple[BaseModel, bytes]]
    ) -> _Entries:
        entries: dict[str, bytes] = {}
        for name, model in models:
            known = self._known.get(id(model))
            if known is None:
                known = model, canonical_json(model.model_dump(mode="json"))
            used[id(model)] = known
            entries[name] = known[1]
        return entries


def difference(old: Rendering, old_generation: int, new: Rendering, new_generation: int) -> bytes:
    """What makes the new document of the old one, as `PUT /config` takes it."""
    changed = {path: piece for path, piece in new.fields.items() if old.fields.get(path) != piece}
    put: dict[str, bytes] = {}
    remove: dict[str, list[str]] = {}
    for path, entries in new.lists.items():
        before = old.lists[path]
        # Most pieces are the very same object in both.
        fresh = [piece for name, piece in entries.items() if before.get(name) != piece]
        if fresh:
            put[path] = _array(fresh)
        if gone := [name for name in before if name not in entries]:
            remove[path] = gone
    return _object(
        {
            "base": canonical_json({"generation": old_generation, "hash": old.content_hash}),
            "generation": canonical_json(new_generation),
            "hash": canonical_json(new.content_hash),
            "put": _object(put),
            "remove": canonical_json(remove),
            "set": _object(changed),
        }
    )


def _document(fields: Mapping[str, bytes], lists: Mapping[str, _Entries], generation: int | None) -> bytes:
    pieces = {**fields, **{path: _array(entries.values()) for path, entries in lists.items()}}
    inside = {path.partition(".")[2]: pieces.pop(path) for path in list(pieces) if "." in path}
    pieces[_INSIDE] = _object(inside)
    if generation is not None:
        pieces["generation"] = canonical_json(generation)
    return _object(pieces)


def _array(pieces: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(pieces) + b"]"


def _object(pieces: Mapping[str, bytes]) -> bytes:
    return b"{" + b",".join(canonical_json(name) + b":" + pieces[name] for name in sorted(pieces)) + b"}"
