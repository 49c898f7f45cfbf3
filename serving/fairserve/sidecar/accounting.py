"""What a call that ended is charged for when the engine gave no usage: a canceller pays too.

Usage from the engine always wins. Without it the prompt counts as estimated, and the output as counted
from the stream; where nothing was streamed, as many tokens as the time would have yielded at the pace of
other calls of this engine.
"""

from __future__ import annotations

from typing import Final

from fairserve.core.calls import Outcome, Usage

#: How much of a new sample goes into the mean pace.
_GAIN: Final = 0.05
#: Fewer tokens say more about the prompt than about the pace.
_MIN_SAMPLE_TOKENS: Final = 8


class Pace:
    """Seconds per output token of one sequence, learned from calls that ended."""

    def __init__(self) -> None:
        self._seconds_per_token: float | None = None

    def observe(self, output_tokens: int, seconds: float) -> None:
        """A whole answer of `output_tokens` per sequence took that long."""
        if output_tokens < _MIN_SAMPLE_TOKENS or seconds <= 0.0:
            return
        sample = seconds / output_tokens
        mean = self._seconds_per_token
        self._seconds_per_token = sample if mean is None else mean + _GAIN * (sample - mean)

    def tokens_in(self, seconds: float) -> int:
        """What one sequence has probably produced by then; 0 while nothing is known."""
        if self._seconds_per_token is None:
            return 0
        return int(seconds / self._seconds_per_token)


def engine_answer(
    status: int, usage: Usage | None, estimated_input: int, counted_output: int
) -> tuple[Outcome, Usage]:
    """Outcome and usage of a call that the engine answered to the end.

    What the engine turned away (4xx, 503) it did not compute; where it broke over a call (5xx else) the
    prompt counts, so that nobody gets engine time for nothing by breaking it.
    """
    if status < 400:
        return Outcome.COMPLETED, usage or Usage(estimated_input, counted_output)
    if status < 500 or status == 503:
        return Outcome.FAILED, usage or Usage(0, 0)
    return Outcome.FAILED, usage or Usage(estimated_input, counted_output)
