"""The sidecar in front of vLLM: what becomes of Pods of each shape, and what is refused."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fairserve import cli
from fairserve_operator.manifests.injection import (
    Injected,
    Refused,
    Settings,
    inject,
    shows_vllm,
    wanted_pool,
)

SHAPES = sorted((Path(__file__).parent / "shapes").glob("*.yaml"))
SETTINGS = Settings("sidecar:1")
POOL = "llm"


def shape(name: str) -> dict[str, Any]:
    """The Pod template of a shape."""
    document = yaml.safe_load((Path(__file__).parent / "shapes" / f"{name}.yaml").read_text())
    return document if document["kind"] == "Pod" else document["spec"]["template"]


def done(template: dict[str, Any], settings: Settings = SETTINGS) -> Injected:
    result = inject(template, POOL, settings)
    assert isinstance(result, Injected), str(result)
    return result


def refused(template: dict[str, Any], settings: Settings = SETTINGS) -> str:
    before = copy.deepcopy(template)
    result = inject(template, POOL, settings)
    assert isinstance(result, Refused)
    assert template == before
    return str(result)


def container(template: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in template["spec"]["containers"] if each["name"] == name)


def sidecar(template: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in template["spec"]["initContainers"] if each["name"] == "fairserve")


def options(template: dict[str, Any]) -> dict[str, str]:
    return dict(word.removeprefix("--").partition("=")[::2] for word in sidecar(template)["args"])


def vllm(**fields: Any) -> dict[str, Any]:
    """The smallest template that can be injected, with other fields of the container."""
    return {"spec": {"containers": [{"name": "vllm", "image": "vllm/vllm-openai:v1", **fields}]}}


# -- the shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "port", "engine_port", "line"),
    [
        ("deployment", 8000, 18000, "--max_num_batched_tokens 1024 --host 127.0.0.1 --port 18000"),
        ("statefulset", 80, 10080, "--scheduling-policy=priority --port=10080 --host 127.0.0.1"),
        ("production-stack", 8000, 18001, "--host 127.0.0.1 --port 18001 --enable-lora"),
        ("llm-d", 8200, 18200, "Qwen/Qwen3-0.6B --port 18200 --served-model-name"),
        (
            "kserve",
            8080,
            18080,
            "--port=18080 --model=/mnt/models --served-model-name=llama --host 127.0.0.1",
        ),
        ("host-network", 30000, 18000, "--model tiny --host=127.0.0.1 --port 18000"),
        ("pod", 8100, 18100, "'{\"temperature\": 0.2}' --host 127.0.0.1 --port 18100"),
        ("by-hand", 8000, 18000, 'eval "vllm serve /mnt/models --host 127.0.0.1 --port 18000 ${EXTRA}"'),
    ],
)
def test_the_sidecar_takes_vllms_port_and_vllm_goes_to_the_loopback(name, port, engine_port, line):
    result = done(shape(name))
    assert (result.port, result.engine_port) == (port, engine_port)
    chosen = container(result.template, result.container)
    assert line in " ".join([*chosen.get("command", ()), *chosen.get("args", ())])
    given = options(result.template)
    assert given["listen"] == f"0.0.0.0:{port}"
    assert given["engine"] == f"http://127.0.0.1:{engine_port}"
    # It is not moved: Services, NetworkPolicies and scrapes find ports in containers by name.
    assert chosen.get("ports") == container(shape(name), result.container).get("ports")


@pytest.mark.parametrize("path", SHAPES, ids=lambda path: path.stem)
def test_what_is_injected_is_found_injected(path):
    once = done(shape(path.stem))
    assert done(once.template).template == once.template
    other = Settings("sidecar:2", control_port=9001, drain_s=120, cpu="2", memory="4Gi")
    renewed = done(once.template, other)
    assert renewed.template == done(shape(path.stem), other).template, "an update is as good as a new one"


@pytest.mark.parametrize("path", SHAPES, ids=lambda path: path.stem)
def test_what_is_not_vllms_stays(path):
    before = shape(path.stem)
    result = done(copy.deepcopy(before))
    after = copy.deepcopy(result.template)
    chosen, original = container(after, result.container), container(before, result.container)
    for name in ("command", "args", "lifecycle", "startupProbe", "readinessProbe", "livenessProbe"):
        chosen.pop(name, None)
        original.pop(name, None)
    assert after["spec"]["containers"] == before["spec"]["containers"]
    for field in ("initContainers", "volumes"):
        kept = [each for each in after["spec"][field] if not each["name"].startswith("fairserve")]
        assert kept == before["spec"].get(field, [])
        assert [each["name"] for each in after["spec"][field]][: len(kept)] == [each["name"] for each in kept]


@pytest.mark.parametrize("path", SHAPES, ids=lambda path: path.stem)
def test_the_sidecar_takes_its_flags(path, tmp_path, monkeypatch):
    """The real command parses them, and would run with what the volumes hold."""
    template = done(shape(path.stem)).template
    ran = []
    monkeypatch.setattr("fairserve.sidecar.process.run", lambda options: ran.append(options) or 0)
    result = CliRunner().invoke(cli.app, ["sidecar", *sidecar(template)["args"]])
    assert result.exit_code == 0, result.output
    (given,) = ran
    mounts = {mount["name"]: mount["mountPath"] for mount in sidecar(template)["volumeMounts"]}
    assert {str(given.config_file.parent), str(given.control_token_file.parent)} == {mounts["fairserve-boot"]}
    assert str(given.snapshot_file.parent) == mounts["fairserve-state"]
    assert given.grace_s == SETTINGS.drain_s
    assert given.engine_priority is (path.stem == "statefulset"), "as vLLM's own --scheduling-policy says"


# -- the sidecar ----------------------------------------------------------------------------------


def test_the_sidecar_is_native_and_the_last_to_start():
    template = done(shape("llm-d")).template
    assert [each["name"] for each in template["spec"]["initContainers"]] == ["routing-proxy", "fairserve"]
    assert sidecar(template)["restartPolicy"] == "Always"


def test_the_sidecar_boots_from_the_pools_secret_and_its_parts():
    volumes = {each["name"]: each for each in done(vllm()).template["spec"]["volumes"]}
    whole, *parts = volumes["fairserve-boot"]["projected"]["sources"]
    assert whole == {"secret": {"name": "fairserve-llm"}}
    assert [part["secret"]["name"] for part in parts] == [
        f"fairserve-llm-{slot}-{n}" for slot in "ab" for n in (0, 1)
    ]
    assert all(part["secret"]["optional"] for part in parts)
    assert volumes["fairserve-state"] == {"name": "fairserve-state", "emptyDir": {}}


@pytest.mark.parametrize(("user", "expected"), [(None, None), (1000, None), (0, 65532)])
def test_the_sidecar_is_restricted_and_never_root(user, expected):
    template = vllm()
    if user is not None:
        template["spec"]["securityContext"] = {"runAsUser": user}
    context = sidecar(done(template).template)["securityContext"]
    assert context["runAsNonRoot"]
    assert context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context.get("runAsUser") == expected


@pytest.mark.parametrize(
    ("name", "limited"), [("statefulset", True), ("deployment", False), ("kserve", False)]
)
def test_only_a_guaranteed_pods_sidecar_has_a_cpu_limit(name, limited):
    resources = sidecar(done(shape(name)).template)["resources"]
    assert ("cpu" in resources["limits"]) is limited
    assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_below_1024_the_pod_lets_the_sidecar_listen():
    context = done(shape("statefulset")).template["spec"]["securityContext"]
    assert context["sysctls"] == [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]
    assert context["runAsUser"] == 0, "what was there stays"
    assert "securityContext" not in done(vllm()).template["spec"]


# -- probes ---------------------------------------------------------------------------------------


def test_a_tcp_probe_asks_vllm_and_not_the_sidecar():
    probe = container(done(shape("kserve")).template, "kserve-container")["readinessProbe"]
    assert "tcpSocket" not in probe
    assert probe["httpGet"] == {"port": 8080, "path": "/health"}
    named = container(done(shape("statefulset")).template, "vllm")["startupProbe"]
    assert named["httpGet"] == {"port": "http", "path": "/health"}


def test_a_probe_of_another_port_stays():
    probe = {"tcpSocket": {"port": 5557}, "periodSeconds": 7}
    assert container(done(vllm(readinessProbe=probe)).template, "vllm")["readinessProbe"] == probe


@pytest.mark.parametrize(
    ("probe", "failures"),
    [
        ({}, 6),
        ({"periodSeconds": 7, "failureThreshold": 1}, 9),
        ({"periodSeconds": 30, "failureThreshold": 5}, 5),
    ],
)
def test_a_sidecar_that_restarts_costs_no_model(probe, failures):
    template = done(vllm(livenessProbe={"httpGet": {"path": "/health", "port": 8000}, **probe})).template
    after = container(template, "vllm")["livenessProbe"]
    assert after.get("failureThreshold") == failures
    own = sidecar(template)["livenessProbe"]
    found_hanging = own["periodSeconds"] * own["failureThreshold"] + own["terminationGracePeriodSeconds"]
    assert found_hanging < after.get("periodSeconds", 10) * failures


# -- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "expected"), [(None, 50), (20, 50), (300, 300)])
def test_the_grace_period_covers_the_drain_and_is_never_cut(given, expected):
    template = vllm()
    if given is not None:
        template["spec"]["terminationGracePeriodSeconds"] = given
    assert done(template).template["spec"]["terminationGracePeriodSeconds"] == expected
    assert done(template, Settings("s", drain_s=600)).template["spec"]["terminationGracePeriodSeconds"] == 620


@pytest.mark.parametrize(
    ("hook", "own"),
    [
        (None, []),
        ({"exec": {"command": ["sh", "-c", "bye"]}}, ["sh", "-c", "bye"]),
        ({"sleep": {"seconds": 3}}, ["python3", "-c", "import time; time.sleep(3)"]),
    ],
)
def test_vllms_own_hook_runs_before_it_waits(hook, own):
    template = vllm() if hook is None else vllm(lifecycle={"preStop": hook})
    command = container(done(template).template, "vllm")["lifecycle"]["preStop"]["exec"]["command"]
    assert command[6:] == own


def test_the_hook_runs_in_the_python_that_runs_vllm():
    template = vllm(command=["/opt/venv/bin/python", "-m", "vllm.entrypoints.openai.api_server"])
    command = container(done(template).template, "vllm")["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "/opt/venv/bin/python"


# -- which container, which port -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "port"),
    [
        ({"args": ["--port", "9000", "--port=9001"]}, 9001),
        ({"command": ["vllm", "serve", "m"]}, 8000),
        ({"command": ["env", "A=b", "/venv/bin/vllm", "serve"], "args": ["m", "--port", "9000"]}, 9000),
        ({"command": ["python3", "/app/vllm/entrypoints/openai/api_server.py", "--port=9000"]}, 9000),
        ({"command": ["sh", "-lc", "cd /x; exec vllm serve m --port=9000"]}, 9000),
        ({"command": ["sh", "-c", "if test -d /x; then cd /x; fi; exec vllm serve m --port=9000"]}, 9000),
        ({"command": ["sh", "-c"], "args": ["vllm serve $MODEL --model $MODEL --seed 1\n\n"]}, 8000),
        ({"command": ["sh", "-c"], "args": ["vllm serve \\\n m \\\n --port 9000\n"]}, 9000),
        (
            {
                "command": ["sh", "-c", "vllm serve $MODEL --port ${PORT}"],
                "env": [{"name": "PORT", "value": "9000"}],
            },
            9000,
        ),
    ],
)
def test_vllms_port_is_found_in_its_command_line(fields, port):
    assert done(vllm(**fields)).port == port


def test_a_port_that_may_hide_in_a_variable_must_be_said():
    template = vllm(command=["sh", "-c"], args=["vllm serve m --seed 1 $MORE"])
    assert "no --port is to be seen" in refused(template)
    assert done(_annotated(template, port="9000")).port == 9000


ELSEWHERE = [{"name": "PORT", "valueFrom": {"configMapKeyRef": {"name": "ports", "key": "vllm"}}}]


@pytest.mark.parametrize(
    ("fields", "after"),
    [
        ({"args": ["--port", "$(PORT)"], "env": ELSEWHERE}, ["--port", "19000", "--host", "127.0.0.1"]),
        ({"args": ["--port=$(PORT)"]}, ["--port=19000", "--host", "127.0.0.1"]),
        (
            {"command": ["sh", "-c"], "args": ["exec vllm serve m --port $PORT"], "env": ELSEWHERE},
            ["exec vllm serve m --port $PORT --host 127.0.0.1 --port 19000"],
        ),
        (
            {"command": ["sh", "-c"], "args": ["vllm serve m --port=${PORT:-8000}"]},
            ["vllm serve m --port=${PORT:-8000} --host 127.0.0.1 --port 19000"],
        ),
    ],
)
def test_a_port_that_stands_elsewhere_must_be_said(fields, after):
    message = refused(vllm(**fields))
    assert message.startswith("spec.containers[0].args")
    assert "fairserve.dev/port" in message, "there is a way out"
    result = done(_annotated(vllm(**fields), port="9000"))
    assert result.port == 9000
    assert container(result.template, "vllm")["args"] == after
    assert done(result.template).template == result.template


def test_what_is_no_port_is_refused_whatever_is_said():
    assert "--port: 'http' is no number" in refused(_annotated(vllm(args=["--port", "http"]), port="9000"))


def with_variable(before: str) -> dict[str, Any]:
    script = f"{before}; exec vllm serve m --port $PORT"
    return vllm(command=["sh", "-c", script], env=[{"name": "PORT", "value": "8080"}])


@pytest.mark.parametrize(
    "before",
    [
        "PORT=9999",
        "export PORT=9999",
        "cd /x && export A=b PORT=9999",
        "unset PORT",
        "read -r PORT",
        "readonly 'PORT=9999'",
        "printf -v PORT 9999",
        "for PORT in 9999; do true; done",
        "if true; then PORT=9999; fi",
        "unset OTHER; : ${PORT:=9999}",
        ". /etc/vllm.env",
        "if true; then source /etc/vllm.env; fi",
        "A=b eval $SETTINGS",
        "export $SETTINGS",
    ],
)
def test_a_port_that_the_script_may_change_must_be_said(before):
    message = refused(with_variable(before))
    assert message.startswith("spec.containers[0].command[2]: --port: what '$PORT' is can't be told")
    assert "an earlier command of this script may change it" in message
    assert "fairserve.dev/port" in message, "there is a way out"
    result = done(_annotated(with_variable(before), port="9999"))
    assert result.port == 9999
    assert container(result.template, "vllm")["command"][2].endswith("--host 127.0.0.1 --port 19999")


@pytest.mark.parametrize(
    "before",
    ["echo on $PORT, ${PORT}", "export HF_HOME=$PORT SUPPORT=1", "PORTS=1", "find . -name x", "unset OTHER"],
)
def test_a_port_that_the_script_only_reads_counts(before):
    assert done(with_variable(before)).port == 8080


def test_flags_go_where_the_arguments_are():
    template = done(
        vllm(command=["vllm", "serve", "m", "--port"], args=["9000", "--host", "0.0.0.0"])
    ).template
    after = container(template, "vllm")
    assert after["command"] == ["vllm", "serve", "m", "--port"]
    assert after["args"] == ["19000", "--host", "127.0.0.1"]


SCRIPT = "spec.containers[0].args[0]: arguments can't be added to this script"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("vllm serve m | tee log", "'|'"),
        ("vllm serve m > log 2>&1", "'>'"),
        ("vllm serve m & wait", "'&'"),
        ("vllm serve m || sleep 9", "'||'"),
        ("(vllm serve m)", "'('"),
        ("vllm serve m; sleep 9", "goes on after that"),
        ("vllm serve m # mine", "comment"),
        ("vllm serve `cat m`", "backticks"),
        ("vllm serve $(cat m)", "$(...)"),
        ("vllm serve 'm", "quotes"),
        ("vllm serve m \\", "ends within a line"),
        ("vllm serve m;", "ends without a command"),
        ("vllm serve m\n# the end", "ends in a comment"),
        ("vllm serve\n  --model m", "goes on after that"),
        ("if a; then vllm serve m; fi", "goes on after that"),
        ('eval "vllm serve m"', "its end doesn't start vLLM"),
    ],
)
def test_a_script_that_is_not_understood_is_not_touched(script, why):
    message = refused(vllm(command=["sh", "-c"], args=[script]))
    assert message.startswith(SCRIPT)
    assert why in message
    assert "fairserve.dev/engine-port" in message, "there is a way out"


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--uds", "/tmp/s"], "--uds: vLLM serves on a Unix socket"),
        (["--ssl-keyfile=k"], "--ssl-keyfile: vLLM serves HTTPS"),
        (["--ssl_certfile=k"], "--ssl-certfile: vLLM serves HTTPS"),
        (["--grpc"], "--grpc: vLLM serves gRPC on its port in place of HTTP"),
        (["--grpc_port=50051"], "--grpc-port: callers of vLLM's gRPC services"),
        (["--headless"], "--headless: this vLLM serves no API"),
        (["--data-parallel-multi-port-external-lb"], "several ports"),
        (["--port", "http"], "--port: 'http' is no number"),
        (["--port", "$(ELSEWHERE)"], "--port: what '$(ELSEWHERE)' is can't be told"),
        (["--config", "vllm.yaml"], "fairserve.dev/port"),
    ],
)
def test_a_vllm_that_cannot_stand_behind_a_sidecar_is_refused(flags, why):
    message = refused(vllm(args=flags))
    assert message.startswith("spec.containers[0].args: ")
    assert why in message


def test_a_command_longer_than_64_kib_is_refused_unread():
    command = ["sh", "-c", "vllm serve m --seed "]
    room = 64 * 1024 - sum(len(word) + 1 for word in command)
    done(vllm(command=[*command[:2], command[2] + "1" * room]))
    # If it were read, its quotes wouldn't match.
    message = refused(vllm(command=[*command[:2], command[2] + "'" * (room + 1)]))
    assert message.startswith("spec.containers[0]: command and args are longer than 65536 characters")
    assert "fairserve.dev/engine-port" in message, "there is a way out"


def _cost(read: Callable[[], object]) -> float:
    """CPU time, in seconds, of this thread alone: the least of several."""
    costs = []
    for _ in range(7):
        began = time.thread_time()
        read()
        costs.append(time.thread_time() - began)
    return min(costs)


@pytest.mark.parametrize(
    "command",
    [
        lambda size: ["sh", "-c", "vllm.entrypoints." * (size // 17)],
        lambda size: ["sh", "-c", "vllm/entrypoints/" + "api_serve" * (size // 9)],
        lambda size: ["sh", "-c", "vllm" + " " * size],
        lambda size: ["sh", "-" + "c" * size + "!"],
        lambda size: ["sh", "-c", "$(" * (size // 2)],
    ],
)
def test_a_search_for_vllm_costs_no_more_than_its_length(command):
    """Reading the square of it takes 16 times as long for four times the length."""
    short, long = vllm(command=command(8_000)), vllm(command=command(32_000))
    assert _cost(lambda: shows_vllm(long)) < 9 * _cost(lambda: shows_vllm(short))


def _both() -> dict[str, Any]:
    template = vllm()
    template["spec"]["containers"].append({"name": "other", "image": "vllm/vllm-openai"})
    return template


def _annotated(template: dict[str, Any], **annotations: str) -> dict[str, Any]:
    marked = {f"fairserve.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
    return {"metadata": {"annotations": marked}, **template}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({}, "spec: Field required"),
        ({"spec": {"containers": "x"}}, "spec.containers: Input should be a valid list"),
        (vllm(args=[8000]), "spec.containers[0].args[0]: Input should be a valid string"),
        (vllm(ports=[{"containerPort": "http"}]), "spec.containers[0].ports[0].containerPort: "),
        (
            {"spec": {"containers": [{"name": "web", "image": "nginx"}]}},
            "spec.containers: no container shows that",
        ),
        (
            {"spec": {"containers": [{"name": "r", "image": "vllm/vllm-router:v1"}]}},
            "no container shows that",
        ),
        (_both(), "spec.containers: vllm, other start vLLM"),
        (
            _annotated(_both(), container="third"),
            "[fairserve.dev/container]: there is no container 'third' among vllm",
        ),
        (_annotated(vllm(), contaner="vllm"), "[fairserve.dev/contaner]: is not known here"),
        (_annotated(vllm(), port="http"), "[fairserve.dev/port]: 'http' is no number"),
        (
            _annotated(vllm(args=["--port=9000"]), port="8000"),
            "[fairserve.dev/port]: is 8000, but --port is 9000",
        ),
        (_annotated(vllm(), engine_port="18000"), "spec.containers[0].ports: 0 ports are declared"),
        (
            _annotated(vllm(), engine_port="8000", port="8000"),
            "[fairserve.dev/engine-port]: 8000 is the port",
        ),
        (_annotated(vllm(), injected="no"), "[fairserve.dev/injected]: Invalid JSON"),
        (
            _annotated(vllm(command=["/start.sh"]), container="vllm"),
            "spec.containers[0].command: nobody can tell that '/start.sh' hands",
        ),
        (
            vllm(args=["--port", "8001"]),
            "spec.containers: port 8001 is in use, and the sidecar's control port",
        ),
        (vllm(ports=[{"containerPort": 8001}]), "spec.containers: port 8001 is in use"),
        (
            {"spec": {**vllm(args=["--port=443"])["spec"], "hostNetwork": True}},
            "spec.containers[0]: port 443 of a node needs rights",
        ),
        (
            {"spec": {**vllm()["spec"], "initContainers": [{"name": "fairserve"}]}},
            "spec.initContainers[0].name: 'fairserve' is the sidecar's",
        ),
        (
            {"spec": {**vllm()["spec"], "volumes": [{"name": "fairserve-boot"}]}},
            "spec.volumes[0].name: 'fairserve-boot' is the sidecar's",
        ),
        (
            {"metadata": {"labels": {"fairserve.dev/inject": "other"}}, **vllm()},
            "metadata.labels[fairserve.dev/inject]: is 'other', and pool 'llm' was asked for",
        ),
        (
            vllm(lifecycle={"preStop": {"httpGet": {"port": 1}}}),
            "spec.containers[0].lifecycle.preStop: vLLM must wait there",
        ),
        (
            vllm(readinessProbe={"httpGet": {"port": 8000, "scheme": "HTTPS"}}),
            "spec.containers[0].readinessProbe.httpGet.scheme: the sidecar speaks HTTP",
        ),
    ],
)
def test_what_cannot_be_right_is_refused_by_field(template, words):
    assert words in refused(template)


def test_a_pool_has_a_name_that_a_secret_can_have():
    result = inject(vllm(), "No_Pool", SETTINGS)
    assert isinstance(result, Refused)
    assert "'No_Pool' is no name" in str(result)


def test_what_somebody_changed_since_is_refused():
    once = done(vllm(args=["--port", "8000"])).template
    changed = copy.deepcopy(once)
    container(changed, "vllm")["args"] = ["--port", "8000"]
    assert "must have --host 127.0.0.1 and --port 18000" in refused(changed)
    container(changed, "vllm")["args"] = [*container(once, "vllm")["args"], "--uds=/tmp/s"]
    assert "--uds: vLLM serves on a Unix socket" in refused(changed)
    gone = copy.deepcopy(once)
    del gone["spec"]["initContainers"]
    assert "a sidecar before 'vllm' that is not here" in refused(gone)


def test_the_record_says_what_was_done():
    annotations = done(shape("llm-d")).template["metadata"]["annotations"]
    record = json.loads(annotations["fairserve.dev/injected"])
    assert record == {"container": "vllm", "port": 8200, "enginePort": 18200}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (shape("host-network"), ["127.0.0.1:18000, past the sidecar"]),
        (shape("production-stack"), ["API key of its own"]),
        (vllm(args=["--api-key=k", "--disable-log-stats"]), ["API key of its own", "how full it is"]),
        (shape("deployment"), []),
    ],
)
def test_what_its_author_should_know_is_told(template, words):
    notes = done(template).notes
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))


def test_labels_and_vllm_are_seen_without_injecting():
    assert wanted_pool({"metadata": {"labels": {"fairserve.dev/inject": "a"}}}) == "a"
    assert wanted_pool({"metadata": None}) is None
    assert wanted_pool(done(vllm()).template) == POOL
    assert shows_vllm(vllm())
    assert not shows_vllm({"spec": {"containers": [{"name": "web", "image": "nginx", "args": ["vllm"]}]}})
