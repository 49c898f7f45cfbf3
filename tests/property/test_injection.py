"""Whatever the template, injection gives a template or a refusal, and finds done what it has done."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fairserve_operator.manifests.injection import Injected, Refused, Settings, inject

SHAPES = [
    document if document["kind"] == "Pod" else document["spec"]["template"]
    for path in sorted((Path(__file__).parents[1] / "unit" / "operator" / "shapes").glob("*.yaml"))
    for document in [yaml.safe_load(path.read_text())]
]
SETTINGS = Settings("sidecar:1")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70_000) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
FLAGS = st.lists(
    st.sampled_from(
        [
            "--port",
            "--port=9000",
            "9000",
            "--host",
            "::",
            "--host=0.0.0.0",
            "--PORT",
            "--p_o",
            "m",
            "--seed=1",
        ]
    ),
    max_size=6,
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path to every value in a template, below its root."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, each in inner for found in ((*path, key), *places(each, (*path, key)))]


@st.composite
def spoilt(draw: st.DrawFn) -> dict[str, Any]:
    """A shape with one value replaced by anything."""
    template = copy.deepcopy(draw(st.sampled_from(SHAPES)))
    *path, last = draw(st.sampled_from(places(template)))
    target: Any = template
    for step in path:
        target = target[step]
    target[last] = draw(JSON)
    return template


def holds(template: dict[str, Any]) -> Injected | None:
    """What is promised of any template."""
    before = copy.deepcopy(template)
    result = inject(template, "llm", SETTINGS)
    assert template == before, "it is pure"
    if isinstance(result, Refused):
        assert result.field
        assert result.message
        return None
    again = inject(result.template, "llm", SETTINGS)
    assert isinstance(again, Injected), str(again)
    assert again.template == result.template
    return result


@settings(max_examples=150, deadline=None)
@given(spoilt())
def test_a_spoilt_template_is_injected_or_refused(template):
    holds(template)


@settings(max_examples=80, deadline=None)
@given(FLAGS, FLAGS, st.sampled_from(["exec", "image", "script"]))
def test_any_flags_end_with_vllm_on_the_loopback(first, second, form):
    container: dict[str, Any] = {"name": "vllm", "image": "vllm/vllm-openai"}
    match form:
        case "exec":
            container |= {"command": ["vllm", "serve", *first], "args": second}
        case "image":
            container |= {"args": [*first, *second]}
        case "script":
            container |= {"command": ["sh", "-c", " ".join(["vllm serve", *first, *second])]}
    result = holds({"spec": {"containers": [container]}})
    if result is not None:
        after = result.template["spec"]["containers"][0]
        words = " ".join([*after.get("command", ()), *after.get("args", ())]).replace("=", " ").split()
        assert [words[at + 1] for at, word in enumerate(words) if word == "--host"][-1] == "127.0.0.1"
        assert [words[at + 1] for at, word in enumerate(words) if word == "--port"][-1] == str(
            result.engine_port
        )
