"""`make paper`: the paper's experiments and what it leaves open, on the simulator.

Writes docs/paper.md with its figures, and build/bench/paper.json. Nothing in the text states a result that
the run has not computed. `--traces DIR` adds public traces; without it everything is generated.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench import paper_scenarios as scenarios
from bench.oracle import WellBehavedFirst
from bench.paper_report import Report, above, figure_of, number, ratio, shown
from bench.results import ROOT, Goal, at_least, at_most, exactly, publish
from fairserve.core import Scheduler, Settings
from fairserve.core.catalogue import DISCIPLINES, SCHEDULERS
from fairserve.core.disciplines import Discipline, Ordering, Throttling
from fairserve.sim import paper
from fairserve.sim.costs import VTC_A10G, alone
from fairserve.sim.experiment import Experiment, Figure
from fairserve.sim.plots import bars, lines, service_lines
from fairserve.sim.recording import Transition
from fairserve.sim.scenario import Scenario
from fairserve.sim.statistics import mean
from fairserve.sim.traces import Trace, TraceOptions, read_trace, trace_workload
from fairserve.sim.world import simulate

PAGE = ROOT / "docs" / "paper.md"
FIGURES = ROOT / "docs" / "paper"

#: OIT before a queue in order of arrival: throttling without scheduling.
OIT_ALONE = partial(
    Scheduler,
    discipline=Discipline(
        Ordering.ARRIVAL, continuations_first=False, throttling=Throttling.INTERACTIONS_WHILE_OVERLOADED
    ),
)
#: They know beforehand who the top users of the paper's workload are; by their order among their equals.
ORACLES = {
    f"well-behaved first, by {order}": partial(
        WellBehavedFirst, good=lambda user: not paper.is_top(user), discipline=DISCIPLINES[policy]
    )
    for order, policy in (("counters", "W"), ("arrival", "FCFS"))
}
#: Those that know no limits: they need one run for all of them.
UNLIMITED = ("FCFS", "VTC", "VTC+P", "DRR", "W")
LIMITED = ("RPM", "W+L", "W+O", "FairServe")
#: Where the engine is busy with 1.2 times what it can do while clients send.
LOAD = 1.2
LOADS = (0.9, 1.0, 1.1, 1.2, 1.35, 1.6)

#: Title, figure, factor.
ROWS = (
    ("calls", "calls", 1.0),
    ("waiting delay p50, s", "wait_p50_s", 1.0),
    ("waiting delay p99, s", "wait_p99_s", 1.0),
    ("well-behaved users' waiting delay p50, s", "good_wait_p50_s", 1.0),
    ("well-behaved users' waiting delay p99, s", "good_wait_p99_s", 1.0),
    ("time to first token p99, s", "ttft_p99_s", 1.0),
    ("latency, mean, s", "latency_mean_s", 1.0),
    ("well-behaved users' latency, mean, s", "good_latency_mean_s", 1.0),
    ("input tokens/s", "input_tokens_per_s", 1.0),
    ("output tokens/s", "output_tokens_per_s", 1.0),
    ("tokens wasted, %", "token_waste", 100.0),
    ("serving experience, % of users", "serving_experience", 100.0),
    ("the same of well-behaved users, %", "good_serving_experience", 100.0),
    ("the same of users within their limit, %", "within_limits_served", 100.0),
    ("refused interactions", "refused_interactions", 1.0),
    ("of them well-behaved users'", "good_refused_interactions", 1.0),
    ("interactions cut after their first call", "cut_interactions", 1.0),
    ("delayed users, %", "delayed_users", 100.0),
    ("the same of well-behaved users, %", "good_delayed_users", 100.0),
    ("delayed users, counting the queue alone, %", "delayed_in_queue_users", 100.0),
    ("interaction completion time, mean, s", "completion_mean_s", 1.0),
    ("service difference (VTC), mean, thousand tokens", "service_difference_mean", 0.001),
    ("service difference (VTC), max, thousand tokens", "service_difference_max", 0.001),
    ("largest gap of backlogged users over the bound", "gap_over_bound", 1.0),
    ("pairs of backlogged users that this compares", "compared_pairs", 1.0),
    ("Jain index of satisfied demand", "jain_satisfaction", 1.0),
    ("slowdown p99", "slowdown_p99", 1.0),
    ("*calls waiting in the scheduler, median*", "waiting_in_scheduler_p50", 1.0),
    ("*rank correlation of arrival and dispatch*", "rank_correlation", 1.0),
    ("*inverted pairs, % of all*", "inverted_pairs", 100.0),
    ("*inverted pairs, % of those that waited together*", "inverted_waiting_pairs", 100.0),
)


def main() -> None:
    """Run everything; some minutes on one core."""
    parser = argparse.ArgumentParser(prog="python -m bench.paper", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="seeds, from 1 on (default 5)")
    parser.add_argument("--traces", type=Path, help="folder with arena.csv, azure-code.csv, ragpulse.csv")
    options = parser.parse_args()
    report = Report(range(1, options.seeds + 1), PAGE.parent)
    _introduction(report)
    _oit_alone(report)
    _wsc_alone(report)
    _mixed(report)
    _paper(report)
    _loads(report)
    _flood(report)
    _adversaries(report)
    _traces(report, options.traces)
    _speed(report)
    _goals(report)
    PAGE.write_text("\n".join(report.text).rstrip() + "\n", encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)} and its figures")
    publish("paper", list(report.seeds), report.figures)


def _introduction(report: Report) -> None:
    report.say(
        "# The paper, reproduced",
        "",
        "Written by `make paper`; the numbers are simulated. Do not edit.",
        "",
        "FairServe's paper (arXiv 2411.15997) reports waiting delays 10.67 to 93 times lower than VTC's and "
        "RPM's, no wasted tokens and nearly all users fully served. This page runs the scheduling core of this "
        "repository on the [simulator](concepts/simulator.md), which defines every figure below, beside the "
        "same core with other orders and other throttling. A run counts only if calls waited in the scheduler: "
        "the last rows of each table say how many did and how far dispatch departs from arrival.",
        "",
        f"Means over {len(report.seeds)} seeds ± 95 % confidence (Student's t). All schedulers meet the same "
        "clients. Engine steps cost what VTC's authors fitted for Llama-2-7B on an A10G, divided by a speed. "
        "`W` is weighted service counters alone, `W+L` with limits on calls that always hold, `W+O` with limits "
        "on calls that hold while overloaded; FairServe's limits hold while overloaded and count interactions "
        "(`W+O+I`). RPM serves in order of arrival and refuses a user's calls over its limit a minute. Refused "
        "clients come back after Retry-After, up to ten times.",
    )


# -- the three basic experiments ------------------------------------------------------------------------


def _oit_alone(report: Report) -> None:
    scenario = scenarios.oit_alone()
    runs = report.run(scenario, ["OIT"], schedulers={"OIT": OIT_ALONE})
    spike, sustained = scenarios.SPIKE_S, scenarios.SUSTAINED_S
    good = runs.figure("OIT", "good_refused_interactions")
    abusers = runs.of_class("OIT", "abusers", "refused_interactions")
    cut, waste = runs.figure("OIT", "cut_interactions"), runs.figure("OIT", "token_waste")
    outside = [armed_outside(changes, sustained) for changes in runs.transitions["OIT"]]
    report.say(
        "## 1. OIT alone",
        "",
        f"Forty good users all the time, a spike of {spike[1] - spike[0]:g} s at {spike[0]:g} s, and four "
        f"abusers from {sustained[0]:g} to {sustained[1]:g} s, under limits of 30 interactions a user and minute. "
        "Calls are served in order of arrival. Overload is a wait of 2 s that lasts 5 s.",
    )
    report.table(
        ["", "good users", "abusers"],
        [
            ["interactions", *(shown(runs.of_class("OIT", g, "interactions")) for g in ("good", "abusers"))],
            ["refused", shown(good), shown(abusers)],
            [
                "waiting delay p99, s",
                *(shown(runs.of_class("OIT", g, "wait_p99_s")) for g in ("good", "abusers")),
            ],
        ],
    )
    told = "; ".join(
        f"seed {seed}: "
        + (", ".join(f"{'armed' if c.armed else 'clear'} at {c.at_s:g} s" for c in changes) or "never armed")
        for seed, changes in zip(report.seeds, runs.transitions["OIT"], strict=True)
    )
    report.say(
        f"Overload, {told}. Interactions cut after they were admitted: {shown(cut)}; tokens wasted: "
        f"{shown(waste, 100)} %."
    )
    report.figure("oit_alone.good_refused", good.values, "interactions", exactly(0))
    report.figure("oit_alone.armed_outside_overload", outside, "times, all seeds", exactly(0))
    report.figure("oit_alone.abusers_refused", abusers.values, "interactions", at_least(1))


def armed_outside(changes: Sequence[Transition], sustained: tuple[float, float]) -> int:
    """How often the pool armed when no overload lasted; within ten seconds after one, waits are still long."""
    return sum(c.armed and not sustained[0] <= c.at_s <= sustained[1] + 10 for c in changes)


def _wsc_alone(report: Report) -> None:
    report.say(
        "## 2. WSC alone",
        "",
        "Tenants with more demand than they can get, each of another application (chat, code, RAG and story "
        "differ in typical cost by a factor of more than eight), no throttling. What each got of the normalised service "
        "(a typical call of any application costs about 1), beside what its weight says. Service is counted in "
        "one unit for all schedulers: N(r) of the tokens that were computed, running calls with what they have.",
    )
    applications = ("chat", "code", "rag", "story")
    heavy = {f"t{i}": round(8 / i, 3) for i in range(1, 9)}
    cases: dict[str, dict[str, float]] = {
        "equal": dict.fromkeys(("a", "b", "c", "d"), 1.0),
        "1:2:4:8": {"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0},
        "heavy-tailed (1/k)": heavy,
    }
    policies = ("FCFS", "DRR", "VTC", "W")
    rows, errors = [], {}
    for title, weights in cases.items():
        runs = report.run(scenarios.weighted(weights, applications), policies)
        total = sum(weights.values())
        for policy in policies:
            worst = []
            shares = []
            for metrics in runs.measured[policy]:
                served = [metrics.classes[name]["service"] for name in weights]
                shares.append([value / sum(served) for value in served])
                wanted = [weight / total for weight in weights.values()]
                worst.append(max(abs(s / w - 1) for s, w in zip(shares[-1], wanted, strict=True)))
            errors[title, policy] = worst
            means = [100 * mean([share[i] for share in shares]) for i in range(len(weights))]
            rows.append([title, policy, " : ".join(f"{m:.1f}" for m in means), shown(figure_of(worst), 100)])
        rows.append([title, "*weights*", " : ".join(f"{100 * w / total:.1f}" for w in weights.values()), ""])
    report.table(["weights", "scheduler", "shares of service, %", "worst deviation, %"], rows)
    for (title, policy), worst in errors.items():
        goal = at_most(0.03) if policy == "W" else above(0.03)
        unit = "of the share by weight" + ("" if policy == "W" else f", {policy}, a control that must miss")
        report.figure(
            f"wsc_alone.{title}.deviation{'' if policy == 'W' else f'.{policy}'}", worst, unit, goal
        )
    report.say(
        "FCFS, DRR and VTC are controls. FCFS serves by demand. DRR takes turns among users, and a user here has one "
        "call waiting at a time, so it serves nearly by demand, too. VTC keeps plain tokens even, so who has the "
        "cheaper application gets more typical calls. W charges what it predicts when it dispatches: what is left of "
        "its deviation is calls that run when the run ends, charged in full and served in part (those of *story* run "
        "longest), and the last few calls of the lightest tenant.",
    )
    _bound_alone(report)


def _bound_alone(report: Report) -> None:
    """The bound where a scheduler without fairness breaks it."""
    policies = ("FCFS", "VTC", "W")
    runs = report.run(scenarios.greedy(), policies)
    rows = [
        [policy, shown(runs.figure(policy, "gap_over_bound")), shown(runs.figure(policy, "compared_pairs"))]
        for policy in policies
    ]
    report.say(
        "**The bound.** A greedy tenant offers ten times what a modest one does, at equal weights, before an engine with "
        "a small KV pool. The largest difference of normalised service between two that both had calls waiting "
        "throughout a window, over the core's bound 2·U + Δ:",
    )
    report.table(["scheduler", "of the bound", "pairs compared"], rows)
    for policy, goal in (("W", at_most(1)), ("FCFS", above(1))):
        gaps, pairs = runs.figure(policy, "gap_over_bound"), runs.figure(policy, "compared_pairs")
        if policy == "W":
            report.worst_gap("wsc_alone.gap_over_bound", gaps.values, sum(pairs.values), goal)
        else:
            unit = f"of the bound, {sum(pairs.values):,.0f} pairs, {policy}, a control that must exceed it"
            report.figure(f"wsc_alone.gap_over_bound.{policy}", gaps, unit, goal)


def _mixed(report: Report) -> None:
    policies = ("FCFS", "RPM", "VTC", "FairServe")
    static = report.run(scenarios.mixed(learned=False), policies)
    learned = report.run(scenarios.mixed(learned=True), ["FairServe"])
    sources = [*((static, policy) for policy in policies), (learned, "FairServe")]
    groups = ("alpha", "beta", "gamma-before", "gamma-after", "abusers")
    report.say(
        "## 3. Both, under mixed traffic",
        "",
        "Users of three applications in closed loops (alpha chats, beta completes code, gamma writes), two abusers "
        "from 30 s on, and gamma's answers grow fivefold halfway, so that its profile is wrong from then on. With "
        "learned profiles w_a follows, and so does what a call is charged. Service is N(r) with the told profiles, one "
        "unit for all columns; *charged* is in each scheduler's own.",
    )
    rows = [
        [f"{group}: TTFT p99, s", *(shown(runs.of_class(p, group, "ttft_p99_s")) for runs, p in sources)]
        for group in groups
    ]
    rows += [
        [f"{group}: {name} a call", *(shown(_a_call(runs, p, group, name)) for runs, p in sources)]
        for name in ("service", "charged")
        for group in ("gamma-before", "gamma-after")
    ]
    named = (
        "good_wait_p99_s",
        "good_refused_interactions",
        "token_waste",
        "good_serving_experience",
        "jain_satisfaction",
        "waiting_in_scheduler_p50",
        "rank_correlation",
        "inverted_pairs",
    )
    rows += [
        [title, *(shown(runs.figure(p, name), factor) for runs, p in sources)]
        for title, name, factor in ROWS
        if name in named
    ]
    report.table(["", *policies, "FairServe, learned"], rows)
    for title, runs in (("static", static), ("learned", learned)):
        good = runs.figure("FairServe", "good_refused_interactions")
        report.figure(f"mixed.{title}.good_refused", good.values, "interactions", exactly(0))


def _a_call(runs: Experiment, policy: str, group: str, name: str) -> Figure:
    calls = runs.of_class(policy, group, "calls").values
    totals = runs.of_class(policy, group, name).values
    return figure_of([total / n for total, n in zip(totals, calls, strict=True)])


# -- the paper's table -----------------------------------------------------------------------------------


def _paper(report: Report) -> None:
    limits = scenarios.USER_LIMITS
    unlimited = report.run(scenarios.paper_workload(LOAD, limits[0]), UNLIMITED, keep=True)
    report.say(
        "## 4. The paper's workload",
        "",
        f"{paper.USERS:,} users, {paper.APPLICATIONS} applications, {paper.CALLS:,} calls within "
        f"{paper.SECONDS:g} s; one engine with a KV pool of 100,000 tokens. The top 1 % of users "
        f"({paper.TOP_USERS}) make 35 % of the calls; *well-behaved* are the others. The published aggregates "
        "fix no engine: at the published throughput (12,248 input tokens/s) this workload would be eight times "
        f"what the engine can do, and no order helps when every user alone is too much. Here the engine's speed "
        f"makes the load {LOAD:g}: well-behaved users alone would just fit. Section 5 varies it.",
    )
    limited: dict[int, Experiment] = {}
    for limit in limits:
        limited[limit] = report.run(scenarios.paper_workload(LOAD, limit), LIMITED, keep=limit == limits[-1])
        runs = limited[limit]
        report.say(f"### User limit {limit} a minute")
        head = ["", *UNLIMITED, *LIMITED] if limit == limits[0] else ["", *LIMITED]
        sources: list[tuple[Experiment, str]] = [(runs, policy) for policy in LIMITED]
        if limit == limits[0]:
            sources = [(unlimited, policy) for policy in UNLIMITED] + sources
            report.say("FCFS, VTC, DRR and W know no limits and are the same in the other tables.")
        report.table(
            head,
            [
                [title, *(shown(source.figure(policy, name), factor) for source, policy in sources)]
                for title, name, factor in ROWS
            ],
        )
    _paper_figures(report, unlimited, limited)
    _paper_claims(report, unlimited, limited)


def _paper_figures(report: Report, unlimited: Experiment, limited: Mapping[int, Experiment]) -> None:
    last = limited[scenarios.USER_LIMITS[-1]]
    for recording in (unlimited.recordings["FCFS"], last.recordings["FairServe"]):
        path = FIGURES / f"service-{recording.policy.lower()}.svg"
        lines(
            path,
            f"Service by user, {recording.policy}",
            "seconds",
            "thousand priced tokens",
            service_lines(recording),
        )
        report.image(path, f"Service by user under {recording.policy}")
    for name, title, unit, factor in (
        ("token_waste", "Tokens wasted", "% of tokens", 100.0),
        ("serving_experience", "Users all of whose interactions were served", "% of users", 100.0),
        ("delayed_users", "Delayed users", "% of users", 100.0),
    ):
        series = {
            f"limit {limit}": {
                policy: (factor * f.mean, factor * f.interval)
                for source, policies in ((unlimited, ("FCFS", "VTC")), (runs, LIMITED))
                for policy in policies
                for f in (source.figure(policy, name),)
            }
            for limit, runs in limited.items()
        }
        path = FIGURES / f"{name.replace('_', '-')}.svg"
        bars(path, title, unit, series)
        report.image(path, title)


#: What FairServe is compared by: name, figure, what a ratio above 1 means, and the goals against RPM and VTC.
COMPARED = (
    ("delayed", "delayed_users", "times fewer delayed users"),
    ("good_delayed", "good_delayed_users", "times fewer delayed well-behaved users"),
    ("good_wait", "good_wait_p99_s", "times shorter p99 wait of well-behaved users"),
)
PAPERS_RATIO = {"RPM": 93.0, "VTC": 10.67}


WAITING = "waiting_in_scheduler_p50"


@dataclass(frozen=True, slots=True)
class _Compared:
    """A ratio of FairServe to another one, and how many calls waited in the schedulers of both."""

    ratio: Figure
    waiting: Figure
    theirs: Figure
    where: str

    @property
    def judged(self) -> bool:
        """Whether FairServe had a queue to order: without one the run says nothing about its order."""
        return self.waiting.mean >= 1.0

    def record(self, report: Report, name: str, what: str, rival: str, goal: Goal) -> None:
        waiting = f"calls waiting: {shown(self.waiting)}, {rival} {shown(self.theirs)}"
        backlog = "" if self.judged else ", no backlog"
        report.figure(
            name, self.ratio, f"{what}, {self.where} ({waiting}{backlog})", goal, judged=self.judged
        )


def _paper_claims(report: Report, unlimited: Experiment, limited: Mapping[int, Experiment]) -> None:
    rows = []
    for limit, runs in limited.items():
        waiting = runs.figure("FairServe", WAITING)
        for rival, source in (("RPM", runs), ("VTC", unlimited), ("FCFS", unlimited)):
            ratios = {
                name: ratio(source.figure(rival, f), runs.figure("FairServe", f)) for name, f, _ in COMPARED
            }
            speed = "input_tokens_per_s"
            faster = ratio(runs.figure("FairServe", speed), source.figure(rival, speed))
            theirs = source.figure(rival, WAITING)
            told = [*ratios.values(), faster, waiting, theirs]
            rows.append([f"{limit}", rival, *(shown(one) for one in told)])
            prefix, where = f"paper.{rival}.limit {limit}", f"user limit {limit}"
            for name, _, what in COMPARED if rival in PAPERS_RATIO else ():
                one = _Compared(ratios[name], waiting, theirs, where)
                one.record(report, f"{prefix}.{name}", what, rival, at_least(PAPERS_RATIO[rival]))
            if rival == "RPM":
                one = _Compared(faster, waiting, theirs, where)
                one.record(report, f"{prefix}.throughput", "of RPM's input tokens/s", rival, at_least(1.03))
    report.say(
        "### FairServe against the others",
        "",
        "How many times fewer delayed users FairServe has than each, of all users and of well-behaved ones, how many "
        "times shorter the p99 waiting delay of well-behaved users is, and its throughput over theirs. Below 1 the "
        "other one is better. Where less than one call waits in FairServe's scheduler at the median, there was no backlog "
        "and the ratio says nothing about its order: it is shown and not judged.",
    )
    head = [
        "user limit",
        "against",
        "delayed users",
        "delayed, well-behaved",
        "p99 waiting delay",
        "input tokens/s",
        "*waiting in FairServe's scheduler*",
        "*in the other's*",
    ]
    report.table(head, rows)
    refused = {
        limit: (runs.figure("RPM", "refused_interactions"), runs.figure("FairServe", "refused_interactions"))
        for limit, runs in limited.items()
    }
    report.say(
        "Refused interactions, RPM and FairServe: "
        + "; ".join(f"limit {n}: {shown(a)} and {shown(b)}" for n, (a, b) in refused.items())
        + "."
    )
    waste = [v for runs in limited.values() for v in runs.figure("FairServe", "cut_interactions").values]
    report.figure("paper.cut_interactions", waste, "admitted interactions cut", exactly(0))
    wasted = [100 * v for runs in limited.values() for v in runs.figure("FairServe", "token_waste").values]
    report.figure("paper.token_waste", wasted, "% of tokens", exactly(0))
    within = [100 * v for r in limited.values() for v in r.figure("FairServe", "within_limits_served").values]
    report.figure("paper.within_limits_served", within, "% of users within their limit", exactly(100))
    gaps = [v for runs in limited.values() for v in runs.figure("FairServe", "gap_over_bound").values]
    pairs = sum(v for runs in limited.values() for v in runs.figure("FairServe", "compared_pairs").values)
    report.worst_gap("paper.gap_over_bound", gaps, pairs, at_most(1))


def _loads(report: Report) -> None:
    limits = (scenarios.USER_LIMITS[0], scenarios.USER_LIMITS[-1])
    unlimited = {
        load: report.run(scenarios.paper_workload(load, limits[0]), ("FCFS", "VTC")) for load in LOADS
    }
    alone = {
        load: report.run(scenarios.well_behaved_alone(load, limits[-1]), ("FairServe",)) for load in LOADS
    }
    oracles = {
        load: report.run(scenarios.paper_workload(load, limits[0]), tuple(ORACLES), schedulers=ORACLES)
        for load in LOADS
    }
    limited = {
        (load, limit): report.run(scenarios.paper_workload(load, limit), ("RPM", "FairServe"))
        for load in LOADS
        for limit in limits
    }
    report.say(
        "## 5. Other loads",
        "",
        "The same workload on faster and slower engines. Below load 1 nobody waits long under any scheduler; far above "
        "it well-behaved users are themselves more than the engine can do, and each scheduler can only choose who "
        "waits. The last three columns are no schedulers that anybody could run. *Well-behaved first* is an order that knows "
        "the top users beforehand and serves them only while nobody else waits, both by counters (as FairServe) or by "
        "arrival (as FCFS); it refuses nothing and preempts nothing. "
        "*Well-behaved users alone* is FairServe with the top users left out.",
    )
    columns: list[tuple[str, int | None]] = [("FCFS", None), ("VTC", None)]
    columns += [(policy, limit) for policy in ("RPM", "FairServe") for limit in limits]

    def cell(load: float, policy: str, limit: int | None, name: str) -> Figure:
        return (unlimited[load] if limit is None else limited[load, limit]).figure(policy, name)

    rows = [
        [
            f"{load:g}",
            title,
            *(shown(cell(load, policy, limit, name), factor) for policy, limit in columns),
            *(shown(oracles[load].figure(order, name), factor) for order in ORACLES),
            shown(alone[load].figure("FairServe", name), factor),
        ]
        for load in LOADS
        for name, title, factor in (
            ("delayed_users", "delayed users, %", 100.0),
            ("good_delayed_users", "well-behaved ones, %", 100.0),
            ("good_wait_p99_s", "well-behaved p99 wait, s", 1.0),
            ("waiting_in_scheduler_p50", "*waiting in the scheduler*", 1.0),
        )
    ]
    titles = [policy if limit is None else f"{policy}, limit {limit}" for policy, limit in columns]
    report.table(["load", "", *titles, *ORACLES, "well-behaved users alone"], rows)
    path = FIGURES / "loads.svg"
    lines(
        path,
        "Delayed users by load",
        "load",
        "% of users",
        {
            title: [(load, 100 * cell(load, policy, limit, "delayed_users").mean) for load in LOADS]
            for title, (policy, limit) in zip(titles, columns, strict=True)
        },
    )
    report.image(path, "Delayed users by load")
    for rival, goal in PAPERS_RATIO.items():
        for limit in limits:
            rivals = limit if rival in LIMITED else None
            for name, figure, what in COMPARED:
                found = [
                    _Compared(
                        ratio(cell(load, rival, rivals, figure), cell(load, "FairServe", limit, figure)),
                        cell(load, "FairServe", limit, WAITING),
                        cell(load, rival, rivals, WAITING),
                        f"load {load:g}",
                    )
                    for load in LOADS
                ]
                # The best of loads where a queue was ordered; where there was none, of all.
                finite = [one for one in found if math.isfinite(one.ratio.mean)]
                best = max(finite, key=lambda one: (one.judged, one.ratio.mean), default=found[0])
                best.record(report, f"loads.{rival}.limit {limit}.{name}", what, rival, at_least(goal))
    _steps(report, cell, oracles)
    _oracle_ratios(report, cell, oracles, limits)


def _steps(
    report: Report,
    cell: Callable[[float, str, int | None, str], Figure],
    oracles: Mapping[float, Experiment],
) -> None:
    """From FairServe to an order that holds nobody back but the top users, one thing at a time."""
    name, loose = "good_delayed_users", scenarios.USER_LIMITS[-1]
    counters, arrival = ORACLES
    rows = [
        [
            f"{load:g}",
            shown(cell(load, "FairServe", loose, name), 100),
            shown(oracles[load].figure(counters, name), 100),
            shown(oracles[load].figure(arrival, name), 100),
        ]
        for load in LOADS
    ]
    report.say(
        "What delays well-behaved users, one cause less in each column, % of them. First top users lose their equal turn; "
        "then nobody waits any more for others to have had as much as its last long call. What is delayed in the last "
        "column is delayed by the batch, which none of these orders preempts, and by well-behaved users' own bursts.",
    )
    report.table(["load", f"FairServe, limit {loose}", *ORACLES], rows)


def _oracle_ratios(
    report: Report,
    cell: Callable[[float, str, int | None, str], Figure],
    oracles: Mapping[float, Experiment],
    limits: Sequence[int],
) -> None:
    """What orders that know the top users reach: how much of the paper's factors an order could."""
    for rival, goal in PAPERS_RATIO.items():
        told = []
        for order in ORACLES:
            for name, figure, what in COMPARED:
                best, where, most = figure_of([math.nan]), "no ratio: ours are none", ("", 0.0)
                for load in LOADS:
                    for limit in limits if rival in LIMITED else (None,):
                        ours, theirs = oracles[load].figure(order, figure), cell(load, rival, limit, figure)
                        at = f"load {load:g}" + (f", user limit {limit}" if limit is not None else "")
                        one = ratio(theirs, ours)
                        if ours.mean == 0.0 and theirs.mean > most[1]:
                            most = (at, theirs.mean)
                        elif math.isfinite(one.mean) and not one.mean <= best.mean:
                            best, where = one, at
                beside = f"; none where {rival} has {100 * most[1]:.3g} % ({most[0]})" if most[0] else ""
                told.append(f"- *{order}:* {shown(best)} {what} ({where}{beside})")
                report.figure(f"loads.{rival}.{order}.{name}", best, f"{what}, {where}{beside}")
        report.say(f"At best, of all loads, against {rival}, where the paper has {goal:g}:", "", *told)


