"""What changed between two configuration documents, so that a change of one tenant travels alone.

A difference names the document that it starts from and the hash of the one that it makes. Whoever holds
another document, or gets another result, can't apply it and asks for the whole one. Tenants, applications,
API keys, identity headers and token issuers change one by one, and so does whose each value of an issuer's
claim is; every other field is replaced as a whole. Lists that change one by one are in order of their names,
as the operator writes them; a list in another order is replaced.

To apply a difference costs what it changes: what it puts is validated beside what that refers to, in a small
document of its own, and all else stays the object that it was. Only copies of references and the hash are
over everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from types import MappingProxyType
from typing import Annotated, Any, Final, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from fairserve.config import SchedulerConfig, TokenIssuerConfig, canonical_json
from fairserve.core.settings import Settings
from fairserve.rendering import (
    INSIDE,
    ISSUERS,
    NAMED,
    Entries,
    Renderer,
    Rendering,
    difference,
    document_of,
    fields_of,
    in_order,
    issuer_piece,
    member_piece,
    name_of,
    piece_of,
    tenants_of,
)

#: What a body that holds a difference is called in Content-Type.
MEDIA_TYPE: Final = "application/vnd.fairserve.difference+json"

V = TypeVar("V")

_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Content = dict[str, Any]


class DifferenceError(ValueError):
    """A difference that makes no sense, whatever it is applied to."""


class WrongBaseError(ValueError):
    """A difference of another document: the whole one is needed."""


class Identification(BaseModel):
    """Which document: its generation and its content's hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    generation: Annotated[int, Field(ge=0)]
    hash: _Hash


class Difference(Identification):
    """From `base` to the document of this generation and hash."""

    base: Identification
    #: New values of fields and lists, by path: "mode", "identity.salt".
    set: dict[str, Any] = {}
    #: New and changed entries, by the path of their list. Of an issuer's tenants, whose path is
    #: "identity.token_issuers.<issuer>": objects from a claim's value to a tenant's name.
    put: dict[str, list[_Content]] = {}
    #: Names of entries that are gone, by the path of their list: "team-a", a key's digest, "header: value".
    remove: dict[str, list[str]] = {}

    def to_bytes(self) -> bytes:
        """The difference as canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a difference. Raises pydantic's ValidationError, which names every wrong field."""
        return cls.model_validate_json(data)


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A document with what is made of each of its objects. What two have in common are the same objects."""

    config: SchedulerConfig
    rendering: Rendering = field(repr=False)
    settings: Settings = field(repr=False)
    #: The entries of each list that changes one by one, by its path and their names, in their order.
    entries: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @classmethod
    def of(cls, config: SchedulerConfig) -> Self:
        """All made anew."""
        entries = {path: _named(path, _list(config, path)) for path in NAMED}
        return cls(config, Renderer().render(config), config.settings(), entries)

    @property
    def hash(self) -> str:
        """The document's content hash."""
        return self.rendering.content_hash


def diff(old: SchedulerConfig, new: SchedulerConfig) -> Difference:
    """What makes `new` of `old`."""
    renderer = Renderer()
    before = renderer.render(old)
    change = difference(before, old.generation, renderer.render(new), new.generation)
    return Difference.from_bytes(change)


def apply(change: Difference, held: Held) -> Held:
    """The document that the difference makes of the one that is held, as valid as if it were read whole.

    Raises WrongBaseError where the base is another document or the result isn't the one that was meant,
    DifferenceError for paths and names that can't be and for entries that others still refer to, pydantic's
    ValidationError for invalid values.
    """
    base = change.base
    if (base.generation, base.hash) != (held.config.generation, held.hash):
        raise WrongBaseError(f"generation {base.generation} with hash {base.hash[:12]} does not run")
    edits = _edits(change, held)
    valid = _validated(change, held, edits)
    _keep_references(held, edits)
    result = _made(held, edits, valid)
    if result.hash != change.hash:
        raise WrongBaseError(f"the result's hash is {result.hash[:12]}, not {change.hash[:12]}")
    return result


# -- what is asked for ------------------------------------------------------------------------------


