"""The chart's rules and dashboards over what a real sidecar, operator and engine emulator export.

Two Prometheuses scrape them: one finds vLLM's metrics under their own names, the other under those that
Prometheus 2 stores (`vllm_…`). Both evaluate the chart's rules.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.fakes.exposition import served
from tests.integration.operating import operator_process
from tests.integration.sidecars import CHAT, KEY_A, KEY_B, TOKEN, document
from tests.integration.sidecars import process as sidecar_process
from tests.integration.test_emulator import running_emulator
from tests.integration.test_rules import RULES, rules
from tests.parts.cache import REPOSITORY
from tests.parts.controlplane import ControlPlane
from tests.parts.loopback import Client
from tests.parts.process import DeadlineError, free_port, poll
from tests.parts.prometheus import Prometheus

DEADLINE_S = 90.0
NAMESPACE = "dashboards"
FOLDER = REPOSITORY / "charts" / "fairserve" / "files" / "dashboards"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
#: Panels that the minute of this test leaves empty: they want a queue of more than a quarter of an hour.
SLOW = {"Service over service due, of tenants that wait", "Service over service due, while it waits"}
CHOSEN = {"$__rate_interval": "1m", "$namespace": ".*", "$pool": ".*", "$tenant": "b"}


@dataclass
class Observed:
    """Who scrapes."""

    prometheuses: tuple[Prometheus, Prometheus]  #: of vLLM's own names, and of those of Prometheus 2

    def empty(self, queries: dict[str, str]) -> list[str]:
        """The names of queries that have no answer in one of the two. Raises for one that is refused."""
        return [
            name
            for name, query in queries.items()
            if not all(each.query(query) for each in self.prometheuses)
        ]


class Traffic:
    """Three callers of each of two tenants, until the context ends. What they are answered doesn't matter."""

    def __init__(self, url: str) -> None:
        self._client = Client(url)
        self._over = threading.Event()
        keys = [KEY_A, KEY_B, "nobody's"]
        self._threads = [threading.Thread(target=self._call, args=(key,)) for key in keys for _ in range(3)]

    def __enter__(self) -> Traffic:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join()

    def _call(self, key: str) -> None:
        body = {"model": "emulated", "max_tokens": 20, "messages": [{"role": "user", "content": "hi"}]}
        session = {
            "Authorization": f"Bearer {key}",
            "x-fairserve-user": "u",
            "x-fairserve-application": "chat",
        }
        while not self._over.wait(0.2):
            try:
                self._client.call("POST", CHAT, body, headers=session)
            except urllib.error.HTTPError:
                continue


def renamed(url: str) -> AbstractContextManager[str]:
    """Serve a sidecar's metrics with vLLM's names as Prometheus 2 stores them; gives the address."""
    return served(lambda: Client(url).call("GET", "/metrics").replace("vllm:", "vllm_"))


def pool(prometheus: Prometheus) -> dict[str, Any]:
    signal = {"name": "queue-wait", "builtin": "QueueWait", "threshold": 3}
    return {
        "apiVersion": "fairserve.dev/v1alpha1",
        "kind": "ServingPool",
        "metadata": {"name": "llm", "namespace": NAMESPACE},
        "spec": {
            "selector": {"matchLabels": {"app": "vllm"}},
            "overload": {"prometheus": {"url": prometheus.url}, "signals": [signal]},
        },
    }


