"""Renders the chart with the real Helm, and finds things in what comes out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.parts.helm import CHART, Helm

RELEASE, NAMESPACE = "fairserve", "fairserve-system"
#: What the API servers of the resources that the chart can use know.
APIS = ("fairserve.dev/v1alpha1/ServingPool",)


@dataclass(frozen=True, slots=True)
class Has:
    """A list that has this entry among others, or a text that has this part."""

    entry: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | str) and self.entry in other

    def __hash__(self) -> int:
        return 0


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Values from `{"operator.image.tag": "1"}`."""
    values: dict[str, Any] = {}
    for path, value in settings.items():
        *above, last = path.split(".")
        place = values
        for each in above:
            place = place.setdefault(each, {})
        place[last] = value
    return values


class Rendered:
    """The objects of one rendering by `Kind/name` or `Kind/namespace/name`, each read when asked for."""

    def __init__(self, text: str) -> None:
        self._texts = [each for each in text.split("\n---\n") if "\nkind: " in each]

    @cached_property
    def objects(self) -> list[dict[str, Any]]:
        """All of them."""
        return [_read(each) for each in self._texts]

    def get(self, name: str) -> dict[str, Any] | None:
        """One object; None if there is none of that name."""
        kind, *namespace, last = name.split("/")
        for text in self._texts:
            if f"\nkind: {kind}\n" in text and f"name: {last}\n" in text:
                found = _read(text)
                metadata = found["metadata"]
                if metadata["name"] == last and namespace in ([], [metadata.get("namespace")]):
                    return found
        return None

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __getitem__(self, name: str) -> dict[str, Any]:
        found = self.get(name)
        assert found is not None, f"no {name}"
        return found

    def at(self, name: str, path: str) -> Any:
        """What is there, such as `spec/ports/0`; None if nothing. No path: whether there is an object."""
        found: Any = self.get(name)
        if not path:
            return found is not None
        for key in path.split("/"):
            key = key.replace("~1", "/")
            if isinstance(found, list):
                found = found[int(key)] if int(key) < len(found) else None
            elif isinstance(found, dict):
                found = found.get(key)
            else:
                return None
        return found

    def metadata(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The metadata of all objects and Pod templates, and whose they are."""
        for each in self.objects:
            name = f"{each['kind']}/{each['metadata']['name']}"
            yield name, each["metadata"]
            if "template" in each.get("spec", {}):
                yield f"{name}'s Pods", each["spec"]["template"]["metadata"]


def _read(text: str) -> dict[str, Any]:
    # The CRDs are long: the parser in C takes a tenth of the time.
    read: dict[str, Any] = yaml.load(text, yaml.CSafeLoader)
    return read


def render(helm: Helm, settings: Mapping[str, Any] | None = None, chart: Path = CHART) -> Rendered:
    """Render with these values, `{"operator.image.tag": "1"}`; raises HelmError."""
    apis = [word for api in APIS for word in ("--api-versions", api)]
    values = json.dumps(nested(settings or {}))
    return Rendered(helm("template", RELEASE, chart, "-n", NAMESPACE, "-f", "-", *apis, stdin=values))
