"""The tests of fairserve; a package so that `python -m tests.parts` works from the repository root."""
