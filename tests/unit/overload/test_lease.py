"""A sidecar's memory of the operator's word."""

from __future__ import annotations

import pytest

from fairserve.overload.lease import LeaseState, OverloadLease, OverloadSource
from fairserve.overload.settings import OnStale


def test_nobody_has_spoken_yet() -> None:
    state = OverloadLease(30.0, OnStale.ARM).describe(100.0)
    assert (state.armed, state.source, state.remaining_s) == (False, OverloadSource.NONE, 30.0)


@pytest.mark.parametrize(
    ("on_stale", "armed"), [(OnStale.HOLD, False), (OnStale.ARM, True), (OnStale.DISARM, False)]
)
def test_without_an_operator_on_stale_decides(on_stale: OnStale, armed: bool) -> None:
    lease = OverloadLease(30.0, on_stale)
    assert not lease.armed(100.0)
    assert not lease.armed(129.9)
    state = lease.describe(130.0)
    assert (state.armed, state.source, state.remaining_s) == (armed, OverloadSource.STALE, 0.0)
    assert state.reason == f"the operator has never been heard; onStale is {on_stale.value}"


def test_the_word_holds_for_its_lease() -> None:
    lease = OverloadLease(30.0, OnStale.DISARM)
    lease.renew(armed=True, lease_s=10.0, now=0.0, reason="wait is 4")
    assert lease.describe(9.0) == LeaseState(True, OverloadSource.OPERATOR, "wait is 4", 1.0)
    assert not lease.armed(10.0)
    assert lease.describe(10.0).source is OverloadSource.STALE


@pytest.mark.parametrize("word", [True, False])
@pytest.mark.parametrize("on_stale", list(OnStale))
def test_after_the_lease_on_stale_decides(on_stale: OnStale, word: bool) -> None:
    lease = OverloadLease(30.0, on_stale)
    lease.renew(word, 10.0, 0.0)
    expected = {OnStale.HOLD: word, OnStale.ARM: True, OnStale.DISARM: False}[on_stale]
    assert lease.armed(10.0) == expected


def test_a_new_word_replaces_the_old() -> None:
    lease = OverloadLease(30.0, OnStale.ARM)
    lease.renew(armed=True, lease_s=10.0, now=0.0)
    lease.renew(armed=False, lease_s=10.0, now=5.0)
    assert not lease.armed(14.0)
    lease.renew(armed=False, lease_s=10.0, now=20.0)
    assert not lease.armed(20.0)


def test_configure_moves_the_first_wait_but_no_running_lease() -> None:
    waiting, leased = OverloadLease(30.0, OnStale.HOLD), OverloadLease(30.0, OnStale.HOLD)
    waiting.describe(0.0)
    leased.renew(armed=False, lease_s=20.0, now=0.0)
    for lease in (waiting, leased):
        lease.configure(5.0, OnStale.ARM)
    assert waiting.armed(5.0)
    assert not leased.armed(19.0)
    assert leased.armed(20.0)
