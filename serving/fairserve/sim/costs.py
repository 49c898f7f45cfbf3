"""How long an engine step takes: the calibration of the step model, and what a call takes alone.

A step costs a constant plus what each sequence in it adds. The terms are those of
`h(p,q) = 0.21·p + 0.10·q + 0.004·p·q + 0.0032·q² + 1.15` ms, which Sheng et al. (VTC, OSDI '24) fitted for p
prompt and q output tokens of Llama-2-7B on an A10G: a step is charged what it adds to the h of each of its
sequences, so that the steps of one sequence sum to its h. Other machines have other coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepCost:
    """A calibration. `scale` multiplies every term but `step_ms`: 0.25 is an engine four times as fast."""

    step_ms: float = 10.0  #: of a step, whatever is in it
    scale: float = 0.25
    prompt: float = 0.21  #: ms for a prompt token
    output: float = 0.10  #: ms for an output token
    cross: float = 0.004  #: ms for an output token, for each token of its sequence's prompt
    square: float = 0.0032  #: of q², so that output token number q adds (2q − 1) times this
    first: float = 1.15  #: ms for taking in a sequence

    def prompt_ms(self, tokens: int) -> float:
        """Cost of computing that many prompt tokens."""
        return self.scale * self.prompt * tokens

    def first_ms(self) -> float:
        """Cost of taking in a sequence."""
        return self.scale * self.first

    def output_ms(self, prompt_tokens: int, output_tokens: int) -> float:
        """Cost of the token number `output_tokens` (from 1): h(p, q) - h(p, q - 1)."""
        return self.scale * (self.output + self.cross * prompt_tokens + self.square * (2 * output_tokens - 1))

    def outputs_ms(self, sequences: int, prompt_tokens: int, output_tokens: int) -> float:
        """Cost of one more token for each of several sequences, from the sums of their prompt tokens and of
        the numbers of their next tokens.
        """
        return self.scale * (
            self.output * sequences
            + self.cross * prompt_tokens
            + self.square * (2 * output_tokens - sequences)
        )

    def growth_ms(self, sequences: int) -> float:
        """What each step of the same sequences costs more than the one before."""
        return self.scale * self.square * 2 * sequences


#: The published fit. It prices whole sequences, so a step has no cost of its own.
VTC_A10G = StepCost(step_ms=0.0, scale=1.0)


@dataclass(frozen=True, slots=True)
class Alone:
    """What a call takes on an idle engine, in seconds."""

    first_token_s: float
    total_s: float


def alone(
    cost: StepCost, step_tokens: int, prompt_tokens: int, output_tokens: int, cached_tokens: int = 0
) -> Alone:
    """Time of a call alone: its prompt in chunks of `step_tokens`, then a step for each output token."""
    computed = prompt_tokens - cached_tokens
    chunks = -(-computed // step_tokens)
    first_ms = (
        chunks * cost.step_ms + cost.first_ms() + cost.prompt_ms(computed) + cost.output_ms(prompt_tokens, 1)
    )
    rest = output_tokens - 1
    # Output tokens 2..q: the sum of (2j − 1) is q² − 1.
    rest_ms = rest * cost.step_ms + cost.scale * (
        rest * (cost.output + cost.cross * prompt_tokens) + cost.square * (output_tokens**2 - 1)
    )
    return Alone(first_ms / 1000, (first_ms + rest_ms) / 1000)
