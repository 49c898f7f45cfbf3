"""A continuous-batching engine as a sequence of steps: what is computed in each, and how long it takes.

Contention for batch slots, for the step's token budget and for the KV pool is what makes scheduling
matter, so exactly these are modelled, with the rules of vLLM's V1 scheduler: running sequences go first,
then waiting ones in arrival order; prompts are computed in chunks within the step's budget; when the KV
pool is full the sequence that was admitted last is preempted, loses its KV and is recomputed later.
Prefix caching is not modelled.

The module has no clock and does no I/O: `step()` advances the model and says how long that takes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


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
class StepCost:
    """How long a step takes: `step_ms` plus `scale` times the growth of h.

    h is the cost that Sheng et al. (VTC, OSDI '24) fitted for Llama-2-7B on an A10G, in ms, for p prompt
    and q output tokens: `h(p,q) = 0.21·p + 0.10·q + 0.004·p·q + 0.0032·q² + 1.15`. A step is charged what
    it adds to the h of each of its sequences, so that the steps of one sequence sum to its h.
    """

    step_ms: float = 10.0
    scale: float = 0.25

    def prompt_ms(self, tokens: int) -> float:
        """Cost of computing that many prompt tokens."""
        return self.scale * 0.21 * tokens

    def first_ms(self) -> float:
        """Cost of taking in a sequence."""
        return self.scale * 1.15

    def output_ms(self, prompt_tokens: int, output_tokens: int) -> float:
        """Cost of the token number `output_tokens` (from 1): h(p, q) - h(p, q - 1)."""
        return self.scale * (0.10 + 0.004 * prompt_tokens + 0.0032 * (2 * output_tokens - 1))


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did.

    `produced` names the sequences that got one more token, `finished` those among them that are complete.
    """

    duration_s: float
    produced: tuple[int, ...]
    finished: tuple[int, ...]
    preempted: tuple[int, ...]
    admitted: tuple[int, ...]
    computed_tokens: int


@dataclass(slots=True, eq=False)
class _Sequence:
    sequence_id: int
    prompt_tokens: int
    #: Output tokens at which it is complete.
    target_tokens: int
    output_tokens: int = 0
    #: Tokens whose keys and values are in the pool: at most `known_tokens`, zero while it waits.
    computed_tokens: int = 0
    blocks: int = 0
    was_admitted: bool = False

    @property
    def known_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    @property
    def uncomputed_tokens(self) -> int:
        return self.known_tokens - self.computed_tokens


class EngineModel:
    """The engine between two steps."""

    def __init__(self, limits: EngineLimits, cost: StepCost) -> None:
        self.limits = limits
        self._cost = cost
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._sequences: dict[int, _Sequence] = {}
        self._free_blocks = limits.blocks
        self.preemptions = 0
        self.prompt_tokens = 0  #: of sequences admitted, each counted once
        self.generated_tokens = 0

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
        return not self._sequences

    @property
    def kv_use(self) -> float:
        """Used share of the KV pool, 0 to 1."""
        return 1.0 - self._free_blocks / self.limits.blocks

    def add(self, sequence_id: int, prompt_tokens: int, output_tokens: int) -> None:
        """Queue a sequence that is complete after `output_tokens`. Raises ValueError if it can't fit."""
        if sequence_id in self._sequences:
            raise ValueError(f"sequence {sequence_id} exists")
        if prompt_tokens < 1 or output_tokens < 1:
            raise ValueError("a sequence has at least one prompt and one output token")
        if prompt_tokens + output_tokens > self.limits.max_model_len:
            raise ValueError(f"{prompt_tokens} + {output_tokens} tokens exceed {self.limits.max_model_len}")
        sequence = _Sequence(sequence_id, prompt_tokens, output_tokens)
        self._sequences[sequence_id] = sequence
        self._waiting.append(sequence)

    def abort(self, sequence_id: int) -> bool:
        """Forget a sequence and free its KV. False if it is unknown, such as one that has finished."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return False
        self._release(sequence)
        queue = self._running if sequence in self._running else self._waiting
        queue.remove(sequence)
        return True

    def step(self) -> Step:
        """Compute one step. With nothing to do it takes no time and changes nothing."""
        if self.idle:
            return Step(0.0, (), (), (), (), 0)
        chunks: list[tuple[_Sequence, int]] = []
        preempted = self._continue_running(chunks)
        admitted = [] if preempted else self._admit(chunks)
        duration_ms = self._cost.step_ms + self._cost.first_ms() * len(admitted)
        produced: list[_Sequence] = []
        for sequence, tokens in chunks:
            prompt_like = sequence.uncomputed_tokens > 1 or sequence.output_tokens == 0
            sequence.computed_tokens += tokens
            if prompt_like:
                duration_ms += self._cost.prompt_ms(tokens)
            if not sequence.uncomputed_tokens:
                sequence.output_tokens += 1
                duration_ms += self._cost.output_ms(sequence.prompt_tokens, sequence.output_tokens)
                produced.append(sequence)
        self.generated_tokens += len(produced)
        return Step(
            duration_s=duration_ms / 1000,
            produced=tuple(s.sequence_id for s in produced),
            finished=self._retire(produced),
            preempted=tuple(preempted),
            admitted=tuple(admitted),
            computed_tokens=sum(tokens for _, tokens in chunks),
        )

    def check(self) -> None:
        """Assert what holds between any two steps."""
        held = sum(s.blocks for s in self._sequences.values())
        assert held + self._free_blocks == self.limits.blocks, "blocks are conserved"
        assert self._free_blocks >= 0, "the KV pool is never overfull"
        assert len(self._running) <= self.limits.max_num_seqs
        assert len(self._running) + len(self._waiting) == len(self._sequences)
        for sequence in self._running:
            assert sequence.computed_tokens <= sequence.blocks * self.limits.block_tokens
            assert sequence.uncomputed_tokens >= 1, "a running sequence has something to compute"
        for sequence in self._waiting:
            assert sequence.blocks == 0, "a waiting sequence holds no KV"
            assert sequence.computed_tokens == 0

    def _continue_running(self, chunks: list[tuple[_Sequence, int]]) -> list[int]:
        """Give each running sequence its next chunk, preempting from the end; return who was preempted."""
        budget = self.limits.max_num_batched_tokens
        preempted: list[int] = []
        index = 0
        while index < len(self._running) and budget:
            sequence = self._running[index]
            tokens = min(sequence.uncomputed_tokens, budget)
            while not self._grow(sequence, tokens):
                victim = self._running.pop()
                self._preempt(victim)
                preempted.append(victim.sequence_id)
                if victim is sequence:
                    return preempted
            chunks.append((sequence, tokens))
            budget -= tokens
            index += 1
        return preempted

    def _admit(self, chunks: list[tuple[_Sequence, int]]) -> list[int]:
        """Take in waiting sequences, in order, while slots, budget and KV allow; return whose start it is."""
        budget = self.limits.max_num_batched_tokens - sum(tokens for _, tokens in chunks)
        started: list[int] = []
        while self._waiting and budget and len(self._running) < self.limits.max_num_seqs:
            sequence = self._waiting[0]
            tokens = min(sequence.uncomputed_tokens, budget)
            if not self._grow(sequence, tokens):
                break
            self._running.append(self._waiting.popleft())
            chunks.append((sequence, tokens))
            budget -= tokens
            if not sequence.was_admitted:
                sequence.was_admitted = True
                self.prompt_tokens += sequence.prompt_tokens
                started.append(sequence.sequence_id)
        return started

    def _grow(self, sequence: _Sequence, tokens: int) -> bool:
        """Take the blocks for that many more computed tokens, all or none."""
        wanted = -(-(sequence.computed_tokens + tokens) // self.limits.block_tokens) - sequence.blocks
        if wanted > self._free_blocks:
            return False
        self._free_blocks -= wanted
        sequence.blocks += wanted
        return True

    def _preempt(self, sequence: _Sequence) -> None:
        self._release(sequence)
        self._waiting.appendleft(sequence)
        self.preemptions += 1

    def _release(self, sequence: _Sequence) -> None:
        self._free_blocks += sequence.blocks
        sequence.blocks = 0
        sequence.computed_tokens = 0

    def _retire(self, produced: list[_Sequence]) -> tuple[int, ...]:
        finished = [s for s in produced if s.output_tokens >= s.target_tokens]
        for sequence in finished:
            self._release(sequence)
            del self._sequences[sequence.sequence_id]
        if finished:
            self._running = [s for s in self._running if s.sequence_id in self._sequences]
        return tuple(s.sequence_id for s in finished)
