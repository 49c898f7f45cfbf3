"""The command without what its rooms need."""

import subprocess
import sys

import pytest

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


def test_the_version_needs_nothing():
    script = _WITHOUT.format(module="uvloop", arguments=["--version"])
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.strip().count(".") == 2
