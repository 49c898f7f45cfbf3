"""The dispatch window."""

import random

import pytest

from fairserve.core import DispatchWindow, EngineSample
from fairserve.core.window import tolerated


def sample(running, waiting=0, **more):
    return EngineSample(running=running, waiting=waiting, kv_use=0.5, **more)


def converge(window, slots, steps=200):
    """An engine with `slots` that always has work offered up to the window."""
    for _ in range(steps):
        inflight = window.size
        window.observe(sample(min(inflight, slots), max(0, inflight - slots)), inflight)
    return window.size


@pytest.mark.parametrize("slots", [1, 8, 100])
def test_it_finds_the_engines_batch_from_below_and_from_above(slots):
    for initial in (1, 200):
        size = converge(DispatchWindow(initial=initial), slots)
        assert slots <= size <= slots + max(2, 0.12 * slots), f"from {initial}"


@pytest.mark.parametrize("slots", [64, 256])
def test_an_engine_that_starts_is_full_within_seconds(slots):
    window, sizes = DispatchWindow(initial=8, maximum=1_000), []
    for _ in range(8):
        inflight = window.size
        sizes.append(inflight)
        window.observe(sample(min(inflight, slots), max(0, inflight - slots)), inflight)
    assert sizes[6] >= slots, "within six samples, at a quarter of a second each"
    assert max(sizes) <= 2 * slots
    assert window.size <= slots + tolerated(slots), "and what was too much is taken back at once"


@pytest.mark.parametrize("slots", [4, 16, 128])
def test_with_calls_on_their_way_few_wait_in_the_engine_and_few_slots_stay_empty(slots):
    """Of 16 calls one is under way between sidecar and engine at the mean, now fewer, now more, and as many
    have just ended: the engine no longer counts them as running, though it had no room for others.
    """
    window, rng = DispatchWindow(initial=8), random.Random(1)

    def some():
        return sum(rng.random() < 1 / 16 for _ in range(slots))

    over = empty = 0
    for number in range(4_200):
        inflight = window.size
        there = inflight - some()
        running, waiting = max(0, min(there, slots)), max(0, there - slots)
        window.observe(sample(max(0, running - some()), waiting), inflight)
        if number >= 200:
            over += waiting > tolerated(running)
            empty += slots - running
    assert over / 4_000 <= 0.05
    assert empty / 4_000 <= 0.015 * slots


@pytest.mark.parametrize("slots", [16, 128])
def test_no_step_back_to_a_known_batch_leaves_more_waiting_than_is_tolerated(slots):
    window = DispatchWindow(initial=slots // 2)
    window.observe(sample(slots, waiting=1), slots + 1)
    for _ in range(1_000):
        inflight = window.size
        window.observe(sample(min(inflight, slots), max(0, inflight - slots)), inflight)
        assert window.size <= slots + tolerated(slots)
    assert window.size > slots


def test_too_many_waiting_never_widens_it():
    window = DispatchWindow(initial=17)
    window.observe(sample(16, waiting=3), 19)  # It was wider, and what went then is still there.
    assert window.size <= 17


def test_it_finds_a_batch_that_has_become_larger():
    window = DispatchWindow(initial=8)
    assert converge(window, 16) <= 18
    assert 64 <= converge(window, 64) <= 71


def test_it_does_not_grow_while_nothing_waits_for_it():
    window = DispatchWindow(initial=8)
    for _ in range(100):
        window.observe(sample(running=2), inflight=2)
    assert window.size == 8


def test_preemption_shrinks_it():
    window = DispatchWindow(initial=50)
    window.observe(sample(50, preemptions=3.0), 50)
    before = window.size
    window.observe(sample(50, preemptions=4.0), 50)
    assert window.size < before


def test_calls_in_flight_must_fit_the_kv_pool():
    window = DispatchWindow(initial=8)
    window.observe(sample(1, kv_tokens=1_000), 1)
    assert window.admits(1, 999)
    assert not window.admits(1, 1_000)
    assert window.admits(0, 5_000), "an idle engine always takes one"


def test_it_admits_up_to_its_size():
    window = DispatchWindow(initial=4)
    assert window.admits(3, 0)
    assert not window.admits(4, 0)
    with pytest.raises(ValueError, match="initial window"):
        DispatchWindow(initial=0)


def test_an_engine_that_refused_a_call_is_not_asked_for_more_for_a_while():
    window = DispatchWindow(maximum=64, initial=32)
    window.refused(10)
    assert window.size == 10
    full = EngineSample(running=10, waiting=0, kv_use=0.1)
    for _ in range(window.PATIENCE - 1):
        window.observe(full, inflight=10)
    assert window.size == 10
    sizes = []
    for _ in range(40 * window.PATIENCE):
        window.observe(full, inflight=64)
        sizes.append(window.size)
    assert sizes[0] == 11
    assert sizes == sorted(sizes)
    assert sizes[-1] == 64


def test_an_idle_engine_that_refuses_is_asked_for_one_call_at_a_time():
    window = DispatchWindow(initial=8)
    window.refused(0)
    assert window.size == 1
    assert window.admits(0, 0)
    assert not window.admits(1, 0)


def test_an_overestimated_call_does_not_stop_all_others():
    """Its body says 50,000 tokens, and the pool that would hold 16,000 is nearly empty."""
    window = DispatchWindow(initial=8)
    window.observe(sample(1, kv_tokens=16_000), 1)
    assert not window.admits(1, 50_000), "half the pool is in use, it may be as big as it says"
    nearly_empty = EngineSample(running=1, waiting=0, kv_use=0.01, kv_tokens=16_000)
    window.observe(nearly_empty, 1)
    assert window.admits(1, 50_000)
    assert not window.admits(2, 50_100), "one more for each look at the pool"
    window.observe(nearly_empty, 2)
    assert window.admits(2, 50_100)
    assert not window.admits(8, 50_100), "the window holds all the same"
