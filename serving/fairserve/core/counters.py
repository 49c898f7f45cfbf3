"""Members ordered by counter: the priority queue that weighted service counters need.

Counters are whole units, so that charges add up exactly under any interleaving. A counter rises with every
charge and falls a little when a prediction is settled. One heap orders members by the place of their next
call, which may be ahead of their counter by a head start; the other by counter alone, and is asked only when
somebody enters while one with a head start comes first. Rises are lazy: an entry of a heap is a lower bound,
and is moved when it reaches the top. Falls push a new entry. A member's live entries are those whose numbers
it names; others are dropped when they reach the top, or all at once when they outnumber the live ones. So an
operation costs O(log n) amortised and memory stays within a constant factor of the members.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Generic, TypeVar

#: Place or counter, number, member.
Entry = tuple[int, int, Any]


class Member:
    """Something with a counter."""

    __slots__ = ("continuing", "counter", "entry", "low", "low_entry", "place")

    def __init__(self) -> None:
        #: Service had, in units divided by its weight.
        self.counter = 0
        #: The number of its live entry in the heap of places, 0 while nothing of it waits, and where that is:
        #: never above its place.
        self.entry = 0
        self.place = 0
        #: The same in the heap of counters.
        self.low_entry = 0
        self.low = 0
        #: How many of its waiting calls continue an interaction.
        self.continuing = 0


M = TypeVar("M", bound=Member)


class CounterQueue(Generic[M]):
    """Members that wait, smallest counter first; ties in the order in which they came.

    A member whose next call continues an interaction counts as if it had had `head_start` units less, so that
    it may run ahead of its turn by that much and no more.
    """

    __slots__ = ("_counters", "_heap", "_last", "_order", "_size", "base", "head_start")

    #: Dead entries are swept when they outnumber live ones by this many.
    SLACK = 64

    def __init__(self, head_start: int) -> None:
        self.head_start = head_start
        #: The floor before anybody has left.
        self.base = 0
        self._heap: list[Entry] = []
        self._counters: list[Entry] = []
        self._size = 0
        self._order = 0
        #: The member that left last: its counter is the floor while nobody waits.
        self._last: M | None = None

    def enter(self, member: M) -> None:
        """Let a member in that has become active, and lift it: its counter becomes at least the floor, so
        that no credit is saved by idling.
        """
        floor = self.floor()
        if member.counter < floor:
            member.counter = floor
        self._size += 1
        self._push(member, self._place(member))
        self._push_low(member)

    def come_back(self, member: M) -> None:
        """Let a member in that left for a call which is put back: it did not idle, so it is not lifted."""
        self._size += 1
        self._push(member, self._place(member))
        self._push_low(member)

    def leave(self, member: M) -> None:
        """Let a member out that has nothing waiting any more."""
        member.entry = member.low_entry = 0
        self._size -= 1
        self._last = member
        self._sweep()

    def lower(self, member: M) -> None:
        """A waiting member's place may have moved forward: its counter fell, or it has a head start now."""
        if not member.entry:
            return
        place = self._place(member)
        if place < member.place:
            self._push(member, place)
            self._sweep()
        if member.counter < member.low:
            self._push_low(member)
            self._sweep()

    def first(self) -> M | None:
        """The member whose turn it is; None if none waits."""
        heap, head_start = self._heap, self.head_start
        while heap:
            known, number, waiting = heap[0]
            member: M = waiting
            if member.entry != number:
                heappop(heap)
                continue
            place = member.counter - head_start if member.continuing else member.counter
            if place <= known:
                return member
            member.place = place
            heapreplace(heap, (place, number, member))
        return None

    def floor(self) -> int:
        """V: the smallest counter among those that wait; while nobody does, that of the last one to leave."""
        first = self.first()
        if first is None:
            return self._last.counter if self._last is not None else self.base
        if not first.continuing:
            return first.counter  # without a head start nobody's counter is below its place
        heap = self._counters
        while heap:
            known, number, waiting = heap[0]
            member: M = waiting
            if member.low_entry != number:
                heappop(heap)
                continue
            counter = member.counter
            if counter <= known:
                return counter
            member.low = counter
            heapreplace(heap, (counter, number, member))
        raise AssertionError("who waits has no entry among the counters")

    def reset(self, head_start: int) -> None:
        """Order everything anew under another head start."""
        self.head_start = head_start
        live = [member for _, number, member in self._heap if member.entry == number]
        self._heap, self._counters = [], []
        for member in live:
            self._push(member, self._place(member))
            self._push_low(member)

    def check(self) -> None:
        """Assert what the heaps promise."""
        places = [entry for entry in self._heap if entry[2].entry == entry[1]]
        counters = [entry for entry in self._counters if entry[2].low_entry == entry[1]]
        assert len(places) == len(counters) == self._size, "a waiting member has no entry"
        for place, _, member in places:
            assert place == member.place <= self._place(member), "an entry is above its place"
        for low, _, member in counters:
            assert low == member.low <= member.counter, "an entry is above its counter"
        most = 2 * self._size + self.SLACK
        assert max(len(self._heap), len(self._counters)) <= most, "dead entries pile up"

    def _place(self, member: M) -> int:
        return member.counter - self.head_start if member.continuing else member.counter

    def _push(self, member: M, place: int) -> None:
        self._order = number = self._order + 1
        member.entry, member.place = number, place
        heappush(self._heap, (place, number, member))

    def _push_low(self, member: M) -> None:
        self._order = number = self._order + 1
        member.low_entry, member.low = number, member.counter
        heappush(self._counters, (member.counter, number, member))

    def _sweep(self) -> None:
        most = 2 * self._size + self.SLACK
        if len(self._heap) > most:
            self._heap = [entry for entry in self._heap if entry[2].entry == entry[1]]
            heapify(self._heap)
        if len(self._counters) > most:
            self._counters = [entry for entry in self._counters if entry[2].low_entry == entry[1]]
            heapify(self._counters)
