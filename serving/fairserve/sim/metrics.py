"""What a run is measured by. Each formula is written out in docs/concepts/simulator.md.

Metrics read a finished recording and decide nothing. A figure that nothing was measured for is `nan`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fairserve.core import UNIT, Settings, TokenWeights, Usage
from fairserve.core.cost import price, typical_cost, unit_rate
from fairserve.sim.costs import Alone, alone
from fairserve.sim.recording import CallRecord, Fate, InteractionRecord, Recording
from fairserve.sim.scenario import Scenario
from fairserve.sim.statistics import inversions, jain, mean, percentile, rank_correlation

#: A user is delayed who once waits longer than this, or twice its time to first token alone.
DELAYED_S = 1.0
#: Length and distance of the windows that service is compared over.
WINDOW_S, WINDOW_STEP_S = 60.0, 10.0
#: Windows over which those that had calls waiting all the time are compared with the bound.
_BOUND_WINDOWS_S = (10.0, WINDOW_S)
#: VTC's prices: an output token counts as two input tokens.
_VTC_OUTPUT = 2.0


@dataclass(frozen=True, slots=True)
class Metrics:
    """Figures by name, of all clients and of each class of them."""

    figures: dict[str, float]
    classes: dict[str, dict[str, float]]


def measure(scenario: Scenario, recording: Recording) -> Metrics:
    """All figures of a run."""
    solo = _Solo(scenario)
    service = Service(scenario.settings, recording)
    figures = {
        **_delays(recording.calls, solo),
        **_throughput(recording),
        **_interactions(recording.interactions),
        "within_limits_served": _within_limits_served(scenario.settings, recording.interactions),
        **_order(recording),
        **_service(recording),
        **_bound(scenario.settings, scenario.engines.limits.kv_tokens, recording, service),
        "refused_attempts": float(recording.refused_attempts),
        "preemptions": float(recording.preemptions),
        "armed_share": _armed_share(recording),
    }
    good = [record for record in recording.calls if record.interaction.client.good]
    for name, value in _delays(good, solo).items():
        figures[f"good_{name}"] = value
    for name, value in _interactions([i for i in recording.interactions if i.client.good]).items():
        figures[f"good_{name}"] = value
    classes = {}
    for group in dict.fromkeys(i.client.group for i in recording.interactions):
        calls = [record for record in recording.calls if record.interaction.client.group == group]
        interactions = [i for i in recording.interactions if i.client.group == group]
        classes[group] = {
            **_delays(calls, solo),
            **_interactions(interactions),
            "service_tokens": sum(priced(record) for record in calls),
            "service": sum(service(record) for record in calls),
            "charged": sum(record.charged for record in calls),
            "output_tokens": float(sum(record.output_tokens for record in calls)),
        }
    return Metrics(figures, classes)


class _Solo:
    """What calls take alone on the scenario's engine."""

    def __init__(self, scenario: Scenario) -> None:
        self._cost = scenario.engines.cost
        self._step_tokens = scenario.engines.limits.max_num_batched_tokens

    def __call__(self, record: CallRecord) -> Alone:
        plan = record.plan
        return alone(
            self._cost, self._step_tokens, plan.input_tokens, plan.output_tokens, record.cached_tokens
        )


def _delays(calls: Sequence[CallRecord], solo: _Solo) -> dict[str, float]:
    waits, queue_waits, ttfts, latencies, slowdowns = [], [], [], [], []
    users: set[tuple[str, str]] = set()
    delayed: set[tuple[str, str]] = set()
    delayed_in_queue: set[tuple[str, str]] = set()
    unserved: set[tuple[str, str]] = set()
    for record in calls:
        client = record.interaction.client
        user = (client.tenant, client.user)
        users.add(user)
        if record.fate in (Fate.REFUSED, Fate.EVICTED, Fate.FAILED, Fate.OPEN):
            unserved.add(user)
        if math.isnan(record.dispatched_s):
            continue
        wait_s, queue_wait_s = record.wait_s, record.dispatched_s - record.queued_s
        waits.append(wait_s)
        queue_waits.append(queue_wait_s)
        if wait_s > DELAYED_S:
            threshold_s = max(DELAYED_S, 2.0 * solo(record).first_token_s)
            if wait_s > threshold_s:
                delayed.add(user)
            if queue_wait_s > threshold_s:
                delayed_in_queue.add(user)
        if not math.isnan(record.first_token_s):
            ttfts.append(record.ttft_s)
        if record.fate is Fate.SERVED:
            latencies.append(record.ended_s - record.first_sent_s)
            slowdowns.append(latencies[-1] / solo(record).total_s)
    count = len(users) or 1
    return {
        "users": float(len(users)),
        "calls": float(len(calls)),
        "wait_p50_s": percentile(waits, 0.5),
        "wait_p99_s": percentile(waits, 0.99),
        "wait_mean_s": mean(waits),
        "queue_wait_p99_s": percentile(queue_waits, 0.99),
        "ttft_p50_s": percentile(ttfts, 0.5),
        "ttft_p99_s": percentile(ttfts, 0.99),
        "latency_mean_s": mean(latencies),
        "latency_p50_s": percentile(latencies, 0.5),
        "slowdown_p99": percentile(slowdowns, 0.99),
        "delayed_users": len(delayed | unserved) / count,
        "delayed_in_queue_users": len(delayed_in_queue) / count,
    }


