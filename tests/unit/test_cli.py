"""The command without what its rooms need."""

import inspect
import subprocess
import sys
from typing import get_args

import pytest
from typer.testing import CliRunner

from fairserve import cli

#: Imports the command in a process where one library can't be imported.
_WITHOUT = """
import sys
sys.modules[{module!r}] = None
sys.argv = ["fairserve", *{arguments!r}]
from fairserve.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("watchfiles", ["up", "-f", "."]),
        ("uvloop", ["sidecar", "--engine=http://x:1", "--control-token-file=x"]),
    ],
)
def test_a_missing_library_is_named_with_what_installs_it(module, arguments):
    script = _WITHOUT.format(module=module, arguments=arguments)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"fairserve: this command needs {module}")
    assert "pip install 'fairserve[" in ended.stderr


def test_spans_without_their_extra_say_what_installs_it():
    arguments = ["sidecar", "--engine=http://x:1", "--control-token-file=x", "--otlp-endpoint=http://x:1"]
    script = _WITHOUT.format(module="opentelemetry.sdk", arguments=arguments)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "--otlp-endpoint needs opentelemetry.sdk" in ended.stderr
    assert "pip install 'fairserve[otel]'" in ended.stderr


def test_a_sidecar_without_spans_imports_nothing_of_them():
    script = _WITHOUT.format(
        module="opentelemetry", arguments=["sidecar", "--engine=http://x:1", "--control-token-file=/nowhere"]
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "--control-token-file" in ended.stderr, "it comes as far as to read the token"
    assert "opentelemetry" not in ended.stderr


_FLAGS = inspect.signature(cli.sidecar, eval_str=True).parameters
#: How a number's help says what it counts.
_UNITS = ("seconds", "bytes", "calls", "any whole number")


@pytest.mark.parametrize("name", _FLAGS)
def test_each_flag_of_the_sidecar_says_what_it_counts_and_its_default(name):
    kind, option = get_args(_FLAGS[name].annotation)
    default = _FLAGS[name].default
    assert len(option.help) > 20, "it is explained"
    assert option.help.endswith(".")
    # A default that is a value is shown with the flag; what None means must be told.
    assert ("Default:" in option.help) == (default is None)
    if {int, float} & {kind, *get_args(kind)}:
        assert any(unit in option.help.lower() for unit in _UNITS), "a number has a unit"


def test_the_sidecars_help_shows_every_flag_and_its_default():
    wide = {"COLUMNS": "300", "TERM": "dumb"}
    shown = CliRunner().invoke(cli.app, ["sidecar", "--help"], env=wide).output
    for name, flag in _FLAGS.items():
        assert f"--{name.replace('_', '-')} " in shown
        if flag.default not in (None, inspect.Parameter.empty):
            default = flag.default if flag.default is not False else f"no-{name.replace('_', '-')}"
            assert f"[default: {default}]" in shown


def test_the_version_needs_nothing():
    script = _WITHOUT.format(module="uvloop", arguments=["--version"])
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.strip().count(".") == 2
