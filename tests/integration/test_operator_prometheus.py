"""A Prometheus that fails in any way, at rest and while its pool changes: changes go out all the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.fakes.prometheus import Answer, FakePrometheus, number, result
from tests.integration.operating import Place, custom, until
from tests.parts.controlplane import ControlPlane
from tests.parts.process import Process

#: What comes instead of an answer (None: nothing, ever), and what the condition says of it.
FAULTS: dict[str, tuple[Answer | None, str]] = {
    "hangs": (None, "no answer from"),
    "drips": (Answer(b"{", drips="body"), "no answer from"),
    "500": (Answer(b"oops", 500), "answers HTTP 500: oops"),
    "503": (Answer({"status": "error", "error": "starting"}, 503), "answers HTTP 503: starting"),
    "HTML": (Answer(b"<html>log in</html>"), "answers something else than a number: <html>"),
    "rubbish": (Answer(b"\xff\x00\xfe"), "answers something else than a number"),
    "nesting": (Answer(b"[" * 100_000), "answers something else than a number"),
    "too much": (Answer(b" " * 300_000), "is longer than"),
    "other JSON": (result("vector", {"a": [1]}), "the query gives no number"),
}


class Pool:
    """A pool that is evaluated, with two sidecars and a Tenant to change."""

    def __init__(self, place: Place, prometheus: FakePrometheus) -> None:
        self.place, self.prometheus = place, prometheus
        self.sidecars = [place.pod("a"), place.pod("b")]
        self._changes = 1

    def change(self, both: bool = False) -> None:
        """Change the Tenant, and with `both` the pool's own signals and mode."""
        self._changes += 1
        if both:
            mode = "Shadow" if self._changes % 2 else "Enforce"
            threshold = {"name": "mine", "query": "up", "threshold": 100 + self._changes}
            self.place.patch(
                "servingpools", "llm", {"throttling": {"mode": mode}, "overload": {"signals": [threshold]}}
            )
        self.place.patch("tenants", "team", {"weight": self._changes})

    def changed(self) -> None:
        """Wait until the change is in force, which both objects say as they are now."""
        self.place.until_condition("tenants", "team", "Programmed", "True")
        self.place.until_condition("servingpools", "llm", "Programmed", "True")
        assert [sidecar.config.tenants[0].weight for sidecar in self.sidecars] == [self._changes] * 2

    def until_told(self, words: str) -> None:
        """Wait until the pool says it of its signals as it is now."""
        until(lambda: words in self._said(), words)

    def until_well(self) -> None:
        """Wait until every signal is read again."""
        until(lambda: self._said().endswith("no signal is up"), "signals without problems")

    def _said(self) -> str:
        return str(self.place.condition("servingpools", "llm", "Overloaded").get("message", ""))


@pytest.fixture(scope="module")
def pool(api: ControlPlane, everywhere: Process) -> Iterator[Pool]:
    api.create_namespace("failing-prometheus")
    with ExitStack() as stack:
        stack.callback(api.request, "DELETE", "/api/v1/namespaces/failing-prometheus")
        place = Place(api, "failing-prometheus", stack)
        prometheus = stack.enter_context(FakePrometheus())
        spec = {
            "selector": {"matchLabels": {"app": "vllm"}},
            "overload": {
                "prometheus": {"url": prometheus.url},
                "evaluationInterval": "200ms",
                "staleAfter": "2s",
                "signals": [{"name": "mine", "query": "up", "threshold": 100}],
            },
        }
        place.apply([custom("ServingPool", "llm", spec), custom("Tenant", "team", {"weight": 1})])
        made = Pool(place, prometheus)
        made.changed()
        yield made


def healthy(_: object) -> Answer:
    return number("5")


@pytest.mark.parametrize("kind", FAULTS)
def test_failing_prometheus_is_told_and_holds_up_no_change(pool: Pool, kind: str) -> None:
    answer, words = FAULTS[kind]
    pool.prometheus.answer = healthy
    pool.until_well()
    try:
        # It fails while the pool and a Tenant change.
        pool.change(both=True)
        pool.prometheus.answer = lambda _: answer
        pool.changed()
        pool.until_told(words)
        # Then it is broken, and they change.
        pool.change()
        pool.changed()
        pool.change(both=True)
        pool.changed()
        pool.until_told(words)
        orders = len(pool.sidecars[0].overloads)
        until(lambda: len(pool.sidecars[0].overloads) > orders, "an order that renews the lease")
        assert not pool.sidecars[0].armed
    finally:
        pool.prometheus.answer = healthy
    pool.until_well()
