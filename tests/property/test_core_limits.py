"""A sliding window decides as a log of all admissions would, and holds only what counts."""

from hypothesis import given
from hypothesis import strategies as st

from fairserve.core.limits import Window, until
from fairserve.core.settings import Limit

WINDOW_S = 10.0


@given(st.integers(1, 6), st.lists(st.sampled_from([0.0, 0.5, 3.0, 9.75, 10.0, 25.0]), max_size=60))
def test_a_window_decides_as_a_whole_log_would(count, pauses):
    window, log, now = Window(Limit(count, WINDOW_S)), [], 0.0
    for pause in pauses:
        now += pause
        counted = [at for at in log if at + WINDOW_S > now]
        expected = 0.0 if len(counted) < count else until(counted[-count] + WINDOW_S, now)
        assert window.retry_after(now) == expected
        assert window.remaining(now) == count - min(len(counted), count)
        assert window.reset_s(now) == (counted[-count:][0] + WINDOW_S - now if counted else 0.0)
        window.admit(now)  # whether or not it is within: then too the newest decide
        log.append(now)
        assert window.admitted == tuple(sorted(window.admitted))


def test_a_generous_limit_costs_what_is_used_of_it():
    window = Window(Limit(1_000_000, WINDOW_S))
    for second in range(5_000):
        window.admit(float(second))
    assert len(window.admitted) == 10
    for n in range(40):
        window.admit(5_000.0 + n / 100)
    assert len(window.admitted) == 49
