"""Answers lead back to their interaction, for a while, for whom they were made."""

from __future__ import annotations

import random

from fairserve.sidecar.chains import MAX_AGE_S, MAX_PER_TENANT, ResponseChains


def chains() -> ResponseChains:
    return ResponseChains(random.Random(1))


def test_answer_leads_back_to_its_interaction():
    known = chains()
    known.remember("a", "u", "r1", "i", 0.0)
    known.remember("a", "u", "r2", "i", 1.0)
    assert known.interaction("a", "u", "r1", 2.0) == known.interaction("a", "u", "r2", 2.0) == "i"


def test_nobody_else_goes_on_from_it():
    known = chains()
    known.remember("a", "u", "r", "i", 0.0)
    assert known.interaction("b", "u", "r", 0.0) is None
    assert known.interaction("a", "v", "r", 0.0) is None
    assert known.interaction("a", "u", "s", 0.0) is None


def test_it_is_forgotten_after_a_while():
    known = chains()
    known.remember("a", "u", "r", "i", 0.0)
    assert known.interaction("a", "u", "r", MAX_AGE_S) == "i"
    assert known.interaction("a", "u", "r", MAX_AGE_S + 1) is None
    known.remember("a", "u", "s", "i", MAX_AGE_S + 1)
    assert len(known._tenants["a"]) == 1


def test_one_tenants_answers_displace_only_its_own_oldest():
    known = chains()
    known.remember("b", "u", "r", "i", 0.0)
    for number in range(MAX_PER_TENANT + 1):
        known.remember("a", "u", f"r{number}", "i", 0.0)
    assert known.interaction("b", "u", "r", 0.0) == "i"
    assert known.interaction("a", "u", "r0", 0.0) is None
    assert known.interaction("a", "u", "r1", 0.0) == "i"


def test_names_differ():
    known = chains()
    assert len({known.begin() for _ in range(100)}) == 100
