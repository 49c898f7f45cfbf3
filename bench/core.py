"""Speed and memory of the scheduling core: `python -m bench.core`.

One figure is the time in the core for one call: `enqueue`, `dispatch` and `finish` with limits, interactions,
prediction and a learned profile, while so many other calls wait, with the garbage collector set as in the
sidecar. Large and small backlogs take turns round by round, so that a busy machine slows both. Memory is what
tracemalloc sees allocated for waiting calls and for known, idle flows. Each core, the compiled and the plain,
is measured in processes of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

from bench.results import ROOT, Figure, at_most, figure, half_quartiles, publish
from fairserve.core import (
    ApplicationSettings,
    Call,
    Learning,
    Limit,
    Outcome,
    Profile,
    Queued,
    Scheduler,
    Settings,
    TenantSettings,
    Usage,
)
from fairserve.core import scheduler as scheduler_module
from fairserve.core.memory import MOST_IDLE_FLOWS, MOST_INTERACTIONS
from fairserve.sidecar.process import tune_collector

SEED = 1
CALLS_A_ROUND = 4_000
ROUNDS = 15
BATCH = 64  #: calls in the engine
CALL_S = 0.001  #: time that passes with each call
SYBILS = 1_000_000

#: Limits that are counted for every call and refuse none: refusals are cheaper than admissions.
USER, TENANT = Limit(60, 60.0), Limit(10_000, 60.0)
APPLICATIONS = {
    f"application-{n}": ApplicationSettings(
        f"application-{n}",
        Profile(200.0 * 2**n, 50.0 * 2 ** (n % 3), system_tokens=50.0),
        per_user=Limit(100, 60.0) if n % 2 else None,
        per_tenant=Limit(5_000, 60.0) if n == 0 else None,
        learning=Learning() if n == 3 else None,
    )
    for n in range(5)
}


def settings(tenants: int) -> Settings:
    """A pool with every kind of limit."""
    weights = random.Random(SEED)
    return Settings(
        tenants=MappingProxyType(
            {
                f"tenant-{n}": TenantSettings(
                    f"tenant-{n}", weight=weights.choice([0.5, 1.0, 2.0, 4.0]), per_user=USER, total=TENANT
                )
                for n in range(tenants)
            }
        ),
        applications=MappingProxyType(APPLICATIONS),
    )


class Load:
    """A scheduler whose backlog keeps its size: each call that goes is followed by one that comes."""

    def __init__(self, *, queued: int, flows: int, tenants: int) -> None:
        self.rng = random.Random(SEED)
        self.scheduler = Scheduler(settings(tenants))
        self.flows = [(f"tenant-{n % tenants}", f"user-{n}") for n in range(flows)]
        self.names = list(APPLICATIONS)
        self.now = 0.0
        self.last_id = 0
        self.running: list[int] = []
        per_flow = queued // flows
        for call in self.calls(queued, [flow for flow in self.flows for _ in range(per_flow)]):
            self.now += CALL_S
            assert isinstance(self.scheduler.enqueue(call, self.now), Queued)

    def calls(self, count: int, flows: list[tuple[str, str]] | None = None) -> list[Call]:
        """Calls of random flows, three in ten with an interaction of a few calls."""
        made = []
        for n in range(count):
            tenant, user = self.rng.choice(self.flows) if flows is None else flows[n]
            self.last_id += 1
            made.append(
                Call(
                    self.last_id,
                    tenant,
                    user,
                    self.names[hash(user) % 5 if self.rng.random() < 0.9 else 0],
                    self.rng.randint(50, 4_000),
                    system_tokens=50,
                    max_output_tokens=2_000,
                    interaction=f"{self.last_id % 4}" if self.rng.random() < 0.3 else None,
                    body_bytes=self.rng.randint(200, 16_000),
                )
            )
        return made

    def round(self, count: int) -> float:
        """Microseconds a call."""
        scheduler, running = self.scheduler, self.running
        calls = self.calls(count)
        usages = [Usage(self.rng.randint(50, 4_000), self.rng.randint(1, 400)) for _ in calls]
        while len(running) < BATCH:
            dispatched = scheduler.dispatch(self.now)
            assert dispatched is not None
            running.append(dispatched.call_id)
        picks = [self.rng.randrange(BATCH) for _ in calls]
        enqueue, dispatch, finish, completed = (
            scheduler.enqueue,
            scheduler.dispatch,
            scheduler.finish,
            Outcome.COMPLETED,
        )
        now = self.now
        started = time.process_time()
        for call, usage, pick in zip(calls, usages, picks, strict=True):
            now += CALL_S
            enqueue(call, now)
            finish(running[pick], usage, completed, now)
            dispatched = dispatch(now)
            assert dispatched is not None
            running[pick] = dispatched.call_id
        spent = time.process_time() - started
        self.now = now
        scheduler.expire(now)
        return 1e6 * spent / count


def speed(rounds: int) -> list[Figure]:
    """Time for one call at two backlogs."""
    large = Load(queued=100_000, flows=10_000, tenants=1_000)
    small = Load(queued=10_000, flows=1_000, tenants=1_000)
    tiny = Load(queued=200, flows=4, tenants=2)
    tune_collector()
    times: dict[str, list[float]] = {"large": [], "small": [], "tiny": []}
    loads = {"large": large, "small": small, "tiny": tiny}
    for load in loads.values():
        load.round(CALLS_A_ROUND)
    for _ in range(rounds):
        for name, load in loads.items():
            times[name].append(load.round(CALLS_A_ROUND))
    for load in loads.values():
        load.scheduler.check()
    names = {
        "large": "one call, 100,000 queued, 10,000 flows, 1,000 tenants",
        "small": "one call, 10,000 queued, 1,000 flows, 1,000 tenants",
        "tiny": "one call, 200 queued, 4 flows, 2 tenants",
    }
    ratios = [a / b for a, b in zip(times["large"], times["small"], strict=True)]
    return [
        *(
            figure(names[load], statistics.median(samples), "us", half_quartiles(samples), at_most(10))
            for load, samples in times.items()
        ),
        figure(
            "cost at 100,000 queued relative to 10,000",
            statistics.median(ratios),
            "ratio",
            half_quartiles(ratios),
            at_most(2),
        ),
    ]


def memory() -> list[Figure]:
    """Bytes for a waiting call, the call itself included, and for a flow that idles: after one call, and
    after twenty in five applications, each of which keeps averages and a window of its own.
    """
    queued = 100_000
    gc.collect()
    tracemalloc.start()
    load = Load(queued=0, flows=10_000, tenants=1_000)
    flows = [flow for flow in load.flows for _ in range(queued // len(load.flows))]
    before = tracemalloc.get_traced_memory()[0]
    for call in load.calls(queued, flows):
        load.scheduler.enqueue(call, load.now)
    gc.collect()
    per_call = (tracemalloc.get_traced_memory()[0] - before) / queued
    del load, flows, call
    once, used = memory_of_flows(50_000, calls=1), memory_of_flows(5_000, calls=20)
    tracemalloc.stop()
    return [
        figure("memory a queued call, the call included", per_call, "bytes", goal=at_most(1_500)),
        figure("memory a known flow, after one call", once, "bytes", goal=at_most(2_000)),
        figure("memory a known flow, after 20 calls in 5 applications", used, "bytes", goal=at_most(2_000)),
    ]


def memory_of_flows(users: int, *, calls: int) -> float:
    """Bytes a flow."""
    gc.collect()
    load = Load(queued=0, flows=1, tenants=1_000)
    before = tracemalloc.get_traced_memory()[0]
    for n in range(users * calls):
        load.flows[0] = (f"tenant-{n // calls % 1_000}", f"user-{n // calls}")
        for call in load.calls(1):
            spread = replace(call, application=load.names[n % len(load.names)]) if calls > 1 else call
            load.scheduler.enqueue(spread, load.now)
            load.scheduler.dispatch(load.now)
            load.scheduler.finish(call.call_id, Usage(100, 50), Outcome.COMPLETED, load.now)
    gc.collect()
    known = sum(len(tenant.flows) for tenant in load.scheduler.backlog.tenants.values())
    return (tracemalloc.get_traced_memory()[0] - before) / known


def sybil(users: int) -> list[Figure]:
    """A tenant that sends each call under another name, a thousand a second, each with an interaction."""
    load = Load(queued=0, flows=1, tenants=10)
    scheduler = load.scheduler
    most = 0
    for n in range(users):
        now = n / 1_000
        call = Call(n + 1, "tenant-1", f"sybil-{n}", "application-1", 100, interaction="i")
        scheduler.enqueue(call, now)
        dispatched = scheduler.dispatch(now)
        assert dispatched is not None
        scheduler.finish(dispatched.call_id, Usage(100, 50), Outcome.COMPLETED, now)
        if n % 1_000 == 0:
            scheduler.expire(now)
            most = max(most, sum(len(tenant.flows) for tenant in scheduler.backlog.tenants.values()))
    scheduler.check()
    name = f"flows known at most under {users:,} users of one tenant"
    return [figure(name, most, "flows", goal=at_most(MOST_IDLE_FLOWS + MOST_INTERACTIONS))]


#: What one process measures, by name.
PARTS: dict[str, Callable[[int], list[Figure]]] = {
    "speed": speed,
    "memory": lambda _: memory(),
    "sybil": lambda _: sybil(SYBILS),
}


def measured(part: str, rounds: int, python_path: Path | None) -> list[Figure]:
    """Figures of one part, measured in a process of its own that finds the core on `python_path`."""
    command = [sys.executable, "-m", "bench.core", "--part", part, "--rounds", str(rounds)]
    where = f"{python_path}{os.pathsep}" if python_path is not None else ""
    environment = os.environ | {"PYTHONPATH": f"{where}{ROOT}"}
    done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    told = json.loads(done.stdout)
    if told["compiled"] is not (python_path is not None):
        raise SystemExit(f"the core is not the one that was asked for: {told['core']}")
    return [Figure(**one) for one in told["figures"]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.core", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of {CALLS_A_ROUND:,} calls")
    parser.add_argument("--compiled", type=Path, help="folder with a compiled core (make compiled)")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        core = scheduler_module.__file__
        figures = PARTS[options.part](options.rounds)
        told = {"core": core, "compiled": not core.endswith(".py"), "figures": [asdict(f) for f in figures]}
        print(json.dumps(told))
        return
    cores = {"compiled": options.compiled.resolve()} if options.compiled is not None else {}
    figures = []
    for title, path in (cores | {"plain Python": None}).items():
        for part in PARTS if title != "plain Python" or not cores else ["speed"]:
            print(f"measuring {part}, {title} core", file=sys.stderr, flush=True)
            figures += [
                replace(one, name=f"{one.name}; {title}") for one in measured(part, options.rounds, path)
            ]
    publish("core", SEED, figures)


if __name__ == "__main__":
    main()
