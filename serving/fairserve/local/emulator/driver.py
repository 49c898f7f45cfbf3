"""Runs the step model in real time: a step's tokens are handed out when its duration has passed.

One task steps; each request waits on its own `Generation`. Tokens that a slow reader has not taken are
handed to it together, as vLLM does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from fairserve.sim.steps import EngineModel, Step

#: A driver that is later than this gives up catching up: its machine was busy, and a burst would not be real.
_MAX_LAG_S = 0.1


@dataclass(slots=True)
class Generation:
    """One request in the engine."""

    sequence_id: int
    submitted_s: float
    ready: int = 0  #: output tokens so far
    finished: bool = False
    first_token_s: float | None = None
    _waiter: asyncio.Future[None] | None = field(default=None, repr=False)

    async def more_than(self, taken: int) -> int:
        """Wait until more than `taken` tokens are ready or the end, and return how many are ready."""
        while self.ready <= taken and not self.finished:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self.ready

    async def complete(self) -> int:
        """Wait for the end and return the number of tokens."""
        while not self.finished:
            await self.more_than(self.ready)
        return self.ready

    def wake(self) -> None:
        """Let the waiting request look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Driver:
    """The engine's main loop."""

    def __init__(self, model: EngineModel) -> None:
        self.model = model
        self._generations: dict[int, Generation] = {}
        self._next_id = 1
        self._work = asyncio.Event()

    def submit(self, prompt_tokens: int, output_tokens: int) -> Generation:
        """Queue a request. Raises ValueError if it can't fit."""
        sequence_id = self._next_id
        self.model.add(sequence_id, prompt_tokens, output_tokens)
        self._next_id += 1
        generation = Generation(sequence_id, asyncio.get_running_loop().time())
        self._generations[sequence_id] = generation
        self._work.set()
        return generation

    def abort(self, generation: Generation) -> bool:
        """Take a request out of the engine, freeing its KV; False if it has ended already."""
        self._generations.pop(generation.sequence_id, None)
        gone = self.model.abort(generation.sequence_id)
        generation.finished = True
        generation.wake()
        return gone

    async def run(self) -> None:
        """Step until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if self.model.idle:
                self._work.clear()
                await self._work.wait()
                due = loop.time()
            step = self.model.step()
            due = max(due + step.duration_s, loop.time() - _MAX_LAG_S)
            await asyncio.sleep(max(0.0, due - loop.time()))
            self._hand_out(step, loop.time())

    def _hand_out(self, step: Step, now: float) -> None:
        for sequence_id in step.produced:
            generation = self._generations.get(sequence_id)
            if generation is None:  # Its client left during the step.
                continue
            generation.ready += 1
            if generation.first_token_s is None:
                generation.first_token_s = now
        for sequence_id in step.finished:
            generation = self._generations.pop(sequence_id, None)
            if generation is not None:
                generation.finished = True
                generation.wake()
        for sequence_id in step.produced:
            generation = self._generations.get(sequence_id)
            if generation is not None:
                generation.wake()
