"""The sidecar before a real vLLM on the CPU, beside the same vLLM alone: `make bench-engine`.

At saturation (many more clients than the engine runs at once, closed loop) the engine gets its calls in turns
directly and through the sidecar, slice by slice, and its own counter says how many tokens it generated: the
ratio is what keeping calls in the sidecar costs. During the sidecar's slices the engine's own queue is read,
since the order is the sidecar's only while calls wait there. Under light load, one client at a time, single
calls alternate between the two ways.

vLLM's scheduler and its worker have a core of their own, as a GPU has; vLLM's HTTP server, the sidecar and
the clients share the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import re
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.clients import CHAT, Caller, request
from bench.processes import TENANTS, answering, cpu_s, sidecar
from bench.results import Figure, at_least, at_most, figure, half_quartiles, publish
from fairserve.core import EngineSample
from fairserve.engine.metrics import read_sample
from tests.parts.process import free_port, group_members
from tests.parts.vllm import MODEL, Vllm

SEED = 1
ROUNDS, SLICE_S, PAIRS = 20, 4.0, 200
SEQUENCES = 16  #: that the engine runs at once
CLIENTS = 64
#: Output tokens of a call, by load: each call asks for half to one and a half times as many.
LOADS = {"16 output tokens": 16, "32 output tokens": 32, "128 output tokens": 128}
_SAMPLE_S = 0.1
_WARM_S = 1.0
_METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
_GENERATED = re.compile(rb"^vllm:generation_tokens_total\{[^}]*\} (\S+)", re.MULTILINE)
_BARE, _SIDECAR = "bare", "sidecar"


def body(tokens: int, *, streamed: bool = False) -> bytes:
    """A call that generates exactly so many tokens."""
    return (
        b'{"model":"%b","messages":[{"role":"user","content":"Tell me a story about a river."}],'
        b'"max_tokens":%d,"ignore_eos":true%b}'
    ) % (MODEL.encode(), tokens, b',"stream":true' if streamed else b"")


@dataclass(frozen=True)
class Slice:
    """What one target did with one load."""

    tokens_per_s: float
    tokens_per_cpu_s: float  #: of the engine's scheduler and worker
    samples: list[EngineSample]


class Engine:
    """What the engine says of itself, asked directly."""

    def __init__(self, caller: Caller, pids: Sequence[int]) -> None:
        self._caller = caller
        self._pids = pids

    async def read(self) -> tuple[float, EngineSample]:
        """Tokens generated so far, and what runs and waits in it."""
        text = (await self._caller.call(_METRICS)).body
        found, sample = _GENERATED.search(text), read_sample(text)
        if found is None or sample is None:
            raise RuntimeError("the engine's metrics lack what is measured")
        return float(found[1]), sample

    def cpu_s(self) -> float:
        """CPU seconds of its scheduler and worker. They spin, so it is the time that their core gave them."""
        return sum(map(cpu_s, self._pids))


@contextlib.asynccontextmanager
async def saturated(port: int, tokens: int, rng: random.Random) -> AsyncIterator[None]:
    """Clients that call again as soon as they are answered; at the end all have their answers."""
    ended = False

    async def client(key: int, caller: Caller) -> None:
        while not ended:
            wanted = rng.randint(tokens // 2, tokens + tokens // 2)
            answer = await caller.call(request(CHAT, body(wanted), key))
            if answer.status != 200:
                raise RuntimeError(f"unexpected answer {answer.status}: {answer.body[:200]!r}")
        caller.transport.abort()

    async with asyncio.TaskGroup() as clients:
        for number in range(CLIENTS):
            clients.create_task(client(number % TENANTS, await Caller.connect(port)))
        yield
        ended = True


async def saturation(engine: Engine, port: int, length: int, seconds: float, rng: random.Random) -> Slice:
    """One slice of one load on one target."""
    loop = asyncio.get_running_loop()
    samples = []
    async with saturated(port, length, rng):
        await asyncio.sleep(_WARM_S)
        before, _ = await engine.read()
        began, used = loop.time(), engine.cpu_s()
        while loop.time() - began < seconds:
            await asyncio.sleep(_SAMPLE_S)
            generated, sample = await engine.read()
            samples.append(sample)
        tokens = generated - before
        return Slice(tokens / (loop.time() - began), tokens / (engine.cpu_s() - used), samples)


async def first_token_ms(caller: Caller) -> float:
    """Time to the first token of one short stream."""
    answer = await caller.call(request(CHAT, body(4, streamed=True)))
    if answer.status != 200 or b"[DONE]" not in answer.body:
        raise RuntimeError(f"unexpected answer {answer.status}: {answer.body[:200]!r}")
    return 1e3 * answer.first_s


def in_order(sample: EngineSample) -> bool:
    """Whether so little waits in the engine that the order is the sidecar's."""
    return sample.waiting <= max(2, 0.05 * sample.running)


