"""Which application a call is that names none: by its model, its path and its headers.

Of several that match, one with more headers has the call, then one with models, then one with paths, then
the first by name: the order is the document's alone, so that every pod gives the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from fairserve.config import ApplicationConfig, MatchConfig
from fairserve.engine.endpoints import path_of
from fairserve.engine.requests import BodyField

#: Where a body says its model.
MODEL: Final[BodyField] = ("model",)


class _Rule:
    """One application's match but for its models."""

    def __init__(self, rank: int, application: str, match: MatchConfig) -> None:
        self.rank = rank  #: the smaller of two that fit counts
        self.application = application
        self._paths = frozenset(match.paths)
        self._headers = tuple((name.encode(), value.encode()) for name, value in match.headers.items())

    def fits(self, named: Mapping[bytes, bytes], path: str) -> bool:
        if self._paths and path not in self._paths:
            return False
        for name, value in self._headers:  # noqa: SIM110 - a generator costs more, compiled
            if named.get(name) != value:
                return False
        return True


class ApplicationMatches:
    """The matches of all applications. At least one has any."""

    def __init__(self, matches: Iterable[tuple[str, MatchConfig]]) -> None:
        #: The best first, by the model that they want.
        self._of_model: dict[str, list[_Rule]] = {}
        #: Those of any model.
        self._of_any: list[_Rule] = []
        self.headers: set[bytes] = set()  #: that decide
        self._reads_path = False
        for rank, (application, match) in enumerate(sorted(matches, key=_place)):
            rule = _Rule(rank, application, match)
            for model in match.models:
                self._of_model.setdefault(model, []).append(rule)
            if not match.models:
                self._of_any.append(rule)
            self.headers.update(name.encode() for name in match.headers)
            self._reads_path = self._reads_path or bool(match.paths)
        #: What a body is read for.
        self.body_fields: tuple[BodyField, ...] = (MODEL,) if self._of_model else ()

    def find(self, named: Mapping[bytes, bytes], said: Mapping[BodyField, str], target: bytes) -> str | None:
        """The application of a call with these headers and these fields of its body."""
        path = path_of(target) if self._reads_path else ""
        best: _Rule | None = None
        for rule in self._of_model.get(said.get(MODEL, ""), ()):
            if rule.fits(named, path):
                best = rule
                break
        for rule in self._of_any:
            if best is not None and best.rank < rule.rank:
                break
            if rule.fits(named, path):
                return rule.application
        return None if best is None else best.application


def application_matches(applications: Iterable[ApplicationConfig]) -> ApplicationMatches | None:
    """The matches of a document; None where it has none, so that no call looks for any."""
    matches = [(each.name, each.match) for each in applications if each.match is not None]
    return ApplicationMatches(matches) if matches else None


def _place(named: tuple[str, MatchConfig]) -> tuple[int, bool, bool, str]:
    name, match = named
    return -len(match.headers), not match.models, not match.paths, name
