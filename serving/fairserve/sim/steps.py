"""A continuous-batching engine as a sequence of steps: what is computed in each, and how long it takes.

Contention for batch slots, for the step's token budget and for the KV pool is what makes scheduling
matter, so exactly these are modelled, with the rules of vLLM's V1 scheduler: running sequences go first,
then waiting ones in arrival order; prompts are computed in chunks within the step's budget; when the KV
pool is full the sequence that was admitted last is preempted, loses its KV and is recomputed later. A cached
prefix is not computed but still fills the pool (vLLM shares its blocks; the model doesn't, and so preempts
rather too early).

`step()` computes one step. `leap()` computes many in which nothing changes but the number of tokens, in
closed form: sequences that only decode are kept as sums, so neither costs time in their number. The module
has no clock and does no I/O: both say how long that takes.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from dataclasses import dataclass

from fairserve.sim.costs import StepCost

__all__ = ["EngineLimits", "EngineModel", "Leap", "Step", "StepCost"]


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Sizes of the engine, in vLLM's words. Raises ValueError where no step could ever be made."""

    max_num_seqs: int = 64  #: sequences in one batch
    max_num_batched_tokens: int = 2048  #: tokens computed in one step
    kv_tokens: int = 65_536  #: size of the KV pool
    max_model_len: int = 8192  #: prompt and output of one sequence
    block_tokens: int = 16  #: the pool is handed out in blocks of this size

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "kv_tokens", "max_model_len", "block_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs: a token for each")
        if self.blocks * self.block_tokens < self.max_model_len:
            raise ValueError("kv_tokens must hold at least one sequence of max_model_len")

    @property
    def blocks(self) -> int:
        """Whole blocks in the pool."""
        return self.kv_tokens // self.block_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did.

    `produced` names the sequences that got one more token, `began` those of them that got their first,
    `finished` those that are complete.
    """

    duration_s: float
    produced: tuple[int, ...]
    finished: tuple[int, ...]
    preempted: tuple[int, ...]
    admitted: tuple[int, ...]
    computed_tokens: int
    began: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Leap:
    """Steps that only decode the same sequences: the first takes `first_s`, each next one `growth_s` more."""

    steps: int
    first_s: float
    growth_s: float

    def duration_s(self, steps: int) -> float:
        """Time of the first so many."""
        return steps * self.first_s + self.growth_s * (steps * (steps - 1) / 2)

    def steps_until(self, elapsed_s: float) -> int:
        """How many steps have begun by then, at least one: what has begun is carried through."""
        if self.growth_s > 0.0:
            half = self.first_s - self.growth_s / 2
            guess = (math.sqrt(half * half + 2 * self.growth_s * elapsed_s) - half) / self.growth_s
        else:
            guess = elapsed_s / self.first_s if self.first_s > 0.0 else float(self.steps)
        steps = min(self.steps, max(1, int(guess)))
        while steps < self.steps and self.duration_s(steps) < elapsed_s:
            steps += 1
        while steps > 1 and self.duration_s(steps - 1) >= elapsed_s:
            steps -= 1
        return steps


@dataclass(slots=True, eq=False)
class _Sequence:
    sequence_id: int
    prompt_tokens: int
    #: Output tokens at which it is complete.
    target_tokens: int
    #: Prompt tokens that the prefix cache has.
    cached_tokens: int
    #: Output tokens before it last began to decode; see `decodes_from`.
    output_tokens: int = 0
    #: Tokens whose keys and values are in the pool, while it does not decode.
    computed_tokens: int = 0
    blocks: int = 0
    was_admitted: bool = False
    #: Place in the order of admission.
    order: int = 0
    #: The engine's decode clock when it began to decode; None while it waits or its prompt is computed.
    decodes_from: int | None = None

    @property
    def known_tokens(self) -> int:
        """Prompt and output, while it does not decode."""
        return self.prompt_tokens + self.output_tokens

    @property
    def uncomputed_tokens(self) -> int:
        return self.known_tokens - self.computed_tokens


class EngineModel:
    """The engine between two steps."""

    def __init__(self, limits: EngineLimits, cost: StepCost) -> None:
        self.limits = limits
        self._cost = cost
        self._waiting: OrderedDict[int, _Sequence] = OrderedDict()
        #: In order of admission. At most the last one's prompt is computed in part; the others decode.
        self._running: dict[int, _Sequence] = {}
        self._partial: _Sequence | None = None
        self._free_blocks = limits.blocks
        self._order = 0
        #: Steps in which the decoding sequences have got a token.
        self._clock = 0
        #: (clock at which it is complete, order, sequence); entries of those that left are stale.
        self._ends: list[tuple[int, int, _Sequence]] = []
        self._decoding = 0
        self._decoding_prompts = 0
        #: Sum over decoding sequences of `decodes_from - output_tokens`: clock less this is the output.
        self._decoding_since = 0
        #: By remainder: decoding sequences that need a block when (remainder + clock) is a multiple of one.
        self._remainders = [0] * limits.block_tokens
        self.preemptions = 0
        self.prompt_tokens = 0  #: of sequences admitted, each counted once
        self.cached_tokens = 0  #: of those
        self.generated_tokens = 0
        self.computed_tokens = 0  #: all, recomputed ones each time

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for a place, preempted ones among them."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self._running and not self._waiting

    @property
    def kv_use(self) -> float:
        """Used share of the KV pool, 0 to 1."""
        return 1.0 - self._free_blocks / self.limits.blocks

    def output_tokens(self, sequence_id: int) -> int:
        """Tokens produced so far by a sequence that is here. Raises KeyError for others."""
        sequence = self._running.get(sequence_id) or self._waiting[sequence_id]
        if sequence.decodes_from is None:
            return sequence.output_tokens
        return sequence.output_tokens + self._clock - sequence.decodes_from

    def started(self, sequence_id: int) -> bool:
        """Whether anything was computed for a sequence that is here."""
        sequence = self._running.get(sequence_id) or self._waiting[sequence_id]
        return sequence.was_admitted

    def add(self, sequence_id: int, prompt_tokens: int, output_tokens: int, cached_tokens: int = 0) -> None:
        """Queue a sequence that is complete after `output_tokens`. Raises ValueError if it can't fit."""
        if sequence_id in self._running or sequence_id in self._waiting:
            raise ValueError(f"sequence {sequence_id} exists")
        if prompt_tokens < 1 or output_tokens < 1:
            raise ValueError("a sequence has at least one prompt and one output token")
        if not 0 <= cached_tokens < prompt_tokens:
            raise ValueError("at least one prompt token is not cached")
        if prompt_tokens + output_tokens > self.limits.max_model_len:
            raise ValueError(f"{prompt_tokens} + {output_tokens} tokens exceed {self.limits.max_model_len}")
        self._waiting[sequence_id] = _Sequence(sequence_id, prompt_tokens, output_tokens, cached_tokens)

    def abort(self, sequence_id: int) -> bool:
        """Forget a sequence and free its KV. False if it is unknown, such as one that has finished."""
        sequence = self._running.pop(sequence_id, None)
        if sequence is None:
            return self._waiting.pop(sequence_id, None) is not None
        self._release(sequence)
        return True

    def step(self) -> Step:
        """Compute one step. With nothing to do it takes no time and changes nothing."""
        if self.idle:
            return Step(0.0, (), (), (), (), 0)
        preempted = self._preempt_for_room()
        decoded = tuple(i for i, s in self._running.items() if s is not self._partial)
        step = self._compute(preempted)
        return Step(
            duration_s=step.duration_s,
            produced=decoded + step.produced,
            finished=step.finished,
            preempted=step.preempted,
            admitted=step.admitted,
            computed_tokens=step.computed_tokens,
            began=step.began,
        )

    def change(self) -> Step:
        """As `step`, but `produced` names only the sequences whose prompt is now complete: the others in the
        batch got a token too, and naming them takes time in their number.
        """
        return Step(0.0, (), (), (), (), 0) if self.idle else self._compute(self._preempt_for_room())

    def horizon(self) -> Leap | None:
        """The steps before anything changes but numbers of tokens; None where the next one is a change. The
        last of them may finish sequences.
        """
        if self._partial is not None or not self._decoding or self._admits_next():
            return None
        steps = self._steps_with_room(self._next_end() - self._clock)
        if steps < 1:
            return None
        cost, running = self._cost, self._decoding
        first_ms = cost.step_ms + cost.outputs_ms(running, self._decoding_prompts, self._next_outputs())
        return Leap(steps, first_ms / 1000, cost.growth_ms(running) / 1000)

    def leap(self, steps: int) -> tuple[int, ...]:
        """Compute so many of the steps of `horizon`, and name the sequences that are complete."""
        self._free_blocks -= self._blocks_for(steps)
        self._clock += steps
        self.generated_tokens += steps * self._decoding
        self.computed_tokens += steps * self._decoding
        return self._retire_decoded()

    def check(self) -> None:
        """Assert what holds between any two steps."""
        size = self.limits.block_tokens
        held = 0
        decoding = 0
        for sequence in self._running.values():
            if sequence.decodes_from is not None:
                decoding += 1
                computed = sequence.prompt_tokens + self.output_tokens(sequence.sequence_id) - 1
                held += -(-computed // size)
                assert self.output_tokens(sequence.sequence_id) < sequence.target_tokens
            else:
                assert sequence is self._partial, "only the last one's prompt is computed in part"
                assert sequence.computed_tokens <= sequence.blocks * size
                assert sequence.uncomputed_tokens >= 1, "a running sequence has something to compute"
                held += sequence.blocks
        assert decoding == self._decoding == sum(self._remainders)
        assert held + self._free_blocks == self.limits.blocks, "blocks are conserved"
        assert self._free_blocks >= 0, "the KV pool is never overfull"
        assert len(self._running) <= self.limits.max_num_seqs
        for sequence in self._waiting.values():
            assert sequence.blocks == 0, "a waiting sequence holds no KV"
            assert sequence.computed_tokens == 0

    # -- one step -------------------------------------------------------------------------------------

    def _preempt_for_room(self) -> list[int]:
        """Preempt from the end until what runs has the blocks of its next step; return who was preempted."""
        preempted: list[int] = []
        while self._free_blocks < self._blocks_for(1) + self._partial_blocks():
            victim = next(reversed(self._running.values()))
            del self._running[victim.sequence_id]
            self._release(victim)
            self._waiting[victim.sequence_id] = victim
            self._waiting.move_to_end(victim.sequence_id, last=False)
            self.preemptions += 1
            preempted.append(victim.sequence_id)
        return preempted

    def _compute(self, preempted: list[int]) -> Step:
        cost, decoding = self._cost, self._decoding
        duration_ms = cost.step_ms
        if decoding:
            duration_ms += cost.outputs_ms(decoding, self._decoding_prompts, self._next_outputs())
        self._free_blocks -= self._blocks_for(1)
        chunks: list[_Sequence] = []
        computed = 0
        if self._partial is not None:
            computed += self._chunk(self._partial, self.limits.max_num_batched_tokens - decoding)
            chunks.append(self._partial)
            self._partial = None
        admitted: list[int] = []
        if not preempted:
            tokens, admitted = self._admit(chunks, self.limits.max_num_batched_tokens - decoding - computed)
            computed += tokens
        duration_ms += cost.prompt_ms(computed) + cost.first_ms() * len(admitted)
        self._clock += 1
        finished = self._retire_decoded()
        produced, began, complete = [], [], []
        for sequence in chunks:
            if sequence.uncomputed_tokens:
                self._partial = sequence
                continue
            sequence.output_tokens += 1
            duration_ms += cost.output_ms(sequence.prompt_tokens, sequence.output_tokens)
            produced.append(sequence.sequence_id)
            if sequence.output_tokens == 1:
                began.append(sequence.sequence_id)
            if sequence.output_tokens >= sequence.target_tokens:
                complete.append(sequence.sequence_id)
                self._free_blocks += sequence.blocks
                del self._running[sequence.sequence_id]
            else:
                self._decode(sequence)
        self.generated_tokens += decoding + len(produced)
        self.computed_tokens += decoding + computed
        return Step(
            duration_s=duration_ms / 1000,
            produced=tuple(produced),
            finished=finished + tuple(complete),
            preempted=tuple(preempted),
            admitted=tuple(admitted),
            computed_tokens=decoding + computed,
            began=tuple(began),
        )

    def _admit(self, chunks: list[_Sequence], budget: int) -> tuple[int, list[int]]:
        """Take in waiting sequences, in order, while slots, budget and KV allow; return the tokens computed
        of them and whose start it is.
        """
        computed = 0
        started: list[int] = []
        while self._waiting and budget > computed and len(self._running) < self.limits.max_num_seqs:
            sequence = next(iter(self._waiting.values()))
            if self._start_blocks(sequence, budget - computed) > self._free_blocks:
                break
            del self._waiting[sequence.sequence_id]
            self._order += 1
            sequence.order = self._order
            sequence.computed_tokens = sequence.cached_tokens
            self._running[sequence.sequence_id] = sequence
            computed += self._chunk(sequence, budget - computed)
            chunks.append(sequence)
            if not sequence.was_admitted:
                sequence.was_admitted = True
                self.prompt_tokens += sequence.prompt_tokens
                self.cached_tokens += sequence.cached_tokens
                started.append(sequence.sequence_id)
        return computed, started

    def _chunk(self, sequence: _Sequence, budget: int) -> int:
        """Compute a sequence's next prompt tokens; the blocks are there."""
        tokens = min(sequence.uncomputed_tokens, budget)
        sequence.computed_tokens += tokens
        wanted = -(-sequence.computed_tokens // self.limits.block_tokens) - sequence.blocks
        self._free_blocks -= wanted
        sequence.blocks += wanted
        return tokens

    def _start_blocks(self, sequence: _Sequence, budget: int) -> int:
        tokens = sequence.cached_tokens + min(sequence.known_tokens - sequence.cached_tokens, budget)
        return -(-tokens // self.limits.block_tokens)

    def _partial_blocks(self) -> int:
        sequence = self._partial
        if sequence is None:
            return 0
        tokens = min(sequence.uncomputed_tokens, self.limits.max_num_batched_tokens - self._decoding)
        return -(-(sequence.computed_tokens + tokens) // self.limits.block_tokens) - sequence.blocks

    def _admits_next(self) -> bool:
        """Whether the next step would take in a waiting sequence, by slots and KV."""
        if not self._waiting or len(self._running) >= self.limits.max_num_seqs:
            return False
        budget = self.limits.max_num_batched_tokens - self._decoding
        if budget < 1:
            return False
        free = self._free_blocks - self._blocks_for(1)
        return self._start_blocks(next(iter(self._waiting.values())), budget) <= free

    # -- sequences that only decode -------------------------------------------------------------------

    def _decode(self, sequence: _Sequence) -> None:
        """Let a sequence whose prompt is complete decode from the next step on."""
        sequence.decodes_from = self._clock
        self._count(sequence, 1)
        left = sequence.target_tokens - sequence.output_tokens
        heapq.heappush(self._ends, (self._clock + left, sequence.order, sequence))

    def _count(self, sequence: _Sequence, sign: int) -> None:
        """Add a sequence to the sums, or take it out."""
        assert sequence.decodes_from is not None, "it decodes"
        self._decoding += sign
        self._decoding_prompts += sign * sequence.prompt_tokens
        self._decoding_since += sign * (sequence.decodes_from - sequence.output_tokens)
        # Computed tokens are known tokens less one; a block is needed when they fill whole ones.
        remainder = (sequence.known_tokens - 1 - sequence.decodes_from) % self.limits.block_tokens
        self._remainders[remainder] += sign

    def _next_outputs(self) -> int:
        """Sum of the numbers of the tokens that the decoding sequences get next."""
        return self._decoding * (self._clock + 1) - self._decoding_since

    def _blocks_for(self, steps: int) -> int:
        """Blocks that the decoding sequences need for so many more steps."""
        size, remainders = self.limits.block_tokens, self._remainders
        if steps == 1:
            return remainders[-self._clock % size]
        cycles, rest = divmod(steps, size)
        return cycles * self._decoding + sum(remainders[-(self._clock + j) % size] for j in range(rest))

    def _steps_with_room(self, steps: int) -> int:
        """How many of so many steps the pool has blocks for."""
        if self._blocks_for(steps) <= self._free_blocks:
            return steps
        room = self._free_blocks // self._decoding * self.limits.block_tokens
        while self._blocks_for(room + 1) <= self._free_blocks:
            room += 1
        return room

    def _next_end(self) -> int:
        """The clock at which the next decoding sequence is complete."""
        ends = self._ends
        while ends[0][2].decodes_from is None or ends[0][2].order != ends[0][1]:
            heapq.heappop(ends)
        return ends[0][0]

    def _retire_decoded(self) -> tuple[int, ...]:
        """Take out the decoding sequences that are complete."""
        finished = []
        ends = self._ends
        while ends and ends[0][0] <= self._clock:
            _, order, sequence = heapq.heappop(ends)
            if sequence.decodes_from is None or sequence.order != order:
                continue
            del self._running[sequence.sequence_id]
            self._release(sequence)
            finished.append(sequence.sequence_id)
        return tuple(finished)

    def _release(self, sequence: _Sequence) -> None:
        """Free a sequence's KV and take it out of the sums."""
        if sequence is self._partial:
            self._partial = None
        if sequence.decodes_from is not None:
            self._count(sequence, -1)
            sequence.output_tokens += self._clock - sequence.decodes_from
            sequence.decodes_from = None
            computed = sequence.known_tokens - 1
            self._free_blocks += -(-computed // self.limits.block_tokens)
        else:
            self._free_blocks += sequence.blocks
        sequence.blocks = 0
        sequence.computed_tokens = 0
