"""Which trace a call is part of."""

import pytest
from opentelemetry.trace import get_current_span

from fairserve.sidecar.messages import Request
from fairserve.sidecar.spans import caller_context

TRACE, PARENT = "ab" * 16, "cd" * 8
VALID = f"00-{TRACE}-{PARENT}-01".encode()


def parent(*headers: tuple[bytes, bytes]):
    request = Request(b"POST", b"/v1/completions", list(headers), b"")
    return get_current_span(caller_context(request)).get_span_context()


def test_the_callers_span_is_the_parent():
    found = parent((b"host", b"x"), (b"traceparent", VALID))
    assert found.is_remote
    assert (f"{found.trace_id:032x}", f"{found.span_id:016x}") == (TRACE, PARENT)


def test_a_state_in_several_lines_is_one():
    states = [(b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    assert dict(parent((b"traceparent", VALID), *states).trace_state) == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    "values",
    [
        (),
        (b"",),
        (b"\xff\xfe",),
        (VALID.replace(b"ab", b"00"),),
        (VALID.replace(b"cd", b"00"),),
        (VALID.replace(b"00-", b"ff-", 1),),
        (VALID, VALID),
    ],
)
def test_without_one_valid_parent_a_wait_is_a_trace_of_its_own(values):
    assert not parent(*((b"traceparent", value) for value in values)).is_valid
