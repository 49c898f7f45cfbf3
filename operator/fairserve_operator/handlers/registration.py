"""The handlers that kopf calls: each puts one event into the store and marks the namespace.

Only this module and `watching` import kopf. Only `on.event` handlers are registered: kopf writes annotations
and finalizers for any other kind, which GitOps tools see as drift and which block deletion while the operator
is away.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import kopf

from fairserve_operator.clients.kubernetes_client import Connection
from fairserve_operator.decide.resources import APPLICATION, SERVING_POOL, TENANT
from fairserve_operator.handlers import bodies
from fairserve_operator.handlers.store import Store

#: Marks a namespace.
Mark = Callable[[str], None]

_CUSTOM = {"tenants": TENANT, "applications": APPLICATION, "servingpools": SERVING_POOL}


def registry(
    store: Store,
    mark: Mark,
    connection: Callable[[], Connection],
    listed: Callable[[], None],
) -> kopf.OperatorRegistry:
    """Make the registry that kopf runs by. `listed` is called for each object that a listing has."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return _credentials(connection())

    for plural, kind in _CUSTOM.items():
        kopf.on.event("fairserve.dev", "v1alpha1", plural, registry=handlers, id=plural, param=kind)(
            _noting(listed, _custom(store, mark))
        )
    kopf.on.event("v1", "pods", registry=handlers, id="pods")(_noting(listed, _pods(store, mark)))
    kopf.on.event("v1", "secrets", registry=handlers, id="secrets")(_noting(listed, _secrets(store, mark)))
    return handlers


def configured() -> kopf.OperatorSettings:
    """Make kopf a watcher and nothing else."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = (
        False  # Events are written where something happened, not where something was logged.
    )
    settings.peering.standalone = True
    settings.scanning.disabled = True  # Needs no right to list namespaces or custom resource definitions.
    settings.queueing.idle_timeout = (
        1.0  # A task per object that changed lately, and not for longer than needed.
    )
    settings.watching.field_selectors["v1", "secrets"] = bodies.SECRET_SELECTOR
    settings.networking.error_backoffs = _Patience()
    return settings


class _Patience:
    """Pauses between tries, in seconds, without end: an API server may be away for an hour."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.2, 0.5, 1.0, 2.0), itertools.repeat(5.0))


def _noting(
    listed: Callable[[], None], seen: Callable[..., Awaitable[None]]
) -> Callable[..., Awaitable[None]]:
    async def noted(event: Mapping[str, Any], **others: Any) -> None:
        await seen(event=event, **others)
        if event["type"] is None:  # Comes of a listing, which says nothing of who is gone.
            listed()

    return noted


def _custom(store: Store, mark: Mark) -> Callable[..., Awaitable[None]]:
    async def seen(event: Mapping[str, Any], param: str, **_: Any) -> None:
        body = event["object"]
        resource = bodies.resource(param, body)
        if event["type"] == "DELETED":
            changed = store.remove(param, resource.key.namespace, resource.key.name)
        else:
            changed = store.put(resource, bodies.version(body), body.get("status") or {})
        if changed:
            mark(resource.key.namespace)

    return seen


def _pods(store: Store, mark: Mark) -> Callable[..., Awaitable[None]]:
    async def seen(event: Mapping[str, Any], **_: Any) -> None:
        body = event["object"]
        pod = bodies.pod(body)
        if event["type"] == "DELETED":
            changed = store.remove("Pod", pod.namespace, pod.name)
        else:
            changed = store.put_pod(pod, bodies.version(body))
        if changed:
            mark(pod.namespace)

    return seen


def _secrets(store: Store, mark: Mark) -> Callable[..., Awaitable[None]]:
    async def seen(event: Mapping[str, Any], **_: Any) -> None:
        body = event["object"]
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        if event["type"] == "DELETED":
            changed = store.remove("Secret", namespace, name)
        else:
            changed = store.put_secret(namespace, name, bodies.version(body), bodies.secret_values(body))
        if changed:
            mark(namespace)

    return seen


def _credentials(connection: Connection) -> kopf.ConnectionInfo:
    scheme, _, token = (connection.authorization or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=connection.server,
        ca_path=connection.ca_file,
        insecure=not connection.verify,
        username=connection.username,
        password=connection.password,
        scheme=scheme or None,
        token=token or None,
        certificate_path=connection.certificate_file,
        private_key_path=connection.key_file,
        proxy_url=connection.proxy_url,
    )
