"""What a call costs, in tokens and relative to its application (scheduling.md §2).

`S(r) = α·(input − system − cached) + κ·cached + β·system + γ·output` prices tokens;
`N(r) = λ·S(r)/w_a + (1 − λ)·S(r)/w̄` relates the price to what a typical call of the application costs
(w_a) and to the mean over the pool's traffic (w̄). λ = 1 is FairServe, λ = 0 the plain token counter.
Calling a small request "heavy" divides only the first term, so it saves at most a factor 1/(1 − λ).
"""

from __future__ import annotations

from dataclasses import dataclass

from fairserve.core.calls import Usage
from fairserve.core.settings import Profile, TokenWeights


def price(usage: Usage, system_tokens: int, weights: TokenWeights) -> float:
    """S(r), in priced tokens, never negative.

    A prefix cache holds the start of the prompt, which is where the system prompt is: cached tokens count
    as system tokens first. (The formula's `input − system − cached` would go below zero otherwise.)
    """
    input_tokens = max(0, usage.input_tokens)
    system = min(max(0, system_tokens), input_tokens)
    cached = min(max(0, usage.cached_tokens), input_tokens)
    cached_system = min(cached, system)
    return (
        weights.input * (input_tokens - system - (cached - cached_system))
        + weights.cached * cached
        + weights.system * (system - cached_system)
        + weights.output * max(0, usage.output_tokens)
    )


def typical_cost(profile: Profile, weights: TokenWeights) -> float:
    """w_a: what a typical call of an application costs, in priced tokens. Each term is at least 1."""
    system = min(profile.system_tokens, profile.input_tokens)
    return (
        max(1.0, weights.input * (profile.input_tokens - system))
        + max(1.0, weights.system * system)
        + max(1.0, weights.output * profile.output_tokens)
    )


@dataclass(frozen=True, slots=True)
class CostModel:
    """What one call costs. Fixed when the call is dispatched, so that its first charge, its later charges
    and its settlement are one function, whatever is configured meanwhile.
    """

    tokens: TokenWeights
    system_tokens: int
    typical: float  #: w_a
    mean: float  #: w̄
    share: float  #: λ

    def service(self, usage: Usage) -> float:
        """N(r): 1.0 is one typical call."""
        priced = price(usage, self.system_tokens, self.tokens)
        return self.share * priced / self.typical + (1.0 - self.share) * priced / self.mean


class TrafficMean:
    """w̄, the mean of w_a over the pool's calls, as an exponential moving average."""

    #: One call in 200 weighs half a percent: steady within a few hundred calls, deaf to single ones.
    SMOOTHING = 0.005

    def __init__(self, initial: float) -> None:
        self.value = initial
        self.samples = 0

    def observe(self, typical: float) -> None:
        """Count one call whose application costs `typical`."""
        self.samples += 1
        # The plain mean at first, so that the initial guess is soon forgotten.
        step = max(self.SMOOTHING, 1.0 / self.samples)
        self.value += step * (typical - self.value)
