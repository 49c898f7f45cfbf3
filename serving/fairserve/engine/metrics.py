"""Reads the few numbers that the sidecar steers by out of vLLM's `/metrics` text.

The text has thousands of lines and is read often, so one expression picks the wanted lines and nothing
else is parsed. Prometheus' escaping turns `vllm:` into `vllm_` on the way; both spellings are read. One
server may report several engines (data parallel): counts are summed, and the fullest KV pool counts,
because that one preempts first. vLLM's engine before 1.0 of its core ("V0") swapped calls out of a full KV
pool, and counted them apart: they wait.
"""

from __future__ import annotations

import math
import re

from fairserve.core.window import EngineSample

_LABELS = rb'(?:\{((?:[^"}]|"(?:[^"\\\n]|\\.)*")*)\})?'
_LINE = re.compile(
    rb"^vllm[:_](num_requests_running|num_requests_waiting|num_requests_swapped|kv_cache_usage_perc|gpu_cache_usage_perc"
    rb"|num_preemptions|num_preemptions_total|cache_config_info)" + _LABELS + rb"[ \t]+(\S+)",
    re.MULTILINE,
)
_BLOCKS = re.compile(rb'(?:^|,)\s*num_gpu_blocks="(\d+)"')
_BLOCK_SIZE = re.compile(rb'(?:^|,)\s*block_size="(\d+)"')

_RUNNING = b"num_requests_running"
_WAITING = b"num_requests_waiting"
_SWAPPED = b"num_requests_swapped"
_PREEMPTIONS = (b"num_preemptions_total", b"num_preemptions")
#: The first name that is there counts; the second is what vLLM called it before 0.10.
_KV_USE = (b"kv_cache_usage_perc", b"gpu_cache_usage_perc")
_CACHE_CONFIG = b"cache_config_info"


def read_sample(text: bytes) -> EngineSample | None:
    """The sample in a `/metrics` text; None where it doesn't have running, waiting and KV use."""
    values: dict[bytes, list[float]] = {}
    pools: list[int] = []
    for name, labels, value in _LINE.findall(text):
        if name == _CACHE_CONFIG:
            pools.append(_pool_size(labels))
            continue
        number = _number(value)
        if number is not None:
            values.setdefault(name, []).append(number)
    kv_use = next((values[name] for name in _KV_USE if name in values), None)
    if kv_use is None or _RUNNING not in values or _WAITING not in values:
        return None
    preemptions = next((values[name] for name in _PREEMPTIONS if name in values), [0.0])
    return EngineSample(
        running=int(sum(values[_RUNNING])),
        waiting=int(sum(values[_WAITING]) + sum(values.get(_SWAPPED, ()))),
        kv_use=max(kv_use),
        preemptions=sum(preemptions),
        # One pool of unknown size leaves the sum unknown.
        kv_tokens=sum(pools) if pools and all(pools) else None,
    )


def _pool_size(labels: bytes) -> int:
    """Tokens in the KV pool of one engine; 0 where it says `None`, as vLLM does before it has profiled."""
    blocks, size = _BLOCKS.search(labels), _BLOCK_SIZE.search(labels)
    return int(blocks[1]) * int(size[1]) if blocks and size else 0


def _number(text: bytes) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
