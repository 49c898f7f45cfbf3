"""`fairserve inject`: which documents it touches, what it says, and that it gives all or nothing."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from fairserve import cli
from fairserve.local.manifests import Loader

DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: llm
spec:
  template:
    metadata:
      labels: {app: llm%s}
    spec:
      containers:
        - {name: vllm, image: vllm/vllm-openai, env: [{name: TZ, value: 22:30}]}
"""
LABELLED = DEPLOYMENT % ", fairserve.dev/inject: llm"
UNLABELLED = DEPLOYMENT % ""
OTHERS = """\
# a Service, with a comment
apiVersion: v1
kind: Service
metadata: {name:   llm}   # odd spaces
spec: {ports: [{port: 80, targetPort: 8000}]}
---

--- # nothing but a comment
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {template: {spec: {containers: [{name: web, image: nginx}]}}}
"""


def inject(text, *arguments):
    result = CliRunner().invoke(cli.app, ["inject", "-f", "-", *arguments], input=text)
    assert result.exit_code in (0, 1), result.output
    return result


def pods(text):
    """The names of containers and init containers by object."""
    found = {}
    for document in yaml.safe_load_all(text):
        spec = ((document or {}).get("spec") or {}).get("template", {}).get("spec", {})
        found[(document or {}).get("kind"), (document or {}).get("metadata", {}).get("name")] = [
            each["name"] for kind in ("initContainers", "containers") for each in spec.get(kind, ())
        ]
    return found


def test_what_is_labelled_is_injected_and_the_rest_is_as_it_was():
    text = f"{OTHERS}---\n{LABELLED}---\n{OTHERS}"
    result = inject(text)
    assert result.exit_code == 0
    head, _, tail = text.partition(LABELLED)
    assert result.stdout.startswith(head)
    assert result.stdout.endswith(tail)
    assert pods(result.stdout)["Deployment", "llm"] == ["fairserve", "vllm"]
    where = len(f"{OTHERS}---\n".splitlines()) + 1
    assert result.stderr == (
        f'stdin:{where}: Deployment "llm": the sidecar of pool llm has port 8000, and vllm serves on '
        "127.0.0.1:18000\n"
    )


def test_to_inject_again_changes_no_byte():
    once = inject(f"{OTHERS}---\n{LABELLED}").stdout
    assert inject(once).stdout == once
    assert "22:30" in once, "a text stays a text"
    again = inject(
        once,
        "--image",
        "other:2",
        "--control-port",
        "9001",
        "--drain-s",
        "90",
        "--cpu",
        "3",
        "--memory",
        "2Gi",
    )
    (sidecar,) = list(yaml.safe_load_all(again.stdout))[-1]["spec"]["template"]["spec"]["initContainers"]
    assert sidecar["image"] == "other:2"
    assert "--control=0.0.0.0:9001" in sidecar["args"]
    assert "--grace-s=90" in sidecar["args"]
    assert sidecar["resources"]["requests"] == {"cpu": "3", "memory": "2Gi"}


def test_a_pool_is_given_to_whatever_has_vllm_in_it():
    result = inject(f"{UNLABELLED}---\n{OTHERS}", "--pool", "llm")
    assert pods(result.stdout)["Deployment", "llm"] == ["fairserve", "vllm"]
    assert pods(result.stdout)["Deployment", "web"] == ["web"]


def test_a_file_is_read(tmp_path):
    path = tmp_path / "d.yaml"
    path.write_text(LABELLED)
    result = CliRunner().invoke(cli.app, ["inject", "--file", str(path)])
    assert result.stdout == inject(LABELLED).stdout
    missing = CliRunner().invoke(cli.app, ["inject", "-f", str(tmp_path / "no.yaml")])
    assert missing.exit_code == 1
    assert "no.yaml can't be read" in missing.stderr


def test_kubectls_json_lists_are_read():
    listed = {
        "apiVersion": "v1",
        "kind": "List",
        "items": [yaml.load(LABELLED, Loader), {"kind": "ConfigMap"}],
    }
    (document,) = yaml.safe_load_all(inject(json.dumps(listed)).stdout)
    assert [item["kind"] for item in document["items"]] == ["Deployment", "ConfigMap"]
    assert "initContainers" in document["items"][0]["spec"]["template"]["spec"]


def test_a_leaders_template_is_injected_without_its_workers():
    template = yaml.load(LABELLED, Loader)["spec"]["template"]
    workers = yaml.load(UNLABELLED, Loader)["spec"]["template"]
    body = {
        "kind": "LeaderWorkerSet",
        "spec": {"leaderWorkerTemplate": {"leaderTemplate": template, "workerTemplate": workers}},
    }
    after = yaml.safe_load(inject(yaml.safe_dump(body)).stdout)["spec"]["leaderWorkerTemplate"]
    assert "initContainers" in after["leaderTemplate"]["spec"]
    assert after["workerTemplate"] == workers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (UNLABELLED, "nothing to inject: label a Pod template fairserve.dev/inject: <ServingPool>"),
        (
            f"{LABELLED}---\n{LABELLED.replace('image: vllm', 'args: [--uds=x], image: vllm')}",
            f'stdin:{len(LABELLED.splitlines()) + 2}: Deployment "llm": spec.template.spec.containers[0].args'
            ": --uds",
        ),
        (
            UNLABELLED.replace("name: llm\n", "name: llm\n  labels: {fairserve.dev/inject: llm}\n"),
            "metadata.labels[fairserve.dev/inject]: has no effect here: label its Pod template",
        ),
        (f"{LABELLED}---\na: [\n", "is no valid YAML: line"),
        (f"{LABELLED}---\na: 1\na: 2\n", "'a' appears twice"),
        (f"{LABELLED}--- {{a: 1}}\n", "write the document below the line ---"),
    ],
)
def test_one_refusal_holds_back_everything(text, words):
    result = inject(text)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert words in result.stderr


@pytest.mark.parametrize("option", [("--cpu", "half"), ("--memory", "1 Gi"), ("--image", " ")])
def test_a_wrong_option_is_named(option):
    result = CliRunner().invoke(cli.app, ["inject", "-f", "-", *option], input=LABELLED)
    assert result.exit_code == 2
    assert f"{option[0].removeprefix('--')}: {option[1]!r} is no" in result.stderr


def test_two_pools_for_one_template_are_refused():
    result = inject(LABELLED, "--pool", "other")
    assert result.exit_code == 1
    assert "is 'llm', and pool 'other' was asked for" in result.stderr


def test_whose_pods_the_cluster_makes_is_left_as_it_is():
    service = "kind: InferenceService\nmetadata: {name: x, labels: {fairserve.dev/inject: llm}}\n"
    result = inject(f"{LABELLED}---\n{service}")
    assert result.exit_code == 0
    assert result.stdout.endswith(service)
    assert 'InferenceService "x": the cluster makes its Pods, so nothing is injected here' in result.stderr
