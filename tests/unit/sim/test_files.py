"""Scenario files: what is wrong is told with file, line and field, and nothing is run."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fairserve.cli import app
from fairserve.core.catalogue import SCHEDULERS
from fairserve.sim.distributions import MOST_TOKENS
from fairserve.sim.errors import InputError
from fairserve.sim.experiment import experiment
from fairserve.sim.files import read_scenario
from fairserve.sim.world import simulate

SHIPPED = sorted((Path(__file__).parents[3] / "bench" / "scenarios").glob("*.yaml"))

SCENARIO = """\
name: small
duration_s: 5
engines:
  max_num_seqs: 4
  max_num_batched_tokens: 256
tenants:
  t: {weight: 2}
applications:
  chat:
    input_tokens: {lognormal: {median: 50, sigma: 0.5, high: 500}}
    output_tokens: 5
classes:
  - name: users
    users: 2
    tenant: t
    applications: {chat: 1}
    arrivals: {rate_per_s: 1}
"""


def read(tmp_path: Path, text: str):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    return read_scenario(path)


def test_a_scenario_is_read_and_runs(tmp_path):
    scenario = read(tmp_path, SCENARIO)
    assert scenario.settings.tenants["t"].weight == 2
    recording = simulate(scenario, "FairServe", SCHEDULERS["FairServe"], 1)
    assert {call.output_tokens for call in recording.calls} == {5}
    assert len(recording.calls) > 3


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_are_valid(path):
    assert read_scenario(path).name == path.stem


def test_there_are_shipped_scenarios():
    assert SHIPPED


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "problem"),
    [
        ("duration_s: 5", "duration: 5", 2, "duration", "Extra inputs"),
        ("duration_s: 5", "duration_s: -5", 2, "duration_s", "greater than 0"),
        ("duration_s: 5", "duration_s: .nan", 2, "duration_s", "finite"),
        ("duration_s: 5", "duration_s: .inf", 2, "duration_s", "finite"),
        ("max_num_seqs: 4", "max_num_seqs: 400", 3, "engines", "max_num_batched_tokens"),
        (
            "median: 50",
            "median: -50",
            10,
            "applications.chat.input_tokens.lognormal.median",
            "greater than 0",
        ),
        ("output_tokens: 5", "output_tokens: -5", 11, "applications.chat.output_tokens", "greater than"),
        ("{rate_per_s: 1}", "{kind: sometimes}", 17, "classes.0.arrivals.kind", "poisson"),
        ("{chat: 1}", "{chess: 1}", 16, "classes.0.applications.chess", "unknown application 'chess'"),
        ("{chat: 1}", "{}", 16, "classes.0.applications", "at least one"),
        (
            "{rate_per_s: 1}",
            "{}\n    behaviour: {labelled_as: chess}",
            18,
            "classes.0.behaviour.labelled_as",
            "unknown",
        ),
        ("    tenant: t", "    tenant: u", 15, "classes.0.tenant", "unknown tenant 'u'"),
        ("name: small", "name: small\npaper: true", 13, "classes", "exactly one of"),
        (SCENARIO[SCENARIO.index("classes:") :], "", 1, "classes", "exactly one of"),
        (
            "{rate_per_s: 1}",
            "{}\nfaults:\n  restarts:\n    - {at_s: 1,\n       pod: 7}",
            21,
            "faults.restarts.0.pod",
            "no pod 7",
        ),
        (
            "{rate_per_s: 1}",
            "{}\nfaults:\n  slowdowns:\n    - {start_s: 1, stop_s: 2, factor: 2, pod: 7}",
            20,
            "faults.slowdowns.0.pod",
            "no pod 7",
        ),
        ("    users: 2", "    users: 0", 14, "classes.0.users", "greater than or equal to 1"),
        ("  - name: users", "  - nam: users", 13, "classes.0.name", "required"),
        ("name: small", "name: small\nname: large", 2, "", "given twice"),
        ("t: {weight: 2}", "t: {weight: 1.0e+30}", 7, "tenants.t.weight", "less than or equal to 1000000"),
        (
            "t: {weight: 2}",
            "t: {weight: 2, total: {count: 1, window_s: 1.0e-9}}",
            7,
            "tenants.t.total.window_s",
            "greater",
        ),
        (
            "output_tokens: 5",
            "output_tokens: 5\n    weight: 1.0e-9",
            12,
            "applications.chat.weight",
            "greater",
        ),
        (
            "name: small",
            "scheduler: {token_weights: {output: 0}}\nname: small",
            1,
            "scheduler.token_weights.output",
            "greater",
        ),
        ("name: small", "name: [", None, "", ""),
        ("output_tokens: 5", "output_tokens: true", 11, "applications.chat.output_tokens", "true or false"),
        (
            "output_tokens: 5",
            "output_tokens: {uniform: [true, 2]}",
            11,
            "applications.chat.output_tokens.uniform",
            "true or false",
        ),
        (
            "output_tokens: 5",
            "output_tokens: {choice: {5: true}}",
            11,
            "applications.chat.output_tokens.choice",
            "true or false",
        ),
        ("    users: 2", "    users: true", 14, "classes.0.users", "true or false"),
        ("{chat: 1}", "{chat: true}", 16, "classes.0.applications.chat", "true or false"),
        ("name: small", "trace: {rows: true}\nname: small", 1, "trace.rows", "true or false"),
        ("output_tokens: 5", "output_tokens: null", 11, "applications.chat.output_tokens", "exactly one"),
        (
            "output_tokens: 5",
            "output_tokens: {choice: {}}",
            11,
            "applications.chat.output_tokens.choice",
            "at least 1",
        ),
        ("output_tokens: 5", "output_tokens: five", 11, "applications.chat.output_tokens", "not 'five'"),
        ("output_tokens: 5", "output_tokens: 0", 11, "applications.chat.output_tokens", "at least 1"),
        ("    users: 2", "    users: 2\n    calls: 0", 15, "classes.0.calls", "at least 1"),
        ("    users: 2", "    users: 2\n    calls: {uniform: [0, 3]}", 15, "classes.0.calls", "at least 1"),
        (
            "    users: 2",
            "    users: 2\n    calls: {choice: {0: 1, 3: 1}}",
            15,
            "classes.0.calls",
            "at least 1",
        ),
        (
            "{rate_per_s: 1}",
            "\n      start_s: 3\n      stop_s: 2",
            19,
            "classes.0.arrivals.stop_s",
            "after start_s",
        ),
        (
            "{rate_per_s: 1}",
            "{}\nfaults:\n  blind:\n    - start_s: 3\n      stop_s: 3",
            21,
            "faults.blind.0.stop_s",
            "after start_s",
        ),
        ("name: small", "name: small\n[a]: 1", 2, "", "can't name a field"),
        ("name: small", "name: small\n{a: 1}: 1", 2, "", "can't name a field"),
        ("name: small", "name: 2026-13-45", 1, "", "month"),
        ("name: small", "horizon_s: 0x_\nname: small", 1, "", "invalid literal"),
        ("duration_s: 5", "duration_s: \x00", 2, "", "not YAML"),
        ("name: small", "name: " + 2000 * "[", None, "", "nested"),
        ("duration_s: 5", f"duration_s: 1{400 * '0'}", 2, "duration_s", "valid number"),
        ("sigma: 0.5", "sigma: 1000", 10, "applications.chat.input_tokens.lognormal.sigma", "20"),
        ("median: 50", "mu: 800", 10, "applications.chat.input_tokens.lognormal.mu", "100"),
        ("high: 500", "low: 9, high: 5", 10, "applications.chat.input_tokens.lognormal.high", "below low"),
        ("output_tokens: 5", "output_tokens: 1.0e+30", 11, "applications.chat.output_tokens", "1000000000"),
        (
            "output_tokens: 5",
            "output_tokens: {gamma: {mean: 5, cv: 1.0e+200}}",
            11,
            "applications.chat.output_tokens.gamma.cv",
            "100",
        ),
        (
            "output_tokens: 5",
            "output_tokens: 5\n    system_tokens: 100000000000000000000",
            12,
            "applications.chat.system_tokens",
            "1000000000",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, line, field, problem):
    assert old in SCENARIO
    with pytest.raises(InputError) as raised:
        read(tmp_path, SCENARIO.replace(old, new, 1))
    error = raised.value
    assert error.file.endswith("s.yaml")
    if line is not None:
        assert error.line == line
    assert error.field.startswith(field)
    assert problem in str(error)


def test_the_widest_lengths_that_are_taken_can_be_drawn(tmp_path):
    widest = "{lognormal: {mu: 100, sigma: 20, divide: 1.0e-300}}"
    text = SCENARIO.replace("{lognormal: {median: 50, sigma: 0.5, high: 500}}", widest)
    assert read(tmp_path, text).settings.applications["chat"].profile.input_tokens == MOST_TOKENS


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: No such file"):
        read_scenario(tmp_path / "none.yaml")


def test_an_unknown_policy_runs_nothing(tmp_path):
    with pytest.raises(ValueError, match="unknown policy 'LIFO': one of FCFS"):
        experiment(read(tmp_path, SCENARIO), ["FCFS", "LIFO"], [1])


@pytest.mark.parametrize("option", ["--json", "--plot"])
@pytest.mark.parametrize("place", ["none/of/these", "file", "file/below"])
def test_what_cannot_be_written_is_told_before_anything_runs(tmp_path, option, place):
    if (option, place) == ("--json", "file"):
        place = "."
    (tmp_path / "file").write_text("kept")
    (tmp_path / "none").symlink_to(tmp_path / "none")
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO)
    result = CliRunner().invoke(app, ["sim", "run", str(path), option, str(tmp_path / place)])
    assert result.exit_code == 2
    assert f"error: {option}: {tmp_path / place}: " in result.output
    assert "waiting in" not in result.output, "no table: nothing has been run"
    assert (tmp_path / "file").read_text() == "kept"


def test_an_experiment_without_a_policy_is_refused(tmp_path):
    with pytest.raises(InputError, match="policies: at least one is needed of FCFS"):
        experiment(read(tmp_path, SCENARIO), [], [1])


def test_the_command_refuses_an_empty_policy(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO)
    result = CliRunner().invoke(app, ["sim", "run", str(path), "--policy", " ,"])
    assert result.exit_code == 2
    assert "error: policies: at least one is needed" in result.output


def test_the_command_prints_a_table_and_writes_json(tmp_path):
    path, out = tmp_path / "s.yaml", tmp_path / "out.json"
    path.write_text(SCENARIO)
    command = ["sim", "run", str(path), "--policy", "FCFS,FairServe", "--seeds", "2", "--json", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "waiting in" in result.output
    first = out.read_bytes()
    assert b"rank_correlation" in first
    CliRunner().invoke(app, command)
    assert out.read_bytes() == first, "the same seeds give the same bytes"


def test_the_command_says_what_is_wrong_and_writes_nothing(tmp_path):
    path, out = tmp_path / "s.yaml", tmp_path / "out.json"
    path.write_text(SCENARIO.replace("duration_s: 5", "duration_s: soon"))
    result = CliRunner().invoke(app, ["sim", "run", str(path), "--json", str(out)])
    assert result.exit_code == 2
    assert "s.yaml:2: duration_s:" in result.output
    assert not out.exists()
