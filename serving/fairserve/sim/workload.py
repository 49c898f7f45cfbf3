"""Who sends what: applications, classes of users, how they arrive and how they behave.

A workload is drawn before the run, apart from users in a closed loop, whose next interaction depends on
the end of their last. Each draws from its own seeded generator, so that every policy meets the same
clients.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from fairserve.core import Profile
from fairserve.sim.distributions import Choice, Constant, Distribution, Gamma, Uniform, tokens

#: One call an interaction, and the paper's pauses.
_ONE, _SECONDS = Constant(1), Uniform(1.0, 6.0)


class Retry(StrEnum):
    """What a client does when it is refused or evicted."""

    HONOUR = "honour"  #: comes back after Retry-After
    IGNORE = "ignore"  #: comes back after its own delay, however often it is told to wait
    GIVE_UP = "give-up"  #: drops the interaction


class InteractionIds(StrEnum):
    """Which interaction ids a client sends."""

    OWN = "own"  #: one an interaction
    NONE = "none"
    ENDLESS = "endless"  #: one for everything it ever sends
    FORGED = "forged"  #: a new one a call, of which it claims that it continues


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How clients of a class behave."""

    retry: Retry = Retry.HONOUR
    max_retries: int = 10
    retry_delay_s: float = 1.0  #: where Retry-After is not known, or ignored
    cancel_share: float = 0.0  #: how many of its calls are dropped by the client
    cancel_at: float = 0.5  #: after which share of the output
    patience_s: float | None = None  #: drops a call that has no first token by then; None waits
    labelled_as: str | None = None  #: the application that it says it is; None tells the truth
    interaction_ids: InteractionIds = InteractionIds.OWN


@dataclass(frozen=True, slots=True)
class Application:
    """What calls of an application are like."""

    name: str
    input_tokens: Distribution
    output_tokens: Distribution
    system_tokens: int = 0


class ArrivalKind(StrEnum):
    """How interactions begin."""

    POISSON = "poisson"
    GAMMA = "gamma"
    CLOSED = "closed"  #: the next one begins some time after the last one's end


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When a user's interactions begin."""

    kind: ArrivalKind = ArrivalKind.POISSON
    rate_per_s: float = 0.1  #: of each user; not for a closed loop
    cv: float = 1.0  #: coefficient of variation of the time between two, for gamma
    start_s: float = 0.0
    stop_s: float | None = None  #: None: as long as the scenario sends
    think_s: Distribution = _SECONDS  #: between two interactions of a closed loop


@dataclass(frozen=True, slots=True)
class UserClass:
    """Users who are alike."""

    name: str
    users: int
    tenant: str
    applications: tuple[tuple[str, float], ...]  #: name and weight
    arrivals: Arrivals = Arrivals()
    calls: Distribution = _ONE  #: of an interaction
    gap_s: Distribution = _SECONDS  #: between a call's end and the next call
    behaviour: Behaviour = Behaviour()
    input_tokens: Distribution | None = None  #: instead of the application's
    output_tokens: Distribution | None = None
    tenant_per_user: bool = False  #: each user is a tenant of its own, `tenant` with a number
    good: bool = True  #: keeps to its share: it counts among the victims of those that don't


@dataclass(frozen=True, slots=True)
class CallPlan:
    """One call that will be made."""

    application: str
    input_tokens: int
    system_tokens: int
    output_tokens: int


@dataclass(slots=True, eq=False)
class Client:
    """One user as the simulation meets it."""

    group: str
    tenant: str
    user: str
    behaviour: Behaviour
    good: bool
    rng: random.Random
    interactions: int = 0  #: begun so far
    #: What makes a closed loop's next interaction; None for clients whose interactions are all planned.
    loop: Loop | None = None


