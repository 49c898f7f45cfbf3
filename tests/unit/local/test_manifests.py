"""Reading a folder: every mistake is named with file and line, and takes nothing else along."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairserve.local.manifests import read_folder
from fairserve_operator.decide.resources import ObjectKey

EXAMPLE = Path(__file__).parents[3] / "examples" / "01-two-teams"

GOOD = """\
apiVersion: fairserve.dev/v1alpha1
kind: Tenant
metadata: {name: good}
spec: {weight: 2}
"""


def read(tmp_path: Path, text: str):
    (tmp_path / "a.yaml").write_text(text)
    return read_folder(tmp_path)


def test_the_example_is_well_formed():
    reading = read_folder(EXAMPLE)
    assert reading.problems == ()
    assert {manifest.key.kind for manifest in reading.manifests} == {
        "Tenant",
        "Application",
        "ServingPool",
        "Secret",
    }


@pytest.mark.parametrize(
    ("broken", "line", "says"),
    [
        ("kind: Tenant\nmetadata: {name: x}\nspec: {}\n", 6, "apiVersion: must be fairserve.dev/v1alpha1"),
        (
            "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {name: x}\n"
            "spec: {selector: {app: vllm}}\n",
            9,
            "spec.selector.matchLabels: must be an object of labels",
        ),
        (
            "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferencePool\nmetadata: {name: x}\n"
            "spec: {selector: {matchLabels: {app: vllm}}}\n",
            6,
            "apiVersion: must be inference.networking.k8s.io/v1",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n",
            7,
            "kind: 'Deployment' is not one of",
        ),
        (GOOD.replace("good", "x").replace("2", "0"), 9, "spec.weight"),
        (GOOD.replace("good", "x").replace("2", '"3"'), 9, "spec.weight"),
        (GOOD.replace("good", "x").replace("weight", "wieght"), 9, "spec.wieght: unknown field"),
        (GOOD.replace("good", "Not A Name"), 8, "metadata.name"),
        (GOOD.replace("good", "x").replace("}\nspec", ", lables: {}}\nspec"), 8, "metadata.lables"),
        (GOOD.replace("good", "x") + "sepc: {}\n", 10, "sepc: unknown field"),
        (GOOD.replace("good", "x").replace("}\nspec", ", labels: {a: 1}}\nspec"), 8, "metadata.labels"),
        ("a: [1\n", 7, "is no valid YAML"),
        ("a: 1\na: 2\n", 7, "'a' appears twice"),
        ("just text\n", 6, "is no object"),
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ndata: {k: '?'}\n", 9, "data.k: is not base64"),
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: x}\nstringData: {k: 1}\n", 9, "stringData.k"),
    ],
)
def test_a_broken_document_is_named_and_takes_nothing_along(tmp_path, broken, line, says):
    reading = read(tmp_path, f"{GOOD}---\n{broken}---\n{GOOD.replace('good', 'other')}")
    assert [manifest.key.name for manifest in reading.manifests] == ["good", "other"]
    assert [problem.file for problem in reading.problems] == ["a.yaml"]
    assert says in str(reading.problems[0])
    assert reading.problems[0].line == line


def test_every_wrong_field_of_an_object_is_named(tmp_path):
    reading = read(tmp_path, GOOD.replace("{weight: 2}", "\n  weight: -1\n  queue:\n    maxWait: soon\n"))
    named = {(problem.message.split(":")[0], problem.line) for problem in reading.problems}
    assert named == {("spec.weight", 5), ("spec.queue.maxWait", 7)}


def test_the_python_name_of_a_field_is_unknown(tmp_path):
    reading = read(tmp_path, GOOD.replace("weight: 2", "interaction_limits: {}"))
    assert "spec.interaction_limits: unknown field" in str(reading.problems[0])


def test_the_same_object_twice_names_both_places(tmp_path):
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(GOOD.replace("2", "5"))
    reading = read_folder(tmp_path)
    assert [manifest.content["weight"] for manifest in reading.manifests] == [2]
    assert str(reading.problems[0]).startswith('b.yaml:1: Tenant "good": appears twice: also at a.yaml:1')


def test_lists_json_and_separators_with_comments(tmp_path):
    (tmp_path / "a.json").write_text(
        '{"kind": "List", "apiVersion": "v1", "items": [{"apiVersion": "fairserve.dev/v1alpha1", '
        '"kind": "Tenant", "metadata": {"name": "x", "uid": "u"}, "spec": {}, "status": {}}]}'
    )
    (tmp_path / "b.yaml").write_text(f"--- # first\n{GOOD}--- # empty\n# nothing\n---\n")
    reading = read_folder(tmp_path)
    assert reading.problems == ()
    assert [manifest.key.name for manifest in reading.manifests] == ["x", "good"]


def test_values_of_secrets_show_nowhere(tmp_path):
    text = "apiVersion: v1\nkind: Secret\nmetadata: {name: k}\nstringData: {key: hush}\n"
    reading = read(tmp_path, text)
    assert reading.manifests[0].content == {"key": "hush"}
    assert "hush" not in repr(reading)


def test_stringdata_wins_over_data(tmp_path):
    text = "apiVersion: v1\nkind: Secret\nmetadata: {name: k}\ndata: {a: YQ==, b: Yg==}\nstringData: {b: c}\n"
    assert read(tmp_path, text).manifests[0].content == {"a": "a", "b": "c"}


def test_one_file_will_do_and_a_missing_one_will_not(tmp_path):
    (tmp_path / "a.yaml").write_text(GOOD)
    assert read_folder(tmp_path / "a.yaml").manifests[0].key == ObjectKey("Tenant", "default", "good")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_folder(tmp_path / "nowhere")
