"""Which number a configuration gets, and into which number an object was compiled.

A pool's generation rises exactly when its content changes, or when a sidecar already runs a higher one
(because the boot Secret was lost, restored from a backup, or not written before the operator died): sidecars
refuse what is older than theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fairserve_operator.decide.resources import ObjectKey


def next_generation(
    stored_hash: str | None, stored_generation: int, new_hash: str, highest_seen_on_sidecars: int = 0
) -> int:
    """The generation under which content `new_hash` goes out.

    `stored_*` describe the boot Secret (None and 0 where there is none). A sidecar that runs the stored
    generation with other content (it answers 409 with another hash) counts as one generation higher.
    """
    if stored_hash == new_hash and stored_generation > 0 and stored_generation >= highest_seen_on_sidecars:
        return stored_generation
    return max(stored_generation, highest_seen_on_sidecars) + 1


def newest(stored: tuple[int, str | None], aimed: tuple[int, str | None]) -> tuple[int, str | None]:
    """The later of two generations with its hash, no hash where the same number stands for two contents."""
    if stored[0] == aimed[0] and stored[1] != aimed[1]:
        return stored[0], None
    return max(stored, aimed, key=lambda generation_hash: generation_hash[0])


@dataclass(frozen=True, slots=True)
class Entry:
    """What an object put into a configuration, and the first generation of the pool that has it."""

    part: str  #: identifies the content: `Compiled.parts`
    generation: int


def entered(
    before: Mapping[ObjectKey, Entry], parts: Mapping[ObjectKey, str], generation: int
) -> dict[ObjectKey, Entry]:
    """Since which generation of the pool each object is in as it is now.

    An object whose part is unchanged keeps its generation, so that a change of one Tenant does not make
    ten thousand others wait for acknowledgement. After a restart nothing is known (`before` is empty) and
    all enter at the current one.
    """
    return {
        key: known if (known := before.get(key)) and known.part == part else Entry(part, generation)
        for key, part in parts.items()
    }
