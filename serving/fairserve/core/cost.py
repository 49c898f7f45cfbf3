"""What a call costs, in tokens and relative to its application (scheduling.md §2).

`S(r) = α·(input − system − cached) + κ·cached + β·system + γ·output` prices tokens;
`N(r) = λ·S(r)/w_a + (1 − λ)·S(r)/w̄` relates the price to what a typical call of the application costs
(w_a) and to the mean over the pool's traffic (w̄). λ = 1 is FairServe, λ = 0 the plain token counter.

**Mislabelling.** Who calls a small request "heavy" divides only the first term: it pays at least 1 − λ of
what the plain token counter would charge, S/w̄, so it gains at most 1/(1 − λ) over that. Against its own
honest label it gains at most `1 + λ/(1 − λ)·w̄/w_a`, which is 1/(1 − λ) for a call of average cost. w̄ is a
mean of prices paid, so that no label moves it.

A cost is rounded to whole units (`calls.UNIT`) once, from the whole usage of a call. A call's charges are
differences of such costs, so they add up to the cost of what it used at last, to the last unit.
"""

from __future__ import annotations

from typing import Any, Final

from fairserve.core.calls import UNIT, Usage
from fairserve.core.settings import Profile, TokenWeights

#: More tokens than any engine computes for a call: what lies beyond is taken for a broken counter.
MOST_TOKENS: Final = 1_000_000_000_000

#: One call in 200 weighs half a percent in w̄: steady within a few hundred calls, deaf to single ones.
_SMOOTHING: Final = 0.005

#: The prices of one application's or pool's tokens.
Tariff = TokenWeights


def price(usage: Usage, system_tokens: int, tariff: Tariff) -> float:
    """S(r), in priced tokens, never negative.

    A prefix cache holds the start of the prompt, which is where the system prompt is: cached tokens count
    as system tokens first. (The formula's `input − system − cached` would go below zero otherwise.)
    """
    input_tokens, cached, output_tokens = usage.input_tokens, usage.cached_tokens, usage.output_tokens
    if not cached:
        return plain_price(input_tokens, system_tokens, output_tokens, tariff)
    system_tokens = min(system_tokens, input_tokens)
    cached_system = min(cached, system_tokens)
    return (
        tariff.input * (input_tokens - system_tokens - (cached - cached_system))
        + tariff.cached * cached
        + tariff.system * (system_tokens - cached_system)
        + tariff.output * output_tokens
    )


def plain_price(input_tokens: int, system_tokens: int, output_tokens: int, tariff: Tariff) -> float:
    """S(r) where nothing is cached."""
    if system_tokens > input_tokens:
        system_tokens = input_tokens
    return (
        tariff.input * (input_tokens - system_tokens)
        + tariff.system * system_tokens
        + tariff.output * output_tokens
    )


def sane(usage: Usage) -> Usage:
    """The usage with what can't be made good: negative and NaN count as nothing, cached is part of input."""
    told: Any = usage
    prompt, output, cached = told.input_tokens, told.output_tokens, told.cached_tokens
    if (
        isinstance(prompt, int)
        and isinstance(output, int)
        and isinstance(cached, int)
        and 0 <= cached <= prompt <= MOST_TOKENS
        and 0 <= output <= MOST_TOKENS
    ):
        return usage
    input_tokens = _tokens(prompt)
    return Usage(input_tokens, _tokens(output), min(_tokens(cached), input_tokens))


def _tokens(count: Any) -> int:
    return int(min(count, MOST_TOKENS)) if count > 0 else 0


def typical_cost(profile: Profile, tariff: Tariff) -> float:
    """w_a: what a typical call of an application costs, in priced tokens. Each term is at least 1."""
    system = min(profile.system_tokens, profile.input_tokens)
    return (
        max(1.0, tariff.input * (profile.input_tokens - system))
        + max(1.0, tariff.system * system)
        + max(1.0, tariff.output * profile.output_tokens)
    )


def unit_rate(typical: float, mean: float, share: float) -> float:
    """Units for one priced token: N(r) is S(r) times this. `share` is λ, `mean` is w̄."""
    return UNIT * (share / typical + (1.0 - share) / mean)


class TrafficMean:
    """w̄, the mean price of the pool's completed calls, as an exponential moving average.

    Of what they cost, not of the w_a of what they claim to be: otherwise who mislabels moves w̄ as well.
    """

    __slots__ = ("samples", "value")

    def __init__(self, value: float, samples: int = 0) -> None:
        self.value = value
        self.samples = samples

    def observe(self, priced: float) -> None:
        """Count one call that cost so many priced tokens."""
        self.samples = samples = self.samples + 1
        # The plain mean at first, so that the initial guess is soon forgotten.
        step = _SMOOTHING if samples > 200 else 1.0 / samples
        self.value += step * ((priced if priced > 1.0 else 1.0) - self.value)
