"""One number out of a Prometheus, or the reason why there is none.

The only module that imports `prometheus_api_client`. A query that fails, finds nothing, finds several
series or gives NaN has no value: reporting zero instead would tell of an idle pool when nothing is known.

The library blocks, so each query has a thread, and its answer is waited for no longer than it may take. A
`Connection` belongs to one pool: threads that hang are that pool's alone, and there are few of them. They
are daemons, because a Prometheus that never finishes an answer would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import math
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import requests
import urllib3
from prometheus_api_client import PrometheusConnect
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError, InsecureRequestWarning, ReadTimeoutError
from urllib3.util.retry import Retry

from fairserve_operator.clients.wording import one_line

#: Queries of one pool in flight at once.
_THREADS = 4
#: One number is a few hundred bytes, with the labels of a series.
_LONGEST_ANSWER = 256 * 1024
_CHUNK = 16 * 1024
_NAMED_SERIES = 2

#: One that has no end is taken too: it is bad, and not to be passed over.
_CERTIFICATE = re.compile(r"-----BEGIN (?:X509 )?CERTIFICATE-----.*?(?:-----END [^\n]*|\Z)", re.DOTALL)

#: The kind of a problem that is the query's own.
_REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Reading:
    """One query's answer. `value` is None where there is none, and `problem` says why.

    `kind` is the same for problems that differ in nothing but detail, such as how many series there were.
    """

    value: float | None
    problem: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A Prometheus and what it takes to be answered. Equal sources can share a connection."""

    url: str
    authorization: str | None = field(default=None, repr=False)  #: the whole header
    ca_pem: str | None = field(default=None, repr=False)  #: None: what the image believes
    verify: bool = True
    secrets: tuple[str, ...] = field(default=(), repr=False)  #: what no message may show


def bearer(url: str, token: str) -> Source:
    """A Prometheus that wants a token."""
    return Source(url, f"Bearer {token}", secrets=(token,))


def basic(url: str, username: str, password: str) -> Source:
    """A Prometheus that wants a user and a password."""
    packed = base64.b64encode(f"{username}:{password}".encode()).decode()
    return Source(url, f"Basic {packed}", secrets=(packed, password))


class PrometheusClient:
    """Any number of Prometheus servers."""

    def __init__(self) -> None:
        self._open: set[Connection] = set()

    def connect(self, source: Source) -> Connection:
        """Make a connection; nothing is sent yet. Close it when done."""
        connection = Connection(source, self._open.discard)
        self._open.add(connection)
        return connection

    def close(self) -> None:
        """Close all connections; queries in flight end by their own time limits."""
        for connection in tuple(self._open):
            connection.close()


