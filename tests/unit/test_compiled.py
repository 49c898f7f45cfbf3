"""What the tests run on: plain Python, or under `make test-compiled` the compiled hot path."""

import os

from fairserve.core import errors, scheduler
from fairserve.sidecar import proxy


def test_what_is_under_test_is_what_was_asked_for():
    plain = os.environ.get("FAIRSERVE_CORE", "plain") == "plain"
    assert scheduler.__file__.endswith(".py") is plain
    assert proxy.__file__.endswith(".py") is plain
    assert errors.__file__.endswith(".py"), "a compiled class can't inherit from an exception"