# -- what the paper leaves open -------------------------------------------------------------------------


def _flood(report: Report) -> None:
    policies = ("FCFS", "RPM", "VTC", "FairServe")
    solo = report.run(scenarios.flood(False), ["FairServe"])
    alone = solo.of_class("FairServe", "quiet", "ttft_p99_s").values
    report.say(
        "## 6. A quiet tenant beside a flood",
        "",
        "The quiet tenant's p99 time to first token over its value alone, at equal weights. The flood is a fifth "
        "more than the engine can do. Without limits the order keeps the quiet tenant's wait to a place in the "
        "batch; the rest is that each step of a full batch takes longer, which no order before the engine changes. "
        "With limits OIT empties the batch too, and a short window does it without the burst that a long one lets "
        "through when it slides open.",
    )
    cases = {"no limits": scenarios.flood(True)}
    cases |= {title: scenarios.flood(True, limit) for title, limit in scenarios.FLOOD_LIMITS.items()}
    rows = []
    for title, scenario in cases.items():
        runs = report.run(scenario, policies if title == "no limits" else policies[1:])
        ratios = {
            p: [v / a for v, a in zip(runs.of_class(p, "quiet", "ttft_p99_s").values, alone, strict=True)]
            for p in runs.measured
        }
        rows.append([title, *(shown(figure_of(ratios[p])) if p in ratios else "" for p in policies)])
        waiting = {p: shown(runs.figure(p, WAITING)) for p in ratios}
        rows.append(["*calls waiting in the scheduler*", *(waiting.get(p, "") for p in policies)])
        unit = "times its value alone (calls waiting: {})"
        told = unit.format(waiting["FairServe"])
        report.figure(f"flood.{title}.ttft", ratios["FairServe"], told, at_most(1.15))
        if "FCFS" in ratios:
            told = f"{unit.format(waiting['FCFS'])}, FCFS, a control that must miss"
            report.figure(f"flood.{title}.ttft_fcfs", ratios["FCFS"], told, above(1.15))
    report.table(["limit of each of the flood's users", *policies], rows)


