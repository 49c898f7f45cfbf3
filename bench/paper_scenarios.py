"""The scenarios of `make paper`: the paper's workload, the three basic experiments, weightings, adversaries.

Nothing here runs anything. What was chosen, and is not in the paper, is said beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType

from fairserve.core import ApplicationSettings, Limit, Profile, Settings, TenantSettings
from fairserve.core.settings import Learning, QueueBounds
from fairserve.overload.settings import OverloadSettings, SignalSettings
from fairserve.sim import paper
from fairserve.sim.costs import StepCost
from fairserve.sim.distributions import Choice, Constant, Distribution, LogNormal, Uniform
from fairserve.sim.scenario import Engines, Overload, Scenario, Signal
from fairserve.sim.steps import EngineLimits
from fairserve.sim.workload import (
    Application,
    ArrivalKind,
    Arrivals,
    Behaviour,
    InteractionIds,
    Retry,
    UserClass,
    Workload,
    draw_workload,
    typical_call,
)

#: The paper's KV pool; the other sizes are vLLM's defaults for an online server, rounded.
LIMITS = EngineLimits(
    max_num_seqs=256, max_num_batched_tokens=2048, kv_tokens=100_000, max_model_len=16_384, block_tokens=16
)
#: Seconds that an engine of VTC's cost (one A10G) needs for the paper's workload: mean of seeds 1 to 5.
PAPER_WORK_S = 1908.0
USER_LIMITS = (10, 50, 100, 500)


def engine(speed: float, limits: EngineLimits = LIMITS) -> Engines:
    """One engine, so many times as fast as the A10G of VTC's fit."""
    return Engines(limits=limits, cost=StepCost(0.0, 1.0 / speed), max_window=limits.max_num_seqs)


def armed_by_wait(threshold_s: float, *, clear_s: float, for_s: float, hold_down_s: float) -> Overload:
    """Overload by the oldest wait in the scheduler alone."""
    signal = SignalSettings(
        Signal.QUEUE_WAIT.value, threshold=threshold_s, clear_threshold=clear_s, for_s=for_s
    )
    return Overload(OverloadSettings(signals=(signal,), hold_down_s=hold_down_s))


#: Arms when a call waits as long as makes its user a delayed one, and holds for one window of the limits: if
#: it cleared earlier, whoever was refused would come back into windows that have not moved yet.
PROMPT = armed_by_wait(1.0, clear_s=0.5, for_s=1.0, hold_down_s=60.0)


def paper_workload(load: float, limit: int) -> Scenario:
    """The paper's workload on an engine that `load` times its work would keep busy for the 71 s."""
    settings = Settings(
        tenants=MappingProxyType({"platform": TenantSettings("platform", per_user=Limit(limit, 60.0))}),
        applications=MappingProxyType(paper.profiles()),
    )
    speed = PAPER_WORK_S / (load * paper.SECONDS)
    name = f"paper, load {load:g}, limit {limit}"
    return Scenario(name, settings, paper.draw, engine(speed), overload=PROMPT)


def well_behaved_alone(load: float, limit: int) -> Scenario:
    """The same engine and well-behaved users without the top users: what a scheduler could reach that knew
    beforehand whom to hold back.
    """

    def draw(seed: int) -> Workload:
        whole = paper.draw(seed)
        clients = tuple(client for client in whole.clients if client.good)
        return Workload(clients, tuple(p for p in whole.plans if p.client.good), whole.applications)

    scenario = paper_workload(load, limit)
    return replace(scenario, name=f"{scenario.name}, well-behaved users alone", draw=draw)


# -- small worlds ---------------------------------------------------------------------------------------


def lengths(median: float, sigma: float = 0.5) -> LogNormal:
    """Lognormal lengths by their median."""
    return LogNormal(math.log(median), sigma, low=1.0, high=8 * median)


