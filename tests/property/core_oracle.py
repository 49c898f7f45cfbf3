"""The max-min fair (fluid) allocation that schedulers are measured against.

A fluid serves everybody at once, in proportion to weights, and passes on what somebody leaves. Written as
plainly as possible, and tested on its own: it must not share a mistake with the scheduler.
"""


def max_min(demands, weights, capacity):
    """What each of `demands` gets of `capacity`: all of its demand, or weight times a common level."""
    given = dict.fromkeys(demands, 0.0)
    hungry = {name for name, demand in demands.items() if demand > 0.0}
    left = min(capacity, sum(demands.values()))
    while hungry and left > 1e-12:
        share = left / sum(weights[name] for name in hungry)
        full = {n for n in hungry if demands[n] - given[n] <= share * weights[n]}
        if not full:
            for name in hungry:
                given[name] += share * weights[name]
            return given
        for name in full:
            left -= demands[name] - given[name]
            given[name] = demands[name]
        hungry -= full
    return given
