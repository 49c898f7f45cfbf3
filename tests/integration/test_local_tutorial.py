"""Every command of the first tutorial is run, in order, and prints what the tutorial says."""

from __future__ import annotations

from tests.integration.walkthrough import example, walked
from tests.parts.cache import REPOSITORY


def test_the_first_tutorial(tmp_path):
    with walked(REPOSITORY / "docs" / "tutorials" / "first-steps.md", example("01-two-teams"), tmp_path):
        pass
