"""Which container is vLLM, on which port it serves, and how its command line is told to serve elsewhere.

vLLM's flags are read as its own parser reads them: `--port 8000` or `--port=8000`, underscores for dashes,
the last one counts, and the command line wins over `--config`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fairserve_operator.manifests.injection.reading import Container, Template
from fairserve_operator.manifests.injection.refusal import RefusedError
from fairserve_operator.manifests.injection.shell import (
    UnreadableError,
    may_set,
    mentions_vllm,
    read_commands,
    script_at,
)

CONTAINER_ANNOTATION = "fairserve.dev/container"
PORT_ANNOTATION = "fairserve.dev/port"
ENGINE_PORT_ANNOTATION = "fairserve.dev/engine-port"

LOOPBACK = "127.0.0.1"
_LOOPBACKS = frozenset((LOOPBACK, "localhost", "::1"))
#: vLLM's own.
_DEFAULT_PORT = 8000
#: Ports below this are no outgoing connection's (`net.ipv4.ip_local_port_range`).
_FIRST_EPHEMERAL = 32768
_DISTANCE = 10_000
#: Of a container's command and arguments, in characters: what is read takes a tenth of a second at most.
_LONGEST_COMMAND = 64 * 1024
#: Behind these a shell's variable is one value, as it is where the model stands, which is first.
_ONE_WORD = frozenset(("", "--model", "--served-model-name", "--tensor-parallel-size", "--max-model-len"))
#: Images that start vLLM's server by themselves, by the last part of their name.
_IMAGES = re.compile(r"vllm|vllm-(openai|cpu)\b.*")
_EXPANSION = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")

#: What can't stand behind the sidecar, and why.
_IMPOSSIBLE: Mapping[str, str] = {
    "--uds": "vLLM serves on a Unix socket, the sidecar speaks to a port: take the flag out",
    "--ssl-keyfile": "vLLM serves HTTPS, the sidecar speaks HTTP on both sides: end TLS before the Pod",
    "--ssl-certfile": "vLLM serves HTTPS, the sidecar speaks HTTP on both sides: end TLS before the Pod",
    "--grpc": "vLLM serves gRPC on its port in place of HTTP, which the sidecar speaks: take the flag out",
    "--grpc-port": "callers of vLLM's gRPC services would not find them on the loopback, and the sidecar "
    "speaks HTTP: take the flag out",
    "--headless": "this vLLM serves no API, so there is nothing to stand in front of: take the label off",
    "--data-parallel-multi-port-external-lb": "this vLLM serves on several ports, a sidecar stands in front "
    "of one",
}


@dataclass(frozen=True, slots=True)
class CommandLine:
    """How a container starts vLLM."""

    flags: tuple[str, ...]  #: vLLM's own arguments
    field: str  #: where they are, for messages
    python: str  #: an interpreter that the container has
    script: tuple[str, int] | None = None  #: of `sh -c`: in `command` or `args`, and where in it
    earlier: tuple[tuple[str, ...], ...] = ()  #: the script's commands before it
    first: int = 0  #: where in `command` + `args` the arguments begin

    def value(self, flag: str) -> str | None:
        """A flag's value; empty where it stands alone, None where it is not there."""
        found: str | None = None
        for index, word in enumerate(self.flags):
            name, equals, value = word.partition("=")
            if _canonical(name) == flag:
                found = value if equals else _argument(self.flags, index)
        return found

    @property
    def hides_flags(self) -> bool:
        """Whether there may be flags that can't be seen: in a shell's variable or in a file."""
        expanded = self.script is not None and any(
            word.startswith("$") and before not in _ONE_WORD
            for before, word in zip(("", *self.flags), self.flags, strict=False)
        )
        return expanded or self.value("--config") is not None


@dataclass(frozen=True, slots=True)
class Engine:
    """The container in front of which the sidecar stands."""

    index: int
    container: Container
    line: CommandLine | None  #: None where its author binds vLLM to `engine_port` himself
    port: int  #: where clients find vLLM, which the sidecar takes over
    engine_port: int  #: where vLLM serves then, on the loopback

    @property
    def field(self) -> str:
        """Its place, for messages."""
        return f"spec.containers[{self.index}]"


