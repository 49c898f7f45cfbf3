"""Puts a sidecar in front of vLLM in a Pod template.

`inject` is pure: a template and settings in, another template or a refusal out. The webhook and
`fairserve inject` call it alike. It changes nothing that it has not understood, and what it has done it finds
done: `inject(inject(x))` is `inject(x)`. docs/reference/injection.md says what it does, and why.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairserve_operator.manifests.injection.container import (
    BOOT_VOLUME,
    NAME,
    STATE_VOLUME,
    Settings,
    sidecar,
    volumes,
)
from fairserve_operator.manifests.injection.draining import grace_s, let_engine_wait
from fairserve_operator.manifests.injection.engine import (
    CONTAINER_ANNOTATION,
    ENGINE_PORT_ANNOTATION,
    LOOPBACK,
    PORT_ANNOTATION,
    Engine,
    check,
    find_container,
    is_relocated,
    is_vllm,
    read_command,
    read_engine,
    relocate,
)
from fairserve_operator.manifests.injection.probes import keep_meaning
from fairserve_operator.manifests.injection.reading import Record, Template, read_record, read_template
from fairserve_operator.manifests.injection.refusal import Refused, RefusedError

__all__ = [
    "INJECT_LABEL",
    "RECORD_ANNOTATION",
    "SIDECAR_NAME",
    "Injected",
    "Refused",
    "Settings",
    "inject",
    "shows_vllm",
    "wanted_pool",
]

INJECT_LABEL = "fairserve.dev/inject"
RECORD_ANNOTATION = "fairserve.dev/injected"
SIDECAR_NAME = NAME
_PREFIX = "fairserve.dev/"
_ANNOTATIONS = (CONTAINER_ANNOTATION, PORT_ANNOTATION, ENGINE_PORT_ANNOTATION, RECORD_ANNOTATION)
_OUR_VOLUMES = (BOOT_VOLUME, STATE_VOLUME)
#: With `fairserve-` before it and a slot behind it, it must be a Secret's name.
_POOL = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")
_UNPRIVILEGED_PORTS = "net.ipv4.ip_unprivileged_port_start"


@dataclass(frozen=True, slots=True)
class Injected:
    """A template with a sidecar."""

    template: dict[str, Any]
    container: str  #: which is vLLM
    port: int  #: that clients use, now the sidecar's
    engine_port: int  #: of vLLM, on the loopback
    notes: tuple[str, ...]  #: what its author should know


def wanted_pool(template: Mapping[str, Any]) -> str | None:
    """The pool that the template's label names; None without the label, or where the template is none."""
    metadata = template.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, Mapping) else None
    pool = labels.get(INJECT_LABEL) if isinstance(labels, Mapping) else None
    return pool if isinstance(pool, str) else None


def shows_vllm(template: Mapping[str, Any]) -> bool:
    """Whether the template has a container that is vLLM, or says so, or can't be read: `inject` says why."""
    try:
        read = read_template(template)
    except RefusedError:
        return True
    annotations = read.metadata.annotations
    named = CONTAINER_ANNOTATION in annotations or RECORD_ANNOTATION in annotations
    return named or any(is_vllm(each) for each in read.spec.containers)


def inject(template: Mapping[str, Any], pool: str, settings: Settings) -> Injected | Refused:
    """The template, a Pod's or one for Pods, with a sidecar of this pool in front of vLLM."""
    try:
        return _inject(template, pool, settings)
    except RefusedError as error:
        return error.refused


def _inject(original: Mapping[str, Any], pool: str, settings: Settings) -> Injected:
    read = read_template(original)
    _check_template(read, pool)
    taken = _taken(read)
    engine = _engine(read, taken | {settings.control_port})
    _check_ports(read, engine, settings, taken)

    template = copy.deepcopy(dict(original))
    metadata = template["metadata"] = template.get("metadata") or {}
    metadata["labels"] = {**(metadata.get("labels") or {}), INJECT_LABEL: pool}
    record = Record(container=engine.container.name, port=engine.port, enginePort=engine.engine_port)
    metadata["annotations"] = {**(metadata.get("annotations") or {}), RECORD_ANNOTATION: record.text()}

    spec = template["spec"]
    container = spec["containers"][engine.index]
    if engine.line is not None:
        relocate(container, engine.line, engine.engine_port)
    keep_meaning(container, engine)
    let_engine_wait(container, engine, settings.control_port)
    spec["initContainers"] = _put(spec.get("initContainers"), [sidecar(engine, read.spec, settings)])
    spec["volumes"] = _put(spec.get("volumes"), volumes(pool))
    spec["terminationGracePeriodSeconds"] = grace_s(
        settings.drain_s, read.spec.termination_grace_period_seconds
    )
    if engine.port < 1024:
        _allow_low_ports(spec)
    return Injected(template, record.container, record.port, record.engine_port, _notes(read, engine))


