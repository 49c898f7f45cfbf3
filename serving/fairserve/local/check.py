"""`fairserve check`: what a cluster would make of a folder of manifests, without starting anything."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from fairserve.local.compilation import FolderError, compile_folder
from fairserve.local.manifests import Problem, read_folder
from fairserve.local.objects import Objects
from fairserve_operator.decide.conditions import CONFLICTED, Condition

#: Conditions do not depend on the salt.
_SALT = "00" * 16


def check(folder: Path, pool: str | None, console: Console) -> int:
    """Print each object with its conditions; 1 if anything is refused, else 0."""
    try:
        reading = read_folder(folder)
    except OSError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    objects = Objects()
    objects.apply(reading)
    # Folded and not cut: a path is read, or pasted, whole.
    columns = [Column(name, overflow="fold") for name in ("Object", "Where", "Condition", "Why")]
    columns[-1].ratio = 1
    table = Table(*columns, title=str(folder), title_justify="left", expand=True)
    refused = bool(reading.problems)
    for problem in reading.problems:
        table.add_row(problem.subject or "?", _where(problem), "[red]refused", problem.message)
    try:
        refused |= _add_conditions(table, objects, pool)
    except FolderError as error:
        refused = True
        table.add_row("ServingPool", str(folder), "[red]refused", str(error))
    console.print(table)
    return int(refused)


def _add_conditions(table: Table, objects: Objects, pool: str | None) -> bool:
    """Add a row for each object and each of its bad conditions; whether there is any of these."""
    chosen, compiled = compile_folder(objects, pool, _SALT)
    refused = False
    for key, conditions in sorted(compiled.conditions.items()):
        bad = [condition for condition in conditions if _is_bad(condition)]
        refused |= bool(bad)
        if not bad:
            notes = "; ".join(condition.message for condition in conditions if _is_worth_a_word(condition))
            table.add_row(f"{key.kind} {key.name}", objects.place(key), "[green]accepted", notes)
        for condition in bad:
            state = f"[red]{condition.type}={condition.status}"
            table.add_row(f"{key.kind} {key.name}", objects.place(key), state, condition.message)
    for key in objects.outside(chosen.key.namespace):
        why = f'is in namespace "{key.namespace}", the pool is in "{chosen.key.namespace}"'
        table.add_row(f"{key.kind} {key.name}", objects.place(key), "[yellow]takes no part", why)
    return refused


def _is_bad(condition: Condition) -> bool:
    return condition.status == ("True" if condition.type == CONFLICTED else "False")


def _is_worth_a_word(condition: Condition) -> bool:
    """Whether a good condition says more than that all is well."""
    return condition.reason not in ("Accepted", "Resolved")


def _where(problem: Problem) -> str:
    return problem.file if problem.line is None else f"{problem.file}:{problem.line}"
