"""Why a Pod template can't be given a sidecar. Inside the package it is raised; `inject` returns it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refused:
    """The template stays as it was."""

    field: str  #: where, as a path inside the template: `spec.containers[0].args`
    message: str  #: what is wrong there, and what to do

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class RefusedError(Exception):
    """Carries a refusal to the border of the package."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.refused = Refused(field, message)
