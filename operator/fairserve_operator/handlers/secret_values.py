"""What is made of the entries of Secrets that objects refer to: digests of credentials, and issuers' keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fairserve_operator.decide.claims import Digests as FoundDigests
from fairserve_operator.decide.jwks import KeySet, KeySource, KeysProblem, known_keys, secret_keys
from fairserve_operator.decide.resources import SecretProblem, SecretRef, credential_digest
from fairserve_operator.handlers.keys import Keyring
from fairserve_operator.handlers.store import Store

#: Where no salt is known: digests then only show whether keys differ.
NO_SALT = "00" * 16


class Digests:
    """Looks up Secret entries and makes them the digests that travel. Secrets that are as they were are not
    digested again.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._salt = ""
        self._known: dict[SecretRef, tuple[Mapping[str, bytes] | None, str | SecretProblem]] = {}

    def under(self, salt: str, refs: frozenset[SecretRef]) -> FoundDigests:
        """The digest of each entry under a salt, or why there is none."""
        known = self._known if salt == self._salt else {}
        self._salt, self._known = salt, {}
        found: dict[SecretRef, str | SecretProblem] = {}
        for ref in refs:
            values = self._store.secret(ref.namespace, ref.name)
            before = known.get(ref)
            if before is None or before[0] is not values:
                before = values, self._digest(ref, salt)
            self._known[ref] = before
            found[ref] = before[1]
        return found

    def _digest(self, ref: SecretRef, salt: str) -> str | SecretProblem:
        entry = secret_value(self._store, ref)
        credential = entry if isinstance(entry, SecretProblem) else entry.decode("latin-1")
        return credential_digest(credential, salt)


def issuer_keys(
    store: Store, keyring: Keyring, sources: Iterable[KeySource], before: Mapping[str, KeySet]
) -> dict[KeySource, KeySet | KeysProblem]:
    """Look up the keys of each source. `before` has those that a pool's document has, by fetched source."""
    return {
        source: known_keys(keyring.found(source), before.get(source))
        if isinstance(source, str)
        else secret_keys(source, secret_value(store, source))
        for source in sources
    }


def secret_value(store: Store, ref: SecretRef) -> bytes | SecretProblem:
    """Look up a Secret entry. Its value has no space around it."""
    values = store.secret(ref.namespace, ref.name)
    if values is None:
        return SecretProblem.SECRET_MISSING
    if ref.key not in values:
        return SecretProblem.KEY_MISSING
    # Headers carry neither line ends nor spaces around a value; `kubectl create secret --from-file` does.
    return values[ref.key].strip() or SecretProblem.EMPTY
