"""Figures of a benchmark: how they are judged, written and shown.

A benchmark NAME is a command, `make bench-NAME` or `make NAME`. It writes `build/bench/NAME.json` and its
section of docs/benchmarks.md, and prints the document as its last line. Whether a goal is met is computed.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "bench"
PAGE = ROOT / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Goal:
    """What a figure should be; `holds` is asked with its value."""

    text: str
    holds: Callable[[float], bool]


def at_most(most: float) -> Goal:
    return Goal(f"<= {most:g}", lambda value: value <= most)


def at_least(least: float) -> Goal:
    return Goal(f">= {least:g}", lambda value: value >= least)


def exactly(wanted: float) -> Goal:
    return Goal(f"{wanted:g}", lambda value: value == wanted)


@dataclass(frozen=True)
class Figure:
    """One number. `goal` and `met` are None for a figure that is shown beside others."""

    name: str
    value: float | None  #: None where it has none: a ratio to zero
    unit: str
    spread: float | None
    goal: str | None
    met: bool | None


def figure(
    name: str, value: float, unit: str, spread: float | None = None, goal: Goal | None = None
) -> Figure:
    """A figure, judged. A value that is not finite meets no goal."""
    finite = math.isfinite(value)
    return Figure(
        name,
        float(f"{value:.5g}") if finite else None,
        unit,
        float(f"{spread:.3g}") if spread is not None and math.isfinite(spread) else None,
        goal.text if goal is not None else None,
        bool(finite and goal.holds(value)) if goal is not None else None,
    )


def half_quartiles(samples: Sequence[float]) -> float | None:
    """Half the distance between the quartiles; None for fewer than two samples."""
    if len(samples) < 2:
        return None
    low, _, high = statistics.quantiles(samples, n=4)
    return (high - low) / 2


def publish(name: str, seed: object, figures: Sequence[Figure], python: str | None = None) -> None:
    """Show the figures, write the document and print it as the last line. `python`: the version that ran what
    was measured, if not this one.
    """
    for one in figures:
        spread = f" ± {one.spread:g}" if one.spread is not None else ""
        judged = {True: "met", False: "NOT MET", None: ""}[one.met]
        print(f"{judged:8}{one.name}: {_shown(one.value)}{spread} {one.unit}" + _goal(one))
    document = {
        "name": name,
        "commit": _commit(),
        "machine": machine(python),
        "seed": seed,
        "figures": [asdict(one) for one in figures],
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(
        with_section(PAGE.read_text(encoding="utf-8"), name, _section(document)), encoding="utf-8"
    )
    print(json.dumps(document))


def with_section(page: str, name: str, section: str) -> str:
    """The page with the section of that name replaced, or added as its last."""
    before, *sections = page.split("\n## ")
    known = {text.partition("\n")[0]: text.rstrip() for text in sections}
    known[name] = f"{name}\n\n{section.rstrip()}"
    return "\n\n## ".join([before.rstrip(), *known.values()]) + "\n"


def _section(document: dict[str, Any]) -> str:
    seed = document["seed"]
    seeds = ", ".join(map(str, seed)) if isinstance(seed, list) else seed
    lines = [
        f"Commit {document['commit']}; {document['machine']}; seed {seeds}.",
        "",
        "| figure | value | spread | unit | goal | met |",
        "|---|--:|--:|---|---|---|",
    ]
    for one in document["figures"]:
        spread = "" if one["spread"] is None else f"± {one['spread']:,.3g}"
        met = {True: "yes", False: "**no**", None: ""}[one["met"]]
        row = (one["name"], _shown(one["value"]), spread, one["unit"], one["goal"] or "", met)
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def machine(python: str | None = None) -> str:
    """Processor, cores, system and Python."""
    version = python or platform.python_version()
    return f"{_processor()}, {_cores()} cores, {platform.system()}, Python {version}"


def version_of(python: Path) -> str:
    """An interpreter's version. Raises CalledProcessError for one that doesn't run."""
    command = [str(python), "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _shown(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _goal(one: Figure) -> str:
    return f" (goal {one.goal})" if one.goal is not None else ""


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or "unknown"


def _cores() -> int:
    return len(_cpuinfo("processor"))


def _processor() -> str:
    return next(iter(_cpuinfo("model name")), platform.machine())


def _cpuinfo(key: str) -> list[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(key)]