async def measure(
    ports: dict[str, int], pids: Sequence[int], rounds: int, seconds: float, pairs: int, seed: int
) -> list[Figure]:
    """All figures of an engine whose scheduler and worker are `pids`."""
    for port in ports.values():
        await answering(port, CHAT, body(1))
    engine = Engine(await Caller.connect(ports[_BARE]), pids)
    figures = light(*await alternating(ports, pairs))
    for load, tokens in LOADS.items():
        slices: dict[str, list[Slice]] = {name: [] for name in ports}
        for number in range(rounds):
            print(f"{load}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            # Who begins takes turns as well: what slows down within a round slows neither of them more.
            for name in sorted(ports, reverse=bool(number % 2)):
                # Both ways of one round generate the same sequence of lengths.
                rng = random.Random(f"{seed} {load} {number}")
                slices[name].append(await saturation(engine, ports[name], tokens, seconds, rng))
        figures += judged(load, slices)
    return figures


async def alternating(ports: dict[str, int], pairs: int) -> tuple[list[float], list[float]]:
    """Milliseconds to the first token, bare and through the sidecar, pair by pair."""
    callers = {name: await Caller.connect(port) for name, port in ports.items()}
    times: dict[str, list[float]] = {name: [] for name in ports}
    for number in range(pairs + 10):
        for name in sorted(callers, reverse=bool(number % 2)):
            taken = await first_token_ms(callers[name])
            if number >= 10:  # The first ones warm up connections and caches.
                times[name].append(taken)
    return times[_BARE], times[_SIDECAR]


def light(bare: list[float], through: list[float]) -> list[Figure]:
    """What the sidecar adds to the time to first token, in milliseconds like its arguments."""
    allowed = 1.0 + 0.01 * statistics.median(bare)
    added = [b - a for a, b in zip(bare, through, strict=True)]
    name = "time to first token, one client"
    return [
        figure(
            f"{name}: sidecar minus bare (goal 1 ms + 1 % of bare)",
            statistics.median(added),
            "ms",
            half_quartiles(added),
            at_most(round(allowed, 3)),
        ),
        *(
            figure(f"{name}; {who}", statistics.median(times), "ms", half_quartiles(times))
            for who, times in ((_BARE, bare), (_SIDECAR, through))
        ),
    ]


def judged(load: str, slices: dict[str, list[Slice]]) -> list[Figure]:
    """Throughput and order at saturation."""
    pairs = list(zip(slices[_SIDECAR], slices[_BARE], strict=True))
    ratios = [ours.tokens_per_s / bare.tokens_per_s for ours, bare in pairs]
    undisturbed = [ours.tokens_per_cpu_s / bare.tokens_per_cpu_s for ours, bare in pairs]
    samples = {name: [sample for one in of for sample in one.samples] for name, of in slices.items()}
    share = statistics.mean(in_order(sample) for sample in samples[_SIDECAR])
    figures = [
        figure(
            f"{load}: tokens/s, sidecar over bare",
            statistics.median(ratios),
            "ratio",
            half_quartiles(ratios),
            at_least(0.99),
        ),
        figure(
            f"{load}: tokens per second that the engine had its core, sidecar over bare",
            statistics.median(undisturbed),
            "ratio",
            half_quartiles(undisturbed),
        ),
        figure(
            f"{load}: samples in which at most max(2, 5 % of running) wait in the engine; sidecar",
            100 * share,
            "%",
            None,
            at_least(95),
        ),
    ]
    for name, of in slices.items():
        rates = [one.tokens_per_s for one in of]
        figures += [
            figure(f"{load}: tokens/s; {name}", statistics.median(rates), "1/s", half_quartiles(rates)),
            figure(f"{load}: running; {name}", statistics.mean(s.running for s in samples[name]), "calls"),
            figure(f"{load}: waiting; {name}", statistics.mean(s.waiting for s in samples[name]), "calls"),
        ]
    return figures


def pin(engine: Vllm, computing: int, serving: int) -> list[int]:
    """Put scheduler and worker on one core, which stands for a GPU, and the HTTP server on the other. The
    process ids of the former.
    """
    found = []
    for pid in group_members(engine.process.pid):
        computes = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").startswith("VLLM::")
        if computes:
            found.append(pid)
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {computing if computes else serving})
    if not found:
        raise RuntimeError("none of vLLM's processes calls itself its engine")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SLICE_S, help="of one slice (default 4)")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of calls alone (default 200)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--compiled", type=Path, help="folder with a compiled core (make compiled)")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("needs two cores: one for the engine, one for everything else")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        engine = stack.enter_context(Vllm(max_num_seqs=SEQUENCES))
        pids = pin(engine, cores[1], cores[0])
        os.sched_setaffinity(0, {cores[0]})
        port = free_port()
        stack.enter_context(
            sidecar(
                Path(folder),
                engine=engine.port,
                port=port,
                control=free_port(),
                core=cores[0],
                compiled=options.compiled,
            )
        )
        figures = uvloop.run(
            measure(
                {_BARE: engine.port, _SIDECAR: port},
                pids,
                options.rounds,
                options.seconds,
                options.pairs,
                options.seed,
            )
        )
    publish("engine", options.seed, figures)


if __name__ == "__main__":
    main()
