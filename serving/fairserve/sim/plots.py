"""Figures of an experiment, with matplotlib, which is imported when the first one is drawn.

Files are SVG without dates or random ids, so that the same run writes the same bytes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairserve.sim.metrics import priced, served_until
from fairserve.sim.recording import Recording

#: Users that get a line of their own; the others share one.
_LINES = 6
_POINTS = 120


class PlotError(RuntimeError):
    """matplotlib is missing."""


def plot_all(recordings: Mapping[str, Recording], folder: Path) -> list[Path]:
    """Write every figure, and say which files those are. Raises PlotError."""
    pyplot = _pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for policy, recording in recordings.items():
        written.append(_save(pyplot, _service(pyplot, recording), folder / f"service-{_slug(policy)}.svg"))
    written.append(_save(pyplot, _delays(pyplot, recordings), folder / "delay.svg"))
    written.append(_save(pyplot, _shares(pyplot, recordings), folder / "shares.svg"))
    return written


def bars(path: Path, title: str, unit: str, series: Mapping[str, Mapping[str, tuple[float, float]]]) -> Path:
    """Bars in groups: by group, then by series, value and half its confidence interval. Raises PlotError."""
    pyplot = _pyplot()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(8.0, 3.6))
    names = list(dict.fromkeys(name for values in series.values() for name in values))
    width = 0.8 / max(1, len(names))
    for index, name in enumerate(names):
        places = [group + (index - (len(names) - 1) / 2) * width for group in range(len(series))]
        values = [group.get(name, (math.nan, math.nan)) for group in series.values()]
        errors = [0.0 if math.isnan(error) else error for _, error in values]
        axes.bar(places, [value for value, _ in values], width, yerr=errors, label=name, capsize=1)
    axes.set_xticks(range(len(series)), list(series))
    axes.set_ylabel(unit)
    axes.set_title(title)
    axes.legend(fontsize="x-small", ncols=2)
    return _save(pyplot, figure, path)


def lines(
    path: Path, title: str, x: str, y: str, series: Mapping[str, Sequence[tuple[float, float]]]
) -> Path:
    """Lines through points. Raises PlotError."""
    pyplot = _pyplot()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(8.0, 3.6))
    for name, points in series.items():
        axes.plot([a for a, _ in points], [b for _, b in points], label=name, linewidth=1.2)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    axes.legend(fontsize="x-small")
    return _save(pyplot, figure, path)


def service_lines(recording: Recording) -> dict[str, list[tuple[float, float]]]:
    """Service over time: of the users who got most, and the mean of the others. In thousand tokens."""
    users: dict[str, list[Any]] = defaultdict(list)
    for record in recording.calls:
        users[record.interaction.client.user].append(record)
    ranked = sorted(users, key=lambda user: -sum(priced(record) for record in users[user]))
    times = [recording.ended_s * i / _POINTS for i in range(_POINTS + 1)]
    drawn = {
        user: [(at_s, sum(served_until(r, at_s) for r in users[user]) / 1000) for at_s in times]
        for user in ranked[:_LINES]
    }
    rest = ranked[_LINES:]
    if rest:
        records = [record for user in rest for record in users[user]]
        drawn[f"mean of {len(rest)} others"] = [
            (at_s, sum(served_until(r, at_s) for r in records) / 1000 / len(rest)) for at_s in times
        ]
    return drawn


def _service(pyplot: Any, recording: Recording) -> Any:
    figure, axes = pyplot.subplots(figsize=(8.0, 3.6))
    for user, points in service_lines(recording).items():
        axes.plot([a for a, _ in points], [b for _, b in points], label=user, linewidth=1.2)
    axes.set_xlabel("seconds")
    axes.set_ylabel("thousand priced tokens")
    axes.set_title(f"Service by user, {recording.policy}")
    axes.legend(fontsize="x-small")
    return figure


def _delays(pyplot: Any, recordings: Mapping[str, Recording]) -> Any:
    figure, axes = pyplot.subplots(figsize=(8.0, 3.6))
    for policy, recording in recordings.items():
        waits = sorted(
            max(0.001, r.wait_s)
            for r in recording.calls
            if r.interaction.client.good and not math.isnan(r.dispatched_s)
        )
        axes.step(waits, [(i + 1) / len(waits) for i in range(len(waits))], label=policy, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_xlabel("waiting delay, seconds (well-behaved users)")
    axes.set_ylabel("share of calls")
    axes.set_title("Waiting delay")
    axes.legend(fontsize="x-small")
    return figure


def _shares(pyplot: Any, recordings: Mapping[str, Recording]) -> Any:
    figure, axes = pyplot.subplots(figsize=(8.0, 3.6))
    groups = list(dict.fromkeys(i.client.group for r in recordings.values() for i in r.interactions))
    bottoms = [0.0] * len(recordings)
    for group in groups:
        heights = []
        for recording in recordings.values():
            until_s = max((i.plan.start_s for i in recording.interactions), default=0.0)
            by_group: dict[str, float] = defaultdict(float)
            for record in recording.calls:
                by_group[record.interaction.client.group] += served_until(record, until_s)
            heights.append(by_group[group] / (sum(by_group.values()) or 1.0))
        axes.bar(range(len(heights)), heights, bottom=bottoms, label=group)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    axes.set_xticks(range(len(recordings)), list(recordings), fontsize="small")
    axes.set_ylabel("share of priced tokens")
    axes.set_title("Shares while clients send")
    axes.legend(fontsize="x-small")
    return figure


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise PlotError("plots need matplotlib: install fairserve[sim]") from error
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "fairserve"
    from matplotlib import pyplot as plt

    return plt


def _save(pyplot: Any, figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def _slug(policy: str) -> str:
    return policy.lower().replace("+", "-")
