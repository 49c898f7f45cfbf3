"""A document in pieces of canonical JSON, so that one changed object costs one piece.

The operator keeps the pieces of what it rendered last, the sidecar those of what it runs. Hash and bytes are
put together from pieces and are byte for byte those of `SchedulerConfig.content_hash` and
`SchedulerConfig.to_bytes`; `difference` compares pieces and parses none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any, Final, TypeAlias, TypeVar

from pydantic import BaseModel

from fairserve.config import SchedulerConfig, TokenIssuerConfig, canonical_json

V = TypeVar("V")

#: Entries of one list by name, in the document's order.
Entries: TypeAlias = Mapping[str, bytes]

INSIDE: Final = "identity"  #: the section whose fields are taken one by one; all others are taken whole
ISSUERS: Final = "identity.token_issuers"
#: Lists whose entries change one by one, and the fields that name an entry.
NAMED: Final[Mapping[str, tuple[str, ...]]] = {
    "tenants": ("name",),
    "applications": ("name",),
    "identity.api_keys": ("digest",),
    "identity.headers": ("name", "value"),
    ISSUERS: ("issuer",),
}
_SEPARATOR: Final = ": "
#: The last object in an issuer's piece: only strings follow it, and in a string its quotes are escaped.
_NO_TENANTS: Final = b'"tenants":{}'


def tenants_of(issuer: str) -> str:
    """The path of an issuer's `tenants`, which change one by one as well; pieces are `"value":"tenant"`."""
    return f"{ISSUERS}.{issuer}"


def name_of(path: str, entry: Mapping[str, Any]) -> str:
    """What an entry of a list is called: "team-a", a key's digest, "header: value". Raises KeyError."""
    return _SEPARATOR.join(entry[name] for name in NAMED[path])


def in_order(path: str, entries: Mapping[str, V]) -> dict[str, V]:
    """Entries in the order in which the operator writes them."""
    # A header's name holds no colon, a value may: the first separator is between them.
    order = methodcaller("partition", _SEPARATOR) if path == "identity.headers" else None
    return {name: entries[name] for name in sorted(entries, key=order)}


@dataclass(frozen=True, slots=True, eq=False)
class Rendering:
    """A document but for its generation. Fields and lists go by their paths, such as `identity.salt`.

    An issuer's piece in `lists[ISSUERS]` has empty `tenants` where there is a list at `tenants_of` it.
    """

    content_hash: str
    length: int  #: of the document in bytes, but for its generation
    fields: Mapping[str, bytes] = field(repr=False)
    lists: Mapping[str, Entries] = field(repr=False)

    @classmethod
    def of(cls, fields: Mapping[str, bytes], lists: Mapping[str, Entries]) -> Rendering:
        """The pieces with their hash."""
        content = document_of(fields, lists, None)
        return cls(hashlib.sha256(content).hexdigest(), len(content), fields, lists)

    def document(self, generation: int) -> bytes:
        """The document under this generation."""
        return document_of(self.fields, self.lists, generation)


class Renderer:
    """Renders the documents of one pool, one after the other."""

    def __init__(self) -> None:
        #: By the identity of a model, which is frozen; the model beside it keeps the identity its own.
        self._known: dict[int, tuple[BaseModel, bytes]] = {}
        #: By issuer: its tenants, and the pieces of them.
        self._tenants: dict[str, tuple[Mapping[str, str], Entries]] = {}

    def render(self, config: SchedulerConfig) -> Rendering:
        """Take a document apart. Models that were in the last one are not looked at again."""
        used: dict[int, tuple[BaseModel, bytes]] = {}
        identity = config.identity
        lists: dict[str, Entries] = {
            "tenants": self._entries(((t.name, t) for t in config.tenants), used),
            "applications": self._entries(((a.name, a) for a in config.applications), used),
            "identity.api_keys": self._entries(((k.digest, k) for k in identity.api_keys), used),
            "identity.headers": self._entries(((f"{h.name}: {h.value}", h) for h in identity.headers), used),
            ISSUERS: {issuer.issuer: issuer_piece(issuer) for issuer in identity.token_issuers},
        }
        self._known = used
        before, self._tenants = self._tenants, {}
        for issuer in identity.token_issuers:
            if issuer.tenants is not None:
                pieces = _members(issuer.tenants, *before.get(issuer.issuer, ({}, {})))
                self._tenants[issuer.issuer] = issuer.tenants, pieces
                lists[tenants_of(issuer.issuer)] = pieces
        return Rendering.of(fields_of(config), lists)

    def _entries(
        self, models: Iterable[tuple[str, BaseModel]], used: dict[int, tuple[BaseModel, bytes]]
    ) -> Entries:
        entries: dict[str, bytes] = {}
        for name, model in models:
            known = self._known.get(id(model))
            if known is None:
                known = model, piece_of(model)
            used[id(model)] = known
            entries[name] = known[1]
        return entries