CHAT = Application("chat", lengths(200), lengths(60))
CODE = Application("code", lengths(1200), lengths(12))
RAG = Application("rag", lengths(2500), lengths(120))
STORY = Application("story", lengths(60), lengths(400))
#: The heaviest by priced tokens of a typical call.
HEAVY = Application("heavy", lengths(3000), lengths(500))
APPLICATIONS = {a.name: a for a in (CHAT, CODE, RAG, STORY, HEAVY)}
SMALL = EngineLimits(max_num_seqs=64, max_num_batched_tokens=2048, kv_tokens=65_536, max_model_len=16_384)


def true_profiles(applications: Iterable[Application]) -> dict[str, ApplicationSettings]:
    """Applications with the means of the distributions that their lengths are drawn from."""
    told = {}
    for application in applications:
        inputs, outputs = application.input_tokens, application.output_tokens
        assert isinstance(inputs, LogNormal), "lengths here are lognormal"
        assert isinstance(outputs, LogNormal), "lengths here are lognormal"
        told[application.name] = ApplicationSettings(application.name, Profile(inputs.mean, outputs.mean))
    return told


def world(
    name: str,
    classes: tuple[UserClass, ...],
    tenants: dict[str, TenantSettings],
    seconds: float,
    *,
    speed: float = 8.0,
    overload: Overload | None = None,
    stop: bool = False,
    limits: EngineLimits = SMALL,
    normalisation: float = 0.8,
    told: dict[str, ApplicationSettings] | None = None,
) -> Scenario:
    """A scenario of the small applications. With `stop` it ends when clients stop, whatever still waits."""
    applications = {a.name: ApplicationSettings(a.name, typical_call(a)) for a in APPLICATIONS.values()}
    settings = Settings(
        normalisation=normalisation,
        tenants=MappingProxyType(tenants),
        applications=MappingProxyType(told or applications),
    )
    return Scenario(
        name,
        settings,
        lambda seed: draw_workload(classes, APPLICATIONS, seconds, seed),
        engine(speed, limits),
        overload=overload,
        horizon_s=seconds if stop else 3600.0,
    )


#: Arms after 5 s of waits over 2 s: a spike is over by then.
SUSTAINED = armed_by_wait(2.0, clear_s=1.0, for_s=5.0, hold_down_s=10.0)
SPIKE_S, SUSTAINED_S, END_S = (20.0, 22.0), (60.0, 120.0), 150.0


def oit_alone() -> Scenario:
    """Good users; a spike of two seconds that must not arm; a minute of four abusers that must."""
    good = UserClass(
        "good",
        40,
        "team",
        (("chat", 1.0),),
        Arrivals(ArrivalKind.POISSON, rate_per_s=0.15),
        calls=Choice((1, 2, 3), (6, 2, 2)),
        gap_s=Uniform(0.5, 2.0),
    )
    spike = UserClass(
        "spike",
        40,
        "team",
        (("chat", 1.0),),
        Arrivals(ArrivalKind.POISSON, rate_per_s=1.6, start_s=SPIKE_S[0], stop_s=SPIKE_S[1]),
    )
    abusers = UserClass(
        "abusers",
        4,
        "team",
        (("chat", 1.0),),
        Arrivals(ArrivalKind.POISSON, rate_per_s=14.0, start_s=SUSTAINED_S[0], stop_s=SUSTAINED_S[1]),
        calls=Choice((1, 2, 3), (6, 2, 2)),
        gap_s=Uniform(0.5, 2.0),
        behaviour=Behaviour(retry=Retry.GIVE_UP),
        good=False,
    )
    tenants = {"team": TenantSettings("team", per_user=Limit(30, 60.0))}
    return world("OIT alone", (good, spike, abusers), tenants, END_S, overload=SUSTAINED)


def weighted(
    weights: dict[str, float], applications: tuple[str, ...], normalisation: float = 0.8
) -> Scenario:
    """One tenant a weight, each with more demand than it can get, each of another application in turn. Long
    enough that what runs at the end, charged but not yet served, is a few per cent of a share at most.
    """
    classes, tenants = [], {}
    for index, (name, weight) in enumerate(weights.items()):
        application = applications[index % len(applications)]
        classes.append(
            UserClass(
                name,
                200,
                name,
                ((application, 1.0),),
                Arrivals(ArrivalKind.CLOSED, think_s=Uniform(0.0, 0.2)),
            )
        )
        tenants[name] = TenantSettings(name, weight)
    title = ":".join(f"{weight:g}" for weight in weights.values())
    return world(
        f"weights {title}",
        tuple(classes),
        tenants,
        360.0,
        stop=True,
        normalisation=normalisation,
        told=true_profiles(APPLICATIONS.values()),
    )


