"""What a call will probably cost, before the engine says what it did.

Moving averages of output tokens per application, refined per flow once that has a few samples, and of
bytes per input token per tenant in each application. A prediction only places a charge early; settling makes
it right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fairserve.core.calls import Usage
from fairserve.core.cost import Tariff, typical_cost
from fairserve.core.learning import Learner
from fairserve.core.settings import ApplicationSettings, Profile
from fairserve.core.sharing import SharedWindow

if TYPE_CHECKING:
    from fairserve.core.flows import Ticket

#: Weight of the newest sample.
_SMOOTHING: Final = 0.1
#: Samples a flow needs before its own average counts more than its application's.
_FLOW_SAMPLES: Final = 3
#: Bytes of JSON body per input token, before anything is learned: English text in a chat body.
_BYTES_PER_TOKEN: Final = 4.0
#: What text ever needs. Images and sound in a body have far more, and would teach text too few tokens.
_MOST_BYTES_PER_TOKEN: Final = 16.0
#: Samples after which an average moves by `_SMOOTHING`.
_PLAIN: Final = 10


class BytesPerToken:
    """How many bytes of body one tenant needs for an input token in one application.

    It is learned from the tenant's own calls alone: whatever others send, padded with space or with fields
    that nobody reads, moves no estimate of its calls. What its own calls can do to it is bounded as well: it
    is a mean of ratios of at most 16, so that no estimate is below a 16th of the body's size.
    """

    __slots__ = ("samples", "value")

    def __init__(self, value: float = _BYTES_PER_TOKEN, samples: int = 0) -> None:
        self.value = value
        self.samples = samples

    def observe(self, body_bytes: int, input_tokens: int) -> None:
        """A body of that size, not empty, had so many tokens, at least one."""
        self.samples = samples = self.samples + 1
        step = _SMOOTHING if samples > _PLAIN else 1.0 / samples
        self.value += step * (min(body_bytes / input_tokens, _MOST_BYTES_PER_TOKEN) - self.value)


def input_tokens(learned: BytesPerToken | None, body_bytes: int) -> int:
    """Expected prompt tokens of a body of that size. `learned` is None for a tenant without samples."""
    return max(1, round(body_bytes / (_BYTES_PER_TOKEN if learned is None else learned.value)))


class ApplicationState:
    """One application: its settings, its profile in force, and what finished calls taught."""

    __slots__ = (
        "learner",
        "name",
        "output_samples",
        "output_tokens",
        "profile",
        "settings",
        "shared",
        "typical",
        "weight",
    )

    def __init__(self, name: str, settings: ApplicationSettings, tariff: Tariff) -> None:
        self.name = name
        #: Average output tokens a call, and samples.
        self.output_tokens = 0.0
        self.output_samples = 0
        #: Admissions under the limit over all tenants.
        self.shared: SharedWindow | None = None
        self.learner: Learner | None = None
        self.configure(settings, tariff)

    def configure(self, settings: ApplicationSettings, tariff: Tariff) -> None:
        """Take other settings. A learned profile stays while learning stays."""
        self.settings = settings
        self.weight = settings.weight
        if settings.learning is None:
            self.learner = None
        elif self.learner is None:
            self.learner = Learner(settings.profile, settings.learning)
        else:
            self.learner.settings = settings.learning
        self.adopt(settings.profile if self.learner is None else self.learner.profile, tariff)

    def adopt(self, profile: Profile, tariff: Tariff) -> None:
        """Relate costs to another profile from now on."""
        self.profile = profile
        self.typical = typical_cost(profile, tariff)  #: w_a

    def predict(self, ticket: Ticket) -> int:
        """Expected output of a call, never above what its client allows."""
        part = ticket.part
        if part.samples >= _FLOW_SAMPLES:
            average = part.output_tokens
        elif self.output_samples >= _FLOW_SAMPLES:
            average = self.output_tokens
        else:
            average = self.profile.output_tokens
        expected = int(average + 0.5) or 1
        most = ticket.max_output_tokens
        return expected if most is None or expected <= most else max(0, most)

    def observe(self, ticket: Ticket, usage: Usage) -> None:
        """Learn from a completed call."""
        part = ticket.part
        output, prompt = usage.output_tokens, usage.input_tokens
        # The plain mean over the first samples, so that the first one doesn't linger.
        part.samples = samples = part.samples + 1
        step = _SMOOTHING if samples > _PLAIN else 1.0 / samples
        part.output_tokens += step * (output - part.output_tokens)
        self.output_samples = samples = self.output_samples + 1
        of_all = _SMOOTHING if samples > _PLAIN else 1.0 / samples
        self.output_tokens += of_all * (output - self.output_tokens)
        if ticket.body_bytes and prompt:
            ratios = part.flow.tenant.bytes_per_token
            learned = ratios.get(self.name)
            if learned is None:
                learned = ratios[self.name] = BytesPerToken()
            learned.observe(ticket.body_bytes, prompt)
        if self.learner is not None:
            part.input_tokens += step * (prompt - part.input_tokens)
            part.system_tokens += step * (min(ticket.system_tokens, prompt) - part.system_tokens)
            self.learner.observe(part)
