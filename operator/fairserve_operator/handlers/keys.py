"""Token issuers' public keys: who needs which, fetched now and again, kept while that fails.

Sidecars fetch nothing: they get keys in their document. A key set that changed makes a new document, one that
can't be had any more changes nothing but a message.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Set
from dataclasses import dataclass, replace

from fairserve_operator.clients.jwks import Unfetched
from fairserve_operator.decide.jwks import CLUSTER, KeySet, KeysProblem, read_jwks
from fairserve_operator.errors import ApiServerError
from fairserve_operator.handlers.contracts import Cluster, KeySets
from fairserve_operator.handlers.tasks import Tasks, wait_for_event

_log = logging.getLogger(__name__)

#: Key sets fetched at one time.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class KeyPace:
    """Times in seconds."""

    refresh_s: float = 300.0
    first_retry_s: float = 2.0
    last_retry_s: float = 60.0


@dataclass(slots=True)
class _Entry:
    found: KeySet | KeysProblem | None = None
    due: float = 0.0
    failures: int = 0
    fetching: bool = False


class Keyring:
    """What is known of each source of keys that a namespace wants."""

    def __init__(self) -> None:
        self.new = asyncio.Event()  #: set when a source is wanted that nobody wanted before
        self._wanted: dict[str, frozenset[str]] = {}
        self._entries: dict[str, _Entry] = {}

    def want(self, namespace: str, sources: Set[str]) -> None:
        """Say which sources a namespace needs, all of them."""
        self._wanted[namespace] = frozenset(sources)
        for source in sources - self._entries.keys():
            self._entries[source] = _Entry()
            self.new.set()
        for source in self._entries.keys() - frozenset().union(*self._wanted.values()):
            del self._entries[source]

    def found(self, source: str) -> KeySet | KeysProblem | None:
        """What is known; None before the first answer."""
        entry = self._entries.get(source)
        return None if entry is None else entry.found

    def due(self, now: float) -> list[str]:
        """The sources to be fetched now; they are not due again before their answer is `put`."""
        sources = [
            source for source, entry in self._entries.items() if not entry.fetching and entry.due <= now
        ]
        for source in sources:
            self._entries[source].fetching = True
        return sources

    def next_due(self) -> float | None:
        """When the next one is due; None if none is waited for."""
        return min((entry.due for entry in self._entries.values() if not entry.fetching), default=None)

    def put(
        self, source: str, answer: KeySet | KeysProblem, now: float, pace: KeyPace, spread: float
    ) -> frozenset[str]:
        """Take an answer; returns the namespaces for which anything changed by it.

        After a failure the last good keys stay. `spread` stretches the time until it is fetched again.
        """
        entry = self._entries.get(source)
        if entry is None:
            return frozenset()
        before, entry.fetching = entry.found, False
        if isinstance(answer, KeySet):
            entry.failures, entry.found, pause_s = 0, answer, pace.refresh_s
        else:
            entry.failures += 1
            entry.found = replace(before, problem=answer.message) if isinstance(before, KeySet) else answer
            pause_s = min(pace.first_retry_s * 2.0 ** min(entry.failures - 1, 30), pace.last_retry_s)
        entry.due = now + pause_s * spread
        if entry.found == before:
            return frozenset()
        return frozenset(namespace for namespace, sources in self._wanted.items() if source in sources)


class KeyRefresh:
    """Fetches what a keyring wants; `changed` is called with each namespace that must be compiled anew."""

    def __init__(
        self,
        keyring: Keyring,
        key_sets: KeySets,
        cluster: Cluster,
        tasks: Tasks,
        rng: random.Random,
        changed: Callable[[str], None],
        pace: KeyPace = KeyPace(),
    ) -> None:
        self._keyring = keyring
        self._key_sets = key_sets
        self._cluster = cluster
        self._tasks = tasks
        self._rng = rng
        self._changed = changed
        self._pace = pace
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Fetch for ever."""
        loop = asyncio.get_running_loop()
        while True:
            for source in self._keyring.due(loop.time()):
                self._tasks.start(self._refresh(source), "fetch keys")
            due = self._keyring.next_due()
            pause_s = self._pace.last_retry_s if due is None else max(due - loop.time(), 0.0)
            await wait_for_event(self._keyring.new, min(pause_s, self._pace.last_retry_s))

    async def _refresh(self, source: str) -> None:
        async with self._slots:
            answer = await (self._of_cluster() if source == CLUSTER else self._of_issuer(source))
        if isinstance(answer, KeysProblem):
            _log.warning("token issuers' keys: %s", answer.message)
        now, spread = asyncio.get_running_loop().time(), self._rng.uniform(0.9, 1.1)
        for namespace in self._keyring.put(source, answer, now, self._pace, spread):
            self._changed(namespace)

    async def _of_issuer(self, url: str) -> KeySet | KeysProblem:
        answer = await self._key_sets.fetch(url)
        if isinstance(answer, Unfetched):
            return KeysProblem("KeysUnavailable", answer.problem)
        return _of(url, read_jwks(answer))

    async def _of_cluster(self) -> KeySet | KeysProblem:
        try:
            issuer, data = await self._cluster.issuer_keys()
        except ApiServerError as problem:
            return KeysProblem("KeysUnavailable", str(problem))
        keys = _of("the cluster", read_jwks(data))
        if isinstance(keys, KeySet) and not issuer:
            return KeysProblem("KeysUnavailable", "the cluster does not say who issues its tokens")
        return replace(keys, issuer=issuer) if isinstance(keys, KeySet) else keys


def _of(place: str, keys: KeySet | KeysProblem) -> KeySet | KeysProblem:
    return replace(keys, message=f"{place}: {keys.message}") if isinstance(keys, KeysProblem) else keys
