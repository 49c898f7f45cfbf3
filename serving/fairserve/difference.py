"""What changed between two configuration documents, so that a change of one tenant travels alone.

A difference names the document that it starts from and the hash of the one that it makes. Whoever holds
another document, or gets another result, can't apply it and asks for the whole one. Tenants, applications,
API keys and identity headers change one by one; every other field is replaced as a whole. Lists that change
one by one are in order of their names, as the operator writes them; a list in another order is replaced.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field

from fairserve.config import SchedulerConfig, canonical_json

#: What a body that holds a difference is called in Content-Type.
MEDIA_TYPE: Final = "application/vnd.fairserve.difference+json"

#: Lists whose entries change one by one, and the fields that name an entry.
_NAMED: Final[dict[str, tuple[str, ...]]] = {
    "tenants": ("name",),
    "applications": ("name",),
    "identity.api_keys": ("digest",),
    "identity.headers": ("name", "value"),
}
#: Its fields are taken one by one; all other sections as a whole.
_OPENED: Final = "identity"

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
    #: New values of fields, by path: "mode", "identity.salt".
    set: dict[str, Any] = {}
    #: New and changed entries, by the path of their list.
    put: dict[str, list[dict[str, Any]]] = {}
    #: Names of entries that are gone, by the path of their list: "team-a", a key's digest, "header: value".
    remove: dict[str, list[str]] = {}

    def to_bytes(self) -> bytes:
        """The difference as canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a difference. Raises pydantic's ValidationError, which names every wrong field."""
        return cls.model_validate_json(data)


def diff(old: SchedulerConfig, new: SchedulerConfig) -> Difference:
    """What makes `new` of `old`."""
    before, after = _opened(old), _opened(new)
    changed: _Content = {}
    put: dict[str, list[_Content]] = {}
    remove: dict[str, list[str]] = {}
    for path, value in after.items():
        if value == before[path]:
            continue
        entries = _entries(path, value) if path in _NAMED else None
        if entries is None or value != _in_order(path, entries):
            changed[path] = value
            continue
        known = _entries(path, before[path])
        if fresh := [entry for name, entry in entries.items() if known.get(name) != entry]:
            put[path] = fresh
        if gone := [name for name in known if name not in entries]:
            remove[path] = gone
    return Difference(
        base=Identification(generation=old.generation, hash=old.content_hash),
        generation=new.generation,
        hash=new.content_hash,
        set=changed,
        put=put,
        remove=remove,
    )


def apply(difference: Difference, document: SchedulerConfig) -> SchedulerConfig:
    """The document that the difference makes of `document`, validated whole.

    Raises WrongBaseError where the base is another document or the result isn't the one that was meant,
    DifferenceError for paths and names that can't be, pydantic's ValidationError for an invalid result.
    """
    base = difference.base
    if (base.generation, base.hash) != (document.generation, document.content_hash):
        raise WrongBaseError(f"generation {base.generation} with hash {base.hash[:12]} does not run")
    content = _opened(document)
    for path, value in difference.set.items():
        if path not in content:
            raise DifferenceError(f"set: there is no field {path!r}")
        content[path] = value
    for path in (*difference.put, *difference.remove):
        if path not in _NAMED:
            raise DifferenceError(f"put, remove: {path!r} is no list of named entries")
        if path in difference.set:
            raise DifferenceError(f"{path} is replaced and changed at once")
    for path in difference.put.keys() | difference.remove.keys():
        content[path] = _changed(path, content[path], difference)
    result = SchedulerConfig.from_bytes(canonical_json(_closed(content, difference.generation)))
    if result.content_hash != difference.hash:
        raise WrongBaseError(f"the result's hash is {result.content_hash[:12]}, not {difference.hash[:12]}")
    return result


def _changed(path: str, value: list[_Content], difference: Difference) -> list[_Content]:
    entries = _entries(path, value)
    for name in difference.remove.get(path, ()):
        if entries.pop(name, None) is None:
            raise DifferenceError(f"remove: {path} has no {name!r}")
    for entry in difference.put.get(path, ()):
        name = _key(path, entry).name
        if name in difference.remove.get(path, ()):
            raise DifferenceError(f"{path}: {name!r} is put and removed at once")
        entries[name] = entry
    return _in_order(path, entries)


class _Key(NamedTuple):
    """What an entry is called, in two shapes."""

    order: tuple[str, ...]
    name: str


def _key(path: str, entry: _Content) -> _Key:
    order = tuple(entry.get(field) for field in _NAMED[path])
    if not all(isinstance(part, str) for part in order):
        raise DifferenceError(f"put: an entry of {path} lacks {' or '.join(_NAMED[path])}")
    texts = tuple(str(part) for part in order)
    return _Key(texts, ": ".join(texts))


def _entries(path: str, value: list[_Content]) -> dict[str, _Content]:
    return {_key(path, entry).name: entry for entry in value}


def _in_order(path: str, entries: dict[str, _Content]) -> list[_Content]:
    return sorted(entries.values(), key=lambda entry: _key(path, entry).order)


def _opened(document: SchedulerConfig) -> _Content:
    """The document's fields by path, without its generation."""
    content = document.model_dump(mode="json", exclude={"generation"})
    inside = content.pop(_OPENED)
    return {**content, **{f"{_OPENED}.{name}": value for name, value in inside.items()}}


def _closed(content: _Content, generation: int) -> _Content:
    document: _Content = {"generation": generation, _OPENED: {}}
    for path, value in content.items():
        section, _, name = path.partition(".")
        if name:
            document[section][name] = value
        else:
            document[section] = value
    return document