def _throughput(recording: Recording) -> dict[str, float]:
    """Tokens a second while clients still begin interactions: the tail that drains is nobody's choice."""
    until_s = max((i.plan.start_s for i in recording.interactions), default=0.0)
    if until_s <= 0.0:
        return {
            "input_tokens_per_s": math.nan,
            "output_tokens_per_s": math.nan,
            "makespan_s": recording.ended_s,
        }
    inputs = outputs = 0.0
    for record in recording.calls:
        input_share, output_share = _shares_until(record, until_s)
        inputs += input_share * record.input_tokens
        outputs += output_share * record.output_tokens
    return {
        "input_tokens_per_s": inputs / until_s,
        "output_tokens_per_s": outputs / until_s,
        "makespan_s": recording.ended_s,
    }


def _interactions(interactions: Sequence[InteractionRecord]) -> dict[str, float]:
    computed = sum(i.tokens for i in interactions)
    wasted = sum(i.tokens for i in interactions if i.lost)
    served: dict[tuple[str, str], bool] = {}
    for interaction in interactions:
        user = (interaction.client.tenant, interaction.client.user)
        full = interaction.complete or interaction.dropped
        served[user] = served.get(user, True) and full
    times = [i.ended_s - i.begun_s for i in interactions if i.complete]
    return {
        "interactions": float(len(interactions)),
        "refused_interactions": float(sum(1 for i in interactions if i.refusals)),
        "lost_interactions": float(sum(1 for i in interactions if i.lost)),
        "cut_interactions": float(sum(1 for i in interactions if i.lost and i.served)),
        "token_waste": wasted / computed if computed else 0.0,
        "serving_experience": mean([float(full) for full in served.values()]),
        "completion_mean_s": mean(times),
        "completion_p99_s": percentile(times, 0.99),
    }


def _within_limits_served(settings: Settings, interactions: Sequence[InteractionRecord]) -> float:
    """Share of fully served users among those who never begin more interactions than their limit allows. When
    one begins is when its first call is first sent, whatever became of that.
    """
    begun: dict[tuple[str, str], list[InteractionRecord]] = defaultdict(list)
    for interaction in interactions:
        begun[interaction.client.tenant, interaction.client.user].append(interaction)
    served = []
    for (tenant, _), mine in begun.items():
        limit = settings.tenants[tenant].per_user if tenant in settings.tenants else None
        if limit is not None:
            at_s = sorted(i.begun_s for i in mine)
            windows = zip(at_s, at_s[limit.count :], strict=False)
            if any(last_s - first_s < limit.window_s for first_s, last_s in windows):
                continue
        served.append(float(all(i.complete or i.dropped for i in mine)))
    return mean(served)


def _order(recording: Recording) -> dict[str, float]:
    """Where the backlog was, and whether the order of dispatch differs from that of arrival."""
    behind = [record.behind for order in recording.dispatched for record in order]
    correlations, inverted, pairs, together = [], 0, 0, 0
    for order in recording.dispatched:
        known = [record for record in order if not math.isnan(record.dispatched_s)]
        places = [record.arrival for record in known]
        correlations.append((len(places), rank_correlation(places)))
        inverted += inversions(places)
        pairs += len(places) * (len(places) - 1) // 2
        arrivals = sorted(record.queued_s for record in known)
        # Who arrives before another one's dispatch and after its arrival waits together with it.
        together += sum(
            bisect_right(arrivals, record.dispatched_s) - bisect_right(arrivals, record.queued_s)
            for record in known
        )
    weight = sum(count for count, _ in correlations) or 1
    return {
        "waiting_in_scheduler_p50": percentile(behind, 0.5),
        "rank_correlation": sum(count * rho for count, rho in correlations) / weight,
        "inverted_pairs": inverted / pairs if pairs else 0.0,
        "inverted_waiting_pairs": min(1.0, inverted / together) if together else 0.0,
    }


