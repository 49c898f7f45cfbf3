"""Traces: CSV files of calls, one a line, with what the source leaves open laid over them by a seed.

Columns: `arrival_s, tenant, user, application, interaction, call, input_tokens, system_tokens,
output_tokens`; an empty cell means that the source does not say. Rows are in order of arrival. Calls of one
interaction are sent in a closed loop: between a call's end and the next one passes the time that was between
their arrivals. A row without a user gets one of `users` users, of which the n-th is 1/n as frequent as the
first; one without a tenant belongs to `trace`; one without an interaction is its own.
"""

from __future__ import annotations

import csv
import math
import random
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fairserve.core import ApplicationSettings, Profile
from fairserve.sim.distributions import MOST_TOKENS
from fairserve.sim.documents import Document, Number, Whole
from fairserve.sim.errors import InputError
from fairserve.sim.workload import Behaviour, CallPlan, Client, InteractionPlan, Workload

COLUMNS = (
    "arrival_s",
    "tenant",
    "user",
    "application",
    "interaction",
    "call",
    "input_tokens",
    "system_tokens",
    "output_tokens",
)


class TraceOptions(Document):
    """How a trace is laid out."""

    file: str | None = None  #: beside the scenario file; --trace goes before it
    speed: Number = Field(default=1.0, gt=0.0)  #: times as fast as it was recorded
    users: Whole = Field(default=100, ge=1)  #: for rows that name none
    rows: Annotated[Whole, Field(ge=1)] | None = None  #: only the first so many


@dataclass(frozen=True, slots=True)
class Row:
    """One call of a trace."""

    arrival_s: float
    tenant: str
    user: str
    application: str
    interaction: str
    call: int | None  #: number within the interaction
    input_tokens: int
    system_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """A whole file."""

    rows: tuple[Row, ...]

    def profiles(self) -> dict[str, ApplicationSettings]:
        """Mean calls of its applications."""
        known: dict[str, list[Row]] = {}
        for row in self.rows:
            known.setdefault(row.application, []).append(row)
        return {
            name: ApplicationSettings(
                name,
                Profile(
                    sum(row.input_tokens for row in rows) / len(rows),
                    sum(row.output_tokens for row in rows) / len(rows),
                    sum(row.system_tokens for row in rows) / len(rows),
                ),
            )
            for name, rows in known.items()
        }


def read_trace(path: Path, applications: frozenset[str] | None = None) -> Trace:
    """A trace file; its applications must be among `applications` if given. Raises InputError."""
    name = str(path)
    rows: list[Row] = []
    numbers: dict[tuple[str, ...], int] = {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.reader(stream)
            header = next(reader, None)
            _check_header(name, header)
            for cells in reader:
                row = _row(name, reader.line_num, cells, applications)
                if rows and row.arrival_s < rows[-1].arrival_s:
                    raise InputError(
                        name, reader.line_num, "arrival_s", f"{row.arrival_s:g} is before the line above it"
                    )
                _check_order(name, reader.line_num, row, numbers)
                rows.append(row)
    except OSError as error:
        raise InputError(name, None, "", error.strerror or "can't be read") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(name, None, "", f"is not a CSV file: {error}") from error
    if not rows:
        raise InputError(name, None, "", "has no calls")
    return Trace(tuple(rows))


def trace_workload(trace: Trace, options: TraceOptions, seed: int) -> Workload:
    """What a trace sends. The seed lays users over rows that name none."""
    rng = random.Random(f"{seed}/trace")
    frequency = [1.0 / (number + 1) for number in range(options.users)]
    clients: dict[tuple[str, str], Client] = {}
    groups: dict[tuple[object, ...], list[Row]] = {}
    owners: dict[tuple[object, ...], tuple[str, str]] = {}
    for index, row in enumerate(trace.rows[: options.rows]):
        tenant = row.tenant or "trace"
        key: tuple[object, ...] = (tenant, row.user, row.application, row.interaction or index)
        if key not in groups:
            user = row.user
            if not user and not row.tenant:
                user = f"user-{rng.choices(range(options.users), frequency)[0]}"
            owners[key] = (tenant, user or tenant)
        groups.setdefault(key, []).append(row)
    plans = []
    for key, rows in groups.items():
        tenant, user = owners[key]
        client = clients.get((tenant, user))
        if client is None:
            own = random.Random(f"{seed}/trace/{tenant}/{user}")
            client = clients[tenant, user] = Client("trace", tenant, user, Behaviour(), True, own)
        calls = tuple(
            CallPlan(row.application, row.input_tokens, row.system_tokens, row.output_tokens) for row in rows
        )
        times = [row.arrival_s / options.speed for row in rows]
        gaps_s = tuple(later - earlier for earlier, later in pairwise(times))
        plans.append(InteractionPlan(client, times[0], calls, gaps_s))
    plans.sort(key=lambda plan: plan.start_s)
    return Workload(tuple(clients.values()), tuple(plans))


def _check_header(name: str, header: list[str] | None) -> None:
    if header is None:
        raise InputError(name, None, "", "is empty")
    for index, column in enumerate(COLUMNS):
        if index >= len(header):
            raise InputError(name, 1, column, "this column is missing")
        if header[index] != column:
            raise InputError(name, 1, header[index] or f"column {index + 1}", f"must be {column}")
    if len(header) > len(COLUMNS):
        raise InputError(name, 1, header[len(COLUMNS)], "no such column")


def _row(name: str, line: int, cells: list[str], applications: frozenset[str] | None) -> Row:
    if len(cells) != len(COLUMNS):
        raise InputError(name, line, "", f"has {len(cells)} cells, not {len(COLUMNS)}")
    given = dict(zip(COLUMNS, cells, strict=True))
    application = given["application"]
    if applications is not None and application not in applications:
        raise InputError(name, line, "application", f"unknown application {application!r}")
    input_tokens = _tokens(name, line, "input_tokens", given["input_tokens"], least=1)
    system = given["system_tokens"]
    system_tokens = _tokens(name, line, "system_tokens", system, least=0) if system else 0
    if system_tokens > input_tokens:
        raise InputError(name, line, "system_tokens", f"{system_tokens} is more than input_tokens")
    return Row(
        arrival_s=_seconds(name, line, given["arrival_s"]),
        tenant=given["tenant"],
        user=given["user"],
        application=application or "trace",
        interaction=given["interaction"],
        call=_tokens(name, line, "call", given["call"], least=1) if given["call"] else None,
        input_tokens=input_tokens,
        system_tokens=system_tokens,
        output_tokens=max(1, _tokens(name, line, "output_tokens", given["output_tokens"], least=0)),
    )


def _check_order(name: str, line: int, row: Row, numbers: dict[tuple[str, ...], int]) -> None:
    """Calls are sent in the order of their rows: their numbers must say the same. `numbers` has the last
    one of each interaction.
    """
    if row.call is None or not row.interaction:
        return
    key = (row.tenant, row.user, row.application, row.interaction)
    before = numbers.get(key, 0)
    if row.call <= before:
        problem = f"{row.call} is not after {before}, the call of this interaction above it"
        raise InputError(name, line, "call", problem)
    numbers[key] = row.call


def _seconds(name: str, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0.0):
        raise InputError(name, line, "arrival_s", f"must be seconds from 0 on, not {text!r}")
    return value


def _tokens(name: str, line: int, field: str, text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= MOST_TOKENS:
        problem = f"must be a whole number within {least}..{MOST_TOKENS}, not {text!r}"
        raise InputError(name, line, field, problem)
    return value
