"""The page that `make paper` writes, and the figures that it claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from bench import results
from bench.results import Goal, figure
from fairserve.core.catalogue import SCHEDULERS
from fairserve.sim.experiment import Experiment, Figure, experiment
from fairserve.sim.scenario import Scenario
from fairserve.sim.statistics import interval95, mean
from fairserve.sim.world import SchedulerFactory


class Report:
    """The page and the figures that are collected for it."""

    def __init__(self, seeds: Sequence[int], folder: Path) -> None:
        self.seeds = seeds
        self.folder = folder  #: where the page will be
        self.text: list[str] = []
        self.figures: list[results.Figure] = []

    def run(
        self,
        scenario: Scenario,
        policies: Sequence[str],
        *,
        keep: bool = False,
        schedulers: Mapping[str, SchedulerFactory] = SCHEDULERS,
    ) -> Experiment:
        """Run a scenario under each policy and seed, and show how far it is."""
        console = Console(stderr=True)
        if not console.is_terminal:
            console.print(f"{scenario.name}: {', '.join(policies)}")
        columns = Progress.get_default_columns()
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(scenario.name, total=1.0)

            def hear(policy: str, seed: int, share: float) -> None:
                bar.update(task, completed=share, description=f"{scenario.name}: {policy}, seed {seed}")

            return experiment(
                scenario, policies, self.seeds, keep=keep, on_progress=hear, schedulers=schedulers
            )

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
        measured: Sequence[float] | Figure,
        unit: str,
        goal: Goal | None = None,
        *,
        judged: bool = True,
    ) -> None:
        """Record a mean over seeds; its spread is half the width of the 95 % confidence interval. One that
        is not judged keeps its goal, which is neither met nor missed: the run says nothing about it.
        """
        known = measured if isinstance(measured, Figure) else figure_of(measured)
        made = figure(name, known.mean, unit, known.interval, goal)
        self.figures.append(made if judged else replace(made, met=None))

    def worst_gap(self, name: str, gaps: Sequence[float], pairs: float, goal: Goal, of: str = "") -> None:
        """Record the largest of some service gaps over the bound; without pairs it is not measured."""
        known = [gap for gap in gaps if math.isfinite(gap)]
        count = f"{pairs:,.0f} pairs" if known else "no pairs: not measured"
        unit = f"of the bound, worst of {count}{of}"
        self.figure(name, [max(known, default=math.nan)], unit, goal, judged=bool(known))


def above(least: float) -> Goal:
    """More than that: what a control that must fail has to reach."""
    return Goal(f"> {least:g}", lambda value: value > least)


def figure_of(values: Sequence[float]) -> Figure:
    return Figure(mean(values), interval95(values), tuple(values))


def ratio(dividend: Figure, divisor: Figure) -> Figure:
    """The ratio of two means, nan to zero; its interval is that of the ratios of the single seeds, where none
    is to zero.
    """
    pairs = list(zip(dividend.values, divisor.values, strict=True))
    single = tuple(a / b for a, b in pairs if b > 0.0)
    value = dividend.mean / divisor.mean if divisor.mean > 0.0 else math.nan
    return Figure(value, interval95(single) if len(single) == len(pairs) else math.nan, single)


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
