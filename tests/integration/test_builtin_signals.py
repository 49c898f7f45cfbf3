"""The built-in signals' PromQL against a real Prometheus: each yields one number, of its own pool alone."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, get_args

import pytest

from fairserve_operator.api.v1alpha1 import Builtin, ServingPoolSpec
from fairserve_operator.clients.prometheus import Connection, PrometheusClient, Reading, Source
from fairserve_operator.decide.signals import SIGNAL_LABEL, overload_plan
from tests.fakes.exposition import served
from tests.parts.process import poll
from tests.parts.prometheus import Prometheus

DEADLINE_S = 30.0
#: By how much Prometheus may overrate what it has seen in a few scrapes.
EXTRAPOLATED = 0.4
TIMEOUT_S = 10.0

#: What a page says, with counters that have grown for so many seconds.
Page = Callable[[float], str]
#: What the built-in rates look back on. Counters grow by as much at once, between the first two scrapes.
WINDOW_S = 60.0


@contextmanager
def target(page: Page) -> Iterator[str]:
    """Serve a /metrics page, whose counters have grown from the second scrape on; gives its address."""
    scrapes = itertools.count()
    with served(lambda: page(WINDOW_S if next(scrapes) else 0.0)) as address:
        yield address


def ours(pool: str, wait_s: float = 0.0, saturation: float = 0.0) -> str:
    return (
        f'fairserve_pool_info{{pool_namespace="ns",pool="{pool}"}} 1\n'
        f"fairserve_queue_oldest_wait_seconds {wait_s}\n"
        f"fairserve_saturation {saturation}\n"
    )


def engine(
    prefix: str,
    seconds: float,
    *,
    kv: float = 0.0,
    waiting: float = 0.0,
    running: float = 0.0,
    preempted: float = 0.0,
    fast: float = 0.0,
    slow: float = 0.0,
    kv_name: str = "kv_cache_usage_perc",
) -> str:
    """vLLM's part: so many a second are `preempted`, take up to 1 s (`fast`) and up to 10 s (`slow`)."""
    text = ""
    # Engines with several ranks export a series for each.
    for rank, share in (("0", 1.0), ("1", 0.0)):
        labels = f'engine="{rank}",model_name="m"'
        text += (
            f"{prefix}{kv_name}{{{labels}}} {kv}\n"
            f"{prefix}num_requests_waiting{{{labels}}} {waiting * share}\n"
            f"{prefix}num_requests_running{{{labels}}} {running * share}\n"
            f"{prefix}num_preemptions_total{{{labels}}} {preempted * share * seconds}\n"
        )
        for name in ("request_queue_time_seconds", "time_to_first_token_seconds"):
            for bound, rate in (("1.0", fast), ("10.0", fast + slow), ("+Inf", fast + slow)):
                text += f'{prefix}{name}_bucket{{{labels},le="{bound}"}} {rate * share * seconds}\n'
    return text


def pages() -> list[Page]:
    """Some pools, and one that is like none of them."""
    one = {"kv": 0.2, "waiting": 3, "preempted": 5, "fast": 100}
    two = {"kv": 0.4, "waiting": 2, "preempted": 1, "fast": 80, "slow": 20}
    return [
        lambda s: ours("llm", 4.0, 0.5) + engine("vllm:", s, **one),
        lambda s: ours("llm", 1.0, 1.5) + engine("vllm_", s, **two),
        lambda s: ours("upgraded", 4.0, 0.5) + engine("vllm:", s, **one) + engine("vllm_", s, **one),
        lambda s: ours("old") + engine("vllm:", s, kv=0.7, kv_name="gpu_cache_usage_perc"),
        lambda s: ours("idle") + engine("vllm_", 1.0),
        lambda s: ours("hung") + engine("vllm:", 1.0, running=3),
        # What waits with the sidecar is in vLLM's figure; what the engine said is beside it.
        lambda s: ours("merged") + engine("vllm:", s, waiting=53) + "fairserve_engine_requests_waiting 3\n",
        lambda s: ours("merged") + engine("vllm_", s, waiting=2),
        lambda s: ours("behind") + engine("vllm_", 1.0, waiting=50) + "fairserve_engine_requests_waiting 0\n",
        lambda s: ours("other", 99.0, 9.0) + engine("vllm:", s, kv=0.9, waiting=99, preempted=99, slow=9),
    ]


@pytest.fixture(params=[False, True], ids=["names of Prometheus 3", "names of Prometheus 2"])
def prometheus(
    start_prometheus: Callable[..., Prometheus], request: pytest.FixtureRequest
) -> Iterator[Prometheus]:
    with ExitStack() as serving:
        targets = [serving.enter_context(target(page)) for page in pages()]
        started = start_prometheus([{"targets": targets}], scrape_interval_s=0.25, legacy_names=request.param)
        # So many scrapes of each that rates are overrated by no more than EXTRAPOLATED.
        seen = "count(count_over_time(fairserve_pool_info[1m]) >= 6)"
        poll(lambda: [each.value for each in started.query(seen)] == [len(targets)], DEADLINE_S, "scrapes")
        yield started


