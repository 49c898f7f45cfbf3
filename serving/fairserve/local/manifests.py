"""Reads a folder of manifests as `kubectl apply -f DIR` would, and says what is wrong with file and line.

Each document of a file stands alone: a broken one is reported and the others are read. Nothing in a
manifest is accepted and ignored: an unknown kind or field is a problem, as is a key that appears twice.
Only the folder itself is read, not the folders in it. The values of Secrets appear in no message.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from pydantic import BaseModel, ValidationError

from fairserve_operator.api.v1alpha1 import API_VERSION, ApplicationSpec, ServingPoolSpec, TenantSpec
from fairserve_operator.decide.inference_pools import GROUP_VERSION, read_inference_pool
from fairserve_operator.decide.inference_pools import KIND as INFERENCE_POOL
from fairserve_operator.decide.resources import APPLICATION, SERVING_POOL, TENANT, ObjectKey

SECRET = "Secret"  # noqa: S105  (the kind)
DEFAULT_NAMESPACE = "default"
SUFFIXES = (".yaml", ".yml", ".json")

_SPECS: Mapping[str, type[BaseModel]] = {
    TENANT: TenantSpec,
    APPLICATION: ApplicationSpec,
    SERVING_POOL: ServingPoolSpec,
}
#: Kinds that are not ours, and their versions.
_FOREIGN: Mapping[object, str] = {SECRET: "v1", INFERENCE_POOL: GROUP_VERSION}
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_SEPARATOR = re.compile(r"^---([ \t].*)?$", re.MULTILINE)
#: What the API server itself adds to metadata, so that the output of `kubectl get -o yaml` can be read.
_SERVER_METADATA = frozenset(
    (
        "creationTimestamp",
        "deletionTimestamp",
        "finalizers",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    )
)
_METADATA = frozenset(("name", "namespace", "labels", "annotations")) | _SERVER_METADATA

FieldPath: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in one place."""

    file: str
    line: int | None
    subject: str  #: `Tenant "team-a"`, or empty where no object is known
    message: str  #: names the field

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (where, self.subject, self.message) if part)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One well-formed object. `content` is the spec; of a Secret its values by key. `labels` are kept of
    Applications, by which Tenants select them.
    """

    key: ObjectKey
    content: Mapping[str, Any] = field(repr=False)
    file: str = ""
    line: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look at the folder gave. `unsure` are the files of which not everything could be read."""

    manifests: tuple[Manifest, ...]
    problems: tuple[Problem, ...]

    @property
    def unsure(self) -> frozenset[str]:
        """Files with a problem."""
        return frozenset(problem.file for problem in self.problems)


