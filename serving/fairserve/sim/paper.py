"""The paper's workload (arXiv 2411.15997), drawn from its published aggregates.

1,358 users of 23 applications make 9,241 calls within 71 s; calls a user: median 4, p99 29, most 2,092, and
the top 1 % of users make 35 % of the calls. Lengths are lognormal, divided by 8. Interactions begin at
random times of the 71 s; between a call's end and the next call of its interaction pass 1 to 6 s.

The aggregates say nothing of how lengths differ between applications. Here each application has medians of
its own, spread so that all calls together have the given sigma.
"""

from __future__ import annotations

import math
import random
from statistics import NormalDist

from fairserve.core import ApplicationSettings, Profile
from fairserve.sim.distributions import LogNormal, Uniform, tokens
from fairserve.sim.workload import (
    PAPER_CALLS,
    Application,
    Behaviour,
    CallPlan,
    Client,
    InteractionPlan,
    Workload,
)

USERS, APPLICATIONS, CALLS, SECONDS = 1_358, 23, 9_241, 71.0
MOST_CALLS, TOP_SHARE, P99_CALLS, MEDIAN_CALLS = 2_092, 0.35, 29, 4
INPUT = LogNormal(8.12, 1.09, divide=8.0)
OUTPUT = LogNormal(3.38, 1.69, divide=8.0)
#: Which part of the variance of log lengths lies between applications rather than within them.
_BETWEEN = 0.5
#: Users of the top 1 %.
TOP_USERS = 14
#: An order of popularity under which long and short applications are about equally frequent.
_POPULARITY = 194
#: Applications that one user of the top has for itself; they are of medium length.
_PRIVATE = (10, 11, 12)


def applications() -> dict[str, Application]:
    """The 23 applications. The same for every seed: an application is not chance."""
    rng = random.Random("fairserve paper applications")
    quantiles = [NormalDist().inv_cdf((i + 0.5) / APPLICATIONS) for i in range(APPLICATIONS)]
    outputs = quantiles.copy()
    rng.shuffle(outputs)
    return {
        f"app-{i + 1:02d}": Application(
            f"app-{i + 1:02d}", _narrowed(INPUT, quantiles[i]), _narrowed(OUTPUT, outputs[i])
        )
        for i in range(APPLICATIONS)
    }


def profiles() -> dict[str, ApplicationSettings]:
    """What the scheduler is told of the applications: their true means."""
    told = {}
    for name, application in applications().items():
        assert isinstance(application.input_tokens, LogNormal), "lengths of the paper are lognormal"
        assert isinstance(application.output_tokens, LogNormal), "lengths of the paper are lognormal"
        profile = Profile(application.input_tokens.mean, application.output_tokens.mean)
        told[name] = ApplicationSettings(name, profile)
    return told


def calls_by_user(rng: random.Random) -> list[int]:
    """How many calls each user makes, most first; sums to `CALLS`."""
    top = [MOST_CALLS, *_ramp(TOP_USERS - 1, P99_CALLS, round(TOP_SHARE * CALLS) - MOST_CALLS)]
    rest = USERS - len(top)
    wanted = CALLS - sum(top)
    sigma = math.sqrt(2 * math.log(wanted / rest / MEDIAN_CALLS))
    body = [
        min(P99_CALLS, max(1, round(rng.lognormvariate(math.log(MEDIAN_CALLS), sigma)))) for _ in range(rest)
    ]
    while (short := wanted - sum(body)) != 0:
        user = rng.randrange(rest)
        step = 1 if short > 0 else -1
        # Heavy and light users change alike, so that the median stays.
        if 1 <= body[user] + step <= P99_CALLS and body[user] != MEDIAN_CALLS:
            body[user] += step
    return top + sorted(body, reverse=True)


def is_top(user: str) -> bool:
    """Whether a user of the workload is one of the top ones."""
    return int(user.removeprefix("user-")) < TOP_USERS


def draw(seed: int, seconds: float = SECONDS) -> Workload:
    """The workload for a seed."""
    rng = random.Random(f"{seed}/paper")
    known = applications()
    names = list(known)
    private = [names[index] for index in _PRIVATE]
    shared = [name for name in names if name not in private]
    popularity = _popularity(len(shared))
    behaviour = Behaviour()
    clients, plans = [], []
    for number, calls in enumerate(calls_by_user(rng)):
        top = number < TOP_USERS
        own = random.Random(f"{seed}/paper/{number}")
        client = Client("top" if top else "user", "platform", f"user-{number}", behaviour, not top, own)
        clients.append(client)
        name = private[number] if number < len(private) else rng.choices(shared, popularity)[0]
        plans += _interactions(client, known[name], calls, seconds)
    plans.sort(key=lambda plan: plan.start_s)
    return Workload(tuple(clients), tuple(plans), known)


def _popularity(count: int) -> list[float]:
    """How often users have each application. The same for every seed: the mix of lengths is not chance."""
    weights = [1.0 / rank for rank in range(1, count + 1)]
    random.Random(f"fairserve paper popularity {_POPULARITY}").shuffle(weights)
    return weights


def _interactions(
    client: Client, application: Application, calls: int, seconds: float
) -> list[InteractionPlan]:
    rng, plans = client.rng, []
    gap_s = Uniform(1.0, 6.0)
    while calls > 0:
        length = min(calls, round(PAPER_CALLS.draw(rng)))
        calls -= length
        made = tuple(
            CallPlan(
                application.name,
                tokens(application.input_tokens, rng),
                0,
                tokens(application.output_tokens, rng),
            )
            for _ in range(length)
        )
        gaps_s = tuple(gap_s.draw(rng) for _ in made[1:])
        plans.append(InteractionPlan(client, rng.uniform(0.0, seconds), made, gaps_s))
    return plans


def _narrowed(whole: LogNormal, quantile: float) -> LogNormal:
    between, within = math.sqrt(_BETWEEN), math.sqrt(1.0 - _BETWEEN)
    return LogNormal(whole.mu + whole.sigma * between * quantile, whole.sigma * within, whole.divide, low=1.0)


def _ramp(count: int, low: int, total: int) -> list[int]:
    """Falling whole numbers down to `low` with a given sum: geometric."""
    small, large = 1.0, 4.0
    for _ in range(60):
        ratio = (small + large) / 2
        if sum(low * ratio**i for i in range(count)) < total:
            small = ratio
        else:
            large = ratio
    values = [round(low * small**i) for i in range(count)]
    values[-1] += total - sum(values)
    return values[::-1]