#: An engine so small that the core's bound, in which its KV pool stands, is a few seconds of its work.
TINY = EngineLimits(max_num_seqs=8, max_num_batched_tokens=2048, kv_tokens=4096, max_model_len=4096)


def greedy() -> Scenario:
    """A greedy tenant offers ten times what a modest one does, which is itself more than the engine can do:
    both have calls waiting all the time, and in order of arrival the greedy one gets ten times as much.
    """
    classes = tuple(
        UserClass(
            name,
            5,
            name,
            (("chat", 1.0),),
            Arrivals(ArrivalKind.POISSON, rate_per_s=rate_per_s),
        )
        for name, rate_per_s in (("modest", 2.0), ("greedy", 20.0))
    )
    return world(
        "greedy",
        classes,
        {
            name: TenantSettings(name, queue=QueueBounds(max_requests=100_000))
            for name in ("modest", "greedy")
        },
        300.0,
        speed=2.0,
        stop=True,
        limits=TINY,
        told=true_profiles(APPLICATIONS.values()),
    )


def mixed(learned: bool, seconds: float = 180.0) -> Scenario:
    """Good users of several applications, two abusers, and an application whose answers grow fivefold.

    An hour's change is made in minutes here, so a learned profile may follow without its usual bound.
    """

    def users(
        name: str, application: str, output: Distribution | None, start: float, stop: float
    ) -> UserClass:
        return UserClass(
            name,
            15,
            name.split("-")[0],
            ((application, 1.0),),
            Arrivals(ArrivalKind.CLOSED, start_s=start, stop_s=stop, think_s=Uniform(1.0, 4.0)),
            calls=Choice((1, 2, 3), (6, 2, 2)),
            output_tokens=output,
        )

    half = seconds / 2
    classes = (
        users("alpha", "chat", None, 0.0, seconds),
        users("beta", "code", None, 0.0, seconds),
        users("gamma-before", "story", lengths(60), 0.0, half),
        users("gamma-after", "story", lengths(300), half, seconds),
        UserClass(
            "abusers",
            2,
            "delta",
            (("rag", 1.0),),
            Arrivals(ArrivalKind.POISSON, rate_per_s=8.0, start_s=30.0),
            behaviour=Behaviour(retry=Retry.GIVE_UP),
            good=False,
        ),
    )
    names = ("alpha", "beta", "gamma", "delta")
    tenants = {name: TenantSettings(name, per_user=Limit(30, 60.0)) for name in names}
    short = replace(STORY, output_tokens=lengths(60))
    told = {a.name: ApplicationSettings(a.name, typical_call(a)) for a in (CHAT, CODE, RAG, short)}
    if learned:
        learning = Learning(min_samples=20, max_factor_per_hour=1e6)
        told = {name: replace(application, learning=learning) for name, application in told.items()}
    title = "learned" if learned else "static"
    return world(f"mixed, {title} profiles", classes, tenants, seconds, overload=SUSTAINED, told=told)


@dataclass(frozen=True, slots=True)
class Attack:
    """An adversary: the same demand with and without the trick."""

    name: str
    honest: Scenario
    attacking: Scenario
    bound: str  #: what the design promises
    #: The same as a number, with the spread between runs; None where the victims' waits are judged.
    most: float | None


