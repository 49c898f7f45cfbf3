"""The dispatch window: how many calls the engine should hold (scheduling.md §5).

The scheduler decides only while calls wait with it and not inside the engine. So the window grows while
the engine keeps nothing waiting, shrinks when it keeps more than a few or when it preempts, and the calls in
flight must fit the engine's KV pool. A pure controller: samples in, a size out.
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
    """A little more than the engine runs at once: enough that a slot which falls free finds a call, and so
    little that at most `tolerated` calls wait inside the engine.

    It doubles with each sample until the engine has kept something waiting, so that a pod that starts is full
    within seconds. From then on a sample with more than a few waiting takes a call off, down to what the
    engine runs and tolerates, and once the batch is known no sample adds more than `PROBE`: in the long run
    that is the share of samples with more.
    """

    #: Preemption recomputes a prompt: give back this share of the window for it.
    BACKOFF = 0.8
    #: An engine that refused a call is asked for more than it held only after so many samples.
    PATIENCE = 40
    #: With less of the KV pool in use, a call more than there were at the sample may go, though what is in
    #: flight is expected to fill the pool: one call whose size was overestimated must not stop all others.
    HALF_EMPTY = 0.5
    #: How a full window grows with each sample where the batch is unknown, after the first time.
    SEARCH = 1.1
    #: Calls added for a sample in which a full window left nothing waiting in an engine that has been full.
    PROBE = 0.04

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
        self._batch: int | None = None  #: what the engine runs when it keeps calls waiting
        self._spare = 0  #: so many calls may be there whatever they are expected to need
        self._growth = 2.0  #: by which a full window grows while the batch is not known

    @property
    def size(self) -> int:
        """Calls the engine may hold."""
        return int(self._size)

    def observe(self, sample: EngineSample, inflight: int) -> None:
        """Adapt to a sample. `inflight` is how many calls are with the engine now."""
        self._kv_tokens = sample.kv_tokens
        self._spare = inflight + 1 if sample.kv_use < self.HALF_EMPTY else 0
        if self._ceiling < self._maximum:
            self._samples += 1
            if self._samples % self.PATIENCE == 0:
                self._ceiling += max(1.0, 0.1 * self._ceiling)
        preempted = self._preemptions is not None and sample.preemptions > self._preemptions
        self._preemptions = sample.preemptions
        most = tolerated(sample.running)
        self._learn_batch(sample, most)
        if preempted:
            self._resize(min(self._size, float(inflight)) * self.BACKOFF)
        elif sample.waiting > most:
            less = self._size - max(1.0, sample.waiting - most)
            self._resize(min(self._size, max(sample.running + most, less)))
        elif sample.waiting == 0 and inflight >= self.size:
            searched = max(self._size + 1.0, self._growth * self._size)
            probed = self._size + self.PROBE
            known = self._batch
            self._resize(searched if known is None else max(probed, min(searched, known + most)))

    def refused(self, inflight: int) -> None:
        """The engine, which holds `inflight` calls of ours, refused one more."""
        self._growth = self.SEARCH
        self._ceiling, self._samples = min(float(self._maximum), max(1.0, float(inflight))), 0
        self._resize(self._size)

    def admits(self, inflight_calls: int, inflight_tokens: int) -> bool:
        """Whether one more call may go. An idle engine always takes one, whatever its size."""
        if inflight_calls == 0:
            return True
        if inflight_calls >= self.size:
            return False
        return self._kv_tokens is None or inflight_tokens < self._kv_tokens or inflight_calls < self._spare

    def _learn_batch(self, sample: EngineSample, most: float) -> None:
        """What runs while calls wait is the batch, less calls that have ended just now: a few either way are
        chance.
        """
        above = sample.running - (self._batch or 0)
        if sample.waiting:
            self._growth = self.SEARCH
            if above > 0 or above < -most:
                self._batch = sample.running
        elif self._batch is not None and above > most:
            self._batch = None  # It runs more than it could then: calls are smaller now.

    def _resize(self, size: float) -> None:
        self._size = min(self._ceiling, float(self._maximum), max(1.0, size))


def tolerated(running: int) -> float:
    """Calls that may wait inside an engine that runs so many: on their way into the batch."""
    return max(2.0, 0.05 * running)