@pytest.fixture
async def connection(prometheus: Prometheus) -> AsyncIterator[Connection]:
    client = PrometheusClient()
    yield client.connect(Source(prometheus.url))
    client.close()


async def read(connection: Connection, pool: str, *own: str) -> Mapping[str, Reading]:
    """All built-in signals of a pool, and queries of one's own, each by its name as the operator asks."""
    signals: list[dict[str, Any]] = [
        {"name": builtin.lower(), "builtin": builtin, "threshold": 1} for builtin in get_args(Builtin)
    ]
    signals += [{"name": f"own-{n}", "query": query, "threshold": 1} for n, query in enumerate(own)]
    spec = ServingPoolSpec.model_validate(
        {"selector": {"matchLabels": {"a": "b"}}, "overload": {"signals": signals}}
    )
    plan = overload_plan("ns", pool, spec)
    readings: dict[str, Reading] = {}
    for promql, names in plan.joint.items():
        readings |= await connection.query_jointly(promql, SIGNAL_LABEL, names, TIMEOUT_S) or {}
    for name in plan.queries.keys() - readings.keys():
        readings[name] = await connection.query(plan.queries[name], TIMEOUT_S)
    return readings


def values(readings: Mapping[str, Reading]) -> dict[str, float]:
    return {name: math.nan if each.value is None else each.value for name, each in readings.items()}


async def test_each_builtin_signal_is_one_number_of_its_own_pool(connection: Connection) -> None:
    assert values(await read(connection, "llm")) == pytest.approx(
        {
            "queuewait": 4.0,
            "saturation": 1.0,
            "kvcacheuse": 0.3,
            "enginewaiting": 5.0,
            # Of 200 calls a second 180 took up to 1 s: the 190th is half-way between 1 and 10.
            "enginequeuetime": 5.5,
            "timetofirsttoken": 5.5,
            "preemptions": 6.0,
        },
        rel=EXTRAPOLATED,
    )


async def test_target_that_is_stored_under_both_spellings_counts_once(connection: Connection) -> None:
    found = values(await read(connection, "upgraded"))
    assert (found["enginewaiting"], found["kvcacheuse"]) == (3.0, 0.2)
    assert found["preemptions"] == pytest.approx(5.0, rel=EXTRAPOLATED)
    assert found["timetofirsttoken"] == pytest.approx(0.95)


async def test_calls_that_wait_with_the_sidecar_do_not_wait_inside_the_engine(connection: Connection) -> None:
    assert values(await read(connection, "merged"))["enginewaiting"] == 5.0
    behind = await read(connection, "behind")
    # The engine holds none, so that nobody waits for its first token.
    assert {behind[name] for name in ("enginewaiting", "enginequeuetime", "timetofirsttoken")} == {
        Reading(0.0)
    }


async def test_old_name_of_the_kv_cache_is_known(connection: Connection) -> None:
    assert values(await read(connection, "old"))["kvcacheuse"] == pytest.approx(0.7)


async def test_idle_engines_keep_nobody_waiting_and_hung_ones_have_no_value(connection: Connection) -> None:
    idle, hung = await read(connection, "idle"), await read(connection, "hung")
    for name in ("timetofirsttoken", "enginequeuetime"):
        assert idle[name] == Reading(0.0)
        assert hung[name].problem == "the query finds no series"


async def test_a_pool_without_pods_has_no_value(connection: Connection) -> None:
    found = await read(connection, "nobody")
    assert len(found) == len(get_args(Builtin))
    assert {each.problem for each in found.values()} == {"the query finds no series"}


async def test_queries_of_ones_own(connection: Connection) -> None:
    found = await read(
        connection,
        "llm",
        "scalar(sum(fairserve_pool_info))",
        "sum(fairserve_pool_info) > 100",
        "fairserve_pool_info",
        "0 / sum(fairserve_pool_info - 1)",
        "sum(",
        "up[1m]",
    )
    assert found["own-0"] == Reading(len(pages()))
    seen = [found[f"own-{n}"].problem for n in range(1, 6)]
    expected = ["no series", f"{len(pages())} series, not one", "NaN", "parse error", "a range"]
    assert [words for words, problem in zip(expected, seen, strict=True) if words not in problem] == []


async def test_refused_joint_query_is_told_from_a_failed_one(
    connection: Connection, prometheus: Prometheus
) -> None:
    broken = "fairserve_saturation + on (job) fairserve_saturation"
    assert await connection.query_jointly(broken, SIGNAL_LABEL, ["a"], TIMEOUT_S) is None
    prometheus.kill()
    found = await connection.query_jointly("up", SIGNAL_LABEL, ["a"], TIMEOUT_S)
    assert found is not None
    assert "no connection" in found["a"].problem
    prometheus.start()
    assert (await asyncio.wait_for(connection.query("1", TIMEOUT_S), TIMEOUT_S)).value == 1.0