def _adversaries(report: Report) -> None:
    policies = ("FCFS", "RPM", "VTC", "FairServe")
    report.say(
        "## 7. Adversaries",
        "",
        "What each gains: its tokens with the trick over its tokens without it, at the same demand (for the heavy "
        "user: over the median user's). Below, its victims' p99 time to first token without and with the trick, "
        "seconds. The victims are 20 users of a tenant with the same weight.",
    )
    rows = []
    for attack in scenarios.attacks():
        honest = report.run(attack.honest, policies)
        tried = report.run(attack.attacking, policies)
        gains = {
            p: [
                b / a
                for a, b in zip(
                    honest.of_class(p, "attacker", "service_tokens").values,
                    tried.of_class(p, "attacker", "service_tokens").values,
                    strict=True,
                )
            ]
            for p in policies
        }
        rows.append([attack.name, "gain", attack.bound, *(shown(figure_of(gains[p])) for p in policies)])
        rows.append(
            [
                "",
                "victims",
                "",
                *(
                    f"{honest.of_class(p, 'victims', 'ttft_p99_s').mean:.3g} → "
                    f"{tried.of_class(p, 'victims', 'ttft_p99_s').mean:.3g}"
                    for p in policies
                ),
            ]
        )
        kept = _of_victims(honest, tried, "FairServe", "service_tokens")
        unit = f"times, promised {attack.bound}; victims keep {shown(figure_of(kept), 100)} % of their tokens"
        if attack.most is not None:
            report.figure(f"adversary.{attack.name}", gains["FairServe"], unit, at_most(attack.most))
            continue
        for policy, goal in (("FairServe", at_most(3)), ("FCFS", above(3))):
            slower = _of_victims(honest, tried, policy, "ttft_p99_s")
            unit = f"times the victims' p99 time to first token, {policy}"
            unit += ", a control that must miss" if policy == "FCFS" else ""
            suffix = "" if policy == "FairServe" else f".{policy}"
            report.figure(f"adversary.{attack.name}.victims{suffix}", slower, unit, goal)
    report.table(["adversary", "", "promised", *policies], rows)
    report.say(
        "Promises leave room for the spread between runs. The canceller's few per cent are the engine's: calls with less "
        "output are more prompt, and prompts are cheaper for it, so it computes more tokens a second whoever is "
        "served (FCFS gains as well, and the victims keep theirs); the scheduler charges what was computed. The heavy "
        "user has whatever the victims leave: they are in closed loops and don't always have calls waiting, so it is "
        "judged by how long they wait. An endless interaction begins nothing that a limit could refuse, up to maxCalls: "
        "it gets what it would have without limits, by the same order.",
    )


