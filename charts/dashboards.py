"""Writes the Grafana dashboards of the chart: `python charts/dashboards.py`, with `--check` to compare alone.

Queries whose names have colons need the chart's recording rules. What comes straight from a scrape is joined
with the pool that it belongs to, as in the rules.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairserve_operator.crdgen import differing

FOLDER = Path(__file__).parent / "fairserve" / "files" / "dashboards"
#: Of Grafana 12, which also reads older ones.
SCHEMA_VERSION = 41
_WIDTH = 24  #: columns of Grafana's grid
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}

_POOL = 'namespace=~"$namespace", pool=~"$pool"'
_TENANT = f'{_POOL}, tenant="$tenant"'
_JOIN = "* on (job, instance) group_left (namespace, pool) instance:fairserve_pool:info{" + _POOL + "}"
_BY_POOL = "{{namespace}}/{{pool}}"


@dataclass(frozen=True)
class Panel:
    """One panel. `queries` are PromQL with a legend each."""

    title: str
    description: str
    unit: str
    queries: Sequence[tuple[str, str]]
    width: int = 8
    height: int = 8
    kind: str = "timeseries"
    stacked: bool = False
    limits: tuple[float | None, float | None] = (0, None)
    steps: Sequence[tuple[str, float]] = ()  #: colours and where each begins; green below


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


def _each(function: str, series: str, by: str = "namespace, pool") -> str:
    """A series straight from a scrape, folded over the Pods of the chosen pools."""
    return f"{function} by ({by}) ({series} {_JOIN})"


def _rate(counter: str) -> str:
    return f"rate({counter}[$__rate_interval])"


def _vllm(name: str) -> str:
    """Of vLLM itself, under the name that it has and under the one that Prometheus 2 stores; both count once."""
    return f"(vllm:{name} or vllm_{name})"


def _vllm_rate(name: str) -> str:
    return f"({_rate(f'vllm:{name}')} or {_rate(f'vllm_{name}')})"


def _recorded(series: str, labels: str = _POOL) -> str:
    return f"{series}{{{labels}}}"


def _stat(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[tuple[str, str]],
    *,
    limits: tuple[float | None, float | None] = (0, None),
    steps: Sequence[tuple[str, float]] = (),
) -> Panel:
    """A number of the first row."""
    return Panel(
        title, description, unit, queries, width=4, height=4, kind="stat", limits=limits, steps=steps
    )


_RED_FROM_ONE = (("red", 1.0),)
_EXPERIENCE = (("red", 0.0), ("orange", 0.95), ("green", 0.99))

PLATFORM = [
    Row(
        "Now",
        [
            _stat(
                "Alerts",
                "fairserve's alerts that fire, of all pools.",
                "short",
                [('sum(ALERTS{alertname=~"Fairserve.*", alertstate="firing"}) or vector(0)', "firing")],
                steps=_RED_FROM_ONE,
            ),
            _stat(
                "Overloaded",
                "Pools in which a Pod's interaction limits are armed.",
                "short",
                [(f"sum({_recorded('namespace_pool:fairserve_oit_armed:max')})", "pools")],
                steps=(("orange", 1.0),),
            ),
            _stat(
                "Waiting calls",
                "Calls that wait in all sidecars.",
                "short",
                [(f"sum({_recorded('namespace_pool:fairserve_queue_requests:sum')})", "calls")],
            ),
            _stat(
                "Sidecars behind",
                "Pods that don't run the newest configuration of their pool.",
                "short",
                [(f"sum({_recorded('namespace_pool:fairserve_operator_pods_behind:max')})", "pods")],
                steps=(("orange", 1.0),),
            ),
            _stat(
                "Users served in full",
                "Of the last whole five minutes: users who lost no call, over all users. The worst pool.",
                "percentunit",
                [(f"min({_recorded('namespace_pool:fairserve_serving_experience:ratio')})", "users")],
                limits=(0, 1),
                steps=_EXPERIENCE,
            ),
            _stat(
                "Operator",
                "Replicas that act and know all objects. One is right.",
                "short",
                [
                    (
                        "sum((fairserve_operator_leader == 1)"
                        " and on (job, instance) (fairserve_operator_complete == 1)) or vector(0)",
                        "acting",
                    )
                ],
                steps=(("red", 0.0), ("green", 1.0), ("red", 2.0)),
            ),
        ],
    ),
    Row(
        "Saturation and overload",
        [
            Panel(
                "Saturation",
                "Mean of the Pods: the fullest of KV cache, queue wait and vLLM's own queue. From 1 on the pool"
                " can't take more.",
                "none",
                [(_recorded("namespace_pool:fairserve_saturation:avg"), _BY_POOL)],
                steps=_RED_FROM_ONE,
            ),
            Panel(
                "Overloaded (OIT armed)",
                "1 while interaction limits refuse, or in Shadow would.",
                "short",
                [(_recorded("namespace_pool:fairserve_oit_armed:max"), _BY_POOL)],
                limits=(0, 1),
            ),
            Panel(
                "Waiting calls",
                "Calls that wait in the sidecars of the pool.",
                "short",
                [(_recorded("namespace_pool:fairserve_queue_requests:sum"), _BY_POOL)],
            ),
            Panel(
                "Longest wait",
                "How long the oldest waiting call of any Pod waits: the built-in signal QueueWait.",
                "s",
                [(_each("max", "fairserve_queue_oldest_wait_seconds"), _BY_POOL)],
            ),
            Panel(
                "Calls in the engines and their windows",
                "The window is how many calls vLLM may hold. Calls at the window: the engines have enough to do.",
                "short",
                [
                    (_each("sum", "fairserve_inflight_requests"), _BY_POOL + " calls"),
                    (_each("sum", "fairserve_dispatch_window"), _BY_POOL + " window"),
                ],
            ),
            Panel(
                "Queue wait of dispatched calls",
                "95 % waited no longer.",
                "s",
                [
                    (
                        "histogram_quantile(0.95, "
                        + _each("sum", _rate("fairserve_queue_wait_seconds_bucket"), "namespace, pool, le")
                        + ")",
                        _BY_POOL,
                    )
                ],
            ),
            Panel(
                "KV cache in use",
                "vLLM's own, mean of the Pods: the built-in signal KVCacheUse.",
                "percentunit",
                [(_each("avg", _vllm("kv_cache_usage_perc")), _BY_POOL)],
                limits=(0, 1),
            ),
            Panel(
                "Calls in vLLM's batches",
                "Those that vLLM computes. The other calls in the engines wait inside vLLM: few, behind a window.",
                "short",
                [(_each("sum", _vllm("num_requests_running")), _BY_POOL)],
            ),
            Panel(
                "Preemptions",
                "Calls that vLLM preempts for want of KV cache.",
                "cps",
                [(_each("sum", _vllm_rate("num_preemptions_total")), _BY_POOL)],
            ),
            Panel(
                "Tokens computed",
                "By vLLM's own count.",
                "cps",
                [
                    (_each("sum", _vllm_rate("prompt_tokens_total")), _BY_POOL + " prompt"),
                    (_each("sum", _vllm_rate("generation_tokens_total")), _BY_POOL + " generated"),
                ],
                width=12,
            ),
            Panel(
                "Tokens of the slowest busy Pod",
                "Tokens a second, priced as a call's cost, of the slowest Pod that has had calls waiting for ten"
                " minutes. Empty while there is none.",
                "cps",
                [(_recorded("namespace_pool:fairserve_busy_tokens:min_rate10m"), _BY_POOL)],
                width=12,
            ),
        ],
    ),
    Row(
        "Shares",
        [
            Panel(
                "Share of service",
                "Normalised service that each tenant got, over that of all, in a quarter of an hour.",
                "percentunit",
                [
                    (
                        _recorded("namespace_pool_tenant:fairserve_service_share:ratio15m"),
                        "{{pool}} {{tenant}}",
                    )
                ],
                stacked=True,
                limits=(0, None),
            ),
            Panel(
                "Share due by weight",
                "Each tenant's weight over the weights of all that were served. Who asks for less leaves the rest"
                " to the others.",
                "percentunit",
                [(_recorded("namespace_pool_tenant:fairserve_due_share:ratio15m"), "{{pool}} {{tenant}}")],
                stacked=True,
                limits=(0, None),
            ),
            Panel(
                "Service over service due, of tenants that wait",
                "1 is fair. Only tenants whose calls have waited for a quarter of an hour without a break.",
                "none",
                [(_recorded("namespace_pool_tenant:fairserve_share_of_due:ratio15m"), "{{pool}} {{tenant}}")],
            ),
            Panel(
                "Waiting calls by tenant",
                "The ten longest queues.",
                "short",
                [
                    (
                        f"topk(10, {_recorded('namespace_pool_tenant:fairserve_queue_requests:sum')})",
                        "{{pool}} {{tenant}}",
                    )
                ],
            ),
            Panel(
                "Longest wait by tenant",
                "The ten longest. A tenant with a long queue of its own waits long and is served all the same.",
                "s",
                [
                    (
                        "topk(10, "
                        + _each(
                            "max", "fairserve_tenant_queue_oldest_wait_seconds", "namespace, pool, tenant"
                        )
                        + ")",
                        "{{pool}} {{tenant}}",
                    )
                ],
            ),
            Panel(
                "Users served in full by tenant",
                "The ten worst, of the last whole five minutes.",
                "percentunit",
                [
                    (
                        f"bottomk(10, {_recorded('namespace_pool_tenant:fairserve_serving_experience:ratio')})",
                        "{{pool}} {{tenant}}",
                    )
                ],
                limits=(0, 1),
            ),
        ],
    ),
    Row(
        "Refusals",
        [
            Panel(
                "Refusals by reason",
                "Calls refused or evicted a second.",
                "cps",
                [
                    (
                        _each(
                            "sum",
                            _rate('fairserve_refused_interactions_total{mode="Enforce"}'),
                            "namespace, pool, reason",
                        ),
                        "{{pool}} {{reason}}",
                    )
                ],
            ),
            Panel(
                "Refusals by tenant",
                "The ten tenants with most of them.",
                "cps",
                [
                    (
                        "topk(10, "
                        + _each(
                            "sum",
                            _rate('fairserve_refused_interactions_total{mode="Enforce"}'),
                            "namespace, pool, tenant",
                        )
                        + ")",
                        "{{pool}} {{tenant}}",
                    )
                ],
            ),
            Panel(
                "What Shadow would refuse",
                "Where the pool's throttling.mode is Shadow.",
                "cps",
                [
                    (
                        _each(
                            "sum",
                            _rate('fairserve_refused_interactions_total{mode="Shadow"}'),
                            "namespace, pool, tenant, reason",
                        ),
                        "{{pool}} {{tenant}} {{reason}}",
                    )
                ],
            ),
            Panel(
                "Denied before a tenant was known",
                "Wrong or missing keys and the like, by code.",
                "cps",
                [
                    (
                        _each("sum", _rate("fairserve_denied_requests_total"), "namespace, pool, code"),
                        "{{pool}} {{code}}",
                    )
                ],
            ),
            Panel(
                "Tokens wasted",
                "Tokens computed for interactions that lost a later call.",
                "cps",
                [(_each("sum", _rate("fairserve_wasted_tokens_total")), _BY_POOL)],
            ),
            Panel(
                "Turned away by vLLM",
                "Calls that vLLM refused before it computed anything; they wait again.",
                "cps",
                [(_each("sum", _rate("fairserve_engine_refusals_total")), _BY_POOL)],
            ),
        ],
    ),
    Row(
        "Configuration and signals",
        [
            Panel(
                "Pods, and those behind",
                "Pods that don't run the newest configuration go on with what they have.",
                "short",
                [
                    (_recorded("namespace_pool:fairserve_operator_pods:max"), _BY_POOL),
                    (_recorded("namespace_pool:fairserve_operator_pods_behind:max"), _BY_POOL + " behind"),
                ],
            ),
            Panel(
                "Age of overload signals over staleAfter",
                "From 1 on the pool follows its onStale.",
                "none",
                [(_recorded("namespace_pool:fairserve_operator_signal_age:ratio"), _BY_POOL)],
                steps=_RED_FROM_ONE,
            ),
            Panel(
                "Age of the engines' metrics",
                "Of the Pod that has read none for longest.",
                "s",
                [(_each("max", "fairserve_signal_age_seconds"), _BY_POOL)],
            ),
            Panel(
                "Engines up",
                "Sidecars whose vLLM answers, and all.",
                "short",
                [
                    (_each("sum", "fairserve_engine_up"), _BY_POOL + " up"),
                    (_each("count", "fairserve_engine_up"), _BY_POOL),
                ],
            ),
            Panel(
                "Generation by Pod",
                "Of the configuration that each sidecar runs.",
                "short",
                [
                    (
                        _each("max", "fairserve_config_generation", "namespace, pool, instance"),
                        "{{pool}} {{instance}}",
                    )
                ],
            ),
            Panel(
                "Time in the scheduler",
                "Per call; 99 % took no longer.",
                "s",
                [
                    (
                        "histogram_quantile(0.99, "
                        + _each("sum", _rate("fairserve_decision_seconds_bucket"), "namespace, pool, le")
                        + ")",
                        _BY_POOL,
                    )
                ],
            ),
        ],
    ),
]


def _of_tenant(function: str, name: str, by: str, more: str = "") -> str:
    return _each(function, f'{name}{{tenant="$tenant"{more}}}', by)


def _rate_of_tenant(counter: str, by: str, more: str = "") -> str:
    return _each("sum", _rate(f'{counter}{{tenant="$tenant"{more}}}'), by)


_DISPATCHED = ', outcome=~"completed|failed|cancelled"'

TENANT = [
    Row(
        "Now",
        [
            _stat(
                "Share of service",
                "Of all that the pool gave in a quarter of an hour.",
                "percentunit",
                [(_recorded("namespace_pool_tenant:fairserve_service_share:ratio15m", _TENANT), _BY_POOL)],
            ),
            _stat(
                "Share due by weight",
                "Among the tenants that were served. Getting less is no fault where the tenant asks for less.",
                "percentunit",
                [(_recorded("namespace_pool_tenant:fairserve_due_share:ratio15m", _TENANT), _BY_POOL)],
            ),
            _stat(
                "Weight",
                "In force in the Pods.",
                "none",
                [(_recorded("namespace_pool_tenant:fairserve_weight:max", _TENANT), _BY_POOL)],
            ),
            _stat(
                "Waiting calls",
                "In all Pods of the pool.",
                "short",
                [(_recorded("namespace_pool_tenant:fairserve_queue_requests:sum", _TENANT), _BY_POOL)],
            ),
            _stat(
                "Users served in full",
                "Of the last whole five minutes: users who lost no call, over all users.",
                "percentunit",
                [(_recorded("namespace_pool_tenant:fairserve_serving_experience:ratio", _TENANT), _BY_POOL)],
                limits=(0, 1),
                steps=_EXPERIENCE,
            ),
            _stat(
                "Pool overloaded",
                "1 while interaction limits refuse who is over them, or in Shadow would.",
                "short",
                [(_recorded("namespace_pool:fairserve_oit_armed:max"), _BY_POOL)],
                steps=(("orange", 1.0),),
            ),
        ],
    ),
    Row(
        "Share and delay",
        [
            Panel(
                "Share of service, and due by weight",
                "Normalised service over that of all tenants, in a quarter of an hour; and the weight over the"
                " weights of all that were served.",
                "percentunit",
                [
                    (
                        _recorded("namespace_pool_tenant:fairserve_service_share:ratio15m", _TENANT),
                        "{{pool}} got",
                    ),
                    (
                        _recorded("namespace_pool_tenant:fairserve_due_share:ratio15m", _TENANT),
                        "{{pool}} due",
                    ),
                ],
            ),
            Panel(
                "Mean delay in the queue",
                "Time that calls waited before they went to vLLM.",
                "s",
                [
                    (
                        _rate_of_tenant("fairserve_tenant_queue_wait_seconds_total", "namespace, pool")
                        + " / ("
                        + _rate_of_tenant("fairserve_requests_total", "namespace, pool", _DISPATCHED)
                        + " > 0)",
                        _BY_POOL,
                    )
                ],
            ),
            Panel(
                "Longest wait by Pod",
                "How long the oldest waiting call waits. Empty while none does.",
                "s",
                [
                    (
                        _of_tenant(
                            "max",
                            "fairserve_tenant_queue_oldest_wait_seconds",
                            "namespace, pool, instance",
                        ),
                        "{{pool}} {{instance}}",
                    )
                ],
            ),
            Panel(
                "Waiting calls by Pod",
                "Each Pod is fair by itself: a tenant whose calls reach few Pods gets its share of those alone.",
                "short",
                [
                    (
                        _of_tenant("sum", "fairserve_tenant_queue_requests", "namespace, pool, instance"),
                        "{{pool}} {{instance}}",
                    )
                ],
            ),
            Panel(
                "Calls in the engines by Pod",
                "Calls that vLLM works on.",
                "short",
                [
                    (
                        _of_tenant("sum", "fairserve_tenant_inflight_requests", "namespace, pool, instance"),
                        "{{pool}} {{instance}}",
                    )
                ],
            ),
            Panel(
                "Service over service due, while it waits",
                "1 is fair. Only while calls have waited for a quarter of an hour without a break.",
                "none",
                [(_recorded("namespace_pool_tenant:fairserve_share_of_due:ratio15m", _TENANT), _BY_POOL)],
            ),
        ],
    ),
    Row(
        "Refusals and why",
        [
            Panel(
                "Refusals by reason",
                "Calls refused or evicted a second. docs/reference/refusals.md says what each reason means.",
                "cps",
                [
                    (
                        _rate_of_tenant(
                            "fairserve_refused_interactions_total",
                            "pool, application, reason",
                            ', mode="Enforce"',
                        ),
                        "{{pool}} {{application}} {{reason}}",
                    )
                ],
                width=12,
            ),
            Panel(
                "What Shadow would refuse",
                "Where the pool's throttling.mode is Shadow.",
                "cps",
                [
                    (
                        _rate_of_tenant(
                            "fairserve_refused_interactions_total",
                            "pool, application, reason",
                            ', mode="Shadow"',
                        ),
                        "{{pool}} {{application}} {{reason}}",
                    )
                ],
                width=12,
            ),
            Panel(
                "Calls by outcome",
                "completed, cancelled (the client left), failed, refused (never queued), evicted (left the queue"
                " undispatched).",
                "cps",
                [(_rate_of_tenant("fairserve_requests_total", "outcome"), "{{outcome}}")],
                width=12,
                stacked=True,
            ),
            Panel(
                "Calls refused",
                "Refused and evicted calls over all.",
                "percentunit",
                [
                    (
                        "("
                        + _rate_of_tenant(
                            "fairserve_requests_total", "namespace, pool", ', outcome=~"refused|evicted"'
                        )
                        + ") / ("
                        + _rate_of_tenant("fairserve_requests_total", "namespace, pool")
                        + " > 0)",
                        _BY_POOL,
                    )
                ],
                width=12,
                limits=(0, 1),
            ),
        ],
    ),
    Row(
        "Tokens, users and interactions",
        [
            Panel(
                "Tokens by kind",
                "Of calls that ended: input (not cached), cached, output.",
                "cps",
                [(_rate_of_tenant("fairserve_tokens_total", "kind"), "{{kind}}")],
                stacked=True,
            ),
            Panel(
                "Tokens by application",
                "Of calls that ended, all kinds.",
                "cps",
                [(_rate_of_tenant("fairserve_tokens_total", "application"), "{{application}}")],
                stacked=True,
            ),
            Panel(
                "Service",
                "Normalised service a second: 1 is a typical call of an application.",
                "cps",
                [(_rate_of_tenant("fairserve_service_total", "namespace, pool"), _BY_POOL)],
            ),
            Panel(
                "Users",
                "Of the last whole five minutes, and those of them who lost no call. Each Pod counts its own.",
                "short",
                [
                    (_of_tenant("sum", "fairserve_tenant_users", "namespace, pool"), _BY_POOL),
                    (
                        _of_tenant("sum", "fairserve_tenant_users_fully_served", "namespace, pool"),
                        _BY_POOL + " served in full",
                    ),
                ],
                width=12,
            ),
            Panel(
                "Open interactions",
                "Interactions that were admitted and may go on.",
                "short",
                [(_of_tenant("sum", "fairserve_tenant_open_interactions", "namespace, pool"), _BY_POOL)],
                width=12,
            ),
        ],
    ),
]


def _variable(name: str, label: str, query: str, *, several: bool) -> dict[str, Any]:
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": several,
        "includeAll": several,
        "allValue": ".*" if several else None,
        "current": {"text": "All", "value": "$__all"} if several else {},
    }


def _variables(*, tenant: bool) -> list[dict[str, Any]]:
    source = {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "current": {},
    }
    info = "instance:fairserve_pool:info"
    found = [
        source,
        _variable("namespace", "Namespace", f"label_values({info}, namespace)", several=True),
        _variable("pool", "Pool", f'label_values({info}{{namespace=~"$namespace"}}, pool)', several=True),
    ]
    if tenant:
        query = f"label_values(namespace_pool_tenant:fairserve_queue_requests:sum{{{_POOL}}}, tenant)"
        found.append(_variable("tenant", "Tenant", query, several=False))
    return found


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    lowest, highest = panel.limits
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": colour, "value": value} for colour, value in panel.steps]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": lowest,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if highest is not None:
        defaults["max"] = highest
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 0,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if panel.steps else "off"},
        }
        options: dict[str, Any] = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    else:
        options = {
            "colorMode": "value" if panel.steps else "none",
            "graphMode": "area",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": _SOURCE, "expr": expr, "legendFormat": legend}
            for n, (expr, legend) in enumerate(panel.queries)
        ],
    }


def _laid_out(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Panels from left to right, in lines as high as their panels."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        place = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": place,
                "panels": [],
            }
        )
        x, y = 0, y + 1
        for panel in row.panels:
            if x + panel.width > _WIDTH:
                x, y = 0, y + panel.height
            panels.append(_panel(panel, len(panels) + 1, x, y))
            x += panel.width
        y += row.panels[-1].height
    return panels


def dashboard(uid: str, title: str, description: str, rows: Sequence[Row], *, tenant: bool) -> dict[str, Any]:
    """The JSON model of one dashboard."""
    others = {
        "type": "dashboards",
        "title": "fairserve",
        "tags": ["fairserve"],
        "asDropdown": True,
        "includeVars": True,
        "keepTime": True,
    }
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["fairserve"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [others],
        "annotations": {"list": []},
        "templating": {"list": _variables(tenant=tenant)},
        "panels": _laid_out(rows),
    }


DASHBOARDS = (
    dashboard(
        "fairserve-platform",
        "fairserve: platform",
        "For who runs the pools: how full they are, who gets how much, who is refused, and what lags behind.",
        PLATFORM,
        tenant=False,
    ),
    dashboard(
        "fairserve-tenant",
        "fairserve: tenant",
        "For one tenant: its share, its delay, what was refused and why, its tokens, users and interactions.",
        TENANT,
        tenant=True,
    ),
)


def main() -> int:
    """Write the files, or tell which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if a file is out of date"
    )
    check = parser.parse_args().check
    generated = {Path(f"{each['uid']}.json"): json.dumps(each, indent=2) + "\n" for each in DASHBOARDS}
    stale = differing(FOLDER, generated, write=not check)
    if check and stale:
        print(f"{', '.join(map(str, stale))} out of date: run 'make generate'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
