"""Manifests out of the CRDs' schemas, and beside them: what people, older and newer schemas bring about."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.parts.cache import REPOSITORY

KINDS = {"Tenant": "tenants", "Application": "applications", "ServingPool": "servingpools"}

#: Nothing but loopback may ever be called.
_URLS = st.sampled_from(
    [
        "http://127.0.0.1:9",
        "https://localhost:9/keys",
        "http://[::1]:9",
        "ftp://127.0.0.1",
        # Those that libraries raise for.
        "http://[",
        "http://a]b:9",
        "http://[::1:9",
        "http://[:::]:9",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:x",
        "http://?",
    ]
)
_URL_FIELDS = ("url", "jwksUri")
#: Names that some object of a namespace may have.
_NAMES = st.sampled_from(["team", "chat", "a-key", "gone"])
_NAME_FIELDS = ("name", "application", "applications")

_WORDS = st.sampled_from(
    [
        "",
        " ",
        "x" * 20_000,
        "\u202eright to left",
        "z\u0351\u036b\u0343a\u0324lgo",
        "\U0001f9ff",
        "\x00",
        "\x1b[2J",
        "e\u0301",
        "\ufeff",
        "1e9999",
        "null",
        "${HOME}",
        "{{ .Values }}",
        "9" * 400,
        "99999h",
        "1Gi",
        "*",
        "\n",
    ]
)
_NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 0.1, 1e-300, 1e300, 5e-324, 1.7976931348623157e308]
)
odd_values = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _WORDS | st.text(max_size=8),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(_WORDS | st.text(max_size=8), below, max_size=3)
    ),
    max_leaves=6,
)


@functools.cache
def schema(kind: str) -> Mapping[str, Any]:
    """The schema of a whole object of a kind."""
    text = (REPOSITORY / "crds" / f"fairserve.dev_{KINDS[kind]}.yaml").read_text()
    version = yaml.safe_load(text)["spec"]["versions"][0]
    return dict(version["schema"]["openAPIV3Schema"])


@st.composite
def specs(draw: st.DrawFn, kind: str) -> Any:
    """A spec by the schema, of which some have something that is beside it."""
    made = draw(_by(schema(kind)["properties"]["spec"], ""))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        made = _spoilt(draw, made)
    return made


@st.composite
def statuses(draw: st.DrawFn, kind: str) -> Any:
    """A status by the schema: anybody with the right may have written it."""
    return draw(_by(schema(kind)["properties"]["status"], ""))


def _spoilt(draw: st.DrawFn, value: Any) -> Any:
    """The same with one place in it that is something else."""
    deeper = draw(st.integers(0, 3))
    if isinstance(value, dict) and value and deeper:
        field = draw(st.sampled_from(sorted(value)))
        return {**value, field: _spoilt(draw, value[field])}
    if isinstance(value, list) and value and deeper:
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], _spoilt(draw, value[place]), *value[place + 1 :]]
    if isinstance(value, dict) and draw(st.booleans()):
        field = draw(st.sampled_from([*sorted(value), "weight", "unknownField", "x" * 300, "é.🧿"]))
        return {**value, field: draw(odd_values)}
    if isinstance(value, list) and value and draw(st.booleans()):
        return value * draw(st.sampled_from([2, 70]))
    return draw(odd_values)


def _by(node: Mapping[str, Any], field: str) -> st.SearchStrategy[Any]:
    if "enum" in node:
        return st.sampled_from(node["enum"])
    match node.get("type"):
        case "object":
            return _objects(node)
        case "array":
            item = _by(node["items"], field)
            most = min(3, node.get("maxItems", 3))
            return st.lists(
                item, min_size=node.get("minItems", 0), max_size=max(most, node.get("minItems", 0))
            )
        case "string":
            return _strings(node, field)
        case "boolean":
            return st.booleans()
        case _:
            return _numbers(node)


@st.composite
def _objects(draw: st.DrawFn, node: Mapping[str, Any]) -> dict[str, Any]:
    properties: Mapping[str, Any] = node.get("properties", {})
    chosen = [name for name in properties if name in node.get("required", ()) or draw(st.integers(0, 2)) == 0]
    made = {name: draw(_by(properties[name], name)) for name in chosen}
    if "additionalProperties" in node:
        labels = st.sampled_from(["app", "model", "fairserve.dev/x", "tier"])
        made |= draw(st.dictionaries(labels, _by(node["additionalProperties"], ""), min_size=1, max_size=3))
    return made


def _strings(node: Mapping[str, Any], field: str) -> st.SearchStrategy[str]:
    if field in _URL_FIELDS:
        return _URLS
    longest = node.get("maxLength", 50)
    if node.get("format") == "date-time":
        return st.sampled_from(
            ["2026-01-01T00:00:00Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59.123456789+14:00"]
        )
    if "pattern" not in node:
        return st.text(max_size=min(12, longest)) | st.just("x" * longest)
    fitting = st.from_regex(re.compile(node["pattern"], re.ASCII)).filter(lambda text: len(text) <= longest)
    return _NAMES | fitting if field in _NAME_FIELDS else fitting


def _numbers(node: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    least, most = node.get("minimum", 0), node.get("maximum", 2**31)
    if node["type"] == "integer":
        return st.integers(least, most) | st.sampled_from([least, most])
    return st.floats(
        least, most, allow_nan=False, exclude_min=bool(node.get("exclusiveMinimum")), exclude_max=False
    )
