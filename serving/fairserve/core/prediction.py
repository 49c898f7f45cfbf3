"""What a call will probably cost, before the engine says what it did.

Moving averages of output tokens per application, refined per flow once that has a few samples, and of
bytes per input token per application. A prediction only places a charge early; settling makes it right.
"""

from __future__ import annotations

from fairserve.core.calls import Call, Usage
from fairserve.core.flows import Flow
from fairserve.core.settings import ApplicationSettings

#: Weight of the newest sample.
_SMOOTHING = 0.1
#: Samples a flow needs before its own average counts more than its application's.
_FLOW_SAMPLES = 3
#: Bytes of JSON body per input token, before anything is learned: English text in a chat body.
_BYTES_PER_TOKEN = 4.0


class Predictor:
    """Learns from finished calls."""

    def __init__(self) -> None:
        #: By application: average output tokens a call, and samples.
        self.output_by_application: dict[str, tuple[float, int]] = {}
        #: By application: average bytes of body per input token, and samples.
        self.bytes_per_token: dict[str, tuple[float, int]] = {}

    def output_tokens(self, call: Call, flow: Flow, application: ApplicationSettings) -> int:
        """Expected output of a call, never above what its client allows."""
        average, samples = flow.output_tokens.get(call.application, (0.0, 0))
        if samples < _FLOW_SAMPLES:
            average, samples = self.output_by_application.get(call.application, (0.0, 0))
        if samples < _FLOW_SAMPLES:
            average = application.profile.output_tokens
        expected = max(1, round(average))
        return expected if call.max_output_tokens is None else min(expected, call.max_output_tokens)

    def input_tokens(self, application: str, body_bytes: int) -> int:
        """Expected prompt tokens of a body of that size."""
        ratio, _ = self.bytes_per_token.get(application, (_BYTES_PER_TOKEN, 0))
        return max(1, round(body_bytes / ratio))

    def observe(self, call: Call, flow: Flow, usage: Usage) -> None:
        """Learn from a completed call."""
        application = call.application
        flow.output_tokens[application] = _moved(flow.output_tokens.get(application), usage.output_tokens)
        known = self.output_by_application.get(application)
        self.output_by_application[application] = _moved(known, usage.output_tokens)
        if call.body_bytes > 0 and usage.input_tokens > 0:
            ratio = call.body_bytes / usage.input_tokens
            self.bytes_per_token[application] = _moved(self.bytes_per_token.get(application), ratio)


def _moved(average: tuple[float, int] | None, sample: float) -> tuple[float, int]:
    value, samples = average or (0.0, 0)
    # The plain mean over the first samples, so that the first one doesn't linger.
    step = max(_SMOOTHING, 1.0 / (samples + 1))
    return value + step * (sample - value), samples + 1
