"""`fairserve sim run` on a terminal: a progress bar meanwhile, a table at the end, files if asked for.

The simulation itself is in `fairserve.sim`, which has no clock and prints nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fairserve.core.catalogue import SCHEDULERS
from fairserve.sim.errors import InputError
from fairserve.sim.experiment import Experiment, Figure, experiment
from fairserve.sim.files import read_scenario
from fairserve.sim.plots import PlotError, plot_all

#: Title, figure, factor.
_COLUMNS = (
    ("wait p50 s", "wait_p50_s", 1.0),
    ("wait p99 s", "wait_p99_s", 1.0),
    ("good users' wait p99 s", "good_wait_p99_s", 1.0),
    ("TTFT p99 s", "ttft_p99_s", 1.0),
    ("in tok/s", "input_tokens_per_s", 1.0),
    ("out tok/s", "output_tokens_per_s", 1.0),
    ("waste %", "token_waste", 100.0),
    ("users fully served %", "serving_experience", 100.0),
    ("refused interactions", "refused_interactions", 1.0),
    ("delayed users %", "delayed_users", 100.0),
    ("Jain", "jain_satisfaction", 1.0),
    ("slowdown p99", "slowdown_p99", 1.0),
    ("waiting in scheduler", "waiting_in_scheduler_p50", 1.0),
    ("rank corr.", "rank_correlation", 1.0),
    ("inverted %", "inverted_pairs", 100.0),
)


def run(
    file: Path,
    policies: Sequence[str],
    seeds: int,
    trace: Path | None,
    json_file: Path | None,
    plot_folder: Path | None,
    console: Console,
) -> int:
    """Exit status: 0, or 2 where the input can't be used."""
    try:
        scenario = read_scenario(file, trace)
        unknown = [policy for policy in policies if policy not in SCHEDULERS]
        if unknown:
            raise InputError(
                "--policy", None, "", f"unknown policy {unknown[0]!r}: one of {', '.join(SCHEDULERS)}"
            )
        _check_outputs(json_file, plot_folder)
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        ) as bar:
            task = bar.add_task(scenario.name, total=1.0)

            def show(policy: str, seed: int, share: float) -> None:
                bar.update(task, completed=share, description=f"{scenario.name}: {policy}, seed {seed}")

            numbers = range(1, seeds + 1)
            result = experiment(scenario, policies, numbers, keep=plot_folder is not None, on_progress=show)
        console.print(_table(result))
        if json_file is not None:
            json_file.write_text(json.dumps(result.as_json(), indent=1) + "\n", encoding="utf-8")
        if plot_folder is not None:
            for path in plot_all(result.recordings, plot_folder):
                console.print(str(path), highlight=False)
    except (InputError, PlotError) as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, soft_wrap=True, markup=False)
        return 2
    return 0


def _check_outputs(json_file: Path | None, plot_folder: Path | None) -> None:
    """Raises InputError where a result can't be written: better now than after the run. A file that is there
    keeps its content, and one that is not is not left behind.
    """
    try:
        if json_file is not None:
            new = not json_file.exists()
            with json_file.open("a", encoding="utf-8"):
                pass
            if new:
                json_file.unlink()
    except OSError as error:
        raise InputError("--json", None, str(json_file), error.strerror or "can't be written") from error
    try:
        if plot_folder is not None:
            plot_folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=plot_folder):
                pass
    except OSError as error:
        raise InputError("--plot", None, str(plot_folder), error.strerror or "can't be written") from error


def _table(result: Experiment) -> Table:
    count = len(result.seeds)
    caption = "means over seeds ± 95 % confidence" if count > 1 else "one seed: no confidence interval"
    table = Table(title=f"{result.scenario.name}, {count} seed{'s' if count > 1 else ''}", caption=caption)
    table.add_column("")
    policies = list(result.measured)
    for policy in policies:
        table.add_column(policy, justify="right")
    for title, name, factor in _COLUMNS:
        table.add_row(title, *(_shown(result.figure(policy, name), factor) for policy in policies))
    return table


def _shown(figure: Figure, factor: float) -> str:
    if math.isnan(figure.mean):
        return "-"
    shown = f"{factor * figure.mean:.4g}"
    return shown if math.isnan(figure.interval) else f"{shown} ± {factor * figure.interval:.2g}"
