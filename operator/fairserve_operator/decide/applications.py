"""The Applications of a namespace: which there are, which ones labels select, and what they match."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from fairserve.config import MatchConfig, canonical_json
from fairserve_operator.api.v1alpha1 import ApplicationSpec, Match
from fairserve_operator.decide.resources import Parsed, Resource, remembered


class Applications:
    """The Applications by name and by label."""

    def __init__(self, parsed: Iterable[Parsed[ApplicationSpec]]) -> None:
        self._accepted: dict[str, bool] = {}
        self._labels: list[tuple[str, Mapping[str, str]]] = []
        self._selected: dict[frozenset[tuple[str, str]], tuple[str, ...]] = {}
        for one in parsed:
            name = one.resource.key.name
            self._accepted[name] = one.spec is not None
            if one.spec is not None:
                self._labels.append((name, one.resource.labels))

    def lack(self, name: str) -> str | None:
        """The reason why one can't be used; None if it can."""
        if self._accepted.get(name):
            return None
        return "ApplicationNotAccepted" if name in self._accepted else "ApplicationMissing"

    def selected(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        """Names of the accepted ones that have all of these labels, sorted."""
        key = frozenset(labels.items())
        found = self._selected.get(key)
        if found is None:
            found = self._selected[key] = tuple(
                sorted(name for name, its in self._labels if key <= its.items())
            )
        return found


def match_config(match: Match) -> MatchConfig:
    """A match as the document has it; equal where two match the same."""
    return MatchConfig(
        models=tuple(sorted(match.models or ())),
        paths=tuple(sorted(match.paths or ())),
        headers={header.name: header.value for header in match.headers or ()},
    )


def match_text(application: Resource, match: Match) -> str:
    """An Application's match as a text, equal where two match the same."""
    return remembered(application, "match", partial(_written, match))


def _written(match: Match) -> str:
    return canonical_json(match_config(match).model_dump()).decode()
