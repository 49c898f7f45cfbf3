"""The chart's alerts: each has tests that promtool runs, and a page that says what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.parts.cache import REPOSITORY
from tests.parts.prometheus import promtool

RULES = REPOSITORY / "charts" / "fairserve" / "files" / "rules" / "fairserve.yaml"
TESTS = sorted((REPOSITORY / "tests" / "rules").glob("*.yaml"))
TASKS = REPOSITORY / "docs" / "tasks"
PAGES = "https://github.com/fairserve/fairserve/blob/main/docs/tasks/"
EXPECTED = {
    "FairserveOverloadedTooLong",
    "FairserveSignalStale",
    "FairserveSidecarBehind",
    "FairserveTenantStarved",
    "FairserveThroughputFallsWhileWorkWaits",
    "FairserveQueueGrowsWithoutOverload",
    "FairserveServingExperienceBelowTarget",
    "FairserveSharesOffWeights",
    "FairserveOperatorDown",
}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def kebab(alert: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", alert).lower()


def test_these_alerts_exist() -> None:
    assert set(ALERTS) == EXPECTED


def test_the_rules_are_well_formed() -> None:
    assert f"SUCCESS: {len(rules())} rules found" in promtool("check", "rules", "--lint-fatal", RULES)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_alert_fires_and_is_silent_where_it_should(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", path)


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_is_shown_to_fire_to_resolve_and_to_be_silent(alert: str) -> None:
    path = REPOSITORY / "tests" / "rules" / f"{kebab(alert).removeprefix('fairserve-')}.yaml"
    written = yaml.safe_load(path.read_text())
    groups = [group["name"] for group in yaml.safe_load(RULES.read_text())["groups"]]
    assert written["group_eval_order"] == groups, "else promtool takes them in any order"
    cases = written["tests"]
    looks = [
        [bool(look["exp_alerts"]) for look in case["alert_rule_test"] if look["alertname"] == alert]
        for case in cases
        if "alert_rule_test" in case
    ]
    assert any(look[-2:] == [True, False] for look in looks), "no case fires and then resolves"
    silence = f'count_over_time(ALERTS{{alertname="{alert}", alertstate="firing"}}'
    silent = [
        look
        for case in cases
        for look in case.get("promql_expr_test", ())
        if look["expr"].startswith(silence) and look["exp_samples"] == []
    ]
    assert silent, "no near miss"


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_says_how_bad_it_is_whose_it_is_and_what_to_do_first(alert: str) -> None:
    rule = ALERTS[alert]
    said = rule["annotations"]
    assert rule["labels"] == {"severity": rule["labels"]["severity"]}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert re.fullmatch(r"\d+m", rule["for"])
    assert "First: " in said["description"]
    if alert != "FairserveOperatorDown":  # which is nobody's in particular
        assert "{{ $labels.namespace }}/{{ $labels.pool }}" in said["summary"]
    assert said["runbook_url"] == f"{PAGES}{kebab(alert)}.md"


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_page_that_the_index_names(alert: str) -> None:
    name = f"{kebab(alert)}.md"
    page = (TASKS / name).read_text()
    assert page.startswith(f"# {alert}\n")
    assert re.findall(r"^## (.*)", page, re.MULTILINE) == [
        "What it means",
        "One look",
        "Likely causes, and what to do",
        "Who pays",
    ]
    row = f"| [{alert}]({name}) | {ALERTS[alert]['labels']['severity']} |"
    assert row in (TASKS / "README.md").read_text()


def test_no_test_is_of_an_alert_that_is_gone() -> None:
    assert {f"fairserve-{path.stem}" for path in TESTS} == {kebab(alert) for alert in ALERTS}