def read_folder(path: Path) -> Reading:
    """Read every manifest of a folder, or of one file, in the order of the file names.

    Raises FileNotFoundError if there is neither.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
    manifests: dict[ObjectKey, Manifest] = {}
    problems: list[Problem] = []
    for file in files:
        for found in _read_file(file):
            if isinstance(found, Problem):
                problems.append(found)
            elif first := manifests.get(found.key):
                again = f"appears twice: also at {first.file}:{first.line}, which counts"
                problems.append(Problem(found.file, found.line, str(found.key), again))
            else:
                manifests[found.key] = found
    return Reading(tuple(manifests.values()), tuple(problems))


def _read_file(file: Path) -> Iterator[Manifest | Problem]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        yield Problem(file.name, None, "", f"can't be read: {error}")
        return
    for first_line, _, document in documents(text):
        yield from _read_document(file.name, first_line, document)


def documents(text: str) -> Iterator[tuple[int, str, str]]:
    """Split at `---` lines, as kubectl does, so that a syntax error stays in its document: first line,
    separator before it and text of each. Together they are the whole text.
    """
    start, line, before = 0, 1, ""
    for separator in _SEPARATOR.finditer(text):
        yield line, before, text[start : separator.start()]
        line += text.count("\n", start, separator.start()) + 1
        start, before = separator.end() + 1, text[separator.start() : separator.end() + 1]
    yield line, before, text[start:]


def _read_document(file: str, first_line: int, text: str) -> Iterator[Manifest | Problem]:
    try:
        root = yaml.compose(text, Loader=Loader)
        if root is None:
            return
        document = Loader.construct(root)
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else first_line + error.problem_mark.line
        yield Problem(file, line, "", f"is no valid YAML: {error.problem or error.context}")
        return
    except yaml.YAMLError as error:
        yield Problem(file, first_line, "", f"is no valid YAML: {error}")
        return
    lines = {path: first_line + mark for path, mark in _lines(root)}
    if (
        isinstance(document, dict)
        and document.get("kind") == "List"
        and isinstance(document.get("items"), list)
    ):
        for index, item in enumerate(document["items"]):
            yield from _Document(file, lines, ("items", index), item).read()
    else:
        yield from _Document(file, lines, (), document).read()


class _Document:
    """One object on its way to a manifest."""

    def __init__(self, file: str, lines: Mapping[FieldPath, int], root: FieldPath, value: object) -> None:
        self._file = file
        self._lines = lines
        self._root = root
        self._value = value
        self._subject = ""

    def read(self) -> Iterator[Manifest | Problem]:
        """Give the manifest, or everything that is wrong with it."""
        problems = list(self._problems())
        if problems:
            yield from problems
            return
        document: dict[str, Any] = self._value  # type: ignore[assignment]  # said by _problems
        metadata = document["metadata"]
        key = ObjectKey(document["kind"], metadata.get("namespace", DEFAULT_NAMESPACE), metadata["name"])
        content = _secret_values(document) if key.kind == SECRET else document["spec"]
        labels = metadata.get("labels") if key.kind == APPLICATION else None
        yield Manifest(key, content, self._file, self._line(()), labels or {})

    def _problems(self) -> Iterator[Problem]:
        document = self._value
        if not isinstance(document, dict):
            yield self._problem((), "is no object: a manifest has apiVersion, kind and metadata")
            return
        kind, version = document.get("kind"), document.get("apiVersion")
        expected = _FOREIGN.get(kind, API_VERSION)
        if kind not in _FOREIGN and kind not in _SPECS:
            known = ", ".join((*_SPECS, *map(str, _FOREIGN)))
            yield self._problem(("kind",), f"kind: {kind!r} is not one of {known}")
            return
        metadata = document.get("metadata")
        if isinstance(metadata, dict) and isinstance(metadata.get("name"), str):
            self._subject = f'{kind} "{metadata["name"]}"'
        else:
            self._subject = str(kind)
        if version != expected:
            yield self._problem(("apiVersion",), f"apiVersion: must be {expected}, not {version!r}")
        yield from self._metadata_problems(metadata)
        if kind == SECRET:
            yield from self._secret_problems(document)
        elif kind == INFERENCE_POOL:
            yield from self._inference_pool_problems(document)
        else:
            yield from self._spec_problems(document)

    def _metadata_problems(self, metadata: object) -> Iterator[Problem]:
        if not isinstance(metadata, dict):
            yield self._problem(("metadata",), "metadata: must be an object with a name")
            return
        for name in metadata:
            if name not in _METADATA:
                yield self._problem(("metadata", name), f"metadata.{name}: unknown field")
        for name in ("name", "namespace"):
            value = metadata.get(name, DEFAULT_NAMESPACE if name == "namespace" else None)
            if not isinstance(value, str) or not _NAME.fullmatch(value):
                rule = "must be lower-case letters, digits, '-' and '.', such as team-a"
                yield self._problem(("metadata", name), f"metadata.{name}: {rule}")

        labels = metadata.get("labels") or {}
        if not isinstance(labels, dict) or not all(isinstance(x, str) for x in (*labels, *labels.values())):
            rule = "must be an object of strings; put numbers and booleans in quotes"
            yield self._problem(("metadata", "labels"), f"metadata.labels: {rule}")

    def _spec_problems(self, document: Mapping[str, Any]) -> Iterator[Problem]:
        yield from self._unknown_fields(document, ("apiVersion", "kind", "metadata", "spec", "status"))
        try:
            _SPECS[document["kind"]].model_validate(document.get("spec"), by_alias=True, by_name=False)
        except ValidationError as error:
            for problem in error.errors(include_url=False, include_input=False, include_context=False):
                path: FieldPath = ("spec", *problem["loc"])
                unknown = problem["type"] == "extra_forbidden"
                message = "unknown field" if unknown else problem["msg"].removeprefix("Value error, ")
                yield self._problem(path, f"{_dotted(path)}: {message}")

    def _inference_pool_problems(self, document: Mapping[str, Any]) -> Iterator[Problem]:
        """Of another project's kind only what a `poolRef` needs is looked at."""
        if not read_inference_pool(document.get("spec")).labels:
            yield self._problem(
                ("spec", "selector", "matchLabels"), "spec.selector.matchLabels: must be an object of labels"
            )

    def _secret_problems(self, document: Mapping[str, Any]) -> Iterator[Problem]:
        known = ("apiVersion", "kind", "metadata", "type", "immutable", "data", "stringData")
        yield from self._unknown_fields(document, known)
        for section in ("data", "stringData"):
            values = document.get(section)
            if values is None:
                continue
            if not isinstance(values, dict):
                yield self._problem((section,), f"{section}: must be an object of strings")
                continue
            for name, value in values.items():
                path = (section, name)
                if not isinstance(value, str):
                    yield self._problem(path, f"{section}.{name}: must be a string; put it in quotes")
                elif section == "data" and _decoded(value) is None:
                    yield self._problem(path, f"data.{name}: is not base64 of UTF-8 text; or use stringData")

    def _unknown_fields(self, document: Mapping[str, Any], known: tuple[str, ...]) -> Iterator[Problem]:
        for name in document:
            if name not in known:
                yield self._problem((name,), f"{name}: unknown field; known are {', '.join(known)}")

    def _problem(self, path: FieldPath, message: str) -> Problem:
        return Problem(self._file, self._line(path), self._subject, message)

    def _line(self, path: FieldPath) -> int:
        """The line of a field, or of the nearest thing around it that exists."""
        full = (*self._root, *path)
        while full and full not in self._lines:
            full = full[:-1]
        return self._lines[full]