class _Edit(NamedTuple):
    """What happens to one list, or to one issuer's tenants. Entries are as they came."""

    put: dict[str, Any]
    removed: frozenset[str] = frozenset()
    replaced: bool = False  #: all that is put is all that there is, in this order


_UNTOUCHED: Final = _Edit({})


def _edits(change: Difference, held: Held) -> dict[str, _Edit]:
    """By path. Raises DifferenceError."""
    edits: dict[str, _Edit] = {}
    for path, value in change.set.items():
        if path in NAMED:
            edits |= _replacement(path, value, held)
        elif path not in held.rendering.fields:
            raise DifferenceError(f"set: there is no field {path!r}")
    for path in change.put.keys() | change.remove.keys():
        if path in edits:
            raise DifferenceError(f"{path} is replaced and changed at once")
    for path in [path for path in change.put.keys() | change.remove.keys() if path in NAMED]:
        edits[path] = _edit(path, change, held, _by_name(path, change.put.get(path, [])))
    for path in change.put.keys() | change.remove.keys():
        if path not in NAMED:
            edits[path] = _edit(path, change, held, _members(path, change, held, edits))
    for issuer in edits.get(ISSUERS, _UNTOUCHED).put.values():
        if issuer.get("tenants"):
            raise DifferenceError(f"put: {ISSUERS}: tenants go under {tenants_of(issuer['issuer'])}")
    return edits


def _edit(path: str, change: Difference, held: Held, put: dict[str, Any]) -> _Edit:
    removed = frozenset(change.remove.get(path, ()))
    known = held.rendering.lists.get(path, {})
    for name in removed:
        if name not in known:
            raise DifferenceError(f"remove: {path} has no {name!r}")
        if name in put:
            raise DifferenceError(f"{path}: {name!r} is put and removed at once")
    return _Edit(put, removed)


def _replacement(path: str, value: Any, held: Held) -> dict[str, _Edit]:
    """A list that is set whole; issuers' tenants with it."""
    if not isinstance(value, list):
        raise DifferenceError(f"set: {path} is no list")
    put = _by_name(path, value)
    if len(put) != len(value):
        raise DifferenceError(f"set: an entry of {path} appears twice")
    edits: dict[str, _Edit] = {}
    if path == ISSUERS:
        for name, entry in put.items():
            tenants = entry.get("tenants")
            if isinstance(tenants, dict):
                put[name] = {**entry, "tenants": {}}
                edits[tenants_of(name)] = _Edit(tenants, replaced=True)
    edits[path] = _Edit(put, frozenset(held.entries[path].keys() - put.keys()), replaced=True)
    return edits


def _by_name(path: str, entries: list[Any]) -> dict[str, Any]:
    for entry in entries:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in NAMED[path]):
            raise DifferenceError(f"an entry of {path} lacks {' or '.join(NAMED[path])}")
    return {name_of(path, entry): entry for entry in entries}


def _members(path: str, change: Difference, held: Held, edits: dict[str, _Edit]) -> dict[str, Any]:
    """What is put among an issuer's tenants; it must have such, now or already."""
    issuer = path.removeprefix(f"{ISSUERS}.")
    edit = edits.get(ISSUERS, _UNTOUCHED)
    if issuer in edit.put:
        has = isinstance(edit.put[issuer].get("tenants"), dict)
    else:
        has = issuer not in edit.removed and path in held.rendering.lists
    if not path.startswith(f"{ISSUERS}.") or not has:
        raise DifferenceError(f"put, remove: {path!r} is no list of named entries")
    return {value: tenant for members in change.put.get(path, ()) for value, tenant in members.items()}


# -- whether it may be ------------------------------------------------------------------------------


def _validated(change: Difference, held: Held, edits: dict[str, _Edit]) -> SchedulerConfig:
    """A document of what is put, of what that refers to, and of every field that isn't a list."""
    before = held.rendering
    try:
        fields = {path: canonical_json(value) for path, value in change.set.items() if path not in NAMED}
        lists = {
            path: {name: canonical_json(entry) for name, entry in edits.get(path, _UNTOUCHED).put.items()}
            for path in NAMED
        }
        for issuer in {*lists[ISSUERS], *before.lists[ISSUERS]}:
            edit = edits.get(tenants_of(issuer))
            if edit is not None:
                lists[ISSUERS].setdefault(issuer, before.lists[ISSUERS].get(issuer, b""))
                lists[tenants_of(issuer)] = {
                    value: member_piece(value, tenant) for value, tenant in edit.put.items()
                }
    except ValueError as error:
        raise DifferenceError(f"set, put: {error}") from error
    for path, names in _referred(held, edits).items():
        removed = edits.get(path, _UNTOUCHED).removed
        for name in names - removed - lists[path].keys():
            if name in before.lists[path]:
                lists[path][name] = before.lists[path][name]
    return SchedulerConfig.from_bytes(document_of({**before.fields, **fields}, lists, change.generation))


