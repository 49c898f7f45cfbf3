"""Users who were served in full, window by window."""

from __future__ import annotations

from fairserve.sidecar.experience import WINDOW_S, Experience


def test_a_user_who_lost_one_call_was_not_served_in_full_whatever_came_after():
    experience = Experience()
    for user in ("u", "u", "v"):
        experience.seen("a", user)
    experience.lost("a", "v")
    experience.seen("a", "v")
    experience.lost("b", "u")
    assert experience.counts() == {"a": (2, 1), "b": (1, 0)}


def test_a_window_tells_until_the_next_is_over():
    experience = Experience()
    experience.turn(0.0)
    experience.seen("a", "u")
    experience.turn(WINDOW_S - 1)
    assert experience.counts() == {"a": (1, 1)}  # the first is told while it runs
    experience.turn(WINDOW_S)
    experience.lost("a", "u")
    assert experience.counts() == {"a": (1, 1)}
    experience.turn(2 * WINDOW_S)
    assert experience.counts() == {"a": (1, 0)}
    experience.turn(3 * WINDOW_S)
    assert experience.counts() == {}


def test_users_beyond_the_bound_count_for_nobody_and_the_known_still_do():
    experience = Experience(most_users=2)
    for user in ("u", "v", "w"):
        experience.seen("a", user)
    experience.lost("a", "w")
    experience.lost("a", "u")
    assert experience.counts() == {"a": (2, 1)}
    experience.turn(0.0)
    experience.turn(WINDOW_S)
    experience.seen("a", "w")
    experience.turn(2 * WINDOW_S)
    assert experience.counts() == {"a": (1, 1)}