class Loader(yaml.SafeLoader):
    """YAML as the API server reads it: dates and times are strings and a key appears once."""

    @classmethod
    def construct(cls, root: yaml.Node) -> object:
        """The value of a node."""
        loader = cls("")
        try:
            return loader.construct_document(root)
        finally:
            loader.dispose()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping. Raises MarkedYAMLError for a key that appears twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} appears twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _without_times(tag: str, pattern: re.Pattern[str]) -> tuple[str, re.Pattern[str]]:
    """A resolver of numbers that takes 22:30 for a text: YAML 1.1 has numbers to the base 60."""
    is_number = tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    return tag, re.compile(f"(?!.*:)(?:{pattern.pattern})", re.VERBOSE) if is_number else pattern


Loader.yaml_implicit_resolvers = {
    first: [_without_times(*each) for each in resolvers if each[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _lines(node: yaml.Node, path: FieldPath = ()) -> Iterator[tuple[FieldPath, int]]:
    """The line, from 0, on which each field of a document stands."""
    yield path, node.start_mark.line
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, key.value)
            yield from _lines(value, inner)
            yield inner, key.start_mark.line
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*path, index))


def _dotted(path: FieldPath) -> str:
    """`spec.identity[0].apiKey` from its parts."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _decoded(value: str) -> str | None:
    try:
        return base64.b64decode("".join(value.split()), validate=True).decode()
    except ValueError:  # Not ASCII, not base64, or not UTF-8 in it.
        return None


def _secret_values(document: Mapping[str, Any]) -> dict[str, str]:
    """A Secret's values by key; stringData wins, as in the API server."""
    encoded = {name: _decoded(value) or "" for name, value in (document.get("data") or {}).items()}
    return encoded | (document.get("stringData") or {})