def _referred(held: Held, edits: dict[str, _Edit]) -> dict[str, set[str]]:
    """The tenants and applications that what is put refers to, and the applications of tenants that stay and
    are referred to.
    """
    tenants: set[str] = set()
    applications: set[str] = set()
    for path, edit in edits.items():
        if path in NAMED:
            tenants |= _texts(entry.get("tenant") for entry in edit.put.values())
            applications |= _texts(entry.get("application") for entry in edit.put.values())
        else:
            tenants |= _texts(edit.put.values())
    known, put = held.entries["tenants"], edits.get("tenants", _UNTOUCHED).put
    for tenant in put.values():
        usable = tenant.get("applications")
        applications |= _texts(usable if isinstance(usable, list) else ())
    for name in tenants - put.keys():
        if name in known:
            applications |= set(known[name].applications or ())
    return {"tenants": tenants, "applications": applications}


def _texts(values: Iterable[Any]) -> set[str]:
    return {value for value in values if isinstance(value, str)}


def _keep_references(held: Held, edits: dict[str, _Edit]) -> None:
    """Raise DifferenceError for what stays and refers to what goes."""
    for referred, path, of in (
        ("tenants", "identity.api_keys", "tenant"),
        ("applications", "identity.api_keys", "application"),
        ("tenants", "identity.headers", "tenant"),
        ("tenants", ISSUERS, "tenant"),
    ):
        _keep(path, held.entries[path], edits.get(path), edits.get(referred, _UNTOUCHED).removed, of)
    _keep_usable(held, edits)
    gone = edits.get("tenants", _UNTOUCHED).removed
    for name, issuer in held.entries[ISSUERS].items() if gone else ():
        # What is no part of the issuer any more is put anew or gone with it.
        if name in edits.get(ISSUERS, _UNTOUCHED).removed or _loses_tenants(edits, name):
            continue
        _keep(tenants_of(name), issuer.tenants or {}, edits.get(tenants_of(name)), gone, None)


def _keep_usable(held: Held, edits: dict[str, _Edit]) -> None:
    gone = edits.get("applications", _UNTOUCHED).removed
    edit = edits.get("tenants", _UNTOUCHED)
    if not gone or edit.replaced:
        return
    for name, tenant in held.entries["tenants"].items():
        for application in tenant.applications or ():
            if application in gone and name not in edit.put and name not in edit.removed:
                raise DifferenceError(f"tenants: {name}: unknown application {application!r}")


def _loses_tenants(edits: dict[str, _Edit], issuer: str) -> bool:
    entry = edits.get(ISSUERS, _UNTOUCHED).put.get(issuer)
    return entry is not None and entry.get("tenants") is None


def _keep(
    path: str, entries: Mapping[str, Any], edit: _Edit | None, gone: frozenset[str], of: str | None
) -> None:
    values = entries.values() if of is None else map(attrgetter(of), entries.values())
    if not gone or gone.isdisjoint(values):
        return
    put, removed, replaced = edit or _UNTOUCHED
    for name, entry in entries.items():
        refers = entry if of is None else getattr(entry, of)
        if refers in gone and not (replaced or name in put or name in removed):
            raise DifferenceError(f"{path}: unknown {of or 'tenant'} {refers!r}")


# -- what it makes ----------------------------------------------------------------------------------