def _check_template(read: Template, pool: str) -> None:
    if not _POOL.fullmatch(pool):
        raise RefusedError(
            f"metadata.labels[{INJECT_LABEL}]", f"{pool!r} is no name that a ServingPool can have"
        )
    labelled = read.metadata.labels.get(INJECT_LABEL)
    if labelled not in (None, pool):
        raise RefusedError(
            f"metadata.labels[{INJECT_LABEL}]", f"is {labelled!r}, and pool {pool!r} was asked for"
        )
    for annotation in read.metadata.annotations:
        if annotation.startswith(_PREFIX) and annotation not in _ANNOTATIONS:
            known = ", ".join(_ANNOTATIONS[:-1])
            raise RefusedError(f"metadata.annotations[{annotation}]", f"is not known here: there are {known}")
    if RECORD_ANNOTATION in read.metadata.annotations:
        return
    spec = read.spec
    for place, names in (
        ("containers", [each.name for each in spec.containers]),
        ("initContainers", [each.name for each in spec.init_containers]),
        ("volumes", [each.name for each in spec.volumes]),
    ):
        for index, name in enumerate(names):
            if name == NAME or name in _OUR_VOLUMES:
                raise RefusedError(f"spec.{place}[{index}].name", f"{name!r} is the sidecar's")


def _taken(read: Template) -> frozenset[int]:
    """Ports that others in the Pod say they have."""
    return frozenset(
        port
        for container in (*read.spec.containers, *read.spec.init_containers)
        if container.name != NAME
        for declared in container.ports
        for port in (declared.container_port, declared.host_port)
        if port
    )


def _engine(read: Template, taken: frozenset[int]) -> Engine:
    annotation = read.metadata.annotations.get(RECORD_ANNOTATION)
    if annotation is None:
        return read_engine(read, find_container(read), taken)
    return _known_engine(read, annotation)


def _known_engine(read: Template, annotation: str) -> Engine:
    """What an earlier injection left. Raises RefusedError if somebody has changed it since."""
    field = f"metadata.annotations[{RECORD_ANNOTATION}]"
    record = read_record(annotation, field)
    names = [container.name for container in read.spec.containers]
    if record.container not in names or NAME not in [each.name for each in read.spec.init_containers]:
        raise RefusedError(
            field, f"tells of a sidecar before {record.container!r} that is not here: take the annotation out"
        )
    index = names.index(record.container)
    container = read.spec.containers[index]
    if ENGINE_PORT_ANNOTATION in read.metadata.annotations:
        return read_engine(read, index, frozenset())
    line = read_command(container, f"spec.containers[{index}]")
    check(line)
    if not is_relocated(line, record.engine_port):
        raise RefusedError(
            line.field,
            f"must have --host {LOOPBACK} and --port {record.engine_port}, as {RECORD_ANNOTATION} says; to "
            f"begin anew take that annotation and the init container {NAME!r} out",
        )
    return Engine(index, container, line, record.port, record.engine_port)


def _check_ports(read: Template, engine: Engine, settings: Settings, taken: frozenset[int]) -> None:
    if settings.control_port in taken | {engine.port, engine.engine_port}:
        raise RefusedError(
            "spec.containers",
            f"port {settings.control_port} is in use, and the sidecar's control port: choose another as the "
            "ServingPool's sidecar.controlPort (--control-port)",
        )
    if engine.port < 1024 and read.spec.host_network:
        raise RefusedError(
            engine.field,
            f"port {engine.port} of a node needs rights that the sidecar doesn't have: use 1024 or above",
        )


def _put(present: list[dict[str, Any]] | None, ours: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A list with our entries: where they are already, else at its end."""
    result = list(present or ())
    for entry in ours:
        for index, each in enumerate(result):
            if each.get("name") == entry["name"]:
                result[index] = entry
                break
        else:
            result.append(entry)
    return result


def _allow_low_ports(spec: dict[str, Any]) -> None:
    """Let a user that is not root listen below 1024, in this Pod's own network. The sysctl counts as safe."""
    context = spec["securityContext"] = spec.get("securityContext") or {}
    context["sysctls"] = _put(context.get("sysctls"), [{"name": _UNPRIVILEGED_PORTS, "value": "0"}])


def _notes(read: Template, engine: Engine) -> tuple[str, ...]:
    notes = []
    if read.spec.host_network:
        notes.append(
            f"spec.hostNetwork: whoever is on the node reaches vLLM at {LOOPBACK}:{engine.engine_port}, "
            "past the sidecar"
        )
    if any(each.name == "VLLM_API_KEY" for each in engine.container.env) or _has(engine, "--api-key"):
        notes.append(
            f"{engine.field}: vLLM wants an API key of its own and refuses the Tenants' keys: take it away "
            "unless all callers send it"
        )
    if _has(engine, "--disable-log-stats"):
        notes.append(f"{engine.field}: with --disable-log-stats vLLM doesn't tell the sidecar how full it is")
    return tuple(notes)


def _has(engine: Engine, flag: str) -> bool:
    return engine.line is not None and engine.line.value(flag) is not None
