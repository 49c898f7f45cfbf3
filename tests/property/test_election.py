"""The election: whatever is late, lost or held up, two never act at one time, and one acts in the end."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from fairserve_operator.decide.leadership import Bid, Election, Lease, Terms

TERMS = Terms(lease_s=10, renew_s=2, look_s=1, margin_s=3, call_s=2)


class Server:
    """Holds one Lease and takes a write only at the version that it holds."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.writes = 0

    def write(self, identity: str, bid: Bid) -> Lease | None:
        if bid.version != (self.lease.version if self.lease else None):
            return None
        self.writes += 1
        self.lease = Lease(str(self.writes), identity, TERMS.lease_s, bid.transitions)
        return self.lease


@dataclass
class Candidate:
    """One operator, with a clock that began at another time."""

    name: str
    offset_s: float
    server: Server
    late: tuple[Bid, float] | None = None  #: a write whose answer is still out, and when it was asked for

    def __post_init__(self) -> None:
        self.election = Election(self.name, TERMS)

    def now(self, true_s: float) -> float:
        return true_s + self.offset_s

    def acts(self, true_s: float) -> bool:
        return self.now(true_s) < self.election.acts_until

    def look(self, true_s: float) -> None:
        self.election.saw(self.server.lease, self.now(true_s))

    def ask(self, true_s: float) -> None:
        bid = self.election.bid(self.now(true_s))
        self.late = None if bid is None else (bid, self.now(true_s))

    def arrive(self, answered: bool) -> None:
        """What was asked for reaches the server only now; its answer may get lost."""
        if self.late is None:
            return
        (bid, asked_at), self.late = self.late, None
        lease = self.server.write(self.name, bid)
        if lease is not None and answered:
            self.election.won(lease, asked_at)


steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["look", "ask", "arrive", "arrive unanswered", "campaign", "resign"]),
        st.sampled_from([0.0, 0.1, 1.0, 2.0, 2.9, 3.1, 6.9, 7.1, 10.0, 60.0]),
    ),
    max_size=60,
)


@given(steps, st.tuples(*[st.floats(-1000, 1000)] * 3))
def test_two_never_act_at_one_time_and_somebody_does_in_the_end(
    story: list[tuple[int, str, float]], offsets: tuple[float, float, float]
) -> None:
    server, true_s = Server(), 0.0
    candidates = [Candidate(name, offset, server) for name, offset in zip("abc", offsets, strict=True)]
    for who, step, pause_s in story:
        candidate = candidates[who]
        match step:
            case "look":
                candidate.look(true_s)
            case "ask":
                candidate.ask(true_s)
            case "arrive" | "arrive unanswered":
                candidate.arrive(answered=step == "arrive")
            case "campaign":
                candidate.look(true_s)
                candidate.ask(true_s)
                candidate.arrive(answered=True)
            case "resign":
                bid = candidate.election.resign()
                if bid is not None and server.lease and bid.version == server.lease.version:
                    server.write("", bid)
        assert sum(each.acts(true_s) for each in candidates) <= 1
        true_s += pause_s
        assert sum(each.acts(true_s) for each in candidates) <= 1

    for candidate in candidates[1:]:
        candidate.late = None
    for _ in range(TERMS.lease_s + 3):
        candidates[0].look(true_s)
        candidates[0].ask(true_s)
        candidates[0].arrive(answered=True)
        true_s += TERMS.look_s
    assert candidates[0].acts(true_s)


def test_who_dies_is_followed_within_fifteen_seconds() -> None:
    server = Server()
    a, b = Candidate("a", 0.0, server), Candidate("b", 500.0, server)
    for second in range(5):
        for each in (a, b):
            each.look(second)
            each.ask(second)
            each.arrive(answered=True)
    assert (a.acts(5), b.acts(5)) == (True, False)  # and now a dies
    second = 4.0
    while not b.acts(second):
        second += TERMS.look_s
        b.look(second)
        b.ask(second)
        b.arrive(answered=True)
    assert second - 4 + TERMS.look_s + TERMS.call_s <= 15
    assert server.lease is not None
    assert (server.lease.holder, server.lease.transitions) == ("b", 1)


def test_who_is_named_by_a_restored_lease_waits_for_the_holder_of_the_later_term() -> None:
    server = Server()
    a, b = Candidate("a", 0.0, server), Candidate("b", 500.0, server)

    def campaign(each: Candidate, second: float) -> None:
        each.look(second)
        each.ask(second)
        each.arrive(answered=True)

    campaign(a, 0)
    campaign(b, 0)
    backup = server.lease
    campaign(b, 20)  # a has not renewed for so long that b takes it
    campaign(a, 20)
    assert (a.acts(20), b.acts(20)) == (False, True)

    server.lease = backup
    for second in range(21, 40):
        campaign(a, second)
        assert not (a.acts(second) and b.acts(second))
    assert a.acts(39)
    assert server.lease is not None
    assert server.lease.transitions == 2
