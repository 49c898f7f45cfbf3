"""`fairserve sim calibrate`: measures an engine over HTTP, fits the step model, writes a calibration file.

The engine should be idle otherwise: what else it computes ends up in the coefficients.
"""

from __future__ import annotations

import asyncio
import random
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import yaml
from rich.console import Console
from rich.progress import track

from fairserve.engine.metrics import read_sample
from fairserve.sim.calibration import Fit, Measurement, fit

_TIMEOUT_S = 600.0
_PROMPTS, _OUTPUTS, _BATCHES = (16, 64, 128, 256, 512, 1024), (1, 8, 24, 48), (1, 2, 4, 8)


class CalibrationError(RuntimeError):
    """The engine can't be measured."""


def calibrate(url: str, output: Path, step_tokens: int, rounds: int, console: Console) -> int:
    """Exit status: 0, or 1 where the engine can't be measured."""
    try:
        measured, sizes = asyncio.run(_measure(url.rstrip("/"), rounds, console))
        result = fit(measured, step_tokens)
    except (CalibrationError, ValueError) as error:
        Console(stderr=True).print(f"error: {url}: {error}", highlight=False, soft_wrap=True, markup=False)
        return 1
    output.write_text(
        yaml.safe_dump(_document(result, sizes, step_tokens), sort_keys=False), encoding="utf-8"
    )
    console.print(
        f"{result.fitted} measurements fitted with a mean error of {100 * result.fit_error:.1f} %; "
        f"{result.held_back} held back: mean error {100 * result.held_back_error:.1f} %, "
        f"p90 {100 * result.held_back_p90:.1f} %. Wrote {output}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _document(result: Fit, sizes: dict[str, int], step_tokens: int) -> dict[str, Any]:
    cost = result.cost
    return {
        "cost": {
            "step_ms": cost.step_ms,
            "scale": cost.scale,
            "prompt": cost.prompt,
            "output": cost.output,
            "cross": cost.cross,
            "square": cost.square,
            "first": cost.first,
        },
        "max_num_batched_tokens": step_tokens,
        **sizes,
        "held_back": {
            "measurements": result.held_back,
            "mean_error": round(result.held_back_error, 4),
            "p90_error": round(result.held_back_p90, 4),
        },
        "measured": {"measurements": result.fitted, "mean_error": round(result.fit_error, 4)},
    }


async def _measure(url: str, rounds: int, console: Console) -> tuple[list[Measurement], dict[str, int]]:
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        model, longest = await _model(session, url)
        sizes = {"max_model_len": longest, **await _pool(session, url)}
        shapes = [
            (n, p, q)
            for n, p, q in product(_BATCHES, _PROMPTS, _OUTPUTS)
            if p + q <= longest and n * (p + q) <= sizes.get("kv_tokens", n * (p + q))
        ]
        # In a mixed order, so that warming up or a busy moment doesn't favour a shape.
        rng = random.Random(1)  # noqa: S311 the same prompts each time
        rng.shuffle(shapes)
        await _together(session, url, model, 2, 16, 4, rng)
        taken: dict[tuple[int, int, int], list[float]] = {shape: [] for shape in shapes}
        for shape in track(shapes * rounds, "Measuring", console=console, transient=True):
            taken[shape].append(await _together(session, url, model, *shape, rng))
        measured = [Measurement(*shape, total_ms=median(times)) for shape, times in taken.items()]
        return measured, sizes


async def _together(
    session: aiohttp.ClientSession, url: str, model: str, n: int, p: int, q: int, rng: random.Random
) -> float:
    """Milliseconds until the last of n equal requests has ended."""
    # Made-up token ids: no two prompts share a prefix that a cache would have.
    bodies = [
        {
            "model": model,
            "prompt": [rng.randrange(10, 200) for _ in range(p)],
            "max_tokens": q,
            "ignore_eos": True,
            "temperature": 0.0,
        }
        for _ in range(n)
    ]
    began = time.perf_counter()
    await asyncio.gather(*(_complete(session, url, body, q) for body in bodies))
    return (time.perf_counter() - began) * 1000


async def _complete(session: aiohttp.ClientSession, url: str, body: dict[str, Any], q: int) -> None:
    answer = await _json(session.post(f"{url}/v1/completions", json=body))
    produced = answer.get("usage", {}).get("completion_tokens")
    if produced != q:
        raise CalibrationError(f"{q} output tokens were asked for, {produced} came")


async def _model(session: aiohttp.ClientSession, url: str) -> tuple[str, int]:
    answer = await _json(session.get(f"{url}/v1/models"))
    try:
        model = answer["data"][0]
        return str(model["id"]), int(model["max_model_len"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CalibrationError("/v1/models names no model with its max_model_len") from error


async def _pool(session: aiohttp.ClientSession, url: str) -> dict[str, int]:
    try:
        async with session.get(f"{url}/metrics") as response:
            sample = read_sample(await response.read())
    except aiohttp.ClientError as error:
        raise CalibrationError(f"/metrics can't be read: {error}") from error
    return {"kv_tokens": sample.kv_tokens} if sample is not None and sample.kv_tokens else {}


async def _json(request: Any) -> dict[str, Any]:
    try:
        async with request as response:
            if response.status != 200:
                text = (await response.text())[:200]
                raise CalibrationError(f"{response.url.path} answered {response.status}: {text}")
            answer = await response.json()
    except (TimeoutError, aiohttp.ClientError) as error:
        raise CalibrationError(f"no answer: {error or type(error).__name__}") from error
    if not isinstance(answer, dict):
        raise CalibrationError("the answer is not a JSON object")
    return answer
