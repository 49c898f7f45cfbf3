"""Members ordered by counter: the two-lane priority queue that weighted service counters need.

A counter rises with every charge and falls a little when a prediction is settled. Rises are cheap: a
member's old entry is a lower bound and is moved when it reaches the top. Falls push a new entry. Each
member has one live entry, told from older ones by its version, so an operation costs O(log n) amortised
and memory stays within a constant factor of the members.
"""

from __future__ import annotations

import heapq
from typing import Any, Generic, TypeVar


class Member:
    """Something with a counter. While it waits in a lane only `charge` may change the counter."""

    __slots__ = ("counter", "lane", "version")

    def __init__(self) -> None:
        self.counter = 0.0
        #: The queue it waits in, None while it has nothing waiting.
        self.lane: CounterQueue[Any] | None = None
        #: Which entry of the queue is the live one.
        self.version = 0

    def charge(self, amount: float) -> None:
        """Add to the counter; a negative amount gives back."""
        self.counter += amount
        if amount < 0.0 and self.lane is not None:
            self.lane.push(self)


M = TypeVar("M", bound=Member)


class CounterQueue(Generic[M]):
    """Members by counter, smallest first; ties in order of arrival."""

    #: Dead entries are swept when they outnumber live ones by this many.
    SLACK = 64

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int, M]] = []
        self._size = 0
        self._order = 0

    def __len__(self) -> int:
        return self._size

    def add(self, member: M) -> None:
        """Let a member in. It must not be in a queue."""
        assert member.lane is None, "a member waits in one lane at a time"
        member.lane = self
        self._size += 1
        self.push(member)

    def remove(self, member: M) -> None:
        """Let a member out."""
        assert member.lane is self, "the member waits elsewhere"
        member.lane = None
        member.version += 1
        self._size -= 1
        self._sweep()

    def push(self, member: M) -> None:
        """Make an entry at the member's present counter the live one."""
        member.version += 1
        self._order += 1
        heapq.heappush(self._heap, (member.counter, self._order, member.version, member))
        self._sweep()

    def first(self) -> M | None:
        """The member with the smallest counter; None if there is none."""
        heap = self._heap
        while heap:
            counter, order, version, member = heap[0]
            if version != member.version:
                heapq.heappop(heap)
            elif counter < member.counter:
                heapq.heapreplace(heap, (member.counter, order, version, member))
            else:
                return member
        return None

    def _sweep(self) -> None:
        if len(self._heap) > 2 * self._size + self.SLACK:
            self._heap = [entry for entry in self._heap if entry[2] == entry[3].version]
            heapq.heapify(self._heap)


class Lanes(Generic[M]):
    """Members whose next call continues an interaction, and members whose next call begins one.

    Both are ordered by counter; a continuation may run ahead of its turn by a bounded head start, so that a
    stream of continuations can't starve those who only begin.
    """

    def __init__(self) -> None:
        self.continuing: CounterQueue[M] = CounterQueue()
        self.beginning: CounterQueue[M] = CounterQueue()
        #: The member that left last: its counter is the floor while nobody waits.
        self._last: M | None = None

    def __len__(self) -> int:
        return len(self.continuing) + len(self.beginning)

    def place(self, member: M, *, waiting: bool, continues: bool) -> None:
        """Put a member where it belongs now; lift it when it becomes active, so that no credit is saved by
        idling: its counter becomes at least the smallest among the active ones.
        """
        lane = (self.continuing if continues else self.beginning) if waiting else None
        if member.lane is lane:
            return
        if member.lane is None:
            member.counter = max(member.counter, self.floor())
        else:
            member.lane.remove(member)
        if lane is None:
            self._last = member
        else:
            lane.add(member)

    def floor(self) -> float:
        """V: the smallest counter among the active members, or that of the last one to leave."""
        heads = [m.counter for m in (self.continuing.first(), self.beginning.first()) if m is not None]
        if heads:
            return min(heads)
        return self._last.counter if self._last is not None else 0.0

    def first(self, head_start: float) -> M | None:
        """Whose turn it is. `head_start` (Δ) is in units of the counter."""
        begins, continues = self.beginning.first(), self.continuing.first()
        if begins is None or continues is None:
            return begins or continues
        return continues if continues.counter - head_start <= begins.counter else begins