class Connection:
    """One pool's way to its Prometheus."""

    def __init__(self, source: Source, closed: Callable[[Connection], None]) -> None:
        self.source = source
        self._closed = closed
        self._slots = asyncio.Semaphore(_THREADS)
        self._session = requests.Session()
        self._api = self._made(source)

    def _made(self, source: Source) -> PrometheusConnect | Reading:
        """Put the library together, or tell what of the source it can't work with."""
        # The source is what users wrote: what is wrong with it is told to them, and ends nothing.
        try:
            context = _tls(source)
        except (ssl.SSLError, OverflowError, TypeError, ValueError):
            return Reading(None, "the CA is not a certificate in PEM", "ca")
        headers = {"Authorization": source.authorization} if source.authorization else None
        self._session.verify = source.verify
        self._session.max_redirects = 0
        # Names no user by ~/.netrc: credentials come from the pool's Secret or there are none.
        self._session.auth = _as_it_is
        try:
            api = PrometheusConnect(url=source.url, headers=headers, session=self._session)
        except ValueError:
            return Reading(None, f"{source.url} is not a URL", "url")
        # The library has just mounted one of its own, whose retries add up to tens of seconds.
        self._session.mount(source.url, _Transport(source, context))
        return api

    async def query(self, promql: str, timeout_s: float) -> Reading:
        """Read an instant query that yields one number; ends after `timeout_s` seconds at the latest."""
        answer = await self._ask(promql, timeout_s)
        return answer if isinstance(answer, Reading) else one_number(answer.result)

    async def query_jointly(
        self, promql: str, label: str, names: Sequence[str], timeout_s: float
    ) -> Mapping[str, Reading] | None:
        """Read a query whose series tell by `label` whose number they are; None if it was refused."""
        answer = await self._ask(promql, timeout_s)
        if isinstance(answer, Reading):
            return None if answer.kind == _REFUSED else dict.fromkeys(names, answer)
        return {name: one_number(_of(answer.result, label, name)) for name in names}

    def close(self) -> None:
        """Let go of the sockets that are idle."""
        self._session.close()
        self._closed(self)

    async def _ask(self, promql: str, timeout_s: float) -> _Answer | Reading:
        if isinstance(self._api, Reading):
            return self._api
        try:
            async with asyncio.timeout(timeout_s):
                await self._slots.acquire()
                return await asyncio.wrap_future(self._start(self._api, promql, timeout_s))
        except TimeoutError:
            return self._late(timeout_s)

    def _start(self, api: PrometheusConnect, promql: str, timeout_s: float) -> Future[_Answer | Reading]:
        """Ask in a thread, which has its slot until it has ended, however long anybody waits for it."""
        loop, future = asyncio.get_running_loop(), Future[_Answer | Reading]()
        future.set_running_or_notify_cancel()

        def work() -> None:
            try:
                future.set_result(self._query(api, promql, timeout_s))
            except BaseException as mistake:  # noqa: BLE001 (it is raised where the answer is awaited)
                future.set_exception(mistake)
            with contextlib.suppress(RuntimeError):  # The loop is gone, and nobody waits for a slot.
                loop.call_soon_threadsafe(self._slots.release)

        threading.Thread(target=work, name=f"query {self.source.url}", daemon=True).start()
        return future

    def _query(self, api: PrometheusConnect, promql: str, timeout_s: float) -> _Answer | Reading:
        url = self.source.url
        # Prometheus is told as well: it would compute on for nobody.
        parameters = {"timeout": f"{math.ceil(timeout_s * 1000)}ms"}
        try:
            return _Answer(api.custom_query(promql, params=parameters, timeout=timeout_s))
        except _RefusedError as refused:
            return _refusal(url, refused)
        except _StrangeError as strange:
            return Reading(None, f"{url} answers something else than a number: {strange.words}", "strange")
        except requests.Timeout:
            return self._late(timeout_s)
        except requests.TooManyRedirects:
            return Reading(None, f"{url} answers with a redirect, which is not followed", "redirect")
        except requests.exceptions.SSLError as problem:
            return Reading(None, f"no trust in {url}: {_root_words(problem)}", "tls")
        except requests.ConnectionError as problem:
            if _is_late(problem):
                return self._late(timeout_s)
            return Reading(None, f"no connection to {url}: {_root_words(problem)}", "connection")
        except _TooLongError:
            return Reading(None, f"the answer of {url} is longer than {_LONGEST_ANSWER} bytes", "long")
        except (requests.RequestException, HTTPError, ValueError, KeyError, TypeError) as problem:
            # The words of these hold whatever was sent, credentials not excluded.
            kind = type(problem).__name__
            return Reading(None, f"no usable answer from {url}: {kind}", kind)

    def _late(self, timeout_s: float) -> Reading:
        return Reading(None, f"no answer from {self.source.url} within {timeout_s:g} s", "late")


@dataclass(frozen=True, slots=True)
class _Answer:
    result: Any


class _TooLongError(Exception):
    """An answer that holds more than one number can need."""


class _RefusedError(Exception):
    """An answer with another status than 200."""

    def __init__(self, status: int, words: str, who: str) -> None:
        super().__init__(status)
        self.status, self.words, self.who = status, words, who