def _of_victims(honest: Experiment, tried: Experiment, policy: str, name: str) -> list[float]:
    """A figure of the victims with the trick over the same without it, by seed."""
    before, after = (runs.of_class(policy, "victims", name).values for runs in (honest, tried))
    return [b / a for a, b in zip(before, after, strict=True)]


def _traces(report: Report, folder: Path | None) -> None:
    report.say("## 8. Public traces", "")
    if folder is None:
        report.say("Not run: `make paper TRACES=DIR` with the files of docs/concepts/simulator.md adds them.")
        return
    policies = ("FCFS", "VTC", "FairServe")
    report.say(
        "Arrival times and lengths are the traces', cut to what the engine takes. Where they name no users, 100 are laid over the calls by a "
        "seeded generator, the n-th 1/n as often as the first; the speed of replay makes the load about 1.2."
    )
    rows = []
    for name, users in (("arena", 100), ("azure-code", 100), ("ragpulse", 100)):
        trace = read_trace(folder / f"{name}.csv")
        scenario = _replay(name, trace, users)
        runs = report.run(scenario, policies)
        for title, figure, factor in ROWS:
            if figure in ("wait_p50_s", "wait_p99_s", "delayed_users", "jain_satisfaction", "slowdown_p99",
                          "service_difference_mean", "waiting_in_scheduler_p50", "rank_correlation"):  # fmt: skip
                rows.append([name, title, *(shown(runs.figure(p, figure), factor) for p in policies)])
    report.table(["trace", "", *policies], rows)