@pytest.fixture(scope="module")
def observed(api: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """A sidecar with a queue, that refuses b's calls, first in earnest and then in Shadow."""
    folder, port, own_port = tmp_path_factory.mktemp("observed"), free_port(), free_port()
    api.create_namespace(NAMESPACE)
    with ExitStack() as stack:
        stack.callback(api.request, "DELETE", f"/api/v1/namespaces/{NAMESPACE}")
        # A call takes a second, several times as long as a caller's pause, so that some always wait.
        slow = ("--max-num-seqs", "1", "--step-ms", "50")
        _, engine = stack.enter_context(running_emulator(folder, *slow))
        engine_port = int(engine.rpartition(":")[2])
        sidecar = stack.enter_context(sidecar_process(folder, engine_port, port, "--max-window", "1"))
        listen = f"127.0.0.1:{own_port}"
        stack.enter_context(
            operator_process(api.kubeconfig, folder / "operator.log", "-n", NAMESPACE, "--listen", listen)
        )
        url = f"http://127.0.0.1:{port}"
        sidecar.wait_until(lambda: Client(url).answers("/health"), DEADLINE_S, "the sidecar")
        stack.enter_context(Traffic(url))
        tokens = 'fairserve_tokens_total{application="chat",kind="output",tenant="b"}'
        poll(lambda: tokens in Client(url).call("GET", "/metrics"), DEADLINE_S, "calls of b")
        control = Client(f"http://{sidecar.args[sidecar.args.index('--control') + 1]}", token=TOKEN)
        control.call("PUT", "/overload", {"armed": True, "lease_s": 600, "reason": "test"})
        renamed_target = stack.enter_context(renamed(url))
        started = [
            stack.enter_context(
                Prometheus(
                    [{"targets": [target, listen]}],
                    rule_files=[RULES],
                    legacy_names=legacy,
                    directory=tmp_path_factory.mktemp("prometheus"),
                )
            )
            for target, legacy in ((f"127.0.0.1:{port}", False), (renamed_target, True))
        ]
        api.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(pool(started[0])))
        refused = 'fairserve_refused_interactions_total{mode="Enforce"}'
        for each in started:
            poll(lambda each=each: each.query(refused), DEADLINE_S, "refusals")  # type: ignore[misc]
        control.call("PUT", "/config", document(2, mode="Shadow").model_dump(mode="json"))
        yield Observed((started[0], started[1]))


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def filled_in(query: str) -> str:
    for variable, value in CHOSEN.items():
        query = query.replace(variable, value)
    return query


def queries(dashboard: dict[str, Any]) -> dict[str, str]:
    """By panel and letter."""
    return {
        f"{panel['title']} {target['refId']}": filled_in(target["expr"])
        for panel in panels(dashboard)
        for target in panel["targets"]
    }


def variables(dashboard: dict[str, Any]) -> dict[str, str]:
    """What asks Prometheus for the same that Grafana's `label_values(series, label)` does."""
    found = {}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
            found[variable["name"]] = f"count by ({label}) ({filled_in(series)})"
    return found