class _StrangeError(Exception):
    """An answer that is not one of Prometheus to an instant query."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words


class _Transport(HTTPAdapter):
    """HTTP without retries (the next evaluation is the retry), and with an end.

    The library's time limit is for each read, so that an answer which drips would never end, and it keeps
    whatever comes in memory.
    """

    def __init__(self, source: Source, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._secrets = source.secrets
        self._who = "the credentials" if source.authorization else "a caller without credentials"
        # read=False: a late answer is a time-out, not the end of retries.
        super().__init__(pool_maxsize=_THREADS, max_retries=Retry(total=0, read=False))

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **options)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, **options)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        if self._context is None:
            super().cert_verify(conn, url, verify, cert)
        # Else the context says who is believed; the library would add the image's authorities.

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        *args: Any,
        **options: Any,
    ) -> requests.Response:
        ends = time.monotonic() + float(timeout)
        response = super().send(request, True, timeout, *args, **options)
        body = io.BytesIO()
        while chunk := response.raw.read1(_CHUNK, decode_content=True):
            body.write(chunk)
            if body.tell() > _LONGEST_ANSWER:
                response.close()
                raise _TooLongError
            if time.monotonic() > ends:
                response.close()
                raise requests.Timeout
        response.raw = io.BytesIO(body.getvalue())
        if not response.is_redirect:
            self._judge(response.status_code, body.getvalue())
        return response

    def _judge(self, status: int, body: bytes) -> None:
        """Raise for what the library would take for an answer, or tell of in words that hide the cause."""
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if status != 200:
            words = (
                answer["error"] if isinstance(answer, dict) and "error" in answer else body.decode("latin-1")
            )
            raise _RefusedError(status, self._said(str(words)), self._who)
        match answer:
            case {"status": "success", "data": {"resultType": "string", "result": [_, text]}}:
                raise _StrangeError(f"the text {self._said(repr(text))}")
            case {"status": "success", "data": {"result": _}}:
                return
        raise _StrangeError(self._said(body.decode("latin-1")) or "nothing")

    def _said(self, words: str) -> str:
        """What may be shown of an answer: a server may send back what it was sent."""
        for secret in self._secrets:
            words = words.replace(secret, "***")
        return one_line(words)


def _tls(source: Source) -> ssl.SSLContext | None:
    """Whom to believe; None for the image's authorities. Raises for a bad CA.

    SSLError where a certificate can't be read, TypeError where it isn't ASCII, ValueError and OverflowError
    where it is empty or endless.
    """
    if not source.verify:
        # Whoever asked for it has been told; a warning for each query tells nobody.
        urllib3.disable_warnings(InsecureRequestWarning)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    if source.ca_pem is None:
        return None
    # People write around the certificates whose they are, in any language.
    certificates = _CERTIFICATE.findall(source.ca_pem)
    if not certificates:  # Which the standard library would take for the image's authorities.
        raise ssl.SSLError("no certificate in PEM")
    return ssl.create_default_context(cadata="\n".join(certificates))


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _refusal(url: str, refused: _RefusedError) -> Reading:
    match refused.status:
        case 401 | 403:
            words = f"{url} refuses {refused.who}: HTTP {refused.status}"
        case 400 | 422:
            return Reading(None, f"{url} refused the query: {refused.words}", _REFUSED)
        case _:
            words = f"{url} answers HTTP {refused.status}: {refused.words}"
    return Reading(None, words, f"HTTP {refused.status}")


def _is_late(problem: BaseException) -> bool:
    """Whether requests calls a time-out while reading a broken connection, as it does after retries."""
    return any(isinstance(cause, ReadTimeoutError) for cause in _causes(problem))


def _root_words(problem: BaseException) -> str:
    """Give the system's words for a broken connection: the libraries' hold addresses that change."""
    for cause in _causes(problem):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return type(problem).__name__


def _causes(problem: BaseException) -> Iterator[BaseException]:
    """The exception and what it holds or came of; libraries put the cause into arguments or `reason`."""
    waiting, seen = [problem], set[int]()
    while waiting:
        cause = waiting.pop()
        if id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            within = (*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__)
            waiting += [each for each in within if isinstance(each, BaseException)]


def one_number(result: Any) -> Reading:
    """What an instant query's `result` says: a vector of one series, or a scalar."""
    match result:
        case []:
            return Reading(None, "the query finds no series", "empty")
        case [{"value": [_, str(text)]}] | [int() | float(), str(text)]:
            return _finite(text)
        case [{"values": _}, *_]:
            return Reading(None, "the query gives a range, not one number", "range")
        case [{"value": _}, {"value": _}, *_]:
            return Reading(
                None, f"the query finds {len(result)} series, not one: {_named(result)}", "several"
            )
        case _:
            return Reading(None, "the query gives no number", "no number")


def _of(result: Any, label: str, name: str) -> list[Any]:
    """The series that carry the label."""
    series = result if isinstance(result, list) else []
    metrics = [(each, each.get("metric")) for each in series if isinstance(each, dict)]
    return [each for each, metric in metrics if isinstance(metric, dict) and metric.get(label) == name]


def _named(series: Sequence[Mapping[str, Any]]) -> str:
    named = [json.dumps(each.get("metric"), sort_keys=True) for each in series[:_NAMED_SERIES]]
    return one_line(", ".join(named) + (", ..." if len(series) > _NAMED_SERIES else ""))


def _finite(text: str) -> Reading:
    try:
        value = float(text)
    except ValueError:
        return Reading(None, f"the query gives the text {one_line(repr(text))}, not a number", "text")
    if math.isfinite(value):
        return Reading(value)
    return Reading(None, f"the query gives {text}, not a number", "not finite")