def _replay(name: str, trace: Trace, users: int) -> Scenario:
    most = scenarios.LIMITS.max_model_len // 2
    rows = tuple(
        replace(
            row,
            input_tokens=min(row.input_tokens, most),
            system_tokens=min(row.system_tokens, most),
            output_tokens=min(row.output_tokens, 2000),
        )
        for row in trace.rows
    )
    cut = Trace(rows)
    work_s = sum(alone(VTC_A10G, 2048, row.input_tokens, row.output_tokens).total_s for row in rows)
    engine = scenarios.engine(8.0)
    span_s = rows[-1].arrival_s
    options = TraceOptions(speed=1.2 * span_s / (work_s / 8.0), users=users)
    return Scenario(
        name,
        Settings(applications=cut.profiles()),
        lambda seed: trace_workload(cut, options, seed),
        engine,
        overload=None,
        horizon_s=36_000.0,
    )


def _speed(report: Report) -> None:
    """How fast the simulator is, on this machine and whatever else it does."""
    scenario = scenarios.paper_workload(LOAD, scenarios.USER_LIMITS[0])
    rates = []
    for seed in report.seeds:
        began = time.perf_counter()
        calls = len(simulate(scenario, "FairServe", SCHEDULERS["FairServe"], seed).calls)
        rates.append(60 * calls / (time.perf_counter() - began))
    report.figure("simulator.speed", rates, "calls a minute", at_least(200_000))


