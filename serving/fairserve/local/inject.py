"""`fairserve inject`: the sidecar put in front of vLLM in manifests.

What is not injected comes out as it went in, to the letter. Either everything comes out or nothing, so that
`fairserve inject -f - | kubectl apply -f -` applies no half.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from fairserve.local.manifests import Loader, documents
from fairserve_operator.manifests.injection import (
    INJECT_LABEL,
    Injected,
    Refused,
    Settings,
    inject,
    shows_vllm,
    wanted_pool,
)

FieldPath: TypeAlias = tuple[str, ...]

_IN_SPEC: FieldPath = ("spec", "template")
#: Where a kind has its Pod templates.
_TEMPLATES: Mapping[str, tuple[FieldPath, ...]] = {
    "Pod": ((),),
    "Deployment": (_IN_SPEC,),
    "StatefulSet": (_IN_SPEC,),
    "DaemonSet": (_IN_SPEC,),
    "ReplicaSet": (_IN_SPEC,),
    "Job": (_IN_SPEC,),
    "CronJob": (("spec", "jobTemplate", *_IN_SPEC),),
    "LeaderWorkerSet": (
        ("spec", "leaderWorkerTemplate", "leaderTemplate"),
        ("spec", "leaderWorkerTemplate", "workerTemplate"),
    ),
}


@dataclass(slots=True)
class Result:
    """What became of a file."""

    text: str = ""
    injected: list[str] = field(default_factory=list)  #: what was done, for people
    notes: list[str] = field(default_factory=list)  #: what they should know
    problems: list[str] = field(default_factory=list)  #: why nothing may be used


def inject_file(
    file: str,
    pool: str | None,
    settings: Settings,
    write: Callable[[str], object],
    say: Callable[[str], object],
) -> int:
    """Inject a file, or standard input for `-`: manifests to `write`, words to `say`. The exit status."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        say(f"error: {file} can't be read: {error}")
        return 1
    result = inject_text(text, "stdin" if file == "-" else file, pool, settings)
    for line in (*result.injected, *result.notes):
        say(line)
    for problem in result.problems:
        say(f"error: {problem}")
    if result.problems:
        return 1
    if not result.injected:
        say(
            f"error: nothing to inject: label a Pod template {INJECT_LABEL}: <ServingPool>, or name the pool "
            "of all that have vLLM in them with --pool"
        )
        return 1
    write(result.text)
    return 0


def inject_text(text: str, name: str, pool: str | None, settings: Settings) -> Result:
    """Inject what is labelled in these manifests, and with `pool` whatever has vLLM in it. `name` is the
    file's, for messages.
    """
    result = Result()
    parts: list[str] = []
    for line, separator, body in documents(text):
        parts.append(separator)
        where = f"{name}:{line}"
        if separator.strip()[3:].strip() and not separator.strip()[3:].strip().startswith("#"):
            result.problems.append(f"{where}: write the document below the line ---, not behind it")
            continue
        try:
            document = yaml.load(body, Loader)  # noqa: S506 - a safe one
        except yaml.YAMLError as error:
            result.problems.append(f"{where}: is no valid YAML: {_words(error, line)}")
            continue
        changed = _Document(document, where, pool, settings, result).inject()
        parts.append(_dump(document) if changed else body)
    result.text = "".join(parts)
    return result


class _Document:
    """One document on its way."""

    def __init__(
        self, value: object, where: str, pool: str | None, settings: Settings, result: Result
    ) -> None:
        self._value = value
        self._where = where
        self._pool = pool
        self._settings = settings
        self._result = result

    def inject(self) -> bool:
        """Inject it in place; whether anything changed."""
        value = self._value
        items = value.get("items") if isinstance(value, dict) and value.get("kind") == "List" else None
        objects = items if isinstance(items, list) else [value]
        changes = [self._inject_object(each) for each in objects if isinstance(each, dict)]
        return any(changes)

    def _inject_object(self, body: dict[str, Any]) -> bool:
        kind = str(body.get("kind"))
        metadata = body.get("metadata")
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        subject = f'{self._where}: {kind} "{name}"'
        outside = wanted_pool(body) is not None and kind != "Pod"
        if kind not in _TEMPLATES:
            if outside:
                self._result.notes.append(
                    f"{subject}: the cluster makes its Pods, so nothing is injected here"
                )
            return False
        if outside:
            self._result.problems.append(
                f"{subject}: metadata.labels[{INJECT_LABEL}]: has no effect here: label its Pod template"
            )
            return False
        changes = [self._inject_template(body, path, subject) for path in _TEMPLATES[kind]]
        return any(changes)

    def _inject_template(self, body: dict[str, Any], path: FieldPath, subject: str) -> bool:
        template: Any = body
        for step in path:
            template = template.get(step) if isinstance(template, dict) else None
        if not isinstance(template, dict):
            return False
        pool = wanted_pool(template)
        if pool is None and self._pool is not None and shows_vllm(template):
            pool = self._pool
        if pool is None:
            return False
        match inject(template, self._pool or pool, self._settings):
            case Refused() as refused:
                self._result.problems.append(f"{subject}: {'.'.join((*path, str(refused)))}")
                return False
            case Injected() as done:
                self._result.injected.append(
                    f"{subject}: the sidecar of pool {self._pool or pool} has port {done.port}, and "
                    f"{done.container} serves on 127.0.0.1:{done.engine_port}"
                )
                self._result.notes.extend(f"{subject}: {'.'.join((*path, note))}" for note in done.notes)
                changed = done.template != template
                template.clear()
                template.update(done.template)
                return changed


def _words(error: yaml.YAMLError, first_line: int) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {first_line + error.problem_mark.line}: {error.problem or error.context}"
    return str(error)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, and nothing by reference."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _dump(document: object) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