def find_container(template: Template) -> int:
    """Index of the container that is vLLM. Raises RefusedError if none is, or several are."""
    containers = template.spec.containers
    named = template.metadata.annotations.get(CONTAINER_ANNOTATION)
    if named is not None:
        for index, container in enumerate(containers):
            if container.name == named:
                return index
        names = ", ".join(container.name for container in containers)
        raise RefusedError(
            f"metadata.annotations[{CONTAINER_ANNOTATION}]", f"there is no container {named!r} among {names}"
        )
    found = [index for index, container in enumerate(containers) if is_vllm(container)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise RefusedError(
            "spec.containers",
            "no container shows that it starts vLLM (`vllm serve`, `-m vllm.entrypoints.openai.api_server`, "
            f"or an image vllm-openai without a command): name it with the annotation {CONTAINER_ANNOTATION}",
        )
    names = ", ".join(containers[index].name for index in found)
    raise RefusedError(
        "spec.containers",
        f"{names} start vLLM, and a sidecar stands in front of one: name it with the annotation "
        f"{CONTAINER_ANNOTATION}",
    )


def is_vllm(container: Container) -> bool:
    """Whether a container shows that it starts vLLM's server."""
    argv = [*container.command, *container.args]
    if not container.command:
        name = PurePosixPath(container.image.partition("@")[0]).name.partition(":")[0]
        return _IMAGES.fullmatch(name) is not None
    script = script_at(argv)
    return mentions_vllm(argv[script]) if script is not None else _launch(argv) is not None


def read_engine(template: Template, index: int, taken: frozenset[int]) -> Engine:
    """The ports of vLLM, and where it goes: to a port that is not `taken`. Raises RefusedError."""
    container = template.spec.containers[index]
    field = f"spec.containers[{index}]"
    stated = _annotated_port(template, PORT_ANNOTATION)
    engine_port = _annotated_port(template, ENGINE_PORT_ANNOTATION)
    if engine_port is not None:
        port = stated if stated is not None else _declared_port(container, field, engine_port)
        if port == engine_port:
            raise RefusedError(
                f"metadata.annotations[{ENGINE_PORT_ANNOTATION}]",
                f"{port} is the port that the sidecar takes over: bind vLLM to another",
            )
        return Engine(index, container, None, port, engine_port)
    line = read_command(container, field)
    check(line)
    port = _served_port(container, line, stated)
    return Engine(index, container, line, port, _free_port(port, taken))


def read_command(container: Container, field: str) -> CommandLine:
    """How the container starts vLLM. Raises RefusedError if its arguments can't be told."""
    argv = [*container.command, *container.args]
    if sum(len(word) + 1 for word in argv) > _LONGEST_COMMAND:
        raise RefusedError(
            field,
            f"command and args are longer than {_LONGEST_COMMAND} characters, which nobody reads: {_BY_HAND}",
        )
    if not container.command:
        return CommandLine(tuple(container.args), f"{field}.args", "python3")
    script = script_at(argv)
    if script is not None:
        return _read_script(container, argv, script, field)
    launch = _launch(argv)
    place = f"{field}.command" if not container.args else f"{field}.args"
    if launch is None:
        raise RefusedError(
            f"{field}.command", f"nobody can tell that {argv[0]!r} hands its arguments to vLLM: {_BY_HAND}"
        )
    first, python = launch
    return CommandLine(tuple(argv[first:]), place, python, first=first)


def check(line: CommandLine) -> None:
    """Raises RefusedError for a vLLM that can't stand behind a sidecar."""
    for flag, why in _IMPOSSIBLE.items():
        if line.value(flag) is not None:
            raise RefusedError(line.field, f"{flag}: {why}")
    for flag in ("--host", "--port"):
        if line.value(flag) == "":
            raise RefusedError(line.field, f"{flag} has no value")


def relocate(container: dict[str, Any], line: CommandLine, engine_port: int) -> None:
    """Let vLLM serve on `engine_port` of the loopback. Changes `container`."""
    wanted = {"--host": LOOPBACK, "--port": str(engine_port)}
    missing = {flag: value for flag, value in wanted.items() if line.value(flag) != value}
    if not missing:
        return
    if line.script is not None:
        where, index = line.script
        container[where][index] = " ".join(
            [container[where][index].rstrip(), *(f"{flag} {value}" for flag, value in missing.items())]
        )
        return
    command, args = list(container.get("command") or ()), list(container.get("args") or ())
    argv = [*command, *args]
    for flag, value in missing.items():
        argv = [*argv[: line.first], *_with(argv[line.first :], flag, value)]
    if command:
        container["command"] = argv[: len(command)]
    container["args"] = argv[len(command) :]
    if not container["args"]:
        del container["args"]


def is_relocated(line: CommandLine, engine_port: int) -> bool:
    """Whether vLLM serves on that port of the loopback already."""
    return line.value("--host") in _LOOPBACKS and line.value("--port") == str(engine_port)


_BY_HAND = (
    f"bind vLLM to a port of 127.0.0.1 there, name that port with the annotation {ENGINE_PORT_ANNOTATION}, "
    f"and the one that clients use with {PORT_ANNOTATION}"
)
_SAY_PORT = f"name the port that clients use with the annotation {PORT_ANNOTATION}"


def _read_script(container: Container, argv: Sequence[str], at: int, field: str) -> CommandLine:
    in_command = at < len(container.command)
    where, index = ("command", at) if in_command else ("args", at - len(container.command))
    place = f"{field}.{where}[{index}]"
    try:
        *earlier, words = read_commands(argv[at])
    except UnreadableError as error:
        raise RefusedError(
            place, f"arguments can't be added to this script, because {error}: {_BY_HAND}"
        ) from None
    launch = _launch(words)
    if launch is None:
        raise RefusedError(
            place, f"arguments can't be added to this script, because its end doesn't start vLLM: {_BY_HAND}"
        )
    first, python = launch
    return CommandLine(
        tuple(words[first:]), place, python, script=(where, index), earlier=tuple(map(tuple, earlier))
    )


def _launch(words: Sequence[str]) -> tuple[int, str] | None:
    """Where vLLM's arguments begin, and the Python that runs it; None if no vLLM is started."""
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        before = words[index - 1] if index else ""
        if following == "serve" and word.rpartition("/")[2] == "vllm":
            return index + 2, "python3"
        if word == "-m" and re.fullmatch(r"vllm\.entrypoints\.[\w.]*api_server", following):
            return index + 2, before if _is_python(before) else "python3"
        if word.endswith("vllm/entrypoints/openai/api_server.py"):
            return index + 1, before if _is_python(before) else "python3"
    return None


def _is_python(word: str) -> bool:
    return PurePosixPath(word).name.startswith("python")


def _argument(words: Sequence[str], at: int) -> str:
    """What belongs to the flag there; empty if it stands alone."""
    following = words[at + 1] if at + 1 < len(words) else ""
    return "" if following.startswith("--") else following


def _canonical(flag: str) -> str:
    return flag.replace("_", "-") if flag.startswith("--") else flag


def _with(words: Sequence[str], flag: str, value: str) -> list[str]:
    """The words with the flag's value wherever it is, or with both at the end."""
    changed = list(words)
    found = False
    for index, word in enumerate(words):
        name, equals, _ = word.partition("=")
        if _canonical(name) != flag:
            continue
        found = True
        if equals:
            changed[index] = f"{name}={value}"
        elif _argument(words, index):
            changed[index + 1] = value
    return changed if found else [*changed, flag, value]


def _served_port(container: Container, line: CommandLine, stated: int | None) -> int:
    text = line.value("--port")
    if text is None:
        if line.hides_flags and stated is None:
            raise RefusedError(
                line.field,
                f"no --port is to be seen, but a variable or --config may hold one: {_SAY_PORT}",
            )
        return _DEFAULT_PORT if stated is None else stated
    variable = _EXPANSION.fullmatch(text) or re.fullmatch(r"\$\{?(\w+)\}?", text)
    changed = variable is not None and may_set(line.earlier, variable[1])
    port = None if changed else _port(container.literal(variable[1]) if variable else text)
    if port is None and "$" in text:
        if stated is not None:
            return stated
        why = (
            "an earlier command of this script may change it"
            if changed
            else "it is no number from 1 to 65535 that is written in this container"
        )
        raise RefusedError(line.field, f"--port: what {text!r} is can't be told, because {why}: {_SAY_PORT}")
    if port is None:
        raise RefusedError(line.field, f"--port: {text!r} is no number from 1 to 65535")
    if stated not in (None, port):
        raise RefusedError(f"metadata.annotations[{PORT_ANNOTATION}]", f"is {stated}, but --port is {port}")
    return port


def _port(text: str | None) -> int | None:
    """The port that is written there; None where none is."""
    if text is None or not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        return None
    return int(text)


def _annotated_port(template: Template, annotation: str) -> int | None:
    text = template.metadata.annotations.get(annotation)
    if text is None:
        return None
    port = _port(text)
    if port is None:
        raise RefusedError(f"metadata.annotations[{annotation}]", f"{text!r} is no number from 1 to 65535")
    return port


def _declared_port(container: Container, field: str, engine_port: int) -> int:
    declared = [
        port.container_port
        for port in container.ports
        if port.protocol in (None, "TCP") and port.container_port != engine_port
    ]
    if len(declared) != 1:
        raise RefusedError(
            f"{field}.ports",
            f"{len(declared)} ports are declared: name the one that clients use with the annotation "
            f"{PORT_ANNOTATION}",
        )
    return declared[0]


def _free_port(port: int, taken: frozenset[int]) -> int:
    """A port near by that nobody in the Pod has, and no outgoing connection either."""
    candidates: list[int] = [port + _DISTANCE, *range(18_000, 19_000)]
    for candidate in candidates:
        if candidate < _FIRST_EPHEMERAL and candidate != port and candidate not in taken:
            return candidate
    raise RefusedError("spec.containers", "no port between 18000 and 19000 is free for vLLM")
