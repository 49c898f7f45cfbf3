"""The sidecar's container and its volumes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fairserve_operator.manifests.boot_secret import CONFIG_KEY, TOKEN_KEY, boot_secret_name
from fairserve_operator.manifests.injection.draining import leave_hook, started
from fairserve_operator.manifests.injection.engine import LOOPBACK, Engine
from fairserve_operator.manifests.injection.probes import sidecar_probes
from fairserve_operator.manifests.injection.reading import Container, PodSpec

NAME = "fairserve"
BOOT_VOLUME, STATE_VOLUME = "fairserve-boot", "fairserve-state"
_BOOT_FOLDER, _STATE_FOLDER = "/etc/fairserve", "/var/lib/fairserve"
#: Parts of a long document that a Pod can boot from, of each slot. Beyond it waits for the operator's push.
_PARTS = 2
_SLOTS = ("a", "b")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|[MGTPE]|[KMGTPE]i)?")
#: The image's user.
_USER = 65532


@dataclass(frozen=True, slots=True)
class Settings:
    """How sidecars are made; the same for all Pods of a pool."""

    image: str
    control_port: int = 8001  #: the ServingPool's `sidecar.controlPort`
    drain_s: int = 30  #: how long running calls may go on when a Pod ends
    cpu: str = "500m"  #: asked for; no limit, because a throttled sidecar delays every stream
    memory: str = "1Gi"  #: asked for, and the limit

    def __post_init__(self) -> None:
        """Raises ValueError that names the field."""
        if not self.image or re.search(r"\s", self.image):
            raise ValueError(f"image: {self.image!r} is no image")
        for name, value in (("cpu", self.cpu), ("memory", self.memory)):
            if not _QUANTITY.fullmatch(value):
                raise ValueError(f"{name}: {value!r} is no quantity, such as 500m or 1Gi")


def sidecar(engine: Engine, spec: PodSpec, settings: Settings) -> dict[str, Any]:
    """The container, one that starts before the others and ends after them."""
    return {
        "name": NAME,
        "image": settings.image,
        "restartPolicy": "Always",
        "command": started(_STATE_FOLDER),
        "args": _arguments(engine, settings),
        "ports": [{"name": "fairserve-ctl", "containerPort": settings.control_port, "protocol": "TCP"}],
        **sidecar_probes(settings.control_port),
        "lifecycle": {"preStop": leave_hook(_STATE_FOLDER)},
        "resources": _resources(spec, settings),
        "securityContext": _security(spec),
        "volumeMounts": [
            {"name": BOOT_VOLUME, "mountPath": _BOOT_FOLDER, "readOnly": True},
            {"name": STATE_VOLUME, "mountPath": _STATE_FOLDER},
        ],
    }


def volumes(pool: str) -> list[dict[str, Any]]:
    """What the sidecar boots from, with the token that its control port believes; and where it keeps its
    state over a restart of its own.
    """
    name = boot_secret_name(pool)
    parts = [
        {"secret": {"name": f"{name}-{slot}-{number}", "optional": True}}
        for slot in _SLOTS
        for number in range(_PARTS)
    ]
    return [
        {"name": BOOT_VOLUME, "projected": {"sources": [{"secret": {"name": name}}, *parts]}},
        {"name": STATE_VOLUME, "emptyDir": {}},
    ]


def _arguments(engine: Engine, settings: Settings) -> list[str]:
    arguments = [
        f"--engine=http://{LOOPBACK}:{engine.engine_port}",
        f"--listen=0.0.0.0:{engine.port}",
        f"--control=0.0.0.0:{settings.control_port}",
        f"--config={_BOOT_FOLDER}/{CONFIG_KEY}",
        f"--control-token-file={_BOOT_FOLDER}/{TOKEN_KEY}",
        f"--snapshot={_STATE_FOLDER}/snapshot.json",
        f"--grace-s={settings.drain_s}",
    ]
    if engine.line is not None and engine.line.value("--scheduling-policy") == "priority":
        arguments.append("--engine-priority")
    return arguments


def _resources(spec: PodSpec, settings: Settings) -> dict[str, Any]:
    limits = {"memory": settings.memory}
    others = [each for each in (*spec.containers, *spec.init_containers) if each.name != NAME]
    if all(_is_guaranteed(each) for each in others):
        # A container without a limit would cost the Pod its class, and vLLM the cores that it has to itself.
        limits["cpu"] = settings.cpu
    return {"requests": {"cpu": settings.cpu, "memory": settings.memory}, "limits": limits}


def _is_guaranteed(container: Container) -> bool:
    resources = container.resources
    return resources is not None and all(
        name in resources.limits
        and resources.requests.get(name, resources.limits[name]) == resources.limits[name]
        for name in ("cpu", "memory")
    )


def _security(spec: PodSpec) -> dict[str, Any]:
    """What the `restricted` Pod security standard asks for. The user is the image's or the Pod's, because
    OpenShift chooses one, but never root.
    """
    context: dict[str, Any] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if spec.security_context is not None and spec.security_context.run_as_user == 0:
        context |= {"runAsUser": _USER, "runAsGroup": _USER}
    return context
