"""Shows the calls that wait in the sidecar where others look for calls that wait: in vLLM's own figure.

The dispatch window keeps vLLM's queue near empty, so that whoever steers by `vllm:num_requests_waiting` (an
endpoint picker, KEDA, an HPA) would take a pod with a long queue for an idle one. What waits with us is added
to the family's first series, because an endpoint picker that finds several, one for each data-parallel
engine, reads the first, and a sum counts it once. vLLM says that its figures by reason add up to that one, so
it is added to the same engine's `capacity` too: for want of that it waits. Nothing else of the text changes,
and a family that isn't there is not made up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final

#: In each line that is of interest; looking for it takes a tenth of the time that the expression takes.
_NAME: Final = b"num_requests_waiting"
#: The blanks are written so that no line, however odd, is gone over more than a few times.
_LINE: Final = re.compile(
    rb"[ \t]*(vllm[:_]num_requests_waiting)(_by_reason)?"
    rb'(?:[ \t]*\{((?:[^"}\n]|"(?:[^"\\\n]|\\.)*")*)\}[ \t]*|[ \t]+)([^\s{#]+)(?=\s|\Z)'
)
_LABEL: Final = re.compile(rb'(?:^|,)[ \t]*([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\\n]|\\.)*)"')
_CAPACITY: Final = {b"reason": b"capacity"}


def with_waiting(text: bytes, ours: int) -> tuple[bytes, float | None]:
    """The engine's `/metrics` text with `ours` more calls waiting, and how many wait inside the engine by its
    own word, over all its data-parallel engines; None where it doesn't say.
    """
    found = [(match, _number(match[4])) for match in _lines(text)]
    readable = [(match, number) for match, number in found if number is not None]
    totals = [(match, number) for match, number in readable if not match[2]]
    if not totals:
        return text, None
    first, number = totals[0]
    waiting = math.fsum(each for match, each in totals if match[1] == first[1])
    if ours <= 0:
        return text, waiting
    changes = [(first, number)]
    labels = _labels(first) | _CAPACITY
    changes += [each for each in readable if each[0][2] and _labels(each[0]) == labels][:1]
    for match, was in sorted(changes, key=lambda change: change[0].start(), reverse=True):
        text = text[: match.start(4)] + repr(was + ours).encode() + text[match.end(4) :]
    return text, waiting


def _lines(text: bytes) -> Iterator[re.Match[bytes]]:
    at = text.find(_NAME)
    while at >= 0:
        match = _LINE.match(text, text.rfind(b"\n", 0, at) + 1)
        if match is not None:
            yield match
        end = text.find(b"\n", at)
        at = text.find(_NAME, end) if end >= 0 else -1


def _labels(match: re.Match[bytes]) -> dict[bytes, bytes]:
    return dict(_LABEL.findall(match[3] or b""))


def _number(text: bytes) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
