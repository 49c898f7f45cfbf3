"""The engine's metrics and ours on one page, and what writing it costs."""

from __future__ import annotations

import pytest

from fairserve.sidecar.metrics_page import MetricsPage

ENGINE = b'vllm:num_requests_waiting{engine="0"} 1.0\n'


class Rig:
    """Our text costs `cost_s` seconds of a core and counts how often it was written."""

    def __init__(self, cost_s: float) -> None:
        self.now = self.spent = 100.0
        self.written = 0
        self.queued = 4
        self.cost_s = cost_s
        self.page = MetricsPage(self._write, lambda: self.queued, lambda: self.now, lambda: self.spent)

    def _write(self) -> bytes:
        self.spent += self.cost_s
        self.written += 1
        return b"ours %d\n" % self.written


def test_page():
    assert Rig(0.0).page.text(ENGINE) == (
        b'vllm:num_requests_waiting{engine="0"} 5.0\n'
        b"# HELP fairserve_engine_requests_waiting Calls that wait inside the engine, by its own word.\n"
        b"# TYPE fairserve_engine_requests_waiting gauge\n"
        b"fairserve_engine_requests_waiting 1.0\n"
        b"ours 1\n"
    )


@pytest.mark.parametrize("silent", [b"", b"vllm:num_requests_running 1.0\n", b"<html>"])
def test_nothing_is_made_up_for_an_engine_that_does_not_say(silent):
    text = Rig(0.0).page.text(silent)
    assert text == silent.rstrip(b"\n") + (b"\n" if silent else b"") + b"ours 1\n"


@pytest.mark.parametrize(("cost_s", "written"), [(0.0, 512), (2**-9, 171), (2**-5, 13), (9.0, 8)])
def test_reader_that_asks_64_times_a_second_makes_us_write_as_often_as_is_cheap(cost_s, written):
    rig = Rig(cost_s)
    for step in range(512):
        rig.now = 100.0 + step / 64
        rig.queued = step
        # What waits is always as of now.
        assert f"}} {step + 1.0}\n".encode() in rig.page.text(ENGINE)
    assert rig.written == written