def attacks() -> tuple[Attack, ...]:
    """Every adversary of scheduling.md §7. Victims are 20 users of another tenant in a closed loop."""
    plain = Behaviour(max_retries=1_000_000)
    base = UserClass(
        "attacker",
        1,
        "attacker",
        (("chat", 1.0),),
        Arrivals(ArrivalKind.POISSON, rate_per_s=60.0),
        behaviour=plain,
        good=False,
    )

    def against(name: str, attacker: UserClass, *, limit: int | None = None) -> Scenario:
        victims = UserClass(
            "victims",
            20,
            "victims",
            (("chat", 3.0), ("code", 1.0)),
            Arrivals(ArrivalKind.CLOSED, think_s=Uniform(0.5, 2.0)),
        )
        per_user = Limit(limit, 60.0) if limit is not None else None
        tenants = {name: TenantSettings(name, per_user=per_user) for name in ("victims", "attacker")}
        return world(
            name,
            (victims, attacker),
            tenants,
            60.0,
            speed=4.0,
            stop=True,
            overload=SUSTAINED if limit else None,
        )

    def changed(**changes: object) -> UserClass:
        return replace(base, behaviour=replace(plain, **changes))  # type: ignore[arg-type]

    median = replace(base, arrivals=Arrivals(ArrivalKind.POISSON, rate_per_s=0.6))
    sybil = replace(base, users=1000, arrivals=Arrivals(ArrivalKind.POISSON, rate_per_s=0.06))
    long = replace(base, calls=Constant(1), gap_s=Constant(0.0))
    return (
        Attack(
            "a user at 100x the median",
            against("median", median),
            against("100x", base),
            "its fair share",
            None,
        ),
        Attack(
            "retrier, ignores Retry-After",
            against("honours", base, limit=60),
            against("retrier", changed(retry=Retry.IGNORE, retry_delay_s=0.2), limit=60),
            "1",
            1.1,
        ),
        Attack("Sybil, 1,000 users of one tenant", against("one", base), against("sybil", sybil), "1", 1.05),
        Attack(
            "canceller, at 90 % of the output",
            against("stays", base),
            against("canceller", changed(cancel_share=1.0, cancel_at=0.9)),
            "1, and what the engine does faster",
            1.06,
        ),
        Attack(
            "mislabeller, all as the heaviest",
            against("true", base),
            against("mislabeller", changed(labelled_as="heavy")),
            "1/(1 − λ) = 5",
            5.0,
        ),
        Attack(
            "endless interaction",
            against("own ids", long, limit=60),
            against("endless", changed(interaction_ids=InteractionIds.ENDLESS), limit=60),
            "as without limits",
            1.3,
        ),
        Attack(
            "id forger",
            against("own ids", base, limit=60),
            against("forger", changed(interaction_ids=InteractionIds.FORGED), limit=60),
            "1",
            1.05,
        ),
    )


#: Arms within a second or two of a queue and stays armed: for a flood that doesn't end.
VIGILANT = armed_by_wait(1.0, clear_s=0.5, for_s=1.0, hold_down_s=300.0)


#: What OIT lets each of the flood's users begin while the pool is overloaded: the same rate, in long and in
#: short windows. A long one lets a minute's worth through at once when it slides open.
FLOOD_LIMITS = {"30 in 60 s": Limit(30, 60.0), "1 in 2 s": Limit(1, 2.0), "1 in 10 s": Limit(1, 10.0)}


def flood(with_flood: bool, limit: Limit | None = None) -> Scenario:
    """A quiet tenant's three users, alone or beside 20 users who send a fifth more than the engine can do.
    Quiet calls come at the same times with the same lengths in each case.
    """
    quiet = UserClass("quiet", 3, "quiet", (("rag", 1.0),), Arrivals(ArrivalKind.POISSON, rate_per_s=0.2))
    loud = UserClass(
        "flood",
        20,
        "flood",
        (("chat", 1.0),),
        Arrivals(ArrivalKind.POISSON, rate_per_s=4.0),
        behaviour=Behaviour(retry=Retry.GIVE_UP),
        good=False,
    )
    tenants = {"quiet": TenantSettings("quiet"), "flood": TenantSettings("flood", per_user=limit)}
    return world(
        "flood" if with_flood else "solo",
        (quiet, loud) if with_flood else (quiet,),
        tenants,
        500.0,
        stop=True,
        overload=VIGILANT if limit is not None else None,
    )