# -- service ------------------------------------------------------------------------------------------


def priced(record: CallRecord) -> float:
    """VTC's cost of what was computed for a call, in tokens."""
    return record.input_tokens + _VTC_OUTPUT * record.output_tokens


def _shares_until(record: CallRecord, at_s: float) -> tuple[float, float]:
    """Which share of a call's input and of its output was served by then: the input with the first token,
    the output evenly from there to the end.
    """
    if math.isnan(record.first_token_s) or record.first_token_s > at_s:
        return 0.0, 0.0
    last_s = record.counted_s if math.isnan(record.ended_s) else record.ended_s
    if last_s <= at_s:
        return 1.0, 1.0
    if math.isnan(last_s):
        return 1.0, 0.0
    return 1.0, (at_s - record.first_token_s) / (last_s - record.first_token_s)


def served_until(record: CallRecord, at_s: float) -> float:
    """VTC's cost of what a call had been given by then, in tokens."""
    input_share, output_share = _shares_until(record, at_s)
    return input_share * record.input_tokens + output_share * _VTC_OUTPUT * record.output_tokens


class Service:
    """N(r) of what was computed for a call, with the λ and the profiles of the scenario's settings.

    It is one unit for all schedulers, whatever each of them charges. w̄ is the mean price of the run's
    ended calls, and a call is of the application that it really has.
    """

    def __init__(self, settings: Settings, recording: Recording) -> None:
        self._tokens = settings.tokens
        ended = [r for r in recording.calls if r.fate in (Fate.SERVED, Fate.CANCELLED)]
        prices = [max(1.0, self._price(record)) for record in ended]
        share, average = settings.normalisation, mean(prices) if prices else 1.0
        self._rates = {
            name: unit_rate(typical_cost(application.profile, settings.tokens), average, share) / UNIT
            for name, application in settings.applications.items()
        }
        other = typical_cost(settings.default_application.profile, settings.tokens)
        self._other = unit_rate(other, average, share) / UNIT

    def __call__(self, record: CallRecord) -> float:
        """Of the whole call, or of what it had when the run ended."""
        return self._price(record) * self._rates.get(record.plan.application, self._other)

    def between(self, record: CallRecord, start_s: float, stop_s: float) -> float:
        """Of what was served between two times."""
        # Most calls have nothing in most windows; nan is a call without a first token.
        if not record.first_token_s <= stop_s or record.ended_s <= start_s:
            return 0.0
        served = served_until(record, stop_s) - served_until(record, start_s)
        return self(record) * served / priced(record) if served > 0.0 else 0.0

    def _price(self, record: CallRecord) -> float:
        usage = Usage(
            record.input_tokens, record.output_tokens, min(record.cached_tokens, record.input_tokens)
        )
        return price(usage, record.plan.system_tokens, self._tokens)


def _windows(recording: Recording, length_s: float = WINDOW_S) -> list[tuple[float, float]]:
    last_s = max(recording.ended_s - length_s, 0.0)
    count = int(last_s / WINDOW_STEP_S) + 1
    return [(i * WINDOW_STEP_S, i * WINDOW_STEP_S + length_s) for i in range(count)]


def _by_user(recording: Recording) -> dict[tuple[str, str], list[CallRecord]]:
    users: dict[tuple[str, str], list[CallRecord]] = defaultdict(list)
    for record in recording.calls:
        client = record.interaction.client
        users[client.tenant, client.user].append(record)
    return users


def _service(recording: Recording) -> dict[str, float]:
    """VTC's service difference over windows, and Jain's index of satisfied demand."""
    users = list(_by_user(recording).values())
    differences = []
    for start_s, stop_s in _windows(recording):
        served, wanted = [], []
        for calls in users:
            got = due = 0.0
            for record in calls:
                if record.first_sent_s >= stop_s:
                    continue
                before = served_until(record, start_s)
                got += served_until(record, stop_s) - before
                due += record.plan.input_tokens + _VTC_OUTPUT * record.target_tokens - before
            served.append(got)
            wanted.append(due)
        most = max(served, default=0.0)
        differences.append(
            sum(max(0.0, min(most, due) - got) for got, due in zip(served, wanted, strict=True))
        )
    until_s = max((i.plan.start_s for i in recording.interactions), default=0.0)
    satisfied = []
    for calls in users:
        due = sum(r.plan.input_tokens + _VTC_OUTPUT * r.target_tokens for r in calls)
        satisfied.append(sum(served_until(r, until_s) for r in calls) / due)
    return {
        "service_difference_max": max(differences, default=math.nan),
        "service_difference_mean": mean(differences),
        "jain_satisfaction": jain(satisfied),
    }


