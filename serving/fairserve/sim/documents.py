"""YAML files into validated documents: the error names file, line and field.

pydantic says which field is wrong and YAML knows on which line it is; here the two are put together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from fairserve.sim.errors import InputError

D = TypeVar("D", bound="Document")


class Document(BaseModel):
    """Part of a file: unknown fields and infinite numbers are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


# YAML's true is Python's 1: as a number it is a slip.
Number = Annotated[float, BeforeValidator(_no_truth)]
Whole = Annotated[int, BeforeValidator(_no_truth)]


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which plain YAML keeps the last one, and says where a value is
    that can't be read, such as a date that there is not.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node."""
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.MarkedYAMLError(
                problem="a list or mapping can't name a field", problem_mark=key_node.start_mark
            )
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"{key} is given twice", problem_mark=key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a document came from, for what can only be checked once it is read."""

    name: str
    tree: Any  #: what YAML composed: it knows the lines

    def error(self, location: tuple[int | str, ...], problem: str) -> InputError:
        """An error about a field, given by its keys and indices from the top; one not given by its parent."""
        line, field = _place(self.tree, location)
        return InputError(self.name, line, field, problem)


def read_document(path: Path, model: type[D]) -> D:
    """The file's one document. Raises InputError."""
    return read_with_source(path, model)[0]


def read_with_source(path: Path, model: type[D]) -> tuple[D, Source]:
    """The file's one document and its source. Raises InputError."""
    name = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(name, None, "", error.strerror or "can't be read") from error
    except UnicodeDecodeError as error:
        raise InputError(name, None, "", f"is not UTF-8 text: {error.reason}") from error
    try:
        tree = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else None
        raise InputError(name, line, "", error.problem or "is not YAML") from error
    except yaml.reader.ReaderError as error:
        raise InputError(
            name, text.count("\n", 0, error.position) + 1, "", f"is not YAML: {error.reason}"
        ) from error
    except RecursionError as error:
        raise InputError(name, None, "", "is nested too deeply") from error
    if not isinstance(data, dict):
        raise InputError(name, 1, "", "must be a mapping of fields")
    try:
        return model.model_validate(data), Source(name, tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        line, field = _place(tree, first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        given = first.get("input")
        if isinstance(given, int | float | str) and not isinstance(given, bool):
            problem += (
                f", not {given!r}" if not (isinstance(given, float) and math.isnan(given)) else ", not nan"
            )
        raise InputError(name, line, field, problem) from error


def _place(tree: Any, location: tuple[int | str, ...]) -> tuple[int, str]:
    """Line and dotted name of a field, as far as the file has it."""
    node, line, names = tree, 1, []
    for part in location:
        inner = None
        if isinstance(node, yaml.MappingNode):
            inner = next(((k, v) for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            inner = (node.value[part], node.value[part])
        if inner is None:
            # The name of a union's branch is no place in the file; a missing field is told by its name.
            if node is None or isinstance(node, yaml.ScalarNode) or not str(part).isidentifier():
                continue
            names.append(str(part))
            continue
        line = inner[0].start_mark.line + 1
        node = inner[1]
        names.append(str(part))
    return line, ".".join(names)
