"""The dispatch window: how many calls the engine should hold (scheduling.md §5).

The scheduler decides only while calls wait with it and not inside the engine. So the window grows while
the engine keeps nothing waiting, shrinks when it does or when it preempts, and the calls in flight must
fit the engine's KV pool. A pure controller: samples in, a size out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineSample:
    """What the engine said of itself at one time."""

    running: int
    waiting: int
    kv_use: float  #: 0..1
    preemptions: float = 0.0  #: a running count
    kv_tokens: int | None = None  #: size of the KV pool, None where the engine doesn't say


class DispatchWindow:
    """Additive increase while the window is full and the engine keeps nothing waiting; decrease to what the
    engine really runs when calls wait inside it.
    """

    #: Preemption recomputes a prompt: give back this share of the window for it.
    BACKOFF = 0.8
    #: An engine that refused a call is asked for more than it held only after so many samples.
    PATIENCE = 40

    def __init__(self, *, maximum: int = 256, initial: int = 8) -> None:
        if not 1 <= initial <= maximum:
            raise ValueError(f"the initial window must be within 1..{maximum}, not {initial}")
        self._maximum = maximum
        self._size = float(initial)
        self._kv_tokens: int | None = None
        self._preemptions: float | None = None
        #: What the engine held when it refused a call, and how many samples ago that was; the maximum after.
        self._ceiling = float(maximum)
        self._samples = 0

    @property
    def size(self) -> int:
        """Calls the engine may hold."""
        return int(self._size)

    def observe(self, sample: EngineSample, inflight: int) -> None:
        """Adapt to a sample. `inflight` is how many calls are with the engine now."""
        self._kv_tokens = sample.kv_tokens
        if self._ceiling < self._maximum:
            self._samples += 1
            if self._samples % self.PATIENCE == 0:
                self._ceiling += max(1.0, 0.1 * self._ceiling)
        preempted = self._preemptions is not None and sample.preemptions > self._preemptions
        self._preemptions = sample.preemptions
        # One or two waiting are on their way into the batch: without them a slot stays empty for a step.
        reserve = max(1, round(0.05 * sample.running))
        if preempted:
            self._resize(min(self._size, float(inflight)) * self.BACKOFF)
        elif sample.waiting > reserve:
            self._resize(max(sample.running + reserve, self._size - (sample.waiting - reserve)))
        elif sample.waiting == 0 and inflight >= self.size:
            self._resize(self._size + max(1.0, 0.1 * self._size))

    def refused(self, inflight: int) -> None:
        """The engine, which holds `inflight` calls of ours, refused one more."""
        self._ceiling, self._samples = min(float(self._maximum), max(1.0, float(inflight))), 0
        self._resize(self._size)

    def admits(self, inflight_calls: int, inflight_tokens: int) -> bool:
        """Whether one more call may go. An idle engine always takes one, whatever its size."""
        if inflight_calls == 0:
            return True
        if inflight_calls >= self.size:
            return False
        return self._kv_tokens is None or inflight_tokens < self._kv_tokens

    def _resize(self, size: float) -> None:
        self._size = min(self._ceiling, float(self._maximum), max(1.0, size))
