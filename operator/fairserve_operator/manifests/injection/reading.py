"""What the injection reads of a Pod template: typed and checked, because anybody may have written it.

Only fields that decide something are here. What is not read is carried over untouched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from fairserve_operator.manifests.injection.refusal import RefusedError

_T = TypeVar("_T")
#: The API takes null for an empty list and an empty map.
Many = Annotated[list[_T], BeforeValidator(lambda value: [] if value is None else value)]
Texts = Annotated[dict[str, str], BeforeValidator(lambda value: {} if value is None else value)]
Anything = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]
PortNumber = Annotated[int, Field(ge=1, le=65535)]


class _Read(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore", frozen=True, strict=True)


class ContainerPort(_Read):
    """A port that a container says it has."""

    container_port: PortNumber
    host_port: int | None = None
    name: str | None = None
    protocol: str | None = None


class EnvironmentVariable(_Read):
    """A variable; `value` is None where it comes from elsewhere."""

    name: str
    value: str | None = None


class Resources(_Read):
    """What a container asks for."""

    requests: Anything = Field(default_factory=dict)
    limits: Anything = Field(default_factory=dict)


class Handler(_Read):
    """What a preStop hook does; exactly one is set."""

    exec: Anything | None = None
    http_get: Anything | None = None
    tcp_socket: Anything | None = None
    sleep: Anything | None = None


class Lifecycle(_Read):
    """A container's hooks."""

    pre_stop: Handler | None = None


class Container(_Read):
    """A container or an init container."""

    name: str
    image: str = ""
    command: Many[str] = Field(default_factory=list)
    args: Many[str] = Field(default_factory=list)
    env: Many[EnvironmentVariable] = Field(default_factory=list)
    ports: Many[ContainerPort] = Field(default_factory=list)
    resources: Resources | None = None
    lifecycle: Lifecycle | None = None

    def literal(self, variable: str) -> str | None:
        """The value of a variable, if it is written here."""
        values = [each.value for each in self.env if each.name == variable]
        return values[-1] if values else None


class Volume(_Read):
    """A volume."""

    name: str


class PodSecurity(_Read):
    """What holds for all containers that say nothing else."""

    run_as_user: int | None = None
    sysctls: Many[Anything] = Field(default_factory=list)


class PodSpec(_Read):
    """A Pod's spec."""

    containers: Many[Container]
    init_containers: Many[Container] = Field(default_factory=list)
    volumes: Many[Volume] = Field(default_factory=list)
    host_network: bool | None = None
    termination_grace_period_seconds: int | None = None
    security_context: PodSecurity | None = None
    resources: Anything | None = None


class Metadata(_Read):
    """A template's metadata."""

    labels: Texts = Field(default_factory=dict)
    annotations: Texts = Field(default_factory=dict)


class Template(_Read):
    """A Pod, or the template of Pods."""

    metadata: Annotated[Metadata, BeforeValidator(lambda value: {} if value is None else value)] = Field(
        default_factory=Metadata
    )
    spec: PodSpec


class Record(_Read):
    """What an earlier injection did, kept in an annotation so that the next one finds it done."""

    container: str
    port: PortNumber
    engine_port: PortNumber

    def text(self) -> str:
        """The annotation's value."""
        return json.dumps(self.model_dump(by_alias=True), sort_keys=True)


def read_template(template: Mapping[str, Any]) -> Template:
    """The template. Raises RefusedError that names the field that is no such thing."""
    try:
        return Template.model_validate(template)
    except ValidationError as error:
        raise _first(error, "") from error


def read_record(annotation: str, field: str) -> Record:
    """What an annotation says was done. Raises RefusedError."""
    try:
        return Record.model_validate_json(annotation)
    except ValidationError as error:
        raise _first(error, field) from error


def _first(error: ValidationError, prefix: str) -> RefusedError:
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    path = prefix
    for part in problem["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return RefusedError(path, problem["msg"])