def _bound(settings: Settings, kv_tokens: int, recording: Recording, service: Service) -> dict[str, float]:
    """The largest difference of normalised service between two that had calls waiting throughout a window, of
    tenants and of users of one tenant, over the core's bound 2·U + Δ. Without any such pair there is
    nothing to compare.
    """
    longest = max((record.plan.input_tokens for record in recording.calls), default=0)
    unit = bound_unit(settings, longest, kv_tokens)
    weights = {name: tenant.weight for name, tenant in settings.tenants.items()}
    lightest = {
        "users": min((a.weight for a in settings.applications.values()), default=1.0),
        "tenants": min(weights.values(), default=1.0),
    }
    worst, over, compared = 0.0, 0.0, 0
    for kind, among in (("users", _flows(recording)), ("tenants", _tenants(recording, weights))):
        bound = (2.0 * unit + settings.continuation_head_start) / lightest[kind]
        for members in among:
            for length_s in _BOUND_WINDOWS_S:
                for start_s, stop_s in _windows(recording, length_s):
                    got = [
                        sum(service.between(record, start_s, stop_s) for record in member.calls)
                        / member.weight
                        for member in members
                        if any(a <= start_s and stop_s <= b for a, b in member.waits)
                    ]
                    if len(got) > 1:
                        compared += len(got) * (len(got) - 1) // 2
                        worst = max(worst, max(got) - min(got))
                        over = max(over, (max(got) - min(got)) / bound)
    return {
        "bound": 2.0 * unit + settings.continuation_head_start,
        "service_gap": worst if compared else math.nan,
        "gap_over_bound": over if compared else math.nan,
        "compared_pairs": float(compared),
    }


@dataclass(frozen=True, slots=True)
class _Member:
    """One of those that share: its calls, and when it had some waiting."""

    calls: list[CallRecord]
    waits: list[tuple[float, float]]
    weight: float


def _flows(recording: Recording) -> list[list[_Member]]:
    """The users of each tenant."""
    tenants: dict[str, list[_Member]] = defaultdict(list)
    for (tenant, _), calls in _by_user(recording).items():
        tenants[tenant].append(_Member(calls, _waits(calls), 1.0))
    return list(tenants.values())


def _tenants(recording: Recording, weights: Mapping[str, float]) -> list[list[_Member]]:
    """All tenants."""
    tenants: dict[str, list[CallRecord]] = defaultdict(list)
    for record in recording.calls:
        tenants[record.interaction.client.tenant].append(record)
    return [[_Member(calls, _waits(calls), weights.get(name, 1.0)) for name, calls in tenants.items()]]


def _waits(calls: Iterable[CallRecord]) -> list[tuple[float, float]]:
    """When calls waited, merged. One that the end of the run found waiting is left out."""
    spans = sorted((r.queued_s, r.dispatched_s) for r in calls if r.dispatched_s > r.queued_s)
    merged: list[tuple[float, float]] = []
    for start_s, stop_s in spans:
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop_s))
        else:
            merged.append((start_s, stop_s))
    return merged


def bound_unit(settings: Settings, longest_input: int, kv_tokens: int) -> float:
    """U of the core's bound without its ω_min: `max_a[max(α·L_in + β·L_sys, γ·M)/w_a]`. The system prompt is
    part of the input here.
    """
    weights: TokenWeights = settings.tokens
    applications = tuple(settings.applications.values()) or (settings.default_application,)
    cheapest = min(typical_cost(application.profile, weights) for application in applications)
    most = max(max(weights.input, weights.system) * longest_input, weights.output * kv_tokens)
    return most / cheapest


def _armed_share(recording: Recording) -> float:
    armed_s, since_s = 0.0, None
    for change in recording.transitions:
        if change.armed:
            since_s = change.at_s
        elif since_s is not None:
            armed_s, since_s = armed_s + change.at_s - since_s, None
    if since_s is not None:
        armed_s += recording.ended_s - since_s
    return armed_s / recording.ended_s if recording.ended_s > 0.0 else 0.0
