"""The emulator's /metrics: vLLM's names, types and labels, as far as the model knows the numbers."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from fairserve.sim.steps import EngineModel

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Exposition:
    """The metrics of one engine."""

    def __init__(self, model: EngineModel, model_name: str) -> None:
        self._model = model
        self._labels = {"model_name": model_name, "engine": "0"}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        names = list(self._labels)
        self._first_token = Histogram(
            "vllm:time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            names,
            buckets=_SECONDS,
            registry=self._registry,
        ).labels(**self._labels)
        self._latency = Histogram(
            "vllm:e2e_request_latency_seconds",
            "Histogram of e2e request latency in seconds.",
            names,
            buckets=_SECONDS,
            registry=self._registry,
        ).labels(**self._labels)
        self._ended = Counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            [*names, "finished_reason"],
            registry=self._registry,
        )

    def ended(self, reason: str, latency_s: float, first_token_s: float | None) -> None:
        """Count a request that ended for `stop`, `length` or `abort`."""
        self._ended.labels(**self._labels, finished_reason=reason).inc()
        self._latency.observe(latency_s)
        if first_token_s is not None:
            self._first_token.observe(first_token_s)

    def text(self) -> bytes:
        """Render the exposition text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Read the model; called by the registry."""
        model = self._model
        limits = model.limits
        names = list(self._labels)
        values = list(self._labels.values())
        for name, text, number in (
            ("vllm:num_requests_running", "Number of requests in model execution batches.", model.running),
            ("vllm:num_requests_waiting", "Number of requests waiting to be processed.", model.waiting),
            ("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", model.kv_use),
        ):
            gauge = GaugeMetricFamily(name, text, labels=names)
            gauge.add_metric(values, number)
            yield gauge
        for name, text, count in (
            ("vllm:num_preemptions", "Cumulative number of preemptions.", model.preemptions),
            ("vllm:prompt_tokens", "Number of prefill tokens processed.", model.prompt_tokens),
            ("vllm:generation_tokens", "Number of generation tokens processed.", model.generated_tokens),
        ):
            counter = CounterMetricFamily(name, text, labels=names)
            counter.add_metric(values, count)
            yield counter
        config = {
            "block_size": str(limits.block_tokens),
            "num_gpu_blocks": str(limits.blocks),
            "enable_prefix_caching": "False",
            "engine": "0",
        }
        info = GaugeMetricFamily(
            "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", labels=list(config)
        )
        info.add_metric(list(config.values()), 1.0)
        yield info