def difference(old: Rendering, old_generation: int, new: Rendering, new_generation: int) -> bytes:
    """What makes the new document of the old one, as `PUT /config` takes it. A list that is not, or was not,
    in the operator's order is replaced whole.
    """
    changed = {path: piece for path, piece in new.fields.items() if old.fields.get(path) != piece}
    put: dict[str, bytes] = {}
    remove: dict[str, list[str]] = {}
    for path, entries in new.lists.items():
        if path not in NAMED:
            continue
        if not (_is_in_order(path, entries) and _is_in_order(path, old.lists[path])):
            whole = _list(path, new.lists)
            if whole != _list(path, old.lists):
                changed[path] = whole
            continue
        paths = [path] if path != ISSUERS else [path, *map(tenants_of, entries)]
        for each in paths:
            _compare(each, old.lists.get(each, {}), new.lists.get(each), put, remove)
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


def _is_in_order(path: str, entries: Entries) -> bool:
    return list(entries) == list(in_order(path, entries))


def _compare(
    path: str, before: Entries, entries: Entries | None, put: dict[str, bytes], remove: dict[str, list[str]]
) -> None:
    if entries is None:  # an issuer without tenants, which its own piece says
        return
    # Most pieces are the very same object in both.
    fresh = [piece for name, piece in entries.items() if before.get(name) != piece]
    if fresh:
        put[path] = _array(fresh) if path in NAMED else b"[{" + b",".join(fresh) + b"}]"
    if gone := [name for name in before if name not in entries]:
        remove[path] = gone


def fields_of(config: SchedulerConfig) -> dict[str, bytes]:
    """The pieces of everything but generation and lists, by path."""
    named = {path.removeprefix(f"{INSIDE}.") for path in NAMED}
    content = config.model_dump(mode="json", exclude={"generation", INSIDE, *named})
    inside = config.identity.model_dump(mode="json", exclude=named)
    content |= {f"{INSIDE}.{name}": value for name, value in inside.items()}
    return {path: canonical_json(value) for path, value in content.items()}


def piece_of(model: BaseModel) -> bytes:
    """The piece of a list's entry but for an issuer."""
    return canonical_json(model.model_dump(mode="json"))


def issuer_piece(issuer: TokenIssuerConfig) -> bytes:
    """The piece of an issuer, without its tenants."""
    if issuer.tenants is None:
        return piece_of(issuer)
    return canonical_json({**issuer.model_dump(mode="json", exclude={"tenants"}), "tenants": {}})


def member_piece(value: str, tenant: str) -> bytes:
    """The piece of one of an issuer's tenants."""
    return canonical_json(value) + b":" + canonical_json(tenant)


def _members(tenants: Mapping[str, str], before: Mapping[str, str], pieces: Entries) -> Entries:
    """The pieces of an issuer's tenants, of which those that stay are known."""
    if tenants == before:
        return pieces
    return {
        value: pieces[value] if before.get(value) == tenants[value] else member_piece(value, tenants[value])
        for value in sorted(tenants)
    }


def document_of(fields: Mapping[str, bytes], lists: Mapping[str, Entries], generation: int | None) -> bytes:
    """The document that pieces make, as canonical JSON; without a generation where that is None."""
    pieces = {**fields, **{path: _list(path, lists) for path in NAMED}}
    inside = {path.partition(".")[2]: pieces.pop(path) for path in list(pieces) if "." in path}
    pieces[INSIDE] = _object(inside)
    if generation is not None:
        pieces["generation"] = canonical_json(generation)
    return _object(pieces)


def _list(path: str, lists: Mapping[str, Entries]) -> bytes:
    entries = lists[path]
    if path != ISSUERS:
        return _array(entries.values())
    return _array(_with_tenants(piece, lists.get(tenants_of(name))) for name, piece in entries.items())


def _with_tenants(piece: bytes, tenants: Entries | None) -> bytes:
    if tenants is None:
        return piece
    before, _, after = piece.rpartition(_NO_TENANTS)
    return before + b'"tenants":{' + b",".join(tenants.values()) + b"}" + after


def _array(pieces: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(pieces) + b"]"


def _object(pieces: Mapping[str, bytes]) -> bytes:
    return b"{" + b",".join(canonical_json(name) + b":" + pieces[name] for name in sorted(pieces)) + b"}"
