"""One number out of a Prometheus, or the reason why there is none.

The only module that imports `prometheus_api_client`. A query that fails, finds nothing, finds several
series or gives NaN has no value: reporting zero instead would tell of an idle pool when nothing is known.
"""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.exceptions import ReadTimeoutError
from urllib3.util.retry import Retry

#: A hanging Prometheus holds one thread per query of a pool; it can't take those that other clients need.
_THREADS = 16
_MAX_WORDS = 300


@dataclass(frozen=True, slots=True)
class Reading:
    """One query's answer. `value` is None where there is none, and `problem` says why."""

    value: float | None
    problem: str = ""


class PrometheusClient:
    """Any number of Prometheus servers, by URL."""

    def __init__(self) -> None:
        self._connections: dict[str, PrometheusConnect] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="prometheus")

    async def query(self, url: str, promql: str, timeout_s: float) -> Reading:
        """Read an instant query that yields one number; ends after `timeout_s` seconds at the latest."""
        call = asyncio.get_running_loop().run_in_executor(self._threads, self._query, url, promql, timeout_s)
        try:
            return await asyncio.wait_for(call, timeout_s)
        except TimeoutError:
            return _late(url, timeout_s)

    def close(self) -> None:
        """Stop taking queries; those in flight end by their own time limits."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _query(self, url: str, promql: str, timeout_s: float) -> Reading:
        try:
            result = self._connection(url).custom_query(promql, timeout=timeout_s)
        except PrometheusApiClientException as problem:
            return Reading(None, f"{url} refused the query: {problem}"[:_MAX_WORDS])
        except requests.Timeout:
            return _late(url, timeout_s)
        except requests.ConnectionError as problem:
            if _is_late(problem):
                return _late(url, timeout_s)
            return Reading(None, f"no connection to {url}: {_root_words(problem)}")
        except (requests.RequestException, ValueError, KeyError) as problem:
            return Reading(None, f"no usable answer from {url}: {type(problem).__name__}")
        return one_number(result)

    def _connection(self, url: str) -> PrometheusConnect:
        connection = self._connections.get(url)
        if connection is None:
            # The library's default retries add up to tens of seconds; here the next evaluation is the retry.
            # read=False: a late answer is a time-out, not the end of retries.
            connection = PrometheusConnect(url=url, retry=Retry(total=0, read=False))
            self._connections[url] = connection
        return connection


def _late(url: str, timeout_s: float) -> Reading:
    return Reading(None, f"no answer from {url} within {timeout_s:g} s")


def _is_late(problem: BaseException) -> bool:
    """Whether requests calls a time-out while reading a broken connection, as it does after retries."""
    cause: BaseException | None = problem
    while cause is not None:
        if isinstance(cause, ReadTimeoutError) or isinstance(
            getattr(cause, "reason", None), ReadTimeoutError
        ):
            return True
        cause = next((each for each in cause.args if isinstance(each, BaseException)), cause.__context__)
    return False


def _root_words(problem: BaseException) -> str:
    """Give the system's words for a broken connection: the libraries' hold addresses that change."""
    cause: BaseException | None = problem
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return type(problem).__name__


def one_number(result: Any) -> Reading:
    """What an instant query's `result` says: a vector of one series, or a scalar."""
    match result:
        case []:
            return Reading(None, "the query finds no series")
        case [{"value": [_, str(text)]}] | [int() | float(), str(text)]:
            return _finite(text)
        case [{"values": _}, *_]:
            return Reading(None, "the query gives a range, not one number")
        case [{"value": _}, *_]:
            return Reading(None, f"the query finds {len(result)} series, not one number")
        case _:
            return Reading(None, "the query gives no number")


def _finite(text: str) -> Reading:
    try:
        value = float(text)
    except ValueError:
        return Reading(None, "the query gives a text, not a number")
    return Reading(value) if math.isfinite(value) else Reading(None, f"the query gives {text}, not a number")
