"""The small fields of a `multipart/form-data` body, read past its files.

Only what the scheduler wants to know is looked at: a part with a file name is skipped from boundary to
boundary without a copy. Nothing is validated and the body reaches the engine byte for byte, so another
reading than the engine's changes an estimate and nothing else.
"""

from __future__ import annotations

import re

from fairserve.engine.requests import BodyField, EngineRequest, boolean, integer

_BOUNDARY = re.compile(rb';\s*boundary=(?:"([^"]+)"|([^\s;]+))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition:(.*)$", re.IGNORECASE | re.MULTILINE)
_NAME = re.compile(rb';\s*name=(?:"([^"]*)"|([^\s;]+))', re.IGNORECASE)
_FILE = re.compile(rb";\s*filename\*?=", re.IGNORECASE)
#: A part's head is shorter than this, and so is a field worth reading, in bytes.
_MAX_HEAD = 4096
_MAX_VALUE = 4096
#: More parts than this are no audio request.
_MAX_PARTS = 256


def read_audio(body: bytes, content_type: bytes, wanted: tuple[BodyField, ...] = ()) -> EngineRequest:
    """Read the body of `/v1/audio/transcriptions` or `/v1/audio/translations`. `n` is the number of beams.
    `wanted`: fields to tell in `said`, of which a form has those of one name.
    """
    fields = form_fields(body, content_type)
    beams = integer(fields.get("n")) if boolean(fields.get("use_beam_search")) else None
    cap = integer(fields.get("max_completion_tokens"))
    sequences = beams or 1
    return EngineRequest(
        payload=body,
        stream=boolean(fields.get("stream")),
        sequences=sequences,
        max_output_tokens=None if cap is None else cap * sequences,
        user=fields.get("user", ""),
        said={path: fields[path[0]] for path in wanted if len(path) == 1 and fields.get(path[0])},
    )


def form_fields(body: bytes, content_type: bytes) -> dict[str, str]:
    """The fields that are no files, by name; of two with one name the last, as in the engine."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        return {}
    delimiter = b"--" + (match[1] or match[2])
    fields: dict[str, str] = {}
    at = body.find(delimiter)  # What stands before the first boundary is for people.
    for _ in range(_MAX_PARTS):
        start = at + len(delimiter)
        if at < 0 or body[start : start + 2] != b"\r\n":
            break
        # The head begins with the line break, so that a part without headers has an end of its head, too.
        head_end = body.find(b"\r\n\r\n", start, start + _MAX_HEAD)
        end = body.find(b"\r\n" + delimiter, start if head_end < 0 else head_end + 2)
        if end < 0:
            break
        if head_end >= 0 and end - head_end - 4 <= _MAX_VALUE:
            name = _field_name(body[start + 2 : head_end])
            if name is not None:
                fields[name] = body[head_end + 4 : end].decode("utf-8", "replace")
        at = end + 2
    return fields


def _field_name(head: bytes) -> str | None:
    """The name of a part that is no file."""
    disposition = _DISPOSITION.search(head.replace(b"\r\n", b"\n"))
    if disposition is None or _FILE.search(disposition[1]):
        return None
    name = _NAME.search(disposition[1])
    return None if name is None else (name[1] if name[1] is not None else name[2]).decode("latin-1")