@dataclass(slots=True, eq=False)
class InteractionPlan:
    """One user action and its calls; `gaps_s[i]` passes between the end of call i and call i + 1."""

    client: Client
    start_s: float
    calls: tuple[CallPlan, ...]
    gaps_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Loop:
    """A closed loop."""

    users: UserClass
    applications: dict[str, Application]
    stop_s: float

    def next(self, client: Client, now: float) -> InteractionPlan | None:
        """The interaction after one that ended now; None when its time is over."""
        start_s = now + max(0.0, self.users.arrivals.think_s.draw(client.rng))
        if start_s >= self.stop_s:
            return None
        return draw_interaction(self.users, self.applications, client, start_s)


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything that will be sent: `plans` in order of start, and clients in closed loops through their
    first plan.
    """

    clients: tuple[Client, ...]
    plans: tuple[InteractionPlan, ...]
    applications: dict[str, Application] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """Calls that are planned."""
        return sum(len(plan.calls) for plan in self.plans)


def typical_call(application: Application) -> Profile:
    """An application's profile: the means of 1,000 drawn calls, always the same ones."""
    rng = random.Random(f"typical {application.name}")
    count = 1000
    inputs = sum(tokens(application.input_tokens, rng) for _ in range(count)) / count
    outputs = sum(tokens(application.output_tokens, rng) for _ in range(count)) / count
    return Profile(inputs + application.system_tokens, outputs, application.system_tokens)


def draw_interaction(
    users: UserClass, applications: dict[str, Application], client: Client, start_s: float
) -> InteractionPlan:
    """One interaction of a client: its application, its calls and the gaps between them."""
    rng = client.rng
    names = [name for name, _ in users.applications]
    name = names[0] if len(names) == 1 else rng.choices(names, [w for _, w in users.applications])[0]
    application = applications[name]
    calls = tuple(
        CallPlan(
            application=name,
            input_tokens=tokens(users.input_tokens or application.input_tokens, rng)
            + application.system_tokens,
            system_tokens=application.system_tokens,
            output_tokens=tokens(users.output_tokens or application.output_tokens, rng),
        )
        for _ in range(max(1, round(users.calls.draw(rng))))
    )
    gaps_s = tuple(max(0.0, users.gap_s.draw(rng)) for _ in calls[1:])
    return InteractionPlan(client, start_s, calls, gaps_s)


def draw_workload(
    classes: tuple[UserClass, ...], applications: dict[str, Application], duration_s: float, seed: int
) -> Workload:
    """The workload of a scenario for a seed: interactions begin within `duration_s`."""
    clients: list[Client] = []
    plans: list[InteractionPlan] = []
    for users in classes:
        for number in range(users.users):
            client = _client(users, number, seed)
            clients.append(client)
            stop_s = min(
                duration_s, users.arrivals.stop_s if users.arrivals.stop_s is not None else duration_s
            )
            if users.arrivals.kind is ArrivalKind.CLOSED:
                client.loop = Loop(users, applications, stop_s)
            # The starts are drawn first: they share the client's generator with what follows.
            starts = list(_starts(users.arrivals, stop_s, client.rng))
            plans += [draw_interaction(users, applications, client, start_s) for start_s in starts]
    plans.sort(key=lambda plan: plan.start_s)
    return Workload(tuple(clients), tuple(plans), applications)


def _client(users: UserClass, number: int, seed: int) -> Client:
    tenant = f"{users.tenant}-{number}" if users.tenant_per_user else users.tenant
    rng = random.Random(f"{seed}/{users.name}/{number}")
    return Client(users.name, tenant, f"{users.name}-{number}", users.behaviour, users.good, rng)


def _starts(arrivals: Arrivals, stop_s: float, rng: random.Random) -> Iterator[float]:
    if arrivals.kind is ArrivalKind.CLOSED:
        first_s = arrivals.start_s + max(0.0, arrivals.think_s.draw(rng)) * rng.random()
        if first_s < stop_s:
            yield first_s
        return
    if arrivals.rate_per_s <= 0.0:
        return
    cv = 1.0 if arrivals.kind is ArrivalKind.POISSON else arrivals.cv
    between = Gamma(1.0 / arrivals.rate_per_s, cv)
    # The first gap is begun at a random point of it: otherwise all users would begin together.
    now = arrivals.start_s + between.draw(rng) * rng.random()
    while now < stop_s:
        yield now
        now += between.draw(rng)


#: Calls an interaction as the paper gives them: 1: 69 %, 2: 7 %, 3: 8 %, 4: 12 %, 5 and more: 4 %.
PAPER_CALLS = Choice((1, 2, 3, 4, 5, 6), (69, 7, 8, 12, 2, 2))
