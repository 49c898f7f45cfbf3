"""From the objects of a folder to the configuration of one pool, by the operator's own `decide`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fairserve.local.objects import Objects
from fairserve_operator.decide.compilation import Compiled, compile_pool, needs
from fairserve_operator.decide.conditions import CONFLICTED, Condition
from fairserve_operator.decide.resources import APPLICATION, SERVING_POOL, TENANT, ObjectKey, Resource


class FolderError(RuntimeError):
    """The folder gives no pool to serve; the message says why."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """One object that is in the folder and not, or not whole, in the configuration."""

    key: ObjectKey
    place: str  #: file:line
    condition: Condition

    def __str__(self) -> str:
        condition = self.condition
        state = f"{condition.type}={condition.status} ({condition.reason})"
        return f'{self.place}: {self.key.kind} "{self.key.name}": {state}: {condition.message}'


def choose_pool(objects: Objects, name: str | None) -> Resource:
    """The pool to serve: the only one, or the one that is called `name`. Raises FolderError."""
    pools = objects.resources(SERVING_POOL)
    names = ", ".join(sorted(pool.key.name for pool in pools))
    if name is not None:
        pools = tuple(pool for pool in pools if pool.key.name == name)
        if not pools:
            raise FolderError(f"--pool: the folder has no ServingPool {name!r}; it has {names or 'none'}")
    if not pools:
        raise FolderError("the folder has no well-formed ServingPool, so there is nothing to serve")
    if len(pools) > 1:
        raise FolderError(f"the folder has several ServingPools ({names}); choose one with --pool NAME")
    return pools[0]


def compile_folder(
    objects: Objects, pool_name: str | None, salt: str, override: Mapping[str, Any] | None = None
) -> tuple[Resource, Compiled]:
    """Compile the chosen pool, with `override` laid over its spec. Raises FolderError if there is none."""
    pool = choose_pool(objects, pool_name)
    if override:
        pool = replace(pool, spec=_laid_over(pool.spec, override))
    namespace = pool.key.namespace
    tenants = objects.resources(TENANT, namespace)
    pools = [pool, *(other for other in objects.resources(SERVING_POOL, namespace) if other.key != pool.key)]
    wanted = needs(tenants, pools)
    compiled = compile_pool(
        pool=pool,
        pools=pools,
        tenants=tenants,
        applications=objects.resources(APPLICATION, namespace),
        digests=objects.digests(wanted.secrets, salt),
        keys=objects.keys(wanted.keys),
        salt=salt,
        inference_pools=objects.inference_pools(namespace),
    )
    return pool, compiled


def complaints(objects: Objects, compiled: Compiled) -> tuple[Complaint, ...]:
    """Every condition that is not as its object wants it."""
    return tuple(
        Complaint(key, objects.place(key), condition)
        for key, conditions in compiled.conditions.items()
        for condition in conditions
        if condition.status == ("True" if condition.type == CONFLICTED else "False")
    )


def _laid_over(spec: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(spec)
    for name, value in override.items():
        below = merged.get(name)
        merged[name] = (
            _laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
        )
    return merged
