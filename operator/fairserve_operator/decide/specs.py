"""Raw specs into models, in an order that does not depend on how they were listed.

A spec that the CRD schema refuses still gets here: from a folder, or from an API server whose CRD is older.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from fairserve_operator.api.v1alpha1 import ApplicationSpec, ServingPoolSpec, TenantSpec
from fairserve_operator.decide.claims import Claims
from fairserve_operator.decide.resources import SERVING_POOL, ObjectKey, Parsed, Resource, Spec
from fairserve_operator.decide.sections import application_config, pool_config, tenant_config

#: For configurations that nobody runs.
_SALT = "00" * 16

#: How many problems one condition spells out; the rest is counted.
SPELLED_OUT = 5

#: A pool's name is the value of a label on its Secret.
MAX_POOL_NAME = 63

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def parse(resource: Resource, model: type[Spec]) -> Parsed[Spec]:
    """Read the spec of a resource. What is wrong is told as `spec.weight: Input should be greater than 0`."""
    known: Parsed[Spec] | None = resource.memo.get(model)
    if known is None:
        known = resource.memo[model] = _parse(resource, model)
    return known


def _parse(resource: Resource, model: type[Spec]) -> Parsed[Spec]:
    if not _NAME.fullmatch(resource.key.name):
        return Parsed(resource, None, f"metadata.name: {resource.key.name!r} is not a DNS subdomain")
    if resource.key.kind == SERVING_POOL and len(resource.key.name) > MAX_POOL_NAME:
        return Parsed(resource, None, f"metadata.name: longer than {MAX_POOL_NAME} characters")
    try:
        spec = model.model_validate(resource.spec)
    except ValidationError as error:
        return Parsed(resource, None, rendered(error))
    misfit = _misfit(resource.key, spec)
    return Parsed(resource, None, misfit) if misfit else Parsed(resource, spec)


def _misfit(key: ObjectKey, spec: BaseModel) -> str:
    """Why no sidecar could run it, empty if one can.

    The models say in the object's own words what can't be scheduled by; whatever slips through between them
    and the configuration is told here, instead of spoiling the configuration of everybody.
    """
    try:
        match spec:
            case TenantSpec():
                tenant_config(key.name, spec, _SALT)
            case ApplicationSpec():
                application_config(key.name, spec)
            case ServingPoolSpec():
                pool_config(key, spec, (), (), Claims(), (), _SALT)
    except ValidationError as error:
        return f"spec: no configuration can be made of it: {rendered(error).replace('spec.', '')}"
    return ""


def oldest_first(resources: Iterable[Resource], namespace: str) -> list[Resource]:
    """The resources of one namespace in the order in which they win conflicts; each object once."""
    mine = sorted((r for r in resources if r.key.namespace == namespace), key=_age)
    once: dict[ObjectKey, Resource] = {}
    for resource in mine:
        once.setdefault(resource.key, resource)
    return list(once.values())


def rendered(error: ValidationError) -> str:
    """Every wrong field with its path in the object."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    places = [e["loc"] for e in errors]
    return joined(
        [
            f"{_path(e['loc'])}: {_sentence(e['type'], e['msg'])}"
            for e in errors
            if not (e["type"] == "too_short" and _has_below(places, e["loc"]))
        ]
    )


def joined(problems: Sequence[str]) -> str:
    """One message out of many, bounded."""
    more = len(problems) - SPELLED_OUT
    return "; ".join(problems[:SPELLED_OUT]) + (f"; and {more} more" if more > 0 else "")


def _age(resource: Resource) -> tuple[Any, ...]:
    """Oldest creation, then name. The rest only makes the order total."""
    return resource.created, resource.key.name, resource.uid, resource.generation, _Content(resource.spec)


class _Content:
    """A spec in an order of its own, written out only where nothing else tells two objects apart."""

    __slots__ = ("_spec",)

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._spec = spec

    def __lt__(self, other: _Content) -> bool:
        return self._text() < other._text()

    def _text(self) -> str:
        return json.dumps(self._spec, sort_keys=True, default=str)


def _has_below(places: Sequence[tuple[int | str, ...]], loc: tuple[int | str, ...]) -> bool:
    """Whether the list at `loc` is only too short because its items are wrong."""
    return any(len(place) > len(loc) and place[: len(loc)] == loc for place in places)


def _path(loc: tuple[int | str, ...]) -> str:
    return "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)


def _sentence(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "unknown field"
    return message.removeprefix("Value error, ")
