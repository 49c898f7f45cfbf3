"""What an API server would hold after each `kubectl apply` of the folder, and what changed by it.

As there, an edit that is refused leaves the object as it was: while a file has a problem, whatever it
held before and does not show now stays. Objects keep their age over edits, because conflicts are won by
the oldest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fairserve.local.manifests import SECRET, Manifest, Reading
from fairserve_operator.decide.inference_pools import KIND as INFERENCE_POOL
from fairserve_operator.decide.inference_pools import InferencePool, read_inference_pool
from fairserve_operator.decide.jwks import KeySet, KeySource, KeysProblem, secret_keys
from fairserve_operator.decide.resources import (
    ObjectKey,
    Resource,
    SecretProblem,
    SecretRef,
    credential_digest,
)

#: There is no operator and no cluster here.
NOT_FETCHED = KeysProblem("KeysNotFetched", "here keys are read from a Secret only: use jwt.jwksSecretRef")

_FIRST = "2000-01-01T"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two states of the folder, for people."""

    key: ObjectKey
    text: str

    def __str__(self) -> str:
        return f"{self.key.kind} {self.key.name} {self.text}"


@dataclass(frozen=True, slots=True)
class _Stored:
    manifest: Manifest
    generation: int
    age: int


class Objects:
    """The objects in force."""

    def __init__(self) -> None:
        self._stored: dict[ObjectKey, _Stored] = {}
        self._seen = 0

    def apply(self, reading: Reading) -> tuple[Change, ...]:
        """Take over what was read and return what is different now."""
        new = {manifest.key: manifest for manifest in reading.manifests}
        changes: list[Change] = []
        for key, stored in list(self._stored.items()):
            if key not in new and stored.manifest.file not in reading.unsure:
                del self._stored[key]
                changes.append(Change(key, "removed"))
        for key, manifest in new.items():
            stored_before = self._stored.get(key)
            if stored_before is None:
                self._seen += 1
                self._stored[key] = _Stored(manifest, 1, self._seen)
                changes.append(Change(key, "added"))
                continue
            texts = list(_differences(stored_before.manifest.content, manifest.content, key.kind))
            generation = stored_before.generation + bool(texts)  # Labels don't count, as in a cluster.
            texts += _label_differences(stored_before.manifest, manifest)
            self._stored[key] = replace(stored_before, manifest=manifest, generation=generation)
            changes.extend(Change(key, text) for text in texts)
        return tuple(changes)

    def resources(self, kind: str, namespace: str | None = None) -> tuple[Resource, ...]:
        """The objects of a kind, in one namespace or in all."""
        return tuple(
            Resource(
                key=key,
                uid=f"local-{stored.age}",
                generation=stored.generation,
                created=_FIRST + _time_of_day(stored.age),
                spec=stored.manifest.content,
                labels=stored.manifest.labels,
            )
            for key, stored in self._stored.items()
            if key.kind == kind and namespace in (None, key.namespace)
        )

    def inference_pools(self, namespace: str) -> dict[str, InferencePool]:
        """The InferencePools of a namespace, by name."""
        found = self.resources(INFERENCE_POOL, namespace)
        return {resource.key.name: read_inference_pool(resource.spec) for resource in found}

    def place(self, key: ObjectKey) -> str:
        """`file:line` of an object, or nothing if it is unknown."""
        stored = self._stored.get(key)
        return "" if stored is None else f"{stored.manifest.file}:{stored.manifest.line}"

    def outside(self, namespace: str) -> tuple[ObjectKey, ...]:
        """The objects that can't take part in a pool of this namespace."""
        return tuple(key for key in self._stored if key.namespace != namespace)

    def secret_value(self, ref: SecretRef) -> str | SecretProblem:
        """The value that a Secret holds, without surrounding white space."""
        stored = self._stored.get(ObjectKey(SECRET, ref.namespace, ref.name))
        if stored is None:
            return SecretProblem.SECRET_MISSING
        value = stored.manifest.content.get(ref.key)
        if value is None:
            return SecretProblem.KEY_MISSING
        return str(value).strip() or SecretProblem.EMPTY

    def digests(self, refs: Iterable[SecretRef], salt: str) -> dict[SecretRef, str | SecretProblem]:
        """The digest of each value, or why there is none."""
        return {ref: credential_digest(self.secret_value(ref), salt) for ref in refs}

    def keys(self, sources: Iterable[KeySource]) -> dict[KeySource, KeySet | KeysProblem]:
        """The keys of token issuers that are in the folder; nothing is fetched."""
        return {source: self._keys(source) for source in sources}

    def _keys(self, source: KeySource) -> KeySet | KeysProblem:
        if not isinstance(source, SecretRef):
            return NOT_FETCHED
        value = self.secret_value(source)
        return secret_keys(source, value if isinstance(value, SecretProblem) else value.encode())


def _time_of_day(age: int) -> str:
    """Ages as times: only their order matters, and real times of one `apply` would be equal."""
    return f"{age // 3600:02}:{age // 60 % 60:02}:{age % 60:02}Z"


def _label_differences(old: Manifest, new: Manifest) -> Iterator[str]:
    for name in sorted(old.labels.keys() | new.labels.keys()):
        was, now = old.labels.get(name, "unset"), new.labels.get(name, "unset")
        if was != now:
            yield f"label {name} {was} → {now}"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], kind: str) -> Iterator[str]:
    """What changed inside one object. The values of Secrets are not shown."""
    before, after = dict(_flat(old)), dict(_flat(new))
    for path in sorted(before.keys() | after.keys()):
        was, now = before.get(path, "unset"), after.get(path, "unset")
        if was != now:
            yield f"{path} changed" if kind == SECRET else f"{path} {was} → {now}"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Each leaf with its dotted path."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{index}]")
    elif path:
        yield path, str(value)