def names(prometheus: Prometheus, query: str) -> set[str]:
    """The metrics that a query reads, by Prometheus's own parser."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            if node.get("type") in ("vectorSelector", "matrixSelector"):
                yield node["name"]
            node = list(node.values())
        if isinstance(node, list):
            for each in node:
                yield from walk(each)

    answer = Client(prometheus.url).json("GET", f"/api/v1/parse_query?{urlencode({'query': query})}")
    return set(walk(answer["data"]))


def all_queries() -> dict[str, str]:
    found = {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}
    for name, dashboard in DASHBOARDS.items():
        for title, query in (queries(dashboard) | variables(dashboard)).items():
            found[f"{name}: {title}"] = query
    return found


def test_every_metric_that_a_rule_or_dashboard_names_is_exported(observed: Observed) -> None:
    own, old = observed.prometheuses
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    path = "/api/v1/label/__name__/values"

    def missing() -> dict[str, set[str]]:
        known = {name for each in (own, old) for name in Client(each.url).json("GET", path)["data"]}
        return {
            where: absent
            for where, read in reads.items()
            if (absent := {name for name in read if name not in known | recorded | {"ALERTS"}})
        }

    reads = {where: names(own, query) for where, query in all_queries().items()}
    assert all(reads.values()), "each query reads something"
    try:
        poll(lambda: not missing(), DEADLINE_S, "every metric")
    except DeadlineError:
        assert missing() == {}
    assert recorded <= set().union(*reads.values()), "nobody reads a recorded series"


def test_names_of_vllm_are_its_own(observed: Observed, vllm_python: Path) -> None:
    (source,) = vllm_python.parents[1].glob("lib/python3*/site-packages/vllm/v1/metrics/loggers.py")
    own = set(re.findall(r'"vllm:(\w+)"', source.read_text()))
    named = set().union(*(names(observed.prometheuses[0], query) for query in all_queries().values()))
    ours = {re.sub(r"(_total|_bucket|_sum|_count)$", "", n[5:]) for n in named if re.match("vllm[:_]", n)}
    assert ours
    assert ours <= own
    assert {n[5:] for n in named if n.startswith("vllm:")} == {
        n[5:] for n in named if n.startswith("vllm_")
    }, "both spellings"


def test_every_rule_evaluates_over_real_series(observed: Observed) -> None:
    for prometheus in observed.prometheuses:

        def evaluated(prometheus: Prometheus = prometheus) -> list[dict[str, Any]] | None:
            groups = Client(prometheus.url).json("GET", "/api/v1/rules")["data"]["groups"]
            found = [rule for group in groups for rule in group["rules"]]
            return found if found and all(rule["health"] != "unknown" for rule in found) else None

        found = poll(evaluated, DEADLINE_S, "evaluation")
        assert len(found) == len(rules())
        assert {rule["name"]: rule.get("lastError") for rule in found if rule["health"] != "ok"} == {}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_and_variables_have_data(observed: Observed, name: str) -> None:
    dashboard = DASHBOARDS[name]
    asked = queries(dashboard) | variables(dashboard)
    fast = {title: query for title, query in asked.items() if title[:-2] not in SLOW}
    try:
        poll(lambda: not observed.empty(fast), DEADLINE_S, "data in every panel")
    except DeadlineError:
        assert observed.empty(fast) == []
    observed.empty({title: query for title, query in asked.items() if title not in fast})


def test_both_prometheuses_agree_on_what_vllm_says(observed: Observed) -> None:
    asked = queries(DASHBOARDS["fairserve-platform"])["Tokens computed A"]
    labels = [{tuple(each.labels.items()) for each in p.query(asked)} for p in observed.prometheuses]
    assert labels[0] == labels[1] == {(("namespace", "default"), ("pool", "llm"))}


def test_only_panels_that_exist_are_excused() -> None:
    assert {panel["title"] for each in DASHBOARDS.values() for panel in panels(each)} >= SLOW


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_whole(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"] == name
    assert dashboard["schemaVersion"] >= 39
    assert "id" not in dashboard, "an id is another Grafana's"
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    kinds = {each["name"]: each["type"] for each in dashboard["templating"]["list"]}
    expected = {"datasource": "datasource", "namespace": "query", "pool": "query"}
    assert kinds == expected | ({"tenant": "query"} if name == "fairserve-tenant" else {})
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, f"{panel['title']} lies over another panel"
        assert place["x"] + place["w"] <= 24
        cells |= taken
    for panel in panels(dashboard):
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        steps = [each["value"] for each in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert steps[0] is None
        assert all(low < high for low, high in pairwise(steps[1:]))


def test_alerts_and_pages_name_dashboards_and_panels_that_exist() -> None:
    titles = {each["title"] for each in DASHBOARDS.values()}
    text = RULES.read_text() + "".join(
        path.read_text() for path in (REPOSITORY / "docs" / "tasks").glob("fairserve-*.md")
    )
    named = set(re.findall(r'dashboard "([^"]+)"', text)) | set(re.findall(r"`(fairserve: \w+)`", text))
    assert named == titles
    panels_named = set(re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", text))
    assert panels_named
    assert panels_named <= {panel["title"] for each in DASHBOARDS.values() for panel in panels(each)}


def test_the_files_are_what_the_generator_writes() -> None:
    command: list[Any] = [sys.executable, REPOSITORY / "charts" / "dashboards.py", "--check"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_the_reference_names_what_is_exported(observed: Observed) -> None:
    text = "".join(path.read_text() for path in (REPOSITORY / "docs" / "reference").glob("*.md"))
    scraped = Client(observed.prometheuses[0].url).json("GET", "/api/v1/label/__name__/values")["data"]
    exported = {
        re.sub(r"_(bucket|sum|count|created)$", "", metric)
        for metric in scraped
        if metric.startswith("fairserve_")
    }
    assert {"fairserve_saturation", "fairserve_operator_leader"} <= exported
    assert exported - set(re.findall(r"`(fairserve_\w+)", text)) == set()
