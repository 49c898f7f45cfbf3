"""Documents in pieces are the documents, byte for byte."""

from __future__ import annotations

from fairserve.config import SchedulerConfig
from fairserve.difference import Difference, Held, apply, diff
from fairserve.rendering import Renderer, difference
from tests.unit.operator.builders import api_key, application, compiled, tenant

KEYS = {"s": "the-key", "t": "another"}


def config(*tenants: object) -> SchedulerConfig:
    found = compiled(list(tenants), secrets=KEYS).config
    assert found is not None
    return found


def with_generation(document: SchedulerConfig, generation: int) -> SchedulerConfig:
    return document.model_copy(update={"generation": generation})


def test_pieces_give_the_document_and_its_hash() -> None:
    document = config(tenant("a", identity=[api_key("s")]), tenant("b", weight=2))
    rendering = Renderer().render(document)
    assert rendering.document(7) == with_generation(document, 7).to_bytes()
    assert rendering.content_hash == document.content_hash


def test_pieces_of_fields_that_came_later_give_the_document_too() -> None:
    usable = {
        "applications": {"names": ["chat"]},
        "users": {"from": [{"header": "x-u"}]},
        "stopPolicy": "Hold",
    }
    chat = application("chat", match={"models": ["m"]})
    with_them, without = compiled([tenant("a", **usable)], [chat]).config, compiled([tenant("a")]).config
    assert with_them is not None
    assert without is not None
    for document in (with_them, without):
        rendering = Renderer().render(document)
        assert rendering.document(7) == with_generation(document, 7).to_bytes()
        assert rendering.content_hash == document.content_hash
    old, new = Renderer().render(without), Renderer().render(with_them)
    sent = Difference.from_bytes(difference(old, 1, new, 2))
    assert apply(sent, Held.of(with_generation(without, 1))).config == with_generation(with_them, 2)


def test_difference_is_what_a_sidecar_would_compute() -> None:
    old = config(tenant("a", identity=[api_key("s")]), tenant("b"))
    new = config(tenant("b", weight=3), tenant("c", identity=[api_key("t")]))
    renderer = Renderer()
    change = difference(renderer.render(old), 1, renderer.render(new), 2)
    assert Difference.from_bytes(change) == diff(with_generation(old, 1), with_generation(new, 2))
    assert apply(Difference.from_bytes(change), Held.of(with_generation(old, 1))).config == with_generation(
        new, 2
    )


def test_tenants_that_did_not_change_are_not_rendered_again() -> None:
    kept = tenant("a", identity=[api_key("s")])
    renderer = Renderer()
    before = renderer.render(config(kept, tenant("b")))
    after = renderer.render(config(kept, tenant("b", weight=3)))
    assert after.lists["tenants"]["a"] is before.lists["tenants"]["a"]
    assert after.lists["tenants"]["b"] != before.lists["tenants"]["b"]


def test_a_model_at_the_address_of_one_that_is_gone_is_rendered_anew() -> None:
    renderer = Renderer()
    for weight in range(1, 50):
        document = config(tenant("a", weight=weight))
        assert renderer.render(document).document(1) == with_generation(document, 1).to_bytes()
