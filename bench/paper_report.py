"""The page that `make paper` writes, and the figures beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from fairserve.sim.experiment import Figure
from fairserve.sim.statistics import interval95, mean


class Report:
    """The page and the figures that are collected for it."""

    def __init__(self, seeds: Sequence[int], folder: Path) -> None:
        self.seeds = seeds
        self.folder = folder  #: where the page will be
        self.text: list[str] = []
        self.figures: list[dict[str, object]] = []

    def say(self, *paragraphs: str) -> None:
        """Add paragraphs."""
        self.text += [*paragraphs, ""]

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table."""
        self.text.append("| " + " | ".join(head) + " |")
        self.text.append("|" + "---|" + "--:|" * (len(head) - 1))
        self.text += ["| " + " | ".join(row) + " |" for row in rows]
        self.text.append("")

    def image(self, path: Path, what: str) -> None:
        """Add a figure."""
        self.say(f"![{what}]({path.relative_to(self.folder)})")

    def figure(
        self,
        name: str,
        values: Sequence[float],
        unit: str,
        goal: str,
        meets: Callable[[float], bool] | None = None,
    ) -> None:
        """Record a figure; whether the goal is met is computed."""
        value = mean(values)
        self.figures.append(
            {
                "name": name,
                "value": value if math.isfinite(value) else None,
                "unit": unit,
                "spread": or_none(interval95(values)),
                "goal": goal,
                "met": None if meets is None else bool(math.isfinite(value) and meets(value)),
            }
        )


def figure_of(values: Sequence[float]) -> Figure:
    return Figure(mean(values), interval95(values), tuple(values))


def shown(figure: Figure, factor: float = 1.0) -> str:
    if math.isnan(figure.mean):
        return "–"
    spread = (
        "" if math.isnan(figure.interval) or figure.interval == 0.0 else f" ± {factor * figure.interval:.2g}"
    )
    return f"{number(factor * figure.mean)}{spread}"


def number(value: object) -> str:
    if not isinstance(value, int | float):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def at_least(goal: float, value: float) -> bool:
    return value >= goal


def at_most(goal: float, value: float) -> bool:
    return value <= goal


def or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
