"""No example is left out: not of the index, and not of the tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").iterdir() if path.is_dir())


def test_the_index_has_every_example() -> None:
    rows = (ROOT / "examples" / "README.md").read_text().splitlines()
    named = [row.split("](")[1].split(")")[0] for row in rows if row.startswith("| [")]
    assert named == EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_run_by_a_test(name: str) -> None:
    """Or is at least named there as a folder of examples/."""
    named = re.compile(rf'example(s|\w*\()?"?( / )?/?"{name}"|examples/{name}\b', re.IGNORECASE)
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    assert [path.name for path in tests if named.search(path.read_text())]
