"""Random quantities of a workload: lengths, gaps, counts. Each draws from the generator it is given."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Protocol

#: More tokens than any call has, in a scenario or a trace.
MOST_TOKENS = 10**9


class Distribution(Protocol):
    """Something that can be drawn."""

    def draw(self, rng: random.Random) -> float:
        """One value."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the same."""

    value: float

    def draw(self, rng: random.Random) -> float:
        """The value."""
        return self.value


@dataclass(frozen=True, slots=True)
class Uniform:
    """Between two values."""

    low: float
    high: float

    def draw(self, rng: random.Random) -> float:
        """One value."""
        return rng.uniform(self.low, self.high)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """`exp(N(mu, sigma)) / divide`, cut to `low..high`: lengths of prompts and answers are like this."""

    mu: float
    sigma: float
    divide: float = 1.0
    low: float = 0.0
    high: float = math.inf

    def draw(self, rng: random.Random) -> float:
        """One value."""
        return min(self.high, max(self.low, rng.lognormvariate(self.mu, self.sigma) / self.divide))

    @property
    def mean(self) -> float:
        """Mean before the cut."""
        return math.exp(self.mu + self.sigma**2 / 2) / self.divide


@dataclass(frozen=True, slots=True)
class Gamma:
    """Given mean and coefficient of variation: 1 is exponential, larger is burstier."""

    mean: float
    cv: float = 1.0

    def draw(self, rng: random.Random) -> float:
        """One value."""
        if self.cv == 0.0:
            return self.mean
        shape = 1.0 / self.cv**2
        return rng.gammavariate(shape, self.mean / shape)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several values, by weight."""

    values: tuple[float, ...]
    weights: tuple[float, ...]

    def draw(self, rng: random.Random) -> float:
        """One value."""
        return rng.choices(self.values, self.weights)[0]


def tokens(distribution: Distribution, rng: random.Random, least: int = 1) -> int:
    """A drawn number of tokens."""
    return max(least, round(distribution.draw(rng)))