def _made(held: Held, edits: dict[str, _Edit], valid: SchedulerConfig) -> Held:
    """The whole, of what stays and what is `valid` and put."""
    lists: dict[str, Entries] = dict(held.rendering.lists)
    entries: dict[str, Mapping[str, Any]] = dict(held.entries)
    for path in NAMED:
        edit = edits.get(path)
        if path == ISSUERS or edit is None:
            continue
        models = _picked(edit, _named(path, _list(valid, path)))
        entries[path] = _merged(path, held.entries[path], models, edit)
        pieces = {name: piece_of(model) for name, model in models.items()}
        lists[path] = _merged(path, held.rendering.lists[path], pieces, edit)
    _make_issuers(held, edits, valid, lists, entries)
    identity = valid.identity.model_copy(
        update={
            "api_keys": _sequence("identity.api_keys", held, entries),
            "headers": _sequence("identity.headers", held, entries),
            "token_issuers": _sequence(ISSUERS, held, entries),
        }
    )
    config = valid.model_copy(
        update={
            INSIDE: identity,
            "tenants": _sequence("tenants", held, entries),
            "applications": _sequence("applications", held, entries),
        }
    )
    settings = valid.settings()
    settings = replace(
        settings,
        tenants=_settings("tenants", held.settings.tenants, settings.tenants, edits),
        applications=_settings("applications", held.settings.applications, settings.applications, edits),
    )
    return Held(config, Rendering.of(fields_of(valid), lists), settings, entries)


def _make_issuers(
    held: Held,
    edits: dict[str, _Edit],
    valid: SchedulerConfig,
    lists: dict[str, Entries],
    entries: dict[str, Mapping[str, Any]],
) -> None:
    """Issuers with their tenants, which are edited apart."""
    edit = edits.get(ISSUERS, _UNTOUCHED)
    models: dict[str, TokenIssuerConfig] = {}
    for issuer in valid.identity.token_issuers:
        name, path = issuer.issuer, tenants_of(issuer.issuer)
        lists.pop(path, None)
        if issuer.tenants is not None:
            before = held.entries[ISSUERS].get(name)
            known = {} if before is None or before.tenants is None else before.tenants
            whose = edits.get(path, _UNTOUCHED)
            members = {value: member_piece(value, tenant) for value, tenant in issuer.tenants.items()}
            lists[path] = _merged(path, held.rendering.lists.get(path, {}), members, whose, ordered=True)
            whole = _merged(path, known, issuer.tenants, whose)
            models[name] = issuer.model_copy(update={"tenants": whole})
        else:
            models[name] = issuer
    for name in edit.removed:
        lists.pop(tenants_of(name), None)
    if models or edit.removed:
        entries[ISSUERS] = _merged(ISSUERS, held.entries[ISSUERS], models, edit)
        pieces = {name: issuer_piece(model) for name, model in models.items()}
        lists[ISSUERS] = _merged(ISSUERS, held.rendering.lists[ISSUERS], pieces, edit)


def _settings(
    path: str, before: Mapping[str, V], valid: Mapping[str, V], edits: dict[str, _Edit]
) -> Mapping[str, V]:
    edit = edits.get(path)
    if edit is None:
        return before
    return MappingProxyType(_merged(path, before, _picked(edit, valid), edit))


def _picked(edit: _Edit, valid: Mapping[str, V]) -> dict[str, V]:
    """What is put, valid and in its order, without what it only refers to."""
    return {name: valid[name] for name in edit.put}


def _merged(
    path: str, before: Mapping[str, V], put: Mapping[str, V], edit: _Edit, *, ordered: bool = False
) -> dict[str, V]:
    if edit.replaced:
        return in_order(path, put) if ordered else dict(put)
    merged = {**before, **put}
    if len(merged) == len(before) and not edit.removed:
        return merged  # in the order in which they were
    for name in edit.removed:
        del merged[name]
    return in_order(path, merged)


def _sequence(path: str, held: Held, entries: Mapping[str, Mapping[str, Any]]) -> tuple[Any, ...]:
    known = held.entries[path]
    return _list(held.config, path) if entries[path] is known else tuple(entries[path].values())


def _list(config: SchedulerConfig, path: str) -> tuple[Any, ...]:
    section, _, name = path.rpartition(".")
    entries: tuple[Any, ...] = getattr(config.identity if section else config, name)
    return entries


def _named(path: str, models: Iterable[Any]) -> dict[str, Any]:
    return {name_of(path, model.__dict__): model for model in models}
