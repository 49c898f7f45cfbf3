"""Which core the tests run on: the plain one, or under `make test-compiled` the compiled one."""

import os

from fairserve.core import errors, scheduler


def test_the_core_under_test_is_the_one_that_was_asked_for():
    plain = os.environ.get("FAIRSERVE_CORE", "plain") == "plain"
    assert scheduler.__file__.endswith(".py") is plain
    assert errors.__file__.endswith(".py"), "a compiled class can't inherit from an exception"
