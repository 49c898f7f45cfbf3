"""vLLM's metrics text in both spellings, old names, several engines, and what is missing."""

from __future__ import annotations

import pytest

from fairserve.core.window import EngineSample
from fairserve.engine.metrics import read_sample

TEXT = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a}b\\" 9"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 50.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:num_preemptions_total{engine="0",model_name="m"} 4.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="100"} 1.0
"""


@pytest.mark.parametrize("prefix", ["vllm:", "vllm_"])
def test_both_spellings(prefix):
    assert read_sample(TEXT.replace("vllm:", prefix).encode()) == EngineSample(3, 2, 0.25, 4.0, 1600)


def test_engines_add_up_and_the_fullest_pool_counts():
    second = TEXT.replace('engine="0"', 'engine="1"').replace("0.25", "0.75")
    assert read_sample((TEXT + second).encode()) == EngineSample(6, 4, 0.75, 8.0, 3200)


def test_old_name_of_kv_use():
    text = TEXT.replace("kv_cache_usage_perc", "gpu_cache_usage_perc")
    assert read_sample(text.encode()) == EngineSample(3, 2, 0.25, 4.0, 1600)


def test_both_names_of_kv_use_are_one():
    """vLLM had both for a while."""
    text = TEXT + 'vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.99\n'
    assert read_sample(text.encode()) == EngineSample(3, 2, 0.25, 4.0, 1600)


#: What vLLM 0.6 said, with the engine that it had before V1.
OLD_TEXT = """\
# HELP vllm:cache_config_info information of cache_config
vllm:cache_config_info{block_size="16",cache_dtype="auto",num_cpu_blocks="2048",num_gpu_blocks="500"} 1.0
# HELP vllm:num_requests_running Number of requests currently running on GPU.
vllm:num_requests_running{model_name="m"} 7.0
vllm:num_requests_swapped{model_name="m"} 2.0
vllm:num_requests_waiting{model_name="m"} 1.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.97
vllm:cpu_cache_usage_perc{model_name="m"} 0.5
vllm:num_preemptions_total{model_name="m"} 3.0
"""


@pytest.mark.parametrize("prefix", ["vllm:", "vllm_"])
def test_old_engine_whose_swapped_calls_wait(prefix):
    text = OLD_TEXT.replace("vllm:", prefix)
    assert read_sample(text.encode()) == EngineSample(7, 3, 0.97, 3.0, 8000)


def test_pool_of_several_is_unknown_while_one_is():
    second = TEXT.replace('engine="0"', 'engine="1"').replace('blocks="100"', 'blocks="None"')
    sample = read_sample((TEXT + second).encode())
    assert sample is not None
    assert sample.kv_tokens is None


def test_pool_size_that_is_not_known_yet():
    sample = read_sample(TEXT.replace('num_gpu_blocks="100"', 'num_gpu_blocks="None"').encode())
    assert sample is not None
    assert sample.kv_tokens is None


@pytest.mark.parametrize("missing", ["num_requests_running", "num_requests_waiting{", "kv_cache_usage_perc"])
def test_missing_or_nan_is_no_sample_and_not_zero(missing):
    assert read_sample(TEXT.replace(f"vllm:{missing}", "other").encode()) is None


def test_nan_is_no_sample():
    assert read_sample(TEXT.replace(" 0.25", " NaN").encode()) is None
    assert read_sample(b"") is None
