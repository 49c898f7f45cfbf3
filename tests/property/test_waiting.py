"""Of the engine's text nothing changes but the figures of what waits, whatever the text is."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fairserve.engine.waiting import with_waiting

NAMES = ("vllm:num_requests_waiting", "vllm_num_requests_waiting", "vllm:num_requests_waiting_by_reason")
odd_lines = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda name, rest: name.encode() + rest,
        st.sampled_from(NAMES),
        st.one_of(
            st.binary(max_size=30),
            st.text('{}a="\\, 0.1eN#\t\r-', max_size=30).map(str.encode),
            st.integers(0, 99).map(lambda n: b'{engine="0",reason="capacity"} %d' % n),
            st.integers(0, 99).map(lambda n: b'{engine="%d"} %d' % (n % 3, n)),
        ),
    ),
)
ours = st.integers(0, 10**6)
label_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=8)


@given(st.lists(odd_lines, max_size=12).map(b"\n".join), ours)
def test_only_figures_of_what_waits_change(text, ours):
    merged, waiting = with_waiting(text, ours)
    before, after = text.split(b"\n"), merged.split(b"\n")
    assert len(after) == len(before)
    changed = [(was, now) for was, now in zip(before, after, strict=True) if was != now]
    assert len(changed) <= 2
    assert sum(b"by_reason" not in was for was, _ in changed) <= 1
    if waiting is None or ours == 0:
        assert merged == text
    for was, now in changed:
        name = re.match(rb"[ \t]*vllm[:_]num_requests_waiting(_by_reason)?", was)
        assert name is not None
        # One word differs, a number, and what is around it is the same.
        words_before, words_after = re.split(rb"([ \t}])", was), re.split(rb"([ \t}])", now)
        differing = [pair for pair in zip(words_before, words_after, strict=True) if pair[0] != pair[1]]
        assert len(differing) == 1
        assert float(differing[0][1]) == float(differing[0][0]) + ours


@given(
    st.sampled_from(NAMES[:2]),
    st.lists(st.tuples(label_texts, st.integers(0, 1000)), min_size=1, max_size=4, unique_by=lambda e: e[0]),
    ours,
)
def test_well_formed_text_gains_exactly_what_waits_here(name, engines, ours):
    def quoted(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"')

    lines = [f'{name}{{engine="{quoted(label)}"}} {float(count)}' for label, count in engines]
    text = f"# TYPE {name} gauge\n" + "\n".join(lines) + '\nvllm:lora_requests_info{max_lora="4"} 1.0\n'
    merged, waiting = with_waiting(text.encode(), ours)
    assert waiting == sum(count for _, count in engines)
    ((values, lora),) = [
        tuple([sample.value for sample in family.samples] for family in families)
        for families in [list(text_string_to_metric_families(merged.decode()))]
    ]
    assert values == [engines[0][1] + ours, *(count for _, count in engines[1:])]
    assert lora == [1.0]
