"""Whether the benchmark of many pools notices a pool that was not evaluated in each interval."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench.operator_overload import Evaluated

EACH = [101.0 + 5.0 * number for number in range(8)]


def evaluated(*told: Sequence[float]) -> Evaluated:
    return Evaluated(100.0, 140.0, {}, {f"pool-{number}": each for number, each in enumerate(told)})


def test_pools_that_are_told_in_each_interval_pass() -> None:
    evaluated(EACH, [at + 3.5 for at in EACH]).require_each(5.0)


@pytest.mark.parametrize(
    "told",
    [
        [],
        [at for at in EACH if at != 116.0],
        [100.0 + number for number in range(8)],
        [101.0 + 7.2 * number for number in range(6)],
        [at + 40.0 for at in EACH],
    ],
    ids=["never", "once left out", "soon done", "too slowly", "outside"],
)
def test_one_pool_that_was_left_out_is_named(told: Sequence[float]) -> None:
    with pytest.raises(RuntimeError, match="pool pool-1: told"):
        evaluated(EACH, told).require_each(5.0)
