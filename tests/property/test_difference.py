"""The difference between two documents: it makes the one of the other, byte for byte, and of no third."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fairserve.config import SchedulerConfig, key_digest
from fairserve.difference import Difference, DifferenceError, WrongBaseError, apply, diff

SALTS = ("5a" * 16, "5b" * 16)
NAMES = ("a", "b", "c", "ä")

limits = st.none() | st.builds(lambda n, s: {"count": n, "window_s": s}, st.integers(1, 9), st.floats(1, 99))


def entries(**fields: st.SearchStrategy) -> st.SearchStrategy[list[dict]]:
    """Any subset of names, in any order: the operator's order is only one of them."""
    one = st.fixed_dictionaries({"name": st.sampled_from(NAMES), **fields})
    return st.lists(one, unique_by=lambda entry: entry["name"], max_size=4)


@st.composite
def documents(draw: st.DrawFn) -> SchedulerConfig:
    matches = st.sampled_from([None, {"models": ["m"]}, {"headers": {"x-b": "2", "x-a": "1"}}])
    applications = draw(entries(input_tokens=st.integers(1, 9), output_tokens=st.just(1), match=matches))
    usable = st.none() | st.sampled_from([(), [each["name"] for each in applications]])
    users = st.sampled_from([None, (), ["header:x-u", "body:a.b"]])
    tenants = draw(
        entries(weight=st.floats(0.1, 9), per_user=limits, applications=usable, user_sources=users)
    )
    names = [tenant["name"] for tenant in tenants]
    keys = st.builds(
        lambda key, name: {"digest": key_digest(SALTS[0], key), "tenant": name},
        st.sampled_from(NAMES),
        st.sampled_from(names or ["-"]),
    )
    headers = st.builds(
        lambda name, value, tenant: {"name": name, "value": value, "tenant": tenant},
        st.sampled_from(["x-a", "x-a!"]),
        st.sampled_from(["1", "2: 3"]),
        st.sampled_from(names or ["-"]),
    )
    return SchedulerConfig.model_validate(
        {
            "pool": "default/llm",
            "generation": draw(st.integers(0, 5)),
            "mode": draw(st.sampled_from(["Enforce", "Shadow"])),
            "scheduler": {"normalisation": draw(st.sampled_from([0.5, 1.0]))},
            "default_tenant": draw(st.none() | st.just({"name": "default"})),
            "tenants": tenants,
            "applications": applications,
            "identity": {
                "salt": draw(st.sampled_from(SALTS)),
                "trusted_proxies": draw(st.lists(st.sampled_from(["10.0.0.0/8", "::1/128"]), unique=True)),
                "api_keys": draw(st.lists(keys, unique_by=lambda key: key["digest"], max_size=3))
                if names
                else [],
                "headers": draw(st.lists(headers, unique_by=lambda h: (h["name"], h["value"]), max_size=4))
                if names
                else [],
            },
        }
    )


@settings(deadline=None)
@given(documents(), documents())
def test_a_difference_makes_the_new_document_of_the_old(old: SchedulerConfig, new: SchedulerConfig) -> None:
    travelled = Difference.from_bytes(diff(old, new).to_bytes())
    made = apply(travelled, old)
    assert made == new
    assert (made.to_bytes(), made.content_hash) == (new.to_bytes(), new.content_hash)


@settings(deadline=None)
@given(documents(), documents(), documents())
def test_a_difference_applies_to_no_other_document(
    old: SchedulerConfig, new: SchedulerConfig, other: SchedulerConfig
) -> None:
    assume((other.generation, other.content_hash) != (old.generation, old.content_hash))
    with pytest.raises(WrongBaseError):
        apply(diff(old, new), other)


def document(generation: int, *tenants: str) -> SchedulerConfig:
    return SchedulerConfig.model_validate(
        {
            "pool": "default/llm",
            "generation": generation,
            "identity": {"salt": SALTS[0]},
            "tenants": [{"name": name} for name in tenants],
        }
    )


def test_one_tenant_of_many_travels_alone() -> None:
    names = [f"t{number:04}" for number in range(1000)]
    difference = diff(document(1, *names), document(2, *names[:500], "t0499a", *names[501:]))
    assert [entry["name"] for entry in difference.put["tenants"]] == ["t0499a"]
    assert (difference.set, difference.remove) == ({}, {"tenants": ["t0500"]})


@pytest.mark.parametrize(
    ("change", "raised"),
    [
        ({"set": {"surprise": 1}}, DifferenceError),
        ({"set": {"generation": 9}}, DifferenceError),
        ({"put": {"mode": []}}, DifferenceError),
        ({"put": {"tenants": [{"weight": 1}]}}, DifferenceError),
        ({"remove": {"tenants": ["nobody"]}}, DifferenceError),
        ({"remove": {"tenants": ["a"]}, "put": {"tenants": [{"name": "a"}]}}, DifferenceError),
        ({"set": {"tenants": []}, "put": {"tenants": [{"name": "a"}]}}, DifferenceError),
        ({"put": {"tenants": [{"name": "a", "weight": 0}]}}, ValidationError),
        ({"put": {"tenants": [{"name": "a", "wieght": 1}]}}, ValidationError),
        ({"set": {"mode": "Shadow"}, "hash": "0" * 64}, WrongBaseError),
    ],
)
def test_a_difference_that_makes_no_sense_is_refused(change: dict, raised: type[Exception]) -> None:
    old = document(1, "a", "b")
    sensible = diff(old, document(2, "a", "b"))
    with pytest.raises(raised):
        apply(sensible.model_copy(update=change), old)
