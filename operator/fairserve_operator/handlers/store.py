"""What the operator knows of the cluster: pure, no kopf, no clock, no client.

Watches feed it, reconciliation reads it. Every `put` and `remove` says whether anything changed that
somebody must act on, so that the operator's own status writes, which come back as events, wake nobody. It
holds values of Secrets in memory, because a Tenant may name a Secret long after its event.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fairserve_operator.decide.resources import ObjectKey, Resource

#: (namespace, name)
Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Pod:
    """As much of a Pod as decides whether and where its sidecar is told."""

    namespace: str
    name: str
    uid: str
    ip: str  #: empty while it has none
    labels: Mapping[str, str]
    running: bool  #: runs and isn't being deleted
    ready: bool
    #: Changes whenever a container of the Pod starts anew: what it acknowledged before is worth nothing then.
    incarnation: str

    @property
    def reachable(self) -> bool:
        """Whether a sidecar can be expected to answer."""
        return self.running and bool(self.ip)


@dataclass(slots=True)
class Stored:
    """One custom resource with its status as the API server holds it."""

    resource: Resource
    version: int
    status: Mapping[str, Any]


@dataclass(slots=True)
class _Secret:
    version: int
    values: Mapping[str, bytes]


@dataclass(slots=True)
class _Namespace:
    objects: dict[ObjectKey, Stored] = field(default_factory=dict)
    pods: dict[str, tuple[int, Pod]] = field(default_factory=dict)
    secrets: dict[str, _Secret] = field(default_factory=dict)
    #: Rises with everything that a configuration is compiled from.
    revision: int = 0
    #: Whose status was seen to be another one than was known.
    rewritten: set[ObjectKey] = field(default_factory=set)


class Store:
    """Custom resources, Pods and Secrets by namespace."""

    def __init__(self) -> None:
        self._namespaces: dict[str, _Namespace] = {}

    def put(self, resource: Resource, version: int, status: Mapping[str, Any]) -> bool:
        """Take a custom resource; true if there is something new to compile."""
        space = self._space(resource.key.namespace)
        known = space.objects.get(resource.key)
        if known is None:
            space.objects[resource.key] = Stored(_lean(resource), version, _compact(status))
            space.revision += 1
            return True
        changed = known.resource != resource
        if changed:  # Else the old one stays, with what is known of it.
            known.resource = _lean(resource)
        if version >= known.version:
            known.version = version
            if known.status != status:
                known.status = _compact(status)
                space.rewritten.add(resource.key)
        space.revision += changed
        return changed

    def put_status(self, key: ObjectKey, version: int, status: Mapping[str, Any]) -> None:
        """Take the status that the operator itself has just written."""
        known = self._space(key.namespace).objects.get(key)
        if known is not None and version >= known.version:
            known.version, known.status = version, _compact(status)

    def is_rewritten(self, namespace: str) -> bool:
        """Whether `take_rewritten` has something to tell."""
        return bool(self._space(namespace).rewritten)

    def take_rewritten(self, namespace: str) -> set[ObjectKey]:
        """Whose status somebody has written since this was asked last."""
        space = self._space(namespace)
        rewritten, space.rewritten = space.rewritten, set()
        return rewritten

    def put_pod(self, pod: Pod, version: int) -> bool:
        """Take a Pod; true if anything changed that its sidecar is told by."""
        pods = self._space(pod.namespace).pods
        known = pods.get(pod.name)
        pods[pod.name] = (version, pod)
        return known is None or known[1] != pod

    def put_secret(self, namespace: str, name: str, version: int, values: Mapping[str, bytes]) -> bool:
        """Take a Secret; true if it changed at all: its values may be keys, or it may be a boot Secret."""
        space = self._space(namespace)
        known = space.secrets.get(name)
        same = known is not None and known.values == values
        space.secrets[name] = _Secret(version, known.values if known and same else values)
        space.revision += not same
        return known is None or known.version != version

    def remove(self, kind: str, namespace: str, name: str) -> bool:
        """Forget an object; true if it was known."""
        space = self._space(namespace)
        match kind:
            case "Pod":
                known = space.pods.pop(name, None) is not None
            case "Secret":
                known = space.secrets.pop(name, None) is not None
                space.revision += known
            case _:
                known = space.objects.pop(ObjectKey(kind, namespace, name), None) is not None
                space.revision += known
        return known

    def namespaces(self) -> frozenset[str]:
        """Where there is any custom resource: nowhere else is anything to do."""
        return frozenset(name for name, space in self._namespaces.items() if space.objects)

    def occupied(self, namespace: str) -> bool:
        """Whether the namespace has any custom resource."""
        return bool(self._space(namespace).objects)

    def objects(self, namespace: str, kind: str) -> tuple[Resource, ...]:
        """All custom resources of a kind."""
        return tuple(
            stored.resource for key, stored in self._space(namespace).objects.items() if key.kind == kind
        )

    def stored(self, key: ObjectKey) -> Stored | None:
        """One custom resource, None if it is unknown."""
        return self._space(key.namespace).objects.get(key)

    def pods(self, namespace: str, labels: Mapping[str, str]) -> tuple[Pod, ...]:
        """The reachable Pods that carry all these labels."""
        wanted = labels.items()
        pods = (pod for _, pod in self._space(namespace).pods.values())
        return tuple(pod for pod in pods if pod.reachable and pod.labels.items() >= wanted)

    def secret(self, namespace: str, name: str) -> Mapping[str, bytes] | None:
        """The values of a Secret, None if there is none."""
        known = self._space(namespace).secrets.get(name)
        return None if known is None else known.values

    def secret_version(self, namespace: str, name: str) -> int | None:
        """The resource version of a Secret, None if there is none."""
        known = self._space(namespace).secrets.get(name)
        return None if known is None else known.version

    def revision(self, namespace: str) -> int:
        """A number that rises with everything a configuration is compiled from."""
        return self._space(namespace).revision

    def touch(self, namespace: str) -> None:
        """Note that something was learned elsewhere from which its configurations are compiled."""
        self._space(namespace).revision += 1

    def missing(self, kind: str, census: Iterable[Name]) -> list[Name]:
        """Who of a census is unknown here."""
        return [name for name in census if self._version(kind, name) is None]

    def vanished(
        self, kind: str, namespace: str | None, census: Mapping[Name, str], version: int
    ) -> list[Name]:
        """Who is known here but gone by a census taken at `version`; who came later than that isn't gone."""
        return [
            name for name, known in self._known(kind, namespace) if name not in census and known <= version
        ]

    def ahead(self, kind: str, namespace: str | None, census: Mapping[Name, str], version: int) -> list[Name]:
        """Who is known here in a later form than a census has that was taken later, at `version`.

        That cannot be, unless the API server's history has gone back.
        """
        return [
            name
            for name, known in self._known(kind, namespace)
            if known <= version and name in census and int(census[name]) < known
        ]

    def latest(self, kind: str, namespace: str | None) -> int:
        """The highest resource version of a kind, 0 where there is none."""
        return max((version for _, version in self._known(kind, namespace)), default=0)

    def behind(self, kind: str, census: Mapping[Name, str]) -> dict[Name, int]:
        """Who is known here in an earlier form than a census has, or not at all; with that version."""
        return {
            name: int(version) for name, version in census.items() if self.lacks(kind, name, int(version))
        }

    def lacks(self, kind: str, name: Name, version: int) -> bool:
        """Whether an object is unknown here in this form and any later one."""
        known = self._version(kind, name)
        return known is None or known < version

    def _version(self, kind: str, name: Name) -> int | None:
        space = self._space(name[0])
        match kind:
            case "Pod":
                pod = space.pods.get(name[1])
                return None if pod is None else pod[0]
            case "Secret":
                secret = space.secrets.get(name[1])
                return None if secret is None else secret.version
            case _:
                stored = space.objects.get(ObjectKey(kind, *name))
                return None if stored is None else stored.version

    def _known(self, kind: str, namespace: str | None) -> Iterator[tuple[Name, int]]:
        for place in [namespace] if namespace else list(self._namespaces):
            space = self._space(place)
            match kind:
                case "Pod":
                    yield from (((place, name), version) for name, (version, _) in space.pods.items())
                case "Secret":
                    yield from (((place, name), secret.version) for name, secret in space.secrets.items())
                case _:
                    yield from (
                        ((place, key.name), stored.version)
                        for key, stored in space.objects.items()
                        if key.kind == kind
                    )

    def _space(self, namespace: str) -> _Namespace:
        return self._namespaces.setdefault(namespace, _Namespace())


def _lean(resource: Resource) -> Resource:
    return replace(resource, spec=_compact(resource.spec))


def _compact(value: Any) -> Any:
    """The same with each text held once: ten thousand objects say the same few things."""
    match value:
        case str():
            return sys.intern(value)
        case Mapping():
            return {sys.intern(key): _compact(each) for key, each in value.items()}
        case list():
            return [_compact(each) for each in value]
        case _:
            return value