def _goals(report: Report) -> None:
    report.say("## Goals", "")
    report.table(
        ["figure", "value", "goal", "met"],
        [
            [
                one.name,
                f"{number(one.value)}{f' ± {number(one.spread)}' if one.spread else ''} {one.unit}",
                one.goal or "",
                {True: "yes", False: "**no**", None: ""}[one.met],
            ]
            for one in report.figures
        ],
    )
    report.say(
        "**Where a ratio to RPM or VTC is missed.** The paper's factors compare shares of delayed users. The top users alone "
        f"are {100 * paper.TOP_USERS / paper.USERS:.3g} % of all, so a ratio of 93 needs nearly all of RPM's users delayed "
        "and of FairServe's hardly anybody else. Section 5 takes the causes away one by one.",
        "",
        "- *Max-min entitles heavy users to an equal turn.* Among users who have calls waiting the one with the least service "
        "goes next. Until it is over its limit, and the pool overloaded, a top user is one of them, with as much as anybody "
        "else. Serving everybody else first saves what the second column of that table shows; it needs to know the top users "
        "beforehand, and would let them wait for ever.",
        "- *Who has had a long call waits.* Counters remember: a user that has just had a long call waits until others have "
        "had as much, and lift lets those who are new begin level with the least served, not behind. In order of arrival "
        "among themselves well-behaved users don't wait for that (the third column). It is what fair sharing means, and the same user's next "
        "short call pays for it.",
        "- *The batch isn't preempted.* A call that is dispatched stays, so a burst waits for places whatever the order. "
        "Neither of the two orders of section 5 preempts: what they reach is reached in spite of it.",
        "- *RPM has its limits always.* The same limits cut RPM's load on every call, and FairServe's only while the pool is "
        "overloaded and only where an interaction begins. Under tight limits RPM therefore has hardly a queue and delays few "
        "beyond those it refuses; what that costs stands in its throughput, its refused interactions and its wasted tokens. "
        "Under loose ones RPM is a long queue in order of arrival, but then OIT refuses few as well.",
        "- *VTC here is a strong one.* It is charged at dispatch and token by token, as FairServe is, so it already keeps "
        "light users ahead of heavy ones; and a token counter helps short calls, which is what a threshold in seconds counts. "
        "The paper's runs served calls nearly in order of arrival under every scheduler (rank correlation 0.9999), so they "
        "compare throttling with a queue in order of arrival: here that is the comparison with FCFS.",
        "- *The engine.* At the published throughput the workload is eight times the engine's capacity: with 8 s of work "
        "arriving each second hardly any user can be served within seconds, whatever the order. So the published shares "
        "of delayed users can't be waits of all calls of that workload.",
    )


assert set(UNLIMITED) | set(LIMITED) | {"W+O+I"} == set(SCHEDULERS), "every scheduler is in the table"

if __name__ == "__main__":
    main()
