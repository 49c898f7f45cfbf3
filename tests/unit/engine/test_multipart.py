"""Fields beside a file, however the body is written."""

from __future__ import annotations

import pytest

from fairserve.engine.multipart import form_fields, read_audio

TYPE = b"multipart/form-data; boundary=xyz"


def form(*parts: bytes, boundary: bytes = b"xyz") -> bytes:
    return (
        b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    )


def field(name: str, value: str) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


FILE = b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
SOUND = b"\x00\r\n--xy\r\n\r\nstream\r\n" * 1000


def test_fields_around_a_file_are_read():
    body = form(field("stream", "true"), FILE + SOUND, field("user", "u\u00fc"))
    assert form_fields(body, TYPE) == {"stream": "true", "user": "u\u00fc"}


@pytest.mark.parametrize(
    "content_type",
    [
        b'multipart/form-data; boundary="xyz"',
        b"multipart/form-data;boundary=xyz; charset=utf-8",
        b"Multipart/Form-Data; Boundary=xyz",
    ],
)
def test_boundary_is_written_in_several_ways(content_type):
    assert form_fields(form(field("a", "1")), content_type) == {"a": "1"}


def test_last_of_two_fields_wins_and_an_empty_one_is_there():
    body = form(field("a", "1"), field("a", "2"), field("b", ""))
    assert form_fields(b"preamble\r\n" + body, TYPE) == {"a": "2", "b": ""}


@pytest.mark.parametrize(
    "part",
    [
        b"content-disposition: form-data; NAME=a\r\n\r\n1",
        b'Content-Type: text/plain\r\nContent-Disposition: form-data; name="a"\r\n\r\n1',
    ],
)
def test_head_of_a_part_is_written_in_several_ways(part):
    assert form_fields(form(part), TYPE) == {"a": "1"}


def test_file_is_no_field_even_under_a_fields_name():
    part = b"Content-Disposition: form-data; name=\"stream\"; filename*=utf-8''x\r\n\r\ntrue"
    assert form_fields(form(part), TYPE) == {}


def test_part_that_is_too_long_or_nameless_is_passed_over():
    body = form(field("a", "x" * 10_000), b"X: " + b"y" * 10_000 + b"\r\n\r\n1", b"\r\n1", field("b", "2"))
    assert form_fields(body, TYPE) == {"b": "2"}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(field("a", "1")), b"application/json"),
        (form(field("a", "1")), b""),
        (form(field("a", "1"), boundary=b"other"), TYPE),
        (b"--xyz\r\n" + field("a", "1"), TYPE),
        (b"--xyz--\r\n", TYPE),
        (b"--xyz\r\n--xyz\r\n--xyz--", TYPE),
        (b"", TYPE),
        (b"{}", TYPE),
    ],
)
def test_what_is_no_form_has_no_fields(body, content_type):
    assert form_fields(body, content_type) == {}
    asked = read_audio(body, content_type)
    assert (asked.payload, asked.stream, asked.max_output_tokens) == (body, False, None)


def test_number_of_parts_is_bounded():
    assert len(form_fields(form(*[field(f"f{i}", "1") for i in range(1000)]), TYPE)) == 256


@pytest.mark.parametrize(
    ("fields", "stream", "sequences", "cap"),
    [
        ({"stream": "True"}, True, 1, None),
        ({"stream": "false", "max_completion_tokens": "50"}, False, 1, 50),
        ({"n": "5", "max_completion_tokens": "50"}, False, 1, 50),
        ({"n": "5", "use_beam_search": "true", "max_completion_tokens": "50"}, False, 5, 250),
        ({"n": "x", "use_beam_search": "1", "max_completion_tokens": "y"}, False, 1, None),
    ],
)
def test_audio_request(fields, stream, sequences, cap):
    body = form(FILE + SOUND, *[field(name, value) for name, value in fields.items()])
    asked = read_audio(body, TYPE)
    assert (asked.stream, asked.sequences, asked.max_output_tokens) == (stream, sequences, cap)
    assert asked.payload == body


def test_fields_that_are_asked_for_are_told():
    body = form(FILE + SOUND, field("model", "whisper"), field("who", "ann"), field("empty", ""))
    wanted = (("model",), ("who", "else"), ("empty",), ("gone",))
    assert read_audio(body, TYPE, wanted).said == {("model",): "whisper"}
    assert read_audio(body, TYPE).said == {}
