"""The built-in signals' PromQL against a real Prometheus: each yields one number, of its own pool alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fairserve_operator.api.v1alpha1 import Builtin
from fairserve_operator.decide.signals import builtin_query
from tests.parts.process import poll
from tests.parts.prometheus import Prometheus

DEADLINE_S = 30.0


@contextmanager
def target(text: str) -> Iterator[str]:
    """Serve a /metrics page; gives its address."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def page(pool: str, wait_s: float, saturation: float, kv: float, waiting: float, colon: str = ":") -> str:
    return (
        f'fairserve_pool_info{{pool_namespace="ns",pool="{pool}"}} 1\n'
        f"fairserve_queue_oldest_wait_seconds {wait_s}\n"
        f"fairserve_saturation {saturation}\n"
        f'vllm{colon}kv_cache_usage_perc{{engine="0",model_name="m"}} {kv}\n'
        f'vllm{colon}num_requests_waiting{{engine="0",model_name="m"}} {waiting}\n'
        # Labels beside the model's, as engines with several ranks export them.
        f'vllm{colon}num_requests_waiting{{engine="1",model_name="m"}} 0\n'
    )


@pytest.fixture
def prometheus(start_prometheus: Callable[..., Prometheus]) -> Iterator[Prometheus]:
    with ExitStack() as serving:
        pages = (
            page("llm", 4.0, 0.5, 0.2, 3),
            page("llm", 1.0, 1.5, 0.4, 2, colon="_"),
            page("other", 99.0, 9.0, 0.9, 99),
        )
        targets = [serving.enter_context(target(text)) for text in pages]
        started = start_prometheus([{"targets": targets}])
        poll(lambda: len(started.query("fairserve_pool_info")) == len(pages), DEADLINE_S, "all pages scraped")
        yield started


def test_each_builtin_signal_is_one_number_of_its_own_pool(prometheus: Prometheus) -> None:
    expected: dict[Builtin, float] = {
        "QueueWait": 4.0,
        "Saturation": 1.0,
        "KVCacheUse": 0.3,
        "EngineWaiting": 5.0,
    }
    for builtin, value in expected.items():
        (sample,) = prometheus.query(builtin_query(builtin, "ns", "llm"))
        assert sample.value == pytest.approx(value), builtin


def test_a_pool_without_pods_has_no_value(prometheus: Prometheus) -> None:
    assert prometheus.query(builtin_query("QueueWait", "ns", "nobody")) == []
